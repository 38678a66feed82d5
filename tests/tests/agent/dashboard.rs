//! The dashboard in a real browser: what people see is true, soon, within reach of everybody, and
//! comes from the agent alone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratelimiter_userspace::clock;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::OrFail as _;
use tests::agent::Setup;
use tests::flood::Flood;
use tests::netns::Netns;
use tests::packet::Packet;
use tests::process::{Child, holds_within};
use tests::residue::{Residue, TEMP_PREFIX};

use crate::edge::{CLIENT, EDGE, Edge};
use crate::limits::SMALL;

const ADDRESS: &str = "127.0.0.1:9740";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/browser/dashboard.mjs");
const TOKEN: &str = "0123456789-the-token-of-a-reader";
/// How long the browser may take for everything; it takes ten seconds on a free machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// What is promised is one second. A busy machine draws late.
const SEEN_WITHIN_MS: u64 = 3_000;

const BACKEND: &str = "[backends.default.adaptive]\nlaw = \"threshold\"\n";

/// The browser at work.
struct Visit {
    child: Child,
    directory: TempDir,
}

impl Visit {
    fn start(edge: &Netns, token: &str) -> Self {
        let test = std::env::current_exe().or_fail("find the test binary");
        let modules: PathBuf = test
            .ancestors()
            .find(|path| path.file_name().is_some_and(|name| name == "target"))
            .map(|target| target.join("tools/browser/node_modules"))
            .filter(|path| path.is_dir())
            .or_fail("this test needs playwright-core: run `cargo xtask setup --tests`");
        tests::requires::program("chromium", "chromium");
        let directory = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir()
            .or_fail("make a directory");
        let mut command = Command::new(tests::requires::program("node", "nodejs"));
        command
            .arg(SCRIPT)
            .arg(modules)
            .arg(format!("http://{ADDRESS}/"))
            .arg(directory.path())
            .arg(token)
            // Whatever the browser keeps, it keeps here.
            .env("HOME", directory.path())
            .env("TMPDIR", directory.path());
        Self {
            child: edge.spawn(command),
            directory,
        }
    }

    fn lines(&self) -> Vec<Value> {
        let said = self.child.output();
        let lines = said.lines().filter(|line| line.starts_with('{'));
        // The last one may be half written.
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The value that the script printed under `name`, and what stood beside it.
    fn said(&mut self, name: &str) -> Value {
        let mut found = None;
        holds_within(PATIENCE, || {
            found = self
                .lines()
                .into_iter()
                .find(|line| line.get(name).is_some());
            found.is_some() || self.child.exited().is_some()
        });
        found.or_fail(&format!("no `{name}` in: {}", self.child.output()))
    }

    fn end(&mut self) {
        let status = self.child.wait(PATIENCE);
        assert_eq!(status, 0, "{}", self.child.output());
        // For whoever wants to look: `RATELIMITER_PICTURES=/tmp/pictures cargo test ...`.
        if let Some(kept) = std::env::var_os("RATELIMITER_PICTURES") {
            fs::create_dir_all(&kept).or_fail("make a directory");
            for name in ["light", "dark", "small", "small-dark", "token"] {
                let picture = self.directory.path().join(format!("{name}.png"));
                let copied = fs::copy(picture, PathBuf::from(&kept).join(format!("{name}.png")));
                drop(copied);
            }
        }
    }

    fn judged(&mut self, name: &str) {
        let said = self.child.output();
        let judged = self
            .lines()
            .into_iter()
            .find(|line| line["judged"] == name)
            .or_fail(&said);
        assert_eq!(judged["violations"], json!([]), "{judged}");
        assert!(judged["passes"].as_u64() > Some(15), "{judged}");
        assert_eq!(judged["overflow"], 0, "{judged}");
    }
}

#[test]
fn the_dashboard_shows_a_drop_within_a_second_and_is_for_everybody() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = Setup::new()
        .interface(EDGE)
        .enforce()
        .settings(SMALL)
        .settings(BACKEND)
        .listen(ADDRESS)
        .check("127.0.0.1:9741")
        .start(&edge.edge);
    let limit = json!({"rate_limit": 6, "time_window": "1m", "burst": 20, "unit": "packets"});
    agent
        .put(
            "/v1/segments/default",
            &json!({"limits": {"packets": limit}}),
        )
        .expect(201);
    let markup = "<img src=x onerror=alert(1)>";
    agent
        .put(
            "/v1/clients/acme?try=10m",
            &json!({"sources": ["198.51.100.0/28"]}),
        )
        .expect(202);
    agent
        .post(
            "/v1/blocklist",
            &json!({"cidr": "203.0.113.9", "reason": markup}),
        )
        .expect(201);
    agent
        .post(
            "/v1/health",
            &json!({"instance": "a", "seq": 1, "latency_ms": {"mean": 640.0}, "count": 100}),
        )
        .expect(200);

    let mut visit = Visit::start(&edge.edge, "");
    let ready = visit.said("ready");
    assert_eq!(ready["ready"], "0", "nothing was dropped yet");
    let frame = Packet::eth_between(edge.client.mac(CLIENT), edge.edge.mac(EDGE))
        .ipv4("198.18.0.1", "192.0.2.1")
        .udp(4_000, 4_001)
        .zeros(18)
        .build();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let began_ms = clock::unix_ms();
        let (client, stopped) = (&edge.client, &stop);
        scope.spawn(move || {
            let flood = Flood::new(vec![frame]).rate(4_000).lasting(PATIENCE);
            client.run(|| flood.send(CLIENT, stopped))
        });
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let moved_ms = visit.said("moved_unix_ms")["moved_unix_ms"].as_u64();
            visit.said("foreign");
            moved_ms
        }));
        stop.store(true, Ordering::Relaxed);
        let moved_ms = seen
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .or_fail("a time");
        let late_ms = moved_ms.saturating_sub(began_ms);
        println!("a drop was seen on the page {late_ms} ms after it began");
        assert!(late_ms <= SEEN_WITHIN_MS, "{late_ms} ms");
    });
    visit.end();

    for name in ["light", "dark", "small", "small-dark"] {
        visit.judged(name);
    }
    let explained = visit.said("explained");
    assert_eq!(explained["source"], "198.18.0.1", "{explained}");
    assert_eq!(explained["focus"], "explained", "{explained}");
    let text = explained["explained"].to_string();
    assert!(text.contains("drop") && text.contains("burst 20"), "{text}");
    assert_eq!(visit.said("back")["back"], "Explain 198.18.0.1");
    assert_eq!(
        visit.said("confirmed")["confirmed"],
        "clients/acme is kept."
    );
    let status = agent.get("/v1/status").expect(200).json();
    assert_eq!(status["pending"], json!([]), "confirmed in the agent too");
    agent.get("/v1/clients/acme").expect(200);
    let reset = visit.said("reset")["reset"].to_string();
    assert!(reset.contains("198.18.0.1"), "{reset}");
    assert_eq!(visit.said("made")["made"], 0, "text became an element");
    let end = visit.said("faults");
    assert_eq!((&end["faults"], &end["foreign"]), (&json!([]), &json!([])));
}

#[test]
fn the_dashboard_asks_for_a_token_where_there_are_credentials() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let directory = tempfile::tempdir().or_fail("make a directory");
    let file = directory.path().join("token");
    fs::write(&file, TOKEN).or_fail("write a token");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).or_fail("protect the token");
    let _agent = Setup::new()
        .interface(EDGE)
        .settings(SMALL)
        .settings(&format!(
            "[credentials.reader]\ntoken_file = \"{}\"\nrights = [\"read\"]",
            file.display()
        ))
        .listen(ADDRESS)
        .start(&edge.edge);
    edge.pings(500);
    let mut visit = Visit::start(&edge.edge, TOKEN);
    visit.said("foreign");
    visit.end();
    visit.judged("token");
    let asked = visit.said("asked");
    assert!(asked["asked"].to_string().contains("credential"), "{asked}");
    assert_eq!(asked["offered"], Value::Null, "{asked}");
    assert_eq!(visit.said("kept")["kept"], json!([1, 0, ""]));
    assert_eq!(visit.said("who")["who"], "reader: read");
    let end = visit.said("foreign");
    assert_eq!(end["reset"], 0, "a reader is offered no reset");
    assert_eq!(end["foreign"], json!([]));
    let faults = end["faults"].as_array().or_fail("faults");
    assert!(
        faults.iter().all(|fault| fault.to_string().contains("401")),
        "{end}"
    );
}
