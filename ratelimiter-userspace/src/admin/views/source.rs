//! Sources: who sends most, and why one is judged as it is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::policy::DefinedIn;
use crate::policy::model::{Mode, Unit};
use crate::policy::units::Window;

/// A source among the top talkers. Rates are estimated from samples of about one packet in 32.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SourceRow {
    /// Its address; for IPv6 the prefix that makes one source: `2001:db8::/64`.
    pub source: String,
    /// The client it belongs to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The segment whose policy applies.
    pub segment: String,
    /// Packets offered per second.
    pub packets_per_s: f64,
    /// Packets dropped per second.
    pub dropped_per_s: f64,
    /// Bytes offered per second.
    pub bytes_per_s: f64,
    /// Packets offered since it is listed.
    pub packets: u64,
    /// Packets dropped since it is listed.
    pub dropped: u64,
    /// Most it may be over-estimated by, in packets (Space-Saving).
    pub packets_error: u64,
    /// The newest reason it was judged for: `conforming`, `over_packets`, `blocked`.
    pub reason: String,
    /// When it was last sampled, milliseconds since the Unix epoch.
    pub last_seen_unix_ms: u64,
}

/// What kind of rule applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// An entry of the allow list: passed, uncharged.
    Allow,
    /// An entry of the block list: dropped.
    Block,
    /// A client's limits.
    Client,
    /// The limits of a segment's prefix.
    Segment,
    /// The default segment's limits: nobody said anything about this source.
    #[default]
    Default,
    /// No packet may come from such an address.
    Malformed,
}

/// The rule that applies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rule {
    /// What kind of rule.
    pub kind: RuleKind,
    /// The prefix, client or segment that says so.
    pub name: String,
    /// The prefix that matched, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Where it is defined.
    pub defined_in: DefinedIn,
    /// Who set it last, if the audit log still knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_by: Option<String>,
    /// When, milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_at_unix_ms: Option<u64>,
    /// Why, if somebody wrote it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it ends, milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_ms: Option<u64>,
}

/// One limited unit of the source: the limit, and where its bucket stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UnitState {
    /// What is counted.
    pub unit: Unit,
    /// The limit's name.
    pub limit: String,
    /// Units per `time_window`.
    pub rate_limit: u64,
    /// The window in seconds.
    pub time_window: Window,
    /// Units admitted at one instant.
    pub burst: u64,
    /// The mode in force.
    pub mode: Mode,
    /// Units that would be admitted at once right now.
    pub tokens: f64,
    /// Units owed.
    pub debt: f64,
    /// Seconds until one more unit is admitted; 0 if it is now.
    pub retry_after_s: f64,
    /// The same as a date, milliseconds since the Unix epoch.
    pub next_allowed_unix_ms: u64,
    /// Seconds until the bucket is full again.
    pub reset_after_s: f64,
}

/// Why a source or client is judged as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// What was asked about: an address or a client id.
    pub subject: String,
    /// The source as the kernel sees it: for IPv6 its prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What would become of a packet now: `pass` or `drop`.
    pub verdict: String,
    /// Why: `conforming`, `over_packets`, `blocked`, ...
    pub reason: String,
    /// The same as one sentence.
    pub summary: String,
    /// The rule that applies.
    pub rule: Rule,
    /// The client, if the source belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The segment whose policy applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// Whether the source has an entry of its own in the tracked table.
    pub tracked: bool,
    /// Every limited unit.
    pub units: Vec<UnitState>,
    /// The steps of the decision, in order, for people.
    pub path: Vec<String>,
    /// Packets offered as counted exactly; tracked sources only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered: Option<u64>,
    /// Packets admitted as counted exactly; tracked sources only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admitted: Option<u64>,
    /// The mode the agent runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_mode: Option<Mode>,
}

/// The answer to a reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResetAnswer {
    /// What was reset: an address or a client id.
    pub subject: String,
    /// Buckets that were emptied.
    pub buckets: u64,
    /// What was done, for people.
    pub summary: String,
}
