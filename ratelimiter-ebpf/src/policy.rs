//! Which policy a packet falls under, and what its clocks read now.

use core::mem::offset_of;

use ratelimiter_common::abi::config::{REGIONS, SEGMENTS, ZONES as ZONE_COUNT};
use ratelimiter_common::abi::counters::{CpuState, ZoneCache};
use ratelimiter_common::abi::crowd::{CAP_SLACK_NS, MAX_COST};
use ratelimiter_common::abi::policy::{MAX_PARENTS, NO_REGION, PolicyEntry, Zone, action};
use ratelimiter_common::crowd::{tat_bits4, tat_mask};
use ratelimiter_common::vclock::{NEVER, PIECES, Piece, SegmentPiece};
use ratelimiter_common::verdict::Mode;

use crate::atomic::{self, each_unit, fence};
use crate::first_seen::SPENT;
use crate::lookup;
use crate::maps::{
    POLICIES, POLICY_INDEX, PREFIXES4, PREFIXES6, SEGMENT_CLOCKS, SEGMENT_INDEX, ZONES,
};
use crate::outcome::Outcome;
use crate::scratch::{self, Arrival, put};

/// [`ZoneCache::units`] of a zone without a policy.
pub(crate) const NO_POLICY: u32 = 1 << 31;

/// A piece of a clock; what it begins with is the time from which it holds.
pub(crate) trait Dated {}
impl Dated for Piece {}
impl Dated for SegmentPiece {}
const _: () = assert!(offset_of!(Piece, from_ns) == 0 && offset_of!(SegmentPiece, from_ns) == 0);

/// The last piece that has begun at `now_ns`, else the first: `UnitClock::piece`, with an offset of
/// which the verifier knows the bounds only (see [`atomic::each_unit`]).
///
/// # Safety
///
/// `pieces` lies in a live map value.
#[inline(always)]
pub(crate) unsafe fn in_force<P: Dated>(
    pieces: *const [P; PIECES],
    now_ns: u64,
) -> Option<*const P> {
    let first: *const P = pieces.cast();
    // SAFETY: every piece begins with a `u64`; the index is compared with the last one.
    unsafe {
        let has_begun = |piece: usize| first.add(piece).cast::<u64>().read() <= now_ns;
        let index = if has_begun(2) {
            2
        } else if has_begun(1) {
            1
        } else {
            0
        };
        let index = atomic::forget(index, now_ns) as usize;
        if index < PIECES {
            Some(first.add(index))
        } else {
            None
        }
    }
}

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
    let Some(cpu) = lookup::cpu() else {
        return 0;
    };
    // SAFETY: map values live while the program runs; the index is masked; clocks are immutable.
    unsafe {
        let now_ns = (*cpu).now_ns;
        let scratch = scratch::of(cpu);
        let clock = lookup::element(&SEGMENT_INDEX, scratch, segment)
            .and_then(|index| lookup::element(&SEGMENT_CLOCKS, scratch, index.read_volatile()));
        let time = &raw mut (*cpu).segment_times[segment as usize];
        // A segment without a clock runs on real time.
        let segment_ns = match clock {
            Some(clock) if (*clock).pieces[0].speed.mult != 0 => {
                match in_force(&raw const (*clock).pieces, now_ns) {
                    Some(piece) => {
                        let elapsed_ns = now_ns.saturating_sub((*piece).from_ns);
                        let elapsed = (*piece).speed.advance(elapsed_ns);
                        (*piece).base_ns.wrapping_add(elapsed)
                    }
                    None => now_ns,
                }
            }
            _ => now_ns,
        };
        (*time).segment_ns = segment_ns;
        (*time).at_ns = now_ns;
        segment_ns
    }
}

/// Returns where the entry in force of a policy slot lies; 0 if the slot is empty. Ask once per packet:
/// the next moment it may be another entry.
#[inline(always)]
pub(crate) unsafe fn place_of(cpu: *mut CpuState, slot: u32) -> u32 {
    // SAFETY: `cpu` is this CPU's map value; the index is one aligned word, replaced by one store.
    unsafe {
        match lookup::element(&POLICY_INDEX, scratch::of(cpu), slot) {
            Some(index) => index.read_volatile(),
            None => 0,
        }
    }
}

/// Returns the entry at a place; `None` for 0.
#[inline(always)]
pub(crate) unsafe fn entry_at(cpu: *mut CpuState, place: u32) -> Option<*const PolicyEntry> {
    if place == 0 {
        return None;
    }
    // SAFETY: `cpu` is this CPU's map value.
    unsafe { lookup::element(&POLICIES, scratch::of(cpu), place).map(<*mut _>::cast_const) }
}

/// Works out a zone's clocks, depths and geometry for the CPU's clock.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn refresh_zone(zone: u32) -> u32 {
    let number = zone & (ZONE_COUNT as u32 - 1);
    let (Some(cpu), Some(config)) = (lookup::cpu(), lookup::config()) else {
        return 0;
    };
    // SAFETY: map values live while the program runs; indices are masked; entries are immutable.
    unsafe {
        let cache = &raw mut (*cpu).zones[number as usize];
        let now_ns = (*cpu).now_ns;
        (*cache).at_ns = now_ns;
        (*cache).units = NO_POLICY;
        for newcomers in [&raw mut (*cache).newcomers4, &raw mut (*cache).newcomers6] {
            if *newcomers == SPENT {
                *newcomers = 0;
            }
        }
        (*cache).modes = 0;
        (*cache).label = Outcome::label(0, 0, number as u64);
        let Some(zone) = lookup::element(&ZONES, scratch::of(cpu), number) else {
            return 0;
        };
        let zone = Zone::from_word(zone.cast::<u64>().read_volatile());
        if zone.used == 0 {
            return 0;
        }
        let Some(entry) = entry_at(cpu, place_of(cpu, zone.slot)) else {
            return 0;
        };
        let segment = (*entry).segment;
        let segment_ns = segment_ns(cpu, segment);
        let mut units = 0;
        let mut modes = 0;
        each_unit!('unit, unit, {
            let region = zone.regions[unit];
            if (*entry).units >> unit & 1 == 0 || region == NO_REGION {
                break 'unit;
            }
            let Some(piece) = in_force(&raw const (*entry).clocks[unit].pieces, now_ns) else {
                break 'unit;
            };
            let piece = &*piece;
            let mode = piece.mode & 3;
            if mode == Mode::Off as u32 {
                break 'unit;
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
            (*out).tat_bits4 = tat_bits4((*region4).set_bits);
            (*out).tat_mask4 = tat_mask((*region4).set_bits);
        });
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

/// Asks the prefixes about this CPU's packet. A `TRACKED` prefix counts only where `tracked` is not 0,
/// else it is passed over.
#[inline(always)]
pub(crate) fn resolve(tracked: u32) -> Meaning {
    Meaning(resolve_prefixes(tracked))
}

/// Walks from the most specific prefix to the least until one says something.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn resolve_prefixes(tracked: u32) -> u64 {
    let Some(cpu) = lookup::cpu() else {
        return 0;
    };
    // SAFETY: this CPU's map value.
    unsafe {
        let now_ns = (*cpu).now_ns;
        let arrival = scratch::arrival(cpu);
        let v4 = Arrival::is_v4(arrival);
        let key: *mut u32 = (&raw mut (*scratch::of(cpu)).prefix).cast();
        if v4 {
            put(key, 32);
            put(key.add(1), ((*arrival).packet.low as u32).to_be());
        } else {
            let (high, low) = ((*arrival).packet.high, (*arrival).packet.low);
            put(key, 128);
            put(key.add(1), ((high >> 32) as u32).to_be());
            put(key.add(2), (high as u32).to_be());
            put(key.add(3), ((low >> 32) as u32).to_be());
            put(key.add(4), (low as u32).to_be());
        }
        let mut ends = 0;
        let mut asked = 0;
        while asked <= MAX_PARENTS {
            asked += 1;
            let found = if v4 {
                lookup::longest(&PREFIXES4, key)
            } else {
                lookup::longest(&PREFIXES6, key)
            };
            let Some(found) = found else {
                return ends;
            };
            let value = found.read_volatile().value();
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
            put(key, value.prefix_len - 1);
            fence();
        }
        ends
    }
}
