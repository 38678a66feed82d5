//! One contract, one suite: every request algorithm against the same sentences, a serial reference
//! model each, and governor as the token bucket's oracle.

mod model;

use model::{Bucket, FixedModel, LogModel, SlidingModel, Subject, Verdict, all_windows, subjects};
use proptest::prelude::*;

const S: u64 = 1_000_000_000;

/// "10 per minute".
fn ten_per_minute() -> Vec<Box<dyn Subject>> {
    all_windows(10, 60 * S)
}

fn passes(subject: &mut dyn Subject, now_ns: u64) -> bool {
    matches!(subject.check(now_ns, 1), Verdict::Pass { .. })
}

#[test]
fn twelve_requests_get_ten_then_two_refusals() {
    let at_once: Vec<u64> = vec![1_000 * S; 12];
    let spread: Vec<u64> = (0..12).map(|n| (1_000 + 4 * n) * S).collect();
    // The minute of the wall clock turns at 1020: windows are counted from the first request.
    let across: Vec<u64> = (0..12).map(|n| (1_014 + n) * S).collect();
    for (name, times) in [("at once", at_once), ("spread", spread), ("across", across)] {
        for mut subject in ten_per_minute() {
            let got: Vec<bool> = times.iter().map(|&t| passes(&mut *subject, t)).collect();
            let want = [[true; 10].as_slice(), &[false; 2]].concat();
            assert_eq!(got, want, "{} {name}", subject.name());
        }
    }
}

#[test]
fn token_bucket_admits_burst_and_refill() {
    let mut bucket = Bucket::new(10, 60 * S, 10);
    let admitted = (0..12)
        .filter(|n| passes(&mut bucket, (1_000 + 5 * n) * S))
        .count();
    assert_eq!(
        admitted, 12,
        "one per 5 s is below one per 6 s plus a burst of 10"
    );
    let mut bucket = Bucket::new(10, 60 * S, 10);
    let in_a_minute = (0..=60_000).filter(|n| passes(&mut bucket, 1_000 * S + n * S / 1_000));
    assert_eq!(in_a_minute.count(), 20, "burst + rate * 60");
}

#[test]
fn eleventh_request_at_once_is_told_a_minute() {
    for mut subject in ten_per_minute() {
        for _ in 0..10 {
            assert!(passes(&mut *subject, 1_000 * S));
        }
        let Verdict::Refused { retry_after } = subject.check(1_000 * S, 1) else {
            panic!("{} admits an eleventh", subject.name());
        };
        // Two counters forget the ten gradually: the first place is free after 66 s.
        let (told, back) = if subject.name().starts_with("sliding_window") {
            (66 * S, 1_067 * S)
        } else {
            (60 * S, 1_061 * S)
        };
        // A packed word begins its windows on its tick.
        assert!(
            told - retry_after <= subject.tick_ns(),
            "{}: {retry_after}",
            subject.name()
        );
        assert_eq!(
            retry_after.div_ceil(1_000_000) * 1_000_000,
            told,
            "{}",
            subject.name()
        );
        assert!(passes(&mut *subject, back), "{}", subject.name());
    }
}

#[test]
fn a_cost_above_the_limit_never_passes_and_is_never_charged() {
    for mut subject in subjects(10, 60 * S) {
        assert_eq!(
            subject.check(5 * S, 11),
            Verdict::Never,
            "{}",
            subject.name()
        );
        for _ in 0..10 {
            assert!(passes(&mut *subject, 5 * S), "{}", subject.name());
        }
        assert_eq!(
            subject.check(5 * S, u64::MAX),
            Verdict::Never,
            "{}",
            subject.name()
        );
    }
}

#[test]
fn remaining_counts_down_and_reset_is_the_whole_limit_again() {
    for mut subject in subjects(10, 60 * S) {
        let mut reset = 0;
        for left in (0..10).rev() {
            match subject.check(1_000 * S, 1) {
                Verdict::Pass {
                    remaining,
                    reset_after,
                } => {
                    assert_eq!(remaining, left, "{}", subject.name());
                    reset = reset_after;
                }
                other => panic!("{}: {other:?}", subject.name()),
            }
        }
        let then = 1_000 * S + reset;
        match subject.check(then, 10) {
            Verdict::Pass { remaining, .. } => assert_eq!(remaining, 0, "{}", subject.name()),
            other => panic!("{} after {reset} ns: {other:?}", subject.name()),
        }
    }
}

#[test]
fn a_raised_limit_is_usable_at_once_and_is_no_second_burst() {
    for mut subject in subjects(10, 60 * S) {
        assert!(matches!(subject.check(1_000 * S, 10), Verdict::Pass { .. }));
        subject.change_limit(1_000 * S, 25);
        let more = (0..40).filter(|_| passes(&mut *subject, 1_000 * S)).count();
        // The bucket keeps its debt in units and is 15 deeper; so are the windows.
        assert_eq!(more, 15, "{}", subject.name());
    }
}

#[test]
fn a_lowered_limit_holds_at_once_and_locks_nobody_out() {
    for mut subject in subjects(1_000, 60 * S) {
        assert!(matches!(
            subject.check(1_000 * S, 1_000),
            Verdict::Pass { .. }
        ));
        subject.change_limit(1_000 * S, 10);
        assert!(!passes(&mut *subject, 1_000 * S), "{}", subject.name());
        // One new limit takes a minute to come back; two counters weigh it for another.
        let bound = if subject.name().starts_with("sliding_window") {
            120
        } else {
            60
        };
        let then = (1_000 + bound) * S;
        assert!(
            passes(&mut *subject, then),
            "{} is locked out",
            subject.name()
        );
        let more = (0..1_000).filter(|_| passes(&mut *subject, then)).count();
        assert!(more < 10, "{} admits {more} more", subject.name());
    }
}

#[test]
fn extreme_arguments_do_not_panic() {
    let edges = [0, 1, S, u64::MAX / 2, u64::MAX - 1, u64::MAX];
    for limit in [1, 64, 65_535, 1 << 24, 1 << 36] {
        for window in [S, 31_622_400 * S] {
            for mut subject in subjects(limit, window) {
                for now in edges {
                    for cost in edges {
                        let _answer = subject.check(now, cost);
                    }
                }
            }
        }
    }
}

/// Found by `an_older_now_never_admits_more`: clamping without slack took the debt of a stamp from
/// the past for that of an older, deeper bucket and forgave it.
#[test]
fn a_stamp_from_the_past_does_not_read_as_a_lowered_burst() {
    let mut bucket = Bucket::new(1, S, 1);
    assert!(passes(&mut bucket, 1_000 * S + 12_345));
    assert!(!passes(&mut bucket, 1_000 * S - 400_079));
}

/// Gaps that crowd around the interesting moments of a window.
fn gap(window_ns: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => Just(0),
        3 => 0..window_ns / 8,
        2 => 0..window_ns * 3,
        1 => (0_u64..3).prop_map(move |n| window_ns - 1 + n),
    ]
}

fn arrivals(window_ns: u64) -> impl Strategy<Value = Vec<(u64, u64)>> {
    let cost = prop_oneof![6 => Just(1_u64), 2 => 0_u64..5, 1 => 1_u64..40];
    prop::collection::vec((gap(window_ns), cost), 1..120).prop_map(move |steps| {
        let mut now = 1_000 * window_ns + 12_345;
        steps
            .into_iter()
            .map(|(gap, cost)| {
                now += gap;
                (now, cost)
            })
            .collect()
    })
}

fn window_and_arrivals() -> impl Strategy<Value = (u64, Vec<(u64, u64)>)> {
    prop_oneof![Just(S), Just(60 * S), Just(90 * 60 * S), Just(7 * S + 3)]
        .prop_flat_map(|window| (Just(window), arrivals(window)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Waiting `retry_after` makes the same arrival pass; a hair earlier it does not.
    #[test]
    fn retry_after_is_exact(limit in 1_u64..30, (window, arrivals) in window_and_arrivals()) {
        for mut subject in subjects(limit, window) {
            for &(now, cost) in &arrivals {
                if let Verdict::Refused { retry_after } = subject.check(now, cost) {
                    let mut early = subject.boxed();
                    prop_assert!(
                        matches!(early.check(now + retry_after - 1, cost), Verdict::Refused { .. }),
                        "{} passes 1 ns before {retry_after}", subject.name()
                    );
                    let mut later = subject.boxed();
                    prop_assert!(
                        matches!(later.check(now + retry_after, cost), Verdict::Pass { .. }),
                        "{} refuses after {retry_after}", subject.name()
                    );
                }
            }
        }
    }

    /// No rolling window of any length holds more than the algorithm's bound.
    #[test]
    fn no_window_holds_more_than_the_bound(
        limit in 1_u64..30,
        (window, arrivals) in window_and_arrivals(),
    ) {
        for mut subject in subjects(limit, window) {
            let mut admitted: Vec<(u64, u64)> = Vec::new();
            for &(now, cost) in &arrivals {
                if matches!(subject.check(now, cost), Verdict::Pass { .. }) {
                    admitted.push((now, cost));
                }
            }
            for (first, &(from, _)) in admitted.iter().enumerate() {
                let mut sum = 0;
                for &(to, cost) in &admitted[first..] {
                    sum += cost;
                    // The window [from, to] is the shortest that holds these.
                    let bound = subject.bound(to - from);
                    prop_assert!(sum <= bound, "{}: {sum} > {bound}", subject.name());
                }
            }
        }
    }

    /// Decisions equal those of a serial model that keeps everything it ever saw.
    #[test]
    fn decisions_equal_the_serial_model(
        limit in 1_u64..30,
        (window, arrivals) in window_and_arrivals(),
    ) {
        let mut pairs: Vec<(Box<dyn Subject>, Box<dyn Subject>)> = vec![
            (model::log(limit, window), Box::new(LogModel::new(limit, window))),
            (model::sliding(limit, window), Box::new(SlidingModel::new(limit, window))),
            (model::fixed(limit, window), Box::new(FixedModel::new(limit, window))),
        ];
        for (subject, reference) in &mut pairs {
            for &(now, cost) in &arrivals {
                let got = matches!(subject.check(now, cost), Verdict::Pass { .. });
                let want = matches!(reference.check(now, cost), Verdict::Pass { .. });
                prop_assert_eq!(got, want, "{} at {} cost {}", subject.name(), now, cost);
            }
        }
    }

    /// A stamp from the past never admits what the present would not.
    #[test]
    fn an_older_now_never_admits_more(
        limit in 1_u64..30,
        back in 0_u64..120 * S,
        (window, arrivals) in window_and_arrivals(),
    ) {
        for mut subject in subjects(limit, window) {
            for &(now, cost) in &arrivals {
                let mut old = subject.boxed();
                let past = old.check(now.saturating_sub(back), cost.max(1));
                let present = subject.check(now, cost.max(1));
                if matches!(past, Verdict::Pass { .. }) {
                    prop_assert!(matches!(present, Verdict::Pass { .. }), "{}", subject.name());
                }
            }
        }
    }

    /// Where starts fall on the word's tick, the packed form is the plain one.
    #[test]
    fn a_packed_word_decides_as_its_counters(
        limit in 1_u64..4_000,
        shift in 0_u32..5,
        (window, arrivals) in window_and_arrivals(),
    ) {
        let limit = limit << shift;
        let tick = model::packed_sliding(limit, window).tick_ns();
        let window = window / tick * tick;
        let mut pairs = vec![
            (model::packed_sliding(limit, window), model::sliding(limit, window)),
            (model::packed_fixed(limit, window), model::fixed(limit, window)),
        ];
        for (packed, plain) in &mut pairs {
            for &(now, cost) in &arrivals {
                let now = now / tick * tick;
                let cost = cost << shift;
                prop_assert_eq!(packed.check(now, cost), plain.check(now, cost));
            }
        }
    }

    /// governor, whose interval is a whole number of nanoseconds, agrees on every arrival.
    #[test]
    fn token_bucket_equals_governor(
        interval_ns in 1_000_u64..1_000_000_000,
        burst in 1_u32..50,
        gaps in prop::collection::vec(0_u64..3_000_000_000, 1..200),
    ) {
        use governor::clock::FakeRelativeClock;
        use governor::{Quota, RateLimiter};
        use std::num::NonZeroU32;
        use std::time::Duration;
        let clock = FakeRelativeClock::default();
        let quota = Quota::with_period(Duration::from_nanos(interval_ns)).unwrap();
        let oracle =
            RateLimiter::direct_with_clock(quota.allow_burst(NonZeroU32::new(burst).unwrap()), clock.clone());
        let mut tat = 0;
        let mut now = S;
        let depth = u64::from(burst) * interval_ns;
        for gap in gaps {
            now += gap;
            clock.advance(Duration::from_nanos(gap));
            let ours = ratelimiter_common::window::token_bucket::decide(tat, now, interval_ns, depth);
            let passes = if let ratelimiter_common::window::Decision::Conforming { state, .. } = ours {
                tat = state;
                true
            } else {
                false
            };
            prop_assert_eq!(passes, oracle.check().is_ok());
        }
    }
}
