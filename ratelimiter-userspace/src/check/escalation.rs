//! Escalation: a client that is refused many times in a row has the address it asks from blocked in
//! the kernel for a while, where a refusal costs a hundredth.
//!
//! Off unless a segment says after how many refusals (`escalate_after`), and only on the word of a
//! credential with the right `escalate`: whoever may name an address here may silence it. This half
//! counts, in bounded memory; the agent blocks, and decides whom never.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use crate::policy::model::Document;

/// Independent parts, each behind a lock of its own.
const SHARDS: usize = 16;
/// Clients of a part whose refusals are counted; further ones are not while these are fresh.
const CLIENTS: usize = 1_024;
/// A streak ends by itself after this time without a refusal, in nanoseconds.
const STALE_NS: u64 = 60_000_000_000;
/// Reports that wait for the agent; further ones are dropped, and made again by the next streak.
const REPORTS: usize = 1_024;

/// An address to be blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Where the requests came from.
    pub address: IpAddr,
    /// Whose they were.
    pub client_id: String,
    /// Refusals in a row.
    pub refusals: u32,
}

#[derive(Debug)]
struct Streak {
    address: IpAddr,
    refusals: u32,
    last_ns: u64,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Escalation {
    /// Refusals by segment; segments that are not here have not opted in.
    after: ArcSwap<HashMap<String, u32>>,
    shards: [Mutex<HashMap<String, Streak>>; SHARDS],
    hasher: RandomState,
    /// Streaks of all parts.
    streaks: AtomicUsize,
    reports: Mutex<Vec<Report>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Escalation {
    /// Takes over which segments have opted in.
    pub fn follow(&self, document: &Document) {
        let opted = |(name, segment): (&String, &crate::policy::model::Segment)| {
            Some((name.clone(), segment.escalate_after?))
        };
        let after = document.segments.iter().filter_map(opted).collect();
        self.after.store(Arc::new(after));
    }

    /// Whether any segment has opted in.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.after.load().is_empty()
    }

    fn shard(&self, client_id: &str) -> MutexGuard<'_, HashMap<String, Streak>> {
        let number = self.hasher.hash_one(client_id) as usize % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "a remainder of the length")]
        lock(&self.shards[number])
    }

    /// A request of `client_id`, in `segment`, was refused; it came from `address`, says somebody
    /// who may. A streak that reaches its segment's number is reported and begins anew.
    pub fn refused(&self, segment: &str, client_id: &str, address: IpAddr, now_ns: u64) {
        let Some(after) = self.after.load().get(segment).copied() else {
            return;
        };
        let address = address.to_canonical();
        let mut shard = self.shard(client_id);
        if !shard.contains_key(client_id) {
            if shard.len() >= CLIENTS {
                shard.retain(|_, streak| now_ns.saturating_sub(streak.last_ns) < STALE_NS);
                self.count(&shard);
            }
            if shard.len() >= CLIENTS {
                return;
            }
            let streak = Streak {
                address,
                refusals: 0,
                last_ns: now_ns,
            };
            shard.insert(client_id.to_owned(), streak);
            self.count(&shard);
        }
        let Some(streak) = shard.get_mut(client_id) else {
            return;
        };
        let stale = now_ns.saturating_sub(streak.last_ns) >= STALE_NS;
        // Nobody answers for what came from elsewhere.
        if stale || streak.address != address {
            streak.address = address;
            streak.refusals = 0;
        }
        streak.refusals += 1;
        streak.last_ns = now_ns;
        if streak.refusals < after {
            return;
        }
        let refusals = streak.refusals;
        shard.remove(client_id);
        drop(shard);
        let mut reports = lock(&self.reports);
        if reports.len() < REPORTS {
            reports.push(Report {
                address,
                client_id: client_id.to_owned(),
                refusals,
            });
        }
    }

    /// A request of `client_id` was allowed: its streak has ended.
    pub fn allowed(&self, client_id: &str) {
        if self.streaks.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.shard(client_id).remove(client_id);
    }

    /// Streaks only ever make [`Escalation::allowed`] look: a number that is too high costs a look.
    fn count(&self, shard: &HashMap<String, Streak>) {
        self.streaks
            .fetch_max(shard.len().max(1), Ordering::Relaxed);
    }

    /// What is to be blocked, since this was asked last.
    pub fn take(&self) -> Vec<Report> {
        std::mem::take(&mut *lock(&self.reports))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::Segment;

    const HERE: [u8; 4] = [192, 0, 2, 1];

    fn escalation() -> Escalation {
        let mut document = Document::default();
        let strict = Segment {
            escalate_after: Some(3),
            ..Segment::default()
        };
        document.segments.insert("strict".to_owned(), strict);
        document
            .segments
            .insert("default".to_owned(), Segment::default());
        let escalation = Escalation::default();
        assert!(!escalation.is_on());
        escalation.follow(&document);
        assert!(escalation.is_on());
        escalation
    }

    #[test]
    fn refusals_in_a_row_from_one_address_are_reported_once() {
        let escalation = escalation();
        for now in 0..5 {
            escalation.refused("strict", "mallory", HERE.into(), now);
        }
        let report = Report {
            address: HERE.into(),
            client_id: "mallory".to_owned(),
            refusals: 3,
        };
        assert_eq!(escalation.take(), std::slice::from_ref(&report));
        assert!(escalation.take().is_empty());
        // The other two count for the next.
        escalation.refused("strict", "mallory", HERE.into(), 6);
        assert_eq!(escalation.take(), [report]);
    }

    #[test]
    fn an_allowed_request_another_address_and_a_minute_end_a_streak() {
        let escalation = escalation();
        let refused = |address: [u8; 4], now| {
            escalation.refused("strict", "alice", address.into(), now);
        };
        for round in 0..5 {
            refused(HERE, round);
            refused(HERE, round);
            escalation.allowed("alice");
        }
        for round in 0..10 {
            refused([192, 0, 2, round], 10);
        }
        for round in 1..5 {
            refused(HERE, round * STALE_NS * 2);
            refused(HERE, round * STALE_NS * 2);
        }
        assert!(escalation.take().is_empty());
    }

    #[test]
    fn segments_that_did_not_opt_in_are_left_alone_and_memory_is_bounded() {
        let escalation = escalation();
        for _ in 0..100 {
            escalation.refused("default", "bob", HERE.into(), 1);
        }
        for n in 0..100_000 {
            escalation.refused("strict", &format!("stranger-{n}"), HERE.into(), 1);
        }
        let kept: usize = escalation
            .shards
            .iter()
            .map(|shard| lock(shard).len())
            .sum();
        assert!(kept <= SHARDS * CLIENTS, "{kept}");
        for n in 0..10_000 {
            for _ in 0..3 {
                let client = format!("late-{n}");
                escalation.refused("strict", &client, HERE.into(), 2 * STALE_NS);
            }
        }
        assert_eq!(escalation.take().len(), REPORTS);
    }
}
