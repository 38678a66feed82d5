//! Replays a recorded trace through the controllers: what would they have done?
use serde::{Deserialize, Serialize};

use super::backend::{Decision, Observation, State, step};
use super::counters::History;
use super::fairness::{Group, Histogram};
use super::report::Report;
use super::settings::Settings;

/// How often the controllers are stepped between reports, in seconds.
const TICK_S: f64 = 0.1;
/// Longest trace, in seconds: a replay is bounded.
pub const LENGTH_MAX_S: f64 = 86_400.0;

/// One line of a trace: a report at a time, and the traffic from then on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Seconds since the start of the trace.
    pub at_s: f64,
    /// Average response time, in seconds; absent where no report came.
    #[serde(default)]
    pub rt_s: Option<f64>,
    /// Share of failed requests.
    #[serde(default)]
    pub errors: f64,
    /// Length of the report's period, in seconds.
    #[serde(default = "one")]
    pub period_s: f64,
    /// Requests per second admitted from here on.
    #[serde(default)]
    pub admitted: f64,
    /// Requests per second wanted from here on.
    #[serde(default)]
    pub wanted: f64,
}

fn one() -> f64 {
    1.0
}

/// Replays lines in order of time; returns the decision after each line and after each change.
///
/// The trace is open-loop: what it says was admitted is taken as given. Lines that go back in time,
/// or beyond [`LENGTH_MAX_S`], are left out.
pub fn replay(settings: &Settings, lines: &[Line]) -> Vec<(f64, Decision)> {
    let mut state = State::new(settings, 0.0);
    let mut history = History::default();
    let mut demand = Histogram::default();
    let (mut now_s, mut count, mut admitted) = (0.0, 0.0, 0.0);
    let mut rows = Vec::new();
    history.push(now_s, count);
    for (seq, line) in (1..).zip(lines) {
        if !(line.at_s >= now_s && line.at_s <= LENGTH_MAX_S) {
            continue;
        }
        while now_s < line.at_s {
            let next_s = (now_s + TICK_S).min(line.at_s);
            count += admitted * (next_s - now_s);
            now_s = next_s;
            history.push(now_s, count);
            let report = line.report(seq).filter(|_| now_s >= line.at_s);
            let groups = [Group {
                weight: 1.0,
                demand: demand.clone(),
                ..Group::default()
            }];
            let seen = Observation {
                reports: report.as_slice(),
                hosts: &[("trace", &history)],
                groups: &groups,
            };
            let (stepped, decision) = step(settings, state, &seen, now_s);
            state = stepped;
            if now_s >= line.at_s || !decision.changes.is_empty() {
                rows.push((now_s, decision));
            }
        }
        admitted = line.admitted.max(0.0);
        demand = Histogram::default();
        demand.add(line.wanted, 1.0);
    }
    rows
}

impl Line {
    fn report(&self, seq: u64) -> Option<Report> {
        Some(Report {
            source: "trace".to_owned(),
            boot: String::new(),
            seq,
            age_s: 0.0,
            period_s: self.period_s,
            rt_s: self.rt_s?,
            errors: self.errors,
            count: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at_s: f64, rt_s: Option<f64>) -> Line {
        Line {
            at_s,
            rt_s,
            errors: 0.0,
            period_s: 1.0,
            admitted: 500.0,
            wanted: 500.0,
        }
    }

    #[test]
    fn prints_the_factor_over_time() {
        let lines: Vec<Line> = (1..=4).map(|i| line(f64::from(i), Some(0.8))).collect();
        let rows = replay(&Settings::default(), &lines);
        let at = |at_s: f64| rows.iter().rfind(|row| (row.0 - at_s).abs() < 1e-9);
        assert!((at(2.0).unwrap().1.in_force.factor - 0.49).abs() < 0.01);
        assert!((at(4.0).unwrap().1.in_force.factor - 0.25).abs() < 1e-9);
        assert!(
            rows[0].1.reason.contains("800 ms is above 500 ms"),
            "{}",
            rows[0].1.reason
        );
    }

    #[test]
    fn leaves_out_lines_that_go_back_or_too_far() {
        let lines = [
            line(2.0, Some(0.1)),
            line(1.0, Some(0.8)),
            line(f64::NAN, Some(0.8)),
            line(1e9, Some(0.8)),
        ];
        let rows = replay(&Settings::default(), &lines);
        assert!(rows.iter().all(|row| row.0 <= 2.0));
        assert!((rows.last().unwrap().1.in_force.factor - 1.0).abs() < 1e-9);
    }
}
