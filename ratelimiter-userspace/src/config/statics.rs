//! The static part of a configuration: segments, clients and lists that stand in the file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use ipnet::IpNet;

use super::settings::{Settings, StaticPrefix};
use crate::policy::model::{Document, ListEntry};
use crate::policy::resolve::normalise;
use crate::policy::validate::Issue;

/// Who put it there, for whatever the file configures.
pub const BY_CONFIG: &str = "config";

/// The document that the file's static part amounts to, and prefixes that it lists twice.
#[must_use]
pub fn static_document(settings: &Settings) -> (Document, Vec<Issue>) {
    let mut issues = Vec::new();
    let mut list = |kind: &str, entries: &[StaticPrefix]| {
        let mut map: BTreeMap<IpNet, ListEntry> = BTreeMap::new();
        for (n, entry) in entries.iter().enumerate() {
            match map.entry(entry.prefix) {
                Entry::Vacant(place) => {
                    place.insert(ListEntry {
                        reason: entry.reason.clone(),
                        by: Some(BY_CONFIG.to_owned()),
                        expires_unix_ms: None,
                    });
                }
                Entry::Occupied(_) => issues.push(Issue::at(
                    &[kind, &n.to_string(), "prefix"],
                    format!("{kind} list: prefix `{}` is listed twice", entry.prefix),
                )),
            }
        }
        map
    };
    let allow = list("allow", &settings.allow);
    let block = list("block", &settings.block);
    let document = Document {
        revision: 0,
        segments: settings.segments.clone(),
        clients: settings.clients.clone(),
        allow,
        block,
    };
    (document, issues)
}

/// The document in force: the stored one with the file's static part over it, complete with the
/// default segment.
///
/// What the file configures wins over what the store has under the same name; it cannot be changed
/// through the API until it is taken out of the file.
#[must_use]
pub fn overlay(stored: &Document, fixed: &Document) -> Document {
    let mut merged = stored.clone();
    let extend = |list: &mut BTreeMap<IpNet, ListEntry>, more: &BTreeMap<IpNet, ListEntry>| {
        list.extend(more.iter().map(|(prefix, entry)| (*prefix, entry.clone())));
    };
    merged.segments.extend(fixed.segments.clone());
    merged.clients.extend(fixed.clients.clone());
    extend(&mut merged.allow, &fixed.allow);
    extend(&mut merged.block, &fixed.block);
    normalise(&mut merged);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_wins_over_the_store() {
        let document = |text: &str| toml::from_str::<Document>(text).unwrap();
        let stored = document(
            "revision = 7\n[segments.free]\nweight = 1\n[segments.gold]\nweight = 5\n\
             [allow.\"10.0.0.0/8\"]\nby = \"api\"",
        );
        let fixed =
            document("[segments.free]\nweight = 9\n[allow.\"10.0.0.0/8\"]\nby = \"config\"");
        let merged = overlay(&stored, &fixed);
        assert_eq!(merged.revision, 7);
        assert_eq!(merged.segments["free"].weight, Some(9));
        assert_eq!(merged.segments["gold"].weight, Some(5));
        assert_eq!(merged.segments["default"].limits.len(), 2);
        let prefix: IpNet = "10.0.0.0/8".parse().unwrap();
        assert_eq!(merged.allow[&prefix].by.as_deref(), Some("config"));
    }
}
