//! How the agent is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::change::Pending;
use super::sync::SyncView;
use crate::config::AttachMode;
use crate::policy::model::Mode;

/// Body of `PUT /v1/interfaces/{name}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AttachRequest {
    /// Native by default; generic only when asked for.
    #[schema(default = "native")]
    pub mode: AttachMode,
    /// Whether a foreign XDP program may be replaced.
    pub replace: bool,
}

/// An interface the agent was told to protect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceView {
    /// Its name.
    pub name: String,
    /// The kernel's number of it; 0 while it does not exist.
    pub index: u32,
    /// Where in the receive path the program runs.
    pub mode: AttachMode,
    /// Whether the program runs there.
    pub attached: bool,
    /// `attached`, `absent` or `failed`.
    pub state: String,
    /// Why it is not attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Seconds since it is in this state.
    pub since_s: f64,
}

/// Answer of `DELETE /v1/interfaces/{name}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Detached {
    /// Whether there was anything to detach.
    pub detached: bool,
}

/// Answer of `/readyz` and `/startupz`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// `ready`, `degraded` (the fleet's store is away) or `not_ready`.
    pub status: String,
    /// What is not as it should be, one sentence each.
    pub problems: Vec<String>,
}

/// Packets and bytes judged for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CountView {
    /// `conforming`, `over_packets`, `blocked`, ...
    pub reason: String,
    /// `pass` or `drop`.
    pub verdict: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Fill and memory of one kernel table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TableView {
    /// The map's name.
    pub name: String,
    /// Entries it can hold.
    pub capacity: u64,
    /// Entries in use, where the table has a notion of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// Memory in bytes.
    pub bytes: u64,
}

/// How full one region of the crowd is, and what the sizing law says about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CrowdView {
    /// 4 or 6.
    pub family: u8,
    /// Region number.
    pub region: u8,
    /// Segment whose sources it holds.
    pub segment: String,
    /// `packets`, `bytes` or `connections`.
    pub unit: String,
    /// Sources it has room for.
    pub capacity: u64,
    /// Places ever taken.
    pub claimed: u64,
    /// Sources that owe something now.
    pub indebted: u64,
    /// Sources over their limit now.
    pub over_limit: u64,
    /// F / (N * rate) of the sizing law: below 0.8 no polite source is refused for want of room.
    pub phi: f64,
    /// H / N of the sizing law: at most 0.25.
    pub offender_share: f64,
}

/// How the store is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreView {
    /// `embedded` or `memory`.
    pub kind: String,
    /// Where it keeps things.
    pub location: String,
    /// What is not as it should be.
    pub warnings: Vec<String>,
}

/// How the agent is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The strongest mode any policy has: `shadow` counts and never drops.
    pub mode: Mode,
    /// Whether it does what it is configured to do.
    pub ready: bool,
    /// What is not as it should be, one sentence each.
    pub problems: Vec<String>,
    /// What the reader should know although it works.
    pub warnings: Vec<String>,
    /// Seconds since it started.
    pub uptime_s: f64,
    /// Revision of the configuration in force.
    pub revision: u64,
    /// Number of segments.
    pub segments: u64,
    /// Number of clients.
    pub clients: u64,
    /// Entries of the allow list.
    pub allowed: u64,
    /// Entries of the block list.
    pub blocked: u64,
    /// The configuration file, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<String>,
    /// Why the last reload of it was refused, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload_error: Option<String>,
    /// Interfaces it was told to protect.
    pub interfaces: Vec<InterfaceView>,
    /// Where programs, maps and links are pinned.
    pub pin_dir: String,
    /// Id of the kernel program.
    pub program_id: u32,
    /// Whether tables and buckets of an earlier agent were adopted.
    pub adopted: bool,
    /// Pins, links and maps repaired since start.
    pub repairs: u64,
    /// Changes that wait to be confirmed.
    pub pending: Vec<Pending>,
    /// Frames judged since the tables were made.
    pub offered: u64,
    /// Frames by reason and verdict.
    pub counts: Vec<CountView>,
    /// Frames offered per second, over the last few seconds.
    pub packets_per_s: f64,
    /// Frames dropped per second.
    pub dropped_per_s: f64,
    /// The kernel's tables.
    pub tables: Vec<TableView>,
    /// The crowd's regions.
    pub crowd: Vec<CrowdView>,
    /// The store.
    pub store: StoreView,
    /// The fleet.
    #[serde(default)]
    pub sync: SyncView,
    /// Resident memory of the agent in bytes, tables apart.
    pub rss_bytes: u64,
}
