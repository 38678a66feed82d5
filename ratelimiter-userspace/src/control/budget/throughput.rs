//! How much the backend completes, rebuilt from our own admissions and the average response time.
//!
//! What completed at `t` was admitted at `t - R(t)`. So `N(t - R)` is the number completed, its
//! slope the throughput, and `N(now)` minus it the number in flight. Nothing but the response time
//! is needed of the backend, and traffic that does not pass us is accounted for by itself.
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::filter::Sample;

/// Marks over which the slope is taken, and how many for a noisy monitor.
const MARKS: usize = 2;
const MARKS_NOISY: usize = 4;
/// Share of a new slope that is believed.
const SMOOTHING: f64 = 0.6;
/// Response times are foretold up to this many seconds.
const FORESIGHT_S: f64 = 5.0;

/// State of the estimate. Rates are in requests per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// (middle of a period, completed by then), oldest first.
    marks: VecDeque<(f64, f64)>,
    /// Middle of the last period, in seconds.
    mid_s: f64,
    /// Completed by then.
    done: f64,
    /// The newest slope, smoothed.
    rate: f64,
    /// The last response time as reported, in seconds.
    last_raw_s: f64,
}

/// What a period looked like when its completions are counted.
pub(super) struct Reading<'a> {
    pub(super) sample: Sample,
    /// Response time after judgement, in seconds.
    pub(super) rt_s: f64,
    pub(super) held_back: bool,
    /// Admissions have risen by a fifth, or errors have appeared.
    pub(super) explained: bool,
    pub(super) noisy: bool,
    /// Requests that took service, cumulative, as a function of time.
    pub(super) taken_in: &'a dyn Fn(f64) -> f64,
}

impl Throughput {
    /// The same on a clock that reads `by_s` more.
    pub(super) fn shift(&mut self, by_s: f64) {
        for mark in &mut self.marks {
            mark.0 += by_s;
        }
        self.mid_s += by_s;
    }

    /// Takes a period; returns the throughput it shows, unsmoothed.
    pub(super) fn after_period(&mut self, reading: &Reading<'_>) -> f64 {
        let sample = &reading.sample;
        let mid_s = middle_s(sample);
        let (done, rate) = if reading.held_back {
            (self.done + self.rate * (mid_s - self.mid_s), self.rate)
        } else {
            let done = (reading.taken_in)(mid_s - reading.rt_s).max(self.done);
            let rate = match self.marks.front() {
                Some((from_s, from)) if mid_s > *from_s => (done - from) / (mid_s - from_s),
                _ => self.rate,
            };
            (done, rate.max(0.0))
        };
        self.marks.push_back((mid_s, done));
        // After a jump only the newest interval counts.
        let jumped = (sample.rt_s - self.last_raw_s).abs() > 0.5 * sample.period_s;
        let keep = if reading.explained || jumped {
            1
        } else if reading.noisy {
            MARKS_NOISY
        } else {
            MARKS
        };
        while self.marks.len() > keep {
            self.marks.pop_front();
        }
        self.last_raw_s = sample.rt_s;
        self.mid_s = mid_s;
        self.done = done;
        self.rate = if self.rate > 0.0 {
            self.rate + SMOOTHING * (rate - self.rate)
        } else {
            rate
        };
        rate
    }

    /// Returns the smoothed throughput.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// Returns how many are in the backend at a time if it completes `rate` since the last period.
    pub(super) fn in_flight(&self, taken_in: f64, at_s: f64, rate: f64) -> f64 {
        taken_in - self.done - rate * (at_s - self.mid_s)
    }

    /// Returns the response time our own counters foretell for a time, in seconds.
    pub(super) fn forecast_s(&self, taken_in: f64, at_s: f64) -> f64 {
        if self.rate > 0.0 {
            self.in_flight(taken_in, at_s, self.rate) / self.rate
        } else {
            0.0
        }
    }
}

/// Returns the middle of a sample's period, in seconds.
pub(super) fn middle_s(sample: &Sample) -> f64 {
    sample.end_s - sample.period_s / 2.0
}

/// Returns the response time of a request admitted into `in_flight` others, in seconds.
pub(super) fn wait_s(in_flight: f64, rate: f64) -> f64 {
    if rate > 0.0 {
        (in_flight / rate).clamp(0.0, FORESIGHT_S)
    } else {
        0.0
    }
}
