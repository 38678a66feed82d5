//! R7: in generic mode the kernel hands over segments it merged, and each of them is charged.

use ratelimiter_common::abi::config::flags;
use ratelimiter_common::abi::tracked::shared_key;
use ratelimiter_common::quota::Unit;
use tests::packet::Packet;
use tests::program::{Program, Rule, XDP_PASS, policy};

/// Payload bytes of a segment in these tests: many fit the frame of a test run.
const SEGMENT: u32 = 100;
const KEY: u64 = 0xc000_0201;

/// A TCP frame with timestamps (32 bytes of header) that carries `payload` bytes.
fn merged(source: &str, payload: usize) -> Vec<u8> {
    let packet = Packet::eth().ipv4(source, "198.51.100.1").tcp(1, 2, 0x10);
    packet.tcp_options(&[1; 12]).zeros(payload).build()
}

fn passes(program: &Program, frame: &[u8], offered: u32) -> u32 {
    (0..offered)
        .map(|_| u32::from(program.run(frame) == XDP_PASS))
        .sum()
}

fn generic(on: bool) -> Program {
    let mut program = Program::limiting(1, 100);
    program.change_config(|config| {
        config.generic_segment_bytes = SEGMENT;
        if on {
            config.flags |= flags::GENERIC;
        }
    });
    program
}

#[test]
fn a_frame_of_n_segments_is_charged_n_in_generic_mode_only() {
    tests::requires::bpf();
    for (payload, segments) in [
        (0, 1),
        (1, 1),
        (100, 1),
        (101, 2),
        (1_000, 10),
        (1_400, 14),
        (2_500, 25),
    ] {
        let charged = |program: &Program| passes(program, &merged("192.0.2.1", payload), 150);
        assert_eq!(charged(&generic(true)), 100 / segments, "{payload} bytes");
        assert_eq!(charged(&generic(false)), 100, "{payload} bytes, native");
    }
    // IPv6 too, and what does not fit whole is not charged at all.
    let six = Packet::eth()
        .ipv6("2001:db8::1", "2001:db8::2")
        .tcp(1, 2, 0x10)
        .tcp_options(&[1; 12])
        .zeros(3_000)
        .build();
    let program = generic(true);
    assert_eq!(passes(&program, &six, 10), 3, "30 segments each");
    let one = Packet::eth().ipv6("2001:db8::1", "2001:db8::2").udp(1, 2);
    assert_eq!(passes(&program, &one.build(), 50), 10, "what is left");
}

#[test]
fn tracked_and_shared_buckets_are_charged_by_segments_too() {
    tests::requires::bpf();
    let mut program = generic(true);
    program.set_policy(&policy(1, &[Rule::packets(1, 100)]));
    program.change_config(|config| config.flags |= flags::PROMOTED);
    let bit = ratelimiter_common::source::promoted_bit(KEY);
    program.put("PROMOTED", &(bit / 64), &(1_u64 << (bit % 64)));
    program.track(KEY, 1);
    assert_eq!(passes(&program, &merged("192.0.2.1", 1_000), 30), 10);
    let tracked = program.tracked(KEY).expect("tracked");
    assert_eq!((tracked.offered, tracked.admitted), (300, 100));
    assert!(program.tracked(shared_key(1)).is_none());
    // With bytes beside them, a packet is still as many packets as it stands for.
    let mut both = generic(true);
    let rules = [
        Rule::packets(1, 100),
        Rule::packets(1_000_000, 1 << 30).of(Unit::Bytes),
    ];
    both.set_policy(&policy(0, &rules));
    both.set_zone(0, 0, &[Unit::Packets, Unit::Bytes]);
    assert_eq!(passes(&both, &merged("192.0.2.1", 2_000), 30), 5);
}
