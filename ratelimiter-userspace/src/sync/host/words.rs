//! What a host is told, and what it asks for.

use super::super::beat::HotSource;
use super::super::loss::OnStoreLoss;
use super::super::settle::{Entry, FleetKey, FleetQuota};

/// How a host behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Time between two exchanges, in microseconds; 100 ms by default.
    pub interval_us: u64,
    /// Most keys settled in one interval; 20 000 by default.
    pub per_interval: usize,
    /// Most hot sources; 100 000 by default. Others are limited by this host alone.
    pub max_hot: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            interval_us: 100_000,
            per_interval: 20_000,
            max_hot: 100_000,
        }
    }
}

/// A source in one limited unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// The source.
    pub source: HotSource,
    /// `Unit` as a number, below `KERNEL_UNITS`.
    pub unit: u8,
}

/// What applies to a key now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name in the store.
    pub key: FleetKey,
    /// Its quota, at the whole limit.
    pub quota: FleetQuota,
    /// One unit as an amount.
    pub one: u64,
    /// What happens while the store is away.
    pub on_loss: OnStoreLoss,
}

/// A local bucket as it reads now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Which.
    pub id: Id,
    /// What applies to it.
    pub rule: Rule,
    /// Everything it admitted since it exists. A smaller number than before is a new bucket's.
    pub spent: u64,
    /// What it owes.
    pub owed: u64,
}

/// A batch on its way: hand it back with what came of it.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// What to send, at most [`super::super::settle::MAX_BATCH`] entries.
    pub entries: Vec<Entry>,
    pub(super) sent_us: u64,
    pub(super) keys: Vec<Sent>,
}

/// What is remembered of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) id: Id,
    /// Taken from the counter; at least what the entry says.
    pub(super) spend: u64,
    pub(super) owed: u64,
    pub(super) one: u64,
    /// A quarter of the threshold, as an amount per second.
    pub(super) quarter: u64,
    /// What drained since the exchange before.
    pub(super) drained: u64,
}

/// Raise a local bucket's debt to `level` if it owes less. Never lower it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raise {
    /// Which.
    pub id: Id,
    /// What the fleet owes.
    pub level: u64,
}

/// Run a source's clock at `part / 65536` of the rate, its debt and burst unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The source.
    pub source: HotSource,
    /// The part, [`super::LEAST`]..=[`super::WHOLE`].
    pub part: u32,
}

/// Figures for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Hot sources here.
    pub hot: u64,
    /// Hot elsewhere and not seen here.
    pub elsewhere: u64,
    /// Sources that were not taken up because there were too many, since the start.
    pub refused: u64,
    /// Intervals it takes to settle all that have something to say; 1 is as configured.
    pub stretch: u64,
    /// Hosts in the registry.
    pub known: u32,
    /// Hosts that live.
    pub live: u32,
    /// Whether the store is silent.
    pub apart: bool,
}
