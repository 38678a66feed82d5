//! The budget of this instant, from the capacity and from what our own counters foretell.
use super::throughput::wait_s;
use super::{Budget, Mode, View};
use crate::control::freshness::{Freshness, Signal};
use crate::control::settings::Settings;

/// Open, with a remembered ceiling, this multiple of it is allowed.
const CEILING_MARGIN: f64 = 1.1;
/// Open and blind, without a ceiling that was proven, this multiple of what was healthy.
const BLIND_MARGIN: f64 = 1.2;
/// Tracking and blind: this share, from the hold on sinking per second, down to a share of it.
const BLIND_SHARE: f64 = 0.97;
const BLIND_HOLD_S: f64 = 30.0;
const BLIND_SINK_PER_S: f64 = 0.005;
const BLIND_LEAST: f64 = 0.9;
/// Time in which an excess is drained, in seconds, or one and a half periods.
const DRAIN_S: f64 = 1.5;
/// Deepest drain below the capacity.
const DRAIN_MOST: f64 = 0.6;
/// Response time a probe may lead to if the capacity has not grown, as a share of `high_s`.
const GAMBLE: f64 = 0.6;
/// The throughput counts as at least this share of capacity, and of what was healthy.
const RATE_LEAST: f64 = 0.2;
const RATE_LEAST_HEALTHY: f64 = 0.3;
/// While the circuit is open this share of what was healthy passes.
const TRICKLE: f64 = 0.02;

/// The budget, and what it expects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spending {
    /// Requests per second for all clients together; `None` is no bound.
    pub budget: Option<f64>,
    /// Response time of a request admitted now, in seconds, while tracking a fresh signal.
    pub predicted_rt_s: Option<f64>,
}

impl Budget {
    /// Returns the budget for now; call at least every 100..250 ms.
    pub fn spend(
        &mut self,
        settings: &Settings,
        freshness: &Freshness,
        view: &View<'_>,
    ) -> Spending {
        let mut predicted_rt_s = None;
        let blind = freshness.signal(view.now_s) == Signal::Stale;
        let budget = match self.mode {
            Mode::Trip => Some((TRICKLE * self.healthy).max(settings.budget_min)),
            Mode::Open => self.spend_open(settings, view, blind),
            Mode::Track if blind => {
                let over_s = freshness.age_s(view.now_s).unwrap_or(0.0) - BLIND_HOLD_S;
                let sunk = (1.0 - BLIND_SINK_PER_S * over_s.max(0.0)).max(BLIND_LEAST);
                Some(self.capacity * sunk * BLIND_SHARE)
            }
            Mode::Track => {
                let wait_s = self.predict_s(view);
                predicted_rt_s = Some(wait_s);
                Some(self.capacity * (1.0 + self.excess(settings, view.now_s, wait_s)))
            }
        };
        self.spending = budget;
        Spending {
            budget,
            predicted_rt_s,
        }
    }

    fn spend_open(&mut self, settings: &Settings, view: &View<'_>, blind: bool) -> Option<f64> {
        let ceiling = self.ceiling_in_force(settings, view.now_s);
        let allowed = ceiling.map(|rate| CEILING_MARGIN * rate);
        if blind && self.healthy > 0.0 && self.reports > 0 {
            // Never more than what was proven; a hint that nobody has confirmed is no proof.
            let own = BLIND_MARGIN * self.healthy;
            return Some(match ceiling {
                Some(rate) if self.saturation.is_some() => rate,
                Some(rate) => rate.min(own),
                None => own,
            });
        }
        if let (Some(rate), Some(allowed)) = (ceiling, allowed)
            && !blind
            && view.demand > allowed
        {
            self.start_tracking(rate, super::modes::PROBE_LEAST);
        }
        allowed
    }

    /// Little's law on our own counters: time in the backend of a request admitted now, seconds.
    fn predict_s(&self, view: &View<'_>) -> f64 {
        let rate = self.throughput.rate();
        let leaving = rate.max(RATE_LEAST * self.capacity);
        let in_flight =
            self.throughput
                .in_flight(self.taken_in_known(view, view.now_s), view.now_s, leaving);
        if self.saturated {
            wait_s(in_flight, leaving).min(self.rt_s)
        } else if self.is_ramping() {
            wait_s(in_flight, self.healthy)
        } else {
            wait_s(in_flight, leaving.max(RATE_LEAST_HEALTHY * self.healthy))
        }
    }

    /// How far above (or below) the capacity the budget goes.
    fn excess(&self, settings: &Settings, now_s: f64, wait_s: f64) -> f64 {
        let aim_s = self.aim_s(settings, now_s);
        let gamble_s = aim_s.max(GAMBLE * settings.high_s);
        if !self.saturated && self.rt_s < aim_s && wait_s < gamble_s {
            let fast = ((aim_s - self.rt_s) / (0.5 * aim_s)).clamp(0.0, 1.0);
            let room = ((gamble_s - wait_s) / (0.3 * gamble_s)).clamp(0.0, 1.0);
            return self.probe * fast * room;
        }
        let drain_s = DRAIN_S.max(1.5 * self.period_s);
        ((aim_s - wait_s) / drain_s).clamp(-DRAIN_MOST, self.probe)
    }
}

/// Returns the budget of a host that has lost the store: its share (0..=1) of what was proven,
/// never growing. `hosts` is how many there were.
pub fn alone(
    settings: &Settings,
    budget: &Budget,
    share: f64,
    hosts: usize,
    now_s: f64,
) -> Option<f64> {
    if budget.mode != Mode::Open {
        let known = budget.spending.unwrap_or(budget.capacity);
        return Some(BLIND_SHARE * budget.capacity.min(known) * share);
    }
    let share = share.max(1.0 / hosts.max(1) as f64);
    let own = (budget.healthy > 0.0).then_some(BLIND_MARGIN * budget.healthy);
    let proven = budget.ceiling_in_force(settings, now_s).or(own)?;
    Some(share * proven)
}
