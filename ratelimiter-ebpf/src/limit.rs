//! The order of the steps for one packet. The common case, a source of the crowd in its home way
//! under a packet quota, is a straight line; everything else is a call.

use aya_ebpf::programs::XdpContext;
use ratelimiter_common::abi::config::{
    Config, FINE_WORDS, LOOK_FURTHER, PROMOTED_WORDS, ZONES as ZONE_COUNT, fine4_bit, fine6_bit,
    flags,
};
use ratelimiter_common::abi::counters::CpuState;
use ratelimiter_common::parse::{Kind, Packet, parse};
use ratelimiter_common::perm::{perm32, perm64};
use ratelimiter_common::source;
use ratelimiter_common::verdict::{Reason, Verdict};

use crate::arrival::Arrival;
use crate::counters::{self, Seen};
use crate::maps::{COARSE4, COARSE6, CONFIG, CPU, FINE4, FINE6, PROMOTED};
use crate::outcome::Outcome;
use crate::packet::Frame;
use crate::{clock, crowd4, crowd6, first_seen, tracked};

/// The only unit limited is packets.
const PACKETS_ONLY: u32 = 1;

/// Judges a packet and counts it, whatever it is.
#[inline(always)]
pub(crate) fn limit(ctx: &XdpContext) -> Verdict {
    // Both always exist: the verifier wants to hear that we checked.
    let (Some(cpu), Some(config)) = (CPU.get_ptr_mut(0), CONFIG.get_ptr(0)) else {
        return Verdict::Pass;
    };
    // SAFETY: both are map values, alive while the program runs; one CPU runs one packet at a time.
    unsafe {
        clock::tick(cpu);
        let frame = Frame::of(ctx);
        let bytes = (ctx.data_end() - ctx.data()) as u64;
        let packet = parse(&frame);
        let mut key = 0;
        let outcome = Outcome(match packet.kind() {
            Kind::V4 => {
                key = source::v4(packet.low as u32);
                v4(cpu, config, &packet, bytes)
            }
            Kind::V6 => {
                let mask = (*config).v6_mask;
                match source::v6(packet.high, packet.low, mask) {
                    Some(source) => {
                        key = source;
                        v6(cpu, config, &packet, bytes, source)
                    }
                    None => malformed(config),
                }
            }
            Kind::Malformed => malformed(config),
            Kind::Control => Outcome::plain(Reason::ControlTraffic).0,
            Kind::NonIp => Outcome::plain(Reason::NonIp).0,
        });
        let verdict = outcome.verdict((*config).flags & flags::ENFORCE != 0);
        counters::count(cpu, outcome, verdict, bytes);
        let sample = counters::sample_is_due(cpu);
        let event = counters::event_is_due(cpu, verdict);
        if sample || event {
            let family = match packet.kind() {
                Kind::V4 => 4_u64,
                Kind::V6 => 6,
                _ => 0,
            };
            let seen = Seen {
                key,
                bytes,
                outcome: outcome.0,
                small: verdict as u64
                    | family << 8
                    | (packet.protocol() as u64) << 16
                    | (packet.syn() as u64) << 24,
            };
            if sample {
                counters::sample(&raw const seen);
            }
            if event {
                counters::event(&raw const seen);
            }
        }
        verdict
    }
}

#[inline(always)]
unsafe fn malformed(config: *const Config) -> u64 {
    // SAFETY: a live map value.
    unsafe {
        let reason = if (*config).flags & flags::MALFORMED_BUDGET == 0 {
            Reason::Malformed
        } else if first_seen::admit_malformed() != 0 {
            Reason::MalformedConforming
        } else {
            Reason::MalformedOver
        };
        Outcome::plain(reason).0
    }
}

/// Whether bit `index` of a table of words is set.
macro_rules! bit {
    ($table:expr, $words:expr, $index:expr) => {{
        let index: u32 = $index;
        match $table.get_ptr((index >> 6) & ($words - 1)) {
            Some(word) => (word.read_volatile() >> (index & 63)) & 1 != 0,
            None => false,
        }
    }};
}

#[inline(always)]
unsafe fn v4(cpu: *mut CpuState, config: *const Config, packet: &Packet, bytes: u64) -> u64 {
    // SAFETY: both are live map values; the zone is masked.
    unsafe {
        let address = packet.low as u32;
        let key = source::v4(address);
        let set = (*config).flags;
        let mut zone = 0;
        let mut further = false;
        if set & flags::PREFIXES != 0
            && let Some(coarse) = COARSE4.get_ptr(0)
        {
            zone = (*coarse).zones[(address >> 16) as usize];
            if zone == LOOK_FURTHER {
                zone = 0;
                further |= bit!(FINE4, FINE_WORDS, fine4_bit(address));
            }
        }
        if set & flags::PROMOTED != 0 {
            further |= bit!(PROMOTED, PROMOTED_WORDS, source::promoted_bit(key));
        }
        let hash = perm32(&(*config).perm, address);
        let zone = zone as u64 & (ZONE_COUNT as u64 - 1);
        if !further && set & flags::GENERIC == 0 {
            let cache = &raw mut (*cpu).zones[zone as usize];
            if (*cache).at_ns == (*cpu).now_ns && (*cache).units == PACKETS_ONLY {
                match crowd4::charge_home((&raw const (*cache).unit).cast(), hash) {
                    Some(true) => {
                        let mode = (*cache).modes;
                        return Outcome::judged((*cache).label, Reason::Conforming, mode).0;
                    }
                    Some(false) if (*cpu).rereads_left == 0 => {
                        let mode = (*cache).modes;
                        return Outcome::judged((*cache).label, Reason::OverPackets, mode).0;
                    }
                    _ => {}
                }
            }
        }
        let mut arrival = Arrival::new(config, packet, bytes, key, hash as u64, zone);
        if further {
            let outcome = tracked::judge_tracked(&raw mut arrival);
            if outcome != tracked::TO_THE_CROWD {
                return outcome;
            }
        }
        crowd4::judge4(&raw mut arrival)
    }
}

#[inline(always)]
unsafe fn v6(
    cpu: *mut CpuState,
    config: *const Config,
    packet: &Packet,
    bytes: u64,
    key: u64,
) -> u64 {
    // SAFETY: both are live map values; the zone is masked.
    unsafe {
        let set = (*config).flags;
        let mut zone = 0;
        let mut further = false;
        if set & flags::PREFIXES != 0
            && let Some(coarse) = COARSE6.get_ptr(0)
        {
            zone = (*coarse).zones[(packet.high >> 48) as usize];
            if zone == LOOK_FURTHER {
                zone = 0;
                further |= bit!(FINE6, FINE_WORDS, fine6_bit((packet.high >> 32) as u32));
            }
        }
        if set & flags::PROMOTED != 0 {
            further |= bit!(PROMOTED, PROMOTED_WORDS, source::promoted_bit(key));
        }
        let hash = perm64(&(*config).perm, key);
        let zone = zone as u64 & (ZONE_COUNT as u64 - 1);
        if !further && set & flags::GENERIC == 0 {
            let cache = &raw mut (*cpu).zones[zone as usize];
            if (*cache).at_ns == (*cpu).now_ns && (*cache).units == PACKETS_ONLY {
                match crowd6::charge_home((&raw const (*cache).unit).cast(), key, hash) {
                    Some(true) => {
                        let mode = (*cache).modes;
                        return Outcome::judged((*cache).label, Reason::Conforming, mode).0;
                    }
                    Some(false) if (*cpu).rereads_left == 0 => {
                        let mode = (*cache).modes;
                        return Outcome::judged((*cache).label, Reason::OverPackets, mode).0;
                    }
                    _ => {}
                }
            }
        }
        let mut arrival = Arrival::new(config, packet, bytes, key, hash, zone);
        if further {
            let outcome = tracked::judge_tracked(&raw mut arrival);
            if outcome != tracked::TO_THE_CROWD {
                return outcome;
            }
        }
        crowd6::judge6(&raw mut arrival)
    }
}
