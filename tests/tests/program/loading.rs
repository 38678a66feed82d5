//! The object loads, and the verifier's effort is recorded.

use caps::{CapSet, Capability};
use ratelimiter_common::abi::names;
use tests::program::{Program, SMALL, XDP_PASS};

/// The verifier gives up after this many instructions.
const VERIFIER_LIMIT: u32 = 1_000_000;

#[test]
fn loads_and_passes_a_frame_that_is_not_ip() {
    tests::requires::bpf();
    let program = Program::load();
    assert_eq!(program.run(&[0xff; 64]), XDP_PASS);
}

#[test]
fn stays_below_half_of_the_verifiers_limit() {
    tests::requires::bpf();
    let object = ratelimiter_userspace::dataplane::object::object().expect("kernel object");
    // As an agent with CAP_PERFMON loads it, and as one without: then the verifier follows
    // speculation too.
    let mut product = vec![
        Capability::CAP_BPF,
        Capability::CAP_NET_ADMIN,
        Capability::CAP_PERFMON,
    ];
    for name in [names::PROGRAM, names::GUARDED_PROGRAM, names::MERGE_PROGRAM] {
        let keep = product.iter().copied().collect();
        caps::set(None, CapSet::Effective, &keep).expect("set effective capabilities");
        let program = Program::load_object(object, SMALL, &[name]);
        product.truncate(2);
        let info = program.xdp(name).info().expect("program info");
        let verified = info
            .verified_instruction_count()
            .expect("Linux 5.16 or later");
        println!(
            "{name}: {verified} instructions verified of {VERIFIER_LIMIT}, {} bytes translated, {} bytes of machine code",
            info.size_translated().unwrap_or(0),
            info.size_jitted(),
        );
        assert!(verified <= VERIFIER_LIMIT / 2, "`{name}` took {verified}");
    }
}
