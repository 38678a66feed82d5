//! What a file of segments, clients and lists would change: pure, from two documents to steps.
//!
//! Applying is `limits`' business, one request per step in the order given here: segments before
//! the clients that name them, removals last.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use serde::Serialize;

use super::limit_text::{limit_text, mode_word};
use super::output::{Style, Tint, clean};
use crate::policy::model::{Client, DEFAULT_SEGMENT, Document, Limits, ListEntry, Segment};

/// Kind of object a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A segment.
    Segment,
    /// A client.
    Client,
    /// An entry of the allow list.
    Allow,
    /// An entry of the block list.
    Block,
}

impl Kind {
    /// The word people read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Segment => "segment",
            Self::Client => "client",
            Self::Allow => "allow",
            Self::Block => "block",
        }
    }
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The object is new.
    Add,
    /// The object differs.
    Change,
    /// The object is not in the file, and pruning was asked for.
    Remove,
}

/// One field that differs; an absent side is a field that is not set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// `segment`, `limits.default`.
    pub field: String,
    /// What the agent has.
    pub before: Option<String>,
    /// What the file has.
    pub after: Option<String>,
}

/// One object that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// To what kind of object.
    pub kind: Kind,
    /// Its name, id or prefix.
    pub name: String,
    /// Fields that differ.
    pub fields: Vec<FieldChange>,
}

/// The steps from `current` to `desired`. Objects only in `current` are removed if `prune`, else
/// left alone; the default segment is never removed, expiring list entries neither.
pub fn diff(current: &Document, desired: &Document, prune: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut removals = Vec::new();
    let mut compare = |kind, before: BTreeMap<String, Fields>, after: BTreeMap<String, Fields>| {
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for name in names {
            let (action, fields) = match (before.get(name), after.get(name)) {
                (None, Some(after)) => (Action::Add, changes(&Fields::new(), after)),
                (Some(before), Some(after)) if before != after => {
                    (Action::Change, changes(before, after))
                }
                (Some(before), None) if prune => (Action::Remove, changes(before, &Fields::new())),
                _ => continue,
            };
            let step = Step {
                action,
                kind,
                name: name.clone(),
                fields,
            };
            if action == Action::Remove {
                removals.push(step);
            } else {
                steps.push(step);
            }
        }
    };
    compare(
        Kind::Segment,
        named(&current.segments, segment_fields),
        named(&desired.segments, segment_fields),
    );
    compare(
        Kind::Client,
        named(&current.clients, client_fields),
        named(&desired.clients, client_fields),
    );
    for (kind, before, after) in [
        (Kind::Allow, &current.allow, &desired.allow),
        (Kind::Block, &current.block, &desired.block),
    ] {
        let lasting: BTreeMap<_, _> = before
            .iter()
            .filter(|(prefix, entry)| {
                entry.expires_unix_ms.is_none() || after.contains_key(*prefix)
            })
            .collect();
        compare(
            kind,
            lasting
                .iter()
                .map(|(p, e)| (p.to_string(), entry_fields(e)))
                .collect(),
            named(after, entry_fields),
        );
    }
    removals.retain(|step| step.kind != Kind::Segment || step.name != DEFAULT_SEGMENT);
    // A segment can go only when no client names it any more.
    removals.sort_by_key(|step| std::cmp::Reverse(step.kind));
    steps.append(&mut removals);
    steps
}

/// Fields of an object as texts.
pub type Fields = BTreeMap<String, String>;

fn named<K: Display, T>(
    objects: &BTreeMap<K, T>,
    fields: fn(&T) -> Fields,
) -> BTreeMap<String, Fields> {
    objects
        .iter()
        .map(|(name, object)| (name.to_string(), fields(object)))
        .collect()
}

/// Fields that differ, by name.
pub fn changes(before: &Fields, after: &Fields) -> Vec<FieldChange> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| FieldChange {
            field: name.clone(),
            before: before.get(name).cloned(),
            after: after.get(name).cloned(),
        })
        .collect()
}

fn add_limits(fields: &mut Fields, limits: &Limits) {
    for (name, spec) in limits {
        fields.insert(format!("limits.{name}"), limit_text(spec));
    }
}

fn add<T: Display>(fields: &mut Fields, name: &str, value: Option<T>) {
    if let Some(value) = value {
        fields.insert(name.to_owned(), value.to_string());
    }
}

fn add_sources(fields: &mut Fields, sources: &[ipnet::IpNet]) {
    // Their order means nothing.
    let sources: BTreeSet<String> = sources.iter().map(ToString::to_string).collect();
    let text = sources.into_iter().collect::<Vec<_>>().join(", ");
    add(fields, "sources", (!text.is_empty()).then_some(text));
}

/// A segment's fields as texts.
pub fn segment_fields(segment: &Segment) -> Fields {
    let mut fields = Fields::new();
    add(&mut fields, "mode", segment.mode.map(mode_word));
    add(&mut fields, "weight", segment.weight);
    add(&mut fields, "backend", segment.backend.as_ref());
    add(&mut fields, "escalate_after", segment.escalate_after);
    add_sources(&mut fields, &segment.sources);
    add_limits(&mut fields, &segment.limits);
    fields
}

/// A client's fields as texts.
pub fn client_fields(client: &Client) -> Fields {
    let mut fields = Fields::new();
    add(&mut fields, "segment", client.segment.as_ref());
    add(&mut fields, "mode", client.mode.map(mode_word));
    add(&mut fields, "one_bucket", client.one_bucket);
    add_sources(&mut fields, &client.sources);
    add_limits(&mut fields, &client.limits);
    fields
}

fn entry_fields(entry: &ListEntry) -> Fields {
    let mut fields = Fields::new();
    add(&mut fields, "reason", entry.reason.as_ref());
    add(
        &mut fields,
        "ends",
        entry.expires_unix_ms.map(|_| "by itself"),
    );
    fields
}

/// The steps for people: `+` added, `~` changed, `-` removed.
pub fn render(steps: &[Step], style: Style) -> String {
    let mut text = String::new();
    for step in steps {
        let (sign, tint) = match step.action {
            Action::Add => ("+", Tint::Green),
            Action::Change => ("~", Tint::Yellow),
            Action::Remove => ("-", Tint::Red),
        };
        let head = format!("{sign} {} {}", step.kind.as_str(), clean(&step.name));
        text.push_str(&style.paint(tint, &head));
        text.push('\n');
        for field in &step.fields {
            let shown =
                |side: &Option<String>| side.as_deref().map_or_else(|| "not set".to_owned(), clean);
            let line = match step.action {
                Action::Add => shown(&field.after),
                Action::Remove => shown(&field.before),
                Action::Change => format!("{} -> {}", shown(&field.before), shown(&field.after)),
            };
            text.push_str(&format!("    {}: {line}\n", clean(&field.field)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::limit_text::parse_limit;

    fn client(segment: &str, limit: &str, sources: &[&str]) -> Client {
        let limit = parse_limit(limit).unwrap();
        Client {
            segment: Some(segment.to_owned()),
            sources: sources.iter().map(|s| s.parse().unwrap()).collect(),
            limits: Limits::from([(limit.name, limit.spec)]),
            ..Client::default()
        }
    }

    fn document(clients: &[(&str, Client)]) -> Document {
        Document {
            clients: clients
                .iter()
                .map(|(id, c)| ((*id).to_owned(), c.clone()))
                .collect(),
            segments: BTreeMap::from([(DEFAULT_SEGMENT.to_owned(), Segment::default())]),
            ..Document::default()
        }
    }

    #[test]
    fn equal_documents_differ_in_nothing() {
        let a = document(&[(
            "a",
            client("free", "5/s", &["192.0.2.1/32", "192.0.2.2/32"]),
        )]);
        let b = document(&[(
            "a",
            client("free", "5/s", &["192.0.2.2/32", "192.0.2.1/32"]),
        )]);
        assert_eq!(diff(&a, &b, true), vec![]);
    }

    #[test]
    fn shows_what_is_added_changed_and_removed() {
        let current = document(&[
            ("changed", client("free", "5/s", &[])),
            ("gone", client("free", "5/s", &[])),
        ]);
        let mut desired = document(&[
            ("changed", client("premium", "10k/min", &[])),
            ("new", client("free", "5/s", &["192.0.2.0/28"])),
        ]);
        desired.segments.insert(
            "premium".to_owned(),
            Segment {
                weight: Some(3),
                ..Segment::default()
            },
        );
        assert_eq!(
            render(&diff(&current, &desired, true), Style::PLAIN),
            "\
+ segment premium
    weight: 3
~ client changed
    limits.default: 5/s requests -> 10k/min requests
    segment: free -> premium
+ client new
    limits.default: 5/s requests
    segment: free
    sources: 192.0.2.0/28
- client gone
    limits.default: 5/s requests
    segment: free
"
        );
        let kept = diff(&current, &desired, false);
        assert!(kept.iter().all(|step| step.action != Action::Remove));
    }

    #[test]
    fn removes_clients_before_segments_and_never_the_default_one() {
        let mut current = document(&[("a", client("free", "5/s", &[]))]);
        current
            .segments
            .insert("free".to_owned(), Segment::default());
        let steps = diff(&current, &Document::default(), true);
        let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(names, ["a", "free"]);
    }

    #[test]
    fn leaves_expiring_blocks_alone() {
        let mut current = Document::default();
        let entry = |expires_unix_ms| ListEntry {
            expires_unix_ms,
            ..ListEntry::default()
        };
        current
            .block
            .insert("203.0.113.1/32".parse().unwrap(), entry(Some(5)));
        current
            .block
            .insert("203.0.113.2/32".parse().unwrap(), entry(None));
        let steps = diff(&current, &Document::default(), true);
        assert_eq!(steps.len(), 1);
        assert_eq!(steps[0].name, "203.0.113.2/32");

        let mut desired = current.clone();
        desired
            .block
            .insert("203.0.113.1/32".parse().unwrap(), entry(None));
        assert_eq!(
            render(&diff(&current, &desired, true), Style::PLAIN),
            "~ block 203.0.113.1/32\n    ends: by itself -> not set\n"
        );
    }
}
