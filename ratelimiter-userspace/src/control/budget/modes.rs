//! The state machine of the budget: what one report changes.
use super::guard::{Finding, Look};
use super::{Budget, Ceiling, Evidence, Mode, SATURATED, View};
use crate::control::settings::Settings;

/// Smallest and largest probe above the capacity; doubled with each clean report.
pub(super) const PROBE_LEAST: f64 = 0.05;
const PROBE_MOST: f64 = 0.30;
/// Probe while far below what was proven before.
const PROBE_RAMP: f64 = 1.0;
/// Share of the difference between throughput and capacity that one report is believed...
const LEARN: f64 = 0.4;
/// ...less when the monitor wobbles more than this...
const LEARN_NOISE: f64 = 0.15;
/// ...and never more than these shares of the capacity.
const LEARN_DOWN: f64 = 0.35;
const LEARN_UP: f64 = 0.15;
/// The capacity never falls below this share of what was healthy.
const HEALTHY_LEAST: f64 = 0.02;
/// What was healthy fades by these shares per second, open and tracking.
const FADE_OPEN: f64 = 0.005;
const FADE_TRACK: f64 = 0.002;
/// Around the last saturation, for this long (or four periods), the probe stays small.
const PLATEAU: f64 = 0.10;
const PLATEAU_S: f64 = 15.0;
/// The budget binds while demand is above the first share of the capacity; the throttle is lifted
/// below the second, after this many seconds of calm.
const BINDING: f64 = 0.95;
const SLACK: f64 = 0.9;
const EXIT_S: f64 = 5.0;
/// On entry the capacity is the throughput, within these shares of what was proven before.
const ENTRY_LEAST: f64 = 0.6;
const ENTRY_MOST: f64 = 1.5;
/// A remembered ceiling counts as proven with this share.
const CEILING_TRUST: f64 = 0.9;
/// Reports in a row that open and close the circuit.
const TRIP_REPORTS: u32 = 3;
const HEAL_REPORTS: u32 = 2;
/// Admissions up to this multiple of the budget do not explain mostly errors.
const TRIP_EXPLAINED: f64 = 1.3;
/// Share of what was healthy with which the circuit closes again.
const HEAL_SHARE: f64 = 0.25;
/// How fast the calm response time follows, down and up.
const CALM_DOWN: f64 = 0.3;
const CALM_UP: f64 = 0.02;

impl Budget {
    pub(super) fn advance(&mut self, settings: &Settings, seen: &Evidence, view: &View<'_>) {
        self.count_runs(settings, seen);
        if self.bad_run >= TRIP_REPORTS && self.mode != Mode::Trip {
            self.mode = Mode::Trip;
            self.good_run = 0;
            self.guard.reset();
        }
        match self.mode {
            Mode::Open => self.open(settings, seen, view),
            Mode::Track => self.track(settings, seen, view),
            Mode::Trip => self.trip(settings),
        }
    }

    /// Mostly errors, and not because too much was let in: that is an outage.
    fn count_runs(&mut self, settings: &Settings, seen: &Evidence) {
        let healthy = self.healthy.max(settings.budget_min);
        let usual = self.spending.map_or(healthy, |budget| budget.min(healthy));
        let outage =
            seen.sample.errors >= settings.error_trip && seen.admitted <= TRIP_EXPLAINED * usual;
        self.bad_run = if outage {
            self.bad_run.saturating_add(1)
        } else {
            0
        };
        let heals = seen.sample.errors < settings.error_high && seen.sample.served;
        self.good_run = if heals {
            self.good_run.saturating_add(1)
        } else {
            0
        };
    }

    fn open(&mut self, settings: &Settings, seen: &Evidence, view: &View<'_>) {
        let slow_s = SATURATED * seen.aim_s;
        let soon = seen.rt_s > slow_s && seen.forecast_s >= settings.high_s;
        let overloaded = seen.rt_s >= settings.high_s.max(slow_s) || seen.bad_errors || soon;
        // Latency that nobody here can have caused is left to the factor.
        let ours = seen.accepted.max(0.5 * seen.admitted) >= settings.budget_min;
        if overloaded && ours {
            self.enter(settings, seen, view);
            return;
        }
        let fade = 1.0 - FADE_OPEN * seen.sample.period_s;
        self.healthy = (self.healthy * fade).max(self.throughput.rate());
        if seen.rt_s < settings.low_s {
            let calm_s = self.calm_rt_s.unwrap_or(seen.rt_s);
            let follow = if seen.rt_s < calm_s {
                CALM_DOWN
            } else {
                CALM_UP
            };
            let calm_s = calm_s + follow * (seen.rt_s - calm_s);
            self.calm_rt_s = Some(calm_s.min(settings.low_s));
        }
    }

    /// Overload: begin with what the backend was just completing.
    fn enter(&mut self, settings: &Settings, seen: &Evidence, view: &View<'_>) {
        let ceiling = self.ceiling_in_force(settings, view.now_s).unwrap_or(0.0);
        let proven = self.healthy.max(CEILING_TRUST * ceiling);
        let capacity = if proven > 0.0 {
            seen.rate.clamp(ENTRY_LEAST * proven, ENTRY_MOST * proven)
        } else {
            // Overloaded from the first report on: half of what the backend took in.
            seen.rate.max(0.5 * seen.accepted)
        };
        self.start_tracking(capacity.max(settings.budget_min), PROBE_LEAST);
        self.saturated = true;
        self.guard
            .begin(proven.max(self.capacity), seen.rt_s, seen.sample.errors);
    }

    pub(super) fn start_tracking(&mut self, capacity: f64, probe: f64) {
        self.mode = Mode::Track;
        self.capacity = capacity;
        self.probe = probe;
        self.saturated = false;
        self.calm_since_s = None;
    }

    fn track(&mut self, settings: &Settings, seen: &Evidence, view: &View<'_>) {
        self.guard.reconsider(view.now_s, seen.rt_s);
        let was_saturated = self.saturated;
        self.saturated = seen.rt_s > SATURATED * seen.aim_s || seen.bad_errors;
        if self.saturated {
            self.cold = false;
            if !was_saturated {
                self.guard
                    .begin(self.capacity, seen.rt_s, seen.sample.errors);
            }
            self.follow_down(settings, seen, view);
        } else {
            self.follow_up(settings, seen, view);
        }
    }

    /// Saturated: the throughput *is* the capacity; move towards it.
    fn follow_down(&mut self, settings: &Settings, seen: &Evidence, view: &View<'_>) {
        let learn = LEARN * LEARN_NOISE / self.filter.noise().max(LEARN_NOISE);
        let step = (learn * (seen.rate - self.capacity))
            .clamp(-LEARN_DOWN * self.capacity, LEARN_UP * self.capacity);
        let capacity = (self.capacity + step)
            .max(settings.budget_min)
            .max(HEALTHY_LEAST * self.healthy);
        self.healthy = self.healthy.min(2.0 * capacity);
        self.probe = PROBE_LEAST;
        self.calm_since_s = None;
        let look = Look {
            now_s: view.now_s,
            period_s: seen.sample.period_s,
            rt_s: seen.rt_s,
            errors: seen.sample.errors,
            bad_errors: seen.bad_errors,
            saturated_s: SATURATED * seen.aim_s,
            high_s: settings.high_s,
            last_three: self.filter.last_three(),
        };
        match self.guard.check(capacity, &look) {
            Finding::Capacity(capacity) => {
                self.capacity = capacity;
                let proven = Ceiling {
                    rate: capacity,
                    at_s: view.now_s,
                };
                self.ceiling = Some(proven);
                self.saturation = Some(proven);
            }
            Finding::Deaf(capacity) => {
                self.capacity = capacity;
                self.saturated = false;
            }
        }
    }

    /// Not saturated: at least what it completes is its capacity; probe for more while it binds.
    fn follow_up(&mut self, settings: &Settings, seen: &Evidence, view: &View<'_>) {
        let fade = 1.0 - FADE_TRACK * seen.sample.period_s;
        let completed = seen.rate.min(self.throughput.rate());
        self.healthy = (self.healthy * fade).max(completed);
        self.capacity = self
            .capacity
            .max(seen.rate.min(self.capacity * (1.0 + self.probe)));
        if view.demand > BINDING * self.capacity {
            self.probe = self.next_probe(view.now_s);
            self.calm_since_s = None;
        } else {
            self.probe = PROBE_LEAST;
            let calm_since_s = *self.calm_since_s.get_or_insert(view.now_s);
            let calm_s = view.now_s - calm_since_s;
            let fast = seen.rt_s < settings.low_s.max(seen.aim_s);
            if view.demand < SLACK * self.capacity && fast && calm_s >= EXIT_S {
                self.mode = Mode::Open;
                self.cold = false;
                self.healthy = self.healthy.max(self.throughput.rate());
            }
        }
        if self
            .ceiling
            .is_none_or(|ceiling| self.capacity > ceiling.rate)
        {
            self.ceiling = Some(Ceiling {
                rate: self.capacity,
                at_s: view.now_s,
            });
        }
    }

    fn next_probe(&self, now_s: f64) -> f64 {
        let plateau_s = PLATEAU_S.max(4.0 * self.period_s);
        let on_plateau = self.saturation.is_some_and(|at| {
            now_s - at.at_s < plateau_s && (self.capacity / at.rate - 1.0).abs() < PLATEAU
        });
        if on_plateau {
            PROBE_LEAST
        } else if self.is_ramping() {
            PROBE_RAMP
        } else {
            (2.0 * self.probe).min(PROBE_MOST)
        }
    }

    /// The trickle is the probe: two good reports, and the load is raised step by step.
    fn trip(&mut self, settings: &Settings) {
        if self.good_run >= HEAL_REPORTS {
            let capacity = (HEAL_SHARE * self.healthy).max(settings.budget_min);
            self.start_tracking(capacity, PROBE_RAMP);
            self.saturation = None;
        }
    }

    pub(super) fn ceiling_in_force(&self, settings: &Settings, now_s: f64) -> Option<f64> {
        let ceiling = self.ceiling?;
        (now_s - ceiling.at_s < settings.ceiling_ttl_s).then_some(ceiling.rate)
    }
}
