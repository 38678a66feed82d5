//! The control thread: owns the [`Core`] and does one thing at a time to it.
//!
//! A thread and not a task, because everything it does blocks: the store on a disk, the data plane
//! on system calls.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;

use super::core::Core;
use crate::admin::{AdminError, Result};

/// Jobs that may wait; more are refused.
const QUEUE: usize = 256;
/// Longest time between two looks at the deadlines.
const TICK: Duration = Duration::from_millis(200);

type Job = Box<dyn FnOnce(&mut Core) + Send>;

/// Hands jobs to the control thread. Dropping the last one ends the thread.
#[derive(Clone, Debug)]
pub(super) struct Control {
    jobs: SyncSender<Job>,
}

impl Control {
    /// Starts the thread.
    pub(super) fn start(core: Core) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (jobs, queue) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || run(core, &queue))?;
        Ok((Self { jobs }, thread))
    }

    /// Does `job` with the core and returns its result.
    pub(super) async fn with<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |core| {
            // A caller that went away does not undo what was done.
            let _gone = answer.send(job(core)).is_err();
        });
        self.jobs
            .try_send(job)
            .map_err(|_| AdminError::Unavailable(format!("{QUEUE} changes wait already")))?;
        answered
            .await
            .map_err(|_| AdminError::Unavailable("the agent is stopping".to_owned()))?
    }
}

impl Control {
    /// Does `job` with the core soon, if there is room in the queue; nobody waits for it.
    pub(super) fn post(&self, job: impl FnOnce(&mut Core) + Send + 'static) -> bool {
        self.jobs.try_send(Box::new(job)).is_ok()
    }
}

fn run(mut core: Core, queue: &Receiver<Job>) {
    loop {
        match queue.recv_timeout(TICK) {
            Ok(job) => job(&mut core),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        core.tick();
    }
}
