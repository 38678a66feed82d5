//! Health reports: what is believed of them, and how many reporters become one voice.
//!
//! A [`Report`] is checked, then kept under its source; when a period is over the sources are
//! merged: with three or more by weighted median, so that one liar of ten moves little. Sequence
//! numbers are per source and boot, so a liar mutes nobody but itself.
use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

/// Shortest and longest period of a report, in seconds.
const PERIOD_MIN_S: f64 = 0.01;
const PERIOD_MAX_S: f64 = 60.0;
/// Response times above the first count as the first; above the second the report is refused.
const RT_TRUSTED_S: f64 = 60.0;
const RT_MAX_S: f64 = 3600.0;
/// Two merged reports are at least this far apart: faster reporters are averaged.
const MERGE_LEAST_S: f64 = 0.15;
/// A merge waits for the expected sources at most this many of their periods, and seconds.
const MERGE_WAIT_PERIODS: f64 = 1.2;
const MERGE_WAIT_MAX_S: f64 = 5.0;
/// A source is expected while its last report is younger than this many of its periods.
const EXPECTED_PERIODS: f64 = 3.0;
/// No source weighs more than this many times the median source.
const WEIGHT_CAP: f64 = 2.0;
/// Sources remembered at a time, and for how long without a report.
const SOURCES_MAX: usize = 256;
const SOURCE_IDLE_S: f64 = 300.0;
/// Earlier boots of a source that stay refused.
const BOOTS_MAX: usize = 8;
/// Longest name of a source or boot, in bytes.
pub const NAME_MAX_BYTES: usize = 128;

/// One observation of a backend's health over a period, as a reporter sends it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Who reports; bound to the reporter's credential by whoever received it.
    pub source: String,
    /// Changes when the reporter restarts and its `seq` starts again.
    pub boot: String,
    /// Grows with each report of a boot. The same one again is no fresh signal.
    pub seq: u64,
    /// How long before its arrival the period ended, in seconds.
    pub age_s: f64,
    /// Length of the period, in seconds, 0.01..=60.
    pub period_s: f64,
    /// Average response time of served requests, in seconds. Refused ones count in `errors` only.
    pub rt_s: f64,
    /// Share of failed requests, 0..=1.
    pub errors: f64,
    /// Served requests, if the reporter counts them.
    pub count: Option<u64>,
}

/// Why a report has no effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// A number that is none, or out of bounds.
    #[error("`{field}` is {value}; it must be {bound}")]
    OutOfBounds {
        /// Which field.
        field: String,
        /// What it holds, as text, since it may be no number.
        value: String,
        /// What it may hold.
        bound: String,
    },
    /// Seen before, or older than what has been seen.
    #[error("`seq` is {seq}; it must be above {last}")]
    Replayed {
        /// The report's.
        seq: u64,
        /// The newest of its source and boot.
        last: u64,
    },
    /// From a boot that the source has left.
    #[error("`boot` is `{boot}`, which `{source_name}` has left")]
    FormerBoot {
        /// The report's boot.
        boot: String,
        /// The report's source.
        source_name: String,
    },
    /// More sources than are kept.
    #[error("{SOURCES_MAX} sources report already")]
    TooManySources,
}

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
    fn check(&self) -> Result<(), Refusal> {
        let refuse = |field: &str, value: String, bound: String| {
            let field = field.to_owned();
            Err(Refusal::OutOfBounds {
                field,
                value,
                bound,
            })
        };
        for (field, name) in [("source", &self.source), ("boot", &self.boot)] {
            if name.len() > NAME_MAX_BYTES {
                let bound = format!("at most {NAME_MAX_BYTES} bytes");
                return refuse(field, format!("{} bytes", name.len()), bound);
            }
        }
        let stale_s = (EXPECTED_PERIODS * self.period_s).max(3.0);
        for (field, value, low, high) in [
            ("period_s", self.period_s, PERIOD_MIN_S, PERIOD_MAX_S),
            ("age_s", self.age_s, 0.0, stale_s),
            ("rt_s", self.rt_s, 0.0, RT_MAX_S),
            ("errors", self.errors, 0.0, 1.0),
        ] {
            // Written so that NaN is refused.
            if !(value >= low && value <= high) {
                return refuse(
                    field,
                    value.to_string(),
                    format!("between {low} and {high}"),
                );
            }
        }
        Ok(())
    }

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
    /// Takes a report that arrived now. A refused one changes nothing.
    pub fn accept(&mut self, report: &Report, now_s: f64) -> Result<(), Refusal> {
        report.check()?;
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
                .filter(|s| now_s - s.last_s <= EXPECTED_PERIODS * s.period_s)
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
