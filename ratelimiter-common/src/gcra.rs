//! The token bucket decision: Generic Cell Rate Algorithm on a unit clock.
//!
//! The user-facing word is *token bucket*; GCRA in virtual-scheduling form (ITU-T I.371) admits
//! exactly the same traffic as a token bucket with continuous refill and needs one word of state.

/// The algorithm's answer to one arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The arrival conforms; the bucket's new TAT.
    Conforming {
        /// Theoretical arrival time after the charge, in fractions of a unit.
        tat: u64,
    },
    /// The arrival does not conform now; nothing was charged.
    NonConforming {
        /// Fractions of a unit the clock must count before the same arrival conforms; 1 or more.
        wait: u64,
    },
    /// The arrival costs more than the bucket holds; it never conforms.
    ExceedsBurst,
}

/// Decides whether an arrival of `cost` conforms at `now`.
///
/// The bucket is described by one number, its theoretical arrival time `tat`; `burst` is its
/// depth. All arguments are fractions of a unit on the policy's unit clock, which ticks at the
/// rate in force. Pass `now` as `tat` for a key never seen before. Arithmetic saturates, so the
/// function cannot panic for any input.
///
/// While the clock advances by `w`, the conforming arrivals cost at most `burst + w` in total.
///
/// ```
/// use ratelimiter_common::gcra::{Decision, decide};
/// // Depth 20, all of it free at time 100.
/// assert_eq!(decide(100, 100, 5, 20), Decision::Conforming { tat: 105 });
/// assert_eq!(decide(118, 100, 5, 20), Decision::NonConforming { wait: 3 });
/// ```
#[inline(always)]
#[must_use]
pub const fn decide(tat: u64, now: u64, cost: u64, burst: u64) -> Decision {
    let debt = tat.saturating_sub(now);
    let after = debt.saturating_add(cost);
    if after <= burst {
        Decision::Conforming {
            tat: now.saturating_add(after),
        }
    } else if cost > burst {
        Decision::ExceedsBurst
    } else {
        Decision::NonConforming {
            wait: after - burst,
        }
    }
}
