//! Connections: bounded in number, in memory, and in how long a slow peer is waited for.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::reader::MAX_COMMAND_BYTES;
use super::session::Session;
use super::{Admit, Throttle};

/// Bytes of a connection's read buffer while its commands are short.
const SMALL_BUFFER: usize = 16 * 1024;
/// How long nothing is accepted after the process ran out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bounds of the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; further ones are told so and closed.
    pub connections: usize,
    /// How long a command may take from its first byte to its last.
    pub command_timeout: Duration,
    /// How long a peer may take to read its replies.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            command_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(8),
        }
    }
}

/// Serves `listener` until `shutdown` resolves; commands that were read are answered.
pub async fn serve(
    listener: TcpListener,
    shared: Arc<Throttle>,
    admit: Admit,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let room = Arc::new(Semaphore::new(limits.connections));
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
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            // Best effort, and never waited for.
            let _told = stream.try_write(b"-ERR max number of clients reached\r\n");
            continue;
        };
        let session = Session::new(Arc::clone(&shared), Some(Arc::clone(&admit)));
        let mut stopped = stopped.clone();
        tasks.spawn(async move {
            let stop = async move {
                let _ended = stopped.wait_for(|stopped| *stopped).await.is_ok();
            };
            if let Err(error) = converse(stream, session, limits, stop).await {
                tracing::trace!(%error, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    stop.send_replace(true);
    while tasks.join_next().await.is_some() {}
}

async fn converse(
    mut stream: TcpStream,
    mut session: Session,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::with_capacity(SMALL_BUFFER);
    let mut out = Vec::new();
    // By when the command that has begun must be whole.
    let mut deadline: Option<Instant> = None;
    let mut stop = std::pin::pin!(stop);
    loop {
        let read = async {
            let read = stream.read_buf(&mut input);
            match deadline {
                Some(deadline) => timeout_at(deadline, read).await?,
                None => read.await,
            }
        };
        let read = tokio::select! {
            biased;
            read = read => read?,
            () = &mut stop => return Ok(()),
        };
        if read == 0 {
            return Ok(());
        }
        let served = session.serve(&input, &mut out);
        if !out.is_empty() {
            let write = stream.write_all(&out);
            tokio::time::timeout(limits.write_timeout, write).await??;
        }
        if served.close {
            return stream.shutdown().await;
        }
        if served.taken > 0 {
            deadline = None;
            input.drain(..served.taken);
        }
        if input.is_empty() {
            deadline = None;
        } else if deadline.is_none() {
            deadline = Instant::now().checked_add(limits.command_timeout);
        }
        make_room(&mut input);
        out.clear();
        out.shrink_to(MAX_COMMAND_BYTES);
    }
}

/// Leaves room to read into: a small buffer for short commands, and never more than a whole command
/// takes, for a full buffer always holds one.
fn make_room(input: &mut Vec<u8>) {
    if input.is_empty() {
        input.shrink_to(SMALL_BUFFER);
    } else if input.len() == input.capacity() {
        let more = MAX_COMMAND_BYTES.saturating_sub(input.len());
        input.reserve_exact(more.min(input.len().max(1)));
    }
}
