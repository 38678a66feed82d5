//! Envoy's rate limit service: descriptor files, and the answers to descriptors.
#![cfg(feature = "grpc")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use proptest::prelude::*;
use ratelimiter_userspace::grpc::descriptors::{Rules, Unit};
use ratelimiter_userspace::grpc::message::{
    Entry, OK, OVER_LIMIT, RateLimitDescriptor, RateLimitOverride, RateLimitRequest,
    RateLimitResponse, UInt64Value,
};
use ratelimiter_userspace::grpc::service::{Refused, Service};
use ratelimiter_userspace::limiter::RateLimiter;

/// Everything the format knows.
const RULES: &str = r"
domain: shop
descriptors:
  - key: path
    value: /login
    rate_limit: { unit: minute, requests_per_unit: 3 }
  - key: tenant            # any value, a bucket each
    rate_limit:
      name: per_tenant
      unit: hour
      requests_per_unit: 2
    descriptors:
      - key: method
        value: POST
        rate_limit: { unit: day, requests_per_unit: 1 }
      - key: method
        rate_limit: { unlimited: true }
  - key: vip
    value: 1
    rate_limit:
      unit: second
      requests_per_unit: 1000
      replaces:
        - name: per_tenant
  - key: banned
    rate_limit: { unit: year, requests_per_unit: 0 }
  - key: shady
    shadow_mode: true
    rate_limit: { unit: month, requests_per_unit: 1 }
  - key: file
    value: img*large
    share_threshold: true
    rate_limit: { unit: week, requests_per_unit: 2 }
  - key: file
    value: doc*
    rate_limit: { unit: minute, requests_per_unit: 1 }
  - key: quota
    value: a
    quota_mode: true
    detailed_metric: true
    metadata: { any: { thing: [1, two] } }
    rate_limit: { unit: minute, requests_per_unit: 1 }
  - key: quota
    value: b
    quota_mode: true
    rate_limit: { unit: minute, requests_per_unit: 2 }
";

fn service() -> Service {
    let limiter = RateLimiter::builder().capacity(1_000).build().unwrap();
    let service = Service::new(limiter);
    let rules = Rules::parse([("rules.yaml", RULES)]).unwrap();
    service.replace(rules, false).unwrap();
    service
}

fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    RateLimitDescriptor {
        entries: entries
            .iter()
            .map(|(key, value)| Entry {
                key: (*key).to_owned(),
                value: (*value).to_owned(),
            })
            .collect(),
        ..RateLimitDescriptor::default()
    }
}

fn request(descriptors: &[&[(&str, &str)]]) -> RateLimitRequest {
    RateLimitRequest {
        domain: "shop".to_owned(),
        descriptors: descriptors.iter().map(|one| descriptor(one)).collect(),
        hits_addend: 0,
    }
}

fn ask(service: &Service, descriptors: &[&[(&str, &str)]]) -> RateLimitResponse {
    service.answer(&request(descriptors)).unwrap()
}

/// How many of `times` requests pass.
fn passed(service: &Service, times: usize, descriptors: &[&[(&str, &str)]]) -> usize {
    (0..times)
        .filter(|_| ask(service, descriptors).overall_code == OK)
        .count()
}

#[test]
fn every_limit_counts_each_descriptor_by_itself() {
    let service = service();
    assert_eq!(passed(&service, 5, &[&[("path", "/login")]]), 3);
    assert_eq!(passed(&service, 5, &[&[("path", "/other")]]), 5);
    for tenant in ["a", "b", ""] {
        assert_eq!(passed(&service, 5, &[&[("tenant", tenant)]]), 2, "{tenant}");
    }
    // A limit on the way does not count at the end of a longer walk, and an unknown end passes.
    assert_eq!(
        passed(&service, 5, &[&[("tenant", "a"), ("method", "POST")]]),
        1
    );
    assert_eq!(
        passed(&service, 5, &[&[("tenant", "a"), ("method", "GET")]]),
        5
    );
    assert_eq!(
        passed(&service, 5, &[&[("tenant", "a"), ("colour", "red")]]),
        5
    );
    assert_eq!(passed(&service, 5, &[&[("method", "POST")]]), 5);
    assert_eq!(passed(&service, 5, &[&[("banned", "x")]]), 0);
    assert_eq!(passed(&service, 5, &[&[("shady", "x")]]), 5);
}

#[test]
fn patterns_have_a_bucket_each_value_or_one_together() {
    let service = service();
    assert_eq!(passed(&service, 2, &[&[("file", "doc1")]]), 1);
    assert_eq!(passed(&service, 2, &[&[("file", "doc2")]]), 1);
    assert_eq!(passed(&service, 1, &[&[("file", "img1large")]]), 1);
    assert_eq!(passed(&service, 3, &[&[("file", "img2large")]]), 1);
    // Not the pattern, and not the pattern's own text taken for a value.
    assert_eq!(passed(&service, 3, &[&[("file", "imglarg")]]), 3);
    assert_eq!(passed(&service, 1, &[&[("file", "img*large")]]), 0);
}

#[test]
fn answers_say_what_is_left_and_when_it_is_back() {
    let service = service();
    let first = ask(&service, &[&[("tenant", "t")]]);
    let [status] = first.statuses.as_slice() else {
        panic!("{first:?}");
    };
    let limit = status.current_limit.as_ref().unwrap();
    assert_eq!(
        (limit.requests_per_unit, limit.unit),
        (2, Unit::Hour as i32)
    );
    assert_eq!(limit.name, "per_tenant");
    assert_eq!((status.code, status.limit_remaining), (OK, 1));
    assert_eq!(status.duration_until_reset.unwrap().seconds, 3_600);
    assert!(first.response_headers_to_add.is_empty());
    assert_eq!(passed(&service, 2, &[&[("tenant", "t")]]), 1);
    let refused = ask(&service, &[&[("tenant", "t")]]);
    assert_eq!(refused.overall_code, OVER_LIMIT);
    let header = |name: &str| {
        let mut headers = refused.response_headers_to_add.iter();
        headers
            .find(|header| header.key == name)
            .map(|h| h.value.as_str())
    };
    assert_eq!(header("retry-after"), Some("3600"));
    assert_eq!(header("ratelimit-policy"), Some("\"default\";q=2;w=3600"));
    assert_eq!(header("ratelimit"), Some("\"default\";r=0;t=3600"));
    // Unlimited: no limit, everything left.
    let free = ask(&service, &[&[("tenant", "t"), ("method", "GET")]]);
    assert_eq!(free.statuses[0].limit_remaining, u32::MAX);
}

#[test]
fn several_descriptors_pass_together_or_nothing_is_charged() {
    let service = service();
    let both: &[&[(&str, &str)]] = &[&[("path", "/login")], &[("tenant", "x")]];
    assert_eq!(passed(&service, 4, both), 2);
    // Two of three were charged: the refusals charged nothing.
    assert_eq!(passed(&service, 4, &[&[("path", "/login")]]), 1);
    // A limit that another one replaces does not count.
    let vip: &[&[(&str, &str)]] = &[&[("vip", "1")], &[("tenant", "x")]];
    assert_eq!(passed(&service, 4, vip), 4);
    // A request passes while one of its quotas does.
    let quotas: &[&[(&str, &str)]] = &[&[("quota", "a")], &[("quota", "b")]];
    assert_eq!(passed(&service, 5, quotas), 2);
}

#[test]
fn hits_are_the_requests_or_the_descriptors() {
    let service = service();
    let mut ask = request(&[&[("path", "/login")]]);
    ask.hits_addend = 3;
    assert_eq!(service.answer(&ask).unwrap().overall_code, OK);
    assert_eq!(service.answer(&ask).unwrap().overall_code, OVER_LIMIT);
    let mut peek = request(&[&[("tenant", "h")]]);
    peek.descriptors[0].hits_addend = Some(UInt64Value { value: 0 });
    for _ in 0..9 {
        let answer = service.answer(&peek).unwrap();
        assert_eq!(answer.overall_code, OK);
    }
    peek.descriptors[0].hits_addend = Some(UInt64Value { value: 2 });
    assert_eq!(service.answer(&peek).unwrap().overall_code, OK);
    peek.descriptors[0].hits_addend = Some(UInt64Value { value: 0 });
    assert_eq!(service.answer(&peek).unwrap().overall_code, OVER_LIMIT);
}

#[test]
fn a_request_may_bring_its_limit_along() {
    let service = service();
    let mut ask = request(&[&[("anything", "x")]]);
    ask.descriptors[0].limit = Some(RateLimitOverride {
        requests_per_unit: 4,
        unit: Unit::Minute as i32,
    });
    let passed = (0..9).filter(|_| service.answer(&ask).unwrap().overall_code == OK);
    assert_eq!(passed.count(), 4);
    ask.descriptors[0].limit = Some(RateLimitOverride {
        requests_per_unit: 4,
        unit: 99,
    });
    assert_eq!(service.answer(&ask), Err(Refused::Unit(99)));
    ask.domain.clear();
    assert_eq!(service.answer(&ask), Err(Refused::Domain));
    assert_eq!(service.answer(&request(&[])), Err(Refused::NoDescriptors));
}

#[test]
fn new_files_keep_what_is_owed() {
    let service = service();
    assert_eq!(passed(&service, 2, &[&[("path", "/login")]]), 2);
    let raised = RULES.replace("requests_per_unit: 3 }", "requests_per_unit: 5 }");
    let rules = Rules::parse([("rules.yaml", raised.as_str())]).unwrap();
    service.replace(rules, false).unwrap();
    assert_eq!(passed(&service, 9, &[&[("path", "/login")]]), 3);
    // Another place has other buckets, whatever policy it was given.
    let moved = raised.replace("/login", "/logout");
    let rules = Rules::parse([("rules.yaml", moved.as_str())]).unwrap();
    service.replace(rules, false).unwrap();
    assert_eq!(passed(&service, 9, &[&[("path", "/logout")]]), 5);
    // In shadow everything passes.
    let rules = Rules::parse([("rules.yaml", moved.as_str())]).unwrap();
    service.replace(rules, true).unwrap();
    assert_eq!(passed(&service, 9, &[&[("path", "/logout")]]), 9);
    assert_eq!(passed(&service, 9, &[&[("banned", "x")]]), 9);
}

#[test]
fn files_are_refused_with_their_place() {
    for (text, message) in [
        ("domain: \"\"\n", "f.yaml:1:9: `domain` is empty"),
        ("descriptors: []\n", "missing field `domain`"),
        (
            "domain: d\ndescriptors:\n  - value: x\n",
            "f.yaml:3:5: a descriptor has no `key`",
        ),
        (
            "domain: d\ndescriptors:\n  - key: k\n    rate_limit: { unit: fortnight }\n",
            "f.yaml:4:17: `unit` is `fortnight`; it must be second, minute",
        ),
        (
            "domain: d\ndescriptors:\n  - key: k\n    rate_limit: { unlimited: true, unit: day }\n",
            "`unlimited` and `unit` exclude each other",
        ),
        (
            "domain: d\ndescriptors:\n  - key: k\n  - key: k\n",
            "f.yaml:4:5: key `k` with value `` is there twice",
        ),
        ("domain: d\nrate: 3\n", "f.yaml:2:1: "),
        (
            "domain: d\ndescriptors:\n  - key: k\n    share_threshold: true\n",
            "`share_threshold`",
        ),
        ("domain: [\n", "f.yaml:"),
    ] {
        let problem = Rules::parse([("f.yaml", text)]).unwrap_err().to_string();
        assert!(problem.contains(message), "{text:?}: {problem}");
        assert_eq!(problem.lines().count(), 1, "{problem}");
    }
    let twice = [("a.yaml", "domain: d\n"), ("b.yaml", "domain: d\n")];
    let problem = Rules::parse(twice).unwrap_err().to_string();
    assert!(
        problem.contains("b.yaml:1:9: domain `d` is in two files"),
        "{problem}"
    );
    let notes = Rules::parse([("rules.yaml", RULES)]).unwrap().notes;
    let notes: Vec<String> = notes.iter().map(ToString::to_string).collect();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(
        notes[0].contains("`detailed_metric` has no effect"),
        "{notes:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Distinct descriptors never share a bucket, however their keys and values are cut.
    #[test]
    fn distinct_descriptors_never_share_a_bucket(
        parts in prop::collection::vec(("[ab:_]{1,3}", "[ab:_]{0,3}"), 1..4),
        others in prop::collection::vec(("[ab:_]{1,3}", "[ab:_]{0,3}"), 1..4),
    ) {
        prop_assume!(parts != others);
        let limiter = RateLimiter::builder().capacity(100).build().unwrap();
        let service = Service::new(limiter);
        service.replace(Rules::parse([("d.yaml", "domain: shop\n")]).unwrap(), false).unwrap();
        let of = |parts: &[(String, String)]| {
            let entries: Vec<(&str, &str)> =
                parts.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let mut ask = request(&[&entries]);
            ask.descriptors[0].limit = Some(RateLimitOverride {
                requests_per_unit: 1,
                unit: Unit::Day as i32,
            });
            ask
        };
        prop_assert_eq!(service.answer(&of(&parts)).unwrap().overall_code, OK);
        prop_assert_eq!(service.answer(&of(&parts)).unwrap().overall_code, OVER_LIMIT);
        prop_assert_eq!(service.answer(&of(&others)).unwrap().overall_code, OK);
    }

    /// Any text is a set of rules or a problem with a place.
    #[test]
    fn any_file_ends_in_rules_or_a_problem(
        lines in prop::collection::vec(
            prop_oneof![
                Just("domain: d".to_owned()),
                Just("descriptors:".to_owned()),
                Just("  - key: k".to_owned()),
                Just("    value: v*".to_owned()),
                Just("    rate_limit: &a { unit: day, requests_per_unit: 1 }".to_owned()),
                Just("    rate_limit: *a".to_owned()),
                Just("    descriptors:".to_owned()),
                Just("      - key: k".to_owned()),
                "[ -~]{0,20}",
            ],
            0..20,
        ),
    ) {
        let text = lines.join("\n");
        if let Err(problem) = Rules::parse([("f.yaml", text.as_str())]) {
            prop_assert!(!problem.message.is_empty());
        }
    }
}
