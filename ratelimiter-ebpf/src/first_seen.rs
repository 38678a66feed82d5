//! Budgets all CPUs share: newcomers to the crowd, and malformed frames.

use ratelimiter_common::abi::config::{REGIONS, ZONES as ZONE_COUNT};
use ratelimiter_common::abi::crowd::{BUDGET_MALFORMED, BUDGET_V4, BUDGET_V6, FIRST_SEEN_DEPTH_NS};
use ratelimiter_common::abi::policy::{NO_REGION, Zone};
use ratelimiter_common::gcra::{Decision, decide};

use crate::arrival::Arrival;
use crate::atomic;
use crate::bucket::TRIES;
use crate::maps::{BUDGETS, CONFIG, CPU, ZONES};

/// Takes one newcomer from this CPU's share of the zone's budget, drawing anew when it is used up.
#[inline(always)]
pub(crate) fn admit(arrival: &Arrival) -> bool {
    admit_newcomer(arrival.zone as u32, arrival.family as u32) != 0
}

/// See [`admit`]. The budget is that of the first region the zone has.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit_newcomer(zone: u32, family: u32) -> u32 {
    let zone = zone & (ZONE_COUNT as u32 - 1);
    let (Some(cpu), Some(config)) = (CPU.get_ptr_mut(0), CONFIG.get_ptr(0)) else {
        return 0;
    };
    // SAFETY: map values live while the program runs; zone and region are masked.
    unsafe {
        let cache = &raw mut (*cpu).zones[zone as usize];
        let left = if family == 4 {
            &raw mut (*cache).newcomers4
        } else {
            &raw mut (*cache).newcomers6
        };
        let have = *left;
        if have != 0 {
            *left = have - 1;
            return 1;
        }
        let Some(zone) = ZONES.get_ptr(zone) else {
            return 0;
        };
        let zone: Zone = zone.read_volatile();
        let [packets, bytes, connections] = zone.regions;
        let region = if packets != NO_REGION {
            packets
        } else if bytes != NO_REGION {
            bytes
        } else {
            connections
        };
        let region = region as usize & (REGIONS - 1);
        let (geometry, budget) = if family == 4 {
            (&raw const (*config).regions4[region], BUDGET_V4)
        } else {
            (&raw const (*config).regions6[region], BUDGET_V6)
        };
        let each_ns = (*geometry).first_seen_ns;
        let draw = (*geometry).draw & 127;
        let draw = if draw == 0 { 1 } else { draw };
        if each_ns != 0 {
            // No overflow: at most 128 times 2^40 ns, 18 minutes a newcomer.
            let cost_ns = (each_ns & ((1 << 40) - 1)) * draw as u64;
            let depth_ns = if cost_ns > FIRST_SEEN_DEPTH_NS {
                cost_ns
            } else {
                FIRST_SEEN_DEPTH_NS
            };
            if !take(budget + region as u32, (*cpu).now_ns, cost_ns, depth_ns) {
                return 0;
            }
        }
        *left = draw - 1;
    }
    1
}

/// Takes `cost_ns` from a shared bucket; false when it is spent, or after the last try.
#[inline(always)]
unsafe fn take(index: u32, now_ns: u64, cost_ns: u64, depth_ns: u64) -> bool {
    let Some(bucket) = BUDGETS.get_ptr_mut(index) else {
        return false;
    };
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        // SAFETY: a live map value; the word is aligned.
        unsafe {
            let cell = &raw mut (*bucket).tat_ns;
            let word = atomic::load(cell);
            let Decision::Conforming { tat } = decide(word, now_ns, cost_ns, depth_ns) else {
                return false;
            };
            if atomic::swap_if(cell, word, tat) {
                return true;
            }
        }
    }
    false
}

/// Takes one malformed frame from the shared malformed budget; 0 when it is spent.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit_malformed() -> u32 {
    let (Some(cpu), Some(config)) = (CPU.get_ptr_mut(0), CONFIG.get_ptr(0)) else {
        return 0;
    };
    // SAFETY: map values live while the program runs.
    unsafe {
        let each_ns = (*config).malformed_ns;
        let depth_ns = (*config).malformed_burst_ns;
        (each_ns != 0 && take(BUDGET_MALFORMED, (*cpu).now_ns, each_ns, depth_ns)) as u32
    }
}
