//! What can be set, and every default a user meets. The only file with defaults, but for
//! [`super::adaptive`].
//!
//! `config example`, `config default`, `config show` and `config schema` are made from these types:
//! the doc comments are the explanations people read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::adaptive::{self, Adaptive};
use super::store_url::StoreUrl;
use super::values::{Interface, Listen, LogFormat, Malformed, Right, Secret, UnknownClients};
use crate::policy::model::{Client, LimitSpec, Limits, Mode, Segment, Unit};
use crate::policy::units::Window;

/// Everything the agent's configuration says. Every key is optional.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether limits are applied. Without it the agent counts what it would drop and drops
    /// nothing (shadow); `status` says so.
    pub enforce: bool,
    /// Where the agent keeps configuration and usage.
    pub state_dir: String,
    /// Directory on a bpf file system where programs, maps and links are pinned.
    pub pin_dir: String,
    /// Interfaces to attach to: `"eth0"`, or `{ name = "eth0", mode = "generic" }`. None by
    /// default: the agent attaches to nothing without being told.
    pub interfaces: Vec<Interface>,
    /// The admin API, dashboard, health ingest and metrics.
    pub admin: Admin,
    /// The check API.
    pub check: Check,
    /// The kernel program.
    pub kernel: Kernel,
    /// Table sizes, fixed when the tables are created: another size needs `detach --all` first.
    pub tables: Tables,
    /// How often state is saved.
    pub store: StoreSettings,
    /// The Redis that the hosts of a fleet share. Without one every host limits by itself.
    pub redis: Redis,
    /// What protects people from locking themselves out.
    pub safety: Safety,
    /// Kernel blocks for clients that keep being refused by the check API.
    pub escalation: Escalation,
    /// What is protected, by the name that segments call it.
    pub backends: BTreeMap<String, Backend>,
    /// What this host's load changes.
    pub adaptive: adaptive::Host,
    /// Log lines.
    pub log: Log,
    /// Who may use the admin API, by name. Needed for every listener that is not on loopback.
    pub credentials: BTreeMap<String, Credential>,
    /// Segments that are always there; they cannot be changed through the API.
    pub segments: BTreeMap<String, Segment>,
    /// Clients that are always there; they cannot be changed through the API.
    pub clients: BTreeMap<String, Client>,
    /// Prefixes that are never limited. An allowed prefix wins over everything inside it.
    pub allow: Vec<StaticPrefix>,
    /// Prefixes that are dropped, unless allowed.
    pub block: Vec<StaticPrefix>,
}

/// The admin API, dashboard, health ingest and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// TCP listener, or `off`. An address that is not loopback needs a credential.
    pub listen: Listen,
    /// Unix socket, mode 0660; empty for none.
    pub socket: String,
    /// Largest request body, in bytes.
    pub max_body_bytes: u64,
    /// Connections served at once.
    pub max_connections: u32,
    /// How long a client may take to send its request head, in milliseconds.
    pub header_timeout_ms: u64,
    /// Names accepted in `Host` beside addresses and `localhost` (DNS rebinding).
    pub allowed_hosts: Vec<String>,
}

/// The check API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Check {
    /// HTTP listener, or `off`.
    pub http: Listen,
    /// gRPC listener (Envoy), or `off`.
    pub grpc: Listen,
    /// RESP listener (Redis protocol), `off` by default; its usual port is 9743.
    pub resp: Listen,
    /// Descriptor files of envoyproxy/ratelimit (YAML), for gRPC; without any, everything passes.
    pub descriptors: Vec<String>,
    /// Clients whose usage is kept in memory.
    pub max_clients: u64,
    /// What applies to a client nobody configured: `default_segment`, `deny` or `allow`.
    pub unknown_clients: UnknownClients,
    /// How far a caller's `request_timestamp` may be from this host's clock, in milliseconds, at
    /// most 5000; one further off counts as that far off, and the answer says so.
    pub max_skew_ms: u64,
    /// Header that names the client at `/v1/authz`, set by the proxy and never by its clients;
    /// empty for none: then the client is the address that asks.
    pub identity_header: String,
    /// Largest request body, in bytes.
    pub max_body_bytes: u64,
    /// Connections served at once.
    pub max_connections: u32,
    /// Connections of one address served at once; those from loopback are bounded by
    /// `max_connections` alone.
    pub max_connections_per_peer: u32,
    /// How long a client may take to send its request head, in milliseconds.
    pub header_timeout_ms: u64,
    /// Addresses and prefixes of proxies whose `X-Forwarded-For` is believed.
    #[schema(value_type = Vec<String>)]
    pub trusted_proxies: Vec<ipnet::IpNet>,
}

/// Something that is protected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Backend {
    /// Refuses all checks of the backend's clients for a while when it fails, or when they are
    /// consistently limited. Off unless configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<Breaker>,
    /// Lets the limits of the backend's clients follow its health. Off unless configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
}

/// When a circuit breaker opens and closes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// Opens when more than this share of checks is refused for as long as `for`; 0 for never.
    pub deny_ratio: f64,
    /// How long the share of refusals must stay above `deny_ratio`.
    #[serde(rename = "for")]
    pub deny_for: Window,
    /// Opens when more than this share of reported outcomes are errors; 0 for never.
    pub error_ratio: f64,
    /// How long it stays open before it lets probes through.
    pub open_for: Window,
    /// Requests let through as probes.
    pub probes: u64,
}

/// The kernel program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Kernel {
    /// Prefix length that makes one IPv6 source, 32 to 64.
    pub v6_prefix_len: u8,
    /// Frames that cannot be parsed: `drop`, or `budget` (charged to one budget they share).
    pub malformed: Malformed,
    /// Malformed frames admitted per second under `budget`.
    pub malformed_per_s: u64,
    /// Sources never seen before that are admitted per second and region, at most a tenth of the
    /// region's words. 0 for that tenth.
    pub first_seen_per_s: u64,
    /// Whether the first-seen budget is applied.
    pub first_seen: bool,
}

/// Table sizes, fixed when the tables are created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tables {
    /// Words of the default IPv4 crowd, 8 bytes each: one per source. A power of two.
    pub crowd4_words: u32,
    /// Ways of the default IPv6 crowd, 16 bytes each: one per source. A power of two.
    pub crowd6_ways: u32,
    /// Words (IPv4) and ways (IPv6) of each of the 15 regions for wide segments and further units.
    /// A power of two.
    pub region_words: u32,
    /// Sources with an entry of their own; three quarters of it may be configured.
    pub tracked: u32,
    /// Policies: one per segment, and one per client with packet limits of its own.
    pub policies: u32,
    /// Prefixes of clients, segments and lists, per IP version.
    pub prefixes: u32,
    /// Bytes of the ring buffer for sampled drops. A power of two.
    pub events_bytes: u32,
}

/// How often state is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSettings {
    /// How often usage of the check API is saved in `state_dir`, in milliseconds: what a `kill -9`
    /// forgets at most. Less often where a save takes longer than a tenth of it.
    pub flush_interval_ms: u64,
    /// How often usage of tracked sources is saved in `state_dir`, in milliseconds. A `kill -9`
    /// forgets none of it, a reboot this much.
    pub save_interval_ms: u64,
}

/// The Redis that the hosts of a fleet share. Losing it is never an outage: see `on_store_loss` of
/// a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// Where it is: `redis://`, `rediss://` (TLS), `unix://`, and with `+sentinel` or `+cluster`
    /// its Sentinels or its cluster; empty for none.
    pub url: StoreUrl,
    /// User of an ACL, if the URL names none.
    pub username: String,
    /// File whose first line is the password, if the URL has none.
    pub password_file: String,
    /// Start of every key; hosts that share limits have the same, 1 to 32 of `[a-z0-9_.-]`.
    pub prefix: String,
    /// File whose first line is the secret under which client ids are hashed into keys, the same
    /// on every host. Without one the hash is no secret: who reads the keys can tell whether an id
    /// they guess is among them.
    pub key_secret_file: String,
    /// How long a command may take before it counts as unanswered, in milliseconds.
    pub deadline_ms: u64,
    /// How long a check of a limit with `consistency = "exact"` may wait for Redis before the
    /// limit's `on_store_loss` decides, in milliseconds.
    pub exact_deadline_ms: u64,
    /// How often hot sources and clients are settled, in milliseconds.
    pub sync_interval_ms: u64,
    /// How long units taken ahead stay valid, in milliseconds.
    pub lease_ms: u64,
    /// File with the certificates of the authorities that may sign the server's (PEM); empty for
    /// those of the system.
    pub ca_file: String,
    /// File with this host's certificate (PEM), where the server asks for one.
    pub cert_file: String,
    /// File with the key of that certificate (PEM).
    pub key_file: String,
}

/// What protects people from locking themselves out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Safety {
    /// How long a risky change waits for `confirm` before it takes itself back, in seconds.
    pub confirm_within_s: u64,
    /// A change is risky if it limits the caller's own address more tightly, or makes more than this
    /// percentage of the active sources lose packets that they do not lose now.
    pub risky_percent: u8,
    /// How long whoever attaches an interface, the default gateways and the servers of the fleet's
    /// store are allow-listed from then on, in seconds; 0 for not at all.
    pub protect_for_s: u64,
    /// How long the agent drains connections after SIGTERM, in milliseconds.
    pub drain_ms: u64,
}

/// Kernel blocks for clients that keep being refused by the check API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Escalation {
    /// Segments whose clients are escalated; none by default.
    pub segments: Vec<String>,
    /// Refusals in a row that lead to a block.
    pub refusals: u32,
    /// First block, in seconds; each further one is twice as long.
    pub block_s: u64,
    /// Longest block, in seconds.
    pub max_block_s: u64,
    /// Blocks at once.
    pub max_blocks: u32,
}

/// Log lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a list such as
    /// `info,ratelimiter_userspace::dataplane=debug`.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

/// Somebody who may use the admin API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Credential {
    /// The bearer token itself, 16 characters or more. Prefer `token_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// File whose first line is the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
    /// What it may do: `read`, `check`, `health`, `write`, `admin`. Each stands for itself, except
    /// that `admin` includes the others and `write` includes `read`.
    pub rights: Vec<Right>,
    /// When it stops being accepted, milliseconds since the Unix epoch; never if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_unix_ms: Option<u64>,
}

/// An entry of `[[allow]]` or `[[block]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticPrefix {
    /// The prefix, host bits zero: `"192.0.2.0/24"`, `"2001:db8::/32"`.
    #[schema(value_type = String)]
    pub prefix: ipnet::IpNet,
    /// Why it is there, for people; at most 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enforce: false,
            state_dir: "/var/lib/ratelimiter".to_owned(),
            pin_dir: "/sys/fs/bpf/ratelimiter".to_owned(),
            interfaces: Vec::new(),
            admin: Admin::default(),
            check: Check::default(),
            kernel: Kernel::default(),
            tables: Tables::default(),
            store: StoreSettings::default(),
            redis: Redis::default(),
            safety: Safety::default(),
            escalation: Escalation::default(),
            backends: BTreeMap::new(),
            adaptive: adaptive::Host::default(),
            log: Log::default(),
            credentials: BTreeMap::new(),
            segments: BTreeMap::new(),
            clients: BTreeMap::new(),
            allow: Vec::new(),
            block: Vec::new(),
        }
    }
}

const fn loopback(port: u16) -> Listen {
    Listen::At(std::net::SocketAddr::V4(std::net::SocketAddrV4::new(
        std::net::Ipv4Addr::LOCALHOST,
        port,
    )))
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: loopback(9740),
            socket: "/run/ratelimiter/admin.sock".to_owned(),
            max_body_bytes: 1 << 20,
            max_connections: 256,
            header_timeout_ms: 5_000,
            allowed_hosts: Vec::new(),
        }
    }
}

impl Default for Check {
    fn default() -> Self {
        Self {
            http: loopback(9741),
            grpc: loopback(9742),
            resp: Listen::Off,
            descriptors: Vec::new(),
            max_clients: 1_000_000,
            unknown_clients: UnknownClients::DefaultSegment,
            max_skew_ms: 2_000,
            identity_header: String::new(),
            max_body_bytes: 64 * 1024,
            max_connections: 10_000,
            max_connections_per_peer: 1_000,
            header_timeout_ms: 5_000,
            trusted_proxies: Vec::new(),
        }
    }
}

/// A window of whole seconds within the bounds.
fn seconds(seconds: u64) -> Window {
    Window::from_ns(seconds * 1_000_000_000).unwrap_or(Window::MINUTE)
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            deny_ratio: 0.5,
            deny_for: seconds(30),
            error_ratio: 0.5,
            open_for: seconds(10),
            probes: 10,
        }
    }
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            v6_prefix_len: 64,
            malformed: Malformed::Drop,
            malformed_per_s: 100,
            first_seen_per_s: 0,
            first_seen: true,
        }
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            crowd4_words: 1 << 20,
            crowd6_ways: 1 << 19,
            region_words: 1 << 16,
            tracked: 262_144,
            policies: 32_768,
            prefixes: 1 << 21,
            events_bytes: 1 << 18,
        }
    }
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            flush_interval_ms: 1_000,
            save_interval_ms: 10_000,
        }
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: StoreUrl::default(),
            username: String::new(),
            password_file: String::new(),
            prefix: "rl".to_owned(),
            key_secret_file: String::new(),
            deadline_ms: 50,
            exact_deadline_ms: 20,
            sync_interval_ms: 100,
            lease_ms: 2_000,
            ca_file: String::new(),
            cert_file: String::new(),
            key_file: String::new(),
        }
    }
}

impl Default for Safety {
    fn default() -> Self {
        Self {
            confirm_within_s: 60,
            risky_percent: 50,
            protect_for_s: 3_600,
            drain_ms: 5_000,
        }
    }
}

impl Default for Escalation {
    fn default() -> Self {
        Self {
            segments: Vec::new(),
            refusals: 100,
            block_s: 60,
            max_block_s: 600,
            max_blocks: 10_000,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// Name of the built-in packet limit of the default segment.
pub const DEFAULT_PACKETS_LIMIT: &str = "packets";

/// Limits of the default segment where nobody configured any: 1 000 packets per second with a burst
/// of 2 000, and 100 requests per minute.
#[must_use]
pub fn default_limits() -> Limits {
    Limits::from([
        (
            DEFAULT_PACKETS_LIMIT.to_owned(),
            LimitSpec {
                rate_limit: 1_000,
                time_window: Window::SECOND,
                burst: Some(2_000),
                unit: Unit::Packets,
                algorithm: None,
                mode: None,
                consistency: None,
                on_store_loss: None,
            },
        ),
        (
            crate::policy::model::DEFAULT_LIMIT.to_owned(),
            LimitSpec {
                rate_limit: 100,
                time_window: Window::MINUTE,
                burst: None,
                unit: Unit::Requests,
                algorithm: None,
                mode: None,
                consistency: None,
                on_store_loss: None,
            },
        ),
    ])
}

impl Settings {
    /// The mode that bounds every policy: shadow unless told to enforce.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self.enforce {
            Mode::Enforce
        } else {
            Mode::Shadow
        }
    }
}
