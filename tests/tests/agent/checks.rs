//! The check API of the real agent: killed, stopped, flooded with slow clients.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ratelimiter_userspace::client::{
    DecidedBy, OnUnavailable, Options, RateLimiterClient, Unavailable,
};
use ratelimiter_userspace::clock;
use ratelimiter_userspace::limiter::RateLimiter;
use serde_json::{Value, json};
use tests::OrFail as _;
use tests::agent::{Agent, Setup};
use tests::http::request_tcp;
use tests::netns::Netns;
use tests::process::{holds_within, rest};
use tests::residue::Residue;

use crate::limits::SMALL;

const ADDRESS: &str = "127.0.0.1:9741";

fn address() -> SocketAddr {
    ADDRESS.parse().or_fail("an address")
}

fn setup() -> Setup {
    Setup::new().enforce().settings(SMALL).check(ADDRESS)
}

fn requests(rate_limit: u64, time_window: &str) -> Value {
    json!({"limits": {"default": {"rate_limit": rate_limit, "time_window": time_window}}})
}

/// Asks the check API from within the agent's namespace.
fn check(edge: &Netns, body: &Value) -> Value {
    let ask = || request_tcp(address(), "POST", "/v1/check", &[], Some(body));
    edge.run(ask)
        .or_fail("no answer to a check")
        .expect(200)
        .json()
}

fn left(edge: &Netns, id: &str) -> u64 {
    let answer = check(edge, &json!({"client_id": id, "cost": 0}));
    answer["remaining"].as_u64().or_fail("remaining")
}

#[test]
fn usage_survives_a_kill_within_one_flush_interval_and_an_end_exactly() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let mut agent = setup().start(&edge);
    agent
        .put("/v1/clients/alice", &requests(1_000, "1d"))
        .expect(201);
    agent
        .put("/v1/clients/bob", &requests(50, "1d"))
        .expect(201);
    check(&edge, &json!({"client_id": "alice", "cost": 300}));
    check(&edge, &json!({"client_id": "bob", "cost": 20}));
    check(&edge, &json!({"client_id": "stranger", "cost": 40}));
    // One flush interval of 1 s, and the time a save takes.
    rest(Duration::from_millis(1_600));
    check(&edge, &json!({"client_id": "alice", "cost": 7}));
    agent.kill();
    agent.restart();
    // What was spent within the last interval may be forgotten, and nothing else.
    let alice = left(&edge, "alice");
    assert!(alice == 700 || alice == 693, "{alice}");
    assert_eq!(left(&edge, "bob"), 30);
    assert!(left(&edge, "stranger") < 100);

    let before = left(&edge, "alice");
    check(&edge, &json!({"client_id": "alice", "cost": 11}));
    check(&edge, &json!({"client_id": "bob", "cost": 1}));
    assert_eq!(agent.terminate(), 0);
    agent.restart();
    assert_eq!(left(&edge, "alice"), before - 11);
    assert_eq!(left(&edge, "bob"), 29);

    // A file that was torn is refused by a sentence, and the save before it is used.
    assert_eq!(agent.terminate(), 0);
    let file = agent
        .config_path()
        .with_file_name("state")
        .join("usage-checks.bin");
    let bytes = std::fs::read(&file).or_fail("read the saved usage");
    std::fs::write(&file, &bytes[..bytes.len() / 2]).or_fail("tear the saved usage");
    agent.restart();
    let said = agent.child().output();
    assert!(said.contains("usage-checks.bin"), "{said}");
    assert!(left(&edge, "bob") <= 30, "the save before is used");
}

#[test]
fn the_command_line_asks_the_check_api() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let agent = setup().start(&edge);
    agent
        .put("/v1/clients/alice", &requests(2, "1m"))
        .expect(201);
    for (expected, says) in [
        (0, "allowed, 1 left"),
        (0, "allowed, 0 left"),
        (3, "denied, next"),
    ] {
        let (status, out, err) = agent.cli("check alice");
        assert_eq!(status, expected, "{out}{err}");
        assert!(out.contains(says), "{out}");
    }
    let (status, out, _) = agent.cli("explain alice");
    assert_eq!(status, 0);
    assert!(
        out.contains("over_limit") || out.contains("refused"),
        "{out}"
    );
    assert_eq!(agent.cli("reset alice").0, 0);
    assert_eq!(agent.cli("check alice").0, 0);
}

/// Runs `work` in a tokio runtime within the agent's namespace.
fn in_runtime<T: Send>(edge: &Netns, work: impl AsyncFnOnce() -> T + Send) -> T {
    edge.run(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .or_fail("a runtime")
            .block_on(work())
    })
}

#[test]
fn an_application_is_answered_in_time_by_a_stopped_and_by_a_killed_agent() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let mut agent = setup().start(&edge);
    agent
        .put("/v1/clients/alice", &requests(10, "1d"))
        .expect(201);
    let local = RateLimiter::builder()
        .capacity(100)
        .build()
        .or_fail("a limiter");
    local
        .update_limit("alice", 3, Duration::from_hours(1))
        .or_fail("a limit");
    let options = |on_unavailable| Options {
        deadline: Duration::from_millis(200),
        open_for: Duration::from_millis(500),
        on_unavailable,
        ..Options::new(address())
    };

    for stop in [true, false] {
        let client = RateLimiterClient::new(options(OnUnavailable::Local(local.clone())));
        let denying = RateLimiterClient::new(options(OnUnavailable::Deny));
        let allowing = RateLimiterClient::new(options(OnUnavailable::Allow));
        let alive = in_runtime(&edge, async || client.check("alice", 1).await);
        assert_eq!(
            (alive.allowed, alive.by),
            (true, DecidedBy::Agent),
            "{alive:?}"
        );
        if stop {
            agent.child().signal(libc::SIGSTOP);
        } else {
            agent.kill();
        }
        let (longest, passed, reasons) = in_runtime(&edge, async || {
            let (mut longest, mut passed, mut reasons) = (Duration::ZERO, 0, Vec::new());
            for _ in 0..100 {
                let begin = clock::instant();
                let decision = client.check("alice", 1).await;
                longest = longest.max(begin.elapsed());
                passed += u32::from(decision.allowed);
                reasons.push(decision.by);
            }
            assert!(!denying.check("alice", 1).await.allowed);
            assert!(allowing.check("alice", 1).await.allowed);
            (longest, passed, reasons)
        });
        // The deadline, and what a busy machine adds.
        assert!(longest < Duration::from_secs(2), "{longest:?}");
        assert!(!reasons.contains(&DecidedBy::Agent), "{reasons:?}");
        // The local limiter goes on where it was: three in all.
        assert_eq!(passed, if stop { 3 } else { 0 });
        let not_asked = DecidedBy::Fallback(Unavailable::NotAsked);
        let asked = reasons.iter().filter(|by| **by != not_asked).count();
        // Five failures in a row, then a probe now and then.
        assert!((5..20).contains(&asked), "{asked} of 100 were asked");
        let first = if stop {
            Unavailable::Deadline
        } else {
            Unavailable::Connection
        };
        assert_eq!(reasons[0], DecidedBy::Fallback(first));
        if stop {
            agent.child().signal(libc::SIGCONT);
        } else {
            agent.restart();
        }
        let again = holds_within(Duration::from_secs(10), || {
            let decision = in_runtime(&edge, async || client.check("alice", 0).await);
            decision.by == DecidedBy::Agent
        });
        assert!(again, "the client never asks again");
    }
}

/// What a slow client does.
#[derive(Clone, Copy, Debug)]
enum Slow {
    Silent,
    HalfHead,
    HalfBody,
    NeverReads,
}

#[test]
fn slow_clients_are_closed_within_ten_seconds_and_others_are_served() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let mut agent = setup().start(&edge);
    agent
        .put("/v1/clients/good", &requests(1_000_000, "1d"))
        .expect(201);
    let kinds = [
        Slow::Silent,
        Slow::HalfHead,
        Slow::HalfBody,
        Slow::NeverReads,
    ];
    let before = agent.child().descriptors();
    let body = r#"{"client_id":"slow"}"#;
    let head = format!(
        "POST /v1/check HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let begin = clock::instant();
    let mut slow: Vec<(Slow, TcpStream)> = edge.run(|| {
        let open = |kind| {
            let mut stream = TcpStream::connect(address()).or_fail("connect");
            let text = match kind {
                Slow::Silent => "",
                Slow::HalfHead => &head[..40],
                Slow::HalfBody => &format!("{head}{}", &body[..5]),
                Slow::NeverReads => &format!("{head}{body}"),
            };
            stream.write_all(text.as_bytes()).or_fail("write");
            (kind, stream)
        };
        (0..5_000).map(|n| open(kinds[n % kinds.len()])).collect()
    });
    let opened = begin.elapsed();
    let most = agent.child().descriptors();
    // Those that were opened first may be gone by now on a busy machine.
    assert!(
        most > before + 500,
        "{most} descriptors after {opened:?}, {before} before"
    );
    let begin = clock::instant();
    let mut asked = 0;
    while begin.elapsed() < Duration::from_secs(3) {
        assert_eq!(check(&edge, &json!({"client_id": "good"}))["allowed"], true);
        asked += 1;
    }
    assert!(asked > 20, "{asked}");
    let closed = holds_within(Duration::from_secs(12), || {
        agent.child().descriptors() <= before + 20
    });
    assert!(
        closed,
        "{} descriptors, {before} before",
        agent.child().descriptors()
    );
    let took = begin.elapsed();
    for (kind, stream) in &mut slow {
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .or_fail("timeout");
        // The agent's end is closed: there is an end to be read, or a reset.
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{kind:?}"),
        }
    }
    println!("5000 slow connections opened in {opened:?}, closed after {took:?}; {asked} checks");
    let accepted = agent.get("/metrics").expect(200).body;
    let accepted = accepted
        .lines()
        .find_map(|line| line.strip_prefix("ratelimiter_check_connections_accepted_total "));
    let accepted: u64 = accepted
        .and_then(|count| count.parse().ok())
        .or_fail("a counter");
    assert!(accepted >= 5_000, "{accepted}");
}

#[test]
fn accepts_again_after_it_ran_out_of_descriptors() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let mut agent: Agent<'_> = setup().start(&edge);
    let few = libc::rlimit {
        rlim_cur: agent.child().descriptors() as u64 + 20,
        rlim_max: 20_000,
    };
    // SAFETY: a valid limit for a process of ours.
    let set = unsafe {
        libc::prlimit(
            agent.child().pid().cast_signed(),
            libc::RLIMIT_NOFILE,
            &raw const few,
            std::ptr::null_mut(),
        )
    };
    assert_eq!(set, 0);
    let silent: Vec<TcpStream> = edge.run(|| {
        let open = || TcpStream::connect(address()).or_fail("connect");
        (0..200).map(|_| open()).collect()
    });
    // Silent connections make room for those that talk.
    for _ in 0..20 {
        check(&edge, &json!({"client_id": "good"}));
    }
    drop(silent);
    check(&edge, &json!({"client_id": "good"}));
    assert_eq!(agent.terminate(), 0);
}
