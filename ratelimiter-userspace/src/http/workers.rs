//! Threads that serve connections: each a runtime of its own, so that a request is read, decided
//! and answered on one thread.
//!
//! One acceptor deals connections to the least loaded thread. (`SO_REUSEPORT` would deal by hash
//! and pile a few long-lived connections up.)

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Most threads.
const MAX_THREADS: usize = 64;

/// The threads; they end when this is dropped.
pub struct Workers {
    first: Worker,
    rest: Vec<Worker>,
}

/// One thread.
pub struct Worker {
    handle: Handle,
    load: Arc<AtomicUsize>,
    _stop: oneshot::Sender<()>,
}

/// A connection that a thread serves.
pub(super) struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts a thread per processor.
    pub fn start() -> std::io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            first: Worker::start(0)?,
            rest: (1..threads.min(MAX_THREADS))
                .map(Worker::start)
                .collect::<Result<_, _>>()?,
        })
    }

    /// The thread that serves the fewest connections.
    pub(super) fn least_loaded(&self) -> &Worker {
        let load = |worker: &Worker| worker.load.load(Ordering::Relaxed);
        self.rest.iter().fold(&self.first, |least, worker| {
            if load(worker) < load(least) {
                worker
            } else {
                least
            }
        })
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers")
            .field("threads", &(1 + self.rest.len()))
            .finish_non_exhaustive()
    }
}

impl Worker {
    fn start(number: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name(format!("check-{number}"))
            .spawn(move || {
                // The sender is only ever dropped.
                let _dropped = runtime.block_on(stopped);
            })?;
        Ok(Self {
            handle,
            load: Arc::default(),
            _stop: stop,
        })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(super) fn load(&self) -> Load {
        self.load.fetch_add(1, Ordering::Relaxed);
        Load(Arc::clone(&self.load))
    }
}
