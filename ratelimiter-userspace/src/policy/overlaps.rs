//! Prefixes against each other: one owner each, lists that win over clients, room in the tables.

use std::fmt;

use ipnet::IpNet;

use super::issue::Collector;
use super::keys::{is_narrow, is_nat64, narrow_sources};
use super::model::Document;
use super::set::Geometry;

pub(super) struct Overlaps<'a> {
    pub(super) document: &'a Document,
    pub(super) geometry: &'a Geometry,
    pub(super) errors: &'a mut Collector,
    pub(super) warnings: &'a mut Collector,
}

impl Overlaps<'_> {
    /// Every prefix that clients and segments claim, once.
    pub(super) fn claims(&mut self) {
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
    pub(super) fn conflicts(&mut self) {
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

    pub(super) fn capacity(&mut self) {
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
