//! Arithmetic of the crowd's words: where a source lives, what it owes, who must go.
//!
//! Pure; the compare-and-swap around it is the kernel program's. Sizes are those of one region:
//! `bits` = log2 of its sets, 0..=20. Layout: [`crate::abi::crowd`].

use crate::abi::config::PermKey;
use crate::abi::crowd::{BUSY, TAT6_MASK, VERSION_SHIFT};
use crate::perm::{perm32, unperm32};

/// Where an IPv4 source lives in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place4 {
    /// Set within the region.
    pub set: u32,
    /// What the word must carry to be this source's.
    pub tag: u32,
    /// The way it is looked for first and put if free, 0..=7.
    pub home: u32,
}

/// Returns where `address` lives in a region of 2^`bits` sets.
#[inline(always)]
#[must_use]
pub const fn place4(key: &PermKey, address: u32, bits: u32) -> Place4 {
    let permuted = perm32(key, address);
    Place4 {
        set: permuted & ((1 << (bits & 31)) - 1),
        tag: permuted >> (bits & 31),
        home: permuted.wrapping_mul(0x9e37_79b1) >> 29,
    }
}

/// Returns the address whose word carries `tag` in `set`: the inverse of [`place4`]. Host only.
#[must_use]
pub const fn address4(key: &PermKey, set: u32, tag: u32, bits: u32) -> u32 {
    unperm32(key, (tag << (bits & 31)) | set)
}

/// Bits of a crowd word that hold the TAT: `32 + bits`.
#[inline(always)]
#[must_use]
pub const fn tat_mask(bits: u32) -> u64 {
    (1 << ((32 + bits) & 63)) - 1
}

/// Joins tag and TAT; the TAT wraps at `32 + bits` bits.
#[inline(always)]
#[must_use]
pub const fn pack(tag: u32, tat: u64, bits: u32) -> u64 {
    ((tag as u64) << ((32 + bits) & 63)) | (tat & tat_mask(bits))
}

/// Returns the tag of a word.
#[inline(always)]
#[must_use]
pub const fn tag(word: u64, bits: u32) -> u32 {
    (word >> ((32 + bits) & 63)) as u32
}

/// Returns what a word owes at `now`, in fractions of a unit, within its wrapped clock of `mask`.
///
/// Debt never exceeds `cap`, so whatever reads above it is idle (or has wrapped) and owes nothing.
#[inline(always)]
#[must_use]
pub const fn debt(tat: u64, now: u64, cap: u64, mask: u64) -> u64 {
    let distance = tat.wrapping_sub(now) & mask;
    if distance > cap { 0 } else { distance }
}

/// Orders words by who must go first: the longest idle has rank 0 or little more, then idle ones by
/// age, then debtors by debt. The victim is the word of least rank.
#[inline(always)]
#[must_use]
pub const fn rank(tat: u64, now: u64, cap: u64, mask: u64) -> u64 {
    tat.wrapping_sub(now).wrapping_sub(cap).wrapping_sub(1) & mask
}

/// Returns the debt above which a word reads as idle: the burst, 20 ms of rate (a change of clock
/// dated ahead, a CPU's clock that lags) and one cost, in fractions of a unit.
#[inline(always)]
#[must_use]
pub const fn cap(burst: u64, slack: u64, cost: u64) -> u64 {
    burst.saturating_add(slack).saturating_add(cost)
}

/// Returns the TAT of an IPv6 way's state word.
#[inline(always)]
#[must_use]
pub const fn tat6(state: u64) -> u64 {
    state & TAT6_MASK
}

/// Whether an IPv6 way is changing hands.
#[inline(always)]
#[must_use]
pub const fn is_busy(state: u64) -> bool {
    state & BUSY != 0
}

/// Returns `state` with another TAT: the version stays when the TAT rises and is raised by one,
/// modulo 256, when it does not, so that a reader's compare-and-swap never mistakes one for the
/// other.
#[inline(always)]
#[must_use]
pub const fn with_tat6(state: u64, tat: u64) -> u64 {
    let new = tat & TAT6_MASK;
    let version = (state >> VERSION_SHIFT) & 0xff;
    let version = if new > tat6(state) {
        version
    } else {
        (version + 1) & 0xff
    };
    (version << VERSION_SHIFT) | new
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PermKey =
        PermKey::from_random([7, 11, 0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03]);

    #[test]
    fn set_and_tag_are_the_address() {
        for bits in [0, 3, 13, 17, 20] {
            for n in 0..10_000_u32 {
                let address = n.wrapping_mul(0x9e37_79b9);
                let place = place4(&KEY, address, bits);
                let word = pack(place.tag, 12_345, bits);
                assert!(place.home < 8);
                assert_eq!(address4(&KEY, place.set, tag(word, bits), bits), address);
            }
        }
    }

    #[test]
    fn debt_survives_the_wrap_and_idle_words_owe_nothing() {
        let mask = tat_mask(13);
        let cap = 20 * 256;
        for now in [0, 1, mask - 5, mask, u64::MAX - 3, 1 << 50] {
            let tat = now.wrapping_add(19 * 256) & mask;
            assert_eq!(debt(tat, now, cap, mask), 19 * 256);
            assert_eq!(debt(tat, now.wrapping_add(20 * 256), cap, mask), 0);
            assert_eq!(debt(tat, now.wrapping_add(mask / 2), cap, mask), 0);
        }
    }

    #[test]
    fn the_longest_idle_goes_first_and_the_deepest_debtor_last() {
        let (mask, cap, now) = (tat_mask(17), 5_000, 1_u64 << 45);
        let ages = [
            now - 1_000_000,
            now - 1_000,
            now - 1,
            now,
            now + 10,
            now + 4_999,
            now + 5_000,
        ];
        let ranks: Vec<u64> = ages.iter().map(|&tat| rank(tat, now, cap, mask)).collect();
        assert!(ranks.is_sorted(), "{ranks:?}");
    }

    #[test]
    fn a_lowered_tat_changes_the_version() {
        let state = with_tat6(0, 100);
        assert_eq!((state, tat6(state)), (100, 100));
        let lowered = with_tat6(state, 50);
        assert_eq!(lowered >> VERSION_SHIFT, 1);
        assert_ne!(lowered, with_tat6(0, 50));
        assert_eq!(with_tat6(255 << VERSION_SHIFT | 9, 3) >> VERSION_SHIFT, 0);
        assert!(!is_busy(lowered) && is_busy(lowered | BUSY));
    }
}
