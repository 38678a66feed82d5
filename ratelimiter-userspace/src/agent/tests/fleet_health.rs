//! Agents that share a real Redis follow a backend's health as one.

use std::time::Duration;

use serde_json::{Value, json};

use super::adaptive::{backend, followed, kernel_factor, push};
use super::fleet::Redis;
use super::harness::{Agent, start};
use crate::clock;
use crate::control::settings::Law;

async fn agent(redis: &Redis, law: Law) -> Agent {
    let mut settings = followed(law);
    settings.redis.url = redis.url().parse().unwrap();
    start(settings).await
}

async fn three(redis: &Redis, law: Law) -> [Agent; 3] {
    let agents = [
        agent(redis, law).await,
        agent(redis, law).await,
        agent(redis, law).await,
    ];
    for agent in &agents {
        until(agent, |view| view["hosts"] == 3 && view["apart"] == false).await;
    }
    agents
}

/// Waits until what is said of the backend is as wanted, at most 10 s.
async fn until(agent: &Agent, wanted: impl Fn(&Value) -> bool) -> Value {
    let begin = clock::instant();
    loop {
        let view = backend(agent).await;
        if wanted(&view) {
            return view;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{view}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn factor(view: &Value) -> f64 {
    view["factor"].as_f64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_to_one_moves_the_factor_of_all() {
    let mut redis = Redis::start();
    let agents = three(&redis, Law::Threshold).await;
    // Whoever hears of it: the same number everywhere, to the last bit, and in force in the kernel.
    let mut seq = 0;
    for hearer in [0, 1, 2, 1] {
        seq += 1;
        let said = push(&agents[hearer], seq, 900.0).await;
        assert_eq!(said["accepted"], true, "{said}");
        let wanted = said["factor"].as_f64().unwrap();
        for agent in &agents {
            until(agent, |view| (factor(view) - wanted).abs() <= 0.0).await;
            until_kernel(agent, wanted).await;
        }
        // A merged period is at least 150 ms long.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let low = factor(&backend(&agents[0]).await);
    assert!(low < 0.7, "{low}");
    // What one host has heard, another knows: a replay buys nothing.
    let again = push(&agents[2], seq, 900.0).await;
    assert_eq!(again["accepted"], false, "{again}");
    // By hand, too.
    agents[1]
        .post("/v1/adaptive:pause", r#"{"factor":0.5}"#)
        .await;
    for agent in &agents {
        until(agent, |view| {
            view["paused"] == true && (factor(view) - 0.5).abs() <= 0.0
        })
        .await;
    }
    agents[2].post("/v1/adaptive:resume", "{}").await;
    for agent in &agents {
        until(agent, |view| view["paused"] == false).await;
    }

    // Without the store each uses what it sees.
    redis.kill();
    for agent in &agents {
        until(agent, |view| view["apart"] == true).await;
    }
    let before = factor(&backend(&agents[1]).await);
    let said = push(&agents[0], seq + 1, 900.0).await;
    let cut = said["factor"].as_f64().unwrap();
    assert!(cut < before, "{cut} {before}");
    let other = factor(&backend(&agents[1]).await);
    assert!(other >= before, "{other} {before}");

    // And together again.
    redis.restart();
    for agent in &agents {
        until(agent, |view| view["hosts"] == 3 && view["apart"] == false).await;
    }
    let said = push(&agents[2], seq + 2, 900.0).await;
    assert_eq!(said["accepted"], true, "{said}");
    let mut last = Vec::new();
    let begin = clock::instant();
    loop {
        last.clear();
        for agent in &agents {
            last.push(factor(&backend(agent).await));
        }
        if last.iter().all(|one| (one - last[0]).abs() <= 0.0) && last[0] < 0.7 {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{last:?}");
    }
    for agent in agents {
        agent.stop().await;
    }
}

/// Waits until the kernel's clock runs at `wanted`, at most 10 s.
async fn until_kernel(agent: &Agent, wanted: f64) {
    let begin = clock::instant();
    while (kernel_factor(agent) - wanted).abs() > 0.001 {
        let is = kernel_factor(agent);
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{is}, not {wanted}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_liar_of_ten_moves_a_fleet_little_whichever_host_it_lies_to() {
    let redis = Redis::start();
    let agents = three(&redis, Law::Threshold).await;
    for round in 1..=4_u64 {
        for reporter in 0..10_u64 {
            let ms = if reporter == 7 { 60_000.0 } else { 300.0 };
            let report = json!({
                "instance": format!("r{reporter}"), "seq": round, "latency_ms": {"mean": ms},
                "count": if reporter == 7 { 1_000_000_000 } else { 100 },
            });
            let at = &agents[(reporter % 3) as usize];
            at.post("/v1/health", &report.to_string()).await;
        }
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    // The first report of all may be the liar's alone; those that follow are outvoted.
    for agent in &agents {
        let view = backend(agent).await;
        assert!(factor(&view) >= 0.7 - 1e-9, "{view}");
    }
    for agent in agents {
        agent.stop().await;
    }
}
