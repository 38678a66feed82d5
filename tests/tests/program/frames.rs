//! The parser inside the kernel against the fixture table, and against the parser on the host: the
//! same frames, the same class, the same key.

use ratelimiter_common::abi::names;
use ratelimiter_common::parse::{Address, Class, classify};
use ratelimiter_common::verdict::Reason;
use tests::frames;
use tests::program::Program;

/// The limiter as it is loaded with CAP_PERFMON and without.
const FORMS: [&str; 2] = [names::PROGRAM, names::GUARDED_PROGRAM];

/// What one frame was counted as, and the key of its sample. The sample is forced by the agent's
/// own means: the countdown is in the CPU's state, which a test may set.
fn classes(program: &Program) -> [u64; 4] {
    [
        program.reason(Reason::NonIp),
        program.reason(Reason::ControlTraffic),
        program.reason(Reason::Malformed),
        program.reason(Reason::Conforming),
    ]
}

fn expected(frame: &[u8]) -> usize {
    match classify(frame, u64::MAX) {
        Class::NonIp => 0,
        Class::Control => 1,
        Class::Malformed => 2,
        Class::Packet(_) => 3,
    }
}

#[test]
fn every_fixture_is_counted_as_the_host_classifies_it() {
    tests::requires::bpf();
    let program = Program::limiting(1_000_000, 1_000_000);
    let mut before = classes(&program);
    let mut ran = 0;
    for fixture in frames::all() {
        // A test run takes no frame below an Ethernet header; runts are the host's business.
        if fixture.frame.len() < 14 {
            continue;
        }
        for form in FORMS {
            program.run_in(form, &fixture.frame);
            let after = classes(&program);
            let mut want = before;
            want[expected(&fixture.frame)] += 1;
            assert_eq!(after, want, "{} in `{form}`", fixture.name);
            before = after;
        }
        ran += 1;
    }
    println!("{ran} fixtures through the kernel");
    assert!(ran >= 300, "only {ran} fixtures");
}

#[test]
fn a_source_has_the_same_key_in_the_kernel_as_on_the_host() {
    tests::requires::bpf();
    // Burst 1: the second of two frames passes if and only if it has another key.
    let mut seen = std::collections::HashSet::new();
    let programs = FORMS.map(|_| Program::limiting(1, 1));
    let mut ran = 0;
    for fixture in frames::all() {
        let Class::Packet(packet) = classify(&fixture.frame, u64::MAX) else {
            continue;
        };
        let family = matches!(packet.address, Address::V4(_));
        let new = seen.insert((family, packet.key));
        for (form, program) in FORMS.iter().zip(&programs) {
            let passes = program.run_in(form, &fixture.frame) == tests::program::XDP_PASS;
            assert_eq!(passes, new, "{} in `{form}`", fixture.name);
        }
        ran += 1;
    }
    println!("{ran} packets, {} sources", seen.len());
    assert!(seen.len() > 20);
}
