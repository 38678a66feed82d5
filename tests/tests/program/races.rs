//! Two CPUs that change the same buckets: ways that change hands, the first-seen budget, and the
//! merge program under load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ratelimiter_common::abi::config::flags;
use ratelimiter_common::abi::crowd::{BUSY, Set6, WAYS};
use ratelimiter_common::abi::merge::{MergeOp, op, result};
use ratelimiter_common::abi::names;
use ratelimiter_common::perm::perm64;
use ratelimiter_common::quota::Unit;
use ratelimiter_common::verdict::{Reason, Verdict};
use ratelimiter_userspace::clock::{instant, monotonic_ns};
use tests::OrFail as _;
use tests::packet::Packet;
use tests::process::{holds_within, rest};
use tests::program::{Program, Rule, SMALL, Sizes, XDP_PASS, policy};
use tests::runner::{Runner, on_two_cpus};

/// 64 sets: 512 words or ways, the fewest of any region.
const TINY: Sizes = Sizes {
    bits4: 6,
    bits6: 6,
    ..SMALL
};

/// The benchmark's program: the limiter behind a generator of sources.
fn generating(entry: &str, sizes: Sizes, rule: Rule) -> Program {
    let object = ratelimiter_userspace::dataplane::object::bench_object().or_fail("bench object");
    let mut program = Program::load_object(object, sizes, &[entry]);
    program.set_policy(&policy(0, &[rule]));
    program.set_zone(0, 0, &[Unit::Packets]);
    program
}

/// A frame for the generator: the first number, the bits of the source that vary, and the rest.
fn generator(v6: bool, first: u64, mask: u32, base: u32) -> Vec<u8> {
    let mut payload = first.to_ne_bytes().to_vec();
    payload.extend_from_slice(&mask.to_ne_bytes());
    payload.extend_from_slice(&base.to_ne_bytes());
    payload.resize(22, 0);
    let packet = if v6 {
        Packet::eth().ipv6("2001:db8::1", "2001:db8:ffff::1")
    } else {
        Packet::eth().ipv4("11.0.0.1", "198.51.100.1")
    };
    packet.udp(1234, 80).payload(&payload).build()
}

/// 4 096 sources on two CPUs want 512 places: whoever comes inherits what the place owes, so all
/// of them together get what 512 sources are entitled to.
fn hand_over(v6: bool) -> Program {
    const EACH: u32 = 4_000_000;
    const BURST: u64 = 2_000;
    let entry = if v6 { "limiter6" } else { "limiter4" };
    let program = generating(entry, TINY, Rule::packets(1, BURST));
    let runner = Runner::of(program.xdp(entry));
    let began = instant();
    on_two_cpus(|cpu| {
        let frame = generator(v6, cpu as u64 * 1_000_000_007, 4_095, 0x0b00_0000);
        runner.repeat(&frame, EACH);
    });
    let seconds = began.elapsed().as_secs() + 1;
    let passed = program.count(Reason::Conforming, Verdict::Pass);
    let places = (WAYS << 6) as u64;
    let (least, most) = (places * BURST * 99 / 100, places * (BURST + seconds) + 2);
    println!(
        "{entry}: {passed} admitted, {} contended, allowed {least}..={most}",
        program.reason(Reason::Contended)
    );
    assert_eq!(program.counted(), 2 * u64::from(EACH));
    assert!((least..=most).contains(&passed), "{entry}: {passed}");
    program
}

#[test]
fn places_that_change_hands_on_two_cpus_keep_their_debt() {
    tests::requires::bpf();
    hand_over(false);
    let program = hand_over(true);
    // No key in a set it does not belong to, none busy for ever, and hardly one twice.
    let (mut held, mut twice) = (0, 0);
    for number in 0..64_u32 {
        let set: Set6 = program.get(names::CROWD6, &number).or_fail("a set");
        let mut keys: Vec<u64> = set.ways.iter().map(|way| way.key).collect();
        for way in set.ways {
            assert_eq!(way.state & BUSY, 0, "set {number}: {way:x?}");
            let belongs = perm64(&program.config.perm, way.key) as u32 & 63;
            assert_eq!(belongs, number, "{way:x?}");
            held += 1;
        }
        keys.sort_unstable();
        keys.dedup();
        twice += WAYS - keys.len();
    }
    println!("{held} ways, {twice} keys held twice");
    assert!(twice <= 3, "{twice} keys are held twice");
}

#[test]
fn newcomers_beyond_the_first_seen_budget_wait_and_nobody_else() {
    const PER_S: u64 = 1_000;
    tests::requires::bpf();
    let mut program = generating("limiter4", SMALL, Rule::packets(1, 1 << 20));
    let runner = Runner::of(program.xdp("limiter4"));
    // A hundred that are there already.
    for host in 0..100 {
        runner.run(&generator(false, 0, 0, 0x0a00_0000 + host));
    }
    program.change_config(|config| config.regions4[0].first_seen_ns = 1_000_000_000 / PER_S);
    let began_ns = monotonic_ns();
    let known = on_two_cpus(|cpu| {
        let mut known = (0_u32, 0_u32);
        let mut first = cpu as u64 * 0x4000_0000;
        while monotonic_ns() < began_ns + 2_000_000_000 {
            // Every packet a new source.
            runner.repeat(&generator(false, first, u32::MAX, 0x1000_0000), 100_000);
            first += 100_000;
            for host in 0..100 {
                let frame = generator(false, 0, 0, 0x0a00_0000 + host);
                known.0 += 1;
                known.1 += u32::from(runner.run(&frame) == XDP_PASS);
            }
        }
        known
    });
    let seconds = (monotonic_ns() - began_ns) as f64 / 1e9;
    let [(offered_0, passed_0), (offered_1, passed_1)] = known;
    let (offered, passed) = (offered_0 + offered_1, passed_0 + passed_1);
    let new = program.count(Reason::Conforming, Verdict::Pass) - u64::from(passed) - 100;
    let refused = program.count(Reason::FirstSeen, Verdict::Drop);
    println!(
        "{new} newcomers of {} in {seconds:.2} s, {passed} of {offered} known ones",
        new + refused
    );
    // A tenth of a second at once, and what each CPU has drawn ahead.
    let most = PER_S as f64 * (seconds + 0.1) + 2.0 * 64.0;
    assert!(new as f64 <= most, "{new} of at most {most:.0}");
    assert!(
        new as f64 >= 0.8 * PER_S as f64 * seconds,
        "{new} newcomers"
    );
    assert!(refused > 100_000);
    assert_eq!(passed, offered, "whoever was there loses nothing");
}

const KEY: u64 = 0xc000_0201;

/// CPU 0 sends one source's packets; CPU 1 does `round` after `round` to it. Returns the packets
/// admitted and the whole seconds it took.
fn under_load(program: &Program, rounds: u32, round: impl Fn(u32) + Sync) -> (u64, u64) {
    let frame = Packet::eth()
        .ipv4("192.0.2.1", "198.51.100.1")
        .udp(1234, 80)
        .build();
    let runner = Runner::of(program.xdp(names::PROGRAM));
    let done = AtomicBool::new(false);
    let began = instant();
    on_two_cpus(|cpu| {
        if cpu == 1 {
            // The first of a long run takes its time to begin.
            let begun = || program.counted() > 100_000;
            assert!(holds_within(Duration::from_secs(5), begun));
            (0..rounds).for_each(&round);
            done.store(true, Ordering::Relaxed);
            return;
        }
        while !done.load(Ordering::Relaxed) {
            runner.repeat(&frame, 500_000);
        }
        // Whatever is left.
        runner.repeat(&frame, 10_000_000);
    });
    let seconds = began.elapsed().as_secs() + 1;
    (program.count(Reason::Conforming, Verdict::Pass), seconds)
}

fn merged(program: &Program, kind: u32, level: u64) -> u32 {
    let merge_op = MergeOp {
        op: kind,
        key: KEY,
        level,
        slot: u32::from(kind == op::PROMOTE),
        family: 4,
        generation: program.config.prefix_generation,
        ..MergeOp::default()
    };
    program.merge(&[merge_op])[0].result
}

/// Two slots with the same limit, and 192.0.2.1 in the crowd.
fn promotable(burst: u64) -> Program {
    let mut program = Program::limiting(1, burst);
    program.set_policy(&policy(1, &[Rule::packets(1, burst)]));
    program.change_config(|config| config.flags |= flags::PROMOTED);
    program
}

#[test]
fn promotion_and_demotion_under_load_lose_at_most_a_packet_per_cpu() {
    const BURST: u64 = 8_000_000;
    const ROUNDS: u32 = 2_000;
    tests::requires::bpf();
    let program = promotable(BURST);
    let moves = AtomicU64::new(0);
    let (passed, seconds) = under_load(&program, ROUNDS, |n| {
        let kind = if n % 2 == 0 { op::PROMOTE } else { op::DEMOTE };
        // Refused demotions and promotions leave the source where it is.
        let done = merged(&program, kind, 0) == result::DONE;
        moves.fetch_add(u64::from(done), Ordering::Relaxed);
    });
    let moves = moves.into_inner();
    let lost = passed.saturating_sub(BURST + seconds);
    println!("{passed} admitted of a burst of {BURST}; {lost} too many in {moves} moves");
    assert!(moves > u64::from(ROUNDS) / 2, "{moves} moves");
    assert!(passed >= BURST, "{passed}");
    assert!(lost <= 2 * moves, "{lost} in {moves} moves");
}

#[test]
fn raising_under_load_never_gives_and_resetting_gives_one_burst_each() {
    const BURST: u64 = 1_000_000;
    tests::requires::bpf();
    let program = promotable(BURST);
    assert_eq!(merged(&program, op::PROMOTE, 0), result::DONE);
    let (passed, seconds) = under_load(&program, 2_000, |n| {
        merged(&program, op::RAISE, u64::from(n) * 37 % 256 * 256);
    });
    println!("raised 2000 times: {passed} of {BURST}");
    // A raise may cost what the source did not owe yet, and gives nothing.
    assert!(
        (BURST - 256..=BURST + seconds + 2).contains(&passed),
        "{passed}"
    );

    let program = promotable(1_000);
    assert_eq!(merged(&program, op::PROMOTE, 0), result::DONE);
    let resets = AtomicU64::new(0);
    let (passed, seconds) = under_load(&program, 2_000, |_| {
        rest(Duration::from_micros(100));
        let done = merged(&program, op::RESET, 0) == result::DONE;
        resets.fetch_add(u64::from(done), Ordering::Relaxed);
    });
    let resets = resets.into_inner();
    println!("reset {resets} times: {passed} admitted");
    let most = (resets + 1) * (1_000 + 2) + seconds;
    assert!(resets > 100 && passed > 100_000, "{resets}, {passed}");
    assert!(passed <= most, "{passed} of at most {most}");
}
