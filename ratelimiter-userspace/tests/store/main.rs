//! The store: one functional suite for every implementation, and what only a disk can do wrong.
#![allow(missing_docs, reason = "a test binary has no API")]
#![allow(
    clippy::unwrap_used,
    clippy::unnecessary_wraps,
    clippy::format_push_string,
    clippy::field_reassign_with_default,
    reason = "a test fails by panicking, and reads better plain"
)]

mod disk;
mod suite;

use std::sync::Arc;

use ratelimiter_userspace::policy::model::{Client, Document, ListEntry};
use ratelimiter_userspace::store::{EmbeddedStore, MemoryStore, NewChange, Store};

/// A store and whatever must live as long as it does.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Store>,
    _directory: Option<tempfile::TempDir>,
}

pub(crate) fn memory() -> Fixture {
    Fixture {
        store: Arc::new(MemoryStore::new()),
        _directory: None,
    }
}

/// A directory in memory where there is one: the suite's thousand commits are not about the disk.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

pub(crate) fn embedded() -> Fixture {
    let directory = directory();
    Fixture {
        store: Arc::new(EmbeddedStore::open(directory.path()).unwrap()),
        _directory: Some(directory),
    }
}

/// A document with `n` clients and a block each.
pub(crate) fn document(n: u32) -> Document {
    let mut document = Document::default();
    for i in 0..n {
        document.clients.insert(
            format!("client {i}"),
            Client {
                sources: vec![
                    format!("10.{}.{}.{}/32", i >> 16, i >> 8 & 255, i & 255)
                        .parse()
                        .unwrap(),
                ],
                ..Client::default()
            },
        );
        let prefix = std::net::Ipv4Addr::from(0xc000_0000 + i);
        document.block.insert(
            ipnet::IpNet::from(std::net::IpAddr::V4(prefix)),
            ListEntry {
                reason: Some(format!("number {i}")),
                ..ListEntry::default()
            },
        );
    }
    document
}

pub(crate) fn change(what: &str) -> NewChange {
    NewChange {
        at_unix_ms: 1,
        by: "test".to_owned(),
        what: what.to_owned(),
        ..NewChange::default()
    }
}

/// Runs every test of the suite against every store.
macro_rules! for_every_store {
    ($($test:ident),* $(,)?) => {
        mod in_memory {
            $(#[test] fn $test() { crate::suite::$test(&crate::memory()); })*
        }
        mod embedded_in_redb {
            $(#[test] fn $test() { crate::suite::$test(&crate::embedded()); })*
        }
    };
}

for_every_store!(
    a_new_store_has_the_default_document,
    a_commit_is_read_back_with_the_next_revision,
    the_stored_revision_ignores_the_callers,
    a_stale_revision_is_refused_and_changes_nothing,
    of_two_writers_with_one_revision_exactly_one_wins,
    changes_are_listed_newest_first_and_paged,
    the_audit_log_is_bounded,
    oversize_values_do_not_enter_the_audit_log,
    removed_things_stay_removed,
    every_kind_of_object_survives,
    usage_is_replaced_whole,
    usage_names_cannot_leave_the_store,
);
