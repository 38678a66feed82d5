//! Health reports: what is believed of them, and how many reporters become one voice.
//!
//! A [`Report`] is checked, then kept under its source; when a period is over the sources are
//! merged: with three or more by weighted median, so that one liar of ten moves little. Sequence
//! numbers are per source and boot, so a liar mutes nobody but itself.
//!
//! [`exposition`] reads reports off Prometheus pages.
pub mod exposition;
mod merger;

use serde::{Deserialize, Serialize};

pub use self::merger::{Merged, Merger};

/// Shortest and longest period of a report, in seconds.
const PERIOD_MIN_S: f64 = 0.01;
pub(crate) const PERIOD_MAX_S: f64 = 60.0;
/// Response times above this are refused, in seconds.
const RT_MAX_S: f64 = 3600.0;
/// A report is stale, and a source no longer expected, after this many periods...
const STALE_PERIODS: f64 = 3.0;
/// ...but a report not before this age, in seconds.
const STALE_LEAST_S: f64 = 3.0;
/// Sources remembered at a time.
const SOURCES_MAX: usize = 256;
/// Longest name of a source or boot, in bytes.
pub const NAME_MAX_BYTES: usize = 128;

/// One observation of a backend's health over a period, as a reporter sends it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Who reports; bound to the reporter's credential by whoever received it.
    pub source: String,
    /// Changes when the reporter restarts and its `seq` starts again.
    pub boot: String,
    /// Grows with each report of a boot. The same one again is no fresh signal.
    pub seq: u64,
    /// How long before its arrival the period ended, in seconds.
    pub age_s: f64,
    /// Length of the period, in seconds, 0.01..=60.
    pub period_s: f64,
    /// Average response time of served requests, in seconds. Refused ones count in `errors` only.
    pub rt_s: f64,
    /// Share of failed requests, 0..=1.
    pub errors: f64,
    /// Served requests, if the reporter counts them.
    pub count: Option<u64>,
}

/// Why a report has no effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// A number that is none, or out of bounds.
    #[error("`{field}` is {value}; it must be {bound}")]
    OutOfBounds {
        /// Which field.
        field: String,
        /// What it holds, as text, since it may be no number.
        value: String,
        /// What it may hold.
        bound: String,
    },
    /// Seen before, or older than what has been seen.
    #[error("`seq` is {seq}; it must be above {last}")]
    Replayed {
        /// The report's.
        seq: u64,
        /// The newest of its source and boot.
        last: u64,
    },
    /// From a boot that the source has left.
    #[error("`boot` is `{boot}`, which `{source_name}` has left")]
    FormerBoot {
        /// The report's boot.
        boot: String,
        /// The report's source.
        source_name: String,
    },
    /// More sources than are kept.
    #[error("{SOURCES_MAX} sources report already")]
    TooManySources,
}

impl Report {
    /// Checks every bound; what fails here has no effect on anything.
    pub fn validate(&self) -> Result<(), Refusal> {
        let refuse = |field: &str, value: String, bound: String| {
            let field = field.to_owned();
            Err(Refusal::OutOfBounds {
                field,
                value,
                bound,
            })
        };
        for (field, name) in [("source", &self.source), ("boot", &self.boot)] {
            if name.len() > NAME_MAX_BYTES {
                let bound = format!("at most {NAME_MAX_BYTES} bytes");
                return refuse(field, format!("{} bytes", name.len()), bound);
            }
        }
        let stale_s = (STALE_PERIODS * self.period_s).max(STALE_LEAST_S);
        for (field, value, low, high) in [
            ("period_s", self.period_s, PERIOD_MIN_S, PERIOD_MAX_S),
            ("age_s", self.age_s, 0.0, stale_s),
            ("rt_s", self.rt_s, 0.0, RT_MAX_S),
            ("errors", self.errors, 0.0, 1.0),
        ] {
            // Written so that NaN is refused.
            if !(value >= low && value <= high) {
                return refuse(
                    field,
                    value.to_string(),
                    format!("between {low} and {high}"),
                );
            }
        }
        Ok(())
    }
}
