//! The stream that the dashboard follows.

use axum::body::Bytes;
use axum::http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use ratelimiter_common::abi::counters::Sample;
use ratelimiter_common::verdict::{Reason, Verdict};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::harness::{Agent, locked_settings, settings, start, token};

/// Events of a stream as they come.
struct Stream {
    body: Incoming,
    rest: String,
    /// The connection lives as long as this.
    _sender: SendRequest<Full<Bytes>>,
}

impl Stream {
    async fn open(agent: &Agent, bearer: Option<&str>) -> Self {
        let stream = TcpStream::connect(agent.address).await.unwrap();
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::get("/v1/events?snapshots=true")
            .header("host", agent.address.to_string())
            .header("accept", "text/event-stream");
        if let Some(name) = bearer {
            request = request.header("authorization", format!("Bearer {}", token(name)));
        }
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Self {
            body: response.into_body(),
            rest: String::new(),
            _sender: sender,
        }
    }

    /// The next event: kind and data; none at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            while let Some((block, rest)) = self.rest.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.rest = rest;
                let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
                if let (Some(kind), Some(data)) = (line("event: "), line("data: ")) {
                    return Some((kind.to_owned(), serde_json::from_str(data).unwrap()));
                }
            }
            let frame = self.body.frame().await?.ok()?;
            let bytes = frame.into_data().unwrap();
            self.rest.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    async fn until(&mut self, kind: &str) -> Value {
        for _ in 0..200 {
            let (found, data) = self.next().await.expect("the stream ended");
            if found == kind {
                return data;
            }
        }
        panic!("no `{kind}` among 200 events");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_who_looks_how_it_is_and_who_begins_to_be_dropped() {
    let agent = start(locked_settings()).await;
    let mut stream = Stream::open(&agent, Some("reader")).await;
    let (kind, caller) = stream.next().await.unwrap();
    assert_eq!(
        (kind.as_str(), caller),
        ("caller", json!({"name": "reader", "rights": ["read"]}))
    );
    let first = stream.until("snapshot").await;
    assert_eq!(first["readiness"]["status"], "ready", "{first}");
    assert_eq!(first["status"]["mode"], "enforce");
    assert_eq!(first["checks"]["allowed"], 0);
    assert_eq!(first["adaptive"]["backends"], json!([]));
    assert_eq!(
        (&first["sources"], &first["sources_total"]),
        (&json!([]), &json!(0))
    );
    let second = stream.until("snapshot").await;
    assert!(second["at_unix_ms"].as_u64() > first["at_unix_ms"].as_u64());

    {
        let mut kernel = agent.plane.state();
        for n in 0..3 {
            kernel.events.push_back(Sample {
                key: 0xc000_0201 + n,
                verdict: Verdict::Drop as u8,
                reason: Reason::OverPackets as u8,
                family: 4,
                ..Sample::default()
            });
        }
    }
    let dropped = stream.until("drop").await;
    assert_eq!(
        dropped["text"],
        "192.0.2.1 (over_packets) and 2 more sources are being dropped"
    );
    // With it, not at the next second: nothing else is between them.
    assert_eq!(stream.next().await.unwrap().0, "snapshot");

    // A stream ends when the agent does, and does not hold it up.
    let end = tokio::spawn(async move { while stream.next().await.is_some() {} });
    agent.stop().await;
    end.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_served_whole_and_under_a_policy() {
    let agent = start(settings()).await;
    let page = agent.get("/").await;
    assert_eq!(page.status, StatusCode::OK);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    for file in crate::dashboard::FILES {
        let answer = agent.get(&format!("/dashboard/{}", file.name)).await;
        assert_eq!(
            (answer.status, answer.text.as_str()),
            (StatusCode::OK, file.text)
        );
        assert_eq!(answer.header("content-type"), file.kind);
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
    let missing = agent.get("/dashboard/..%2fmod.rs").await.problem(404);
    assert!(missing.contains("no file of the dashboard"), "{missing}");
    let refused = agent.get("/v1/events?snapshots=true").await.problem(400);
    assert!(refused.contains("text/event-stream"), "{refused}");
    agent.stop().await;
}
