//! R9 in real time: attackers who send a burst now and then, while both CPUs run spoofed packets
//! that churn the table they are counted in.

use ratelimiter_common::abi::config::flags;
use ratelimiter_common::abi::names;
use ratelimiter_common::quota::Unit;
use ratelimiter_userspace::clock::monotonic_ns;
use tests::OrFail as _;
use tests::packet::Packet;
use tests::program::{Program, Rule, Sizes, XDP_PASS, policy};
use tests::random::Random;
use tests::runner::{Runner, on_two_cpus};

const RATE: u64 = 10;
const BURST: u64 = 100;
const SECOND_NS: u64 = 1_000_000_000;
/// What an agent makes by default: 1 M words, and 64 k words for the /8 segment.
const DEFAULT: Sizes = Sizes {
    bits4: 17,
    bits6: 10,
    region_bits: 13,
    tracked: 1 << 12,
    slots: 256,
    rival: 1,
};
/// First address of the crowd's sources, and of the /8 segment's.
const BASES: [u32; 2] = [0x0b00_0000, 0x0a00_0000];
/// Milliseconds between two bursts of an attacker.
const PERIODS_MS: [u64; 5] = [250, 500, 1_000, 2_000, 5_000];
/// Polite sources of each CPU and segment, each at half its limit.
const POLITE: u64 = 32;
/// Spoofed sources of each CPU whose packets are interleaved.
const INTERLEAVED: usize = 64;

struct Sender {
    source: u32,
    packets: u64,
    every_ns: u64,
    next_ns: u64,
    offered: u64,
    admitted: u64,
}

/// Attackers and polite sources of one CPU: by segment, and among the attackers by period.
fn senders(cpu: usize, start_ns: u64) -> Vec<Sender> {
    let mut senders = Vec::new();
    for base in BASES {
        // Addresses that no spoofed source has: see `flood`.
        let base = base + 0x0080_0000 + (cpu as u32) * 0x1000;
        for (n, period_ms) in (0..).zip(PERIODS_MS) {
            senders.push(Sender {
                source: base + n,
                packets: BURST,
                every_ns: period_ms * 1_000_000,
                next_ns: start_ns,
                offered: 0,
                admitted: 0,
            });
        }
        for n in 0..POLITE {
            senders.push(Sender {
                source: base + 0x100 + n as u32,
                packets: 1,
                every_ns: 2 * SECOND_NS / RATE,
                next_ns: start_ns + n * 2 * SECOND_NS / RATE / POLITE,
                offered: 0,
                admitted: 0,
            });
        }
    }
    senders
}

/// What one CPU's loop came to.
struct Played {
    senders: Vec<Sender>,
    spoofed: u64,
    ended_ns: u64,
}

/// Plays one CPU: everybody for half a second without the flood, then with it.
fn play(runner: &Runner, cpu: usize, k: u32, start_ns: u64, seconds: u64) -> Played {
    let mut frame = Packet::eth()
        .ipv4("11.0.0.1", "198.51.100.1")
        .udp(1, 2)
        .build();
    let mut send = |source: u32| {
        frame[26..30].copy_from_slice(&source.to_be_bytes());
        runner.run(&frame) == XDP_PASS
    };
    let mut senders = senders(cpu, start_ns);
    let mut random = Random::new(cpu as u64 + 1);
    let mut sources = [(0_u32, 0_u32); INTERLEAVED];
    let mut spoofed = 0_u64;
    let end_ns = start_ns + seconds * SECOND_NS;
    loop {
        let now_ns = monotonic_ns();
        if now_ns >= end_ns {
            return Played {
                senders,
                spoofed,
                ended_ns: now_ns,
            };
        }
        for sender in senders.iter_mut().filter(|s| s.next_ns <= now_ns) {
            for _ in 0..sender.packets {
                sender.offered += 1;
                sender.admitted += u64::from(send(sender.source));
            }
            sender.next_ns = now_ns + sender.every_ns;
        }
        if now_ns < start_ns + SECOND_NS / 2 {
            continue;
        }
        for (n, (source, left)) in sources.iter_mut().enumerate() {
            if *left == 0 {
                // Both halves of the sources in turn: the whole crowd, and the /8.
                *source = BASES[n % 2] + (random.next() as u32 & 0x007f_ffff);
                *left = k;
            }
            *left -= 1;
            send(*source);
            spoofed += 1;
        }
    }
}

fn flooded(k: u32, budget: bool, seconds: u64) {
    let mut program = Program::load_object(
        ratelimiter_userspace::dataplane::object::object().or_fail("kernel object"),
        DEFAULT,
        &[names::PROGRAM],
    );
    program.set_policy(&policy(0, &[Rule::packets(RATE, BURST)]));
    program.set_policy(&policy(1, &[Rule::packets(RATE, BURST)]));
    program.set_zone(0, 0, &[Unit::Packets]);
    program.set_zone(1, 1, &[Unit::Packets]);
    program.coarse(names::COARSE4, 0x0a00..=0x0aff, 1);
    program.change_config(|config| {
        config.flags |= flags::PREFIXES;
        if budget {
            config.regions4[0].first_seen_ns = 10 * SECOND_NS / (1 << 20);
            config.regions4[3].first_seen_ns = 10 * SECOND_NS / (1 << 16);
        }
    });
    let runner = Runner::of(program.xdp(names::PROGRAM));
    let start_ns = monotonic_ns() + 10_000_000;
    let played = on_two_cpus(|cpu| play(&runner, cpu, k, start_ns, seconds));
    let spoofed: u64 = played.iter().map(|cpu| cpu.spoofed).sum();
    let per_s = spoofed as f64 / (seconds as f64 - 0.5);
    let mut worst = 0.0_f64;
    let mut polite = [(0_u64, 0_u64); 2];
    for cpu in &played {
        let elapsed_s = (cpu.ended_ns - start_ns) as f64 / 1e9;
        let entitled = BURST as f64 + RATE as f64 * elapsed_s;
        for sender in &cpu.senders {
            if sender.packets == BURST {
                let gain = sender.admitted as f64 / entitled;
                assert!(
                    gain <= 1.10,
                    "k {k}: {:#x} every {} ms: {} of {} admitted, entitled to {entitled}",
                    sender.source,
                    sender.every_ns / 1_000_000,
                    sender.admitted,
                    sender.offered,
                );
                worst = worst.max(gain);
            } else {
                let segment = usize::from(sender.source >> 24 == 0x0a);
                polite[segment].0 += sender.offered;
                polite[segment].1 += sender.admitted;
            }
        }
    }
    println!(
        "k {k}, budget {budget}: {:.2} M spoofed packets/s, worst gain {worst:.3}, polite {polite:?}",
        per_s / 1e6,
    );
    assert!(spoofed > 30_000 * seconds, "{spoofed} spoofed packets");
    for (offered, admitted) in polite {
        assert!(offered > 20 * POLITE);
        assert!(
            admitted as f64 >= 0.99 * offered as f64,
            "k {k}: {polite:?}"
        );
    }
}

#[test]
fn a_flood_on_both_cpus_resets_no_bucket() {
    tests::requires::bpf();
    for k in [1, 4, 16, 64] {
        flooded(k, false, 6);
    }
}

#[test]
fn the_first_seen_budget_keeps_the_polite_in() {
    tests::requires::bpf();
    flooded(1, true, 4);
}

/// A frame for the benchmark's generator of sources: `first` and the numbers after it where `mask`
/// is all ones, 2^`shift` packets each, else `base` alone.
fn generator(first: u64, mask: u32, base: u32, shift: u32) -> Vec<u8> {
    let mut payload = first.to_ne_bytes().to_vec();
    payload.extend_from_slice(&mask.to_ne_bytes());
    payload.extend_from_slice(&base.to_ne_bytes());
    payload.extend_from_slice(&shift.to_ne_bytes());
    payload.resize(22, 0);
    let packet = Packet::eth().ipv4("11.0.0.1", "198.51.100.1").udp(1, 2);
    packet.payload(&payload).build()
}

/// As fast as the CPUs can: every 2^`shift` packets a new source, made inside the kernel, on a table of
/// 64 k words, many times what it has room for.
fn overwhelmed(budget: bool, shift: u32) {
    const SECONDS: u64 = 5;
    const AT_ONCE: u32 = 50_000;
    const WORDS: u64 = 1 << 16;
    let sizes = Sizes {
        bits4: 13,
        ..DEFAULT
    };
    let object = ratelimiter_userspace::dataplane::object::bench_object().or_fail("bench object");
    let mut program = Program::load_object(object, sizes, &["limiter4"]);
    program.set_policy(&policy(0, &[Rule::packets(RATE, BURST)]));
    program.set_zone(0, 0, &[Unit::Packets]);
    if budget {
        let each_ns = 10 * SECOND_NS / WORDS;
        program.change_config(|config| config.regions4[0].first_seen_ns = each_ns);
    }
    let runner = Runner::of(program.xdp("limiter4"));
    let start_ns = monotonic_ns() + 10_000_000;
    let played = on_two_cpus(|cpu| {
        let mut senders = senders(cpu, start_ns);
        let mut spoofed = 0_u64;
        loop {
            let now_ns = monotonic_ns();
            if now_ns >= start_ns + SECONDS * SECOND_NS {
                break Played {
                    senders,
                    spoofed,
                    ended_ns: now_ns,
                };
            }
            for sender in senders.iter_mut().filter(|s| s.next_ns <= now_ns) {
                let frame = generator(0, 0, sender.source, 0);
                for _ in 0..sender.packets {
                    sender.offered += 1;
                    sender.admitted += u64::from(runner.run(&frame) == XDP_PASS);
                }
                sender.next_ns = now_ns + sender.every_ns;
            }
            // The senders have a moment to themselves.
            if now_ns > start_ns + SECOND_NS / 2 {
                // Of the sources, bit 30 tells the CPU: `first` counts packets.
                let first = (cpu as u64) << (30 + shift) | spoofed;
                runner.repeat(&generator(first, u32::MAX, 0x1000_0000, shift), AT_ONCE);
                spoofed += u64::from(AT_ONCE);
            }
        }
    });
    let spoofed: u64 = played.iter().map(|cpu| cpu.spoofed).sum();
    let (mut worst, mut offered, mut admitted) = (0.0_f64, 0, 0);
    for cpu in &played {
        let elapsed_s = (cpu.ended_ns - start_ns) as f64 / 1e9;
        for sender in &cpu.senders {
            if sender.packets == BURST {
                let entitled = BURST as f64 + RATE as f64 * elapsed_s;
                worst = worst.max(sender.admitted as f64 / entitled);
            } else {
                offered += sender.offered;
                admitted += sender.admitted;
            }
        }
    }
    println!(
        "k {}, budget {budget}: {:.2} M spoofed packets/s, worst gain {worst:.3}, polite {admitted} of {offered}",
        1 << shift,
        spoofed as f64 / (SECONDS as f64 - 0.5) / 1e6
    );
    assert!(spoofed > 1_000_000, "{spoofed}");
    assert!(worst <= 1.10, "{worst}");
    if budget {
        assert!(admitted as f64 >= 0.99 * offered as f64);
    }
}

#[test]
fn a_flood_of_new_sources_at_full_speed_resets_no_bucket() {
    tests::requires::bpf();
    overwhelmed(false, 0);
    overwhelmed(true, 0);
}

#[test]
fn a_flood_of_sources_with_several_packets_at_full_speed_resets_no_bucket() {
    tests::requires::bpf();
    // What an LRU suffers from most is four packets a source.
    overwhelmed(false, 2);
    overwhelmed(false, 4);
    overwhelmed(true, 2);
}
