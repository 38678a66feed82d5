//! A tracked source whose policy changes while both CPUs send its packets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratelimiter_common::abi::names;
use ratelimiter_common::abi::policy::{PrefixKey4, PrefixValue, action};
use ratelimiter_common::vclock::NEVER;
use ratelimiter_common::verdict::{Reason, Verdict};
use ratelimiter_userspace::clock::instant;
use tests::packet::Packet;
use tests::process::{holds_within, rest};
use tests::program::{Program, Rule, policy};
use tests::runner::{Runner, on_two_cpus};

#[test]
fn a_source_that_changes_policy_under_load_keeps_its_debt() {
    const BURST: u64 = 40_000_000;
    const MOVES: u32 = 30_000;
    tests::requires::bpf();
    let mut program = Program::load();
    // The same limit twice, on clocks that have nothing in common.
    for slot in [1, 2] {
        program.set_policy(&policy(slot, &[Rule::packets(1, BURST)]));
    }
    let says = |slot| PrefixValue {
        action: action::TRACKED,
        slot,
        until_ns: NEVER,
        prefix_len: 32,
        ..PrefixValue::default()
    };
    program.prefix4([192, 0, 2, 1], 32, says(1));
    program.track(0xc000_0201, 1);
    let key = PrefixKey4 {
        prefix_len: 32,
        address_be: [192, 0, 2, 1],
    };
    let frame = Packet::eth()
        .ipv4("192.0.2.1", "198.51.100.1")
        .udp(1, 2)
        .zeros(18)
        .build();
    let program = program;
    let runner = Runner::of(program.xdp(names::PROGRAM));
    let done = AtomicBool::new(false);
    let began = instant();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut config = program.config;
            let begun = || program.counted() > 100_000;
            assert!(holds_within(Duration::from_secs(5), begun));
            for n in 0..MOVES {
                rest(Duration::from_micros(10));
                program.put(names::PREFIXES4, &key, &says(1 + (n + 1) % 2));
                config.prefix_generation += 1;
                program.put(names::CONFIG, &0_u32, &config);
            }
            done.store(true, Ordering::Relaxed);
        });
        on_two_cpus(|_| {
            while !done.load(Ordering::Relaxed) {
                runner.repeat(&frame, 200_000);
            }
            // Whatever is left.
            runner.repeat(&frame, 22_000_000);
        });
    });
    let seconds = began.elapsed().as_secs() + 1;
    let passed = program.count(Reason::Conforming, Verdict::Pass);
    let contended = program.reason(Reason::Contended);
    println!(
        "{passed} of a burst of {BURST} in {MOVES} moves, {} offered, {contended} contended",
        program.counted()
    );
    // A packet that was judged by the policy it left: one per CPU and move.
    let moves = u64::from(MOVES);
    assert!(passed >= BURST - 2 * moves, "a burst was lost: {passed}");
    assert!(passed <= BURST + seconds + 2 * moves, "{passed}");
    assert!(contended < program.counted() / 100, "{contended}");
}
