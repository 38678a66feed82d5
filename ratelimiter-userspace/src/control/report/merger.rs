//! Many reporters become one voice: the sources of a period are merged when it is over.
use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{PERIOD_MAX_S, Refusal, Report, SOURCES_MAX, STALE_PERIODS};

/// Response times above this count as this, in seconds.
const RT_TRUSTED_S: f64 = 60.0;
/// Two merged reports are at least this far apart: faster reporters are averaged.
const MERGE_LEAST_S: f64 = 0.15;
/// A merge waits for the expected sources at most this many of their periods, and seconds.
const MERGE_WAIT_PERIODS: f64 = 1.2;
const MERGE_WAIT_MAX_S: f64 = 5.0;
/// No source weighs more than this many times the median source.
const WEIGHT_CAP: f64 = 2.0;
/// How long a source is remembered without a report, where others need its place, in seconds.
const SOURCE_IDLE_S: f64 = 300.0;
/// Earlier boots of a source that stay refused.
const BOOTS_MAX: usize = 8;

/// What all sources together say about one period.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Merged {
    /// When the period ended, on the controller's clock, in seconds.
    pub end_s: f64,
    /// Its length in seconds, as the sources claim.
    pub period_s: f64,
    /// Its length in seconds, at most the time since the merge before it.
    pub elapsed_s: f64,
    /// Average response time, in seconds; `None` if nothing was served.
    pub rt_s: Option<f64>,
    /// Share of failed requests, 0..=1.
    pub errors: f64,
    /// Sources behind it.
    pub sources: usize,
}

/// The reports of a period until it is merged. One per backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Merger {
    sources: BTreeMap<String, Source>,
    /// When the first report of the open period came.
    opened_s: Option<f64>,
    /// When the last period was merged.
    merged_s: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Source {
    boot: String,
    seq: u64,
    former: VecDeque<String>,
    last_s: f64,
    period_s: f64,
    open: Option<Voice>,
}

/// What one source has said in the open period.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Voice {
    end_s: f64,
    period_s: f64,
    rt_s: Option<f64>,
    errors: f64,
    /// Served requests, or seconds where they are not counted.
    weight: f64,
}

impl Report {
    fn voice(&self, now_s: f64) -> Voice {
        let served = self.count != Some(0) && self.errors < 1.0;
        Voice {
            end_s: now_s - self.age_s,
            period_s: self.period_s,
            rt_s: served.then_some(self.rt_s.min(RT_TRUSTED_S)),
            errors: self.errors,
            weight: self
                .count
                .map_or(self.period_s, |count| count.max(1) as f64),
        }
    }
}

impl Voice {
    /// Averages two reports of one source.
    fn and(self, later: Self) -> Self {
        let weight = self.weight + later.weight;
        let mean = |a: f64, b: f64| (a * self.weight + b * later.weight) / weight;
        Self {
            end_s: later.end_s.max(self.end_s),
            period_s: (self.period_s + later.period_s).min(PERIOD_MAX_S),
            rt_s: match (self.rt_s, later.rt_s) {
                (Some(a), Some(b)) => Some(mean(a, b)),
                (a, b) => b.or(a),
            },
            errors: mean(self.errors, later.errors),
            weight,
        }
    }
}

impl Merger {
    /// The same on a clock that reads `by_s` more.
    pub(in crate::control) fn shift(&mut self, by_s: f64) {
        for at_s in self.opened_s.iter_mut().chain(&mut self.merged_s) {
            *at_s += by_s;
        }
        for source in self.sources.values_mut() {
            source.last_s += by_s;
            if let Some(voice) = &mut source.open {
                voice.end_s += by_s;
            }
        }
    }

    /// Whether nothing in it is of later than `now_s`.
    pub(in crate::control) fn is_past(&self, now_s: f64) -> bool {
        let periods = self.opened_s.iter().chain(&self.merged_s);
        let sources = self.sources.values().map(|source| &source.last_s);
        periods.chain(sources).all(|at_s| *at_s <= now_s)
    }

    /// Takes a report that arrived now. A refused one changes nothing.
    pub fn accept(&mut self, report: &Report, now_s: f64) -> Result<(), Refusal> {
        report.validate()?;
        if let Some(source) = self.sources.get(&report.source) {
            source.check_order(report)?;
        } else {
            if self.sources.len() >= SOURCES_MAX {
                self.sources
                    .retain(|_, source| now_s - source.last_s <= SOURCE_IDLE_S);
            }
            if self.sources.len() >= SOURCES_MAX {
                return Err(Refusal::TooManySources);
            }
        }
        let voice = report.voice(now_s);
        let source = self
            .sources
            .entry(report.source.clone())
            .or_insert_with(|| Source {
                boot: report.boot.clone(),
                seq: report.seq,
                former: VecDeque::new(),
                last_s: now_s,
                period_s: report.period_s,
                open: None,
            });
        if source.boot != report.boot {
            let left = std::mem::replace(&mut source.boot, report.boot.clone());
            source.former.push_back(left);
            while source.former.len() > BOOTS_MAX {
                source.former.pop_front();
            }
        }
        source.seq = report.seq;
        source.last_s = now_s;
        source.period_s = report.period_s;
        source.open = Some(source.open.map_or(voice, |earlier| earlier.and(voice)));
        self.opened_s.get_or_insert(now_s);
        Ok(())
    }

    /// Merges the open period if it is over.
    ///
    /// It is over when every expected source has spoken, or has been waited for long enough.
    pub fn close(&mut self, now_s: f64) -> Option<Merged> {
        let opened_s = self.opened_s?;
        let since_s = self.merged_s.map(|merged_s| now_s - merged_s);
        if since_s.is_some_and(|since_s| since_s < MERGE_LEAST_S) {
            return None;
        }
        let expected = || {
            self.sources
                .values()
                .filter(|s| now_s - s.last_s <= STALE_PERIODS * s.period_s)
        };
        let complete = expected().all(|source| source.open.is_some());
        let periods = expected().map(|source| (source.period_s, 1.0)).collect();
        let wait_s = (MERGE_WAIT_PERIODS * median(periods).unwrap_or(0.0)).min(MERGE_WAIT_MAX_S);
        if !complete && now_s - opened_s < wait_s {
            return None;
        }
        let voices: Vec<Voice> = self
            .sources
            .values_mut()
            .filter_map(|s| s.open.take())
            .collect();
        self.opened_s = None;
        self.merged_s = Some(now_s);
        merge(&voices, since_s)
    }
}

impl Source {
    fn check_order(&self, report: &Report) -> Result<(), Refusal> {
        if self.boot == report.boot {
            if report.seq <= self.seq {
                return Err(Refusal::Replayed {
                    seq: report.seq,
                    last: self.seq,
                });
            }
        } else if self.former.contains(&report.boot) {
            return Err(Refusal::FormerBoot {
                boot: report.boot.clone(),
                source_name: report.source.clone(),
            });
        }
        Ok(())
    }
}

fn merge(voices: &[Voice], since_s: Option<f64>) -> Option<Merged> {
    let typical = median(voices.iter().map(|voice| (voice.weight, 1.0)).collect())?;
    let weight = |voice: &Voice| voice.weight.min(WEIGHT_CAP * typical);
    let weighted = |value: &dyn Fn(&Voice) -> Option<f64>| {
        let pairs = voices.iter();
        let pairs = pairs.filter_map(|voice| Some((value(voice)?, weight(voice))));
        combine(pairs.collect())
    };
    let period_s = combine(voices.iter().map(|voice| (voice.period_s, 1.0)).collect())?;
    Some(Merged {
        end_s: weighted(&|voice| Some(voice.end_s))?,
        period_s,
        elapsed_s: period_s.min(since_s.unwrap_or(MERGE_WAIT_MAX_S)),
        rt_s: weighted(&|voice| voice.rt_s),
        errors: weighted(&|voice| Some(voice.errors))?,
        sources: voices.len(),
    })
}

/// Three or more values: their weighted median. Fewer: their weighted mean.
fn combine(pairs: Vec<(f64, f64)>) -> Option<f64> {
    if pairs.len() >= 3 {
        return median(pairs);
    }
    let weights: f64 = pairs.iter().map(|pair| pair.1).sum();
    let sum: f64 = pairs.iter().map(|(value, weight)| value * weight).sum();
    (weights > 0.0).then(|| sum / weights)
}

/// Weighted median: the value at which half of the weight is reached; between two, their mean.
fn median(mut pairs: Vec<(f64, f64)>) -> Option<f64> {
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half = pairs.iter().map(|pair| pair.1).sum::<f64>() / 2.0;
    let mut below = 0.0;
    for (i, (value, weight)) in pairs.iter().enumerate() {
        below += weight;
        if below > half {
            return Some(*value);
        }
        if below >= half {
            let next = pairs.get(i + 1).map_or(*value, |next| next.0);
            return Some(f64::midpoint(*value, next));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(source: &str, seq: u64, rt_s: f64) -> Report {
        Report {
            source: source.to_owned(),
            boot: "1".to_owned(),
            seq,
            age_s: 0.0,
            period_s: 1.0,
            rt_s,
            errors: 0.0,
            count: Some(100),
        }
    }

    fn rt_ms(merged: Option<Merged>) -> Option<f64> {
        Some((merged?.rt_s? * 1e3).round())
    }

    #[test]
    fn one_source_is_merged_at_once_and_every_time() {
        let mut merger = Merger::default();
        for seq in 1..5 {
            merger.accept(&report("a", seq, 0.1), seq as f64).unwrap();
            assert_eq!(rt_ms(merger.close(seq as f64)), Some(100.0));
            assert_eq!(merger.close(seq as f64 + 0.5), None);
        }
    }

    #[test]
    fn two_sources_are_averaged_by_what_they_served() {
        let mut merger = Merger::default();
        merger.accept(&report("a", 1, 0.1), 1.0).unwrap();
        let small = Report {
            count: Some(50),
            ..report("b", 1, 0.4)
        };
        merger.accept(&small, 1.0).unwrap();
        assert_eq!(rt_ms(merger.close(1.0)), Some(200.0));
    }

    #[test]
    fn waits_for_expected_sources_but_not_for_ever() {
        let mut merger = Merger::default();
        for source in ["a", "b", "c"] {
            merger.accept(&report(source, 1, 0.1), 1.0).unwrap();
        }
        assert!(merger.close(1.0).is_some());
        merger.accept(&report("a", 2, 9.0), 2.0).unwrap();
        assert_eq!(merger.close(2.0), None);
        merger.accept(&report("b", 2, 0.1), 2.1).unwrap();
        assert_eq!(merger.close(2.9), None);
        assert_eq!(merger.close(3.21).map(|merged| merged.sources), Some(2));
    }

    #[test]
    fn three_sources_vote_and_a_claimed_count_buys_no_more_than_double() {
        let mut merger = Merger::default();
        for (i, source) in ["a", "b", "c", "d"].into_iter().enumerate() {
            merger
                .accept(&report(source, 1, 0.1 + 0.01 * i as f64), 1.0)
                .unwrap();
        }
        let loud = Report {
            count: Some(u64::MAX),
            ..report("e", 1, 60.0)
        };
        merger.accept(&loud, 1.0).unwrap();
        assert_eq!(rt_ms(merger.close(1.0)), Some(125.0));
    }

    #[test]
    fn a_source_that_served_nothing_has_no_say_about_latency() {
        let mut merger = Merger::default();
        merger.accept(&report("a", 1, 0.1), 1.0).unwrap();
        let idle = Report {
            count: Some(0),
            ..report("b", 1, 0.0)
        };
        merger.accept(&idle, 1.0).unwrap();
        assert_eq!(rt_ms(merger.close(1.0)), Some(100.0));
        let down = Report {
            errors: 1.0,
            ..report("a", 2, 0.0)
        };
        merger.accept(&down, 2.0).unwrap();
        merger.accept(&Report { seq: 2, ..idle }, 2.0).unwrap();
        let merged = merger.close(2.0).unwrap();
        assert_eq!((merged.rt_s, merged.errors > 0.9), (None, true));
    }

    #[test]
    fn sources_are_bounded_and_idle_ones_make_room() {
        let mut merger = Merger::default();
        for i in 0..SOURCES_MAX {
            merger.accept(&report(&i.to_string(), 1, 0.1), 1.0).unwrap();
        }
        let one_more = report("late", 1, 0.1);
        let refused = merger.accept(&one_more, 2.0).unwrap_err();
        assert_eq!(refused.to_string(), "256 sources report already");
        merger.accept(&one_more, 400.0).unwrap();
    }
}
