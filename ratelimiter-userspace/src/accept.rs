//! The accept loop of listeners whose connections are few and long: gRPC and the Redis protocol.
//! HTTP has its own, which makes room by closing idle connections.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// How long nothing is accepted after the process ran out of descriptors or memory.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// Becomes true when connections shall end.
pub(crate) type Stopped = watch::Receiver<bool>;

/// Resolves when connections shall end.
pub(crate) async fn ended(mut stopped: Stopped) {
    // Nobody left to say so means the same.
    let _said = stopped.wait_for(|stopped| *stopped).await.is_ok();
}

/// Has `converse` serve at most `connections` at once until `shutdown` resolves; then says so to
/// them and waits `drain` for them to end. Whoever finds no place is handed to `refuse` and closed.
pub(crate) async fn serve<C>(
    listener: TcpListener,
    connections: usize,
    drain: Duration,
    refuse: impl Fn(&TcpStream),
    converse: impl Fn(TcpStream, Stopped) -> C,
    shutdown: impl Future<Output = ()>,
) where
    C: Future<Output = io::Result<()>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(connections));
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // The listener itself is fine, and the connection waits in the backlog.
                tracing::debug!(%error, "no connection accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            tracing::debug!("too many connections: one is closed");
            refuse(&stream);
            continue;
        };
        let conversation = converse(stream, stopped.clone());
        tasks.spawn(async move {
            if let Err(error) = conversation.await {
                tracing::trace!(%error, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    stop.send_replace(true);
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(drain, drained).await.is_err() {
        tracing::warn!("requests still open after the drain time are cut off");
    }
}
