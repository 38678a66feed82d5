//! Connections: an accept loop of our own, one path answered at once, everything else by tonic.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Either};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use tower::Service as _;

use super::message::RateLimitRequest;
use super::reflection;
use super::service::Service;
use super::unary::{self, Status, Unary};
use super::{Admit, service};
use crate::accept::{self, Stopped};
use crate::http::gate::bearer;

/// What every HTTP/2 connection begins with.
const PREFACE: usize = 24;
/// Path of the one question that is asked all the time.
const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// Bounds of the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; further ones are closed.
    pub connections: usize,
    /// Requests under way at once on one connection.
    pub streams: u32,
    /// Largest request, in bytes.
    pub request_bytes: usize,
    /// How long a peer may take to begin a connection, or to send a request it has begun.
    pub patience: Duration,
    /// How often a silent peer is asked whether it is still there.
    pub ping_every: Duration,
    /// How long open requests may take to end after shutdown.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            streams: 1_024,
            request_bytes: 64 * 1024,
            patience: Duration::from_secs(5),
            ping_every: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}

/// Why the gRPC service cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("describing the gRPC service: {0}")]
pub struct BuildError(#[from] tonic_reflection::server::Error);

type Answer = Response<Either<Unary, UnsyncBoxBody<Bytes, tonic::Status>>>;

/// Answers whatever comes over a connection.
#[derive(Clone)]
pub struct Server {
    service: Arc<Service>,
    admit: Admit,
    limits: Limits,
    reporter: HealthReporter,
    health: HealthServer<HealthService>,
    reflect: Arc<dyn Fn(Request<Incoming>) -> Answering + Send + Sync>,
}

/// An answer that is still being made.
type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

impl Server {
    /// A server for `service`, for callers whom `admit` lets in.
    pub fn new(service: Arc<Service>, admit: Admit, limits: Limits) -> Result<Self, BuildError> {
        let reporter = HealthReporter::new();
        let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let reflection = tonic_reflection::server::Builder::configure()
            .register_file_descriptor_set(reflection::files())
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        Ok(Self {
            service,
            admit,
            limits,
            reporter,
            health,
            reflect: by_reflection(reflection),
        })
    }

    /// Serves `listener` until `shutdown` resolves; then says `NOT_SERVING`, and lets open requests
    /// end.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        use tonic_health::ServingStatus::{NotServing, Serving};
        for name in ["", reflection::SERVICE] {
            self.reporter.set_service_status(name, Serving).await;
        }
        let reporter = self.reporter.clone();
        let ending = async move {
            shutdown.await;
            for name in ["", reflection::SERVICE] {
                reporter.set_service_status(name, NotServing).await;
            }
        };
        let (connections, drain) = (self.limits.connections, self.limits.drain);
        let converse = |stream, stopped| self.clone().converse(stream, stopped);
        accept::serve(listener, connections, drain, |_| (), converse, ending).await;
    }

    async fn converse(self, mut stream: TcpStream, stopped: Stopped) -> io::Result<()> {
        stream.set_nodelay(true)?;
        // hyper waits for ever for a connection's first bytes.
        let mut preface = [0; PREFACE];
        tokio::time::timeout(self.limits.patience, stream.read_exact(&mut preface)).await??;
        let stream = Begun {
            preface,
            at: 0,
            stream,
        };
        let limits = self.limits;
        let server = Arc::new(self);
        let service = service_fn(move |request| {
            let server = Arc::clone(&server);
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(16 * 1024)
            .keep_alive_interval(limits.ping_every)
            .keep_alive_timeout(limits.patience)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = accept::ended(stopped) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        ended.map_err(io::Error::other)
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        if path == SHOULD_RATE_LIMIT {
            return match self.should_rate_limit(request).await {
                Ok(response) => response,
                Err(status) => unary::refuse(&status),
            }
            .map(Either::Left);
        }
        // Health says nothing about anybody, and whoever balances load has no token.
        if path.starts_with("/grpc.health.v1.Health/") {
            return by_tonic(self.health.clone().call(request).await);
        }
        if let Err(status) = self.admits(request.headers()) {
            return unary::refuse(&status).map(Either::Left);
        }
        if path.starts_with("/grpc.reflection.v1.ServerReflection/") {
            return (self.reflect)(request).await;
        }
        let status = Status::new(unary::UNIMPLEMENTED, "there is no such method here");
        unary::refuse(&status).map(Either::Left)
    }

    async fn should_rate_limit(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Unary>, Status> {
        self.admits(request.headers())?;
        let request: RateLimitRequest = unary::read(
            request.into_body(),
            self.limits.request_bytes,
            self.limits.patience,
        )
        .await?;
        let answer = self.service.answer(&request).map_err(|refused| {
            let code = match refused {
                service::Refused::Overrides => unary::RESOURCE_EXHAUSTED,
                _ => unary::INVALID_ARGUMENT,
            };
            Status::new(code, refused.to_string())
        })?;
        Ok(unary::answer(&answer))
    }

    fn admits(&self, headers: &HeaderMap) -> Result<(), Status> {
        // A header that is no bearer token counts as none: where no credential is asked for, what a
        // proxy passes on from its client says nothing.
        let token = bearer(headers).ok().flatten();
        if (self.admit)(token) {
            return Ok(());
        }
        Err(Status::new(
            unary::UNAUTHENTICATED,
            if token.is_some() {
                "the credential is not known or may not check"
            } else {
                "send a credential with the right `check`: `authorization: Bearer TOKEN`"
            },
        ))
    }
}

fn by_tonic(answered: Result<Response<tonic::body::Body>, Infallible>) -> Answer {
    answered
        .unwrap_or_else(|never| match never {})
        .map(|body| Either::Right(body.boxed_unsync()))
}

/// Hides the type of the reflection service, which has no name.
fn by_reflection<T: ServerReflection>(
    reflection: ServerReflectionServer<T>,
) -> Arc<dyn Fn(Request<Incoming>) -> Answering + Send + Sync> {
    Arc::new(move |request| {
        let mut reflection = reflection.clone();
        Box::pin(async move { by_tonic(reflection.call(request).await) })
    })
}

/// A stream whose first bytes were read already.
struct Begun {
    preface: [u8; PREFACE],
    at: usize,
    stream: TcpStream,
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = self.preface.get(self.at..).unwrap_or(&[]);
        if rest.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let now = rest.len().min(buf.remaining());
        buf.put_slice(rest.get(..now).unwrap_or(&[]));
        self.at += now;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
