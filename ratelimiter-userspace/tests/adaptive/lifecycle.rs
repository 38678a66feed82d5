//! Cold start, hints, the circuit breaker, and a host on its own.
use ratelimiter_userspace::control::backend::{Decision, Observation, State, step};
use ratelimiter_userspace::control::budget::{Mode, alone};
use ratelimiter_userspace::control::counters::History;
use ratelimiter_userspace::control::fairness::{Group, Histogram};
use ratelimiter_userspace::control::report::Report;
use ratelimiter_userspace::control::settings::Settings;

use crate::bars::{Bars, Required};
use crate::figures;
use crate::hostile::report;
use crate::laws::Shipped;
use crate::scenario::Scenario;

/// A backend with a steady stream of clients, whose health is dictated.
struct Steady {
    settings: Settings,
    state: Option<State>,
    history: History,
    groups: Vec<Group>,
    now_s: f64,
    admitted: f64,
    rate: f64,
}

impl Steady {
    fn new(settings: Settings, rate: f64) -> Self {
        let mut demand = Histogram::default();
        for _ in 0..100 {
            demand.add(rate / 100.0, 1.0);
        }
        Self {
            state: Some(State::new(&settings, 0.0)),
            settings,
            history: History::default(),
            groups: vec![Group {
                weight: 1.0,
                demand,
                ..Group::default()
            }],
            now_s: 0.0,
            admitted: 0.0,
            rate,
        }
    }

    fn state(&self) -> &State {
        self.state.as_ref().expect("a state")
    }

    fn tick(&mut self, reports: &[Report]) -> Decision {
        self.history.push(self.now_s, self.admitted);
        let seen = Observation {
            reports,
            hosts: &[("host", &self.history)],
            groups: &self.groups,
        };
        let state = self.state.take().expect("a state");
        let (state, decision) = step(&self.settings, state, &seen, self.now_s);
        self.state = Some(state);
        // What is let in follows what was decided, as it does behind a real limiter.
        let budget = decision.in_force.budget.unwrap_or(f64::INFINITY);
        self.admitted += 0.1 * self.rate.min(budget);
        self.now_s += 0.1;
        decision
    }

    /// Seconds of one report each; returns the last decision.
    fn run(&mut self, seconds: u32, rt_s: f64, errors: f64) -> Decision {
        let mut last = None;
        for _ in 0..seconds {
            let seq = (self.now_s * 10.0).round() as u64 + 1;
            let health = Report {
                errors,
                ..report("a", seq, rt_s)
            };
            last = Some(self.tick(&[health]));
            for _ in 0..9 {
                last = Some(self.tick(&[]));
            }
        }
        last.expect("a second or more")
    }
}

#[test]
fn starts_open_with_configured_limits() {
    let mut backend = Steady::new(Settings::default(), 500.0);
    let decision = backend.tick(&[]);
    assert_eq!(decision.mode, Mode::Open);
    assert_eq!(decision.in_force.budget, None);
    assert!((decision.in_force.factor - 1.0).abs() < f64::EPSILON);
    assert_eq!(decision.reason, "no report yet: configured limits");
}

#[test]
fn a_cold_start_budget_is_raised_from_where_it_is_set() {
    let settings = Settings {
        cold_start_budget: Some(50.0),
        ..Settings::default()
    };
    let mut backend = Steady::new(settings, 500.0);
    let first = backend.tick(&[]).in_force.budget.expect("a budget");
    assert!(first <= 53.0, "{first}");
    let later = backend.run(30, 0.05, 0.0);
    let enough = later.in_force.budget.is_none_or(|budget| budget >= 500.0);
    assert!(enough, "{later:?}");
}

#[test]
fn a_hint_settles_the_first_surge_at_once() {
    let scenario = Scenario::new(&[(0.0, 0.7), (20.0, 2.0)], 100.0);
    let hinted = |hint: f64| {
        figures(&scenario, 2, &move || {
            Box::new(Shipped::new(Settings {
                capacity_hint: Some(hint),
                ..Settings::default()
            }))
        })[1]
    };
    let mut bars = Bars::default();
    let good = hinted(1000.0);
    bars.at_most(
        Required,
        "hint of the capacity: settling, s",
        good.settle_s,
        2.0,
    );
    bars.at_least(
        Required,
        "hint of the capacity: first surge",
        good.goodput,
        0.98,
    );
    let high = hinted(2000.0);
    bars.at_least(
        Required,
        "hint twice too high: first surge",
        high.goodput,
        0.97,
    );
    let low = hinted(600.0);
    bars.at_least(Required, "hint 40 % too low: settled", low.settled, 0.95);
    bars.close("capacity hints");
}

#[test]
fn an_outage_opens_the_circuit_and_two_good_reports_close_it() {
    let mut backend = Steady::new(Settings::default(), 800.0);
    assert_eq!(backend.run(20, 0.05, 0.0).mode, Mode::Open);
    let down = backend.run(5, 0.05, 1.0);
    assert_eq!(down.mode, Mode::Trip);
    let trickles = down.in_force.budget.is_some_and(|budget| budget <= 20.0);
    assert!(trickles, "{down:?}");
    assert_eq!(backend.run(30, 0.05, 1.0).mode, Mode::Trip);
    let up = backend.run(2, 0.05, 0.0);
    assert_eq!(up.mode, Mode::Track);
    assert!(up.reason.contains("it answers again"), "{}", up.reason);
    let healed = backend.run(20, 0.05, 0.0);
    assert!(healed.overall > 0.99, "{healed:?}");
}

#[test]
fn a_host_without_the_store_keeps_its_part_and_never_grows() {
    let settings = Settings::default();
    let mut backend = Steady::new(settings.clone(), 2000.0);
    backend.run(20, 0.05, 0.0);
    let decision = backend.run(5, 0.9, 0.0);
    assert_eq!(decision.mode, Mode::Track);
    let budget = backend.state().budget();
    let capacity = decision.capacity.expect("a capacity");
    let mine = alone(&settings, budget, 0.25, 4, backend.now_s).expect("a bound");
    assert!(
        mine > 0.0 && mine <= 0.25 * capacity,
        "{mine} of {capacity}"
    );
    // Nothing known: nothing to hold on to.
    let fresh = State::new(&settings, 0.0);
    assert_eq!(alone(&settings, fresh.budget(), 0.25, 4, 1.0), None);
}

#[test]
fn every_change_says_why() {
    let mut backend = Steady::new(Settings::default(), 2000.0);
    backend.run(10, 0.05, 0.0);
    let mut reasons = Vec::new();
    for _ in 0..3 {
        let seq = (backend.now_s * 10.0).round() as u64 + 1;
        let decision = backend.tick(&[report("a", seq, 0.9)]);
        reasons.extend(decision.changes.into_iter().map(|change| change.reason));
        for _ in 0..9 {
            backend.tick(&[]);
        }
    }
    let first = &reasons[0];
    assert_eq!(
        first,
        "factor 1.000 -> 0.700: response time 900 ms is above 500 ms"
    );
    let overload = |reason: &String| reason.starts_with("open -> track: overload");
    assert!(reasons.iter().any(overload), "{reasons:?}");
}
