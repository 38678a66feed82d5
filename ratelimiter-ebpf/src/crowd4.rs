//! The IPv4 crowd: eight words per set, one compare-and-swap to find, claim and charge.

use ratelimiter_common::abi::counters::UnitCache;
use ratelimiter_common::abi::crowd::WAYS;
use ratelimiter_common::crowd::{debt, home4, pack4, search4, tag4, tat_bits4, tat_mask};

use crate::arrival::{Arrival, ONE};
use crate::atomic;
use crate::bucket::{Look, Shift, TRIES, Table, charge_zone, cost, state, unit_cache};
use crate::maps::{CPU, CROWD4};

/// Finds the set of a permuted address: its index and its first word.
#[inline(always)]
unsafe fn set_of(cache: *const UnitCache, hash: u32) -> (u32, Option<*mut u64>) {
    // SAFETY: `cache` is a live map value or on the stack.
    let index = unsafe { (*cache).base4 + (hash & (*cache).mask4) };
    (index, CROWD4.get_ptr_mut(index).map(<*mut _>::cast))
}

/// Finds the source's word, or the victim's, and works out the word after the charge.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look4(arrival: *const Arrival, unit: u32, out: *mut Look) -> u32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return state::CHANGED;
    };
    if arrival.is_null() || out.is_null() {
        return state::CHANGED;
    }
    // SAFETY: not null, so both are on the caller's stack.
    unsafe {
        find(
            unit_cache(cpu, arrival, unit),
            (*arrival).hash as u32,
            cost(arrival, unit),
            out,
        )
    }
}

#[inline(always)]
unsafe fn find(cache: *const UnitCache, hash: u32, cost: u64, out: *mut Look) -> u32 {
    // SAFETY: `cache` and `out` are live; ways are masked, so cells lie inside the set.
    unsafe {
        let (index, Some(set)) = set_of(cache, hash) else {
            return state::CHANGED;
        };
        let (now, burst, cap, bits) = ((*cache).now, (*cache).burst, (*cache).cap, (*cache).bits4);
        let tag = tag4(hash, bits);
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let mut way = home4(hash);
            let mut matched = atomic::load(set.add(way & (WAYS - 1))) >> tat_bits4(bits) == tag;
            if !matched {
                let mut words = [0; WAYS];
                for (n, word) in words.iter_mut().enumerate() {
                    *word = atomic::load(set.add(n));
                }
                let place = search4::<Shift>(&words, tag, now, cap, bits);
                way = place.way;
                matched = place.matched;
            }
            let way = way & (WAYS - 1);
            let cell = set.add(way);
            let word = atomic::load(cell);
            let own = word >> tat_bits4(bits) == tag;
            if own != matched {
                continue;
            }
            // A newcomer inherits what the victim owed.
            let owed = debt(word, now, cap, tat_mask(bits));
            let after = owed + cost;
            if after > burst {
                if own && owed > burst {
                    // The burst was lowered since: the only refusal that writes, once.
                    atomic::swap_if(cell, word, pack4(tag, now.wrapping_add(burst), bits));
                }
                return state::OVER;
            }
            *out = Look {
                set: index,
                way: way as u32,
                word,
                next: pack4(tag, now.wrapping_add(after), bits),
                own: own as u64,
            };
            return state::FITS;
        }
        state::CHANGED
    }
}

/// Charges a look; false if somebody else changed the word first.
#[inline(always)]
pub(crate) unsafe fn commit(look: *const Look) -> bool {
    // SAFETY: `look` is on the stack; the way is masked.
    unsafe {
        let Some(set) = CROWD4.get_ptr_mut((*look).set) else {
            return false;
        };
        let set: *mut u64 = set.cast();
        atomic::swap_if(
            set.add((*look).way as usize & (WAYS - 1)),
            (*look).word,
            (*look).next,
        )
    }
}

/// Finds the source's own word: its cell and the word. The home way first: where a race gave a
/// source two, that is the one charged.
#[inline(always)]
pub(crate) unsafe fn find_own(cache: *const UnitCache, hash: u32) -> Option<(*mut u64, u64)> {
    // SAFETY: as `find`.
    unsafe {
        let (_, Some(set)) = set_of(cache, hash) else {
            return None;
        };
        let bits = (*cache).bits4;
        let mut n = 0;
        while n < WAYS {
            let cell = set.add((n ^ home4(hash)) & (WAYS - 1));
            let word = atomic::load(cell);
            if word >> tat_bits4(bits) == tag4(hash, bits) {
                return Some((cell, word));
            }
            n += 1;
        }
        None
    }
}

/// Replaces what a source's own word owes by `owed`; false if it changed meanwhile.
#[inline(always)]
pub(crate) unsafe fn set_debt(
    cache: *const UnitCache,
    hash: u32,
    cell: *mut u64,
    word: u64,
    owed: u64,
) -> bool {
    // SAFETY: `cell` comes from `find_own`.
    unsafe {
        let bits = (*cache).bits4;
        let tat = (*cache).now.wrapping_add(owed);
        atomic::swap_if(cell, word, pack4(tag4(hash, bits), tat, bits))
    }
}

/// What a word owes.
#[inline(always)]
pub(crate) unsafe fn owed(cache: *const UnitCache, word: u64) -> u64 {
    // SAFETY: `cache` is live.
    unsafe { debt(word, (*cache).now, (*cache).cap, tat_mask((*cache).bits4)) }
}

/// Gives back what the arrival was charged in a unit. After the last try the charge stands.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn give_back4(arrival: *const Arrival, unit: u32) -> u32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return 0;
    };
    if arrival.is_null() {
        return 0;
    }
    // SAFETY: not null, so it is on the caller's stack.
    unsafe {
        let cache = unit_cache(cpu, arrival, unit);
        let hash = (*arrival).hash as u32;
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let Some((cell, word)) = find_own(cache, hash) else {
                return 0;
            };
            let owed = owed(cache, word).saturating_sub(cost(arrival, unit));
            if set_debt(cache, hash, cell, word, owed) {
                return 1;
            }
        }
    }
    0
}

/// Judges an IPv4 arrival of the crowd: every case but the common one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge4(arrival: *mut Arrival) -> u64 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: what is not null is on the caller's stack.
    match unsafe { arrival.as_mut() } {
        // SAFETY: `cpu` is this CPU's map value.
        Some(arrival) => unsafe { charge_zone(Table::Crowd4, cpu, arrival) },
        None => 0,
    }
}

/// The common case: packets only, the source in its home way, no contention. `None` asks for
/// [`judge4`].
#[inline(always)]
pub(crate) unsafe fn charge_home(cache: *const UnitCache, hash: u32) -> Option<bool> {
    // SAFETY: as `find`.
    unsafe {
        let (_, Some(set)) = set_of(cache, hash) else {
            return None;
        };
        let (now, burst, bits) = ((*cache).now, (*cache).burst, (*cache).bits4);
        let cell = set.add(home4(hash) & (WAYS - 1));
        let word = atomic::load(cell);
        let tag = tag4(hash, bits);
        if word >> tat_bits4(bits) != tag {
            return None;
        }
        let owed = debt(word, now, (*cache).cap, tat_mask(bits));
        let after = owed + ONE;
        if after <= burst {
            let next = pack4(tag, now.wrapping_add(after), bits);
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
