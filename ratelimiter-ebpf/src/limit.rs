//! The order of the steps for one packet. A plain packet of the crowd under a packet quota goes in a
//! straight line, here and in `straight`, and leaves nothing behind; everything else is a call, before
//! which the packet is written down.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use ratelimiter_common::abi::config::flags;
use ratelimiter_common::parse::{Kind, Packet, parse_into, plain4, plain6};
use ratelimiter_common::perm::{perm32_wide, perm64};
use ratelimiter_common::source;
use ratelimiter_common::verdict::{Reason, Verdict};

use crate::outcome::Outcome;
use crate::packet::Frame;
use crate::place::{Place, place4, place6, write4, write6};
use crate::scratch::{self, Arrival, put};
use crate::straight::{self, Charge};
use crate::{atomic, clock, counters, crowd4, crowd6, first_seen, known, lookup, tracked};

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
            let address = packet.low as u32;
            match place4(cpu, set, address) {
                Place::Crowd(zone) => {
                    let hash = perm32_wide(&(*config).perm, address);
                    match straight::charge4::<GUARDED>(cpu, set, zone, hash) {
                        Charge::Conforming(cache) => return counters::conforming(ctx, cpu, cache),
                        Charge::Over(cache) => return counters::over(ctx, cpu, cache),
                        Charge::Search => straight::search4(ctx.ctx, hash, zone as u64),
                        Charge::Judge => {
                            write_down(ctx.ctx, zone as u64);
                            crowd4::judge4()
                        }
                    }
                }
                Place::Further => {
                    let said = known::judge_known(ctx.ctx, source::v4(address));
                    if known::is_outcome(said) {
                        said
                    } else {
                        write_down(ctx.ctx, 0);
                        further4(said)
                    }
                }
            }
        } else if let Some(packet) = plain6(&frame) {
            match source::v6(packet.high, packet.low, (*config).v6_mask) {
                Some(key) => match place6(cpu, set, packet.high, key) {
                    Place::Crowd(zone) => {
                        let hash = perm64(&(*config).perm, key);
                        match straight::charge6::<GUARDED>(cpu, set, zone, key, hash) {
                            Charge::Conforming(cache) => {
                                return counters::conforming(ctx, cpu, cache);
                            }
                            Charge::Over(cache) => return counters::over(ctx, cpu, cache),
                            Charge::Search | Charge::Judge => {
                                write_down(ctx.ctx, zone as u64);
                                crowd6::judge6()
                            }
                        }
                    }
                    Place::Further => {
                        let said = known::judge_known(ctx.ctx, key);
                        if known::is_outcome(said) {
                            said
                        } else {
                            write_down(ctx.ctx, 0);
                            further6(said)
                        }
                    }
                },
                None => malformed(),
            }
        } else {
            other(ctx.ctx)
        };
        let bytes = (&raw const (*scratch::arrival(cpu)).bytes).read_volatile();
        // One path from here on.
        let outcome = Outcome(atomic::forget64(outcome, bytes));
        let verdict = outcome.verdict(set & flags::ENFORCE as u64 != 0);
        counters::count(cpu, outcome, verdict, bytes);
        counters::tell(ctx, cpu, outcome, verdict);
        verdict
    }
}

/// Writes a plain packet down, which belongs to a zone, for those who come later: nothing of it is kept
/// on the straight way. Anything but a plain packet was written down by [`other`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn write_down(ctx: *mut xdp_md, zone: u64) -> u32 {
    let (Some(cpu), Some(config)) = (lookup::cpu(), lookup::config()) else {
        return 0;
    };
    let ctx = XdpContext::new(ctx);
    // SAFETY: both are live map values.
    unsafe {
        let arrival = scratch::arrival(cpu);
        let frame = Frame::<true>::measured(&ctx, cpu);
        if let Some(packet) = plain4(&frame) {
            Arrival::put_packet(arrival, packet);
            write4(cpu, config, packet.low as u32);
        } else if let Some(packet) = plain6(&frame) {
            Arrival::put_packet(arrival, packet);
            let key = source::v6(packet.high, packet.low, (*config).v6_mask);
            write6(cpu, config, key.unwrap_or(0));
        }
        put(&raw mut (*arrival).zone, zone);
    }
    0
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
            put(&raw mut (*arrival).zone, 0);
            Arrival::put_packet(arrival, Packet::MALFORMED);
            parse_into(&frame, &mut (*arrival).packet);
        }
        let packet = Arrival::packet(arrival);
        let set = (*config).flags as u64;
        match packet.kind() {
            Kind::V4 => {
                let address = packet.low as u32;
                write4(cpu, config, address);
                match place4(cpu, set, address) {
                    Place::Crowd(zone) => {
                        put(&raw mut (*arrival).zone, zone as u64);
                        crowd4::judge4()
                    }
                    Place::Further => further4(known::GENERAL),
                }
            }
            Kind::V6 => match source::v6(packet.high, packet.low, (*config).v6_mask) {
                Some(key) => {
                    write6(cpu, config, key);
                    match place6(cpu, set, packet.high, key) {
                        Place::Crowd(zone) => {
                            put(&raw mut (*arrival).zone, zone as u64);
                            crowd6::judge6()
                        }
                        Place::Further => further6(known::GENERAL),
                    }
                }
                None => malformed(),
            },
            Kind::Malformed => malformed(),
            Kind::Control => Outcome::plain(Reason::ControlTraffic).0,
            Kind::NonIp => Outcome::plain(Reason::NonIp).0,
        }
    }
}

/// Judges an IPv4 source that may be tracked or listed. `said` is what
/// [`known::judge_known`] did.
#[inline(always)]
fn further4(said: u64) -> u64 {
    let outcome = tracked::judge_tracked((said != tracked::TO_THE_CROWD) as u32);
    if outcome == tracked::TO_THE_CROWD {
        crowd4::judge4()
    } else {
        outcome
    }
}

/// Judges an IPv6 source that may be tracked or listed. `said` is what
/// [`known::judge_known`] did.
#[inline(always)]
fn further6(said: u64) -> u64 {
    let outcome = tracked::judge_tracked((said != tracked::TO_THE_CROWD) as u32);
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
