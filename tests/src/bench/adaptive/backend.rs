//! A real backend: a TCP server that works on so many requests at once, and queues the others.
//!
//! A request is eight bytes, and so is its answer: the same ones, with the top bit set where it was
//! refused because the queue is full.
use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ratelimiter_userspace::clock;

use crate::OrFail as _;
use crate::netns::Netns;
use crate::process::rest;
use crate::random::Random;

/// Requests that may wait; more are refused.
const QUEUE: usize = 20_000;
/// Set in the answer to a request that was refused.
pub const REFUSED: u64 = 1 << 63;

struct Job {
    id: u64,
    came: Instant,
    answer: Arc<Mutex<TcpStream>>,
}

/// What was completed since somebody looked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Completed {
    /// Requests served.
    pub served: u64,
    /// Requests refused.
    pub refused: u64,
    /// Seconds from arrival to answer, of all that were served.
    pub seconds: f64,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    completed: Completed,
    in_work: u64,
}

struct Shared {
    state: Mutex<State>,
    came: Condvar,
    workers: AtomicUsize,
    stop: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running backend; ends when dropped.
pub struct Backend {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Backend {
    /// Starts in a namespace, on an address of it: `workers` at once, each taking `service` on
    /// average (half to one and a half of it).
    #[track_caller]
    #[must_use]
    pub fn start(netns: &Netns, address: SocketAddr, workers: usize, service: Duration) -> Self {
        let listener = netns.run(|| TcpListener::bind(address)).or_fail("listen");
        listener.set_nonblocking(true).or_fail("do not block");
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            came: Condvar::new(),
            workers: AtomicUsize::new(workers),
            stop: AtomicBool::new(false),
        });
        let mut threads: Vec<_> = (0..workers)
            .map(|number| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || work(&shared, number, service))
            })
            .collect();
        let accepting = Arc::clone(&shared);
        threads.push(std::thread::spawn(move || accept(&accepting, &listener)));
        Self { shared, threads }
    }

    /// Lets only so many work from now on.
    pub fn set_workers(&self, workers: usize) {
        self.shared.workers.store(workers, Ordering::Relaxed);
        self.shared.came.notify_all();
    }

    /// What was completed since the last call, and what is in the backend now.
    #[must_use]
    pub fn take(&self) -> (Completed, u64) {
        let mut state = self.shared.lock();
        let in_flight = state.queue.len() as u64 + state.in_work;
        (std::mem::take(&mut state.completed), in_flight)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.came.notify_all();
        for thread in self.threads.drain(..) {
            let _ended = thread.join().is_ok();
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            rest(Duration::from_millis(20));
            continue;
        };
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A connection that breaks off ends its thread.
            let _end = serve(&shared, stream).is_err();
        });
    }
}

fn serve(shared: &Shared, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let answer = Arc::new(Mutex::new(stream.try_clone()?));
    let mut bytes = [0; 8];
    loop {
        stream.read_exact(&mut bytes)?;
        let id = u64::from_le_bytes(bytes);
        let job = Job {
            id,
            came: clock::instant(),
            answer: Arc::clone(&answer),
        };
        let mut state = shared.lock();
        if state.queue.len() < QUEUE {
            state.queue.push_back(job);
            drop(state);
            shared.came.notify_one();
        } else {
            state.completed.refused += 1;
            drop(state);
            reply(&job, REFUSED);
        }
    }
}

fn reply(job: &Job, mark: u64) {
    let mut stream = job.answer.lock().unwrap_or_else(PoisonError::into_inner);
    // Whoever has gone away needs no answer.
    let _gone = stream.write_all(&(job.id | mark).to_le_bytes()).is_err();
}

fn work(shared: &Shared, number: usize, service: Duration) {
    let mut random = Random::new(number as u64 + 1);
    loop {
        let mut state = shared.lock();
        let job = loop {
            if shared.stop.load(Ordering::Relaxed) {
                return;
            }
            if number >= shared.workers.load(Ordering::Relaxed) {
                // Not waiting with the others: a call for one of them would be lost on it.
                drop(state);
                rest(Duration::from_millis(20));
                state = shared.lock();
                continue;
            }
            if let Some(job) = state.queue.pop_front() {
                break job;
            }
            state = shared
                .came
                .wait_timeout(state, Duration::from_millis(20))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        };
        state.in_work += 1;
        drop(state);
        let part = 0.5 + random.below(1_000) as f64 / 1_000.0;
        rest(service.mul_f64(part));
        reply(&job, 0);
        let mut state = shared.lock();
        state.in_work -= 1;
        state.completed.served += 1;
        state.completed.seconds += job.came.elapsed().as_secs_f64();
    }
}
