//! Starts an agent and speaks HTTP to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::agent::{Listeners, Loader, Options, bind, bind_check, serve};
use crate::config::settings::Credential;
use crate::config::{Listen, Right, Secret, Settings};
use crate::dataplane::FakeDataPlane;
use crate::store::MemoryStore;

/// A running agent.
pub(super) struct Agent {
    pub(super) address: SocketAddr,
    /// Of the check API.
    pub(super) check: SocketAddr,
    pub(super) plane: Arc<FakeDataPlane>,
    pub(super) store: Arc<MemoryStore>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<anyhow::Result<()>>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// Checks that this is a problem of `status` and returns its detail.
    #[track_caller]
    pub(super) fn problem(&self, status: u16) -> String {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        for member in ["type", "title", "detail"] {
            assert!(!problem[member].as_str().unwrap().is_empty(), "{problem}");
        }
        problem["detail"].as_str().unwrap().to_owned()
    }
}

/// Settings of a test: enforcing, no socket, no directories.
pub(super) fn settings() -> Settings {
    let mut settings = Settings {
        enforce: true,
        ..Settings::default()
    };
    settings.admin.listen = Listen::Off;
    settings.admin.socket = String::new();
    settings.safety.drain_ms = 1_000;
    settings
}

/// The same with credentials `reader`, `writer`, `boss` and `late`, which has expired.
pub(super) fn locked_settings() -> Settings {
    let mut settings = settings();
    for (name, right, expires_unix_ms) in [
        ("reader", Right::Read, None),
        ("writer", Right::Write, None),
        ("boss", Right::Admin, None),
        ("late", Right::Admin, Some(1)),
    ] {
        settings.credentials.insert(
            name.to_owned(),
            Credential {
                token: Some(Secret::new(token(name))),
                token_file: None,
                rights: vec![right],
                expires_unix_ms,
            },
        );
    }
    settings
}

/// The token of a credential of [`locked_settings`].
pub(super) fn token(name: &str) -> String {
    format!("0123456789-{name}-secret")
}

pub(super) async fn start(settings: Settings) -> Agent {
    start_on(settings, Arc::default(), Arc::default(), None).await
}

pub(super) async fn start_on(
    settings: Settings,
    plane: Arc<FakeDataPlane>,
    store: Arc<MemoryStore>,
    load: Option<Loader>,
) -> Agent {
    let listener = bind("127.0.0.1:0".parse().unwrap(), &settings)
        .await
        .unwrap();
    let address = listener.address().unwrap();
    let checking = bind_check("127.0.0.1:0".parse().unwrap(), &settings)
        .await
        .unwrap();
    let check = checking.address().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let options = Options {
        settings,
        load,
        ..Options::default()
    };
    let task = tokio::spawn(serve(
        options,
        Listeners {
            admin: vec![listener],
            check: Some(checking),
            ..Listeners::default()
        },
        Arc::clone(&plane) as _,
        Arc::clone(&store) as _,
        async move { drop(stopped.await) },
    ));
    let agent = Agent {
        address,
        check,
        plane,
        store,
        stop: Some(stop),
        task,
    };
    agent.until("/startupz", StatusCode::OK).await;
    agent
}

impl Agent {
    /// Stops the agent as SIGTERM does.
    pub(super) async fn stop(mut self) -> (Arc<FakeDataPlane>, Arc<MemoryStore>) {
        self.stop.take();
        self.task.await.unwrap().unwrap();
        (self.plane, self.store)
    }

    /// Asks until `path` answers `status`; fails after 3 s.
    pub(super) async fn until(&self, path: &str, status: StatusCode) {
        let mut last = None;
        for _ in 0..60 {
            let answer = self.get(path).await;
            if answer.status == status {
                return;
            }
            last = Some(answer);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{path} never answered {status}: {last:?}");
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub(super) async fn put(&self, path: &str, body: &str) -> Answer {
        self.send(
            Method::PUT,
            path,
            &[("content-type", "application/json")],
            body,
        )
        .await
    }

    pub(super) async fn post(&self, path: &str, body: &str) -> Answer {
        self.send(
            Method::POST,
            path,
            &[("content-type", "application/json")],
            body,
        )
        .await
    }

    pub(super) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], "").await
    }

    /// Sends a request; `host` is added unless there is one.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        send_to(self.address, method, path, headers, body).await
    }

    /// Asks the check API.
    pub(super) async fn check(&self, path: &str, body: &str) -> Answer {
        let headers = [("content-type", "application/json")];
        send_to(self.check, Method::POST, path, &headers, body).await
    }

    /// Asks the check API whatever may be asked.
    pub(super) async fn ask_check(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        send_to(self.check, method, path, headers, body).await
    }
}

async fn send_to(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", address.to_string());
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    driver.abort();
    Answer {
        status: parts.status,
        headers: parts.headers,
        text: String::from_utf8(bytes.to_vec()).unwrap(),
    }
}
