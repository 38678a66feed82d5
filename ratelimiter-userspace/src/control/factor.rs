//! The factor: the literal rule of the requirements, one number on all limits of a backend.
//!
//! Above the high threshold (or with too many errors) all limits are reduced in proportion, below
//! the low threshold they are raised gradually up to what is configured, between the two nothing
//! happens. The rule acts on every merged report as it is, before any filter, so that a tester who
//! dictates reports sees exactly this.
use serde::{Deserialize, Serialize};

use super::settings::Settings;

/// The deepest cut of one report.
pub const CUT_MOST: f64 = 0.7;
/// The gentlest cut of one report.
pub const CUT_LEAST: f64 = 0.95;

/// The adaptive scale on all limits of a backend, in `[floor, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Factor(f64);

impl Default for Factor {
    fn default() -> Self {
        Self(1.0)
    }
}

impl Factor {
    /// Returns the factor as a number in `(0, 1]`.
    pub fn get(self) -> f64 {
        self.0
    }

    /// Answers one merged report: average response time and share of errors of a period.
    ///
    /// Never below `floor`, never less than 0.7 of itself, never up by more than `rise_per_s`
    /// times the period; unchanged between the thresholds.
    #[must_use]
    pub fn after_report(self, settings: &Settings, rt_s: f64, errors: f64, period_s: f64) -> Self {
        if rt_s > settings.high_s || errors >= settings.error_high {
            let excess = settings.high_s / rt_s.max(settings.high_s);
            self.scaled(excess.clamp(CUT_MOST, CUT_LEAST), settings.floor())
        } else if rt_s < settings.low_s {
            self.raised(settings.rise_per_s * period_s)
        } else {
            self
        }
    }

    /// Answers a signal that has been gone for longer than the hold: back to what is configured.
    #[must_use]
    pub fn after_silence(self, settings: &Settings, elapsed_s: f64) -> Self {
        self.raised(settings.rise_per_s * elapsed_s)
    }

    fn scaled(self, scale: f64, floor: f64) -> Self {
        // A factor below a floor raised meanwhile climbs back by `raised`, not by a jump.
        Self((self.0 * scale).max(floor.min(self.0)))
    }

    fn raised(self, by: f64) -> Self {
        Self((self.0 + by.max(0.0)).min(1.0))
    }
}

/// Returns the factor of a segment that has a floor of its own.
pub fn of_segment(factor: f64, segment_floor: f64) -> f64 {
    factor.max(segment_floor).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(factor: Factor, rt_s: f64) -> Factor {
        factor.after_report(&Settings::default(), rt_s, 0.0, 1.0)
    }

    #[test]
    fn falls_in_proportion_above_the_high_threshold_down_to_the_floor() {
        let mut factor = Factor::default();
        let mut seen = Vec::new();
        for _ in 0..5 {
            factor = after(factor, 0.8);
            seen.push((factor.get() * 100.0).round() / 100.0);
        }
        assert_eq!(seen, [0.7, 0.49, 0.34, 0.25, 0.25]);
        assert!((after(Factor::default(), 0.6).get() - 0.5 / 0.6).abs() < 1e-12);
    }

    #[test]
    fn holds_between_the_thresholds_ends_included() {
        let low = after(Factor::default(), 0.8);
        for rt_s in [0.2, 0.3, 0.5] {
            assert_eq!(after(low, rt_s), low);
        }
    }

    #[test]
    fn climbs_back_in_fifteen_seconds_and_never_above_one() {
        let mut factor = (0..4).fold(Factor::default(), |factor, _| after(factor, 0.8));
        for _ in 0..14 {
            factor = after(factor, 0.1);
            assert!(factor.get() < 1.0);
        }
        for _ in 0..3 {
            factor = after(factor, 0.1);
        }
        assert_eq!(factor, Factor::default());
    }

    #[test]
    fn errors_cut_gently_even_when_responses_are_fast() {
        let cut = Factor::default().after_report(&Settings::default(), 0.01, 0.05, 1.0);
        assert!((cut.get() - CUT_LEAST).abs() < 1e-12);
    }

    #[test]
    fn a_segment_keeps_its_floor() {
        assert!((of_segment(0.25, 0.6) - 0.6).abs() < f64::EPSILON);
        assert!((of_segment(0.8, 0.6) - 0.8).abs() < f64::EPSILON);
    }
}
