//! What the API does: limits, lists, tags, trials, errors.

use axum::http::{Method, StatusCode};
use ratelimiter_common::abi::policy::action;

use super::harness::{Agent, settings, start};

const ALICE: &str = r#"{"sources":["192.0.2.7/32"],
    "limits":{"default":{"rate_limit":10,"time_window":1,"burst":20,"unit":"packets"}}}"#;

/// Burst in packets of the policy that judges 192.0.2.7, as the kernel has it.
fn alices_burst(agent: &Agent) -> Option<u64> {
    let state = agent.plane.state();
    let (_, value) = state
        .prefixes
        .iter()
        .find(|(prefix, _)| prefix.to_string() == "192.0.2.7/32")?;
    let entry = state.policies.get(&value.slot)?;
    // The piece that begins last is the one a change is on its way to.
    let newest = entry.clocks[0]
        .pieces
        .iter()
        .rfind(|piece| piece.from_ns != u64::MAX)?;
    Some(newest.burst >> 8)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_set_over_http_reaches_the_kernel() {
    let agent = start(settings()).await;
    let created = agent.put("/v1/clients/alice", ALICE).await;
    assert_eq!(created.status, StatusCode::CREATED, "{created:?}");
    assert_eq!(created.json()["revision"], 1);
    assert_eq!(alices_burst(&agent), Some(20));

    let limit = r#"{"rate_limit":50.0,"time_window":"1s","unit":"packets"}"#;
    let changed = agent.put("/v1/clients/alice/limit", limit).await;
    assert_eq!(changed.status, StatusCode::OK, "{changed:?}");
    assert_eq!(alices_burst(&agent), Some(50));

    let found = agent.get("/v1/clients/alice/limit").await.json();
    assert_eq!(
        (&found["rate_limit"], &found["burst"]),
        (&50.into(), &50.into())
    );
    assert_eq!(found["mode"], "enforce");

    let again = agent.put("/v1/clients/alice/limit", limit).await.json();
    assert_eq!(
        (&again["changed"], &again["revision"]),
        (&false.into(), &2.into())
    );

    let gone = agent.delete("/v1/clients/alice").await;
    assert_eq!(gone.status, StatusCode::OK);
    assert_eq!(alices_burst(&agent), None);
    agent.get("/v1/clients/alice").await.problem(404);
    let log = agent.get("/v1/changes").await.json();
    assert_eq!(log["total"], 3);
    assert_eq!(log["items"][0]["what"], "remove client `alice`");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_guards_against_lost_updates() {
    let agent = start(settings()).await;
    agent.put("/v1/clients/alice", ALICE).await;
    let found = agent.get("/v1/clients/alice").await;
    let tag = found.header("etag").to_owned();
    assert!(tag.starts_with('"'));
    let have = [("if-none-match", tag.as_str())];
    let fresh = agent
        .send(Method::GET, "/v1/clients/alice", &have, "")
        .await;
    assert_eq!(fresh.status, StatusCode::NOT_MODIFIED);

    let json = ("content-type", "application/json");
    let put = async |headers: &[(&str, &str)], body| {
        let path = "/v1/clients/alice";
        agent.send(Method::PUT, path, headers, body).await
    };
    let stale = put(&[json, ("if-match", "\"0000\"")], "{}").await;
    assert!(stale.problem(412).contains("`clients/alice` has changed"));
    put(&[json, ("if-none-match", "*")], "{}")
        .await
        .problem(412);
    let held = put(&[json, ("if-match", &tag)], "{}").await;
    assert_eq!(held.status, StatusCode::OK);
    put(&[json, ("if-match", &tag)], ALICE).await.problem(412);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_segment_can_be_changed_under_the_tag_it_was_read_with() {
    let agent = start(settings()).await;
    let path = "/v1/segments/default";
    let tag = agent.get(path).await.header("etag").to_owned();
    let json = ("content-type", "application/json");
    let body = r#"{"weight":2}"#;
    let changed = agent
        .send(Method::PUT, path, &[json, ("if-match", &tag)], body)
        .await;
    assert_eq!(changed.status, StatusCode::CREATED);
    agent
        .send(Method::PUT, path, &[json, ("if-match", &tag)], body)
        .await
        .problem(412);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_a_problem_that_names_thing_value_and_bound() {
    let agent = start(settings()).await;
    let put = async |body: &str| agent.put("/v1/clients/a/limit", body).await;
    let bad = put("{").await;
    assert!(bad.problem(400).contains("the body is not JSON"));
    for (body, says) in [
        (
            r#"{"rate_limit":1,"time_window":1,"brust":2}"#,
            "unknown field `brust`",
        ),
        (r#"{"rate_limit":"5","time_window":1}"#, "whole number"),
        (
            r#"{"rate_limit":1.5,"time_window":1}"#,
            "1.5 is not a whole number",
        ),
        (r#"{"rate_limit":-1,"time_window":1}"#, "-1 is negative"),
        (
            r#"{"rate_limit":0,"time_window":1,"unit":"packets"}"#,
            "`rate_limit` is 0",
        ),
        (
            r#"{"rate_limit":1,"time_window":0.5}"#,
            "between 1 s and 366 days",
        ),
        (
            r#"{"rate_limit":1,"time_window":"400d"}"#,
            "between 1 s and 366 days",
        ),
        (
            r#"{"rate_limit":9000000000,"time_window":1,"unit":"packets"}"#,
            "at most 1000000000",
        ),
        (
            r#"{"rate_limit":1,"time_window":1,"burst":0,"unit":"packets"}"#,
            "`burst` is 0",
        ),
        (
            r#"{"rate_limit":1,"time_window":1,"segment":"nowhere"}"#,
            "nowhere",
        ),
        ("[]", "invalid"),
        ("null", "invalid"),
    ] {
        let detail = put(body).await.problem(422);
        assert!(detail.contains(says), "{body}: {detail}");
    }
    let refused = put(r#"{"rate_limit":1,"time_window":1,"brust":2}"#)
        .await
        .json();
    assert!(refused["errors"][0]["pointer"].is_string());

    let long = format!("/v1/clients/{}", "x".repeat(257));
    assert!(
        agent
            .get(&long)
            .await
            .problem(400)
            .contains("has 257 bytes")
    );
    agent.get("/v1/clients/%ff").await.problem(400);
    agent.get("/v1/nothing").await.problem(404);
    agent.get("/v1/clients?limit=ten").await.problem(400);
    agent.get("/v1/clients?colour=red").await.problem(400);
    agent.get("/v1/explain").await.problem(400);
    agent.get("/v1/sources/not-an-ip").await.problem(400);
    agent.delete("/v1/blocklist").await.problem(400);
    agent.put("/v1/clients/a?try=0s", "{}").await.problem(400);
    agent.put("/v1/clients/a?try=2h", "{}").await.problem(400);
    agent.put("/v1/clients/a?name=x", "{}").await.problem(400);
    let posted = agent.post("/v1/clients", "{}").await;
    posted.problem(405);
    assert_eq!(posted.header("allow"), "GET,HEAD");
    let accept = [("accept", "image/png")];
    let path = "/v1/clients";
    agent
        .send(Method::GET, path, &accept, "")
        .await
        .problem(406);
    let plain = [("content-type", "text/plain")];
    agent
        .send(Method::PUT, "/v1/clients/a", &plain, "{}")
        .await
        .problem(415);
    agent
        .send(Method::PUT, "/v1/clients/a", &[], "{}")
        .await
        .problem(415);
    let big = format!("{{\"segment\":\"{}\"}}", "x".repeat(1 << 20));
    agent.put("/v1/clients/a", &big).await.problem(413);
    assert_eq!(agent.get("/v1/clients").await.json()["total"], 0);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_and_searched() {
    let agent = start(settings()).await;
    for n in 0..7 {
        let limit = r#"{"rate_limit":5,"time_window":60}"#;
        agent
            .put(&format!("/v1/clients/client-{n}/limit"), limit)
            .await;
    }
    let first = agent.get("/v1/clients?limit=4").await.json();
    assert_eq!(first["items"].as_array().unwrap().len(), 4);
    let next = first["next"].as_str().unwrap();
    let rest = agent
        .get(&format!("/v1/clients?limit=4&after={next}"))
        .await
        .json();
    assert_eq!(rest["items"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&rest["total"], &rest["next"]),
        (&7.into(), &serde_json::Value::Null)
    );
    let found = agent.get("/v1/clients?q=T-5").await.json();
    assert_eq!(found["items"][0]["id"], "client-5");
    assert_eq!(found["total"], 1);
    let limits = agent.get("/v1/limits?q=client-3").await.json();
    assert_eq!(limits["items"][0]["owner_name"], "client-3");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_reach_the_kernel_and_end_by_themselves() {
    let agent = start(settings()).await;
    let body = r#"{"cidr":"198.51.100.0/24","reason":"abuse","ttl":1}"#;
    let blocked = agent.post("/v1/blocklist", body).await;
    assert_eq!(blocked.status, StatusCode::CREATED, "{blocked:?}");
    let value = agent.plane.state().prefixes[&"198.51.100.0/24".parse().unwrap()];
    assert_eq!(value.action, action::BLOCK);
    assert_ne!(value.until_ns, u64::MAX);
    let why = agent.get("/v1/explain?ip=198.51.100.9").await.json();
    assert_eq!(
        (&why["verdict"], &why["rule"]["reason"]),
        (&"drop".into(), &"abuse".into())
    );

    let host_bits = agent
        .post("/v1/blocklist", r#"{"cidr":"198.51.100.1/24"}"#)
        .await;
    assert!(
        host_bits
            .problem(422)
            .contains("the prefix is `198.51.100.0/24`")
    );
    for _ in 0..60 {
        if agent.plane.state().prefixes.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(agent.plane.state().prefixes.is_empty());
    assert_eq!(agent.get("/v1/blocklist").await.json()["total"], 0);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_takes_itself_back_unless_confirmed() {
    let agent = start(settings()).await;
    agent.put("/v1/clients/alice", ALICE).await;
    let limit = r#"{"rate_limit":99,"time_window":1,"unit":"packets"}"#;
    let path = "/v1/clients/alice/limit?try=1s";
    let tried = agent.put(path, limit).await;
    assert_eq!(tried.status, StatusCode::ACCEPTED, "{tried:?}");
    assert!(tried.json()["confirm_by"].as_str().unwrap().ends_with('Z'));
    assert!(
        agent
            .put(path, limit)
            .await
            .problem(409)
            .contains("change on trial")
    );
    for _ in 0..60 {
        if agent.get("/v1/status").await.json()["pending"] == serde_json::json!([]) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(
        agent.get("/v1/clients/alice/limit").await.json()["rate_limit"],
        10
    );
    assert_eq!(alices_burst(&agent), Some(20));

    agent.put("/v1/clients/alice/limit?try=60s", limit).await;
    // The kernel goes back by itself should the agent die.
    assert_eq!(alices_burst(&agent), Some(20));
    let confirmed = agent.post("/v1/changes:confirm", "").await;
    assert_eq!(confirmed.status, StatusCode::OK, "{confirmed:?}");
    assert_eq!(alices_burst(&agent), Some(99));
    agent
        .post("/v1/changes:rollback?revision=77", "")
        .await
        .problem(404);
    agent.stop().await;
}

/// When the kernel takes the limit of 192.0.2.7 back, in seconds from now.
fn alices_way_back_s(agent: &Agent) -> Option<u64> {
    let state = agent.plane.state();
    let (_, value) = state
        .prefixes
        .iter()
        .find(|(prefix, _)| prefix.to_string() == "192.0.2.7/32")?;
    let [_, _, back] = &state.policies.get(&value.slot)?.clocks[0].pieces;
    (back.from_ns != u64::MAX)
        .then(|| back.from_ns.saturating_sub(crate::clock::monotonic_ns()) / 1_000_000_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_trials_each_hold_their_own_deadline() {
    let agent = start(settings()).await;
    agent.put("/v1/clients/alice", ALICE).await;
    let limit = r#"{"rate_limit":99,"time_window":1,"unit":"packets"}"#;
    let tried = agent.put("/v1/clients/alice/limit?try=2s", limit).await;
    assert_eq!(tried.status, StatusCode::ACCEPTED, "{tried:?}");
    let block = r#"{"cidr":"198.51.100.0/24"}"#;
    let tried = agent.post("/v1/blocklist?try=60s", block).await;
    assert_eq!(tried.status, StatusCode::ACCEPTED, "{tried:?}");
    assert!(alices_way_back_s(&agent).unwrap() <= 2, "her own deadline");
    let block_ends_in_s = || {
        let until_ns = agent.plane.state().prefixes[&"198.51.100.0/24".parse().unwrap()].until_ns;
        until_ns.saturating_sub(crate::clock::monotonic_ns()) / 1_000_000_000
    };
    assert!(block_ends_in_s() >= 50, "its own deadline");
    for _ in 0..80 {
        if agent.get("/v1/status").await.json()["pending"]
            .as_array()
            .unwrap()
            .len()
            == 1
        {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let pending = agent.get("/v1/status").await.json()["pending"].clone();
    assert_eq!(pending[0]["path"], "block/198.51.100.0/24", "{pending}");
    assert_eq!(alices_burst(&agent), Some(20));
    assert!(block_ends_in_s() >= 50, "the other trial goes on");
    agent.post("/v1/changes:rollback", "").await;
    assert!(
        !agent
            .plane
            .state()
            .prefixes
            .contains_key(&"198.51.100.0/24".parse().unwrap())
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_what_is_on_trial_waits_for_it() {
    let agent = start(settings()).await;
    // Alice limits connections herself and has the packets of her segment.
    let alice = |burst: u64| {
        format!(
            r#"{{"sources":["192.0.2.7/32"],"limits":{{"c":{{"rate_limit":1,"time_window":1,"burst":{burst},"unit":"connections"}}}}}}"#
        )
    };
    let gold = |burst: u64| {
        format!(
            r#"{{"limits":{{"p":{{"rate_limit":1,"time_window":1,"burst":{burst},"unit":"packets"}}}}}}"#
        )
    };
    agent.put("/v1/clients/alice", &alice(10)).await;
    agent.put("/v1/segments/default", &gold(10)).await;
    let tried = agent.put("/v1/segments/default?try=60s", &gold(20)).await;
    assert_eq!(tried.status, StatusCode::ACCEPTED, "{tried:?}");
    for path in [
        "/v1/clients/alice?try=50s",
        "/v1/clients/alice?try=50s&dry_run=true",
    ] {
        let detail = agent.put(path, &alice(20)).await.problem(409);
        assert!(
            detail.contains("policy `client:alice` would change at two deadlines"),
            "{detail}"
        );
    }
    let log = agent.get("/v1/changes").await.json();
    assert_eq!(log["total"], 3, "what is refused is not stored: {log}");
    // What needs the trial to stay is refused too: its segment may be gone in a minute.
    agent.post("/v1/changes:confirm", "").await;
    agent.put("/v1/segments/silver?try=60s", &gold(5)).await;
    let detail = agent
        .put("/v1/clients/bob", r#"{"segment":"silver"}"#)
        .await
        .problem(409);
    assert!(detail.contains("`segments/silver` on trial"), "{detail}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_came_late_is_continued_from_where_it_is() {
    let agent = start(settings()).await;
    agent.put("/v1/clients/alice", ALICE).await;
    let limit = |rate: u64| format!(r#"{{"rate_limit":{rate},"time_window":1,"unit":"packets"}}"#);
    agent.plane.state().delay_next_apply_ns = 500_000_000;
    agent.put("/v1/clients/alice/limit", &limit(50)).await;
    let clock = || {
        let state = agent.plane.state();
        let slot = state.prefixes[&"192.0.2.7/32".parse().unwrap()].slot;
        state.policies[&slot].clocks[0]
    };
    let [in_force, ..] = clock().pieces;
    // As it was asked for, the change would be in force by now.
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    agent.put("/v1/clients/alice/limit", &limit(70)).await;
    let [first, second, _] = clock().pieces;
    assert_eq!((first, second.burst >> 8), (in_force, 70));
    assert_eq!(second.base, first.at(second.base_ns));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_and_a_refusal_of_the_kernel_change_nothing() {
    let agent = start(settings()).await;
    let dry = agent.put("/v1/clients/alice?dry_run=true", ALICE).await;
    assert_eq!(dry.status, StatusCode::OK);
    let dry = dry.json();
    assert_eq!(
        (&dry["changed"], &dry["dry_run"], &dry["revision"]),
        (&true.into(), &true.into(), &0.into())
    );
    agent.get("/v1/clients/alice").await.problem(404);

    agent.plane.state().refuse_next_apply = Some("the table is full: 9 of 9".to_owned());
    let full = agent.put("/v1/clients/alice", ALICE).await;
    assert_eq!(full.problem(422), "the table is full: 9 of 9");
    agent.get("/v1/clients/alice").await.problem(404);
    assert_eq!(alices_burst(&agent), None);
    agent.until("/readyz", StatusCode::OK).await;
    assert_eq!(
        agent.put("/v1/clients/alice", ALICE).await.status,
        StatusCode::CREATED
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_ids_stay_apart_and_inject_nothing() {
    let agent = start(settings()).await;
    let ids = [
        "%00",
        "%0d%0aX-Evil:%201",
        "%7b%7d",
        "%3a",
        "*",
        "%22",
        "%e2%80%ae",
        "a%2fb",
        "a",
        "%2e%2e",
    ];
    let mut accepted = 0;
    for id in ids {
        let limit = r#"{"rate_limit":5,"time_window":60}"#;
        let answer = agent.put(&format!("/v1/clients/{id}/limit"), limit).await;
        assert!(answer.status.as_u16() < 500, "{id}: {answer:?}");
        assert!(answer.headers.get("x-evil").is_none());
        accepted += u64::from(answer.status.is_success());
    }
    assert!(accepted >= 5);
    assert_eq!(agent.get("/v1/clients").await.json()["total"], accepted);
    agent.stop().await;
}
