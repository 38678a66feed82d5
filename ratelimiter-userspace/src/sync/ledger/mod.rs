//! What the store does, in memory: the reference for its scripts, word by word, and the store of
//! the simulation.
//!
//! The scripts' numbers are doubles. So are this model's wherever a number may have a fraction, and
//! the operations and their order are the same: answers are equal to the last bit. The state kept
//! for a key is
//!
//! | algorithm | fields, beside `revision` and `spent` |
//! |---|---|
//! | `token_bucket` | `debt` (a double), `at` (microseconds), `burst` |
//! | `fixed_window` | `start`, `current` |
//! | `sliding_window` | `start`, `current`, `previous` |
//! | `sliding_log` | a list of `at`, `amount`; oldest first |
//!
//! and the key expires when it would read as idle, but not before [`super::settle::MIN_TTL_US`]
//! have passed.

mod bucket;
mod hosts;
mod windows;

use std::collections::HashMap;

use self::bucket::Bucket;
use self::hosts::Hosts;
use self::windows::{Fixed, Log, Sliding};
use super::beat::{Beat, Fleet};
use super::settle::{Answer, Entry, FleetKey, FleetQuota, MAX_AMOUNT, MIN_TTL_US, Settled};
use crate::policy::model::Algorithm;

/// What an algorithm keeps of one key.
#[derive(Clone, Debug, PartialEq)]
enum State {
    Bucket(Bucket),
    Fixed(Fixed),
    Sliding(Sliding),
    Log(Log),
}

/// One key.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    state: State,
    /// Newest revision of the quota seen.
    revision: u64,
    /// Spent and granted since the key was made.
    spent: u64,
    /// When the key is gone, in microseconds.
    expires_us: u64,
}

/// The store.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    keys: HashMap<FleetKey, Kept>,
    hosts: Hosts,
}

/// An entry whose amounts are within their bounds.
#[derive(Clone, Copy, Debug)]
struct Bounded {
    quota: FleetQuota,
    spend: u64,
    debt: u64,
    returned: u64,
    age_us: u64,
    want: u64,
    least: u64,
    now_us: u64,
}

impl Ledger {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Settles a batch at `now_us` of the store's clock.
    pub fn settle(&mut self, now_us: u64, batch: &[Entry]) -> Settled {
        let mut settled = Settled {
            answers: Vec::with_capacity(batch.len()),
            ..Settled::default()
        };
        for entry in batch {
            let (bounded, clamped) = bound(entry, now_us);
            settled.clamped += clamped;
            let kept = self
                .keys
                .get(&entry.key)
                .filter(|kept| kept.expires_us > now_us);
            let (answer, kept) = settle_one(kept, &bounded);
            settled.answers.push(answer);
            if let Some(kept) = kept {
                self.keys.insert(entry.key, kept);
            }
        }
        settled
    }

    /// Notes that a host lives, at `now_us` of the store's clock.
    pub fn beat(&mut self, now_us: u64, beat: &Beat) -> Fleet {
        self.hosts.beat(now_us, beat)
    }

    /// Forgets everything: what FLUSHALL does, or a store that comes back empty.
    pub fn flush(&mut self) {
        *self = Self::default();
    }

    /// Drops keys that have expired. A read of one finds nothing before that, too.
    pub fn expire(&mut self, now_us: u64) {
        self.keys.retain(|_, kept| kept.expires_us > now_us);
    }

    /// Number of keys held, expired ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How long a key lives on, in microseconds from `now_us`; `None` if there is none.
    #[must_use]
    pub fn ttl_us(&self, key: FleetKey, now_us: u64) -> Option<u64> {
        let left = self.keys.get(&key)?.expires_us.checked_sub(now_us)?;
        (left > 0).then_some(left)
    }
}

/// Brings an entry's amounts within their bounds; returns how many were not.
fn bound(entry: &Entry, now_us: u64) -> (Bounded, u64) {
    let mut clamped = 0;
    let mut at_most = |value: u64, most: u64| {
        if value > most {
            clamped += 1;
            most
        } else {
            value
        }
    };
    let quota = entry.quota;
    let cap = quota.entry_cap();
    let bounded = Bounded {
        quota,
        spend: at_most(entry.spend, cap),
        debt: at_most(entry.debt, cap),
        returned: at_most(entry.returned, quota.depth()),
        age_us: entry.age_us.min(MAX_AMOUNT),
        // Asking for more than there ever is room for is no fault.
        want: entry.want.min(MAX_AMOUNT),
        least: entry.least.min(MAX_AMOUNT),
        now_us,
    };
    (bounded, clamped)
}

/// Settles one key: the answer, and what is kept from now on (`None`: what was).
fn settle_one(kept: Option<&Kept>, entry: &Bounded) -> (Answer, Option<Kept>) {
    let revision = kept.map_or(0, |kept| kept.revision);
    let newer = entry.quota.revision > revision;
    let spent = kept.map_or(0, |kept| kept.spent);
    if let Some(kept) = kept
        && !newer
        && entry.quota.revision < revision
        && kept.state.algorithm() != entry.quota.algorithm
    {
        let outdated = Answer {
            fleet_spend: spent,
            outdated: true,
            ..Answer::default()
        };
        return (outdated, None);
    }
    let (answer, state) = match entry.quota.algorithm {
        Algorithm::TokenBucket => {
            let state = match kept.map(|kept| &kept.state) {
                Some(State::Bucket(bucket)) => Some(bucket.clone()),
                Some(other) => Some(Bucket::carried(other.used(entry), entry)),
                None => None,
            };
            let (answer, bucket) = bucket::settle(state, newer, entry);
            (answer, State::Bucket(bucket))
        }
        Algorithm::FixedWindow => {
            let state = match kept.map(|kept| &kept.state) {
                Some(State::Fixed(fixed)) => Some(fixed.clone()),
                Some(other) => Some(Fixed::carried(other.used(entry), entry)),
                None => None,
            };
            let (answer, fixed) = windows::settle_fixed(state, newer, entry);
            (answer, State::Fixed(fixed))
        }
        Algorithm::SlidingWindow => {
            let state = match kept.map(|kept| &kept.state) {
                Some(State::Sliding(sliding)) => Some(sliding.clone()),
                Some(other) => Some(Sliding::carried(other.used(entry), entry)),
                None => None,
            };
            let (answer, sliding) = windows::settle_sliding(state, newer, entry);
            (answer, State::Sliding(sliding))
        }
        Algorithm::SlidingLog => {
            let state = match kept.map(|kept| &kept.state) {
                Some(State::Log(log)) => Some(log.clone()),
                Some(other) => Some(Log::carried(other.used(entry), entry)),
                None => None,
            };
            let (answer, log) = windows::settle_log(state, entry);
            (answer, State::Log(log))
        }
    };
    let more = entry.spend + answer.granted;
    // Restarts rather than wraps: whoever adds up sees it run backwards.
    let spent = if spent + more > MAX_AMOUNT {
        more
    } else {
        spent + more
    };
    let lives_us = state.idle_after(entry).max(MIN_TTL_US);
    let kept = Kept {
        state,
        revision: revision.max(entry.quota.revision),
        spent,
        expires_us: entry.now_us.saturating_add(lives_us),
    };
    let answer = Answer {
        fleet_spend: spent,
        ..answer
    };
    (answer, Some(kept))
}

impl State {
    const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Bucket(_) => Algorithm::TokenBucket,
            Self::Fixed(_) => Algorithm::FixedWindow,
            Self::Sliding(_) => Algorithm::SlidingWindow,
            Self::Log(_) => Algorithm::SlidingLog,
        }
    }

    /// How much is in use under the entry's quota: what a change of algorithm carries over, at most
    /// the new depth.
    fn used(&self, entry: &Bounded) -> u64 {
        let used = match self {
            Self::Bucket(bucket) => bucket.level(entry),
            Self::Fixed(fixed) => fixed.level(entry),
            Self::Sliding(sliding) => sliding.level(entry),
            Self::Log(log) => log.level(entry),
        };
        used.min(entry.quota.depth())
    }

    /// Microseconds after which the state reads as idle.
    fn idle_after(&self, entry: &Bounded) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.idle_after(entry),
            Self::Fixed(fixed) => fixed.idle_after(entry),
            Self::Sliding(sliding) => sliding.idle_after(entry),
            Self::Log(log) => log.idle_after(entry),
        }
    }
}

/// What is granted of the entry's want where `room` is left.
fn grant(room: u64, entry: &Bounded) -> u64 {
    let grain = entry.quota.grain.max(1);
    let most = room.min(entry.want);
    let granted = most - most % grain;
    if granted < entry.least { 0 } else { granted }
}

/// A double as a whole number, rounded up; 0 for what is not positive, [`MAX_AMOUNT`] for what is
/// too large.
fn whole(value: f64) -> u64 {
    let up = value.ceil();
    if up > 0.0 {
        (up as u64).min(MAX_AMOUNT)
    } else {
        0
    }
}

#[cfg(test)]
mod tests;
