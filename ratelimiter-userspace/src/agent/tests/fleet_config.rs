//! Agents that share a real Redis have one configuration, and lose none of it with Redis.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use serde_json::{Value, json};

use super::fleet::{Redis, agent, until};
use super::harness::{Agent, Answer, settings, start_on};
use crate::clock;
use crate::store::MemoryStore;

const ALICE: &str = "/v1/clients/alice";

fn limits(rate_limit: u64) -> String {
    json!({"limits": {"default": {"rate_limit": rate_limit, "time_window": "1m"}}}).to_string()
}

async fn put_if(agent: &Agent, path: &str, body: &str, tag: &str) -> Answer {
    let headers = [("content-type", "application/json"), ("if-match", tag)];
    agent.send(Method::PUT, path, &headers, body).await
}

/// Waits until alice's limit on `agent` is `wanted`; null for no such client.
async fn until_limit(agent: &Agent, wanted: impl Into<Value>) -> Duration {
    let (wanted, begin) = (wanted.into(), clock::instant());
    loop {
        let answer = agent.get(ALICE).await;
        let found = answer.json()["limits"]["default"]["rate_limit"].clone();
        if found == wanted {
            return begin.elapsed();
        }
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "alice has {found}, not {wanted}: {answer:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until_there(agent: &Agent, path: &str) {
    let begin = clock::instant();
    while agent.get(path).await.status.as_u16() != 200 {
        assert!(begin.elapsed() < Duration::from_secs(10), "{path}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What `GET /v1/sync` says of the configuration.
async fn config(agent: &Agent) -> Value {
    agent.get("/v1/sync").await.json()["config"].clone()
}

async fn until_config(agent: &Agent, field: &str, wanted: impl Into<Value>) {
    let (wanted, begin) = (wanted.into(), clock::instant());
    loop {
        let config = config(agent).await;
        if config[field] == wanted {
            return;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{field} is not {wanted}: {config}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One line of the audit log that contains `text`.
async fn audited(agent: &Agent, text: &str) -> Value {
    let changes = agent.get("/v1/changes").await.json();
    let found = changes["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["what"].as_str().unwrap_or_default().contains(text));
    found
        .cloned()
        .unwrap_or_else(|| panic!("{text}: {changes}"))
}

impl Redis {
    fn flush(&self) {
        self.command(&["FLUSHALL"]);
    }

    fn command(&self, words: &[&str]) {
        let url = self.url();
        let output = std::process::Command::new("redis-cli")
            .args(["-s", url.trim_start_matches("unix://")])
            .args(words)
            .output()
            .expect("redis-cli comes with redis-server");
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_on_one_agent_is_in_force_on_the_others_within_a_second() {
    let redis = Redis::start();
    let agents = [
        agent(&redis).await,
        agent(&redis).await,
        agent(&redis).await,
    ];
    let mut fastest = Duration::MAX;
    for n in 0..6_usize {
        let answer = agents[n % 3].put(ALICE, &limits(10 + n as u64)).await;
        assert!(answer.status.is_success(), "{answer:?}");
        let mut slowest = Duration::ZERO;
        for agent in &agents {
            slowest = slowest.max(until_limit(agent, 10 + n as u64).await);
        }
        fastest = fastest.min(slowest);
    }
    // The fastest of six: a busy machine may hold some of them up.
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    for agent in &agents {
        until_config(agent, "revision", 6).await;
        until_config(agent, "state", "in_step").await;
    }
    // Whoever followed has it in the audit log: who, what, before and after.
    let entry = audited(&agents[2], "revision 4 of the fleet").await;
    assert_eq!(entry["path"], "clients/alice", "{entry}");
    assert_eq!(entry["before"]["limits"]["default"]["rate_limit"], 12);
    assert_eq!(entry["after"]["limits"]["default"]["rate_limit"], 13);
    assert_eq!(entry["by"], "local");
    // Lists and segments are shared as well, and what is removed is gone everywhere.
    let block = r#"{"cidr":"192.0.2.7","reason":"spam"}"#;
    assert!(
        agents[0]
            .post("/v1/blocklist", block)
            .await
            .status
            .is_success()
    );
    assert!(
        agents[1]
            .put("/v1/segments/gold", "{}")
            .await
            .status
            .is_success()
    );
    assert!(agents[2].delete(ALICE).await.status.is_success());
    for agent in &agents {
        until_limit(agent, Value::Null).await;
        let text = agent.get("/v1/document").await.text;
        assert!(
            text.contains("192.0.2.7/32") && text.contains("gold"),
            "{text}"
        );
    }
    let metrics = agents[0].get("/metrics").await.text;
    assert!(
        metrics.contains("\nratelimiter_sync_config_revision 9\n"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_changes_under_one_condition_exactly_one_is_made() {
    let redis = Redis::start();
    let agents = [agent(&redis).await, agent(&redis).await];
    assert!(agents[0].put(ALICE, &limits(1)).await.status.is_success());
    let mut raced = 0;
    for round in 0..10_u64 {
        let seen = agents[0].get(ALICE).await.json()["limits"]["default"]["rate_limit"].clone();
        until_limit(&agents[1], seen).await;
        let tag = agents[0].get(ALICE).await.header("etag").to_owned();
        assert_eq!(agents[1].get(ALICE).await.header("etag"), tag);
        let bodies = [limits(100 + round), limits(200 + round)];
        let answers = tokio::join!(
            put_if(&agents[0], ALICE, &bodies[0], &tag),
            put_if(&agents[1], ALICE, &bodies[1], &tag),
        );
        let (won, lost, wanted) = if answers.0.status.is_success() {
            (answers.0, answers.1, 100 + round)
        } else {
            (answers.1, answers.0, 200 + round)
        };
        assert_eq!(won.status.as_u16(), 200, "{won:?}");
        let detail = lost.problem(412);
        assert!(detail.contains("its tag is"), "{detail}");
        raced += usize::from(detail.contains("the fleet's configuration is at revision"));
        for agent in &agents {
            until_limit(agent, wanted).await;
        }
    }
    assert!(raced > 0, "no two of ten pairs met");
    // Changes of different objects do not disturb each other.
    let bob = "/v1/clients/bob";
    let limit = limits(7);
    let answers = tokio::join!(agents[0].put(ALICE, &limit), agents[1].put(bob, &limit));
    assert!(answers.0.status.is_success() && answers.1.status.is_success());
    for agent in &agents {
        until_limit(agent, 7).await;
        until_there(agent, bob).await;
        assert_eq!(config(agent).await["lost"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_lost_its_configuration_gets_it_back() {
    let mut redis = Redis::start();
    let agents = [agent(&redis).await, agent(&redis).await];
    for n in 1..=3 {
        assert!(agents[0].put(ALICE, &limits(n)).await.status.is_success());
    }
    until_limit(&agents[1], 3).await;
    redis.flush();
    // A newcomer without a configuration finds the fleet's, not nothing.
    let newcomer = agent(&redis).await;
    until_limit(&newcomer, 3).await;
    until_config(&newcomer, "revision", 3).await;
    redis.kill();
    redis.restart();
    let written = |config: Value| config["written"].as_u64().unwrap();
    for agent in agents.iter().chain([&newcomer]) {
        until(agent, "/readyz", "status", "ready".into()).await;
        until_config(agent, "state", "in_step").await;
        until_limit(agent, 3).await;
        assert_eq!(config(agent).await["revision"], 3);
    }
    // What nobody of this fleet wrote counts as lost too, after a while.
    let before: u64 = written(config(&agents[0]).await) + written(config(&agents[1]).await);
    redis.command(&["HSET", "rl:config", "body", "{}"]);
    redis.command(&[
        "HSET",
        "rl:config",
        "head",
        "1 0000000000000001 99 0000000000000001",
    ]);
    let begin = clock::instant();
    loop {
        let mut now = 0;
        for agent in &agents {
            now += written(config(agent).await);
            until_limit(agent, 3).await;
        }
        if now > before || written(config(&newcomer).await) > 0 {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The next change goes through as if nothing had happened.
    assert!(agents[1].put(ALICE, &limits(4)).await.status.is_success());
    for agent in agents.iter().chain([&newcomer]) {
        until_limit(agent, 4).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_starts_without_redis_from_its_own_copy_and_takes_changes() {
    let mut redis = Redis::start();
    let first = agent(&redis).await;
    let other = agent(&redis).await;
    assert!(first.put(ALICE, &limits(1)).await.status.is_success());
    until_limit(&other, 1).await;
    let (plane, store) = first.stop().await;
    redis.kill();

    let mut settings = settings();
    settings.redis.url = redis.url().parse().unwrap();
    let first = start_on(settings, plane, store, None).await;
    until_limit(&first, 1).await;
    let answer = first.put(ALICE, &limits(2)).await;
    assert!(
        answer.text.contains("this host alone has the change"),
        "{answer:?}"
    );
    let found = config(&first).await;
    assert_eq!(
        (&found["state"], &found["ahead"]),
        (&"ahead".into(), &1.into())
    );
    until_limit(&other, 1).await;

    // The other knows nothing of it, and the store comes back empty: nothing is lost.
    redis.restart();
    for agent in [&first, &other] {
        until_limit(agent, 2).await;
        until_config(agent, "state", "in_step").await;
        until_config(agent, "revision", 2).await;
        assert_eq!(config(agent).await["lost"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_changes_made_apart_the_higher_revision_wins_and_the_loser_is_told() {
    let mut redis = Redis::start();
    let agents = [agent(&redis).await, agent(&redis).await];
    assert!(agents[0].put(ALICE, &limits(1)).await.status.is_success());
    until_limit(&agents[1], 1).await;
    redis.kill();
    for agent in &agents {
        until(agent, "/v1/sync", "connected", false.into()).await;
    }
    agents[0].put(ALICE, &limits(10)).await;
    agents[1].put(ALICE, &limits(20)).await;
    agents[1].put(ALICE, &limits(21)).await;
    redis.restart();
    for agent in &agents {
        until_limit(agent, 21).await;
        until_config(agent, "state", "in_step").await;
        until_config(agent, "revision", 3).await;
    }
    // Whoever came first, one of the two said that 10 is gone, and has kept it.
    let mut told = 0;
    for agent in &agents {
        let lost = config(agent).await["lost"].as_u64().unwrap();
        let kept = crate::store::Store::load_usage(agent.store.as_ref(), "fleet-config-lost");
        let kept = kept.unwrap();
        assert_eq!(lost > 0, kept.is_some());
        if let Some(kept) = kept {
            let kept: Value = serde_json::from_slice(&kept).unwrap();
            assert_eq!(
                kept["clients"]["alice"]["limits"]["default"]["rate_limit"],
                10
            );
            let events = agent.get("/v1/events").await.text;
            assert!(
                events.contains("gave way") || events.contains("gives way"),
                "{events}"
            );
        }
        told += lost;
    }
    assert!(told >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_from_elsewhere_takes_the_fleets_configuration() {
    let redis = Redis::start();
    // Alone, with more changes than the fleet has.
    let alone = start_on(settings(), Arc::default(), Arc::default(), None).await;
    for n in 50..60 {
        assert!(alone.put(ALICE, &limits(n)).await.status.is_success());
    }
    let (plane, store) = alone.stop().await;
    let member = agent(&redis).await;
    assert!(member.put(ALICE, &limits(1)).await.status.is_success());

    let mut joins = settings();
    joins.redis.url = redis.url().parse().unwrap();
    let joined = start_on(joins, plane, store, None).await;
    until_limit(&joined, 1).await;
    until_limit(&member, 1).await;
    assert_eq!(
        config(&joined).await["lost"],
        1,
        "it had one of its own, and is told"
    );
    assert_eq!(config(&member).await["lost"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_host_of_a_fleet_gives_it_its_configuration() {
    let redis = Redis::start();
    let alone = start_on(settings(), Arc::default(), Arc::default(), None).await;
    assert!(alone.put(ALICE, &limits(50)).await.status.is_success());
    let (plane, store) = alone.stop().await;
    let mut joins = settings();
    joins.redis.url = redis.url().parse().unwrap();
    let first = start_on(joins, plane, store, None).await;
    let second = agent(&redis).await;
    until_limit(&second, 50).await;
    until_config(&first, "state", "in_step").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_on_trial_is_tried_on_one_host_and_given_to_the_fleet_when_confirmed() {
    let redis = Redis::start();
    let agents = [agent(&redis).await, agent(&redis).await];
    assert!(agents[0].put(ALICE, &limits(1)).await.status.is_success());
    until_limit(&agents[1], 1).await;
    let tried = agents[0].put(&format!("{ALICE}?try=60s"), &limits(2)).await;
    assert_eq!(tried.status.as_u16(), 202, "{tried:?}");
    // The fleet goes on meanwhile, also on the host that tries.
    assert!(
        agents[1]
            .put("/v1/clients/bob", &limits(9))
            .await
            .status
            .is_success()
    );
    until_there(&agents[0], "/v1/clients/bob").await;
    until_limit(&agents[0], 2).await;
    until_limit(&agents[1], 1).await;
    assert_eq!(config(&agents[0]).await["state"], "in_step");
    let confirmed = agents[0].post("/v1/changes:confirm", "{}").await;
    assert!(confirmed.status.is_success(), "{confirmed:?}");
    until_limit(&agents[1], 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_cannot_put_in_force_is_refused_there_and_said() {
    let redis = Redis::start();
    let mut here = settings();
    here.redis.url = redis.url().parse().unwrap();
    // This host's own file gives bob an address that the fleet will give to alice.
    let own = json!({"sources": ["192.0.2.9/32"], "limits": {}});
    here.clients
        .insert("bob".to_owned(), serde_json::from_value(own).unwrap());
    let here = start_on(here, Arc::default(), Arc::new(MemoryStore::new()), None).await;
    let other = agent(&redis).await;
    let taken = json!({"sources": ["192.0.2.9/32"], "limits": {}}).to_string();
    assert!(other.put(ALICE, &taken).await.status.is_success());
    until_config(&here, "state", "refused").await;
    let said = config(&here).await["error"].as_str().unwrap().to_owned();
    assert!(
        said.contains("(revision 1) is refused on this host"),
        "{said}"
    );
    until(&here, "/readyz", "status", "degraded".into()).await;
    // An edit here would be built upon what is not in force anywhere else.
    let answer = here.put("/v1/clients/carol", &limits(1)).await;
    assert!(answer.problem(409).contains("is refused on this host"));
    // Mended on the other, it is followed again.
    assert!(other.put(ALICE, &limits(3)).await.status.is_success());
    until_limit(&here, 3).await;
    until_config(&here, "state", "in_step").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_fleet_changed_beneath_a_trial_is_what_the_trial_ends_in() {
    let redis = Redis::start();
    let agents = [agent(&redis).await, agent(&redis).await];
    assert!(agents[0].put(ALICE, &limits(1)).await.status.is_success());
    until_limit(&agents[1], 1).await;
    let tried = agents[0].put(&format!("{ALICE}?try=60s"), &limits(2)).await;
    assert_eq!(tried.status.as_u16(), 202, "{tried:?}");
    // The very client that is on trial elsewhere.
    assert!(agents[1].put(ALICE, &limits(5)).await.status.is_success());
    until_config(&agents[0], "revision", 2).await;
    until_config(&agents[0], "state", "in_step").await;
    until_limit(&agents[0], 2).await;
    let back = agents[0].post("/v1/changes:rollback", "{}").await;
    assert!(back.status.is_success(), "{back:?}");
    until_limit(&agents[0], 5).await;
    // Nor does the next change from there bring back what was before.
    let next = agents[0].put("/v1/clients/bob", &limits(9)).await;
    assert!(next.status.is_success(), "{next:?}");
    until_there(&agents[1], "/v1/clients/bob").await;
    until_limit(&agents[1], 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_list_that_forbids_the_configuration_leaves_limits_shared() {
    let redis = Redis::start();
    let agent = agent(&redis).await;
    until_config(&agent, "state", "in_step").await;
    // Everything but `rl:config`.
    let keys = ["resetkeys", "~rl:u:*", "~{rl}:*"];
    redis.command(&[&["ACL", "SETUSER", "default"], &keys[..]].concat());
    until_config(&agent, "state", "refused").await;
    let sync = async || agent.get("/v1/sync").await.json();
    let before = sync().await;
    assert_eq!(before["connected"], true, "{before}");
    // The connection settles meanwhile, and is never made anew.
    let begin = clock::instant();
    while begin.elapsed() < Duration::from_secs(3) {
        let now = sync().await;
        assert_eq!(now["connected"], true, "{now}");
        assert_eq!(now["connections"], before["connections"], "{now}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_ne!(sync().await["calls"], before["calls"]);
}
