//! One packet on its way through the program, for the functions that are calls of their own. Built
//! only where one of them is called: the common case keeps everything in registers.
//!
//! Those functions are *global*: the verifier checks each once, by itself, instead of once per way
//! that leads there. So they take no pointers but to plain numbers on the caller's stack, and look
//! maps up anew.

use ratelimiter_common::abi::config::{Config, GENERIC_SEGMENT_BYTES, flags};
use ratelimiter_common::abi::tracked::SourceKey;
use ratelimiter_common::parse::Packet;
use ratelimiter_common::quota::{KERNEL_UNITS, Unit};

/// One packet. Numbers only, no padding.
#[repr(C)]
pub struct Arrival {
    /// The source's key.
    pub(crate) key: SourceKey,
    /// The source's address, host order; IPv4 in `low`.
    pub(crate) high: u64,
    /// See `high`.
    pub(crate) low: u64,
    /// The key under the bijection of its family.
    pub(crate) hash: u64,
    /// 4 or 6.
    pub(crate) family: u64,
    /// Zone, while it is known.
    pub(crate) zone: u64,
    /// What the packet costs, by unit, in fractions of a unit.
    pub(crate) costs: [u64; KERNEL_UNITS],
}

/// One whole packet or connection.
pub(crate) const ONE: u64 = 1 << Unit::Packets.fraction_bits();

impl Arrival {
    #[inline(always)]
    pub(crate) unsafe fn new(
        config: *const Config,
        packet: &Packet,
        bytes: u64,
        key: SourceKey,
        hash: u64,
        zone: u64,
    ) -> Self {
        let mut packets = ONE;
        // SAFETY: `config` is a live map value.
        unsafe {
            if (*config).flags & flags::GENERIC != 0 {
                let configured = (*config).generic_segment_bytes;
                let segment_bytes = if configured == 0 {
                    GENERIC_SEGMENT_BYTES
                } else {
                    configured
                };
                packets *= packet.segments(segment_bytes) as u64;
            }
        }
        Self {
            key,
            high: packet.high,
            low: packet.low,
            hash,
            family: packet.kind() as u64,
            zone,
            costs: [packets, bytes, if packet.syn() { ONE } else { 0 }],
        }
    }
}
