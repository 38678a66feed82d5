//! Connections: bounded in number, in memory, and in how long a slow peer is waited for.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout_at};

use super::reader::MAX_COMMAND_BYTES;
use super::session::Session;
use super::{Admit, Throttle};
use crate::accept;

/// Bytes of a connection's read buffer while its commands are short.
const SMALL_BUFFER: usize = 16 * 1024;

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
    let refuse = |stream: &TcpStream| {
        // Best effort, and never waited for.
        let _told = stream.try_write(b"-ERR max number of clients reached\r\n");
    };
    let converse = |stream, stopped| {
        let session = Session::new(Arc::clone(&shared), Some(Arc::clone(&admit)));
        converse(stream, session, limits, accept::ended(stopped))
    };
    // A reply that was begun may take as long as its peer may.
    let drain = limits.write_timeout;
    accept::serve(
        listener,
        limits.connections,
        drain,
        refuse,
        converse,
        shutdown,
    )
    .await;
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
