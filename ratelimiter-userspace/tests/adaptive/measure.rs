//! Figures of a run, per phase.
use ratelimiter_userspace::control::fairness::{exact_level, jain};

use crate::scenario::{Kind, Scenario};

/// One second of the backend.
#[derive(Clone, Default)]
pub(crate) struct Second {
    pub(crate) offered: f64,
    pub(crate) admitted: f64,
    pub(crate) good: f64,
    pub(crate) late: f64,
    pub(crate) rt_sum_s: f64,
}

/// One phase, by client and by latency.
pub(crate) struct PhaseCounts {
    pub(crate) offered: Vec<f64>,
    pub(crate) good: Vec<f64>,
    /// Responses by latency, 40 buckets per factor of e from 1 ms up.
    pub(crate) latencies: Vec<u32>,
}

pub(crate) struct Outcome {
    pub(crate) seconds: Vec<Second>,
    pub(crate) phases: Vec<PhaseCounts>,
}

pub(crate) const LATENCY_BUCKETS: usize = 400;

/// Latency at the middle of a bucket, in seconds.
pub(crate) fn latency_s(bucket: usize) -> f64 {
    1e-3 * ((bucket as f64 + 0.5) / 40.0).exp()
}

/// Shares are fractions, times in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// Served in time, of what could be: the smaller of capacity and offer.
    pub(crate) goodput: f64,
    /// The same over the last 60 % of the phase.
    pub(crate) settled: f64,
    pub(crate) p99_s: f64,
    /// Average latency over the last 60 %.
    pub(crate) mean_s: f64,
    /// Worst average of one second.
    pub(crate) worst_s: f64,
    /// From then on goodput and latency are good but for 2 % of the seconds.
    pub(crate) settle_s: f64,
    /// Half of the distance between the 5th and 95th percentile of admissions over two seconds.
    pub(crate) oscillation: f64,
    /// Jain's index of served / max-min fair share, polite and premium clients, and all.
    pub(crate) jain_polite: f64,
    pub(crate) jain_all: f64,
    /// Polite demand that was served.
    pub(crate) polite: f64,
}

impl Figures {
    fn fields(&mut self) -> [&mut f64; 10] {
        [
            &mut self.goodput,
            &mut self.settled,
            &mut self.p99_s,
            &mut self.mean_s,
            &mut self.worst_s,
            &mut self.settle_s,
            &mut self.oscillation,
            &mut self.jain_polite,
            &mut self.jain_all,
            &mut self.polite,
        ]
    }

    /// Means over runs.
    pub(crate) fn mean(runs: &[Self]) -> Self {
        let mut mean = Self::default();
        for run in runs {
            let mut run = *run;
            for (sum, value) in mean.fields().into_iter().zip(run.fields()) {
                *sum += *value / runs.len() as f64;
            }
        }
        mean
    }
}

/// Sums over some seconds.
struct Span {
    good: f64,
    target: f64,
    rt_sum_s: f64,
    responses: f64,
}

impl Span {
    fn over(scenario: &Scenario, seconds: &[Second], from: usize, to: usize) -> Self {
        let mut span = Self {
            good: 0.0,
            target: 0.0,
            rt_sum_s: 0.0,
            responses: 0.0,
        };
        for (i, second) in seconds.iter().enumerate().take(to).skip(from) {
            let capacity = scenario.capacity_at(i as f64 + 0.5);
            span.good += second.good;
            span.target += capacity.min(second.offered).max(1.0);
            span.rt_sum_s += second.rt_sum_s;
            span.responses += second.good + second.late;
        }
        span
    }

    fn goodput(&self) -> f64 {
        self.good / self.target.max(1.0)
    }

    fn mean_s(&self) -> f64 {
        self.rt_sum_s / self.responses.max(1.0)
    }
}

pub(crate) fn phase(scenario: &Scenario, out: &Outcome, phase: usize) -> Figures {
    let from = scenario.phases[phase].from_s.ceil() as usize;
    let to = scenario.phase_end_s(phase).floor() as usize;
    let late = from + ((to - from) as f64 * 0.4) as usize;
    let seconds = &out.seconds;
    let settled = Span::over(scenario, seconds, late, to);
    let one = |i: usize| Span::over(scenario, seconds, i, i + 1).mean_s();
    let (jain_polite, jain_all, polite) = fairness(scenario, out, phase, from, to);
    Figures {
        goodput: Span::over(scenario, seconds, from, to).goodput(),
        settled: settled.goodput(),
        p99_s: p99_s(&out.phases[phase].latencies),
        mean_s: settled.mean_s(),
        worst_s: (from..to).map(one).fold(0.0, f64::max),
        settle_s: settle_s(scenario, seconds, from, to),
        oscillation: oscillation(&seconds[late..to]),
        jain_polite,
        jain_all,
        polite,
    }
}

fn p99_s(latencies: &[u32]) -> f64 {
    let total: u32 = latencies.iter().sum();
    let mut seen = 0;
    for (bucket, count) in latencies.iter().enumerate() {
        seen += count;
        if f64::from(seen) >= 0.99 * f64::from(total) {
            return latency_s(bucket);
        }
    }
    latency_s(LATENCY_BUCKETS)
}

/// A second is good if over three seconds goodput is 93 % and average latency 500 ms or less.
fn settle_s(scenario: &Scenario, seconds: &[Second], from: usize, to: usize) -> f64 {
    let good = |i: usize| {
        let span = Span::over(scenario, seconds, i, (i + 3).min(to));
        span.goodput() >= 0.93 && span.mean_s() <= 0.5
    };
    let (mut settle_s, mut bad, mut seen) = (f64::INFINITY, 0.0, 0.0);
    for i in (from..=to.saturating_sub(3)).rev() {
        seen += 1.0;
        let is_good = good(i);
        bad += f64::from(u8::from(!is_good));
        if bad > 0.02 * seen {
            if bad > 3.0 && bad > 0.05 * seen {
                break;
            }
        } else if is_good {
            settle_s = (i - from) as f64;
        }
    }
    settle_s
}

fn oscillation(seconds: &[Second]) -> f64 {
    let pairs = seconds.chunks_exact(2);
    let mut rates: Vec<f64> = pairs
        .map(|two| f64::midpoint(two[0].admitted, two[1].admitted))
        .collect();
    rates.sort_by(f64::total_cmp);
    let at = |share: f64| rates[((rates.len() - 1) as f64 * share).round() as usize];
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    (at(0.95) - at(0.05)) / 2.0 / mean.max(1.0)
}

fn fairness(
    scenario: &Scenario,
    out: &Outcome,
    phase: usize,
    from: usize,
    to: usize,
) -> (f64, f64, f64) {
    let clients = scenario.population();
    let counts = &out.phases[phase];
    let length_s = (to - from) as f64;
    let capacity = (from..to)
        .map(|i| scenario.capacity_at(i as f64 + 0.5))
        .sum::<f64>()
        / length_s;
    let want = |(i, offered): (usize, &f64)| (offered / length_s).min(clients[i].limit);
    let wants: Vec<f64> = counts.offered.iter().enumerate().map(want).collect();
    let level = exact_level(&wants, &vec![1.0; wants.len()], capacity).unwrap_or(f64::INFINITY);
    let (mut polite, mut all) = (Vec::new(), Vec::new());
    let (mut served, mut offered) = (0.0, 0.0);
    for (i, client) in clients.iter().enumerate() {
        let fair = wants[i].min(level) * length_s;
        if fair > 0.0 {
            all.push(counts.good[i] / fair);
            if matches!(client.kind, Kind::Polite | Kind::Premium) {
                polite.push(counts.good[i] / fair);
            }
        }
        if client.kind == Kind::Polite {
            served += counts.good[i];
            offered += counts.offered[i];
        }
    }
    (jain(&polite), jain(&all), served / f64::max(offered, 1.0))
}
