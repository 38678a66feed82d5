//! The check API: what is answered, and that it follows what is configured and remembers who owes
//! what.

use serde_json::{Value, json};

use super::harness::{Agent, settings, start, start_on};
use crate::clock;

const TEN: &str = r#"{"limits":{"default":{"rate_limit":10,"time_window":"1m"}}}"#;

async fn ask(agent: &Agent, body: Value) -> Value {
    let answer = agent.check("/v1/check", &body.to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn twelve_requests_at_once_are_ten_and_two_refusals() {
    let agent = start(settings()).await;
    agent.put("/v1/clients/alice", TEN).await;
    for n in 0..12 {
        let answer = agent.check("/v1/check", r#"{"client_id":"alice"}"#).await;
        let json = answer.json();
        assert_eq!(json["allowed"], n < 10, "{n}: {json}");
        assert_eq!(
            (&json["limit"], &json["degraded"]),
            (&10.into(), &false.into())
        );
        assert_eq!(json["remaining"], 9_u64.saturating_sub(n));
        assert_eq!(answer.header("ratelimit-policy"), "\"default\";q=10;w=60");
        let limit = answer.header("ratelimit");
        assert!(limit.starts_with("\"default\";r="), "{limit}");
        let retry_after = json["retry_after"].as_f64().unwrap();
        if n < 10 {
            assert_eq!(
                (json["retry_after"].as_u64(), answer.header("retry-after")),
                (Some(0), "")
            );
        } else {
            assert!(retry_after > 50.0 && retry_after <= 60.0, "{json}");
            let header: f64 = answer.header("retry-after").parse().unwrap();
            assert!(header >= retry_after && header < retry_after + 1.0);
            assert_eq!(limit, format!("\"default\";r=0;t={header}"));
        }
    }
    agent.stop().await;
}

/// Stamps may lie 5 s either way, which makes ten seconds of anybody's time without waiting.
#[tokio::test(flavor = "multi_thread")]
async fn twelve_requests_spread_and_across_the_window_that_began_with_the_first() {
    let mut settings = settings();
    settings.check.max_skew_ms = 5_000;
    let agent = start(settings).await;
    let eight = r#"{"limits":{"default":{"rate_limit":10,"time_window":8}}}"#;
    agent.put("/v1/clients/spread", eight).await;
    agent.put("/v1/clients/across", eight).await;
    let base = clock::unix_ms() as f64 / 1e3;
    let at = async |client: &str, seconds: f64| {
        ask(
            &agent,
            json!({"client_id": client, "request_timestamp": base + seconds}),
        )
        .await
    };
    let mut passed = 0;
    for n in 0..12 {
        passed += u32::from(at("spread", -4.0 + 0.5 * f64::from(n)).await["allowed"] == true);
    }
    assert_eq!(passed, 10);
    for _ in 0..10 {
        assert_eq!(at("across", -4.5).await["allowed"], true);
    }
    // Rounded up to the millisecond, of a stamp that a float holds a little off.
    let told = at("across", -4.5).await;
    let wait = told["retry_after"].as_f64().unwrap();
    assert!(
        told["allowed"] == false && wait > 7.9 && wait <= 8.001,
        "{told}"
    );
    assert_eq!(at("across", 3.0).await["allowed"], false);
    assert_eq!(at("across", 4.0).await["allowed"], true);
    let clamped = at("across", 3_600.0).await;
    assert_eq!(clamped["clamped"], true, "{clamped}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_applies_at_once_and_gives_no_second_burst() {
    let agent = start(settings()).await;
    agent.put("/v1/clients/alice", TEN).await;
    for _ in 0..10 {
        ask(&agent, json!({"client_id": "alice"})).await;
    }
    agent
        .put("/v1/clients/alice", &TEN.replace("10", "15"))
        .await;
    let mut passed = 0;
    for _ in 0..12 {
        passed += u32::from(ask(&agent, json!({"client_id": "alice"})).await["allowed"] == true);
    }
    assert_eq!(passed, 5);
    agent.delete("/v1/clients/alice").await;
    assert_eq!(
        ask(&agent, json!({"client_id": "alice"})).await["limit"],
        100
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn costs_peeks_names_and_batches() {
    let agent = start(settings()).await;
    let two = r#"{"limits":{"api":{"rate_limit":10,"time_window":60},
        "daily":{"rate_limit":1000,"time_window":"1d"}}}"#;
    agent.put("/v1/clients/bob", two).await;
    let answer = agent
        .check("/v1/check", r#"{"client_id":"bob","cost":4.0}"#)
        .await;
    assert_eq!(answer.json()["remaining"], 6);
    let policies = "\"api\";q=10;w=60, \"daily\";q=1000;w=86400";
    assert_eq!(answer.header("ratelimit-policy"), policies);
    let peek = agent
        .check("/v1/check?peek=true", r#"{"client_id":"bob","cost":7}"#)
        .await;
    assert_eq!(peek.json()["allowed"], false);
    let daily = ask(&agent, json!({"client_id": "bob", "limit": "daily"})).await;
    assert_eq!(
        (&daily["limit"], &daily["remaining"]),
        (&1000.into(), &995.into())
    );
    let unknown = agent
        .check("/v1/check", r#"{"client_id":"bob","limit":"x"}"#)
        .await;
    assert!(unknown.problem(404).contains("no request limit named `x`"));
    let never = ask(
        &agent,
        json!({"client_id": "bob", "limit": "api", "cost": 11}),
    )
    .await;
    assert_eq!(
        (&never["retry_after"], &never["reason"]),
        (&Value::Null, &"exceeds_burst".into())
    );

    let checks: Vec<Value> = (0..256)
        .map(|n| json!({"client_id": format!("c{}", n % 2)}))
        .collect();
    let batch = json!({"checks": checks}).to_string();
    let answers = agent.check("/v1/check:batch", &batch).await.json();
    let answers = answers["answers"].as_array().unwrap().clone();
    assert_eq!(answers.len(), 256);
    assert_eq!(
        answers
            .iter()
            .filter(|answer| answer["allowed"] == true)
            .count(),
        200
    );
    let timed = json!({"checks": [{"client_id": "bob", "limit": "daily"}, {"client_id": "c9"}]});
    let answers = agent
        .check("/v1/check:batch", &timed.to_string())
        .await
        .json();
    assert_eq!(answers["answers"][0]["remaining"], 994);
    assert_eq!(answers["answers"][1]["remaining"], 99);
    let long = json!({"checks": [{"client_id": "a"}, {"client_id": "x".repeat(257)}]});
    let refused = agent.check("/v1/check:batch", &long.to_string()).await;
    refused.problem(400);
    assert_eq!(
        refused.json()["errors"][0]["pointer"],
        "/checks/1/client_id"
    );
    let many: Vec<Value> = (0..257).map(|_| json!({"client_id": "a"})).collect();
    let many = json!({"checks": many}).to_string();
    assert!(
        agent
            .check("/v1/check:batch", &many)
            .await
            .problem(422)
            .contains("257")
    );
    agent
        .check("/v1/check:batch", r#"{"checks":[]}"#)
        .await
        .problem(422);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_for_proxies_are_problems_with_headers() {
    let agent = start(settings()).await;
    agent.put("/v1/clients/127.0.0.1", TEN).await;
    for n in 0..10 {
        let answer = agent.ask_check("GET", "/v1/authz", &[], "").await;
        assert_eq!(
            (answer.status.as_u16(), answer.text.as_str()),
            (200, ""),
            "{n}"
        );
        assert!(answer.header("ratelimit").starts_with("\"default\";r="));
    }
    for (method, path, status) in [
        ("GET", "/v1/authz", 429),
        ("HEAD", "/v1/authz", 429),
        ("POST", "/v1/authz?deny=403", 403),
        ("DELETE", "/v1/authz/any/path?deny=200&cost=0", 429),
        ("GET", "/v1/authz/", 429),
    ] {
        // What a proxy passes on from its client changes nothing.
        let headers = [
            ("authorization", "Basic x"),
            ("host", "shop.example"),
            ("origin", "null"),
        ];
        let answer = agent.ask_check(method, path, &headers, "").await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert!(answer.header("retry-after").parse::<u64>().unwrap() > 0);
        assert_eq!(answer.header("ratelimit-policy"), "\"default\";q=10;w=60");
        if method == "HEAD" {
            assert_eq!(answer.text, "");
        } else {
            answer.problem(status);
            let problem = answer.json();
            assert!(
                problem["type"]
                    .as_str()
                    .unwrap()
                    .ends_with("#quota-exceeded")
            );
            assert_eq!(problem["violated-policies"], json!(["default"]));
        }
    }
    let denied = agent
        .check("/v1/check?deny=429", r#"{"client_id":"127.0.0.1"}"#)
        .await;
    denied.problem(429);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_problems() {
    let mut settings = settings();
    settings.check.max_body_bytes = 1_024;
    let agent = start(settings).await;
    let json = ("content-type", "application/json");
    let large = format!(r#"{{"client_id":"{}"}}"#, "x".repeat(2_000));
    let long = format!(r#"{{"client_id":"{}"}}"#, "x".repeat(257));
    for (method, path, headers, body, status) in [
        ("GET", "/v1/check", &[][..], "", 405),
        ("TRACE", "/v1/authz", &[], "", 405),
        ("POST", "/nowhere", &[json], "{}", 404),
        ("POST", "/v1/check", &[json], large.as_str(), 413),
        (
            "POST",
            "/v1/check",
            &[("content-type", "text/plain")],
            "{}",
            415,
        ),
        ("POST", "/v1/check", &[], "{}", 415),
        ("POST", "/v1/check", &[json], "{", 400),
        ("POST", "/v1/check", &[json], long.as_str(), 400),
        ("POST", "/v1/check", &[json], r#"{"client_id":""}"#, 400),
        (
            "POST",
            "/v1/check",
            &[json],
            r#"{"client_id":"a","user":"b"}"#,
            422,
        ),
        (
            "POST",
            "/v1/check?deny=500",
            &[json],
            r#"{"client_id":"a"}"#,
            400,
        ),
        (
            "POST",
            "/v1/check?verbose",
            &[json],
            r#"{"client_id":"a"}"#,
            400,
        ),
        (
            "POST",
            "/v1/check",
            &[json, ("host", "evil.example")],
            r#"{"client_id":"a"}"#,
            403,
        ),
        (
            "POST",
            "/v1/check",
            &[json, ("origin", "http://evil.example")],
            "{}",
            403,
        ),
        ("POST", "/v1/outcome", &[json], r#"{"client_id":"a"}"#, 422),
        (
            "POST",
            "/v1/outcome",
            &[json],
            r#"{"client_id":"a","latency_ms":1,"status":99}"#,
            422,
        ),
    ] {
        let answer = agent.ask_check(method, path, headers, body).await;
        answer.problem(status);
        if status == 405 {
            assert!(!answer.header("allow").is_empty(), "{method} {path}");
        }
    }
    let outcome = r#"{"client_id":"a","latency_ms":12.5,"status":200}"#;
    assert_eq!(agent.check("/v1/outcome", outcome).await.status, 204);
    let described = agent
        .ask_check("GET", "/openapi.json", &[], "")
        .await
        .json();
    assert_eq!(described["openapi"], "3.1.0");
    assert!(
        described["components"]["schemas"]["CheckRequest"].is_object(),
        "{described}"
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_limiter_cannot_enforce_is_refused_and_not_stored() {
    let agent = start(settings()).await;
    let large = r#"{"limits":{"default":
        {"rate_limit":5000,"time_window":60,"algorithm":"sliding_log"}}}"#;
    let refused = agent.put("/v1/clients/alice", large).await;
    assert!(refused.problem(422).contains("at most 4096"), "{refused:?}");
    agent.get("/v1/clients/alice").await.problem(404);
    let made = agent.put("/v1/clients/alice", TEN).await;
    assert_eq!(made.json()["revision"], 1);
    let (plane, store) = agent.stop().await;
    // And an agent starts on what was stored.
    start_on(settings(), plane, store, None).await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_survives_a_graceful_restart_exactly() {
    let agent = start(settings()).await;
    agent.put("/v1/clients/alice", TEN).await;
    for n in 0..50 {
        ask(
            &agent,
            json!({"client_id": "alice", "cost": u32::from(n < 7)}),
        )
        .await;
        ask(
            &agent,
            json!({"client_id": format!("stranger-{n}"), "cost": n}),
        )
        .await;
    }
    let (plane, store) = agent.stop().await;
    let agent = start_on(settings(), plane, store, None).await;
    let alice = ask(&agent, json!({"client_id": "alice", "cost": 0})).await;
    assert_eq!(alice["remaining"], 3);
    for n in 0..50 {
        let id = format!("stranger-{n}");
        let stranger = ask(&agent, json!({"client_id": id, "cost": 0})).await;
        assert_eq!(stranger["remaining"], 100 - n, "{id}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explained_reset_and_counted() {
    let agent = start(settings()).await;
    agent.put("/v1/clients/alice", TEN).await;
    for _ in 0..12 {
        ask(&agent, json!({"client_id": "alice"})).await;
    }
    let why = agent.get("/v1/explain?client_id=alice").await.json();
    assert_eq!(
        (&why["verdict"], &why["reason"]),
        (&"drop".into(), &"over_limit".into()),
        "{why}"
    );
    let unit = &why["units"][0];
    assert_eq!(
        (&unit["unit"], &unit["rate_limit"]),
        (&"requests".into(), &10.into())
    );
    assert_eq!(
        (unit["tokens"].as_f64(), unit["debt"].as_f64()),
        (Some(0.0), Some(10.0))
    );
    assert!(unit["retry_after_s"].as_f64().unwrap() > 50.0, "{why}");
    let stranger = agent.get("/v1/explain?client_id=stranger").await.json();
    assert_eq!(
        stranger["units"][0]["tokens"].as_f64(),
        Some(100.0),
        "{stranger}"
    );

    let metrics = agent.get("/metrics").await.text;
    for line in [
        "ratelimiter_checks_total{result=\"allowed\",reason=\"conforming\"} 10",
        "ratelimiter_checks_total{result=\"denied\",reason=\"over_limit\"} 2",
        "ratelimiter_check_duration_seconds_count 12",
        "ratelimiter_check_duration_seconds_bucket{le=\"0.000001\"}",
        "ratelimiter_clients 1\n",
        "ratelimiter_clients_configured 1\n",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }

    let reset = agent.delete("/v1/clients/alice/debt").await.json();
    assert_eq!(reset["buckets"], 1, "{reset}");
    assert_eq!(
        ask(&agent, json!({"client_id": "alice"})).await["remaining"],
        9
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_spares_the_backend_and_says_so() {
    let mut settings = settings();
    let breaker = crate::config::settings::Breaker {
        deny_ratio: 0.0,
        ..Default::default()
    };
    let backend = crate::config::settings::Backend {
        breaker: Some(breaker),
        ..Default::default()
    };
    settings.backends.insert("default".to_owned(), backend);
    let agent = start(settings).await;
    let failed = r#"{"client_id":"a","latency_ms":1,"status":503}"#;
    for _ in 0..30 {
        agent.check("/v1/outcome", failed).await;
    }
    // It steps every 100 ms, by what happens then.
    let mut open = Value::Null;
    for _ in 0..50 {
        open = ask(&agent, json!({"client_id": "a"})).await;
        if open["reason"] == "backend_open" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        agent.check("/v1/outcome", failed).await;
    }
    assert_eq!(
        (&open["allowed"], &open["reason"]),
        (&false.into(), &"backend_open".into())
    );
    let wait = open["retry_after"].as_f64().unwrap();
    assert!(wait > 8.0 && wait <= 10.0, "{open}");
    let refused = agent.ask_check("GET", "/v1/authz", &[], "").await;
    refused.problem(503);
    assert!(
        refused.json()["type"]
            .as_str()
            .unwrap()
            .ends_with("#temporary-reduced-capacity")
    );
    assert!(refused.header("retry-after").parse::<u64>().unwrap() <= 10);
    let metrics = agent.get("/metrics").await.text;
    assert!(
        metrics.contains("ratelimiter_breaker_state{backend=\"default\",state=\"open\"} 1"),
        "{metrics}"
    );
    agent.stop().await;
}
