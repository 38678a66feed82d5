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

/// A goal, the figure it is for, and the program that measures it.
type Bar = (&'static str, &'static str, Goal);

const KERNEL: &str = "bench-kernel";
const VETH: &str = "bench-veth";
const AGENT: &str = "bench-agent";
const CHECK: &str = "bench-check";
const ADAPTIVE: &str = "bench-adaptive";
const FLEET: &str = "bench-fleet";

/// Ratios, except where the benchmark gives none: then the value is compared.
const GOALS: [Bar; 57] = [
    (FLEET, "admitted_steady_vs_limit", Goal::AtMost(1.01)),
    (FLEET, "admitted_hold_apart_vs_limit", Goal::AtMost(1.1)),
    (
        FLEET,
        "admitted_strict_partition_vs_limit",
        Goal::AtMost(1.1),
    ),
    (FLEET, "denied_polite_hold", Goal::AtMost(0.0)),
    (FLEET, "p99_redis_stopped_vs_healthy", Goal::AtMost(2.0)),
    (FLEET, "resume_after_heal_s", Goal::AtMost(2.0)),
    (FLEET, "leased_vs_local_rps", Goal::AtLeast(0.9)),
    (FLEET, "exact_vs_per_request_script", Goal::AtLeast(4.0)),
    (FLEET, "redis_core_per_20k_hot", Goal::AtMost(1.0)),
    (FLEET, "agent_core_per_10k_hot", Goal::AtMost(0.1)),
    (KERNEL, "over_limit_1k_vs_empty", Goal::AtMost(1.6)),
    (KERNEL, "pass_1k_vs_empty", Goal::AtMost(1.7)),
    (
        KERNEL,
        "over_limit_1k_10k_prefixes_vs_empty",
        Goal::AtMost(1.8),
    ),
    (KERNEL, "tracked_1k_vs_empty", Goal::AtMost(3.2)),
    (KERNEL, "segment_1k_vs_empty", Goal::AtMost(1.9)),
    (KERNEL, "v6_over_limit_1k_vs_empty", Goal::AtMost(1.7)),
    (KERNEL, "v6_random_1m_vs_empty", Goal::AtMost(7.0)),
    (KERNEL, "random_1m_vs_empty", Goal::AtMost(4.5)),
    (KERNEL, "spoofed_vs_empty", Goal::AtMost(5.0)),
    (KERNEL, "lru_vs_ours_1k", Goal::AtLeast(1.4)),
    (KERNEL, "lru_vs_ours_1m", Goal::AtLeast(3.0)),
    (KERNEL, "lru_vs_ours_spoofed", Goal::AtLeast(5.0)),
    (KERNEL, "churn_gain", Goal::AtMost(1.01)),
    (KERNEL, "polite_loss_phi08", Goal::AtMost(0.001)),
    (KERNEL, "bytes_per_source", Goal::AtMost(16.0)),
    (VETH, "veth_drop_vs_xdp_drop", Goal::AtMost(1.4)),
    (VETH, "nft_ingress_vs_ours", Goal::AtLeast(5.0)),
    (VETH, "hashlimit_vs_ours", Goal::AtLeast(5.0)),
    (VETH, "legit_goodput_under_flood", Goal::AtLeast(0.99)),
    (AGENT, "agent_start_to_enforcing", Goal::AtMost(1.0)),
    (AGENT, "load_1m_prefixes", Goal::AtMost(10.0)),
    (AGENT, "load_190k_client_addresses", Goal::AtMost(5.0)),
    (AGENT, "agent_rss_1m_sources", Goal::AtMost(40.0)),
    (CHECK, "lib_1k_ns", Goal::AtMost(40.0)),
    (CHECK, "lib_1m_vs_governor", Goal::AtLeast(2.0)),
    (CHECK, "lib_zipf_vs_governor", Goal::AtLeast(2.0)),
    (CHECK, "lib_1m_batch_ns", Goal::AtMost(40.0)),
    (CHECK, "lib_two_cores", Goal::AtLeast(1.7)),
    (CHECK, "bytes_per_client", Goal::AtMost(50.0)),
    (CHECK, "http_vs_axum", Goal::AtLeast(0.9)),
    (CHECK, "http_vs_throttlecrab", Goal::AtLeast(1.25)),
    (CHECK, "grpc_vs_throttlecrab", Goal::AtLeast(1.0)),
    (CHECK, "resp64_vs_throttlecrab", Goal::AtLeast(6.0)),
    (CHECK, "p99_vs_echo", Goal::AtMost(1.5)),
    (ADAPTIVE, "goodput_2x", Goal::AtLeast(0.95)),
    (ADAPTIVE, "goodput_5x", Goal::AtLeast(0.95)),
    (ADAPTIVE, "goodput_10x", Goal::AtLeast(0.95)),
    (ADAPTIVE, "settle_first_surge_s", Goal::AtMost(8.0)),
    (ADAPTIVE, "settle_2x_to_5x_s", Goal::AtMost(4.0)),
    (ADAPTIVE, "settle_5x_to_10x_s", Goal::AtMost(4.0)),
    (ADAPTIVE, "oscillation_10x", Goal::AtMost(0.10)),
    (ADAPTIVE, "polite_served_10x", Goal::AtLeast(0.97)),
    (ADAPTIVE, "jain_polite", Goal::AtLeast(0.99)),
    (ADAPTIVE, "goodput_calm", Goal::AtLeast(0.995)),
    (ADAPTIVE, "goodput_after", Goal::AtLeast(0.99)),
    (ADAPTIVE, "goodput_signal_lost_calm_5x", Goal::AtLeast(0.80)),
    // Owed until hosts share their state.
    (
        ADAPTIVE,
        "goodput_one_host_without_redis",
        Goal::AtLeast(0.97),
    ),
];

/// The goal of a figure, if it has one.
pub(crate) fn of(name: &str) -> Option<Goal> {
    GOALS
        .iter()
        .find(|(_, figure, _)| *figure == name)
        .map(|(_, _, goal)| *goal)
}

/// Figures with a goal that these programs owe and that are not among `measured`.
pub(crate) fn absent(binaries: &[&str], measured: &[&str]) -> Vec<&'static str> {
    GOALS
        .iter()
        .filter(|(binary, figure, _)| binaries.contains(binary) && !measured.contains(figure))
        .map(|(_, figure, _)| *figure)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Goal, absent, of};

    #[test]
    fn judges_the_ratio_before_the_value() {
        assert!(Goal::AtMost(1.6).is_met(Some(1.5), 40.0));
        assert!(!Goal::AtMost(1.6).is_met(None, 40.0));
        assert!(Goal::AtLeast(5.0).is_met(Some(7.0), 0.1));
    }

    #[test]
    fn names_what_a_program_owes_and_did_not_measure() {
        let owed = absent(&["bench-veth"], &["veth_drop_vs_xdp_drop", "churn_gain"]);
        assert_eq!(
            owed,
            [
                "nft_ingress_vs_ours",
                "hashlimit_vs_ours",
                "legit_goodput_under_flood"
            ]
        );
        assert!(absent(&["bench-nothing"], &[]).is_empty());
    }

    #[test]
    fn knows_only_figures_with_a_bar() {
        assert_eq!(of("churn_gain"), Some(Goal::AtMost(1.01)));
        assert_eq!(of("new_sources_printed"), None);
    }
}
