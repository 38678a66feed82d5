//! R43: what lying, silent or broken reporters can and cannot do. Reports are dictated; there is no
//! plant behind them.
use ratelimiter_userspace::control::backend::{Decision, Observation, State, step};
use ratelimiter_userspace::control::freshness::Signal;
use ratelimiter_userspace::control::report::{Refusal, Report};
use ratelimiter_userspace::control::settings::{Law, Settings};

use crate::bars::{Bars, Required};
use crate::rng::Rng;

pub(crate) fn report(source: &str, seq: u64, rt_s: f64) -> Report {
    Report {
        source: source.to_owned(),
        boot: "1".to_owned(),
        seq,
        age_s: 0.0,
        period_s: 1.0,
        rt_s,
        errors: 0.0,
        count: None,
    }
}

/// The controllers of one backend without traffic.
struct Dictated {
    settings: Settings,
    state: State,
}

impl Dictated {
    fn new(settings: Settings) -> Self {
        let state = State::new(&settings, 0.0);
        Self { settings, state }
    }

    fn at(&mut self, now_s: f64, reports: &[Report]) -> Decision {
        let seen = Observation {
            reports,
            ..Observation::default()
        };
        let (state, decision) = step(&self.settings, self.state.clone(), &seen, now_s);
        self.state = state;
        decision
    }
}

#[test]
fn answers_dictated_reports_as_the_requirements_say() {
    for law in [Law::Budget, Law::Threshold] {
        let settings = Settings {
            law,
            floor: Some(0.25),
            ..Settings::default()
        };
        let mut backend = Dictated::new(settings);
        let mut seq = 0;
        let mut push = |backend: &mut Dictated, rt_s: f64| {
            seq += 1;
            let at_s = seq as f64;
            backend
                .at(at_s, &[report("tester", seq, rt_s)])
                .in_force
                .factor
        };
        let falling: Vec<f64> = (0..4).map(|_| push(&mut backend, 0.8)).collect();
        let rounded: Vec<f64> = falling
            .iter()
            .map(|f| (f * 100.0).round() / 100.0)
            .collect();
        assert_eq!(rounded, [0.7, 0.49, 0.34, 0.25]);
        for _ in 0..30 {
            let held = push(&mut backend, 0.3);
            assert!((held - 0.25).abs() < 1e-12);
        }
        let climbing: Vec<f64> = (0..16).map(|_| push(&mut backend, 0.1)).collect();
        assert!(climbing[13] < 1.0 && climbing[15] >= 1.0, "{climbing:?}");
    }
}

#[test]
fn refuses_what_is_no_number_or_out_of_bounds_without_any_effect() {
    let mut backend = Dictated::new(Settings::default());
    backend.at(1.0, &[report("a", 1, 0.1)]);
    let good = report("a", 2, 0.1);
    let bad = [
        Report {
            rt_s: f64::NAN,
            ..good.clone()
        },
        Report {
            rt_s: f64::INFINITY,
            ..good.clone()
        },
        Report {
            rt_s: -1.0,
            ..good.clone()
        },
        Report {
            rt_s: 1e308,
            ..good.clone()
        },
        Report {
            errors: f64::NAN,
            ..good.clone()
        },
        Report {
            errors: -0.1,
            ..good.clone()
        },
        Report {
            errors: 1.1,
            ..good.clone()
        },
        Report {
            period_s: f64::NAN,
            ..good.clone()
        },
        Report {
            period_s: 0.0,
            ..good.clone()
        },
        Report {
            period_s: 1e308,
            ..good.clone()
        },
        Report {
            age_s: f64::NAN,
            ..good.clone()
        },
        Report {
            age_s: -1.0,
            ..good.clone()
        },
        Report {
            age_s: 3.1,
            ..good.clone()
        },
        Report {
            seq: 1,
            ..good.clone()
        },
        Report {
            seq: 0,
            ..good.clone()
        },
        Report {
            source: "x".repeat(200),
            ..good.clone()
        },
    ];
    let mut twin = Dictated::new(Settings::default());
    twin.state = backend.state.clone();
    let number = bad.len();
    let decision = backend.at(1.2, &bad);
    twin.at(1.2, &[]);
    assert_eq!(decision.refused.len(), number);
    assert_eq!(backend.state, twin.state);
    let (_, first) = &decision.refused[0];
    assert_eq!(
        first.to_string(),
        "`rt_s` is NaN; it must be between 0 and 3600"
    );
}

#[test]
fn a_sequence_number_at_its_end_mutes_nobody_else() {
    let mut backend = Dictated::new(Settings::default());
    backend.at(
        1.0,
        &[report("liar", u64::MAX, 0.1), report("honest", 1, 0.1)],
    );
    let decision = backend.at(2.0, &[report("honest", 2, 0.1), report("liar", 3, 9.0)]);
    assert_eq!(decision.refused.len(), 1);
    let (source, refusal) = &decision.refused[0];
    assert_eq!(source, "liar");
    assert_eq!(
        refusal,
        &Refusal::Replayed {
            seq: 3,
            last: u64::MAX
        }
    );
    // A new boot speaks again, and the one it left stays refused.
    let reborn = Report {
        boot: "2".to_owned(),
        ..report("liar", 1, 0.1)
    };
    assert!(backend.at(3.0, &[reborn]).refused.is_empty());
    assert_eq!(backend.at(4.0, &[report("liar", 9, 9.0)]).refused.len(), 1);
}

#[test]
fn flapping_at_ten_hertz_moves_the_factor_within_its_bounds() {
    let mut backend = Dictated::new(Settings::default());
    let mut last = (0.0, 1.0f64);
    for i in 1..=600u64 {
        let now_s = i as f64 * 0.1;
        let rt_s = if i % 2 == 0 { 0.0 } else { 3600.0 };
        let flap = Report {
            period_s: 0.1,
            ..report("flapper", i, rt_s)
        };
        let f = backend.at(now_s, &[flap]).in_force.factor;
        assert!((0.25..=1.0).contains(&f));
        assert!(f >= 0.7 * last.1 - 1e-12, "{f} after {}", last.1);
        if f > last.1 {
            assert!(f - last.1 <= 0.05 * (now_s - last.0) + 1e-9);
        }
        if (f - last.1).abs() > 0.0 {
            last = (now_s, f);
        }
    }
}

#[test]
fn a_claimed_period_does_not_speed_up_the_rise() {
    let mut backend = Dictated::new(Settings::default());
    for i in 1..=4 {
        backend.at(i as f64, &[report("a", i, 0.8)]);
    }
    let low = backend.state.factor();
    let boast = Report {
        period_s: 60.0,
        ..report("a", 5, 0.1)
    };
    let high = backend.at(5.0, &[boast]).in_force.factor;
    assert!(high > low && high <= low + 0.05 + 1e-9, "{low} -> {high}");
}

/// Ten reporters at the same second, one of which may lie; returns the factor over time.
fn ten_reporters(honest_rt_s: f64, liar: Option<&dyn Fn(u64) -> Report>) -> Vec<f64> {
    let mut rng = Rng::new(43);
    let mut backend = Dictated::new(Settings::default());
    let mut factors = Vec::new();
    for second in 1..=60u64 {
        let mut reports = Vec::new();
        for i in 0..10 {
            let rt_s = honest_rt_s * (0.8 + 0.4 * rng.unit());
            let honest = Report {
                count: Some(100),
                ..report(&format!("r{i}"), second, rt_s)
            };
            reports.push(match liar {
                Some(lie) if i == 4 => lie(second),
                _ => honest,
            });
        }
        for (i, report) in reports.iter().enumerate() {
            let at_s = second as f64 + i as f64 * 0.05;
            factors.push(
                backend
                    .at(at_s, std::slice::from_ref(report))
                    .in_force
                    .factor,
            );
        }
    }
    factors
}

#[test]
fn one_liar_of_ten_moves_the_factor_by_a_tenth_at_most() {
    let lie = |rt_s: f64, errors: f64| {
        move |second: u64| Report {
            errors,
            count: Some(u64::MAX),
            ..report("r4", second, rt_s)
        }
    };
    let flap = |second: u64| {
        report(
            "r4",
            second,
            if second.is_multiple_of(2) { 0.0 } else { 60.0 },
        )
    };
    let slow = lie(3600.0, 1.0);
    let fast = lie(0.0, 0.0);
    let nan = lie(f64::NAN, f64::NAN);
    let lies: [(&str, &dyn Fn(u64) -> Report); 4] = [
        ("slow", &slow),
        ("fast", &fast),
        ("flapping", &flap),
        ("nan", &nan),
    ];
    let mut bars = Bars::default();
    for honest_s in [0.1, 0.3, 0.8] {
        let truth = ten_reporters(honest_s, None);
        for (name, lie) in lies {
            let moved = ten_reporters(honest_s, Some(lie));
            let pairs = truth.iter().zip(&moved);
            let most = pairs.map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
            let name = format!("R43 liar `{name}` of ten at {honest_s} s moves f by");
            bars.at_most(Required, &name, most, 0.10);
        }
    }
    bars.close("one liar of ten");
}

#[test]
fn a_lost_feed_holds_then_goes_back_to_configured_limits() {
    let mut backend = Dictated::new(Settings::default());
    for i in 1..=4 {
        backend.at(i as f64, &[report("a", i, 0.8)]);
    }
    let held = backend.state.factor();
    let mut back_s = None;
    for tick in 41..2000 {
        let now_s = f64::from(tick) * 0.1;
        let decision = backend.at(now_s, &[]);
        let silent_s = now_s - 4.0;
        if silent_s > 3.1 {
            assert_eq!(decision.signal, Signal::Stale);
        }
        if silent_s < 63.0 {
            assert!(
                (decision.in_force.factor - held).abs() < 1e-12,
                "moved at {silent_s}"
            );
        }
        if decision.in_force.factor >= 1.0 && back_s.is_none() {
            back_s = Some(silent_s);
        }
    }
    // 3 s until stale, 60 s hold, 15 s from the floor to 1.
    let mut bars = Bars::default();
    bars.at_most(
        Required,
        "R43 lost feed: configured limits after, s",
        back_s.unwrap(),
        78.5,
    );
    bars.close("lost feed");
}

#[test]
fn a_pause_keeps_what_is_in_force_and_resume_returns() {
    let mut backend = Dictated::new(Settings::default());
    let decision = backend.at(1.0, &[report("a", 1, 0.8)]);
    backend.state.pause(decision.in_force.clone());
    let paused = backend.at(2.0, &[report("a", 2, 0.8)]);
    assert!(paused.paused);
    assert_eq!(paused.in_force, decision.in_force);
    backend.state.pause_at(0.1);
    assert!((backend.at(3.0, &[]).in_force.factor - 0.1).abs() < 1e-12);
    backend.state.resume();
    let resumed = backend.at(4.0, &[]);
    assert!(!resumed.paused);
    assert!((resumed.in_force.factor - 0.49).abs() < 0.01);
}
