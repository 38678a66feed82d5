//! Charging buckets: look at every limited unit, then charge all or none.
//!
//! Where a bucket's word lies is the business of `crowd4`, `crowd6` and `tracked`; they fill in a
//! [`Look`], and a look is committed by one compare-and-swap. A refusal writes nothing.

use core::arch::asm;

use ratelimiter_common::abi::config::ZONES as ZONE_COUNT;
use ratelimiter_common::abi::counters::{CpuState, UnitCache};
use ratelimiter_common::abi::crowd::WAYS;
use ratelimiter_common::abi::tracked::Tracked;
use ratelimiter_common::crowd::Sign;
use ratelimiter_common::quota::KERNEL_UNITS;
use ratelimiter_common::verdict::{Mode, Reason};

use crate::arrival::Arrival;
use crate::atomic::{every_unit, forget};
use crate::outcome::Outcome;
use crate::{clock, crowd4, crowd6, first_seen, policy, tracked};

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

    #[inline(always)]
    fn ways() -> usize {
        let ways: u64;
        // SAFETY: loads a constant.
        unsafe { asm!("{ways} = 8", ways = out(reg) ways, options(pure, nomem, nostack)) };
        const _: () = assert!(WAYS == 8);
        ways as usize
    }
}

/// What a look found. Numbers, because they cross a call.
pub(crate) mod state {
    /// The cost fits: commit `next`.
    pub(crate) const FITS: u32 = 0;
    /// The cost does not fit.
    pub(crate) const OVER: u32 = 1;
    /// The word changed under the look, again and again.
    pub(crate) const CHANGED: u32 = 2;
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

/// Where an arrival's buckets lie.
#[derive(Clone, Copy)]
pub(crate) enum Table {
    /// In the IPv4 crowd, in a zone.
    Crowd4,
    /// In the IPv6 crowd, in a zone.
    Crowd6,
    /// In an entry of its own, on the clocks given.
    Tracked(*mut Tracked, *const UnitCache),
}

/// The reason a unit refuses for: consecutive numbers, asserted below.
#[inline(always)]
const fn over(unit: usize) -> Reason {
    match unit {
        0 => Reason::OverPackets,
        1 => Reason::OverBytes,
        _ => Reason::OverConnections,
    }
}

const _: () = assert!(
    over(1) as u64 == over(0) as u64 + 1
        && over(2) as u64 == over(0) as u64 + 2
        && Reason::NonIp as u64 == 0
);

#[inline(always)]
unsafe fn look(table: Table, arrival: &Arrival, unit: usize, out: *mut Look) -> u32 {
    // SAFETY: `unit` is below `KERNEL_UNITS`.
    unsafe {
        match table {
            Table::Crowd4 => crowd4::look4(arrival, unit as u32, out),
            Table::Crowd6 => crowd6::look6(arrival, unit as u32, out),
            Table::Tracked(entry, clocks) => tracked::look(
                entry,
                clocks.add(unit),
                unit,
                *arrival.costs.as_ptr().add(unit),
                out,
            ),
        }
    }
}

#[inline(always)]
unsafe fn commit(table: Table, arrival: &Arrival, unit: usize, look: *const Look) -> bool {
    // SAFETY: as `look`.
    unsafe {
        match table {
            Table::Crowd4 => crowd4::commit(look),
            Table::Crowd6 => crowd6::commit6(look, arrival.key) != 0,
            Table::Tracked(entry, _) => tracked::commit(entry, unit, look),
        }
    }
}

#[inline(always)]
unsafe fn give_back(table: Table, arrival: &Arrival, unit: usize) {
    // SAFETY: as `look`.
    unsafe {
        match table {
            Table::Crowd4 => {
                crowd4::give_back4(arrival, unit as u32);
            }
            Table::Crowd6 => {
                crowd6::give_back6(arrival, unit as u32);
            }
            Table::Tracked(entry, _) => {
                tracked::give_back(entry, unit, *arrival.costs.as_ptr().add(unit))
            }
        }
    }
}

/// Judges an arrival on every limited unit together: a packet refused by one is charged to none.
///
/// `modes` holds a [`Mode`] per unit in two bits each. Where a unit in shadow does not conform, the
/// packet is counted, passes, and is charged to the enforcing units only.
#[inline(always)]
pub(crate) unsafe fn charge(
    table: Table,
    looks: *mut Look,
    arrival: &Arrival,
    limited: u32,
    modes: u32,
    label: u64,
) -> Outcome {
    let decisive = strictest(modes, limited);
    let costs = arrival.costs.as_ptr();
    let noise = arrival.hash;
    let mut admitted = 0_u32;
    let mut tries = 0;
    // SAFETY: indices are below `KERNEL_UNITS`.
    unsafe {
        'again: while tries < TRIES {
            tries += 1;
            let mut shadow_refusal = 0_u32;
            let mut chargeable = 0_u32;
            let mut newcomer = 0_u32;
            let mut next = 0;
            while next < every_unit() {
                let unit = next;
                next += 1;
                if limited >> unit & 1 == 0 || *costs.add(unit) == 0 {
                    continue;
                }
                let mode = modes >> (2 * unit) & 3;
                chargeable = forget(chargeable, noise);
                shadow_refusal = forget(shadow_refusal, noise);
                newcomer = forget(newcomer, noise);
                match look(table, arrival, unit, looks.add(unit)) {
                    state::FITS => {
                        chargeable |= 1 << unit;
                        newcomer |= 1 - (*looks.add(unit)).own as u32;
                    }
                    state::OVER if mode == Mode::Enforce as u32 => {
                        let reason = Reason::OverPackets as u64 + unit as u64;
                        return Outcome(Outcome::judged(label, Reason::NonIp, mode).0 | reason);
                    }
                    state::OVER => shadow_refusal |= 1 << unit,
                    _ => return Outcome::judged(label, Reason::Contended, decisive),
                }
            }
            // One path from here on, not one per combination.
            let mut chargeable = forget(chargeable, noise);
            let shadow_refusal = forget(shadow_refusal, noise);
            let newcomer = forget(newcomer, noise);
            if shadow_refusal != 0 {
                // An enforcing twin would drop this packet and charge no unit: units in shadow
                // must not either, or they would count more than the twin drops.
                chargeable = forget(chargeable & enforcing(modes), noise);
            }
            if newcomer != 0 && chargeable != 0 && admitted == 0 {
                if !first_seen::admit(arrival) {
                    return Outcome::judged(label, Reason::FirstSeen, decisive);
                }
                admitted = 1;
            }
            admitted = forget(admitted, noise);
            let mut next = 0;
            while next < every_unit() {
                let unit = next;
                next += 1;
                if chargeable >> unit & 1 != 0 && !commit(table, arrival, unit, looks.add(unit)) {
                    // Somebody was faster: take back what was charged, and look again.
                    let mut charged = 0;
                    while charged < unit {
                        if chargeable >> charged & 1 != 0 {
                            give_back(table, arrival, charged);
                        }
                        charged += 1;
                    }
                    continue 'again;
                }
            }
            // The first unit that refused, as with a twin that enforces.
            return match shadow_refusal {
                0 => Outcome::judged(label, Reason::Conforming, decisive),
                1 | 3 | 5 | 7 => Outcome::judged(label, over(0), Mode::Shadow as u32),
                2 | 6 => Outcome::judged(label, over(1), Mode::Shadow as u32),
                _ => Outcome::judged(label, over(2), Mode::Shadow as u32),
            };
        }
    }
    Outcome::judged(label, Reason::Contended, decisive)
}

/// The units whose mode is [`Mode::Enforce`], one bit each.
#[inline(always)]
const fn enforcing(modes: u32) -> u32 {
    let mut units = 0;
    let mut unit = 0;
    while unit < KERNEL_UNITS {
        units |= ((modes >> (2 * unit + 1)) & 1) << unit;
        unit += 1;
    }
    units
}

const _: () = assert!(Mode::Enforce as u32 == 2 && (Mode::Shadow as u32) < 2);

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
pub(crate) unsafe fn charge_zone(table: Table, cpu: *mut CpuState, arrival: &mut Arrival) -> u64 {
    // SAFETY: `cpu` is this CPU's map value.
    unsafe {
        let mut outcome = Outcome(0);
        let mut round = 0;
        while round < 2 {
            round += 1;
            let zone = arrival.zone & (ZONE_COUNT as u64 - 1);
            let cache = policy::zone_cache(cpu, zone);
            let (units, modes, label) = ((*cache).units, (*cache).modes, (*cache).label);
            if units == policy::NO_POLICY {
                return Outcome::judged(label, Reason::NoPolicy, Mode::Enforce as u32).0;
            }
            if units == 0 {
                return Outcome::judged(label, Reason::Off, Mode::Off as u32).0;
            }
            let looks: *mut Look = (&raw mut (*cpu).scratch[1]).cast();
            outcome = charge(table, looks, arrival, units, modes, label);
            if !outcome.refuses() || !clock::reread(cpu) {
                break;
            }
        }
        outcome.0
    }
}

/// The cache of a unit of the arrival's zone.
#[inline(always)]
pub(crate) unsafe fn unit_cache(
    cpu: *mut CpuState,
    arrival: *const Arrival,
    unit: u32,
) -> *const UnitCache {
    let unit = if unit as usize >= KERNEL_UNITS {
        0
    } else {
        unit as usize
    };
    // SAFETY: indices are bounded.
    unsafe {
        let zone = (*arrival).zone as usize & (ZONE_COUNT - 1);
        &raw const (*cpu).zones[zone].unit[unit]
    }
}

/// What the arrival costs in a unit.
#[inline(always)]
pub(crate) unsafe fn cost(arrival: *const Arrival, unit: u32) -> u64 {
    let unit = if unit as usize >= KERNEL_UNITS {
        0
    } else {
        unit as usize
    };
    // SAFETY: the index is bounded.
    unsafe { (*arrival).costs[unit] }
}
