//! One backend in the agent: what is gathered for a step, the step, and what follows from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::demand::Packets;
use super::fleet::Fleet;
use super::replica::{News, Pending, Replica, Spoken};
use super::scales::{Member, Scale, scales};
use crate::admin::views::{BackendView, SegmentScale};
use crate::agent::state::{Figured, View};
use crate::check::Checks;
use crate::config::adaptive::{Adaptive, Counts};
use crate::control::backend::{Decision, InForce, Observation, State, step};
use crate::control::budget::alone;
use crate::control::counters::History;
use crate::control::fairness::{Group, share_out};
use crate::control::freshness::Signal;
use crate::control::hosts::{Demand, Record};
use crate::control::news::{Change, Topic};
use crate::control::report::{Refusal, Report};
use crate::control::settings::{Law, Settings};
use crate::limiter::BackendCounts;

/// How often demand is read, in seconds.
const DEMAND_EVERY_S: f64 = 0.5;
/// A weaker signal is used when a stronger one has been silent for this many of its periods.
const SILENCE_PERIODS: f64 = 1.5;
/// How often outcomes become a report, in seconds.
const OUTCOMES_EVERY_S: f64 = 1.0;
/// All clients together may use this much more than the budget: the levels hold it, and this is for
/// surges that are faster.
const GUARD_SLACK: f64 = 1.03;
/// Name of this host among the hosts of a step.
const SELF: &str = "self";

/// Where a report comes from, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    pub(super) members: Vec<Member>,
    pub(super) packets: Packets,
    /// Segments that callers named with questions, and when last.
    pub(super) families: BTreeMap<String, f64>,
    replica: Replica,
    /// When demand was read last.
    pub(super) demand_s: Option<f64>,
    /// When each channel spoke last, and for how long a period.
    spoken: Spoken,
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
            packets: Packets::default(),
            families: BTreeMap::new(),
            replica: Replica::new(),
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
        let mut changes = self.listen(around);
        let mut report = report.clone();
        if let (true, Some(host)) = (channel != Channel::Push, around.fleet.host()) {
            // Each host reads pages and counts outcomes for itself.
            report.source = format!("{}@{host:016x}", report.source);
        }
        changes.extend(self.step(around, std::slice::from_ref(&report)));
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
            if around.fleet.host().is_some() {
                let pending = Pending::Report(report.clone(), around.now_s);
                self.replica.note(pending, around.now_s);
            }
        }
        self.speak(around);
        (refusal, changes)
    }

    /// Counts a report that was not even one.
    pub(super) fn refuse(&mut self) {
        self.refused += 1;
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
        let mut changes = self.listen(around);
        if around.fleet.host().is_none() || self.replica.must_step(around.now_s) {
            changes.extend(self.step(around, &[]));
        } else {
            self.count(around);
            self.follow();
        }
        self.speak(around);
        changes
    }

    /// Acts upon what other hosts have said.
    pub(super) fn listen(&mut self, around: &mut Around<'_>) -> Vec<Change> {
        let Some(heard) = around.fleet.hear(&self.name) else {
            return Vec::new();
        };
        let learnt = self.decision.is_some() && self.reports > 0;
        let News::Adopt(adopted) = self.replica.hear(heard, learnt, around.now_s) else {
            return Vec::new();
        };
        let adopted = *adopted;
        let decision = adopted.decision;
        self.state = adopted.state;
        self.spoken.extend(adopted.spoken);
        let reason = self.decision.as_ref().map(|before| &before.reason);
        let mut changes = Vec::new();
        if reason != Some(&decision.reason) {
            changes.push(Change {
                topic: Topic::Factor,
                reason: format!("{} (over the fleet)", decision.reason),
            });
        }
        self.decision = Some(decision);
        match self.replica.again(&mut self.state, around.now_s) {
            None => self.follow(),
            Some(reports) => changes.extend(self.step(around, &reports)),
        }
        changes
    }

    /// Tells other hosts what they should know, where it is due.
    pub(super) fn speak(&mut self, around: &mut Around<'_>) {
        let (Some(host), Some(decision)) = (around.fleet.host(), &self.decision) else {
            return;
        };
        if !around.fleet.is_free(&self.name) {
            return;
        }
        let demand = told(&self.members);
        let said = self.replica.say(
            (&self.name, host),
            (&mut self.state, decision, &self.spoken),
            (&self.history, &demand),
            around.now_s,
        );
        if let Some(said) = said {
            around.fleet.say(said);
            self.replica.said(around.now_s);
        }
    }

    fn count(&mut self, around: &Around<'_>) {
        if let Some(admitted) = self.admitted(around) {
            self.history.push(around.now_s, admitted);
        }
    }

    /// Does as the fleet's state says.
    fn follow(&mut self) {
        if let Some(decision) = &self.decision {
            self.replica
                .share(wanted(&self.members, &decision.in_force), None);
            self.scales = scales(&decision.in_force, &self.members);
        }
    }

    fn step(&mut self, around: &mut Around<'_>, reports: &[Report]) -> Vec<Change> {
        let now_s = around.now_s;
        self.count(around);
        let (hosts, groups) = match around.fleet.host() {
            Some(host) if self.replica.is_together(now_s) => {
                let record = Record::new(u64::MAX, &self.history, told(&self.members));
                let merged = self.replica.merged(host, record, now_s);
                (merged.hosts, merged.groups)
            }
            host => {
                let name = host.map_or_else(|| SELF.to_owned(), |host| format!("{host:016x}"));
                let groups = self.members.iter().map(Member::group).collect();
                (vec![(name, self.history.clone())], groups)
            }
        };
        let hosts: Vec<(&str, &History)> = hosts
            .iter()
            .map(|(host, history)| (host.as_str(), history))
            .collect();
        let seen = Observation {
            reports,
            hosts: &hosts,
            groups: &groups,
        };
        let before = std::mem::replace(&mut self.state, State::new(&self.controls, now_s));
        let (state, mut decision) = step(&self.controls, before, &seen, now_s);
        self.state = state;
        self.replica.stepped();
        self.apart(&mut decision, &groups, now_s);
        let admitted = |group: &Group| {
            let mut shares = decision.in_force.shares.iter();
            let share = shares.find(|share| share.group == group.name);
            group.demand.admitted(share.and_then(|share| share.level))
        };
        let all = groups.iter().map(admitted).sum();
        if self.replica.is_together(now_s) {
            let own = wanted(&self.members, &decision.in_force);
            self.replica.share(own, Some(all));
        }
        self.scales = scales(&decision.in_force, &self.members);
        let changes = std::mem::take(&mut decision.changes);
        self.decision = Some(decision);
        changes
    }

    /// Cut off from the others a host has its part of what was proven, and never more.
    fn apart(&mut self, decision: &mut Decision, groups: &[Group], now_s: f64) {
        let Some((lost, part, hosts)) = self.replica.lost(now_s, self.state.budget()) else {
            return;
        };
        if decision.paused || self.controls.law == Law::Threshold {
            return;
        }
        let budget = alone(&self.controls, lost, part, hosts, now_s);
        decision.in_force.budget = budget;
        decision.in_force.shares = share_out(groups, budget);
    }

    /// Units admitted since anybody counts; `None` if the counters cannot be read now.
    fn admitted(&mut self, around: &Around<'_>) -> Option<f64> {
        match self.settings.counts {
            Counts::Requests => {
                let counts = around.checks.limiter().backend_counts(&self.name);
                Some(counts.map_or(0.0, |counts| counts.allowed as f64))
            }
            Counts::Packets if around.conforming.is_empty() => None,
            Counts::Packets => {
                let numbers = &around.view.compiled.segments;
                let counts = self.members.iter().filter_map(|member| {
                    let number = *numbers.get(&member.segment)?;
                    Some((number, *around.conforming.get(number as usize)?))
                });
                Some(self.packets.after(counts))
            }
        }
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
    pub(super) fn pause(&mut self, factor: Option<f64>, now_s: f64) {
        let held = match (factor, &self.decision) {
            (None, Some(decision)) => decision.in_force.clone(),
            (factor, _) => InForce {
                factor: factor.unwrap_or(1.0).clamp(0.001, 1.0),
                budget: None,
                shares: Vec::new(),
            },
        };
        self.state.pause(held.clone());
        self.replica.note(Pending::Pause(held), now_s);
    }

    /// Lets the controllers decide again.
    pub(super) fn resume(&mut self, now_s: f64) {
        self.state.resume();
        self.replica.note(Pending::Resume, now_s);
    }

    /// What all clients together may ask of the check API per second, where there is a budget.
    pub(super) fn guard(&self, now_s: f64) -> Option<f64> {
        let budget = self.decision.as_ref()?.in_force.budget?;
        let own = GUARD_SLACK * budget * self.replica.guard_part(now_s);
        (self.settings.counts == Counts::Requests).then_some(own)
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
            demand: self.members.iter().map(|m| m.wants.all.total()).sum(),
            admitted: self.history.at(now_s) - self.history.at(now_s - 1.0),
            in_flight: self.in_flight,
            reports: self.reports,
            refused: self.refused,
            poll_problem: self.poll_problem.clone(),
            hosts: self.replica.hosts(),
            apart: self.replica.is_apart(now_s),
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
                    demand: member.wants.all.total(),
                },
            )
            .collect();
        view
    }
}

/// What other hosts are told of the demand here.
fn told(members: &[Member]) -> BTreeMap<String, Demand> {
    let told = |member: &Member| (member.segment.clone(), member.wants.told(member.weight));
    members.iter().map(told).collect()
}

/// What is admitted of the demand here, per second.
fn wanted(members: &[Member], in_force: &InForce) -> f64 {
    let admitted = |member: &Member| {
        let mut shares = in_force.shares.iter();
        let share = shares.find(|share| share.group == member.segment);
        member
            .wants
            .all
            .admitted(share.and_then(|share| share.level))
    };
    members.iter().map(admitted).sum()
}
