//! Limits that follow health: reports in, factors out.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::adaptive::Counts;
use crate::control::settings::Law;

/// Response times of served requests over a period, in milliseconds. Refused requests count in
/// `error_ratio` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LatencyMs {
    /// The average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    /// The median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// The 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
}

/// Body of `POST /v1/health`: what one instance saw of a backend over a period.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthReport {
    /// The backend; `default` if absent.
    #[serde(default = "default_service")]
    #[schema(min_length = 1, max_length = 63, default = "default")]
    pub service: String,
    /// Who reports, 1 to 64 bytes; reports of one instance are told apart by `seq`.
    #[schema(min_length = 1, max_length = 64)]
    pub instance: String,
    /// Changes when the reporter is started anew and its `seq` begins again; at most 128 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(max_length = 128)]
    pub boot: String,
    /// Grows with each report of an instance; the same or an older one again changes nothing.
    pub seq: u64,
    /// Length of the period in seconds, 0.01 to 60; 1 if absent.
    #[serde(default = "one_second")]
    #[schema(default = 1.0, minimum = 0.01, maximum = 60)]
    pub window_s: f64,
    /// How long ago the period ended, in seconds; 0 if absent.
    #[serde(default)]
    #[schema(minimum = 0)]
    pub age_s: f64,
    /// Response times; may be absent where nothing was served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<LatencyMs>,
    /// Share of failed requests, 0 to 1.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1)]
    pub error_ratio: f64,
    /// Requests served in the period, if they are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Requests in the backend at the end of the period; shown, not acted upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
}

fn default_service() -> String {
    "default".to_owned()
}

const fn one_second() -> f64 {
    1.0
}

/// The answer to a report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthAnswer {
    /// The backend.
    pub service: String,
    /// Whether the report counts. One that was seen before does not, and that is no error.
    pub accepted: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The factor on all limits of the backend after the report, (0, 1].
    pub factor: f64,
}

/// Body of `POST /v1/adaptive:pause`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PauseRequest {
    /// The backend; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Factor to hold, 0.001 to 1; what is in force if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
}

/// Body of `POST /v1/adaptive:resume`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResumeRequest {
    /// The backend; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
}

/// What the limits of one segment are multiplied with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SegmentScale {
    /// Its name.
    pub segment: String,
    /// Its share in a shortage.
    pub weight: f64,
    /// The scale of its request limits, (0, 1].
    pub requests: f64,
    /// The scale of its packet limits, (0, 1].
    pub packets: f64,
    /// What each client of the segment's own limit may use per second, where the budget binds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<f64>,
    /// What its clients ask for, per second, each at most its limit.
    pub demand: f64,
}

/// One backend's controllers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendView {
    /// Its name.
    pub backend: String,
    /// Which controller is in charge.
    pub law: Law,
    /// What the budget counts.
    pub counts: Counts,
    /// The factor on all limits, (0, 1].
    pub factor: f64,
    /// What is admitted of what is asked for, (0, 1].
    pub overall: f64,
    /// What the budget does: `open`, `track` or `trip`.
    pub mode: String,
    /// Units per second for all clients together, where there is a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<f64>,
    /// What the backend has proven it completes, per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<f64>,
    /// What clients ask for, per second, each at most its limit.
    pub demand: f64,
    /// Units admitted per second, over the last second.
    pub admitted: f64,
    /// The last response time that was believed, in milliseconds.
    pub latency_ms: f64,
    /// Response time of a request admitted now, in milliseconds, where it can be foretold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_ms: Option<f64>,
    /// Requests in the backend, as last reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
    /// `absent`, `fresh` or `stale`.
    pub signal: String,
    /// Seconds since the last report that counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_age_s: Option<f64>,
    /// Reports that counted.
    pub reports: u64,
    /// Reports that did not: replayed, out of bounds, too many sources.
    pub refused: u64,
    /// Whether a person has paused the controllers.
    pub paused: bool,
    /// Why the last change was made.
    pub reason: String,
    /// Number of the last step.
    pub epoch: u64,
    /// Hosts that follow it together; 1 where no store is shared.
    #[serde(default)]
    pub hosts: u64,
    /// Whether the others are out of reach: this host goes by what it sees itself.
    #[serde(default)]
    pub apart: bool,
    /// Its segments.
    pub segments: Vec<SegmentScale>,
    /// Why the configured page cannot be read, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_problem: Option<String>,
}

/// How much burst is forgiven, by this host's load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WindowView {
    /// Whether bursts follow the load.
    pub enabled: bool,
    /// Share of its burst that every token bucket of requests has, (0, 1].
    pub scale: f64,
    /// Share of CPU time that was not idle, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Share of the last ten seconds in which some task waited for a CPU, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<f64>,
}

/// Everything that follows health and load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AdaptiveView {
    /// Backends whose limits follow their health, by name.
    pub backends: Vec<BackendView>,
    /// Bursts.
    pub window: WindowView,
}
