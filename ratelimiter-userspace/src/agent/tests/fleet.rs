//! Agents that share a real Redis: one limit for a client, and readiness that tells the truth.

use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use ratelimiter_common::abi::merge::{MergeOp, op};

use super::harness::{Agent, settings, start, start_on};
use crate::clock;
use crate::dataplane::FakeDataPlane;

/// A `redis-server` behind a Unix socket; killed when dropped.
pub(super) struct Redis {
    child: Child,
    directory: TempDir,
}

impl Redis {
    pub(super) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            child: spawn(&directory),
            directory,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("unix://{}/s", self.directory.path().display())
    }

    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(super) fn restart(&mut self) {
        self.child = spawn(&self.directory);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn spawn(directory: &TempDir) -> Child {
    Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--appendonly", "no"])
        .args(["--unixsocket", "s", "--dir"])
        .arg(directory.path())
        .current_dir(directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server must be installed: `apt-get install redis-server`")
}

pub(super) async fn agent(redis: &Redis) -> Agent {
    let mut settings = settings();
    settings.redis.url = redis.url().parse().unwrap();
    start(settings).await
}

/// Waits until `GET path` of the admin API has `field` as `wanted`.
pub(super) async fn until(agent: &Agent, path: &str, field: &str, wanted: serde_json::Value) {
    let begin = clock::instant();
    loop {
        let answer = agent.get(path).await;
        let found = answer.json()[field].clone();
        if found == wanted {
            return;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{path}: {field} is {found}, not {wanted}: {answer:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_share_a_redis_give_a_client_one_limit() {
    let mut redis = Redis::start();
    let agents = [agent(&redis).await, agent(&redis).await];
    for agent in &agents {
        until(agent, "/v1/sync", "hosts_live", 2.into()).await;
        until(agent, "/readyz", "status", "ready".into()).await;
        let limit = r#"{"rate_limit":10,"time_window":"1m","consistency":"exact"}"#;
        agent.put("/v1/clients/alice/limit", limit).await;
    }
    let mut passed = 0;
    for n in 0..12 {
        let answer = agents[n % 2]
            .check("/v1/check", r#"{"client_id":"alice"}"#)
            .await;
        assert_eq!(answer.json()["allowed"], n < 10, "{n}: {answer:?}");
        passed += u64::from(answer.json()["allowed"] == true);
    }
    assert_eq!(passed, 10);
    // A batch is charged as well, and by the fleet.
    let batch = r#"{"checks":[{"client_id":"bob"},{"client_id":"bob"},{"client_id":"alice"}]}"#;
    let answers = agents[0].check("/v1/check:batch", batch).await.json();
    let allowed = |n: usize| answers["answers"][n]["allowed"].clone();
    assert_eq!([allowed(0), allowed(1), allowed(2)], [true, true, false]);

    redis.kill();
    for agent in &agents {
        until(agent, "/readyz", "status", "degraded".into()).await;
        assert_eq!(agent.get("/readyz").await.status, 200);
        assert_eq!(agent.get("/livez").await.status, 200);
        let answer = agent.check("/v1/check", r#"{"client_id":"carol"}"#).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["degraded"]),
            (200, &true.into())
        );
        let metrics = agent.get("/metrics").await.text;
        assert!(
            metrics.contains("\nratelimiter_sync_connected 0\n"),
            "{metrics}"
        );
    }
    redis.restart();
    let begin = clock::instant();
    for agent in &agents {
        until(agent, "/readyz", "status", "ready".into()).await;
    }
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
    let sync = agents[0].get("/v1/sync").await.json();
    assert_eq!(
        (&sync["connected"], &sync["alone"]),
        (&true.into(), &false.into())
    );
    let answer = agents[1]
        .check("/v1/check", r#"{"client_id":"alice"}"#)
        .await;
    assert_eq!(
        answer.json()["allowed"],
        false,
        "what was owed is still owed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_a_fleet_slowed_run_again_at_its_end_and_at_a_start_without_it() {
    let redis = Redis::start();
    // A source that is tracked because it is configured.
    let key = u64::from(u32::from(Ipv4Addr::new(192, 0, 2, 9)));
    let mut alone = settings();
    let client = serde_json::json!({"sources": ["192.0.2.9/32"], "limits": {
        "packets": {"rate_limit": 5, "time_window": 1, "unit": "packets"}}});
    let client = serde_json::from_value(client).unwrap();
    alone.clients.insert("alice".to_owned(), client);
    let mut shared = alone.clone();
    shared.redis.url = redis.url().parse().unwrap();
    let slow = |plane: &FakeDataPlane| {
        let mut state = plane.state();
        state.merged.clear();
        state.tracked.get_mut(&key).unwrap().cost_scale = 4 << 16;
    };
    let undone = |plane: &FakeDataPlane| {
        let state = plane.state();
        let whole = |op: &MergeOp| (op.op, op.key, op.level) == (op::SCALE, key, 1 << 16);
        state.merged.iter().any(whole)
    };
    let first = start(shared).await;
    until(&first, "/v1/sync", "hosts_live", 1.into()).await;
    slow(&first.plane);
    let (plane, store) = first.stop().await;
    assert!(undone(&plane), "when it leaves");
    slow(&plane);
    let alone = start_on(alone, plane, store, None).await;
    assert!(undone(&alone.plane), "without a fleet");
}
