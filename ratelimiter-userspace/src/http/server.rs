//! The accept loop: bounded connections, slow clients closed, no descriptor exhaustion.
//!
//! axum's stock server never closes half-open connections; this one has a time limit for the head
//! and for a peer that does not read. Where there are too many connections, the one that has been
//! idle longest makes room, so that silent connections displace each other and not the clients
//! that talk.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tower::ServiceExt;

use super::gate::Peer;
use super::io::Impatient;
use super::listen::{self, Listener};
use super::stats::HttpStats;
use crate::clock;

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

/// How long nothing is accepted after the process ran out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `router` on `listener` until `shutdown` resolves, then lets open requests end.
pub async fn serve(
    listener: Listener,
    router: Router,
    limits: Limits,
    stats: Arc<HttpStats>,
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
            accepted = accept(&listener) => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // EMFILE and the like: the listener itself is fine, and the connection waits in
                // the backlog. A connection that was reset meanwhile needs no pause but survives
                // one.
                stats.refused.fetch_add(1, Ordering::Relaxed);
                connections.evict_idlest(None);
                tracing::debug!(%error, "no connection accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        stats.accepted.fetch_add(1, Ordering::Relaxed);
        if !connections.make_room(&peer, limits) {
            stats.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let ticket = connections.ticket(&peer, &stats);
        let id = ticket.id;
        let serving = serve_one(
            stream,
            peer,
            router.clone(),
            limits,
            ticket,
            stopped.clone(),
        );
        let handle = tasks.spawn(serving);
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

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn accept(listener: &Listener) -> io::Result<(Box<dyn Stream>, Peer)> {
    match listener {
        Listener::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream), listen::peer(address)))
        }
        Listener::Unix(listener, _) => {
            let (stream, _) = listener.accept().await?;
            Ok((Box::new(stream), Peer::Socket))
        }
    }
}

async fn serve_one(
    stream: Box<dyn Stream>,
    peer: Peer,
    router: Router,
    limits: Limits,
    ticket: Ticket,
    mut stopped: watch::Receiver<bool>,
) {
    let ticket = Arc::new(ticket);
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, ticket, peer) = (router.clone(), Arc::clone(&ticket), peer.clone());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            ticket.busy(true);
            let response = router.oneshot(request).await;
            ticket.busy(false);
            Ok::<_, Infallible>(response.unwrap_or_else(|never| match never {}))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(64 * 1024)
        .keep_alive(true)
        .serve_connection(
            TokioIo::new(Impatient::new(stream, limits.write_timeout)),
            service,
        );
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { let _ended = stopped.wait_for(|stopped| *stopped).await.is_ok(); } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%error, "connection ended");
    }
}

/// The connections that are open.
#[derive(Debug, Default)]
struct Connections {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

#[derive(Debug)]
struct Open {
    peer: Option<IpAddr>,
    busy: bool,
    since: Instant,
    task: Option<AbortHandle>,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for a connection of `peer`, after closing an idle one if need be.
    fn make_room(&self, peer: &Peer, limits: Limits) -> bool {
        let address = capped(peer);
        if let Some(address) = address {
            let theirs = self
                .lock()
                .values()
                .filter(|open| open.peer == Some(address))
                .count();
            if theirs >= limits.connections_per_peer && !self.evict_idlest(Some(address)) {
                return false;
            }
        }
        self.lock().len() < limits.connections || self.evict_idlest(None)
    }

    /// Closes the connection that has been idle longest, of `peer` alone if it is given. Returns
    /// whether there was one.
    fn evict_idlest(&self, peer: Option<IpAddr>) -> bool {
        let mut open = self.lock();
        let idlest = open
            .iter()
            .filter(|(_, open)| !open.busy && open.task.is_some())
            .filter(|(_, open)| peer.is_none() || open.peer == peer)
            .min_by_key(|(_, open)| open.since)
            .map(|(id, _)| *id);
        let Some(found) = idlest.and_then(|id| open.remove(&id)) else {
            return false;
        };
        if let Some(task) = found.task {
            task.abort();
        }
        true
    }

    fn ticket(self: &Arc<Self>, peer: &Peer, stats: &Arc<HttpStats>) -> Ticket {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(
            id,
            Open {
                peer: capped(peer),
                busy: false,
                since: clock::instant(),
                task: None,
            },
        );
        stats.open.fetch_add(1, Ordering::Relaxed);
        Ticket {
            id,
            connections: Arc::clone(self),
            stats: Arc::clone(stats),
        }
    }

    fn started(&self, id: u64, task: AbortHandle) {
        if let Some(open) = self.lock().get_mut(&id) {
            open.task = Some(task);
        }
    }
}

/// The address a peer's connections are counted by: loopback is not.
fn capped(peer: &Peer) -> Option<IpAddr> {
    match peer {
        Peer::Tcp { address, .. } => {
            Some(address.ip().to_canonical()).filter(|address| !address.is_loopback())
        }
        Peer::Socket => None,
    }
}

/// A place among the open connections, given back when dropped.
struct Ticket {
    id: u64,
    connections: Arc<Connections>,
    stats: Arc<HttpStats>,
}

impl Ticket {
    fn busy(&self, busy: bool) {
        if let Some(open) = self.connections.lock().get_mut(&self.id) {
            open.busy = busy;
            open.since = clock::instant();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
        self.stats.open.fetch_sub(1, Ordering::Relaxed);
    }
}
