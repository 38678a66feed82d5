//! What an operator may set about the controllers of one backend. The constants that nobody needs
//! to touch stand beside the code they belong to.
use serde::{Deserialize, Serialize};

/// Which controller is in charge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Law {
    /// The literal rule alone: one factor on all limits, moved by the two response-time thresholds.
    Threshold,
    /// The literal rule, and the budget that the backend has proven it can serve.
    #[default]
    Budget,
}

/// Settings of one backend's controllers. Times are in seconds, rates in requests per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Which controller is in charge.
    pub law: Law,
    /// Average response time above which limits are reduced, `low_s` (exclusive) to 60.
    pub high_s: f64,
    /// Average response time below which limits are raised again, above 0.
    pub low_s: f64,
    /// Share of failed requests from which limits are reduced, above 0, at most `error_trip`.
    pub error_high: f64,
    /// Share of failed requests that opens the circuit when load does not explain it, at most 1.
    pub error_trip: f64,
    /// Smallest factor, 0.001..=1. Default: 0.25, and 0.05 where the law is `threshold`.
    pub floor: Option<f64>,
    /// How fast the factor recovers, per second, 0.001..=1.
    pub rise_per_s: f64,
    /// How long the factor is held when the health signal is gone, 0..=86400.
    pub stale_hold_s: f64,
    /// Response time the budget aims at in overload, as a share of `low_s`, 0.3..=1.
    pub aim: f64,
    /// How long a proven capacity is remembered, 0..=86400.
    pub ceiling_ttl_s: f64,
    /// The operator's guess of the capacity, until the backend has proven one.
    pub capacity_hint: Option<f64>,
    /// Budget of a backend never seen before; it is raised from there. Default: no limit.
    pub cold_start_budget: Option<f64>,
    /// The budget never falls below this, 0.1 or more.
    pub budget_min: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            law: Law::default(),
            high_s: 0.5,
            low_s: 0.2,
            error_high: 0.05,
            error_trip: 0.5,
            floor: None,
            rise_per_s: 0.05,
            stale_hold_s: 60.0,
            aim: 0.8,
            ceiling_ttl_s: 600.0,
            capacity_hint: None,
            cold_start_budget: None,
            budget_min: 10.0,
        }
    }
}

/// A setting outside its bounds.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("`{name}` is {value}; it must be {bound}")]
pub struct SettingError {
    /// Which setting.
    pub name: &'static str,
    /// What it is.
    pub value: f64,
    /// What it may be.
    pub bound: String,
}

impl Settings {
    /// Returns the smallest factor in force.
    pub fn floor(&self) -> f64 {
        self.floor.unwrap_or(match self.law {
            // With limits oversubscribed many times, a quarter of them protects nothing; under the
            // budget law the budget does that work.
            Law::Threshold => 0.05,
            Law::Budget => 0.25,
        })
    }

    /// Checks every bound.
    pub fn validate(&self) -> Result<(), SettingError> {
        let within = |name, value: f64, low: f64, high: f64| {
            if value >= low && value <= high {
                Ok(())
            } else {
                let bound = format!("between {low} and {high}");
                Err(SettingError { name, value, bound })
            }
        };
        within("low_s", self.low_s, 0.000_001, 60.0)?;
        within("high_s", self.high_s, 0.000_001, 60.0)?;
        if self.high_s <= self.low_s {
            return Err(SettingError {
                name: "high_s",
                value: self.high_s,
                bound: format!("above `low_s`, which is {}", self.low_s),
            });
        }
        within("error_trip", self.error_trip, 0.001, 1.0)?;
        within("error_high", self.error_high, 0.001, self.error_trip)?;
        within("floor", self.floor(), 0.001, 1.0)?;
        within("rise_per_s", self.rise_per_s, 0.001, 1.0)?;
        within("stale_hold_s", self.stale_hold_s, 0.0, 86_400.0)?;
        within("aim", self.aim, 0.3, 1.0)?;
        within("ceiling_ttl_s", self.ceiling_ttl_s, 0.0, 86_400.0)?;
        within("budget_min", self.budget_min, 0.1, 1e12)?;
        for (name, rate) in [
            ("capacity_hint", self.capacity_hint),
            ("cold_start_budget", self.cold_start_budget),
        ] {
            if let Some(rate) = rate {
                within(name, rate, self.budget_min, 1e12)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_bounds_are_named() {
        assert_eq!(Settings::default().validate(), Ok(()));
        let crossed = Settings {
            high_s: 0.1,
            ..Settings::default()
        };
        assert_eq!(
            crossed.validate().unwrap_err().to_string(),
            "`high_s` is 0.1; it must be above `low_s`, which is 0.2"
        );
        let nan = Settings {
            floor: Some(f64::NAN),
            ..Settings::default()
        };
        assert_eq!(
            nan.validate().unwrap_err().to_string(),
            "`floor` is NaN; it must be between 0.001 and 1"
        );
    }
}
