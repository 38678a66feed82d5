//! A small HTTP client for the agent's admin API: over its Unix socket, or over TCP.
//!
//! One request per connection, a bound on time and size, and every failure as a sentence with an
//! exit code: unreachable, permission, usage, failed. Knows nothing of the API's types.

mod problem;
mod target;
mod tls;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, HOST, IF_MATCH, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::exit::{Exit, Failure};
use crate::admin::SSH_PEER_HEADER;
pub use target::{CheckConnectionArgs, ConnectionArgs, DEFAULT_SOCKET, Target};
pub use tls::Tls;

/// Largest answer read, in bytes: a list of a million clients fits.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A request to the agent.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    body: Option<Bytes>,
    if_match: Option<String>,
}

impl Call {
    /// A request for `path`, which starts with `/` and is already encoded (see [`segment`]).
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            body: None,
            if_match: None,
        }
    }

    /// Adds a query parameter.
    #[must_use]
    pub fn query(mut self, name: &str, value: impl Into<String>) -> Self {
        self.query.push((name.to_owned(), value.into()));
        self
    }

    /// Adds a query parameter if there is a value.
    #[must_use]
    pub fn query_opt(self, name: &str, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    /// Sets a JSON body.
    pub fn json<T: Serialize>(mut self, body: &T) -> Result<Self, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|e| Failure::new(format!("the request cannot be written as JSON: {e}")))?;
        self.body = Some(Bytes::from(body));
        Ok(self)
    }

    /// Applies only if the object's `ETag` is still `etag`.
    #[must_use]
    pub fn if_match(mut self, etag: Option<String>) -> Self {
        self.if_match = etag;
        self
    }

    fn target(&self) -> String {
        let mut target = self.path.clone();
        for (n, (name, value)) in self.query.iter().enumerate() {
            target.push(if n == 0 { '?' } else { '&' });
            target.push_str(&segment(name));
            target.push('=');
            target.push_str(&segment(value));
        }
        target
    }
}

/// Percent-encodes everything but unreserved characters, so that a client id is one path segment.
pub fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    // A segment of dots would be a step in the path.
    match encoded.as_str() {
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        _ => encoded,
    }
}

/// A successful answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status, 2xx.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body as received.
    pub body: Bytes,
}

impl Answer {
    /// The body as `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|e| {
            Failure::new(format!(
                "the agent's answer is not understood: {e}"
            ))
            .with_help("agent and command line are perhaps of different versions; compare `ratelimiter --version` with `ratelimiter status`")
        })
    }

    /// The object's `ETag`, if the agent sent one.
    pub fn etag(&self) -> Option<String> {
        Some(self.headers.get(ETAG)?.to_str().ok()?.to_owned())
    }
}

/// Speaks to one agent.
#[derive(Clone, Debug)]
pub struct Client {
    target: Target,
    token: Option<String>,
    timeout: Duration,
    ssh_peer: Option<IpAddr>,
    tls: Option<Tls>,
}

impl Client {
    /// A client of `target` that presents `token`, if any.
    pub fn new(target: Target, token: Option<String>, timeout: Duration) -> Self {
        Self {
            target,
            token,
            timeout,
            ssh_peer: None,
            tls: None,
        }
    }

    /// The same over TLS, if there is any.
    #[must_use]
    pub fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }

    /// The same, telling the agent from where its user is logged in: what a change must not cut off.
    #[must_use]
    pub fn with_ssh_peer(self, ssh_peer: Option<IpAddr>) -> Self {
        Self { ssh_peer, ..self }
    }

    /// Where the agent is looked for.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Reads `path` as `T`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(Call::new(Method::GET, path)).await?.json()
    }

    /// Sends `call` and returns the answer, or the failure the agent or the transport reported.
    pub async fn send(&self, call: Call) -> Result<Answer, Failure> {
        let answer = self.send_any(call).await?;
        self.accept(answer)
    }

    /// Passes a successful answer on, and turns any other into the failure it stands for.
    pub fn accept(&self, answer: Answer) -> Result<Answer, Failure> {
        if answer.status.is_success() {
            Ok(answer)
        } else {
            Err(problem::failure(&self.target, &answer))
        }
    }

    /// As [`Self::send`], but any status is an answer: `readyz` says 503 and has a body to show.
    pub async fn send_any(&self, call: Call) -> Result<Answer, Failure> {
        match tokio::time::timeout(self.timeout, self.exchange(call)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(Failure::new(format!(
                "agent unreachable: no answer from {} within {} s",
                self.target,
                self.timeout.as_secs_f64()
            ))
            .with_exit(Exit::Unreachable)
            .with_help("the process may hang or be stopped: look at `systemctl status ratelimiter`; --timeout waits longer")),
        }
    }

    async fn exchange(&self, call: Call) -> Result<Answer, Failure> {
        match &self.target {
            Target::Socket(path) => {
                let stream = UnixStream::connect(path)
                    .await
                    .map_err(|e| target::socket_failure(path, &e))?;
                self.talk(stream, "localhost", call).await
            }
            Target::Tcp { host, port, .. } => {
                let authority = self.target.authority();
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(|e| target::tcp_failure(&authority, &e))?;
                match &self.tls {
                    Some(tls) => {
                        let stream = tls.shake(host, stream).await?;
                        self.talk(stream, &authority, call).await
                    }
                    None => self.talk(stream, &authority, call).await,
                }
            }
        }
    }

    async fn talk<S>(&self, stream: S, host: &str, call: Call) -> Result<Answer, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let lost = |what: &str, e: &dyn std::fmt::Display| {
            Failure::new(format!("agent unreachable: {} {what}: {e}", self.target))
                .with_exit(Exit::Unreachable)
                .with_help("the agent may have stopped in between; a change may or may not have been made, `ratelimiter changes` tells")
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| lost("closed the connection", &e))?;
        // The connection ends when the sender is dropped or the runtime stops.
        let connection = tokio::spawn(connection);
        let request = self.request(host, call)?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|e| lost("did not answer", &e))?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|e| lost("broke off its answer", &e))?
            .to_bytes();
        connection.abort();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    fn request(&self, host: &str, call: Call) -> Result<Request<Full<Bytes>>, Failure> {
        let mut builder = Request::builder()
            .method(call.method.clone())
            .uri(call.target())
            .header(HOST, host)
            .header(ACCEPT, "application/json")
            .header(
                USER_AGENT,
                concat!("ratelimiter-cli/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(token) = &self.token {
            builder = builder.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(peer) = self.ssh_peer {
            builder = builder.header(SSH_PEER_HEADER, peer.to_string());
        }
        if let Some(etag) = &call.if_match {
            builder = builder.header(IF_MATCH, etag);
        }
        if call.body.is_some() {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        builder
            .body(Full::new(call.body.unwrap_or_default()))
            .map_err(|e| Failure::usage(format!("the request cannot be made: {e}")))
    }
}

/// Reads a bearer token from `path`: one line of visible ASCII.
pub fn read_token(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        let failure = Failure::usage(format!(
            "the token file `{}` cannot be read: {e}",
            path.display()
        ));
        if e.kind() == std::io::ErrorKind::PermissionDenied {
            failure.with_exit(Exit::Permission)
        } else {
            failure
        }
    })?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::usage(format!(
            "the token file `{}` holds no token; it must be one line of visible ASCII characters",
            path.display()
        )));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests;
