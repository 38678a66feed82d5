//! How old the health signal is, and from when it counts as gone.
use serde::{Deserialize, Serialize};

use super::report::PERIOD_MAX_S;

/// A signal is stale after this many periods without a fresh report...
const STALE_PERIODS: f64 = 3.0;
/// ...but not before this time, in seconds.
const STALE_LEAST_S: f64 = 3.0;

/// What is known about the health of a backend, right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// No report has ever come.
    Absent,
    /// Reports come as expected.
    Fresh,
    /// The monitor has failed: no fresh report for three periods, at least three seconds.
    Stale,
}

/// When the last fresh report came, and how often they come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Freshness {
    last: Option<Last>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Last {
    at_s: f64,
    period_s: f64,
}

impl Freshness {
    /// Notes a fresh report: one that was neither refused nor a repetition.
    pub fn renew(&mut self, now_s: f64, period_s: f64) {
        self.last = Some(Last {
            at_s: now_s,
            period_s,
        });
    }

    /// The same on a clock that reads `by_s` more.
    pub(super) fn shift(&mut self, by_s: f64) {
        if let Some(last) = &mut self.last {
            last.at_s += by_s;
        }
    }

    /// Whether its report is of no later than `now_s`, and its period one that a report may have.
    pub(super) fn is_past(&self, now_s: f64) -> bool {
        self.last
            .is_none_or(|last| last.at_s <= now_s && (0.0..=PERIOD_MAX_S).contains(&last.period_s))
    }

    /// Returns seconds since the last fresh report, if there was one.
    pub fn age_s(&self, now_s: f64) -> Option<f64> {
        self.last.map(|last| (now_s - last.at_s).max(0.0))
    }

    /// Returns seconds since the signal became stale, if it is.
    pub fn stale_for_s(&self, now_s: f64) -> Option<f64> {
        let last = self.last?;
        let bound_s = (STALE_PERIODS * last.period_s).max(STALE_LEAST_S);
        let over_s = now_s - last.at_s - bound_s;
        (over_s > 0.0).then_some(over_s)
    }

    /// Returns whether the signal is absent, fresh or stale.
    pub fn signal(&self, now_s: f64) -> Signal {
        match (self.last, self.stale_for_s(now_s)) {
            (None, _) => Signal::Absent,
            (Some(_), None) => Signal::Fresh,
            (Some(_), Some(_)) => Signal::Stale,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_stale_after_three_periods_and_three_seconds() {
        let mut freshness = Freshness::default();
        assert_eq!(freshness.signal(100.0), Signal::Absent);
        freshness.renew(100.0, 0.2);
        assert_eq!(freshness.signal(103.0), Signal::Fresh);
        assert_eq!(freshness.signal(103.1), Signal::Stale);
        freshness.renew(200.0, 5.0);
        assert_eq!(freshness.signal(215.0), Signal::Fresh);
        assert_eq!(freshness.signal(215.1), Signal::Stale);
        assert_eq!(freshness.age_s(216.0), Some(16.0));
    }
}
