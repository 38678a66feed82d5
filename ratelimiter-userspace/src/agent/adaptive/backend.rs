//! One backend in the agent: what is gathered for a step, the step, and what follows from it.

use std::collections::BTreeMap;

use super::fleet::{Fleet, Record};
use super::scales::{Member, Scale, scales};
use crate::admin::views::{BackendView, SegmentScale};
use crate::agent::state::{Figured, View};
use crate::check::Checks;
use crate::config::adaptive::{Adaptive, Counts};
use crate::control::backend::{Decision, InForce, Observation, State, step};
use crate::control::counters::History;
use crate::control::fairness::{Group, Histogram};
use crate::control::freshness::Signal;
use crate::control::news::Change;
use crate::control::report::{Refusal, Report};
use crate::control::settings::Settings;
use crate::limiter::BackendCounts;
use crate::policy::model::{DEFAULT_SEGMENT, Unit};
use crate::policy::resolve::{Effective, kernel_limits, segment_of};
use crate::policy::slots::PolicyName;

/// How often demand is read, in seconds.
const DEMAND_EVERY_S: f64 = 0.5;
/// How much of a new reading of demand is believed.
const DEMAND_SMOOTHING: f64 = 0.5;
/// A weaker signal is used when a stronger one has been silent for this many of its periods.
const SILENCE_PERIODS: f64 = 1.5;
/// How often outcomes become a report, in seconds.
const OUTCOMES_EVERY_S: f64 = 1.0;
/// All clients together may use this much more than the budget: the levels hold it, and this is for
/// surges that are faster.
const GUARD_SLACK: f64 = 1.03;
/// Name of this host among the hosts of a step.
const SELF: &str = "self";
/// Packets that these verdicts concern are not asked for by clients: reasons of lists.
const LISTED: [&str; 2] = ["allow_listed", "blocked"];

/// Where a report comes from, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Channel {
    /// Pushed by the backend or its monitor.
    Push,
    /// Read from its page.
    Poll,
    /// Made from outcomes of single requests.
    Outcomes,
}

/// One backend.
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) settings: Adaptive,
    controls: Settings,
    pub(super) state: State,
    history: History,
    members: Vec<Member>,
    /// When demand was read last.
    demand_s: Option<f64>,
    /// When each channel spoke last, and for how long a period.
    spoken: BTreeMap<Channel, (f64, f64)>,
    outcomes: Option<(f64, BackendCounts)>,
    outcomes_seq: u64,
    /// This run of the agent: sequences begin anew with it.
    boot: String,
    pub(super) decision: Option<Decision>,
    pub(super) scales: Vec<Scale>,
    pub(super) in_flight: Option<u64>,
    reports: u64,
    refused: u64,
    pub(super) poll_problem: Option<String>,
}

/// What a step looks at.
pub(super) struct Around<'a> {
    pub(super) checks: &'a Checks,
    pub(super) view: &'a View,
    pub(super) figured: &'a Figured,
    /// Units conforming so far, by segment number.
    pub(super) conforming: &'a [u64],
    pub(super) fleet: &'a mut dyn Fleet,
    pub(super) now_s: f64,
}

impl Backend {
    pub(super) fn new(name: &str, settings: &Adaptive, now_s: f64, boot: &str) -> Self {
        let controls = settings.controls();
        Self {
            name: name.to_owned(),
            settings: settings.clone(),
            state: State::new(&controls, now_s),
            controls,
            history: History::default(),
            members: Vec::new(),
            demand_s: None,
            spoken: BTreeMap::new(),
            outcomes: None,
            outcomes_seq: 0,
            boot: boot.to_owned(),
            decision: None,
            scales: Vec::new(),
            in_flight: None,
            reports: 0,
            refused: 0,
            poll_problem: None,
        }
    }

    /// Takes over other settings; what was learnt stays.
    pub(super) fn configure(&mut self, settings: &Adaptive) {
        self.settings = settings.clone();
        self.controls = settings.controls();
    }

    /// Whether a channel's word counts now: no stronger one has spoken lately.
    pub(super) fn heeds(&self, channel: Channel, now_s: f64) -> bool {
        !self.spoken.iter().any(|(stronger, (at_s, period_s))| {
            *stronger < channel && now_s - at_s <= SILENCE_PERIODS * period_s
        })
    }

    /// Steps with a report that has just come; what the controller says of it.
    pub(super) fn hear(
        &mut self,
        around: &mut Around<'_>,
        channel: Channel,
        report: &Report,
    ) -> (Option<Refusal>, Vec<Change>) {
        let changes = self.step(around, std::slice::from_ref(report));
        let refusal = self
            .decision
            .as_mut()
            .and_then(|decision| decision.refused.pop())
            .map(|(_, refusal)| refusal);
        if refusal.is_some() {
            self.refused += 1;
        } else {
            self.reports += 1;
            self.spoken.insert(channel, (around.now_s, report.period_s));
        }
        (refusal, changes)
    }

    /// Reads demand where it is due, and steps.
    pub(super) fn tick(&mut self, around: &mut Around<'_>) -> Vec<Change> {
        let due = |at_s: f64| around.now_s - at_s >= DEMAND_EVERY_S;
        if self.demand_s.is_none_or(due) {
            self.read_demand(around);
        }
        if let Some(report) = self.outcomes_report(around) {
            return self.hear(around, Channel::Outcomes, &report).1;
        }
        self.step(around, &[])
    }

    fn step(&mut self, around: &mut Around<'_>, reports: &[Report]) -> Vec<Change> {
        let now_s = around.now_s;
        if let Some(admitted) = self.admitted(around) {
            self.history.push(now_s, admitted);
        }
        let record = Record {
            history: self.history.clone(),
            demand: self
                .members
                .iter()
                .map(|member| (member.segment.clone(), member.demand.clone()))
                .collect(),
        };
        let others = around.fleet.exchange(&self.name, &record);
        let mut hosts: Vec<(&str, &History)> = others
            .iter()
            .map(|(host, record)| (host.as_str(), &record.history))
            .collect();
        hosts.push((SELF, &self.history));
        let groups: Vec<Group> = self
            .members
            .iter()
            .map(|member| {
                let mut group = member.group();
                for (_, record) in &others {
                    if let Some(theirs) = record.demand.get(&member.segment) {
                        group.demand.merge(theirs);
                    }
                }
                group
            })
            .collect();
        let seen = Observation {
            reports,
            hosts: &hosts,
            groups: &groups,
        };
        let before = std::mem::replace(&mut self.state, State::new(&self.controls, now_s));
        let (state, mut decision) = step(&self.controls, before, &seen, now_s);
        self.state = around.fleet.offer(&self.name, &state).unwrap_or(state);
        self.scales = scales(&decision.in_force, &self.members);
        let changes = std::mem::take(&mut decision.changes);
        self.decision = Some(decision);
        changes
    }

    /// Units admitted since anybody counts; `None` if the counters cannot be read now.
    fn admitted(&self, around: &Around<'_>) -> Option<f64> {
        let admitted = match self.settings.counts {
            Counts::Requests => {
                let counts = around.checks.limiter().backend_counts(&self.name);
                counts.map_or(0.0, |counts| counts.allowed as f64)
            }
            Counts::Packets if around.conforming.is_empty() => return None,
            Counts::Packets => self
                .members
                .iter()
                .filter_map(|member| around.view.compiled.segments.get(&member.segment))
                .filter_map(|number| around.conforming.get(*number as usize))
                .map(|conforming| *conforming as f64)
                .sum(),
        };
        Some(admitted)
    }

    fn read_demand(&mut self, around: &Around<'_>) {
        let elapsed_s = self.demand_s.map(|at_s| around.now_s - at_s);
        self.demand_s = Some(around.now_s);
        let mut members = self.segments(around);
        let mut fresh: Vec<Histogram> = members.iter().map(|_| Histogram::default()).collect();
        match (self.settings.counts, elapsed_s) {
            (_, None) => {
                // Counted since nobody knows when.
                let _old = around.checks.limiter().take_demand(&self.name);
            }
            (Counts::Requests, Some(elapsed_s)) => {
                for client in around.checks.limiter().take_demand(&self.name) {
                    let at = members.iter().position(|m| *m.segment == *client.segment);
                    let at = at.unwrap_or_else(|| {
                        // A family of policies that callers name with each question.
                        members.push(self.member(&client.segment, 1.0, client.limit_per_s));
                        fresh.push(Histogram::default());
                        members.len() - 1
                    });
                    if let (Some(member), Some(into)) = (members.get(at), fresh.get_mut(at)) {
                        let rate = client.checks as f64 / elapsed_s.max(1e-3);
                        member.add(into, rate, client.limit_per_s);
                    }
                }
            }
            (Counts::Packets, Some(_)) => talkers(around, &members, &mut fresh),
        }
        for (member, fresh) in members.iter_mut().zip(&fresh) {
            let before = self
                .members
                .iter()
                .find(|before| before.segment == member.segment);
            if let Some(before) = before {
                member.demand = before.demand.clone();
            }
            member.demand.blend(fresh, DEMAND_SMOOTHING);
        }
        self.members = members;
    }

    fn member(&self, segment: &str, weight: f64, limit_per_s: Option<f64>) -> Member {
        Member {
            segment: segment.to_owned(),
            weight,
            floor: self.settings.floors.get(segment).copied().unwrap_or(0.0),
            limit_per_s,
            demand: Histogram::default(),
        }
    }

    /// The segments whose clients use this backend.
    fn segments(&self, around: &Around<'_>) -> Vec<Member> {
        let document = &around.view.document;
        document
            .segments
            .iter()
            .filter(|(_, segment)| {
                segment.backend.as_deref().unwrap_or(DEFAULT_SEGMENT) == self.name
            })
            .map(|(name, segment)| {
                let limit_per_s = match self.settings.counts {
                    Counts::Requests => around.checks.limiter().segment_limit_per_s(name),
                    Counts::Packets => {
                        packets_per_s(&kernel_limits(document, None, name, around.view.mode))
                    }
                };
                self.member(name, f64::from(segment.weight.unwrap_or(1)), limit_per_s)
            })
            .collect()
    }

    /// A report made of the outcomes of the last second, where no stronger signal speaks.
    fn outcomes_report(&mut self, around: &Around<'_>) -> Option<Report> {
        if !self.settings.outcomes {
            return None;
        }
        let counts = around.checks.limiter().backend_counts(&self.name)?;
        let (since_s, before) = *self.outcomes.get_or_insert((around.now_s, counts));
        let period_s = around.now_s - since_s;
        if period_s < OUTCOMES_EVERY_S {
            return None;
        }
        self.outcomes = Some((around.now_s, counts));
        let good = counts.good.saturating_sub(before.good);
        let errors = counts.errors.saturating_sub(before.errors);
        if good + errors == 0 || !self.heeds(Channel::Outcomes, around.now_s) {
            return None;
        }
        self.outcomes_seq += 1;
        let spent_us = counts.latency_us.saturating_sub(before.latency_us);
        Some(Report {
            source: "outcomes".to_owned(),
            boot: self.boot.clone(),
            seq: self.outcomes_seq.max(1),
            age_s: 0.0,
            period_s: period_s.min(60.0),
            rt_s: (spent_us as f64 / 1e6 / good.max(1) as f64).min(3_600.0),
            errors: errors as f64 / (good + errors) as f64,
            count: Some(good),
        })
    }

    /// Holds what is in force, or a factor, until it is resumed.
    pub(super) fn pause(&mut self, factor: Option<f64>) {
        match (factor, &self.decision) {
            (Some(factor), _) => self.state.pause_at(factor),
            (None, Some(decision)) => self.state.pause(decision.in_force.clone()),
            (None, None) => self.state.pause(InForce {
                factor: 1.0,
                budget: None,
                shares: Vec::new(),
            }),
        }
    }

    /// What all clients together may ask of the check API per second, where there is a budget.
    pub(super) fn guard(&self) -> Option<f64> {
        let budget = self.decision.as_ref()?.in_force.budget?;
        (self.settings.counts == Counts::Requests).then_some(GUARD_SLACK * budget)
    }

    /// The scale of each segment: its name, that of its requests, that of its packets.
    pub(super) fn segment_scales(&self) -> impl Iterator<Item = (&str, [f64; 2])> {
        self.members
            .iter()
            .zip(&self.scales)
            .map(|(member, scale)| {
                let scales = match self.settings.counts {
                    Counts::Requests => [scale.counted, scale.other],
                    Counts::Packets => [scale.other, scale.counted],
                };
                (member.segment.as_str(), scales)
            })
    }

    /// As people see it.
    pub(super) fn view(&self, now_s: f64) -> BackendView {
        let mut view = BackendView {
            backend: self.name.clone(),
            law: self.settings.law,
            counts: self.settings.counts,
            factor: 1.0,
            overall: 1.0,
            demand: self.members.iter().map(|m| m.demand.total()).sum(),
            admitted: self.history.at(now_s) - self.history.at(now_s - 1.0),
            in_flight: self.in_flight,
            reports: self.reports,
            refused: self.refused,
            poll_problem: self.poll_problem.clone(),
            ..BackendView::default()
        };
        if let Some(decision) = &self.decision {
            view.factor = decision.in_force.factor;
            view.overall = decision.overall;
            decision.mode.name().clone_into(&mut view.mode);
            view.budget = decision.in_force.budget;
            view.capacity = decision.capacity;
            view.latency_ms = decision.rt_s * 1e3;
            view.predicted_ms = decision.predicted_rt_s.map(|rt_s| rt_s * 1e3);
            let signal = match decision.signal {
                Signal::Absent => "absent",
                Signal::Fresh => "fresh",
                Signal::Stale => "stale",
            };
            signal.clone_into(&mut view.signal);
            view.signal_age_s = decision.signal_age_s;
            view.paused = decision.paused;
            view.reason.clone_from(&decision.reason);
            view.epoch = decision.epoch;
        }
        let levels = self.members.iter().zip(&self.scales);
        view.segments = levels
            .zip(self.segment_scales())
            .map(
                |((member, scale), (segment, [requests, packets]))| SegmentScale {
                    segment: segment.to_owned(),
                    weight: member.weight,
                    requests,
                    packets,
                    level: scale.level,
                    demand: member.demand.total(),
                },
            )
            .collect();
        view
    }
}

/// Packets per second that limits allow in the long run.
fn packets_per_s(limits: &[Option<Effective<'_>>]) -> Option<f64> {
    limits
        .iter()
        .flatten()
        .find(|limit| limit.spec.unit == Unit::Packets)
        .map(|limit| limit.spec.rate_limit as f64 * 1e9 / limit.spec.time_window.as_ns() as f64)
}

/// Demand of the sources that were sampled: what the others send is below any level.
fn talkers(around: &Around<'_>, members: &[Member], fresh: &mut [Histogram]) {
    let (view, document) = (around.view, &around.view.document);
    for talker in around.figured.talkers.iter() {
        let reason = ratelimiter_common::verdict::Reason::ALL.get(usize::from(talker.reason));
        if reason.is_some_and(|reason| LISTED.contains(&reason.as_str())) {
            continue;
        }
        let policy = view.compiled.policies.get(&talker.slot);
        let (client, segment) = match policy.map(|policy| &policy.name) {
            Some(PolicyName::Client(id)) => {
                let client = document.clients.get(id);
                (client, client.map_or(DEFAULT_SEGMENT, segment_of))
            }
            Some(PolicyName::Segment(name)) => (None, name.as_str()),
            None => (None, DEFAULT_SEGMENT),
        };
        let at = members.iter().position(|m| m.segment == segment);
        if let Some((member, into)) = at.and_then(|at| Some((members.get(at)?, fresh.get_mut(at)?)))
        {
            let limit = packets_per_s(&kernel_limits(document, client, segment, view.mode));
            member.add(into, talker.packets_per_s, limit);
        }
    }
}
