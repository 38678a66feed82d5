//! The coarse bytes and fine bits that keep the crowd away from the tries.
//!
//! One byte per /16: a zone, or "look further"; and only where it says so, one bit per IPv4 /24 (or
//! hash of an IPv6 /32): set where a packet must ask the tracked table and the trie. An unset bit
//! means zone 0.

use ratelimiter_common::abi::config::{FINE_WORDS, LOOK_FURTHER, fine4_bit, fine6_bit};
use ratelimiter_common::abi::policy::{PrefixValue, action};
use ratelimiter_common::vclock::NEVER;

use super::plan::Prefix;
use super::prefixes::bounds;

/// Cells of a coarse table.
pub const CELLS: usize = 65_536;

/// IPv6 /32s in a prefix from which on every fine bit is set instead of one by one: /12.
const MANY: u128 = 1 << 20;

/// Coarse and fine tables of IPv4 and IPv6.
#[derive(Clone, PartialEq, Eq)]
pub struct Lookup {
    /// `COARSE4`, `COARSE6`.
    pub coarse: [Vec<u8>; 2],
    /// `FINE4`, `FINE6`.
    pub fine: [Vec<u64>; 2],
}

impl Default for Lookup {
    fn default() -> Self {
        Self {
            coarse: [vec![0; CELLS], vec![0; CELLS]],
            fine: [vec![0; FINE_WORDS as usize], vec![0; FINE_WORDS as usize]],
        }
    }
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let far = |cells: &Vec<u8>| cells.iter().filter(|byte| **byte != 0).count();
        let bits = |words: &Vec<u64>| words.iter().map(|word| word.count_ones()).sum::<u32>();
        f.debug_struct("Lookup")
            .field("cells4", &self.coarse.first().map(far))
            .field("cells6", &self.coarse.last().map(far))
            .field("bits4", &self.fine.first().map(bits))
            .field("bits6", &self.fine.last().map(bits))
            .finish()
    }
}

fn set(words: &mut [u64], bit: u32) {
    if let Some(word) = words.get_mut((bit >> 6) as usize) {
        *word |= 1 << (bit & 63);
    }
}

/// Sets the bits `first..=last`.
fn set_range(words: &mut [u64], first: u32, last: u32) {
    let (low, high) = ((first >> 6) as usize, (last >> 6) as usize);
    let from = u64::MAX << (first & 63);
    let to = u64::MAX >> (63 - (last & 63));
    if low == high {
        if let Some(word) = words.get_mut(low) {
            *word |= from & to;
        }
        return;
    }
    if let Some([start, middle @ .., end]) = words.get_mut(low..=high) {
        *start |= from;
        middle.fill(u64::MAX);
        *end |= to;
    }
}

impl Lookup {
    /// Derives the tables from prefixes in ascending order.
    #[must_use]
    pub fn of(prefixes: &[(Prefix, PrefixValue)]) -> Self {
        let mut lookup = Self::default();
        for (prefix, value) in prefixes {
            lookup.add(prefix, value);
        }
        lookup
    }

    /// Adds one prefix; those around it were added before.
    fn add(&mut self, prefix: &Prefix, value: &PrefixValue) {
        let (v6, first, last) = bounds(prefix);
        let [coarse4, coarse6] = &mut self.coarse;
        let [fine4, fine6] = &mut self.fine;
        let (coarse, shift) = if v6 { (coarse6, 112) } else { (coarse4, 16) };
        let cells = (first >> shift) as usize..=(last >> shift) as usize;
        let whole = prefix.prefix_len() <= 16;
        // A wide zone for good needs no trie at all.
        if whole && value.action == action::ZONE && value.until_ns == NEVER {
            if let Some(cells) = coarse.get_mut(cells) {
                cells.fill(value.slot as u8);
            }
            return;
        }
        let many = v6 && (last - first) >> 96 >= MANY - 1;
        if many {
            fine6.fill(u64::MAX);
        }
        for cell in cells {
            let Some(byte) = coarse.get_mut(cell) else {
                continue;
            };
            // The trie must answer for the whole cell when a zone around lies beneath.
            let all = whole || (*byte != 0 && *byte != LOOK_FURTHER);
            *byte = LOOK_FURTHER;
            let cell = cell as u128;
            let (from, to) = if all {
                (cell << shift, (cell << shift) | ((1 << shift) - 1))
            } else {
                (first, last)
            };
            if many {
                // Set above.
            } else if v6 {
                set6(fine6, (from >> 96) as u32, (to >> 96) as u32);
            } else {
                set_range(fine4, fine4_bit(from as u32), fine4_bit(to as u32));
            }
        }
    }

    /// The zone an address belongs to without asking the trie; `None` if it must be asked.
    #[must_use]
    pub fn zone(&self, address: std::net::IpAddr) -> Option<u8> {
        let ([coarse4, coarse6], [fine4, fine6]) = (&self.coarse, &self.fine);
        let (byte, bit, fine) = match address {
            std::net::IpAddr::V4(four) => {
                let four = u32::from(four);
                (coarse4.get((four >> 16) as usize), fine4_bit(four), fine4)
            }
            std::net::IpAddr::V6(six) => {
                let top = (u128::from(six) >> 96) as u32;
                (coarse6.get((top >> 16) as usize), fine6_bit(top), fine6)
            }
        };
        match byte.copied() {
            Some(LOOK_FURTHER) => {
                let word = fine.get((bit >> 6) as usize).copied().unwrap_or(0);
                (word >> (bit & 63) & 1 == 0).then_some(0)
            }
            zone => zone,
        }
    }
}

fn set6(fine: &mut [u64], first: u32, last: u32) {
    // A cell of the coarse table at most: 65 536 bits.
    for top in first..=last {
        set(fine, fine6_bit(top));
    }
}
