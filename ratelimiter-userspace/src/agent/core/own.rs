//! What of a host's configuration is the fleet's, and what is its own.
//!
//! A host's own are changes on trial, which are tried here and given to the fleet when they are
//! confirmed, and blocks by escalation, which end by themselves. Entries of lists that have ended
//! are nobody's. Pure: time is an argument.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use super::escalate;
use crate::admin::edit::{object, restored};
use crate::agent::state::Trial;
use crate::policy::model::{Document, ListEntry};

/// Whether an entry of the block list is this host's alone.
fn is_own(entry: &ListEntry) -> bool {
    entry.by.as_deref() == Some(escalate::BY) && entry.expires_unix_ms.is_some()
}

fn has_ended(entry: &ListEntry, now_unix_ms: u64) -> bool {
    entry.expires_unix_ms.is_some_and(|end| end <= now_unix_ms)
}

/// `document` as it counts at `now_unix_ms`: without what has ended, and as revision 0.
pub(super) fn lasting(mut document: Document, now_unix_ms: u64) -> Document {
    for list in [&mut document.allow, &mut document.block] {
        list.retain(|_, entry| !has_ended(entry, now_unix_ms));
    }
    document.revision = 0;
    document
}

/// What the fleet shares of `stored`: without what `trials` try, and without this host's own.
pub(super) fn shared(stored: &Document, trials: &[Trial], now_unix_ms: u64) -> Document {
    let mut newest_first: Vec<&Trial> = trials.iter().collect();
    newest_first.sort_by_key(|trial| std::cmp::Reverse(trial.revision));
    let mut next = stored.clone();
    for trial in newest_first {
        if let Some(before) = restored(&next, &trial.path, &trial.before) {
            next = before;
        }
    }
    next.block.retain(|_, entry| !is_own(entry));
    lasting(next, now_unix_ms)
}

/// What a host has that takes `fleet` over: the fleet's, and its own of `stored`. Trials are taken
/// back to what the fleet has.
pub(super) fn merged(
    fleet: &Document,
    stored: &Document,
    trials: &[Trial],
    now_unix_ms: u64,
) -> (Document, Vec<Trial>) {
    let mut next = lasting(fleet.clone(), now_unix_ms);
    for (prefix, entry) in &stored.block {
        if is_own(entry) && !has_ended(entry, now_unix_ms) {
            next.block.entry(*prefix).or_insert_with(|| entry.clone());
        }
    }
    next.revision = stored.revision;
    let mut oldest_first = trials.to_vec();
    oldest_first.sort_by_key(|trial| trial.revision);
    for trial in &mut oldest_first {
        let tried = object(stored, &trial.path);
        let before = object(&next, &trial.path);
        if let Some(with) = restored(&next, &trial.path, &tried) {
            next = with;
            trial.before = before;
        }
    }
    (next, oldest_first)
}

/// A hash of what is shared and does not end by itself: tells whether this is still what a host was
/// in step with when it was last written down.
pub(super) fn content(stored: &Document, trials: &[Trial]) -> u64 {
    let mut lasting = shared(stored, trials, 0);
    for list in [&mut lasting.allow, &mut lasting.block] {
        list.retain(|_, entry| entry.expires_unix_ms.is_none());
    }
    let mut hasher = SipHasher13::new();
    // The model's keys are strings and its numbers finite: it always has a JSON form.
    hasher.write(&serde_json::to_vec(&lasting).unwrap_or_default());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::{Client, Segment};

    const NOW: u64 = 1_000_000;

    fn entry(by: &str, expires_unix_ms: Option<u64>) -> ListEntry {
        ListEntry {
            by: Some(by.to_owned()),
            expires_unix_ms,
            ..ListEntry::default()
        }
    }

    fn client(segment: &str) -> Client {
        Client {
            segment: Some(segment.to_owned()),
            ..Client::default()
        }
    }

    /// Alice is in `free`, one address is blocked by people, one by escalation, one no more.
    fn document() -> Document {
        let mut document = Document {
            revision: 7,
            ..Document::default()
        };
        document
            .segments
            .insert("free".to_owned(), Segment::default());
        document.clients.insert("alice".to_owned(), client("free"));
        for (prefix, entry) in [
            ("192.0.2.1/32", entry("boss", None)),
            ("192.0.2.2/32", entry(escalate::BY, Some(NOW + 1))),
            ("192.0.2.3/32", entry("boss", Some(NOW))),
        ] {
            document.block.insert(prefix.parse().unwrap(), entry);
        }
        document
    }

    fn trial(path: &str, before: serde_json::Value) -> Trial {
        Trial {
            revision: 7,
            path: path.to_owned(),
            before,
            ..Trial::default()
        }
    }

    fn blocked(document: &Document) -> Vec<String> {
        document.block.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn escalations_and_what_has_ended_are_not_shared() {
        let shared = shared(&document(), &[], NOW);
        assert_eq!(blocked(&shared), ["192.0.2.1/32"]);
        assert_eq!(shared.revision, 0);
        assert_eq!(shared.clients, document().clients);
    }

    #[test]
    fn a_change_on_trial_is_not_shared_and_survives_what_the_fleet_changes() {
        let tried = document();
        let before = serde_json::to_value(client("gold")).unwrap();
        let trials = [trial("clients/alice", before.clone())];
        let given = shared(&tried, &trials, NOW);
        assert_eq!(given.clients["alice"], client("gold"));

        // The fleet moves on: bob is new, and alice is put elsewhere.
        let mut fleet = given;
        fleet.clients.insert("bob".to_owned(), client("free"));
        fleet.clients.insert("alice".to_owned(), client("silver"));
        let (next, trials) = merged(&fleet, &tried, &trials, NOW);
        assert_eq!(next.clients["alice"], client("free"), "still tried");
        assert!(next.clients.contains_key("bob"));
        assert_eq!(blocked(&next), ["192.0.2.1/32", "192.0.2.2/32"]);
        assert_eq!(next.revision, 7);
        // The way back is to what the fleet has now.
        assert_eq!(shared(&next, &trials, NOW), fleet);
        assert_eq!(
            trials[0].before,
            serde_json::to_value(client("silver")).unwrap()
        );
    }

    #[test]
    fn a_whole_document_on_trial_is_kept_too() {
        let tried = document();
        let before = serde_json::to_value(Document::default()).unwrap();
        let trials = [trial("document", before)];
        assert_eq!(shared(&tried, &trials, NOW), Document::default());
        let mut fleet = Document::default();
        fleet.clients.insert("bob".to_owned(), client("default"));
        let (next, trials) = merged(&fleet, &tried, &trials, NOW);
        assert_eq!(next.clients, tried.clients);
        assert_eq!(shared(&next, &trials, NOW), fleet);
    }

    #[test]
    fn what_is_in_step_stays_so_when_entries_end() {
        let before = content(&document(), &[]);
        let mut later = document();
        later.block.remove(&"192.0.2.2/32".parse().unwrap());
        later.block.remove(&"192.0.2.3/32".parse().unwrap());
        later.revision = 9;
        assert_eq!(content(&later, &[]), before);
        later.clients.clear();
        assert_ne!(content(&later, &[]), before);
    }
}
