//! When to try again: the circuit breaker around the store, and the pace of reconnects. Pure; time
//! and chance are arguments.
//!
//! Closed, commands go out. Some failures in a row, or one that leaves no doubt, open it: then no
//! command waits for anything, and probes are made at a pace that twenty hosts keep without
//! marching in step: at least [`MIN_GAP_NS`] from try to try, plus a random share of a span that
//! doubles up to [`MAX_SPREAD_NS`]. It never gives up. A probe that is answered closes it.

/// Failures in a row that open the breaker.
const FAILURES: u32 = 3;
/// Least time from one try to the next: not more than two a second.
pub(super) const MIN_GAP_NS: u64 = 500_000_000;
/// The random part after the first failure is at most this long; it doubles with each try.
const FIRST_SPREAD_NS: u64 = 50_000_000;
/// Longest random part, so that a store that is back is found within 1.2 s and its answer.
pub(super) const MAX_SPREAD_NS: u64 = 700_000_000;

/// What is known of how the store answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pace {
    failures: u32,
    tries: u32,
    last_try_ns: Option<u64>,
}

/// How bad a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No answer in time, or one that may be different next time.
    Doubtful,
    /// The connection is of no use any more.
    Final,
}

impl Pace {
    /// A try to connect begins.
    pub(super) fn tried(&mut self, now_ns: u64) {
        self.tries = self.tries.saturating_add(1);
        self.last_try_ns = Some(now_ns);
    }

    /// The store answered.
    pub(super) fn answered(&mut self) {
        self.failures = 0;
        self.tries = 0;
    }

    /// The store failed; whether the breaker opens now.
    pub(super) fn failed(&mut self, failure: Failure) -> bool {
        self.failures = match failure {
            Failure::Doubtful => self.failures.saturating_add(1),
            Failure::Final => FAILURES,
        };
        self.failures >= FAILURES
    }

    /// When to try next. `chance` is uniform.
    #[must_use]
    pub(super) fn next_try_ns(&self, now_ns: u64, chance: u64) -> u64 {
        let Some(last) = self.last_try_ns else {
            return now_ns;
        };
        let spread = FIRST_SPREAD_NS
            .checked_shl(self.tries.min(8))
            .unwrap_or(MAX_SPREAD_NS)
            .min(MAX_SPREAD_NS);
        last.saturating_add(MIN_GAP_NS)
            .max(now_ns)
            .saturating_add(chance % spread)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn three_doubtful_failures_or_a_final_one_open() {
        let mut pace = Pace::default();
        assert!(!pace.failed(Failure::Doubtful));
        assert!(!pace.failed(Failure::Doubtful));
        pace.answered();
        assert!(!pace.failed(Failure::Doubtful));
        assert!(!pace.failed(Failure::Doubtful));
        assert!(pace.failed(Failure::Doubtful));
        assert!(Pace::default().failed(Failure::Final));
    }

    #[test]
    fn the_first_try_is_made_at_once() {
        assert_eq!(Pace::default().next_try_ns(7, u64::MAX), 7);
    }

    proptest! {
        /// At most two tries a second, for ever; and never longer than 1.2 s without one.
        #[test]
        fn tries_keep_their_pace(chances in prop::collection::vec(any::<u64>(), 1..200), took in 0_u64..400_000_000) {
            let mut pace = Pace::default();
            let mut now = 1_000_000_000_u64;
            let mut begin = None;
            for chance in chances {
                let next = pace.next_try_ns(now, chance);
                if let Some(begin) = begin {
                    let gap: u64 = next - begin;
                    prop_assert!(gap >= MIN_GAP_NS);
                    prop_assert!(gap <= MIN_GAP_NS + MAX_SPREAD_NS);
                }
                begin = Some(next);
                pace.tried(next);
                pace.failed(Failure::Final);
                now = next + took;
            }
        }
    }
}
