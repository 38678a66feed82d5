//! Why a source or client is treated as it is.

use ratelimiter_userspace::policy::explain::{
    Bucket, Explanation, RuleKind, explain_client, explain_source,
};
use ratelimiter_userspace::policy::model::{Document, Mode};
use ratelimiter_userspace::policy::resolve::Source;

use crate::{SAMPLE, document};

fn doc() -> Document {
    document(SAMPLE)
}

fn source(address: &str) -> Explanation {
    explain_source(&doc(), address.parse().unwrap(), Mode::Enforce, 64, 1_000)
}

#[test]
fn the_most_specific_client_is_named_with_those_around_it() {
    let e = source("192.0.2.1");
    assert_eq!(e.rule.kind, RuleKind::Client);
    assert_eq!(e.rule.name.as_deref(), Some("alice"));
    assert_eq!(e.bucket, Bucket::Tracked);
    assert_eq!(e.limits[0].source, Source::Client);
    assert_eq!(
        e.sentence,
        "`192.0.2.1` is limited to 10 packets per 1 s by client `alice` `192.0.2.0/30`"
    );
}

#[test]
fn allow_comes_before_block_comes_before_clients() {
    let e = source("192.0.2.2");
    assert_eq!((e.rule.kind, e.bucket), (RuleKind::Allow, Bucket::None));
    assert_eq!(e.others.len(), 1);
    assert!(e.limits.is_empty());
    let e = source("10.1.2.3");
    assert_eq!(e.rule.kind, RuleKind::Block);
    let others: Vec<_> = e.others.iter().map(|rule| rule.kind).collect();
    assert_eq!(others, [RuleKind::Client, RuleKind::Segment]);
}

#[test]
fn wide_client_prefixes_share_a_bucket_and_have_the_segments_limits() {
    let e = source("198.51.100.77");
    assert_eq!((e.bucket, e.segment.as_str()), (Bucket::Shared, "free"));
    assert_eq!(e.limits.len(), 2);
    assert!(e.limits.iter().all(|limit| limit.source == Source::Segment));
}

#[test]
fn strangers_have_the_default_segment() {
    let e = source("8.8.8.8");
    assert_eq!((e.rule.kind, e.bucket), (RuleKind::Default, Bucket::Crowd));
    assert_eq!(e.limits[0].rate_limit, 1_000);
    let mapped = source("::ffff:8.8.8.8");
    assert_eq!(mapped.key, e.key);
}

#[test]
fn impossible_sources_are_said_to_be_so() {
    let e = source("ff02::1");
    assert_eq!((e.rule.kind, e.key), (RuleKind::NoSource, None));
}

#[test]
fn an_entry_that_has_ended_explains_nothing() {
    let mut doc = doc();
    for entry in doc.block.values_mut() {
        entry.expires_unix_ms = Some(1_000);
    }
    let e = explain_source(&doc, "10.1.2.3".parse().unwrap(), Mode::Enforce, 64, 1_000);
    assert_eq!(e.rule.kind, RuleKind::Client);
}

#[test]
fn shadow_is_said() {
    let e = explain_source(&doc(), "8.8.8.8".parse().unwrap(), Mode::Shadow, 64, 0);
    assert!(
        e.sentence
            .ends_with("the agent is in shadow and drops nothing")
    );
    assert!(e.to_string().contains("shadow: counted, never dropped"));
}

#[test]
fn clients_are_explained_by_id_known_or_not() {
    let e = explain_client(&doc(), "alice", Mode::Enforce);
    assert_eq!((e.rule.kind, e.requests.len()), (RuleKind::Client, 1));
    assert_eq!(e.requests[0].rate_limit, 100);
    let e = explain_client(&doc(), "nobody", Mode::Enforce);
    assert_eq!(e.rule.kind, RuleKind::Default);
    assert!(e.sentence.contains("is not configured"), "{}", e.sentence);
    let json = serde_json::to_string(&e).unwrap();
    assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), e);
}
