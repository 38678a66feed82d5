//! Sliding window from two counters: this window's count, and the previous one's, weighted by how
//! much of it still overlaps the last `W`.
//!
//! Windows follow each other from the client's first request after idleness. Bound: at most
//! `L + L * w / W` in any window of length `w`, that of a token bucket with burst `L`, so up to
//! `2 * L` in one `W` for traffic that comes all at the end of a window; within the first window
//! exactly `L`. Memory: one 64-bit word where the limit allows ([`crate::window::word`] packs it).

use super::{Decision, WindowLimit, mul_div_ceil, mul_div_floor};

/// State of one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// When the current window began, in nanoseconds.
    pub start_ns: u64,
    /// Units admitted since.
    pub current: u64,
    /// Units admitted in the window before.
    pub previous: u64,
}

impl Counters {
    /// Returns the state as it reads at `now_ns`: windows that ended are shifted out, and an idle
    /// client's window begins at `now_ns`.
    #[inline(always)]
    #[must_use]
    pub const fn roll(self, now_ns: u64, window_ns: u64) -> Self {
        let elapsed = now_ns.saturating_sub(self.start_ns);
        if elapsed < window_ns && (self.current | self.previous) != 0 {
            return self;
        }
        // What is left is older than one window: it counts as the previous one for one more.
        if elapsed >= window_ns && elapsed - window_ns < window_ns && self.current != 0 {
            return Self {
                start_ns: self.start_ns.saturating_add(window_ns),
                current: 0,
                previous: self.current,
            };
        }
        Self {
            start_ns: now_ns,
            current: 0,
            previous: 0,
        }
    }

    /// Returns the state with counts above `cap` read as `cap`.
    #[inline(always)]
    #[must_use]
    pub const fn capped(self, cap: u64) -> Self {
        Self {
            start_ns: self.start_ns,
            current: if self.current > cap {
                cap
            } else {
                self.current
            },
            previous: if self.previous > cap {
                cap
            } else {
                self.previous
            },
        }
    }

    /// Returns the weighted count at `now_ns`, rounded up; `self` must be rolled to `now_ns`.
    #[inline(always)]
    const fn weighted(self, now_ns: u64, window_ns: u64) -> u64 {
        if self.previous == 0 {
            return self.current;
        }
        let left = window_ns.saturating_sub(now_ns.saturating_sub(self.start_ns));
        self.current
            .saturating_add(mul_div_ceil(self.previous, left, window_ns))
    }

    /// Returns how much of the limit is in use at `now_ns`, rounded up.
    #[inline(always)]
    #[must_use]
    pub const fn used(self, now_ns: u64, window_ns: u64) -> u64 {
        self.roll(now_ns, window_ns).weighted(now_ns, window_ns)
    }

    /// Returns after how many nanoseconds nothing of this state counts any more.
    #[inline(always)]
    const fn idle_after(self, now_ns: u64, window_ns: u64) -> u64 {
        let windows = if self.current != 0 {
            window_ns.saturating_mul(2)
        } else if self.previous != 0 {
            window_ns
        } else {
            return 0;
        };
        self.start_ns.saturating_add(windows).saturating_sub(now_ns)
    }
}

/// Decides whether an arrival of `cost` units conforms at `now_ns`.
///
/// ```
/// use ratelimiter_common::window::{Decision, WindowLimit, sliding_window::{Counters, decide}};
/// let limit = WindowLimit::new(10, 60);
/// let full = Counters { start_ns: 1_000, current: 10, previous: 0 };
/// // In the next window the ten weigh less and less: nine tenths of them at 1066.
/// assert_eq!(decide(full, 1_000, 1, &limit), Decision::NonConforming { retry_after: 66 });
/// assert!(matches!(decide(full, 1_065, 1, &limit), Decision::NonConforming { .. }));
/// assert!(matches!(decide(full, 1_066, 1, &limit), Decision::Conforming { .. }));
/// ```
#[inline(always)]
#[must_use]
pub const fn decide(
    counters: Counters,
    now_ns: u64,
    cost: u64,
    limit: &WindowLimit,
) -> Decision<Counters> {
    let rolled = counters.roll(now_ns, limit.window_ns).capped(limit.cap);
    let used = rolled
        .weighted(now_ns, limit.window_ns)
        .saturating_add(cost);
    if used <= limit.limit {
        let state = Counters {
            start_ns: rolled.start_ns,
            current: rolled.current.saturating_add(cost),
            previous: rolled.previous,
        };
        Decision::Conforming {
            state,
            remaining: limit.limit - used,
            reset_after: state.idle_after(now_ns, limit.window_ns),
        }
    } else if cost > limit.limit {
        Decision::ExceedsBurst
    } else {
        Decision::NonConforming {
            retry_after: retry_after(rolled, now_ns, cost, limit),
        }
    }
}

/// Returns the least wait before `cost` conforms; `rolled` is rolled to `now_ns`, and `cost` is at
/// most `limit.limit`.
const fn retry_after(rolled: Counters, now_ns: u64, cost: u64, limit: &WindowLimit) -> u64 {
    let window_ns = limit.window_ns;
    let room = limit.limit - cost;
    // In this window: the previous count must weigh at most `room - current`.
    let (start_ns, old, room) = match room.checked_sub(rolled.current) {
        Some(room) if rolled.previous != 0 => (rolled.start_ns, rolled.previous, room),
        // In the next one: today's count is the previous one, and nothing else was admitted.
        _ => (
            rolled.start_ns.saturating_add(window_ns),
            rolled.current,
            room,
        ),
    };
    let may_be_left = mul_div_floor(room, window_ns, old);
    let at = start_ns.saturating_add(window_ns.saturating_sub(may_be_left));
    let wait = at.saturating_sub(now_ns);
    if wait == 0 { 1 } else { wait }
}
