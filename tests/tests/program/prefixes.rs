//! What prefixes say: allow, block, one bucket, a policy, a zone; for a while, and afterwards.

use ratelimiter_common::abi::config::flags;
use ratelimiter_common::abi::policy::{PrefixValue, action};
use ratelimiter_common::abi::tracked::shared_key;
use ratelimiter_common::quota::Unit;
use ratelimiter_common::vclock::NEVER;
use ratelimiter_common::verdict::Reason;
use ratelimiter_userspace::clock::monotonic_ns;
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

fn says(what: u32, slot: u32) -> PrefixValue {
    PrefixValue {
        action: what,
        slot,
        until_ns: NEVER,
        ..PrefixValue::default()
    }
}

#[test]
fn allowed_sources_pass_uncharged_and_blocked_ones_do_not_pass() {
    tests::requires::bpf();
    let mut program = Program::limiting(1, 5);
    program.prefix4([192, 0, 2, 0], 28, says(action::ALLOW, 0));
    program.prefix4([203, 0, 113, 7], 32, says(action::BLOCK, 0));
    program.prefix6(0x2001_0db8 << 96, 48, says(action::BLOCK, 0));
    program.prefix6((0x2001_0db8 << 96) | 9, 128, says(action::ALLOW, 0));
    assert_eq!(passes(&program, &from("192.0.2.1"), 100), 100);
    assert_eq!(passes(&program, &from("192.0.2.16"), 100), 5);
    assert_eq!(passes(&program, &from("203.0.113.7"), 10), 0);
    assert_eq!(passes(&program, &from("203.0.113.8"), 10), 5);
    let v6 = |source: &str| Packet::eth().ipv6(source, "2001:db8::ff").udp(1, 2).build();
    assert_eq!(passes(&program, &v6("2001:db8::8"), 10), 0);
    assert_eq!(passes(&program, &v6("2001:db8::9"), 10), 10);
    assert_eq!(passes(&program, &v6("2001:db8:1::9"), 10), 5);
    assert_eq!(program.reason(Reason::AllowListed), 110);
    assert_eq!(program.reason(Reason::Blocked), 20);
}

#[test]
fn a_block_ends_by_itself() {
    tests::requires::bpf();
    let mut program = Program::limiting(1, 5);
    let until_ns = monotonic_ns() + 300_000_000;
    let value = PrefixValue {
        until_ns,
        ..says(action::BLOCK, 0)
    };
    program.prefix4([192, 0, 2, 1], 32, value);
    let frame = from("192.0.2.1");
    assert_eq!(program.run(&frame), XDP_DROP);
    while monotonic_ns() < until_ns + 10_000_000 {
        std::hint::spin_loop();
    }
    assert_eq!(passes(&program, &frame, 10), 5);
}

#[test]
fn a_pending_removal_falls_back_to_the_wider_prefix_and_then_means_what_it_meant() {
    tests::requires::bpf();
    let mut program = Program::limiting(1, 5);
    program.prefix4([192, 0, 2, 0], 24, says(action::BLOCK, 0));
    let until_ns = monotonic_ns() + 300_000_000;
    let tombstone = PrefixValue {
        action: action::PARENT,
        until_ns,
        after_action: action::ALLOW,
        ..PrefixValue::default()
    };
    program.prefix4([192, 0, 2, 1], 32, tombstone);
    let frame = from("192.0.2.1");
    assert_eq!(program.run(&frame), XDP_DROP);
    while monotonic_ns() < until_ns + 10_000_000 {
        std::hint::spin_loop();
    }
    assert_eq!(passes(&program, &frame, 10), 10);
    assert_eq!(program.run(&from("192.0.2.2")), XDP_DROP);
}

#[test]
fn a_client_has_one_bucket_or_one_for_each_address() {
    tests::requires::bpf();
    let mut program = Program::limiting(1, 5);
    program.set_policy(&policy(1, &[Rule::packets(1, 30)]));
    program.set_policy(&policy(2, &[Rule::packets(1, 40)]));
    program.prefix4([192, 0, 2, 0], 24, says(action::SHARED, 1));
    program.prefix4([203, 0, 113, 0], 30, says(action::TRACKED, 2));
    program.track(shared_key(1), 1);
    program.track(0xcb00_7101, 2);
    program.track(0xcb00_7102, 2);
    let shared: u32 = (1..=20)
        .map(|n| passes(&program, &from(&format!("192.0.2.{n}")), 5))
        .sum();
    assert_eq!(shared, 30);
    assert_eq!(passes(&program, &from("203.0.113.1"), 100), 40);
    assert_eq!(passes(&program, &from("203.0.113.2"), 100), 40);
    // Nobody inserted this one: the crowd's default policy judges it.
    assert_eq!(passes(&program, &from("203.0.113.3"), 100), 5);
}

#[test]
fn a_wide_segment_has_a_zone_of_its_own() {
    tests::requires::bpf();
    let mut program = Program::limiting(1, 5);
    program.set_policy(&policy(1, &[Rule::packets(1, 50)]));
    program.set_zone(1, 1, &[Unit::Packets]);
    program.coarse("COARSE4", 0x0a00..=0x0aff, 1);
    program.change_config(|config| config.flags |= flags::PREFIXES);
    assert_eq!(passes(&program, &from("10.1.2.3"), 100), 50);
    assert_eq!(passes(&program, &from("11.1.2.3"), 100), 5);
    // The same through the trie, where a client's prefix makes the /16 look further.
    program.prefix4([10, 0, 0, 0], 8, says(action::ZONE, 1));
    program.prefix4([10, 9, 9, 9], 32, says(action::BLOCK, 0));
    assert_eq!(passes(&program, &from("10.9.9.8"), 100), 50);
    assert_eq!(passes(&program, &from("10.9.9.9"), 100), 0);
}

#[test]
fn a_tracked_source_follows_a_new_prefix_and_its_debt_moves_with_it() {
    tests::requires::bpf();
    let mut program = Program::limiting(1, 5);
    program.set_policy(&policy(1, &[Rule::packets(1, 20)]));
    program.set_policy(&policy(2, &[Rule::packets(1, 30)]));
    program.prefix4([192, 0, 2, 1], 32, says(action::TRACKED, 1));
    program.track(0xc000_0201, 1);
    let frame = from("192.0.2.1");
    assert_eq!(passes(&program, &frame, 12), 12);
    // Another policy: twelve packets stay owed, on the new clock.
    program.prefix4([192, 0, 2, 1], 32, says(action::TRACKED, 2));
    assert_eq!(passes(&program, &frame, 100), 18);
    program.prefix4([192, 0, 2, 1], 32, says(action::BLOCK, 0));
    assert_eq!(passes(&program, &frame, 10), 0);
    program.prefix4([192, 0, 2, 1], 32, says(action::TRACKED, 2));
    assert_eq!(
        passes(&program, &frame, 10),
        0,
        "no second burst after a block"
    );
}
