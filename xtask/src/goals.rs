//! The bars of the benchmarks: ratios against a baseline of the same run, or plain values.
use std::fmt;

/// What a figure must reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    /// The ratio, or the value where there is none, is at most this.
    AtMost(f64),
    /// The ratio, or the value where there is none, is at least this.
    AtLeast(f64),
}

impl Goal {
    /// Whether a figure meets it.
    pub(crate) fn is_met(self, ratio: Option<f64>, value: f64) -> bool {
        let measured = ratio.unwrap_or(value);
        match self {
            Self::AtMost(bound) => measured <= bound,
            Self::AtLeast(bound) => measured >= bound,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
        }
    }
}

/// Goals by the name of the figure. "kernel" and "veth" figures are ratios unless marked (value).
const GOALS: [(&str, Goal); 19] = [
    ("over_limit_1k_vs_empty", Goal::AtMost(1.6)),
    ("pass_1k_vs_empty", Goal::AtMost(1.7)),
    ("over_limit_1k_10k_prefixes_vs_empty", Goal::AtMost(1.8)),
    ("tracked_1k_vs_empty", Goal::AtMost(3.2)),
    ("segment_1k_vs_empty", Goal::AtMost(1.9)),
    ("v6_over_limit_1k_vs_empty", Goal::AtMost(1.7)),
    ("v6_random_1m_vs_empty", Goal::AtMost(7.0)),
    ("random_1m_vs_empty", Goal::AtMost(4.5)),
    ("spoofed_vs_empty", Goal::AtMost(5.0)),
    ("lru_vs_ours_1k", Goal::AtLeast(1.4)),
    ("lru_vs_ours_1m", Goal::AtLeast(3.0)),
    ("lru_vs_ours_spoofed", Goal::AtLeast(5.0)),
    ("churn_gain", Goal::AtMost(1.01)),
    ("polite_loss_phi08", Goal::AtMost(0.001)),
    ("veth_drop_vs_xdp_drop", Goal::AtMost(1.4)),
    ("nft_ingress_vs_ours", Goal::AtLeast(5.0)),
    ("hashlimit_vs_ours", Goal::AtLeast(5.0)),
    ("legit_goodput_under_flood", Goal::AtLeast(0.99)),
    ("bytes_per_source", Goal::AtMost(16.0)),
];

/// The goal of a figure, if it has one.
pub(crate) fn of(name: &str) -> Option<Goal> {
    GOALS
        .iter()
        .find(|(figure, _)| *figure == name)
        .map(|(_, goal)| *goal)
}

#[cfg(test)]
mod tests {
    use super::{Goal, of};

    #[test]
    fn judges_the_ratio_before_the_value() {
        assert!(Goal::AtMost(1.6).is_met(Some(1.5), 40.0));
        assert!(!Goal::AtMost(1.6).is_met(None, 40.0));
        assert!(Goal::AtLeast(5.0).is_met(Some(7.0), 0.1));
    }

    #[test]
    fn knows_only_figures_with_a_bar() {
        assert_eq!(of("churn_gain"), Some(Goal::AtMost(1.01)));
        assert_eq!(of("new_sources_printed"), None);
    }
}
