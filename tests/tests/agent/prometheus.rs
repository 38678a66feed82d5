//! A real Prometheus and a real Alertmanager beside the agent: every query of the Grafana dashboard
//! and of the alert rules finds what it asks for, and an alert reaches whoever is told of alerts.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::OrFail as _;
use tests::agent::{Agent, Setup};
use tests::flood::Flood;
use tests::http::request_tcp;
use tests::netns::Netns;
use tests::packet::Packet;
use tests::process::{Child, Spawn, holds_within, rest, wait_until};
use tests::residue::{Residue, TEMP_PREFIX};

use crate::edge::{CLIENT, EDGE, Edge};
use crate::limits::SMALL;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
const AGENT: &str = "127.0.0.1:9740";
const CHECKS: &str = "127.0.0.1:9741";
const PROMETHEUS: &str = "127.0.0.1:9090";
const ALERTMANAGER: &str = "127.0.0.1:9093";
/// How long everything may take to be found; it takes some ten seconds.
const PATIENCE: Duration = Duration::from_secs(90);

const SETTINGS: &str = "[segments.default.limits.packets]\nrate_limit = 100\ntime_window = 1\n\
    burst = 100\nunit = \"packets\"\n[backends.default.breaker]\nerror_ratio = 0.5\n\
    [backends.default.adaptive]\nlaw = \"budget\"\n\
    capacity_hint = 1000\n";

fn directory() -> TempDir {
    let made = tempfile::Builder::new().prefix(TEMP_PREFIX).tempdir();
    made.or_fail("make a directory")
}

fn promtool(arguments: &[&str], files: &[&str]) {
    let mut command = Command::new(tests::requires::program("promtool", "prometheus"));
    command
        .args(arguments)
        .args(files)
        .current_dir(Path::new(DEPLOY).join("prometheus"));
    let output = command.output().or_fail("run promtool");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn rules() -> String {
    let file = Path::new(DEPLOY).join("prometheus/ratelimiter.rules.yml");
    fs::read_to_string(file).or_fail("read the rules")
}

#[test]
fn each_alert_fires_and_resolves_alone() {
    promtool(&["check", "rules"], &["ratelimiter.rules.yml"]);
    let cases = [
        "ratelimiter.rules.test.yml",
        "ratelimiter.rules.day.test.yml",
    ];
    promtool(&["test", "rules"], &cases);
    let tested: String = cases
        .iter()
        .map(|name| Path::new(DEPLOY).join("prometheus").join(name))
        .map(|file| fs::read_to_string(file).or_fail("read the cases"))
        .collect();
    let rules = rules();
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() >= 15, "{alerts:?}");
    for alert in alerts {
        let fires = format!("labels: '{{alertname=\"{alert}\"}}', value: 1");
        assert!(tested.contains(&fires), "no case of `{alert}`");
    }
}

/// Prometheus, Alertmanager and Redis; killed, and their files removed, when dropped.
struct Watchers {
    children: Vec<(&'static str, Child)>,
    directory: TempDir,
}

impl Watchers {
    /// Starts Redis on a socket, which reaches into every namespace.
    fn new() -> Self {
        let mut this = Self {
            children: Vec::new(),
            directory: directory(),
        };
        let mut command = Command::new(tests::requires::program("redis-server", "redis-server"));
        command
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"])
            .arg(this.directory.path())
            .arg("--unixsocket")
            .arg(this.socket());
        this.children
            .push(("redis-server", Spawn::new(command).start()));
        let socket = this.socket();
        wait_until("redis-server listens", Duration::from_secs(10), || {
            socket.exists()
        });
        this
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    fn watch(&mut self, edge: &Netns) {
        let place = self.directory.path().to_owned();
        fs::write(place.join("rules.yml"), rules()).or_fail("write the rules");
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "ratelimiter",
                "static_configs": [{"targets": [AGENT]}]}],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [ALERTMANAGER]}]}]},
        });
        // JSON is YAML.
        fs::write(place.join("prometheus.yml"), config.to_string()).or_fail("write a file");
        let receiver = json!({"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]});
        fs::write(place.join("alertmanager.yml"), receiver.to_string()).or_fail("write a file");
        let at = |name: &str| place.join(name).display().to_string();
        for (name, package, arguments) in [
            (
                "prometheus",
                "prometheus",
                vec![
                    format!("--config.file={}", at("prometheus.yml")),
                    format!("--storage.tsdb.path={}", at("data")),
                    format!("--web.listen-address={PROMETHEUS}"),
                ],
            ),
            (
                "prometheus-alertmanager",
                "prometheus-alertmanager",
                vec![
                    format!("--config.file={}", at("alertmanager.yml")),
                    format!("--storage.path={}", at("alerts")),
                    format!("--web.listen-address={ALERTMANAGER}"),
                    "--cluster.listen-address=".to_owned(),
                ],
            ),
        ] {
            let mut command = Command::new(tests::requires::program(name, package));
            command.args(arguments);
            self.children.push((name, edge.spawn(command)));
        }
    }

    fn said(&self) -> String {
        let said = self.children.iter();
        let said: Vec<String> = said
            .map(|(name, child)| format!("--- {name}\n{}\n", child.output()))
            .collect();
        said.concat()
    }
}

fn get(edge: &Netns, server: &str, path: &str) -> Option<Value> {
    let server: SocketAddr = server.parse().or_fail("an address");
    let answer = edge
        .run(|| request_tcp(server, "GET", path, &[], None))
        .ok()?;
    (answer.status == 200).then(|| answer.json())
}

/// Whether a query has a value that is a number.
fn has_data(edge: &Netns, query: &str) -> bool {
    let encoded: Vec<String> = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let encoded = encoded.concat();
    let found = get(edge, PROMETHEUS, &format!("/api/v1/query?query={encoded}"));
    let Some(found) = found else { return false };
    let samples = found["data"]["result"].as_array().or_fail("samples");
    samples.iter().any(|sample| {
        let value = sample["value"][1].as_str().unwrap_or("NaN");
        value.parse::<f64>().is_ok_and(f64::is_finite)
    })
}

/// The queries of the Grafana dashboard, by panel.
fn of_grafana() -> Vec<(String, String)> {
    let file = Path::new(DEPLOY).join("grafana/ratelimiter.json");
    let text = fs::read_to_string(file).or_fail("read the dashboard");
    let dashboard: Value = serde_json::from_str(&text).or_fail("JSON");
    let panels = dashboard["panels"].as_array().or_fail("panels");
    let mut queries = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().or_fail("a query");
            let query = query
                .replace("$instance", ".*")
                .replace("$__rate_interval", "10s");
            queries.push((format!("panel {}", panel["title"]), query));
        }
    }
    queries
}

/// What the alert rules look at: each side of `and` and `or` up to its comparison. Not the right
/// side of a comparison, which asks for the hour before, and not `absent`, which is empty when all
/// is well.
fn of_rules() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    let text = rules();
    let mut alert = "";
    let mut lines = text.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("- alert: ") {
            alert = name;
        }
        let Some(first) = line.strip_prefix("expr: ") else {
            continue;
        };
        let mut expression = first.trim_start_matches('|').to_owned();
        if first == "|" {
            while let Some(next) = lines.next_if(|next| !is_key(next)) {
                expression = format!("{expression} {next}");
            }
        }
        for part in expression.replace(" or ", " and ").split(" and ") {
            let end = [" > ", " < ", " == "]
                .iter()
                .filter_map(|sign| part.find(sign))
                .min();
            let Some(query) = end.and_then(|end| part.get(..end)) else {
                assert!(part.starts_with("absent("), "{alert}: {part}");
                continue;
            };
            queries.push((format!("alert {alert}"), query.trim().to_owned()));
        }
    }
    queries
}

/// Whether a line of a rule begins another of its fields.
fn is_key(line: &str) -> bool {
    ["for:", "labels:", "annotations:"]
        .iter()
        .any(|key| line.starts_with(key))
}

/// One round of everything that counts: checks allowed and denied, outcomes, health.
fn use_everything(edge: &Netns, agent: &Agent<'_>, round: u64) {
    let checks: SocketAddr = CHECKS.parse().or_fail("an address");
    let ask = |path: &str, body: Value| {
        edge.run(|| request_tcp(checks, "POST", path, &[], Some(&body)))
            .or_fail("no answer of the check API")
    };
    for _ in 0..20 {
        ask("/v1/check", json!({"client_id": "greedy"})).expect(200);
    }
    ask(
        "/v1/outcome",
        json!({"client_id": "greedy", "latency_ms": 20, "status": 200}),
    );
    let report = json!({"instance": "a", "seq": round, "window_s": 0.5, "count": 100,
        "latency_ms": {"mean": 20.0}});
    agent.post("/v1/health", &report).expect(200);
}

#[test]
fn every_query_finds_data_and_an_alert_reaches_the_alertmanager() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut watchers = Watchers::new();
    let agent = Setup::new()
        .interface(EDGE)
        .enforce()
        .settings(SMALL)
        .settings(SETTINGS)
        .settings(&format!(
            "[redis]\nurl = \"unix://{}\"",
            watchers.socket().display()
        ))
        .listen(AGENT)
        .check(CHECKS)
        .start(&edge.edge);
    watchers.watch(&edge.edge);
    // On trial for long enough to be seen, short enough for its alert.
    let client = json!({"sources": ["198.51.100.0/28"]});
    agent.put("/v1/clients/acme?try=25s", &client).expect(202);

    let frame = Packet::eth_between(edge.client.mac(CLIENT), edge.edge.mac(EDGE))
        .ipv4("198.18.0.1", "192.0.2.1")
        .udp(4_000, 4_001)
        .zeros(18)
        .build();
    let mut missing: BTreeMap<String, String> = of_grafana()
        .into_iter()
        .chain(of_rules())
        .map(|(place, query)| (query, place))
        .collect();
    assert!(missing.len() >= 60, "{}", missing.len());
    let stop = AtomicBool::new(false);
    let mut told = Value::Null;
    std::thread::scope(|scope| {
        let (client, stopped) = (&edge.client, &stop);
        scope.spawn(move || {
            let flood = Flood::new(vec![frame]).rate(2_000).lasting(PATIENCE);
            client.run(|| flood.send(CLIENT, stopped))
        });
        let mut round = 0;
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            holds_within(PATIENCE, || {
                round += 1;
                use_everything(&edge.edge, &agent, round);
                missing.retain(|query, _| !has_data(&edge.edge, query));
                let alerts = get(&edge.edge, ALERTMANAGER, "/api/v2/alerts?active=true");
                for alert in alerts.iter().filter_map(Value::as_array).flatten() {
                    if alert["labels"]["alertname"] == "RatelimiterLeaseAboutToEnd" {
                        told = alert.clone();
                    }
                }
                rest(Duration::from_millis(300));
                missing.is_empty() && told.is_object()
            })
        }));
        stop.store(true, Ordering::Relaxed);
        found.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let said = watchers.said();
    assert!(missing.is_empty(), "no data of {missing:#?}\n{said}");
    assert_eq!(told["labels"]["instance"], AGENT, "{told}\n{said}");
    let summary = told["annotations"]["summary"].to_string();
    assert!(summary.contains("takes itself back in"), "{summary}");
}
