//! Which part of the tables a source belongs to: one byte per /16, where that says so one bit per /24
//! (IPv6: /32), and one bit per promoted source.

use ratelimiter_common::abi::config::{
    Config, FINE_WORDS, LOOK_FURTHER, PROMOTED_WORDS, fine4_bit, fine6_bit, flags,
};
use ratelimiter_common::abi::counters::CpuState;
use ratelimiter_common::perm::{perm32, perm64};
use ratelimiter_common::source;

use crate::maps::{COARSE4, COARSE6, FINE4, FINE6, PROMOTED};
use crate::scratch::{self, put};
use crate::{atomic, lookup};

/// Where a source belongs.
pub(crate) enum Place {
    /// To the crowd of a zone.
    Crowd(u32),
    /// It may be tracked or listed.
    Further,
}

/// Whether bit `index` of a table of words is set.
macro_rules! bit {
    ($table:expr, $cpu:expr, $words:expr, $index:expr) => {{
        let index: u32 = $index;
        match lookup::element(&$table, scratch::of($cpu), (index >> 6) & ($words - 1)) {
            Some(word) => (word.read_volatile() >> (index & 63)) & 1 != 0,
            None => false,
        }
    }};
}

/// Writes down the source of an IPv4 packet.
///
/// # Safety
///
/// `cpu` is this CPU's map value, `config` a live one.
#[inline(always)]
pub(crate) unsafe fn write4(cpu: *mut CpuState, config: *const Config, address: u32) {
    // SAFETY: as the caller promises.
    unsafe {
        let arrival = scratch::arrival(cpu);
        put(&raw mut (*arrival).key, source::v4(address));
        put(
            &raw mut (*arrival).hash,
            perm32(&(*config).perm, address) as u64,
        );
    }
}

/// Writes down the source of an IPv6 packet, whose key is `key`: 0 where no host may send from.
///
/// # Safety
///
/// As [`write4`].
#[inline(always)]
pub(crate) unsafe fn write6(cpu: *mut CpuState, config: *const Config, key: u64) {
    // SAFETY: as the caller promises.
    unsafe {
        let arrival = scratch::arrival(cpu);
        put(&raw mut (*arrival).key, key);
        put(&raw mut (*arrival).hash, perm64(&(*config).perm, key));
    }
}

/// Returns where an IPv4 source belongs; `set` are the [`flags`] in force.
///
/// # Safety
///
/// `cpu` is this CPU's map value.
#[inline(always)]
pub(crate) unsafe fn place4(cpu: *mut CpuState, set: u64, address: u32) -> Place {
    if set & (flags::PREFIXES | flags::PROMOTED) as u64 == 0 {
        return Place::Crowd(0);
    }
    // SAFETY: as the caller promises.
    unsafe {
        let mut zone = 0;
        if set & flags::PREFIXES as u64 != 0
            && let Some(coarse) = lookup::only(&COARSE4)
        {
            zone = (*coarse).zones[(address >> 16) as usize];
            if zone == LOOK_FURTHER {
                if bit!(FINE4, cpu, FINE_WORDS, fine4_bit(address)) {
                    return Place::Further;
                }
                zone = 0;
            }
        }
        if set & flags::PROMOTED as u64 != 0
            && bit!(
                PROMOTED,
                cpu,
                PROMOTED_WORDS,
                source::promoted_bit(source::v4(address))
            )
        {
            return Place::Further;
        }
        Place::Crowd(zone as u32)
    }
}

/// As [`place4`] for an IPv6 source: the top 64 bits of its address, and its key.
///
/// # Safety
///
/// As [`place4`].
#[inline(always)]
pub(crate) unsafe fn place6(cpu: *mut CpuState, set: u64, high: u64, key: u64) -> Place {
    if set & (flags::PREFIXES | flags::PROMOTED) as u64 == 0 {
        return Place::Crowd(0);
    }
    // SAFETY: as the caller promises.
    unsafe {
        let mut zone = 0;
        if set & flags::PREFIXES as u64 != 0
            && let Some(coarse) = lookup::only(&COARSE6)
        {
            // A number of which nothing was found out meanwhile.
            let high = atomic::forget64(high, (*cpu).now_ns);
            zone = (*coarse).zones[(high >> 48) as usize];
            if zone == LOOK_FURTHER {
                if bit!(FINE6, cpu, FINE_WORDS, fine6_bit((high >> 32) as u32)) {
                    return Place::Further;
                }
                zone = 0;
            }
        }
        if set & flags::PROMOTED as u64 != 0
            && bit!(PROMOTED, cpu, PROMOTED_WORDS, source::promoted_bit(key))
        {
            return Place::Further;
        }
        Place::Crowd(zone as u32)
    }
}
