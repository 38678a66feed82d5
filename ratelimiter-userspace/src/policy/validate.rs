//! What is wrong with a document: sentences that name the thing, the value and the bound.

use std::collections::BTreeMap;

use super::issue::Collector;
pub use super::issue::{Issue, Report, dotted};
use super::model::{
    Algorithm, Client, DEFAULT_SEGMENT, Document, LimitSpec, Limits, ListEntry, OnStoreLoss,
    Segment, Unit,
};
use super::names::{
    algorithm_word, client_id_problem, name_problem, prefix_problem, source_problem, unit_word,
};
use super::overlaps::Overlaps;
use super::resolve::KERNEL;
use super::set::Geometry;
use ipnet::IpNet;
use ratelimiter_common::abi::config::SEGMENTS;

/// Quotas of one client or segment.
pub const MAX_LIMITS: usize = 16;
/// Most refusals in a row before an escalation.
const MAX_REFUSALS: u32 = 1_000_000;
/// Largest weight of a segment.
pub const MAX_WEIGHT: u32 = 1_000;
/// Longest reason of a list entry, in characters.
pub const MAX_REASON_CHARS: usize = 200;

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
    let mut overlaps = Overlaps {
        document,
        geometry,
        errors: &mut check.errors,
        warnings: &mut check.warnings,
    };
    overlaps.claims();
    overlaps.conflicts();
    overlaps.capacity();
    Report {
        errors: check.errors.finish(),
        warnings: check.warnings.finish(),
    }
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
        if let Some(after) = segment.escalate_after
            && !(1..=MAX_REFUSALS).contains(&after)
        {
            self.errors.push(
                &["segments", name, "escalate_after"],
                format!(
                    "`escalate_after` of segment `{name}` is {after}; it must be between 1 and \
                     {MAX_REFUSALS}"
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
        if spec.unit != Unit::Requests && spec.consistency.is_some() {
            self.errors.push(
                &[kind, owner, "limits", name, "consistency"],
                format!(
                    "{who}: `consistency` is for `requests`; {} are settled with the fleet behind \
                     the packet, never waited for",
                    unit_word(spec.unit)
                ),
            );
        }
        if spec.unit != Unit::Requests && spec.on_store_loss == Some(OnStoreLoss::Deny) {
            self.errors.push(
                &[kind, owner, "limits", name, "on_store_loss"],
                format!(
                    "{who}: `on_store_loss` is `deny`; for {} it is `hold`, `strict` or `local` in \
                     this release",
                    unit_word(spec.unit)
                ),
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
            if let Some(problem) = prefix_problem(prefix)
                .or_else(|| source_problem(prefix, self.geometry.v6_prefix_len))
            {
                let n = n.to_string();
                self.errors.push(
                    &[kind, name, "sources", &n],
                    format!("{} `{name}`: {problem}", kind.trim_end_matches('s')),
                );
            }
        }
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
