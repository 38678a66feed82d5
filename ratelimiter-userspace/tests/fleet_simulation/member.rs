//! One simulated host, the mistakes it can be made to make, and what applies to its keys.

use ratelimiter_userspace::policy::model::Algorithm;
use ratelimiter_userspace::sync::host::Rule;
use ratelimiter_userspace::sync::{Entry, FleetKey, FleetQuota, Host, Tuning};

use crate::bucket::{Bucket, ONE};
use crate::random::Random;
use crate::scenario::{SECOND, Scenario};

/// What a host's clock reads at the beginning, before skew.
const HOST_EPOCH_US: u64 = 100_000 * SECOND;
/// Mistakes in the protocol that must not go unseen. They are made here, around the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// What got no answer is sent again.
    ResendsUnanswered,
    /// The answer replaces the local bucket instead of raising it.
    SetsInsteadOfRaises,
    /// Hosts do not say what they owe.
    ForgetsDebt,
    /// Who comes back charges everything admitted in the meantime.
    SendsOldSpend,
    /// What is hot elsewhere is not hot here.
    DeafToHot,
    /// Clocks are not turned back when the store returns.
    StaysScaled,
    /// The store drains by the clock of whoever asks.
    HostsClock,
}

impl Bug {
    pub(crate) const ALL: [Self; 7] = [
        Self::ResendsUnanswered,
        Self::SetsInsteadOfRaises,
        Self::ForgetsDebt,
        Self::SendsOldSpend,
        Self::DeafToHot,
        Self::StaysScaled,
        Self::HostsClock,
    ];
}

/// One host: its agent, its buckets, and a clock of its own.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) host: Host,
    pub(crate) runs: bool,
    pub(crate) cut: bool,
    /// Clock: start, and speed in parts per million beside 1.
    pub(crate) offset_us: u64,
    pub(crate) drift_ppm: u64,
    pub(crate) buckets: Vec<Bucket>,
    /// The same buckets, never raised and never slowed: the host's own promise.
    pub(crate) referees: Vec<Bucket>,
    pub(crate) seen: Vec<bool>,
    pub(crate) closed: Vec<bool>,
    /// The counter at the last answer, by key: for [`Bug::SendsOldSpend`].
    pub(crate) answered: Vec<u64>,
}

/// How its hosts behave.
pub(crate) fn tuning(scenario: &Scenario) -> Tuning {
    Tuning {
        interval_us: scenario.interval_us,
        ..Tuning::default()
    }
}

/// A bucket for each key.
pub(crate) fn buckets(scenario: &Scenario, at_us: u64) -> Vec<Bucket> {
    let keys = scenario.keys.iter();
    keys.map(|spec| Bucket::new(at_us, spec.amount_per_s(), spec.burst * ONE))
        .collect()
}

/// What applies to a key.
pub(crate) fn rule(scenario: &Scenario, key: usize) -> Rule {
    let spec = scenario.keys[key];
    Rule {
        key: FleetKey(key as u128),
        quota: FleetQuota {
            algorithm: Algorithm::TokenBucket,
            limit: spec.amount_per_s(),
            burst: spec.burst * ONE,
            window_us: SECOND,
            grain: 1,
            revision: 1,
        },
        one: ONE,
        on_loss: spec.on_loss,
    }
}

impl Member {
    pub(crate) fn new(scenario: &Scenario, number: usize, random: &mut Random) -> Self {
        let (offset_us, drift_ppm) = if scenario.skewed {
            (random.below(2 * 3_600 * SECOND), random.below(400))
        } else {
            (3_600 * SECOND, 0)
        };
        let start_us = HOST_EPOCH_US + offset_us;
        let buckets = buckets(scenario, start_us);
        Self {
            host: Host::new(number as u64, tuning(scenario)),
            runs: !scenario.late.contains(&number),
            cut: false,
            offset_us,
            drift_ppm,
            referees: buckets.clone(),
            buckets,
            seen: vec![false; scenario.keys.len()],
            closed: vec![false; scenario.keys.len()],
            answered: vec![0; scenario.keys.len()],
        }
    }

    /// What its clock reads.
    pub(crate) fn clock(&self, now_us: u64) -> u64 {
        HOST_EPOCH_US + self.offset_us + now_us + now_us * self.drift_ppm / 1_000_000
    }

    pub(crate) fn scale(&self, key: usize) -> u32 {
        self.buckets[key].part()
    }

    /// Makes the mistake, if it is one of what is sent.
    pub(crate) fn spoil(&self, entry: &mut Entry, bug: Option<Bug>) {
        match bug {
            Some(Bug::ForgetsDebt) => entry.debt = 0,
            Some(Bug::SendsOldSpend) => {
                let key = entry.key.0 as usize;
                entry.spend = self.buckets[key].spent - self.answered[key];
            }
            _ => {}
        }
    }
}
