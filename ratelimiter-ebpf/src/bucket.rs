//! Charging buckets: look at every limited unit, then charge all or none.
//!
//! Where a bucket's word lies is the business of `crowd4`, `crowd6` and `tracked`; they fill in a
//! [`Look`], and a look is committed by one compare-and-swap. A refusal writes nothing.

use core::arch::asm;

use ratelimiter_common::abi::config::ZONES as ZONE_COUNT;
use ratelimiter_common::abi::counters::{CpuState, UnitCache};
use ratelimiter_common::abi::tracked::{SourceKey, Tracked};
use ratelimiter_common::crowd::Sign;
use ratelimiter_common::quota::KERNEL_UNITS;
use ratelimiter_common::verdict::{Mode, Reason};

use crate::atomic::{each_unit, fence};
use crate::outcome::Outcome;
use crate::scratch::{self, Arrival, UNIT_SLOTS, put};
use crate::{clock, crowd4, crowd6, first_seen, lookup, policy, tracked};

/// Times a lost compare-and-swap is tried again before the packet is dropped.
pub(crate) const TRIES: u32 = 4;

/// Sign masks in one instruction, which LLVM cannot turn into a branch.
pub(crate) struct Shift;

impl Sign for Shift {
    #[inline(always)]
    fn mask(x: u64) -> u64 {
        let mask: u64;
        // SAFETY: arithmetic on one register.
        unsafe { asm!("{0} s>>= 63", inout(reg) x => mask, options(pure, nomem, nostack)) };
        mask
    }
}

/// What a look found: one bit each, so that the looks of all units are judged together, by
/// arithmetic. A branch per unit and finding would be as many ways for the verifier as their product.
pub(crate) mod state {
    /// The cost fits: commit `next`.
    pub(crate) const FITS: u32 = 1;
    /// The cost does not fit.
    pub(crate) const OVER: u32 = 2;
    /// The word changed under the look, again and again.
    pub(crate) const CHANGED: u32 = 4;
    /// With [`FITS`]: the source would take a victim's place.
    pub(crate) const NEWCOMER: u32 = 8;
    /// Bits of one unit.
    pub(crate) const BITS: u32 = 4;
    /// Any of these, of all units.
    pub(crate) const fn of_all(bits: u32) -> u32 {
        bits | bits << BITS | bits << (2 * BITS)
    }
}

/// One unit's bucket, looked at but not yet charged. Numbers only, no padding.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Look {
    /// Index of the set.
    pub(crate) set: u32,
    /// Way in the set.
    pub(crate) way: u32,
    /// The word with the TAT, as it was read.
    pub(crate) word: u64,
    /// As it will be.
    pub(crate) next: u64,
    /// 1 if the bucket was the source's own; 0 if the source would take a victim's place.
    pub(crate) own: u64,
}

/// [`state::FITS`], and whether the source is a newcomer.
#[inline(always)]
pub(crate) const fn fits(own: bool) -> u32 {
    state::FITS | ((!own as u32) * state::NEWCOMER)
}

/// Where an arrival's buckets lie.
#[derive(Clone, Copy)]
pub(crate) enum Table {
    /// In the IPv4 crowd, in a zone.
    Crowd4,
    /// In the IPv6 crowd, in a zone.
    Crowd6,
    /// In an entry of its own, with its key, on the clocks in the scratch.
    Tracked(*mut Tracked, SourceKey),
}

#[inline(always)]
unsafe fn look(table: Table, cpu: *mut CpuState, unit: usize) -> u32 {
    // SAFETY: `unit` is below `UNIT_SLOTS`.
    unsafe {
        match table {
            Table::Crowd4 => crowd4::look4(unit as u32),
            Table::Crowd6 => crowd6::look6(unit as u32),
            Table::Tracked(entry, _) => tracked::look(cpu, entry, unit),
        }
    }
}

#[inline(always)]
unsafe fn commit(table: Table, cpu: *mut CpuState, unit: usize) -> bool {
    // SAFETY: as `look`.
    unsafe {
        match table {
            Table::Crowd4 => crowd4::commit4(unit as u32) != 0,
            Table::Crowd6 => crowd6::commit6(unit as u32) != 0,
            Table::Tracked(entry, _) => tracked::commit(cpu, entry, unit),
        }
    }
}

/// Gives back what the packet was charged in some units. After the last try a charge stands.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn give_back_crowd(units: u32) -> u32 {
    each_unit!('unit, unit, {
        if units >> unit & 1 == 0 {
            break 'unit;
        }
        let mut tries = 0;
        while tries < TRIES && give_back_unit(unit as u32) == 0 {
            tries += 1;
            fence();
        }
    });
    0
}

/// Tries once to give back what the packet was charged in a unit; 0 if somebody was faster.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn give_back_unit(unit: u32) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return 1;
    };
    // SAFETY: this CPU's map value.
    let done = unsafe {
        let cache = unit_cache(cpu, unit);
        let cost = cost(cpu, unit);
        if Arrival::is_v4(scratch::arrival(cpu)) {
            let Some((cell, word)) = crowd4::find_own(cpu, cache) else {
                return 1;
            };
            let owed = crowd4::owed(cache, word).saturating_sub(cost);
            crowd4::set_debt(cpu, cache, cell, word, owed)
        } else {
            let Some((cell, word)) = crowd6::find_own(cpu, cache) else {
                return 1;
            };
            let owed = crowd6::owed(cache, word).saturating_sub(cost);
            crowd6::lower_debt(cache, cell, word, owed)
        }
    };
    done as u32
}

/// Judges the packet on every limited unit together, once: a packet refused by one is charged to none.
/// [`Reason::Contended`] if somebody else was faster: judge again.
///
/// `modes` holds a [`Mode`] per unit in two bits each. Where a unit in shadow does not conform, the
/// packet is counted, passes, and is charged to the enforcing units only.
#[inline(always)]
pub(crate) unsafe fn charge(
    table: Table,
    cpu: *mut CpuState,
    limited: u32,
    modes: u32,
    label: u64,
) -> Outcome {
    let decisive = strictest(modes, limited);
    let enforced = spread(modes >> 1);
    // SAFETY: indices are below `UNIT_SLOTS`.
    unsafe {
        let found = &raw mut (*scratch::of(cpu)).found;
        each_unit!('unit, unit, {
            put(&raw mut (*found)[unit], 0);
            if limited >> unit & 1 == 0 || cost(cpu, unit as u32) == 0 {
                break 'unit;
            }
            put(&raw mut (*found)[unit], look(table, cpu, unit));
        });
        let [packets, bytes, connections, _] = found.read_volatile();
        let all = packets | bytes << state::BITS | connections << (2 * state::BITS);
        let over = all & state::of_all(state::OVER);
        let refused = over & enforced;
        if refused != 0 {
            return Outcome::judged(label, first_over(refused), Mode::Enforce as u32);
        }
        if all & state::of_all(state::CHANGED) != 0 {
            return Outcome::judged(label, Reason::Contended, decisive);
        }
        let mut chargeable = all & state::of_all(state::FITS);
        if over != 0 {
            // An enforcing twin would drop this packet and charge no unit: units in shadow must not
            // either, or they would count more than the twin drops.
            chargeable &= enforced >> 1;
        }
        if !matches!(table, Table::Tracked(..))
            && all & state::of_all(state::NEWCOMER) != 0
            && chargeable != 0
            && !is_admitted(cpu)
        {
            return Outcome::judged(label, Reason::FirstSeen, decisive);
        }
        if !commit_all(table, cpu, chargeable) {
            return Outcome::judged(label, Reason::Contended, decisive);
        }
        if over == 0 {
            Outcome::judged(label, Reason::Conforming, decisive)
        } else {
            // The first unit that refused, as with a twin that enforces.
            Outcome::judged(label, first_over(over), Mode::Shadow as u32)
        }
    }
}

/// Takes the packet's source from the first-seen budget of its zone.
#[inline(always)]
unsafe fn is_admitted(cpu: *mut CpuState) -> bool {
    // SAFETY: `cpu` is this CPU's map value.
    unsafe {
        let arrival = scratch::arrival(cpu);
        let family = (*arrival).packet.facts() >> 1 & 1;
        first_seen::admit_newcomer((*arrival).zone, family) != 0
    }
}

/// Charges the units of which [`state::FITS`] is set; false if somebody was faster. Then what was
/// charged is taken back.
#[inline(always)]
unsafe fn commit_all(table: Table, cpu: *mut CpuState, chargeable: u32) -> bool {
    // SAFETY: indices are below `UNIT_SLOTS`.
    unsafe {
        let mut charged = 0;
        let mut whole = true;
        each_unit!('unit, unit, {
            if !whole || chargeable >> (state::BITS * unit as u32) & state::FITS == 0 {
                break 'unit;
            }
            if commit(table, cpu, unit) {
                charged |= 1 << unit;
            } else {
                whole = false;
            }
        });
        if !whole {
            match table {
                Table::Crowd4 | Table::Crowd6 => give_back_crowd(charged),
                Table::Tracked(_, key) => tracked::give_back(key, charged),
            };
        }
        whole
    }
}

const _: () = assert!(state::FITS << 1 == state::OVER);
const _: () = assert!(Mode::Enforce as u32 == 2 && (Mode::Shadow as u32) < 2);

/// [`state::OVER`] of every unit whose even bit is set: from two bits a unit to four.
#[inline(always)]
const fn spread(pairs: u32) -> u32 {
    let over = state::OVER;
    (pairs & 1) * over | (pairs >> 2 & 1) * (over << 4) | (pairs >> 4 & 1) * (over << 8)
}

/// The reason of the first unit that refuses.
#[inline(always)]
const fn first_over(over: u32) -> Reason {
    if over & state::OVER != 0 {
        Reason::OverPackets
    } else if over & (state::OVER << state::BITS) != 0 {
        Reason::OverBytes
    } else {
        Reason::OverConnections
    }
}

/// The strictest mode of the limited units: what decides when no single unit does.
#[inline(always)]
const fn strictest(modes: u32, limited: u32) -> u32 {
    let mut strictest = 0;
    let mut unit = 0;
    while unit < KERNEL_UNITS {
        let mode = modes >> (2 * unit) & 3;
        if limited >> unit & 1 != 0 && mode > strictest {
            strictest = mode;
        }
        unit += 1;
    }
    strictest
}

/// Judges an arrival of the crowd by its zone.
#[inline(always)]
pub(crate) unsafe fn charge_zone(table: Table, cpu: *mut CpuState) -> u64 {
    // SAFETY: `cpu` is this CPU's map value.
    unsafe {
        let Some(config) = lookup::config() else {
            return 0;
        };
        Arrival::price(scratch::arrival(cpu), config);
        let mut outcome = Outcome(0);
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let zone = (*scratch::arrival(cpu)).zone & (ZONE_COUNT as u64 - 1);
            let cache = policy::zone_cache(cpu, zone);
            let (units, modes, label) = ((*cache).units, (*cache).modes, (*cache).label);
            if units == policy::NO_POLICY {
                return Outcome::judged(label, Reason::NoPolicy, Mode::Enforce as u32).0;
            }
            if units == 0 {
                return Outcome::judged(label, Reason::Off, Mode::Off as u32).0;
            }
            outcome = charge(table, cpu, units, modes, label);
            if !outcome.refuses() || (!outcome.is_contended() && !clock::reread(cpu)) {
                break;
            }
            fence();
        }
        outcome.0
    }
}

/// The cache of a unit of the packet's zone.
#[inline(always)]
pub(crate) unsafe fn unit_cache(cpu: *mut CpuState, unit: u32) -> *const UnitCache {
    // SAFETY: `cpu` is this CPU's map value, and behind the zones lies more of it.
    unsafe {
        let zone = (*scratch::arrival(cpu)).zone as usize & (ZONE_COUNT - 1);
        let units: *const UnitCache = (&raw const (*cpu).zones[zone].unit).cast();
        units.add(unit as usize & (UNIT_SLOTS - 1))
    }
}

/// What the packet costs in a unit.
#[inline(always)]
pub(crate) unsafe fn cost(cpu: *mut CpuState, unit: u32) -> u64 {
    // SAFETY: `cpu` is this CPU's map value; the index is masked.
    unsafe { (*scratch::arrival(cpu)).costs[unit as usize & (UNIT_SLOTS - 1)] }
}

/// Where a unit's look is kept.
#[inline(always)]
pub(crate) unsafe fn look_of(cpu: *mut CpuState, unit: u32) -> *mut Look {
    // SAFETY: `cpu` is this CPU's map value; the index is masked.
    unsafe { &raw mut (*scratch::of(cpu)).looks[unit as usize & (UNIT_SLOTS - 1)] }
}
