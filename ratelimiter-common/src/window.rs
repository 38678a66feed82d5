//! The request algorithms: one contract, four answers to "may this arrival pass".
//!
//! | algorithm | state | most that passes in any window of length `w` (limit `L` per `W`) |
//! |---|---|---|
//! | [`sliding_log`] | one time per admitted unit | `L` in every `W`; `L * ceil(w / W)` |
//! | [`sliding_window`] | a start and two counters | `L + L * w / W`: a token bucket of burst `L` |
//! | [`fixed_window`] | a start and one counter | `L * (ceil(w / W) + 1)` |
//! | [`token_bucket`] | one time | `burst + L * w / W` |
//!
//! A window begins with the client's first request after idleness, never at a multiple of wall
//! time, so twelve requests within a minute of the first get exactly ten of "10 per minute" from
//! the three window algorithms, whatever their spacing. The token bucket refills meanwhile.
//!
//! Every algorithm is a pure, total function `decide(state, now, cost, limit) -> Decision`. Time is
//! an argument and may stand still or run backwards: an older `now` never admits more. Where the
//! state lives, and what happens when two threads decide at once, is the caller's business.
//!
//! Times are nanoseconds for the window algorithms and fractions of a unit on a policy's unit clock
//! for the token bucket.

pub mod fixed_window;
pub mod sliding_log;
pub mod sliding_window;
pub mod token_bucket;
pub mod word;

/// The answer every algorithm gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<S> {
    /// The arrival passes.
    Conforming {
        /// State after the charge.
        state: S,
        /// What may still be spent at this instant, in the units of `cost`.
        remaining: u64,
        /// Time until the client has its whole limit again, in the units of `now`.
        reset_after: u64,
    },
    /// The arrival does not pass now; nothing was charged.
    NonConforming {
        /// Least time to wait before the same arrival passes, if nothing else arrives; 1 or more.
        /// A hair earlier it does not pass.
        retry_after: u64,
    },
    /// The arrival costs more than the whole limit; it never passes.
    ExceedsBurst,
}

/// A limit as the window algorithms compare against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimit {
    /// Units per window in force now: the configured limit, scaled by the adaptive factor.
    pub limit: u64,
    /// The configured limit. A count above it stems from an older, larger limit and reads as this
    /// one, so that nobody is in debt longer than the new limit takes to come back.
    pub cap: u64,
    /// Length of the window, in nanoseconds; 1 or more.
    pub window_ns: u64,
}

impl WindowLimit {
    /// `limit` units per `window_ns`, unscaled.
    #[must_use]
    pub const fn new(limit: u64, window_ns: u64) -> Self {
        Self {
            limit,
            cap: limit,
            window_ns,
        }
    }
}

/// Returns `a * b / d` rounded up, saturating; 0 when `d` is 0.
///
/// The product is 128 bits wide only where it has to be.
#[inline(always)]
#[must_use]
pub(crate) const fn mul_div_ceil(a: u64, b: u64, d: u64) -> u64 {
    if d == 0 {
        return 0;
    }
    if let Some(product) = a.checked_mul(b) {
        return product.div_ceil(d);
    }
    let quotient = (a as u128 * b as u128).div_ceil(d as u128);
    if quotient > u64::MAX as u128 {
        u64::MAX
    } else {
        quotient as u64
    }
}

/// Returns `a * b / d` rounded down, saturating; 0 when `d` is 0.
#[inline(always)]
#[must_use]
pub(crate) const fn mul_div_floor(a: u64, b: u64, d: u64) -> u64 {
    if d == 0 {
        return 0;
    }
    let quotient = a as u128 * b as u128 / d as u128;
    if quotient > u64::MAX as u128 {
        u64::MAX
    } else {
        quotient as u64
    }
}
