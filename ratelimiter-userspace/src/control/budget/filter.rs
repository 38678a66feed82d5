//! What is believed of merged reports: small ones are gathered, a single wild one is held back, and
//! a noisy monitor is smoothed.
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Reports are gathered until they stand for this many requests...
const REQUESTS_MIN: f64 = 200.0;
/// ...or for this long, in seconds.
const GATHER_MAX_S: f64 = 2.0;
/// Response times remembered.
const RECENT: usize = 5;
/// A response time is wild above this many times the median of the recent ones...
const WILD_MEDIANS: f64 = 2.0;
/// ...and this many times what our own counters foretell.
const WILD_FORECASTS: f64 = 1.5;
/// How fast the noise estimate follows.
const NOISE_SMOOTHING: f64 = 0.1;
/// From this relative wobble between calm reports a monitor counts as noisy.
pub(super) const NOISY: f64 = 0.2;

/// One period of a backend, as the budget sees it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// End of the period, in seconds.
    pub end_s: f64,
    /// Length of the period, in seconds.
    pub period_s: f64,
    /// Average response time, in seconds.
    pub rt_s: f64,
    /// Share of failed requests.
    pub errors: f64,
    /// Whether anything was served at all.
    pub served: bool,
}

/// What else is known when a sample is judged.
pub(super) struct Context {
    /// Response time below which nothing is wild, in seconds.
    pub(super) low_s: f64,
    /// Response time our own counters foretell for the sample's period, in seconds.
    pub(super) forecast_s: f64,
    /// Whether errors or a rise of admissions explain a high response time.
    pub(super) explained: bool,
    /// Whether the backend is saturated, so that wobble is no noise.
    pub(super) saturated: bool,
    /// The last response time that was believed, in seconds.
    pub(super) last_s: f64,
}

/// A response time after judgement.
pub(super) struct Judged {
    pub(super) rt_s: f64,
    /// The sample was not believed; the next one like it will be.
    pub(super) held_back: bool,
}

/// State of the filter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    gathered: Option<Sample>,
    requests: f64,
    recent: VecDeque<f64>,
    held_back: bool,
    /// Relative wobble from report to report when nothing happens.
    noise: f64,
}

impl Filter {
    /// The same on a clock that reads `by_s` more.
    pub(super) fn shift(&mut self, by_s: f64) {
        if let Some(sample) = &mut self.gathered {
            sample.end_s += by_s;
        }
    }

    /// Adds a sample that stands for `requests`; returns the average once it stands for enough,
    /// or at once if `urgent`.
    pub(super) fn gather(&mut self, new: Sample, requests: f64, urgent: bool) -> Option<Sample> {
        let weight = requests.max(1.0);
        let mut sample = new;
        if let Some(old) = self.gathered.take() {
            let whole = self.requests + weight;
            let mean = |old: f64, new: f64| (old * self.requests + new * weight) / whole;
            sample.rt_s = mean(old.rt_s, new.rt_s);
            sample.errors = mean(old.errors, new.errors);
            sample.period_s += old.period_s;
            sample.served |= old.served;
        }
        self.requests += weight;
        if self.requests < REQUESTS_MIN && sample.period_s < GATHER_MAX_S && !urgent {
            self.gathered = Some(sample);
            return None;
        }
        self.requests = 0.0;
        Some(sample)
    }

    /// Decides what response time to believe.
    pub(super) fn judge(&mut self, raw_s: f64, context: &Context) -> Judged {
        let held_back = self.is_wild(raw_s, context);
        let newest = self.recent.back().copied();
        if let Some(newest) = newest
            && !context.explained
            && !held_back
            && !context.saturated
            && newest > 0.0
        {
            let wobble = (raw_s / newest - 1.0).abs().min(1.0);
            self.noise += NOISE_SMOOTHING * (wobble - self.noise);
        }
        let rt_s = if held_back {
            context.last_s
        } else if self.is_noisy() && !context.explained {
            self.median_of_three(raw_s)
        } else {
            raw_s
        };
        self.held_back = held_back;
        self.recent.push_back(raw_s);
        while self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        Judged { rt_s, held_back }
    }

    /// A sample far above everything, without a cause, needs a second witness.
    fn is_wild(&self, raw_s: f64, context: &Context) -> bool {
        if self.recent.len() < 3 || context.explained || self.held_back {
            return false;
        }
        let mut sorted: Vec<f64> = self.recent.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(raw_s);
        raw_s > WILD_MEDIANS * median
            && raw_s > context.low_s
            && raw_s > WILD_FORECASTS * context.forecast_s
    }

    /// Two moves the same way are a trend and beat the median.
    fn median_of_three(&self, raw_s: f64) -> f64 {
        let mut newest = self.recent.iter().rev();
        let (Some(&a), Some(&b)) = (newest.next(), newest.next()) else {
            return raw_s;
        };
        if (raw_s - a) * (a - b) > 0.0 {
            raw_s
        } else {
            raw_s.clamp(a.min(b), a.max(b))
        }
    }

    /// Returns the relative wobble of the monitor.
    pub(super) fn noise(&self) -> f64 {
        self.noise
    }

    pub(super) fn is_noisy(&self) -> bool {
        self.noise > NOISY
    }

    /// Returns the smallest and largest of the last three response times, raw, in seconds.
    pub(super) fn last_three(&self) -> (f64, f64) {
        let three = self.recent.iter().rev().take(3);
        three.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), rt_s| {
            (low.min(*rt_s), high.max(*rt_s))
        })
    }
}
