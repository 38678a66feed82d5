//! The controllers of one backend as one pure step: state and observation in, state and decision
//! out. The same inputs give the same bytes on every host of a fleet.
use serde::{Deserialize, Serialize};

use super::budget::filter::Sample;
use super::budget::{Budget, Mode, Spending, View};
use super::counters::{Admissions, Fleet, History};
use super::factor::Factor;
use super::fairness::{Group, Share, share_out};
use super::freshness::{Freshness, Signal};
use super::news::{Change, News, Topic};
use super::report::{Merger, Refusal, Report};
use super::settings::{Law, Settings};

/// A decision is valid for this long; whoever enforces it then falls back, in seconds.
pub const VALID_S: f64 = 10.0;
/// Requests the backend lets time out count as this multiple of the high threshold.
const UNANSWERED: f64 = 1.2;
/// The capacity is reported as changed when it has moved by this.
const CAPACITY_NEWS: f64 = 0.10;

/// State of the controllers of one backend; kept in the store, or in memory without one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Raised by one with each step: what compare-and-set compares.
    pub epoch: u64,
    manual: Manual,
    merger: Merger,
    freshness: Freshness,
    factor: Factor,
    /// The last response time acted upon under the law `threshold`, which has no filter.
    acted_on_s: Option<f64>,
    budget: Budget,
    fleet: Fleet,
    signal: Signal,
    reason: String,
    reported_capacity: Option<f64>,
    stepped_s: Option<f64>,
}

/// Whether a person has taken over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Manual {
    /// No.
    #[default]
    Auto,
    /// What was in force stays in force.
    Hold(InForce),
}

/// What the planes enforce.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InForce {
    /// The scale on all limits, `(0, 1]`.
    pub factor: f64,
    /// Requests per second for all clients together; `None` is no bound.
    pub budget: Option<f64>,
    /// What each group may use, in the order of [`Observation::groups`].
    pub shares: Vec<Share>,
}

impl InForce {
    /// The same for the groups there are now: each has the share it had, a new one no bound.
    fn held_for(&self, groups: &[Group]) -> Self {
        let share = |group: &Group| {
            let found = self.shares.iter().find(|share| share.group == group.name);
            found.cloned().unwrap_or_else(|| Share {
                group: group.name.clone(),
                ..Share::default()
            })
        };
        Self {
            shares: groups.iter().map(share).collect(),
            ..self.clone()
        }
    }
}

/// What a step sees.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observation<'a> {
    /// Reports since the last step, in order of arrival.
    pub reports: &'a [Report],
    /// What each live host has admitted, by host id.
    pub hosts: &'a [(&'a str, &'a History)],
    /// Demand of the groups that share this backend, over the fleet.
    pub groups: &'a [Group],
}

/// What follows from a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// The state's epoch after this step.
    pub epoch: u64,
    /// What to enforce.
    pub in_force: InForce,
    /// The overall scale as people understand it: what is admitted of what is wanted, `(0, 1]`.
    pub overall: f64,
    /// What the budget does.
    pub mode: Mode,
    /// What the backend is proven to complete, requests per second, if it was ever throttled.
    pub capacity: Option<f64>,
    /// The last response time that was believed, in seconds.
    pub rt_s: f64,
    /// Response time of a request admitted now, in seconds, where it can be foretold.
    pub predicted_rt_s: Option<f64>,
    /// State of the health signal.
    pub signal: Signal,
    /// Seconds since the last fresh report.
    pub signal_age_s: Option<f64>,
    /// Whether a person has paused the controllers.
    pub paused: bool,
    /// Until when this may be enforced without a newer one, in seconds.
    pub valid_until_s: f64,
    /// Why the last change was made, for people.
    pub reason: String,
    /// What changed in this step.
    pub changes: Vec<Change>,
    /// Reports that had no effect: (source, why).
    pub refused: Vec<(String, Refusal)>,
}

impl State {
    /// Starts without any history.
    pub fn new(settings: &Settings, now_s: f64) -> Self {
        Self {
            epoch: 0,
            manual: Manual::Auto,
            merger: Merger::default(),
            freshness: Freshness::default(),
            factor: Factor::default(),
            acted_on_s: None,
            budget: Budget::new(settings, now_s),
            fleet: Fleet::default(),
            signal: Signal::Absent,
            reason: "no report yet: configured limits".to_owned(),
            reported_capacity: None,
            stepped_s: None,
        }
    }

    /// The same on a clock that reads `by_s` more: hosts tell each other ages, never times.
    pub fn shift(&mut self, by_s: f64) {
        self.merger.shift(by_s);
        self.freshness.shift(by_s);
        self.budget.shift(by_s);
        if let Some(at_s) = &mut self.stepped_s {
            *at_s += by_s;
        }
    }

    /// Whether a state that another host wrote can be gone on from.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let factor = self.factor.get();
        factor > 0.0 && factor <= 1.0 && self.epoch < 1 << 53 && self.budget.is_sound()
    }

    /// Whether it has heard of nothing later than `now_s`, on its own clock: reports of the future
    /// would be fresh for ever.
    #[must_use]
    pub fn is_past(&self, now_s: f64) -> bool {
        self.merger.is_past(now_s)
            && self.freshness.is_past(now_s)
            && self.stepped_s.is_none_or(|at_s| at_s <= now_s)
    }

    /// Keeps what is in force until [`State::resume`]; the controllers go on observing.
    pub fn pause(&mut self, in_force: InForce) {
        self.manual = Manual::Hold(in_force);
    }

    /// Sets the factor by hand until [`State::resume`]; no levels.
    pub fn pause_at(&mut self, factor: f64) {
        self.pause(InForce {
            factor: factor.clamp(0.001, 1.0),
            budget: None,
            shares: Vec::new(),
        });
    }

    /// Lets the controllers decide again.
    pub fn resume(&mut self) {
        self.manual = Manual::Auto;
    }

    /// Returns the factor of the literal rule.
    pub fn factor(&self) -> f64 {
        self.factor.get()
    }

    /// Returns the budget's state.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }
}

/// Advances the controllers of one backend; call with each report, and every 100..250 ms.
pub fn step(
    settings: &Settings,
    mut state: State,
    seen: &Observation<'_>,
    now_s: f64,
) -> (State, Decision) {
    let mut news = News::default();
    let mut refused = Vec::new();
    state.fleet.observe(seen.hosts);
    let admissions = Admissions::new(&state.fleet, seen.hosts);
    let view = View {
        admissions: &admissions,
        demand: seen.groups.iter().map(|group| group.demand.total()).sum(),
        now_s,
    };
    for report in seen.reports {
        // A period that is over is merged before the next report opens a new one.
        merge_if_due(settings, &mut state, &view, &mut news);
        if let Err(refusal) = state.merger.accept(report, now_s) {
            refused.push((report.source.clone(), refusal));
        }
    }
    merge_if_due(settings, &mut state, &view, &mut news);
    let elapsed_s = state
        .stepped_s
        .map_or(0.0, |at_s| (now_s - at_s).clamp(0.0, 1.0));
    state.stepped_s = Some(now_s);
    state.note_signal(settings, now_s, elapsed_s, &mut news);
    let before = state.budget.mode();
    let spending = match settings.law {
        Law::Threshold => Spending {
            budget: None,
            predicted_rt_s: None,
        },
        Law::Budget => state.budget.spend(settings, &state.freshness, &view),
    };
    news.mode(before, state.budget.mode(), state.budget.capacity());
    state.epoch += 1;
    if let Some(reason) = news.headline() {
        reason.clone_into(&mut state.reason);
    }
    let decision = decide(&state, seen.groups, &view, spending, news, refused);
    (state, decision)
}

fn merge_if_due(settings: &Settings, state: &mut State, view: &View<'_>, news: &mut News) {
    let Some(merged) = state.merger.close(view.now_s) else {
        return;
    };
    state.freshness.renew(view.now_s, merged.period_s);
    let let_in = view
        .admissions
        .between(merged.end_s - merged.period_s, merged.end_s)
        > 0.0;
    let failing = merged.errors >= settings.error_high;
    let unanswered_s =
        (let_in || failing).then(|| state.budget.rt_s().max(UNANSWERED * settings.high_s));
    let Some(rt_s) = merged.rt_s.or(unanswered_s) else {
        return; // nothing asked, nothing answered
    };
    let before = state.factor.get();
    state.factor = state
        .factor
        .after_report(settings, rt_s, merged.errors, merged.elapsed_s);
    news.factor(settings, before, state.factor.get(), rt_s, &merged);
    state.acted_on_s = (settings.law == Law::Threshold).then_some(rt_s);
    if settings.law == Law::Budget {
        let sample = Sample {
            end_s: merged.end_s,
            period_s: merged.period_s,
            rt_s,
            errors: merged.errors,
            served: merged.rt_s.is_some(),
        };
        state.advance_budget(settings, sample, view, news);
    }
}

impl State {
    fn advance_budget(
        &mut self,
        settings: &Settings,
        sample: Sample,
        view: &View<'_>,
        news: &mut News,
    ) {
        let distrusts = |budget: &Budget| {
            let rt_s = budget.foreign_rt_s(view.now_s);
            rt_s.is_some() || budget.foreign_errors(view.now_s).is_some()
        };
        let (mode, distrusted) = (self.budget.mode(), distrusts(&self.budget));
        self.budget.after_report(settings, sample, view);
        news.mode(mode, self.budget.mode(), self.budget.capacity());
        if distrusts(&self.budget) != distrusted {
            news.trust(distrusted);
        }
        if let Some(capacity) = self.budget.capacity() {
            let last = self.reported_capacity.unwrap_or(0.0);
            if (capacity - last).abs() > CAPACITY_NEWS * last {
                self.reported_capacity = Some(capacity);
                news.add(
                    Topic::Capacity,
                    format!("the backend completes {capacity:.0} requests/s"),
                );
            }
        }
    }

    fn note_signal(&mut self, settings: &Settings, now_s: f64, elapsed_s: f64, news: &mut News) {
        let signal = self.freshness.signal(now_s);
        if signal != self.signal {
            self.signal = signal;
            news.add(
                Topic::Signal,
                match signal {
                    Signal::Absent => "no health report yet".to_owned(),
                    Signal::Fresh => "health reports arrive".to_owned(),
                    Signal::Stale => format!(
                        "no fresh health report for {:.1} s: what was proven is held",
                        self.freshness.age_s(now_s).unwrap_or(0.0)
                    ),
                },
            );
        }
        let stale_for_s = self.freshness.stale_for_s(now_s).unwrap_or(0.0);
        if stale_for_s > settings.stale_hold_s && self.factor.get() < 1.0 {
            self.factor = self.factor.after_silence(settings, elapsed_s);
            if self.factor.get() >= 1.0 {
                let reason = format!("signal gone for {stale_for_s:.0} s: limits as configured");
                news.add(Topic::Factor, reason);
            }
        }
    }
}

fn decide(
    state: &State,
    groups: &[Group],
    view: &View<'_>,
    spending: Spending,
    news: News,
    refused: Vec<(String, Refusal)>,
) -> Decision {
    let (in_force, paused) = match &state.manual {
        Manual::Hold(in_force) => (in_force.held_for(groups), true),
        Manual::Auto => {
            let in_force = InForce {
                factor: state.factor.get(),
                budget: spending.budget,
                shares: share_out(groups, spending.budget),
            };
            (in_force, false)
        }
    };
    let by_budget = match in_force.budget {
        Some(budget) if view.demand > budget => budget / view.demand,
        _ => 1.0,
    };
    Decision {
        epoch: state.epoch,
        overall: in_force.factor.min(by_budget),
        in_force,
        mode: state.budget.mode(),
        capacity: state.budget.capacity(),
        rt_s: state.acted_on_s.unwrap_or_else(|| state.budget.rt_s()),
        predicted_rt_s: spending.predicted_rt_s,
        signal: state.signal,
        signal_age_s: state.freshness.age_s(view.now_s),
        paused,
        valid_until_s: view.now_s + VALID_S,
        reason: if paused {
            "paused by hand".to_owned()
        } else {
            state.reason.clone()
        },
        changes: news.0,
        refused,
    }
}
