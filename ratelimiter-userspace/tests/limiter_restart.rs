//! Usage over restarts, the configuration service and the circuit breaker.
#![expect(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test that cannot be set up must fail; JSON literals read best in place"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ratelimiter_userspace::control::breaker::{BreakerConfig, Phase};
use ratelimiter_userspace::limiter::source::{Answered, SourceOptions};
use ratelimiter_userspace::limiter::{
    ConfigurationError, ConfigurationService, IdentityKey, RateLimitConfiguration, RateLimiter,
    Reason, SnapshotError, TimeMode, snapshot,
};
use ratelimiter_userspace::policy::model::Document;

const KEY: IdentityKey = IdentityKey(*b"sixteen bytes!!!");
const ALGORITHMS: [&str; 4] = [
    "token_bucket",
    "sliding_log",
    "sliding_window",
    "fixed_window",
];

fn limits(limits: serde_json::Value) -> Document {
    let json = serde_json::json!({ "segments": { "default": { "limits": limits } } });
    serde_json::from_value(json).unwrap()
}

fn limiter(capacity: usize, document: &Document) -> RateLimiter {
    RateLimiter::builder()
        .capacity(capacity)
        .identity_key(KEY)
        .document(document.clone())
        .build()
        .unwrap()
}

fn left(limiter: &RateLimiter, id: &str) -> u64 {
    let answer = limiter.peek(id, 0).unwrap();
    answer.remaining
}

fn unix_ns() -> u64 {
    ratelimiter_userspace::clock::unix_ns()
}

#[test]
fn usage_survives_a_restart_exactly() {
    for algorithm in ALGORITHMS {
        let document = limits(serde_json::json!({
            "default": { "rate_limit": 50, "time_window": "30d", "algorithm": algorithm }
        }));
        let before = limiter(3_000, &document);
        for n in 0..2_000_u64 {
            assert!(before.check(format!("client-{n}"), n % 50).unwrap().allowed);
        }
        let bytes = before.snapshot();
        assert_eq!(snapshot::identity_key(&bytes), Ok(KEY));
        // The same size, larger and smaller.
        for capacity in [3_000, 12_345, 2_800] {
            let after = limiter(capacity, &document);
            let restored = after.restore(&bytes).unwrap();
            assert!(
                restored.clients >= 1_950,
                "{algorithm} {capacity}: {restored:?}"
            );
            for n in 0..2_000 {
                let id = format!("client-{n}");
                assert_eq!(
                    left(&after, &id),
                    left(&before, &id),
                    "{algorithm} {capacity} {id}"
                );
            }
        }
    }
}

#[test]
fn several_quotas_survive_a_restart() {
    let document = limits(serde_json::json!({
        "a": { "rate_limit": 5, "time_window": "1h" },
        "b": { "rate_limit": 100, "time_window": "1d" },
        "c": { "rate_limit": 20, "time_window": "1h", "algorithm": "token_bucket" },
    }));
    let before = limiter(100, &document);
    assert!(before.check("c", 4).unwrap().allowed);
    let after = limiter(100, &document);
    after.restore(&before.snapshot()).unwrap();
    assert!(after.allow_request("c"));
    assert!(!after.allow_request("c"));
}

#[test]
fn time_away_has_passed() {
    for algorithm in ALGORITHMS {
        let document = limits(serde_json::json!({
            "default": { "rate_limit": 10, "time_window": 60, "algorithm": algorithm }
        }));
        let before = limiter(100, &document);
        assert!(before.check("c", 10).unwrap().allowed);
        let bytes = before.snapshot();
        let told = before.peek("c", 1).unwrap().retry_after_ns;
        let away = |ns: u64| {
            let after = limiter(100, &document);
            after.restore_at(&bytes, unix_ns() + ns).unwrap();
            after.peek("c", 1).unwrap()
        };
        let second = 1_000_000_000;
        assert!(!away(told - second).allowed, "{algorithm}");
        assert!(
            away(told - second).retry_after_ns <= second + second / 10,
            "{algorithm}"
        );
        assert!(away(told + second).allowed, "{algorithm}");
    }
}

#[test]
fn the_callers_clock_survives_too() {
    for algorithm in ALGORITHMS {
        let document = limits(serde_json::json!({
            "default": { "rate_limit": 10, "time_window": 60, "algorithm": algorithm }
        }));
        let build = || {
            let builder = RateLimiter::builder().capacity(100).identity_key(KEY);
            builder
                .time_mode(TimeMode::Caller)
                .document(document.clone())
                .build()
                .unwrap()
        };
        let before = build();
        assert_eq!((0..20).filter(|_| before.is_allowed("c", 1000)).count(), 10);
        let after = build();
        after
            .restore_at(&before.snapshot(), unix_ns() + (1 << 50))
            .unwrap();
        assert!(!after.is_allowed("c", 1001), "{algorithm}");
        assert!(after.is_allowed("c", 1067), "{algorithm}");
    }
}

#[test]
fn limits_that_changed_meanwhile_convert_what_is_owed() {
    let before = limiter(
        100,
        &limits(serde_json::json!({
            "default": { "rate_limit": 100, "time_window": 3600, "algorithm": "token_bucket" }
        })),
    );
    assert!(before.check("c", 95).unwrap().allowed);
    let after = limiter(
        100,
        &limits(serde_json::json!({
            "default": { "rate_limit": 100, "time_window": 3600, "algorithm": "sliding_window" }
        })),
    );
    after.restore(&before.snapshot()).unwrap();
    assert_eq!((0..20).filter(|_| after.allow_request("c")).count(), 5);
}

#[test]
fn damaged_snapshots_are_refused_whole() {
    let document =
        limits(serde_json::json!({ "default": { "rate_limit": 10, "time_window": 3600 } }));
    let before = limiter(100, &document);
    for n in 0..40 {
        before.allow_request(format!("{n}"));
    }
    let good = before.snapshot();
    for cut in 0..good.len() {
        assert!(
            limiter(100, &document).restore(&good[..cut]).is_err(),
            "cut at {cut}"
        );
        if cut % 7 == 0 {
            let mut bad = good.clone();
            bad[cut] ^= 0x10;
            let after = limiter(100, &document);
            assert!(after.restore(&bad).is_err(), "flipped at {cut}");
            assert_eq!(after.stats().clients, 0);
        }
    }
    let other = RateLimiter::builder()
        .capacity(100)
        .document(document.clone())
        .build()
        .unwrap();
    assert_eq!(other.restore(&good), Err(SnapshotError::OtherKey));
}

/// Answers for clients called `gold-*`, as told.
struct Service {
    behaviour: AtomicU32,
    asked: AtomicU32,
}

const GOOD: u32 = 0;
const FAILING: u32 = 1;
const HANGING: u32 = 2;

impl ConfigurationService for Service {
    fn configuration<'a>(&'a self, client_id: &'a str) -> Answered<'a> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            match self.behaviour.load(Ordering::Relaxed) {
                GOOD if client_id.starts_with("gold") => Ok(Some(RateLimitConfiguration {
                    segment: None,
                    limits: serde_json::from_value(serde_json::json!({
                        "default": { "rate_limit": 9, "time_window": 3600 }
                    }))
                    .map_err(|error| ConfigurationError(error.to_string()))?,
                })),
                GOOD => Ok(None),
                FAILING => Err(ConfigurationError("out to lunch".to_owned())),
                _ => std::future::pending().await,
            }
        })
    }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if condition() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    panic!("{what} did not happen within 4 s");
}

#[test]
fn a_configuration_service_is_never_awaited() {
    let service = Arc::new(Service {
        behaviour: AtomicU32::new(GOOD),
        asked: AtomicU32::new(0),
    });
    let options = SourceOptions {
        ttl: Duration::from_millis(50),
        deadline: Duration::from_millis(100),
        retry: Duration::from_millis(20),
        ..SourceOptions::default()
    };
    let document =
        limits(serde_json::json!({ "default": { "rate_limit": 3, "time_window": 3600 } }));
    let role: Arc<dyn ConfigurationService> = Arc::clone(&service) as _;
    let limiter = RateLimiter::builder()
        .capacity(100)
        .document(document)
        .configuration_service(role, options)
        .build()
        .unwrap();
    // At first the default segment's, then the service's; what was spent is not given back.
    assert!(limiter.check("gold-1", 3).unwrap().allowed);
    wait_for("the service's limit", || {
        limiter.peek("gold-1", 6).unwrap().allowed
    });
    assert_eq!(
        (0..20).filter(|_| limiter.allow_request("gold-1")).count(),
        6
    );
    // Failing, or hanging: the last known answer stays, refreshed again and again in vain.
    for behaviour in [FAILING, HANGING] {
        service.behaviour.store(behaviour, Ordering::Relaxed);
        let failed = limiter.source_stats().failed;
        wait_for("a failure", || limiter.source_stats().failed >= failed + 2);
        assert_eq!(
            limiter.policy_of("gold-1").unwrap().spec.quotas[0].rate_limit,
            9
        );
        let stranger = format!("gold-{}", behaviour + 10);
        assert_eq!(
            (0..20).filter(|_| limiter.allow_request(&stranger)).count(),
            3
        );
    }
    service.behaviour.store(GOOD, Ordering::Relaxed);
    wait_for("recovery", || limiter.peek("gold-11", 6).unwrap().allowed);
    // Known clients do not make anybody ask.
    wait_for("answers", || limiter.source_stats().answered > 3);
    assert_eq!(limiter.source_stats().dropped, 0);
}

#[test]
fn an_open_breaker_refuses_and_probes() {
    let document: Document = serde_json::from_value(serde_json::json!({
        "segments": {
            "default": { "limits": { "default": { "rate_limit": 1000, "time_window": 1 } } },
            "shop": { "backend": "db", "limits": { "default": { "rate_limit": 1000, "time_window": 1 } } },
        },
        "clients": { "s": { "segment": "shop" } },
    }))
    .unwrap();
    let limiter = RateLimiter::builder()
        .capacity(100)
        .document(document)
        .build()
        .unwrap();
    let config = BreakerConfig {
        open_ns: 150_000_000,
        min_outcomes: 10,
        probes: 4,
        ..BreakerConfig::default()
    };
    limiter.set_breaker("db", Some(config)).unwrap();
    assert!(limiter.allow_request("s"));
    for _ in 0..20 {
        limiter.outcome("db", false, 1.0);
    }
    wait_for("opening", || {
        limiter.check("s", 1).unwrap().reason == Reason::BackendOpen
    });
    assert!(
        limiter.allow_request("c"),
        "another backend's clients go on"
    );
    assert!(matches!(limiter.breakers()[0].phase, Phase::Open { .. }));
    assert_eq!(limiter.breakers()[0].opened_total, 1);
    // Half-open: four probes, no more, until their outcomes are known.
    wait_for("probing", || limiter.allow_request("s"));
    let more = (0..20).filter(|_| limiter.allow_request("s")).count();
    assert_eq!(more, 3);
    for _ in 0..4 {
        limiter.outcome_of("s", true, 1.0);
    }
    wait_for("closing", || {
        limiter.outcome("db", true, 1.0);
        limiter.breakers()[0].phase == Phase::Closed
    });
    assert!(limiter.allow_request("s"));
    limiter.set_breaker("db", None).unwrap();
    assert!(limiter.breakers().is_empty());
}
