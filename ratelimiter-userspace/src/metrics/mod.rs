//! What Prometheus sees: names with the prefix `ratelimiter_`, base units, a bounded number of
//! series. Never an address or a client id in a label.
#![expect(
    clippy::format_push_string,
    reason = "texts for people: an allocation more does not matter, a fallible `write!` reads worse"
)]
mod adaptive;
mod checks;
mod shared_store;
mod sync;
mod text;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use ratelimiter_common::verdict::{Reason, Verdict};

use crate::admin::views::{AdaptiveView, CrowdView, InterfaceView, SyncView};
use crate::check::Checks;
use crate::dataplane::{Figures, Health, Stats};
use crate::http::connections::ConnectionStats;
use crate::http::stats::{BUCKETS_S, HttpStats};
use text::{Kind, Text};

/// Segments with series of their own; the others are added up under `other`.
const MAX_SEGMENTS: usize = 12;
/// Interfaces with series of their own.
const MAX_INTERFACES: usize = 16;
/// Crowd regions with series of their own.
const MAX_REGIONS: usize = 8;
/// Series of requests by route.
const MAX_REQUEST_SERIES: usize = 60;

/// Everything that is shown, as it is at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// Interfaces the agent protects.
    pub interfaces: &'a [InterfaceView],
    /// Counters.
    pub stats: &'a Stats,
    /// Tables.
    pub figures: &'a Figures,
    /// The crowd, with the sizing law.
    pub crowd: &'a [CrowdView],
    /// Segment numbers by name.
    pub segments: &'a BTreeMap<String, u32>,
    /// Links and pins.
    pub health: &'a Health,
    /// What `readyz` says.
    pub ready: bool,
    /// Whether anything may be dropped.
    pub enforcing: bool,
    /// Revision of the configuration in force.
    pub revision: u64,
    /// Number of clients.
    pub clients: usize,
    /// Entries of the allow list.
    pub allowed: usize,
    /// Entries of the block list.
    pub blocked: usize,
    /// Changes on trial.
    pub pending: usize,
    /// When the first of them takes itself back, milliseconds since the Unix epoch.
    pub confirm_by_unix_ms: Option<u64>,
    /// Reloads that succeeded and that failed.
    pub reloads: [u64; 2],
    /// Samples overwritten before they were read.
    pub samples_lost: u64,
    /// Drop events read.
    pub drop_events: u64,
    /// When the agent started, seconds since the Unix epoch.
    pub start_unix_s: f64,
    /// The admin API.
    pub http: &'a HttpStats,
    /// The check API.
    pub checks: &'a Checks,
    /// Its connections.
    pub check_connections: &'a ConnectionStats,
    /// What follows health and load.
    pub adaptive: &'a AdaptiveView,
    /// Packets over a fleet; `None` without a shared store.
    pub fleet: Option<crate::sync::host::Figures>,
    /// The fleet.
    pub sync: &'a SyncView,
}

/// The word of a verdict.
#[must_use]
pub const fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Drop => "drop",
    }
}

/// Resident memory of this process in bytes; 0 if it cannot be read.
#[must_use]
pub fn rss_bytes() -> u64 {
    // Second column of statm, in pages of 4 KiB on every machine this runs on.
    std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .map_or(0, |pages| pages * 4_096)
}

/// Renders the metrics: Prometheus text 0.0.4, or OpenMetrics 1.0.
#[must_use]
pub fn render(snapshot: &Snapshot<'_>, open_metrics: bool) -> String {
    let mut text = Text::new(open_metrics);
    agent(&mut text, snapshot);
    packets(&mut text, snapshot);
    tables(&mut text, snapshot);
    http(&mut text, snapshot.http);
    checks::render(&mut text, snapshot.checks, snapshot.check_connections);
    adaptive::render(&mut text, snapshot.adaptive);
    if let Some(fleet) = &snapshot.fleet {
        sync::render(&mut text, fleet);
    }
    shared_store::render(&mut text, snapshot.sync);
    text.finish()
}

fn agent(text: &mut Text, s: &Snapshot<'_>) {
    text.family(
        "ratelimiter_build_info",
        Kind::Gauge,
        "The agent's version.",
    )
    .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    text.family(
        "ratelimiter_ready",
        Kind::Gauge,
        "Whether the agent does what it is configured to do.",
    )
    .sample(&[], f64::from(u8::from(s.ready)));
    text.family(
        "ratelimiter_enforcing",
        Kind::Gauge,
        "Whether packets may be dropped (0: shadow).",
    )
    .sample(&[], f64::from(u8::from(s.enforcing)));
    text.family(
        "ratelimiter_start_time_seconds",
        Kind::Gauge,
        "When the agent started, Unix time.",
    )
    .sample(&[], s.start_unix_s);
    text.family(
        "ratelimiter_resident_memory_bytes",
        Kind::Gauge,
        "Memory of the agent, kernel tables apart.",
    )
    .sample(&[], rss_bytes() as f64);
    text.family(
        "ratelimiter_policy_revision",
        Kind::Gauge,
        "Revision of the configuration in force.",
    )
    .sample(&[], s.revision as f64);
    text.family(
        "ratelimiter_clients_configured",
        Kind::Gauge,
        "Clients configured.",
    )
    .sample(&[], s.clients as f64);
    text.family(
        "ratelimiter_list_entries",
        Kind::Gauge,
        "Entries of the allow and block lists.",
    )
    .sample(&[("list", "allow")], s.allowed as f64)
    .sample(&[("list", "block")], s.blocked as f64);
    text.family(
        "ratelimiter_changes_pending",
        Kind::Gauge,
        "Changes that wait to be confirmed.",
    )
    .sample(&[], s.pending as f64);
    if let Some(confirm_by_unix_ms) = s.confirm_by_unix_ms {
        text.family(
            "ratelimiter_change_confirm_by_timestamp_seconds",
            Kind::Gauge,
            "When the first change on trial takes itself back, Unix time.",
        )
        .sample(&[], confirm_by_unix_ms as f64 / 1e3);
    }
    let [ok, failed] = s.reloads;
    text.family(
        "ratelimiter_reloads",
        Kind::Counter,
        "Reloads of the configuration file.",
    )
    .sample(&[("result", "ok")], ok as f64)
    .sample(&[("result", "failed")], failed as f64);
    text.family(
        "ratelimiter_repairs",
        Kind::Counter,
        "Pins, links and maps repaired.",
    )
    .sample(&[], s.health.repairs as f64);
    text.family(
        "ratelimiter_reattached",
        Kind::Counter,
        "Interfaces attached again after they had vanished.",
    )
    .sample(&[], s.health.reattached as f64);
    let attached = text.family(
        "ratelimiter_interface_attached",
        Kind::Gauge,
        "Whether the program runs on an interface, by mode.",
    );
    for interface in s.interfaces.iter().take(MAX_INTERFACES) {
        let mode = match interface.mode {
            crate::config::AttachMode::Native => "native",
            crate::config::AttachMode::Generic => "generic",
        };
        attached.sample(
            &[("interface", &interface.name), ("mode", mode)],
            f64::from(u8::from(interface.attached)),
        );
    }
}

fn packets(text: &mut Text, s: &Snapshot<'_>) {
    let verdicts = [Verdict::Pass, Verdict::Drop];
    let judged = || {
        Reason::ALL
            .into_iter()
            .flat_map(|reason| verdicts.map(|verdict| (reason, verdict)))
            .map(|(reason, verdict)| (reason, verdict, s.stats.count(reason, verdict)))
            .filter(|(reason, verdict, count)| {
                // Series that can never rise are left out; the others are there from the start.
                count.packets > 0 || reason.refuses() || *verdict == Verdict::Pass
            })
    };
    let family = text.family(
        "ratelimiter_reason_packets",
        Kind::Counter,
        "Packets by reason and verdict; their sum is what was offered.",
    );
    for (reason, verdict, count) in judged() {
        family.sample(
            &[
                ("reason", reason.as_str()),
                ("verdict", verdict_word(verdict)),
            ],
            count.packets as f64,
        );
    }
    let family = text.family(
        "ratelimiter_bytes",
        Kind::Counter,
        "Bytes of frames by verdict, link header included.",
    );
    for verdict in verdicts {
        family.sample(
            &[("verdict", verdict_word(verdict))],
            s.stats.total(verdict).bytes as f64,
        );
    }
    let first_seen: u64 = verdicts
        .iter()
        .map(|verdict| s.stats.count(Reason::FirstSeen, *verdict).packets)
        .sum();
    text.family(
        "ratelimiter_first_seen_refusals",
        Kind::Counter,
        "Packets of sources not seen before, beyond the first-seen budget.",
    )
    .sample(&[], first_seen as f64);
    segments(text, s);
    text.family(
        "ratelimiter_samples_lost",
        Kind::Counter,
        "Samples overwritten before they were read.",
    )
    .sample(&[], s.samples_lost as f64);
    text.family(
        "ratelimiter_drop_events",
        Kind::Counter,
        "Sampled drop events read.",
    )
    .sample(&[], s.drop_events as f64);
}

fn segments(text: &mut Text, s: &Snapshot<'_>) {
    // By number: a segment keeps its series while others come and go.
    let mut by_number: Vec<(&str, u32)> = s
        .segments
        .iter()
        .map(|(name, number)| (name.as_str(), *number))
        .collect();
    by_number.sort_unstable_by_key(|(_, number)| *number);
    let mut rows: Vec<(&str, [u64; 4])> = Vec::new();
    for (position, (name, number)) in by_number.into_iter().enumerate() {
        let Some(count) = s.stats.segments.get(number as usize) else {
            continue;
        };
        let counts = [
            count.conforming,
            count.shadowed,
            count.dropped,
            count.conforming_bytes,
        ];
        if position < MAX_SEGMENTS {
            rows.push((name, counts));
        } else if let Some((_, other)) = rows.get_mut(MAX_SEGMENTS) {
            for (sum, count) in other.iter_mut().zip(counts) {
                *sum = sum.wrapping_add(count);
            }
        } else {
            rows.push(("other", counts));
        }
    }
    let family = text.family(
        "ratelimiter_packets",
        Kind::Counter,
        "Packets that met a limit, by segment, decision and verdict.",
    );
    for (segment, [conforming, shadowed, dropped, _]) in &rows {
        for (decision, verdict, count) in [
            ("conforming", "pass", conforming),
            ("non_conforming", "pass", shadowed),
            ("non_conforming", "drop", dropped),
        ] {
            family.sample(
                &[
                    ("segment", segment),
                    ("decision", decision),
                    ("verdict", verdict),
                ],
                *count as f64,
            );
        }
    }
    let family = text.family(
        "ratelimiter_conforming_bytes",
        Kind::Counter,
        "Bytes of conforming packets, by segment.",
    );
    for (segment, [.., bytes]) in &rows {
        family.sample(&[("segment", segment)], *bytes as f64);
    }
}

/// A gauge of every crowd region: name, help, value.
type Column = (&'static str, &'static str, fn(&CrowdView) -> f64);

fn tables(text: &mut Text, s: &Snapshot<'_>) {
    let limited = |name: &str| {
        matches!(
            name,
            "TRACKED" | "PREFIXES4" | "PREFIXES6" | "POLICIES" | "CROWD4" | "CROWD6"
        )
    };
    let used: Vec<_> = s
        .figures
        .tables
        .iter()
        .filter(|table| limited(table.name))
        .collect();
    let family = text.family(
        "ratelimiter_map_capacity",
        Kind::Gauge,
        "Entries a kernel table can hold.",
    );
    for table in &used {
        family.sample(&[("map", table.name)], table.capacity as f64);
    }
    let family = text.family(
        "ratelimiter_map_entries",
        Kind::Gauge,
        "Entries of a kernel table in use.",
    );
    for table in &used {
        if let Some(used) = table.used {
            family.sample(&[("map", table.name)], used as f64);
        }
    }
    text.family(
        "ratelimiter_map_memory_bytes",
        Kind::Gauge,
        "Memory of all kernel tables.",
    )
    .sample(&[], s.figures.bytes() as f64);
    let columns: [Column; 5] = [
        (
            "ratelimiter_crowd_capacity",
            "Sources a crowd region has room for (N).",
            |c| c.capacity as f64,
        ),
        (
            "ratelimiter_crowd_sources",
            "Sources of a crowd region that owe something.",
            |c| c.indebted as f64,
        ),
        (
            "ratelimiter_crowd_over_limit",
            "Sources of a crowd region over their limit (H).",
            |c| c.over_limit as f64,
        ),
        (
            "ratelimiter_crowd_phi",
            "F / (N * rate) of the sizing law; keep it below 0.8.",
            |c| c.phi,
        ),
        (
            "ratelimiter_crowd_offender_ratio",
            "H / N of the sizing law; keep it below 0.25.",
            |c| c.offender_share,
        ),
    ];
    for (name, help, value) in columns {
        let family = text.family(name, Kind::Gauge, help);
        for crowd in s.crowd.iter().take(MAX_REGIONS) {
            let family_word = if crowd.family == 6 { "ipv6" } else { "ipv4" };
            family.sample(
                &[
                    ("family", family_word),
                    ("segment", &crowd.segment),
                    ("unit", &crowd.unit),
                ],
                value(crowd),
            );
        }
    }
}

fn http(text: &mut Text, http: &HttpStats) {
    let family = text.family(
        "ratelimiter_http_requests",
        Kind::Counter,
        "Requests of the admin API by route and class of status.",
    );
    let mut series = 0;
    let mut beyond = 0;
    http.visit(&mut |path, method, class, count| {
        series += 1;
        if series <= MAX_REQUEST_SERIES {
            family.sample(
                &[("route", path), ("method", method), ("status", class)],
                count as f64,
            );
        } else {
            beyond += count;
        }
    });
    if beyond > 0 {
        family.sample(
            &[("route", "more"), ("method", "more"), ("status", "more")],
            beyond as f64,
        );
    }
    let (buckets, sum_s) = http.durations();
    text.histogram(
        "ratelimiter_http_request_duration_seconds",
        "How long requests of the admin API took.",
        &BUCKETS_S,
        &buckets,
        sum_s,
    );
    text.family(
        "ratelimiter_http_connections",
        Kind::Gauge,
        "Open connections of the admin API.",
    )
    .sample(&[], http.connections.open.load(Ordering::Relaxed) as f64);
    text.family(
        "ratelimiter_http_connections_accepted",
        Kind::Counter,
        "Connections accepted.",
    )
    .sample(
        &[],
        http.connections.accepted.load(Ordering::Relaxed) as f64,
    );
    text.family(
        "ratelimiter_http_connections_refused",
        Kind::Counter,
        "Connections refused for want of room or descriptors.",
    )
    .sample(&[], http.connections.refused.load(Ordering::Relaxed) as f64);
}
