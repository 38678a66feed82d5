//! What a data plane answers: interfaces, health, counters, installed state, figures.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ratelimiter_common::abi::config::{Config, SEGMENTS};
use ratelimiter_common::abi::counters::{Count, SegmentCount};
use ratelimiter_common::abi::policy::{PolicyEntry, PrefixValue, Zone};
use ratelimiter_common::abi::tracked::SourceKey;
use ratelimiter_common::quota::Unit;
use ratelimiter_common::vclock::SegmentClock;
use ratelimiter_common::verdict::{REASONS, Reason, Verdict};
use serde::Serialize;

use crate::policy::plan::{Prefix, Update};

/// Where in the receive path XDP runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// In the driver.
    #[default]
    Native,
    /// In the stack, after the kernel has coalesced packets. Only when asked for.
    Generic,
}

impl AttachMode {
    /// Returns the word used in configuration, JSON and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// How to attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// The mode; there is no silent fall-back from one to the other.
    pub mode: AttachMode,
    /// Whether a foreign XDP program may be replaced.
    pub replace: bool,
    /// Whether an interface that does not exist (or refuses) is waited for instead of refused.
    pub wait: bool,
}

/// Whether an interface is protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum InterfaceState {
    /// The program runs there.
    Attached,
    /// The interface does not exist; it is attached as soon as it does.
    Absent,
    /// It exists and the program does not run there.
    Failed {
        /// Why, as one sentence.
        reason: String,
    },
}

/// One interface the data plane was told to protect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The kernel's number of it; 0 while it does not exist.
    pub index: u32,
    /// The mode asked for, which is the mode in force when attached.
    pub mode: AttachMode,
    /// Whether it is protected.
    #[serde(flatten)]
    pub state: InterfaceState,
    /// Real time (CLOCK_MONOTONIC) since when it is in this state, nanoseconds.
    pub since_ns: u64,
}

impl Interface {
    /// Whether the program runs there.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.state == InterfaceState::Attached
    }
}

/// What `readyz` and the metrics ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Whether every interface is attached and every pin is in place.
    pub ok: bool,
    /// What is not as it should be right now, one sentence each.
    pub problems: Vec<String>,
    /// Repairs of pins, links and maps that something else had changed, since start.
    pub repairs: u64,
    /// Interfaces attached again after they had vanished, since start.
    pub reattached: u64,
    /// Id of the program this data plane loaded.
    pub program_id: u32,
    /// Whether tables and buckets of an earlier agent were adopted.
    pub adopted: bool,
}

/// The kernel's counters, summed over CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Frames by [`Reason`] and [`Verdict`].
    pub counts: [[Count; 2]; REASONS],
    /// Decisions by segment number.
    pub segments: [SegmentCount; SEGMENTS],
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            counts: [[Count::default(); 2]; REASONS],
            segments: [SegmentCount::default(); SEGMENTS],
        }
    }
}

impl Stats {
    /// Returns the frames judged for `reason` with `verdict`.
    #[must_use]
    pub fn count(&self, reason: Reason, verdict: Verdict) -> Count {
        self.counts
            .get(reason as usize)
            .and_then(|by_verdict| by_verdict.get(verdict as usize))
            .copied()
            .unwrap_or_default()
    }

    /// Returns all frames with `verdict`.
    #[must_use]
    pub fn total(&self, verdict: Verdict) -> Count {
        let mut total = Count::default();
        for reason in Reason::ALL {
            let count = self.count(reason, verdict);
            total.packets = total.packets.wrapping_add(count.packets);
            total.bytes = total.bytes.wrapping_add(count.bytes);
        }
        total
    }

    /// Returns every frame the program has seen: each is counted once.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.total(Verdict::Pass)
            .packets
            .wrapping_add(self.total(Verdict::Drop).packets)
    }
}

/// What became of a list of updates, where it differs from what was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// Changes of clocks that came too late for their date and were given a later one, as the
    /// updates that were made instead: whoever remembers what is installed must remember these.
    pub moved: Vec<Update>,
}

/// What is installed in the kernel, read back.
#[derive(Clone, Debug)]
pub struct Installed {
    /// Scalars, geometry and the key of the bijection.
    pub config: Config,
    /// The entries in force, one per used slot, by rising slot.
    pub policies: Vec<PolicyEntry>,
    /// Segment clocks in force: number and clock.
    pub segments: Vec<(u32, SegmentClock)>,
    /// Zones in use: number and zone.
    pub zones: Vec<(u32, Zone)>,
    /// Every prefix, IPv4 before IPv6, else in the trie's order.
    pub prefixes: Vec<(Prefix, PrefixValue)>,
    /// Bytes of `COARSE4` and `COARSE6`; 65 536 each.
    pub coarse: [Vec<u8>; 2],
    /// Words of `FINE4` and `FINE6`.
    pub fine: [Vec<u64>; 2],
    /// Tracked sources with the policy slot each is bound to; those that may be promoted are left
    /// out, because whoever promotes sources demotes them.
    pub tracked: Vec<(SourceKey, u32)>,
}

/// What a call to `drain_samples` met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Samples handed out.
    pub taken: u64,
    /// Samples overwritten before they were read.
    pub lost: u64,
}

/// A source of the crowd that owes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrowdSource {
    /// Its key.
    pub key: SourceKey,
    /// True for a source of the IPv6 crowd.
    pub v6: bool,
    /// Zone it is limited by.
    pub zone: u8,
    /// What is counted.
    pub unit: Unit,
    /// What it owes, in fractions of the unit.
    pub debt: u64,
    /// Depth of its bucket, in fractions of the unit.
    pub burst: u64,
}

impl CrowdSource {
    /// Returns the address: for IPv6 the first one of the key's prefix.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        if self.v6 {
            IpAddr::V6(Ipv6Addr::from(u128::from(self.key) << 64))
        } else {
            IpAddr::V4(Ipv4Addr::from(self.key as u32))
        }
    }
}

/// How full one region of a crowd table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CrowdFill {
    /// True for `CROWD6`.
    pub v6: bool,
    /// Region number.
    pub region: u8,
    /// Zone that uses it.
    pub zone: u8,
    /// Unit number.
    pub unit: u8,
    /// Words or ways.
    pub capacity: u64,
    /// Of these, claimed by a source at some time.
    pub claimed: u64,
    /// Of these, owing something now.
    pub indebted: u64,
    /// Of these, with no room for one more unit: the offenders H of the sizing law.
    pub over_limit: u64,
    /// Rate of the region's quota in whole units per second, rounded up; at least 1.
    pub rate_per_s: u64,
}

impl CrowdFill {
    /// Returns phi = F / (N * rate) of the sizing law for `conforming_per_s` admitted units per
    /// second: below 0.8 no polite source is ever denied for want of room.
    #[must_use]
    pub fn phi(&self, conforming_per_s: f64) -> f64 {
        conforming_per_s / (self.capacity.max(1) as f64 * self.rate_per_s.max(1) as f64)
    }

    /// Returns the offender share H / N; the sizing law asks for 0.25 or less.
    #[must_use]
    pub fn offender_share(&self) -> f64 {
        self.over_limit as f64 / self.capacity.max(1) as f64
    }
}

/// Fill and memory of one map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableFigure {
    /// The map's name.
    pub name: &'static str,
    /// Entries it can hold.
    pub capacity: u64,
    /// Entries in use, where the map has a notion of it.
    pub used: Option<u64>,
    /// Memory the kernel charges for it, in bytes.
    pub bytes: u64,
}

/// How full the tables are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Every map.
    pub tables: Vec<TableFigure>,
    /// Every crowd region in use.
    pub crowd: Vec<CrowdFill>,
}

impl Figures {
    /// Returns the memory of all maps in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_count_every_frame_once() {
        let mut stats = Stats::default();
        stats.counts[Reason::Conforming as usize][0].packets = 7;
        stats.counts[Reason::Blocked as usize][1].packets = 5;
        assert_eq!(stats.offered(), 12);
        assert_eq!(stats.count(Reason::Blocked, Verdict::Drop).packets, 5);
    }

    #[test]
    fn sizing_law_reads_the_fill() {
        let fill = CrowdFill {
            v6: false,
            region: 0,
            zone: 0,
            unit: 0,
            capacity: 1_000,
            claimed: 900,
            indebted: 500,
            over_limit: 250,
            rate_per_s: 10,
        };
        assert!((fill.phi(8_000.0) - 0.8).abs() < 1e-9);
        assert!((fill.offender_share() - 0.25).abs() < 1e-9);
    }
}
