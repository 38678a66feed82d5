//! From a limit set over HTTP to a packet that does not arrive.

use serde_json::{Value, json};
use tests::agent::{Agent, Setup};
use tests::residue::Residue;

use crate::edge::{EDGE, Edge};

/// Small tables: they load in milliseconds.
pub(crate) const SMALL: &str = "[tables]\ncrowd4_words = 65536\ncrowd6_ways = 16384\n\
    region_words = 4096\ntracked = 4096\npolicies = 256\nprefixes = 65536\nevents_bytes = 65536";

pub(crate) fn enforcing(edge: &Edge) -> Agent<'_> {
    Setup::new()
        .interface(EDGE)
        .enforce()
        .settings(SMALL)
        .start(&edge.edge)
}

fn limit(rate_limit: u64, burst: u64) -> Value {
    json!({"rate_limit": rate_limit, "time_window": "1m", "burst": burst, "unit": "packets"})
}

/// A client whose packets come from the other end of the veth.
pub(crate) fn client(rate_limit: u64, burst: u64) -> Value {
    json!({"sources": ["192.0.2.2/32"], "limits": {"default": limit(rate_limit, burst)}})
}

#[test]
fn a_limit_set_over_http_drops_packets_and_a_raised_one_passes_them() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = enforcing(&edge);
    assert_eq!(edge.pings(30), 30, "the default limit is far away");
    agent.put("/v1/clients/alice", &client(6, 20)).expect(201);
    // One token every 10 s, so the burst is what passes.
    let passed = edge.pings(60);
    assert!(
        (19..=22).contains(&passed),
        "{passed} of a burst of 20 passed"
    );

    let why = agent.get("/v1/explain?ip=192.0.2.2").expect(200).json();
    assert_eq!(why["verdict"], "drop", "{why}");
    assert_eq!(why["reason"], "over_packets");
    assert_eq!(why["client"], "alice");
    assert_eq!(why["tracked"], true);
    let wait_s = why["units"][0]["retry_after_s"].as_f64().unwrap();
    assert!(wait_s > 0.0 && wait_s <= 10.0, "{wait_s}");

    let reset = agent.delete("/v1/sources/192.0.2.2").expect(200).json();
    assert_eq!(reset["buckets"], 1, "{reset}");
    let why = agent.get("/v1/explain?client_id=alice").expect(200).json();
    assert_eq!(why["verdict"], "pass", "{why}");
    let passed = edge.pings(60);
    assert!(
        (19..=22).contains(&passed),
        "{passed} of a fresh burst of 20 passed"
    );

    agent
        .put("/v1/clients/alice/limit", &limit(600_000, 10_000))
        .expect(200);
    tests::process::rest(std::time::Duration::from_millis(500));
    assert_eq!(edge.pings(60), 60, "the raised limit is usable within 1 s");
    let status = agent.get("/v1/status").expect(200).json();
    let dropped: u64 = status["counts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|count| count["reason"] == "over_packets" && count["verdict"] == "drop")
        .filter_map(|count| count["packets"].as_u64())
        .sum();
    assert!(dropped >= 70, "{status}");
}

#[test]
fn a_block_drops_and_an_allowed_address_inside_it_passes() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = enforcing(&edge);
    agent
        .post(
            "/v1/blocklist",
            &json!({"cidr": "192.0.2.0/25", "reason": "test"}),
        )
        .expect(201);
    assert_eq!(edge.pings(5), 0);
    let why = agent.get("/v1/explain?ip=192.0.2.2").expect(200).json();
    assert_eq!(
        (&why["verdict"], &why["rule"]["kind"]),
        (&json!("drop"), &json!("block"))
    );
    agent
        .post("/v1/allowlist", &json!({"cidr": "192.0.2.2"}))
        .expect(201);
    assert_eq!(edge.pings(5), 5);
    agent.delete("/v1/allowlist?cidr=192.0.2.2").expect(200);
    agent.delete("/v1/blocklist?cidr=192.0.2.0/25").expect(200);
    assert_eq!(edge.pings(5), 5);
}

#[test]
fn shadow_counts_and_drops_nothing() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = Setup::new()
        .interface(EDGE)
        .settings(SMALL)
        .start(&edge.edge);
    let changed = agent
        .put("/v1/clients/alice", &client(6, 20))
        .expect(201)
        .json();
    assert!(
        changed["warnings"].to_string().contains("shadow"),
        "{changed}"
    );
    assert_eq!(edge.pings(60), 60);
    let why = agent.get("/v1/explain?ip=192.0.2.2").expect(200).json();
    assert_eq!(
        (&why["verdict"], &why["reason"]),
        (&json!("pass"), &json!("over_packets"))
    );
}

#[test]
fn a_trial_ends_in_the_kernel_although_the_agent_is_dead() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = enforcing(&edge);
    agent
        .put("/v1/clients/alice", &client(600_000, 10_000))
        .expect(201);
    let tried = agent
        .put("/v1/clients/alice/limit?try=2s", &limit(1, 1))
        .expect(202)
        .json();
    assert!(tried["confirm_by"].is_string());
    tests::process::rest(std::time::Duration::from_millis(200));
    assert!(edge.pings(20) <= 2, "the change on trial is in force");
    agent.kill();
    let back =
        tests::process::holds_within(std::time::Duration::from_secs(4), || edge.pings(20) == 20);
    assert!(
        back,
        "the previous limit is in force again without an agent"
    );
    agent.restart();
    let found = agent.get("/v1/clients/alice/limit").expect(200).json();
    assert_eq!(found["rate_limit"], 600_000);
}

#[test]
fn a_block_of_most_active_sources_waits_to_be_confirmed() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    // Its IPv6 addresses would be active sources too, and one of two is not most.
    edge.client.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    let agent = Setup::new()
        .interface(EDGE)
        .enforce()
        .settings(SMALL)
        .safety("risky_percent = 50")
        .start(&edge.edge);
    let listed = tests::process::holds_within(std::time::Duration::from_secs(10), || {
        edge.pings(50);
        let sources = agent.get("/v1/sources?q=192.0.2.2").expect(200).json();
        sources["total"] == 1
    });
    assert!(listed, "{}", agent.get("/v1/sources").body);
    let block = json!({"cidr": "192.0.2.2"});
    let waits = agent.post("/v1/blocklist", &block).expect(202).json();
    assert!(
        waits["warnings"].to_string().contains("active sources"),
        "{waits}"
    );
    assert_eq!(edge.pings(3), 0, "it is in force meanwhile");
    agent.post("/v1/changes:rollback", &json!({})).expect(200);
    assert_eq!(edge.pings(3), 3);
}

#[test]
fn the_crowd_is_limited_explained_and_forgiven_in_both_families() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = enforcing(&edge);
    let segment = json!({"limits": {"packets": limit(6, 20)}});
    agent.put("/v1/segments/default", &segment).expect(201);
    tests::process::rest(std::time::Duration::from_millis(100));
    let passed = edge.pings(60);
    assert!(passed <= 21, "{passed} of a burst of 20 passed");
    let out = edge
        .client
        .try_sh("ping -6 -c 60 -i 0.002 -W 1 -q 2001:db8::1")
        .1;
    assert!(
        out.contains("% packet loss") && !out.contains(" 0% packet loss"),
        "{out}"
    );
    for source in ["192.0.2.2", "2001:db8::2"] {
        let why = agent
            .get(&format!("/v1/explain?ip={source}"))
            .expect(200)
            .json();
        assert_eq!(
            (&why["verdict"], &why["tracked"]),
            (&json!("drop"), &json!(false)),
            "{why}"
        );
        assert_eq!(why["rule"]["kind"], "default");
        let reset = agent
            .delete(&format!("/v1/sources/{source}"))
            .expect(200)
            .json();
        assert_eq!(reset["buckets"], 1, "{reset}");
        let why = agent
            .get(&format!("/v1/explain?ip={source}"))
            .expect(200)
            .json();
        assert_eq!(why["verdict"], "pass", "{why}");
        let tokens = why["units"][0]["tokens"].as_f64().unwrap();
        assert!((19.0..=20.0).contains(&tokens), "{tokens}");
    }
}

#[test]
fn a_lowered_limit_hands_out_no_second_burst_in_the_crowd_and_to_a_client() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = enforcing(&edge);
    let rest = || tests::process::rest(std::time::Duration::from_millis(100));
    let segment = |rate_limit, burst| json!({"limits": {"packets": limit(rate_limit, burst)}});
    let client = |rate_limit, burst| client(rate_limit, burst);
    // What a source owes in the crowd, its whole burst of 20, it owes as a client too.
    for (path, body, owed) in [
        (
            "/v1/segments/default",
            &segment as &dyn Fn(u64, u64) -> Value,
            0,
        ),
        ("/v1/clients/alice", &client, 20),
    ] {
        agent.put(path, &body(6, 600)).expect(201);
        rest();
        let passed = edge.pings(700) + owed;
        assert!((598..=603).contains(&passed), "{path}: {passed} of 600");
        // The first change lowers the burst, the second pushes the piece that had the large one out
        // of the entry, the third shows that nothing is left of either.
        for (rate_limit, burst) in [(6, 20), (5, 20), (6, 20)] {
            agent.put(path, &body(rate_limit, burst)).expect(200);
            rest();
            let passed = edge.pings(30);
            assert!(passed <= 1, "{path}: {passed} after a lowered burst");
        }
    }
}

#[test]
fn shadow_and_enforce_are_switched_while_packets_come() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = Setup::new()
        .interface(EDGE)
        .settings(SMALL)
        .start(&edge.edge);
    agent.put("/v1/clients/alice", &client(6, 20)).expect(201);
    assert_eq!(edge.pings(60), 60);
    let enforcing = |agent: &Agent<'_>, wanted: &str| {
        let told = tests::process::holds_within(std::time::Duration::from_secs(5), || {
            agent.get("/v1/status").json()["mode"] == wanted
        });
        assert!(told, "{}", agent.get("/v1/status").body);
    };
    agent.reconfigure(Setup::enforce);
    agent.child().signal(libc::SIGHUP);
    enforcing(&agent, "enforce");
    // What was counted in shadow is owed: the switch hands out no burst.
    assert!(edge.pings(30) <= 1);
}
