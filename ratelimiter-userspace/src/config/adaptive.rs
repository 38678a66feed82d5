//! What can be set about limits that follow the health of what they protect, its defaults and its
//! bounds. Off for every backend that has no such section.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::settings::Settings;
use crate::control;
use crate::control::settings::Law;
use crate::control::window;
use crate::policy::names::name_problem;
use crate::policy::validate::Issue;

/// Bounds of `poll.every_ms`.
const POLL_EVERY_MS: (u64, u64) = (100, 60_000);
/// Bounds of `poll.timeout_ms`.
const POLL_TIMEOUT_MS: (u64, u64) = (50, 1_000);
/// Largest `poll.max_body_bytes`.
const MAX_POLL_BYTES: u64 = 16 << 20;
/// Longest name of a value in a poll's answer, in bytes.
const MAX_SELECTOR_BYTES: usize = 256;
/// Segments with floors of their own, per backend.
const MAX_FLOORS: usize = 1_000;

/// Windows that follow this host's load, and what is read of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Host {
    /// How much burst is forgiven while this host is loaded.
    pub window: Windows,
}

/// How much burst is forgiven while this host is loaded: every token bucket's burst is the
/// configured one times a scale that falls with the load. No long-run rate ever changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Windows {
    /// Whether bursts follow the load.
    pub enabled: bool,
    /// Largest fall of the scale in one period, 0.01 to 0.25; it rises by half of that.
    pub step: f64,
    /// Seconds between two changes, 1 to 300.
    pub period_s: f64,
    /// Smallest scale, 0.1 to 1.
    pub min: f64,
    /// Limits whose burst stays as it is configured, by name, whoever has them.
    pub fixed: Vec<String>,
}

impl Default for Windows {
    fn default() -> Self {
        let window::Settings {
            step,
            period_s,
            min,
            ..
        } = window::Settings::default();
        Self {
            enabled: false,
            step,
            period_s,
            min,
            fixed: Vec::new(),
        }
    }
}

impl Windows {
    /// As the controller takes it.
    #[must_use]
    pub fn controls(&self) -> window::Settings {
        window::Settings {
            step: self.step,
            period_s: self.period_s,
            min: self.min,
            ..window::Settings::default()
        }
    }
}

/// What a backend's budget is counted in: whose clients are held to fair shares of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Counts {
    /// Checks of the check API.
    #[default]
    Requests,
    /// Packets that pass the kernel.
    Packets,
}

/// Which response time of a report counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Latency {
    /// The average.
    #[default]
    Mean,
    /// The median.
    P50,
    /// The 99th percentile.
    P99,
}

/// Limits that follow a backend's health: its signals and its controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Adaptive {
    /// `budget`: what the backend has proven it completes is shared fairly; `threshold`: one
    /// factor on all limits, moved by the two thresholds, and nothing else.
    pub law: Law,
    /// What the budget counts: `requests` (checks) or `packets`.
    pub counts: Counts,
    /// Which response time of a report counts: `mean`, `p50` or `p99`.
    pub latency: Latency,
    /// Response time above which all limits are reduced, in milliseconds.
    pub high_ms: f64,
    /// Response time below which they are raised again, in milliseconds.
    pub low_ms: f64,
    /// Share of failed requests from which limits are reduced.
    pub error_high: f64,
    /// Share of failed requests at which all but a trickle is refused, where load does not
    /// explain it.
    pub error_trip: f64,
    /// Smallest factor, 0.001 to 1; 0.25 where absent, 0.05 under `threshold`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
    /// Smallest scale of single segments, 0.001 to 1, by name.
    pub floors: BTreeMap<String, f64>,
    /// How fast the factor rises, per second, 0.001 to 1.
    pub rise_per_s: f64,
    /// How long the factor is held when reports cease, in seconds; then it rises to 1.
    pub stale_hold_s: f64,
    /// How long a proven capacity is remembered, in seconds.
    pub ceiling_ttl_s: f64,
    /// The operator's guess of the capacity, per second, until the backend has proven one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_hint: Option<f64>,
    /// Budget of a backend never seen before, per second; it is raised from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_start_budget: Option<f64>,
    /// The budget never falls below this, per second.
    pub budget_min: f64,
    /// Whether `POST /v1/outcome` is a signal where neither push nor poll speaks.
    pub outcomes: bool,
    /// A page of the backend that is read regularly; none by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll: Option<Poll>,
}

impl Default for Adaptive {
    fn default() -> Self {
        let settings = control::settings::Settings::default();
        Self {
            law: settings.law,
            counts: Counts::Requests,
            latency: Latency::Mean,
            high_ms: settings.high_s * 1e3,
            low_ms: settings.low_s * 1e3,
            error_high: settings.error_high,
            error_trip: settings.error_trip,
            floor: settings.floor,
            floors: BTreeMap::new(),
            rise_per_s: settings.rise_per_s,
            stale_hold_s: settings.stale_hold_s,
            ceiling_ttl_s: settings.ceiling_ttl_s,
            capacity_hint: settings.capacity_hint,
            cold_start_budget: settings.cold_start_budget,
            budget_min: settings.budget_min,
            outcomes: true,
            poll: None,
        }
    }
}

impl Adaptive {
    /// As the controllers take it.
    #[must_use]
    pub fn controls(&self) -> control::settings::Settings {
        control::settings::Settings {
            law: self.law,
            high_s: self.high_ms / 1e3,
            low_s: self.low_ms / 1e3,
            error_high: self.error_high,
            error_trip: self.error_trip,
            floor: self.floor,
            rise_per_s: self.rise_per_s,
            stale_hold_s: self.stale_hold_s,
            ceiling_ttl_s: self.ceiling_ttl_s,
            capacity_hint: self.capacity_hint,
            cold_start_budget: self.cold_start_budget,
            budget_min: self.budget_min,
            ..control::settings::Settings::default()
        }
    }
}

/// How a polled page is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// JSON; values are named by JSON pointers.
    #[default]
    Json,
    /// Prometheus text; values are named by series.
    Prometheus,
}

/// The unit of a polled response time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum LatencyUnit {
    /// Milliseconds.
    #[default]
    #[serde(rename = "ms")]
    Milliseconds,
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
}

/// A page that is read regularly. Redirects are never followed, and nothing but this address is
/// ever asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Poll {
    /// Address of the page: `http://host:port/path` or `https://...`.
    pub url: String,
    /// Authorities that may have signed the certificate of an `https` page, as PEM; the system's if
    /// empty.
    pub ca_file: String,
    /// How often it is read, in milliseconds.
    pub every_ms: u64,
    /// How long an answer may take, in milliseconds; a page that takes longer counts as an error.
    pub timeout_ms: u64,
    /// Largest page, in bytes.
    pub max_body_bytes: u64,
    /// `json` or `prometheus`.
    pub format: Format,
    /// The response time: a JSON pointer (`/latency/mean`), or a histogram, summary or gauge
    /// (`http_request_duration_seconds{handler="api"}`; of the first two the mean since the last
    /// reading).
    pub latency: String,
    /// Its unit: `ms` or `s`.
    pub latency_unit: LatencyUnit,
    /// The share of failed requests as a JSON pointer, or a counter of failed requests; empty for
    /// none.
    pub errors: String,
    /// The number of requests in the period as a JSON pointer, or a counter of all requests;
    /// empty for none.
    pub requests: String,
}

impl Default for Poll {
    fn default() -> Self {
        Self {
            url: String::new(),
            ca_file: String::new(),
            every_ms: 1_000,
            timeout_ms: 500,
            max_body_bytes: 1 << 16,
            format: Format::Json,
            latency: String::new(),
            latency_unit: LatencyUnit::Milliseconds,
            errors: String::new(),
            requests: String::new(),
        }
    }
}

/// Where a page is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whether it is asked for over TLS.
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query.
    pub path: String,
}

impl Poll {
    /// The page's place, taken apart.
    ///
    /// # Errors
    ///
    /// What is wrong with the address, as one sentence.
    pub fn target(&self) -> Result<Target, String> {
        let refused = |bound: &str| Err(format!("`url` is `{}`; {bound}", self.url.escape_debug()));
        let Ok(url) = self.url.parse::<http::Uri>() else {
            return refused("it must be an address such as `http://127.0.0.1:8080/stats`");
        };
        let tls = match url.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return refused("it must begin with `http://` or `https://`"),
        };
        let Some(host) = url.host().filter(|host| !host.is_empty()) else {
            return refused("it must name a host");
        };
        if url.authority().is_some_and(|a| a.as_str().contains('@')) {
            return refused("it must hold no user name or password");
        }
        // `127.1`, `0x7f000001`, `2130706433`: addresses to a resolver, and to nobody who reads them.
        let numeric = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | 'x' | 'X' | ':');
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let looks_numeric =
            bare.chars().all(numeric) && bare.contains(|c: char| c.is_ascii_digit());
        if looks_numeric && bare.parse::<std::net::IpAddr>().is_err() {
            return refused("it must name a host, or an address in its usual form");
        }
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        Ok(Target {
            tls,
            host: bare.to_owned(),
            port: url.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            path: path.to_owned(),
        })
    }
}

/// Returns everything that is out of bounds.
pub(super) fn check(settings: &Settings) -> Vec<Issue> {
    let mut issues = Vec::new();
    let window = &settings.adaptive.window;
    if let Err(error) = window.controls().validate() {
        let key = match error.name {
            "window.step" => "step",
            "window.period" => "period_s",
            _ => "min",
        };
        issues.push(Issue::at(
            &["adaptive", "window", key],
            format!(
                "`adaptive.window.{key}` is {}; it must be {}",
                error.value, error.bound
            ),
        ));
    }
    for (n, name) in window.fixed.iter().enumerate() {
        if let Some(problem) = name_problem("limit", name) {
            issues.push(Issue::at(
                &["adaptive", "window", "fixed", &n.to_string()],
                problem,
            ));
        }
    }
    for (name, backend) in &settings.backends {
        if let Some(adaptive) = &backend.adaptive {
            backend_bounds(name, adaptive, &mut issues);
        }
    }
    issues
}

fn backend_bounds(name: &str, adaptive: &Adaptive, issues: &mut Vec<Issue>) {
    let mut push = |key: &[&str], message: String| {
        let path = [&["backends", name, "adaptive"], key].concat();
        issues.push(Issue::at(&path, message));
    };
    if let Err(error) = adaptive.controls().validate() {
        // The controllers count in seconds, people here in milliseconds.
        let (key, value, bound) = match error.name {
            "high_s" if adaptive.high_ms <= adaptive.low_ms => (
                "high_ms",
                adaptive.high_ms,
                format!("above `low_ms`, which is {}", adaptive.low_ms),
            ),
            "high_s" => (
                "high_ms",
                adaptive.high_ms,
                "between 0.001 and 60000".to_owned(),
            ),
            "low_s" => (
                "low_ms",
                adaptive.low_ms,
                "between 0.001 and 60000".to_owned(),
            ),
            name => (name, error.value, error.bound),
        };
        push(&[key], format!("`{key}` is {value}; it must be {bound}"));
    }
    if adaptive.floors.len() > MAX_FLOORS {
        push(
            &["floors"],
            format!(
                "`floors` names {} segments; it may name at most {MAX_FLOORS}",
                adaptive.floors.len()
            ),
        );
    }
    for (segment, floor) in &adaptive.floors {
        if let Some(problem) = name_problem("segment", segment) {
            push(&["floors", segment], problem);
        }
        if !(0.001..=1.0).contains(floor) {
            push(
                &["floors", segment],
                format!("the floor of `{segment}` is {floor}; it must be between 0.001 and 1"),
            );
        }
    }
    if let Some(poll) = &adaptive.poll {
        for (key, message) in poll_bounds(poll) {
            push(&["poll", key], message);
        }
    }
}

fn poll_bounds(poll: &Poll) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    match poll.target() {
        Err(message) => found.push(("url", message)),
        Ok(target) if !target.tls && !poll.ca_file.is_empty() => {
            let bound = "it must be empty where `url` is not `https`";
            let message = format!("`ca_file` is `{}`; {bound}", poll.ca_file.escape_debug());
            found.push(("ca_file", message));
        }
        Ok(_) => {}
    }
    for (key, value, (low, high)) in [
        ("every_ms", poll.every_ms, POLL_EVERY_MS),
        ("timeout_ms", poll.timeout_ms, POLL_TIMEOUT_MS),
        ("max_body_bytes", poll.max_body_bytes, (64, MAX_POLL_BYTES)),
    ] {
        if !(low..=high).contains(&value) {
            let message = format!("`{key}` is {value}; it must be between {low} and {high}");
            found.push((key, message));
        }
    }
    for (key, text, needed) in [
        ("latency", &poll.latency, true),
        ("errors", &poll.errors, false),
        ("requests", &poll.requests, false),
    ] {
        if text.is_empty() && !needed {
            continue;
        }
        let problem = match poll.format {
            _ if text.is_empty() => Some("it must name the response time in the page".to_owned()),
            _ if text.len() > MAX_SELECTOR_BYTES => {
                Some(format!("it must have at most {MAX_SELECTOR_BYTES} bytes"))
            }
            Format::Json if !text.starts_with('/') => {
                Some("it must be a JSON pointer such as `/latency/mean`".to_owned())
            }
            Format::Json => None,
            Format::Prometheus => control::report::exposition::Selector::parse(text).err(),
        };
        if let Some(bound) = problem {
            found.push((
                key,
                format!("`{key}` is `{}`; {bound}", text.escape_debug()),
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests;
