//! What `doctor` knows of a machine before it judges. Plain values; collecting is `collect`'s,
//! judging is `checks`' business.

use std::path::PathBuf;

use serde::Serialize;

/// Everything `doctor` looks at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Facts {
    /// `uname -r`.
    pub kernel_release: String,
    /// Whether `/sys/kernel/btf/vmlinux` exists.
    pub kernel_btf: bool,
    /// `net.core.bpf_jit_enable`; absent where it cannot be read (another network namespace).
    pub jit: Option<u8>,
    /// Name of the clock source in use.
    pub clock_source: Option<String>,
    /// `RLIMIT_MEMLOCK` in bytes; absent if unlimited.
    pub memlock_bytes: Option<u64>,
    /// Missing ones of the capabilities the agent needs, by name.
    pub missing_capabilities: Vec<String>,
    /// Where pins live.
    pub bpffs: BpffsFacts,
    /// What is pinned there.
    pub pins: PinFacts,
    /// The interfaces to protect.
    pub interfaces: Vec<InterfaceFacts>,
    /// The configuration file.
    pub config: ConfigFacts,
    /// The state directory.
    pub state_dir: DirectoryFacts,
    /// The agent.
    pub agent: AgentFacts,
}

/// The directory of the pins.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BpffsFacts {
    /// Directory of the pins.
    pub path: PathBuf,
    /// Nearest existing directory on the way to it.
    pub nearest: PathBuf,
    /// Whether `nearest` is on a bpffs.
    pub is_bpffs: bool,
    /// Whether `nearest` can be written by this user.
    pub writable: bool,
}

/// What is pinned.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PinFacts {
    /// Interfaces with a pinned link.
    pub links: Vec<String>,
    /// Number of pinned maps.
    pub maps: usize,
    /// Number of maps a whole set has.
    pub maps_expected: usize,
    /// Why this version cannot adopt them, if it cannot.
    pub problem: Option<String>,
}

/// How native XDP stands on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NativeXdp {
    /// The kernel says the driver has it.
    Supported,
    /// The kernel says the driver does not.
    Unsupported,
    /// This kernel cannot be asked (before 6.3).
    Unknown,
}

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttachedXdp {
    /// Program id.
    pub id: u32,
    /// Program name, if it may be read.
    pub name: Option<String>,
    /// Whether it is ours, as far as pins and names tell.
    pub ours: bool,
    /// Whether it runs in generic mode.
    pub generic: bool,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// Whether generic mode was asked for.
    pub generic_asked: bool,
    /// What the kernel says; absent if there is no such interface.
    pub link: Option<LinkFacts>,
}

/// What the kernel says about an interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkFacts {
    /// Whether it is administratively up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// Driver's name, `virtual` for devices without one.
    pub driver: String,
    /// Whether the driver has native XDP.
    pub native: NativeXdp,
    /// Whether the driver hands frames larger than a page to XDP programs.
    pub multi_buffer: bool,
    /// What runs there.
    pub xdp: Option<AttachedXdp>,
}

/// The configuration file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConfigFacts {
    /// Its path.
    pub path: PathBuf,
    /// What it is.
    pub state: ConfigState,
    /// Whether everybody may write it.
    pub world_writable: bool,
}

/// State of the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigState {
    /// There is none: defaults apply.
    Missing,
    /// It cannot be read: the system's answer.
    Unreadable(String),
    /// It is refused: the error as `config check` shows it.
    Broken(String),
    /// It is fine.
    Valid,
}

/// A directory the agent writes to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DirectoryFacts {
    /// Its path.
    pub path: PathBuf,
    /// Whether it exists.
    pub exists: bool,
    /// Whether it, or its nearest existing parent, can be written by this user.
    pub writable: bool,
    /// Space this user may still take, in bytes.
    pub free_bytes: Option<u64>,
}

/// The agent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentFacts {
    /// Where it was looked for.
    pub target: String,
    /// What it says, or why it says nothing.
    pub state: Result<RunningAgent, String>,
}

/// What a running agent says.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunningAgent {
    /// Its version.
    pub version: String,
    /// `enforce`, `shadow` or `off`.
    pub mode: String,
    /// What keeps it from being ready; empty if it is.
    pub problems: Vec<String>,
    /// How full its tables are.
    pub tables: Vec<TableFacts>,
    /// Tracked sources in use, and the most there may be (75 % of the table).
    pub tracked: Option<(u64, u64)>,
}

/// Fill of one region of a crowd table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableFacts {
    /// `IPv4 region 0`.
    pub name: String,
    /// N: words or ways.
    pub capacity: u64,
    /// H: sources over their limit now.
    pub over_limit: u64,
    /// phi = F / (N * rate): admitted units per second over what the table can tell apart.
    pub phi: f64,
}
