//! Everything a dashboard shows at one moment, and the check API in a few figures.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::adaptive::AdaptiveView;
use super::source::SourceRow;
use super::status::{Readiness, Status};
use crate::config::Right;

/// A backend's circuit breaker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BreakerView {
    /// The backend.
    pub backend: String,
    /// `closed`, `open` or `half_open`.
    pub state: String,
}

/// How the check API does. Rates are over the last ten seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChecksView {
    /// Checks allowed since the agent started.
    pub allowed: u64,
    /// Checks denied since the agent started.
    pub denied: u64,
    /// Checks per second.
    pub per_s: f64,
    /// Of these, denied.
    pub denied_per_s: f64,
    /// 99 of 100 were answered within this time, in seconds, as far as buckets tell; absent where
    /// there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_s: Option<f64>,
    /// Clients whose usage is in memory.
    pub clients: u64,
    /// Clients whose usage fits into memory.
    pub clients_capacity: u64,
    /// Circuit breakers.
    pub breakers: Vec<BreakerView>,
}

/// Who looks at a stream: its first event, `caller`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CallerView {
    /// Name of the credential, or `local`.
    pub name: String,
    /// What it may do.
    pub rights: Vec<Right>,
}

/// Everything a dashboard shows at one moment: the event `snapshot` of `GET /v1/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// When it was taken, milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// What `/readyz` says.
    pub readiness: Readiness,
    /// The agent, the kernel, the fleet.
    pub status: Status,
    /// The check API.
    pub checks: ChecksView,
    /// What follows health and load.
    pub adaptive: AdaptiveView,
    /// The sources that send most.
    pub sources: Vec<SourceRow>,
    /// Number of sources that are known.
    pub sources_total: u64,
}
