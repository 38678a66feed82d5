//! Policies, the prefixes that select them, and zones.

use crate::quota::KERNEL_UNITS;
use crate::vclock::UnitClock;

/// A policy's compiled form. Immutable once its index is in `POLICY_INDEX`; a change writes
/// another entry and swaps the index. An entry is reused one second after it was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PolicyEntry {
    /// Keyed hash of the policy's name (`segment:<name>` or `client:<id>`), so that a restarted
    /// agent finds its policies again. Zero in an unused entry.
    pub identity: [u64; 2],
    /// Bit n is set if unit n ([`crate::quota::Unit`]) is limited.
    pub units: u32,
    /// Number of the segment whose clock drives this policy, below [`super::config::SEGMENTS`].
    pub segment: u32,
    /// The slot this entry belongs to.
    pub slot: u32,
    /// Distinguishes TATs written on this policy's clocks from those of others, 1..=255.
    pub tag: u32,
    /// Raised by one with each new entry of the slot.
    pub revision: u32,
    /// Zero.
    pub reserved: u32,
    /// Clock, depth and mode by unit.
    pub clocks: [UnitClock; KERNEL_UNITS],
}

/// What a prefix says about its sources.
pub mod action {
    /// Nothing of its own: ask the next less specific prefix.
    pub const PARENT: u32 = 0;
    /// Pass, uncharged.
    pub const ALLOW: u32 = 1;
    /// Drop.
    pub const BLOCK: u32 = 2;
    /// Limit each source by the policy in `slot`, in the tracked table.
    pub const TRACKED: u32 = 3;
    /// Limit all sources of the prefix together by the policy in `slot`, in one tracked bucket
    /// whose key is [`super::tracked::shared_key`].
    pub const SHARED: u32 = 4;
    /// Limit each source by the zone whose number is in `slot`, in the crowd.
    pub const ZONE: u32 = 5;
}

use super::tracked;
const _: fn(u32) -> u64 = tracked::shared_key;

/// What one prefix says: until `until_ns`, then afterwards. A block with a time to live has
/// `PARENT` afterwards; a pending (`--try`) prefix has the old meaning afterwards; a pending
/// removal (tombstone) has `PARENT` first and the old meaning afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PrefixValue {
    /// One of [`action`], in force until `until_ns`.
    pub action: u32,
    /// Policy slot or zone of `action`.
    pub slot: u32,
    /// Real time (CLOCK_MONOTONIC) at which `action` ends; [`crate::vclock::NEVER`] for no end.
    pub until_ns: u64,
    /// One of [`action`], in force from `until_ns` on.
    pub after_action: u32,
    /// Policy slot or zone of `after_action`.
    pub after_slot: u32,
    /// Length of this very prefix; the next less specific one is found by asking the trie again
    /// with a shorter length.
    pub prefix_len: u32,
    /// Zero. A source under `TRACKED` that has no entry in the table (only the agent inserts) is
    /// judged by the next less specific prefix, in the end by the crowd's default zone.
    pub reserved: u32,
}

/// A [`PrefixValue`] as a trie holds it: the same bytes, aligned to 4, because the kernel puts the
/// value right behind the address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PrefixWords(pub [u32; 8]);

impl PrefixWords {
    /// Reads the words as a value.
    #[inline(always)]
    #[must_use]
    pub const fn value(self) -> PrefixValue {
        let [
            action,
            slot,
            low,
            high,
            after_action,
            after_slot,
            prefix_len,
            reserved,
        ] = self.0;
        let until_ns = if cfg!(target_endian = "little") {
            (high as u64) << 32 | low as u64
        } else {
            (low as u64) << 32 | high as u64
        };
        PrefixValue {
            action,
            slot,
            until_ns,
            after_action,
            after_slot,
            prefix_len,
            reserved,
        }
    }
}

/// Most times a packet asks a trie for the next less specific prefix; deeper reads as the crowd.
pub const MAX_PARENTS: u32 = 4;

/// Key of `PREFIXES4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PrefixKey4 {
    /// Significant bits, 0..=32.
    pub prefix_len: u32,
    /// The address as on the wire.
    pub address_be: [u8; 4],
}

/// Key of `PREFIXES6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PrefixKey6 {
    /// Significant bits, 0..=128.
    pub prefix_len: u32,
    /// The address as on the wire.
    pub address_be: [u8; 16],
}

/// Region number of a unit that a zone does not limit.
pub const NO_REGION: u8 = 255;

/// A part of the crowd that shares one policy. Eight bytes, replaced by one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Zone {
    /// Slot of the zone's policy.
    pub slot: u32,
    /// Region by unit, the same number in `CROWD4` and `CROWD6`; [`NO_REGION`] if not limited.
    pub regions: [u8; KERNEL_UNITS],
    /// 1 if the zone is in use.
    pub used: u8,
}

impl Zone {
    /// A zone from its eight bytes in memory, read at once: a structure of smaller fields is read
    /// field by field, and may be replaced in between.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        let [a, b, c, d, packets, bytes, connections, used] = word.to_ne_bytes();
        Self {
            slot: u32::from_ne_bytes([a, b, c, d]),
            regions: [packets, bytes, connections],
            used,
        }
    }
}

const _: () = assert!(size_of::<PolicyEntry>() == 40 + 3 * 3 * 48);
const _: () = assert!(size_of::<PrefixValue>() == 32 && size_of::<PrefixWords>() == 32);
const _: () = assert!(align_of::<PrefixWords>() == 4);
const _: () = assert!(size_of::<PrefixKey4>() == 8 && size_of::<PrefixKey6>() == 20);
const _: () = assert!(size_of::<Zone>() == 8 && align_of::<Zone>() == 4);
