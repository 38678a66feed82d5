//! Escalation: clients that are refused many times in a row, and whom they get blocked.

use serde_json::json;

use super::harness::{Agent, locked_settings, start, token};
use crate::config::settings::Credential;
use crate::config::{Right, Secret, Settings};

const BLOCKLIST: &str = "/v1/blocklist";

/// As [`locked_settings`], with `checker`, who may check, and `edge`, who may escalate besides.
fn settings() -> Settings {
    let mut settings = locked_settings();
    for (name, rights) in [
        ("checker", vec![Right::Check]),
        ("edge", vec![Right::Check, Right::Escalate]),
    ] {
        let credential = Credential {
            token: Some(Secret::new(token(name))),
            token_file: None,
            rights,
            expires_unix_ms: None,
        };
        settings.credentials.insert(name.to_owned(), credential);
    }
    settings.check.trusted_proxies = vec!["203.0.113.0/24".parse().unwrap()];
    settings
}

/// Asks as the administrator.
async fn admin(agent: &Agent, method: &str, path: &str, body: &str) -> super::harness::Answer {
    let bearer = format!("Bearer {}", token("boss"));
    let headers = [
        ("content-type", "application/json"),
        ("authorization", bearer.as_str()),
    ];
    let method = method.parse().unwrap();
    agent.send(method, path, &headers, body).await
}

/// Asks `times` times as `credential` says about `client` at `address`; returns how many passed.
async fn ask(agent: &Agent, credential: &str, client: &str, address: &str, times: u32) -> u32 {
    let bearer = format!("Bearer {}", token(credential));
    let headers = [
        ("content-type", "application/json"),
        ("authorization", bearer.as_str()),
    ];
    let body = json!({"client_id": client, "source_ip": address}).to_string();
    let mut passed = 0;
    for _ in 0..times {
        let answer = agent.ask_check("POST", "/v1/check", &headers, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        passed += u32::from(answer.json()["allowed"] == true);
    }
    passed
}

/// The blocked prefixes, once there are `wanted`; fails after 5 s.
async fn blocked(agent: &Agent, wanted: usize) -> Vec<String> {
    let mut found = Vec::new();
    for _ in 0..100 {
        let page = admin(agent, "GET", BLOCKLIST, "").await.json();
        let items = page["items"].as_array().unwrap().clone();
        found = items
            .iter()
            .map(|entry| entry["cidr"].as_str().unwrap().to_owned())
            .collect();
        found.sort();
        if found.len() == wanted {
            return found;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{wanted} blocks never came: {found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_refused_in_a_row_is_blocked_for_a_while_and_freed_by_a_reset() {
    let agent = start(settings()).await;
    let strict = r#"{"escalate_after":4,
        "limits":{"default":{"rate_limit":2,"time_window":"1h"}}}"#;
    let lenient = r#"{"limits":{"default":{"rate_limit":2,"time_window":"1h"}}}"#;
    for (path, body) in [
        ("/v1/segments/strict", strict),
        ("/v1/segments/default", lenient),
        ("/v1/clients/mallory", r#"{"segment":"strict"}"#),
        ("/v1/clients/six", r#"{"segment":"strict"}"#),
        ("/v1/clients/friend", r#"{"segment":"strict"}"#),
        ("/v1/clients/proxied", r#"{"segment":"strict"}"#),
    ] {
        let answer = admin(&agent, "PUT", path, body).await;
        assert!(answer.status.is_success(), "{path}: {answer:?}");
    }
    let allow = r#"{"cidr":"198.51.100.0/24","reason":"the office"}"#;
    let allowed = admin(&agent, "POST", "/v1/allowlist", allow).await;
    assert!(allowed.status.is_success(), "{allowed:?}");

    // Nobody's word counts but that of a credential with the right; nor where nobody opted in; nor
    // against an allowed address, a proxy, or this machine.
    assert_eq!(ask(&agent, "checker", "mallory", "192.0.2.9", 10).await, 2);
    assert_eq!(ask(&agent, "edge", "stranger", "192.0.2.8", 10).await, 2);
    assert_eq!(ask(&agent, "edge", "friend", "198.51.100.7", 10).await, 2);
    assert_eq!(ask(&agent, "edge", "proxied", "203.0.113.7", 10).await, 2);
    assert_eq!(ask(&agent, "edge", "proxied", "127.0.0.1", 10).await, 0);
    assert_eq!(ask(&agent, "edge", "mallory", "192.0.2.9", 3).await, 0);
    assert_eq!(ask(&agent, "edge", "six", "2001:db8::1", 6).await, 2);
    // The one source of the four, and none of those before it.
    assert_eq!(blocked(&agent, 1).await, ["2001:db8::/64"]);

    assert_eq!(ask(&agent, "edge", "mallory", "192.0.2.9", 1).await, 0);
    assert_eq!(blocked(&agent, 2).await, ["192.0.2.9/32", "2001:db8::/64"]);
    let explained = admin(&agent, "GET", "/v1/explain?ip=192.0.2.9", "").await;
    assert!(explained.text.contains("escalation"), "{explained:?}");
    assert!(
        explained
            .text
            .contains("client `mallory` was refused 4 times"),
        "{explained:?}"
    );
    let list = admin(&agent, "GET", BLOCKLIST, "").await.json();
    for entry in list["items"].as_array().unwrap() {
        let ends = entry["expires_unix_ms"].as_u64().unwrap();
        let lasts_ms = ends.saturating_sub(crate::clock::unix_ms());
        assert!((30_000..=60_000).contains(&lasts_ms), "{entry}");
    }

    // Undone by a reset: of the client, and of the address.
    let reset = admin(&agent, "DELETE", "/v1/sources/2001:db8::77", "").await;
    assert!(reset.text.contains("blocks lifted: 1"), "{reset:?}");
    assert_eq!(blocked(&agent, 1).await, ["192.0.2.9/32"]);
    let reset = admin(&agent, "DELETE", "/v1/clients/mallory/debt", "").await;
    assert!(reset.text.contains("blocks lifted: 1"), "{reset:?}");
    blocked(&agent, 0).await;
    assert_eq!(ask(&agent, "edge", "mallory", "192.0.2.9", 3).await, 2);
    agent.stop().await;
}
