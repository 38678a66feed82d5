//! Changes: what was done, what is on trial, what happened.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::store::Change;

/// An object with its tag (`ETag`): a hash of what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Tagged<T> {
    /// The object.
    pub value: T,
    /// Its tag, without quotes.
    pub tag: String,
}

/// A change that takes itself back unless it is confirmed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pending {
    /// Revision the change made.
    pub revision: u64,
    /// The object on trial, as a path: `clients/alice`.
    pub path: String,
    /// Who made it.
    pub by: String,
    /// When it takes itself back, as RFC 3339 in UTC.
    pub confirm_by: String,
    /// The same in milliseconds since the Unix epoch.
    pub confirm_by_unix_ms: u64,
}

/// One object that a change of several touches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// The object as a path.
    pub path: String,
    /// The object before; absent if it did not exist.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    #[schema(value_type = Option<Object>)]
    pub before: serde_json::Value,
    /// The object afterwards; absent if it was removed.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    #[schema(value_type = Option<Object>)]
    pub after: serde_json::Value,
}

/// What a change would have done to the last minute of traffic, estimated from samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DryRun {
    /// Seconds of traffic looked at.
    pub observed_s: f64,
    /// Packets of those sources it would concern.
    pub packets: u64,
    /// Of these, packets it would have refused.
    pub would_refuse: u64,
    /// Sources it would have refused anything to.
    pub sources: u64,
}

/// The answer to a change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// Revision of the configuration in force afterwards.
    pub revision: u64,
    /// Whether anything is different now (or would be, in a dry run).
    pub changed: bool,
    /// Whether this was a dry run: nothing was done.
    pub dry_run: bool,
    /// The object, as a path: `clients/alice`.
    pub path: String,
    /// What was done, for people.
    pub what: String,
    /// The objects that differ, at most 1000.
    pub differences: Vec<Difference>,
    /// Number of objects that differ.
    pub differences_total: u64,
    /// Present if the change takes itself back unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// When it takes itself back, as RFC 3339 in UTC; present with `pending`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_by: Option<String>,
    /// What the reader should know: the agent runs in shadow, a table gets full.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Present in a dry run of a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<DryRun>,
    /// The object's new tag (`ETag`); absent if it was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// An entry of the audit log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChangeView {
    /// The entry.
    #[serde(flatten)]
    pub change: Change,
    /// Whether it waits to be confirmed.
    pub pending: bool,
}

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The agent started or stops.
    Agent,
    /// The configuration changed.
    Change,
    /// A reload of the configuration file was refused.
    ReloadFailed,
    /// Something the agent watches went wrong, or is right again.
    Health,
    /// A source began to be dropped.
    Drop,
    /// Limits follow the health of a backend: what changed, and why.
    Adaptive,
}

impl EventKind {
    /// The word used in JSON and as the type of a server-sent event.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Change => "change",
            Self::ReloadFailed => "reload_failed",
            Self::Health => "health",
            Self::Drop => "drop",
            Self::Adaptive => "adaptive",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Number, rising by one.
    pub id: u64,
    /// When, milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// What kind of thing.
    pub kind: EventKind,
    /// What, for people.
    pub text: String,
}
