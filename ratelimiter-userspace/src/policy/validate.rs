//! What is wrong with a document: sentences that name the thing, the value and the bound.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use ratelimiter_common::abi::config::SEGMENTS;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::keys::{is_narrow, is_nat64, narrow_sources};
use super::model::{
    Algorithm, Client, DEFAULT_SEGMENT, Document, LimitSpec, Limits, ListEntry,
    MAX_CLIENT_ID_BYTES, MAX_NAME_BYTES, Segment, Unit,
};
use super::resolve::KERNEL;
use super::set::Geometry;

/// Errors and warnings reported of each kind; what is beyond is counted.
pub const MAX_ISSUES: usize = 100;
/// Quotas of one client or segment.
pub const MAX_LIMITS: usize = 16;
/// Largest weight of a segment.
pub const MAX_WEIGHT: u32 = 1_000;
/// Longest reason of a list entry, in characters.
pub const MAX_REASON_CHARS: usize = 200;

/// One thing that is wrong, or probably not meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Issue {
    /// Where: names of fields, ids and positions from the document inwards.
    pub path: Vec<String>,
    /// What: names the thing, the value and the bound.
    pub message: String,
}

impl Issue {
    /// An issue at `path`.
    #[must_use]
    pub fn at(path: &[&str], message: String) -> Self {
        Self {
            path: path.iter().map(|&part| part.to_owned()).collect(),
            message,
        }
    }

    /// The path as it is written in TOML: `clients."a.b".sources[2]`.
    #[must_use]
    pub fn dotted(&self) -> String {
        dotted(&self.path)
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.dotted(), self.message)
    }
}

impl std::error::Error for Issue {}

/// Writes a path as TOML does; positions in brackets, other parts quoted where they must be.
#[must_use]
pub fn dotted(path: &[String]) -> String {
    let bare = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-')
    };
    let mut text = String::new();
    let mut before = "";
    for part in path {
        let position = matches!(
            before,
            "sources" | "interfaces" | "rights" | "trusted_proxies"
        ) || (text == before && matches!(before, "allow" | "block"));
        if position && !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit()) {
            text.push('[');
            text.push_str(part);
            text.push(']');
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            if bare(part) {
                text.push_str(part);
            } else {
                text.push('"');
                text.extend(part.escape_debug());
                text.push('"');
            }
        }
        before = part;
    }
    text
}

/// The outcome of [`validate`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Reasons to refuse the document.
    pub errors: Vec<Issue>,
    /// Legal, and probably not meant.
    pub warnings: Vec<Issue>,
}

/// Collects issues up to [`MAX_ISSUES`] and counts the rest.
#[derive(Default)]
struct Collector {
    issues: Vec<Issue>,
    beyond: u64,
}

impl Collector {
    fn push(&mut self, path: &[&str], message: String) {
        if self.issues.len() < MAX_ISSUES {
            self.issues.push(Issue::at(path, message));
        } else {
            self.beyond += 1;
        }
    }

    fn finish(mut self) -> Vec<Issue> {
        if self.beyond > 0 {
            self.issues.push(Issue::at(
                &[],
                format!("and {} more of this kind", self.beyond),
            ));
        }
        self.issues
    }
}

/// Checks everything that can be known without the kernel.
#[must_use]
pub fn validate(document: &Document, geometry: &Geometry) -> Report {
    let mut check = Check {
        document,
        geometry,
        errors: Collector::default(),
        warnings: Collector::default(),
    };
    check.segments();
    check.clients();
    check.lists();
    check.claims();
    check.conflicts();
    check.capacity();
    Report {
        errors: check.errors.finish(),
        warnings: check.warnings.finish(),
    }
}

/// Why a name of a segment, limit or backend is refused; `None` if it is legal.
#[must_use]
pub fn name_problem(what: &str, name: &str) -> Option<String> {
    let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_' || c == b'-';
    if name.is_empty() {
        return Some(format!(
            "a {what} has an empty name; it must have 1 to {MAX_NAME_BYTES} characters"
        ));
    }
    if name.len() > MAX_NAME_BYTES {
        return Some(format!(
            "{what} `{}...` has a name of {} bytes; it must have at most {MAX_NAME_BYTES}",
            shorten(name, 24),
            name.len()
        ));
    }
    (!name.bytes().all(legal)).then(|| {
        format!(
            "{what} `{}` has characters other than a-z, 0-9, _ and -",
            name.escape_debug()
        )
    })
}

/// Why a client id is refused; `None` if it is legal.
#[must_use]
pub fn client_id_problem(id: &str) -> Option<String> {
    if id.is_empty() {
        return Some(format!(
            "a client has an empty id; it must have 1 to {MAX_CLIENT_ID_BYTES} bytes"
        ));
    }
    if id.len() > MAX_CLIENT_ID_BYTES {
        return Some(format!(
            "client `{}...` has an id of {} bytes; it must have at most {MAX_CLIENT_ID_BYTES}",
            shorten(id, 24).escape_debug(),
            id.len()
        ));
    }
    id.chars().any(char::is_control).then(|| {
        format!(
            "client `{}` has a control character in its id",
            id.escape_debug()
        )
    })
}

fn shorten(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

/// Why a prefix is refused anywhere; `None` if it is legal.
#[must_use]
pub fn prefix_problem(prefix: &IpNet) -> Option<String> {
    if let IpNet::V6(six) = prefix {
        let mapped = u128::from(six.network()) >> 32 == 0xffff;
        if mapped && six.prefix_len() >= 96 {
            let four = u128::from(six.addr()) as u32;
            return Some(format!(
                "`{prefix}` is an IPv4-mapped prefix; no packet has such a source: write `{}/{}`",
                std::net::Ipv4Addr::from(four),
                six.prefix_len() - 96
            ));
        }
    }
    (prefix.trunc() != *prefix).then(|| {
        format!(
            "`{prefix}` has host bits set; write `{}` for the prefix or `{}` for the address",
            prefix.trunc(),
            IpNet::from(prefix.addr())
        )
    })
}

struct Check<'a> {
    document: &'a Document,
    geometry: &'a Geometry,
    errors: Collector,
    warnings: Collector,
}

impl Check<'_> {
    fn segments(&mut self) {
        let document = self.document;
        let count =
            document.segments.len() + usize::from(!document.segments.contains_key(DEFAULT_SEGMENT));
        if count > SEGMENTS {
            self.errors.push(
                &["segments"],
                format!(
                    "there are {count} segments, the default one included; there may be at most \
                     {SEGMENTS}"
                ),
            );
        }
        for (name, segment) in &document.segments {
            if let Some(problem) = name_problem("segment", name) {
                self.errors.push(&["segments", name], problem);
            }
            self.segment(name, segment);
        }
    }

    fn segment(&mut self, name: &str, segment: &Segment) {
        if let Some(weight) = segment.weight
            && !(1..=MAX_WEIGHT).contains(&weight)
        {
            self.errors.push(
                &["segments", name, "weight"],
                format!(
                    "`weight` of segment `{name}` is {weight}; it must be between 1 and \
                     {MAX_WEIGHT}"
                ),
            );
        }
        if let Some(backend) = &segment.backend
            && let Some(problem) = name_problem("backend", backend)
        {
            self.errors.push(&["segments", name, "backend"], problem);
        }
        self.limits(&["segments", name], &segment.limits);
        self.sources(&["segments", name], &segment.sources);
    }

    fn clients(&mut self) {
        let document = self.document;
        for (id, client) in &document.clients {
            let path = ["clients", id.as_str()];
            if let Some(problem) = client_id_problem(id) {
                self.errors.push(&path, problem);
            }
            if let Some(segment) = &client.segment
                && segment != DEFAULT_SEGMENT
                && !document.segments.contains_key(segment)
            {
                self.errors.push(
                    &["clients", id, "segment"],
                    unknown_segment(id, segment, document),
                );
            }
            self.limits(&path, &client.limits);
            self.sources(&path, &client.sources);
            self.without_sources(id, client);
        }
    }

    fn without_sources(&mut self, id: &str, client: &Client) {
        if !client.sources.is_empty() {
            return;
        }
        if let Some((name, spec)) = client
            .limits
            .iter()
            .find(|(_, spec)| KERNEL.contains(&spec.unit))
        {
            self.warnings.push(
                &["clients", id, "limits", name],
                format!(
                    "limit `{name}` of client `{id}` counts {} and has no effect: the client \
                     names no `sources`",
                    unit_word(spec.unit)
                ),
            );
        }
        if client.one_bucket.is_some() {
            self.warnings.push(
                &["clients", id, "one_bucket"],
                format!(
                    "`one_bucket` of client `{id}` has no effect: the client names no `sources`"
                ),
            );
        }
    }

    fn limits(&mut self, owner: &[&str; 2], limits: &Limits) {
        let [kind, name] = *owner;
        if limits.len() > MAX_LIMITS {
            self.errors.push(
                &[kind, name, "limits"],
                format!(
                    "{} `{name}` has {} limits; it may have at most {MAX_LIMITS}",
                    kind.trim_end_matches('s'),
                    limits.len()
                ),
            );
        }
        let mut seen: BTreeMap<Unit, &str> = BTreeMap::new();
        for (limit, spec) in limits {
            let path = [kind, name, "limits", limit.as_str()];
            if let Some(problem) = name_problem("limit", limit) {
                self.errors.push(&path, problem);
            }
            self.limit(&path, spec);
            if KERNEL.contains(&spec.unit)
                && let Some(first) = seen.insert(spec.unit, limit)
            {
                self.errors.push(
                    &path,
                    format!(
                        "limits `{first}` and `{limit}` of {} `{name}` both count {}; the kernel \
                         holds one limit per unit",
                        kind.trim_end_matches('s'),
                        unit_word(spec.unit)
                    ),
                );
            }
        }
    }

    fn limit(&mut self, path: &[&str; 4], spec: &LimitSpec) {
        let [kind, owner, _, name] = *path;
        let who = format!("limit `{name}` of {} `{owner}`", kind.trim_end_matches('s'));
        if let Err(error) = spec.limit() {
            use ratelimiter_common::quota::QuotaError;
            let field = match error {
                QuotaError::ZeroBurst | QuotaError::BurstTooLarge(_) => "burst",
                QuotaError::Window(_) => "time_window",
                QuotaError::ZeroRate | QuotaError::TooFast(..) => "rate_limit",
            };
            self.errors.push(
                &[kind, owner, "limits", name, field],
                format!("{who}: {error}"),
            );
        }
        let Some(algorithm) = spec.algorithm else {
            return;
        };
        if spec.unit != Unit::Requests && algorithm != Algorithm::TokenBucket {
            self.errors.push(
                &[kind, owner, "limits", name, "algorithm"],
                format!(
                    "{who}: `algorithm` is `{}`; {} are limited by `token_bucket` only",
                    algorithm_word(algorithm),
                    unit_word(spec.unit)
                ),
            );
        }
        if let Some(burst) = spec.burst
            && algorithm != Algorithm::TokenBucket
            && spec.unit == Unit::Requests
            && burst != spec.rate_limit
        {
            self.errors.push(
                &[kind, owner, "limits", name, "burst"],
                format!(
                    "{who}: `burst` is {burst}, but `{}` admits exactly `rate_limit` ({}) per \
                     window; leave `burst` out or set `algorithm` to `token_bucket`",
                    algorithm_word(algorithm),
                    spec.rate_limit
                ),
            );
        }
    }

    fn sources(&mut self, owner: &[&str; 2], sources: &[IpNet]) {
        let [kind, name] = *owner;
        for (n, prefix) in sources.iter().enumerate() {
            if let Some(problem) = prefix_problem(prefix).or_else(|| self.source_problem(prefix)) {
                let n = n.to_string();
                self.errors.push(
                    &[kind, name, "sources", &n],
                    format!("{} `{name}`: {problem}", kind.trim_end_matches('s')),
                );
            }
        }
    }

    /// Why a prefix cannot have limits of its own.
    fn source_problem(&self, prefix: &IpNet) -> Option<String> {
        let IpNet::V6(six) = prefix else {
            return None;
        };
        let v6_len = self.geometry.v6_prefix_len;
        let first = (u128::from(six.network()) >> 120) as u8;
        if is_nat64(prefix) {
            return None;
        }
        if six.prefix_len() >= 8 && (first == 0 || first == 0xff) {
            return Some(format!(
                "`{prefix}` lies in {}, from where no packet comes",
                if first == 0 { "::/8" } else { "ff00::/8" }
            ));
        }
        if six.prefix_len() >= 10 && u128::from(six.network()) >> 118 == 0xfe80 >> 6 {
            return Some(format!(
                "`{prefix}` is link-local; such addresses cannot be told apart between \
                 interfaces, so they have the default segment's limit"
            ));
        }
        (six.prefix_len() > v6_len).then(|| {
            format!(
                "`{prefix}` is longer than /{v6_len}, which is one source (`kernel.v6_prefix_len`); \
                 write `{}`",
                six.supernet_of(v6_len)
            )
        })
    }

    fn lists(&mut self) {
        let document = self.document;
        self.list("allow", &document.allow);
        self.list("block", &document.block);
    }

    fn list(&mut self, kind: &str, list: &BTreeMap<IpNet, ListEntry>) {
        for (prefix, entry) in list {
            if let Some(problem) = prefix_problem(prefix) {
                self.errors.push(
                    &[kind, &prefix.to_string()],
                    format!("{kind} list: {problem}"),
                );
            }
            if let Some(reason) = &entry.reason
                && reason.len() > MAX_REASON_CHARS
                && reason.chars().count() > MAX_REASON_CHARS
            {
                self.errors.push(
                    &[kind, &prefix.to_string(), "reason"],
                    format!(
                        "`reason` of {kind} `{prefix}` has {} characters; it may have at most \
                         {MAX_REASON_CHARS}",
                        reason.chars().count()
                    ),
                );
            }
        }
        if kind == "block" {
            for prefix in list.keys().filter(|prefix| prefix.prefix_len() == 0) {
                self.warnings.push(
                    &[kind, &prefix.to_string()],
                    format!(
                        "block `{prefix}` drops every {} packet that is not allowed",
                        if matches!(prefix, IpNet::V4(_)) {
                            "IPv4"
                        } else {
                            "IPv6"
                        }
                    ),
                );
            }
        }
    }

    /// Every prefix that clients and segments claim, once.
    fn claims(&mut self) {
        let document = self.document;
        let mut claims: Vec<(IpNet, Owner)> = Vec::new();
        for (name, segment) in &document.segments {
            claims.extend(segment.sources.iter().map(|p| (*p, Owner::Segment(name))));
        }
        for (id, client) in &document.clients {
            claims.extend(client.sources.iter().map(|p| (*p, Owner::Client(id))));
        }
        claims.sort_by_key(|(prefix, _)| *prefix);
        for pair in claims.windows(2) {
            let [(first, a), (second, b)] = pair else {
                continue;
            };
            if first != second {
                continue;
            }
            match (a, b) {
                (Owner::Segment(segment), Owner::Client(client)) => self.warnings.push(
                    &["clients", client, "sources"],
                    format!(
                        "prefix `{first}` is a source of segment `{segment}` and of client \
                         `{client}`; the client has it"
                    ),
                ),
                (a, b) if a == b => self.errors.push(
                    &[b.kind(), b.name(), "sources"],
                    format!("{b} names the prefix `{first}` twice"),
                ),
                (a, b) => self.errors.push(
                    &[b.kind(), b.name(), "sources"],
                    format!(
                        "prefix `{first}` is a source of {a} and of {b}; it can have one owner"
                    ),
                ),
            }
        }
    }

    /// Lists against each other, and against clients.
    fn conflicts(&mut self) {
        let document = self.document;
        for (inner, outer) in nested(document.block.keys(), document.allow.keys()) {
            self.warnings.push(
                &["block", &inner.to_string()],
                format!(
                    "block `{inner}` has no effect: allow `{outer}` wins over every block inside it"
                ),
            );
        }
        let mut sources: Vec<(IpNet, &str)> = document
            .clients
            .iter()
            .flat_map(|(id, client)| client.sources.iter().map(move |p| (*p, id.as_str())))
            .collect();
        sources.sort_unstable();
        let owner = |prefix: &IpNet| {
            sources
                .binary_search_by_key(prefix, |(p, _)| *p)
                .ok()
                .and_then(|at| sources.get(at))
                .map_or("", |(_, id)| *id)
        };
        for (list, verb) in [
            (&document.allow, "is never limited"),
            (&document.block, "is dropped"),
        ] {
            let prefixes = sources.iter().map(|(prefix, _)| prefix);
            for (inner, outer) in nested(prefixes, list.keys()) {
                let id = owner(inner);
                let kind = if std::ptr::eq(list, &raw const document.allow) {
                    "allow"
                } else {
                    "block"
                };
                self.warnings.push(
                    &["clients", id, "sources"],
                    format!(
                        "source `{inner}` of client `{id}` {verb}: {kind} `{outer}` comes first"
                    ),
                );
            }
        }
        // A packet of a tracked source does not ask the trie for its full address.
        let v6_len = self.geometry.v6_prefix_len;
        for (kind, list) in [("allow", &document.allow), ("block", &document.block)] {
            let long = list
                .keys()
                .filter(|p| matches!(p, IpNet::V6(_)) && p.prefix_len() > v6_len && !is_nat64(p));
            let prefixes: Vec<IpNet> = sources.iter().map(|(prefix, _)| *prefix).collect();
            for (inner, outer) in nested(long, prefixes.iter()) {
                self.warnings.push(
                    &[kind, &inner.to_string()],
                    format!(
                        "{kind} `{inner}` may have no effect: it is part of one tracked source of \
                         client `{}` (`{outer}`), and a source is a /{v6_len}",
                        owner(outer)
                    ),
                );
            }
        }
    }

    fn capacity(&mut self) {
        let v6_len = self.geometry.v6_prefix_len;
        let mut addresses = 0_u64;
        let mut count = [self.document.allow.len(), self.document.block.len()]
            .iter()
            .sum::<usize>() as u64;
        let sources = self
            .document
            .clients
            .values()
            .map(|client| (client.one_bucket, &client.sources))
            .chain(
                self.document
                    .segments
                    .values()
                    .map(|segment| (Some(false), &segment.sources)),
            );
        for (one_bucket, prefixes) in sources {
            let mut shared = false;
            for prefix in prefixes {
                let narrow = is_narrow(prefix, v6_len);
                if narrow && one_bucket != Some(true) {
                    addresses += u64::from(narrow_sources(prefix, v6_len));
                } else {
                    shared |= one_bucket != Some(false);
                }
            }
            addresses += u64::from(shared);
            count += prefixes.len() as u64;
        }
        let limit = self.geometry.tracked_limit();
        if addresses > limit {
            self.errors.push(
                &["clients"],
                format!(
                    "clients name {addresses} addresses and shared buckets; the tracked table \
                     takes {limit} (75 % of `tables.tracked`, {}): raise it, or use wider prefixes",
                    self.geometry.tracked
                ),
            );
        }
        let bound = u64::from(self.geometry.prefixes);
        if count > bound {
            let six = self.v6_prefixes();
            for (version, count) in [("IPv4", count - six), ("IPv6", six)] {
                if count > bound {
                    self.errors.push(
                        &["tables", "prefixes"],
                        format!(
                            "there are {count} {version} prefixes of clients, segments and lists; \
                             the table takes {bound} (`tables.prefixes`)"
                        ),
                    );
                }
            }
        }
    }

    fn v6_prefixes(&self) -> u64 {
        let document = self.document;
        document
            .allow
            .keys()
            .chain(document.block.keys())
            .chain(document.clients.values().flat_map(|c| &c.sources))
            .chain(document.segments.values().flat_map(|s| &s.sources))
            .filter(|prefix| matches!(prefix, IpNet::V6(_)))
            .count() as u64
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner<'a> {
    Segment(&'a str),
    Client(&'a str),
}

impl<'a> Owner<'a> {
    fn kind(self) -> &'static str {
        match self {
            Self::Segment(_) => "segments",
            Self::Client(_) => "clients",
        }
    }

    fn name(self) -> &'a str {
        match self {
            Self::Segment(name) | Self::Client(name) => name,
        }
    }
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => write!(f, "segment `{name}`"),
            Self::Client(id) => write!(f, "client `{id}`"),
        }
    }
}

fn unknown_segment(id: &str, segment: &str, document: &Document) -> String {
    let known: Vec<&str> = std::iter::once(DEFAULT_SEGMENT)
        .chain(document.segments.keys().map(String::as_str))
        .filter(|name| *name != DEFAULT_SEGMENT)
        .chain(std::iter::once(DEFAULT_SEGMENT))
        .take(8)
        .collect();
    format!(
        "client `{id}` names the segment `{}`, which does not exist; there are `{}`",
        segment.escape_debug(),
        known.join("`, `")
    )
}

/// Pairs of an inner prefix and the least specific outer one that covers it; both ascending.
fn nested<'a>(
    inner: impl Iterator<Item = &'a IpNet>,
    outer: impl Iterator<Item = &'a IpNet>,
) -> impl Iterator<Item = (&'a IpNet, &'a IpNet)> {
    let mut outer = outer.peekable();
    let mut around: Option<&'a IpNet> = None;
    inner.filter_map(move |prefix| {
        while let Some(next) = outer.next_if(|candidate| *candidate <= prefix) {
            if around.is_none_or(|around| !around.contains(next)) {
                around = Some(next);
            }
        }
        around
            .filter(|around| around.contains(prefix))
            .map(|around| (prefix, around))
    })
}

/// The word for a unit in sentences.
#[must_use]
pub fn unit_word(unit: Unit) -> &'static str {
    ratelimiter_common::quota::Unit::from(unit).as_str()
}

/// The word for an algorithm in configuration and sentences.
#[must_use]
pub fn algorithm_word(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::TokenBucket => "token_bucket",
        Algorithm::SlidingLog => "sliding_log",
        Algorithm::SlidingWindow => "sliding_window",
        Algorithm::FixedWindow => "fixed_window",
    }
}

/// The prefix of length `len` around a longer one.
trait Supernet {
    fn supernet_of(&self, len: u8) -> IpNet;
}

impl Supernet for ipnet::Ipv6Net {
    fn supernet_of(&self, len: u8) -> IpNet {
        Self::new(self.addr(), len).map_or(IpNet::V6(*self), |net| IpNet::V6(net.trunc()))
    }
}
