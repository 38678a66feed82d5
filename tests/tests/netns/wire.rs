//! R8, R11, R19 through a real interface and the real data plane.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratelimiter_common::verdict::{Reason, Verdict};
use ratelimiter_userspace::clock::instant;
use ratelimiter_userspace::dataplane::state::Stats;
use ratelimiter_userspace::dataplane::{DataPlane as _, XdpDataPlane};
use serde_json::json;
use tests::OrFail as _;
use tests::flood::Flood;
use tests::frames;
use tests::netns::{Netns, veth_queues};
use tests::packet::Packet;
use tests::policy::{Policies, document};
use tests::process::{holds_within, rest};
use tests::program::pin_to_cpu;
use tests::residue::Residue;
use tests::runner::{Runner, on_two_cpus};

use crate::edge::{CLIENT, EDGE, native, small};

/// Two ends of a veth with two queues and not a frame of their own: no address, no IPv6.
struct Wire {
    edge: Netns,
    client: Netns,
}

impl Wire {
    fn new() -> Self {
        tests::requires::bpf();
        let (edge, client) = (Netns::new(), Netns::new());
        for netns in [&edge, &client] {
            netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        }
        veth_queues((&edge, EDGE), (&client, CLIENT), 2);
        Self { edge, client }
    }

    /// Opens a data plane, which adopts what the last one left, and attaches.
    fn open(&self) -> XdpDataPlane {
        let plane = self
            .edge
            .run(|| XdpDataPlane::open(&small()))
            .or_fail("open the data plane");
        self.edge
            .run(|| plane.attach(EDGE, native()))
            .or_fail("attach");
        plane
    }

    /// Frames the edge's end of the veth took from its rings.
    fn received(&self) -> u64 {
        self.edge.statistic(EDGE, "rx_packets")
    }

    /// Waits until every frame sent was counted.
    fn settle(&self, plane: &XdpDataPlane) {
        let mut last = (0, 0);
        let quiet = holds_within(Duration::from_secs(5), || {
            rest(Duration::from_millis(20));
            let now = (self.received(), stats(plane).offered());
            std::mem::replace(&mut last, now) == now
        });
        assert!(quiet, "frames still arrive");
    }
}

fn stats(plane: &XdpDataPlane) -> Stats {
    plane.stats().or_fail("stats")
}

fn packets(rate_limit: u64, time_window: &str, burst: u64) -> serde_json::Value {
    json!({ "segments": { "default": { "limits": { "packets": {
        "rate_limit": rate_limit, "time_window": time_window, "burst": burst, "unit": "packets"
    } } } } })
}

/// Reason, verdict, bytes of the only frame counted between two readings.
fn judged(before: &Stats, after: &Stats) -> Option<(Reason, Verdict, u64)> {
    let mut found = None;
    for reason in Reason::ALL {
        for verdict in [Verdict::Pass, Verdict::Drop] {
            let (old, new) = (before.count(reason, verdict), after.count(reason, verdict));
            match new.packets - old.packets {
                0 => {}
                1 if found.is_none() => found = Some((reason, verdict, new.bytes - old.bytes)),
                _ => return None,
            }
        }
    }
    found
}

#[test]
fn every_fixture_on_the_wire_is_judged_as_in_a_test_run() {
    const MTU_FRAME: usize = 1_514;
    let _residue = Residue::watch();
    let wire = Wire::new();
    let plane = wire.open();
    let mut policies = Policies::default();
    // First everything conforms; then every source has one packet, so that the frame of the test
    // run is refused if and only if it has the key of the frame on the wire.
    for burst in [1 << 30, 1] {
        policies.set(&plane, &document(packets(burst, "366d", burst)));
        rest(Duration::from_millis(50));
        let runner = Runner::by_id(plane.health().program_id);
        wire.settle(&plane);
        let (mut compared, mut refused) = (0, 0);
        for fixture in frames::all() {
            if !(14..=MTU_FRAME).contains(&fixture.frame.len()) {
                continue;
            }
            let before = stats(&plane);
            let flood = Flood::new(vec![fixture.frame.clone()]).packets(1);
            let sent = wire
                .client
                .run(|| flood.send(CLIENT, &AtomicBool::new(false)));
            assert_eq!(sent.packets, 1, "{}", fixture.name);
            let arrived = holds_within(Duration::from_secs(2), || {
                stats(&plane).offered() == before.offered() + 1
            });
            assert!(arrived, "{}", fixture.name);
            let between = stats(&plane);
            runner.run(&fixture.frame);
            let on_the_wire = judged(&before, &between).or_fail(&fixture.name);
            let in_a_test_run = judged(&between, &stats(&plane)).or_fail(&fixture.name);
            if burst == 1 && on_the_wire.0 == Reason::Conforming {
                let expected = (Reason::OverPackets, Verdict::Drop, on_the_wire.2);
                assert_eq!(in_a_test_run, expected, "{}", fixture.name);
                refused += 1;
            } else {
                assert_eq!(in_a_test_run, on_the_wire, "{}", fixture.name);
            }
            compared += 1;
        }
        println!("{compared} frames, {refused} sources");
        assert!(compared >= 300, "only {compared} frames");
        assert_eq!(refused > 20, burst == 1);
    }
}

#[test]
fn counters_add_up_on_the_wire_and_across_a_restart() {
    let _residue = Residue::watch();
    let wire = Wire::new();
    let mut plane = wire.open();
    let mut policy = packets(100, "1s", 50);
    policy["allow"] = json!({ "192.0.2.4/32": {} });
    policy["block"] = json!({ "192.0.2.5/32": {} });
    Policies::default().set(&plane, &document(policy));
    let v4 = |source: &str| {
        let packet = Packet::eth().ipv4(source, "198.51.100.1").udp(1, 2);
        packet.zeros(18).build()
    };
    let mut other = vec![0xff; 60];
    other[12..14].copy_from_slice(&[0x88, 0xb5]);
    let frames = vec![
        other,
        Packet::eth().arp_request("192.0.2.9", "192.0.2.1").build(),
        v4("203.0.113.1")[..24].to_vec(),
        v4("203.0.113.2"),
        v4("203.0.113.3"),
        v4("192.0.2.4"),
        v4("192.0.2.5"),
        Packet::eth()
            .ipv6("2001:db8::5", "2001:db8:ffff::1")
            .udp(1, 2)
            .build(),
    ];
    wire.settle(&plane);
    let (received, counted) = (wire.received(), stats(&plane).offered());
    let flood = Flood::new(frames)
        .rate(100_000)
        .lasting(Duration::from_secs(10));
    let stop = AtomicBool::new(false);
    let (sent, plane) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| wire.client.run(|| flood.send(CLIENT, &stop)));
        for _ in 0..3 {
            rest(Duration::from_millis(500));
            // The one before ends first, as an agent does that is killed.
            drop(plane);
            plane = wire.open();
            assert!(plane.health().adopted);
        }
        rest(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        (sender.join().or_fail("the flood"), plane)
    });
    wire.settle(&plane);
    let after = stats(&plane);
    let (received, counted) = (wire.received() - received, after.offered() - counted);
    println!("{sent:?}, {received} received, {counted} counted");
    assert!(received > 20_000, "{received}");
    assert_eq!(counted, received, "every frame is counted once");
    for reason in [
        Reason::NonIp,
        Reason::ControlTraffic,
        Reason::Malformed,
        Reason::AllowListed,
        Reason::Blocked,
    ] {
        let packets =
            after.count(reason, Verdict::Pass).packets + after.count(reason, Verdict::Drop).packets;
        let share = packets as f64 / received as f64;
        assert!(
            (0.10..=0.15).contains(&share),
            "{}: {share}",
            reason.as_str()
        );
    }
}

#[test]
fn two_queues_share_one_burst_exactly() {
    const BURST: u64 = 100_000;
    let _residue = Residue::watch();
    let wire = Wire::new();
    let plane = wire.open();
    Policies::default().set(&plane, &document(packets(1, "1s", BURST)));
    let frame = Packet::eth()
        .ipv4("203.0.113.1", "198.51.100.1")
        .udp(1, 2)
        .zeros(18)
        .build();
    let began = instant();
    on_two_cpus(|cpu| {
        let flood = Flood::new(vec![frame.clone()])
            .packets(4 * BURST)
            .lasting(Duration::from_secs(6));
        wire.client.run(|| {
            pin_to_cpu(cpu);
            flood.send(CLIENT, &AtomicBool::new(false))
        })
    });
    wire.settle(&plane);
    let seconds = began.elapsed().as_secs() + 1;
    let after = stats(&plane);
    let passed = after.count(Reason::Conforming, Verdict::Pass).packets;
    println!("{passed} of {} passed in {seconds} s", after.offered());
    assert!(after.offered() > 2 * BURST, "{}", after.offered());
    assert!((BURST..=BURST + seconds + 2).contains(&passed), "{passed}");
}
