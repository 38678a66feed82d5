//! The order of the steps for one packet. A plain packet of the crowd under a packet quota goes in a
//! straight line, here and in `straight`; everything else is a call.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use ratelimiter_common::abi::config::flags;
use ratelimiter_common::parse::{Kind, Packet, parse_into, plain4, plain6};
use ratelimiter_common::verdict::{Reason, Verdict};

use crate::outcome::Outcome;
use crate::packet::Frame;
use crate::place::{Place, place4, place6};
use crate::scratch::{self, Arrival, put};
use crate::straight::{self, Charge};
use crate::{atomic, clock, counters, crowd4, crowd6, first_seen, lookup, tracked};

/// Judges a packet and counts it, whatever it is. For `GUARDED` see [`Frame`].
#[inline(always)]
pub(crate) fn limit<const GUARDED: bool>(ctx: &XdpContext) -> Verdict {
    // Both always exist: the verifier wants to hear that we checked.
    let (Some(cpu), Some(config)) = (lookup::cpu(), lookup::config()) else {
        return Verdict::Pass;
    };
    // SAFETY: map values, alive while the program runs; one CPU runs one packet at a time.
    unsafe {
        clock::tick(cpu);
        let set = (*config).flags as u64;
        let frame = Frame::<GUARDED>::of(ctx, cpu);
        let outcome = if let Some(packet) = plain4(&frame) {
            match place4(cpu, config, set, packet) {
                Place::Crowd { zone, hash, .. } => {
                    match straight::charge4::<GUARDED>(cpu, set, zone, hash) {
                        Charge::Conforming(cache) => return counters::conforming(cpu, cache),
                        Charge::Over(cache) => return counters::over(cpu, cache),
                        Charge::Search => straight::search4(),
                        Charge::Judge => crowd4::judge4(),
                    }
                }
                _ => further4(),
            }
        } else if let Some(packet) = plain6(&frame) {
            match place6(cpu, config, set, packet) {
                Place::Crowd { zone, key, hash } => {
                    match straight::charge6::<GUARDED>(cpu, set, zone, key, hash) {
                        Charge::Conforming(cache) => return counters::conforming(cpu, cache),
                        Charge::Over(cache) => return counters::over(cpu, cache),
                        Charge::Search | Charge::Judge => crowd6::judge6(),
                    }
                }
                Place::Further => further6(),
                Place::Malformed => malformed(),
            }
        } else {
            other(ctx.ctx)
        };
        let bytes = (&raw const (*scratch::arrival(cpu)).bytes).read_volatile();
        // One path from here on.
        let outcome = Outcome(atomic::forget64(outcome, bytes));
        let verdict = outcome.verdict(set & flags::ENFORCE as u64 != 0);
        counters::count(cpu, outcome, verdict, bytes);
        counters::tell(cpu, outcome, verdict);
        verdict
    }
}

/// Judges every frame that is not plain, once it is measured. The verifier follows a function of its
/// own once, whichever way it is called.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn other(ctx: *mut xdp_md) -> u64 {
    let (Some(cpu), Some(config)) = (lookup::cpu(), lookup::config()) else {
        return 0;
    };
    let ctx = XdpContext::new(ctx);
    // SAFETY: both are live map values.
    unsafe {
        let arrival = scratch::arrival(cpu);
        {
            let frame = Frame::<true>::measured(&ctx, cpu);
            put(&raw mut (*arrival).key, 0);
            Arrival::put_packet(arrival, Packet::MALFORMED);
            parse_into(&frame, &mut (*arrival).packet);
        }
        let packet = Arrival::packet(arrival);
        let set = (*config).flags as u64;
        match packet.kind() {
            Kind::V4 => match place4(cpu, config, set, packet) {
                Place::Crowd { .. } => crowd4::judge4(),
                _ => further4(),
            },
            Kind::V6 => match place6(cpu, config, set, packet) {
                Place::Crowd { .. } => crowd6::judge6(),
                Place::Further => further6(),
                Place::Malformed => malformed(),
            },
            Kind::Malformed => malformed(),
            Kind::Control => Outcome::plain(Reason::ControlTraffic).0,
            Kind::NonIp => Outcome::plain(Reason::NonIp).0,
        }
    }
}

/// Judges an IPv4 source that may be tracked or listed.
#[inline(always)]
fn further4() -> u64 {
    let outcome = tracked::judge_tracked();
    if outcome == tracked::TO_THE_CROWD {
        crowd4::judge4()
    } else {
        outcome
    }
}

/// Judges an IPv6 source that may be tracked or listed.
#[inline(always)]
fn further6() -> u64 {
    let outcome = tracked::judge_tracked();
    if outcome == tracked::TO_THE_CROWD {
        crowd6::judge6()
    } else {
        outcome
    }
}

/// Judges a frame that is broken, or comes from where no host may.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn malformed() -> u64 {
    let Some(config) = lookup::config() else {
        return 0;
    };
    // SAFETY: a live map value.
    let set = unsafe { (*config).flags };
    let reason = if set & flags::MALFORMED_BUDGET == 0 {
        Reason::Malformed
    } else if first_seen::admit_malformed() != 0 {
        Reason::MalformedConforming
    } else {
        Reason::MalformedOver
    };
    Outcome::plain(reason).0
}
