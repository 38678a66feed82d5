//! Clients that ask before they send: an open loop of checks, and of requests that were allowed.
use std::collections::BinaryHeap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ratelimiter_userspace::clock;

use super::backend::REFUSED;
use crate::OrFail as _;
use crate::process::rest;
use crate::random::Random;

/// Threads that send.
pub const DRIVERS: usize = 2;
/// Bits of a request's id that are the client.
const CLIENT_BITS: u32 = 8;

/// A client.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Whether it asks for less than its fair share, whatever happens.
    pub polite: bool,
    /// Requests per second in calm.
    pub calm: f64,
    /// Its part of what comes on top of the calm load.
    pub share: f64,
}

/// A request as it was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// When, in seconds since the start.
    pub at_s: f64,
    /// Who.
    pub client: usize,
    /// Whether it was allowed.
    pub allowed: bool,
}

/// A request as it was answered by the backend.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// When it was sent, in seconds since the start.
    pub sent_s: f64,
    /// How long it took, in seconds.
    pub took_s: f64,
    /// Who.
    pub client: usize,
    /// Whether the backend served it.
    pub served: bool,
}

/// Everything that happened.
#[derive(Debug, Default)]
pub struct Log {
    /// Requests, in no order.
    pub asked: Vec<Asked>,
    /// Answers of the backend, in no order.
    pub answered: Vec<Answered>,
}

/// What the drivers share.
pub struct Load<'a> {
    /// The clients.
    pub clients: &'a [Client],
    /// Load as a multiple of the capacity, as bits of an `f64`.
    pub multiple: &'a AtomicU64,
    /// What the backend completes per second.
    pub capacity: f64,
    /// The check API.
    pub checks: SocketAddr,
    /// The backend.
    pub backend: SocketAddr,
    /// When the run began.
    pub begin: Instant,
    /// Ends the run.
    pub stop: &'a AtomicBool,
    /// Where it is written down.
    pub log: &'a Mutex<Log>,
}

/// The next request of a client; the earliest is the greatest.
struct Due(f64, usize);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0)
    }
}

impl Load<'_> {
    fn now_s(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    fn rate(&self, client: Client, calm: f64) -> f64 {
        let multiple = f64::from_bits(self.multiple.load(Ordering::Relaxed));
        let wanted = multiple * self.capacity;
        if wanted < calm {
            return client.calm * wanted / calm;
        }
        client.calm + client.share * (wanted - calm)
    }

    /// Sends the requests of every [`DRIVERS`]th client until the end. From within the namespace
    /// of the limiter.
    pub fn drive(&self, number: usize) {
        let mut checks = TcpStream::connect(self.checks).or_fail("connect to the check API");
        checks.set_nodelay(true).or_fail("set TCP_NODELAY");
        let mut backend = TcpStream::connect(self.backend).or_fail("connect to the backend");
        backend.set_nodelay(true).or_fail("set TCP_NODELAY");
        let answers = backend.try_clone().or_fail("clone a stream");
        std::thread::scope(|scope| {
            scope.spawn(|| self.listen(answers));
            self.send(number, &mut checks, &mut backend);
            // What is under way is given a moment, then the reader ends with the connection.
            rest(Duration::from_millis(500));
            let _ended = backend.shutdown(std::net::Shutdown::Both).is_err();
        });
    }

    fn send(&self, number: usize, checks: &mut TcpStream, backend: &mut TcpStream) {
        let mut random = Random::new(number as u64 + 77);
        let mut exponential = move || {
            let uniform = (random.below(1 << 52) + 1) as f64 / (1_u64 << 52) as f64;
            -uniform.ln()
        };
        let calm: f64 = self.clients.iter().map(|client| client.calm).sum();
        let mine = (0..self.clients.len()).filter(|at| at % DRIVERS == number);
        let mut due: BinaryHeap<Due> = mine.map(|at| Due(0.01 * at as f64, at)).collect();
        let mut asked = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let Some(Due(at_s, client)) = due.pop() else {
                return;
            };
            let wait_s = at_s - self.now_s();
            if wait_s > 0.000_2 {
                rest(Duration::from_secs_f64(wait_s.min(0.05)));
                if wait_s > 0.05 {
                    // The load may have changed meanwhile.
                    due.push(Due(at_s, client));
                    continue;
                }
            }
            let now_s = self.now_s();
            let allowed = check(checks, client);
            if allowed {
                let id = ((now_s * 1e6) as u64) << CLIENT_BITS | client as u64;
                backend
                    .write_all(&id.to_le_bytes())
                    .or_fail("send to the backend");
            }
            asked.push(Asked {
                at_s: now_s,
                client,
                allowed,
            });
            let who = self.clients.get(client).copied().or_fail("a client");
            // A client that was held up does not make up for it: an open loop of arrivals.
            let next_s = at_s.max(now_s - 0.05) + exponential() / self.rate(who, calm);
            due.push(Due(next_s, client));
        }
        self.note(|log| log.asked.append(&mut asked));
    }

    fn listen(&self, mut stream: TcpStream) {
        let mut answered = Vec::new();
        let mut bytes = [0; 8];
        while stream.read_exact(&mut bytes).is_ok() {
            let word = u64::from_le_bytes(bytes);
            let id = word & !REFUSED;
            let sent_s = (id >> CLIENT_BITS) as f64 / 1e6;
            answered.push(Answered {
                sent_s,
                took_s: self.now_s() - sent_s,
                client: (id & ((1 << CLIENT_BITS) - 1)) as usize,
                served: word & REFUSED == 0,
            });
        }
        self.note(|log| log.answered.append(&mut answered));
    }

    fn note(&self, write: impl FnOnce(&mut Log)) {
        write(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Asks whether a client's request may go on.
fn check(stream: &mut TcpStream, client: usize) -> bool {
    let body = format!("{{\"client_id\":\"client-{client}\"}}");
    let request = format!(
        "POST /v1/check HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).or_fail("ask");
    let mut answer = Vec::with_capacity(512);
    let mut part = [0; 1_024];
    loop {
        let n = stream.read(&mut part).or_fail("read an answer");
        assert!(n > 0, "the check API closed the connection");
        answer.extend_from_slice(part.get(..n).unwrap_or_default());
        // The body is one JSON object, and nothing else ends in a brace.
        if answer.ends_with(b"}") {
            let text = String::from_utf8_lossy(&answer);
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            return text.contains("\"allowed\":true");
        }
    }
}

/// Keeps the backend saturated for `time` and returns what it completes per second.
#[must_use]
pub fn capacity(backend: SocketAddr, in_flight: u64, time: Duration) -> f64 {
    let mut stream = TcpStream::connect(backend).or_fail("connect to the backend");
    stream.set_nodelay(true).or_fail("set TCP_NODELAY");
    for id in 0..in_flight {
        stream.write_all(&id.to_le_bytes()).or_fail("send");
    }
    let begin = clock::instant();
    let mut bytes = [0; 8];
    let mut done = 0_u32;
    while begin.elapsed() < time {
        stream.read_exact(&mut bytes).or_fail("read an answer");
        stream.write_all(&bytes).or_fail("send");
        done += 1;
    }
    f64::from(done) / begin.elapsed().as_secs_f64()
}
