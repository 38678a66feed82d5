//! The IPv6 crowd: eight ways of key and state per set, on two cache lines.
//!
//! A way changes hands in three steps: its state, as scanned, is swapped to busy; the key is stored;
//! busy is cleared with the new TAT. A reader takes the state first and the key second, and then
//! swaps the state: it succeeds only if the way was not claimed in between, because a claim raises
//! the TAT and whatever lowers it raises the version. A source without a way waits while any way of
//! its set is busy: the way might be becoming its own.

use ratelimiter_common::abi::counters::{CpuState, UnitCache};
use ratelimiter_common::abi::crowd::{BUSY, TAT6_MASK, WAYS, Way6};
use ratelimiter_common::crowd::{charged6, debt, home6, lowered6, search6};

use crate::atomic::fence;
use crate::bucket::{Shift, Table, charge_zone, cost, fits, look_of, state, unit_cache};
use crate::maps::CROWD6;
use crate::scratch::{self, ONE};
use crate::straight::Home;
use crate::{atomic, lookup};

/// Times a source without a way looks again while some way of its set is busy.
const BUSY_TRIES: u32 = 8;

/// Finds the set of this CPU's packet, and its index.
#[inline(always)]
unsafe fn set_of(cpu: *mut CpuState, cache: *const UnitCache) -> (u32, Option<*mut Way6>) {
    // SAFETY: live map values.
    unsafe {
        let (_, hash) = source_of(cpu);
        let index = (*cache).base6 + (hash as u32 & (*cache).mask6);
        let set = lookup::element(&CROWD6, scratch::of(cpu), index);
        (index, set.map(<*mut _>::cast))
    }
}

/// The packet's key, and that under the bijection.
#[inline(always)]
unsafe fn source_of(cpu: *mut CpuState) -> (u64, u64) {
    // SAFETY: a live map value.
    unsafe {
        let arrival = scratch::arrival(cpu);
        (
            atomic::load(&raw const (*arrival).key),
            atomic::load(&raw const (*arrival).hash),
        )
    }
}

#[inline(always)]
unsafe fn state_of(way: *mut Way6) -> *mut u64 {
    // SAFETY: `way` points into a set.
    unsafe { &raw mut (*way).state }
}

#[inline(always)]
unsafe fn key_of(way: *mut Way6) -> u64 {
    // SAFETY: `way` points into a set.
    unsafe { atomic::load(&raw const (*way).key) }
}

/// Finds the source's way, or the victim's, and works out the state after the charge.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look6(unit: u32) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return state::CHANGED;
    };
    // SAFETY: this CPU's map value; ways are masked, so cells lie inside the set.
    unsafe {
        let cache = unit_cache(cpu, unit);
        let (index, Some(set)) = set_of(cpu, cache) else {
            return state::CHANGED;
        };
        let cost = cost(cpu, unit);
        let out = look_of(cpu, unit);
        let (key, hash) = source_of(cpu);
        let (now, burst, cap) = ((*cache).now, (*cache).burst, (*cache).cap);
        let mut tries = 0;
        while tries < BUSY_TRIES {
            tries += 1;
            let mut way = home6(hash) & (WAYS - 1);
            let mut cell = state_of(set.add(way));
            let mut word = atomic::load(cell);
            let mut own = word & BUSY == 0 && key_of(set.add(way)) == key;
            if !own {
                let scan = |n: usize| (atomic::load(state_of(set.add(n))), key_of(set.add(n)));
                let (place, busy) = search6::<Shift>(scan, key, hash, now, cap);
                if !place.matched && busy {
                    fence();
                    continue;
                }
                way = place.way & (WAYS - 1);
                cell = state_of(set.add(way));
                word = atomic::load(cell);
                own = key_of(set.add(way)) == key;
                if own != place.matched || word & BUSY != 0 {
                    fence();
                    continue;
                }
            }
            // A newcomer inherits what the victim owed.
            let owed = debt(word, now, cap, TAT6_MASK);
            let after = owed + cost;
            if after > burst {
                if own && owed > burst {
                    // The burst was lowered since: the only refusal that writes, once.
                    atomic::swap_if(cell, word, lowered6(word, now.wrapping_add(burst)));
                }
                return state::OVER;
            }
            (*out).set = index;
            (*out).way = way as u32;
            (*out).word = word;
            (*out).next = charged6(word, now.wrapping_add(after));
            (*out).own = own as u64;
            return fits(own);
        }
        state::CHANGED
    }
}

/// Charges a look, taking the way over if it is not the source's own; 0 if somebody else changed
/// the state first.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn commit6(unit: u32) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return 0;
    };
    // SAFETY: this CPU's map value; the way is masked.
    unsafe {
        let look = look_of(cpu, unit);
        let Some(set) = lookup::element(&CROWD6, scratch::of(cpu), (*look).set) else {
            return 0;
        };
        let way = set.cast::<Way6>().add((*look).way as usize & (WAYS - 1));
        let (word, next) = ((*look).word, (*look).next);
        if (*look).own != 0 {
            return atomic::swap_if(state_of(way), word, next) as u32;
        }
        if !atomic::swap_if(state_of(way), word, word | BUSY) {
            return 0;
        }
        let (key, _) = source_of(cpu);
        (&raw mut (*way).key).write_volatile(key);
        // A full barrier: whoever sees the new state sees the new key.
        atomic::store(state_of(way), next);
        1
    }
}

/// Finds the source's own way: its state's cell and the state.
#[inline(always)]
pub(crate) unsafe fn find_own(
    cpu: *mut CpuState,
    cache: *const UnitCache,
) -> Option<(*mut u64, u64)> {
    // SAFETY: as `look6`.
    unsafe {
        let (_, Some(set)) = set_of(cpu, cache) else {
            return None;
        };
        let (key, hash) = source_of(cpu);
        let mut n = 0;
        while n < WAYS {
            let way = set.add((n ^ home6(hash)) & (WAYS - 1));
            let word = atomic::load(state_of(way));
            if word & BUSY == 0 && key_of(way) == key {
                return Some((state_of(way), word));
            }
            n += 1;
            fence();
        }
        None
    }
}

/// Replaces what a source's own way owes by less; false if it changed meanwhile.
#[inline(always)]
pub(crate) unsafe fn lower_debt(
    cache: *const UnitCache,
    cell: *mut u64,
    word: u64,
    owed: u64,
) -> bool {
    // SAFETY: `cell` comes from `find_own`.
    unsafe { atomic::swap_if(cell, word, lowered6(word, (*cache).now.wrapping_add(owed))) }
}

/// What a state owes.
#[inline(always)]
pub(crate) unsafe fn owed(cache: *const UnitCache, word: u64) -> u64 {
    // SAFETY: `cache` is live.
    unsafe { debt(word, (*cache).now, (*cache).cap, TAT6_MASK) }
}

/// Judges an IPv6 packet of the crowd: every case but the common one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge6() -> u64 {
    match lookup::cpu() {
        // SAFETY: this CPU's map value.
        Some(cpu) => unsafe { charge_zone(Table::Crowd6, cpu) },
        None => 0,
    }
}

/// Charges one packet to the source's home way.
#[inline(always)]
pub(crate) unsafe fn charge_home(
    cpu: *mut CpuState,
    cache: *const UnitCache,
    key: u64,
    hash: u64,
) -> Home {
    // SAFETY: as `look6`.
    unsafe {
        let index = (*cache).base6 + (hash as u32 & (*cache).mask6);
        let Some(set) = lookup::element(&CROWD6, scratch::of(cpu), index) else {
            return Home::Unclear;
        };
        let set: *mut Way6 = set.cast();
        let (now, burst) = ((*cache).now, (*cache).burst);
        let way = set.add(home6(hash) & (WAYS - 1));
        let cell = state_of(way);
        let word = atomic::load(cell);
        if word & BUSY != 0 || key_of(way) != key {
            return Home::Strange;
        }
        let distance = word.wrapping_sub(now) & TAT6_MASK;
        let mut after = distance + ONE;
        if after > burst {
            if distance <= burst {
                return Home::Over;
            }
            if distance <= (*cache).cap || ONE > burst {
                return Home::Unclear;
            }
            // Idle.
            after = ONE;
        }
        if atomic::swap_if(cell, word, charged6(word, now.wrapping_add(after))) {
            Home::Charged
        } else {
            Home::Unclear
        }
    }
}
