//! The unit clock and the token bucket decision against exact arithmetic.
use proptest::prelude::*;
use ratelimiter_common::gcra::{Decision, decide};
use ratelimiter_common::quota::{MAX_BURST, MAX_WINDOW_NS, MIN_WINDOW_NS, Quota, QuotaError, Unit};
use ratelimiter_common::vclock::{NEVER, Piece, SegmentClock, SegmentPiece, Speed, UnitClock};

fn units() -> impl Strategy<Value = Unit> {
    prop_oneof![
        Just(Unit::Packets),
        Just(Unit::Bytes),
        Just(Unit::Connections),
        Just(Unit::Requests)
    ]
}

/// Rates over the whole legal range, small and large alike.
fn quotas() -> impl Strategy<Value = Quota> {
    (
        0_u32..56,
        any::<u64>(),
        0_u32..25,
        any::<u64>(),
        0_u32..36,
        units(),
    )
        .prop_map(
            |(rate_bits, rate, window_bits, window, burst_bits, unit)| Quota {
                rate_limit: (1 << rate_bits) | (rate & ((1 << rate_bits) - 1)),
                window_ns: (MIN_WINDOW_NS + (window & ((1 << (30 + window_bits)) - 1)))
                    .min(MAX_WINDOW_NS),
                burst: 1 << burst_bits,
                unit,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Design section 3: at most 0.1 % off over the accepted range; the clock is far better.
    #[test]
    fn clock_precision(quota in quotas(), ns in 0_u64..(1 << 55)) {
        let Ok(limit) = quota.compile() else { return Ok(()); };
        let exact = (u128::from(quota.rate_limit) << quota.unit.fraction_bits()) as f64
            / quota.window_ns as f64;
        let held = f64::from(limit.speed.mult) / 2_f64.powi(limit.speed.shift as i32);
        prop_assert!((held / exact - 1.0).abs() < 1e-9, "{quota:?}: {held} for {exact}");
        let product = (u128::from(ns) * u128::from(limit.speed.mult)) >> limit.speed.shift;
        if product < 1 << 62 {
            prop_assert_eq!(u128::from(limit.speed.advance(ns)), product);
        }
    }

    #[test]
    fn time_for_is_the_inverse_of_advance(quota in quotas(), ticks in 1_u64..(1 << 44)) {
        let Ok(limit) = quota.compile() else { return Ok(()); };
        let ns = limit.speed.time_for(ticks);
        if ns < 1 << 62 {
            prop_assert!(limit.speed.advance(ns) >= ticks);
            prop_assert!(limit.speed.advance(ns - 1) < ticks);
        }
    }

    #[test]
    fn a_clock_never_runs_backwards(quota in quotas(), a in 0_u64..(1 << 60), b in 0_u64..(1 << 60)) {
        let Ok(limit) = quota.compile() else { return Ok(()); };
        let (early, late) = (a.min(b), a.max(b));
        prop_assert!(limit.speed.advance(early) <= limit.speed.advance(late));
    }

    #[test]
    fn scaling_by_a_factor_is_exact_to_the_multiplier(quota in quotas(), factor in 1_u64..=(1 << 32)) {
        let Ok(limit) = quota.compile() else { return Ok(()); };
        let scaled = limit.speed.scaled(factor);
        let of = |s: Speed| f64::from(s.mult) / 2_f64.powi(s.shift as i32);
        let exact = of(limit.speed) * factor as f64 / 2_f64.powi(32);
        prop_assert!((of(scaled) / exact - 1.0).abs() < 1e-9);
    }

    /// While the clock advances by w, conforming arrivals cost at most burst + w.
    #[test]
    fn never_exceeds_rate_plus_burst(
        burst in 1_u64..10_000,
        arrivals in prop::collection::vec((0_u64..500, 1_u64..300), 1..40),
    ) {
        let (mut now, mut tat) = (1_000_000_u64, 1_000_000_u64);
        let mut admitted: Vec<(u64, u64)> = Vec::new();
        for (gap, cost) in arrivals {
            now += gap;
            match decide(tat, now, cost, burst) {
                Decision::Conforming { tat: new } => {
                    prop_assert!(new >= tat.max(now));
                    tat = new;
                    admitted.push((now, cost));
                    for (first, &(from, _)) in admitted.iter().enumerate() {
                        let sum: u64 = admitted[first..].iter().map(|a| a.1).sum();
                        prop_assert!(sum <= burst + (now - from));
                    }
                }
                // Waiting exactly that long makes it conform, one tick less does not.
                Decision::NonConforming { wait } => {
                    let then = decide(tat, now + wait, cost, burst);
                    let earlier = decide(tat, now + wait - 1, cost, burst);
                    prop_assert!(matches!(then, Decision::Conforming { tat: _ }), "{:?}", then);
                    prop_assert!(matches!(earlier, Decision::NonConforming { wait: 1 }), "{:?}", earlier);
                }
                Decision::ExceedsBurst => prop_assert!(cost > burst),
            }
        }
    }

    #[test]
    fn decide_is_total(tat in any::<u64>(), now in any::<u64>(), cost in any::<u64>(), burst in any::<u64>()) {
        let no_wait = Decision::NonConforming { wait: 0 };
        prop_assert_ne!(decide(tat, now, cost, burst), no_wait);
    }
}

fn quota(rate_limit: u64, window_ns: u64, burst: u64) -> Quota {
    Quota {
        rate_limit,
        window_ns,
        burst,
        unit: Unit::Packets,
    }
}

#[test]
fn what_cannot_be_represented_is_refused_with_the_bound() {
    let second = MIN_WINDOW_NS;
    assert_eq!(quota(0, second, 1).compile(), Err(QuotaError::ZeroRate));
    assert_eq!(quota(1, second, 0).compile(), Err(QuotaError::ZeroBurst));
    assert_eq!(
        quota(1, 999_999_999, 1).compile(),
        Err(QuotaError::Window(999_999_999))
    );
    assert_eq!(
        quota(1, second, MAX_BURST + 1).compile(),
        Err(QuotaError::BurstTooLarge(MAX_BURST + 1))
    );
    assert_eq!(
        quota(1_000_000_001, second, 1).compile(),
        Err(QuotaError::TooFast(1_000_000_001, 1_000_000_000))
    );
    assert!(quota(u64::MAX, MAX_WINDOW_NS, 1).compile().is_err());
    assert!(quota(1, MAX_WINDOW_NS, MAX_BURST).compile().is_ok());
    let text = quota(1_000_000_001, second, 1)
        .compile()
        .unwrap_err()
        .to_string();
    assert_eq!(
        text,
        "the rate is 1000000001 per second; it must be at most 1000000000 per second"
    );
}

#[test]
fn segment_time_at_full_speed_is_real_time() {
    for now in [0, 1, 1 << 40, (1 << 62) + 7] {
        assert_eq!(SegmentClock::REAL.at(now), now);
    }
}

#[test]
fn the_piece_in_force_is_the_last_that_has_begun() {
    let piece = |from_ns, burst| Piece {
        from_ns,
        burst,
        ..Piece::UNUSED
    };
    let clock = UnitClock {
        pieces: [piece(100, 1), piece(200, 2), piece(300, 3)],
    };
    for (now, burst) in [
        (0, 1),
        (100, 1),
        (199, 1),
        (200, 2),
        (299, 2),
        (300, 3),
        (NEVER - 1, 3),
    ] {
        assert_eq!(clock.piece(now).burst, burst, "at {now}");
    }
    assert_eq!(UnitClock::single(piece(5, 9)).piece(NEVER - 1).burst, 9);
}

/// Debt is held in units: a factor change re-prices it and nothing else does.
#[test]
fn a_slower_segment_keeps_the_debt_and_drains_it_slower() {
    let limit = quota(10, MIN_WINDOW_NS, 20).compile().unwrap();
    let second = 1_000_000_000_u64;
    let tenth = Speed::ONE.scaled((1 << 32) / 10);
    let segment = SegmentClock {
        pieces: [
            SegmentPiece {
                from_ns: 0,
                base_ns: 0,
                speed: Speed::ONE,
            },
            SegmentPiece {
                from_ns: 10 * second,
                base_ns: 10 * second,
                speed: tenth,
            },
            SegmentPiece {
                from_ns: NEVER,
                base_ns: 0,
                speed: Speed::ZERO,
            },
        ],
    };
    let clock = Piece {
        speed: limit.speed,
        burst: limit.burst,
        from_ns: 0,
        ..Piece::UNUSED
    };
    let units = |now| clock.at(segment.at(now)) as f64 / 256.0;
    assert!((units(10 * second) - 100.0).abs() < 0.01);
    assert!((units(20 * second) - 110.0).abs() < 0.01);
}
