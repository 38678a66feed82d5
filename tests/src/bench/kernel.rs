//! Nanoseconds per packet by `BPF_PROG_TEST_RUN`: the limiter, an empty program and a plain
//! LRU-hash limiter, side by side, round by round.

use std::time::Duration;

use aya::programs::Xdp;
use ratelimiter_common::abi::config::flags;
use ratelimiter_common::abi::names;
use ratelimiter_common::abi::policy::{PrefixValue, action};
use ratelimiter_common::quota::Unit;
use ratelimiter_common::vclock::NEVER;
use ratelimiter_userspace::clock::instant;

use super::{Figure, median};
use crate::OrFail as _;
use crate::packet::Packet;
use crate::program::{Program, Rule, Sizes, pin_to_cpu, policy, run};

/// A row: a program, its maps and a frame that carries the generator.
struct Row {
    name: &'static str,
    program: Program,
    entry: &'static str,
    frame: Vec<u8>,
    repeat: u32,
    times: Vec<f64>,
}

/// 1 M words, 512 k ways, 10 000 policies and more.
const LARGE: Sizes = Sizes {
    bits4: 17,
    bits6: 17,
    region_bits: 13,
    tracked: 1 << 17,
    slots: 1 << 14,
};
/// First-seen budget of a region of a million words: N / 10 s.
const FIRST_SEEN_NS: u64 = 10_000_000_000 / (1 << 20);
/// Every packet a new source.
const NEW: u32 = u32::MAX;
const THOUSAND: u32 = 1_023;
const MILLION: u32 = (1 << 20) - 1;
/// 11.0.0.0: where the sources of the rows without prefixes lie.
const ELSEWHERE: u32 = 0x0b00_0000;

fn payload(mask: u32, base: u32) -> Vec<u8> {
    let mut bytes = 0_u64.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&mask.to_ne_bytes());
    bytes.extend_from_slice(&base.to_ne_bytes());
    bytes.resize(22, 0);
    bytes
}

fn frame4(mask: u32, base: u32) -> Vec<u8> {
    let packet = Packet::eth().ipv4("11.0.0.1", "198.51.100.1").udp(1234, 80);
    packet.payload(&payload(mask, base)).build()
}

fn frame6(mask: u32) -> Vec<u8> {
    // The generator varies the second half of the /64's top: 2001:db8:xxxx:xxxx.
    let packet = Packet::eth()
        .ipv6("2001:db8::1", "2001:db8:ffff::1")
        .udp(1234, 80);
    packet.payload(&payload(mask, 0)).build()
}

#[track_caller]
fn load(entry: &'static str, rule: Rule, budget: bool) -> Program {
    let object = ratelimiter_userspace::dataplane::object::bench_object().or_fail("bench object");
    let mut program = Program::load_object(object, LARGE, &[entry]);
    program.set_policy(&policy(0, &[rule]));
    program.set_zone(0, 0, &[Unit::Packets]);
    if budget {
        program.change_config(|config| {
            config.regions4[0].first_seen_ns = FIRST_SEEN_NS;
            config.regions6[0].first_seen_ns = FIRST_SEEN_NS;
        });
    }
    program
}

/// 10 000 client addresses, 10.x.y.9, one per /24, each with a policy of its own where `policies`.
#[track_caller]
fn with_clients(mut program: Program) -> Program {
    let generation = program.config.prefix_generation;
    for n in 0..10_000_u32 {
        let slot = 1 + n;
        let address = 0x0a00_0009 + n * 256;
        program.set_policy(&policy(slot, &[Rule::packets(10, 20)]));
        program.track(u64::from(address), slot);
        let key = ratelimiter_common::abi::policy::PrefixKey4 {
            prefix_len: 32,
            address_be: address.to_be_bytes(),
        };
        let value = PrefixValue {
            action: action::TRACKED,
            slot,
            until_ns: NEVER,
            prefix_len: 32,
            ..PrefixValue::default()
        };
        program.put(names::PREFIXES4, &key, &value);
        let word: u64 = program
            .get(names::FINE4, &((address >> 8) / 64))
            .unwrap_or(0);
        let bit = 1_u64 << ((address >> 8) % 64);
        program.put(names::FINE4, &((address >> 8) / 64), &(word | bit));
    }
    program.coarse(names::COARSE4, 0x0a00..=0x0a27, 255);
    program.change_config(|config| {
        config.flags |= flags::PREFIXES;
        config.prefix_generation = generation;
    });
    program
}

fn rows() -> Vec<Row> {
    let over = Rule::packets(10, 20);
    let pass = Rule::packets(1_000_000_000, 1 << 30);
    let mut rows = Vec::new();
    let mut row = |name, program, entry, frame, repeat| {
        rows.push(Row {
            name,
            program,
            entry,
            frame,
            repeat,
            times: Vec::new(),
        });
    };
    let elsewhere = |mask| frame4(mask, ELSEWHERE);
    row(
        "empty",
        load("empty", over, true),
        "empty",
        elsewhere(THOUSAND),
        4_000_000,
    );
    row(
        "generator",
        load("generator", over, true),
        "generator",
        elsewhere(THOUSAND),
        4_000_000,
    );
    row(
        "parse_only",
        load("parser", over, true),
        "parser",
        elsewhere(THOUSAND),
        4_000_000,
    );
    let ours = "limiter4";
    row(
        "over_limit_1k",
        load(ours, over, true),
        ours,
        elsewhere(THOUSAND),
        4_000_000,
    );
    row(
        "pass_1k",
        load(ours, pass, true),
        ours,
        elsewhere(THOUSAND),
        4_000_000,
    );
    row(
        "over_limit_1k_10k_prefixes",
        with_clients(load(ours, over, true)),
        ours,
        elsewhere(THOUSAND),
        4_000_000,
    );
    // Sources 10.x.y.9: a multiple of 256 on top of 10.0.0.9. The generator varies low bits, so the
    // clients of this row are the first 1 024 addresses of 10.0.0.0/22.
    let mut tracked = load(ours, over, true);
    for n in 0..1_024_u32 {
        tracked.track(u64::from(0x0a80_0000 + n), 1 + n);
        tracked.set_policy(&policy(1 + n, &[over]));
    }
    let mut tracked = with_clients(tracked);
    for n in 0..1_024_u32 {
        tracked.track(u64::from(0x0a80_0000 + n), 1 + n);
    }
    tracked.put(names::FINE4, &((0x000a_8000_u32) / 64), &u64::MAX);
    tracked.coarse(names::COARSE4, 0x0a80..=0x0a80, 255);
    row(
        "tracked_1k",
        tracked,
        ours,
        frame4(THOUSAND, 0x0a80_0000),
        2_000_000,
    );
    let mut segment = load(ours, over, true);
    segment.set_policy(&policy(1, &[over]));
    segment.set_zone(1, 1, &[Unit::Packets]);
    segment.coarse(names::COARSE4, 0x0a00..=0x0aff, 1);
    segment.change_config(|config| config.flags |= flags::PREFIXES);
    row(
        "segment_1k",
        segment,
        ours,
        frame4(THOUSAND, 0x0a00_0000),
        4_000_000,
    );
    row(
        "random_1m",
        load(ours, over, true),
        ours,
        elsewhere(MILLION),
        2_000_000,
    );
    row(
        "spoofed",
        load(ours, over, true),
        ours,
        elsewhere(NEW),
        2_000_000,
    );
    row(
        "spoofed_without_budget",
        load(ours, over, false),
        ours,
        elsewhere(NEW),
        2_000_000,
    );
    let six = "limiter6";
    row(
        "v6_over_limit_1k",
        load(six, over, true),
        six,
        frame6(THOUSAND),
        4_000_000,
    );
    row(
        "v6_random_1m",
        load(six, over, true),
        six,
        frame6(MILLION),
        2_000_000,
    );
    for (name, mask) in [
        ("lru_1k", THOUSAND),
        ("lru_1m", MILLION),
        ("lru_spoofed", NEW),
    ] {
        row(name, load_rival(over), "rival", elsewhere(mask), 1_000_000);
    }
    rows
}

#[track_caller]
fn load_rival(rule: Rule) -> Program {
    load("rival", rule, true)
}

/// Nanoseconds per packet: a long run less a short one, because the call itself costs milliseconds.
fn measure(program: &Xdp, frame: &mut [u8], counter_at: usize, counter: &mut u64, n: u32) -> f64 {
    let mut timed = |repeat: u32| -> Duration {
        frame[counter_at..counter_at + 8].copy_from_slice(&counter.to_ne_bytes());
        *counter += u64::from(repeat);
        let start = instant();
        run(program, frame, repeat);
        start.elapsed()
    };
    let short = timed(n / 10);
    let long = timed(n);
    (long.saturating_sub(short)).as_nanos() as f64 / f64::from(n - n / 10)
}

/// Runs every row `rounds` times, interleaved, and prints medians beside minima.
#[track_caller]
pub fn kernel(rounds: u32) -> Vec<Figure> {
    pin_to_cpu(0);
    let mut rows = rows();
    let mut counters = vec![0_u64; rows.len()];
    // Buckets run dry and tables fill before anything counts.
    for round in 0..=rounds {
        for (row, counter) in rows.iter_mut().zip(&mut counters) {
            let at = if row.entry == "limiter6" { 62 } else { 42 };
            let program = row.program.xdp(row.entry);
            let repeat = if round == 0 {
                row.repeat.max(4_000_000)
            } else {
                row.repeat
            };
            let ns = measure(program, &mut row.frame, at, counter, repeat);
            if round > 0 {
                row.times.push(ns);
            }
        }
    }
    report(&rows)
}

fn report(rows: &[Row]) -> Vec<Figure> {
    let of = |name: &str| {
        rows.iter()
            .find(|row| row.name == name)
            .map_or(f64::NAN, |row| median(&row.times))
    };
    let empty = of("empty");
    let mut figures = Vec::new();
    println!(
        "{:<32} {:>8} {:>8} {:>7} {:>8}",
        "row", "ns", "min ns", "ratio", "passed"
    );
    for row in rows {
        let ns = median(&row.times);
        let least = row.times.iter().copied().fold(f64::INFINITY, f64::min);
        let counted = row.program.counted();
        let passed = row
            .program
            .reason(ratelimiter_common::verdict::Reason::Conforming);
        let share = if counted == 0 {
            0.0
        } else {
            passed as f64 / counted as f64
        };
        println!(
            "{:<32} {ns:>8.1} {least:>8.1} {:>7.2} {:>7.2}%",
            row.name,
            ns / empty,
            share * 100.0
        );
        figures.push(Figure {
            name: format!("{}_vs_empty", row.name),
            value: ns,
            unit: "ns/packet".to_owned(),
            baseline: Some(empty),
            ratio: Some(ns / empty),
        });
    }
    for (name, rival, ours) in [
        ("lru_vs_ours_1k", "lru_1k", "over_limit_1k"),
        ("lru_vs_ours_1m", "lru_1m", "random_1m"),
        ("lru_vs_ours_spoofed", "lru_spoofed", "spoofed"),
    ] {
        let (rival, ours) = (of(rival), of(ours));
        println!("{name:<32} {:>24.2}", rival / ours);
        figures.push(Figure {
            name: name.to_owned(),
            value: rival,
            unit: "ns/packet".to_owned(),
            baseline: Some(ours),
            ratio: Some(rival / ours),
        });
    }
    figures.push(Figure {
        name: "bytes_per_source".to_owned(),
        value: size_of::<ratelimiter_common::abi::crowd::Set4>() as f64 / 8.0,
        unit: "bytes".to_owned(),
        baseline: None,
        ratio: None,
    });
    figures
}
