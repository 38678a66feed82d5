//! Which policy a packet falls under, and what its clocks read now.

use aya_ebpf::btf_maps::lpm_trie::Key;
use ratelimiter_common::abi::config::{REGIONS, SEGMENTS, ZONES as ZONE_COUNT};
use ratelimiter_common::abi::counters::{CpuState, ZoneCache};
use ratelimiter_common::abi::crowd::{CAP_SLACK_NS, MAX_COST};
use ratelimiter_common::abi::policy::{MAX_PARENTS, NO_REGION, PolicyEntry, Zone, action};
use ratelimiter_common::quota::KERNEL_UNITS;
use ratelimiter_common::vclock::NEVER;
use ratelimiter_common::verdict::Mode;

use crate::arrival::Arrival;
use crate::maps::{
    CONFIG, CPU, POLICIES, POLICY_INDEX, PREFIXES4, PREFIXES6, SEGMENT_CLOCKS, SEGMENT_INDEX, ZONES,
};
use crate::outcome::Outcome;

/// [`ZoneCache::units`] of a zone without a policy.
pub(crate) const NO_POLICY: u32 = 1 << 31;

/// Returns segment time at the CPU's clock.
#[inline(always)]
pub(crate) unsafe fn segment_ns(cpu: *mut CpuState, segment: u32) -> u64 {
    let segment = segment & (SEGMENTS as u32 - 1);
    // SAFETY: the index is masked; `cpu` is this CPU's map value.
    unsafe {
        let time = &raw mut (*cpu).segment_times[segment as usize];
        if (*time).at_ns != (*cpu).now_ns {
            return refresh_segment(segment);
        }
        (*time).segment_ns
    }
}

/// Works out a segment's time for the CPU's clock.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn refresh_segment(segment: u32) -> u64 {
    let segment = segment & (SEGMENTS as u32 - 1);
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: map values live while the program runs; the index is masked; clocks are immutable.
    unsafe {
        let now_ns = (*cpu).now_ns;
        let clock = SEGMENT_INDEX
            .get_ptr(segment)
            .and_then(|index| SEGMENT_CLOCKS.get_ptr(index.read_volatile()));
        let time = &raw mut (*cpu).segment_times[segment as usize];
        // A segment without a clock runs on real time.
        let segment_ns = match clock {
            Some(clock) if (*clock).pieces[0].speed.mult != 0 => (*clock).at(now_ns),
            _ => now_ns,
        };
        (*time).segment_ns = segment_ns;
        (*time).at_ns = now_ns;
        segment_ns
    }
}

/// Returns the entry in force of a policy slot; `None` if the slot is empty.
#[inline(always)]
pub(crate) unsafe fn entry(slot: u32) -> Option<*const PolicyEntry> {
    // SAFETY: the index is one aligned word, replaced by one store.
    let index = unsafe { POLICY_INDEX.get_ptr(slot)?.read_volatile() };
    if index == 0 {
        None
    } else {
        POLICIES.get_ptr(index)
    }
}

/// Works out a zone's clocks, depths and geometry for the CPU's clock.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn refresh_zone(zone: u32) -> u32 {
    let number = zone & (ZONE_COUNT as u32 - 1);
    let (Some(cpu), Some(config)) = (CPU.get_ptr_mut(0), CONFIG.get_ptr(0)) else {
        return 0;
    };
    // SAFETY: map values live while the program runs; indices are masked; entries are immutable.
    unsafe {
        let cache = &raw mut (*cpu).zones[number as usize];
        let now_ns = (*cpu).now_ns;
        (*cache).at_ns = now_ns;
        (*cache).units = NO_POLICY;
        (*cache).modes = 0;
        (*cache).label = Outcome::label(0, 0, number as u64);
        let Some(zone) = ZONES.get_ptr(number) else {
            return 0;
        };
        let zone: Zone = zone.read_volatile();
        if zone.used == 0 {
            return 0;
        }
        let Some(entry) = entry(zone.slot) else {
            return 0;
        };
        let segment = (*entry).segment;
        let segment_ns = segment_ns(cpu, segment);
        let mut units = 0;
        let mut modes = 0;
        for unit in 0..KERNEL_UNITS {
            let region = zone.regions[unit];
            if (*entry).units >> unit & 1 == 0 || region == NO_REGION {
                continue;
            }
            let piece = (*entry).clocks[unit].piece(now_ns);
            let mode = piece.mode & 3;
            if mode == Mode::Off as u32 {
                continue;
            }
            units |= 1 << unit;
            modes |= mode << (2 * unit);
            let region4 = &raw const (*config).regions4[region as usize & (REGIONS - 1)];
            let region6 = &raw const (*config).regions6[region as usize & (REGIONS - 1)];
            let out = &raw mut (*cache).unit[unit];
            (*out).now = piece.at(segment_ns);
            (*out).burst = piece.burst;
            (*out).cap = piece.debt_cap(CAP_SLACK_NS) + MAX_COST;
            (*out).base4 = (*region4).base_set;
            (*out).mask4 = (*region4).set_mask;
            (*out).bits4 = (*region4).set_bits;
            (*out).base6 = (*region6).base_set;
            (*out).mask6 = (*region6).set_mask;
            (*out).bits6 = (*region6).set_bits;
        }
        (*cache).units = units;
        (*cache).modes = modes;
        (*cache).label = Outcome::label(zone.slot, segment, number as u64);
    }
    0
}

/// Returns the zone's cache, fresh.
#[inline(always)]
pub(crate) unsafe fn zone_cache(cpu: *mut CpuState, zone: u64) -> *mut ZoneCache {
    // SAFETY: `cpu` is this CPU's map value; the index is masked.
    unsafe {
        let number = zone as usize & (ZONE_COUNT - 1);
        if (*cpu).zones[number].at_ns != (*cpu).now_ns {
            refresh_zone(number as u32);
        }
        &raw mut (*cpu).zones[number]
    }
}

/// What the prefixes say about a source, in one number: action in bits 0..8, whether it ends by
/// itself in bit 8, slot or zone in bits 32..64.
#[derive(Clone, Copy)]
pub(crate) struct Meaning(u64);

impl Meaning {
    /// One of [`action`]; `PARENT` if no prefix says anything.
    #[inline(always)]
    pub(crate) const fn action(self) -> u32 {
        self.0 as u32 & 0xff
    }

    /// Whether it ends by itself, so that it must not be remembered.
    #[inline(always)]
    pub(crate) const fn ends(self) -> bool {
        self.0 & ENDS != 0
    }

    /// Slot or zone.
    #[inline(always)]
    pub(crate) const fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

const ENDS: u64 = 1 << 8;

/// Asks the prefixes about an arrival. A `TRACKED` prefix counts only where `tracked` is not 0, else
/// it is passed over.
#[inline(always)]
pub(crate) fn resolve(arrival: &Arrival, tracked: u32) -> Meaning {
    Meaning(resolve_prefixes(arrival, tracked))
}

/// Walks from the most specific prefix to the least until one says something.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn resolve_prefixes(arrival: *const Arrival, tracked: u32) -> u64 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return 0;
    };
    if arrival.is_null() {
        return 0;
    }
    // SAFETY: not null, so it is on the caller's stack.
    unsafe {
        let now_ns = (*cpu).now_ns;
        let v4 = (*arrival).family == 4;
        let mut key = Key::new(128, [0_u8; 16]);
        let mut key4 = Key::new(32, ((*arrival).low as u32).to_be_bytes());
        let words: *mut u64 = (&raw mut key.data).cast();
        words.write_unaligned((*arrival).high.to_be());
        words.add(1).write_unaligned((*arrival).low.to_be());
        let mut ends = 0;
        let mut asked = 0;
        while asked <= MAX_PARENTS {
            asked += 1;
            let found = if v4 {
                PREFIXES4.get(&key4)
            } else {
                PREFIXES6.get(&key)
            };
            let Some(found) = found else {
                return ends;
            };
            let value = found.value();
            let (what, slot) = if now_ns < value.until_ns {
                if value.until_ns != NEVER {
                    ends = ENDS;
                }
                (value.action, value.slot)
            } else {
                (value.after_action, value.after_slot)
            };
            let says = match what {
                action::PARENT => false,
                action::TRACKED => tracked != 0,
                _ => true,
            };
            if says {
                return (what & 0xff) as u64 | ends | (slot as u64) << 32;
            }
            if value.prefix_len == 0 {
                return ends;
            }
            key.prefix_len = value.prefix_len - 1;
            key4.prefix_len = value.prefix_len - 1;
        }
        ends
    }
}
