//! Arithmetic of the crowd's flat table: words, debt, and who has to make room.
//!
//! Pure; the loads and compare-and-swaps are the kernel program's (and the simulation's). Layouts
//! stand in [`crate::abi::crowd`].
//!
//! Debt is `TAT - now` modulo the word's width. Nobody owes more than the cap, so everything above
//! it reads as idle: a bucket that drained long ago, or one whose clock wrapped since. The victim
//! is the way with the oldest TAT: idle ways by age, then the least debt. Counting from one above
//! the cap, both are the same order, so one number decides (see [`rank`]).

use crate::abi::config::PermKey;
use crate::abi::crowd::{BUSY, TAT6_MASK, VERSION_SHIFT, WAYS};
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
        home: home4(permuted) as u32,
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

/// How the branch-free search turns a sign into a mask. The kernel program does it in one
/// instruction that LLVM cannot turn back into a branch; the host does not care.
pub trait Sign {
    /// All ones if the top bit of `x` is set, else zero.
    fn mask(x: u64) -> u64;
}

/// [`Sign`] in plain Rust.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Sign for Plain {
    #[inline(always)]
    fn mask(x: u64) -> u64 {
        ((x as i64) >> 63) as u64
    }
}

/// Bits of TAT in an IPv4 word of a region with 2^`set_bits` sets. At most 25 set bits are legal.
#[inline(always)]
#[must_use]
pub const fn tat_bits4(set_bits: u32) -> u32 {
    32 + (set_bits & 31)
}

/// The tag of a permuted address.
#[inline(always)]
#[must_use]
pub const fn tag4(permuted: u32, set_bits: u32) -> u64 {
    (permuted >> (set_bits & 31)) as u64
}

/// The way a source tries first. The top bits, which are in the tag and not in the set.
#[inline(always)]
#[must_use]
pub const fn home4(permuted: u32) -> usize {
    (permuted >> 29) as usize
}

/// The way an IPv6 source tries first.
#[inline(always)]
#[must_use]
pub const fn home6(permuted: u64) -> usize {
    (permuted >> 61) as usize
}

/// Puts an IPv4 word together.
#[inline(always)]
#[must_use]
pub const fn pack4(tag: u64, tat: u64, set_bits: u32) -> u64 {
    tag << tat_bits4(set_bits) | (tat & tat_mask(set_bits))
}

/// Whether `word` is not that of the permuted address in the low half of `permuted`, as [`tag4`] would
/// say. Where the address is the high half of a word, its tag lies over the word's: what is left of both
/// is within the TAT.
#[inline(always)]
#[must_use]
pub const fn is_other4(word: u64, permuted: u64, tat_mask: u64) -> bool {
    (word ^ (permuted << 32)) > tat_mask
}

/// Where a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The way, below [`WAYS`].
    pub way: usize,
    /// Whether it holds the source asked for; else it is the victim.
    pub matched: bool,
}

/// Does something for each way, written out: the kernel's verifier would follow a loop further than
/// its end, where a CPU may speculate.
macro_rules! each_way {
    ($way:ident, $body:block) => {
        each_way!(@ $way, $body, 0, 1, 2, 3, 4, 5, 6, 7)
    };
    (@ $way:ident, $body:block, $($number:literal),*) => {
        $({
            let $way: usize = $number;
            $body
        })*
    };
}
const _: () = assert!(WAYS == 8);

/// The way of an IPv4 set that holds a permuted address; [`WAYS`] if none does. One branch per way,
/// all of which a source that is not there takes the same way.
#[inline(always)]
#[must_use]
pub fn find4_by(scan: impl Fn(usize) -> u64, permuted: u64, tat_mask: u64) -> usize {
    each_way!(way, {
        if !is_other4(scan(way), permuted, tat_mask) {
            return way;
        }
    });
    WAYS
}

/// Finds a source, by its permuted address, among an IPv4 set's words, or else the victim, without a
/// branch. Among equals the home way is taken, where the source is looked for first.
#[inline(always)]
#[must_use]
pub fn search4<S: Sign>(
    words: &[u64; WAYS],
    permuted: u32,
    now: u64,
    cap: u64,
    set_bits: u32,
) -> Place {
    let scan = |way: usize| words.get(way).copied().unwrap_or_default();
    search4_by::<S>(scan, permuted, now, cap, set_bits)
}

/// [`search4`] of words that `scan` reads.
#[inline(always)]
#[must_use]
pub fn search4_by<S: Sign>(
    scan: impl Fn(usize) -> u64,
    permuted: u32,
    now: u64,
    cap: u64,
    set_bits: u32,
) -> Place {
    let (tag, home) = (tag4(permuted, set_bits), home4(permuted) as u64);
    let mask = tat_mask(set_bits);
    let shift = tat_bits4(set_bits);
    let origin = now.wrapping_add(cap).wrapping_add(1);
    let mut best = u64::MAX >> 1;
    each_way!(way, {
        let word = scan(way);
        // A match has rank zero, everything else one more than its own.
        let differs = !S::mask(((word >> shift) ^ tag).wrapping_sub(1));
        let order = ((word.wrapping_sub(origin) & mask) + 1) & differs;
        best = least::<S>(best, (order << 3) | (way as u64 ^ home));
    });
    place(best, home)
}

/// Finds `key` among an IPv6 set's ways, or else the victim, without a branch; as [`search4_by`].
/// `scan` reads a way's state and then its key. Returns also whether any way was busy.
#[inline(always)]
#[must_use]
pub fn search6<S: Sign>(
    scan: impl Fn(usize) -> (u64, u64),
    key: u64,
    permuted: u64,
    now: u64,
    cap: u64,
) -> (Place, bool) {
    let home = home6(permuted) as u64;
    let origin = now.wrapping_add(cap).wrapping_add(1);
    let mut best = u64::MAX >> 1;
    let mut busy = 0;
    each_way!(way, {
        let (state, held) = scan(way);
        let other = held ^ key;
        // A busy way is changing hands: it is neither a match nor a victim.
        let taken = S::mask(state);
        let differs = S::mask(other | 0_u64.wrapping_sub(other)) | taken;
        let order = ((state.wrapping_sub(origin) & TAT6_MASK) + 1) & differs;
        busy |= state;
        best = least::<S>(best, (order << 3 | (way as u64 ^ home)) | (taken >> 2));
    });
    (place(best, home), busy & BUSY != 0)
}

#[inline(always)]
fn least<S: Sign>(a: u64, b: u64) -> u64 {
    // Both are below 2^63, so the difference's sign is the order.
    a ^ ((a ^ b) & S::mask(b.wrapping_sub(a)))
}

#[inline(always)]
const fn place(best: u64, home: u64) -> Place {
    Place {
        way: ((best ^ home) & (WAYS as u64 - 1)) as usize,
        matched: best < WAYS as u64,
    }
}

/// The state of an IPv6 way after a charge: same version, new TAT.
#[inline(always)]
#[must_use]
pub const fn charged6(state: u64, tat: u64) -> u64 {
    (state & !(TAT6_MASK | BUSY)) | (tat & TAT6_MASK)
}

/// The state of an IPv6 way after its TAT was lowered: next version, new TAT. TAT alone only rises
/// and so serves as the version of everything else.
#[inline(always)]
#[must_use]
pub const fn lowered6(state: u64, tat: u64) -> u64 {
    let version = (state & !BUSY).wrapping_add(1 << VERSION_SHIFT) & !(BUSY | TAT6_MASK);
    version | (tat & TAT6_MASK)
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

#[cfg(test)]
mod search_tests {
    use proptest::prelude::*;

    use super::*;

    /// The same search, written plainly.
    fn plainly(words: &[u64; 8], tag: u64, now: u64, cap: u64, set_bits: u32) -> Place {
        let mask = tat_mask(set_bits);
        if let Some(way) = words.iter().position(|w| w >> tat_bits4(set_bits) == tag) {
            return Place { way, matched: true };
        }
        let way = (0..8)
            .min_by_key(|&way| rank(words[way], now, cap, mask))
            .unwrap();
        Place {
            way,
            matched: false,
        }
    }

    proptest! {
        #[test]
        fn finds_the_match_or_the_oldest(
            words: [u64; 8], pick in 0_usize..8, hit: bool, other: u32, now: u64,
            cap in 0_u64..1 << 44, set_bits in 6_u32..=25,
        ) {
            let permuted = if hit {
                ((words[pick] >> tat_bits4(set_bits)) as u32) << set_bits
            } else {
                other
            };
            let tag = tag4(permuted, set_bits);
            let mask = tat_mask(set_bits);
            let found = search4::<Plain>(&words, permuted, now, cap, set_bits);
            let expected = plainly(&words, tag, now, cap, set_bits);
            prop_assert_eq!(found.matched, expected.matched);
            if found.matched {
                // Random words may hold one source twice, a table never does: either is a match.
                prop_assert_eq!(words[found.way] >> tat_bits4(set_bits), tag);
            } else {
                prop_assert_eq!(
                    rank(words[found.way], now, cap, mask),
                    rank(words[expected.way], now, cap, mask)
                );
            }
        }

        #[test]
        fn a_tag_is_compared_in_place_as_it_is_taken_out(
            words: [u64; 8], pick in 0_usize..8, hit: bool, other: u32, high: u32,
            set_bits in 6_u32..=25,
        ) {
            let permuted = if hit {
                ((words[pick] >> tat_bits4(set_bits)) as u32) << set_bits
            } else {
                other
            };
            // Whatever stands in the high half.
            let wide = u64::from(high) << 32 | u64::from(permuted);
            let is_it = |word: &u64| word >> tat_bits4(set_bits) == tag4(permuted, set_bits);
            for word in &words {
                prop_assert_eq!(is_other4(*word, wide, tat_mask(set_bits)), !is_it(word));
            }
            let found = find4_by(|way| words[way], wide, tat_mask(set_bits));
            prop_assert_eq!(found, words.iter().position(is_it).unwrap_or(WAYS));
        }

        #[test]
        fn ipv6_never_takes_a_busy_way(
            keys: [u64; 8], states: [u64; 8], pick in 0_usize..8, hit: bool, other: u64, now: u64,
            permuted: u64, cap in 0_u64..1 << 44,
        ) {
            let key = if hit { keys[pick] } else { other };
            let free: Vec<_> = (0..8).filter(|&way| states[way] & BUSY == 0).collect();
            let (found, busy) = search6::<Plain>(|way| (states[way], keys[way]), key, permuted, now, cap);
            prop_assert_eq!(busy, free.len() < 8);
            if let Some(&way) = free.iter().find(|&&way| keys[way] == key) {
                prop_assert!(found.matched);
                prop_assert_eq!(keys[found.way], keys[way]);
                prop_assert_eq!(states[found.way] & BUSY, 0);
            } else if !free.is_empty() {
                prop_assert!(!found.matched);
                let least = free.iter().map(|&w| rank(states[w], now, cap, TAT6_MASK)).min();
                prop_assert_eq!(states[found.way] & BUSY, 0);
                prop_assert_eq!(Some(rank(states[found.way], now, cap, TAT6_MASK)), least);
            }
        }

        #[test]
        fn whatever_is_owed_reads_the_same_across_a_wrap(
            owed in 0_u64..1 << 40, now: u64, set_bits in 13_u32..=25,
        ) {
            let mask = tat_mask(set_bits);
            let tat = now.wrapping_add(owed) & mask;
            prop_assert_eq!(debt(tat, now, 1 << 40, mask), owed);
            // Once the clock has passed it, it is idle, until the clock has gone all the way round.
            prop_assert_eq!(debt(tat, now.wrapping_add(owed + 1), 1 << 40, mask), 0);
        }
    }

    #[test]
    fn among_equals_the_home_way_is_taken() {
        for home in 0..WAYS as u32 {
            let permuted = home << 29 | 1 << 20;
            let place = search4::<Plain>(&[0; WAYS], permuted, 1 << 40, 5_000, 13);
            assert_eq!((place.way, place.matched), (home as usize, false));
            let scan = |_| (0, u64::MAX);
            let (place, _) = search6::<Plain>(scan, 7, u64::from(home) << 61, 1 << 40, 5_000);
            assert_eq!((place.way, place.matched), (home as usize, false));
        }
    }

    #[test]
    fn idle_ways_go_first_by_age_then_the_least_debt() {
        let (mask, cap, now) = (tat_mask(13), 1_000, 1_000_000);
        let order = [
            now - 500_000,
            now - 10,
            now - 1,
            now,
            now + 1,
            now + 400,
            now + 1_000,
        ];
        for pair in order.windows(2) {
            assert!(
                rank(pair[0], now, cap, mask) < rank(pair[1], now, cap, mask),
                "{pair:?}"
            );
        }
    }

    #[test]
    fn what_lowers_a_tat_raises_the_version() {
        let state = (3 << VERSION_SHIFT) + 500;
        assert_eq!(charged6(state, 600), (3 << VERSION_SHIFT) + 600);
        assert_eq!(lowered6(state, 100), (4 << VERSION_SHIFT) + 100);
        assert_eq!(lowered6((255 << VERSION_SHIFT) + 1, 0) & BUSY, 0);
        assert_eq!(charged6(state | BUSY, 1) & BUSY, 0);
    }
}
