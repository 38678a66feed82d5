//! What is counted on every check, without threads waiting for each other: a shard per thread,
//! summed when somebody looks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::answer::{REASONS, Reason};

/// Threads with a shard of their own; all further ones share the last.
const SHARDS: usize = 256;
/// Most backends whose checks are counted apart.
pub(super) const MAX_BACKENDS: usize = 64;
/// Upper bounds of the duration histogram, in nanoseconds; the last bucket has none.
pub const DURATION_BOUNDS_NS: [u64; 20] = [
    1_000,
    2_000,
    3_000,
    5_000,
    7_500,
    10_000,
    20_000,
    30_000,
    50_000,
    75_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    50_000_000,
    100_000_000,
    1_000_000_000,
];
/// Buckets of the duration histogram.
pub const DURATION_BUCKETS: usize = DURATION_BOUNDS_NS.len() + 1;

/// Numbers of shards nobody uses, and the next never used.
static FREE: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));

struct Mine(usize);

impl Drop for Mine {
    fn drop(&mut self) {
        if self.0 < SHARDS - 1 {
            FREE.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .0
                .push(self.0);
        }
    }
}

thread_local! {
    static MINE: Mine = {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let number = free.0.pop().unwrap_or_else(|| {
            let next = free.1;
            free.1 = (next + 1).min(SHARDS - 1);
            next
        });
        Mine(number)
    };
}

#[repr(align(128))]
struct Shard {
    reasons: [AtomicU64; REASONS],
    durations: [AtomicU64; DURATION_BUCKETS],
    duration_sum_ns: AtomicU64,
    backends: [[AtomicU64; 2]; MAX_BACKENDS],
}

impl Default for Shard {
    fn default() -> Self {
        Self {
            reasons: [const { AtomicU64::new(0) }; REASONS],
            durations: [const { AtomicU64::new(0) }; DURATION_BUCKETS],
            duration_sum_ns: AtomicU64::new(0),
            backends: [const { [const { AtomicU64::new(0) }; 2] }; MAX_BACKENDS],
        }
    }
}

/// See the module's text.
pub(super) struct Counters {
    shards: Box<[OnceLock<Box<Shard>>]>,
}

/// Sums of all shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Checks by reason, in the order of [`Reason::ALL`].
    pub checks: [u64; REASONS],
    /// Durations by bucket of [`DURATION_BOUNDS_NS`]; not cumulative.
    pub durations: [u64; DURATION_BUCKETS],
    /// Sum of all durations, in nanoseconds.
    pub duration_sum_ns: u64,
}

impl Totals {
    /// Checks answered for `reason`.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.checks.get(reason as usize).copied().unwrap_or(0)
    }
}

/// Adds without a locked instruction where this thread is the shard's only writer.
#[inline(always)]
fn add(cell: &AtomicU64, n: u64, alone: bool) {
    if alone {
        cell.store(
            cell.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    } else {
        cell.fetch_add(n, Ordering::Relaxed);
    }
}

impl Counters {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| OnceLock::new()).collect(),
        }
    }

    #[inline(always)]
    fn mine(&self) -> Option<(&Shard, bool)> {
        // A thread that is going away counts with everybody else's last shard.
        let number = MINE.try_with(|mine| mine.0).unwrap_or(SHARDS - 1);
        let shard = self.shards.get(number)?;
        Some((shard.get_or_init(Box::default), number < SHARDS - 1))
    }

    /// Counts one check.
    #[inline(always)]
    pub(super) fn count(&self, reason: Reason) {
        if let Some((shard, alone)) = self.mine()
            && let Some(cell) = shard.reasons.get(reason as usize)
        {
            add(cell, 1, alone);
        }
    }

    /// Counts the checks of a batch, by reason.
    pub(super) fn count_all(&self, reasons: &[u64; REASONS]) {
        if let Some((shard, alone)) = self.mine() {
            for (cell, &n) in shard.reasons.iter().zip(reasons).filter(|(_, n)| **n > 0) {
                add(cell, n, alone);
            }
        }
    }

    /// Counts one check of a watched backend.
    pub(super) fn count_backend(&self, backend: u8, allowed: bool) {
        if let Some((shard, alone)) = self.mine()
            && let Some([yes, no]) = shard.backends.get(backend as usize)
        {
            add(if allowed { yes } else { no }, 1, alone);
        }
    }

    /// Counts `checks` that took `duration_ns` together.
    pub(super) fn observe(&self, duration_ns: u64, checks: u64) {
        let each = duration_ns / checks.max(1);
        let bucket = DURATION_BOUNDS_NS.partition_point(|&bound| bound < each);
        if let Some((shard, alone)) = self.mine()
            && let Some(cell) = shard.durations.get(bucket)
        {
            add(cell, checks, alone);
            add(&shard.duration_sum_ns, duration_ns, alone);
        }
    }

    fn each(&self) -> impl Iterator<Item = &Shard> {
        self.shards
            .iter()
            .filter_map(|shard| shard.get().map(|boxed| &**boxed))
    }

    /// Sums up.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals {
            checks: [0; REASONS],
            durations: [0; DURATION_BUCKETS],
            duration_sum_ns: 0,
        };
        for shard in self.each() {
            for (sum, cell) in totals.checks.iter_mut().zip(&shard.reasons) {
                *sum += cell.load(Ordering::Relaxed);
            }
            for (sum, cell) in totals.durations.iter_mut().zip(&shard.durations) {
                *sum += cell.load(Ordering::Relaxed);
            }
            totals.duration_sum_ns += shard.duration_sum_ns.load(Ordering::Relaxed);
        }
        totals
    }

    /// Checks of a watched backend: allowed, denied.
    pub(super) fn backend(&self, backend: u8) -> [u64; 2] {
        self.each()
            .filter_map(|shard| shard.backends.get(backend as usize))
            .fold([0, 0], |[a, d], [yes, no]| {
                [
                    a + yes.load(Ordering::Relaxed),
                    d + no.load(Ordering::Relaxed),
                ]
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_come_and_go_lose_no_count() {
        let counters = Counters::new();
        for _ in 0..20 {
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for _ in 0..1_000 {
                            counters.count(Reason::Conforming);
                        }
                        counters.observe(64_000, 32);
                    });
                }
            });
        }
        let totals = counters.totals();
        assert_eq!(totals.of(Reason::Conforming), 160_000);
        assert_eq!(totals.durations[1], 160 * 32, "2 us each");
        assert_eq!(totals.duration_sum_ns, 160 * 64_000);
    }
}
