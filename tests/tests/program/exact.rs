//! R8, R11, R12: two CPUs at once.

use std::sync::atomic::{AtomicBool, Ordering};

use ratelimiter_common::abi::config::flags;
use ratelimiter_common::abi::names;
use ratelimiter_common::abi::policy::{PrefixValue, action};
use ratelimiter_common::quota::Unit;
use ratelimiter_common::vclock::NEVER;
use ratelimiter_common::verdict::{Mode, Reason, Verdict};
use ratelimiter_userspace::clock::instant;
use tests::packet::Packet;
use tests::program::{Program, Rule, policy};
use tests::runner::{Runner, on_two_cpus};

/// Packets a source may send at once; one a second more.
const BURST: u64 = 4_000_000;
/// Packets each CPU offers.
const EACH: u32 = 10_000_000;

fn v4(source: &str) -> Vec<u8> {
    Packet::eth()
        .ipv4(source, "198.51.100.1")
        .udp(1234, 80)
        .zeros(18)
        .build()
}

fn v6(source: &str) -> Vec<u8> {
    Packet::eth()
        .ipv6(source, "2001:db8:ffff::1")
        .udp(1234, 80)
        .zeros(18)
        .build()
}

/// Two CPUs send the same source's packets; it gets its burst exactly, and both got a part of it.
fn exact(what: &str, program: &Program, frame: &[u8]) {
    let runner = Runner::of(program.xdp(names::PROGRAM));
    let began = instant();
    on_two_cpus(|_| runner.repeat(frame, EACH));
    let seconds = began.elapsed().as_secs() + 1;
    let passed = program.count(Reason::Conforming, Verdict::Pass);
    let share: Vec<u64> = program
        .cpus()
        .iter()
        .map(|cpu| cpu.counts[Reason::Conforming as usize][Verdict::Pass as usize].packets)
        .filter(|&packets| packets > 0)
        .collect();
    println!(
        "{what}: {passed} of {} admitted, burst {BURST}, {:.2} s, by CPU {share:?}, {} contended",
        program.counted(),
        began.elapsed().as_secs_f64(),
        program.reason(Reason::Contended),
    );
    assert_eq!(program.counted(), 2 * u64::from(EACH), "{what}");
    assert_eq!(share.len(), 2, "{what}: both CPUs took part: {share:?}");
    assert!(
        (BURST..=BURST + seconds + 2).contains(&passed),
        "{what}: {passed} admitted in {seconds} s"
    );
}

#[test]
fn two_cpus_share_one_burst_exactly() {
    tests::requires::bpf();
    let program = Program::limiting(1, BURST);
    exact("crowd, IPv4", &program, &v4("192.0.2.1"));
    let program = Program::limiting(1, BURST);
    exact("crowd, IPv6", &program, &v6("2001:db8::1"));
    let mut program = Program::load();
    program.set_policy(&policy(1, &[Rule::packets(1, BURST)]));
    program.prefix4([192, 0, 2, 1], 32, says(action::TRACKED, 1));
    program.track(0xc000_0201, 1);
    exact("tracked", &program, &v4("192.0.2.1"));
}

#[test]
fn two_cpus_share_one_burst_exactly_when_two_units_are_limited() {
    tests::requires::bpf();
    let both = [
        Rule::packets(1, BURST),
        Rule::packets(1, 1 << 34).of(Unit::Bytes),
    ];
    let crowd = |frame: &[u8], what: &str| {
        let mut program = Program::load();
        program.set_policy(&policy(0, &both));
        program.set_zone(0, 0, &[Unit::Packets, Unit::Bytes]);
        exact(what, &program, frame);
    };
    crowd(&v4("192.0.2.1"), "crowd, IPv4, packets and bytes");
    crowd(&v6("2001:db8::1"), "crowd, IPv6, packets and bytes");
}

fn says(action: u32, slot: u32) -> PrefixValue {
    PrefixValue {
        action,
        slot,
        until_ns: NEVER,
        ..PrefixValue::default()
    }
}

const NEWCOMER: &[Reason] = &[Reason::FirstSeen, Reason::Conforming, Reason::OverPackets];

/// A frame of one class.
type Class = (Vec<u8>, &'static [Reason]);

/// A program with every kind of policy, and a frame of every class with the reasons it may be
/// counted under.
fn every_class() -> (Program, Vec<Class>) {
    const JUDGED: &[Reason] = &[Reason::Conforming, Reason::OverPackets, Reason::Contended];
    let mut program = Program::limiting(1_000, 100);
    program.set_policy(&policy(1, &[Rule::packets(1_000, 100)]));
    program.set_policy(&policy(2, &[Rule::packets(1_000, 100).mode(Mode::Off)]));
    program.set_policy(&policy(3, &[Rule::packets(1_000, 100).mode(Mode::Shadow)]));
    program.prefix4([192, 0, 2, 1], 32, says(action::TRACKED, 1));
    program.prefix4([192, 0, 2, 2], 32, says(action::TRACKED, 2));
    program.prefix4([192, 0, 2, 3], 32, says(action::TRACKED, 3));
    program.prefix4([192, 0, 2, 4], 32, says(action::ALLOW, 0));
    program.prefix4([192, 0, 2, 5], 32, says(action::BLOCK, 0));
    for (host, slot) in [(1, 1), (2, 2), (3, 3)] {
        program.track(0xc000_0200 + host, slot);
    }
    program.change_config(|config| config.regions6[0].first_seen_ns = 1_000_000_000);
    let tcp = Packet::eth()
        .ipv4("203.0.113.9", "198.51.100.1")
        .tcp_syn(1, 2)
        .build();
    let classes = vec![
        (vec![0xff; 60], &[Reason::NonIp][..]),
        (
            Packet::eth().arp_request("192.0.2.9", "192.0.2.1").build(),
            &[Reason::ControlTraffic],
        ),
        (v4("203.0.113.1")[..24].to_vec(), &[Reason::Malformed]),
        (v4("203.0.113.2"), JUDGED),
        (tcp, JUDGED),
        (v6("2001:db8:5::1"), NEWCOMER),
        (v6("::1"), &[Reason::Malformed]),
        (v4("192.0.2.1"), JUDGED),
        (v4("192.0.2.2"), &[Reason::Off]),
        (v4("192.0.2.3"), JUDGED),
        (v4("192.0.2.4"), &[Reason::AllowListed]),
        (v4("192.0.2.5"), &[Reason::Blocked]),
    ];
    (program, classes)
}

#[test]
fn counters_add_up_to_the_packet_over_every_class_on_two_cpus() {
    const TIMES: u32 = 210_000;
    const ROUNDS: usize = 2;
    tests::requires::bpf();
    let (program, classes) = every_class();
    let runner = Runner::of(program.xdp(names::PROGRAM));
    // Long runs of each class against another class on the other CPU, then one frame at a time.
    let offered = on_two_cpus(|cpu| {
        let mut offered = vec![0_u64; classes.len()];
        for n in 0..ROUNDS * classes.len() {
            let class = (n + 5 * cpu) % classes.len();
            runner.repeat(&classes[class].0, TIMES);
            offered[class] += u64::from(TIMES);
        }
        for n in 0..20_000_u32 {
            let class = n as usize % classes.len();
            let mut frame = classes[class].0.clone();
            if classes[class].1 == NEWCOMER {
                // Another /64 each time.
                frame[26..30].copy_from_slice(&n.to_be_bytes());
            }
            runner.run(&frame);
            offered[class] += 1;
        }
        offered
    });
    let offered: Vec<u64> = (0..classes.len())
        .map(|class| offered[0][class] + offered[1][class])
        .collect();
    let total: u64 = offered.iter().sum();
    let bytes: u64 = classes
        .iter()
        .zip(&offered)
        .map(|((frame, _), times)| frame.len() as u64 * times)
        .sum();
    let counted_bytes: u64 = program
        .cpus()
        .iter()
        .flat_map(|cpu| cpu.counts.iter().flatten().map(|count| count.bytes))
        .sum();
    println!("{total} frames, {} counted", program.counted());
    assert!(total >= 10_000_000);
    assert_eq!(program.counted(), total);
    assert_eq!(counted_bytes, bytes);
    // Reasons that belong to one kind of frame each, to the packet.
    for reason in Reason::ALL {
        let certain: u64 = classes
            .iter()
            .zip(&offered)
            .filter(|((_, reasons), _)| **reasons == [reason])
            .map(|(_, times)| times)
            .sum();
        if certain > 0 {
            assert_eq!(program.reason(reason), certain, "{}", reason.as_str());
        }
    }
    let dropped = [Reason::NonIp, Reason::ControlTraffic, Reason::AllowListed]
        .map(|reason| program.count(reason, Verdict::Drop));
    assert_eq!(dropped, [0; 3]);
    assert!(program.reason(Reason::FirstSeen) > 0 && program.reason(Reason::OverPackets) > 0);
    // What segments count is what policies judged, no more and no less.
    let segments: u64 = (0..64)
        .map(|number| program.segment(number))
        .map(|count| count.conforming + count.shadowed + count.dropped)
        .sum();
    let judged: u64 = [
        Reason::Conforming,
        Reason::Off,
        Reason::OverPackets,
        Reason::FirstSeen,
        Reason::Contended,
    ]
    .map(|reason| program.reason(reason))
    .iter()
    .sum();
    assert_eq!(segments, judged);
}

#[test]
fn no_packet_is_judged_by_a_mixture_of_two_policies() {
    const FLIPS: u32 = 100_000;
    tests::requires::bpf();
    let mut program = Program::load();
    // One limits packets in shadow for segment 1, the other bytes for good for segment 2: whatever
    // is counted as anything else was judged by parts of both.
    let mut shadow = policy(1, &[Rule::packets(1, 1).mode(Mode::Shadow)]);
    shadow.segment = 1;
    let mut enforce = policy(1, &[Rule::packets(1, 100).of(Unit::Bytes)]);
    enforce.segment = 2;
    for (place, entry) in [(1_u32, &shadow), (2, &enforce)] {
        program.put(names::POLICIES, &place, entry);
        program.put(
            names::SEGMENT_CLOCKS,
            &place,
            &ratelimiter_common::vclock::SegmentClock::REAL,
        );
        program.put(names::SEGMENT_INDEX, &place, &place);
    }
    let flip = |place: u32| program.put(names::POLICY_INDEX, &1_u32, &place);
    flip(1);
    program.set_zone(0, 1, &[Unit::Packets, Unit::Bytes]);
    program.change_config(|config| config.flags |= flags::PREFIXES);
    program.track(0xc000_0201, 1);
    program.coarse("COARSE4", 0xc000..=0xc000, 255);
    program.put("FINE4", &(0x00c0_0002_u32 / 64), &u64::MAX);
    let program = program;
    let flip = |place: u32| program.put(names::POLICY_INDEX, &1_u32, &place);
    let runner = Runner::of(program.xdp(names::PROGRAM));
    // CPU 0 through the tracked table, CPU 1 through the crowd.
    let frames = [v4("192.0.2.1"), v4("203.0.113.1")];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..FLIPS {
                flip(1 + n % 2);
                if n % 64 == 0 {
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        on_two_cpus(|cpu| {
            while !done.load(Ordering::Relaxed) {
                runner.repeat(&frames[cpu], 300_000);
            }
        });
    });
    let (one, two) = (program.segment(1), program.segment(2));
    println!(
        "{} packets, shadow {one:?}, enforced {two:?}",
        program.counted()
    );
    let shadowed = program.count(Reason::OverPackets, Verdict::Pass);
    let dropped = program.count(Reason::OverBytes, Verdict::Drop);
    let conforming = program.count(Reason::Conforming, Verdict::Pass);
    assert!(
        shadowed > 10_000 && dropped > 10_000,
        "{shadowed} {dropped}"
    );
    let torn = program.counted() - shadowed - dropped - conforming;
    assert_eq!(torn, 0, "torn combinations");
    assert_eq!((one.dropped, two.shadowed), (0, 0));
    assert_eq!((one.shadowed, two.dropped), (shadowed, dropped));
    assert_eq!(one.conforming + two.conforming, conforming);
    // A burst of one packet, a burst of one and a half packets' bytes; twice, and a little refill.
    assert!(conforming < 1_000, "{conforming}");
}
