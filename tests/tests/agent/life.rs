//! Restart, reload, drain, readiness, metrics.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::OrFail as _;
use tests::agent::Setup;
use tests::process::holds_within;
use tests::residue::Residue;

use crate::edge::{EDGE, Edge};
use crate::limits::{SMALL, client, enforcing};

#[test]
fn limits_survive_a_kill_and_hold_while_nobody_is_there() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = enforcing(&edge);
    agent.put("/v1/clients/alice", &client(6, 20)).expect(201);
    let passed = edge.pings(60);
    assert!((19..=22).contains(&passed), "{passed}");
    agent.kill();
    assert!(
        edge.pings(20) <= 1,
        "no bucket refills while the agent is dead"
    );
    agent.restart();
    assert!(edge.pings(20) <= 1, "no bucket refills when it comes back");
    let status = agent.get("/v1/status").expect(200).json();
    assert_eq!(
        (&status["revision"], &status["adopted"]),
        (&1.into(), &true.into())
    );
    let found = agent.get("/v1/clients/alice/limit").expect(200).json();
    assert_eq!(found["rate_limit"], 6);
    assert_eq!(agent.terminate(), 0);
    assert!(
        edge.running().is_some(),
        "pins and link stay after an orderly end"
    );
    assert!(edge.pings(20) <= 1);
}

#[test]
fn a_bad_file_leaves_the_policy_and_names_the_place() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = enforcing(&edge);
    agent.put("/v1/clients/alice", &client(6, 20)).expect(201);
    agent.reconfigure(|setup| setup.settings("[segments.free]\nweight = -1"));
    let told = holds_within(Duration::from_secs(3), || {
        let status = agent.get("/v1/status").expect(200).json();
        status["reload_error"]
            .as_str()
            .is_some_and(|e| e.contains("weight"))
    });
    assert!(told, "{}", agent.get("/v1/status").body);
    let error = agent.get("/v1/status").json()["reload_error"].to_string();
    assert!(error.contains("ratelimiter.toml:"), "{error}");
    let passed = edge.pings(60);
    assert!(
        (19..=22).contains(&passed),
        "the old policy is in force: {passed}"
    );
}

#[test]
fn an_interface_that_vanishes_is_not_ready_and_comes_back() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = enforcing(&edge);
    edge.edge.ip(&format!("link del {EDGE}"));
    let ready = || tests::http::request(&agent.socket(), "GET", "/readyz", None);
    let told = holds_within(Duration::from_secs(2), || {
        ready().is_ok_and(|a| a.status == 503)
    });
    assert!(told, "not ready within 2 s");
    edge.join();
    let back = holds_within(Duration::from_secs(3), || {
        ready().is_ok_and(|a| a.status == 200)
    });
    assert!(back, "{}", agent.get("/readyz").body);
}

#[test]
fn promtool_finds_nothing_in_the_metrics() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = enforcing(&edge);
    agent.put("/v1/clients/alice", &client(6, 20)).expect(201);
    edge.pings(60);
    tests::process::rest(Duration::from_millis(600));
    let text = agent.get("/metrics").expect(200).body;
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    assert!((60..300).contains(&series), "{series} series");
    assert!(!text.contains("192.0.2.") && !text.contains("alice"));
    assert!(text.contains("ratelimiter_interface_attached{interface=\"edge0\",mode=\"native\"} 1"));
    assert!(text.contains("ratelimiter_packets_total{segment=\"default\""));
    let mut check = Command::new(tests::requires::program("promtool", "prometheus"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .or_fail("start promtool");
    let mut input = check.stdin.take().or_fail("promtool's input");
    input
        .write_all(text.as_bytes())
        .or_fail("write to promtool");
    drop(input);
    let output = check.wait_with_output().or_fail("run promtool");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn refuses_to_start_with_a_sentence() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    for (setup, says) in [
        (
            Setup::new().interface("nosuch0"),
            "there is no interface `nosuch0`",
        ),
        (
            Setup::new().argument("--listen=0.0.0.0:9740"),
            "no credential has the right `read`",
        ),
    ] {
        let mut agent = setup.settings(SMALL).launch(&edge.edge);
        let status = agent.child().wait(Duration::from_secs(10));
        let said = agent.child().output();
        assert_ne!(status, 0, "{said}");
        assert!(said.contains(says), "{said}");
    }
    assert_eq!(edge.running(), None);
    assert_eq!(edge.pings(3), 3);
}

#[test]
fn a_reboot_refills_no_bucket_of_a_client() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = enforcing(&edge);
    agent.put("/v1/clients/alice", &client(6, 20)).expect(201);
    let passed = edge.pings(60);
    assert!((19..=22).contains(&passed), "{passed}");
    assert_eq!(agent.terminate(), 0);
    // What a reboot leaves: a state directory, and nothing in the kernel.
    let root = ratelimiter_userspace::dataplane::DEFAULT_ROOT;
    let removed = edge
        .edge
        .run(|| ratelimiter_userspace::dataplane::detach_all(root.as_ref()));
    assert!(removed.is_ok(), "{removed:?}");
    assert_eq!(edge.running(), None);
    assert_eq!(edge.pings(3), 3);
    agent.restart();
    let status = agent.get("/v1/status").expect(200).json();
    assert_eq!(status["adopted"], false);
    let passed = edge.pings(30);
    assert!(passed <= 2, "{passed} passed a bucket that was empty");
}
