//! How the agent lives: restarts, reloads, readiness, metrics.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use ratelimiter_common::abi::counters::Sample;

use super::harness::{settings, start, start_on};
use crate::agent::Loader;
use crate::config::Settings;
use crate::policy::model::Client;

const LIMIT: &str = r#"{"rate_limit":5,"time_window":60}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_everything_and_writes_nothing() {
    let agent = start(settings()).await;
    agent.put("/v1/clients/alice", r#"{"sources":["192.0.2.7/32"],"limits":{"default":{"rate_limit":10,"time_window":1,"unit":"packets"}}}"#).await;
    agent.put("/v1/clients/bob/limit", LIMIT).await;
    let before = agent.get("/v1/document").await.text;
    let (plane, store) = agent.stop().await;
    plane.state().applied.clear();
    let agent = start_on(settings(), plane, store, None).await;
    assert_eq!(agent.get("/v1/document").await.text, before);
    assert!(
        agent.plane.state().applied.is_empty(),
        "{:?}",
        agent.plane.state().applied
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_ends_although_the_agent_was_not_there() {
    let agent = start(settings()).await;
    agent.put("/v1/clients/bob/limit", LIMIT).await;
    agent
        .put(
            "/v1/clients/bob/limit?try=1s",
            r#"{"rate_limit":9,"time_window":60}"#,
        )
        .await;
    let (plane, store) = agent.stop().await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let agent = start_on(settings(), plane, store, None).await;
    for _ in 0..60 {
        if agent.get("/v1/clients/bob/limit").await.json()["rate_limit"] == 5 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        agent.get("/v1/clients/bob/limit").await.json()["rate_limit"],
        5
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_files_part_and_a_bad_file_nothing() {
    let next: Arc<Mutex<Result<Settings, String>>> = Arc::new(Mutex::new(Ok(settings())));
    let source = Arc::clone(&next);
    let load: Loader = Arc::new(move || source.lock().unwrap().clone());
    let agent = start_on(settings(), Arc::default(), Arc::default(), Some(load)).await;
    let mut with_client = settings();
    with_client
        .clients
        .insert("fixed".to_owned(), Client::default());
    *next.lock().unwrap() = Ok(with_client);
    let reloaded = agent.post("/v1/reload", "").await;
    assert_eq!(reloaded.status, StatusCode::OK, "{reloaded:?}");
    let found = agent.get("/v1/clients/fixed").await.json();
    assert_eq!(found["defined_in"], "file");
    let refused = agent
        .put("/v1/clients/fixed/limit", LIMIT)
        .await
        .problem(409);
    assert!(refused.contains("set in the configuration file"));

    *next.lock().unwrap() = Err("ratelimiter.toml:3:5: `burst` is 0".to_owned());
    let refused = agent.post("/v1/reload", "").await.problem(422);
    assert!(refused.contains("ratelimiter.toml:3:5"));
    assert_eq!(agent.get("/v1/clients/fixed").await.status, StatusCode::OK);
    let status = agent.get("/v1/status").await.json();
    assert!(status["reload_error"].as_str().unwrap().contains(":3:5"));
    let metrics = agent.get("/metrics").await.text;
    assert!(metrics.contains("ratelimiter_reloads_total{result=\"failed\"} 1"));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_of_the_settings_reach_the_kernel_once() {
    let mut settings = settings();
    settings.kernel.malformed_per_s = 50;
    settings.kernel.first_seen_per_s = 100;
    let agent = start(settings.clone()).await;
    let config = agent.plane.state().config;
    assert_eq!(config.malformed_ns, 20_000_000);
    assert_eq!(config.regions4[0].first_seen_ns, 10_000_000);
    assert_eq!(config.regions6[0].first_seen_ns, 10_000_000);
    let (plane, store) = agent.stop().await;
    plane.state().applied.clear();
    let agent = start_on(settings.clone(), plane, store, None).await;
    assert!(agent.plane.state().applied.is_empty());
    let (plane, store) = agent.stop().await;
    settings.kernel.first_seen = false;
    let agent = start_on(settings, plane, store, None).await;
    assert_eq!(agent.plane.state().config.regions4[0].first_seen_ns, 0);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_tells_the_truth_within_two_seconds() {
    let agent = start(settings()).await;
    agent.until("/readyz", StatusCode::OK).await;
    let problem = "pin `TRACKED` is gone".to_owned();
    agent.plane.state().problems.push(problem.clone());
    let begin = crate::clock::instant();
    agent
        .until("/readyz", StatusCode::SERVICE_UNAVAILABLE)
        .await;
    assert!(begin.elapsed() < Duration::from_secs(2));
    let status = agent.get("/v1/status").await.json();
    assert_eq!(status["problems"][0], problem);
    assert_eq!(agent.get("/livez").await.status, StatusCode::OK);
    agent.plane.state().problems.clear();
    agent.until("/readyz", StatusCode::OK).await;
    let events = agent.get("/v1/events").await.json();
    assert!(events.to_string().contains("ready again"));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_bounded_and_name_nobody() {
    let agent = start(settings()).await;
    for n in 0..40 {
        let segment = r#"{"limits":{"p":{"rate_limit":5,"time_window":60,"unit":"requests"}}}"#;
        agent
            .put(&format!("/v1/segments/segment-{n}"), segment)
            .await;
        agent
            .put(&format!("/v1/clients/secret-{n}/limit"), LIMIT)
            .await;
        agent.get(&format!("/v1/unknown-{n}")).await;
    }
    {
        let mut state = agent.plane.state();
        for n in 0..1_000_u64 {
            state.samples.push_back(Sample {
                key: 0x0a00_0000 + n,
                family: 4,
                weight: 32,
                bytes: 60,
                ..Sample::default()
            });
        }
    }
    for _ in 0..60 {
        if agent.get("/v1/sources").await.json()["total"] == 1_000 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(agent.get("/v1/sources").await.json()["total"], 1_000);
    let text = agent.get("/metrics").await.text;
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    assert!((80..300).contains(&series), "{series} series");
    assert!(!text.contains("secret") && !text.contains("10.0.0.") && !text.contains("unknown-"));
    let accept = [("accept", "application/openmetrics-text; version=1.0.0")];
    let open = agent.send(Method::GET, "/metrics", &accept, "").await;
    assert!(open.text.ends_with("# EOF\n"));
    assert!(
        open.header("content-type")
            .starts_with("application/openmetrics-text")
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_detaches_what_the_file_names_no_more_and_nothing_else() {
    let interface = |name: &str| -> crate::config::Interface { name.parse().unwrap() };
    let mut both = settings();
    both.interfaces = vec![interface("eth0"), interface("eth1")];
    let mut one = settings();
    one.interfaces = vec![interface("eth1")];
    let load: Loader = Arc::new(move || Ok(one.clone()));
    let agent = start_on(both, Arc::default(), Arc::default(), Some(load)).await;
    agent.put("/v1/interfaces/lo", "{}").await;
    let attached = || -> Vec<String> { agent.plane.state().interfaces.keys().cloned().collect() };
    assert_eq!(attached(), ["eth0", "eth1", "lo"]);
    agent.post("/v1/reload", "").await;
    assert_eq!(attached(), ["eth1", "lo"]);
    agent.post("/v1/reload", "").await;
    assert_eq!(attached(), ["eth1", "lo"]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_estimates_what_the_last_minute_would_have_lost() {
    let agent = start(settings()).await;
    let client = |burst: u64| {
        format!(
            r#"{{"sources":["10.0.0.1/32"],"limits":{{"p":{{"rate_limit":1,"time_window":3600,"burst":{burst},"unit":"packets"}}}}}}"#
        )
    };
    for (key, samples) in [(0x0a00_0001_u64, 100), (0x0a00_0002, 50)] {
        let sample = Sample {
            key,
            family: 4,
            weight: 32,
            bytes: 100,
            ..Sample::default()
        };
        let mut state = agent.plane.state();
        state.samples.extend(std::iter::repeat_n(sample, samples));
    }
    let mut traffic = serde_json::Value::Null;
    for _ in 0..60 {
        let dry = agent.put("/v1/clients/a?dry_run=true", &client(200)).await;
        traffic = dry.json()["traffic"].clone();
        if traffic["packets"] == 3_200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        traffic["packets"], 3_200,
        "the other source is not concerned"
    );
    assert_eq!(
        (&traffic["would_refuse"], &traffic["sources"]),
        (&3_000.into(), &1.into())
    );
    let enough = agent
        .put("/v1/clients/a?dry_run=true", &client(3_200))
        .await
        .json();
    assert_eq!(enough["traffic"]["would_refuse"], 0, "{enough}");
    let block = r#"{"cidr":"10.0.0.0/24"}"#;
    let blocked = agent.post("/v1/blocklist?dry_run=true", block).await.json();
    assert_eq!(blocked["traffic"]["would_refuse"], 4_800, "{blocked}");
    assert_eq!(blocked["traffic"]["sources"], 2);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_names_who_set_the_rule_and_when() {
    let agent = start(settings()).await;
    let client = r#"{"sources":["10.0.0.1/32"],"limits":{"p":{"rate_limit":1,"time_window":60,"unit":"packets"}}}"#;
    agent.put("/v1/clients/a", client).await;
    agent.put("/v1/segments/default", r#"{"weight":2}"#).await;
    agent
        .post("/v1/blocklist", r#"{"cidr":"10.9.0.0/16"}"#)
        .await;
    for ip in ["10.0.0.1", "10.1.0.1", "10.9.0.1"] {
        let rule = agent.get(&format!("/v1/explain?ip={ip}")).await.json()["rule"].clone();
        assert!(rule["set_by"].is_string(), "{ip}: {rule}");
        let age_ms = crate::clock::unix_ms() - rule["set_at_unix_ms"].as_u64().unwrap();
        assert!(age_ms < 60_000, "{ip}: {rule}");
    }
    agent.stop().await;
}
