//! R9 on simulated time, and the proof that the simulation is the kernel program.

use ratelimiter_common::abi::crowd::Set4;
use ratelimiter_common::abi::names;
use ratelimiter_common::quota::{MAX_WINDOW_NS, Quota, Unit};
use ratelimiter_common::vclock::{Piece, UnitClock};
use ratelimiter_common::verdict::{Mode, Reason};
use tests::OrFail as _;
use tests::bench::churn::{play_all, polite_mix};
use tests::churn::{Crowd, Judged, Shape, scene};
use tests::packet::Packet;
use tests::program::{Program, Sizes, XDP_PASS, pin_to_cpu, policy};
use tests::random::Random;

/// 64 sets, 512 words: the fewest of any region.
const BITS: u32 = 6;

/// A quota so slow that its clock stands still for two minutes: the real one cannot then differ
/// from the simulated one.
fn frozen(burst: u64) -> Piece {
    let limit = Quota {
        rate_limit: 1,
        window_ns: MAX_WINDOW_NS,
        burst,
        unit: Unit::Packets,
    }
    .compile()
    .or_fail("quota");
    Piece {
        from_ns: ratelimiter_userspace::clock::monotonic_ns(),
        base_ns: ratelimiter_userspace::clock::monotonic_ns(),
        base: (1 << 30) + 77,
        speed: limit.speed,
        burst: limit.burst,
        mode: Mode::Enforce as u32,
        debt_bits: 0,
    }
}

fn agree(first_seen_ns: u64, draw: u32, packets: u32) {
    pin_to_cpu(0);
    let piece = frozen(20);
    let mut program = Program::load_object(
        ratelimiter_userspace::dataplane::object::object().or_fail("kernel object"),
        Sizes {
            bits4: BITS + 3,
            ..tests::program::SMALL
        },
        &[names::PROGRAM],
    );
    let mut entry = policy(0, &[]);
    entry.units = 1;
    entry.clocks[0] = UnitClock::single(piece);
    program.set_policy(&entry);
    program.set_zone(0, 0, &[Unit::Packets]);
    program.change_config(|config| {
        config.regions4[0].first_seen_ns = first_seen_ns;
        config.regions4[0].draw = draw;
    });
    let mut crowd = Crowd::new(Shape {
        key: program.config.perm,
        bits: BITS + 3,
        piece,
        first_seen_ns,
        draw,
        cpus: 1,
        inherits: true,
    });
    let mut random = Random::new(u64::from(draw));
    let mut frame = Packet::eth()
        .ipv4("192.0.2.1", "198.51.100.1")
        .udp(1, 2)
        .build();
    let mut counts = [0_u32; 3];
    for n in 0..packets {
        // A few sources often, many seldom: matches, victims, debtors and idle words.
        let kind = random.below(4);
        let source =
            0x0a00_0000 + random.below([400, 4_000, 40_000, 1 << 24][kind as usize]) as u32;
        frame[26..30].copy_from_slice(&source.to_be_bytes());
        let real_ns = ratelimiter_userspace::clock::monotonic_ns();
        let judged = crowd.packet(0, source, real_ns);
        counts[judged as usize] += 1;
        let passed = program.run(&frame) == XDP_PASS;
        assert_eq!(
            passed,
            judged == Judged::Conforming,
            "packet {n} of {source:#x}: the simulation says {judged:?}"
        );
    }
    let counted = [Reason::Conforming, Reason::OverPackets, Reason::FirstSeen]
        .map(|reason| program.reason(reason) as u32);
    println!("conforming, over, first seen: {counts:?}");
    assert_eq!(counted, counts);
    for (number, simulated) in crowd.sets().iter().enumerate() {
        let real: Set4 = program
            .get(names::CROWD4, &(number as u32))
            .or_fail("a set");
        assert_eq!(real.words, *simulated, "set {number}");
    }
    assert!(counts[0] > 300 && counts[1] > 300, "{counts:?}");
    assert_eq!(counts[2] > 0, first_seen_ns > 0);
}

#[test]
fn simulation_and_kernel_agree_packet_by_packet() {
    tests::requires::bpf();
    agree(0, 64, 150_000);
    // 18 minutes a newcomer: the first draw is all there is.
    agree(1 << 34, 64, 60_000);
}

#[test]
fn churning_the_table_gains_nothing() {
    let mut mixes = scene::mixes(&[0.5, 5.0], &[1, 4, 16], BITS, 3);
    mixes.extend(scene::mixes(&[2.0], &[64], BITS, 2));
    let outcomes = play_all(&mixes);
    let (mix, worst) = mixes
        .iter()
        .zip(&outcomes)
        .max_by(|a, b| a.1.gain.total_cmp(&b.1.gain))
        .or_fail("quota");
    println!(
        "worst gain of {} mixes: {:.4}, {mix:?}",
        mixes.len(),
        worst.gain
    );
    assert!(worst.gain <= 1.01, "{mix:?}: {worst:?}");
    assert!(worst.gain > 0.9, "the attackers got their own: {worst:?}");
    // The same scenes show what a table without inheritance gives away.
    for mix in mixes.iter().filter(|mix| mix.k == 64) {
        let careless = Crowd::new(Shape {
            inherits: false,
            ..scene::shape(mix.bits, mix.budget)
        });
        let outcome = scene::play_in(careless, mix);
        println!(
            "without inheritance {:.1}: {:?}",
            outcome.gain, mix.arrivals
        );
        assert!(outcome.gain > 1.5, "{outcome:?}");
    }
}

#[test]
fn a_flood_below_the_tables_capacity_costs_the_polite_nothing() {
    for budget in [false, true] {
        let outcome = scene::play(&polite_mix(9, budget, 5));
        println!("first-seen budget {budget}: {outcome:?}");
        assert!(outcome.polite_loss <= 0.001, "{outcome:?}");
        assert!(outcome.packets > 100_000);
        // The budget is in force where it is switched on, and only there.
        assert_eq!(outcome.new_passed > 0.9, !budget, "{outcome:?}");
    }
}
