//! The client against an in-process server that answers from a script.

use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// Serves one connection at a new Unix socket; the answer is `reply`, the request comes back.
async fn with_server(
    reply: String,
    call: Call,
    token: Option<&str>,
) -> (Result<Answer, Failure>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        let mut chunk = [0; 4096];
        while !complete(&request) {
            let n = stream.read(&mut chunk).await.unwrap();
            assert!(n > 0, "the request ended early");
            request.extend_from_slice(&chunk[..n]);
        }
        stream.write_all(reply.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap()
    });
    let client = Client::new(Target::Socket(path), token.map(str::to_owned), TIMEOUT);
    let outcome = client.send(call).await;
    (outcome, server.await.unwrap())
}

fn complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok())
        .unwrap_or(0);
    body.len() >= length
}

async fn refused(status: &str, body: &str) -> Failure {
    let reply = answer(status, "content-type: application/problem+json\r\n", body);
    let (outcome, _) = with_server(reply, Call::new(Method::GET, "/v1/limits"), None).await;
    outcome.unwrap_err()
}

#[tokio::test]
async fn sends_method_path_query_token_and_body() {
    let call = Call::new(Method::PUT, format!("/v1/clients/{}", segment("a/b c")))
        .query("dry_run", "true")
        .query_opt("try", Some("60s"))
        .query_opt("segment", None::<String>)
        .if_match(Some("\"7\"".to_owned()))
        .json(&serde_json::json!({"segment": "free"}))
        .unwrap();
    let reply = answer("200 OK", "etag: \"8\"\r\n", "{\"x\":1}");
    let (outcome, request) = with_server(reply, call, Some("secret")).await;
    let outcome = outcome.unwrap();
    assert_eq!(outcome.etag().as_deref(), Some("\"8\""));
    assert_eq!(outcome.json::<serde_json::Value>().unwrap()["x"], 1);
    assert!(request.starts_with("PUT /v1/clients/a%2Fb%20c?dry_run=true&try=60s HTTP/1.1\r\n"));
    for line in [
        "host: localhost",
        "authorization: Bearer secret",
        "if-match: \"7\"",
        "content-type: application/json",
    ] {
        assert!(
            request.contains(&format!("{line}\r\n")),
            "{line} in {request}"
        );
    }
    assert!(request.ends_with("{\"segment\":\"free\"}"));
}

#[tokio::test]
async fn turns_a_problem_into_its_detail() {
    let failure = refused(
        "422 Unprocessable Content",
        r#"{"type":"about:blank","title":"Invalid limit","status":422,
            "detail":"`burst` is 0; it must be between 1 and 68719476736"}"#,
    )
    .await;
    assert_eq!(failure.exit, Exit::Usage);
    assert_eq!(
        failure.message,
        "`burst` is 0; it must be between 1 and 68719476736"
    );
}

#[tokio::test]
async fn shows_each_refused_field_once() {
    let failure = refused(
        "422 Unprocessable Content",
        r#"{"title":"Invalid","detail":"2 fields are wrong","errors":[
            {"pointer":"/limits/a","detail":"`rate_limit` is 0"},
            {"pointer":"/mode","detail":"`mode` is `x\u001b[2J`"}]}"#,
    )
    .await;
    assert_eq!(
        failure.message,
        "2 fields are wrong\n  /limits/a `rate_limit` is 0\n  /mode `mode` is `x\\u{1b}[2J`"
    );
}

#[tokio::test]
async fn maps_statuses_to_exit_codes() {
    let problem = r#"{"title":"no"}"#;
    for (status, exit, help) in [
        ("401 Unauthorized", Exit::Permission, Some("--token-file")),
        ("403 Forbidden", Exit::Permission, None),
        ("404 Not Found", Exit::Failed, None),
        ("409 Conflict", Exit::Failed, None),
        ("412 Precondition Failed", Exit::Failed, Some("in between")),
        ("400 Bad Request", Exit::Usage, None),
        ("500 Internal Server Error", Exit::Failed, None),
        ("503 Service Unavailable", Exit::Failed, None),
    ] {
        let failure = refused(status, problem).await;
        assert_eq!(failure.exit, exit, "{status}");
        assert_eq!(failure.message, "no");
        match help {
            Some(help) => assert!(failure.help.unwrap().contains(help), "{status}"),
            None => assert_eq!(failure.help, None, "{status}"),
        }
    }
}

#[tokio::test]
async fn points_to_status_when_the_agent_cannot_just_now() {
    let failure = refused(
        "503 Service Unavailable",
        r#"{"type":"urn:problem:unavailable","title":"no","detail":"the agent is stopping"}"#,
    )
    .await;
    assert_eq!(failure.message, "the agent is stopping");
    assert!(failure.help.unwrap().contains("`ratelimiter status` tells"));
}

#[tokio::test]
async fn says_that_another_server_is_no_agent() {
    let failure = refused("502 Bad Gateway", "<html>nginx</html>").await;
    assert_eq!(failure.exit, Exit::Failed);
    assert!(failure.message.contains("answered `502 Bad Gateway`"));
    assert!(
        failure
            .help
            .unwrap()
            .contains("not one of a ratelimiter agent")
    );
}

async fn unreachable(target: Target, timeout: Duration) -> Failure {
    Client::new(target, None, timeout)
        .send(Call::new(Method::GET, "/v1/status"))
        .await
        .unwrap_err()
}

#[tokio::test]
async fn explains_a_missing_socket() {
    let failure = unreachable(Target::Socket("/nowhere/admin.sock".into()), TIMEOUT).await;
    assert_eq!(failure.exit, Exit::Unreachable);
    assert_eq!(
        failure.message,
        "agent unreachable: there is no socket at `/nowhere/admin.sock`"
    );
    assert!(failure.help.unwrap().contains("ratelimiter agent"));
}

#[tokio::test]
async fn explains_a_socket_without_listener() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("admin.sock");
    drop(UnixListener::bind(&path).unwrap());
    let failure = unreachable(Target::Socket(path), TIMEOUT).await;
    assert_eq!(failure.exit, Exit::Unreachable);
    assert!(failure.message.contains("nobody listens at"));
    assert!(failure.help.unwrap().contains("last policy stays in force"));
}

#[tokio::test]
async fn explains_a_closed_port() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let target = Target::from_url(&format!("http://127.0.0.1:{port}")).unwrap();
    let failure = unreachable(target, TIMEOUT).await;
    assert_eq!(failure.exit, Exit::Unreachable);
    assert!(
        failure
            .message
            .contains(&format!("nobody listens at `127.0.0.1:{port}`"))
    );
}

#[tokio::test]
async fn gives_up_on_a_silent_agent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = Target::from_url(&format!("http://127.0.0.1:{port}")).unwrap();
    let failure = unreachable(target, Duration::from_millis(50)).await;
    assert_eq!(failure.exit, Exit::Unreachable);
    assert!(
        failure.message.contains("within 0.05 s"),
        "{}",
        failure.message
    );
}

#[tokio::test]
async fn explains_an_answer_that_breaks_off() {
    let reply = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort".to_owned();
    let (outcome, _) = with_server(reply, Call::new(Method::GET, "/"), None).await;
    let failure = outcome.unwrap_err();
    assert_eq!(failure.exit, Exit::Unreachable);
    assert!(failure.message.contains("broke off its answer"));
}

#[tokio::test]
async fn says_when_an_answer_is_not_understood() {
    let reply = answer("200 OK", "", "[1]");
    let (outcome, _) = with_server(reply, Call::new(Method::GET, "/"), None).await;
    let failure = outcome.unwrap().json::<String>().unwrap_err();
    assert!(
        failure
            .message
            .starts_with("the agent's answer is not understood")
    );
}

#[test]
fn encodes_hostile_ids_as_one_segment() {
    assert_eq!(segment("plain-1.2_~"), "plain-1.2_~");
    assert_eq!(segment("../a?b#c%"), "..%2Fa%3Fb%23c%25");
    assert_eq!(segment(".."), "%2E%2E");
    assert_eq!(segment("\r\n\u{e9}"), "%0D%0A%C3%A9");
}

#[test]
fn reads_tokens_and_refuses_empty_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "  abc123\n").unwrap();
    assert_eq!(read_token(&path).unwrap(), "abc123");
    std::fs::write(&path, "\n").unwrap();
    assert!(
        read_token(&path)
            .unwrap_err()
            .message
            .contains("holds no token")
    );
    let missing = read_token(&folder.path().join("none")).unwrap_err();
    assert_eq!(missing.exit, Exit::Usage);
}
