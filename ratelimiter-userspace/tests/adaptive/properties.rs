//! Bars 31 to 33, as properties of arbitrary inputs.
use proptest::collection::vec;
use proptest::prelude::*;
use ratelimiter_userspace::control::backend::{Observation, State, step};
use ratelimiter_userspace::control::counters::History;
use ratelimiter_userspace::control::fairness::{Claim, Group, Histogram, share_out};
use ratelimiter_userspace::control::report::Report;
use ratelimiter_userspace::control::settings::Settings;

use crate::hostile::report;

/// One second of a backend's life: a report (or none) and what was admitted and wanted.
#[derive(Clone, Debug)]
struct Second {
    rt_s: Option<f64>,
    errors: f64,
    admitted: f64,
    wanted: f64,
}

fn second() -> impl Strategy<Value = Second> {
    let rt_s = prop_oneof![
        1 => Just(None),
        2 => (0.001..0.2f64).prop_map(Some),
        2 => (0.2..0.5f64).prop_map(Some),
        2 => (0.5..20.0f64).prop_map(Some),
    ];
    let errors = prop_oneof![4 => Just(0.0), 1 => 0.0..1.0f64];
    (rt_s, errors, 0.0..5000.0f64, 0.0..50_000.0f64).prop_map(|(rt_s, errors, admitted, wanted)| {
        Second {
            rt_s,
            errors,
            admitted,
            wanted,
        }
    })
}

/// Everything a step is given, second by second.
struct Life {
    history: History,
    admitted: f64,
    /// What its clock reads more than others'.
    by_s: f64,
}

impl Life {
    fn new() -> Self {
        let mut history = History::default();
        history.push(0.0, 0.0);
        Self {
            history,
            admitted: 0.0,
            by_s: 0.0,
        }
    }

    fn group(second: &Second) -> Group {
        let mut demand = Histogram::default();
        for i in 1..=10 {
            demand.add(second.wanted * f64::from(i) / 55.0, 1.0);
        }
        Group {
            weight: 1.0,
            demand,
            ..Group::default()
        }
    }

    fn step(&mut self, state: State, seconds: &[Second], i: usize, replay: &[Report]) -> State {
        let (second, now_s) = (&seconds[i], (i + 1) as f64 + self.by_s);
        self.admitted += second.admitted;
        self.history.push(now_s, self.admitted);
        let mut reports: Vec<Report> = second
            .rt_s
            .map(|rt_s| Report {
                errors: second.errors,
                ..report("a", i as u64 + 1, rt_s)
            })
            .into_iter()
            .collect();
        reports.extend_from_slice(replay);
        let groups = [Self::group(second)];
        let seen = Observation {
            reports: &reports,
            hosts: &[("host", &self.history)],
            groups: &groups,
        };
        let (state, decision) = step(&Settings::default(), state, &seen, now_s);
        let budget = decision.in_force.budget.unwrap_or(f64::INFINITY);
        let shares = &decision.in_force.shares;
        let granted = groups[0].demand.admitted(shares[0].level);
        assert!(granted <= budget * 1.002 + 1e-9, "{granted} of {budget}");
        assert!(decision.overall > 0.0 && decision.overall <= 1.0);
        state
    }
}

/// Another host's clock reads something else: nothing follows from that.
#[test]
fn a_state_goes_on_the_same_on_another_clock() {
    let seconds: Vec<Second> = (0..90_u32)
        .map(|i| Second {
            rt_s: (i % 7 != 3).then(|| 0.05 + f64::from((i * 37) % 23) * 0.05),
            errors: if i % 11 == 5 { 0.3 } else { 0.0 },
            admitted: 500.0 + f64::from((i * 53) % 17) * 40.0,
            wanted: if i > 20 { 9_000.0 } else { 700.0 },
        })
        .collect();
    for moved_at in [0, 1, 13, 40, 77] {
        let (mut here, mut there) = (Life::new(), Life::new());
        let start = || State::new(&Settings::default(), 0.0);
        let (mut one, mut other) = (start(), start());
        for i in 0..seconds.len() {
            if i == moved_at {
                there.by_s = 16_384.0;
                there.history.shift(there.by_s);
                other.shift(there.by_s);
            }
            one = here.step(one, &seconds, i, &[]);
            other = there.step(other, &seconds, i, &[]);
            assert!((one.factor() - other.factor()).abs() <= 1e-12);
            assert_eq!(one.budget().mode(), other.budget().mode());
            let capacity = |state: &State| state.budget().capacity().unwrap_or(0.0);
            let (a, b) = (capacity(&one), capacity(&other));
            assert!((a - b).abs() <= 1e-6 * a.max(1.0), "second {i}: {a} {b}");
        }
        assert!(one.budget().capacity().is_some(), "it was throttled");
        assert!(other.is_sound());
        other.shift(-16_384.0);
        let whole: State = serde_json::from_str(&bytes(&other)).expect("a state");
        assert_eq!(whole, other);
    }
}

fn bytes(state: &State) -> String {
    serde_json::to_string(state).expect("a state without NaN or infinity")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // 31
    #[test]
    fn the_factor_keeps_its_bounds(seconds in vec(second(), 1..80)) {
        let settings = Settings::default();
        let mut life = Life::new();
        let mut state = State::new(&settings, 0.0);
        for (i, second) in seconds.iter().enumerate() {
            let before = state.factor();
            state = life.step(state, &seconds, i, &[]);
            let after = state.factor();
            prop_assert!((settings.floor()..=1.0).contains(&after));
            prop_assert!(after >= 0.7 * before - 1e-12);
            prop_assert!(after <= before + 0.05 + 1e-9);
            let silent = second.rt_s.is_none();
            let between = second.rt_s.is_some_and(|rt_s| (0.2..=0.5).contains(&rt_s));
            if silent || (between && second.errors < settings.error_high) {
                prop_assert_eq!(after.to_bits(), before.to_bits());
            }
        }
    }

    // 32
    #[test]
    fn no_limit_in_force_is_above_the_configured_one(
        limit in 0.001..1e9f64,
        weight in 0.001..1000.0f64,
        guaranteed in 0.0..1e9f64,
        factor in 0.001..1.5f64,
        level in proptest::option::of(0.0..1e9f64),
    ) {
        let claim = Claim { limit, weight, guaranteed };
        let effective = claim.effective(factor, level);
        prop_assert!(effective <= limit && effective >= 0.0);
        prop_assert!(effective >= guaranteed.min(limit));
    }

    // 32
    #[test]
    fn levels_grow_with_the_budget_and_grants_never_exceed_it(
        clients in vec((0.001..1e6f64, 0.1..100.0f64, any::<bool>()), 1..60),
        budgets in vec(0.0..2e6f64, 2),
    ) {
        let mut groups = vec![
            Group { weight: 0.8, ..Group::default() },
            Group { weight: 0.2, ..Group::default() },
        ];
        for (want, weight, new) in &clients {
            groups[usize::from(*new)].demand.add(*want, *weight);
        }
        let (low, high) = (budgets[0].min(budgets[1]), budgets[0].max(budgets[1]));
        let (few, many) = (share_out(&groups, Some(low)), share_out(&groups, Some(high)));
        for (a, b) in few.iter().zip(&many) {
            let infinite = f64::INFINITY;
            prop_assert!(a.level.unwrap_or(infinite) <= b.level.unwrap_or(infinite) * (1.0 + 1e-9));
        }
        for (budget, shares) in [(low, few), (high, many)] {
            let granted: f64 = clients
                .iter()
                .map(|(want, weight, new)| {
                    let level = shares[usize::from(*new)].level;
                    let claim = Claim { limit: *want, weight: *weight, guaranteed: 0.0 };
                    claim.effective(1.0, level)
                })
                .sum();
            let bound = budget * 1.002 + 1e-6;
            prop_assert!(granted <= bound, "{} of {}", granted, budget);
        }
    }

    // 33
    #[test]
    fn the_same_inputs_give_the_same_bytes_on_every_host(seconds in vec(second(), 1..60)) {
        let settings = Settings::default();
        let (mut here, mut there) = (Life::new(), Life::new());
        let mut a = State::new(&settings, 0.0);
        let mut b = State::new(&settings, 0.0);
        for i in 0..seconds.len() {
            a = here.step(a, &seconds, i, &[]);
            // The other host has read the state from the store.
            let read = serde_json::from_str(&bytes(&b)).expect("a state");
            b = there.step(read, &seconds, i, &[]);
            prop_assert_eq!(bytes(&a), bytes(&b));
        }
    }

    // 33
    #[test]
    fn a_replayed_report_changes_nothing(seconds in vec(second(), 1..60), back in 0..5u64) {
        let settings = Settings::default();
        let (mut quiet, mut noisy) = (Life::new(), Life::new());
        let mut a = State::new(&settings, 0.0);
        let mut b = State::new(&settings, 0.0);
        let mut newest = 0;
        for (i, second) in seconds.iter().enumerate() {
            if second.rt_s.is_some() {
                newest = i as u64 + 1;
            }
            let old = report("a", newest.saturating_sub(back), 30.0);
            let replay = if newest > 0 { vec![old] } else { Vec::new() };
            a = quiet.step(a, &seconds, i, &[]);
            b = noisy.step(b, &seconds, i, &replay);
            prop_assert_eq!(bytes(&a), bytes(&b));
        }
    }
}
