//! Window counters packed into one 64-bit word, so that a check is one compare-and-swap.
//!
//! A word holds the counts and the window's start in ticks of a power of two nanoseconds, between
//! 2^-19 and 2^-18 of the window. A start is rounded down, so a window is at most 4e-6 shorter than
//! configured. Word 0 is an idle client.
//!
//! The start wraps. A client that comes back after exactly a multiple of [`Packing::wrap_ns`] reads
//! as one that is still in its window: it may be refused, never admitted beyond its limit. Whoever
//! keeps words clears idle ones sooner than that.

use super::fixed_window::Counter;
use super::sliding_window::Counters;

/// How a word is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Bits of each counter: 12 or 16 for two counters, 24 for one.
    pub count_bits: u32,
    /// Binary logarithm of a tick in nanoseconds.
    pub tick_shift: u32,
}

/// Largest limit whose two counters fit a word.
pub const MAX_SLIDING_LIMIT: u64 = (1 << 16) - 1;
/// Largest limit whose one counter fits a word.
pub const MAX_FIXED_LIMIT: u64 = (1 << 24) - 1;

/// Returns the tick for a window: between 2^-19 and 2^-18 of it.
const fn tick_shift(window_ns: u64) -> u32 {
    let bits = 64 - window_ns.leading_zeros();
    bits.saturating_sub(19)
}

impl Packing {
    /// Returns the packing of two counters, or `None` where the limit is too large for a word.
    #[must_use]
    pub const fn sliding(limit: u64, window_ns: u64) -> Option<Self> {
        let count_bits = if limit < 1 << 12 {
            12
        } else if limit <= MAX_SLIDING_LIMIT {
            16
        } else {
            return None;
        };
        Some(Self {
            count_bits,
            tick_shift: tick_shift(window_ns),
        })
    }

    /// Returns the packing of one counter, or `None` where the limit is too large for a word.
    #[must_use]
    pub const fn fixed(limit: u64, window_ns: u64) -> Option<Self> {
        if limit > MAX_FIXED_LIMIT {
            return None;
        }
        Some(Self {
            count_bits: 24,
            tick_shift: tick_shift(window_ns),
        })
    }

    /// After how many nanoseconds a start repeats, for a word of two counters.
    #[must_use]
    pub const fn wrap_ns(self) -> u64 {
        let bits = 64 - 2 * (self.count_bits & 31) + self.tick_shift;
        if bits >= 64 { u64::MAX } else { 1 << bits }
    }

    #[inline(always)]
    const fn count_mask(self) -> u64 {
        (1 << (self.count_bits & 31)) - 1
    }

    #[inline(always)]
    const fn saturate(self, count: u64) -> u64 {
        let mask = self.count_mask();
        if count > mask { mask } else { count }
    }

    /// Returns the full start of a window whose lowest `bits` tick bits are stored: the newest one
    /// that is not later than `now_ns`, or one that lies less than an eighth of the wrap ahead (a
    /// clock reading that is a little older than another thread's).
    #[inline(always)]
    const fn start_ns(self, stored: u64, bits: u32, now_ns: u64) -> u64 {
        let mask = u64::MAX >> (64 - bits);
        let now = now_ns >> (self.tick_shift & 63);
        let age = now.wrapping_sub(stored) & mask;
        let start = if age > mask - (mask >> 3) {
            now.saturating_add((mask - age) + 1)
        } else {
            now.saturating_sub(age)
        };
        start << (self.tick_shift & 63)
    }

    /// Packs two counters; counts saturate at what the word holds.
    #[inline(always)]
    #[must_use]
    pub const fn pack_sliding(self, counters: Counters) -> u64 {
        let bits = self.count_bits & 31;
        let tick = counters.start_ns >> (self.tick_shift & 63);
        tick << (2 * bits)
            | self.saturate(counters.previous) << bits
            | self.saturate(counters.current)
    }

    /// Unpacks two counters as seen at `now_ns`.
    #[inline(always)]
    #[must_use]
    pub const fn unpack_sliding(self, word: u64, now_ns: u64) -> Counters {
        let bits = self.count_bits & 31;
        Counters {
            start_ns: self.start_ns(word >> (2 * bits), 64 - 2 * bits, now_ns),
            current: word & self.count_mask(),
            previous: (word >> bits) & self.count_mask(),
        }
    }

    /// Packs one counter; the count saturates at what the word holds.
    #[inline(always)]
    #[must_use]
    pub const fn pack_fixed(self, counter: Counter) -> u64 {
        let bits = self.count_bits & 31;
        let tick = counter.start_ns >> (self.tick_shift & 63);
        tick << bits | self.saturate(counter.current)
    }

    /// Unpacks one counter as seen at `now_ns`.
    #[inline(always)]
    #[must_use]
    pub const fn unpack_fixed(self, word: u64, now_ns: u64) -> Counter {
        let bits = self.count_bits & 31;
        Counter {
            start_ns: self.start_ns(word >> bits, 64 - bits, now_ns),
            current: word & self.count_mask(),
        }
    }
}
