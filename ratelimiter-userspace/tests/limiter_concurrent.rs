//! Many threads at once: exact against a serial reference, and nobody gains by being crowded out.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

#[path = "../../ratelimiter-common/tests/model/mod.rs"]
#[expect(dead_code, reason = "the suite of the algorithms uses the rest")]
mod model;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use model::{Bucket, Subject, Verdict};
use ratelimiter_userspace::limiter::{Answer, RateLimiter};
use ratelimiter_userspace::policy::model::Document;

/// A window of about a minute that is a whole number of a packed word's ticks.
const WINDOW: u64 = 57_000 << 20;
const START: u64 = 1 << 57;
const CLIENTS: usize = 1_000;
const THREADS: usize = 4;
/// Checks of each thread between two turns of the clock.
const PER_TURN: usize = if cfg!(debug_assertions) {
    1_250
} else {
    12_500
};
const TURNS: usize = 50;

fn limiter(algorithm: &str, rate_limit: u64, window_ns: u64, capacity: usize) -> RateLimiter {
    let document: Document = serde_json::from_value(serde_json::json!({
        "segments": { "default": { "limits": { "default": {
            "rate_limit": rate_limit,
            "time_window": window_ns as f64 / 1e9,
            "algorithm": algorithm,
        } } } }
    }))
    .unwrap();
    RateLimiter::builder()
        .capacity(capacity)
        .document(document)
        .build()
        .unwrap()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// 2.5 million randomised checks per algorithm, 10 million in all (a thirtieth in debug builds): within a turn the clock stands
/// still, so the order of the threads does not matter, and the serial model must admit exactly what
/// was admitted, and refuse exactly what was refused.
fn is_exact(algorithm: &str, limit: u64, model: impl Fn() -> Box<dyn Subject>) {
    let limiter = limiter(algorithm, limit, WINDOW, 4 * CLIENTS);
    let ids: Vec<String> = (0..CLIENTS).map(|n| format!("client-{n}")).collect();
    let mut models: Vec<Box<dyn Subject>> = ids.iter().map(|_| model()).collect();
    let turns = Barrier::new(THREADS + 1);
    let admitted: Vec<AtomicU64> = ids.iter().map(|_| AtomicU64::new(0)).collect();
    let refused: Vec<AtomicBool> = ids.iter().map(|_| AtomicBool::new(false)).collect();
    let mut random = Random(42);
    let mut now = START;
    let nows: Vec<u64> = (0..TURNS)
        .map(|_| {
            // Steps crowd around a fortieth of the window; now and then two windows pass.
            let step = if random.below(12) == 0 {
                2 * WINDOW
            } else {
                WINDOW / 20
            };
            now += ((random.next() % step) >> 20) << 20;
            now
        })
        .collect();
    let mut over = 0_u64;
    let mut under = 0_u64;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (limiter, ids, turns) = (&limiter, &ids, &turns);
            let (admitted, refused, nows) = (&admitted, &refused, &nows);
            scope.spawn(move || {
                let mut random = Random(thread as u64 + 1);
                let mut out: Vec<Answer> = Vec::new();
                for &now in nows {
                    turns.wait();
                    let mut left = PER_TURN;
                    while left > 0 {
                        let chosen: Vec<usize> = (0..random.below(40).clamp(1, left))
                            .map(|_| random.below(CLIENTS).min(random.below(CLIENTS)))
                            .collect();
                        let asked: Vec<(&str, u64)> =
                            chosen.iter().map(|&n| (ids[n].as_str(), 1)).collect();
                        limiter.check_many(&asked, now, &mut out);
                        for (n, answer) in chosen.iter().zip(&out) {
                            if answer.allowed {
                                admitted[*n].fetch_add(1, Ordering::Relaxed);
                            } else {
                                refused[*n].store(true, Ordering::Relaxed);
                            }
                        }
                        left -= chosen.len();
                    }
                    turns.wait();
                }
            });
        }
        for &now in &nows {
            turns.wait();
            turns.wait();
            for ((model, admitted), refused) in models.iter_mut().zip(&admitted).zip(&refused) {
                let count = admitted.swap(0, Ordering::Relaxed);
                if !matches!(model.check(now, count), Verdict::Pass { .. }) {
                    over += 1;
                }
                let one_more = matches!(model.boxed().check(now, 1), Verdict::Pass { .. });
                if refused.swap(false, Ordering::Relaxed) && one_more {
                    under += 1;
                }
            }
        }
    });
    assert_eq!(
        (over, under),
        (0, 0),
        "{algorithm}: turns with too many, too few"
    );
    assert_eq!(limiter.stats().evicted_in_debt, 0);
    let totals = limiter.totals();
    assert_eq!(
        totals.checks.iter().sum::<u64>() as usize,
        THREADS * PER_TURN * TURNS
    );
    assert!(
        totals.checks[0] > 10_000 && totals.checks[3] > 100,
        "{totals:?}"
    );
}

#[test]
fn sliding_window_is_exact_under_threads() {
    is_exact("sliding_window", 100, || model::packed_sliding(100, WINDOW));
}

#[test]
fn sliding_log_is_exact_under_threads() {
    is_exact("sliding_log", 60, || model::log(60, WINDOW));
}

#[test]
fn fixed_window_is_exact_under_threads() {
    is_exact("fixed_window", 100, || model::packed_fixed(100, WINDOW));
}

#[test]
fn token_bucket_is_exact_under_threads() {
    // The two clocks began at different moments; half a unit apart from every whole one they
    // round alike.
    is_exact("token_bucket", 100, || {
        Box::new(Bucket::new(100, WINDOW, 100))
    });
}

/// Strangers each of the two threads brings.
const STRANGERS: usize = if cfg!(debug_assertions) {
    40_000
} else {
    2_000_000
};

/// Two threads throw strangers at a small table while a throttled client asks on: it gets no more
/// than it would get alone.
fn stays_throttled(algorithm: &str, strangers: usize) {
    const LIMIT: u64 = 50;
    let limiter = limiter(algorithm, LIMIT, WINDOW, 500);
    let stop = AtomicBool::new(false);
    let mut admitted = 0_u64;
    let mut asked = 0_u64;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let limiter = &limiter;
                scope.spawn(move || {
                    let mut out = Vec::new();
                    for n in 0..strangers / 32 {
                        let ids: Vec<(String, u64)> =
                            (0..32).map(|k| (format!("{thread}-{n}-{k}"), 1)).collect();
                        limiter.check_many(&ids, START, &mut out);
                    }
                })
            })
            .collect();
        let (limiter, stop) = (&limiter, &stop);
        let attacker = scope.spawn(move || {
            let mut counts = (0_u64, 0_u64);
            let mut out = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                limiter.check_many(&[("throttled", 1)], START, &mut out);
                counts.0 += 1;
                counts.1 += u64::from(out.iter().any(|answer| answer.allowed));
            }
            counts
        });
        for thread in threads {
            thread.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        (asked, admitted) = attacker.join().unwrap();
    });
    let stats = limiter.stats();
    assert!(
        stats.evicted_in_debt > strangers as u64,
        "the table was never full: {stats:?}"
    );
    assert!(asked > 100, "{asked}");
    assert!(
        admitted <= LIMIT,
        "{algorithm}: {admitted} of {LIMIT} with {asked} asked"
    );
    let slots = 2 * stats.capacity;
    assert!(stats.clients <= slots, "{stats:?}");
    // Nobody else may have gained either: all who ever conformed, over all ways.
    let conforming = limiter.totals().checks[0];
    assert!(
        conforming <= LIMIT * (slots + 24),
        "{algorithm}: {conforming}"
    );
}

#[test]
fn throttled_client_stays_throttled_by_sliding_window() {
    stays_throttled("sliding_window", STRANGERS);
}

#[test]
fn throttled_client_stays_throttled_by_token_bucket() {
    stays_throttled("token_bucket", STRANGERS);
}

#[test]
fn throttled_client_stays_throttled_by_fixed_window() {
    stays_throttled("fixed_window", STRANGERS);
}

#[test]
fn throttled_client_stays_throttled_by_sliding_log() {
    stays_throttled("sliding_log", STRANGERS);
}

/// Edits of the algorithm while checks run: whatever is converted, and however often, nobody gets
/// more than the limit.
#[test]
fn edits_under_load_hand_out_nothing() {
    for (from, to) in [
        ("token_bucket", "sliding_window"),
        ("sliding_window", "fixed_window"),
        ("fixed_window", "sliding_log"),
    ] {
        let with = |algorithm: &str| -> Document {
            serde_json::from_value(serde_json::json!({
                "segments": { "default": { "limits": { "default": {
                    "rate_limit": 500, "time_window": "10d", "algorithm": algorithm,
                } } } }
            }))
            .unwrap()
        };
        let limiter = RateLimiter::builder()
            .capacity(200)
            .document(with(from))
            .build()
            .unwrap();
        let ids: Vec<String> = (0..50).map(|n| format!("client-{n}")).collect();
        let admitted: Vec<AtomicU64> = ids.iter().map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (limiter, ids, admitted) = (&limiter, &ids, &admitted);
                scope.spawn(move || {
                    let mut random = Random(thread + 7);
                    for _ in 0..20_000 {
                        let n = random.below(ids.len());
                        if limiter.allow_request(&ids[n]) {
                            admitted[n].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            for n in 0..60 {
                let algorithm = if n % 2 == 0 { to } else { from };
                limiter.apply_document(&with(algorithm)).unwrap();
                std::thread::park_timeout(std::time::Duration::from_millis(1));
            }
        });
        for count in &admitted {
            let count = count.load(Ordering::Relaxed);
            assert!(count <= 501, "{from}, {to}: {count}");
        }
        assert!(limiter.stats().converted > 50, "{:?}", limiter.stats());
    }
}
