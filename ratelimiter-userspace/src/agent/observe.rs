//! The observer thread reads counters, samples and figures; the keeper thread saves usage, so that
//! a slow disk makes nobody believe that the kernel is not watched.

mod onsets;
pub(super) mod throughput;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use ratelimiter_common::abi::counters::Sample;
use ratelimiter_common::verdict::Verdict;

use super::state::{Figured, Shared};
use super::talkers::Talkers;
use super::usage;
use crate::admin::views::EventKind;
use crate::clock;
use crate::dataplane::{DataPlane, Stats};
use crate::store::Store;
use onsets::Onsets;
use throughput::Throughput;

/// How often the kernel's state, its counters and samples are read: well below the two seconds in which
/// readiness tells the truth.
const PERIOD: Duration = Duration::from_millis(250);
/// How soon a save that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Nanoseconds between two scans of the tables.
const FIGURES_EVERY_NS: u64 = 5_000_000_000;
/// Seconds over which rates are averaged.
const AVERAGE_S: f64 = 2.0;

/// What the observer works with.
pub(super) struct Observer {
    pub(super) plane: Arc<dyn DataPlane>,
    pub(super) shared: Arc<Shared>,
    /// Where samples of admitted packets go as well: to whoever looks for hot sources.
    pub(super) admitted: Option<SyncSender<Vec<Sample>>>,
    /// How IPv6 sources are shown.
    pub(super) v6_prefix_len: u8,
}

/// What the observer remembers from one look to the next.
#[derive(Default)]
struct Seen {
    talkers: Talkers,
    rates: Option<Rates>,
    onsets: Onsets,
    checks: Throughput,
}

/// What the keeper works with.
pub(super) struct Keeper {
    pub(super) plane: Arc<dyn DataPlane>,
    pub(super) store: Arc<dyn Store>,
    pub(super) shared: Arc<Shared>,
    /// How often usage is saved.
    pub(super) save_every: Duration,
}

impl Keeper {
    /// Saves usage until `stop` is dropped, and then once more.
    pub(super) fn run(self, stop: &Receiver<()>) {
        let mut wait = self.save_every;
        while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(wait) {
            wait = if self.save() {
                self.save_every
            } else {
                self.save_every.min(RETRY)
            };
        }
        self.save();
    }

    /// Whether it could be saved.
    fn save(&self) -> bool {
        let view = self.shared.view.load();
        let saved = usage::save(self.plane.as_ref(), self.store.as_ref(), &view);
        let text = match saved {
            Ok(()) => String::new(),
            Err(error) => format!("usage cannot be saved: {error}"),
        };
        let is_saved = text.is_empty();
        self.shared.save_error.store(Arc::new(text));
        is_saved
    }
}

struct Rates {
    at_ns: u64,
    stats: Stats,
    packets_per_s: f64,
    dropped_per_s: f64,
    conforming_per_s: Vec<f64>,
}

impl Observer {
    /// Observes until `stop` is dropped.
    pub(super) fn run(self, stop: &Receiver<()>) {
        let mut seen = Seen::default();
        let mut problems: Vec<String> = Vec::new();
        let mut figures_ns = 0;
        loop {
            let now_ns = clock::monotonic_ns();
            let figures_due =
                figures_ns == 0 || now_ns.saturating_sub(figures_ns) >= FIGURES_EVERY_NS;
            let mut next = (**self.shared.figured.load()).clone();
            next.at_ns = now_ns;
            next.health = self.plane.health();
            let mut read = self.read(&mut next, &mut seen, now_ns);
            if read.is_ok() && figures_due {
                figures_ns = now_ns;
                read = self
                    .plane
                    .figures(now_ns)
                    .map(|figures| next.figures = figures);
            }
            let totals = self.shared.checks.limiter().totals();
            next.checks = seen.checks.note(now_ns, totals);
            next.error = read.err().map(|error| error.to_string());
            self.shared.figured.store(Arc::new(next));
            // After the figures: whoever is woken by the event finds the drop counted.
            if let Some(onset) = seen.onsets.tell(now_ns, self.v6_prefix_len) {
                self.shared.events.push(EventKind::Drop, onset);
            }
            self.tell(&mut problems);
            match stop.recv_timeout(PERIOD) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return,
            }
        }
    }

    fn read(
        &self,
        next: &mut Figured,
        seen: &mut Seen,
        now_ns: u64,
    ) -> Result<(), crate::dataplane::Error> {
        let Seen {
            talkers,
            rates,
            onsets,
            ..
        } = seen;
        let mut admitted = Vec::new();
        let drained = self.plane.drain_samples(&mut |sample| {
            talkers.note(sample);
            if self.admitted.is_some()
                && sample.verdict == Verdict::Pass as u8
                && sample.family != 0
            {
                admitted.push(*sample);
            }
        })?;
        if let Some(fleet) = &self.admitted
            && !admitted.is_empty()
        {
            // Whoever is that far behind sees the next ones.
            let _full = fleet.try_send(admitted).is_err();
        }
        next.samples_lost += drained.lost;
        next.drop_events += self
            .plane
            .drain_events(&mut |sample| onsets.note(sample, now_ns))?;
        let stats = self.plane.stats()?;
        let before = rates.take();
        let elapsed_s = before.as_ref().map_or(0.0, |before| {
            now_ns.saturating_sub(before.at_ns) as f64 / 1e9
        });
        talkers.tick(elapsed_s);
        let fresh = Rates::after(before, stats, now_ns, elapsed_s);
        next.stats = fresh.stats.clone();
        next.packets_per_s = fresh.packets_per_s;
        next.dropped_per_s = fresh.dropped_per_s;
        next.conforming_per_s.clone_from(&fresh.conforming_per_s);
        *rates = Some(fresh);
        next.talkers = Arc::new(talkers.ranking());
        next.observed_s = talkers.observed_s();
        Ok(())
    }

    /// One log line and one event for each problem that comes or goes.
    fn tell(&self, known: &mut Vec<String>) {
        let now = self.shared.problems();
        if self.shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        for problem in now.iter().filter(|problem| !known.contains(problem)) {
            tracing::warn!(%problem, "not ready");
            self.shared.events.push(EventKind::Health, problem.clone());
        }
        if now.is_empty() && !known.is_empty() {
            tracing::info!("ready again");
            self.shared.events.push(EventKind::Health, "ready again");
        }
        *known = now;
    }
}

impl Rates {
    fn after(before: Option<Self>, stats: Stats, at_ns: u64, elapsed_s: f64) -> Self {
        let Some(before) = before.filter(|_| elapsed_s > 0.0) else {
            return Self {
                at_ns,
                conforming_per_s: vec![0.0; stats.segments.len()],
                stats,
                packets_per_s: 0.0,
                dropped_per_s: 0.0,
            };
        };
        let keep = (-elapsed_s / AVERAGE_S).exp();
        let rate = |old: f64, new: u64, previous: u64| {
            old * keep + (1.0 - keep) * new.saturating_sub(previous) as f64 / elapsed_s
        };
        let dropped = |stats: &Stats| stats.total(Verdict::Drop).packets;
        Self {
            at_ns,
            packets_per_s: rate(
                before.packets_per_s,
                stats.offered(),
                before.stats.offered(),
            ),
            dropped_per_s: rate(
                before.dropped_per_s,
                dropped(&stats),
                dropped(&before.stats),
            ),
            conforming_per_s: stats
                .segments
                .iter()
                .zip(&before.stats.segments)
                .zip(&before.conforming_per_s)
                .map(|((new, previous), old)| rate(*old, new.conforming, previous.conforming))
                .collect(),
            stats,
        }
    }
}
