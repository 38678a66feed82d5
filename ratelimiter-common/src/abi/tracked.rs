//! Sources that have an entry of their own in the LRU hash.

use crate::quota::KERNEL_UNITS;

/// Key of a source: 64 bits, IPv4 and IPv6 in one space that never overlaps.
///
/// | top 16 bits | meaning |
/// |---|---|
/// | `0x0000` | IPv4: the low 32 bits are the address |
/// | `0x0001` | one shared bucket of a client: the low 32 bits are the policy slot |
/// | `0x0064`, next 16 `0x0000` | NAT64 64:ff9b::/96: the low 32 bits are the IPv4 address |
/// | `0xff..` | link-local fe80::/10: 56 bits folded from the interface identifier |
/// | other | IPv6: the top 64 bits of the address, masked to the configured prefix |
///
/// Other IPv6 sources under `0000::/8` and all under `ff00::/8` are malformed.
pub type SourceKey = u64;

/// Key of the bucket that all sources of a client share.
#[must_use]
pub const fn shared_key(slot: u32) -> SourceKey {
    (1 << 48) | slot as u64
}

/// Bits of a tracked TAT word below its 8-bit policy tag.
pub const TAT_BITS: u32 = 56;

/// State of one tracked source. Words are changed by compare-and-swap or atomic addition, in
/// place, by the kernel only; the agent asks the `merge` program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tracked {
    /// Policy slot and state in the low 32 bits, prefix generation it was resolved under in the
    /// high 32 (see [`binding`]). A generation other than the configuration's makes the next packet
    /// walk the trie and store what it finds.
    pub binding: u64,
    /// TAT by unit: the policy's tag in the top 8 bits, 56 bits of its unit clock below. Zero for
    /// a bucket never charged.
    pub tats: [u64; KERNEL_UNITS],
    /// Packets offered.
    pub offered: u64,
    /// Packets admitted.
    pub admitted: u64,
    /// Bytes admitted.
    pub admitted_bytes: u64,
    /// Connections (SYN) admitted.
    pub admitted_connections: u64,
    /// Cost multiplier in 1/65536, 65536 or more: the reciprocal of this host's part while the
    /// store is away. Zero reads as 65536.
    pub cost_scale: u32,
    /// Adaptive window q in eighths, 8..=32. Zero reads as 8.
    pub window_eighths: u32,
    /// Real time at which the demand window began, in nanoseconds.
    pub demand_since_ns: u64,
    /// [`Self::offered`] when the demand window now open began.
    pub offered_before: u64,
    /// Packets offered in the last whole demand window, per second.
    pub demand_per_s: u64,
}

/// Bits of a policy slot in [`Tracked::binding`]; the four bits above are a state.
pub const SLOT_MASK: u32 = (1 << 28) - 1;
/// State in [`Tracked::binding`]: limited by the policy in the slot.
pub const LIMITED: u32 = 0;
/// State: on the allow list; the slot is that of the policy that was in force before.
pub const ALLOWED: u32 = 1 << 28;
/// State: on the block list.
pub const BLOCKED: u32 = 2 << 28;
/// State: no longer tracked, judged in the crowd again.
pub const CROWD: u32 = 3 << 28;
/// State: the buckets are being converted from one policy to another; lasts less than a
/// microsecond.
pub const MOVING: u32 = 4 << 28;

/// Puts a binding together. `state` is one of [`LIMITED`], [`ALLOWED`], [`BLOCKED`], [`CROWD`].
#[must_use]
pub const fn binding(slot: u32, state: u32, generation: u32) -> u64 {
    (generation as u64) << 32 | (slot & SLOT_MASK | state) as u64
}

/// Longest tracked debt, beside the burst: this much time at the policy's rate. More reads as idle,
/// so that nobody is locked out by a clock that wrapped; `merge` clamps fleet levels to it.
pub const DEBT_SLACK_NS: u64 = 60_000_000_000;

const _: () = assert!(size_of::<Tracked>() == 96);
