//! Guards the budget against signals that do not answer to load.
//!
//! When a saturation has cut deep, look again once the cut must have shown: if the latency (or the
//! errors) stayed, cutting does not help; most of what was proven is restored and the signal is
//! distrusted for a while.
use serde::{Deserialize, Serialize};

/// A cut to this share of what was proven is deep enough to be looked at...
const DEEP: f64 = 0.75;
/// ...and until it has been seen to help no cut goes below this share.
const UNCHECKED_FLOOR: f64 = 0.5;
/// What is restored when cutting did not help.
const RESTORED: f64 = 0.9;
/// Latency, or errors, that stayed above these shares of their maximum did not answer.
const STUCK_RT: f64 = 0.8;
const STUCK_ERRORS: f64 = 0.7;
/// Latency that wanders less than this over three reports does not move at all.
const STILL: f64 = 1.05;
/// How long a signal stays distrusted, and how long it is not tried again after it did answer.
const DISTRUST_S: f64 = 300.0;
/// Latency above this many times the distrusted one answers after all.
const REFUTED: f64 = 1.2;

/// What a saturated period looked like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) now_s: f64,
    pub(super) period_s: f64,
    pub(super) rt_s: f64,
    pub(super) errors: f64,
    pub(super) bad_errors: bool,
    /// Latency from which the backend counts as saturated, in seconds.
    pub(super) saturated_s: f64,
    pub(super) high_s: f64,
    /// Smallest and largest of the last three latencies, in seconds.
    pub(super) last_three: (f64, f64),
}

/// What the guard makes of the capacity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Finding {
    /// The capacity may be this.
    Capacity(f64),
    /// Cutting does not help; the capacity is restored to this.
    Deaf(f64),
}

/// A signal known not to answer to load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distrust {
    until_s: f64,
    /// The latency that stayed, if it was latency, in seconds.
    rt_s: Option<f64>,
    /// The errors that stayed, if it was errors.
    errors: Option<f64>,
}

/// State of the guard: one saturation is one episode.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    /// Capacity before the episode's cut.
    before: f64,
    /// When to look whether the cut has helped.
    look_s: Option<f64>,
    rt_max_s: f64,
    errors_max: f64,
    distrust: Option<Distrust>,
    refuted_s: Option<f64>,
}

impl Guard {
    /// The same on a clock that reads `by_s` more.
    pub(super) fn shift(&mut self, by_s: f64) {
        for at_s in self.look_s.iter_mut().chain(&mut self.refuted_s) {
            *at_s += by_s;
        }
        if let Some(distrust) = &mut self.distrust {
            distrust.until_s += by_s;
        }
    }

    /// Begins an episode: `before` is what was proven.
    pub(super) fn begin(&mut self, before: f64, rt_s: f64, errors: f64) {
        self.before = before;
        self.look_s = None;
        self.rt_max_s = rt_s;
        self.errors_max = errors;
    }

    /// Forgets a distrust, since the circuit is open.
    pub(super) fn reset(&mut self) {
        self.distrust = None;
    }

    /// Returns the latency that is known not to be ours, in seconds.
    pub(super) fn foreign_rt_s(&self, now_s: f64) -> Option<f64> {
        self.active(now_s)?.rt_s
    }

    /// Returns the share of errors that is known not to be ours.
    pub(super) fn foreign_errors(&self, now_s: f64) -> Option<f64> {
        self.active(now_s)?.errors
    }

    fn active(&self, now_s: f64) -> Option<Distrust> {
        self.distrust.filter(|distrust| now_s < distrust.until_s)
    }

    /// Trusts the signal again if the latency rises well above what was taken for foreign.
    pub(super) fn reconsider(&mut self, now_s: f64, rt_s: f64) {
        if self
            .foreign_rt_s(now_s)
            .is_some_and(|foreign_s| rt_s > REFUTED * foreign_s)
        {
            self.distrust = None;
            self.refuted_s = Some(now_s);
        }
    }

    /// Looks at a saturated period after which the capacity would be `capacity`.
    pub(super) fn check(&mut self, capacity: f64, look: &Look) -> Finding {
        if look.rt_s > self.rt_max_s {
            self.rt_max_s = look.rt_s;
            self.look_s = self.look_s.map(|at_s| at_s.max(when_s(look, look.rt_s)));
        }
        self.errors_max = self.errors_max.max(look.errors);
        let mut capacity = capacity;
        // Latency between the thresholds that does not move at all is not our doing.
        let (lowest_s, highest_s) = look.last_three;
        if look.rt_s < look.high_s && !look.bad_errors && highest_s <= STILL * lowest_s {
            capacity = capacity.max(RESTORED * self.before);
        }
        let floor = UNCHECKED_FLOOR * self.before;
        match self.look_s {
            None => {
                capacity = capacity.max(floor);
                if capacity <= DEEP * self.before {
                    self.look_s = Some(when_s(look, self.rt_max_s));
                    self.rt_max_s = look.rt_s;
                    self.errors_max = look.errors;
                }
                Finding::Capacity(capacity)
            }
            Some(at_s) if look.now_s < at_s => Finding::Capacity(capacity.max(floor)),
            Some(_) => self.conclude(capacity, look),
        }
    }

    fn conclude(&mut self, capacity: f64, look: &Look) -> Finding {
        let lowest_s = look.last_three.0;
        let tried_lately = self
            .refuted_s
            .is_some_and(|at_s| look.now_s <= at_s + DISTRUST_S);
        let stuck_rt =
            lowest_s >= STUCK_RT * self.rt_max_s && lowest_s > look.saturated_s && !tried_lately;
        let stuck_errors = look.bad_errors && look.errors >= STUCK_ERRORS * self.errors_max;
        self.look_s = None;
        self.rt_max_s = look.rt_s;
        self.errors_max = look.errors;
        if (stuck_rt && !look.bad_errors) || stuck_errors {
            self.distrust = Some(Distrust {
                until_s: look.now_s + DISTRUST_S,
                rt_s: stuck_rt.then_some(look.rt_s),
                errors: look.bad_errors.then_some(look.errors),
            });
            return Finding::Deaf(RESTORED * self.before);
        }
        self.before = capacity;
        Finding::Capacity(capacity)
    }
}

/// When a cut made now must have shown: two periods and the requests in flight later.
fn when_s(look: &Look, rt_max_s: f64) -> f64 {
    look.now_s + 2.0 * look.period_s + 1.5 * rt_max_s + 1.0
}
