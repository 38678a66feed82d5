//! A real Redis that stops, dies, forgets, is full or asks for a password.
use std::time::Duration;

use ratelimiter_userspace::clock;
use ratelimiter_userspace::policy::model::Algorithm;
use ratelimiter_userspace::redis::RedisStore;
use ratelimiter_userspace::sync::{
    Answer, Beat, Entry, FleetKey, FleetQuota, Settle as _, Unsettled,
};

use crate::server::{Server, options, store, store_at, wait_until};

const QUOTA: FleetQuota = FleetQuota {
    algorithm: Algorithm::TokenBucket,
    limit: 1_000,
    burst: 1_000,
    window_us: 60_000_000,
    grain: 1,
    revision: 1,
};

fn take(store: &RedisStore, key: u128, want: u64) -> Result<Answer, Unsettled> {
    let batch = [Entry::take(FleetKey(key), QUOTA, want, 1)];
    let settled = store.runtime().block_on(store.settle(&batch))?;
    Ok(settled.answers[0])
}

/// Asks until the store has answered; returns how long that took.
#[track_caller]
fn until_answered(store: &RedisStore) -> Duration {
    let begin = clock::instant();
    wait_until("the store answers", || take(store, 1, 1).is_ok());
    begin.elapsed()
}

/// Asks for as long as given, and returns the longest that one question took.
fn longest_while(store: &RedisStore, span: Duration) -> Duration {
    let begin = clock::instant();
    let mut longest = Duration::ZERO;
    while begin.elapsed() < span {
        let asked = clock::instant();
        assert!(take(store, 1, 1).is_err());
        longest = longest.max(asked.elapsed());
        std::thread::park_timeout(Duration::from_millis(1));
    }
    longest
}

/// What no fault may do: hold a question longer than its deadline, or hammer the store.
fn stays_calm(store: &RedisStore, span: Duration) {
    let (tries, begin) = (store.figures().tries, clock::instant());
    let longest = longest_while(store, span);
    // The deadline is 50 ms; the rest is this machine's.
    assert!(longest < Duration::from_millis(150), "{longest:?}");
    let tries = store.figures().tries - tries;
    let most = 2.0 * begin.elapsed().as_secs_f64() + 1.0;
    assert!(tries as f64 <= most, "{tries} tries in {span:?}");
    assert!(!store.is_connected());
}

#[test]
fn a_stopped_server_holds_nobody_and_is_found_again() {
    let server = Server::start();
    let store = store(&server);
    take(&store, 1, 10).unwrap();
    server.freeze();
    // Three questions without an answer, then nobody waits any more.
    for _ in 0..3 {
        assert_eq!(take(&store, 1, 1), Err(Unsettled::Late(50)));
    }
    stays_calm(&store, Duration::from_secs(3));
    server.thaw();
    let took = until_answered(&store);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(store.is_connected());
    assert_eq!(store.figures().error, "");
}

#[test]
fn a_killed_server_is_found_again_and_refilled() {
    let mut server = Server::start();
    let store = store(&server);
    let before = take(&store, 7, 600).unwrap();
    assert_eq!(before.granted, 600);
    server.kill();
    stays_calm(&store, Duration::from_secs(3));
    server.restart();
    let took = until_answered(&store);
    assert!(took < Duration::from_secs(2), "{took:?}");
    // It came back empty: what this host knows to be owed is told, and room is what is left.
    let mut entry = Entry::take(FleetKey(7), QUOTA, 1_000, 1);
    entry.debt = before.level;
    let settled = store.runtime().block_on(store.settle(&[entry])).unwrap();
    assert_eq!(settled.answers[0].granted, 400);
}

#[test]
fn a_server_that_comes_late_is_found() {
    let mut server = Server::start();
    server.kill();
    let store = store_at(&server.url());
    stays_calm(&store, Duration::from_secs(1));
    server.restart();
    let took = until_answered(&store);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn forgotten_scripts_are_given_again_within_the_same_call() {
    let server = Server::start();
    let store = store(&server);
    assert_eq!(take(&store, 1, 10).unwrap().level, 10);
    let reloads = store.figures().reloads;
    let _: () = server.query(&["SCRIPT", "FLUSH"]).unwrap();
    let answer = take(&store, 1, 5).unwrap();
    assert!((14..=15).contains(&answer.level), "{answer:?}");
    assert_eq!(store.figures().reloads, reloads + 1);
    assert!(store.is_connected());
}

#[test]
fn a_full_server_is_left_alone_until_there_is_room() {
    let server = Server::start_with(&["--maxmemory-policy", "noeviction"]);
    let store = store(&server);
    take(&store, 1, 1).unwrap();
    let _: () = server
        .query(&["CONFIG", "SET", "maxmemory", "1mb"])
        .unwrap();
    wait_until("the breaker opens", || {
        assert!(take(&store, 1, 1).is_err());
        !store.is_connected()
    });
    assert!(
        store.figures().error.contains("OOM"),
        "{}",
        store.figures().error
    );
    stays_calm(&store, Duration::from_secs(1));
    let _: () = server.query(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    let took = until_answered(&store);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_replica_is_not_written_to_and_a_promotion_is_found() {
    let server = Server::start();
    let store = store(&server);
    take(&store, 1, 1).unwrap();
    // A master that is not there: this server is its replica, and read-only.
    let _: () = server.query(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    wait_until("the breaker opens", || {
        assert!(take(&store, 1, 1).is_err());
        !store.is_connected()
    });
    stays_calm(&store, Duration::from_secs(1));
    let _: () = server.query(&["REPLICAOF", "NO", "ONE"]).unwrap();
    let took = until_answered(&store);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_wrong_password_is_said_and_never_shown() {
    let server = Server::start();
    let _: () = server
        .query(&["CONFIG", "SET", "requirepass", "open-sesame"])
        .unwrap();
    for wrong in [None, Some("hunter2-hunter2")] {
        let store = RedisStore::open(options(&server.url(), wrong)).unwrap();
        wait_until("it was tried", || {
            store.figures().tries > 0 && !store.figures().error.contains("yet")
        });
        assert!(take(&store, 1, 1).is_err());
        let shown = format!("{:?} {:?}", store, store.figures());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(!store.figures().error.is_empty());
    }
    let store = RedisStore::open(options(&server.url(), Some("open-sesame"))).unwrap();
    until_answered(&store);
}

#[test]
fn hosts_are_known_and_hot_sources_go_round() {
    let server = Server::start();
    let store = store(&server);
    let beat = |beat: &Beat| store.runtime().block_on(store.beat(beat)).unwrap();
    let of = |host| Beat {
        host,
        most: 10,
        ..Beat::default()
    };
    assert_eq!((beat(&of(1)).known, beat(&of(2)).live), (1, 2));
    let told = beat(&Beat {
        hot: vec![0x0a00_0001, 0x0a00_0002],
        ..of(1)
    });
    assert_eq!(told.known, 2);
    let mut heard = beat(&of(2));
    heard.hot.sort_unstable();
    assert_eq!(heard.hot, [0x0a00_0001, 0x0a00_0002]);
    let quiet = beat(&Beat { most: 0, ..of(2) });
    assert_eq!((quiet.hot.len(), quiet.cursor_us, quiet.known), (0, 0, 2));
    let again = beat(&Beat {
        cursor_us: heard.cursor_us,
        ..of(2)
    });
    assert!(again.hot.is_empty());
    let left = beat(&Beat {
        leaving: true,
        ..of(1)
    });
    assert_eq!((left.known, left.live), (1, 1));
    for key in ["{rl}:hosts", "{rl}:hot"] {
        let ttl: i64 = server.query(&["PTTL", key]).unwrap();
        assert!(ttl > 0, "{key}: {ttl}");
    }
}
