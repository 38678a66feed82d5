//! Bounds of settings: what a type cannot say.

mod redis;

use std::collections::{BTreeMap, BTreeSet};

use super::settings::{Credential, Settings};
use super::values::{Listen, MIN_TOKEN_BYTES, Right};
use crate::policy::names::name_problem;
use crate::policy::validate::Issue;

/// Longest path of a Unix socket, in bytes (`sun_path` minus its terminator).
const MAX_SOCKET_BYTES: usize = 107;
/// Longest name of an interface, in bytes (`IFNAMSIZ` - 1).
const MAX_INTERFACE_BYTES: usize = 15;
/// Interfaces one agent attaches to.
pub const MAX_INTERFACES: usize = 64;
/// Credentials.
pub const MAX_CREDENTIALS: usize = 1_000;
/// Backends with settings of their own.
pub const MAX_BACKENDS: usize = 64;
/// Descriptor files for gRPC.
pub const MAX_DESCRIPTOR_FILES: usize = 1_000;
/// Longest name of a header, in bytes.
const MAX_HEADER_BYTES: usize = 64;
/// Longest token, in bytes.
const MAX_TOKEN_BYTES: usize = 512;

/// Returns everything that is out of bounds.
#[must_use]
pub fn check(settings: &Settings) -> Vec<Issue> {
    let mut check = Check(Vec::new());
    check.paths(settings);
    check.interfaces(settings);
    check.listeners(settings);
    check.numbers(settings);
    check.tables(settings);
    check.escalation(settings);
    check.checks(settings);
    check.redis(&settings.redis);
    check.log(&settings.log.level);
    check.credentials(&settings.credentials);
    check.0.extend(super::adaptive::check(settings));
    check.0
}

struct Check(Vec<Issue>);

impl Check {
    fn push(&mut self, path: &[&str], message: String) {
        self.0.push(Issue::at(path, message));
    }

    fn range(&mut self, path: &[&str], value: u64, low: u64, high: u64) {
        if !(low..=high).contains(&value) {
            let name = path.join(".");
            self.push(
                path,
                format!("`{name}` is {value}; it must be between {low} and {high}"),
            );
        }
    }

    fn power(&mut self, path: &[&str], value: u32, low: u32, high: u32) {
        if !value.is_power_of_two() || !(low..=high).contains(&value) {
            let name = path.join(".");
            self.push(
                path,
                format!("`{name}` is {value}; it must be a power of two between {low} and {high}"),
            );
        }
    }

    fn absolute(&mut self, path: &[&str], value: &str) {
        if !value.starts_with('/') || value.contains('\0') {
            let name = path.join(".");
            self.push(
                path,
                format!(
                    "`{name}` is `{}`; it must be an absolute path",
                    value.escape_debug()
                ),
            );
        }
    }

    fn paths(&mut self, settings: &Settings) {
        self.absolute(&["state_dir"], &settings.state_dir);
        self.absolute(&["pin_dir"], &settings.pin_dir);
        let socket = &settings.admin.socket;
        if !socket.is_empty() {
            self.absolute(&["admin", "socket"], socket);
        }
        if socket.len() > MAX_SOCKET_BYTES {
            self.push(
                &["admin", "socket"],
                format!(
                    "`admin.socket` has {} bytes; a Unix socket's path has at most \
                     {MAX_SOCKET_BYTES}",
                    socket.len()
                ),
            );
        }
    }

    fn interfaces(&mut self, settings: &Settings) {
        if settings.interfaces.len() > MAX_INTERFACES {
            self.push(
                &["interfaces"],
                format!(
                    "`interfaces` has {} entries; it may have at most {MAX_INTERFACES}",
                    settings.interfaces.len()
                ),
            );
        }
        let mut seen = BTreeSet::new();
        for (n, interface) in settings.interfaces.iter().enumerate() {
            let (n, name) = (n.to_string(), &interface.name);
            let legal = |c: char| c.is_ascii_graphic() && c != '/';
            if name.is_empty()
                || name.len() > MAX_INTERFACE_BYTES
                || !name.chars().all(legal)
                || name == "."
                || name == ".."
            {
                self.push(
                    &["interfaces", &n],
                    format!(
                        "`{}` is no name of an interface: 1 to {MAX_INTERFACE_BYTES} characters, \
                         no spaces, no `/`",
                        name.escape_debug()
                    ),
                );
            }
            if !seen.insert(name.as_str()) {
                self.push(
                    &["interfaces", &n],
                    format!("interface `{name}` is named twice"),
                );
            }
        }
    }

    fn listeners(&mut self, settings: &Settings) {
        let listeners: [(&[&str], Listen, Right); 4] = [
            (&["admin", "listen"], settings.admin.listen, Right::Read),
            (&["check", "http"], settings.check.http, Right::Check),
            (&["check", "grpc"], settings.check.grpc, Right::Check),
            (&["check", "resp"], settings.check.resp, Right::Check),
        ];
        let mut seen: BTreeMap<std::net::SocketAddr, String> = BTreeMap::new();
        for (path, listen, right) in listeners {
            let Listen::At(address) = listen else {
                continue;
            };
            let name = path.join(".");
            if address.port() == 0 {
                self.push(
                    path,
                    format!("`{name}` is `{address}`; the port must be between 1 and 65535"),
                );
            }
            if let Some(first) = seen.insert(address, name.clone()) {
                self.push(
                    path,
                    format!("`{name}` and `{first}` both listen on `{address}`"),
                );
            }
            if !address.ip().to_canonical().is_loopback()
                && !settings.credentials.values().any(|c| c.grants(right))
            {
                self.push(
                    path,
                    format!(
                        "`{name}` is `{address}`, which is not loopback, and no credential has the \
                         right `{}`; add one under `[credentials]`, or listen on loopback",
                        right.word()
                    ),
                );
            }
        }
    }

    fn numbers(&mut self, settings: &Settings) {
        let (admin, check) = (&settings.admin, &settings.check);
        self.range(
            &["admin", "max_body_bytes"],
            admin.max_body_bytes,
            1_024,
            64 << 20,
        );
        self.range(
            &["admin", "max_connections"],
            admin.max_connections.into(),
            1,
            100_000,
        );
        self.range(
            &["admin", "header_timeout_ms"],
            admin.header_timeout_ms,
            100,
            60_000,
        );
        self.range(
            &["check", "max_clients"],
            check.max_clients,
            1_000,
            100_000_000,
        );
        self.range(
            &["check", "max_body_bytes"],
            check.max_body_bytes,
            1_024,
            16 << 20,
        );
        self.range(
            &["check", "max_connections"],
            check.max_connections.into(),
            1,
            1_000_000,
        );
        self.range(
            &["check", "header_timeout_ms"],
            check.header_timeout_ms,
            100,
            60_000,
        );
        let kernel = &settings.kernel;
        self.range(
            &["kernel", "v6_prefix_len"],
            kernel.v6_prefix_len.into(),
            32,
            64,
        );
        self.range(
            &["kernel", "malformed_per_s"],
            kernel.malformed_per_s,
            1,
            1_000_000,
        );
        self.range(
            &["kernel", "first_seen_per_s"],
            kernel.first_seen_per_s,
            0,
            1_000_000_000,
        );
        let store = &settings.store;
        self.range(
            &["store", "flush_interval_ms"],
            store.flush_interval_ms,
            10,
            60_000,
        );
        self.range(
            &["store", "save_interval_ms"],
            store.save_interval_ms,
            1_000,
            3_600_000,
        );
        let safety = &settings.safety;
        self.range(
            &["safety", "confirm_within_s"],
            safety.confirm_within_s,
            5,
            3_600,
        );
        self.range(
            &["safety", "risky_percent"],
            safety.risky_percent.into(),
            1,
            100,
        );
        self.range(
            &["safety", "protect_for_s"],
            safety.protect_for_s,
            0,
            31_536_000,
        );
        self.range(&["safety", "drain_ms"], safety.drain_ms, 0, 60_000);
    }

    fn tables(&mut self, settings: &Settings) {
        let tables = &settings.tables;
        self.power(
            &["tables", "crowd4_words"],
            tables.crowd4_words,
            512,
            1 << 28,
        );
        self.power(&["tables", "crowd6_ways"], tables.crowd6_ways, 512, 1 << 27);
        self.power(
            &["tables", "region_words"],
            tables.region_words,
            512,
            1 << 24,
        );
        self.range(&["tables", "tracked"], tables.tracked.into(), 64, 1 << 24);
        self.range(&["tables", "policies"], tables.policies.into(), 16, 1 << 20);
        self.range(&["tables", "prefixes"], tables.prefixes.into(), 16, 1 << 24);
        self.power(
            &["tables", "events_bytes"],
            tables.events_bytes,
            4_096,
            1 << 28,
        );
    }

    fn checks(&mut self, settings: &Settings) {
        let check = &settings.check;
        self.range(&["check", "max_skew_ms"], check.max_skew_ms, 0, 5_000);
        self.range(
            &["check", "max_connections_per_peer"],
            check.max_connections_per_peer.into(),
            1,
            1_000_000,
        );
        if check.descriptors.len() > MAX_DESCRIPTOR_FILES {
            self.push(
                &["check", "descriptors"],
                format!(
                    "`check.descriptors` has {} files; it may have at most {MAX_DESCRIPTOR_FILES}",
                    check.descriptors.len()
                ),
            );
        }
        for (n, file) in check.descriptors.iter().enumerate() {
            self.absolute(&["check", "descriptors", &n.to_string()], file);
        }
        let header = &check.identity_header;
        let legal = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
        if header.len() > MAX_HEADER_BYTES || !header.bytes().all(legal) {
            self.push(
                &["check", "identity_header"],
                format!(
                    "`check.identity_header` is `{}`; it must be the name of a header of at most \
                     {MAX_HEADER_BYTES} bytes, or empty",
                    header.escape_debug()
                ),
            );
        }
        if settings.backends.len() > MAX_BACKENDS {
            self.push(
                &["backends"],
                format!(
                    "there are {} backends; there may be at most {MAX_BACKENDS}",
                    settings.backends.len()
                ),
            );
        }
        for (name, backend) in &settings.backends {
            if let Some(problem) = name_problem("backend", name) {
                self.push(&["backends", name], problem);
            }
            let Some(breaker) = &backend.breaker else {
                continue;
            };
            for (key, ratio) in [
                ("deny_ratio", breaker.deny_ratio),
                ("error_ratio", breaker.error_ratio),
            ] {
                if !(0.0..1.0).contains(&ratio) {
                    self.push(
                        &["backends", name, "breaker", key],
                        format!("`{key}` is {ratio}; it must be 0 (never) or between 0 and 1"),
                    );
                }
            }
            self.range(
                &["backends", name, "breaker", "probes"],
                breaker.probes,
                1,
                1_000_000,
            );
        }
    }

    fn escalation(&mut self, settings: &Settings) {
        let escalation = &settings.escalation;
        for (n, name) in escalation.segments.iter().enumerate() {
            if let Some(problem) = name_problem("segment", name) {
                self.push(&["escalation", "segments", &n.to_string()], problem);
            }
        }
        self.range(
            &["escalation", "refusals"],
            escalation.refusals.into(),
            1,
            1_000_000,
        );
        self.range(&["escalation", "block_s"], escalation.block_s, 1, 86_400);
        self.range(
            &["escalation", "max_block_s"],
            escalation.max_block_s,
            escalation.block_s,
            7 * 86_400,
        );
        self.range(
            &["escalation", "max_blocks"],
            escalation.max_blocks.into(),
            1,
            1_000_000,
        );
    }

    fn log(&mut self, level: &str) {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let legal = |part: &str| {
            let (target, level) = part.rsplit_once('=').map_or(("x", part), |pair| pair);
            let target_ok = !target.is_empty()
                && target
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-'));
            target_ok && LEVELS.contains(&level)
        };
        if !level.split(',').all(|part| legal(part.trim())) {
            self.push(
                &["log", "level"],
                format!(
                    "`log.level` is `{}`; it must be one of {}, or a list such as \
                     `info,ratelimiter_userspace::dataplane=debug`",
                    level.escape_debug(),
                    LEVELS.join(", ")
                ),
            );
        }
    }

    fn credentials(&mut self, credentials: &BTreeMap<String, Credential>) {
        if credentials.len() > MAX_CREDENTIALS {
            self.push(
                &["credentials"],
                format!(
                    "there are {} credentials; there may be at most {MAX_CREDENTIALS}",
                    credentials.len()
                ),
            );
        }
        let mut tokens: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, credential) in credentials {
            if let Some(problem) = name_problem("credential", name) {
                self.push(&["credentials", name], problem);
            }
            match (&credential.token, &credential.token_file) {
                (None, None) => self.push(
                    &["credentials", name],
                    format!("credential `{name}` has neither `token_file` nor `token`"),
                ),
                (Some(_), Some(_)) => self.push(
                    &["credentials", name, "token"],
                    format!("credential `{name}` has both `token` and `token_file`; give one"),
                ),
                (None, Some(file)) => {
                    self.absolute(&["credentials", name, "token_file"], file);
                }
                (Some(token), None) => {
                    let token = token.expose();
                    if let Some(problem) = token_problem(token) {
                        self.push(
                            &["credentials", name, "token"],
                            format!("the token of credential `{name}` {problem}"),
                        );
                    }
                    if let Some(first) = tokens.insert(token, name) {
                        self.push(
                            &["credentials", name, "token"],
                            format!("credentials `{first}` and `{name}` have the same token"),
                        );
                    }
                }
            }
            if credential.rights.is_empty() {
                self.push(
                    &["credentials", name, "rights"],
                    format!(
                        "credential `{name}` has no `rights`; give one or more of read, check, \
                         health, write, admin"
                    ),
                );
            }
        }
    }
}

/// Why a token is refused, never showing it; `None` if it is good. For tokens read from files too.
#[must_use]
pub fn token_problem(token: &str) -> Option<String> {
    if !(MIN_TOKEN_BYTES..=MAX_TOKEN_BYTES).contains(&token.len()) {
        return Some(format!(
            "has {} bytes; it must have between {MIN_TOKEN_BYTES} and {MAX_TOKEN_BYTES}",
            token.len()
        ));
    }
    (!token.bytes().all(|c| c.is_ascii_graphic())).then(|| {
        "has characters other than visible ASCII; it could not be sent in a header".to_owned()
    })
}

impl Credential {
    /// Whether the credential has a right, by name or by inclusion.
    #[must_use]
    pub fn grants(&self, right: Right) -> bool {
        self.rights.iter().any(|has| {
            *has == right || *has == Right::Admin || (*has == Right::Write && right == Right::Read)
        })
    }
}

/// Why a configuration file's owner and mode bits are refused; `None` if they are good.
///
/// The agent calls this with what `stat` of the opened file says, before it reads a byte: whoever
/// may write the file may set every limit.
#[must_use]
pub fn mode_problem(file: &str, mode: u32, owner: u32, own_uid: u32) -> Option<String> {
    let bits = mode & 0o7777;
    if mode & 0o170_000 != 0 && mode & 0o170_000 != 0o100_000 {
        return Some(format!("`{file}` is not a regular file"));
    }
    if bits & 0o002 != 0 {
        return Some(format!(
            "`{file}` has mode `{bits:04o}`: everybody may write it; run `chmod o-w {file}`"
        ));
    }
    (owner != 0 && owner != own_uid).then(|| {
        format!(
            "`{file}` belongs to user {owner}; it must belong to root or to the agent's user \
             ({own_uid})"
        )
    })
}

/// A warning for a file that others may read although it holds a token; `None` if all is well.
#[must_use]
pub fn exposure(file: &str, mode: u32, settings: &Settings) -> Option<String> {
    let holds_token = settings.credentials.values().any(|c| c.token.is_some());
    (holds_token && mode & 0o004 != 0).then(|| {
        format!(
            "`{file}` holds a token and has mode `{:04o}`: everybody may read it; run \
             `chmod o-r {file}`, or use `token_file`",
            mode & 0o7777
        )
    })
}
