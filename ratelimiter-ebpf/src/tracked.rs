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
    ALLOWED, BLOCKED, CROWD, DEBT_SLACK_NS, LIMITED, MOVING, SLOT_MASK, TAT_BITS, Tracked, binding,
    shared_key,
};
use ratelimiter_common::crowd::debt;
use ratelimiter_common::vclock::UnitClock;
use ratelimiter_common::verdict::{Mode, Reason};

use crate::arrival::Arrival;
use crate::atomic::every_unit;
use crate::bucket::{Look, TRIES, Table, charge, state};
use crate::maps::{CONFIG, CPU, TRACKED, ZONES};
use crate::outcome::{NO_ZONE, Outcome};
use crate::policy::{entry, resolve, segment_ns};
use crate::{atomic, clock};

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

/// Looks at a tracked bucket. Of the clock, `base4` is the policy's tag.
#[inline(always)]
pub(crate) unsafe fn look(
    tracked: *mut Tracked,
    clock: *const UnitCache,
    unit: usize,
    cost: u64,
    out: *mut Look,
) -> u32 {
    // SAFETY: `tracked` is a live map value; `unit` is below `KERNEL_UNITS`.
    unsafe {
        let word = atomic::load((&raw const (*tracked).tats).cast::<u64>().add(unit));
        let tag = (*clock).base4;
        let owed = if word == 0 {
            0
        } else if word >> TAT_BITS == tag as u64 {
            debt(word, (*clock).now, (*clock).cap, TAT_MASK)
        } else {
            return state::CHANGED;
        };
        let after = owed + cost;
        if after > (*clock).burst {
            return state::OVER;
        }
        *out = Look {
            set: 0,
            way: 0,
            word,
            next: pack(tag, (*clock).now.wrapping_add(after)),
            own: 1,
        };
        state::FITS
    }
}

/// Charges a look; false if somebody else changed the word first.
#[inline(always)]
pub(crate) unsafe fn commit(tracked: *mut Tracked, unit: usize, look: *const Look) -> bool {
    // SAFETY: as `look`.
    unsafe {
        atomic::swap_if(
            (&raw mut (*tracked).tats).cast::<u64>().add(unit),
            (*look).word,
            (*look).next,
        )
    }
}

/// Gives back a charge: the TAT itself is lowered, whatever the clock reads. After the last try the
/// charge stands.
#[inline(always)]
pub(crate) unsafe fn give_back(tracked: *mut Tracked, unit: usize, cost: u64) {
    // SAFETY: as `look`.
    unsafe {
        let cell = (&raw mut (*tracked).tats).cast::<u64>().add(unit);
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let word = atomic::load(cell);
            let lowered = pack((word >> TAT_BITS) as u32, word.wrapping_sub(cost));
            if word == 0 || atomic::swap_if(cell, word, lowered) {
                return;
            }
        }
    }
}

/// Fills in what a policy's clocks read now. Returns the limited units and their modes.
#[inline(always)]
pub(crate) unsafe fn read_clocks(
    cpu: *mut CpuState,
    policy: *const PolicyEntry,
    eighths: u64,
    units: *mut UnitCache,
) -> (u32, u32) {
    // SAFETY: `units` has `KERNEL_UNITS` elements; entries are immutable.
    unsafe {
        let now_ns = (*cpu).now_ns;
        let segment_ns = segment_ns(cpu, (*policy).segment);
        let mut limited = 0;
        let mut modes = 0;
        let mut next = 0;
        while next < every_unit() {
            let unit = next;
            next += 1;
            if (*policy).units >> unit & 1 == 0 {
                continue;
            }
            let clock = (&raw const (*policy).clocks).cast::<UnitClock>().add(unit);
            let piece = (*clock).piece(now_ns);
            let mode = piece.mode & 3;
            if mode == Mode::Off as u32 {
                continue;
            }
            limited |= 1 << unit;
            modes |= mode << (2 * unit);
            let out = units.add(unit);
            (*out).now = piece.at(segment_ns);
            (*out).burst = (piece.burst * eighths) >> 3;
            (*out).cap = (piece.debt_cap(DEBT_SLACK_NS) * eighths) >> 3;
            (*out).base4 = (*policy).tag;
            limited = atomic::forget(limited, now_ns);
            modes = atomic::forget(modes, now_ns);
        }
        (
            atomic::forget(limited, now_ns),
            atomic::forget(modes, now_ns),
        )
    }
}

/// Judges a source that may be tracked or listed: its own entry first, then the prefixes.
/// [`TO_THE_CROWD`] when neither says anything.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_tracked(arrival: *mut Arrival) -> u64 {
    let Some(config) = CONFIG.get_ptr(0) else {
        return TO_THE_CROWD;
    };
    // SAFETY: what is not null is on the caller's stack.
    let Some(arrival) = (unsafe { arrival.as_mut() }) else {
        return TO_THE_CROWD;
    };
    let outcome = judge_own(arrival);
    // SAFETY: a live map value.
    if outcome != TO_THE_CROWD || unsafe { (*config).flags } & flags::PREFIXES == 0 {
        return outcome;
    }
    let meaning = resolve(arrival, 0);
    arrival.zone = 0;
    match meaning.action() {
        action::ALLOW => Outcome::plain(Reason::AllowListed).0,
        action::BLOCK => Outcome::plain(Reason::Blocked).0,
        action::SHARED => {
            let (key, slot) = (shared_key(meaning.slot()), meaning.slot() as u64);
            let outcome = judge_entry(arrival, key, slot, 1);
            if outcome == AGAIN {
                judge_entry(arrival, key, slot, 0)
            } else {
                outcome
            }
        }
        action::ZONE => {
            if meaning.slot() < ZONE_COUNT as u32 {
                arrival.zone = meaning.slot() as u64;
            }
            TO_THE_CROWD
        }
        _ => TO_THE_CROWD,
    }
}

/// Judges a source by its own entry, if it has one.
#[inline(always)]
fn judge_own(arrival: &mut Arrival) -> u64 {
    let mut outcome = judge_entry(arrival, arrival.key, OWN, 1);
    if outcome == STALE {
        match rebind(arrival) as u32 & STATE_MASK {
            LIMITED => {}
            ALLOWED => return Outcome::plain(Reason::AllowListed).0,
            BLOCKED => return Outcome::plain(Reason::Blocked).0,
            MOVING => return contended(0),
            _ => return TO_THE_CROWD,
        }
        outcome = judge_entry(arrival, arrival.key, RESOLVED, 1);
    }
    if outcome == AGAIN {
        outcome = judge_entry(arrival, arrival.key, RESOLVED, 0);
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
pub extern "C" fn judge_entry(arrival: *mut Arrival, key: u64, slot: u64, first: u64) -> u64 {
    let (Some(cpu), Some(config)) = (CPU.get_ptr_mut(0), CONFIG.get_ptr(0)) else {
        return TO_THE_CROWD;
    };
    // SAFETY: what is not null is on the caller's stack.
    let Some(arrival) = (unsafe { arrival.as_mut() }) else {
        return TO_THE_CROWD;
    };
    let Some(tracked) = TRACKED.get_ptr_mut(key) else {
        return TO_THE_CROWD;
    };
    // SAFETY: live map values.
    unsafe {
        let mut bound = atomic::load(&raw const (*tracked).binding);
        if slot < RESOLVED {
            bound = binding(slot as u32, LIMITED, 0);
        } else if slot == OWN && (bound >> 32) as u32 != (*config).prefix_generation {
            return STALE;
        }
        match bound as u32 & STATE_MASK {
            LIMITED => charge_tracked(cpu, arrival, tracked, bound as u32 & SLOT_MASK, first),
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
    arrival: &mut Arrival,
    tracked: *mut Tracked,
    slot: u32,
    first: u64,
) -> u64 {
    // SAFETY: `tracked` is a live map value; its words change by atomic instructions only.
    unsafe {
        let Some(policy) = entry(slot) else {
            return TO_THE_CROWD;
        };
        if first != 0 {
            count_offered(cpu, arrival, tracked);
        }
        let label = Outcome::label(slot, (*policy).segment, NO_ZONE);
        let clocks: *mut UnitCache = (&raw mut (*cpu).scratch[0]).cast();
        let (limited, modes) = read_entry(cpu, tracked, policy, clocks);
        if limited == 0 {
            return Outcome::judged(label, Reason::Off, Mode::Off as u32).0;
        }
        let tag = (*policy).tag as u64;
        let mut next = 0;
        while next < every_unit() {
            let unit = next;
            next += 1;
            let cell = (&raw mut (*tracked).tats).cast::<u64>().add(unit);
            let word = atomic::load(cell);
            if limited >> unit & 1 != 0 && word != 0 && word >> TAT_BITS != tag {
                // A clock nobody knows any more. Unless the source is just moving, it owes a burst:
                // never a second one, never more than it takes to refill.
                let now_bound = atomic::load(&raw const (*tracked).binding);
                if now_bound as u32 & STATE_MASK == MOVING {
                    return contended(slot as u64);
                }
                let clock = clocks.add(unit);
                let tat = (*clock).now.wrapping_add((*clock).burst);
                atomic::swap_if(cell, word, pack(tag as u32, tat));
            }
        }
        let offered = arrival.costs;
        let scale = (*tracked).cost_scale as u64;
        if scale > ONE_TO_ONE {
            for cost in &mut arrival.costs {
                *cost = (*cost * scale) >> 16;
            }
        }
        let looks: *mut Look = (&raw mut (*cpu).scratch[1]).cast();
        let table = Table::Tracked(tracked, clocks);
        let outcome = charge(table, looks, arrival, limited, modes, label);
        arrival.costs = offered;
        if outcome.refuses() {
            if first != 0 && clock::reread(cpu) {
                return AGAIN;
            }
        } else {
            let [packets, bytes, connections] = offered;
            atomic::add(&raw mut (*tracked).admitted, packets >> 8);
            atomic::add(&raw mut (*tracked).admitted_bytes, bytes);
            if connections != 0 {
                atomic::add(&raw mut (*tracked).admitted_connections, 1);
            }
        }
        outcome.0
    }
}

/// A cost scale of one.
pub(crate) const ONE_TO_ONE: u64 = 1 << 16;

/// [`read_clocks`] for one entry: its adaptive window widens the burst, and its cost scale divides
/// the rate but not the burst, so what is compared with scaled costs and debts is scaled too.
#[inline(always)]
pub(crate) unsafe fn read_entry(
    cpu: *mut CpuState,
    tracked: *const Tracked,
    policy: *const PolicyEntry,
    clocks: *mut UnitCache,
) -> (u32, u32) {
    // SAFETY: as `read_clocks`; `tracked` is a live map value.
    unsafe {
        let configured = (*tracked).window_eighths as u64 & 63;
        let eighths = if configured == 0 { 8 } else { configured };
        let read = read_clocks(cpu, policy, eighths, clocks);
        let scale = (*tracked).cost_scale as u64;
        if scale > ONE_TO_ONE {
            let mut next = 0;
            while next < every_unit() {
                let clock = clocks.add(next);
                next += 1;
                (*clock).burst = scaled((*clock).burst, scale);
                (*clock).cap = scaled((*clock).cap, scale);
            }
        }
        read
    }
}

/// Counts the packet as offered, and closes the demand window when it is over.
#[inline(always)]
unsafe fn count_offered(cpu: *mut CpuState, arrival: &Arrival, tracked: *mut Tracked) {
    // SAFETY: as `charge_tracked`.
    unsafe {
        let packets = arrival.costs[0] >> 8;
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
            let demand = atomic::load(&raw const (*tracked).demand);
            let milliseconds = elapsed / 1_000_000;
            if let Some(per_s) = (demand.wrapping_mul(1_000)).checked_div(milliseconds) {
                (&raw mut (*tracked).demand_per_s).write_volatile(per_s);
            }
            (&raw mut (*tracked).demand).write_volatile(packets);
        } else {
            atomic::add(&raw mut (*tracked).demand, packets);
        }
    }
}

/// Resolves a tracked source anew and stores what was found; returns the binding in force.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rebind(arrival: *const Arrival) -> u64 {
    let nothing = binding(0, CROWD, 0);
    let (Some(cpu), Some(config)) = (CPU.get_ptr_mut(0), CONFIG.get_ptr(0)) else {
        return nothing;
    };
    // SAFETY: what is not null is on the caller's stack.
    let Some(arrival) = (unsafe { arrival.as_ref() }) else {
        return nothing;
    };
    let Some(tracked) = TRACKED.get_ptr_mut(arrival.key) else {
        return nothing;
    };
    // SAFETY: live map values.
    unsafe {
        let cell = &raw mut (*tracked).binding;
        let old = atomic::load(cell);
        let old_state = old as u32 & STATE_MASK;
        if old_state == MOVING || old_state == CROWD {
            return old;
        }
        let generation = (*config).prefix_generation;
        let meaning = resolve(arrival, 1);
        // What ends by itself is looked up again by every packet until it has ended.
        let remembered = if meaning.ends() {
            generation.wrapping_sub(1)
        } else {
            generation
        };
        let old_slot = old as u32 & SLOT_MASK;
        let (slot, new_state) = match meaning.action() {
            action::ALLOW => (old_slot, ALLOWED),
            action::BLOCK => (old_slot, BLOCKED),
            // The client's one bucket judges, and this entry is not asked.
            action::SHARED => return binding(old_slot, CROWD, generation),
            action::TRACKED => (meaning.slot(), LIMITED),
            other => {
                let zone = if other == action::ZONE {
                    meaning.slot()
                } else {
                    0
                };
                let slot = match ZONES.get_ptr(zone & (ZONE_COUNT as u32 - 1)) {
                    Some(zone) => (*zone).slot,
                    None => old_slot,
                };
                (slot, LIMITED)
            }
        };
        let new = binding(slot, new_state, remembered);
        if slot & SLOT_MASK == old_slot {
            return if old == new || atomic::swap_if(cell, old, new) {
                new
            } else {
                moving(old)
            };
        }
        let Some(policy) = entry(slot) else {
            return binding(old_slot, CROWD, generation);
        };
        if !atomic::swap_if(cell, old, moving(old)) {
            return moving(old);
        }
        convert(cpu, tracked, old_slot, policy);
        atomic::store(cell, new);
        new
    }
}

const fn moving(old: u64) -> u64 {
    (old & !(STATE_MASK as u64)) | MOVING as u64
}

/// Carries the debts of a source over from the policy of `old_slot` to `policy`, in units.
#[inline(always)]
unsafe fn convert(
    cpu: *mut CpuState,
    tracked: *mut Tracked,
    old_slot: u32,
    policy: *const PolicyEntry,
) {
    // SAFETY: as `charge_tracked`.
    unsafe {
        let after: *mut UnitCache = (&raw mut (*cpu).scratch[0]).cast();
        let before: *mut UnitCache = (&raw mut (*cpu).scratch[1]).cast();
        let mut had = 0;
        let mut old_tag = 0;
        if let Some(old) = entry(old_slot) {
            had = read_clocks(cpu, old, 8, before).0;
            old_tag = (*old).tag as u64;
        }
        let has = read_clocks(cpu, policy, 8, after).0;
        let mut next = 0;
        while next < every_unit() {
            let unit = next;
            next += 1;
            let cell = (&raw mut (*tracked).tats).cast::<u64>().add(unit);
            let mut tries = 0;
            while tries < TRIES {
                tries += 1;
                let word = atomic::load(cell);
                let mut owed = (*after.add(unit)).burst;
                if had >> unit & 1 != 0 && word >> TAT_BITS == old_tag {
                    let was = debt(
                        word,
                        (*before.add(unit)).now,
                        (*before.add(unit)).cap,
                        TAT_MASK,
                    );
                    if was < owed {
                        owed = was;
                    }
                }
                let next = if word == 0 || has >> unit & 1 == 0 {
                    0
                } else {
                    pack((*policy).tag, (*after.add(unit)).now.wrapping_add(owed))
                };
                if atomic::swap_if(cell, word, next) {
                    break;
                }
            }
        }
    }
}
