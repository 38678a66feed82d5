//! The check plane follows what is configured, and remembers who owes what.

use super::harness::{settings, start, start_on};

const TEN: &str = r#"{"limits":{"default":{"rate_limit":10,"time_window":"1m"}}}"#;

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
