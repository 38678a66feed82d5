//! The IPv4 crowd: eight words per set, one compare-and-swap to find, claim and charge.

use ratelimiter_common::abi::counters::{CpuState, UnitCache};
use ratelimiter_common::abi::crowd::WAYS;
use ratelimiter_common::crowd::{
    debt, home4, is_other4, pack4, search4_by, tag4, tat_bits4, tat_mask,
};

use crate::atomic::fence;
use crate::bucket::{
    Look, Shift, TRIES, Table, charge_zone, cost, fits, look_of, state, unit_cache,
};
use crate::maps::CROWD4;
use crate::scratch::{self, ONE};
use crate::straight::Home;
use crate::{atomic, lookup};

/// Finds the set of this CPU's packet, and its index.
#[inline(always)]
pub(crate) unsafe fn set_of(
    cpu: *mut CpuState,
    cache: *const UnitCache,
) -> (u32, Option<*mut u64>) {
    // SAFETY: live map values.
    unsafe {
        let index = (*cache).base4 + (hash_of(cpu) & (*cache).mask4);
        let set = lookup::element(&CROWD4, scratch::of(cpu), index);
        (index, set.map(<*mut _>::cast))
    }
}

/// The packet's address under the bijection.
#[inline(always)]
pub(crate) unsafe fn hash_of(cpu: *mut CpuState) -> u32 {
    // SAFETY: a live map value.
    unsafe { atomic::load(&raw const (*scratch::arrival(cpu)).hash) as u32 }
}

/// Finds the source's word, or the victim's, and works out the word after the charge.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look4(unit: u32) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return state::CHANGED;
    };
    // SAFETY: this CPU's map value.
    unsafe {
        find(
            cpu,
            unit_cache(cpu, unit),
            cost(cpu, unit),
            look_of(cpu, unit),
        )
    }
}

#[inline(always)]
unsafe fn find(cpu: *mut CpuState, cache: *const UnitCache, cost: u64, out: *mut Look) -> u32 {
    // SAFETY: `cache` and `out` are live; ways are masked, so cells lie inside the set.
    unsafe {
        let (index, Some(set)) = set_of(cpu, cache) else {
            return state::CHANGED;
        };
        let (now, burst, cap, bits) = ((*cache).now, (*cache).burst, (*cache).cap, (*cache).bits4);
        let hash = hash_of(cpu);
        let tag = tag4(hash, bits);
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let mut way = home4(hash);
            let mut matched = atomic::load(set.add(way & (WAYS - 1))) >> tat_bits4(bits) == tag;
            if !matched {
                let scan = |n: usize| atomic::load(set.add(n));
                let place = search4_by::<Shift>(scan, hash, now, cap, bits);
                way = place.way;
                matched = place.matched;
            }
            let way = way & (WAYS - 1);
            let cell = set.add(way);
            let word = atomic::load(cell);
            let own = word >> tat_bits4(bits) == tag;
            if own != matched {
                fence();
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
            (*out).set = index;
            (*out).way = way as u32;
            (*out).word = word;
            (*out).next = pack4(tag, now.wrapping_add(after), bits);
            (*out).own = own as u64;
            return fits(own);
        }
        state::CHANGED
    }
}

/// Charges a look; 0 if somebody else changed the word first.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn commit4(unit: u32) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return 0;
    };
    // SAFETY: this CPU's map value; the way is masked.
    unsafe {
        let look = look_of(cpu, unit);
        let Some(set) = lookup::element(&CROWD4, scratch::of(cpu), (*look).set) else {
            return 0;
        };
        let set: *mut u64 = set.cast();
        let cell = set.add((*look).way as usize & (WAYS - 1));
        atomic::swap_if(cell, (*look).word, (*look).next) as u32
    }
}

/// Finds the source's own word: its cell and the word. The home way first: where a race gave a
/// source two, that is the one charged.
#[inline(always)]
pub(crate) unsafe fn find_own(
    cpu: *mut CpuState,
    cache: *const UnitCache,
) -> Option<(*mut u64, u64)> {
    // SAFETY: as `find`.
    unsafe {
        let (_, Some(set)) = set_of(cpu, cache) else {
            return None;
        };
        let hash = hash_of(cpu);
        let bits = (*cache).bits4;
        let mut n = 0;
        while n < WAYS {
            let cell = set.add((n ^ home4(hash)) & (WAYS - 1));
            let word = atomic::load(cell);
            if word >> tat_bits4(bits) == tag4(hash, bits) {
                return Some((cell, word));
            }
            n += 1;
            fence();
        }
        None
    }
}

/// Replaces what a source's own word owes by `owed`; false if it changed meanwhile.
#[inline(always)]
pub(crate) unsafe fn set_debt(
    cpu: *mut CpuState,
    cache: *const UnitCache,
    cell: *mut u64,
    word: u64,
    owed: u64,
) -> bool {
    // SAFETY: `cell` comes from `find_own`.
    unsafe {
        let bits = (*cache).bits4;
        let tat = (*cache).now.wrapping_add(owed);
        atomic::swap_if(cell, word, pack4(tag4(hash_of(cpu), bits), tat, bits))
    }
}

/// What a word owes.
#[inline(always)]
pub(crate) unsafe fn owed(cache: *const UnitCache, word: u64) -> u64 {
    // SAFETY: `cache` is live.
    unsafe { debt(word, (*cache).now, (*cache).cap, tat_mask((*cache).bits4)) }
}

/// Judges an IPv4 packet of the crowd: every case but the common one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge4() -> u64 {
    match lookup::cpu() {
        // SAFETY: this CPU's map value.
        Some(cpu) => unsafe { charge_zone(Table::Crowd4, cpu) },
        None => 0,
    }
}

/// Charges one packet to the source's home way.
#[inline(always)]
pub(crate) unsafe fn charge_home(cpu: *mut CpuState, cache: *const UnitCache, hash: u64) -> Home {
    // SAFETY: as `find`.
    unsafe {
        let index = (*cache).base4 + (hash as u32 & (*cache).mask4);
        let Some(set) = lookup::element(&CROWD4, scratch::of(cpu), index) else {
            return Home::Unclear;
        };
        let set: *mut u64 = set.cast();
        let cell = set.add((hash >> 29) as usize & (WAYS - 1));
        let word = atomic::load(cell);
        if is_other4(word, hash, (*cache).tat_mask4) {
            return Home::Strange;
        }
        charge_own(cache, cell, word)
    }
}

/// Charges one packet to the source's own word, as it was read.
#[inline(always)]
pub(crate) unsafe fn charge_own(cache: *const UnitCache, cell: *mut u64, word: u64) -> Home {
    // SAFETY: as `find`; `cell` is the source's.
    unsafe {
        let (now, burst, mask) = ((*cache).now, (*cache).burst, (*cache).tat_mask4);
        let distance = word.wrapping_sub(now) & mask;
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
        // The tag stays.
        let next = (word & !mask) | (now.wrapping_add(after) & mask);
        if atomic::swap_if(cell, word, next) {
            Home::Charged
        } else {
            Home::Unclear
        }
    }
}
