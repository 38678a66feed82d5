//! The check API's doors: every route without a credential (R36), forwarded addresses (R37), hostile
//! ids (R41).

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::body::Bytes;
use axum::http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::harness::{Agent, locked_settings, settings, start, token};
use crate::agent::bind_check;
use crate::config::settings::Credential;
use crate::config::{Right, Secret, Settings};
use crate::http::check::ROUTES;

/// As [`locked_settings`], with `checker`, who may check.
fn guarded_settings() -> Settings {
    let mut settings = locked_settings();
    let checker = Credential {
        token: Some(Secret::new(token("checker"))),
        token_file: None,
        rights: vec![Right::Check],
        expires_unix_ms: None,
    };
    settings.credentials.insert("checker".to_owned(), checker);
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn every_door_of_the_check_api_is_locked() {
    let agent = start(guarded_settings()).await;
    let mut locked = 0;
    for route in &ROUTES {
        let path = route.path.replace("{path}", "some/path");
        let ask = async |token: Option<&str>| {
            let bearer = token.map(|token| format!("Bearer {token}"));
            let mut headers = vec![("content-type", "application/json")];
            if let Some(bearer) = &bearer {
                headers.push(("authorization", bearer));
            }
            agent.ask_check(route.method, &path, &headers, "{}").await
        };
        if !route.is_guarded() {
            assert!(!route.path.starts_with("/v1/"), "{} is open", route.path);
            assert_eq!(ask(None).await.status, 200);
            continue;
        }
        locked += 1;
        for (name, status) in [
            (None, 401),
            (Some("wrong-wrong-wrong-wrong".to_owned()), 401),
            (Some(String::new()), 401),
            (Some(token("late")), 401),
            (Some(token("reader")), 403),
            (Some(token("writer")), 403),
        ] {
            let answer = ask(name.as_deref()).await;
            assert_eq!(answer.status, status, "{route:?} {name:?}: {answer:?}");
            if route.method != "HEAD" {
                answer.problem(status);
            }
        }
        for name in ["checker", "boss"] {
            let answer = ask(Some(&token(name))).await;
            assert!(
                !matches!(answer.status.as_u16(), 401 | 403),
                "{route:?}: {answer:?}"
            );
        }
    }
    assert_eq!(locked, 13);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_others_can_reach_needs_a_credential_that_may_check() {
    let any = "0.0.0.0:0".parse().unwrap();
    for settings in [settings(), {
        let mut settings = locked_settings();
        settings.credentials.remove("boss");
        settings.credentials.remove("late");
        settings
    }] {
        let refused = bind_check(any, &settings).await.unwrap_err().to_string();
        assert!(refused.contains("`check.http` is `0.0.0.0:0`"), "{refused}");
    }
    assert!(
        bind_check(any, &guarded_settings())
            .await
            .unwrap()
            .is_exposed()
    );
}

/// One connection that asks forward-auth again and again.
struct Asker {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    host: String,
}

impl Asker {
    async fn new(agent: &Agent) -> Self {
        let stream = TcpStream::connect(agent.check).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        Self {
            sender,
            host: agent.check.to_string(),
        }
    }

    /// What is left after asking with these headers.
    async fn remaining(&mut self, headers: &[(&str, Vec<u8>)]) -> u64 {
        let mut request = Request::get("/v1/authz").header("host", &self.host);
        for (name, value) in headers {
            request = request.header(*name, value.as_slice());
        }
        let request = request.body(Full::default()).unwrap();
        self.sender.ready().await.unwrap();
        let answer = self.sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200, "{headers:?}");
        let limit = answer.headers()["ratelimit"].to_str().unwrap().to_owned();
        drop(answer.into_body().collect().await.unwrap());
        let rest = limit.strip_prefix("\"default\";r=").unwrap();
        rest.split(';').next().unwrap().parse().unwrap()
    }
}

type Headers = Vec<(&'static str, Vec<u8>)>;

/// A small generator: the tests depend on no other.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// A hop as somebody might write it, and the address in it if it is one.
    fn hop(&mut self) -> (String, Option<IpAddr>) {
        let (a, b) = (self.below(256), self.below(4));
        let v4 = format!("{}.0.2.{a}", [10, 192, 127, 198][b as usize]);
        let v6 = format!("2001:db8:{b}:{a:x}::{a:x}");
        let (text, address) = match self.below(8) {
            0 => (v4.clone(), v4),
            1 => (format!("{v4}:{}", self.below(65_536)), v4),
            2 => (v6.clone(), v6),
            3 => (format!("[{v6}]"), v6),
            4 => (format!("[{v6}]:443"), v6),
            5 => (format!("{v6}%eth0"), v6),
            6 => (format!("::ffff:{v4}"), v4),
            _ => {
                let junk = [
                    "unknown",
                    "",
                    "_hidden",
                    "10.0.2",
                    "999.1.1.1",
                    "[::1",
                    "\u{7f}a",
                ];
                return (junk[self.below(7) as usize].to_owned(), None);
            }
        };
        let shown = if self.below(3) == 0 {
            format!(" \t{text} ")
        } else {
            text
        };
        (shown, Some(address.parse().unwrap()))
    }

    /// Headers that claim where the request came from, and the hops of `X-Forwarded-For` from left
    /// to right.
    fn claims(&mut self) -> (Headers, Vec<Option<IpAddr>>) {
        let mut headers = Vec::new();
        let mut hops = Vec::new();
        for _ in 0..self.below(4) {
            let count = if self.below(50) == 0 {
                200
            } else {
                self.below(5) + 1
            };
            let mut texts = Vec::new();
            for _ in 0..count {
                let (text, address) = self.hop();
                texts.push(text);
                hops.push(address);
            }
            let bytes: Vec<u8> = texts.join(",").bytes().filter(|b| *b != 0x7f).collect();
            headers.push(("X-Forwarded-For", bytes));
        }
        for name in [
            "X-Real-IP",
            "Forwarded",
            "X-Client-IP",
            "True-Client-IP",
            "CF-Connecting-IP",
        ] {
            if self.below(3) == 0 {
                headers.push((name, self.hop().0.bytes().filter(|b| *b != 0x7f).collect()));
            }
        }
        (headers, hops)
    }
}

const MANY: &str = r#"{"limits":{"default":{"rate_limit":1000000,"time_window":"1d"}}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_addresses_of_strangers_buy_no_bucket() {
    let agent = start(settings()).await;
    agent.put("/v1/segments/default", MANY).await;
    let mut asker = Asker::new(&agent).await;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for n in 1..=10_000 {
        let (headers, _) = random.claims();
        assert_eq!(
            asker.remaining(&headers).await,
            1_000_000 - n,
            "{headers:?}"
        );
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_proxy_is_believed_up_to_the_right_most_hop_that_is_none() {
    let mut settings = settings();
    let trusted = ["127.0.0.0/8", "10.0.0.0/8", "2001:db8:3::/48"];
    settings.check.trusted_proxies = trusted.iter().map(|p| p.parse().unwrap()).collect();
    let agent = start(settings.clone()).await;
    agent.put("/v1/segments/default", MANY).await;
    let mut asker = Asker::new(&agent).await;
    let mut random = Random(7);
    let is_trusted = |address: IpAddr| {
        let prefixes = &settings.check.trusted_proxies;
        prefixes.iter().any(|prefix| prefix.contains(&address))
    };
    // IPv6 clients are their /64.
    let client = |address: IpAddr| match address {
        IpAddr::V6(address) => {
            IpAddr::from(std::net::Ipv6Addr::from(u128::from(address) >> 64 << 64))
        }
        v4 @ IpAddr::V4(_) => v4,
    };
    let mut spent: BTreeMap<IpAddr, u64> = BTreeMap::new();
    for _ in 0..10_000 {
        let (headers, hops) = random.claims();
        let mut origin: IpAddr = "127.0.0.1".parse().unwrap();
        for hop in hops.iter().rev().take(64) {
            let Some(address) = *hop else {
                break;
            };
            origin = address;
            if !is_trusted(address) {
                break;
            }
        }
        let spent = spent.entry(client(origin)).or_default();
        *spent += 1;
        let remaining = asker.remaining(&headers).await;
        assert_eq!(remaining, 1_000_000 - *spent, "{origin} {headers:?}");
    }
    assert!(spent.len() > 100, "{}", spent.len());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_identity_header_names_the_client_and_stands_there_once() {
    let mut settings = settings();
    settings.check.identity_header = "X-Api-Key".to_owned();
    let agent = start(settings).await;
    agent.put("/v1/segments/default", MANY).await;
    let mut asker = Asker::new(&agent).await;
    for (headers, remaining) in [
        (vec![("x-api-key", b"alice".to_vec())], 999_999),
        (vec![("x-api-key", b"bob".to_vec())], 999_999),
        (vec![("x-api-key", b"alice".to_vec())], 999_998),
        (vec![], 999_999),
        (vec![("x-api-key", b"\xff\xfe".to_vec())], 999_999),
        (vec![("x-api-key", Vec::new())], 999_998),
    ] {
        assert_eq!(asker.remaining(&headers).await, remaining, "{headers:?}");
    }
    let twice = [("x-api-key", "alice"), ("x-api-key", "mallory")];
    agent
        .ask_check("GET", "/v1/authz", &twice, "")
        .await
        .problem(400);
    let long = "x".repeat(257);
    let long = [("x-api-key", long.as_str())];
    agent
        .ask_check("GET", "/v1/authz", &long, "")
        .await
        .problem(400);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_ids_share_no_bucket_and_inject_nothing() {
    let agent = start(settings()).await;
    let mut ids: Vec<String> = [
        "a",
        "A",
        "a ",
        " a",
        "a\0",
        "a\0b",
        "a\r\nX-Evil: 1",
        "a\n# EOF\n",
        "{}",
        "{a}",
        ":",
        "*",
        "a:b",
        "\"",
        "\\",
        "\\\"",
        "'",
        "\u{202e}a",
        "\u{200b}a",
        "\u{e9}",
        "e\u{301}",
        "%00",
        "../../etc",
        "ratelimiter_checks_total{result=\"allowed\"} 1",
        "\u{10ffff}",
        "a\u{7f}",
    ]
    .map(str::to_owned)
    .to_vec();
    ids.push("x".repeat(256));
    ids.push(format!("{}y", "x".repeat(255)));
    let before = agent.get("/metrics").await.text;
    for id in &ids {
        let body = json!({"client_id": id, "cost": 3}).to_string();
        let answer = agent.check("/v1/check", &body).await;
        assert_eq!(answer.json()["remaining"], 97, "{id:?} shares a bucket");
        assert!(answer.headers.get("x-evil").is_none());
    }
    for id in [
        String::new(),
        "x".repeat(257),
        "\u{e9}".repeat(129),
        "x".repeat(60_000),
    ] {
        let body = json!({"client_id": id}).to_string();
        let answer = agent.check("/v1/check", &body).await;
        let detail = answer.problem(400);
        assert!(detail.contains("it must have 1 to 256"), "{detail}");
        assert!(answer.text.len() < 1_000, "the answer repeats the id");
    }
    let large = json!({"client_id": "x".repeat(1 << 20)}).to_string();
    agent.check("/v1/check", &large).await.problem(413);
    let after = agent.get("/metrics").await.text;
    let names = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.contains("http_request"));
        lines
            .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
            .collect()
    };
    assert_eq!(names(&before), names(&after), "an id made a series");
    let events: Value = agent.get("/v1/events").await.json();
    assert!(!events.to_string().contains("etc"), "{events}");
    agent.stop().await;
}
