//! The accept loop: bounded connections, slow clients closed, no descriptor exhaustion.
//!
//! axum's stock server never closes half-open connections; this one has a time limit for the head
//! and for a peer that does not read. Where there are too many connections, the one that has been
//! idle longest makes room, so that silent connections displace each other and not the clients
//! that talk.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::connections::{ConnectionStats, Connections, Ticket};
use super::gate::Peer;
use super::io::Impatient;
use super::listen::{self, Listener};
use super::workers::Workers;
use crate::accept::{self, Stopped};

/// Bounds of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections of one remote address at once. Loopback is bounded by `connections` alone.
    pub connections_per_peer: usize,
    /// How long a client may take to send its request head, or stay idle.
    pub header_timeout: Duration,
    /// How long a client may take to read anything.
    pub write_timeout: Duration,
    /// How long open requests may take to end after shutdown.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            connections_per_peer: 64,
            header_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(8),
            drain: Duration::from_secs(5),
        }
    }
}

/// What answers the requests of connections.
pub trait Answers: Clone + Send + Sync + 'static {
    /// Body of an answer.
    type Body: hyper::body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static;

    /// Who is at the other end of a new TCP connection.
    fn peer(&self, address: SocketAddr) -> Peer;

    /// Answers one request.
    fn answer(
        &self,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

impl Answers for Router {
    type Body = Body;

    fn peer(&self, address: SocketAddr) -> Peer {
        listen::peer(address)
    }

    async fn answer(&self, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        let response = self.clone().oneshot(request).await;
        response.unwrap_or_else(|never| match never {})
    }
}

/// Serves `answers` on `listener` until `shutdown` resolves, then lets open requests end. With
/// `workers` each connection is served by one of their threads, else by the current runtime.
pub async fn serve(
    listener: Listener,
    answers: impl Answers,
    limits: Limits,
    stats: Arc<ConnectionStats>,
    workers: Option<Arc<Workers>>,
    shutdown: impl Future<Output = ()>,
) {
    let connections = Arc::new(Connections::default());
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            accepted = next(&listener) => accepted,
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // EMFILE and the like: the listener itself is fine, and the connection waits in
                // the backlog. A connection that was reset meanwhile needs no pause but survives
                // one.
                stats.refused.fetch_add(1, Ordering::Relaxed);
                connections.evict_idlest();
                tracing::debug!(%error, "no connection accepted");
                tokio::time::sleep(accept::PAUSE).await;
                continue;
            }
        };
        stats.accepted.fetch_add(1, Ordering::Relaxed);
        let address = match &accepted {
            Accepted::Tcp(_, address) => Some(address.ip()),
            Accepted::Unix(_) => None,
        };
        let Some(ticket) = connections.admit(address, limits, &stats) else {
            stats.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let id = ticket.id;
        let serving = serve_accepted(accepted, answers.clone(), limits, ticket, stopped.clone());
        let handle = match workers.as_deref().map(Workers::least_loaded) {
            Some(worker) => {
                let load = worker.load();
                let loaded = async move {
                    serving.await;
                    drop(load);
                };
                tasks.spawn_on(loaded, worker.handle())
            }
            None => tasks.spawn(serving),
        };
        connections.started(id, handle);
    }
    drop(listener);
    // Receivers hold the channel open as long as they need it.
    stop.send_replace(true);
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain, drained).await.is_err() {
        tracing::warn!("requests still open after the drain time are cut off");
    }
}

/// A connection that belongs to no runtime yet.
enum Accepted {
    Tcp(std::net::TcpStream, SocketAddr),
    Unix(std::os::unix::net::UnixStream),
}

async fn next(listener: &Listener) -> io::Result<Accepted> {
    match listener {
        Listener::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Accepted::Tcp(stream.into_std()?, address))
        }
        Listener::Unix(listener, _) => {
            let (stream, _) = listener.accept().await?;
            Ok(Accepted::Unix(stream.into_std()?))
        }
    }
}

async fn serve_accepted(
    accepted: Accepted,
    answers: impl Answers,
    limits: Limits,
    ticket: Ticket,
    stopped: Stopped,
) {
    // From here on the connection belongs to the runtime that serves it.
    match accepted {
        Accepted::Tcp(stream, address) => {
            let peer = answers.peer(address);
            if let Ok(stream) = TcpStream::from_std(stream) {
                serve_one(stream, peer, answers, limits, ticket, stopped).await;
            }
        }
        Accepted::Unix(stream) => {
            if let Ok(stream) = UnixStream::from_std(stream) {
                serve_one(stream, Peer::Socket, answers, limits, ticket, stopped).await;
            }
        }
    }
}

async fn serve_one(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Peer,
    answers: impl Answers,
    limits: Limits,
    ticket: Ticket,
    stopped: Stopped,
) {
    let served = Arc::new((answers, ticket, peer));
    let service = service_fn(move |request: Request<Incoming>| {
        let served = Arc::clone(&served);
        async move {
            let (answers, ticket, peer) = &*served;
            ticket.busy(true);
            let response = answers.answer(peer, request).await;
            ticket.busy(false);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(64 * 1024)
        .keep_alive(true)
        .pipeline_flush(true)
        .serve_connection(
            TokioIo::new(Impatient::new(stream, limits.write_timeout)),
            service,
        );
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = accept::ended(stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%error, "connection ended");
    }
}
