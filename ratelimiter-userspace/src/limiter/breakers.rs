//! The circuit breakers of the backends: [`crate::control::breaker`] in the path of checks.
//!
//! Only clients whose segment names a backend that has a breaker, or limits that follow its health,
//! come here. The breaker steps by itself, at most every 100 ms, on the thread whose check finds it
//! due.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::adapt::BackendCounts;
use super::counters::{Counters, MAX_BACKENDS};
use super::demand::Demand;
use crate::control::breaker::{Breaker, BreakerConfig, Observed, Phase};

/// How often a breaker steps, in nanoseconds.
const STEP_NS: u64 = 100_000_000;

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const HALF_OPEN: u8 = 2;

struct Watched {
    name: String,
    phase: AtomicU8,
    until_ns: AtomicU64,
    probes_left: AtomicI64,
    due_ns: AtomicU64,
    good: AtomicU64,
    errors: AtomicU64,
    /// Time the good ones took, in microseconds.
    latency_us: AtomicU64,
    /// Whether controllers want to know what each client asks for.
    observed: AtomicBool,
    demand: OnceLock<Demand>,
    guard: Guard,
    inner: Mutex<Inner>,
}

/// A bucket for all clients of a backend together, behind their own: it holds a budget against a
/// surge that is faster than the levels follow. In real time; a change of rate misprices its depth,
/// a tenth of a second, and no more.
#[derive(Default)]
struct Guard {
    /// Nanoseconds per request; 0 is no bound.
    interval_ns: AtomicU64,
    tat_ns: AtomicU64,
}

/// Depth of a guard, in nanoseconds.
const GUARD_NS: u64 = 100_000_000;

impl Guard {
    /// How long to wait, if nothing is left now.
    #[inline(always)]
    fn refuses(&self, now_ns: u64) -> Option<u64> {
        if self.interval_ns.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let owed_ns = self.tat_ns.load(Ordering::Relaxed).saturating_sub(now_ns);
        owed_ns.checked_sub(GUARD_NS).map(|wait_ns| wait_ns.max(1))
    }

    fn charge(&self, now_ns: u64) {
        let interval_ns = self.interval_ns.load(Ordering::Relaxed);
        if interval_ns > 0 {
            // Not everybody is refused (limits in shadow, none at all), so debt must end somewhere.
            let most_ns = now_ns.saturating_add(GUARD_NS + interval_ns);
            let charged = |tat: u64| Some(tat.max(now_ns).saturating_add(interval_ns).min(most_ns));
            // It never gives up: the function always has a value.
            let _charged = self
                .tat_ns
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, charged)
                .is_ok();
        }
    }
}

struct Inner {
    config: Option<BreakerConfig>,
    breaker: Breaker,
    /// Totals at the last step: allowed, denied, good, errors.
    seen: [u64; 4],
    opened: u64,
}

/// A backend's breaker, for people and metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerStatus {
    /// The backend's name.
    pub backend: String,
    /// What it does now.
    pub phase: Phase,
    /// How often it has opened.
    pub opened_total: u64,
}

/// Every breaker of a limiter.
pub(super) struct Breakers {
    watched: Box<[OnceLock<Watched>]>,
}

impl Breakers {
    pub(super) fn new() -> Self {
        Self {
            watched: (0..MAX_BACKENDS).map(|_| OnceLock::new()).collect(),
        }
    }

    fn named(&self, name: &str) -> Option<(u8, &Watched)> {
        self.watched
            .iter()
            .enumerate()
            .find_map(|(number, cell)| match cell.get() {
                Some(watched) if watched.name == name => Some((number as u8, watched)),
                _ => None,
            })
    }

    /// Configures, changes or (`None`) switches off a backend's breaker. Returns its number while
    /// it is on; `Err` where there are too many backends.
    pub(super) fn configure(
        &self,
        name: &str,
        config: Option<BreakerConfig>,
        now_ns: u64,
        counters: &Counters,
    ) -> Result<Option<u8>, usize> {
        let Some((number, watched)) = self.get(name, config.is_some(), now_ns)? else {
            return Ok(None);
        };
        let mut inner = watched.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if config.is_none() || inner.config.is_none() {
            inner.breaker = Breaker::new(now_ns);
            watched.phase.store(CLOSED, Ordering::Release);
            inner.seen = watched.totals(number, counters);
        }
        inner.config = config;
        let due_ns = if config.is_some() { 0 } else { u64::MAX };
        watched.due_ns.store(due_ns, Ordering::Relaxed);
        let observed = watched.observed.load(Ordering::Relaxed);
        Ok((config.is_some() || observed).then_some(number))
    }

    /// Observes what a backend's clients ask for, or no longer. Returns its number while anybody
    /// watches it; `Err` where there are too many backends.
    pub(super) fn observe(&self, name: &str, on: bool, now_ns: u64) -> Result<Option<u8>, usize> {
        let Some((number, watched)) = self.get(name, on, now_ns)? else {
            return Ok(None);
        };
        if on {
            watched.demand.get_or_init(Demand::new);
        }
        watched.observed.store(on, Ordering::Relaxed);
        if !on {
            watched.guard.interval_ns.store(0, Ordering::Relaxed);
        }
        let inner = watched.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((on || inner.config.is_some()).then_some(number))
    }

    /// The backend `name`, made now if it is wanted.
    fn get(&self, name: &str, make: bool, now_ns: u64) -> Result<Option<(u8, &Watched)>, usize> {
        if let Some(found) = self.named(name) {
            return Ok(Some(found));
        }
        if !make {
            return Ok(None);
        }
        let fresh = || Watched {
            name: name.to_owned(),
            phase: AtomicU8::new(CLOSED),
            until_ns: AtomicU64::new(0),
            probes_left: AtomicI64::new(0),
            due_ns: AtomicU64::new(u64::MAX),
            good: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latency_us: AtomicU64::new(0),
            observed: AtomicBool::new(false),
            demand: OnceLock::new(),
            guard: Guard::default(),
            inner: Mutex::new(Inner {
                config: None,
                breaker: Breaker::new(now_ns),
                seen: [0; 4],
                opened: 0,
            }),
        };
        for (number, cell) in self.watched.iter().enumerate() {
            let watched = cell.get_or_init(fresh);
            if watched.name == name {
                return Ok(Some((number as u8, watched)));
            }
        }
        Err(MAX_BACKENDS)
    }

    /// Bounds what all clients of a backend may ask together, per second; `None` does not.
    pub(super) fn set_guard(&self, name: &str, per_s: Option<f64>) {
        if let Some((_, watched)) = self.named(name) {
            let interval_ns = per_s.map_or(0, |rate| (1e9 / rate.max(1e-3)) as u64);
            watched
                .guard
                .interval_ns
                .store(interval_ns, Ordering::Relaxed);
        }
    }

    /// How long to wait, if the clients of the backend together have used up what they may.
    #[inline(always)]
    pub(super) fn guarded(&self, number: u8, now_ns: u64) -> Option<u64> {
        let watched = self.watched.get(number as usize)?.get()?;
        watched.guard.refuses(now_ns)
    }

    /// Charges a request that passed to all clients together.
    #[inline(always)]
    pub(super) fn charge(&self, number: u8, now_ns: u64) {
        if let Some(watched) = self.watched.get(number as usize).and_then(OnceLock::get) {
            watched.guard.charge(now_ns);
        }
    }

    /// Notes that a client was checked, if anybody wants to know.
    #[inline(always)]
    pub(super) fn note(&self, number: u8, print: u64, policy: u32, who: impl FnOnce() -> u64) {
        if let Some(watched) = self.watched.get(number as usize).and_then(OnceLock::get)
            && watched.observed.load(Ordering::Relaxed)
            && let Some(demand) = watched.demand.get()
        {
            demand.note(print, policy, who);
        }
    }

    /// Takes what each client of a backend has asked for.
    pub(super) fn take_demand(&self, name: &str, visit: impl FnMut(u32, u32, u64)) {
        if let Some(demand) = self.named(name).and_then(|(_, of)| of.demand.get()) {
            demand.take(visit);
        }
    }

    /// What was counted of a backend.
    pub(super) fn counts(&self, name: &str, counters: &Counters) -> Option<BackendCounts> {
        let (number, watched) = self.named(name)?;
        let [allowed, denied, good, errors] = watched.totals(number, counters);
        Some(BackendCounts {
            allowed,
            denied,
            good,
            errors,
            latency_us: watched.latency_us.load(Ordering::Relaxed),
        })
    }

    /// Returns how long to wait, in nanoseconds, if the backend's breaker lets nothing pass now.
    /// A probe is used up only by a check that is charged.
    pub(super) fn refuses(
        &self,
        number: u8,
        now_ns: u64,
        charge: bool,
        counters: &Counters,
    ) -> Option<u64> {
        let watched = self.watched.get(number as usize)?.get()?;
        if now_ns >= watched.due_ns.load(Ordering::Relaxed) {
            watched.step(number, now_ns, counters);
        }
        match watched.phase.load(Ordering::Acquire) {
            OPEN => Some(
                watched
                    .until_ns
                    .load(Ordering::Relaxed)
                    .saturating_sub(now_ns),
            ),
            HALF_OPEN => {
                let left = if charge {
                    watched.probes_left.fetch_sub(1, Ordering::Relaxed)
                } else {
                    watched.probes_left.load(Ordering::Relaxed)
                };
                (left <= 0).then_some(STEP_NS)
            }
            _ => None,
        }
    }

    /// Notes what became of an allowed request.
    pub(super) fn outcome(
        &self,
        name: &str,
        good: bool,
        latency_us: u64,
        now_ns: u64,
        counters: &Counters,
    ) {
        if let Some((number, watched)) = self.named(name) {
            if good {
                watched.latency_us.fetch_add(latency_us, Ordering::Relaxed);
            }
            let cell = if good { &watched.good } else { &watched.errors };
            cell.fetch_add(1, Ordering::Relaxed);
            if now_ns >= watched.due_ns.load(Ordering::Relaxed) {
                watched.step(number, now_ns, counters);
            }
        }
    }

    /// Every breaker that is configured.
    pub(super) fn status(&self) -> Vec<BreakerStatus> {
        self.watched
            .iter()
            .filter_map(OnceLock::get)
            .filter_map(|watched| {
                let inner = watched.inner.lock().unwrap_or_else(PoisonError::into_inner);
                inner.config?;
                Some(BreakerStatus {
                    backend: watched.name.clone(),
                    phase: inner.breaker.phase(),
                    opened_total: inner.opened,
                })
            })
            .collect()
    }
}

impl Watched {
    fn totals(&self, number: u8, counters: &Counters) -> [u64; 4] {
        let [allowed, denied] = counters.backend(number);
        [
            allowed,
            denied,
            self.good.load(Ordering::Relaxed),
            self.errors.load(Ordering::Relaxed),
        ]
    }

    fn step(&self, number: u8, now_ns: u64, counters: &Counters) {
        // Whoever finds it due first does it; the others go on with the phase in force.
        let Ok(mut inner) = self.inner.try_lock() else {
            return;
        };
        let Some(config) = inner.config else {
            return;
        };
        self.due_ns
            .store(now_ns.saturating_add(STEP_NS), Ordering::Relaxed);
        let totals = self.totals(number, counters);
        let [allowed, denied, good, errors] = totals;
        let [a, d, g, e] = inner.seen;
        inner.seen = totals;
        let seen = Observed {
            allowed: allowed.saturating_sub(a),
            denied: denied.saturating_sub(d),
            good: good.saturating_sub(g),
            errors: errors.saturating_sub(e),
        };
        let (next, cause) = inner.breaker.clone().step(seen, now_ns, &config);
        inner.breaker = next;
        if cause.is_none() {
            return;
        }
        let phase = match inner.breaker.phase() {
            Phase::Closed => CLOSED,
            Phase::Open { until_ns } => {
                inner.opened += 1;
                self.until_ns.store(until_ns, Ordering::Relaxed);
                OPEN
            }
            Phase::HalfOpen => {
                let probes = i64::try_from(config.probes.max(1)).unwrap_or(i64::MAX);
                self.probes_left.store(probes, Ordering::Relaxed);
                HALF_OPEN
            }
        };
        self.phase.store(phase, Ordering::Release);
    }
}
