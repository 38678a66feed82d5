//! The flat, set-associative, debt-ordered tables of everybody who is not tracked.
//!
//! IPv4: a set is one cache line of eight words; `word = tag (32 - s bits) | TAT (32 + s bits)`
//! with `s` = log2 of the region's sets, so set and tag together *are* the address under the keyed
//! bijection. IPv6: a set is eight ways of 16 bytes on two cache lines.

/// Words in an IPv4 set, ways in an IPv6 set.
pub const WAYS: usize = 8;

/// A set of the IPv4 crowd: one cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Set4 {
    /// `tag << (32 + s) | tat`; zero when never used.
    pub words: [u64; WAYS],
}

/// A way of the IPv6 crowd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Way6 {
    /// The source's key; zero when never used.
    pub key: u64,
    /// Busy bit 63, version bits 55..=62, TAT bits 0..=54.
    pub state: u64,
}

/// A set of the IPv6 crowd: two cache lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Set6 {
    /// The ways.
    pub ways: [Way6; WAYS],
}

/// Bit of [`Way6::state`] that is set while a way changes hands.
pub const BUSY: u64 = 1 << 63;
/// Lowest bit of the version in [`Way6::state`].
pub const VERSION_SHIFT: u32 = 55;
/// TAT bits of [`Way6::state`].
pub const TAT6_MASK: u64 = (1 << VERSION_SHIFT) - 1;

/// How far above its burst a crowd debt may read before it is taken for idle: 20 ms of rate plus
/// one cost (`docs/algorithm.md`, "wrap").
pub const CAP_SLACK_NS: u64 = 20_000_000;

/// Largest single cost, in fractions of a unit: a frame of 64 KiB in bytes, or its segments. A crowd
/// debt may read this much above the burst too.
pub const MAX_COST: u64 = 1 << 16;

/// A bucket all CPUs share, on a cache line of its own: GCRA on real nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct SharedBucket {
    /// Theoretical arrival time, real nanoseconds.
    pub tat_ns: u64,
    /// Zero.
    pub reserved: [u64; 7],
}

/// Index in `BUDGETS` of the first-seen budget of IPv4 region 0; region n is n further on.
pub const BUDGET_V4: u32 = 0;
/// Index in `BUDGETS` of the first-seen budget of IPv6 region 0.
pub const BUDGET_V6: u32 = 16;
/// Index in `BUDGETS` of the malformed budget.
pub const BUDGET_MALFORMED: u32 = 32;
/// Entries of `BUDGETS`.
pub const BUDGETS: u32 = 33;
/// Depth of a first-seen budget: 0.1 s.
pub const FIRST_SEEN_DEPTH_NS: u64 = 100_000_000;

const _: () = assert!(size_of::<Set4>() == 64 && size_of::<Set6>() == 128);
const _: () = assert!(size_of::<SharedBucket>() == 64);
