//! Limits that follow health: what was decided, and of what.

use super::text::{Kind, Text};
use crate::admin::views::{AdaptiveView, BackendView};

/// Backends with series of their own.
const MAX_BACKENDS: usize = 4;

/// A gauge per backend: name, help, value.
type Gauge = (&'static str, &'static str, fn(&BackendView) -> Option<f64>);

const GAUGES: [Gauge; 8] = [
    (
        "ratelimiter_adaptive_factor",
        "The factor on all limits of a backend's clients.",
        |b| Some(b.factor),
    ),
    (
        "ratelimiter_adaptive_overall",
        "What is admitted of what is asked for.",
        |b| Some(b.overall),
    ),
    (
        "ratelimiter_adaptive_budget_per_second",
        "Units per second for all clients together, where there is a bound.",
        |b| b.budget,
    ),
    (
        "ratelimiter_adaptive_capacity_per_second",
        "What the backend has proven it completes.",
        |b| b.capacity,
    ),
    (
        "ratelimiter_adaptive_demand_per_second",
        "What clients ask for, each at most its limit.",
        |b| Some(b.demand),
    ),
    (
        "ratelimiter_adaptive_latency_seconds",
        "The last response time that was believed.",
        |b| Some(b.latency_ms / 1e3),
    ),
    (
        "ratelimiter_adaptive_signal_age_seconds",
        "Time since the last health report that counted.",
        |b| b.signal_age_s,
    ),
    (
        "ratelimiter_adaptive_paused",
        "Whether a person has paused the controllers.",
        |b| Some(f64::from(u8::from(b.paused))),
    ),
];

pub(super) fn render(text: &mut Text, adaptive: &AdaptiveView) {
    text.family(
        "ratelimiter_burst_scale",
        Kind::Gauge,
        "Share of its burst that every token bucket of requests has, by this host's load.",
    )
    .sample(&[], adaptive.window.scale);
    let mut backends: Vec<&BackendView> = adaptive.backends.iter().collect();
    if backends.is_empty() {
        return;
    }
    backends.truncate(MAX_BACKENDS);
    for (name, help, value) in GAUGES {
        let values: Vec<_> = backends
            .iter()
            .filter_map(|backend| Some((backend.backend.as_str(), value(backend)?)))
            .collect();
        if values.is_empty() {
            continue;
        }
        let family = text.family(name, Kind::Gauge, help);
        for (backend, value) in values {
            family.sample(&[("backend", backend)], value);
        }
    }
    let family = text.family(
        "ratelimiter_health_reports",
        Kind::Counter,
        "Health reports by whether they counted.",
    );
    for backend in &backends {
        for (result, count) in [("accepted", backend.reports), ("refused", backend.refused)] {
            let labels = [("backend", backend.backend.as_str()), ("result", result)];
            family.sample(&labels, count as f64);
        }
    }
}
