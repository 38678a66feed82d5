//! What a packet leaves behind on its way through the program: everything that outlives a call.
//!
//! It lies at the end of [`CpuState`] and not on the stack (see `lookup`), where functions of their
//! own find it without being handed a pointer. One CPU runs one packet at a time.

use ratelimiter_common::abi::config::{Config, GENERIC_SEGMENT_BYTES, flags};
use ratelimiter_common::abi::counters::{CpuState, SCRATCH_WORDS, UnitCache};
use ratelimiter_common::abi::tracked::{SourceKey, Tracked};
use ratelimiter_common::parse::Packet;
use ratelimiter_common::quota::Unit;

use crate::bucket::Look;

/// The number of kernel units, rounded up to a power of two: an index is masked, not compared.
pub(crate) const UNIT_SLOTS: usize = 4;
/// Bytes [`crate::packet::Far`] reads at a time, at most.
pub(crate) const FAR_BYTES: usize = 24;

/// One whole packet or connection.
pub(crate) const ONE: u64 = 1 << Unit::Packets.fraction_bits();

/// See the module.
#[repr(C)]
pub(crate) struct Scratch {
    /// Key of the array being asked.
    pub(crate) index: u32,
    /// Key of the hash being asked.
    pub(crate) source: SourceKey,
    /// The packet.
    pub(crate) arrival: Arrival,
    /// Bytes of a packet at an offset known only at run time.
    pub(crate) far: [u32; FAR_BYTES / 4],
    /// Key of a trie, prefix length first.
    pub(crate) prefix: [u32; 6],
    /// What the look at each unit found: bits of [`crate::bucket::state`].
    pub(crate) found: [u32; UNIT_SLOTS],
    /// By unit.
    pub(crate) looks: [Look; UNIT_SLOTS],
    /// Clocks of the tracked source at hand.
    pub(crate) clocks: [UnitCache; UNIT_SLOTS],
    /// Clocks of the policy it comes from.
    pub(crate) before: [UnitCache; UNIT_SLOTS],
    /// An entry about to be inserted.
    pub(crate) fresh: Tracked,
}

const _: () = assert!(size_of::<Scratch>() <= 8 * SCRATCH_WORDS);

/// One packet.
#[repr(C)]
pub(crate) struct Arrival {
    /// The source's key; 0 where the frame has none.
    pub(crate) key: SourceKey,
    /// What the parser found.
    pub(crate) packet: Packet,
    /// Bytes of the frame.
    pub(crate) bytes: u64,
    /// The key under the bijection of its family.
    pub(crate) hash: u64,
    /// Zone, while it is known.
    pub(crate) zone: u64,
    /// What the packet costs, by unit, in fractions of a unit.
    pub(crate) costs: [u64; UNIT_SLOTS],
}

/// This CPU's scratch.
///
/// # Safety
///
/// `cpu` is this CPU's map value.
#[inline(always)]
pub(crate) unsafe fn of(cpu: *mut CpuState) -> *mut Scratch {
    // SAFETY: the caller's pointer is live; the size is asserted above.
    unsafe { (&raw mut (*cpu).scratch).cast() }
}

/// This CPU's packet.
///
/// # Safety
///
/// `cpu` is this CPU's map value.
#[inline(always)]
pub(crate) unsafe fn arrival(cpu: *mut CpuState) -> *mut Arrival {
    // SAFETY: the caller's pointer is live.
    unsafe { &raw mut (*of(cpu)).arrival }
}

/// Writes a word that a later function reads: never kept in a register or on the stack meanwhile.
///
/// # Safety
///
/// `word` points into a live map value.
#[inline(always)]
pub(crate) unsafe fn put<T>(word: *mut T, value: T) {
    // SAFETY: as the caller promises.
    unsafe { word.write_volatile(value) }
}

impl Arrival {
    /// Writes a packet down, word by word: as one it would go by the stack.
    ///
    /// # Safety
    ///
    /// `this` is this CPU's.
    #[inline(always)]
    pub(crate) unsafe fn put_packet(this: *mut Self, packet: Packet) {
        // SAFETY: a live map value.
        unsafe {
            let to = &raw mut (*this).packet;
            put(&raw mut (*to).high, packet.high);
            put(&raw mut (*to).low, packet.low);
            put((*to).facts_mut(), packet.facts());
        }
    }

    /// The packet as it was parsed.
    ///
    /// # Safety
    ///
    /// `this` is this CPU's.
    #[inline(always)]
    pub(crate) unsafe fn packet(this: *const Self) -> Packet {
        // SAFETY: a live map value.
        unsafe { (&raw const (*this).packet).read_volatile() }
    }

    /// Whether the source is an IPv4 one.
    ///
    /// # Safety
    ///
    /// `this` is this CPU's.
    #[inline(always)]
    pub(crate) unsafe fn is_v4(this: *const Self) -> bool {
        // SAFETY: a live map value.
        unsafe { (*this).packet.facts() & 0xff == 4 }
    }

    /// Works out what the packet costs.
    ///
    /// # Safety
    ///
    /// `this` is this CPU's, `config` a live map value.
    #[inline(always)]
    pub(crate) unsafe fn price(this: *mut Self, config: *const Config) {
        // SAFETY: live map values.
        unsafe {
            let packet = Self::packet(this);
            let mut packets = ONE;
            if (*config).flags & flags::GENERIC != 0 {
                let configured = (*config).generic_segment_bytes;
                let segment_bytes = if configured == 0 {
                    GENERIC_SEGMENT_BYTES
                } else {
                    configured
                };
                packets *= packet.segments(segment_bytes) as u64;
            }
            put(&raw mut (*this).costs[0], packets);
            put(&raw mut (*this).costs[1], (*this).bytes);
            let connections = if packet.syn() { ONE } else { 0 };
            put(&raw mut (*this).costs[2], connections);
        }
    }
}
