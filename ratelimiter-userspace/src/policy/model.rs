//! What people configure: one [`Document`] of segments, clients and lists.
//!
//! The same types are the JSON of the admin API, the TOML of the configuration file and the value
//! kept in the store, so there is one spelling of everything. Unknown fields are refused.

use std::collections::BTreeMap;

use ipnet::IpNet;
use ratelimiter_common::quota::Unit as CommonUnit;
use ratelimiter_common::verdict::Mode as CommonMode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::units::Window;
pub use crate::sync::loss::OnStoreLoss;

/// Longest client id, in bytes.
pub const MAX_CLIENT_ID_BYTES: usize = 256;
/// Longest segment, backend or limit name, in bytes: `[a-z0-9_-]+`.
pub const MAX_NAME_BYTES: usize = 63;
/// Name of the segment of clients that name none, and of unknown clients.
pub const DEFAULT_SEGMENT: &str = "default";
/// Name of the limit that `PUT /v1/clients/{id}/limit` sets when it names none.
pub const DEFAULT_LIMIT: &str = "default";

/// What a quota counts.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Network packets of a source.
    Packets,
    /// Bytes of a source's frames.
    Bytes,
    /// New TCP connections of a source.
    Connections,
    /// Checks of a client.
    #[default]
    Requests,
}

impl From<Unit> for CommonUnit {
    fn from(unit: Unit) -> Self {
        match unit {
            Unit::Packets => Self::Packets,
            Unit::Bytes => Self::Bytes,
            Unit::Connections => Self::Connections,
            Unit::Requests => Self::Requests,
        }
    }
}

/// How strictly a limit is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Not limited.
    Off,
    /// Decided and counted, always passed.
    Shadow,
    /// Decided and applied.
    Enforce,
}

impl From<Mode> for CommonMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Off => Self::Off,
            Mode::Shadow => Self::Shadow,
            Mode::Enforce => Self::Enforce,
        }
    }
}

/// How arrivals are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// GCRA: burst, then a steady rate. The only one for packets, bytes and connections.
    TokenBucket,
    /// Exact in every window; memory grows with the limit. Requests only.
    SlidingLog,
    /// Two counters, aligned to the client's first request. Requests only.
    SlidingWindow,
    /// One counter per window. Requests only.
    FixedWindow,
}

/// Over how many hosts a limit holds, and what a check waits for. Requests only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Over the fleet; each check asks the shared store, with a deadline.
    Exact,
    /// Over the fleet; units are taken from the shared store ahead of need.
    Leased,
    /// On each host by itself.
    Local,
}

/// One quota as written by people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitSpec {
    /// Units per `time_window`, 1 or more.
    #[serde(deserialize_with = "super::units::integral")]
    pub rate_limit: u64,
    /// Seconds, or a duration such as `"5m"`; 1 s to 366 days.
    pub time_window: Window,
    /// Units admitted at one instant. Default: `rate_limit`, at least 1.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::units::integral_option"
    )]
    pub burst: Option<u64>,
    /// What is counted; requests by default.
    #[serde(default)]
    pub unit: Unit,
    /// Default: token bucket for packets, bytes and connections; for requests the sliding log up
    /// to 64 per window and the sliding window above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    /// Default: the client's, then the segment's, then the agent's mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Requests only. Default: leased where `redis.url` is set, else local.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// What counts while the shared store is away; hold by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_store_loss: Option<OnStoreLoss>,
}

/// Limits by name.
pub type Limits = BTreeMap<String, LimitSpec>;

/// A named class of clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Segment {
    /// Quotas of each client of the segment that has none of its own, by name.
    pub limits: Limits,
    /// Mode of limits that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Share in a shortage, 1..=1000; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// What the segment's clients use; `default` if not named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Refusals in a row, 1..=1000000, after which the address that a client's checks name is
    /// blocked in the kernel for a while; never if absent. Counted for credentials with the right
    /// `escalate` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub escalate_after: Option<u32>,
    /// Wide prefixes whose sources belong to the segment, each source with a bucket of its own in
    /// a region of the crowd (IPv4 shorter than /28, IPv6 shorter than /60).
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "super::units::prefixes"
    )]
    #[schema(value_type = Vec<String>)]
    pub sources: Vec<IpNet>,
}

/// A client: who is limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Client {
    /// The client's segment; [`DEFAULT_SEGMENT`] if not named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// Mode of limits that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Prefixes the client sends from.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "super::units::prefixes"
    )]
    #[schema(value_type = Vec<String>)]
    pub sources: Vec<IpNet>,
    /// Whether all of `sources` share one bucket. Default: false for addresses (/32../28,
    /// /64../60), true for wider prefixes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_bucket: Option<bool>,
    /// Quotas by name. A unit without one has the segment's.
    pub limits: Limits,
}

/// An entry of the allow or block list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListEntry {
    /// Why it is there, for people; at most 200 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who put it there: a credential's name, `config`, `cli`, `escalation`, `session`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When it ends, milliseconds since the Unix epoch; never if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_unix_ms: Option<u64>,
}

/// Everything configured at run time: what the store keeps and the kernel enforces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Document {
    /// Raised by one with each change.
    pub revision: u64,
    /// Segments by name; `default` always exists once validated.
    pub segments: BTreeMap<String, Segment>,
    /// Clients by id.
    pub clients: BTreeMap<String, Client>,
    /// Prefixes that are never limited. An allowed prefix wins over every block inside it.
    #[schema(value_type = BTreeMap<String, ListEntry>)]
    pub allow: BTreeMap<IpNet, ListEntry>,
    /// Prefixes that are dropped.
    #[schema(value_type = BTreeMap<String, ListEntry>)]
    pub block: BTreeMap<IpNet, ListEntry>,
}
