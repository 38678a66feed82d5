//! Bad input over the API: refused by name, and the policy in force stays as it was.

use axum::http::StatusCode;

use super::harness::{settings, start};

#[tokio::test(flavor = "multi_thread")]
async fn bad_policies_are_refused_by_name_and_change_nothing() {
    let agent = start(settings()).await;
    let limits = r#""limits":{"p":{"rate_limit":5,"time_window":1,"unit":"packets"}}"#;
    let alice = format!(r#"{{"sources":["192.0.2.0/30"],{limits}}}"#);
    let created = agent.put("/v1/clients/alice", &alice).await;
    assert_eq!(created.status, StatusCode::CREATED);
    let document = agent.get("/v1/document").await.text;
    agent.plane.state().applied.clear();

    let with = |sources: &str| format!(r#"{{"sources":[{sources}],{limits}}}"#);
    let packets = |limit: &str| format!(r#"{{"limits":{{"p":{{{limit},"unit":"packets"}}}}}}"#);
    // 200 prefixes of 16 addresses: the small tables track 3072.
    let many: Vec<String> = (0..200)
        .map(|n| format!(r#""10.0.{}.{}/28""#, n / 16, n % 16 * 16))
        .collect();
    for (body, says) in [
        (
            with(r#""192.0.2.0/30""#),
            &["192.0.2.0/30", "alice", "bob"][..],
        ),
        (with(r#""::ffff:192.0.2.9/128""#), &["::ffff:192.0.2.9"]),
        (with(r#""192.0.2.9/24""#), &["192.0.2.9/24", "192.0.2.0/24"]),
        (with(r#""192.0.2.300/32""#), &["192.0.2.300"]),
        (with(r#""198.51.100.1/33""#), &["198.51.100.1/33"]),
        (
            with(r#""198.51.100.1/32","198.51.100.1/32""#),
            &["198.51.100.1/32"],
        ),
        (with(&many.join(",")), &["3204", "3072"]),
        (
            packets(r#""rate_limit":0,"time_window":1"#),
            &["`rate_limit` is 0", "1 or more"],
        ),
        (
            packets(r#""rate_limit":1000000001,"time_window":1"#),
            &["1000000001", "at most 1000000000"],
        ),
        (
            packets(r#""rate_limit":1,"time_window":1,"burst":68719476737"#),
            &["68719476737", "68719476736"],
        ),
        (
            packets(r#""rate_limit":1,"time_window":31622401"#),
            &["31622401", "366 days"],
        ),
        (r#"{"segment":"nowhere"}"#.to_owned(), &["nowhere", "bob"]),
        (r#"{"sources":["ff02::1/128"]}"#.to_owned(), &["ff02::1"]),
    ] {
        let answer = agent.put("/v1/clients/bob", &body).await;
        let mut told = answer.problem(422);
        told.push_str(&answer.json()["errors"].to_string());
        for says in says {
            assert!(told.contains(says), "{body}: no `{says}` in {told}");
        }
    }
    let long = format!("{{\"segment\":\"{}\"}}", "x".repeat(1 << 20));
    let told = agent.put("/v1/clients/bob", &long).await.problem(413);
    assert!(told.contains("65536") || told.contains("1048576"), "{told}");
    assert_eq!(agent.get("/v1/document").await.text, document);
    let applied = agent.plane.state().applied.clone();
    assert!(applied.is_empty(), "{applied:?}");
    agent.stop().await;
}
