//! The common cases, without a detour: packets are the only unit, nobody else is in the way.

use aya_ebpf::bindings::xdp_md;
use ratelimiter_common::abi::config::{ZONES as ZONE_COUNT, flags};
use ratelimiter_common::abi::counters::{CpuState, UnitCache, ZoneCache};
use ratelimiter_common::abi::crowd::WAYS;
use ratelimiter_common::crowd::{debt, find4_by, is_other4, pack4, search4_by, tag4};
use ratelimiter_common::verdict::{Mode, Reason};

use crate::bucket::Shift;
use crate::first_seen::SPENT;
use crate::maps::CROWD4;
use crate::outcome::Outcome;
use crate::scratch::{self, ONE};
use crate::{atomic, crowd4, crowd6, first_seen, limit, lookup, policy};

/// The only unit limited is packets.
const PACKETS_ONLY: u32 = 1;

/// What came of a straight try.
pub(crate) enum Charge {
    /// The packet conformed and was charged.
    Conforming(*const ZoneCache),
    /// It did not, and is dropped.
    Over(*const ZoneCache),
    /// The source is not in its home way.
    Search,
    /// It takes the general way.
    Judge,
}

/// What a look at one way said.
pub(crate) enum Home {
    Charged,
    Over,
    Strange,
    Unclear,
}

/// The zone's cache, fresh, if the zone is a simple one.
#[inline(always)]
unsafe fn simple_zone<const GUARDED: bool>(
    cpu: *mut CpuState,
    set: u64,
    zone: u32,
) -> Option<*const ZoneCache> {
    // SAFETY: `cpu` is this CPU's map value; the index is masked.
    unsafe {
        // One unknown number, whichever way it came here.
        let zone = if GUARDED {
            atomic::forget(zone, (*cpu).now_ns)
        } else {
            zone
        };
        let cache = policy::zone_cache(cpu, zone as u64).cast_const();
        if (*cache).units == PACKETS_ONLY && set & flags::GENERIC as u64 == 0 {
            Some(cache)
        } else {
            None
        }
    }
}

/// Whether a refusal here is final: the clock may not be read again, and what is refused is dropped.
#[inline(always)]
unsafe fn is_final(cpu: *mut CpuState, set: u64, cache: *const ZoneCache) -> bool {
    // SAFETY: as `simple_zone`.
    unsafe {
        (*cpu).rereads_left == 0
            && set & flags::ENFORCE as u64 != 0
            && (*cache).modes & 3 == Mode::Enforce as u32
    }
}

/// Charges an IPv4 source in its home way.
///
/// # Safety
///
/// `cpu` is this CPU's map value and holds the packet.
#[inline(always)]
pub(crate) unsafe fn charge4<const GUARDED: bool>(
    cpu: *mut CpuState,
    set: u64,
    zone: u32,
    hash: u64,
) -> Charge {
    // SAFETY: as the caller promises.
    unsafe {
        let Some(cache) = simple_zone::<GUARDED>(cpu, set, zone) else {
            return Charge::Judge;
        };
        match crowd4::charge_home(cpu, unit_of(cache), hash) {
            Home::Charged => Charge::Conforming(cache),
            Home::Over if is_final(cpu, set, cache) => Charge::Over(cache),
            Home::Strange => Charge::Search,
            _ => Charge::Judge,
        }
    }
}

/// Charges an IPv6 source in its home way.
///
/// # Safety
///
/// As [`charge4`].
#[inline(always)]
pub(crate) unsafe fn charge6<const GUARDED: bool>(
    cpu: *mut CpuState,
    set: u64,
    zone: u32,
    key: u64,
    hash: u64,
) -> Charge {
    // SAFETY: as the caller promises.
    unsafe {
        let Some(cache) = simple_zone::<GUARDED>(cpu, set, zone) else {
            return Charge::Judge;
        };
        match crowd6::charge_home(cpu, unit_of(cache), key, hash) {
            Home::Charged => Charge::Conforming(cache),
            Home::Over if is_final(cpu, set, cache) => Charge::Over(cache),
            Home::Strange => Charge::Search,
            _ => Charge::Judge,
        }
    }
}

/// The first unit of a zone: packets.
#[inline(always)]
unsafe fn unit_of(cache: *const ZoneCache) -> *const UnitCache {
    // SAFETY: `cache` is live.
    unsafe { (&raw const (*cache).unit).cast() }
}

/// Judges an IPv4 source that is not in its home way, in a simple zone whose cache is fresh: in
/// another way of its set, or in the place of a victim.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search4(ctx: *mut xdp_md, hash: u64, zone: u64) -> u64 {
    let Some(cpu) = lookup::cpu() else {
        return 0;
    };
    // SAFETY: this CPU's map value; indices are masked.
    unsafe {
        let cache = &raw const (*cpu).zones[zone as usize & (ZONE_COUNT - 1)];
        let unit = unit_of(cache);
        let (label, mode) = ((*cache).label, (*cache).modes);
        let index = (*unit).base4 + (hash as u32 & (*unit).mask4);
        let Some(set) = lookup::element(&CROWD4, scratch::of(cpu), index) else {
            return judge4(ctx, zone);
        };
        let set: *mut u64 = set.cast();
        let scan = |way: usize| atomic::load(set.add(way));
        let way = find4_by(scan, hash, (*unit).tat_mask4);
        if way < WAYS {
            let cell = set.add(atomic::forget(way as u32, hash) as usize & (WAYS - 1));
            let word = atomic::load(cell);
            if is_other4(word, hash, (*unit).tat_mask4) {
                return judge4(ctx, zone);
            }
            return match crowd4::charge_own(unit, cell, word) {
                Home::Charged => Outcome::judged(label, Reason::Conforming, mode).0,
                Home::Over if (*cpu).rereads_left == 0 => {
                    Outcome::judged(label, Reason::OverPackets, mode).0
                }
                _ => judge4(ctx, zone),
            };
        }
        if (*cache).newcomers4 == SPENT && (*cpu).rereads_left == 0 {
            return Outcome::judged(label, Reason::FirstSeen, mode).0;
        }
        let (now, cap, bits) = ((*unit).now, (*unit).cap, (*unit).bits4);
        let place = search4_by::<Shift>(scan, hash as u32, now, cap, bits);
        let cell = set.add(place.way & (WAYS - 1));
        let word = atomic::load(cell);
        // A newcomer inherits what the victim owed.
        let owed = debt(word, now, cap, (*unit).tat_mask4);
        let after = owed + ONE;
        if place.matched || !is_other4(word, hash, (*unit).tat_mask4) {
            return judge4(ctx, zone);
        }
        if after > (*unit).burst {
            if (*cpu).rereads_left != 0 {
                return judge4(ctx, zone);
            }
            return Outcome::judged(label, Reason::OverPackets, mode).0;
        }
        if first_seen::admit_newcomer(zone, 0) == 0 {
            if (*cpu).rereads_left != 0 {
                return judge4(ctx, zone);
            }
            return Outcome::judged(label, Reason::FirstSeen, mode).0;
        }
        let next = pack4(tag4(hash as u32, bits), now.wrapping_add(after), bits);
        if !atomic::swap_if(cell, word, next) {
            return judge4(ctx, zone);
        }
        Outcome::judged(label, Reason::Conforming, mode).0
    }
}

/// Judges a packet of the crowd the general way.
#[inline(always)]
fn judge4(ctx: *mut xdp_md, zone: u64) -> u64 {
    limit::write_down(ctx, zone);
    crowd4::judge4()
}
