//! Reads the crowd tables: who owes what, and how full they are.
//!
//! The words are read while the kernel changes them; each is one atomic load (an IPv6 way two, the
//! state before and after the key), so what is reported was true a moment ago, word by word.

use ratelimiter_common::abi::config::{PermKey, Region};
use ratelimiter_common::abi::crowd::{BUSY, CAP_SLACK_NS, MAX_COST, TAT6_MASK, WAYS};
use ratelimiter_common::abi::names;
use ratelimiter_common::abi::policy::{NO_REGION, PolicyEntry};
use ratelimiter_common::perm::unperm32;
use ratelimiter_common::quota::Unit;

use super::Error;
use super::apply::Writer;
use super::loader::Kernel;
use super::mmap::Mmap;
use super::state::{CrowdFill, CrowdSource};

/// The kernel's units, by number.
const UNITS: [Unit; 3] = [Unit::Packets, Unit::Bytes, Unit::Connections];

/// One unit of one zone in one table: where its words lie and how to read them at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    v6: bool,
    zone: u8,
    number: u8,
    unit: Unit,
    region: Region,
    key: PermKey,
    now: u64,
    burst: u64,
    cap: u64,
    rate_per_s: u64,
}

/// Returns a view of every limited unit of every zone in use, as of `now_ns`.
pub(super) fn views(kernel: &Kernel, writer: &Writer, now_ns: u64) -> Result<Vec<View>, Error> {
    let policies = kernel.map(names::POLICIES)?;
    let mut views = Vec::new();
    for (number, zone) in (0_u8..).zip(&writer.zones) {
        let index = writer.policies.current(zone.slot);
        if zone.used == 0 || index == 0 {
            continue;
        }
        let entry: PolicyEntry = policies.at(index)?;
        let segment_ns = writer.segment_clock(kernel, entry.segment)?.at(now_ns);
        for ((unit, clock), region) in UNITS.into_iter().zip(&entry.clocks).zip(zone.regions) {
            if entry.units >> (unit as u32) & 1 == 0 || region == NO_REGION {
                continue;
            }
            let piece = clock.piece(now_ns);
            let rate = piece.speed.advance(1_000_000_000);
            for (v6, regions) in [
                (false, &writer.config.regions4),
                (true, &writer.config.regions6),
            ] {
                let Some(&geometry) = regions.get(usize::from(region)) else {
                    continue;
                };
                views.push(View {
                    v6,
                    zone: number,
                    number: region,
                    unit,
                    region: geometry,
                    key: writer.config.perm,
                    now: piece.at(segment_ns),
                    burst: piece.burst,
                    cap: piece.debt_cap(CAP_SLACK_NS).saturating_add(MAX_COST),
                    rate_per_s: (rate >> unit.fraction_bits()).max(1),
                });
            }
        }
    }
    Ok(views)
}

/// Visits every source that owes something.
pub(super) fn scan(
    kernel: &Kernel,
    views: &[View],
    visit: &mut dyn FnMut(&CrowdSource),
) -> Result<(), Error> {
    for view in views {
        view.each(view.memory(kernel)?, &mut |key, debt| {
            if debt > 0 {
                visit(&CrowdSource {
                    key,
                    v6: view.v6,
                    zone: view.zone,
                    unit: view.unit,
                    debt,
                    burst: view.burst,
                });
            }
        });
    }
    Ok(())
}

/// Counts claimed, indebted and offending words by region.
pub(super) fn fill(kernel: &Kernel, views: &[View]) -> Result<Vec<CrowdFill>, Error> {
    views
        .iter()
        .map(|view| {
            let mut fill = CrowdFill {
                v6: view.v6,
                region: view.number,
                zone: view.zone,
                unit: view.unit as u8,
                capacity: (u64::from(view.region.set_mask) + 1) * WAYS as u64,
                claimed: 0,
                indebted: 0,
                over_limit: 0,
                rate_per_s: view.rate_per_s,
            };
            let one = 1 << view.unit.fraction_bits();
            view.each(view.memory(kernel)?, &mut |_, debt| {
                fill.claimed += 1;
                fill.indebted += u64::from(debt > 0);
                fill.over_limit += u64::from(debt.saturating_add(one) > view.burst);
            });
            Ok(fill)
        })
        .collect()
}

impl View {
    fn memory<'a>(&self, kernel: &'a Kernel) -> Result<&'a Mmap, Error> {
        kernel
            .map(if self.v6 {
                names::CROWD6
            } else {
                names::CROWD4
            })?
            .memory()
    }

    /// Visits every claimed word with its source and what it owes.
    fn each(&self, memory: &Mmap, visit: &mut dyn FnMut(u64, u64)) {
        for set in 0..=self.region.set_mask {
            let place = (self.region.base_set + set) as usize;
            for way in 0..WAYS {
                let found = if self.v6 {
                    self.way6(memory, place, way)
                } else {
                    self.word4(memory.word(place * WAYS + way), set)
                };
                if let Some((key, debt)) = found {
                    visit(key, debt);
                }
            }
        }
    }

    /// Source and debt of an IPv4 word: tag and set together are the permuted address.
    fn word4(&self, word: u64, set: u32) -> Option<(u64, u64)> {
        if word == 0 {
            return None;
        }
        let tat_bits = 32 + self.region.set_bits;
        let permuted = ((word >> tat_bits) as u32) << self.region.set_bits | set;
        let address = unperm32(&self.key, permuted);
        Some((u64::from(address), self.debt(word, (1 << tat_bits) - 1)))
    }

    /// Source and debt of an IPv6 way; `None` also while it changes hands.
    fn way6(&self, memory: &Mmap, place: usize, way: usize) -> Option<(u64, u64)> {
        let at = (place * WAYS + way) * 2;
        let state = memory.word_acquire(at + 1);
        let key = memory.word_acquire(at);
        if key == 0 || state & BUSY != 0 || memory.word_acquire(at + 1) != state {
            return None;
        }
        Some((key, self.debt(state, TAT6_MASK)))
    }

    /// What a TAT owes; whatever reads above the cap is idle, or has wrapped. A debt above the
    /// burst (it was lowered) is what the next refusal clamps it to.
    fn debt(&self, tat: u64, mask: u64) -> u64 {
        let debt = tat.wrapping_sub(self.now) & mask;
        if debt > self.cap {
            0
        } else {
            debt.min(self.burst)
        }
    }
}

#[cfg(test)]
mod tests {
    use ratelimiter_common::perm::perm32;

    use super::*;

    fn view(now: u64) -> View {
        View {
            v6: false,
            zone: 0,
            number: 0,
            unit: Unit::Packets,
            region: Region {
                base_set: 0,
                set_mask: 8_191,
                set_bits: 13,
                draw: 1,
                first_seen_ns: 0,
            },
            key: PermKey {
                xor: [0x1234_5678, 0x9abc_def0],
                mul: [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f],
            },
            now,
            burst: 5_120,
            cap: 80_000,
            rate_per_s: 10,
        }
    }

    #[test]
    fn a_word_gives_its_address_and_debt_back() {
        let view = view(1 << 44);
        for address in [0_u32, 1, 0xc000_0201, u32::MAX] {
            let permuted = perm32(&view.key, address);
            let (set, tag) = (permuted & 8_191, u64::from(permuted >> 13));
            let word = tag << 45 | (((1 << 44) + 300) & ((1 << 45) - 1));
            assert_eq!(view.word4(word, set), Some((u64::from(address), 300)));
        }
    }

    #[test]
    fn idle_and_unclaimed_words_owe_nothing() {
        let view = view(1_000_000);
        assert_eq!(view.word4(0, 3), None);
        assert_eq!(view.debt(999_999, (1 << 45) - 1), 0);
        assert_eq!(view.debt(1_000_000 + 6_000, (1 << 45) - 1), 5_120);
    }
}
