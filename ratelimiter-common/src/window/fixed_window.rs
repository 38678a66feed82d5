//! Fixed window: one counter that starts anew when the window is over.
//!
//! The window begins with the first request after the previous one ended. Bound: at most
//! `L * (ceil(w / W) + 1)` in any window of length `w`, because a rolling window may cover the end
//! of one and the beginning of the next: up to `2 * L` around a boundary.

use super::{Decision, WindowLimit};

/// State of one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// When the window began, in nanoseconds.
    pub start_ns: u64,
    /// Units admitted since.
    pub current: u64,
}

impl Counter {
    /// Returns the state as it reads at `now_ns`: an ended or empty window begins anew.
    #[inline(always)]
    #[must_use]
    pub const fn roll(self, now_ns: u64, window_ns: u64) -> Self {
        if self.current == 0 || now_ns.saturating_sub(self.start_ns) >= window_ns {
            Self {
                start_ns: now_ns,
                current: 0,
            }
        } else {
            self
        }
    }

    /// Returns how much of the limit is in use at `now_ns`.
    #[inline(always)]
    #[must_use]
    pub const fn used(self, now_ns: u64, window_ns: u64) -> u64 {
        self.roll(now_ns, window_ns).current
    }
}

/// Decides whether an arrival of `cost` units conforms at `now_ns`.
///
/// ```
/// use ratelimiter_common::window::{Decision, WindowLimit, fixed_window::{Counter, decide}};
/// let limit = WindowLimit::new(10, 60);
/// let full = Counter { start_ns: 1_000, current: 10 };
/// assert_eq!(decide(full, 1_030, 1, &limit), Decision::NonConforming { retry_after: 30 });
/// assert!(matches!(decide(full, 1_060, 1, &limit), Decision::Conforming { remaining: 9, .. }));
/// ```
#[inline(always)]
#[must_use]
pub const fn decide(
    counter: Counter,
    now_ns: u64,
    cost: u64,
    limit: &WindowLimit,
) -> Decision<Counter> {
    let counter = counter.roll(now_ns, limit.window_ns);
    let ends_after = counter
        .start_ns
        .saturating_add(limit.window_ns)
        .saturating_sub(now_ns);
    let used = counter.current.saturating_add(cost);
    if used <= limit.limit {
        Decision::Conforming {
            state: Counter {
                start_ns: counter.start_ns,
                current: used,
            },
            remaining: limit.limit - used,
            reset_after: if used == 0 { 0 } else { ends_after },
        }
    } else if cost > limit.limit {
        Decision::ExceedsBurst
    } else {
        Decision::NonConforming {
            retry_after: if ends_after == 0 { 1 } else { ends_after },
        }
    }
}
