//! What a source of the crowd gets: its burst, then its rate, and no packet more.

use std::net::Ipv4Addr;

use ratelimiter_common::quota::Unit;
use ratelimiter_common::vclock::{LEAD_NS, SegmentClock};
use ratelimiter_common::verdict::{Mode, Reason, Verdict};
use ratelimiter_userspace::clock::monotonic_ns;
use ratelimiter_userspace::policy::clock::{ClockTarget, Edit, UnitTarget, edit};
use tests::packet::Packet;
use tests::program::{Program, Rule, XDP_DROP, XDP_PASS, policy};

fn from(source: &str) -> Vec<u8> {
    Packet::eth()
        .ipv4(source, "198.51.100.1")
        .udp(1234, 80)
        .zeros(40)
        .build()
}

fn passes(program: &Program, frame: &[u8], offered: u32) -> u32 {
    (0..offered)
        .map(|_| u32::from(program.run(frame) == XDP_PASS))
        .sum()
}

#[test]
fn a_burst_passes_and_the_next_packet_does_not() {
    tests::requires::bpf();
    let program = Program::limiting(1, 20);
    let frame = from("192.0.2.1");
    assert_eq!(passes(&program, &frame, 200), 20);
    assert_eq!(program.count(Reason::Conforming, Verdict::Pass), 20);
    assert_eq!(program.count(Reason::OverPackets, Verdict::Drop), 180);
    assert_eq!(program.counted(), 200);
    // Another source has a bucket of its own.
    assert_eq!(passes(&program, &from("192.0.2.2"), 30), 20);
}

#[test]
fn an_ipv6_prefix_has_one_bucket_and_its_neighbour_another() {
    tests::requires::bpf();
    let program = Program::limiting(1, 20);
    let from = |source: &str| {
        Packet::eth()
            .ipv6(source, "2001:db8:ffff::1")
            .udp(1234, 80)
            .zeros(40)
            .build()
    };
    let mut passed = 0;
    for host in 1..=50_u16 {
        passed += passes(&program, &from(&format!("2001:db8:1:2::{host:x}")), 2);
    }
    assert_eq!(passed, 20);
    assert_eq!(passes(&program, &from("2001:db8:1:3::1"), 30), 20);
}

#[test]
fn shadow_decides_and_passes() {
    tests::requires::bpf();
    let mut program = Program::limiting(1, 20);
    program.set_policy(&policy(0, &[Rule::packets(1, 20).mode(Mode::Shadow)]));
    assert_eq!(passes(&program, &from("192.0.2.1"), 100), 100);
    assert_eq!(program.count(Reason::OverPackets, Verdict::Pass), 80);
    assert_eq!(program.segment(0).shadowed, 80);
    assert_eq!(program.segment(0).conforming, 20);
}

#[test]
fn a_packet_refused_by_one_unit_is_charged_to_none() {
    tests::requires::bpf();
    let mut program = Program::load();
    let bytes = Rule::packets(1, 1_000).of(Unit::Bytes);
    program.set_policy(&policy(0, &[Rule::packets(1, 20), bytes]));
    program.set_zone(0, 0, &[Unit::Packets, Unit::Bytes]);
    let frame = |length: usize| {
        Packet::eth()
            .ipv4("192.0.2.1", "198.51.100.1")
            .udp(1, 2)
            .zeros(length)
            .build()
    };
    let large = frame(600);
    assert_eq!(program.run(&large), XDP_PASS);
    // Bytes refuse every further large one, and no packet is charged for them.
    for _ in 0..100 {
        assert_eq!(program.run(&large), XDP_DROP);
    }
    assert_eq!(program.reason(Reason::OverBytes), 100);
    // 642 bytes are gone, a few small frames of 60 fit, and 19 packets are left.
    assert_eq!(passes(&program, &frame(18), 50), 5);
    assert_eq!(program.reason(Reason::OverPackets), 0);
}

#[test]
fn connections_are_counted_by_their_first_segment_only() {
    tests::requires::bpf();
    let mut program = Program::load();
    program.set_policy(&policy(0, &[Rule::packets(1, 3).of(Unit::Connections)]));
    program.set_zone(0, 0, &[Unit::Connections]);
    let tcp = |flags| {
        Packet::eth()
            .ipv4("192.0.2.1", "198.51.100.1")
            .tcp(1, 2, flags)
            .build()
    };
    assert_eq!(passes(&program, &tcp(0x02), 10), 3);
    assert_eq!(passes(&program, &tcp(0x12), 10), 10);
    assert_eq!(passes(&program, &tcp(0x10), 10), 10);
    assert_eq!(program.reason(Reason::OverConnections), 7);
}

#[test]
fn nothing_is_dropped_while_the_agent_runs_in_shadow() {
    tests::requires::bpf();
    let mut program = Program::limiting(1, 20);
    program.change_config(|config| config.flags = 0);
    assert_eq!(
        passes(&program, &from(&Ipv4Addr::LOCALHOST.to_string()), 100),
        100
    );
    assert_eq!(program.count(Reason::OverPackets, Verdict::Pass), 80);
    let cut = &from("192.0.2.1")[..20];
    assert_eq!(program.run(cut), XDP_PASS);
    assert_eq!(program.count(Reason::Malformed, Verdict::Pass), 1);
}

/// A packet rule as the policy module edits it into a clock.
fn wish(rule: Rule) -> ClockTarget {
    let piece = rule.piece(0, 0);
    ClockTarget {
        target: Some(UnitTarget {
            limit: ratelimiter_common::quota::Limit {
                speed: piece.speed,
                burst: piece.burst,
            },
            mode: Mode::Enforce,
        }),
        way_back: None,
    }
}

#[test]
fn a_lowered_burst_and_one_more_change_hand_out_no_second_burst() {
    tests::requires::bpf();
    let mut program = Program::load();
    let mut entry = policy(0, &[Rule::packets(1, 1_000)]);
    program.set_policy(&entry);
    program.set_zone(0, 0, &[Unit::Packets]);
    let frame = from("192.0.2.1");
    let packets = passes(&program, &frame, 1_100);
    assert!((1_000..=1_001).contains(&packets), "{packets}");
    // The second change pushes the piece with the large burst out of the entry.
    for rule in [
        Rule::packets(1, 10),
        Rule::packets(2, 10),
        Rule::packets(1, 10),
    ] {
        let now_ns = monotonic_ns();
        let [packets, ..] = &mut entry.clocks;
        let edited = edit(
            packets,
            &wish(rule),
            &SegmentClock::REAL,
            now_ns,
            now_ns + LEAD_NS,
        );
        let Edit::Changed(clock) = edited else {
            panic!("{edited:?}");
        };
        *packets = clock;
        program.set_policy(&entry);
        tests::process::rest(std::time::Duration::from_nanos(2 * LEAD_NS));
    }
    assert_eq!(passes(&program, &frame, 100), 0, "the debt is still owed");
    // It was lowered to the burst by the refusals, so the source is not locked out for 1000 s.
    tests::process::rest(std::time::Duration::from_millis(1_500));
    let packets = passes(&program, &frame, 100);
    assert!((1..=3).contains(&packets), "{packets}");
}
