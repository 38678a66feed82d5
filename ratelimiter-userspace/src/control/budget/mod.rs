//! The budget: requests per second that the backend has proven it completes.
//!
//! The health loop moves the *capacity* (what was proven), report by report; between reports the
//! *budget* follows from it by what our own counters foretell. Levels turn the budget into limits
//! (`fairness`). Unlike a factor on oversubscribed limits, a budget acts with a gain of one.
//!
//! - [`filter`]: which reports are believed
//! - [`throughput`]: completions rebuilt from admissions and response time
//! - [`guard`]: signals that do not answer to load
//! - `modes`: open, track, trip
//! - `spend`: the budget of this instant

pub mod filter;
pub mod guard;
mod modes;
mod spend;
pub mod throughput;

use serde::{Deserialize, Serialize};

use self::filter::{Context, Filter, Sample};
use self::guard::Guard;
use self::throughput::{Reading, Throughput, middle_s};
use super::counters::{Admissions, Refused};
use super::settings::Settings;

pub use self::spend::{Spending, alone};

/// The budget aims at this multiple of the response time in calm, if that is more than `aim`.
const CALM_MULTIPLE: f64 = 1.5;
/// The aim is raised to this multiple of a latency that is known not to be ours.
const FOREIGN_MULTIPLE: f64 = 1.5;
/// Above this multiple of the aim the backend is saturated.
const SATURATED: f64 = 1.25;
/// A rise of admissions by this over three seconds explains a rise of latency.
const RISE: f64 = 1.2;

/// Largest rate that is believed of another host, per second.
const RATE_MAX: f64 = 1e12;

/// What the budget does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Not throttling, but for a ceiling that was proven not long ago.
    #[default]
    Open,
    /// Following the capacity.
    Track,
    /// The circuit is open: only a trickle passes, and probes.
    Trip,
}

impl Mode {
    /// Returns the name as it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Track => "track",
            Self::Trip => "trip",
        }
    }
}

/// A capacity worth remembering.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// Requests per second.
    pub rate: f64,
    /// When it was last seen, in seconds.
    pub at_s: f64,
}

/// State of the budget of one backend. Rates are in requests per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    mode: Mode,
    /// What the backend is proven to complete; 0 while never throttled.
    capacity: f64,
    /// How far above the capacity the budget probes.
    probe: f64,
    /// What the backend completed lately without trouble.
    healthy: f64,
    /// The last proven capacity, or the operator's hint.
    ceiling: Option<Ceiling>,
    /// Capacity at the last saturation: around it, probe gently.
    saturation: Option<Ceiling>,
    saturated: bool,
    /// Started with a small budget and never saturated since.
    cold: bool,
    /// Since when the budget has not been binding, in seconds.
    calm_since_s: Option<f64>,
    /// Reports in a row with mostly errors that load does not explain, and with few errors.
    bad_run: u32,
    good_run: u32,
    /// Response time in calm, in seconds.
    calm_rt_s: Option<f64>,
    /// The last response time that was believed, in seconds.
    rt_s: f64,
    period_s: f64,
    reports: u64,
    /// The budget of the last step, if there was one.
    spending: Option<f64>,
    filter: Filter,
    throughput: Throughput,
    guard: Guard,
    refused: Refused,
}

/// What a step sees besides reports.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// What the fleet has admitted.
    pub admissions: &'a Admissions<'a>,
    /// What clients want, each at most its limit, requests per second.
    pub demand: f64,
    /// Now, in seconds.
    pub now_s: f64,
}

/// A judged sample, with what was derived of it.
struct Evidence {
    sample: Sample,
    rt_s: f64,
    /// Throughput the sample shows, unsmoothed.
    rate: f64,
    /// Admitted per second in the period, and the part that was not refused.
    admitted: f64,
    accepted: f64,
    /// Response time the budget aims at, in seconds.
    aim_s: f64,
    /// Too many errors, and they are not known to be foreign.
    bad_errors: bool,
    /// Response time our own counters foretell for now, in seconds.
    forecast_s: f64,
}

impl Budget {
    /// Starts without any history.
    pub fn new(settings: &Settings, now_s: f64) -> Self {
        let mut budget = Self {
            ceiling: settings
                .capacity_hint
                .map(|rate| Ceiling { rate, at_s: now_s }),
            ..Self::default()
        };
        if let Some(rate) = settings.cold_start_budget {
            budget.mode = Mode::Track;
            budget.capacity = rate;
            budget.probe = modes::PROBE_LEAST;
            budget.cold = true;
        }
        budget
    }

    /// Whether its rates are rates.
    pub(super) fn is_sound(&self) -> bool {
        let rate = |rate: f64| (0.0..=RATE_MAX).contains(&rate);
        let ceiling = |ceiling: &Option<Ceiling>| ceiling.is_none_or(|c| rate(c.rate));
        rate(self.capacity)
            && rate(self.healthy)
            && (0.0..=1.0).contains(&self.probe)
            && ceiling(&self.ceiling)
            && ceiling(&self.saturation)
            && self.spending.is_none_or(rate)
    }

    /// The same on a clock that reads `by_s` more.
    pub(super) fn shift(&mut self, by_s: f64) {
        for ceiling in self.ceiling.iter_mut().chain(&mut self.saturation) {
            ceiling.at_s += by_s;
        }
        if let Some(since_s) = &mut self.calm_since_s {
            *since_s += by_s;
        }
        self.filter.shift(by_s);
        self.throughput.shift(by_s);
        self.guard.shift(by_s);
        self.refused.shift(by_s);
    }

    /// Returns what the budget does.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns the proven capacity, if the backend was ever throttled.
    pub fn capacity(&self) -> Option<f64> {
        (self.capacity > 0.0).then_some(self.capacity)
    }

    /// Returns the last response time that was believed, in seconds.
    pub fn rt_s(&self) -> f64 {
        self.rt_s
    }

    /// Returns the latency that was found not to answer to load, in seconds.
    pub fn foreign_rt_s(&self, now_s: f64) -> Option<f64> {
        self.guard.foreign_rt_s(now_s)
    }

    /// Returns the share of errors that was found not to answer to load.
    pub fn foreign_errors(&self, now_s: f64) -> Option<f64> {
        self.guard.foreign_errors(now_s)
    }

    /// Takes one merged report.
    pub fn after_report(&mut self, settings: &Settings, sample: Sample, view: &View<'_>) {
        self.reports += 1;
        let admitted = view
            .admissions
            .between(sample.end_s - sample.period_s, sample.end_s);
        let alarming = sample.rt_s > settings.high_s || sample.errors >= settings.error_high;
        let urgent = (alarming && !self.saturated) || self.is_ramping() || self.cold;
        let Some(sample) = self.filter.gather(sample, admitted, urgent) else {
            return;
        };
        let evidence = self.weigh(settings, sample, view);
        self.advance(settings, &evidence, view);
    }

    /// Far below what was proven before: nothing is gathered, so that each report is a step up.
    fn is_ramping(&self) -> bool {
        match self.mode {
            Mode::Open => false,
            Mode::Track => self.capacity < 0.5 * self.healthy,
            Mode::Trip => true,
        }
    }

    fn weigh(&mut self, settings: &Settings, sample: Sample, view: &View<'_>) -> Evidence {
        let now_s = view.now_s;
        self.period_s = sample.period_s;
        let rise_from = view.admissions.between(now_s - 4.0, now_s - 3.0).max(1.0);
        let risen = view.admissions.between(now_s - 1.0, now_s) > RISE * rise_from;
        let explained = sample.errors >= settings.error_high || risen;
        let mid_s = middle_s(&sample);
        let context = Context {
            low_s: settings.low_s,
            forecast_s: self
                .throughput
                .forecast_s(self.taken_in(view, mid_s), mid_s),
            explained,
            saturated: self.saturated,
            last_s: self.rt_s,
        };
        let judged = self.filter.judge(sample.rt_s, &context);
        self.rt_s = judged.rt_s;
        let admitted = self.count_refused(settings, &sample, view);
        let mut throughput = std::mem::take(&mut self.throughput);
        let reading = Reading {
            sample,
            rt_s: judged.rt_s,
            held_back: judged.held_back,
            explained,
            noisy: self.filter.is_noisy(),
            taken_in: &|at_s| self.taken_in(view, at_s),
        };
        let rate = throughput.after_period(&reading);
        self.throughput = throughput;
        let foreign = self.guard.foreign_errors(now_s);
        let error_high = settings.error_high.max(1.3 * foreign.unwrap_or(0.0));
        Evidence {
            sample,
            rt_s: judged.rt_s,
            rate,
            admitted,
            accepted: admitted * (1.0 - sample.errors),
            aim_s: self.aim_s(settings, now_s),
            bad_errors: sample.errors >= error_high && sample.served,
            forecast_s: self
                .throughput
                .forecast_s(self.taken_in_known(view, now_s), now_s),
        }
    }

    /// Notes refused requests, which never took service; returns admissions per second.
    fn count_refused(&mut self, settings: &Settings, sample: &Sample, view: &View<'_>) -> f64 {
        let start_s = sample.end_s - sample.period_s;
        let count = view.admissions.between(start_s, sample.end_s);
        let admitted = count / sample.period_s;
        let accepted = admitted * (1.0 - sample.errors);
        let known = self.capacity.max(self.healthy).max(self.throughput.rate());
        let served = if known > settings.budget_min {
            known.min(accepted)
        } else {
            accepted
        };
        let refused = if sample.errors < 0.999 {
            sample.errors / (1.0 - sample.errors) * served * sample.period_s
        } else {
            count
        };
        self.refused.push(start_s, sample.end_s, refused.min(count));
        admitted
    }

    /// Returns the requests that took service, cumulative.
    fn taken_in(&self, view: &View<'_>, at_s: f64) -> f64 {
        if self.guard.foreign_errors(view.now_s).is_some() {
            // Errors that do not come from load did take service.
            return view.admissions.at(at_s);
        }
        self.taken_in_known(view, at_s)
    }

    fn taken_in_known(&self, view: &View<'_>, at_s: f64) -> f64 {
        view.admissions.at(at_s) - self.refused.at(at_s)
    }

    /// Returns the response time the budget aims at in overload, in seconds.
    fn aim_s(&self, settings: &Settings, now_s: f64) -> f64 {
        let calm_s = CALM_MULTIPLE * self.calm_rt_s.unwrap_or(0.0);
        let foreign_s = FOREIGN_MULTIPLE * self.guard.foreign_rt_s(now_s).unwrap_or(0.0);
        (settings.aim * settings.low_s).max(calm_s).max(foreign_s)
    }
}
