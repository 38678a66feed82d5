//! Nanoseconds per packet by `BPF_PROG_TEST_RUN`: the limiter, an empty program and a plain
//! LRU-hash limiter, side by side, round by round.

use std::collections::BTreeMap;
use std::time::Duration;

use aya::programs::Xdp;
use caps::{CapSet, Capability, CapsHashSet};
use ratelimiter_common::abi::config::{LOOK_FURTHER, fine4_bit, flags};
use ratelimiter_common::abi::crowd::{Set4, WAYS};
use ratelimiter_common::abi::names;
use ratelimiter_common::abi::policy::{PrefixKey4, PrefixValue, action};
use ratelimiter_common::quota::Unit;
use ratelimiter_common::vclock::NEVER;
use ratelimiter_common::verdict::Reason;
use ratelimiter_userspace::clock::instant;
use ratelimiter_userspace::dataplane::object::bench_object;

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
    /// Sources so far: where the generator goes on.
    counter: u64,
    /// Packets counted and passed before the first round.
    warm: (u64, u64),
    times: Vec<f64>,
}

/// What is measured: everything, with the object this binary carries, unless said otherwise.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Names of rows; `empty` is always measured.
    pub rows: Vec<String>,
    /// Another build of the benchmark's object.
    pub object: Option<&'static [u8]>,
}

impl Choice {
    fn has(&self, name: &str) -> bool {
        self.rows.is_empty() || name == "empty" || self.rows.iter().any(|row| row == name)
    }

    #[track_caller]
    fn load(&self, entry: &'static str, rule: Rule, budget: bool) -> Program {
        let object = self
            .object
            .unwrap_or_else(|| bench_object().or_fail("bench object"));
        let rival = if entry == "rival" {
            1 << 20
        } else {
            LARGE.rival
        };
        let mut program = Program::load_object(object, Sizes { rival, ..LARGE }, &[entry]);
        program.set_policy(&policy(0, &[rule]));
        program.set_zone(0, 0, &[Unit::Packets]);
        if budget {
            program.change_config(|config| {
                config.regions4[0].first_seen_ns = first_seen_ns(8 << LARGE.bits4);
                config.regions6[0].first_seen_ns = first_seen_ns(8 << LARGE.bits6);
            });
        }
        program
    }

    /// A row, if it was chosen.
    fn row(
        &self,
        name: &'static str,
        entry: &'static str,
        frame: Vec<u8>,
        program: impl FnOnce() -> Program,
    ) -> Option<Row> {
        if !self.has(name) {
            return None;
        }
        let slow = ["1m", "spoofed", "tracked"]
            .iter()
            .any(|s| name.contains(s));
        Some(Row {
            name,
            program: program(),
            entry,
            frame,
            repeat: if slow { 2_000_000 } else { 8_000_000 },
            counter: 0,
            warm: (0, 0),
            times: Vec::new(),
        })
    }
}

/// 1 M words, 512 k ways, 10 000 policies and more.
const LARGE: Sizes = Sizes {
    bits4: 17,
    bits6: 16,
    region_bits: 13,
    tracked: 1 << 17,
    slots: 1 << 14,
    rival: 1 << 10,
};
/// First-seen budget of a region of `words`: N / 10 s.
const fn first_seen_ns(words: u64) -> u64 {
    10_000_000_000 / words
}
/// Every packet a new source.
const NEW: u32 = u32::MAX;
const THOUSAND: u32 = 1_023;
const MILLION: u32 = (1 << 20) - 1;
/// Bytes of the payload: frames of 64 bytes over IPv4.
const PAYLOAD: usize = 22;
/// 11.0.0.0: where the sources of the rows without prefixes lie.
const ELSEWHERE: u32 = 0x0b00_0000;
/// 10.128.0.0: where the tracked ones do.
const CLIENTS: u32 = 0x0a80_0000;
/// What an agent needs at least: see `docs/guarantees.md`, R45.
const NEEDED: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];

fn payload(mask: u32, base: u32) -> Vec<u8> {
    let mut bytes = 0_u64.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&mask.to_ne_bytes());
    bytes.extend_from_slice(&base.to_ne_bytes());
    bytes.resize(PAYLOAD, 0);
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

/// Clients with an address and a policy of their own each.
#[track_caller]
fn with_clients(mut program: Program, addresses: &[u32]) -> Program {
    let mut fine = BTreeMap::<u32, u64>::new();
    for (slot, &address) in (1..).zip(addresses) {
        program.set_policy(&policy(slot, &[Rule::packets(10, 20)]));
        program.track(u64::from(address), slot);
        let key = PrefixKey4 {
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
        let bit = fine4_bit(address);
        *fine.entry(bit >> 6).or_default() |= 1 << (bit & 63);
        let coarse = (address >> 16) as u16;
        if fine.len() == 1 || !program.is_coarse(names::COARSE4, coarse) {
            program.coarse(names::COARSE4, coarse..=coarse, LOOK_FURTHER);
        }
    }
    for (word, bits) in fine {
        program.put(names::FINE4, &word, &bits);
    }
    program.change_config(|config| config.flags |= flags::PREFIXES);
    program
}

/// `n` addresses, one per /24, from 10.0.0.9 on.
fn one_per_24(n: u32) -> Vec<u32> {
    (0..n).map(|n| 0x0a00_0009 + n * 256).collect()
}

/// The limiter's rows that are measured with and without CAP_PERFMON: without it, the verifier puts
/// masks and barriers against speculation in.
fn limiter_rows(choice: &Choice, ours: &'static str, names: [&'static str; 5]) -> Vec<Row> {
    let over = Rule::packets(10, 20);
    let pass = Rule::packets(1_000_000_000, 1 << 30);
    let elsewhere = |mask| frame4(mask, ELSEWHERE);
    let [over_limit, passing, tracked, random, spoofed] = names;
    let load = |rule| choice.load(ours, rule, true);
    let mut clients: Vec<u32> = (0..=THOUSAND).map(|n| CLIENTS + n).collect();
    clients.extend(one_per_24(10_000 - 1_024));
    let with_all = || with_clients(load(over), &clients);
    let rows = [
        choice.row(over_limit, ours, elsewhere(THOUSAND), || load(over)),
        choice.row(passing, ours, elsewhere(THOUSAND), || load(pass)),
        choice.row(tracked, ours, frame4(THOUSAND, CLIENTS), with_all),
        choice.row(random, ours, elsewhere(MILLION), || load(over)),
        choice.row(spoofed, ours, elsewhere(NEW), || load(over)),
    ];
    rows.into_iter().flatten().collect()
}

fn rows(choice: &Choice) -> Vec<Row> {
    let over = Rule::packets(10, 20);
    let elsewhere = |mask| frame4(mask, ELSEWHERE);
    let (ours, six) = ("limiter4", "limiter6");
    let load = |entry| choice.load(entry, over, true);
    let mut rows = Vec::new();
    for (name, entry) in [
        ("empty", "empty"),
        ("generator", "generator"),
        ("parse_only", "parser"),
    ] {
        rows.extend(choice.row(name, entry, elsewhere(THOUSAND), || load(entry)));
    }
    rows.extend(limiter_rows(
        choice,
        ours,
        [
            "over_limit_1k",
            "pass_1k",
            "tracked_1k",
            "random_1m",
            "spoofed",
        ],
    ));
    // In a /16 with clients, in /24s without: the fine bits are asked too.
    for (name, base) in [
        ("over_limit_1k_10k_prefixes", ELSEWHERE),
        ("over_limit_1k_beside_prefixes", 0x0a27_8000),
    ] {
        let program = || with_clients(load(ours), &one_per_24(10_000));
        rows.extend(choice.row(name, ours, frame4(THOUSAND, base), program));
    }
    let segment = || {
        let mut segment = load(ours);
        segment.set_policy(&policy(1, &[over]));
        segment.set_zone(1, 1, &[Unit::Packets]);
        segment.coarse(names::COARSE4, 0x0a00..=0x0aff, 1);
        segment.change_config(|config| config.flags |= flags::PREFIXES);
        segment
    };
    rows.extend(choice.row("segment_1k", ours, frame4(THOUSAND, CLIENTS), segment));
    let unbounded = || choice.load(ours, over, false);
    rows.extend(choice.row("spoofed_without_budget", ours, elsewhere(NEW), unbounded));
    for (name, mask) in [("v6_over_limit_1k", THOUSAND), ("v6_random_1m", MILLION)] {
        rows.extend(choice.row(name, six, frame6(mask), || load(six)));
    }
    for (name, mask) in [
        ("lru_1k", THOUSAND),
        ("lru_1m", MILLION),
        ("lru_spoofed", NEW),
    ] {
        rows.extend(choice.row(name, "rival", elsewhere(mask), || load("rival")));
    }
    rows
}

/// Nanoseconds per packet: a long run less a short one, because the call itself costs milliseconds.
fn measure(row: &mut Row) -> f64 {
    let at = if row.entry == "limiter6" { 62 } else { 42 };
    let program: &Xdp = row.program.xdp(row.entry);
    let mut timed = |repeat: u32| -> Duration {
        row.frame[at..at + 8].copy_from_slice(&row.counter.to_ne_bytes());
        row.counter += u64::from(repeat);
        let start = instant();
        run(program, &row.frame, repeat);
        start.elapsed()
    };
    let short = timed(row.repeat / 10);
    let long = timed(row.repeat);
    (long.saturating_sub(short)).as_nanos() as f64 / f64::from(row.repeat - row.repeat / 10)
}

/// Packets counted and passed so far.
fn tally(program: &Program) -> (u64, u64) {
    (program.counted(), program.reason(Reason::Conforming))
}

/// Leaves the calling thread the capabilities an agent needs, so that the verifier masks and fences
/// what it loads from here on.
#[track_caller]
fn as_the_least_agent() {
    let keep: CapsHashSet = NEEDED.into_iter().collect();
    caps::set(None, CapSet::Effective, &keep).or_fail("set effective capabilities");
}

/// Runs every chosen row `rounds` times, interleaved, and prints medians beside minima.
#[track_caller]
pub fn kernel(rounds: u32, choice: &Choice) -> Vec<Figure> {
    pin_to_cpu(0);
    let mut rows = rows(choice);
    as_the_least_agent();
    rows.extend(limiter_rows(
        choice,
        "guarded4",
        [
            "over_limit_1k_guarded",
            "pass_1k_guarded",
            "tracked_1k_guarded",
            "random_1m_guarded",
            "spoofed_guarded",
        ],
    ));
    // Buckets run dry and tables fill before anything counts.
    for row in &mut rows {
        let measured = row.repeat;
        row.repeat = 8_000_000;
        measure(row);
        row.repeat = measured;
        row.warm = tally(&row.program);
    }
    for _ in 0..rounds {
        for row in &mut rows {
            let ns = measure(row);
            row.times.push(ns);
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
        let (counted, passed) = tally(&row.program);
        let (counted, passed) = (counted - row.warm.0, passed - row.warm.1);
        let share = if counted == 0 {
            "-".to_owned()
        } else {
            format!("{:.2}%", passed as f64 / counted as f64 * 100.0)
        };
        println!(
            "{:<32} {ns:>8.1} {least:>8.1} {:>7.2} {share:>8}",
            row.name,
            ns / empty,
        );
        if row.name != "empty" {
            figures.push(Figure {
                name: format!("{}_vs_empty", row.name),
                value: ns,
                unit: "ns/packet".to_owned(),
                baseline: Some(empty),
                ratio: Some(ns / empty),
            });
        }
    }
    for (name, rival, ours) in [
        ("lru_vs_ours_1k", "lru_1k", "over_limit_1k"),
        ("lru_vs_ours_1m", "lru_1m", "random_1m"),
        ("lru_vs_ours_spoofed", "lru_spoofed", "spoofed"),
    ] {
        let (rival, ours) = (of(rival), of(ours));
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
        value: size_of::<Set4>() as f64 / WAYS as f64,
        unit: "bytes".to_owned(),
        baseline: None,
        ratio: None,
    });
    figures
}
