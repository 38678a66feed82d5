//! One backend's controllers as many hosts have them: which state counts, who steps, and what of
//! this host's has still to get there. Pure.
//!
//! The store has one state. Whoever has a report steps at once and offers what came of it, on
//! condition that nobody was first; who was too late goes on from the winner's, with the same
//! reports again, which count once whoever hears them twice. Where there is no report, the host that
//! holds a lease steps, and all others do as the state says.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::backend::Channel;
use crate::control::backend::{Decision, InForce, State};
use crate::control::budget::Budget;
use crate::control::hosts::{Demand, Merged, Published, Record, merge};
use crate::control::report::{PERIOD_MAX_S, Report};
use crate::redis::adaptive::{Heard, Said};

/// How often hosts speak, in seconds: every second tick of a tenth.
const SYNC_S: f64 = 0.19;
/// Without an answer for so long a host is apart, in seconds.
const APART_S: f64 = 1.5;
/// A state that nobody has stepped for so long is nobody's, in seconds.
const LIVE_S: f64 = 3.0;
/// Reports, and what was done by hand, that may wait until the fleet has them.
const PENDING_MAX: usize = 256;
/// Steps that a host makes while it is apart, at most.
const STEPS_APART: u64 = 1 << 32;
/// In a larger fleet only who steps reads all records.
const ALL_READ: u64 = 64;
/// Who got a report so lately, in seconds, will step soon.
const REPORTED_S: f64 = 10.0;

/// What the fleet has still to learn of this host.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    /// A report, and when it came.
    Report(Report, f64),
    /// Somebody holds this.
    Pause(InForce),
    /// Somebody lets the controllers decide again.
    Resume,
}

/// The fleet's state, as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Shown {
    /// Now, on the clock of whoever wrote it.
    now_s: f64,
    state: State,
    decision: Decision,
    /// What is admitted of the fleet's demand, per second.
    admitted: f64,
    /// Which channels have spoken, on the same clock, and for how long a period.
    spoken: Spoken,
}

impl Shown {
    /// Whether it can be gone on from: numbers within bounds, and nothing of the future.
    fn is_sound(&self) -> bool {
        let latest_s = self.now_s + 1.0;
        let spoke = |&(at_s, period_s): &(f64, f64)| {
            at_s <= latest_s && (0.0..=PERIOD_MAX_S).contains(&period_s)
        };
        self.state.is_sound() && self.state.is_past(latest_s) && self.spoken.values().all(spoke)
    }
}

/// When each channel spoke last, and for how long a period, in seconds.
pub(super) type Spoken = BTreeMap<Channel, (f64, f64)>;

/// The fleet's state on this host's clock.
#[derive(Debug, PartialEq)]
pub(super) struct Adopted {
    pub(super) state: State,
    pub(super) decision: Decision,
    pub(super) spoken: Spoken,
}

/// Another host's record, as it is written.
#[derive(Serialize, Deserialize)]
struct Told {
    now_s: f64,
    record: Record,
}

/// What is to be done with what was heard.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// Nothing.
    None,
    /// This state and what follows from it are the fleet's.
    Adopt(Box<Adopted>),
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Replica {
    /// Epoch of the store's state that this host's goes on from.
    base: u64,
    answered_s: Option<f64>,
    /// Whether the next answer is the first after the store was away.
    returns: bool,
    said_s: f64,
    seq: u64,
    steps: bool,
    others: Vec<Published>,
    heard_s: f64,
    hosts: u64,
    pending: VecDeque<Pending>,
    /// Epoch and number of pending things in what was offered last.
    offered: Option<(u64, usize)>,
    /// This host's state is newer than the store's.
    dirty: bool,
    /// The fleet should know at once.
    urgent: bool,
    reported_s: Option<f64>,
    /// This host's part of what is admitted.
    part: f64,
    admitted: f64,
    /// What was proven when the store was lost.
    lost: Option<Budget>,
}

impl Replica {
    pub(super) fn new() -> Self {
        Self {
            returns: true,
            part: 1.0,
            hosts: 1,
            ..Self::default()
        }
    }

    /// Whether there are others and nothing is heard of them.
    pub(super) fn is_apart(&self, now_s: f64) -> bool {
        self.answered_s.is_some_and(|at_s| now_s - at_s > APART_S)
    }

    /// Whether this host goes by what the fleet has agreed on.
    pub(super) fn is_together(&self, now_s: f64) -> bool {
        self.answered_s.is_some() && !self.is_apart(now_s)
    }

    /// Hosts that follow the backend together, as far as was heard.
    pub(super) fn hosts(&self) -> u64 {
        self.hosts.max(1)
    }

    /// This host's part of what is admitted, and what was proven, where the store was lost.
    pub(super) fn lost(&mut self, now_s: f64, budget: &Budget) -> Option<(&Budget, f64, usize)> {
        if !self.is_apart(now_s) {
            self.lost = None;
            return None;
        }
        self.returns = true;
        let budget = self.lost.get_or_insert_with(|| budget.clone());
        (self.hosts > 1).then_some((budget, self.part, self.hosts as usize))
    }

    /// Whether this host steps now; others do as the state says.
    pub(super) fn must_step(&self, now_s: f64) -> bool {
        !self.is_together(now_s) || self.steps || self.base == 0 || !self.pending.is_empty()
    }

    /// Notes something that the fleet must learn.
    pub(super) fn note(&mut self, pending: Pending, now_s: f64) {
        if matches!(pending, Pending::Report(..)) {
            self.reported_s = Some(now_s);
        }
        if self.pending.len() >= PENDING_MAX {
            // What was done by hand is not forgotten for reports.
            let is_report = |one: &Pending| matches!(one, Pending::Report(..));
            let oldest = self.pending.iter().position(is_report).unwrap_or(0);
            self.pending.remove(oldest);
            if let Some((_, said)) = &mut self.offered {
                *said -= usize::from(oldest < *said);
            }
        }
        self.pending.push_back(pending);
        self.urgent = true;
    }

    /// This host's state was stepped.
    pub(super) fn stepped(&mut self) {
        self.dirty = true;
    }

    /// Reports that the fleet has not got yet, with their ages now; and what was done by hand, which
    /// is done to `state` again. `None` if it has got everything.
    pub(super) fn again(&mut self, state: &mut State, now_s: f64) -> Option<Vec<Report>> {
        if self.pending.is_empty() {
            return None;
        }
        let mut reports = Vec::new();
        for pending in &self.pending {
            match pending {
                Pending::Report(report, at_s) => {
                    let mut report = report.clone();
                    report.age_s += (now_s - at_s).max(0.0);
                    reports.push(report);
                }
                Pending::Pause(in_force) => state.pause(in_force.clone()),
                Pending::Resume => state.resume(),
            }
        }
        self.urgent = true;
        Some(reports)
    }

    /// All live hosts, this one included.
    pub(super) fn merged(&self, host: u64, record: Record, now_s: f64) -> Merged {
        let since_s = (now_s - self.heard_s).max(0.0);
        let mut read: Vec<Published> = self.others.clone();
        for one in &mut read {
            one.age_s += since_s;
        }
        read.push(Published {
            host: name(host),
            age_s: 0.0,
            record,
        });
        merge(read)
    }

    /// Notes what is admitted here and everywhere.
    pub(super) fn share(&mut self, own: f64, all: Option<f64>) {
        self.admitted = all.unwrap_or(self.admitted);
        if self.admitted > 0.0 {
            self.part = (own / self.admitted).clamp(0.0, 1.0);
        }
    }

    /// This host's part of a bound on all clients together.
    pub(super) fn guard_part(&self, now_s: f64) -> f64 {
        if self.is_together(now_s) && self.hosts > 1 {
            crate::control::hosts::part(self.part, 1.0)
        } else {
            1.0
        }
    }

    /// What to say now, if anything is due; `own` is this host's newest record.
    pub(super) fn say(
        &mut self,
        (backend, host): (&str, u64),
        (state, decision, spoken): (&mut State, &Decision, &Spoken),
        (history, demand): (
            &crate::control::counters::History,
            &BTreeMap<String, Demand>,
        ),
        now_s: f64,
    ) -> Option<Said> {
        if !self.urgent && now_s - self.said_s < SYNC_S {
            return None;
        }
        self.seq += 1;
        let record = Record::new(self.seq, history, demand.clone());
        let record = serde_json::to_vec(&Told { now_s, record }).ok()?;
        self.offered = None;
        let mut offer = None;
        // After the store was away the first word is a question.
        if self.dirty && !self.returns {
            // Steps made apart are few; more is what somebody else put there.
            let next = self.base + 1;
            if !(next..next + STEPS_APART).contains(&state.epoch) {
                state.epoch = next;
            }
            let shown = Shown {
                now_s,
                state: state.clone(),
                decision: decision.clone(),
                admitted: self.admitted,
                spoken: spoken.clone(),
            };
            self.offered = Some((state.epoch, self.pending.len()));
            offer = Some((state.epoch, serde_json::to_vec(&shown).ok()?));
        }
        let reported = |at_s: f64| now_s - at_s < REPORTED_S;
        Some(Said {
            backend: backend.to_owned(),
            host,
            record,
            known: self.base,
            offer,
            all: self.hosts <= ALL_READ || self.steps || self.reported_s.is_some_and(reported),
        })
    }

    /// What was to be said is on its way.
    pub(super) fn said(&mut self, now_s: f64) {
        self.said_s = now_s;
        self.urgent = false;
    }

    /// Takes what came back. `learnt` says whether this host's state is worth more than a cold start.
    pub(super) fn hear(&mut self, heard: Heard, learnt: bool, now_s: f64) -> News {
        self.answered_s = Some(now_s);
        self.heard_s = now_s;
        self.steps = heard.steps;
        self.hosts = heard.hosts.max(1);
        if let Some(records) = heard.records {
            self.others = records
                .into_iter()
                .filter_map(|(host, age_us, body)| published(host, age_us, &body, now_s))
                .collect();
        }
        let returned = std::mem::take(&mut self.returns);
        if heard.taken {
            if let Some((epoch, pending)) = self.offered.take() {
                self.base = epoch;
                self.pending.drain(..pending.min(self.pending.len()));
                self.dirty = false;
                self.urgent = !self.pending.is_empty();
            }
            return News::None;
        }
        let Some((age_us, body)) = heard.state else {
            if heard.epoch == 0 {
                // A store that was emptied, or is new: this host's state may be the first.
                self.base = 0;
                self.dirty = true;
                self.urgent |= returned;
            }
            return News::None;
        };
        self.base = heard.epoch;
        let age_s = age_us as f64 / 1e6;
        let shown = serde_json::from_slice::<Shown>(&body).ok();
        let Some(mut shown) = shown.filter(Shown::is_sound) else {
            tracing::warn!("the fleet's adaptive state is not understood: replaced");
            (self.dirty, self.urgent) = (true, true);
            return News::None;
        };
        if returned && learnt && age_s > LIVE_S {
            // Nobody follows it any more; what was learnt here since is newer.
            (self.dirty, self.urgent) = (true, true);
            return News::None;
        }
        shown.state.epoch = heard.epoch;
        let by_s = now_s - age_s - shown.now_s;
        shown.state.shift(by_s);
        for (at_s, _) in shown.spoken.values_mut() {
            *at_s += by_s;
        }
        if let Some(signal_age_s) = &mut shown.decision.signal_age_s {
            *signal_age_s += age_s;
        }
        self.dirty = false;
        self.admitted = Some(shown.admitted)
            .filter(|all| all.is_finite())
            .unwrap_or(0.0);
        News::Adopt(Box::new(Adopted {
            state: shown.state,
            decision: shown.decision,
            spoken: shown.spoken,
        }))
    }
}

fn name(host: u64) -> String {
    format!("{host:016x}")
}

fn published(host: String, age_us: u64, body: &[u8], now_s: f64) -> Option<Published> {
    let mut told: Told = serde_json::from_slice(body).ok()?;
    let age_s = age_us as f64 / 1e6;
    told.record.history.shift(now_s - age_s - told.now_s);
    Some(Published {
        host,
        age_s,
        record: told.record,
    })
}
