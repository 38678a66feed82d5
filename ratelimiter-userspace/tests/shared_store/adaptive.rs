//! One adaptive state for all hosts, in a real Redis: compare-and-set, records, and nonsense.
use ratelimiter_userspace::redis::RedisStore;
use ratelimiter_userspace::redis::adaptive::{BODY_MAX, Heard, Said};

use crate::server::{Server, options, wait_until};

fn open(server: &Server) -> RedisStore {
    let store = RedisStore::open(options(&server.url(), None)).unwrap();
    wait_until("connected", || store.is_connected());
    store
}

fn said(host: u64, known: u64, offer: Option<u64>) -> Said {
    Said {
        backend: "api".to_owned(),
        host,
        record: format!("record of {host}").into_bytes(),
        known,
        offer: offer.map(|epoch| (epoch, format!("state {epoch} of {host}").into_bytes())),
        all: true,
    }
}

fn say(store: &RedisStore, said: &Said) -> Heard {
    store.runtime().block_on(store.adapt(said)).unwrap()
}

fn body(heard: &Heard) -> Option<&str> {
    heard
        .state
        .as_ref()
        .map(|(_, body)| std::str::from_utf8(body).unwrap())
}

#[test]
fn whoever_is_first_wins_and_the_others_learn_it() {
    let server = Server::start();
    let store = open(&server);
    let first = say(&store, &said(1, 0, None));
    assert_eq!((first.taken, first.steps, first.epoch), (false, true, 0));
    assert_eq!(body(&first), None);
    let won = say(&store, &said(1, 0, Some(5)));
    assert_eq!((won.taken, won.epoch, body(&won)), (true, 5, None));
    // Another that went on from nothing is too late.
    let late = say(&store, &said(2, 0, Some(6)));
    assert_eq!((late.taken, late.steps, late.epoch), (false, false, 5));
    assert_eq!(body(&late), Some("state 5 of 1"));
    let again = say(&store, &said(2, 5, Some(6)));
    assert_eq!((again.taken, again.epoch), (true, 6));
    // Who knows the newest is not told it again, and sees everybody but itself.
    let known = say(&store, &said(2, 6, None));
    assert_eq!(body(&known), None);
    let records = known.records.unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].0, format!("{:016x}", 1));
    assert_eq!(records[0].2, b"record of 1");
    assert_eq!(known.hosts, 2);
    assert!(records[0].1 < 10_000_000, "an age, not a time");
    // A state behind the one a host goes on from was brought back by a restored server.
    let ahead = say(&store, &said(1, 90, Some(91)));
    assert_eq!((ahead.taken, ahead.epoch), (true, 91));
}

#[test]
fn another_host_steps_when_the_one_that_does_is_silent() {
    let server = Server::start();
    let store = open(&server);
    assert!(say(&store, &said(1, 0, Some(1))).steps);
    assert!(!say(&store, &said(2, 1, None)).steps);
    wait_until("the lease ends", || say(&store, &said(2, 1, None)).steps);
    assert!(!say(&store, &said(1, 1, None)).steps);
}

#[test]
fn nothing_is_kept_without_an_end_and_nonsense_is_mended() {
    let server = Server::start();
    let store = open(&server);
    say(&store, &said(1, 0, None));
    say(&store, &said(1, 0, Some(1)));
    let mut keys: Vec<String> = server.query(&["KEYS", "*:a:*"]).unwrap();
    keys.sort();
    assert_eq!(keys.len(), 2, "{keys:?}");
    for key in &keys {
        let left_ms: i64 = server.query(&["PTTL", key]).unwrap();
        assert!(left_ms > 0, "{key}: {left_ms}");
    }
    // Of another type, of the future, beyond counting, and no body at all.
    for key in &keys {
        server.query::<()>(&["SET", key, "nonsense"]).unwrap();
    }
    assert!(say(&store, &said(1, 0, Some(2))).taken);
    let state = &keys[1];
    for (known, (field, value)) in (9..).zip([
        ("epoch", "9007199254740993"),
        ("epoch", "x"),
        ("at", "99999999999999999"),
        ("since", "nan"),
        ("body", ""),
    ]) {
        server.query::<()>(&["HSET", state, field, value]).unwrap();
        let heard = say(&store, &said(1, known, Some(known + 1)));
        assert!(heard.taken, "{field} {value}: {heard:?}");
    }
    server
        .query::<()>(&["HSET", &keys[0], "odd", "short"])
        .unwrap();
    let records = say(&store, &said(1, 14, None)).records.unwrap();
    assert!(records.is_empty(), "as old as can be: {records:?}");

    let huge = Said {
        record: vec![b' '; BODY_MAX + 1],
        ..said(1, 10, None)
    };
    let refused = store.runtime().block_on(store.adapt(&huge)).unwrap_err();
    assert!(refused.to_string().contains("262144 at most"), "{refused}");
    assert!(store.is_connected(), "that is no fault of the store");
}
