//! What can be changed: an [`Edit`] is a pure function from one document to the next.
//!
//! Whether the result is valid and fits the kernel is for `policy/` to say; whether it may be made
//! now (tags, trials) is for the agent.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::AdminError;
use crate::policy::model::{
    Algorithm, Client, Consistency, DEFAULT_SEGMENT, Document, LimitSpec, ListEntry, Mode,
    OnStoreLoss, Segment, Unit,
};
use crate::policy::units::Window;

/// Body of `PUT /v1/clients/{client_id}/limit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitPut {
    /// Units per `time_window`, 1 or more.
    #[serde(deserialize_with = "crate::policy::units::integral")]
    #[schema(minimum = 1)]
    pub rate_limit: u64,
    /// Seconds, or a duration such as `"5m"`; 1 s to 366 days.
    pub time_window: Window,
    /// Units admitted at one instant. Default: `rate_limit`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::policy::units::integral_option"
    )]
    #[schema(minimum = 1)]
    pub burst: Option<u64>,
    /// What is counted; requests by default.
    #[serde(default)]
    pub unit: Unit,
    /// Default: by unit and size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    /// Default: the client's, then the segment's, then the agent's mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Requests only. Default: leased where `redis.url` is set, else local.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// What counts while the shared store is away; hold by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_store_loss: Option<OnStoreLoss>,
    /// Moves the client into this segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
}

impl LimitPut {
    /// The limit without the segment.
    #[must_use]
    pub fn spec(&self) -> LimitSpec {
        LimitSpec {
            rate_limit: self.rate_limit,
            time_window: self.time_window,
            burst: self.burst,
            unit: self.unit,
            algorithm: self.algorithm,
            mode: self.mode,
            consistency: self.consistency,
            on_store_loss: self.on_store_loss,
        }
    }
}

/// Body of `POST /v1/allowlist` and `/v1/blocklist`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ListPut {
    /// An address or a prefix, host bits zero: `"192.0.2.7"`, `"2001:db8::/32"`.
    #[schema(example = "192.0.2.0/24")]
    pub cidr: String,
    /// Why, for people; at most 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 200)]
    pub reason: Option<String>,
    /// Seconds, or a duration such as `"5m"`, after which the entry ends; never if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Window>,
}

/// One of the two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ListName {
    /// Never limited.
    Allow,
    /// Dropped.
    Block,
}

impl ListName {
    /// The word used in paths of objects.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Block => "block",
        }
    }

    /// The list in `document`.
    #[must_use]
    pub fn of(self, document: &Document) -> &std::collections::BTreeMap<IpNet, ListEntry> {
        match self {
            Self::Allow => &document.allow,
            Self::Block => &document.block,
        }
    }

    fn of_mut(self, document: &mut Document) -> &mut std::collections::BTreeMap<IpNet, ListEntry> {
        match self {
            Self::Allow => &mut document.allow,
            Self::Block => &mut document.block,
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// Creates or replaces a client.
    PutClient(String, Client),
    /// Removes a client and its limits.
    RemoveClient(String),
    /// Sets one limit of a client, which is created if it does not exist.
    PutLimit {
        /// Client id.
        client: String,
        /// Name of the limit.
        name: String,
        /// The limit.
        limit: LimitPut,
    },
    /// Removes one limit of a client; the segment's applies again.
    RemoveLimit {
        /// Client id.
        client: String,
        /// Name of the limit.
        name: String,
    },
    /// Creates or replaces a segment.
    PutSegment(String, Segment),
    /// Removes a segment that no client names.
    RemoveSegment(String),
    /// Adds or replaces an entry of a list.
    PutList(ListName, IpNet, ListEntry),
    /// Removes an entry of a list.
    RemoveList(ListName, IpNet),
    /// Replaces everything.
    Replace(Box<Document>),
}

impl Edit {
    /// The object that changes, as a path: `clients/alice`, `block/10.0.0.0/8`, `document`.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::PutClient(id, _) | Self::RemoveClient(id) => format!("clients/{id}"),
            Self::PutLimit { client, .. } | Self::RemoveLimit { client, .. } => {
                format!("clients/{client}")
            }
            Self::PutSegment(name, _) | Self::RemoveSegment(name) => format!("segments/{name}"),
            Self::PutList(list, prefix, _) | Self::RemoveList(list, prefix) => {
                format!("{}/{prefix}", list.as_str())
            }
            Self::Replace(_) => "document".to_owned(),
        }
    }

    /// What is done, for people.
    #[must_use]
    pub fn what(&self) -> String {
        match self {
            Self::PutClient(id, _) => format!("set client `{id}`"),
            Self::RemoveClient(id) => format!("remove client `{id}`"),
            Self::PutLimit { client, name, .. } => {
                format!("set limit `{name}` of client `{client}`")
            }
            Self::RemoveLimit { client, name } => {
                format!("remove limit `{name}` of client `{client}`")
            }
            Self::PutSegment(name, _) => format!("set segment `{name}`"),
            Self::RemoveSegment(name) => format!("remove segment `{name}`"),
            Self::PutList(list, prefix, _) => format!("{} `{prefix}`", list.as_str()),
            Self::RemoveList(list, prefix) => {
                format!("remove `{prefix}` from the {} list", list.as_str())
            }
            Self::Replace(_) => "replace the whole configuration".to_owned(),
        }
    }

    /// The object at [`Self::path`] in `document` as JSON; null if it does not exist.
    #[must_use]
    pub fn object(&self, document: &Document) -> serde_json::Value {
        object(document, &self.path())
    }

    /// Makes the change. The result is not validated.
    pub fn apply(&self, document: &Document) -> Result<Document, AdminError> {
        let mut next = document.clone();
        match self {
            Self::PutClient(id, client) => {
                next.clients.insert(id.clone(), client.clone());
            }
            Self::RemoveClient(id) => {
                next.clients
                    .remove(id)
                    .ok_or_else(|| not_found("client", id))?;
            }
            Self::PutLimit {
                client,
                name,
                limit,
            } => {
                let entry = next.clients.entry(client.clone()).or_default();
                if limit.segment.is_some() {
                    entry.segment.clone_from(&limit.segment);
                }
                entry.limits.insert(name.clone(), limit.spec());
            }
            Self::RemoveLimit { client, name } => {
                let entry = next
                    .clients
                    .get_mut(client)
                    .ok_or_else(|| not_found("client", client))?;
                entry
                    .limits
                    .remove(name)
                    .ok_or_else(|| not_found("limit", name))?;
            }
            Self::PutSegment(name, segment) => {
                next.segments.insert(name.clone(), segment.clone());
            }
            Self::RemoveSegment(name) => remove_segment(&mut next, name)?,
            Self::PutList(list, prefix, entry) => {
                list.of_mut(&mut next).insert(*prefix, entry.clone());
            }
            Self::RemoveList(list, prefix) => {
                list.of_mut(&mut next)
                    .remove(prefix)
                    .ok_or_else(|| not_found(list.as_str(), &prefix.to_string()))?;
            }
            Self::Replace(with) => {
                next = (**with).clone();
                next.revision = document.revision;
            }
        }
        Ok(next)
    }
}

fn not_found(what: &'static str, name: &str) -> AdminError {
    AdminError::NotFound {
        what,
        name: name.to_owned(),
    }
}

fn remove_segment(next: &mut Document, name: &str) -> Result<(), AdminError> {
    if name == DEFAULT_SEGMENT {
        return Err(AdminError::Conflict(format!(
            "segment `{DEFAULT_SEGMENT}` cannot be removed: unknown clients have it"
        )));
    }
    if !next.segments.contains_key(name) {
        return Err(not_found("segment", name));
    }
    let members: Vec<&str> = next
        .clients
        .iter()
        .filter(|(_, client)| client.segment.as_deref() == Some(name))
        .map(|(id, _)| id.as_str())
        .collect();
    if let Some(first) = members.first() {
        return Err(AdminError::Conflict(format!(
            "segment `{name}` has {} clients, `{first}` among them; move them first",
            members.len()
        )));
    }
    next.segments.remove(name);
    Ok(())
}

/// The object at `path` in `document` as JSON; null if there is none.
#[must_use]
pub fn object(document: &Document, path: &str) -> serde_json::Value {
    let found = match path.split_once('/') {
        Some(("clients", id)) => document.clients.get(id).map(serde_json::to_value),
        Some(("segments", name)) => document.segments.get(name).map(serde_json::to_value),
        Some((list @ ("allow" | "block"), prefix)) => {
            prefix.parse().ok().and_then(|prefix: IpNet| {
                let list = if list == "allow" {
                    &document.allow
                } else {
                    &document.block
                };
                list.get(&prefix).map(serde_json::to_value)
            })
        }
        _ => Some(serde_json::to_value(document)),
    };
    // The model's keys are strings and its numbers finite: it always has a JSON form.
    found.and_then(Result::ok).unwrap_or_default()
}

/// Puts the object at `path` back to what it is in `before`, leaving everything else as in
/// `document`. The way back of a change on trial.
#[must_use]
pub fn restored(document: &Document, path: &str, before: &serde_json::Value) -> Option<Document> {
    fn parsed<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> Option<T> {
        serde_json::from_value(value.clone()).ok()
    }
    fn put<K: Ord, V>(map: &mut std::collections::BTreeMap<K, V>, key: K, value: Option<V>) {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
    let mut next = document.clone();
    match path.split_once('/') {
        Some(("clients", id)) => put(&mut next.clients, id.to_owned(), parsed(before)?),
        Some(("segments", name)) => put(&mut next.segments, name.to_owned(), parsed(before)?),
        Some(("allow", prefix)) => put(&mut next.allow, prefix.parse().ok()?, parsed(before)?),
        Some(("block", prefix)) => put(&mut next.block, prefix.parse().ok()?, parsed(before)?),
        _ => {
            next = parsed(before)?;
            next.revision = document.revision;
        }
    }
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(rate_limit: u64) -> LimitPut {
        LimitPut {
            rate_limit,
            time_window: Window::SECOND,
            burst: None,
            unit: Unit::Packets,
            algorithm: None,
            mode: None,
            segment: None,
            consistency: None,
            on_store_loss: None,
        }
    }

    fn put_limit(client: &str, rate_limit: u64) -> Edit {
        Edit::PutLimit {
            client: client.to_owned(),
            name: "default".to_owned(),
            limit: limit(rate_limit),
        }
    }

    #[test]
    fn setting_a_limit_creates_the_client() {
        let document = put_limit("alice", 10).apply(&Document::default()).unwrap();
        assert_eq!(document.clients["alice"].limits["default"].rate_limit, 10);
    }

    #[test]
    fn refuses_to_remove_what_is_not_there() {
        let error = Edit::RemoveClient("bob".to_owned())
            .apply(&Document::default())
            .unwrap_err();
        assert_eq!(error.to_string(), "there is no client `bob`");
        let document = put_limit("bob", 10).apply(&Document::default()).unwrap();
        let error = Edit::RemoveLimit {
            client: "bob".to_owned(),
            name: "other".to_owned(),
        }
        .apply(&document)
        .unwrap_err();
        assert_eq!(error.to_string(), "there is no limit `other`");
    }

    #[test]
    fn refuses_to_remove_a_segment_that_clients_name() {
        let mut document = Document::default();
        document
            .segments
            .insert("free".to_owned(), Segment::default());
        document.clients.insert(
            "alice".to_owned(),
            Client {
                segment: Some("free".to_owned()),
                ..Client::default()
            },
        );
        let remove = Edit::RemoveSegment("free".to_owned());
        assert_eq!(
            remove.apply(&document).unwrap_err().to_string(),
            "segment `free` has 1 clients, `alice` among them; move them first"
        );
        document.clients.clear();
        assert!(remove.apply(&document).unwrap().segments.is_empty());
        assert!(
            Edit::RemoveSegment("default".to_owned())
                .apply(&document)
                .is_err()
        );
    }

    #[test]
    fn restores_an_object_and_leaves_later_changes_alone() {
        let first = put_limit("alice", 10).apply(&Document::default()).unwrap();
        let edit = put_limit("alice", 1_000);
        let before = edit.object(&first);
        let second = edit.apply(&first).unwrap();
        let third = put_limit("bob", 5).apply(&second).unwrap();
        let back = restored(&third, &edit.path(), &before).unwrap();
        assert_eq!(back.clients["alice"].limits["default"].rate_limit, 10);
        assert!(back.clients.contains_key("bob"));

        let none = serde_json::Value::Null;
        let gone = restored(&third, "clients/alice", &none).unwrap();
        assert!(!gone.clients.contains_key("alice"));
    }

    #[test]
    fn replacing_keeps_the_revision_that_is_in_force() {
        let document = Document {
            revision: 7,
            ..Document::default()
        };
        let next = Edit::Replace(Box::default()).apply(&document).unwrap();
        assert_eq!(next.revision, 7);
    }
}
