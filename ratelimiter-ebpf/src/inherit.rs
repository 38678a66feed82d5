//! A source that gets a bucket of its own: what it owes in the crowd goes with it, so that nobody is
//! given a second burst by becoming a client.

use ratelimiter_common::abi::config::{ZONES as ZONE_COUNT, flags};
use ratelimiter_common::abi::merge::{MergeOp, result};
use ratelimiter_common::abi::policy::action;
use ratelimiter_common::parse::Packet;
use ratelimiter_common::source;

use crate::atomic::{self, each_unit, fence};
use crate::bucket::TRIES;
use crate::lookup;
use crate::merge::{arrive, bound, crowd_debt, owed, zone_unit};
use crate::place::{Place, place4, place6};
use crate::policy::{self, resolve};
use crate::scratch::{self, Arrival};
use crate::tracked::{cell, clock_of, pack};

/// Not a zone: the source is not of the crowd.
const NOWHERE: u32 = ZONE_COUNT as u32;

/// Raises the debts of the tracked source of `key`, in the units of the set `limited`, to what the
/// packet in the scratch owes in its zone of the crowd, but to no more than a burst. The source's
/// clocks are in the scratch, `tag` is that of its policy.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn carry(key: u64, limited: u32, tag: u32) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return result::REFUSED;
    };
    // SAFETY: live map values.
    unsafe {
        let Some(tracked) = lookup::tracked(scratch::of(cpu), key) else {
            return result::ABSENT;
        };
        let zone = policy::zone_cache(cpu, (*scratch::arrival(cpu)).zone);
        each_unit!('unit, unit, {
            if limited >> unit & 1 == 0 || (*zone).units >> unit & 1 == 0 {
                break 'unit;
            }
            let Some(was) = crowd_debt(cpu, zone_unit(zone, unit)) else {
                break 'unit;
            };
            let clock = clock_of(cpu, unit);
            let was = if was > (*clock).burst { (*clock).burst } else { was };
            let cell = cell(tracked, unit);
            let mut tries = 0;
            while tries < TRIES {
                tries += 1;
                let word = atomic::load(cell);
                let tat = pack(tag, (*clock).now.wrapping_add(was));
                let more = match owed(word, tag, clock) {
                    Some(owed) => was > owed,
                    None => true,
                };
                if !more || atomic::swap_if(cell, word, tat) {
                    break;
                }
                fence();
            }
        });
    }
    result::DONE
}

/// Carries the debts of a tracked source over from the crowd. The zone it comes from is in `slot`, one
/// more than its number; if that is 0, the zone is the one that the prefixes say now, and `level`
/// answers it likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn inherit(op: *mut MergeOp) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return result::REFUSED;
    };
    // SAFETY: what is not null is on the caller's stack.
    unsafe {
        let Some(op) = op.as_mut() else {
            return result::REFUSED;
        };
        let zone = if op.slot == 0 {
            zone_of(op.key, op.family)
        } else {
            op.slot.wrapping_sub(1)
        };
        op.level = zone as u64 + 1;
        if zone >= NOWHERE {
            return result::DONE;
        }
        let Some(tracked) = lookup::tracked(scratch::of(cpu), op.key) else {
            return result::ABSENT;
        };
        let Some((tag, limited)) = bound(cpu, tracked) else {
            return result::REFUSED;
        };
        if arrive(cpu, op, zone).is_none() {
            return result::REFUSED;
        }
        carry(op.key, limited, tag)
    }
}

/// The zone in which the prefixes put an untracked source; [`NOWHERE`] if they put it elsewhere.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zone_of(key: u64, family: u32) -> u32 {
    let (Some(cpu), Some(config)) = (lookup::cpu(), lookup::config()) else {
        return NOWHERE;
    };
    // SAFETY: live map values.
    unsafe {
        let set = (*config).flags as u64;
        let v4 = family == 4;
        let (high, low) = if v4 { (0, key) } else { source::top6(key) };
        let packet = Packet::from_parts(high, low, family as u64);
        Arrival::put_packet(scratch::arrival(cpu), packet);
        let place = if v4 {
            place4(cpu, set, key as u32)
        } else {
            place6(cpu, set, high, key)
        };
        if let Place::Crowd(zone) = place {
            return zone;
        }
        if set & flags::PREFIXES as u64 == 0 {
            return 0;
        }
        let meaning = resolve(0);
        match meaning.action() {
            action::ALLOW | action::BLOCK | action::SHARED => NOWHERE,
            action::ZONE if meaning.slot() < NOWHERE => meaning.slot(),
            _ => 0,
        }
    }
}
