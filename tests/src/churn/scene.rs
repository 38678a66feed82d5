//! Who sends what: attackers who churn the table to get more than their limit, polite sources that
//! were there before, and a flood of spoofed sources.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ratelimiter_common::abi::config::PermKey;
use ratelimiter_common::abi::crowd::WAYS;
use ratelimiter_common::quota::{Quota, Unit};
use ratelimiter_common::vclock::Piece;
use ratelimiter_common::verdict::Mode;

use super::{Crowd, Judged, Shape};
use crate::OrFail as _;
use crate::random::Random;

/// The quota of every scene: packets per second, and at once.
pub const RATE: u64 = 10;
/// See [`RATE`].
pub const BURST: u64 = 20;
/// Attackers in every scene.
const ATTACKERS: u32 = 16;
/// Spoofed sources whose packets are interleaved.
const INTERLEAVED: usize = 64;
/// Time the polite sources and the attackers have to themselves before the flood.
const BEFORE_NS: u64 = 1_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// How the attackers send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// Evenly, at this multiple of their limit.
    Even(u64),
    /// A burst, then silence of so many milliseconds.
    Pulse(u64),
}

/// One mix.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// log2 of the sets.
    pub bits: u32,
    /// New spoofed sources per second, as a multiple of words times rate.
    pub phi: f64,
    /// Packets per spoofed source.
    pub k: u32,
    /// The attackers.
    pub arrivals: Arrivals,
    /// Polite sources, each at half its limit.
    pub polite: u32,
    /// Whether the first-seen budget of words / 10 s is in force.
    pub budget: bool,
    /// Length of the flood, seconds.
    pub seconds: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Most that any attacker was admitted, over what it was entitled to in the whole run.
    pub gain: f64,
    /// Share of the polite sources' packets denied while the flood lasted.
    pub polite_loss: f64,
    /// Share of spoofed sources whose first packet passed.
    pub new_passed: f64,
    /// Packets judged.
    pub packets: u64,
}

/// Every mix of `kernel-plane.md` section 6 with these values of phi and k.
#[must_use]
pub fn mixes(phis: &[f64], ks: &[u32], bits: u32, seconds: u64) -> Vec<Mix> {
    const ARRIVALS: [Arrivals; 4] = [
        Arrivals::Even(3),
        Arrivals::Even(100),
        Arrivals::Pulse(60),
        Arrivals::Pulse(240),
    ];
    let mut mixes = Vec::new();
    for &phi in phis {
        for &k in ks {
            for arrivals in ARRIVALS {
                mixes.push(Mix {
                    bits,
                    phi,
                    k,
                    arrivals,
                    polite: 64,
                    budget: false,
                    seconds,
                });
            }
        }
    }
    mixes
}

/// A sender on its own time table.
struct Sender {
    source: u32,
    /// Packets at once, and nanoseconds until the next.
    packets: u64,
    every_ns: u64,
    offered: u64,
    admitted: u64,
}

/// The shape of a scene's table.
#[must_use]
#[track_caller]
pub fn shape(bits: u32, budget: bool) -> Shape {
    let limit = Quota {
        rate_limit: RATE,
        window_ns: SECOND_NS,
        burst: BURST,
        unit: Unit::Packets,
    }
    .compile()
    .or_fail("quota");
    let words = (WAYS as u64) << bits;
    Shape {
        key: PermKey::from_random([
            0x243f_6a88_85a3_08d3,
            0x1319_8a2e_0370_7344,
            0xa409_3822_299f_31d0,
            0x082e_fa98_ec4e_6c89,
        ]),
        bits,
        piece: Piece {
            from_ns: 0,
            base_ns: 0,
            base: 1 << 30,
            speed: limit.speed,
            burst: limit.burst,
            mode: Mode::Enforce as u32,
            debt_bits: 0,
        },
        first_seen_ns: if budget { 10 * SECOND_NS / words } else { 0 },
        draw: 64,
        cpus: 2,
        inherits: true,
    }
}

/// Plays one mix.
#[must_use]
#[track_caller]
pub fn play(mix: &Mix) -> Outcome {
    play_in(Crowd::new(shape(mix.bits, mix.budget)), mix)
}

/// Plays one mix in a given table.
#[must_use]
pub fn play_in(crowd: Crowd, mix: &Mix) -> Outcome {
    let mut crowd = crowd;
    let mut random = Random::new(7 + u64::from(mix.k));
    let mut senders: Vec<Sender> = (0..ATTACKERS + mix.polite)
        .map(|n| {
            let attacks = n < ATTACKERS;
            let (packets, every_ns) = match mix.arrivals {
                _ if !attacks => (1, 2 * SECOND_NS / RATE),
                Arrivals::Even(times) => (1, SECOND_NS / RATE / times),
                Arrivals::Pulse(pause_ms) => (BURST, pause_ms * 1_000_000),
            };
            Sender {
                source: 0x0a00_0000 + n,
                packets,
                every_ns,
                offered: 0,
                admitted: 0,
            }
        })
        .collect();
    let start_ns = SECOND_NS;
    let flood_ns = start_ns + BEFORE_NS;
    let end_ns = flood_ns + mix.seconds * SECOND_NS;
    let mut due: BinaryHeap<Reverse<(u64, usize)>> = senders
        .iter()
        .enumerate()
        .map(|(n, sender)| Reverse((start_ns + random.below(sender.every_ns), n)))
        .collect();
    let words = (WAYS as u64) << mix.bits;
    let per_s = mix.phi * (words * RATE) as f64 * f64::from(mix.k);
    let total = (per_s * mix.seconds as f64) as u64;
    let mut spoofed = [(0_u32, 0_u32); INTERLEAVED];
    let (mut new, mut new_passed, mut packets) = (0_u64, 0_u64, 0_u64);
    for n in 0..=total {
        let now_ns = if n == total {
            end_ns
        } else {
            flood_ns + (n as f64 / per_s * 1e9) as u64
        };
        while let Some(&Reverse((at_ns, number))) = due.peek() {
            if at_ns > now_ns {
                break;
            }
            due.pop();
            let sender = &mut senders[number];
            for _ in 0..sender.packets {
                let cpu = (packets & 1) as usize;
                let judged = crowd.packet(cpu, sender.source, at_ns);
                packets += 1;
                // The polite count once the flood has begun; attackers from the start.
                if (number as u32) < ATTACKERS || at_ns >= flood_ns {
                    sender.offered += 1;
                    sender.admitted += u64::from(judged == Judged::Conforming);
                }
            }
            due.push(Reverse((at_ns + sender.every_ns, number)));
        }
        if n == total {
            break;
        }
        let (source, left) = &mut spoofed[(n % INTERLEAVED as u64) as usize];
        let first = *left == 0;
        if first {
            // Never one of the senders: the top bit is set.
            *source = random.next() as u32 | 1 << 31;
            *left = mix.k;
        }
        *left -= 1;
        let judged = crowd.packet((packets & 1) as usize, *source, now_ns);
        packets += 1;
        if first {
            new += 1;
            new_passed += u64::from(judged == Judged::Conforming);
        }
    }
    let entitled = (BURST + RATE * (end_ns - start_ns) / SECOND_NS) as f64;
    let (attackers, polite) = senders.split_at(ATTACKERS as usize);
    let gain = attackers
        .iter()
        .map(|sender| sender.admitted as f64 / entitled)
        .fold(0.0, f64::max);
    let offered: u64 = polite.iter().map(|sender| sender.offered).sum();
    let admitted: u64 = polite.iter().map(|sender| sender.admitted).sum();
    let share = |part: u64, of: u64| part as f64 / of.max(1) as f64;
    Outcome {
        gain,
        polite_loss: share(offered - admitted, offered),
        new_passed: share(new_passed, new),
        packets,
    }
}
