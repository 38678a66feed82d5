//! Batches for the `merge` program: bucket changes that only the kernel may make.
//!
//! The agent runs `merge` by `BPF_PROG_TEST_RUN`; the frame is a [`MergeHeader`] followed by
//! `count` [`MergeOp`]s, and comes back with `result` filled in.

/// Operations, [`MergeOp::op`].
pub mod op {
    /// `tat = max(tat, now + level)` on a tracked source, in place: a fleet level. Never lowers.
    pub const RAISE: u32 = 1;
    /// Inserts a tracked source without replacing one, carrying its crowd debt over. The policy slot
    /// is in `slot`, the zone it comes from in `unit`. Set `flags::PROMOTED` before the first.
    pub const PROMOTE: u32 = 2;
    /// Moves a tracked source back to the crowd and deletes it; refused while its debt exceeds
    /// the burst. With [`super::BY_PREFIX`] for a zone it is never refused for that, and takes a burst
    /// of debt along.
    pub const DEMOTE: u32 = 3;
    /// Forgives a source's debt, tracked or crowd.
    pub const RESET: u32 = 4;
    /// Lowers a tracked debt to at most `level`: once, after a burst was lowered.
    pub const CLAMP: u32 = 5;
    /// Reads a source's debt, tracked or crowd, into `level`.
    pub const READ: u32 = 6;
    /// Sets a tracked source's cost scale to `level`, converting its debt.
    pub const SCALE: u32 = 7;
    /// Raises a tracked source's debts to what it owes in the crowd, but to no more than a burst. The
    /// zone it comes from is in `slot`, one more than its number; 0 for the one that the prefixes
    /// say now. `level` answers it likewise.
    pub const INHERIT: u32 = 8;
}

/// Results, [`MergeOp::result`].
pub mod result {
    /// Not processed.
    pub const PENDING: u32 = 0;
    /// Done.
    pub const DONE: u32 = 1;
    /// No such source.
    pub const ABSENT: u32 = 2;
    /// Refused: the operation's condition does not hold.
    pub const REFUSED: u32 = 3;
    /// Every compare-and-swap lost; try again.
    pub const CONTENDED: u32 = 4;
}

/// [`MergeOp::slot`] of a [`op::DEMOTE`]: to the zone that the prefixes say now.
pub const BY_PREFIX: u32 = u32::MAX;

/// Marks a batch: "RLM1".
pub const MAGIC: u32 = 0x524c_4d31;
/// Most operations in one batch: what fits a linear test-run frame of 3 KiB.
pub const MAX_OPS: usize = 64;

/// Head of a batch. 16 bytes, so that the frame is never shorter than an Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MergeHeader {
    /// [`MAGIC`].
    pub magic: u32,
    /// Operations that follow, at most [`MAX_OPS`].
    pub count: u32,
    /// Zero.
    pub reserved: u64,
}

/// One operation. 40 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MergeOp {
    /// One of [`op`].
    pub op: u32,
    /// [`crate::quota::Unit`] as a number.
    pub unit: u32,
    /// The source's key.
    pub key: u64,
    /// Debt in fractions of a unit, or the value the operation sets or answers.
    pub level: u64,
    /// Policy slot (promote), zone (crowd read, reset, demote).
    pub slot: u32,
    /// 4 or 6: which crowd table the source belongs to.
    pub family: u32,
    /// One of [`result`], written by the kernel.
    pub result: u32,
    /// Prefix generation (promote).
    pub generation: u32,
}

const _: () = assert!(size_of::<MergeHeader>() == 16 && size_of::<MergeOp>() == 40);
