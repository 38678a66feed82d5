//! The shipped controllers on several hosts that share their state through a store.
use ratelimiter_userspace::control::backend::{Decision, Observation, State, step};
use ratelimiter_userspace::control::budget::alone;
use ratelimiter_userspace::control::counters::History;
use ratelimiter_userspace::control::fairness::{Group, share_out};
use ratelimiter_userspace::control::report::Report;
use ratelimiter_userspace::control::settings::Settings;

use crate::interface::{Health, Host, Law, Limits};
use crate::laws::{REPORT_AGE_S, groups_of, limits_of, report_of};
use crate::scenario::Scenario;

/// Records of hosts older than this have expired.
const RECORD_S: f64 = 3.0;

/// What a host has published.
struct Record {
    history: History,
    groups: Vec<Group>,
    at_s: f64,
}

/// What a host knows by itself.
struct Local {
    decision: Option<(State, Decision)>,
    synced_s: f64,
    /// Its part of what the fleet admits.
    part: f64,
    /// Reports that could not be delivered, and when they came.
    inbox: Vec<(f64, Health)>,
}

pub(crate) struct Fleet {
    settings: Settings,
    state: Option<State>,
    stepped_s: f64,
    decision: Option<Decision>,
    records: Vec<Record>,
    locals: Vec<Local>,
    sync_s: f64,
    cut_off: Option<(usize, f64, f64)>,
    names: Vec<String>,
}

impl Fleet {
    pub(crate) fn new(settings: Settings, scenario: &Scenario) -> Self {
        let hosts = scenario.hosts;
        Self {
            state: Some(State::new(&settings, 0.0)),
            settings,
            stepped_s: 0.0,
            decision: None,
            records: (0..hosts)
                .map(|_| Record {
                    history: History::default(),
                    groups: Vec::new(),
                    at_s: f64::NEG_INFINITY,
                })
                .collect(),
            locals: (0..hosts)
                .map(|_| Local {
                    decision: None,
                    synced_s: 0.0,
                    part: 1.0 / hosts as f64,
                    inbox: Vec::new(),
                })
                .collect(),
            sync_s: scenario.sync_s,
            cut_off: scenario.cut_off,
            names: (0..hosts).map(|i| format!("host-{i}")).collect(),
        }
    }

    fn is_cut_off(&self, host: &Host<'_>) -> bool {
        self.cut_off.is_some_and(|(index, from_s, to_s)| {
            index == host.index && host.now_s >= from_s && host.now_s < to_s
        })
    }

    /// Publishes the host's record, steps the shared state and adopts it.
    fn exchange(&mut self, host: &Host<'_>, reports: &[Report]) {
        let now_s = host.now_s;
        let record = &mut self.records[host.index];
        record.history.push(now_s, host.admitted);
        record.groups = groups_of(host);
        record.at_s = now_s;
        if !reports.is_empty() || now_s - self.stepped_s >= 0.1 || self.decision.is_none() {
            self.stepped_s = now_s;
            self.advance(reports, now_s);
        }
        let (Some(state), Some(decision)) = (&self.state, &self.decision) else {
            return;
        };
        let local = &mut self.locals[host.index];
        local.synced_s = now_s;
        local.decision = Some((state.clone(), decision.clone()));
        let admitted = |record: &Record| -> f64 {
            let pairs = record.groups.iter().zip(&decision.in_force.shares);
            pairs
                .map(|(group, share)| group.demand.admitted(share.level))
                .sum()
        };
        let all: f64 = self.records.iter().map(admitted).sum();
        if all > 0.0 {
            local.part = admitted(&self.records[host.index]) / all;
        }
    }

    fn advance(&mut self, reports: &[Report], now_s: f64) {
        let live: Vec<(&str, &Record)> = self
            .names
            .iter()
            .map(String::as_str)
            .zip(&self.records)
            .filter(|(_, record)| now_s - record.at_s < RECORD_S)
            .collect();
        let hosts: Vec<(&str, &History)> = live
            .iter()
            .map(|(name, record)| (*name, &record.history))
            .collect();
        let mut groups: Vec<Group> = Vec::new();
        for (_, record) in &live {
            if groups.is_empty() {
                groups.clone_from(&record.groups);
                continue;
            }
            for (sum, group) in groups.iter_mut().zip(&record.groups) {
                sum.demand.merge(&group.demand);
            }
        }
        let seen = Observation {
            reports,
            hosts: &hosts,
            groups: &groups,
        };
        let state = self.state.take().expect("a state");
        let (state, decision) = step(&self.settings, state, &seen, now_s);
        self.state = Some(state);
        self.decision = Some(decision);
    }

    /// A host's part of the aggregates: its own demand under the levels, and slack.
    fn limits(&self, host: &Host<'_>) -> Limits {
        let local = &self.locals[host.index];
        let Some((state, decision)) = &local.decision else {
            return Limits::OPEN;
        };
        let own = groups_of(host);
        if host.now_s - local.synced_s > (3.0 * self.sync_s).max(1.5) {
            let hosts = self.records.len();
            let budget = state.budget();
            let budget = alone(&self.settings, budget, local.part, hosts, host.now_s);
            return limits_of(1.0, &share_out(&own, budget));
        }
        let mut limits = limits_of(decision.in_force.factor, &decision.in_force.shares);
        for (i, share) in decision.in_force.shares.iter().enumerate() {
            if let Some(aggregate) = share.aggregate {
                let wanted = 1.10 * own[i].demand.admitted(share.level);
                limits.aggregates[i] = wanted.max(0.05 * aggregate).min(aggregate);
            }
        }
        limits
    }
}

impl Law for Fleet {
    fn report(&mut self, health: &Health, host: &Host<'_>) {
        if self.is_cut_off(host) {
            self.locals[host.index]
                .inbox
                .push((host.now_s, health.clone()));
        } else {
            // The host that receives a report steps at once.
            self.exchange(host, &[report_of(health, REPORT_AGE_S)]);
        }
    }

    fn sync(&mut self, host: &Host<'_>) {
        if self.is_cut_off(host) {
            return;
        }
        let inbox = std::mem::take(&mut self.locals[host.index].inbox);
        let late =
            |(at_s, health): &(f64, Health)| report_of(health, REPORT_AGE_S + host.now_s - at_s);
        let reports: Vec<Report> = inbox.iter().map(late).collect();
        self.exchange(host, &reports);
    }

    fn tick(&mut self, host: &Host<'_>) -> Limits {
        self.limits(host)
    }
}
