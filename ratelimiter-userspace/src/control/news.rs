//! What changed in a step and why, in words for logs, status and people.
use serde::{Deserialize, Serialize};

use super::budget::Mode;
use super::report::Merged;
use super::settings::Settings;

/// What a change is about, the least important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// The health signal came, or went.
    Signal,
    /// What the backend is proven to complete.
    Capacity,
    /// The factor of the literal rule.
    Factor,
    /// Whether the signal answers to load.
    Trust,
    /// What the budget does.
    Mode,
}

/// One thing that changed, with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What it is about.
    pub topic: Topic,
    /// What it is now and why, for people.
    pub reason: String,
}

/// Changes of one step, in order.
#[derive(Default)]
pub(super) struct News(pub(super) Vec<Change>);

impl News {
    pub(super) fn add(&mut self, topic: Topic, reason: String) {
        self.0.push(Change { topic, reason });
    }

    /// Returns the reason of the most important change.
    pub(super) fn headline(&self) -> Option<&str> {
        let change = self.0.iter().max_by_key(|change| change.topic)?;
        Some(&change.reason)
    }

    pub(super) fn factor(
        &mut self,
        settings: &Settings,
        before: f64,
        after: f64,
        rt_s: f64,
        seen: &Merged,
    ) {
        if (after - before).abs() <= 0.0 {
            return;
        }
        let ms = |seconds: f64| seconds * 1e3;
        let cause = if rt_s > settings.high_s {
            format!(
                "response time {:.0} ms is above {:.0} ms",
                ms(rt_s),
                ms(settings.high_s)
            )
        } else if after < before {
            let (errors, bound) = (100.0 * seen.errors, 100.0 * settings.error_high);
            format!("{errors:.1} % errors, bound {bound:.1} %")
        } else {
            format!(
                "response time {:.0} ms is below {:.0} ms",
                ms(rt_s),
                ms(settings.low_s)
            )
        };
        self.add(
            Topic::Factor,
            format!("factor {before:.3} -> {after:.3}: {cause}"),
        );
    }

    pub(super) fn mode(&mut self, before: Mode, after: Mode, capacity: Option<f64>) {
        if before == after {
            return;
        }
        let rate = capacity.unwrap_or(0.0);
        let cause = match (before, after) {
            (_, Mode::Open) => "demand is below what the backend completes".to_owned(),
            (Mode::Trip, Mode::Track) => format!("it answers again: raised from {rate:.0}/s"),
            (_, Mode::Track) => format!("overload: it completes {rate:.0}/s"),
            (_, Mode::Trip) => "mostly errors that load does not explain".to_owned(),
        };
        self.add(
            Topic::Mode,
            format!("{} -> {}: {cause}", before.name(), after.name()),
        );
    }

    pub(super) fn trust(&mut self, again: bool) {
        let reason = if again {
            "the health signal answers to load again"
        } else {
            "cutting does not help: the health signal does not answer to load"
        };
        self.add(Topic::Trust, reason.to_owned());
    }
}
