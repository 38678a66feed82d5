//! R20 and the first thing of all: what is over its limit is dropped, and nobody is locked out.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ratelimiter_common::verdict::{Reason, Verdict};
use ratelimiter_userspace::clock;
use ratelimiter_userspace::dataplane::{DataPlane, XdpDataPlane};
use serde_json::json;
use tests::OrFail as _;
use tests::flood::Flood;
use tests::packet::Packet;
use tests::policy::{document, install};
use tests::residue::Residue;

use crate::edge::{CLIENT, EDGE, Edge, native};

fn limited(policy: serde_json::Value) -> (Edge, XdpDataPlane) {
    let edge = Edge::new();
    let plane = edge.open();
    install(&plane, &document(policy));
    edge.edge
        .run(|| plane.attach(EDGE, native()))
        .or_fail("attach");
    (edge, plane)
}

fn frames(edge: &Edge, sources: u8) -> Vec<Vec<u8>> {
    (0..sources)
        .map(|n| {
            Packet::eth_between(edge.client.mac(CLIENT), edge.edge.mac(EDGE))
                .ipv4(&format!("198.51.100.{n}"), "192.0.2.1")
                .udp(4_000, 4_001)
                .zeros(18)
                .build()
        })
        .collect()
}

#[test]
fn each_source_gets_its_burst_and_its_rate_and_no_more() {
    let _residue = Residue::watch();
    let (edge, plane) = limited(json!({
        "segments": { "default": { "limits": {
            "packets": { "rate_limit": 1, "time_window": 60, "burst": 100, "unit": "packets" }
        } } }
    }));
    let flood = Flood::new(frames(&edge, 10))
        .rate(50_000)
        .lasting(Duration::from_secs(2));
    let before = edge.edge.ipv4_received();
    let sent = edge
        .client
        .run(|| flood.send(CLIENT, &AtomicBool::new(false)));
    tests::process::rest(Duration::from_millis(50));
    let received = edge.edge.ipv4_received() - before;
    let entitled = 10 * (100 + 1);
    assert!(
        (1_000..=entitled + 2).contains(&received),
        "{received} of {sent:?}"
    );
    let stats = plane.stats().or_fail("stats");
    let dropped = stats.count(Reason::OverPackets, Verdict::Drop).packets;
    let passed = stats.count(Reason::Conforming, Verdict::Pass).packets;
    assert!(passed >= received, "{passed} {received}");
    assert!(dropped > 10_000, "{dropped} of {sent:?}");
    // The crowd shows exactly those ten, each with an empty bucket.
    let mut over = Vec::new();
    plane
        .scan_crowd(clock::monotonic_ns(), &mut |source| {
            if source.debt > source.burst / 2 {
                over.push(source.address().to_string());
            }
        })
        .or_fail("scan");
    over.sort();
    let expected: Vec<String> = (0..10).map(|n| format!("198.51.100.{n}")).collect();
    assert_eq!(over, expected);
    let figures = plane.figures(clock::monotonic_ns()).or_fail("figures");
    let region = figures
        .crowd
        .iter()
        .find(|fill| !fill.v6 && fill.zone == 0)
        .or_fail("the default region");
    assert!(
        region.over_limit >= 10 && region.rate_per_s == 1,
        "{region:?}"
    );
    // Samples stand for what was judged: within a factor of two at this number.
    let mut weight = 0;
    let drained = plane
        .drain_samples(&mut |sample| weight += u64::from(sample.weight))
        .or_fail("samples");
    assert!(drained.taken > 0);
    let offered = stats.offered();
    assert!(
        (offered / 2..=offered * 2).contains(&(weight + drained.lost * 32)),
        "{weight} of {offered}, {drained:?}"
    );
    let mut events = 0;
    plane.drain_events(&mut |_| events += 1).or_fail("events");
    assert!(events > 0, "no drop event");
}

#[test]
fn the_smallest_limit_locks_nobody_out_who_is_on_the_allow_list() {
    let _residue = Residue::watch();
    let (edge, plane) = limited(json!({
        "segments": { "default": { "limits": {
            "packets": { "rate_limit": 1, "time_window": "366d", "burst": 1, "unit": "packets" }
        } } },
        "allow": { "192.0.2.2/32": { "reason": "management" } }
    }));
    edge.client.address(CLIENT, "192.0.2.3/24");
    // The management source loses nothing.
    assert_eq!(edge.pings(500), 500);
    // Another source has its one packet and no more.
    let (_, out, _) = edge
        .client
        .try_sh("ping -I 192.0.2.3 -c 20 -i 0.01 -W 1 -q 192.0.2.1");
    assert!(out.contains(" 1 received"), "{out}");
    // ARP and neighbour discovery go on: forgotten neighbours are found again, also by a source
    // that may send nothing else.
    for round in 0..20 {
        edge.client.ip("neigh flush all");
        edge.edge.ip("neigh flush all");
        edge.client
            .try_sh("ping -I 192.0.2.3 -c 1 -W 0.2 -q 192.0.2.1");
        edge.client.try_sh("ping -c 1 -W 0.2 -q 2001:db8::1");
        let neighbours = edge.client.ip("neigh show");
        for address in ["192.0.2.1 ", "2001:db8::1 "] {
            let line = neighbours
                .lines()
                .find(|line| line.starts_with(address))
                .unwrap_or_default();
            assert!(
                line.contains("lladdr"),
                "round {round}, {address}: {neighbours}"
            );
        }
    }
    let stats = plane.stats().or_fail("stats");
    assert!(stats.count(Reason::ControlTraffic, Verdict::Pass).packets >= 40);
    assert_eq!(
        stats.count(Reason::ControlTraffic, Verdict::Drop).packets,
        0
    );
    assert_eq!(stats.count(Reason::AllowListed, Verdict::Drop).packets, 0);
}

#[test]
fn adopted_tables_refill_no_bucket() {
    let _residue = Residue::watch();
    let (edge, plane) = limited(json!({
        "segments": { "default": { "limits": {
            "packets": { "rate_limit": 1, "time_window": 60, "burst": 1_000, "unit": "packets" }
        } } }
    }));
    let frames = frames(&edge, 1);
    let send = || {
        let flood = Flood::new(frames.clone())
            .rate(20_000)
            .packets(2_000)
            .lasting(Duration::from_secs(5));
        let before = edge.edge.ipv4_received();
        edge.client
            .run(|| flood.send(CLIENT, &AtomicBool::new(false)));
        tests::process::rest(Duration::from_millis(50));
        edge.edge.ipv4_received() - before
    };
    let first = send();
    assert!((1_000..=1_002).contains(&first), "{first}");
    drop(plane);
    let plane = edge.open();
    assert!(plane.health().adopted);
    edge.edge
        .run(|| plane.attach(EDGE, native()))
        .or_fail("attach");
    let again = send();
    assert!(again <= 2, "{again} passed after the adoption");
}
