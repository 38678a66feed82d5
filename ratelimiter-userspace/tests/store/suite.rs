//! What every store does.

use ratelimiter_userspace::policy::model::Document;
use ratelimiter_userspace::store::{MAX_CHANGES, NewChange, StoreError};

use crate::{Fixture, change, document};

pub(crate) fn a_new_store_has_the_default_document(f: &Fixture) {
    assert_eq!(*f.store.document().unwrap(), Document::default());
    assert!(f.store.changes(None, 10).unwrap().is_empty());
    assert!(f.store.status().warnings.is_empty());
}

pub(crate) fn a_commit_is_read_back_with_the_next_revision(f: &Fixture) {
    let stored = f.store.commit(Some(0), document(3), change("a")).unwrap();
    assert_eq!(stored.revision, 1);
    assert_eq!(*f.store.document().unwrap(), *stored);
    assert_eq!(stored.clients.len(), 3);
    let stored = f.store.commit(None, document(4), change("b")).unwrap();
    assert_eq!((stored.revision, stored.clients.len()), (2, 4));
}

pub(crate) fn the_stored_revision_ignores_the_callers(f: &Fixture) {
    let mut wanted = document(1);
    wanted.revision = 999;
    assert_eq!(
        f.store.commit(None, wanted, change("a")).unwrap().revision,
        1
    );
}

pub(crate) fn a_stale_revision_is_refused_and_changes_nothing(f: &Fixture) {
    f.store.commit(None, document(1), change("a")).unwrap();
    let before = f.store.document().unwrap();
    let error = f
        .store
        .commit(Some(0), document(9), change("b"))
        .unwrap_err();
    assert!(matches!(
        error,
        StoreError::Conflict {
            expected: 0,
            found: 1
        }
    ));
    assert_eq!(
        error.to_string(),
        "the configuration is at revision `1`, not at the expected `0`"
    );
    assert_eq!(f.store.document().unwrap(), before);
    assert_eq!(f.store.changes(None, 10).unwrap().len(), 1);
}

pub(crate) fn of_two_writers_with_one_revision_exactly_one_wins(f: &Fixture) {
    let wins = std::thread::scope(|scope| {
        let writers: Vec<_> = (1..=4)
            .map(|n| scope.spawn(move || f.store.commit(Some(0), document(n), change("w")).is_ok()))
            .collect();
        writers
            .into_iter()
            .filter(|_| true)
            .map(|w| w.join().unwrap())
            .filter(|won| *won)
            .count()
    });
    assert_eq!(wins, 1);
    assert_eq!(f.store.document().unwrap().revision, 1);
}

pub(crate) fn changes_are_listed_newest_first_and_paged(f: &Fixture) {
    for n in 1..=5 {
        f.store
            .commit(None, document(n), change(&format!("c{n}")))
            .unwrap();
    }
    let list = |before, limit| -> Vec<u64> {
        let changes = f.store.changes(before, limit).unwrap();
        changes.into_iter().map(|entry| entry.revision).collect()
    };
    assert_eq!(list(None, 2), [5, 4]);
    assert_eq!(list(Some(4), 2), [3, 2]);
    assert_eq!(list(Some(2), 10), [1]);
    assert_eq!(f.store.changes(None, 1).unwrap()[0].change.what, "c5");
}

pub(crate) fn the_audit_log_is_bounded(f: &Fixture) {
    for n in 0..MAX_CHANGES + 5 {
        f.store
            .commit(None, Document::default(), change(&n.to_string()))
            .unwrap();
    }
    let all = f.store.changes(None, usize::MAX).unwrap();
    assert_eq!(all.len(), MAX_CHANGES);
    assert_eq!(all.last().unwrap().revision, 6);
}

pub(crate) fn oversize_values_do_not_enter_the_audit_log(f: &Fixture) {
    let big = NewChange {
        before: serde_json::json!({ "x": "y".repeat(1 << 20) }),
        what: "\u{e9}".repeat(2_000),
        ..change("big")
    };
    f.store.commit(None, Document::default(), big).unwrap();
    let entry = f.store.changes(None, 1).unwrap().remove(0);
    assert_eq!(
        entry.change.before["omitted"],
        "more than 16384 bytes of JSON"
    );
    assert!(entry.change.what.len() <= 512);
}

pub(crate) fn removed_things_stay_removed(f: &Fixture) {
    f.store.commit(None, document(10), change("a")).unwrap();
    f.store.commit(None, document(2), change("b")).unwrap();
    let stored = f.store.document().unwrap();
    assert_eq!((stored.clients.len(), stored.block.len()), (2, 2));
}

pub(crate) fn every_kind_of_object_survives(f: &Fixture) {
    let wanted: Document = toml::from_str(
        r#"
        [segments.free]
        weight = 3
        sources = ["10.0.0.0/8"]
        limits.packets = { rate_limit = 10, time_window = "5m", burst = 7, unit = "packets" }
        [clients."a \" \u0001 b"]
        one_bucket = true
        [allow."2001:db8::/32"]
        expires_unix_ms = 18446744073709
        [block."192.0.2.1/32"]
        reason = "r"
        "#,
    )
    .unwrap();
    let stored = f.store.commit(None, wanted.clone(), change("a")).unwrap();
    assert_eq!(
        Document {
            revision: 0,
            ..(*stored).clone()
        },
        wanted
    );
}

pub(crate) fn usage_is_replaced_whole(f: &Fixture) {
    assert_eq!(f.store.load_usage("tracked").unwrap(), None);
    f.store.save_usage("tracked", &vec![1; 100_000]).unwrap();
    f.store.save_usage("tracked", b"two").unwrap();
    f.store.save_usage("other", b"").unwrap();
    assert_eq!(f.store.load_usage("tracked").unwrap().unwrap(), b"two");
    assert_eq!(f.store.load_usage("other").unwrap().unwrap(), b"");
}

pub(crate) fn usage_names_cannot_leave_the_store(f: &Fixture) {
    for name in ["", "../x", "a/b", "A", "a.b", "\n", &"x".repeat(64)] {
        assert!(f.store.save_usage(name, b"x").is_err(), "{name}");
        assert!(f.store.load_usage(name).is_err(), "{name}");
    }
}
