//! The contract of the store's scripts, case by case.

use proptest::prelude::*;
use ratelimiter_common::window::sliding_log::Span;
use ratelimiter_common::window::{
    Decision, WindowLimit, fixed_window, sliding_log, sliding_window,
};

use super::super::beat::{ABSENT_US, FORGOTTEN_US, HOT_US, HotSource, MAX_HOT};
use super::super::settle::DEBT_BURSTS;
use super::*;

const KEY: FleetKey = FleetKey(1);
const SECOND: u64 = 1_000_000;
/// A store's clock does not begin at zero.
const START: u64 = 1_700_000_000 * SECOND;

fn quota(algorithm: Algorithm, limit: u64, window_s: u64) -> FleetQuota {
    FleetQuota {
        algorithm,
        limit,
        burst: limit,
        window_us: window_s * SECOND,
        grain: 1,
        revision: 1,
    }
}

/// A bucket of 1 000 that drains 1 000 a second.
fn bucket() -> FleetQuota {
    quota(Algorithm::TokenBucket, 1_000, 1)
}

fn one(ledger: &mut Ledger, at_us: u64, entry: Entry) -> Answer {
    ledger.settle(START + at_us, &[entry]).answers[0]
}

#[test]
fn spend_is_charged_past_the_burst_and_drains_at_the_rate() {
    let mut ledger = Ledger::new();
    for host in 1..=3 {
        let answer = one(&mut ledger, 0, Entry::charge(KEY, bucket(), 900, 0));
        assert_eq!((answer.level, answer.fleet_spend), (900 * host, 900 * host));
    }
    let later = one(&mut ledger, 2_000_000, Entry::read(KEY, bucket()));
    assert_eq!((later.level, later.fleet_spend), (700, 2_700));
    assert_eq!(later.ends_us, 700_000);
}

#[test]
fn what_drains_between_exchanges_is_not_rounded_away() {
    // 7 per second, asked 1 000 times a second by ten hosts: no fraction is lost on the way.
    let quota = FleetQuota {
        burst: 1_000,
        ..quota(Algorithm::TokenBucket, 7, 1)
    };
    let mut ledger = Ledger::new();
    one(&mut ledger, 0, Entry::charge(KEY, quota, 1_000, 0));
    for tick in 1..=100_000_u64 {
        one(&mut ledger, tick * 1_000, Entry::read(KEY, quota));
    }
    let answer = one(&mut ledger, 100 * SECOND, Entry::read(KEY, quota));
    assert!((300..=301).contains(&answer.level), "{answer:?}");
}

#[test]
fn an_emptied_store_is_refilled_by_what_hosts_owe_and_never_twice() {
    let mut ledger = Ledger::new();
    one(&mut ledger, 0, Entry::charge(KEY, bucket(), 900, 0));
    ledger.flush();
    // Both hosts were raised to the fleet's 900 before: the debt is one, not a sum.
    for _ in 0..2 {
        let answer = one(&mut ledger, 0, Entry::charge(KEY, bucket(), 0, 900));
        assert_eq!((answer.level, answer.fleet_spend), (900, 0));
    }
    assert_eq!(
        one(&mut ledger, 0, Entry::take(KEY, bucket(), 500, 0)).granted,
        100
    );
}

#[test]
fn a_wish_is_granted_as_far_as_there_is_room_in_whole_grains() {
    let mut ledger = Ledger::new();
    let quota = FleetQuota {
        grain: 64,
        ..bucket()
    };
    let answer = one(&mut ledger, 0, Entry::take(KEY, quota, 5_000, 0));
    assert_eq!((answer.granted, answer.level), (960, 960));
    let none = one(&mut ledger, 0, Entry::take(KEY, quota, 64, 64));
    assert_eq!((none.granted, none.wait_us), (0, 24_001));
    assert_eq!(
        one(&mut ledger, 23_999, Entry::take(KEY, quota, 64, 64)).granted,
        0
    );
    assert_eq!(
        one(&mut ledger, 24_000, Entry::take(KEY, quota, 64, 64)).granted,
        64
    );
    let never = one(&mut ledger, 0, Entry::take(KEY, quota, 1_024, 1_024));
    assert_eq!(never.wait_us, MAX_AMOUNT);
    let mut back = Entry::read(KEY, quota);
    back.returned = 1_000;
    assert_eq!(one(&mut ledger, 24_000, back).level, 0);
}

#[test]
fn a_lowered_burst_clamps_once_and_a_raised_one_forgives_nothing() {
    let mut ledger = Ledger::new();
    one(&mut ledger, 0, Entry::charge(KEY, bucket(), 3_000, 0));
    let raised = FleetQuota {
        burst: 2_000,
        revision: 2,
        ..bucket()
    };
    assert_eq!(one(&mut ledger, 0, Entry::read(KEY, raised)).level, 3_000);
    let lowered = FleetQuota {
        burst: 100,
        revision: 3,
        ..bucket()
    };
    assert_eq!(one(&mut ledger, 0, Entry::read(KEY, lowered)).level, 100);
    assert_eq!(
        one(&mut ledger, 0, Entry::charge(KEY, lowered, 500, 0)).level,
        600
    );
    assert_eq!(one(&mut ledger, 0, Entry::read(KEY, lowered)).level, 600);
    // A host that has not heard of it changes nothing, and the clamp is not repeated after it.
    one(&mut ledger, 0, Entry::read(KEY, bucket()));
    assert_eq!(one(&mut ledger, 0, Entry::read(KEY, lowered)).level, 600);
}

#[test]
fn what_a_lying_host_sends_is_clamped_and_counted() {
    let mut ledger = Ledger::new();
    let mut lie = Entry::charge(KEY, bucket(), 10_u64.pow(18), u64::MAX);
    lie.want = u64::MAX;
    let settled = ledger.settle(START, &[lie, Entry::read(FleetKey(2), bucket())]);
    assert_eq!(settled.clamped, 2);
    assert_eq!(settled.answers[0].level, 2 * bucket().entry_cap());
    assert_eq!(settled.answers[1].level, 0);
    for _ in 0..1_000 {
        ledger.settle(START, &[lie]);
    }
    let answer = one(&mut ledger, 0, Entry::read(KEY, bucket()));
    assert_eq!(answer.level, DEBT_BURSTS * bucket().entry_cap());
}

#[test]
fn a_change_of_algorithm_carries_what_is_used_and_an_old_host_cannot_undo_it() {
    let algorithms = [
        Algorithm::TokenBucket,
        Algorithm::FixedWindow,
        Algorithm::SlidingWindow,
        Algorithm::SlidingLog,
    ];
    for from in algorithms {
        for to in algorithms.into_iter().filter(|to| *to != from) {
            let mut ledger = Ledger::new();
            let old = quota(from, 10, 60);
            one(&mut ledger, 0, Entry::take(KEY, old, 8, 8));
            let new = FleetQuota {
                revision: 2,
                ..quota(to, 10, 60)
            };
            let answer = one(&mut ledger, 0, Entry::take(KEY, new, 5, 1));
            assert_eq!(
                (answer.granted, answer.level),
                (2, 10),
                "{from:?} to {to:?}"
            );
            let answer = one(&mut ledger, 0, Entry::take(KEY, old, 5, 1));
            assert!(answer.outdated && answer.granted == 0, "{from:?} to {to:?}");
            assert_eq!(one(&mut ledger, 0, Entry::read(KEY, new)).level, 10);
        }
    }
}

#[test]
fn an_emptied_window_is_put_back_where_it_began() {
    for algorithm in [
        Algorithm::FixedWindow,
        Algorithm::SlidingWindow,
        Algorithm::SlidingLog,
    ] {
        let mut ledger = Ledger::new();
        let quota = quota(algorithm, 10, 60);
        let mut entry = Entry::take(KEY, quota, 5, 1);
        entry.debt = 9;
        entry.age_us = 40 * SECOND;
        let answer = one(&mut ledger, 0, entry);
        assert_eq!((answer.granted, answer.level), (1, 10), "{algorithm:?}");
        let next = one(&mut ledger, 21 * SECOND, Entry::take(KEY, quota, 5, 1));
        let expected = match algorithm {
            // Of the ten of the window before, 59/60 still count.
            Algorithm::SlidingWindow => 0,
            _ => 5,
        };
        assert_eq!(next.granted, expected, "{algorithm:?}");
        // Debt of a window that is over counts for nothing in the next one.
        let mut stale = Entry::read(FleetKey(2), quota);
        stale.debt = 9;
        stale.age_us = 60 * SECOND;
        assert_eq!(one(&mut ledger, 0, stale).level, 0, "{algorithm:?}");
    }
}

/// Takes of one unit at the times given: the ledger's decisions and those of the limiter's own
/// algorithm are the same, wait included.
fn same_as_local(algorithm: Algorithm, gaps: &[u64], limit: u64) {
    let quota = quota(algorithm, limit, 10);
    let window = WindowLimit::new(limit, quota.window_us);
    let mut ledger = Ledger::new();
    let (mut fixed, mut sliding) = (
        fixed_window::Counter::default(),
        sliding_window::Counters::default(),
    );
    let mut times = vec![0; limit as usize];
    let (mut ring, mut span) = (&mut times[..], Span::default());
    let mut now_us = START;
    for gap in gaps {
        now_us += gap;
        let local = match algorithm {
            Algorithm::FixedWindow => match fixed_window::decide(fixed, now_us, 1, &window) {
                Decision::Conforming { state, .. } => {
                    fixed = state;
                    Ok(())
                }
                Decision::NonConforming { retry_after } => Err(retry_after),
                Decision::ExceedsBurst => Err(MAX_AMOUNT),
            },
            Algorithm::SlidingWindow => match sliding_window::decide(sliding, now_us, 1, &window) {
                Decision::Conforming { state, .. } => {
                    sliding = state;
                    Ok(())
                }
                Decision::NonConforming { retry_after } => Err(retry_after),
                Decision::ExceedsBurst => Err(MAX_AMOUNT),
            },
            _ => match sliding_log::decide(&mut ring, span, now_us, 1, &window) {
                Decision::Conforming { state, .. } => {
                    span = state;
                    Ok(())
                }
                Decision::NonConforming { retry_after } => Err(retry_after),
                Decision::ExceedsBurst => Err(MAX_AMOUNT),
            },
        };
        let answer = ledger
            .settle(now_us, &[Entry::take(KEY, quota, 1, 1)])
            .answers[0];
        let fleet = if answer.granted == 1 {
            Ok(())
        } else {
            Err(answer.wait_us)
        };
        assert_eq!(fleet, local, "{algorithm:?} at {}", now_us - START);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn windows_decide_as_the_limiter_does(
        gaps in prop::collection::vec(prop_oneof![0_u64..2_000_000, 8_000_000_u64..25_000_000], 1..80),
        limit in 1_u64..20,
    ) {
        for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow, Algorithm::SlidingLog] {
            same_as_local(algorithm, &gaps, limit);
        }
    }

    #[test]
    fn what_is_granted_never_exceeds_burst_and_rate(
        steps in prop::collection::vec((0_u64..500_000, 0_u64..2_000), 1..100),
        limit in 1_u64..5_000,
        burst in 1_u64..5_000,
    ) {
        let quota = FleetQuota { burst, ..quota(Algorithm::TokenBucket, limit, 1) };
        let mut ledger = Ledger::new();
        let (mut at_us, mut granted) = (0, 0);
        for (gap, want) in steps {
            at_us += gap;
            granted += one(&mut ledger, at_us, Entry::take(KEY, quota, want, 0)).granted;
            prop_assert!(granted <= burst + quota.in_time(at_us) + 1);
        }
    }

    #[test]
    fn a_wait_is_exact(
        used in 0_u64..3_000,
        least in 1_u64..=1_000,
        pause in 0_u64..3_000_000,
        window_s in 1_u64..100,
    ) {
        for algorithm in [
            Algorithm::TokenBucket,
            Algorithm::FixedWindow,
            Algorithm::SlidingWindow,
            Algorithm::SlidingLog,
        ] {
            let quota = quota(algorithm, 1_000, window_s);
            let mut ledger = Ledger::new();
            one(&mut ledger, 0, Entry::charge(KEY, quota, used, 0));
            let take = Entry::take(KEY, quota, least, least);
            let answer = one(&mut ledger, pause, take);
            if answer.granted == 0 {
                // A bucket's fractions are rounded: two microseconds late at most, never early.
                let hair = if algorithm == Algorithm::TokenBucket { 3 } else { 1 };
                if answer.wait_us >= hair {
                    let early_us = pause + answer.wait_us - hair;
                    prop_assert_eq!(one(&mut ledger.clone(), early_us, take).granted, 0);
                }
                prop_assert_eq!(one(&mut ledger, pause + answer.wait_us, take).granted, least);
            }
        }
    }

    #[test]
    fn no_entry_panics_and_no_key_is_immortal(
        entries in prop::collection::vec(
            (any::<[u64; 6]>(), 0_usize..4, 1_u64..=MAX_AMOUNT, 1_u64..=MAX_AMOUNT, 0_u64..40_000_000_000_000),
            1..40,
        ),
    ) {
        let algorithms = [
            Algorithm::TokenBucket,
            Algorithm::FixedWindow,
            Algorithm::SlidingWindow,
            Algorithm::SlidingLog,
        ];
        let mut ledger = Ledger::new();
        let mut now_us = START;
        for ([spend, debt, returned, age_us, want, least], algorithm, limit, burst, gap) in entries {
            now_us = (now_us + gap % (1 << (gap % 46))).min(MAX_AMOUNT);
            let quota = FleetQuota {
                algorithm: algorithms[algorithm],
                limit,
                burst,
                window_us: SECOND << (gap % 25),
                grain: 1 << (gap % 17),
                revision: gap % 5,
            };
            let entry = Entry { key: KEY, quota, spend, debt, returned, age_us, want, least };
            let settled = ledger.settle(now_us, &[entry]);
            let answer = settled.answers[0];
            prop_assert!(answer.level <= MAX_AMOUNT && answer.granted <= want);
            let ttl = ledger.ttl_us(KEY, now_us);
            prop_assert!(ttl.is_some_and(|ttl| ttl < u64::MAX - now_us));
            if algorithm != 0 && !answer.outdated {
                prop_assert!(ttl.is_some_and(|ttl| ttl <= 2 * quota.window_us.max(SECOND)));
            }
        }
    }
}

#[test]
fn keys_expire_when_they_read_as_idle() {
    let mut ledger = Ledger::new();
    one(&mut ledger, 0, Entry::charge(KEY, bucket(), 5_000, 0));
    assert_eq!(ledger.ttl_us(KEY, START), Some(5 * SECOND));
    one(&mut ledger, 0, Entry::charge(FleetKey(2), bucket(), 1, 0));
    assert_eq!(ledger.ttl_us(FleetKey(2), START), Some(MIN_TTL_US));
    ledger.expire(START + 3 * SECOND);
    assert_eq!(ledger.len(), 1);
    ledger.expire(START + 5 * SECOND);
    assert!(ledger.is_empty());
}

fn beat(host: u64, cursor_us: u64, hot: &[HotSource]) -> Beat {
    Beat {
        host,
        cursor_us,
        hot: hot.to_vec(),
        most: MAX_HOT,
        ..Beat::default()
    }
}

#[test]
fn hosts_are_known_absent_and_forgotten() {
    let mut ledger = Ledger::new();
    let counts = |fleet: &Fleet| (fleet.known, fleet.live);
    ledger.beat(START, &beat(1, 0, &[]));
    assert_eq!(counts(&ledger.beat(START, &beat(2, 0, &[]))), (2, 2));
    let later = START + ABSENT_US + 1;
    assert_eq!(counts(&ledger.beat(later, &beat(2, 0, &[]))), (2, 1));
    ledger.beat(later, &beat(1, 0, &[]));
    let leaving = Beat {
        host: 1,
        leaving: true,
        ..Beat::default()
    };
    ledger.beat(later, &leaving);
    assert_eq!(counts(&ledger.beat(later, &beat(2, 0, &[]))), (1, 1));
    ledger.beat(later, &beat(3, 0, &[]));
    let much_later = later + FORGOTTEN_US + 1;
    assert_eq!(counts(&ledger.beat(much_later, &beat(2, 0, &[]))), (1, 1));
}

#[test]
fn a_hot_source_is_told_once_to_each_and_to_who_joins() {
    let mut ledger = Ledger::new();
    let first = ledger.beat(START, &beat(1, 0, &[10, 11]));
    assert_eq!(first.hot, [10, 11]);
    let again = ledger.beat(START + 1, &beat(1, first.cursor_us, &[]));
    assert_eq!((again.hot.len(), again.cursor_us), (0, first.cursor_us));
    assert_eq!(ledger.beat(START + 2, &beat(2, 0, &[12])).hot, [10, 11, 12]);
    assert_eq!(
        ledger.beat(START + 3, &beat(1, first.cursor_us, &[])).hot,
        [12]
    );
    // A cursor of another store's clock does not make a host deaf.
    let ahead = START + 3_600 * SECOND;
    assert_eq!(ledger.beat(START + 4, &beat(3, ahead, &[])).hot.len(), 3);
    // Who has no use for them is told nothing, and of whom there are.
    let quiet = Beat {
        most: 0,
        ..beat(4, 0, &[])
    };
    let told = ledger.beat(START + 4, &quiet);
    assert_eq!((told.hot.len(), told.cursor_us, told.known), (0, 0, 4));
    let late = START + 5 + HOT_US;
    assert!(ledger.beat(late, &beat(4, 0, &[])).hot.is_empty());
}
