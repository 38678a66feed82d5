//! How it goes with the fleet.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The store that the fleet shares, and this host's part. Counts are since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SyncView {
    /// Whether `redis.url` is set.
    pub configured: bool,
    /// The URL, without the password.
    pub store: String,
    /// Whether calls go out to the store.
    pub connected: bool,
    /// This host limits by itself, because the store is away.
    pub alone: bool,
    /// Seconds since `connected` is as it is; 0 if it never changed.
    pub since_s: f64,
    /// Seconds since the store answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_s: Option<f64>,
    /// Why the last call or connection failed, if all is not well since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Hosts that are not forgotten.
    pub hosts_known: u32,
    /// Hosts that are there.
    pub hosts_live: u32,
    /// Clients whose units are exchanged.
    pub clients: u64,
    /// Checks that waited for the store.
    pub waited: u64,
    /// Checks that waited in vain.
    pub overdue: u64,
    /// Exchanges of requests that were answered.
    pub exchanges: u64,
    /// Exchanges of requests that were not.
    pub lost: u64,
    /// How often the store was told everything again.
    pub refills: u64,
    /// Tries to connect.
    pub tries: u64,
    /// Tries that succeeded.
    pub connections: u64,
    /// Scripts called.
    pub calls: u64,
    /// Entries in them.
    pub entries: u64,
    /// Calls without an answer in time.
    pub late: u64,
    /// Calls that failed otherwise.
    pub failed: u64,
    /// Keys whose state made no sense and was dropped.
    pub mended: u64,
    /// Amounts that were larger than they may be.
    pub clamped: u64,
    /// Seconds all answered calls took together.
    pub call_s: f64,
}
