//! R20: an operator who limits the interface that the operator's own connection comes through.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

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
