//! R20 and R21: an operator who limits the interface that the operator's own connection comes through.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ratelimiter_userspace::clock;
use serde_json::json;
use tests::OrFail as _;
use tests::agent::Setup;
use tests::flood::Flood;
use tests::http::request_tcp;
use tests::packet::Packet;
use tests::residue::Residue;

use crate::edge::{CLIENT, EDGE, Edge};
use crate::limits::SMALL;

const TOKEN: &str = "correct-horse-battery";

#[test]
fn the_smallest_limit_from_an_allow_listed_host_locks_nobody_out() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = Setup::new()
        .interface(EDGE)
        .enforce()
        .settings(SMALL)
        .settings(&format!(
            "[credentials.operator]\ntoken = \"{TOKEN}\"\nrights = [\"admin\"]"
        ))
        .listen("192.0.2.1:9740")
        .start(&edge.edge);
    let bearer = format!("Bearer {TOKEN}");
    // Everything below comes through the interface that is limited.
    let ask = |method: &str, path: &str, body: Option<&serde_json::Value>| {
        let headers = [("authorization", bearer.as_str())];
        let address = "192.0.2.1:9740".parse().or_fail("an address");
        edge.client
            .run(|| request_tcp(address, method, path, &headers, body))
            .or_fail(path)
    };
    let cidr = json!({"cidr": "192.0.2.2"});
    let answer = ask("POST", "/v1/allowlist", Some(&cidr));
    assert!([200, 201].contains(&answer.status), "{answer:?}");
    let smallest = json!({
        "limits": { "packets": {
            "rate_limit": 1, "time_window": "366d", "burst": 1, "unit": "packets"
        } }
    });
    let answer = ask("PUT", "/v1/segments/default", Some(&smallest));
    assert!([200, 201].contains(&answer.status), "{answer:?}");
    // A rate of 0 is no limit but a block, and the answer says so.
    let mut none = smallest;
    none["limits"]["packets"]["rate_limit"] = json!(0);
    let answer = ask("PUT", "/v1/segments/default", Some(&none));
    assert_eq!(answer.status, 422, "{answer:?}");
    assert!(answer.body.contains("use a block"), "{}", answer.body);

    tests::process::rest(Duration::from_millis(100));
    assert_eq!(edge.pings(300), 300, "the operator's host loses nothing");
    for _ in 0..50 {
        ask("GET", "/v1/status", None).expect(200);
    }
    // Somebody else has one packet a year; address resolution and leases cost nothing.
    let mac = edge.client.mac(CLIENT);
    let between = || Packet::eth_between(mac, [0xff; 6]);
    let frames = vec![
        between()
            .ipv4("0.0.0.0", "255.255.255.255")
            .dhcp_discover()
            .build(),
        between()
            .ipv6("fe80::9", "ff02::1:2")
            .dhcp6_solicit()
            .build(),
        between().arp_request("192.0.2.9", "192.0.2.1").build(),
        between()
            .ipv6("fe80::9", "ff02::1:ff00:1")
            .neighbour_solicitation("2001:db8::1".parse().or_fail("an address"))
            .build(),
    ];
    let other = Packet::eth_between(mac, edge.edge.mac(EDGE));
    let other = other.ipv4("192.0.2.9", "192.0.2.1").udp(1, 2).build();
    let count = |reason: &str, verdict: &str| -> u64 {
        let status = agent.get("/v1/status").expect(200).json();
        let counts = status["counts"].as_array().cloned().unwrap_or_default();
        counts
            .iter()
            .filter(|count| count["reason"] == reason && count["verdict"] == verdict)
            .filter_map(|count| count["packets"].as_u64())
            .sum()
    };
    let send = |frames: Vec<Vec<u8>>, packets: u64| {
        let flood = Flood::new(frames).rate(10_000).packets(packets);
        let sent = edge
            .client
            .run(|| flood.send(CLIENT, &AtomicBool::new(false)));
        assert_eq!(sent.packets, packets);
        tests::process::rest(Duration::from_millis(300));
    };
    let (passed, over) = (
        count("control_traffic", "pass"),
        count("over_packets", "drop"),
    );
    send(frames, 2_000);
    send(vec![other], 100);
    assert!(count("control_traffic", "pass") >= passed + 2_000);
    assert_eq!(count("control_traffic", "drop"), 0);
    assert_eq!(count("allow_listed", "drop"), 0);
    assert_eq!(count("over_packets", "drop"), over + 99);
}

/// Answers every byte with the same one, to one peer after the other, on a port of the edge.
fn echo(edge: &Edge) -> std::net::SocketAddr {
    let listener = edge
        .edge
        .run(|| TcpListener::bind("192.0.2.1:7007").or_fail("listen"));
    let address = listener.local_addr().or_fail("an address");
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut byte = [0];
            while matches!(stream.read(&mut byte), Ok(1)) {
                if byte == *b"Q" {
                    return;
                }
                if stream.write_all(&byte).is_err() {
                    break;
                }
            }
        }
    });
    address
}

/// Sends a byte and says whether it came back within `bound`.
fn answers(stream: &mut TcpStream, bound: Duration) -> bool {
    let mut byte = [0];
    stream.set_read_timeout(Some(bound)).or_fail("set a bound");
    stream.write_all(b"x").or_fail("send");
    stream.read(&mut byte).is_ok_and(|n| n == 1)
}

/// R21 with the caller's own connection: a change that cuts it off is on trial by itself, and the
/// policy before it is in force again at the deadline, although nobody is left to see to it.
#[test]
fn a_change_that_cuts_the_caller_off_is_taken_back_although_the_agent_is_killed() {
    const CONFIRM: Duration = Duration::from_secs(5);
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = Setup::new()
        .interface(EDGE)
        .enforce()
        .settings(SMALL)
        .safety("confirm_within_s = 5\nrisky_percent = 100\nprotect_for_s = 0")
        .settings(&format!(
            "[credentials.operator]\ntoken = \"{TOKEN}\"\nrights = [\"admin\"]"
        ))
        .listen("192.0.2.1:9740")
        .start(&edge.edge);
    let bearer = format!("Bearer {TOKEN}");
    let block = || {
        let headers = [("authorization", bearer.as_str())];
        let address = "192.0.2.1:9740".parse().or_fail("an address");
        let body = json!({"cidr": "192.0.2.0/24", "reason": "a slip"});
        edge.client
            .run(|| request_tcp(address, "POST", "/v1/blocklist", &headers, Some(&body)))
            .or_fail("ask")
    };
    let server = echo(&edge);
    let mut held = edge
        .client
        .run(|| TcpStream::connect(server).or_fail("connect"));
    assert!(answers(&mut held, Duration::from_secs(5)));

    let begin = clock::instant();
    let waits = block();
    assert_eq!(waits.status, 202, "{waits:?}");
    assert!(
        waits
            .body
            .contains("your own address `192.0.2.2` would be blocked"),
        "{}",
        waits.body
    );
    assert!(waits.json()["confirm_by"].is_string());
    assert!(
        !answers(&mut held, Duration::from_millis(500)),
        "it is in force"
    );
    agent.kill();
    assert_eq!(edge.pings(1), 0, "nobody took it back yet");
    let back = tests::process::holds_within(Duration::from_secs(20), || edge.pings(1) == 1);
    let took = begin.elapsed();
    assert!(back, "the policy before it is in force again");
    println!(
        "taken back after {:.1} s, {CONFIRM:?} were set",
        took.as_secs_f64()
    );
    let slack = Duration::from_secs(2);
    assert!(took >= CONFIRM.saturating_sub(slack), "{took:?}");
    assert!(took <= CONFIRM + slack, "{took:?}");
    // The same connection goes on: the byte that was dropped is sent again by the kernel.
    assert!(answers(&mut held, Duration::from_secs(20)));

    // The next agent says the same, and who took it back; a change that is confirmed stays.
    agent.restart();
    let list = agent.get("/v1/blocklist").expect(200).json();
    assert_eq!(list["total"], 0, "{list}");
    let changes = agent.get("/v1/changes?limit=1").expect(200).json();
    assert_eq!(changes["items"][0]["by"], "rollback", "{changes}");
    assert_eq!(block().status, 202);
    agent.post("/v1/changes:confirm", &json!({})).expect(200);
    tests::process::rest(CONFIRM + Duration::from_secs(1));
    assert_eq!(edge.pings(2), 0, "confirmed, it stays");
    agent.delete("/v1/blocklist?cidr=192.0.2.0/24").expect(200);
    held.write_all(b"Q").or_fail("end the server");
}

/// The command line attaches from a session over SSH: where that comes from and the default gateway
/// are let in for a while, by the kernel's own clock.
#[test]
fn whoever_attaches_over_ssh_is_let_in_and_no_longer_than_set() {
    const SSH: &str = "192.0.2.2 50022 192.0.2.1 22";
    let _residue = Residue::watch();
    let edge = Edge::new();
    edge.edge.ip("route add default via 192.0.2.254");
    let mut agent = Setup::new()
        .enforce()
        .settings(SMALL)
        .safety("protect_for_s = 6\nrisky_percent = 100")
        .start(&edge.edge);
    let (status, out, err) = agent.cli_over_ssh(&format!("attach {EDGE}"), SSH);
    assert_eq!(status, 0, "{out}{err}");
    for part in [
        "192.0.2.2/32 is never limited until this ends in ",
        "(SSH peer of whoever attached)",
        "192.0.2.254/32",
        "(default gateway)",
    ] {
        assert!(out.contains(part), "no `{part}` in {out}");
    }
    let (_, listed, _) = agent.cli("allow list");
    assert!(listed.contains("agent, for a time"), "{listed}");
    let smallest = json!({
        "limits": { "packets": {
            "rate_limit": 1, "time_window": "366d", "burst": 1, "unit": "packets"
        } }
    });
    agent.put("/v1/segments/default", &smallest).expect(201);
    assert_eq!(edge.pings(50), 50, "the session loses nothing");
    agent.kill();
    let ended = tests::process::holds_within(Duration::from_secs(20), || edge.pings(3) <= 1);
    assert!(ended, "it ends although the agent is dead");
    agent.restart();
    let list = agent.get("/v1/allowlist").expect(200).json();
    assert_eq!(list["total"], 0, "it has ended: {list}");
    // The same change from that session waits to be confirmed: it would cut the session off.
    let (status, out, err) = agent.cli_over_ssh("block add 192.0.2.2", SSH);
    assert_eq!(status, 0, "{out}{err}");
    assert!(
        out.contains("your own address `192.0.2.2` would be blocked"),
        "{out}"
    );
    assert!(out.contains("ratelimiter confirm"), "{out}");
}
