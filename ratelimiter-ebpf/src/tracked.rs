//! Sources with a bucket of their own in the LRU hash, and what sends a packet there.
//!
//! A packet never inserts: only the agent does. An entry remembers the policy it was resolved to and
//! the prefix generation of that; on another generation the next packet walks the trie and stores
//! what it finds. A source that moves to another policy has its debt converted, once, by the CPU
//! that wins the binding.

use ratelimiter_common::abi::config::{ZONES as ZONE_COUNT, flags};
use ratelimiter_common::abi::counters::{CpuState, UnitCache};
use ratelimiter_common::abi::policy::{PolicyEntry, action};
use ratelimiter_common::abi::tracked::{
    ALLOWED, BLOCKED, DEBT_SLACK_NS, LIMITED, MOVING, SLOT_MASK, TAT_BITS, Tracked, binding,
    shared_key,
};
use ratelimiter_common::crowd::Sign as _;
use ratelimiter_common::verdict::{Mode, Reason};

use crate::atomic::{each_unit, fence};
use crate::bucket::{Shift, TRIES, Table, charge, cost, look_of, state};
use crate::known::{GENERAL, charge_packets};
use crate::outcome::{NO_ZONE, Outcome};
use crate::policy::{entry_at, in_force, place_of, resolve, segment_ns};
use crate::rebind::rebind;
use crate::scratch::{self, Arrival, UNIT_SLOTS, put};
use crate::{atomic, clock, lookup};

/// The TAT of a tracked word.
pub(crate) const TAT_MASK: u64 = (1 << TAT_BITS) - 1;
/// Bits of [`Tracked::binding`] that say what the source is.
pub(crate) const STATE_MASK: u32 = !SLOT_MASK;
/// One demand window.
const DEMAND_WINDOW_NS: u64 = 1_000_000_000;
/// Not an outcome: the crowd judges, in the zone now in [`Arrival::zone`].
pub(crate) const TO_THE_CROWD: u64 = u64::MAX;

/// A tracked TAT word.
#[inline(always)]
pub(crate) const fn pack(tag: u32, tat: u64) -> u64 {
    (tag as u64) << TAT_BITS | (tat & TAT_MASK)
}

/// The word of a unit.
#[inline(always)]
pub(crate) unsafe fn cell(tracked: *mut Tracked, unit: usize) -> *mut u64 {
    // SAFETY: `tracked` is a live map value, and behind the words lies more of it.
    unsafe {
        let words: *mut u64 = (&raw mut (*tracked).tats).cast();
        words.add(unit & (UNIT_SLOTS - 1))
    }
}

/// What the clock of a unit reads.
#[inline(always)]
pub(crate) unsafe fn clock_of(cpu: *mut CpuState, unit: usize) -> *mut UnitCache {
    // SAFETY: `cpu` is this CPU's map value; the index is masked.
    unsafe { &raw mut (*scratch::of(cpu)).clocks[unit & (UNIT_SLOTS - 1)] }
}

/// Looks at a tracked bucket. Of the clock, `base4` is the policy's tag. Without a branch: see
/// [`state`].
#[inline(always)]
pub(crate) unsafe fn look(cpu: *mut CpuState, tracked: *mut Tracked, unit: usize) -> u32 {
    // SAFETY: `tracked` is a live map value; `unit` is below `UNIT_SLOTS`.
    unsafe {
        let clock = clock_of(cpu, unit);
        let word = atomic::load(cell(tracked, unit));
        let (now, tag) = ((*clock).now, (*clock).base4);
        let distance = word.wrapping_sub(now) & TAT_MASK;
        // What is compared is below 2^63, so a difference's sign is the order.
        let idle = Shift::mask((*clock).cap.wrapping_sub(distance)) | !any_bit(word);
        let after = (distance & !idle) + cost(cpu, unit as u32);
        let over = Shift::mask((*clock).burst.wrapping_sub(after)) & 1;
        let out = look_of(cpu, unit as u32);
        put(&raw mut (*out).word, word);
        put(&raw mut (*out).next, pack(tag, now.wrapping_add(after)));
        let fits_or_not = state::FITS as u64 + over;
        let foreign = foreign(word, tag);
        ((fits_or_not & !foreign) | (state::CHANGED as u64 & foreign)) as u32
    }
}
const _: () = assert!(state::FITS + 1 == state::OVER);

/// All ones unless `x` is zero.
#[inline(always)]
fn any_bit(x: u64) -> u64 {
    Shift::mask(x | 0_u64.wrapping_sub(x))
}

/// All ones if a word was charged on the clock of another policy than that of `tag`.
#[inline(always)]
pub(crate) fn foreign(word: u64, tag: u32) -> u64 {
    any_bit(word) & any_bit((word >> TAT_BITS) ^ tag as u64)
}

/// Charges a look; false if somebody else changed the word first.
#[inline(always)]
pub(crate) unsafe fn commit(cpu: *mut CpuState, tracked: *mut Tracked, unit: usize) -> bool {
    // SAFETY: as `look`.
    unsafe {
        let look = look_of(cpu, unit as u32);
        atomic::swap_if(cell(tracked, unit), (*look).word, (*look).next)
    }
}

/// Gives back charges of some units of the entry of `key`: the TAT itself is lowered, whatever the
/// clock reads. After the last try a charge stands.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn give_back(key: u64, units: u32) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return 0;
    };
    // SAFETY: live map values.
    unsafe {
        let Some(tracked) = lookup::tracked(scratch::of(cpu), key) else {
            return 0;
        };
        each_unit!('unit, unit, {
            if units >> unit & 1 == 0 {
                break 'unit;
            }
            let cost = cost(cpu, unit as u32);
            let cell = cell(tracked, unit);
            let mut tries = 0;
            while tries < TRIES {
                tries += 1;
                let word = atomic::load(cell);
                let lowered = pack((word >> TAT_BITS) as u32, word.wrapping_sub(cost));
                if word == 0 || atomic::swap_if(cell, word, lowered) {
                    break;
                }
                fence();
            }
        });
    }
    0
}

/// Fills in what the clocks of the policy at `place` read now, in the scratch. Returns the limited units in bits 0..8
/// and their modes in bits 8..16.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_clocks(place: u32, eighths: u32) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return 0;
    };
    // SAFETY: this CPU's map value; entries are immutable.
    unsafe {
        let Some(policy) = entry_at(cpu, place) else {
            return 0;
        };
        let now_ns = (*cpu).now_ns;
        let segment_ns = segment_ns(cpu, (*policy).segment);
        let tag = (*policy).tag;
        let eighths = eighths as u64 & 63;
        let mut read = 0;
        each_unit!('unit, unit, {
            if (*policy).units >> unit & 1 == 0 {
                break 'unit;
            }
            let clock = &raw const (*policy).clocks[unit];
            let Some(piece) = in_force(&raw const (*clock).pieces, now_ns) else {
                break 'unit;
            };
            let piece = &*piece;
            let mode = piece.mode & 3;
            if mode == Mode::Off as u32 {
                break 'unit;
            }
            read |= 1 << unit | mode << (8 + 2 * unit);
            let out = clock_of(cpu, unit);
            (*out).now = piece.at(segment_ns);
            (*out).burst = (piece.burst * eighths) >> 3;
            (*out).cap = (piece.debt_cap(DEBT_SLACK_NS) * eighths) >> 3;
            (*out).base4 = tag;
            read = atomic::forget(read, now_ns);
        });
        atomic::forget(read, now_ns)
    }
}

/// Judges a source that may be tracked or listed: its own entry first, unless `own` is 0, then the
/// prefixes. [`TO_THE_CROWD`] when neither says anything.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_tracked(own: u32) -> u64 {
    let (Some(cpu), Some(config)) = (lookup::cpu(), lookup::config()) else {
        return TO_THE_CROWD;
    };
    // SAFETY: live map values.
    unsafe {
        let arrival = scratch::arrival(cpu);
        Arrival::price(arrival, config);
        let outcome = if own == 0 {
            TO_THE_CROWD
        } else {
            judge_own((*arrival).key)
        };
        if outcome != TO_THE_CROWD || (*config).flags & flags::PREFIXES == 0 {
            return outcome;
        }
        let meaning = resolve(0);
        put(&raw mut (*arrival).zone, 0);
        match meaning.action() {
            action::ALLOW => Outcome::plain(Reason::AllowListed).0,
            action::BLOCK => Outcome::plain(Reason::Blocked).0,
            action::SHARED => {
                let (key, slot) = (shared_key(meaning.slot()), meaning.slot() as u64);
                judge_again(judge_entry(key, slot, 1), key, slot)
            }
            action::ZONE => {
                if meaning.slot() < ZONE_COUNT as u32 {
                    put(&raw mut (*arrival).zone, meaning.slot() as u64);
                }
                TO_THE_CROWD
            }
            _ => TO_THE_CROWD,
        }
    }
}

/// Judges a source by its own entry, if it has one.
#[inline(always)]
fn judge_own(key: u64) -> u64 {
    let mut outcome = judge_entry(key, OWN, 1);
    if outcome == STALE {
        match rebind() as u32 & STATE_MASK {
            LIMITED => {}
            ALLOWED => return Outcome::plain(Reason::AllowListed).0,
            BLOCKED => return Outcome::plain(Reason::Blocked).0,
            MOVING => return contended(0),
            _ => return TO_THE_CROWD,
        }
        outcome = judge_entry(key, RESOLVED, 1);
    }
    judge_again(outcome, key, RESOLVED)
}

/// Judges an entry until the outcome is one.
#[inline(always)]
fn judge_again(first: u64, key: u64, slot: u64) -> u64 {
    let mut outcome = first;
    let mut tries = 1;
    while tries < TRIES {
        tries += 1;
        let again = outcome == AGAIN || (outcome < AGAIN && Outcome(outcome).is_contended());
        if !again {
            break;
        }
        outcome = judge_entry(key, slot, 0);
        fence();
    }
    outcome
}

/// In place of a slot: the entry knows its policy itself, if it was resolved under this generation.
const OWN: u64 = u64::MAX;
/// In place of a slot: the entry knows its policy itself, whatever the generation.
const RESOLVED: u64 = u64::MAX - 1;
/// Not an outcome: resolve the source anew.
const STALE: u64 = u64::MAX - 1;
/// Not an outcome: the clock was read again, so judge again.
const AGAIN: u64 = u64::MAX - 2;

/// Judges a source by the entry of `key`: its own, or the one bucket of the client in `slot`, whose
/// policy is the slot's whatever the entry remembers. `first` is 0 when the packet was counted as
/// offered already.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_entry(key: u64, slot: u64, first: u64) -> u64 {
    let (Some(cpu), Some(config)) = (lookup::cpu(), lookup::config()) else {
        return TO_THE_CROWD;
    };
    // SAFETY: live map values.
    unsafe {
        let Some(tracked) = lookup::tracked(scratch::of(cpu), key) else {
            return TO_THE_CROWD;
        };
        let mut bound = atomic::load(&raw const (*tracked).binding);
        if slot < RESOLVED {
            bound = binding(slot as u32, LIMITED, 0);
        } else if slot == OWN && (bound >> 32) as u32 != (*config).prefix_generation {
            return STALE;
        }
        match bound as u32 & STATE_MASK {
            LIMITED => charge_tracked(cpu, tracked, key, bound as u32 & SLOT_MASK, first),
            ALLOWED => Outcome::plain(Reason::AllowListed).0,
            BLOCKED => Outcome::plain(Reason::Blocked).0,
            MOVING => contended(bound),
            _ => TO_THE_CROWD,
        }
    }
}

/// `value * scale / 65536` without overflow for what fits a TAT.
#[inline(always)]
pub(crate) const fn scaled(value: u64, scale: u64) -> u64 {
    (value >> 16).wrapping_mul(scale) + (((value & 0xffff) * scale) >> 16)
}

#[inline(always)]
const fn contended(bound: u64) -> u64 {
    let label = Outcome::label(bound as u32 & SLOT_MASK, 0, NO_ZONE);
    Outcome::judged(label, Reason::Contended, Mode::Enforce as u32).0
}

/// Charges a tracked entry by the policy it is bound to.
#[inline(always)]
unsafe fn charge_tracked(
    cpu: *mut CpuState,
    tracked: *mut Tracked,
    key: u64,
    slot: u32,
    first: u64,
) -> u64 {
    // SAFETY: `tracked` is a live map value; its words change by atomic instructions only.
    unsafe {
        let place = place_of(cpu, slot);
        let Some(policy) = entry_at(cpu, place) else {
            return TO_THE_CROWD;
        };
        let arrival = scratch::arrival(cpu);
        let packets = (*arrival).costs[0] >> 8;
        if first != 0 {
            count_offered(cpu, packets, tracked);
        }
        let label = Outcome::label(slot, (*policy).segment, NO_ZONE);
        let charged = charge_entry(cpu, tracked, policy, label);
        // One path from here on.
        let mut outcome = Outcome(atomic::forget64(charged, (*cpu).now_ns));
        if outcome.0 == GENERAL {
            let tag = (*policy).tag;
            let read = read_entry(cpu, tracked, place);
            let (limited, modes) = (read & 0xff, read >> 8);
            if limited == 0 {
                return Outcome::judged(label, Reason::Off, Mode::Off as u32).0;
            }
            let mut strange = 0;
            each_unit!('_unit, unit, {
                let word = atomic::load(cell(tracked, unit));
                strange |= foreign(word, tag) & (1 << unit);
            });
            if strange as u32 & limited != 0 && owe_burst(key, strange as u32 & limited, slot) == 0
            {
                return contended(slot as u64);
            }
            let scale = (*tracked).cost_scale as u64;
            if scale > ONE_TO_ONE {
                for cost in &mut (*arrival).costs {
                    let offered = (cost as *mut u64).read_volatile();
                    put(cost, (offered * scale) >> 16);
                }
            }
            outcome = charge(Table::Tracked(tracked, key), cpu, limited, modes, label);
            if scale > ONE_TO_ONE
                && let Some(config) = lookup::config()
            {
                Arrival::price(arrival, config);
            }
        }
        if outcome.refuses() {
            if first != 0 && !outcome.is_contended() && clock::reread(cpu) {
                return AGAIN;
            }
        } else {
            let syn = (*arrival).costs[2] != 0;
            count_admitted(tracked, packets, (*arrival).bytes, syn);
        }
        outcome.0
    }
}

/// [`charge_packets`] of the packet that was written down.
#[inline(never)]
unsafe fn charge_entry(
    cpu: *mut CpuState,
    tracked: *mut Tracked,
    policy: *const PolicyEntry,
    label: u64,
) -> u64 {
    // SAFETY: live map values.
    unsafe { charge_packets(cpu, tracked, policy, label, cost(cpu, 0)) }
}

/// Deals with the words of `units` that stand on a clock nobody knows any more: unless the source is
/// just moving or no longer bound to `slot`, when 0 is returned, they owe a burst. Never a second
/// one, never more than it takes to refill.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn owe_burst(key: u64, units: u32, slot: u32) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return 0;
    };
    // SAFETY: live map values.
    unsafe {
        let Some(tracked) = lookup::tracked(scratch::of(cpu), key) else {
            return 0;
        };
        each_unit!('unit, unit, {
            if units >> unit & 1 == 0 {
                break 'unit;
            }
            let cell = cell(tracked, unit);
            let word = atomic::load(cell);
            let bound = atomic::load(&raw const (*tracked).binding);
            // Read after the word: a source that moved since this packet was bound stands on a clock
            // that is well known, only not to this packet.
            if bound as u32 & STATE_MASK == MOVING || bound as u32 & SLOT_MASK != slot {
                return 0;
            }
            let clock = clock_of(cpu, unit);
            let tag = (*clock).base4;
            if foreign(word, tag) != 0 {
                let tat = (*clock).now.wrapping_add((*clock).burst);
                atomic::swap_if(cell, word, pack(tag, tat));
            }
        });
    }
    1
}

/// A cost scale of one.
pub(crate) const ONE_TO_ONE: u64 = 1 << 16;

/// [`read_clocks`] for one entry: its adaptive window widens the burst, and its cost scale divides
/// the rate but not the burst, so what is compared with scaled costs and debts is scaled too.
#[inline(always)]
pub(crate) unsafe fn read_entry(cpu: *mut CpuState, tracked: *const Tracked, place: u32) -> u32 {
    // SAFETY: live map values.
    unsafe {
        let configured = (*tracked).window_eighths & 63;
        let eighths = if configured == 0 { 8 } else { configured };
        let read = read_clocks(place, eighths);
        let scale = (*tracked).cost_scale as u64;
        if scale > ONE_TO_ONE {
            each_unit!('_unit, unit, {
                let clock = clock_of(cpu, unit);
                (*clock).burst = scaled((*clock).burst, scale);
                (*clock).cap = scaled((*clock).cap, scale);
            });
        }
        read
    }
}

/// Counts what was admitted.
#[inline(always)]
pub(crate) unsafe fn count_admitted(tracked: *mut Tracked, packets: u64, bytes: u64, syn: bool) {
    // SAFETY: as `charge_tracked`.
    unsafe {
        atomic::add(&raw mut (*tracked).admitted, packets);
        atomic::add(&raw mut (*tracked).admitted_bytes, bytes);
        if syn {
            atomic::add(&raw mut (*tracked).admitted_connections, 1);
        }
    }
}

/// Counts the packet as offered, and closes the demand window when it is over.
#[inline(always)]
pub(crate) unsafe fn count_offered(cpu: *mut CpuState, packets: u64, tracked: *mut Tracked) {
    // SAFETY: as `charge_tracked`.
    unsafe {
        atomic::add(&raw mut (*tracked).offered, packets);
        let now_ns = (*cpu).now_ns;
        let since = &raw mut (*tracked).demand_since_ns;
        let began = atomic::load(since);
        let elapsed = now_ns.wrapping_sub(began);
        // The clock of another CPU may be ahead of ours: then the window is young.
        if elapsed >= DEMAND_WINDOW_NS
            && (elapsed as i64) > 0
            && atomic::swap_if(since, began, now_ns)
        {
            let offered = atomic::load(&raw const (*tracked).offered);
            let before = atomic::load(&raw const (*tracked).offered_before);
            let milliseconds = elapsed / 1_000_000;
            let demand = offered.wrapping_sub(before).wrapping_mul(1_000);
            if let Some(per_s) = demand.checked_div(milliseconds) {
                (&raw mut (*tracked).demand_per_s).write_volatile(per_s);
            }
            (&raw mut (*tracked).offered_before).write_volatile(offered);
        }
    }
}
