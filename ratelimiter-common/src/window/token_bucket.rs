//! The token bucket under the contract of [`crate::window`]; the arithmetic is [`crate::gcra`].
//!
//! Bound: while the unit clock advances by `w`, at most `burst + w`. "10 per minute" with a burst of
//! 10 admits twelve requests that come one per 5 s, and up to 20 in one minute: choose a window
//! algorithm where that is not meant.

use super::Decision;
use crate::gcra;

/// Decides whether an arrival of `cost` conforms; all arguments in fractions of a unit on the
/// policy's unit clock, state is the theoretical arrival time.
///
/// Debt above `burst` stems from an older, deeper bucket (or from a fleet level) and drains at the
/// clock's speed; who lowers a burst clamps the state with [`clamp`].
///
/// ```
/// use ratelimiter_common::window::{Decision, token_bucket};
/// assert_eq!(
///     token_bucket::decide(0, 100, 5, 20),
///     Decision::Conforming { state: 105, remaining: 15, reset_after: 5 },
/// );
/// assert_eq!(token_bucket::decide(118, 100, 5, 20), Decision::NonConforming { retry_after: 3 });
/// assert_eq!(token_bucket::decide(0, 100, 21, 20), Decision::ExceedsBurst);
/// ```
#[inline(always)]
#[must_use]
pub const fn decide(tat: u64, now: u64, cost: u64, burst: u64) -> Decision<u64> {
    match gcra::decide(tat, now, cost, burst) {
        gcra::Decision::Conforming { tat } => {
            let debt = tat.saturating_sub(now);
            Decision::Conforming {
                state: tat,
                remaining: burst.saturating_sub(debt),
                reset_after: debt,
            }
        }
        gcra::Decision::NonConforming { wait } => Decision::NonConforming { retry_after: wait },
        gcra::Decision::ExceedsBurst => Decision::ExceedsBurst,
    }
}

/// Returns the state after the burst was lowered to `burst` when the unit clock read `changed_at`.
///
/// Debt above the burst can only stem from before the change, so it reads as a bucket that was
/// just empty at that moment: it is whole again one burst after the change, not later. `slack` is
/// how far `now` may lie behind the newest reading anybody charged this state at (threads that read
/// the clock earlier, stamps from the past): debt up to `burst + slack` may be of today and stays.
///
/// ```
/// use ratelimiter_common::window::token_bucket::clamp;
/// assert_eq!(clamp(1_000, 100, 5, 90, 20), 110); // 900 owed, 20 at most at 90
/// assert_eq!(clamp(125, 100, 5, 90, 20), 125); // 25 owed: may be of today
/// ```
#[inline(always)]
#[must_use]
pub const fn clamp(tat: u64, now: u64, slack: u64, changed_at: u64, burst: u64) -> u64 {
    if tat.saturating_sub(now) > burst.saturating_add(slack) {
        changed_at.saturating_add(burst)
    } else {
        tat
    }
}
