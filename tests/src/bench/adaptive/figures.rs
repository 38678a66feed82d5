//! What a phase of a run amounts to. The same definitions as in the simulated plant
//! (`ratelimiter-userspace/tests/adaptive/measure.rs`).
use ratelimiter_userspace::control::fairness::jain;

use super::load::{Client, Log};

/// An answer that comes later is worth nothing, in seconds.
const DEADLINE_S: f64 = 1.0;

/// A phase, by the second.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    offered: f64,
    admitted: f64,
    good: f64,
    answered: f64,
    seconds: f64,
}

/// Shares are fractions, times in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Served in time, of what could be: the smaller of capacity and offer.
    pub goodput: f64,
    /// The same over the last 60 % of the phase.
    pub settled: f64,
    /// 99th percentile of response times.
    pub p99_s: f64,
    /// Average response time over the last 60 %.
    pub mean_s: f64,
    /// From then on 93 % is served and the average is 500 ms or less.
    pub settle_s: f64,
    /// Half of the distance between the 5th and 95th percentile of admissions over two seconds,
    /// by their mean, over the last 60 %.
    pub oscillation: f64,
    /// Polite requests that were served in time.
    pub polite: f64,
    /// Jain's index of served / offered over polite clients.
    pub jain_polite: f64,
    /// What was offered, as a multiple of the capacity.
    pub offered: f64,
}

/// Sums the log up from `from_s` to `to_s`, whole seconds; requests count when they were asked for.
#[must_use]
pub fn phase(log: &Log, clients: &[Client], capacity: f64, from_s: f64, to_s: f64) -> Phase {
    let length = (to_s - from_s) as usize;
    let mut seconds = vec![Second::default(); length];
    let mut offered = vec![0.0; clients.len()];
    let mut good = vec![0.0; clients.len()];
    let mut latencies = Vec::new();
    let place = |at_s: f64| (at_s >= from_s && at_s < to_s).then_some((at_s - from_s) as usize);
    for asked in &log.asked {
        if let Some(second) = place(asked.at_s).and_then(|at| seconds.get_mut(at)) {
            second.offered += 1.0;
            second.admitted += f64::from(u8::from(asked.allowed));
            if let Some(count) = offered.get_mut(asked.client) {
                *count += 1.0;
            }
        }
    }
    for answered in log.answered.iter().filter(|answered| answered.served) {
        let in_time = answered.took_s <= DEADLINE_S;
        if let Some(count) = good.get_mut(answered.client)
            && place(answered.sent_s).is_some()
            && in_time
        {
            *count += 1.0;
        }
        // Goodput and latency count when the answer comes.
        let done_s = answered.sent_s + answered.took_s;
        if let Some(second) = place(done_s).and_then(|at| seconds.get_mut(at)) {
            latencies.push(answered.took_s);
            second.answered += 1.0;
            second.seconds += answered.took_s;
            second.good += f64::from(u8::from(in_time));
        }
    }
    latencies.sort_by(f64::total_cmp);
    let p99 = latencies.get(latencies.len() * 99 / 100).copied();
    let late = seconds.get(length * 2 / 5..).unwrap_or_default();
    let polite = |values: &[f64]| -> Vec<f64> {
        let pairs = values.iter().zip(clients);
        pairs.filter(|(_, c)| c.polite).map(|(v, _)| *v).collect()
    };
    let (wanted, served) = (polite(&offered), polite(&good));
    let shares: Vec<f64> = wanted
        .iter()
        .zip(&served)
        .filter(|(wanted, _)| **wanted > 0.0)
        .map(|(wanted, served)| served / wanted)
        .collect();
    let total = |values: &[f64]| values.iter().sum::<f64>();
    Phase {
        goodput: goodput(&seconds, capacity),
        settled: goodput(late, capacity),
        p99_s: p99.unwrap_or(f64::INFINITY),
        mean_s: mean_s(late),
        settle_s: settle_s(&seconds, capacity),
        oscillation: oscillation(late),
        polite: total(&served) / total(&wanted).max(1.0),
        jain_polite: jain(&shares),
        offered: total(&offered) / (length as f64 * capacity).max(1.0),
    }
}

fn goodput(seconds: &[Second], capacity: f64) -> f64 {
    let target: f64 = seconds
        .iter()
        .map(|second| second.offered.min(capacity))
        .sum();
    seconds.iter().map(|second| second.good).sum::<f64>() / target.max(1.0)
}

fn mean_s(seconds: &[Second]) -> f64 {
    let answered: f64 = seconds.iter().map(|second| second.answered).sum();
    seconds.iter().map(|second| second.seconds).sum::<f64>() / answered.max(1.0)
}

/// The first second after which no three seconds are bad, but for 2 % of them.
fn settle_s(seconds: &[Second], capacity: f64) -> f64 {
    let is_good = |at: usize| {
        let span = seconds.get(at..(at + 3).min(seconds.len()));
        span.is_some_and(|span| goodput(span, capacity) >= 0.93 && mean_s(span) <= 0.5)
    };
    let (mut settled, mut bad, mut seen) = (f64::INFINITY, 0.0, 0.0);
    for at in (0..=seconds.len().saturating_sub(3)).rev() {
        seen += 1.0;
        let good = is_good(at);
        bad += f64::from(u8::from(!good));
        if bad > 0.02 * seen {
            if bad > 3.0 && bad > 0.05 * seen {
                break;
            }
        } else if good {
            settled = at as f64;
        }
    }
    settled
}

fn oscillation(seconds: &[Second]) -> f64 {
    let mut rates: Vec<f64> = seconds
        .chunks_exact(2)
        .map(|two| two.iter().map(|second| second.admitted).sum::<f64>() / 2.0)
        .collect();
    if rates.is_empty() {
        return f64::INFINITY;
    }
    rates.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = ((rates.len() - 1) as f64 * share).round() as usize;
        rates.get(place).copied().unwrap_or(0.0)
    };
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    (at(0.95) - at(0.05)) / 2.0 / mean.max(1.0)
}
