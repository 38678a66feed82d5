//! Packets over a fleet: the `fleet` thread settles what hot sources spent here with the store that
//! hosts share, and raises their buckets to what the fleet owes.
//!
//! What is to be done is said by [`crate::sync::host`], which is pure; this is its hands: it reads
//! tracked entries, sends what is due, and asks the kernel's helper for what follows. A packet
//! never waits for it, and a store that does not answer costs a deadline an interval.
//!
//! - `start`: the thread; what is undone where there is none
//! - `rules`: from the policy in force to what a key is settled by

mod rules;
mod start;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use futures_util::future::{join, join_all};
use ratelimiter_common::abi::counters::Sample;
use ratelimiter_common::abi::merge::{MergeOp, op, result};
use ratelimiter_common::abi::tracked::{LIMITED, SLOT_MASK, SourceKey, TAT_BITS, Tracked};
use ratelimiter_common::quota::KERNEL_UNITS;
use tokio::runtime::Handle;

use self::rules::{Rules, is_shared, place_of, units_of};
pub(super) use self::start::undo_parts;
use super::shared_store;
use super::state::{Shared, View};
use crate::clock;
use crate::dataplane::{DataPlane, Error};
use crate::store::Store;
use crate::sync::host::{Exchange, Figures, Host, Id, Reading, Tuning, WHOLE};
use crate::sync::{Beat, KeyHasher, Settle, Unsettled};

/// Batches of samples that may wait.
const SAMPLES: usize = 64;
/// Sources hot elsewhere that are looked for in one interval.
const PROBES: usize = 1_024;
/// Slot of a binding whose state is none of the four.
const STATE: u32 = !SLOT_MASK;

/// Makes the way samples take from the observer.
pub(super) fn channel() -> (SyncSender<Vec<Sample>>, Receiver<Vec<Sample>>) {
    sync_channel(SAMPLES)
}

/// What the thread works with.
pub(super) struct Worker {
    plane: Arc<dyn DataPlane>,
    shared: Arc<Shared>,
    store: Arc<dyn Settle>,
    /// Where the store's answers are waited for.
    runtime: Handle,
    hasher: KeyHasher,
    samples: Receiver<Vec<Sample>>,
    /// Name of this host in the registry.
    host: u64,
    interval: Duration,
    /// Where it is kept how many hosts there were.
    keeps: Arc<dyn Store>,
}

/// The thread's state.
struct Running {
    worker: Worker,
    host: Host,
    rules: Rules,
    /// Sources this agent made tracked, and the zone each came from.
    promoted: HashMap<SourceKey, Home>,
    problem: Option<String>,
    /// Hosts that were last written down.
    known: u32,
}

/// Where a source of the crowd lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Home {
    zone: u32,
    family: u32,
}

impl Worker {
    /// Settles once an interval until `stop` is dropped; then says good-bye.
    fn run(self, stop: &Receiver<()>) {
        let tables = self.plane.tables();
        let configured = self.shared.view.load().compiled.tracked.len();
        let tuning = Tuning {
            interval_us: self.interval.as_micros() as u64,
            max_hot: (tables.tracked as usize / 4 * 3)
                .saturating_sub(configured)
                .min(Tuning::default().max_hot),
            ..Tuning::default()
        };
        let known = shared_store::known_hosts(self.keeps.as_ref());
        let mut running = Running {
            known,
            host: Host::new(self.host, tuning).remembering(known),
            rules: Rules::default(),
            promoted: HashMap::new(),
            problem: None,
            worker: self,
        };
        running.adopt();
        // Hosts that were started together do not stay together.
        let mut jitter = running.worker.host | 1;
        loop {
            let began_us = now_us();
            running.round();
            jitter ^= jitter << 13;
            jitter ^= jitter >> 7;
            jitter ^= jitter << 17;
            let interval_us = running.worker.interval.as_micros() as u64;
            let next_us = interval_us * (95 + jitter % 11) / 100;
            let rest = next_us.saturating_sub(now_us().saturating_sub(began_us));
            match stop.recv_timeout(Duration::from_micros(rest.max(1_000))) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => break,
            }
        }
        running.leave();
    }
}

fn now_us() -> u64 {
    clock::monotonic_ns() / 1_000
}

impl Running {
    /// Takes over what an earlier agent left: clocks that run at a part, sources that were promoted.
    fn adopt(&mut self) {
        let view = self.worker.shared.view.load_full();
        let configured = &view.compiled.tracked;
        let mut found = Vec::new();
        let undone = unscale(self.worker.plane.as_ref());
        self.note(undone);
        let scanned = self.worker.plane.scan_tracked(&mut |key, _| {
            if configured
                .binary_search_by_key(&key, |(key, _)| *key)
                .is_err()
            {
                found.push(key);
            }
        });
        self.note(scanned);
        let now_us = now_us();
        for key in found {
            if let Some(place) = place_of(&view, key) {
                self.promoted.insert(key, place.home);
                self.host.heat(now_us, key);
            }
        }
    }

    /// One interval.
    fn round(&mut self) {
        let view = self.worker.shared.view.load_full();
        self.rules.refresh(&view);
        let done = self.settle(&view);
        self.note(done);
        let now_us = now_us();
        self.worker
            .shared
            .fleet
            .store(Arc::new(Some(self.host.figures(now_us))));
    }

    fn settle(&mut self, view: &View) -> Result<(), Error> {
        self.look(view)?;
        let readings = self.read(view)?;
        let started_us = now_us();
        let exchanges = self.host.due(started_us, &readings);
        let beat = self.host.beat(started_us).map(without_shared);
        let store = Arc::clone(&self.worker.store);
        let (settled, beaten) = self.worker.runtime.block_on(join(
            join_all(
                exchanges
                    .iter()
                    .map(|exchange| store.settle(&exchange.entries)),
            ),
            async {
                match &beat {
                    Some(beat) => Some(store.beat(beat).await),
                    None => None,
                }
            },
        ));
        let answered_us = now_us();
        let mut ops = Vec::new();
        for (exchange, settled) in exchanges.iter().zip(settled) {
            match settled {
                Ok(settled) => {
                    let raises = self.host.answered(answered_us, exchange, &settled);
                    ops.extend(raises.iter().map(|raise| MergeOp {
                        op: op::RAISE,
                        unit: u32::from(raise.id.unit),
                        key: raise.id.source,
                        level: raise.level,
                        ..MergeOp::default()
                    }));
                }
                Err(error) => self.unanswered(exchange, &error),
            }
        }
        match (beat, beaten) {
            (Some(_), Some(Ok(fleet))) => self.host.beaten(answered_us, &fleet),
            (Some(beat), Some(Err(_))) => self.host.unbeaten(&beat),
            _ => {}
        }
        let scales = self.host.scales(now_us());
        ops.extend(scales.iter().map(|to| scale(to.source, to.part)));
        let merged = self.worker.plane.merge(&mut ops);
        let failed = |op: &&MergeOp| merged.is_err() || op.result != result::DONE;
        for op in ops.iter().filter(|op| op.op == op::SCALE).filter(failed) {
            self.host.unscaled(op.key);
        }
        merged?;
        self.keep_known(answered_us);
        self.demote()
    }

    fn unanswered(&mut self, exchange: &Exchange, error: &Unsettled) {
        self.host
            .unanswered(exchange, !matches!(error, Unsettled::Away(_)));
    }

    /// Looks for hot sources: in the samples, and for those that are hot elsewhere.
    fn look(&mut self, view: &View) -> Result<(), Error> {
        let mut found = Vec::new();
        let now_us = now_us();
        while let Ok(samples) = self.worker.samples.try_recv() {
            for sample in samples {
                let Some(quota) = self.rules.first(sample.slot) else {
                    continue;
                };
                let amount = quota.amount(&sample);
                if amount > 0 && self.host.sampled(now_us, sample.key, amount, &quota.quota) {
                    found.push(sample.key);
                }
            }
        }
        let probes = self.host.probes(now_us, PROBES);
        let mut reads: Vec<MergeOp> = probes
            .iter()
            .filter_map(|key| {
                let place = place_of(view, *key)?;
                let unit = units_of(view, place.policy).next()?;
                Some(MergeOp {
                    op: op::READ,
                    unit,
                    key: *key,
                    slot: place.home.zone,
                    family: place.home.family,
                    ..MergeOp::default()
                })
            })
            .collect();
        self.worker.plane.merge(&mut reads)?;
        let there = reads.iter().filter(|read| read.result == result::DONE);
        found.extend(there.map(|read| read.key));
        // A client's shared bucket has a key of this host alone: it is always settled.
        for key in self.rules.shared() {
            if !self.host.is_hot(*key) {
                self.host.heat(now_us, *key);
            }
        }
        found.sort_unstable();
        found.dedup();
        self.promote(view, &found)
    }

    /// Makes sources tracked that are not, and hot.
    fn promote(&mut self, view: &View, sources: &[SourceKey]) -> Result<(), Error> {
        let now_us = now_us();
        let mut there = Vec::new();
        self.worker
            .plane
            .read_tracked(sources, &mut |key, tracked| {
                there.push((key, tracked.is_some()));
            })?;
        for (key, tracked) in there {
            let Some(place) = place_of(view, key) else {
                continue;
            };
            if !tracked && place.tracked {
                continue;
            }
            if !self.host.heat(now_us, key) || tracked {
                continue;
            }
            // Generation 0 makes the first packet look its policy up.
            let mut promote = [MergeOp {
                op: op::PROMOTE,
                unit: place.home.zone,
                key,
                slot: place.policy,
                family: place.home.family,
                ..MergeOp::default()
            }];
            self.worker.plane.merge(&mut promote)?;
            if promote.iter().all(|op| op.result == result::DONE) {
                self.promoted.insert(key, place.home);
            } else {
                self.host.cool(key);
            }
        }
        Ok(())
    }

    /// Sends sources back to the crowd that are cold everywhere.
    fn demote(&mut self) -> Result<(), Error> {
        for key in self.host.cold(now_us()) {
            let Some(home) = self.promoted.get(&key).copied() else {
                // It stays tracked, and nobody would speed its clock up again.
                if self.host.is_scaled(key) {
                    let mut undo = [scale(key, WHOLE)];
                    self.worker.plane.merge(&mut undo)?;
                    let gone = [result::DONE, result::ABSENT];
                    if !undo.iter().all(|op| gone.contains(&op.result)) {
                        continue;
                    }
                }
                self.host.cool(key);
                continue;
            };
            let mut demote = [MergeOp {
                op: op::DEMOTE,
                key,
                slot: home.zone,
                family: home.family,
                ..MergeOp::default()
            }];
            self.worker.plane.merge(&mut demote)?;
            let gone = [result::DONE, result::ABSENT];
            if demote.iter().all(|op| gone.contains(&op.result)) {
                self.promoted.remove(&key);
                self.host.cool(key);
            }
        }
        Ok(())
    }

    /// Reads the local buckets of the hot sources.
    fn read(&mut self, view: &View) -> Result<Vec<Reading>, Error> {
        let hot: Vec<SourceKey> = self.host.hot().collect();
        let mut readings = Vec::with_capacity(hot.len());
        let mut gone = Vec::new();
        let now_ns = clock::monotonic_ns();
        let (rules, hasher) = (&self.rules, &self.worker.hasher);
        let revision = self.worker.shared.following.revision();
        let mut clocks: HashMap<u32, [u64; KERNEL_UNITS]> = HashMap::new();
        self.worker.plane.read_tracked(&hot, &mut |key, tracked| {
            let Some(tracked) = tracked else {
                gone.push(key);
                return;
            };
            let bound = tracked.binding as u32;
            // The shared bucket of a client is that of its slot, whatever the entry remembers.
            let slot = if is_shared(key) {
                key as u32
            } else {
                bound & SLOT_MASK
            };
            let Some(entry) = view.policies.get(&slot) else {
                return;
            };
            if bound & STATE != LIMITED {
                return;
            }
            let now = clocks.entry(slot).or_insert_with(|| {
                let segment_ns = view.segment_clock(entry).at(now_ns);
                let clocks = entry.clocks.each_ref();
                clocks.map(|clock| clock.piece(now_ns).at(segment_ns))
            });
            for (unit, now) in (0..).zip(now.iter()) {
                if let Some(mut rule) = rules.rule(hasher, slot, unit, key) {
                    rule.quota.revision = revision;
                    readings.push(Reading {
                        id: Id { source: key, unit },
                        rule,
                        spent: spent(tracked, unit),
                        owed: owed(tracked, unit, entry.tag, *now),
                    });
                }
            }
        })?;
        for key in gone {
            self.promoted.remove(&key);
            self.host.cool(key);
        }
        Ok(readings)
    }

    /// Writes down how many hosts there are: what `strict` goes by at a start without the store.
    fn keep_known(&mut self, now_us: u64) {
        let known = self.host.figures(now_us).known;
        if known != self.known {
            self.known = known;
            let kept = shared_store::keep_known_hosts(self.worker.keeps.as_ref(), known);
            if let Err(error) = kept {
                tracing::warn!(%error, "how many hosts there are is not kept");
            }
        }
    }

    fn leave(&mut self) {
        // Nobody speeds slowed clocks up while there is no agent.
        let undone = unscale(self.worker.plane.as_ref());
        self.note(undone);
        let leaving = Beat {
            host: self.worker.host,
            leaving: true,
            ..Beat::default()
        };
        let store = Arc::clone(&self.worker.store);
        let told = self.worker.runtime.block_on(store.beat(&leaving));
        if let Err(error) = told {
            tracing::debug!(%error, "the fleet was not told good-bye");
        }
    }

    /// One log line for each problem that comes or goes.
    fn note(&mut self, done: Result<(), Error>) {
        let problem = done.err().map(|error| error.to_string());
        if problem != self.problem {
            if let Some(problem) = &problem {
                tracing::warn!(%problem, "packets are not settled with the fleet");
            } else {
                tracing::info!("packets are settled with the fleet again");
            }
            self.problem = problem;
        }
    }
}

/// Shared buckets have keys of this host alone; nobody else can look for them.
fn without_shared(mut beat: Beat) -> Beat {
    beat.hot.retain(|key| !is_shared(*key));
    beat
}

/// Lets every tracked source's clock run at its whole rate.
fn unscale(plane: &dyn DataPlane) -> Result<(), Error> {
    let mut scaled = Vec::new();
    plane.scan_tracked(&mut |key, tracked| {
        if tracked.cost_scale > WHOLE {
            scaled.push(scale(key, WHOLE));
        }
    })?;
    plane.merge(&mut scaled)
}

fn scale(key: SourceKey, part: u32) -> MergeOp {
    let one = u64::from(WHOLE);
    MergeOp {
        op: op::SCALE,
        key,
        level: one * one / u64::from(part.clamp(1, WHOLE)),
        ..MergeOp::default()
    }
}

/// Everything admitted, as an amount.
fn spent(tracked: &Tracked, unit: u8) -> u64 {
    match unit {
        0 => tracked.admitted << 8,
        1 => tracked.admitted_bytes,
        _ => tracked.admitted_connections << 8,
    }
}

/// What is owed on a clock that reads `now`: the entry's cost scale multiplies debts too.
fn owed(tracked: &Tracked, unit: u8, tag: u32, now: u64) -> u64 {
    let tat = tracked.tats.get(usize::from(unit)).copied().unwrap_or(0);
    if tat == 0 || tat >> TAT_BITS != u64::from(tag) {
        return 0;
    }
    // Serial arithmetic: a TAT is never half of its range away from the clock.
    let ahead = tat.wrapping_sub(now) << (64 - TAT_BITS);
    if (ahead as i64) <= 0 {
        return 0;
    }
    let scale = u128::from(tracked.cost_scale.max(WHOLE));
    ((u128::from(ahead >> (64 - TAT_BITS)) * u128::from(WHOLE)) / scale) as u64
}

/// What is shown of it.
pub(super) type Shown = Option<Figures>;
