//! Why a source or a client is treated as it is: the rule that applies, those it wins over, and the
//! limits that follow, with whose they are.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::keys::{is_narrow, source_key};
use super::model::{Algorithm, Client, DEFAULT_SEGMENT, Document, ListEntry, Mode, Unit};
use super::names::{algorithm_word, unit_word};
use super::prefixes::unmapped;
use super::resolve::{Effective, Source, kernel_limits, request_limits, segment_of};

/// What kind of rule it is. The order is that of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// Never limited.
    Allow,
    /// Dropped.
    Block,
    /// A client's prefix.
    Client,
    /// A segment's prefix.
    Segment,
    /// Nobody's: the default segment.
    Default,
    /// No packet can come from there.
    NoSource,
}

/// A rule whose prefix covers the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rule {
    /// What kind.
    pub kind: RuleKind,
    /// Its prefix; absent for the default segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub prefix: Option<IpNet>,
    /// Client id or segment name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Why it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When it ends, milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_ms: Option<u64>,
}

/// Where the source's tokens are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bucket {
    /// None: nothing is charged.
    None,
    /// One of its own in the tracked table.
    Tracked,
    /// One for all sources of the client.
    Shared,
    /// One of its own in the crowd.
    Crowd,
}

/// A limit that applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppliedLimit {
    /// Its name.
    pub name: String,
    /// What is counted.
    pub unit: Unit,
    /// Units per window.
    pub rate_limit: u64,
    /// The window in milliseconds.
    pub window_ms: u64,
    /// Units admitted at one instant.
    pub burst: u64,
    /// How arrivals are judged.
    pub algorithm: Algorithm,
    /// Shadow or enforce, bounded by the agent's mode.
    pub mode: Mode,
    /// Whose limit it is.
    pub source: Source,
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// What was asked about.
    pub subject: String,
    /// The source's key in the kernel, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The rule that applies; for a client that is asked about by id, the client.
    pub rule: Rule,
    /// Rules that cover the source too and lose, in order of precedence.
    pub others: Vec<Rule>,
    /// The segment.
    pub segment: String,
    /// Where the tokens are.
    pub bucket: Bucket,
    /// Limits of packets, bytes and connections.
    pub limits: Vec<AppliedLimit>,
    /// Limits of the check API; empty for a source that belongs to no client.
    pub requests: Vec<AppliedLimit>,
    /// All of it in one sentence.
    pub sentence: String,
}

impl From<Effective<'_>> for AppliedLimit {
    fn from(limit: Effective<'_>) -> Self {
        let quota = limit.spec.quota();
        Self {
            name: limit.name.to_owned(),
            unit: limit.spec.unit,
            rate_limit: quota.rate_limit,
            window_ms: quota.window_ns / 1_000_000,
            burst: quota.burst,
            algorithm: limit.spec.algorithm(),
            mode: limit.mode,
            source: limit.source,
        }
    }
}

impl fmt::Display for AppliedLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.rate_limit, unit_word(self.unit))?;
        match self.window_ms {
            1_000 => f.write_str(" per second")?,
            60_000 => f.write_str(" per minute")?,
            ms => write!(f, " per {} s", ms as f64 / 1_000.0)?,
        }
        let whose = match self.source {
            Source::Client => "the client's own",
            Source::Segment => "the segment's",
            Source::DefaultSegment => "the default segment's",
        };
        let mode = match self.mode {
            Mode::Off => "off",
            Mode::Shadow => "shadow: counted, never dropped",
            Mode::Enforce => "enforced",
        };
        if self.algorithm == Algorithm::TokenBucket {
            write!(f, ", burst {}", self.burst)?;
        }
        write!(
            f,
            ", {} (limit `{}`, {whose}, {mode})",
            algorithm_word(self.algorithm),
            self.name
        )
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or_default();
        match self.kind {
            RuleKind::Allow => f.write_str("allow list")?,
            RuleKind::Block => f.write_str("block list")?,
            RuleKind::Client => write!(f, "client `{name}`")?,
            RuleKind::Segment => write!(f, "segment `{name}`")?,
            RuleKind::Default => f.write_str("the default segment")?,
            RuleKind::NoSource => f.write_str("no legal source")?,
        }
        if let Some(prefix) = &self.prefix {
            write!(f, " `{prefix}`")?;
        }
        if let Some(by) = &self.by {
            write!(f, ", set by `{by}`")?;
        }
        if let Some(reason) = &self.reason {
            write!(f, " ({})", reason.escape_debug())?;
        }
        Ok(())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.sentence)?;
        writeln!(f, "rule:    {}", self.rule)?;
        for other in &self.others {
            writeln!(f, "also:    {other}")?;
        }
        if let Some(key) = &self.key {
            writeln!(f, "key:     {key}")?;
        }
        for limit in self.limits.iter().chain(&self.requests) {
            writeln!(f, "limit:   {limit}")?;
        }
        Ok(())
    }
}

/// Every rule whose prefix covers `address` at `now_unix_ms`, in order of precedence: allow before
/// block before clients and segments, the most specific first within each.
fn rules(document: &Document, address: IpAddr, now_unix_ms: u64) -> Vec<Rule> {
    let host = IpNet::from(address);
    let around: Vec<IpNet> = std::iter::successors(Some(host), IpNet::supernet).collect();
    let mut found = Vec::new();
    let lists = [
        (RuleKind::Allow, &document.allow),
        (RuleKind::Block, &document.block),
    ];
    for (kind, list) in lists {
        let live = |entry: &&ListEntry| entry.expires_unix_ms.is_none_or(|at| at > now_unix_ms);
        for prefix in &around {
            if let Some(entry) = list.get(prefix).filter(live) {
                found.push(Rule {
                    kind,
                    prefix: Some(*prefix),
                    name: None,
                    reason: entry.reason.clone(),
                    by: entry.by.clone(),
                    expires_unix_ms: entry.expires_unix_ms,
                });
            }
        }
    }
    let clients = document.clients.iter().flat_map(|(id, client)| {
        client
            .sources
            .iter()
            .map(move |p| (p, RuleKind::Client, id))
    });
    let segments = document
        .segments
        .iter()
        .flat_map(|(name, s)| s.sources.iter().map(move |p| (p, RuleKind::Segment, name)));
    let mut owners: Vec<_> = clients
        .chain(segments)
        .filter(|(prefix, ..)| prefix.contains(&host))
        .collect();
    // Stable: of a client and a segment with the same prefix the client comes first.
    owners.sort_by_key(|(prefix, ..)| std::cmp::Reverse(prefix.prefix_len()));
    found.extend(owners.into_iter().map(|(prefix, kind, name)| Rule {
        kind,
        prefix: Some(*prefix),
        name: Some(name.clone()),
        reason: None,
        by: None,
        expires_unix_ms: None,
    }));
    found
}

/// Explains a source address.
#[must_use]
pub fn explain_source(
    document: &Document,
    address: IpAddr,
    agent: Mode,
    v6_prefix_len: u8,
    now_unix_ms: u64,
) -> Explanation {
    let address = unmapped(address);
    let key = source_key(address, v6_prefix_len);
    let mut rules = rules(document, address, now_unix_ms).into_iter();
    let none = |kind| Rule {
        kind,
        prefix: None,
        name: None,
        reason: None,
        by: None,
        expires_unix_ms: None,
    };
    let rule = match key {
        None => none(RuleKind::NoSource),
        Some(_) => rules.next().unwrap_or_else(|| none(RuleKind::Default)),
    };
    let others: Vec<Rule> = rules.collect();
    let name = rule.name.as_deref().unwrap_or_default();
    let client = (rule.kind == RuleKind::Client)
        .then(|| document.clients.get(name))
        .flatten();
    let segment = match (rule.kind, client) {
        (_, Some(client)) => segment_of(client),
        (RuleKind::Segment, None) => name,
        _ => DEFAULT_SEGMENT,
    };
    let limited = matches!(
        rule.kind,
        RuleKind::Client | RuleKind::Segment | RuleKind::Default
    );
    let limits: Vec<AppliedLimit> = if limited {
        kernel_limits(document, client, segment, agent)
            .into_iter()
            .flatten()
            .map(AppliedLimit::from)
            .collect()
    } else {
        Vec::new()
    };
    let bucket = match (&rule.prefix, client) {
        _ if !limited => Bucket::None,
        (Some(prefix), client) => bucket(prefix, client, v6_prefix_len),
        (None, _) => Bucket::Crowd,
    };
    let requests = client.map_or_else(Vec::new, |client| {
        request_limits(document, Some(client), segment, agent)
            .into_iter()
            .map(AppliedLimit::from)
            .collect()
    });
    let sentence = sentence(&format!("`{address}`"), &rule, &limits, agent);
    Explanation {
        subject: address.to_string(),
        key: key.map(|key| format!("{key:016x}")),
        segment: segment.to_owned(),
        rule,
        others,
        bucket,
        limits,
        requests,
        sentence,
    }
}

fn bucket(prefix: &IpNet, client: Option<&Client>, v6_prefix_len: u8) -> Bucket {
    let narrow = is_narrow(prefix, v6_prefix_len);
    match client.map(|client| client.one_bucket) {
        Some(Some(true)) => Bucket::Shared,
        _ if narrow => Bucket::Tracked,
        Some(None) => Bucket::Shared,
        Some(Some(false)) | None => Bucket::Crowd,
    }
}

fn sentence(who: &str, rule: &Rule, limits: &[AppliedLimit], agent: Mode) -> String {
    let shadow = if agent == Mode::Enforce {
        ""
    } else {
        "; the agent is in shadow and drops nothing"
    };
    match rule.kind {
        RuleKind::Allow => format!("{who} is never limited: it is on the {rule}"),
        RuleKind::Block => format!("{who} is dropped: it is on the {rule}{shadow}"),
        RuleKind::NoSource => {
            format!("{who} is no address a packet can come from; such frames are malformed")
        }
        _ if limits.iter().all(|limit| limit.mode == Mode::Off) => {
            format!("{who} is not limited: the limits of {rule} are switched off")
        }
        _ => {
            let words: Vec<String> = limits
                .iter()
                .filter(|limit| limit.mode != Mode::Off)
                .map(|limit| {
                    format!(
                        "{} {} per {} s",
                        limit.rate_limit,
                        unit_word(limit.unit),
                        limit.window_ms as f64 / 1_000.0
                    )
                })
                .collect();
            format!(
                "{who} is limited to {} by {rule}{shadow}",
                words.join(" and ")
            )
        }
    }
}

/// Explains a client by its id; an unknown one is treated as one of the default segment.
#[must_use]
pub fn explain_client(document: &Document, id: &str, agent: Mode) -> Explanation {
    let client = document.clients.get(id);
    let segment = client.map_or(DEFAULT_SEGMENT, segment_of);
    let view = |limits: Vec<Effective<'_>>| -> Vec<AppliedLimit> {
        limits.into_iter().map(AppliedLimit::from).collect()
    };
    let requests = view(request_limits(document, client, segment, agent));
    let sources = client.is_some_and(|client| !client.sources.is_empty());
    let limits = if sources {
        let limits = kernel_limits(document, client, segment, agent);
        view(limits.into_iter().flatten().collect())
    } else {
        Vec::new()
    };
    let who = format!("client `{}`", id.escape_debug());
    let words: Vec<String> = requests.iter().map(ToString::to_string).collect();
    let known = if client.is_some() {
        format!("is in segment `{segment}`")
    } else {
        "is not configured and has the default segment's limits".to_owned()
    };
    Explanation {
        subject: id.to_owned(),
        key: None,
        rule: Rule {
            kind: if client.is_some() {
                RuleKind::Client
            } else {
                RuleKind::Default
            },
            prefix: None,
            name: client.map(|_| id.to_owned()),
            reason: None,
            by: None,
            expires_unix_ms: None,
        },
        others: Vec::new(),
        segment: segment.to_owned(),
        bucket: Bucket::None,
        sentence: format!("{who} {known}: {}", words.join("; ")),
        limits,
        requests,
    }
}
