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
    /// Inserts or replaces a prefix.
    Prefix(Prefix, PrefixValue),
    /// Removes a prefix.
    RemovePrefix(Prefix),
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
    /// Inserts tracked sources that are configured (client addresses), bound to a policy slot.
    Track(Vec<(SourceKey, u32)>),
    /// Deletes tracked sources that are no longer configured.
    Untrack(Vec<SourceKey>),
    /// Replaces `CONFIG.flags` by one store.
    Flags(u32),
    /// Raises `CONFIG.prefix_generation` by one.
    BumpGeneration,
    /// Lowers tracked debts of a slot to at most `level` after its burst was lowered.
    Clamp {
        /// Policy slot.
        slot: u32,
        /// Unit number.
        unit: u32,
        /// New burst in fractions of a unit.
        level: u64,
    },
}
