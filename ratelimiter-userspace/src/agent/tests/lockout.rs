//! Nobody locks themselves out: who is let in on attach, and which changes wait to be confirmed.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use serde_json::Value;

use super::harness::{Agent, Answer, settings, start, start_on};
use crate::admin::SSH_PEER_HEADER;
use crate::dataplane::FakeDataPlane;

const SSH: (&str, &str) = (SSH_PEER_HEADER, "203.0.113.9");
const JSON: (&str, &str) = ("content-type", "application/json");

fn plane() -> Arc<FakeDataPlane> {
    let plane = FakeDataPlane::default();
    plane.state().gateways = vec!["192.0.2.254".parse().unwrap()];
    Arc::new(plane)
}

async fn attach(agent: &Agent) -> Answer {
    let headers = [SSH, JSON];
    agent
        .send(Method::PUT, "/v1/interfaces/eth0", &headers, "{}")
        .await
}

async fn allowed(agent: &Agent) -> Vec<Value> {
    let list = agent.get("/v1/allowlist").await.json();
    list["items"].as_array().unwrap().clone()
}

/// `PUT`s the packet limit of the default segment as somebody logged in over SSH.
async fn limit(agent: &Agent, rate: u64) -> Answer {
    let body = format!(
        r#"{{"limits":{{"packets":{{"rate_limit":{rate},"time_window":1,"unit":"packets"}}}}}}"#
    );
    let headers = [SSH, JSON];
    agent
        .send(Method::PUT, "/v1/segments/default", &headers, &body)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_attaches_and_the_gateway_are_let_in_for_an_hour() {
    let agent = start_on(settings(), plane(), Arc::default(), None).await;
    assert!(allowed(&agent).await.is_empty());
    let answer = attach(&agent).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let list = allowed(&agent).await;
    let cidrs: Vec<&Value> = list.iter().map(|entry| &entry["cidr"]).collect();
    assert_eq!(cidrs, ["192.0.2.254/32", "203.0.113.9/32"]);
    for (entry, why) in list
        .iter()
        .zip(["default gateway", "SSH peer of whoever attached"])
    {
        assert_eq!(
            (&entry["reason"], &entry["by"], &entry["defined_in"]),
            (&why.into(), &"agent".into(), &"agent".into())
        );
        let left_ms = entry["expires_unix_ms"].as_u64().unwrap() - crate::clock::unix_ms();
        assert!((3_500_000..=3_600_000).contains(&left_ms), "{left_ms}");
    }
    let why = agent.get("/v1/explain?ip=203.0.113.9").await.json();
    assert_eq!(
        (&why["verdict"], &why["rule"]["set_by"]),
        (&"pass".into(), &"agent".into())
    );
    // It is this host's own: no document has it, and so no rollback or export takes it along.
    let document = agent.get("/v1/document").await.json();
    assert!(
        document["allow"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty),
        "{document}"
    );

    // The next agent knows it still.
    let (plane, store) = agent.stop().await;
    let agent = start_on(settings(), plane, store, None).await;
    assert_eq!(allowed(&agent).await.len(), 2);
    // Whoever does not want it takes it away.
    let removed = agent.delete("/v1/allowlist?cidr=203.0.113.9").await;
    assert_eq!(removed.status, 200, "{removed:?}");
    assert_eq!(allowed(&agent).await.len(), 1);
    assert_eq!(
        agent.delete("/v1/allowlist?cidr=203.0.113.9").await.status,
        404
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_longer_than_set() {
    let mut settings = settings();
    settings.safety.protect_for_s = 1;
    settings.interfaces = vec!["eth0".parse().unwrap()];
    let agent = start_on(settings.clone(), plane(), Arc::default(), None).await;
    assert_eq!(allowed(&agent).await.len(), 1, "the gateway, at the start");
    let mut left = 1;
    for _ in 0..100 {
        left = allowed(&agent).await.len();
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(left, 0);
    for _ in 0..40 {
        if agent.plane.state().prefixes.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(agent.plane.state().prefixes.is_empty());
    agent.stop().await;

    settings.safety.protect_for_s = 0;
    let agent = start_on(settings, plane(), Arc::default(), None).await;
    attach(&agent).await;
    assert!(allowed(&agent).await.is_empty(), "0 is not at all");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_limits_the_caller_waits_to_be_confirmed() {
    let agent = start(settings()).await;
    let waits = limit(&agent, 10).await;
    assert_eq!(waits.status, 202, "{waits:?}");
    let warning = waits.json()["warnings"][0].as_str().unwrap().to_owned();
    assert_eq!(
        warning,
        "your own address `203.0.113.9` would be limited more tightly: the change takes itself back \
         unless it is confirmed within 60 s"
    );
    agent.post("/v1/changes:confirm", "").await;
    let raised = limit(&agent, 5_000).await;
    assert_eq!(
        raised.status, 200,
        "a raised limit harms nobody: {raised:?}"
    );
    // Somebody at the machine itself is cut off by nothing.
    let body = r#"{"limits":{"packets":{"rate_limit":7,"time_window":1,"unit":"packets"}}}"#;
    let local = agent.put("/v1/segments/default", body).await;
    assert_eq!(local.status, 200, "{local:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_let_in_for_a_while_is_judged_as_if_it_were_over() {
    let agent = start_on(settings(), plane(), Arc::default(), None).await;
    attach(&agent).await;
    assert_eq!(limit(&agent, 10).await.status, 202);
    agent.post("/v1/changes:rollback", "").await;
    // On the allow list for good, nothing can happen.
    let body = r#"{"cidr":"203.0.113.9"}"#;
    agent.post("/v1/allowlist", body).await;
    assert_eq!(limit(&agent, 10).await.status, 201);
    // And to be taken from it is risky.
    let path = "/v1/allowlist?cidr=203.0.113.9";
    let removed = agent.send(Method::DELETE, path, &[SSH], "").await;
    assert_eq!(removed.status, 202, "{removed:?}");
    let warning = removed.json()["warnings"][0].to_string();
    assert!(warning.contains("no longer allow-listed"), "{warning}");
    agent.stop().await;
}
