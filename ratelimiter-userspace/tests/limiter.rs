//! The check library as an application meets it: issue 4, items 1 to 3.
#![expect(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test that cannot be set up must fail; JSON literals read best in place"
)]

use std::collections::HashSet;
use std::time::Duration;

use ratelimiter_userspace::limiter::{
    Answer, ClientIdError, RateLimiter, Reason, Request, TimeMode, Timestamp, Unknown,
};
use ratelimiter_userspace::policy::model::Document;

const S: u64 = 1_000_000_000;
/// Far after any edit: edits are dated by the process's own clock.
const T: u64 = 1 << 57;

fn document(json: serde_json::Value) -> Document {
    serde_json::from_value(json).unwrap()
}

fn limits(limits: serde_json::Value) -> Document {
    document(serde_json::json!({ "segments": { "default": { "limits": limits } } }))
}

fn limiter(limits_json: serde_json::Value) -> RateLimiter {
    RateLimiter::builder()
        .capacity(1_000)
        .document(limits(limits_json))
        .build()
        .unwrap()
}

fn at(limiter: &RateLimiter, id: &str, now_ns: u64) -> Answer {
    let mut out = Vec::new();
    limiter.check_many(&[(id, 1)], now_ns, &mut out);
    out.remove(0)
}

fn passes(limiter: &RateLimiter, id: &str, now_ns: u64) -> bool {
    at(limiter, id, now_ns).allowed
}

const ALGORITHMS: [&str; 4] = [
    "token_bucket",
    "sliding_log",
    "sliding_window",
    "fixed_window",
];

#[test]
fn shares_between_threads_and_clones() {
    fn is_shareable<T: Send + Sync + Clone + 'static>() {}
    is_shareable::<RateLimiter>();
}

#[test]
fn caller_mode_replays_exactly() {
    for algorithm in ["sliding_log", "sliding_window", "fixed_window"] {
        let document = limits(serde_json::json!({
            "default": { "rate_limit": 10, "time_window": 60, "algorithm": algorithm }
        }));
        for _ in 0..2 {
            let limiter = RateLimiter::builder()
                .capacity(100)
                .time_mode(TimeMode::Caller)
                .document(document.clone())
                .build()
                .unwrap();
            for _ in 0..10 {
                assert!(limiter.is_allowed("c", 1000), "{algorithm}");
            }
            let eleventh = limiter
                .check_request(&Request {
                    timestamp: Some(Timestamp::from(1000)),
                    ..Request::new(b"c")
                })
                .unwrap();
            assert!(!eleventh.allowed);
            let wait = if algorithm == "sliding_window" {
                66
            } else {
                60
            };
            assert_eq!(eleventh.retry_after_ns, wait * S, "{algorithm}");
            assert!(
                !limiter.is_allowed("c", 1000.0 + wait as f64 - 0.001),
                "{algorithm}"
            );
            assert!(limiter.is_allowed("c", 1001 + wait), "{algorithm}");
            // An older stamp counts as the newest.
            assert_eq!(
                limiter.is_allowed("c", 5),
                limiter.is_allowed("c", 1001 + wait),
                "{algorithm}"
            );
        }
    }
}

#[test]
fn caller_mode_keeps_a_token_bucket_within_its_bound() {
    let limiter = RateLimiter::builder()
        .capacity(100)
        .time_mode(TimeMode::Caller)
        .document(limits(serde_json::json!({
            "default": { "rate_limit": 10, "time_window": 60, "algorithm": "token_bucket" }
        })))
        .build()
        .unwrap();
    let admitted = (0..=600).filter(|n| limiter.is_allowed("c", 1_000.0 + f64::from(*n) / 10.0));
    assert_eq!(admitted.count(), 20, "burst 10 and a minute's 10");
}

#[test]
fn caller_mode_keeps_debt_over_an_update() {
    for algorithm in ALGORITHMS {
        let limiter = RateLimiter::builder()
            .capacity(100)
            .time_mode(TimeMode::Caller)
            .document(limits(serde_json::json!({
                "default": { "rate_limit": 10, "time_window": 60, "algorithm": algorithm }
            })))
            .build()
            .unwrap();
        assert_eq!(
            (0..20).filter(|_| limiter.is_allowed("c", 1000)).count(),
            10
        );
        limiter
            .update_limit("c", 15, Duration::from_mins(1))
            .unwrap();
        assert_eq!(
            (0..20).filter(|_| limiter.is_allowed("c", 1000)).count(),
            5,
            "{algorithm}"
        );
    }
}

#[test]
fn defaults_are_the_log_up_to_64_and_the_window_above() {
    let limiter =
        limiter(serde_json::json!({ "default": { "rate_limit": 10, "time_window": 60 } }));
    for n in 0..10 {
        assert!(passes(&limiter, "c", T + n * S));
    }
    let refused = at(&limiter, "c", T + 30 * S);
    assert_eq!(refused.retry_after_ns, 30 * S);
    assert_eq!(refused.reason, Reason::OverLimit);
    assert!(passes(&limiter, "c", T + 60 * S));
    assert!(!passes(&limiter, "c", T + 60 * S));
}

#[test]
fn every_algorithm_gives_exactly_ten_of_twelve_at_once() {
    for algorithm in ALGORITHMS {
        let limiter = limiter(serde_json::json!({
            "default": { "rate_limit": 10, "time_window": 60, "algorithm": algorithm }
        }));
        let got: Vec<bool> = (0..12).map(|_| passes(&limiter, "c", T)).collect();
        assert_eq!(
            got,
            [[true; 10].as_slice(), &[false; 2]].concat(),
            "{algorithm}"
        );
        assert_eq!(limiter.totals().of(Reason::Conforming), 10);
        assert_eq!(limiter.totals().of(Reason::OverLimit), 2);
    }
}

#[test]
fn retry_after_is_exact_through_the_library() {
    for algorithm in ALGORITHMS {
        let limiter = limiter(serde_json::json!({
            "default": { "rate_limit": 7, "time_window": 11, "algorithm": algorithm }
        }));
        let mut now = T;
        for n in 0..200_u64 {
            now += n * 37_000_001 % S;
            let answer = at(&limiter, "c", now);
            if answer.allowed {
                continue;
            }
            let wait = answer.retry_after_ns;
            assert!(!passes(&limiter, "c", now + wait - 1), "{algorithm} {n}");
            now += wait;
            assert!(passes(&limiter, "c", now), "{algorithm} {n} after {wait}");
        }
    }
}

#[test]
fn several_quotas_are_charged_all_or_nothing_and_the_tightest_answers() {
    let limiter = limiter(serde_json::json!({
        "per_second": { "rate_limit": 3, "time_window": 1 },
        "per_day": { "rate_limit": 5, "time_window": "1d" },
    }));
    for left in [2, 1, 0] {
        let answer = at(&limiter, "c", T);
        assert_eq!((answer.allowed, answer.remaining), (true, left));
    }
    let fourth = at(&limiter, "c", T);
    assert_eq!(
        (fourth.allowed, fourth.retry_after_ns, fourth.limit),
        (false, S, 3)
    );
    // The refused one was charged nowhere: two of the day are left.
    assert!(passes(&limiter, "c", T + S));
    assert!(passes(&limiter, "c", T + S));
    let sixth = at(&limiter, "c", T + S);
    assert_eq!((sixth.allowed, sixth.limit), (false, 5));
    assert_eq!(sixth.retry_after_ns, 86_400 * S - S);
    let names: Vec<_> = limiter
        .policy(sixth.policy)
        .unwrap()
        .spec
        .quotas
        .iter()
        .map(|quota| quota.name.to_string())
        .collect();
    assert_eq!(names[sixth.quota as usize], "per_day");
}

#[test]
fn one_quota_of_several_can_be_asked_by_name() {
    let limiter = limiter(serde_json::json!({
        "reads": { "rate_limit": 3, "time_window": 60 },
        "writes": { "rate_limit": 1, "time_window": 60 },
    }));
    let ask = |limit| {
        let request = Request {
            limit: Some(limit),
            ..Request::new(b"c")
        };
        limiter.check_request(&request).unwrap()
    };
    assert!(ask("writes").allowed);
    assert!(!ask("writes").allowed);
    assert!(ask("reads").allowed && ask("reads").allowed && ask("reads").allowed);
    assert!(!ask("reads").allowed);
    assert_eq!(ask("deletes").reason, Reason::UnknownLimit);
}

#[test]
fn peek_changes_nothing_and_reset_forgets() {
    for algorithm in ALGORITHMS {
        let limiter = limiter(serde_json::json!({
            "default": { "rate_limit": 2, "time_window": 3600, "algorithm": algorithm }
        }));
        assert_eq!(limiter.peek("c", 1).unwrap().remaining, 1, "{algorithm}");
        assert_eq!(limiter.stats().clients, 0, "a peek places nobody");
        assert!(limiter.check("c", 2).unwrap().allowed);
        assert!(!limiter.peek("c", 1).unwrap().allowed);
        assert!(!limiter.allow_request("c"));
        assert!(limiter.reset("c"));
        assert!(!limiter.reset("nobody"));
        assert!(limiter.allow_request("c"), "{algorithm}");
        assert_eq!(limiter.totals().checks.iter().sum::<u64>(), 3);
    }
}

#[test]
fn update_limit_takes_effect_at_once_without_a_second_burst() {
    for algorithm in ALGORITHMS {
        let limiter = limiter(serde_json::json!({
            "default": { "rate_limit": 10, "time_window": 3600, "algorithm": algorithm }
        }));
        for _ in 0..10 {
            assert!(limiter.allow_request("c"), "{algorithm}");
        }
        assert!(!limiter.allow_request("c"));
        limiter
            .update_limit("c", 25, Duration::from_hours(1))
            .unwrap();
        let more = (0..40).filter(|_| limiter.allow_request("c")).count();
        assert_eq!(
            more, 15,
            "{algorithm}: raised means raised, by what was added"
        );
        limiter
            .update_limit("c", 5, Duration::from_hours(1))
            .unwrap();
        let refused = limiter.check("c", 1).unwrap();
        assert!(!refused.allowed, "{algorithm}: lowered means lowered");
        assert!(
            refused.retry_after_ns <= 2 * 3600 * S,
            "{algorithm}: {refused:?}"
        );
        assert_eq!(refused.limit, 5);
        // The others keep the segment's.
        assert_eq!((0..12).filter(|_| limiter.allow_request("d")).count(), 10);
    }
}

#[test]
fn a_document_reprices_everybody_at_once() {
    for algorithm in ALGORITHMS {
        let with = |rate, window: u64| {
            limits(serde_json::json!({
                "default": { "rate_limit": rate, "time_window": window, "algorithm": algorithm }
            }))
        };
        let limiter = RateLimiter::builder()
            .capacity(100)
            .document(with(100, 3600))
            .build()
            .unwrap();
        assert!(limiter.check("c", 100).unwrap().allowed);
        // Ten times the rate, the same depth: what is owed leaves ten times as fast.
        let before = limiter.peek("c", 50).unwrap();
        limiter.apply_document(&with(100, 360)).unwrap();
        let after = limiter.peek("c", 50).unwrap();
        assert!(!after.allowed, "{algorithm}: no second burst");
        let ratio = before.retry_after_ns as f64 / after.retry_after_ns as f64;
        assert!((9.9..10.1).contains(&ratio), "{algorithm}: {ratio}");
        limiter.apply_document(&with(150, 360)).unwrap();
        assert!(limiter.check("c", 50).unwrap().allowed, "{algorithm}");
        assert!(!limiter.check("c", 1).unwrap().allowed, "{algorithm}");
    }
}

#[test]
fn a_changed_algorithm_keeps_what_is_owed() {
    for from in ALGORITHMS {
        for to in ALGORITHMS {
            let with = |algorithm: &str| {
                limits(serde_json::json!({
                    "default": { "rate_limit": 20, "time_window": 3600, "algorithm": algorithm }
                }))
            };
            let limiter = RateLimiter::builder()
                .capacity(100)
                .document(with(from))
                .build()
                .unwrap();
            assert!(limiter.check("c", 15).unwrap().allowed);
            limiter.apply_document(&with(to)).unwrap();
            let more = (0..20).filter(|_| limiter.allow_request("c")).count();
            assert_eq!(more, 5, "{from} to {to}");
        }
    }
}

#[test]
fn a_refused_document_changes_nothing() {
    let limiter = limiter(serde_json::json!({ "default": { "rate_limit": 3, "time_window": 60 } }));
    let bad = document(serde_json::json!({
        "segments": { "default": { "limits": {
            "default": { "rate_limit": 1000, "time_window": 60 },
            "log": { "rate_limit": 5000, "time_window": 60, "algorithm": "sliding_log" },
        } } }
    }));
    let error = limiter.apply_document(&bad).unwrap_err().to_string();
    assert_eq!(
        error,
        "limit `log`: `rate_limit` is 5000; `sliding_log` keeps every request and takes at most \
         4096: use `sliding_window`"
    );
    assert_eq!((0..9).filter(|_| limiter.allow_request("c")).count(), 3);
}

#[test]
fn unknown_clients_have_the_default_segment_or_are_denied_or_allowed() {
    let document = document(serde_json::json!({
        "segments": {
            "default": { "limits": { "default": { "rate_limit": 2, "time_window": 3600 } } },
            "gold": { "limits": { "default": { "rate_limit": 5, "time_window": 3600 } } },
        },
        "clients": { "known": { "segment": "gold" }, "plain": {} },
    }));
    let limiter = RateLimiter::builder()
        .capacity(100)
        .document(document)
        .build()
        .unwrap();
    let count = |id: &str| (0..9).filter(|_| limiter.allow_request(id)).count();
    assert_eq!(
        (count("known"), count("plain"), count("stranger")),
        (5, 2, 2)
    );
    limiter.set_unknown(Unknown::Deny).unwrap();
    assert_eq!(
        limiter.check("stranger", 1).unwrap().reason,
        Reason::UnknownClient
    );
    assert_eq!(
        (count("known"), count("plain")),
        (0, 0),
        "the known keep what they owe"
    );
    limiter.set_unknown(Unknown::Allow).unwrap();
    assert_eq!(
        limiter.check("stranger", 1).unwrap().reason,
        Reason::Unlimited
    );
    assert_eq!(count("another"), 9);
}

#[test]
fn modes_are_off_shadow_and_enforce() {
    let document = document(serde_json::json!({
        "segments": { "default": {
            "mode": "shadow",
            "limits": { "default": { "rate_limit": 2, "time_window": 3600 } },
        } },
        "clients": { "off": { "mode": "off" }, "strict": { "mode": "enforce" } },
    }));
    let limiter = RateLimiter::builder()
        .capacity(100)
        .document(document)
        .build()
        .unwrap();
    let reasons = |id: &str| -> Vec<Reason> {
        (0..3)
            .map(|_| limiter.check(id, 1).unwrap().reason)
            .collect()
    };
    assert_eq!(
        reasons("anybody"),
        [Reason::Conforming, Reason::Conforming, Reason::Shadow]
    );
    assert_eq!(reasons("off"), [Reason::Unlimited; 3]);
    assert_eq!(
        reasons("strict"),
        [Reason::Conforming, Reason::Conforming, Reason::OverLimit]
    );
}

#[test]
fn hostile_ids_never_share_a_bucket() {
    let limiter =
        limiter(serde_json::json!({ "default": { "rate_limit": 1, "time_window": 3600 } }));
    assert_eq!(limiter.check("", 1).unwrap_err(), ClientIdError::Empty);
    let huge = vec![b'x'; 1 << 20];
    assert_eq!(
        limiter.check(&huge, 1).unwrap_err(),
        ClientIdError::TooLong(1 << 20)
    );
    assert_eq!(
        limiter.check([b'x'; 257], 1).unwrap_err(),
        ClientIdError::TooLong(257)
    );
    let mut ids: Vec<Vec<u8>> = vec![
        b"\0".to_vec(),
        b"\0\0".to_vec(),
        b"\r\n".to_vec(),
        b"\r".to_vec(),
        b"{}".to_vec(),
        b"{a}b".to_vec(),
        b":".to_vec(),
        b"*".to_vec(),
        b"'\"`".to_vec(),
        b"a\0".to_vec(),
        b"a".to_vec(),
        b" a".to_vec(),
        b"a ".to_vec(),
        b"A".to_vec(),
        vec![0xff, 0xfe],
        vec![0xc0, 0x80],
        "\u{202e}a".into(),
        "\u{e9}".into(),
        "e\u{301}".into(),
        vec![b'x'; 256],
        vec![b'x'; 255],
    ];
    for n in 0..=255_u8 {
        ids.push(vec![n, n]);
        ids.push(vec![b'k'; n as usize + 1]);
    }
    let distinct: HashSet<_> = ids.iter().collect();
    let allowed = ids.iter().filter(|id| limiter.allow_request(id)).count();
    assert_eq!(allowed, distinct.len());
    assert_eq!(limiter.stats().clients, distinct.len() as u64);
    assert!(ids.iter().all(|id| !limiter.allow_request(id)));
    let mut out = Vec::new();
    limiter.check_many(
        &[(&b""[..], 1), (&huge[..], 1), (&b"fresh"[..], 1)],
        T,
        &mut out,
    );
    let reasons: Vec<Reason> = out.iter().map(|answer| answer.reason).collect();
    assert_eq!(
        reasons,
        [
            Reason::InvalidClientId,
            Reason::InvalidClientId,
            Reason::Conforming
        ]
    );
}

#[test]
fn a_factor_scales_and_gives_everything_back() {
    for algorithm in ALGORITHMS {
        let limiter = limiter(serde_json::json!({
            "default": { "rate_limit": 100, "time_window": 100, "algorithm": algorithm }
        }));
        assert!(limiter.check("c", 60).unwrap().allowed, "{algorithm}");
        limiter.set_factor("default", 0.1).unwrap();
        if algorithm != "token_bucket" {
            assert!(!limiter.allow_request("c"), "{algorithm}: 60 of 10");
            assert_eq!(limiter.peek("d", 1).unwrap().limit, 100);
        }
        limiter.set_factor("default", 1.0).unwrap();
        let more = (0..100).filter(|_| limiter.allow_request("c")).count();
        assert!((40..=41).contains(&more), "{algorithm}: {more}");
    }
}

#[test]
fn many_quotas_survive_without_blocks() {
    // No memory for blocks at all: everybody is judged by one conservative token bucket.
    let limiter = RateLimiter::builder()
        .capacity(1_000)
        .block_bytes(0)
        .document(limits(serde_json::json!({
            "a": { "rate_limit": 5, "time_window": 1 },
            "b": { "rate_limit": 20, "time_window": 60 },
        })))
        .build()
        .unwrap();
    assert_eq!((0..20).filter(|_| passes(&limiter, "c", T)).count(), 5);
    let minute = (0..60).filter(|n| passes(&limiter, "c", T + n * S)).count();
    assert!(
        (15..=25).contains(&minute),
        "{minute}: at most 5 and 20 in a minute"
    );
    assert_eq!(limiter.stats().without_block, 1);
}
