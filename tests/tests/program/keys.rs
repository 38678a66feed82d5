//! R16, R17: who shares a bucket and who does not.

use std::net::{Ipv4Addr, Ipv6Addr};

use ratelimiter_common::abi::names;
use ratelimiter_common::verdict::{Reason, Verdict};
use ratelimiter_userspace::clock::instant;
use tests::OrFail as _;
use tests::packet::Packet;
use tests::program::{Program, Sizes, XDP_PASS};
use tests::random::Random;
use tests::runner::{Runner, on_two_cpus};

fn passes(program: &Program, frame: &[u8], offered: u32) -> u32 {
    (0..offered)
        .map(|_| u32::from(program.run(frame) == XDP_PASS))
        .sum()
}

#[test]
fn a_million_addresses_of_one_64_share_one_entitlement() {
    const BURST: u64 = 10_000;
    const EACH: u64 = 500_000;
    tests::requires::bpf();
    let program = Program::limiting(1, BURST);
    let runner = Runner::of(program.xdp(names::PROGRAM));
    let began = instant();
    on_two_cpus(|cpu| {
        let mut random = Random::new(cpu as u64 + 9);
        let mut frame = Packet::eth()
            .ipv6("2001:db8:1:2::1", "2001:db8:ffff::1")
            .udp(1234, 80)
            .build();
        for n in 0..EACH {
            // Half of them in order, half at random.
            let host = if n % 2 == 0 {
                n * 2 + cpu as u64
            } else {
                random.next()
            };
            frame[30..38].copy_from_slice(&host.to_be_bytes());
            runner.run(&frame);
        }
    });
    let seconds = began.elapsed().as_secs() + 1;
    let passed = program.count(Reason::Conforming, Verdict::Pass);
    println!("{passed} of {} passed in {seconds} s", 2 * EACH);
    assert_eq!(program.counted(), 2 * EACH);
    assert!((BURST..=BURST + seconds + 2).contains(&passed), "{passed}");
}

/// There is no second tier: whoever has a /48 has 65 536 sources. `docs/sizing.md` says so, and
/// how to have fewer.
#[test]
fn each_64_of_a_48_is_a_source_and_a_shorter_prefix_makes_them_one() {
    tests::requires::bpf();
    let sizes = Sizes {
        bits6: 15,
        ..tests::program::SMALL
    };
    let load = || {
        let mut program = Program::load_object(
            ratelimiter_userspace::dataplane::object::object().or_fail("kernel object"),
            sizes,
            &[names::PROGRAM],
        );
        let rule = tests::program::Rule::packets(1, 20);
        program.set_policy(&tests::program::policy(0, &[rule]));
        program.set_zone(0, 0, &[ratelimiter_common::quota::Unit::Packets]);
        program
    };
    let every_64 = |program: &Program| -> u32 {
        let mut frame = Packet::eth()
            .ipv6("2001:db8:1::1", "2001:db8:ffff::1")
            .udp(1234, 80)
            .build();
        (0..=u16::MAX)
            .map(|subnet| {
                frame[28..30].copy_from_slice(&subnet.to_be_bytes());
                u32::from(program.run(&frame) == XDP_PASS)
            })
            .sum()
    };
    let program = load();
    assert_eq!(every_64(&program), 65_536);
    let mut program = load();
    program.change_config(|config| {
        config.v6_prefix_len = 48;
        config.v6_mask = u64::MAX << 16;
    });
    let passed = every_64(&program);
    assert!((20..=22).contains(&passed), "{passed}");
    let sizing = include_str!("../../../docs/sizing.md");
    assert!(
        sizing.contains("65 536 sources") && sizing.contains("`v6_prefix_len`"),
        "docs/sizing.md does not say what a /48 gets"
    );
}

/// The payload of a UDP datagram or of an ICMP message.
const BODY: usize = 40;

#[test]
fn nothing_a_sender_can_vary_buys_a_new_ipv4_bucket() {
    tests::requires::bpf();
    let program = Program::limiting(1, 20);
    let source = || Packet::eth().ipv4("192.0.2.1", "198.51.100.1");
    assert_eq!(passes(&program, &source().udp(1, 2).build(), 100), 20);
    let mut frames = Vec::new();
    for id in [0, 1, 4_094, 4_095] {
        let vlan = |packet: Packet| packet.ipv4("192.0.2.1", "198.51.100.1").udp(1, 2).build();
        frames.push(vlan(Packet::eth().vlan(id)));
        frames.push(vlan(Packet::eth().qinq(id).vlan(id)));
        frames.push(vlan(Packet::eth().vlan(1).vlan(2).vlan(3).vlan(id)));
        frames.push(vlan(Packet::eth().tag(0x9100, id)));
    }
    for options in [&[1; 4][..], &[7, 39, 4], &[0x94, 4, 0, 0], &[1; 40]] {
        let mut padded = options.to_vec();
        padded.resize(options.len().next_multiple_of(4), 0);
        frames.push(source().ipv4_options(&padded).udp(1, 2).build());
    }
    for (offset, more) in [(0, true), (185, true), (185, false), (8_000, false)] {
        frames.push(
            source()
                .fragment(offset, more)
                .udp(1, 2)
                .zeros(BODY)
                .build(),
        );
    }
    for port in [0, 53, 80, 443, 65_535] {
        frames.push(source().udp(port, 443).build());
        frames.push(source().udp(443, port).build());
        frames.push(source().tcp(port, 443, 0x10).build());
        frames.push(source().tcp_syn(port, 443).build());
    }
    frames.push(source().icmp(8, 0, [0; 4]).zeros(BODY).build());
    for n in 0..64_u8 {
        let mac = [2, 0, 0, 0, 0, n];
        let packet = Packet::eth_between(mac, [2, 9, 9, 9, 9, n]);
        frames.push(packet.ipv4("192.0.2.1", "198.51.100.1").udp(1, 2).build());
        frames.push(source().ttl(n + 1).udp(1, 2).zeros(usize::from(n)).build());
        let to = Ipv4Addr::new(198, 51, 100, n);
        let packet = Packet::eth().ipv4_between(Ipv4Addr::new(192, 0, 2, 1), to);
        frames.push(packet.udp(1, 2).build());
        // Type of service, identification, padding behind the packet.
        let mut frame = source().udp(1, 2).pad(60 + usize::from(n)).build();
        frame[15] = n << 2;
        frame[18] = n;
        frames.push(frame);
    }
    let before = program.reason(Reason::OverPackets);
    for (n, frame) in frames.iter().enumerate() {
        assert_eq!(passes(&program, frame, 3), 0, "variation {n}: {frame:02x?}");
    }
    let tried = 3 * frames.len() as u64;
    println!("{} variations", frames.len());
    assert_eq!(program.reason(Reason::OverPackets) - before, tried);
}

#[test]
fn nothing_a_sender_can_vary_buys_a_new_ipv6_bucket() {
    tests::requires::bpf();
    let program = Program::limiting(1, 20);
    let source = || Packet::eth().ipv6("2001:db8:1:2::1", "2001:db8:ffff::1");
    assert_eq!(passes(&program, &source().udp(1, 2).build(), 100), 20);
    let mut frames = vec![
        source().hop_by_hop().udp(1, 2).build(),
        source().destination_options().udp(1, 2).build(),
        source().routing().udp(1, 2).build(),
        source()
            .hop_by_hop()
            .routing()
            .destination_options()
            .udp(1, 2)
            .build(),
        source().fragment6(0, true).udp(1, 2).zeros(BODY).build(),
        source().fragment6(185, false).udp(1, 2).zeros(BODY).build(),
        source().tcp_syn(1, 2).build(),
        source().icmp6(128, 0, [0; 4]).zeros(BODY).build(),
    ];
    for n in 0..64_u8 {
        let host = Ipv6Addr::from(0x2001_0db8_0001_0002_0000_0000_0000_0000 | u128::from(n) << 56);
        let to = Ipv6Addr::from(0x2001_0db8_ffff_0000_0000_0000_0000_0000 | u128::from(n));
        frames.push(Packet::eth().ipv6_between(host, to).udp(1, 2).build());
        frames.push(source().hop_limit(n + 1).udp(u16::from(n), 80).build());
        let tagged = Packet::eth().vlan(u16::from(n));
        let tagged = tagged.ipv6("2001:db8:1:2::1", "2001:db8:ffff::1");
        frames.push(tagged.udp(1, 2).build());
        // Traffic class and flow label.
        let mut frame = source().udp(1, 2).build();
        frame[14] = 0x60 | n >> 4;
        frame[15] = n << 4 | 5;
        frame[16] = n;
        frames.push(frame);
    }
    let before = program.reason(Reason::OverPackets);
    for (n, frame) in frames.iter().enumerate() {
        assert_eq!(passes(&program, frame, 3), 0, "variation {n}: {frame:02x?}");
    }
    println!("{} variations", frames.len());
    let tried = 3 * frames.len() as u64;
    assert_eq!(program.reason(Reason::OverPackets) - before, tried);
}

#[test]
fn sources_that_only_look_alike_have_buckets_of_their_own() {
    tests::requires::bpf();
    let program = Program::limiting(1, 20);
    let from = |source: &str| {
        if source.contains(':') {
            Packet::eth()
                .ipv6(source, "2001:db8:ffff::1")
                .udp(1, 2)
                .build()
        } else {
            Packet::eth().ipv4(source, "198.51.100.1").udp(1, 2).build()
        }
    };
    // 192.0.2.1 in every encoding that a host may send from, and hosts that share a /64 with
    // strangers.
    let own = [
        "192.0.2.1",
        "192.0.2.2",
        "64:ff9b::192.0.2.1",
        "64:ff9b::192.0.2.2",
        "64:ff9b:1::192.0.2.1",
        "2002:c000:201::1",
        "2001:0:c000:201::1",
        "fe80::5efe:192.0.2.1",
        "fe80::5efe:192.0.2.2",
        "fe80::1",
        "fe80::2",
        "fe80::211:22ff:fe33:4455",
        "fe80::211:22ff:fe33:4456",
        "2001:db8::c000:201",
        "fc00::192.0.2.1",
    ];
    for source in own {
        let passed = passes(&program, &from(source), 50);
        assert_eq!(passed, 20, "{source}");
    }
    // The 54 bits of a link-local prefix that no host uses buy nothing.
    assert_eq!(passes(&program, &from("febf:ffff::1"), 50), 0);
    // Encodings no host may send from are malformed, whatever they spell.
    let before = program.reason(Reason::Malformed);
    let none = [
        "::ffff:192.0.2.1",
        "::192.0.2.1",
        "::1",
        "::",
        "ff02::1",
        "64:ff9b::1:0:0",
    ];
    for source in none {
        assert_eq!(passes(&program, &from(source), 5), 0, "{source}");
    }
    assert_eq!(
        program.reason(Reason::Malformed) - before,
        5 * none.len() as u64
    );
}
