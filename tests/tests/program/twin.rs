//! R23: a policy in shadow counts what its enforcing twin drops.

use ratelimiter_common::abi::names;
use ratelimiter_common::abi::policy::{PrefixValue, action};
use ratelimiter_common::quota::Unit;
use ratelimiter_common::vclock::NEVER;
use ratelimiter_common::verdict::{Mode, Reason, Verdict};
use tests::packet::Packet;
use tests::program::{Program, Rule, policy};
use tests::random::Random;
use tests::runner::Runner;

/// Packets, bytes and connections, each the tightest for some of the traffic below.
fn rules(mode: Mode) -> [Rule; 3] {
    [
        Rule::packets(2_000, 50).mode(mode),
        Rule::packets(400_000, 20_000).of(Unit::Bytes).mode(mode),
        Rule::packets(200, 10).of(Unit::Connections).mode(mode),
    ]
}

fn twin(rules: &[Rule], agent_enforces: bool) -> Program {
    let mut program = Program::load();
    let units: Vec<Unit> = rules.iter().map(|rule| rule.unit).collect();
    program.set_policy(&policy(0, rules));
    program.set_policy(&policy(1, rules));
    program.set_zone(0, 0, &units);
    for host in 1..=8_u8 {
        let value = PrefixValue {
            action: action::TRACKED,
            slot: 1,
            until_ns: NEVER,
            ..PrefixValue::default()
        };
        program.prefix4([192, 0, 2, host], 32, value);
        program.track(0xc000_0200 + u64::from(host), 1);
    }
    if !agent_enforces {
        program.change_config(|config| config.flags &= !1);
    }
    program
}

fn refusals(program: &Program, verdict: Verdict) -> u64 {
    [
        Reason::OverPackets,
        Reason::OverBytes,
        Reason::OverConnections,
    ]
    .iter()
    .map(|&reason| program.count(reason, verdict))
    .sum()
}

/// Feeds both the same packets, one after the other, and compares.
fn compare(what: &str, shadow: &Program, enforcing: &Program) {
    const PACKETS: u32 = 400_000;
    let runners = [shadow, enforcing].map(|program| Runner::of(program.xdp(names::PROGRAM)));
    let mut random = Random::new(3);
    let small = Packet::eth().ipv4("192.0.2.1", "198.51.100.1").udp(1, 2);
    let mut frames = [
        small.clone().zeros(18).build(),
        small.zeros(1_200).build(),
        Packet::eth()
            .ipv4("192.0.2.1", "198.51.100.1")
            .tcp_syn(1, 2)
            .build(),
    ];
    for n in 0..PACKETS {
        // Eight tracked sources, and eight of the crowd.
        let host = random.below(16) as u8;
        let source = if host < 8 {
            [192, 0, 2, 1 + host]
        } else {
            [203, 0, 113, host]
        };
        let frame = &mut frames[random.below(3) as usize];
        frame[26..30].copy_from_slice(&source);
        // Which one goes first changes, so that neither's clock is always the later.
        let order = if n % 2 == 0 { [0, 1] } else { [1, 0] };
        for which in order {
            runners[which].run(frame);
        }
    }
    assert_eq!(refusals(shadow, Verdict::Drop), 0, "{what}");
    let (would, did) = (
        refusals(shadow, Verdict::Pass),
        refusals(enforcing, Verdict::Drop),
    );
    println!("{what}: would drop {would}, dropped {did} of {PACKETS}");
    assert!(did > 100_000, "{what}: {did}");
    let off = would.abs_diff(did) as f64 / did as f64;
    assert!(off <= 0.001, "{what}: would drop {would}, dropped {did}");
}

#[test]
fn shadow_counts_what_its_enforcing_twin_drops() {
    tests::requires::bpf();
    let (shadow, enforce) = (rules(Mode::Shadow), rules(Mode::Enforce));
    compare(
        "one unit",
        &twin(&shadow[..1], true),
        &twin(&enforce[..1], true),
    );
    compare("three units", &twin(&shadow, true), &twin(&enforce, true));
    compare(
        "the whole agent in shadow",
        &twin(&enforce, false),
        &twin(&enforce, true),
    );
}
