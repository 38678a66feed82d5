//! Sliding log: the time of every admitted unit. Exact in every window; memory grows with the
//! limit, so it is meant for small ones (the default up to 64 per window).
//!
//! Bound: at most `L` units in any half-open window `[t, t + W)`.

use super::{Decision, WindowLimit};

/// A ring of times: the caller's memory, wherever it is.
///
/// Only the newest `limit` entries matter, so a ring of that capacity is enough. `get` of a place
/// outside the ring reads as 0 and `set` of one does nothing: the functions here are total.
pub trait Ring {
    /// Number of places.
    fn capacity(&self) -> u32;
    /// Returns the time at `place`, in nanoseconds.
    fn get(&self, place: u32) -> u64;
    /// Stores a time.
    fn set(&mut self, place: u32, time_ns: u64);
}

impl Ring for &mut [u64] {
    fn capacity(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
    fn get(&self, place: u32) -> u64 {
        (**self).get(place as usize).copied().unwrap_or(0)
    }
    fn set(&mut self, place: u32, time_ns: u64) {
        if let Some(entry) = self.get_mut(place as usize) {
            *entry = time_ns;
        }
    }
}

/// Where in the ring the log lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Place of the oldest entry.
    pub head: u32,
    /// Number of entries.
    pub len: u32,
}

impl Span {
    /// Returns the place of the entry `index` after the oldest.
    #[inline(always)]
    const fn place(self, index: u32, capacity: u32) -> u32 {
        match (self.head as u64 + index as u64).checked_rem(capacity as u64) {
            Some(place) => place as u32,
            None => 0,
        }
    }

    /// Returns the span without the entries that are `window_ns` old or older at `now_ns`.
    #[must_use]
    pub fn roll<R: Ring>(self, ring: &R, now_ns: u64, window_ns: u64) -> Self {
        let capacity = ring.capacity();
        let mut span = self;
        if span.len > capacity {
            span.len = capacity;
        }
        while span.len > 0 {
            let age = now_ns.saturating_sub(ring.get(span.place(0, capacity)));
            if age < window_ns {
                break;
            }
            span.head = span.place(1, capacity);
            span.len -= 1;
        }
        span
    }

    /// Returns the time of the entry `index` after the oldest, in nanoseconds.
    pub fn entry<R: Ring>(self, ring: &R, index: u32) -> u64 {
        ring.get(self.place(index, ring.capacity()))
    }

    /// Appends `time_ns`; the oldest entry makes room where the ring is full.
    #[must_use]
    pub fn push<R: Ring>(self, ring: &mut R, time_ns: u64) -> Self {
        let capacity = ring.capacity();
        if capacity == 0 {
            return self;
        }
        let span = if self.len >= capacity {
            Self {
                head: self.place(1, capacity),
                len: capacity - 1,
            }
        } else {
            self
        };
        ring.set(span.place(span.len, capacity), time_ns);
        Self {
            head: span.head,
            len: span.len + 1,
        }
    }
}

/// Decides whether an arrival of `cost` units conforms at `now_ns`; appends to `ring` only when it
/// does. The state is the span; the ring must have room for `limit.cap` entries.
///
/// An entry is never older than its predecessor: where `now_ns` runs backwards, the newest entry's
/// time is used.
///
/// ```
/// use ratelimiter_common::window::{Decision, WindowLimit, sliding_log::{Span, decide}};
/// let limit = WindowLimit::new(2, 60);
/// let mut times = [0_u64; 2];
/// let mut ring = &mut times[..];
/// let mut span = Span::default();
/// for _ in 0..2 {
///     let Decision::Conforming { state, .. } = decide(&mut ring, span, 1_000, 1, &limit) else {
///         panic!("two conform");
///     };
///     span = state;
/// }
/// let third = decide(&mut ring, span, 1_000, 1, &limit);
/// assert_eq!(third, Decision::NonConforming { retry_after: 60 });
/// assert!(matches!(decide(&mut ring, span, 1_060, 1, &limit), Decision::Conforming { .. }));
/// ```
pub fn decide<R: Ring>(
    ring: &mut R,
    span: Span,
    now_ns: u64,
    cost: u64,
    limit: &WindowLimit,
) -> Decision<Span> {
    let mut span = span.roll(ring, now_ns, limit.window_ns);
    let newest = if span.len == 0 {
        now_ns
    } else {
        now_ns.max(span.entry(ring, span.len - 1))
    };
    // Entries beyond the configured limit stem from an older, larger one: the newest count.
    let len = u64::from(span.len).min(limit.cap);
    let used = len.saturating_add(cost);
    let leaves_at = |time_ns: u64| {
        time_ns
            .saturating_add(limit.window_ns)
            .saturating_sub(now_ns)
    };
    if used <= limit.limit {
        // `cost` is at most the limit here, hence the ring's capacity bounds the loop.
        for _ in 0..cost.min(u64::from(ring.capacity())) {
            span = span.push(ring, newest);
        }
        Decision::Conforming {
            state: span,
            remaining: limit.limit - used,
            reset_after: if used == 0 { 0 } else { leaves_at(newest) },
        }
    } else if cost > limit.limit {
        Decision::ExceedsBurst
    } else {
        // So many of the oldest must leave first; at least 1 and at most `span.len`.
        let must_leave = used - limit.limit + (u64::from(span.len) - len);
        let last = span.entry(ring, (must_leave - 1) as u32);
        Decision::NonConforming {
            retry_after: leaves_at(last).max(1),
        }
    }
}
