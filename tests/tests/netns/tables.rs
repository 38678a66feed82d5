//! What lies in the kernel's tables is whose it is: regions that change hands, promoted sources.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ratelimiter_common::abi::config::flags;
use ratelimiter_common::abi::merge::{MergeOp, op, result};
use ratelimiter_common::source;
use ratelimiter_common::verdict::{Reason, Verdict};
use ratelimiter_userspace::clock;
use ratelimiter_userspace::dataplane::tables::{FirstSeen, budgets_of};
use ratelimiter_userspace::dataplane::{DataPlane, Tables, XdpDataPlane};
use ratelimiter_userspace::policy::plan::Update;
use serde_json::{Value, json};
use tests::OrFail as _;
use tests::flood::Flood;
use tests::packet::Packet;
use tests::policy::{Policies, document};
use tests::program::XDP_PASS;
use tests::residue::Residue;
use tests::runner::Runner;

use crate::edge::{CLIENT, EDGE, Edge, native};

fn attached() -> (Edge, XdpDataPlane) {
    let edge = Edge::new();
    let plane = edge.open();
    edge.edge
        .run(|| plane.attach(EDGE, native()))
        .or_fail("attach");
    (edge, plane)
}

/// A document with one wide segment.
fn segment(name: &str, prefix: &str) -> Value {
    let limit = json!({"rate_limit": 1, "time_window": 60, "burst": 50, "unit": "packets"});
    json!({"segments": {name: {"sources": [prefix], "limits": {"packets": limit}}}})
}

/// One packet from each of 200 sources of 10.0.0.0/8.
fn send(edge: &Edge) {
    let frames: Vec<Vec<u8>> = (0..200)
        .map(|n| {
            Packet::eth_between(edge.client.mac(CLIENT), edge.edge.mac(EDGE))
                .ipv4(&format!("10.0.0.{n}"), "192.0.2.1")
                .udp(4_000, 4_001)
                .zeros(18)
                .build()
        })
        .collect();
    let flood = Flood::new(frames)
        .rate(10_000)
        .packets(1_000)
        .lasting(Duration::from_secs(5));
    edge.client
        .run(|| flood.send(CLIENT, &AtomicBool::new(false)));
    tests::process::rest(Duration::from_millis(50));
}

/// IPv4 words that are claimed in the region of zone 1, and the region's number.
fn claimed(plane: &XdpDataPlane) -> (u64, u8) {
    let figures = plane.figures(clock::monotonic_ns()).or_fail("figures");
    let fill = figures.crowd.iter().find(|fill| !fill.v6 && fill.zone == 1);
    let fill = fill.or_fail("zone 1");
    (fill.claimed, fill.region)
}

#[test]
fn a_region_is_empty_when_another_policy_takes_it() {
    let _residue = Residue::watch();
    let (edge, plane) = attached();
    // Every newcomer is admitted.
    let budgets = Tables::small().budgets(1, FirstSeen::Off);
    plane
        .apply(&[Update::Budgets(Box::new(budgets))])
        .or_fail("budgets");
    let mut policies = Policies::default();
    policies.set(&plane, &document(segment("first", "10.0.0.0/8")));
    send(&edge);
    let (words, region) = claimed(&plane);
    assert_eq!(words, 200, "every source has a word");
    // A change of the segment itself keeps its words.
    let mut changed = segment("first", "10.0.0.0/8");
    changed["segments"]["first"]["limits"]["packets"]["burst"] = json!(60);
    policies.set(&plane, &document(changed));
    assert_eq!(claimed(&plane), (200, region));

    tests::process::rest(Duration::from_millis(50));
    policies.set(&plane, &document(json!({})));
    policies.set(&plane, &document(segment("second", "172.16.0.0/12")));
    assert_eq!(claimed(&plane), (0, region), "the same region, empty");
    // So it is after a restart in between.
    policies.set(&plane, &document(json!({})));
    policies.set(&plane, &document(segment("first", "10.0.0.0/8")));
    send(&edge);
    assert_eq!(claimed(&plane).0, 200);
    policies.set(&plane, &document(json!({})));
    drop(plane);
    let plane = edge.open();
    assert!(plane.health().adopted);
    policies.set(&plane, &document(segment("third", "10.0.0.0/8")));
    assert_eq!(claimed(&plane), (0, region));
}

fn on(kind: u32, key: u64, generation: u32) -> MergeOp {
    MergeOp {
        op: kind,
        key,
        family: 4,
        generation,
        ..MergeOp::default()
    }
}

/// Two IPv4 sources whose promoted bit is the same, and one whose bit is another.
fn keys() -> [u64; 3] {
    let first = 0x0a00_0001;
    let bit = source::promoted_bit(first);
    let twin = (first + 1..1 << 32)
        .find(|key| source::promoted_bit(*key) == bit)
        .or_fail("a twin");
    [first, twin, first + 1]
}

#[test]
fn promoted_sources_are_asked_for_while_there_are_any() {
    let _residue = Residue::watch();
    let (edge, plane) = attached();
    Policies::default().set(&plane, &document(json!({})));
    let state = |plane: &XdpDataPlane| {
        let installed = plane.installed().or_fail("read back");
        (
            installed.config.flags & flags::PROMOTED != 0,
            installed.tracked.len(),
        )
    };
    assert_eq!(state(&plane), (false, 0));
    let [first, twin, other] = keys();
    let generation = plane
        .installed()
        .or_fail("read back")
        .config
        .prefix_generation;
    let mut ops = [first, twin, other].map(|key| on(op::PROMOTE, key, generation));
    plane.merge(&mut ops).or_fail("promote");
    assert!(ops.iter().all(|op| op.result == result::DONE), "{ops:?}");
    // The planner would delete what it does not know, and forgive it.
    assert_eq!(state(&plane), (true, 0));
    // A change of flags that follows from policy leaves this one alone.
    plane
        .apply(&[Update::Flags(flags::ENFORCE)])
        .or_fail("flags");
    assert_eq!(state(&plane), (true, 0));
    drop(plane);
    let plane = edge.open();
    assert_eq!(state(&plane), (true, 0), "also after a restart");

    let count = |plane: &XdpDataPlane| {
        let mut tracked = 0;
        plane.scan_tracked(&mut |_, _| tracked += 1).or_fail("scan");
        tracked
    };
    assert_eq!(count(&plane), 3);
    for (key, still) in [(first, true), (other, true), (twin, false)] {
        let mut ops = [on(op::DEMOTE, key, generation)];
        plane.merge(&mut ops).or_fail("demote");
        assert_eq!(ops[0].result, result::DONE);
        assert_eq!(state(&plane).0, still, "{key:#x}");
    }
    assert_eq!(count(&plane), 0);
}

#[test]
fn budgets_are_what_they_are_set_to() {
    let _residue = Residue::watch();
    let (edge, plane) = attached();
    Policies::default().set(&plane, &document(json!({})));
    let read = |plane: &XdpDataPlane| plane.installed().or_fail("read back").config;
    let made = read(&plane);
    let budgets = Tables::small().budgets(2, FirstSeen::Off);
    plane
        .apply(&[
            Update::Budgets(Box::new(budgets)),
            Update::Flags(flags::ENFORCE | flags::MALFORMED_BUDGET),
        ])
        .or_fail("budgets");
    assert_eq!(budgets_of(&read(&plane)), budgets);
    let geometry = |config: &ratelimiter_common::abi::config::Config| {
        config
            .regions4
            .map(|region| (region.base_set, region.set_mask, region.set_bits))
    };
    assert_eq!(geometry(&read(&plane)), geometry(&made));
    // Ten runts at once: the budget of two a second, one second deep, admits two.
    let whole = Packet::eth_between(edge.client.mac(CLIENT), edge.edge.mac(EDGE))
        .ipv4("10.0.0.1", "192.0.2.1")
        .udp(1, 2)
        .build();
    let runt = whole.get(..24).or_fail("a runt").to_vec();
    let flood = Flood::new(vec![runt])
        .rate(10_000)
        .packets(10)
        .lasting(Duration::from_secs(1));
    edge.client
        .run(|| flood.send(CLIENT, &AtomicBool::new(false)));
    tests::process::rest(Duration::from_millis(50));
    let stats = plane.stats().or_fail("stats");
    let of = |reason, verdict| stats.count(reason, verdict).packets;
    let admitted = of(Reason::MalformedConforming, Verdict::Pass);
    assert!((2..=3).contains(&admitted), "{admitted}");
    assert_eq!(of(Reason::MalformedOver, Verdict::Drop), 10 - admitted);
}

/// Everybody has 50 packets at once and one more an hour; clients as given.
fn hourly(clients: &Value) -> Value {
    let limit = json!({"rate_limit": 1, "time_window": 3600, "burst": 50, "unit": "packets"});
    json!({
        "segments": {"default": {"limits": {"packets": limit}}},
        "clients": clients,
    })
}

#[test]
fn a_source_that_becomes_a_client_and_ceases_to_be_one_keeps_what_it_owes() {
    let _residue = Residue::watch();
    let (_edge, plane) = attached();
    let mut policies = Policies::default();
    let limit = json!({"rate_limit": 1, "time_window": 3600, "burst": 50, "unit": "packets"});
    let client =
        |sources: Value| json!({"one": {"sources": sources, "limits": {"packets": limit}}});
    let mut in_force = |document: Value| {
        let at_ns = policies.set(&plane, &tests::policy::document(document));
        let wait_ns = at_ns.saturating_sub(clock::monotonic_ns());
        tests::process::rest(Duration::from_nanos(wait_ns) + Duration::from_millis(50));
    };
    in_force(hourly(&json!({})));
    let runner = Runner::by_id(plane.health().program_id);
    let four = Packet::eth()
        .ipv4("203.0.113.7", "192.0.2.1")
        .udp(1, 2)
        .zeros(18)
        .build();
    let six = Packet::eth()
        .ipv6("2001:db8:7::1", "2001:db8::1")
        .udp(1, 2)
        .build();
    let passes = |offered: u32| {
        let passed = |frame: &[u8]| {
            (0..offered)
                .filter(|_| runner.run(frame) == XDP_PASS)
                .count()
        };
        (passed(&four), passed(&six))
    };
    assert_eq!(passes(20), (20, 20));
    in_force(hourly(&client(json!([
        "203.0.113.7/32",
        "2001:db8:7::/64"
    ]))));
    assert_eq!(plane.installed().or_fail("read back").tracked.len(), 2);
    assert_eq!(passes(20), (20, 20), "what is left of the burst");
    in_force(hourly(&json!({})));
    assert_eq!(plane.installed().or_fail("read back").tracked.len(), 0);
    assert_eq!(passes(100), (10, 10), "the rest of the one burst there is");
    in_force(hourly(&client(json!([
        "203.0.113.7/32",
        "2001:db8:7::/64"
    ]))));
    assert_eq!(passes(100), (0, 0));
}
