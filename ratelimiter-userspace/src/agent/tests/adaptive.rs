//! Limits follow health: reports over HTTP, factors in both planes, by hand and without a feed.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use ratelimiter_common::vclock::Speed;
use serde_json::{Value, json};

use super::harness::{Agent, locked_settings, settings, start, start_on, token};
use crate::clock;
use crate::config::Settings;
use crate::config::adaptive::{Adaptive, Counts};
use crate::config::settings::{Backend, Credential};
use crate::config::{Right, Secret};
use crate::control::settings::Law;

/// Settings under which the `default` backend is followed, by the literal rule.
pub(super) fn followed(law: Law) -> Settings {
    let mut settings = settings();
    let adaptive = Adaptive {
        law,
        ..Adaptive::default()
    };
    settings.backends.insert(
        "default".to_owned(),
        Backend {
            adaptive: Some(adaptive),
            ..Backend::default()
        },
    );
    settings
}

pub(super) async fn push(agent: &Agent, seq: u64, mean_ms: f64) -> Value {
    let report = json!({"instance": "a", "seq": seq, "latency_ms": {"mean": mean_ms}});
    let answer = agent.post("/v1/health", &report.to_string()).await;
    assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
    answer.json()
}

/// The speed of the default segment's clock in the kernel, 60 ms from now.
pub(super) fn kernel_factor(agent: &Agent) -> f64 {
    let at_ns = clock::monotonic_ns() + 60_000_000;
    let state = agent.plane.state();
    let clock = state.segments[&0];
    (clock.at(at_ns + 1_000_000_000) - clock.at(at_ns)) as f64 / 1e9
}

/// Waits until the kernel's factor is about `wanted`, at most 3 s.
async fn until_kernel(agent: &Agent, wanted: f64) {
    let mut last = 0.0;
    for _ in 0..300 {
        last = kernel_factor(agent);
        if (last - wanted).abs() < 0.005 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the kernel's factor is {last}, not {wanted}");
}

pub(super) async fn backend(agent: &Agent) -> Value {
    agent.get("/v1/adaptive").await.json()["backends"][0].clone()
}

/// How many of 200 checks of a new client pass.
async fn passes(agent: &Agent, client: &str) -> usize {
    let checks: Vec<Value> = (0..200).map(|_| json!({"client_id": client})).collect();
    let body = json!({"checks": checks}).to_string();
    let answers = agent.check("/v1/check:batch", &body).await.json();
    let answers = answers["answers"].as_array().unwrap().clone();
    answers.iter().filter(|a| a["allowed"] == true).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_move_the_factor_in_both_planes() {
    let agent = start(followed(Law::Threshold)).await;
    assert_eq!(passes(&agent, "before").await, 100);
    let mut factors = Vec::new();
    for seq in 1..=3 {
        let answer = push(&agent, seq, 800.0).await;
        assert_eq!(answer["accepted"], true);
        factors.push((answer["factor"].as_f64().unwrap() * 100.0).round());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(factors, [70.0, 49.0, 34.0]);
    until_kernel(&agent, 0.343).await;
    assert_eq!(passes(&agent, "during").await, 34);
    let refused = agent
        .check("/v1/check?deny=429", r#"{"client_id":"during"}"#)
        .await;
    assert!(refused.problem(429).contains("reduced"));
    let kind = refused.json()["type"].clone();
    assert!(
        kind.as_str()
            .unwrap()
            .ends_with("#temporary-reduced-capacity")
    );
    let plain = agent
        .check("/v1/check", r#"{"client_id":"during"}"#)
        .await
        .json();
    assert_eq!(
        (&plain["reason"], &plain["degraded"]),
        (&"reduced_capacity".into(), &true.into())
    );
    // Raised 5 % per second of the period.
    let answer = push(&agent, 4, 100.0).await;
    assert!(answer["factor"].as_f64().unwrap() > 0.35, "{answer}");
    let view = backend(&agent).await;
    assert!(
        view["reason"]
            .as_str()
            .unwrap()
            .contains("100 ms is below 200 ms"),
        "{view}"
    );
    assert_eq!(
        (&view["signal"], &view["reports"], &view["latency_ms"]),
        (&"fresh".into(), &4.into(), &100.0.into())
    );
    let metrics = agent.get("/metrics").await.text;
    assert!(
        metrics.contains("ratelimiter_adaptive_factor{backend=\"default\"} 0.3"),
        "{metrics}"
    );
    assert!(
        metrics.contains("{result=\"denied\",reason=\"reduced_capacity\"} 16"),
        "{metrics}"
    );
    let explained = agent.get("/v1/explain?ip=192.0.2.1").await.json();
    let path = explained["path"].to_string();
    assert!(path.contains("for the sake of backend `default`"), "{path}");
    let events = agent.get("/v1/events").await.text;
    assert!(events.contains("800 ms is above 500 ms"), "{events}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_in_force_within_110_ms() {
    let agent = start(followed(Law::Threshold)).await;
    // The same way without any decision: what the machine needs for itself in this run.
    let mut slowest = Duration::ZERO;
    for seq in 1..=3 {
        let begin = clock::instant();
        let answer = push(&agent, seq, 900.0).await;
        let wanted = answer["factor"].as_f64().unwrap();
        loop {
            let at_ns = clock::monotonic_ns();
            let clock = agent.plane.state().segments[&0];
            let speed = (clock.at(at_ns + 1_000_000) - clock.at(at_ns)) as f64 / 1e6;
            if (speed - wanted).abs() < 0.005 {
                break;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(5),
                "{speed} is not {wanted}"
            );
            tokio::task::yield_now().await;
        }
        slowest = slowest.max(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut idle = Duration::ZERO;
    for _ in 0..5 {
        let begin = clock::instant();
        backend(&agent).await;
        idle = idle.max(begin.elapsed());
    }
    eprintln!("from report to enforced {slowest:?}; a request without one {idle:?}");
    assert!(
        slowest <= Duration::from_millis(110) + 10 * idle,
        "{slowest:?}, beside {idle:?}"
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_or_hostile_report_changes_nothing() {
    let agent = start(followed(Law::Threshold)).await;
    assert_eq!(push(&agent, 5, 800.0).await["accepted"], true);
    for seq in [5, 4, 1] {
        let again = push(&agent, seq, 800.0).await;
        assert_eq!(again["accepted"], false);
        assert!(
            again["reason"]
                .as_str()
                .unwrap()
                .contains("it must be above 5"),
            "{again}"
        );
    }
    let send = async |body: &str| agent.post("/v1/health", body).await;
    let negative = r#"{"instance":"a","seq":6,"latency_ms":{"mean":-1}}"#;
    assert!(
        send(negative)
            .await
            .problem(422)
            .contains("must be between 0")
    );
    let share = r#"{"instance":"a","seq":6,"latency_ms":{"mean":1},"error_ratio":1.5}"#;
    assert!(
        send(share)
            .await
            .problem(422)
            .contains("`error_ratio` is 1.5")
    );
    let window = r#"{"instance":"a","seq":6,"latency_ms":{"mean":1},"window_s":0}"#;
    assert!(send(window).await.problem(422).contains("`window_s` is 0"));
    let no_number = r#"{"instance":"a","seq":6,"latency_ms":{"mean":NaN}}"#;
    send(no_number).await.problem(400);
    let huge = r#"{"instance":"a","seq":6,"latency_ms":{"mean":1e999}}"#;
    assert!(matches!(send(huge).await.status.as_u16(), 400 | 422));
    let silent = r#"{"instance":"a","seq":6}"#;
    assert!(
        send(silent)
            .await
            .problem(422)
            .contains("`latency_ms.mean` is missing")
    );
    let nobody = r#"{"instance":"","seq":6,"latency_ms":{"mean":1}}"#;
    assert!(
        send(nobody)
            .await
            .problem(422)
            .contains("`instance` has 0 bytes")
    );
    let elsewhere = r#"{"service":"other","instance":"a","seq":6,"latency_ms":{"mean":1}}"#;
    assert!(send(elsewhere).await.problem(404).contains("`other`"));
    send(r#"{"instance":"a","seq":6,"what":1}"#)
        .await
        .problem(422);
    let view = backend(&agent).await;
    assert!(
        (view["factor"].as_f64().unwrap() - 0.7).abs() < 1e-6,
        "{view}"
    );
    assert_eq!((&view["reports"], &view["refused"]), (&1.into(), &6.into()));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hostile_reporter_of_ten_moves_little() {
    let agent = start(followed(Law::Threshold)).await;
    for seq in 1..=4 {
        for instance in 0..10 {
            let mean = if instance == 3 { 3_000_000.0 } else { 300.0 };
            let report = json!({"instance": format!("web-{instance}"), "seq": seq,
                "latency_ms": {"mean": mean}});
            agent.post("/v1/health", &report.to_string()).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let view = backend(&agent).await;
    assert!(view["factor"].as_f64().unwrap() >= 0.7, "{view}");
    assert!(
        view["latency_ms"].as_f64().unwrap() < 5_000.0 || view["factor"] == 1.0,
        "{view}"
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_feed_gives_the_configured_limits_back() {
    let mut settings = followed(Law::Threshold);
    if let Some(Backend {
        adaptive: Some(adaptive),
        ..
    }) = settings.backends.get_mut("default")
    {
        adaptive.stale_hold_s = 0.0;
        adaptive.rise_per_s = 1.0;
    }
    let agent = start(settings).await;
    push(&agent, 1, 800.0).await;
    until_kernel(&agent, 0.7).await;
    let mut view = Value::Null;
    // Stale after 3 s; then 1 per second.
    for _ in 0..80 {
        view = backend(&agent).await;
        if view["factor"] == 1.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(
        (&view["factor"], &view["signal"]),
        (&json!(1.0), &"stale".into()),
        "{view}"
    );
    assert!(
        view["reason"]
            .as_str()
            .unwrap()
            .contains("limits as configured"),
        "{view}"
    );
    until_kernel(&agent, 1.0).await;
    assert_eq!(passes(&agent, "after").await, 100);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_holds_and_resumes() {
    let agent = start(followed(Law::Threshold)).await;
    let paused = agent
        .post("/v1/adaptive:pause", r#"{"factor":0.5}"#)
        .await
        .json();
    assert_eq!(paused["backends"][0]["paused"], true);
    until_kernel(&agent, 0.5).await;
    push(&agent, 1, 2_000.0).await;
    assert_eq!(backend(&agent).await["factor"], 0.5);
    agent
        .post("/v1/adaptive:pause", r#"{"factor":2}"#)
        .await
        .problem(422);
    agent
        .post("/v1/adaptive:pause", r#"{"backend":"other"}"#)
        .await
        .problem(404);
    let resumed = agent.post("/v1/adaptive:resume", "{}").await.json();
    assert_eq!(resumed["backends"][0]["paused"], false);
    assert_eq!(
        resumed["backends"][0]["factor"], 0.7,
        "it went on observing"
    );
    until_kernel(&agent, 0.7).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_are_a_signal_where_nobody_else_speaks() {
    let agent = start(followed(Law::Threshold)).await;
    let outcome = r#"{"client_id":"a","latency_ms":900,"status":200}"#;
    let mut view = Value::Null;
    for _ in 0..60 {
        agent.check("/v1/outcome", outcome).await;
        view = backend(&agent).await;
        if view["factor"].as_f64().unwrap() < 1.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!((view["latency_ms"].as_f64().unwrap() - 900.0).abs() < 1.0 || view["factor"] == 0.7);
    assert_eq!(view["factor"], 0.7, "{view}");
    // A push is a stronger word: outcomes are not heard for one and a half of its periods.
    let pushed = push(&agent, 1, 300.0).await;
    assert_eq!(pushed["accepted"], true);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reports_needs_the_right_and_speaks_for_itself() {
    let mut settings = locked_settings();
    settings.backends = followed(Law::Threshold).backends;
    for name in ["monitor", "other"] {
        settings.credentials.insert(
            name.to_owned(),
            Credential {
                token: Some(Secret::new(token(name))),
                rights: vec![Right::Health],
                ..Credential::default()
            },
        );
    }
    let agent = start(settings).await;
    let body = r#"{"instance":"a","seq":9,"latency_ms":{"mean":300}}"#;
    let send = async |name: &str| {
        let bearer = format!("Bearer {}", token(name));
        let headers = [
            ("content-type", "application/json"),
            ("authorization", bearer.as_str()),
        ];
        agent.send(Method::POST, "/v1/health", &headers, body).await
    };
    send("writer").await.problem(403);
    assert_eq!(send("monitor").await.json()["accepted"], true);
    assert_eq!(send("monitor").await.json()["accepted"], false);
    // The same instance under another credential is another source: it mutes nobody.
    assert_eq!(send("other").await.json()["accepted"], true);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_learnt_outlives_the_agent_and_slowed_clocks_run_out() {
    let agent = start(followed(Law::Threshold)).await;
    push(&agent, 1, 800.0).await;
    until_kernel(&agent, 0.7).await;
    let (plane, store) = agent.stop().await;
    let clock = plane.state().segments[&0];
    let last = clock.pieces[2];
    assert_eq!(
        last.speed,
        Speed::ONE,
        "the kernel finds its way back alone"
    );
    let left_s = last.from_ns.saturating_sub(clock::monotonic_ns()) as f64 / 1e9;
    assert!((50.0..=71.0).contains(&left_s), "{left_s}");

    let again = start_on(
        followed(Law::Threshold),
        Arc::clone(&plane),
        Arc::clone(&store),
        None,
    )
    .await;
    let view = backend(&again).await;
    assert_eq!(view["factor"], 0.7, "{view}");
    let (plane, store) = again.stop().await;
    // An agent that follows nothing leaves nothing slowed.
    let plain = start_on(settings(), plane, store, None).await;
    until_kernel(&plain, 1.0).await;
    plain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_admits_what_is_configured() {
    let agent = start(followed(Law::Budget)).await;
    let view = backend(&agent).await;
    assert_eq!(
        (&view["factor"], &view["mode"]),
        (&json!(1.0), &"open".into()),
        "{view}"
    );
    assert_eq!(view["signal"], "absent");
    assert!(
        view["reason"]
            .as_str()
            .unwrap()
            .contains("configured limits"),
        "{view}"
    );
    assert_eq!(passes(&agent, "a").await, 100);
    until_kernel(&agent, 1.0).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_followed_unless_it_is_configured() {
    let agent = start(settings()).await;
    let view = agent.get("/v1/adaptive").await.json();
    assert_eq!(view["backends"], json!([]));
    let report = r#"{"instance":"a","seq":1,"latency_ms":{"mean":9000}}"#;
    agent.post("/v1/health", report).await.problem(404);
    assert_eq!(passes(&agent, "a").await, 100);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_in_packets_leaves_requests_to_the_factor() {
    let mut settings = followed(Law::Budget);
    if let Some(Backend {
        adaptive: Some(adaptive),
        ..
    }) = settings.backends.get_mut("default")
    {
        adaptive.counts = Counts::Packets;
    }
    let agent = start(settings).await;
    push(&agent, 1, 800.0).await;
    until_kernel(&agent, 0.7).await;
    assert_eq!(passes(&agent, "a").await, 70);
    agent.stop().await;
}
