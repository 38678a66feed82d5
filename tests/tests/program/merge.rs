//! The merge program: bucket changes only the kernel may make.

use ratelimiter_common::abi::config::flags;
use ratelimiter_common::abi::merge::{MergeOp, op, result};
use ratelimiter_common::quota::Unit;
use tests::packet::Packet;
use tests::program::{Program, Rule, XDP_PASS, policy};

const KEY: u64 = 0xc000_0201;
/// One packet in fractions of a unit.
const ONE: u64 = 256;

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

fn one(program: &Program, op: MergeOp) -> MergeOp {
    program.merge(&[op])[0]
}

fn on(kind: u32, level: u64) -> MergeOp {
    MergeOp {
        op: kind,
        key: KEY,
        level,
        family: 4,
        ..MergeOp::default()
    }
}

/// A limiter of `burst`, one packet an hour more or less, with 192.0.2.1 tracked by slot 1.
fn tracking(burst: u64) -> Program {
    let mut program = Program::limiting(1, burst);
    program.set_policy(&policy(1, &[Rule::packets(1, burst)]));
    program.change_config(|config| config.flags |= flags::PROMOTED);
    let bit = ratelimiter_common::source::promoted_bit(KEY);
    program.put("PROMOTED", &(bit / 64), &(1_u64 << (bit % 64)));
    program.track(KEY, 1);
    program
}

#[test]
fn a_raised_level_is_owed_and_is_never_lowered() {
    tests::requires::bpf();
    let program = tracking(20);
    assert_eq!(one(&program, on(op::RAISE, 15 * ONE)).result, result::DONE);
    assert_eq!(one(&program, on(op::RAISE, 3 * ONE)).result, result::DONE);
    assert_eq!(passes(&program, &from("192.0.2.1"), 50), 5);
    let tracked = program.tracked(KEY).expect("tracked");
    assert_eq!((tracked.offered, tracked.admitted), (50, 5));
}

#[test]
fn a_level_may_exceed_the_burst_and_a_clamp_lowers_it() {
    tests::requires::bpf();
    let program = tracking(20);
    assert_eq!(one(&program, on(op::RAISE, 40 * ONE)).result, result::DONE);
    let owed = one(&program, on(op::READ, 0));
    assert_eq!(owed.result, result::DONE);
    assert!(
        owed.level > 39 * ONE && owed.level <= 40 * ONE,
        "{}",
        owed.level
    );
    assert_eq!(one(&program, on(op::CLAMP, 10 * ONE)).result, result::DONE);
    assert_eq!(passes(&program, &from("192.0.2.1"), 50), 10);
}

#[test]
fn a_reset_source_has_its_burst_again_tracked_or_not() {
    tests::requires::bpf();
    let program = tracking(20);
    assert_eq!(passes(&program, &from("192.0.2.1"), 50), 20);
    assert_eq!(one(&program, on(op::RESET, 0)).result, result::DONE);
    assert_eq!(passes(&program, &from("192.0.2.1"), 50), 20);

    let crowd = MergeOp {
        key: 0xc000_0202,
        ..on(op::RESET, 0)
    };
    assert_eq!(one(&program, crowd).result, result::ABSENT);
    assert_eq!(passes(&program, &from("192.0.2.2"), 50), 20);
    assert_eq!(one(&program, crowd).result, result::DONE);
    assert_eq!(passes(&program, &from("192.0.2.2"), 50), 20);
}

#[test]
fn an_ipv6_source_is_read_and_reset() {
    tests::requires::bpf();
    let program = Program::limiting(1, 20);
    let frame = Packet::eth()
        .ipv6("2001:db8::1", "2001:db8::2")
        .udp(1, 2)
        .build();
    let read = MergeOp {
        op: op::READ,
        key: 0x2001_0db8_0000_0000,
        family: 6,
        ..MergeOp::default()
    };
    assert_eq!(one(&program, read).result, result::ABSENT);
    assert_eq!(passes(&program, &frame, 30), 20);
    assert!(one(&program, read).level > 19 * ONE);
    assert_eq!(
        one(
            &program,
            MergeOp {
                op: op::RESET,
                ..read
            }
        )
        .result,
        result::DONE
    );
    assert_eq!(passes(&program, &frame, 30), 20);
}

#[test]
fn promotion_and_demotion_carry_the_debt() {
    tests::requires::bpf();
    let mut program = Program::limiting(1, 20);
    program.change_config(|config| config.flags |= flags::PROMOTED);
    let frame = from("192.0.2.1");
    assert_eq!(passes(&program, &frame, 12), 12);
    let generation = program.config.prefix_generation;
    let promote = MergeOp {
        generation,
        ..on(op::PROMOTE, 0)
    };
    assert_eq!(one(&program, promote).result, result::DONE);
    assert_eq!(
        one(&program, promote).result,
        result::REFUSED,
        "nothing is replaced"
    );
    assert_eq!(passes(&program, &frame, 4), 4);
    assert_eq!(program.tracked(KEY).expect("tracked").admitted, 4);
    assert_eq!(one(&program, on(op::DEMOTE, 0)).result, result::DONE);
    assert!(program.tracked(KEY).is_none());
    assert_eq!(passes(&program, &frame, 50), 4);
}

#[test]
fn a_source_in_debt_beyond_its_burst_stays_tracked() {
    tests::requires::bpf();
    let program = tracking(20);
    assert_eq!(one(&program, on(op::RAISE, 30 * ONE)).result, result::DONE);
    assert_eq!(one(&program, on(op::DEMOTE, 0)).result, result::REFUSED);
    assert!(program.tracked(KEY).is_some());
}

#[test]
fn a_scaled_source_keeps_its_burst_and_its_debt() {
    tests::requires::bpf();
    let program = tracking(20);
    let frame = from("192.0.2.1");
    assert_eq!(passes(&program, &frame, 8), 8);
    // A quarter of the rate.
    assert_eq!(one(&program, on(op::SCALE, 4 << 16)).result, result::DONE);
    assert_eq!(passes(&program, &frame, 50), 12);
    assert_eq!(one(&program, on(op::SCALE, 1 << 16)).result, result::DONE);
    assert_eq!(passes(&program, &frame, 50), 0);
    assert_eq!(one(&program, on(op::SCALE, 1)).result, result::REFUSED);
}

#[test]
fn absent_sources_unknown_operations_and_units_are_refused() {
    tests::requires::bpf();
    let mut program = Program::limiting(1, 20);
    program.set_zone(0, 0, &[Unit::Packets]);
    assert_eq!(one(&program, on(op::RAISE, ONE)).result, result::ABSENT);
    assert_eq!(one(&program, on(op::DEMOTE, 0)).result, result::ABSENT);
    assert_eq!(one(&program, on(99, 0)).result, result::REFUSED);
    let bytes = MergeOp {
        unit: Unit::Bytes as u32,
        ..on(op::READ, 0)
    };
    assert_eq!(one(&program, bytes).result, result::REFUSED);
    let whole = vec![on(op::READ, 0); 64];
    assert!(
        program
            .merge(&whole)
            .iter()
            .all(|op| op.result == result::ABSENT)
    );
}
