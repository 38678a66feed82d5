//! Budgets all CPUs share: newcomers to the crowd, and malformed frames.

use ratelimiter_common::abi::config::{REGIONS, Region, ZONES as ZONE_COUNT};
use ratelimiter_common::abi::counters::CpuState;
use ratelimiter_common::abi::crowd::{BUDGET_MALFORMED, BUDGET_V4, BUDGET_V6, FIRST_SEEN_DEPTH_NS};
use ratelimiter_common::abi::policy::{NO_REGION, Zone};
use ratelimiter_common::gcra::{Decision, decide};

use crate::atomic::fence;
use crate::bucket::TRIES;
use crate::maps::{BUDGETS, ZONES};
use crate::scratch;
use crate::{atomic, lookup};

/// This CPU's share of a budget that was spent when it drew: it does not ask again until its clock is
/// read again.
pub(crate) const SPENT: u32 = u32::MAX;

/// Takes one newcomer from this CPU's share of the zone's budget, drawing anew when it is used up; 0
/// when it is spent. The budget is that of the first region the zone has. `family` is 0 for IPv4, 1
/// for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit_newcomer(zone: u64, family: u64) -> u32 {
    let (Some(cpu), Some(config)) = (lookup::cpu(), lookup::config()) else {
        return 0;
    };
    // SAFETY: map values live while the program runs; zone and region are masked.
    unsafe {
        let zone = zone as u32 & (ZONE_COUNT as u32 - 1);
        // What belongs to the one lies right before what belongs to the other.
        let family = family as usize & 1;
        let cache = &raw mut (*cpu).zones[zone as usize];
        let left = (&raw mut (*cache).newcomers4).add(family);
        let have = *left;
        if have == SPENT {
            return 0;
        }
        if have != 0 {
            *left = have - 1;
            return 1;
        }
        let Some(zone) = lookup::element(&ZONES, scratch::of(cpu), zone) else {
            return 0;
        };
        let zone = Zone::from_word(zone.cast::<u64>().read_volatile());
        let [packets, bytes, connections] = zone.regions;
        let region = if packets != NO_REGION {
            packets
        } else if bytes != NO_REGION {
            bytes
        } else {
            connections
        };
        let region = region as usize & (REGIONS - 1);
        let regions: *const Region = (&raw const (*config).regions4).cast();
        let geometry = regions.add(REGIONS * family + region);
        let budget = BUDGET_V4 + (BUDGET_V6 - BUDGET_V4) * family as u32;
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
            if !take(cpu, budget + region as u32, cost_ns, depth_ns) {
                *left = SPENT;
                return 0;
            }
        }
        *left = draw - 1;
    }
    1
}

/// Takes `cost_ns` from a shared bucket; false when it is spent, or after the last try.
#[inline(always)]
unsafe fn take(cpu: *mut CpuState, index: u32, cost_ns: u64, depth_ns: u64) -> bool {
    // SAFETY: `cpu` is this CPU's map value.
    let (bucket, now_ns) = unsafe {
        let Some(bucket) = lookup::element(&BUDGETS, scratch::of(cpu), index) else {
            return false;
        };
        (bucket, (*cpu).now_ns)
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
            fence();
        }
    }
    false
}

/// Takes one malformed frame from the shared malformed budget; 0 when it is spent.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit_malformed() -> u32 {
    let (Some(cpu), Some(config)) = (lookup::cpu(), lookup::config()) else {
        return 0;
    };
    // SAFETY: map values live while the program runs.
    unsafe {
        let each_ns = (*config).malformed_ns;
        let depth_ns = (*config).malformed_burst_ns;
        (each_ns != 0 && take(cpu, BUDGET_MALFORMED, each_ns, depth_ns)) as u32
    }
}
