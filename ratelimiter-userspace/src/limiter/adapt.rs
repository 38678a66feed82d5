//! Limits that follow a backend's health: what the controllers see of the checks, and how they set
//! the scale of a segment's limits.

use std::sync::Arc;

use super::rate_limiter::RateLimiter;
use super::registry::Compiled;
use super::spec::{PolicySpec, SpecError};

/// Checks of a backend's clients, and what was reported of them, since the limiter was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounts {
    /// Checks that passed.
    pub allowed: u64,
    /// Checks that were refused.
    pub denied: u64,
    /// Outcomes that were good.
    pub good: u64,
    /// Outcomes that were errors.
    pub errors: u64,
    /// Time the good ones took, in microseconds.
    pub latency_us: u64,
}

/// What one client asked for since the demand was last taken.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientDemand {
    /// Its segment.
    pub segment: Arc<str>,
    /// Its checks.
    pub checks: u64,
    /// Checks per second that its limits allow in the long run; `None` if it is not limited.
    pub limit_per_s: Option<f64>,
    /// Who it is, as all hosts of a fleet know it, if one of its limits holds over the fleet.
    pub who: Option<u64>,
}

/// Checks per second that a policy allows in the long run.
fn limit_per_s(spec: &PolicySpec) -> Option<f64> {
    spec.quotas
        .iter()
        .map(|quota| quota.rate_limit as f64 * 1e9 / quota.window_ns as f64)
        .min_by(f64::total_cmp)
}

impl RateLimiter {
    /// Counts the checks of a backend's clients, client by client, from now on or no longer.
    ///
    /// # Errors
    ///
    /// If there are too many backends.
    pub fn observe_backend(&self, backend: &str, on: bool) -> Result<(), SpecError> {
        let engine = &self.inner().engine;
        let number = engine
            .breakers
            .observe(backend, on, self.edit_ns())
            .map_err(SpecError::TooManyBackends)?;
        engine
            .registry
            .edit(self.edit_ns(), |edit| edit.watch(backend, number))
    }

    /// What was counted of a backend that is observed or has a breaker.
    #[must_use]
    pub fn backend_counts(&self, backend: &str) -> Option<BackendCounts> {
        let engine = &self.inner().engine;
        engine.breakers.counts(backend, &engine.counters)
    }

    /// Takes what each client of an observed backend has asked for since the last time.
    #[must_use]
    pub fn take_demand(&self, backend: &str) -> Vec<ClientDemand> {
        let engine = &self.inner().engine;
        let table = engine.registry.table();
        let mut taken = Vec::new();
        engine.breakers.take_demand(backend, |policy, checks, who| {
            let compiled: Option<&Arc<Compiled>> =
                table.get(policy as usize).and_then(Option::as_ref);
            if let Some(compiled) = compiled {
                taken.push(ClientDemand {
                    segment: Arc::clone(&compiled.spec.segment),
                    checks: u64::from(checks),
                    limit_per_s: limit_per_s(&compiled.spec),
                    who: compiled.is_of_fleet().then_some(who),
                });
            }
        });
        taken
    }

    /// Checks per second that a segment's own limits allow each of its clients.
    #[must_use]
    pub fn segment_limit_per_s(&self, segment: &str) -> Option<f64> {
        self.segment_spec(segment)
            .and_then(|spec| limit_per_s(&spec))
    }

    /// Scales every limit of `segment` by `factor`, kept within 0.0001 and 1: buckets fill slower
    /// and hold less, windows hold less. What a bucket holds beyond is gone, and who asked
    /// meanwhile is given nothing when the factor rises again.
    ///
    /// # Errors
    ///
    /// Never with policies that are in force.
    pub fn set_factor(&self, segment: &str, factor: f64) -> Result<(), SpecError> {
        let factor = if factor.is_nan() {
            1.0
        } else {
            factor.clamp(0.0001, 1.0)
        };
        self.inner()
            .engine
            .registry
            .edit(self.edit_ns(), |edit| edit.set_factor(segment, factor))
    }

    /// Bounds what all limited clients of an observed backend may ask together, per second, a
    /// tenth of a second deep; `None` does not.
    pub fn set_guard(&self, backend: &str, per_s: Option<f64>) {
        self.inner().engine.breakers.set_guard(backend, per_s);
    }

    /// Scales the burst of every token bucket by `scale`, kept within 0.1 and 1, never below four
    /// requests; but for quotas that are named in `fixed`. No rate changes, and nothing is given when the scale rises again.
    ///
    /// # Errors
    ///
    /// Never with policies that are in force.
    pub fn set_burst_scale(&self, scale: f64, fixed: &[String]) -> Result<(), SpecError> {
        let scale = if scale.is_nan() {
            1.0
        } else {
            scale.clamp(0.1, 1.0)
        };
        self.inner().engine.registry.edit(self.edit_ns(), |edit| {
            edit.set_burst_scale(scale, fixed.iter().cloned().collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::Reason;
    use crate::policy::model::{Document, Mode};
    use crate::policy::resolve::normalise;

    fn limiter() -> RateLimiter {
        let limiter = RateLimiter::builder()
            .capacity(1_000)
            .mode(Mode::Enforce)
            .build()
            .unwrap();
        let mut document: Document = toml::from_str(
            "[segments.gold]\nbackend = \"api\"\n\
             limits.default = { rate_limit = 100, time_window = 1, algorithm = \"token_bucket\" }\n\
             [clients.a]\nsegment = \"gold\"\n[clients.b]\nsegment = \"gold\"\n\
             limits.default = { rate_limit = 600, time_window = \"1m\" }\n",
        )
        .unwrap();
        normalise(&mut document);
        limiter.apply_document(&document).unwrap();
        limiter
    }

    #[test]
    fn an_observed_backend_is_counted_by_client() {
        let limiter = limiter();
        assert_eq!(limiter.backend_counts("api"), None);
        limiter.observe_backend("api", true).unwrap();
        for _ in 0..150 {
            limiter.allow_request("a");
        }
        limiter.allow_request("b");
        limiter.allow_request("stranger");
        let counts = limiter.backend_counts("api").unwrap();
        assert_eq!(counts.allowed + counts.denied, 151, "strangers use another");
        assert!((100..=110).contains(&(counts.allowed - 1)), "{counts:?}");
        let mut demand = limiter.take_demand("api");
        demand.sort_by_key(|client| client.checks);
        let seen: Vec<_> = demand
            .iter()
            .map(|client| (client.checks, client.limit_per_s))
            .collect();
        assert_eq!(seen, [(1, Some(10.0)), (150, Some(100.0))]);
        assert!(limiter.take_demand("api").is_empty());
        assert_eq!(limiter.segment_limit_per_s("gold"), Some(100.0));

        limiter.outcome("api", true, 1_500.0);
        limiter.outcome("api", false, 9.0);
        let counts = limiter.backend_counts("api").unwrap();
        assert_eq!(
            (counts.good, counts.errors, counts.latency_us),
            (1, 1, 1_500_000)
        );
        limiter.observe_backend("api", false).unwrap();
        limiter.allow_request("a");
        assert!(limiter.take_demand("api").is_empty());
    }

    #[test]
    fn a_reduced_limit_says_that_it_is_reduced() {
        let limiter = limiter();
        let refusal = |id: &str| {
            (0..1_000)
                .map(|_| limiter.check(id, 1).unwrap())
                .find(|answer| !answer.allowed)
                .unwrap()
        };
        assert_eq!(refusal("a").reason, Reason::OverLimit);
        limiter.set_factor("gold", 0.5).unwrap();
        assert_eq!(refusal("a").reason, Reason::ReducedCapacity);
        assert_eq!(refusal("b").reason, Reason::ReducedCapacity);
        assert_eq!(refusal("stranger").reason, Reason::OverLimit);
        limiter.set_factor("gold", 1.0).unwrap();
        assert_eq!(refusal("a").reason, Reason::OverLimit);
    }

    #[test]
    fn a_smaller_burst_forgives_less_and_never_nothing() {
        let limiter = limiter();
        limiter.set_burst_scale(0.25, &[]).unwrap();
        let passed = (0..200).filter(|_| limiter.allow_request("a")).count();
        assert!((25..=30).contains(&passed), "{passed}");
        limiter.set_burst_scale(1.0, &[]).unwrap();
        let more = (0..200).filter(|_| limiter.allow_request("a")).count();
        assert!(more <= 5, "a larger burst adds nothing: {more}");
    }

    #[test]
    fn a_quota_that_is_named_keeps_its_burst() {
        let limiter = limiter();
        let fixed = ["default".to_owned()];
        limiter.set_burst_scale(0.25, &fixed).unwrap();
        let passed = (0..200).filter(|_| limiter.allow_request("a")).count();
        assert!((100..=110).contains(&passed), "{passed}");
    }

    #[test]
    fn a_guard_bounds_all_clients_of_a_backend_together() {
        let limiter = limiter();
        limiter.observe_backend("api", true).unwrap();
        limiter.set_guard("api", Some(50.0));
        let begin_ns = limiter.now_ns();
        let asks: Vec<(&str, u64)> = ["a", "b", "a", "b"].map(|id| (id, 1)).to_vec();
        let (mut answers, mut passed, mut reasons) = (Vec::new(), 0, Vec::new());
        // One second of 40 checks each 10 ms, on the limiter's clock and no other.
        for tick in 0..100 {
            let now_ns = begin_ns + tick * 10_000_000;
            limiter.check_many(&asks, now_ns, &mut answers);
            passed += answers.iter().filter(|answer| answer.allowed).count();
            reasons.extend(answers.iter().filter(|a| !a.allowed).map(|a| a.reason));
        }
        assert!((50..=57).contains(&passed), "{passed}");
        assert!(reasons.contains(&Reason::ReducedCapacity));
        let demand = limiter.take_demand("api");
        let asked: u64 = demand.iter().map(|client| client.checks).sum();
        assert_eq!(asked, 400, "refused ones are asked for too");
        assert!(limiter.allow_request("stranger"), "of another backend");
        limiter.set_guard("api", None);
        let later_ns = begin_ns + 2_000_000_000;
        limiter.check_many(&[("a", 1); 20], later_ns, &mut answers);
        assert!(answers.iter().all(|answer| answer.allowed));
    }
}
