//! The order of the steps for one packet. The common case, a source of the crowd in its home way
//! under a packet quota, is a straight line that touches no stack (see `lookup`); everything else is
//! a call.

use aya_ebpf::programs::XdpContext;
use ratelimiter_common::abi::config::{
    Config, FINE_WORDS, LOOK_FURTHER, PROMOTED_WORDS, ZONES as ZONE_COUNT, fine4_bit, fine6_bit,
    flags,
};
use ratelimiter_common::abi::counters::CpuState;
use ratelimiter_common::parse::{Kind, Packet, parse_into};
use ratelimiter_common::perm::{perm32, perm64};
use ratelimiter_common::source;
use ratelimiter_common::verdict::{Reason, Verdict};

use crate::maps::{COARSE4, COARSE6, FINE4, FINE6, PROMOTED};
use crate::outcome::Outcome;
use crate::packet::Frame;
use crate::scratch::{self, Arrival, put};
use crate::{atomic, clock, counters, crowd4, crowd6, first_seen, lookup, tracked};

/// The only unit limited is packets.
const PACKETS_ONLY: u32 = 1;

/// Judges a packet and counts it, whatever it is.
#[inline(always)]
pub(crate) fn limit(ctx: &XdpContext) -> Verdict {
    // It always exists: the verifier wants to hear that we checked.
    let Some(cpu) = lookup::cpu() else {
        return Verdict::Pass;
    };
    // SAFETY: a map value, alive while the program runs; one CPU runs one packet at a time.
    unsafe {
        clock::tick(cpu);
        let arrival = scratch::arrival(cpu);
        put(&raw mut (*arrival).key, 0);
        {
            let frame = Frame::of(ctx, cpu);
            put(&raw mut (*arrival).packet.high, 0);
            put(&raw mut (*arrival).packet.low, 0);
            put((*arrival).packet.facts_mut(), Packet::MALFORMED.facts());
            parse_into(&frame, &mut (*arrival).packet);
        }
        let Some(config) = lookup::config() else {
            return Verdict::Pass;
        };
        let set = (*config).flags;
        put(&raw mut (*scratch::of(cpu)).flags, set);
        let outcome = match Arrival::packet(arrival).kind() {
            Kind::V4 => v4(cpu, config),
            Kind::V6 => v6(cpu, config),
            Kind::Malformed => malformed(set),
            Kind::Control => Outcome::plain(Reason::ControlTraffic).0,
            Kind::NonIp => Outcome::plain(Reason::NonIp).0,
        };
        let bytes = (&raw const (*arrival).bytes).read_volatile();
        // One path from here on.
        let outcome = Outcome(atomic::forget64(outcome, bytes));
        let set = (&raw const (*scratch::of(cpu)).flags).read_volatile();
        let verdict = outcome.verdict(set & flags::ENFORCE != 0);
        counters::count(cpu, outcome, verdict, bytes);
        if counters::sample_is_due(cpu) {
            counters::sample(outcome.0, verdict as u32);
        }
        if counters::event_is_due(cpu, verdict) {
            counters::event(outcome.0, verdict as u32);
        }
        verdict
    }
}

#[inline(always)]
fn malformed(set: u32) -> u64 {
    let reason = if set & flags::MALFORMED_BUDGET == 0 {
        Reason::Malformed
    } else if first_seen::admit_malformed() != 0 {
        Reason::MalformedConforming
    } else {
        Reason::MalformedOver
    };
    Outcome::plain(reason).0
}

/// Whether bit `index` of a table of words is set.
macro_rules! bit {
    ($table:expr, $cpu:expr, $words:expr, $index:expr) => {{
        let index: u32 = $index;
        match lookup::element(&$table, scratch::of($cpu), (index >> 6) & ($words - 1)) {
            Some(word) => (word.read_volatile() >> (index & 63)) & 1 != 0,
            None => false,
        }
    }};
}

#[inline(always)]
unsafe fn v4(cpu: *mut CpuState, config: *const Config) -> u64 {
    // SAFETY: both are live map values; the zone is masked.
    unsafe {
        let arrival = scratch::arrival(cpu);
        let address = (&raw const (*arrival).packet.low).read_volatile() as u32;
        let key = source::v4(address);
        put(&raw mut (*arrival).key, key);
        let hash = perm32(&(*config).perm, address);
        put(&raw mut (*arrival).hash, hash as u64);
        let set = (*config).flags;
        let mut zone = 0;
        let mut further = false;
        if set & flags::PREFIXES != 0
            && let Some(coarse) = lookup::only(&COARSE4)
        {
            zone = (*coarse).zones[(address >> 16) as usize];
            if zone == LOOK_FURTHER {
                zone = 0;
                further |= bit!(FINE4, cpu, FINE_WORDS, fine4_bit(address));
            }
        }
        if set & flags::PROMOTED != 0 {
            let bit = source::promoted_bit(key);
            further |= bit!(PROMOTED, cpu, PROMOTED_WORDS, bit);
        }
        put(&raw mut (*arrival).zone, zone as u64);
        if further {
            let outcome = tracked::judge_tracked();
            if outcome != tracked::TO_THE_CROWD {
                return outcome;
            }
        } else if set & flags::GENERIC == 0 {
            // Read back: an unknown number, whichever way it came here.
            let zone = atomic::load(&raw const (*arrival).zone) as usize & (ZONE_COUNT - 1);
            let cache = &raw mut (*cpu).zones[zone];
            if (*cache).at_ns == (*cpu).now_ns && (*cache).units == PACKETS_ONLY {
                match crowd4::charge_home(cpu, (&raw const (*cache).unit).cast()) {
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
        crowd4::judge4()
    }
}

#[inline(always)]
unsafe fn v6(cpu: *mut CpuState, config: *const Config) -> u64 {
    // SAFETY: both are live map values; the zone is masked.
    unsafe {
        let arrival = scratch::arrival(cpu);
        let high = (&raw const (*arrival).packet.high).read_volatile();
        let low = (&raw const (*arrival).packet.low).read_volatile();
        let Some(key) = source::v6(high, low, (*config).v6_mask) else {
            return malformed((*config).flags);
        };
        put(&raw mut (*arrival).key, key);
        put(&raw mut (*arrival).hash, perm64(&(*config).perm, key));
        let set = (*config).flags;
        let mut zone = 0;
        let mut further = false;
        if set & flags::PREFIXES != 0
            && let Some(coarse) = lookup::only(&COARSE6)
        {
            // Read anew: a number of which nothing was found out meanwhile.
            let high = atomic::load(&raw const (*arrival).packet.high);
            zone = (*coarse).zones[(high >> 48) as usize];
            if zone == LOOK_FURTHER {
                zone = 0;
                further |= bit!(FINE6, cpu, FINE_WORDS, fine6_bit((high >> 32) as u32));
            }
        }
        if set & flags::PROMOTED != 0 {
            let bit = source::promoted_bit(key);
            further |= bit!(PROMOTED, cpu, PROMOTED_WORDS, bit);
        }
        put(&raw mut (*arrival).zone, zone as u64);
        if further {
            let outcome = tracked::judge_tracked();
            if outcome != tracked::TO_THE_CROWD {
                return outcome;
            }
        } else if set & flags::GENERIC == 0 {
            // Read back: an unknown number, whichever way it came here.
            let zone = atomic::load(&raw const (*arrival).zone) as usize & (ZONE_COUNT - 1);
            let cache = &raw mut (*cpu).zones[zone];
            if (*cache).at_ns == (*cpu).now_ns && (*cache).units == PACKETS_ONLY {
                match crowd6::charge_home(cpu, (&raw const (*cache).unit).cast()) {
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
        crowd6::judge6()
    }
}
