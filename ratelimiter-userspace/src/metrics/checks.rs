//! The check API: throughput, refusals and latency can be read off.

use std::sync::atomic::Ordering;

use super::text::{Kind, Text};
use crate::check::Checks;
use crate::control::breaker::Phase;
use crate::http::connections::ConnectionStats;
use crate::limiter::{DURATION_BOUNDS_NS, Reason};

/// Backends with series of their own.
const MAX_BACKENDS: usize = 12;

pub(super) fn render(text: &mut Text, checks: &Checks, connections: &ConnectionStats) {
    let limiter = checks.limiter();
    let totals = limiter.totals();
    let family = text.family(
        "ratelimiter_checks",
        Kind::Counter,
        "Checks by result and reason.",
    );
    for reason in Reason::ALL {
        let result = if reason.allows() { "allowed" } else { "denied" };
        family.sample(
            &[("result", result), ("reason", reason.as_str())],
            totals.of(reason) as f64,
        );
    }
    let bounds = DURATION_BOUNDS_NS.map(|ns| ns as f64 / 1e9);
    text.histogram(
        "ratelimiter_check_duration_seconds",
        "Time from having read a check to having its answer.",
        &bounds,
        &totals.durations,
        totals.duration_sum_ns as f64 / 1e9,
    );
    let stats = limiter.stats();
    for (name, help, value) in [
        (
            "ratelimiter_clients",
            "Clients whose usage is in memory.",
            stats.clients,
        ),
        (
            "ratelimiter_clients_capacity",
            "Clients whose usage fits into memory.",
            stats.capacity,
        ),
        (
            "ratelimiter_check_policies",
            "Distinct policies of requests in force.",
            stats.policies,
        ),
        (
            "ratelimiter_check_memory_bytes",
            "Memory for states that need more than a word; the table itself apart.",
            stats.block_bytes,
        ),
        (
            "ratelimiter_check_connections",
            "Open connections of the check API.",
            connections.open.load(Ordering::Relaxed),
        ),
    ] {
        text.family(name, Kind::Gauge, help)
            .sample(&[], value as f64);
    }
    let family = text.family(
        "ratelimiter_clients_evicted",
        Kind::Counter,
        "Clients that gave way to others; those in debt left it to them.",
    );
    family.sample(&[("in_debt", "false")], stats.evicted_idle as f64);
    family.sample(&[("in_debt", "true")], stats.evicted_in_debt as f64);
    for (name, help, value) in [
        (
            "ratelimiter_check_connections_accepted",
            "Connections of the check API accepted.",
            &connections.accepted,
        ),
        (
            "ratelimiter_check_connections_refused",
            "Connections of the check API refused for want of room or descriptors.",
            &connections.refused,
        ),
    ] {
        text.family(name, Kind::Counter, help)
            .sample(&[], value.load(Ordering::Relaxed) as f64);
    }
    breakers(text, checks);
}

fn breakers(text: &mut Text, checks: &Checks) {
    let mut breakers = checks.limiter().breakers();
    if breakers.is_empty() {
        return;
    }
    breakers.truncate(MAX_BACKENDS);
    let phases = [Phase::Closed, Phase::Open { until_ns: 0 }, Phase::HalfOpen];
    let family = text.family(
        "ratelimiter_breaker_state",
        Kind::Gauge,
        "Whether a backend's circuit breaker is in a state.",
    );
    for breaker in &breakers {
        for state in phases.map(Phase::as_str) {
            let is = f64::from(u8::from(breaker.phase.as_str() == state));
            family.sample(&[("backend", &breaker.backend), ("state", state)], is);
        }
    }
    let family = text.family(
        "ratelimiter_breaker_opened",
        Kind::Counter,
        "How often a backend's circuit breaker has opened.",
    );
    for breaker in &breakers {
        family.sample(
            &[("backend", &breaker.backend)],
            breaker.opened_total as f64,
        );
    }
}
