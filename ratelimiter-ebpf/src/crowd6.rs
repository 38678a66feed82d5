//! The IPv6 crowd: eight ways of key and state per set, on two cache lines.
//!
//! A way changes hands in three steps: its state, as scanned, is swapped to busy; the key is stored;
//! busy is cleared with the new TAT. A reader takes the state first and the key second, and then
//! swaps the state: it succeeds only if the way was not claimed in between, because a claim raises
//! the TAT and whatever lowers it raises the version. A source without a way waits while any way of
//! its set is busy: the way might be becoming its own.

use ratelimiter_common::abi::counters::UnitCache;
use ratelimiter_common::abi::crowd::{BUSY, TAT6_MASK, WAYS, Way6};
use ratelimiter_common::crowd::{charged6, debt, home6, lowered6, search6};

use crate::arrival::{Arrival, ONE};
use crate::atomic;
use crate::bucket::{Look, Shift, TRIES, Table, charge_zone, cost, state, unit_cache};
use crate::maps::{CPU, CROWD6};

/// Times a source without a way looks again while some way of its set is busy.
const BUSY_TRIES: u32 = 8;

/// Finds the set of a permuted key: its index and its first way.
#[inline(always)]
unsafe fn set_of(cache: *const UnitCache, hash: u64) -> (u32, Option<*mut Way6>) {
    // SAFETY: `cache` is live.
    let index = unsafe { (*cache).base6 + (hash as u32 & (*cache).mask6) };
    (index, CROWD6.get_ptr_mut(index).map(<*mut _>::cast))
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
pub extern "C" fn look6(arrival: *const Arrival, unit: u32, out: *mut Look) -> u32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return state::CHANGED;
    };
    if arrival.is_null() || out.is_null() {
        return state::CHANGED;
    }
    // SAFETY: not null, so both are on the caller's stack; ways are masked, so cells lie inside the
    // set.
    unsafe {
        let cache = unit_cache(cpu, arrival, unit);
        let cost = cost(arrival, unit);
        let (key, hash) = ((*arrival).key, (*arrival).hash);
        let (index, Some(set)) = set_of(cache, hash) else {
            return state::CHANGED;
        };
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
                let (place, busy) = search6::<Shift>(scan, key, now, cap);
                if !place.matched && busy {
                    continue;
                }
                way = place.way & (WAYS - 1);
                cell = state_of(set.add(way));
                word = atomic::load(cell);
                own = key_of(set.add(way)) == key;
                if own != place.matched || word & BUSY != 0 {
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
            *out = Look {
                set: index,
                way: way as u32,
                word,
                next: charged6(word, now.wrapping_add(after)),
                own: own as u64,
            };
            return state::FITS;
        }
        state::CHANGED
    }
}

/// Charges a look, taking the way over if it is not the source's own; 0 if somebody else changed
/// the state first.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn commit6(look: *const Look, key: u64) -> u32 {
    if look.is_null() {
        return 0;
    }
    // SAFETY: not null, so it is on the caller's stack; the way is masked.
    unsafe {
        let Some(set) = CROWD6.get_ptr_mut((*look).set) else {
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
        (&raw mut (*way).key).write_volatile(key);
        // A full barrier: whoever sees the new state sees the new key.
        atomic::store(state_of(way), next);
        1
    }
}

/// Finds the source's own way: its state's cell and the state.
#[inline(always)]
pub(crate) unsafe fn find_own(
    cache: *const UnitCache,
    key: u64,
    hash: u64,
) -> Option<(*mut u64, u64)> {
    // SAFETY: as `look6`.
    unsafe {
        let (_, Some(set)) = set_of(cache, hash) else {
            return None;
        };
        let mut n = 0;
        while n < WAYS {
            let way = set.add((n ^ home6(hash)) & (WAYS - 1));
            let word = atomic::load(state_of(way));
            if word & BUSY == 0 && key_of(way) == key {
                return Some((state_of(way), word));
            }
            n += 1;
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

/// Gives back what the arrival was charged in a unit. After the last try the charge stands.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn give_back6(arrival: *const Arrival, unit: u32) -> u32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return 0;
    };
    if arrival.is_null() {
        return 0;
    }
    // SAFETY: not null, so it is on the caller's stack.
    unsafe {
        let cache = unit_cache(cpu, arrival, unit);
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let Some((cell, word)) = find_own(cache, (*arrival).key, (*arrival).hash) else {
                return 0;
            };
            let owed = owed(cache, word).saturating_sub(cost(arrival, unit));
            if lower_debt(cache, cell, word, owed) {
                return 1;
            }
        }
    }
    0
}

/// Judges an IPv6 arrival of the crowd: every case but the common one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge6(arrival: *mut Arrival) -> u64 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: what is not null is on the caller's stack.
    match unsafe { arrival.as_mut() } {
        // SAFETY: `cpu` is this CPU's map value.
        Some(arrival) => unsafe { charge_zone(Table::Crowd6, cpu, arrival) },
        None => 0,
    }
}

/// The common case: packets only, the source in its home way, no contention. `None` asks for
/// [`judge6`].
#[inline(always)]
pub(crate) unsafe fn charge_home(cache: *const UnitCache, key: u64, hash: u64) -> Option<bool> {
    // SAFETY: as `look6`.
    unsafe {
        let (_, Some(set)) = set_of(cache, hash) else {
            return None;
        };
        let (now, burst) = ((*cache).now, (*cache).burst);
        let way = set.add(home6(hash) & (WAYS - 1));
        let cell = state_of(way);
        let word = atomic::load(cell);
        if word & BUSY != 0 || key_of(way) != key {
            return None;
        }
        let owed = debt(word, now, (*cache).cap, TAT6_MASK);
        let after = owed + ONE;
        if after <= burst {
            let next = charged6(word, now.wrapping_add(after));
            if atomic::swap_if(cell, word, next) {
                Some(true)
            } else {
                None
            }
        } else if owed <= burst {
            Some(false)
        } else {
            None
        }
    }
}
