//! The task that talks to the store: entries go out as soon as something is due, several batches at
//! a time; what waited is asked again with each answer.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{MissedTickBehavior, interval};

use super::{Fleet, Who};
use crate::clock;
use crate::limiter::rate_limiter::Inner;
use crate::policy::model::Algorithm;
use crate::sync::host::Members;
use crate::sync::settle::MAX_BATCH;
use crate::sync::{Beat, Entry, FleetKey, FleetQuota, Settle, Settled, Unsettled};

/// Batches under way at once.
const IN_FLIGHT: usize = 4;
/// Calls in a row without an answer after which this host is alone.
const SILENCES: u32 = 3;
/// How often hosts tell each other that they live.
const BEAT: Duration = Duration::from_secs(1);
/// Rounds without a marker where there is nothing to lose: one a second.
const QUIET_ROUNDS: u32 = 10;

/// A batch under way. The first entry is the marker, where there is one.
struct Batch {
    entries: Vec<Entry>,
    /// Whose quota each entry is of; `None` for the marker.
    of: Vec<Option<(Who, usize)>>,
    whos: Vec<Who>,
}

/// How the store is seen.
#[derive(Default)]
struct Sight {
    silences: u32,
    /// What the marker's spend added up to.
    marker: u64,
    rounds: u32,
}

/// Tells the store that this host lives, until the limiter is gone.
pub(super) async fn beat(limiter: Weak<Inner>, fleet: Arc<Fleet>, store: Arc<dyn Settle>) {
    // Without hot sources: packets are another's concern.
    let beat = Beat {
        host: fleet.options.host,
        ..Beat::default()
    };
    let mut members = Members::remembering(fleet.options.known);
    let mut ticks = interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = false;
    while limiter.strong_count() > 0 {
        match store.beat(&beat).await {
            Ok(hosts) => {
                members.note(clock::monotonic_ns() / 1_000, &hosts);
                fleet.known.store(members.known(), Ordering::Relaxed);
                fleet.live.store(members.live(), Ordering::Relaxed);
                known = true;
            }
            // Until it is there for the first time it is asked more often.
            Err(_) if !known => {
                tokio::time::sleep(fleet.options.interval).await;
                continue;
            }
            Err(_) => {}
        }
        ticks.tick().await;
    }
}

/// Exchanges, until the limiter is gone.
pub(super) async fn run(limiter: Weak<Inner>, fleet: Arc<Fleet>, store: Arc<dyn Settle>) {
    let mut ticks = interval(fleet.options.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut under_way = FuturesUnordered::new();
    let mut sight = Sight::default();
    let settle = |batch: Batch| {
        let store = Arc::clone(&store);
        async move {
            let settled = store.settle(&batch.entries).await;
            (batch, settled)
        }
    };
    loop {
        let mut round = false;
        tokio::select! {
            _ = ticks.tick() => round = true,
            () = fleet.wake.notified(), if under_way.len() < IN_FLIGHT => {}
            Some((batch, settled)) = under_way.next(), if !under_way.is_empty() => {
                let Some(inner) = limiter.upgrade() else { return };
                fleet.take_in(&inner, &mut sight, &batch, &settled);
            }
        }
        let Some(inner) = limiter.upgrade() else {
            return;
        };
        let mut marker = round && fleet.look_after(&inner, &mut sight);
        while under_way.len() < IN_FLIGHT {
            let Some(batch) = fleet.batch(&inner, marker) else {
                break;
            };
            marker = false;
            under_way.push(settle(batch));
        }
    }
}

impl Fleet {
    /// A round over the clients whose turn it is; whether the marker is to go along. It shows that the store is
    /// there, and by what its spend adds up to that it has forgotten nothing.
    fn look_after(&self, inner: &Inner, sight: &mut Sight) -> bool {
        let around = self.around();
        let now_ns = clock::fast_ns();
        let (turn, all) = {
            let mut queue = self.queue();
            (queue.turn(), queue.len())
        };
        let mut stay = Vec::with_capacity(turn.len());
        for who in turn {
            let due = inner.engine.look_after(&around, who, now_ns);
            if due == Some(true) {
                self.is_due(who);
            }
            if due.is_some() || !self.queue().forget(who) {
                stay.push(who);
            }
        }
        self.queue().stay(stay);
        sight.rounds += 1;
        if all == 0 && !around.alone && sight.rounds < QUIET_ROUNDS {
            return false;
        }
        sight.rounds = 0;
        true
    }

    /// The next batch, if something is due.
    fn batch(&self, inner: &Inner, marker: bool) -> Option<Batch> {
        let around = self.around();
        let now_ns = clock::fast_ns();
        let revision = self.revision.load(Ordering::Relaxed);
        let mut batch = Batch {
            entries: Vec::new(),
            of: Vec::new(),
            whos: Vec::new(),
        };
        if marker {
            batch.entries.push(self.marker());
            batch.of.push(None);
        }
        while !around.alone && batch.entries.len() + crate::limiter::spec::MAX_QUOTAS <= MAX_BATCH {
            let Some((who, needs)) = self.queue().next() else {
                break;
            };
            let entries = inner.engine.entries(&around, who, needs, now_ns);
            if let Some(entries) = entries.filter(|entries| !entries.is_empty()) {
                for (number, mut entry) in entries {
                    entry.quota.revision = revision;
                    batch.entries.push(entry);
                    batch.of.push(Some((who, number)));
                }
                batch.whos.push(who);
            } else {
                self.end(inner, who, false, now_ns);
            }
        }
        (!batch.entries.is_empty()).then_some(batch)
    }

    /// A key of this host alone, charged one with every round.
    fn marker(&self) -> Entry {
        let quota = FleetQuota {
            algorithm: Algorithm::FixedWindow,
            limit: 1 << 20,
            burst: 1,
            window_us: 600_000_000,
            grain: 1,
            revision: 0,
        };
        let host = self.options.host.to_le_bytes();
        let key: FleetKey = self.hasher.key(
            crate::sync::Plane::Requests,
            ":marker",
            ratelimiter_common::quota::Unit::Requests,
            &host,
        );
        Entry::charge(key, quota, 1, 0)
    }

    /// Takes in what became of a batch.
    fn take_in(
        &self,
        inner: &Inner,
        sight: &mut Sight,
        batch: &Batch,
        settled: &Result<Settled, Unsettled>,
    ) {
        let around = self.around();
        let now_ns = clock::fast_ns();
        match settled {
            Ok(_) => {
                self.exchanges.fetch_add(1, Ordering::Relaxed);
                sight.silences = 0;
            }
            Err(error) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                sight.silences += match error {
                    Unsettled::Late(_) | Unsettled::Garbled(_) => 1,
                    Unsettled::Away(_) | Unsettled::Broken(_) => SILENCES,
                };
            }
        }
        let answer_to = |n: usize| settled.as_ref().ok().and_then(|settled| settled.answer(n));
        let mut unanswered = HashSet::new();
        let mut forgot = false;
        for (n, entry) in batch.entries.iter().enumerate() {
            let answer = answer_to(n);
            match batch.of.get(n).copied().flatten() {
                Some((who, number)) => {
                    if answer.is_none() {
                        unanswered.insert(who);
                    }
                    let answered =
                        inner
                            .engine
                            .answered(&around, who, (number, entry), answer, now_ns);
                    forgot |= answered;
                }
                None => {
                    if let Some(answer) = answer {
                        forgot |= answer.fleet_spend <= sight.marker;
                        sight.marker = answer.fleet_spend;
                    }
                }
            }
        }
        let away = sight.silences >= SILENCES;
        if away && !self.alone.swap(true, Ordering::Relaxed) {
            tracing::warn!("the store does not answer; requests are limited by this host alone");
            let tickets = self.queue().all_checks();
            for ticket in tickets {
                ticket.retry(&inner.engine, now_ns, true);
            }
        }
        if settled.is_ok() && self.alone.swap(false, Ordering::Relaxed) {
            tracing::info!("the store answers; requests are limited by the fleet");
            forgot = true;
        }
        if forgot {
            self.refill();
        }
        for who in &batch.whos {
            self.end(inner, *who, unanswered.contains(who), now_ns);
        }
    }

    /// The entries of `who` have come to an end: its checks are asked again; where there was no
    /// answer, by what counts alone.
    fn end(&self, inner: &Inner, who: Who, lost: bool, now_ns: u64) {
        let tickets = self.queue().ended(who);
        for ticket in tickets {
            if ticket.retry(&inner.engine, now_ns, lost)
                && let Some(who) = inner.engine.block_policy(who.key).map(|policy| Who {
                    key: who.key,
                    policy,
                })
            {
                self.queue().wait(who, ticket);
            }
        }
    }

    /// Tells the store everything again at the next moment.
    pub(super) fn refill(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        let mut queue = self.queue();
        for who in queue.everybody() {
            queue.due(who);
        }
        drop(queue);
        self.wake.notify_one();
    }
}
