//! A local bucket as the kernel has it, in whole numbers: debt in amounts times the window, so that
//! nothing is rounded.

use ratelimiter_userspace::sync::host::{PART_BITS, WHOLE};

/// Amount of one unit.
pub(crate) const ONE: u64 = 256;

/// One source's bucket on one host.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    /// Debt times [`SCALE`], at `at_us` of the host's clock.
    debt: u128,
    at_us: u64,
    /// Part of the rate the clock runs at, in 1/65536; 0 stands still.
    part: u32,
    /// Amounts per second, and depth.
    limit: u64,
    burst: u64,
    /// Everything admitted.
    pub(crate) spent: u64,
    /// Packets until the next sample.
    until_sample: u64,
}

/// Microseconds of a second, and fractions of a part.
const SCALE: u128 = 1_000_000 << PART_BITS;

impl Bucket {
    pub(crate) fn new(at_us: u64, limit: u64, burst: u64) -> Self {
        Self {
            debt: 0,
            at_us,
            part: WHOLE,
            limit,
            burst,
            spent: 0,
            until_sample: 16,
        }
    }

    fn drain(&mut self, now_us: u64) {
        let elapsed = u128::from(now_us.saturating_sub(self.at_us));
        let brought = elapsed * u128::from(self.limit) * u128::from(self.part);
        self.debt = self.debt.saturating_sub(brought);
        self.at_us = now_us;
    }

    /// What is owed, rounded up.
    pub(crate) fn owed(&mut self, now_us: u64) -> u64 {
        self.drain(now_us);
        self.debt.div_ceil(SCALE) as u64
    }

    /// A packet: whether it passes. `closed` is a policy that denies everything.
    pub(crate) fn admit(&mut self, now_us: u64, closed: bool) -> bool {
        self.drain(now_us);
        let after = self.debt + u128::from(ONE) * SCALE;
        if closed || after > u128::from(self.burst) * SCALE {
            return false;
        }
        self.debt = after;
        self.spent += ONE;
        true
    }

    /// Whether this admitted packet is sampled: one in 32, at random.
    pub(crate) fn sampled(&mut self, countdown: impl FnOnce() -> u64) -> bool {
        self.until_sample -= 1;
        if self.until_sample == 0 {
            self.until_sample = countdown();
            return true;
        }
        false
    }

    /// The helper's raise: never lower.
    pub(crate) fn raise(&mut self, now_us: u64, level: u64) {
        self.drain(now_us);
        self.debt = self.debt.max(u128::from(level) * SCALE);
    }

    /// What a wrong helper would do.
    pub(crate) fn set(&mut self, now_us: u64, level: u64) {
        self.drain(now_us);
        self.debt = u128::from(level) * SCALE;
    }

    /// The part of the rate the clock runs at.
    pub(crate) fn part(&self) -> u32 {
        self.part
    }

    /// Another part of the rate; what is owed stays.
    pub(crate) fn turn(&mut self, now_us: u64, part: u32) {
        self.drain(now_us);
        self.part = part;
    }
}
