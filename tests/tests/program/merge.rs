//! The merge program: bucket changes only the kernel may make.

use ratelimiter_common::abi::config::flags;
use ratelimiter_common::abi::merge::{BY_PREFIX, MergeOp, op, result};
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

/// A limiter of `burst` for the crowd, whose slot 1 is a policy of `own` packets at once; the key is
/// tracked by it, and asked for.
fn becoming_a_client(burst: u64, own: u64) -> Program {
    let mut program = Program::limiting(1, burst);
    program.set_policy(&policy(1, &[Rule::packets(1, own)]));
    assert_eq!(passes(&program, &from("192.0.2.1"), 15), 15);
    let bit = ratelimiter_common::source::promoted_bit(KEY);
    program.put("PROMOTED", &(bit / 64), &(1_u64 << (bit % 64)));
    program.track(KEY, 1);
    program
}

#[test]
fn a_crowd_source_that_gets_a_bucket_of_its_own_takes_its_debt_along() {
    tests::requires::bpf();
    let inherit = on(op::INHERIT, 0);
    for (own, left) in [(20, 5), (15, 0), (4, 0), (100, 85)] {
        let mut program = becoming_a_client(20, own);
        let done = one(&program, inherit);
        // Zone 0, as the prefixes say.
        assert_eq!((done.result, done.level), (result::DONE, 1), "{own}");
        program.change_config(|config| config.flags |= flags::PROMOTED);
        assert_eq!(passes(&program, &from("192.0.2.1"), 200), left, "{own}");
        // Again it raises nothing.
        assert_eq!(
            one(&program, MergeOp { slot: 1, ..inherit }).result,
            result::DONE
        );
        // A debt beyond the own burst would lock the source out.
        let owed = one(&program, on(op::READ, 0)).level;
        assert!(owed <= own * ONE, "{owed} of {own}");
    }
    let program = Program::limiting(1, 20);
    assert_eq!(one(&program, inherit).result, result::ABSENT);
}

#[test]
fn the_zone_a_source_comes_from_is_the_one_its_prefixes_say() {
    tests::requires::bpf();
    let mut program = Program::limiting(1, 20);
    for slot in [1, 2] {
        program.set_policy(&policy(slot, &[Rule::packets(1, 20)]));
    }
    program.set_zone(1, 2, &[Unit::Packets]);
    program.coarse("COARSE4", 0xc000..=0xc000, 1);
    program.coarse("COARSE6", 0x2001..=0x2001, 1);
    program.change_config(|config| config.flags |= flags::PREFIXES);
    let six = Packet::eth()
        .ipv6("2001:db8::1", "2001:db8::2")
        .udp(1, 2)
        .build();
    let key6 = 0x2001_0db8_0000_0000;
    for (key, family, frame) in [(KEY, 4, from("192.0.2.1")), (key6, 6, six)] {
        assert_eq!(passes(&program, &frame, 15), 15);
        program.track(key, 1);
        let op = MergeOp {
            key,
            family,
            ..on(op::INHERIT, 0)
        };
        let done = one(&program, op);
        assert_eq!((done.result, done.level), (result::DONE, 2));
        let read = MergeOp { op: op::READ, ..op };
        assert!(one(&program, read).level > 14 * ONE);
        // And back: with what it owes.
        let leave = MergeOp {
            op: op::DEMOTE,
            slot: BY_PREFIX,
            ..op
        };
        assert_eq!(
            one(
                &program,
                MergeOp {
                    op: op::RAISE,
                    level: 18 * ONE,
                    ..op
                }
            )
            .result,
            result::DONE
        );
        assert_eq!(one(&program, leave).result, result::DONE);
        assert_eq!(one(&program, leave).result, result::ABSENT);
        assert_eq!(passes(&program, &frame, 50), 2);
    }
}
