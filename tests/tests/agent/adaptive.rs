//! Limits follow health: from a report to packets and checks that are no longer let through, and
//! back.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::OrFail as _;
use tests::agent::{Agent, Setup};
use tests::flood::Flood;
use tests::http::request_tcp;
use tests::packet::Packet;
use tests::process::{holds_within, rest};
use tests::residue::Residue;

use crate::edge::{CLIENT, EDGE, Edge};
use crate::limits::SMALL;

const ADDRESS: &str = "127.0.0.1:9741";
/// Packets a second that the default segment allows.
const RATE: f64 = 1_000.0;

const LIMITS: &str = "[segments.default.limits.packets]\nrate_limit = 1000\ntime_window = 1\n\
    burst = 10\nunit = \"packets\"\n[segments.default.limits.default]\nrate_limit = 100\n\
    time_window = \"1h\"\n";

fn start<'a>(edge: &'a Edge, adaptive: &str) -> Agent<'a> {
    Setup::new()
        .interface(EDGE)
        .enforce()
        .settings(SMALL)
        .settings(LIMITS)
        .settings(&format!(
            "[backends.default.adaptive]\nlaw = \"threshold\"\n{adaptive}"
        ))
        .check(ADDRESS)
        .start(&edge.edge)
}

/// Packets of one source that pass per second, of 3000 sent.
fn passes(edge: &Edge, agent: &Agent<'_>) -> f64 {
    let frame = Packet::eth_between(edge.client.mac(CLIENT), edge.edge.mac(EDGE))
        .ipv4("198.18.0.1", "192.0.2.1")
        .udp(4_000, 4_001)
        .zeros(18)
        .build();
    let dropped = |agent: &Agent<'_>| -> u64 {
        rest(Duration::from_millis(600));
        let status = agent.get("/v1/status").expect(200).json();
        let counts = status["counts"].as_array().or_fail("counts");
        counts
            .iter()
            .filter(|count| count["reason"] == "over_packets" && count["verdict"] == "drop")
            .filter_map(|count| count["packets"].as_u64())
            .sum()
    };
    let before = dropped(agent);
    let sent = edge.client.run(|| {
        Flood::new(vec![frame])
            .rate(3_000)
            .lasting(Duration::from_secs(2))
            .send(CLIENT, &AtomicBool::new(false))
    });
    let refused = dropped(agent) - before;
    (sent.packets - refused) as f64 / sent.time.as_secs_f64()
}

/// Checks of a new client that pass.
fn checks(edge: &Edge, client: &str) -> usize {
    let body: Vec<Value> = (0..150).map(|_| json!({"client_id": client})).collect();
    let ask = || {
        let address = ADDRESS.parse().or_fail("an address");
        request_tcp(
            address,
            "POST",
            "/v1/check:batch",
            &[],
            Some(&json!({"checks": body})),
        )
    };
    let answers = edge.edge.run(ask).or_fail("no answer").expect(200).json();
    let answers = answers["answers"].as_array().or_fail("answers").clone();
    answers.iter().filter(|a| a["allowed"] == true).count()
}

#[test]
fn a_report_lets_fewer_packets_and_checks_through_and_a_lost_feed_all_again() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = start(&edge, "stale_hold_s = 2\nrise_per_s = 0.5");
    let whole = passes(&edge, &agent);
    assert!((whole / RATE - 1.0).abs() < 0.05, "{whole}");
    assert_eq!(checks(&edge, "before"), 100);

    // Two of them: 0.7 * 0.7.
    for seq in [1, 2] {
        let (code, out, err) = agent.cli(&format!("health push --mean 2000 --seq {seq}"));
        assert!(code == 0 && out.contains("taken"), "{out}{err}");
        rest(Duration::from_millis(200));
    }
    let (code, again, _) = agent.cli("health push --mean 2000 --seq 2");
    assert!(code == 0 && again.contains("not taken"), "{again}");
    let (_, status, _) = agent.cli("adaptive status");
    assert!(
        status.contains("0.490") && status.contains("above 500 ms"),
        "{status}"
    );
    assert_eq!(checks(&edge, "during"), 49);
    let (_, why, _) = agent.cli("explain 198.18.0.1");
    assert!(why.contains("49.0 % (packets)"), "{why}");
    // Held while it is measured: the feed goes stale meanwhile.
    let (code, _, err) = agent.cli("adaptive pause default");
    assert_eq!(code, 0, "{err}");
    let half = passes(&edge, &agent);
    assert!((half / whole - 0.49).abs() < 0.03, "{half} of {whole}");

    let (code, _, err) = agent.cli("adaptive resume");
    assert_eq!(code, 0, "{err}");
    let back = holds_within(Duration::from_secs(15), || {
        agent.get("/v1/adaptive").json()["backends"][0]["factor"] == 1.0
    });
    assert!(back, "{}", agent.get("/v1/adaptive").body);
    rest(Duration::from_millis(100));
    let restored = passes(&edge, &agent);
    assert!(
        (restored / whole - 1.0).abs() < 0.05,
        "{restored} of {whole}"
    );
    assert_eq!(checks(&edge, "after"), 100);
}

#[test]
fn a_killed_agent_leaves_the_factor_and_the_next_one_takes_it_over() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = start(&edge, "");
    agent
        .post("/v1/adaptive:pause", &json!({"factor": 0.25}))
        .expect(200);
    // Saved every ten seconds, and at the end.
    assert_eq!(agent.terminate(), 0);
    agent.restart();
    let view = agent.get("/v1/adaptive").expect(200).json();
    assert_eq!(
        (
            &view["backends"][0]["factor"],
            &view["backends"][0]["paused"]
        ),
        (&json!(0.25), &json!(true)),
        "{view}"
    );
    let slow = passes(&edge, &agent);
    assert!((slow / (0.25 * RATE) - 1.0).abs() < 0.1, "{slow}");
    // Nobody configures it any more: nothing stays slow.
    agent.kill();
    agent.reconfigure(|_| {
        Setup::new()
            .interface(EDGE)
            .enforce()
            .settings(SMALL)
            .settings(LIMITS)
            .check(ADDRESS)
    });
    agent.restart();
    rest(Duration::from_millis(300));
    let whole = passes(&edge, &agent);
    assert!((whole / RATE - 1.0).abs() < 0.05, "{whole}");
}

/// Serves `answer` (nothing, if empty: then it never answers) until `stop`, and counts connections.
fn serve(address: &str, answer: &str, asked: &AtomicU32, stop: &AtomicBool) {
    let listener = TcpListener::bind(address).or_fail("listen");
    listener.set_nonblocking(true).or_fail("do not block");
    let mut held = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            rest(Duration::from_millis(5));
            continue;
        };
        asked.fetch_add(1, Ordering::Relaxed);
        if answer.is_empty() {
            held.push(stream);
            continue;
        }
        stream.set_nonblocking(false).or_fail("block");
        let mut head = [0; 1_024];
        // Whoever goes away meanwhile needs no answer.
        let _gone = stream.read(&mut head).is_err() || stream.write_all(answer.as_bytes()).is_err();
    }
}

/// Tells servers to stop when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_poll_asks_what_is_configured_and_slow_pages_delay_nobody() {
    const SLOW: u32 = 20;
    let _residue = Residue::watch();
    let edge = Edge::new();
    edge.client.address(CLIENT, "169.254.169.254/16");
    edge.edge.address(EDGE, "169.254.1.1/16");
    let body = r#"{"mean":2000}"#;
    let page = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let redirect = "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest\r\n\
                    content-length: 0\r\n\r\n";
    let counts = [const { AtomicU32::new(0) }; 4];
    let [fast, sly, slow, metadata] = &counts;
    let stop = AtomicBool::new(false);
    let poll = |name: &str, port: u16| {
        format!(
            "[backends.{name}.adaptive]\nlaw = \"threshold\"\n[backends.{name}.adaptive.poll]\n\
             url = \"http://192.0.2.2:{port}/health\"\nlatency = \"/mean\"\nevery_ms = 500\n"
        )
    };
    let mut settings = poll("default", 8080) + &poll("sly", 8081);
    for number in 0..SLOW {
        settings += &poll(&format!("slow-{number}"), 8082);
    }
    std::thread::scope(|scope| {
        // Also when something below fails: the scope waits for its servers.
        let _stopped = Stop(&stop);
        for (address, answer, asked) in [
            ("192.0.2.2:8080", page.as_str(), fast),
            ("192.0.2.2:8081", redirect, sly),
            ("192.0.2.2:8082", "", slow),
            ("169.254.169.254:80", page.as_str(), metadata),
        ] {
            let (client, stop) = (&edge.client, &stop);
            scope.spawn(move || client.run(|| serve(address, answer, asked, stop)));
        }
        let agent = Setup::new()
            .settings(SMALL)
            .settings(&settings)
            .start(&edge.edge);
        let of = |name: &str| -> Value {
            let view = agent.get("/v1/adaptive").expect(200).json();
            let backends = view["backends"].as_array().or_fail("backends").clone();
            let found = backends.into_iter().find(|b| b["backend"] == name);
            found.or_fail("the backend")
        };
        let moved = holds_within(Duration::from_secs(5), || {
            of("default")["factor"].as_f64().is_some_and(|f| f < 0.5)
        });
        let [default, sly_view, slow_view] = ["default", "sly", "slow-0"].map(of);
        stop.store(true, Ordering::Relaxed);
        assert!(moved, "{default}");
        let problem = sly_view["poll_problem"].to_string();
        assert!(problem.contains("302"), "{sly_view}");
        assert_eq!(
            sly_view["reports"], 0,
            "a redirect is no report: {sly_view}"
        );
        let problem = slow_view["poll_problem"].to_string();
        assert!(problem.contains("no answer within 500 ms"), "{slow_view}");
        assert!(
            slow_view["factor"].as_f64().is_some_and(|f| f < 1.0),
            "{slow_view}"
        );
    });
    let [fast, sly, slow, metadata] = counts.map(AtomicU32::into_inner);
    assert!(fast >= 2 && sly >= 1 && slow >= SLOW, "{fast} {sly} {slow}");
    assert_eq!(metadata, 0, "a redirect was followed");
}
