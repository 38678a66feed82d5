//! The shipped controllers on one host, and rivals beside them.
use ratelimiter_userspace::control::backend::{Observation, State, step};
use ratelimiter_userspace::control::counters::History;
use ratelimiter_userspace::control::fairness::{Group, Share};
use ratelimiter_userspace::control::report::Report;
use ratelimiter_userspace::control::settings::Settings;

use crate::interface::{GROUPS, Health, Host, Law, Limits};

/// Weights of known and of new clients.
pub(crate) const GROUP_WEIGHTS: [f64; GROUPS] = [0.8, 0.2];

/// How long before a report's arrival its period ended, as the plant's monitor tells, in seconds.
pub(crate) const REPORT_AGE_S: f64 = 0.05;

pub(crate) fn report_of(health: &Health, age_s: f64) -> Report {
    Report {
        source: "monitor".to_owned(),
        boot: "1".to_owned(),
        seq: health.seq,
        age_s,
        period_s: health.period_s,
        rt_s: health.rt_s,
        errors: health.errors,
        count: Some(health.count),
    }
}

pub(crate) fn groups_of(host: &Host<'_>) -> Vec<Group> {
    let mut groups: Vec<Group> = GROUP_WEIGHTS
        .iter()
        .map(|weight| Group {
            weight: *weight,
            ..Group::default()
        })
        .collect();
    for (client, demand) in host.clients.iter().zip(host.demand) {
        groups[client.group]
            .demand
            .add(demand.min(client.limit), 1.0);
    }
    groups
}

pub(crate) fn limits_of(factor: f64, shares: &[Share]) -> Limits {
    let mut limits = Limits {
        factor,
        ..Limits::OPEN
    };
    for (i, share) in shares.iter().enumerate() {
        limits.levels[i] = share.level.unwrap_or(f64::INFINITY);
        limits.aggregates[i] = share.aggregate.unwrap_or(f64::INFINITY);
    }
    limits
}

/// The shipped controllers, all in one process.
pub(crate) struct Shipped {
    settings: Settings,
    state: Option<State>,
    history: History,
    report_age_s: f64,
}

impl Shipped {
    pub(crate) fn new(settings: Settings) -> Self {
        let state = Some(State::new(&settings, 0.0));
        Self {
            settings,
            state,
            history: History::default(),
            report_age_s: REPORT_AGE_S,
        }
    }

    /// A monitor that does not tell how old its reports are.
    pub(crate) fn with_ageless_reports(mut self) -> Self {
        self.report_age_s = 0.0;
        self
    }

    fn step(&mut self, host: &Host<'_>, reports: &[Report]) -> Limits {
        self.history.push(host.now_s, host.admitted);
        let groups = groups_of(host);
        let seen = Observation {
            reports,
            hosts: &[("host", &self.history)],
            groups: &groups,
        };
        let state = self.state.take().expect("a state");
        let (state, decision) = step(&self.settings, state, &seen, host.now_s);
        let limits = limits_of(decision.in_force.factor, &decision.in_force.shares);
        self.state = Some(state);
        limits
    }
}

impl Law for Shipped {
    fn report(&mut self, health: &Health, host: &Host<'_>) {
        self.step(host, &[report_of(health, self.report_age_s)]);
    }

    fn tick(&mut self, host: &Host<'_>) -> Limits {
        self.step(host, &[])
    }
}

/// Additive increase, multiplicative decrease of one factor on all limits.
pub(crate) struct Aimd {
    pub(crate) factor: f64,
}

impl Law for Aimd {
    fn report(&mut self, health: &Health, _host: &Host<'_>) {
        if health.rt_s > 0.5 || health.errors > 0.05 {
            self.factor *= 0.5;
        } else if health.rt_s < 0.2 {
            self.factor += 0.02;
        }
        self.factor = self.factor.clamp(0.002, 1.0);
    }

    fn tick(&mut self, _host: &Host<'_>) -> Limits {
        Limits {
            factor: self.factor,
            ..Limits::OPEN
        }
    }
}
