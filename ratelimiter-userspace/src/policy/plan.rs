//! From what is installed to what is desired: a list of [`Update`]s.
//!
//! Planning is pure and idempotent: planning from the desired state to itself yields nothing.
//! The order of the updates is the order in which the data plane must apply them: new policies
//! before the prefixes that name them, prefixes before the generation that makes tracked sources
//! look again, removals last.

use ratelimiter_common::abi::policy::{PolicyEntry, PrefixValue, Zone};
use ratelimiter_common::abi::tracked::SourceKey;
use ratelimiter_common::vclock::SegmentClock;

/// An IP prefix as the kernel's tries know it; host bits are zero.
pub type Prefix = ipnet::IpNet;

/// Most prefixes or tracked sources in one update.
pub const BATCH: usize = 16_384;

/// One change of the kernel's maps. Each is atomic for the packets that see it.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Writes `entry` to a free place of `POLICIES`, then swaps `POLICY_INDEX[entry.slot]` to it.
    Policy(Box<PolicyEntry>),
    /// Empties `POLICY_INDEX[slot]` (index 0 is the empty entry).
    RemovePolicy(u32),
    /// Writes a clock to a free place of `SEGMENT_CLOCKS`, then swaps the segment's index.
    Segment {
        /// Segment number.
        segment: u32,
        /// Its clock.
        clock: SegmentClock,
    },
    /// Replaces a zone by one store.
    Zone {
        /// Zone number.
        zone: u32,
        /// Its policy and regions.
        value: Zone,
    },
    /// Inserts or replaces prefixes, in ascending order; at most [`BATCH`] of them.
    Prefixes(Vec<(Prefix, PrefixValue)>),
    /// Removes prefixes, in ascending order; at most [`BATCH`] of them. One that is not there is
    /// no error.
    RemovePrefixes(Vec<Prefix>),
    /// Sets bytes of `COARSE4` or `COARSE6`.
    Coarse {
        /// True for `COARSE6`.
        v6: bool,
        /// Index and new byte.
        bytes: Vec<(u16, u8)>,
    },
    /// Sets words of `FINE4` or `FINE6`.
    Fine {
        /// True for `FINE6`.
        v6: bool,
        /// Index and new word.
        words: Vec<(u32, u64)>,
    },
    /// Inserts tracked sources that are configured (client addresses, shared buckets), bound to a
    /// policy slot; at most [`BATCH`]. One that is already there stays as it is: the next
    /// [`Update::BumpGeneration`] makes it look its policy up again.
    Track(Vec<(SourceKey, u32)>),
    /// Deletes tracked sources that are no longer configured.
    Untrack(Vec<SourceKey>),
    /// Replaces `CONFIG.flags` by one store.
    Flags(u32),
    /// Raises `CONFIG.prefix_generation` by one.
    BumpGeneration,
    /// Lowers tracked debts of a slot to at most `level` after its burst was lowered. Must not
    /// be done before `not_before_ns`: until then the old burst holds, and a debt lowered under it
    /// would be a second burst.
    Clamp {
        /// Policy slot.
        slot: u32,
        /// Real time (CLOCK_MONOTONIC) at which the smaller burst has come into force.
        not_before_ns: u64,
        /// Unit number.
        unit: u32,
        /// New burst in fractions of a unit.
        level: u64,
    },
}
