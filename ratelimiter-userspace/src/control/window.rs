//! Adaptive windows: how much burst is forgiven, never how much is admitted in the long run.
//!
//! A window `W` and a rate `r` are a bucket of depth `r * W`, or `r * W` requests per sliding `W`.
//! `W = W0 * scale * patience`: the scale falls with the load of the host, the patience grows for
//! clients that stay well below their limit. In any interval `T` a client is admitted at most
//! `r * (T + W_max)`.
use serde::{Deserialize, Serialize};

/// Patience is counted in eighths: 8 is the configured window.
pub const PATIENCE_ONE: u8 = 8;
/// Load from which the window shrinks, and at which it is smallest.
const LOAD_FROM: f64 = 0.75;
const LOAD_FULL: f64 = 0.95;
/// Share of a new load reading that is believed.
const LOAD_SMOOTHING: f64 = 0.3;
/// Backlash: the scale follows at this distance, so that a turn takes a swing of twice as much.
const BACKLASH: f64 = 0.06;
/// A client is well below its limit under the first, at its limit above the second.
const USE_LOW: f64 = 0.5;
const USE_HIGH: f64 = 0.9;

/// Settings of adaptive windows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Largest fall of the scale in one period, 0.01..=0.25; it rises by half of that.
    pub step: f64,
    /// Seconds between two changes, 1..=300.
    pub period_s: f64,
    /// Smallest window, as a share of the configured one, 0.1..=1.
    pub min: f64,
    /// Largest window, as a multiple of the configured one, 1..=8.
    pub max: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            step: 0.10,
            period_s: 5.0,
            min: 0.25,
            max: 4.0,
        }
    }
}

impl Settings {
    /// Checks every bound.
    pub fn validate(&self) -> Result<(), super::settings::SettingError> {
        for (name, value, low, high) in [
            ("window.step", self.step, 0.01, 0.25),
            ("window.period", self.period_s, 1.0, 300.0),
            ("window.min", self.min, 0.1, 1.0),
            ("window.max", self.max, 1.0, 8.0),
        ] {
            if !(value >= low && value <= high) {
                let bound = format!("between {low} and {high}");
                return Err(super::settings::SettingError { name, value, bound });
            }
        }
        Ok(())
    }

    /// Returns the largest patience, in eighths.
    pub fn patience_max(&self) -> u8 {
        (self.max * f64::from(PATIENCE_ONE)) as u8
    }

    /// Returns the window in force for a configured window, in the same unit.
    pub fn window(&self, configured: f64, scale: Scale, patience: Patience) -> f64 {
        let relative = scale.get() * f64::from(patience.eighths()) / f64::from(PATIENCE_ONE);
        configured * relative.clamp(self.min, self.max)
    }
}

/// The load part of the window: one number per host (or fleet).
///
/// A static map of the smoothed load with backlash and a bounded slew. It has no integrator and so
/// no cycle of its own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    scale: f64,
    load: Option<f64>,
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            scale: 1.0,
            load: None,
        }
    }
}

impl Scale {
    /// Returns the scale, `min..=1`.
    pub fn get(self) -> f64 {
        self.scale
    }

    /// Takes the mean load (0..=1, the larger of host and backend) of the last period. Call once
    /// per period. A load that is no number changes nothing.
    #[must_use]
    pub fn after_period(self, settings: &Settings, load: f64) -> Self {
        if !load.is_finite() {
            return self;
        }
        let load = load.clamp(0.0, 1.0);
        let before = self.load.unwrap_or(load);
        let load = before + LOAD_SMOOTHING * (load - before);
        let excess = ((load - LOAD_FROM) / (LOAD_FULL - LOAD_FROM)).clamp(0.0, 1.0);
        // The target goes beyond both ends by the backlash, so that the scale reaches them.
        let target = 1.0 + BACKLASH - (1.0 - settings.min + 2.0 * BACKLASH) * excess;
        let near = self.scale.clamp(target - BACKLASH, target + BACKLASH);
        let step = (near - self.scale).clamp(-settings.step, settings.step / 2.0);
        let scale = self.scale + step;
        Self {
            scale: scale.clamp(settings.min, 1.0),
            load: Some(load),
        }
    }
}

/// The client's part of the window, kept beside its bucket: 8 eighths to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Patience(u8);

impl Default for Patience {
    fn default() -> Self {
        Self(PATIENCE_ONE)
    }
}

impl Patience {
    /// Returns the patience in eighths.
    pub fn eighths(self) -> u8 {
        self.0
    }

    /// Reads it back from a bucket; whatever is out of bounds is brought into them.
    pub fn from_eighths(settings: &Settings, eighths: u8) -> Self {
        Self(eighths.clamp(PATIENCE_ONE, settings.patience_max()))
    }

    /// Takes what the client offered since the last change, when it sends and a period has passed.
    #[must_use]
    pub fn after_period(
        self,
        settings: &Settings,
        offered: f64,
        rate: f64,
        elapsed_s: f64,
    ) -> Self {
        let possible = rate * elapsed_s;
        let eighths = if offered < USE_LOW * possible {
            self.0.saturating_add(1)
        } else if offered > USE_HIGH * possible {
            self.0.saturating_sub(1)
        } else {
            self.0
        };
        Self::from_eighths(settings, eighths)
    }
}

/// Converts the previous count of a sliding window when its length changes: it stands for a rate.
pub fn rescale_previous(count: f64, old_window: f64, new_window: f64) -> f64 {
    if old_window > 0.0 {
        count * new_window / old_window
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_times_the_window_takes_two_minutes_of_good_behaviour() {
        let settings = Settings::default();
        let mut patience = Patience::default();
        let mut periods = 0;
        while patience.eighths() < 32 {
            patience = patience.after_period(&settings, 10.0, 20.0, 5.0);
            periods += 1;
        }
        assert_eq!(periods, 24);
        assert_eq!(patience.after_period(&settings, 10.0, 20.0, 5.0), patience);
        let greedy = patience.after_period(&settings, 100.0, 20.0, 5.0);
        assert_eq!(greedy.eighths(), 31);
        assert_eq!(patience.after_period(&settings, 70.0, 20.0, 5.0), patience);
    }

    #[test]
    fn the_window_stays_within_its_bounds() {
        let settings = Settings::default();
        let mut scale = Scale::default();
        for _ in 0..100 {
            scale = scale.after_period(&settings, 1.0);
        }
        assert!((settings.window(2.0, scale, Patience::default()) - 0.5).abs() < 0.13);
        assert!(settings.window(2.0, scale, Patience::default()) >= 0.5);
        let patient = Patience::from_eighths(&settings, 255);
        assert!(settings.window(2.0, Scale::default(), patient) <= 8.0);
        assert_eq!(scale.after_period(&settings, f64::NAN), scale);
    }

    #[test]
    fn bounds_are_checked() {
        assert!(Settings::default().validate().is_ok());
        let wild = Settings {
            step: 0.5,
            ..Settings::default()
        };
        assert_eq!(
            wild.validate().unwrap_err().to_string(),
            "`window.step` is 0.5; it must be between 0.01 and 0.25"
        );
    }

    #[test]
    fn the_previous_count_keeps_its_rate() {
        assert!((rescale_previous(40.0, 2.0, 0.5) - 10.0).abs() < 1e-12);
        assert!(rescale_previous(40.0, 0.0, 0.5).abs() < 1e-12);
    }
}
