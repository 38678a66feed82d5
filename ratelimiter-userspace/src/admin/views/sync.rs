//! How it goes with the fleet.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How this host's configuration stands to the fleet's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConfigState {
    /// There is no fleet.
    #[default]
    Off,
    /// The store has not been looked at in the last 2 s.
    Unknown,
    /// It is the fleet's.
    InStep,
    /// Changes were made here that the store does not have.
    Ahead,
    /// The fleet's cannot be put in force here; `error` says why.
    Refused,
}

impl ConfigState {
    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Unknown => "unknown: the store was not reached lately",
            Self::InStep => "in step",
            Self::Ahead => "ahead of the fleet",
            Self::Refused => "refused",
        }
    }
}

/// The configuration that the fleet shares, and this host's. Counts are since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ConfigSyncView {
    /// How the two stand.
    pub state: ConfigState,
    /// The fleet's revision that is in force here; 0 before the first.
    pub revision: u64,
    /// Changes made here that the store does not have.
    pub ahead: u64,
    /// Seconds since the store was last looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looked_s: Option<f64>,
    /// Why the fleet's configuration is not in force here, or could not be given to the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Configurations taken from the store.
    pub followed: u64,
    /// Configurations given to the store.
    pub written: u64,
    /// Configurations that gave way to another with which they had nothing in common, here or in
    /// the store.
    pub lost: u64,
    /// Configurations of the fleet's that could not be put in force here.
    pub refused: u64,
}

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
    /// The configuration.
    #[serde(default)]
    pub config: ConfigSyncView,
}
