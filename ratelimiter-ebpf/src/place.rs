//! Which part of the tables a source belongs to: one byte per /16, where that says so one bit per /24
//! (IPv6: /32), and one bit per promoted source.

use ratelimiter_common::abi::config::{
    Config, FINE_WORDS, LOOK_FURTHER, PROMOTED_WORDS, fine4_bit, fine6_bit, flags,
};
use ratelimiter_common::abi::counters::CpuState;
use ratelimiter_common::parse::Packet;
use ratelimiter_common::perm::{perm32, perm64};
use ratelimiter_common::source;

use crate::maps::{COARSE4, COARSE6, FINE4, FINE6, PROMOTED};
use crate::scratch::{self, Arrival, put};
use crate::{atomic, lookup};

/// Where a source belongs.
pub(crate) enum Place {
    /// To the crowd of a zone; with its key, and that under the bijection.
    Crowd { zone: u32, key: u64, hash: u64 },
    /// It may be tracked or listed.
    Further,
    /// Nowhere: no host may send from there.
    Malformed,
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

/// Writes down an IPv4 packet; `set` are the [`flags`] in force. Returns where its source belongs.
///
/// # Safety
///
/// `cpu` is this CPU's map value, `config` a live one.
#[inline(always)]
pub(crate) unsafe fn place4(
    cpu: *mut CpuState,
    config: *const Config,
    set: u64,
    packet: Packet,
) -> Place {
    // SAFETY: as the caller promises.
    unsafe {
        let arrival = scratch::arrival(cpu);
        let address = packet.low as u32;
        let key = source::v4(address);
        let hash = perm32(&(*config).perm, address) as u64;
        put(&raw mut (*arrival).key, key);
        Arrival::put_packet(arrival, packet);
        put(&raw mut (*arrival).hash, hash);
        put(&raw mut (*arrival).zone, 0);
        if set & (flags::PREFIXES | flags::PROMOTED) as u64 == 0 {
            return Place::Crowd { zone: 0, key, hash };
        }
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
            && bit!(PROMOTED, cpu, PROMOTED_WORDS, source::promoted_bit(key))
        {
            return Place::Further;
        }
        put(&raw mut (*arrival).zone, zone as u64);
        let zone = zone as u32;
        Place::Crowd { zone, key, hash }
    }
}

/// As [`place4`] for an IPv6 packet. Returns where its source belongs.
///
/// # Safety
///
/// As [`place4`].
#[inline(always)]
pub(crate) unsafe fn place6(
    cpu: *mut CpuState,
    config: *const Config,
    set: u64,
    packet: Packet,
) -> Place {
    // SAFETY: as the caller promises.
    unsafe {
        let arrival = scratch::arrival(cpu);
        Arrival::put_packet(arrival, packet);
        put(&raw mut (*arrival).zone, 0);
        let Some(key) = source::v6(packet.high, packet.low, (*config).v6_mask) else {
            put(&raw mut (*arrival).key, 0);
            return Place::Malformed;
        };
        put(&raw mut (*arrival).key, key);
        let hash = perm64(&(*config).perm, key);
        put(&raw mut (*arrival).hash, hash);
        if set & (flags::PREFIXES | flags::PROMOTED) as u64 == 0 {
            return Place::Crowd { zone: 0, key, hash };
        }
        let mut zone = 0;
        if set & flags::PREFIXES as u64 != 0
            && let Some(coarse) = lookup::only(&COARSE6)
        {
            // Read anew: a number of which nothing was found out meanwhile.
            let high = atomic::load(&raw const (*arrival).packet.high);
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
        put(&raw mut (*arrival).zone, zone as u64);
        let zone = zone as u32;
        Place::Crowd { zone, key, hash }
    }
}
