//! Token bucket: debt in amounts, drained when read at the quota's rate.

use super::super::settle::{Answer, MAX_AMOUNT};
use super::{Bounded, grant, whole};

/// State of one key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bucket {
    /// Amount owed at `at_us`, with the fraction that draining leaves.
    pub(super) debt: f64,
    /// The store's time of `debt`.
    pub(super) at_us: u64,
    /// Burst of the newest revision seen.
    pub(super) burst: u64,
}

impl Bucket {
    /// What another algorithm held, as debt.
    pub(super) fn carried(used: u64, entry: &Bounded) -> Self {
        Self {
            debt: used as f64,
            at_us: entry.now_us,
            burst: entry.quota.burst,
        }
    }

    /// The debt at the entry's time: `debt - elapsed * limit / window`, in this order.
    fn drained(&self, entry: &Bounded) -> f64 {
        let elapsed = entry.now_us.saturating_sub(self.at_us) as f64;
        let brought = elapsed * entry.quota.limit as f64 / entry.quota.window_us as f64;
        (self.debt - brought).max(0.0)
    }

    pub(super) fn level(&self, entry: &Bounded) -> u64 {
        whole(self.drained(entry))
    }

    pub(super) fn idle_after(&self, entry: &Bounded) -> u64 {
        time_for(self.debt, entry)
    }
}

/// Microseconds in which `amount` drains, rounded up.
fn time_for(amount: f64, entry: &Bounded) -> u64 {
    if amount <= 0.0 {
        return 0;
    }
    whole(amount * entry.quota.window_us as f64 / entry.quota.limit as f64)
}

/// `level = max(drained, debt) - returned + spend`, then what is granted of the want.
pub(super) fn settle(state: Option<Bucket>, newer: bool, entry: &Bounded) -> (Answer, Bucket) {
    let burst = entry.quota.burst;
    let mut debt = 0.0;
    let mut known_burst = burst;
    if let Some(bucket) = state {
        debt = bucket.drained(entry);
        if newer {
            if burst < bucket.burst {
                debt = debt.min(burst as f64);
            }
        } else {
            known_burst = bucket.burst;
        }
    }
    debt = debt.max(entry.debt as f64);
    debt = (debt - entry.returned as f64).max(0.0);
    debt += entry.spend as f64;
    debt = debt.min(entry.quota.debt_cap() as f64);
    let room = (burst as f64 - debt).floor().max(0.0) as u64;
    let granted = grant(room, entry);
    debt += granted as f64;
    let wait_us = if granted >= entry.least {
        0
    } else if entry.least > burst {
        MAX_AMOUNT
    } else {
        // One more, so that rounding never makes it too early.
        time_for(debt + entry.least as f64 - burst as f64, entry) + 1
    };
    let bucket = Bucket {
        debt,
        at_us: entry.now_us,
        burst: known_burst,
    };
    let answer = Answer {
        level: whole(debt),
        granted,
        wait_us,
        ends_us: time_for(debt, entry),
        ..Answer::default()
    };
    (answer, bucket)
}
