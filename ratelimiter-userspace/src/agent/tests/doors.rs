//! Every door is locked (R36), slow clients are closed (R39), the description is whole.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{locked_settings, settings, start, token};
use crate::config::Right;
use crate::http::gate::Access;
use crate::http::routes::ROUTES;

/// A path of a route with every parameter filled in.
fn example(path: &str) -> String {
    path.replace("{client_id}", "alice")
        .replace("{segment}", "free")
        .replace("{interface}", "eth0")
        .replace("{ip}", "192.0.2.1")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_door_is_locked() {
    let agent = start(locked_settings()).await;
    let mut locked = 0;
    for route in ROUTES {
        let Access::Needs(right) = route.access else {
            assert!(!route.path.starts_with("/v1/"), "{} is open", route.path);
            continue;
        };
        locked += 1;
        let path = example(route.path);
        let ask = async |name: Option<&str>| {
            let bearer = name.map(|name| format!("Bearer {name}"));
            let mut headers = vec![("content-type", "application/json")];
            if let Some(bearer) = &bearer {
                headers.push(("authorization", bearer));
            }
            agent
                .send(route.method.clone(), &path, &headers, "{}")
                .await
        };
        ask(None).await.problem(401);
        ask(Some("wrong-wrong-wrong-wrong")).await.problem(401);
        ask(Some("")).await.problem(401);
        assert!(
            ask(Some(&token("late")))
                .await
                .problem(401)
                .contains("expired")
        );
        let reader = ask(Some(&token("reader"))).await;
        let writer = ask(Some(&token("writer"))).await;
        match right {
            Right::Read => assert_ne!(reader.status, StatusCode::FORBIDDEN),
            _ => assert!(reader.problem(403).contains("`reader` lacks the right")),
        }
        if matches!(right, Right::Admin | Right::Health) {
            writer.problem(403);
        } else {
            assert!(
                !matches!(writer.status.as_u16(), 401 | 403),
                "{path}: {writer:?}"
            );
        }
    }
    assert!(locked >= 30, "{locked}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_hosts_and_origins_are_refused() {
    let mut settings = settings();
    settings.admin.allowed_hosts = vec!["Limits.Example".to_owned()];
    let agent = start(settings).await;
    let ask =
        async |headers: &[(&str, &str)]| agent.send(Method::GET, "/v1/clients", headers, "").await;
    for host in [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil:9740",
    ] {
        ask(&[("host", host)]).await.problem(403);
    }
    for host in [
        "localhost",
        "localhost:9740",
        "127.0.0.1:9740",
        "[::1]:9740",
        "limits.example:80",
    ] {
        assert_eq!(
            ask(&[("host", host)]).await.status,
            StatusCode::OK,
            "{host}"
        );
    }
    let own = agent.address.to_string();
    let foreign = ask(&[("host", &own), ("origin", "http://evil.example")]).await;
    foreign.problem(403);
    ask(&[("host", &own), ("origin", "null")])
        .await
        .problem(403);
    let same = format!("http://{own}");
    assert_eq!(
        ask(&[("host", &own), ("origin", &same)]).await.status,
        StatusCode::OK
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_closed_and_others_are_served() {
    let mut settings = settings();
    settings.admin.header_timeout_ms = 400;
    settings.admin.max_connections = 32;
    let agent = start(settings).await;
    let begin = crate::clock::instant();
    let mut slow = Vec::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        if n % 2 == 0 {
            stream
                .write_all(b"GET /livez HTTP/1.1\r\nHo")
                .await
                .unwrap();
        }
        slow.push(stream);
        if n % 20 == 0 {
            assert_eq!(agent.get("/livez").await.status, StatusCode::OK);
        }
    }
    for mut stream in slow {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest));
        // A reset is a close as well.
        let _reset = read.await.expect("closed in time").is_err();
    }
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(agent.get("/livez").await.status, StatusCode::OK);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_has_every_route_and_no_dangling_reference() {
    let agent = start(settings()).await;
    let document = agent.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    for route in ROUTES {
        let method = route.method.as_str().to_ascii_lowercase();
        let operation = &document["paths"][route.path][&method];
        let responses = operation["responses"].as_object().expect(route.path);
        assert!(responses.contains_key("200"), "{}", route.path);
        assert!(responses.values().all(|r| r["description"].is_string()));
    }
    let text = document.to_string();
    let mut references = 0;
    for part in text.split("\"$ref\":\"#").skip(1) {
        let pointer = part.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer} is missing");
        references += 1;
    }
    assert!(references > 100);
    let page = agent.get("/docs").await;
    assert!(page.text.contains("/v1/clients/{client_id}/limit"));
    assert!(!page.text.contains("http://www") && !page.text.contains("https://"));
    agent.stop().await;
}
