//! Checks per second and their 99th percentile over the last ten seconds, from counters that only
//! rise.

use std::collections::VecDeque;

use crate::admin::views::{BreakerView, ChecksView};
use crate::agent::state::Shared;
use crate::limiter::{DURATION_BOUNDS_NS, DURATION_BUCKETS, Reason, Totals};

/// The time looked at, in nanoseconds.
const SPAN_NS: u64 = 10_000_000_000;
/// Time between two totals kept, in nanoseconds.
const STEP_NS: u64 = 1_000_000_000;

/// Checks over the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::agent) struct CheckRates {
    /// Per second.
    checks: f64,
    /// Of these, denied, per second.
    denied: f64,
    /// In seconds.
    p99: Option<f64>,
}

/// Totals of the last ten seconds, a second apart.
#[derive(Debug, Default)]
pub(super) struct Throughput {
    kept: VecDeque<(u64, Totals)>,
}

impl Throughput {
    /// Notes the totals at `now_ns` and says what became of those ten seconds before, or of the
    /// oldest known.
    pub(super) fn note(&mut self, now_ns: u64, totals: Totals) -> CheckRates {
        while self
            .kept
            .get(1)
            .is_some_and(|(at_ns, _)| now_ns.saturating_sub(*at_ns) >= SPAN_NS)
        {
            self.kept.pop_front();
        }
        let rates = self.kept.front().map_or_else(CheckRates::default, |first| {
            CheckRates::between(first, now_ns, &totals)
        });
        let is_due = |(at_ns, _): &(u64, Totals)| now_ns.saturating_sub(*at_ns) >= STEP_NS;
        if self.kept.back().is_none_or(is_due) {
            self.kept.push_back((now_ns, totals));
        }
        rates
    }
}

fn split(totals: &Totals) -> [u64; 2] {
    Reason::ALL.into_iter().fold([0, 0], |[yes, no], reason| {
        let count = totals.of(reason);
        if reason.allows() {
            [yes + count, no]
        } else {
            [yes, no + count]
        }
    })
}

impl CheckRates {
    fn between((at_ns, before): &(u64, Totals), now_ns: u64, after: &Totals) -> Self {
        let elapsed_s = now_ns.saturating_sub(*at_ns) as f64 / 1e9;
        if elapsed_s <= 0.0 {
            return Self::default();
        }
        let ([yes, no], [yes_before, no_before]) = (split(after), split(before));
        let denied = no.saturating_sub(no_before) as f64;
        let allowed = yes.saturating_sub(yes_before) as f64;
        let counts = std::array::from_fn(|n| {
            let [new, old] = [after, before].map(|t| t.durations.get(n).copied().unwrap_or(0));
            new.saturating_sub(old)
        });
        Self {
            checks: (allowed + denied) / elapsed_s,
            denied: denied / elapsed_s,
            p99: quantile_s(&counts, 0.99),
        }
    }
}

/// The quantile `q` of durations counted by bucket, in seconds, evenly spread within a bucket; what
/// is above every bound counts as the last one.
fn quantile_s(counts: &[u64; DURATION_BUCKETS], q: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let wanted = q * total as f64;
    let (mut below, mut from_ns) = (0.0, 0.0);
    for (count, bound_ns) in counts.iter().zip(DURATION_BOUNDS_NS) {
        let (count, bound_ns) = (*count as f64, bound_ns as f64);
        if count > 0.0 && below + count >= wanted {
            let share = ((wanted - below) / count).clamp(0.0, 1.0);
            return Some((from_ns + share * (bound_ns - from_ns)) / 1e9);
        }
        below += count;
        from_ns = bound_ns;
    }
    Some(from_ns / 1e9)
}

/// How the check API does.
pub(in crate::agent) fn view(shared: &Shared) -> ChecksView {
    let limiter = shared.checks.limiter();
    let [allowed, denied] = split(&limiter.totals());
    let rates = shared.figured.load().checks;
    let stats = limiter.stats();
    ChecksView {
        allowed,
        denied,
        per_s: rates.checks,
        denied_per_s: rates.denied,
        p99_s: rates.p99,
        clients: stats.clients,
        clients_capacity: stats.capacity,
        breakers: limiter
            .breakers()
            .into_iter()
            .map(|breaker| BreakerView {
                state: breaker.phase.as_str().to_owned(),
                backend: breaker.backend,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(allowed: u64, denied: u64, bucket: usize) -> Totals {
        let mut totals = Totals {
            checks: [0; Reason::ALL.len()],
            durations: [0; DURATION_BUCKETS],
            duration_sum_ns: 0,
        };
        totals.checks[Reason::Conforming as usize] = allowed;
        let refusal = Reason::ALL.into_iter().find(|r| !r.allows()).unwrap();
        totals.checks[refusal as usize] = denied;
        totals.durations[bucket] = allowed + denied;
        totals
    }

    #[test]
    fn rates_are_those_of_the_last_ten_seconds() {
        let mut throughput = Throughput::default();
        let mut last = CheckRates::default();
        // 100 allowed a second for a minute, then 4 denied a second.
        for quarter in 0..400_u64 {
            let fast = quarter.min(240);
            let slow = quarter.saturating_sub(240);
            let sum = totals(fast * 25, slow, 2);
            last = throughput.note(quarter * 250_000_000, sum);
            assert!(throughput.kept.len() <= 12);
        }
        assert!((last.checks - 4.0).abs() < 0.1, "{last:?}");
        assert!((last.denied - 4.0).abs() < 0.1, "{last:?}");
    }

    #[test]
    fn the_quantile_lies_within_its_bucket() {
        let mut counts = [0; DURATION_BUCKETS];
        assert_eq!(quantile_s(&counts, 0.99), None);
        counts[0] = 98;
        counts[5] = 2;
        // Half of the two in 7.5 to 10 us.
        let p99_s = quantile_s(&counts, 0.99).unwrap();
        assert!((p99_s - 8.75e-6).abs() < 1e-9, "{p99_s}");
        counts[DURATION_BOUNDS_NS.len()] = 100;
        assert_eq!(quantile_s(&counts, 0.99), Some(1.0));
    }
}
