//! A client of the check API for applications on other hosts: every question is answered within its
//! deadline, whatever became of the agent.
//!
//! ```no_run
//! # async fn example() {
//! use ratelimiter_userspace::client::{OnUnavailable, Options, RateLimiterClient};
//! use ratelimiter_userspace::limiter::RateLimiter;
//!
//! let local = RateLimiter::builder().capacity(10_000).build().unwrap();
//! let client = RateLimiterClient::new(Options {
//!     on_unavailable: OnUnavailable::Local(local),
//!     ..Options::new("127.0.0.1:9741".parse().unwrap())
//! });
//! if !client.check("alice", 1).await.allowed {
//!     // 429
//! }
//! # }
//! ```
//!
//! A hung agent is worse than a dead one: each question to it costs the whole deadline. So after a
//! few failures in a row nobody asks any more for a while ([`Options::open_for`]), then one question
//! at a time is a probe. Meanwhile [`OnUnavailable`] answers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use crate::clock;
use crate::limiter::RateLimiter;

/// Largest answer read, in bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// What answers while the agent does not.
#[derive(Clone, Debug)]
pub enum OnUnavailable {
    /// Everything may go on.
    Allow,
    /// Nothing may.
    Deny,
    /// A limiter in this process decides by its own limits.
    Local(RateLimiter),
}

/// How the agent is asked.
#[derive(Clone, Debug)]
pub struct Options {
    /// The check API.
    pub address: SocketAddr,
    /// A bearer token with the right `check`, if the agent asks for one.
    pub token: Option<String>,
    /// Longest time a question may take, connecting included.
    pub deadline: Duration,
    /// What answers while the agent does not.
    pub on_unavailable: OnUnavailable,
    /// Failures in a row after which nobody asks for a while.
    pub failures: u32,
    /// How long nobody asks.
    pub open_for: Duration,
    /// Idle connections kept.
    pub idle: usize,
}

impl Options {
    /// A deadline of 50 ms; everything may go on while the agent does not answer; after 5 failures
    /// in a row nobody asks for a second; 16 idle connections.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            token: None,
            deadline: Duration::from_millis(50),
            on_unavailable: OnUnavailable::Allow,
            failures: 5,
            open_for: Duration::from_secs(1),
            idle: 16,
        }
    }
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// The agent.
    Agent,
    /// [`OnUnavailable`], because of this.
    Fallback(Unavailable),
}

/// Why the agent did not decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// It did not answer in time.
    Deadline,
    /// It cannot be reached, or the connection broke.
    Connection,
    /// It answered something that is no decision: a refused credential or body, a server error.
    Answer(StatusCode),
    /// It failed too often just before, and was not asked.
    NotAsked,
}

/// The answer to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Units that may still be spent now; none where nobody knows.
    pub remaining: Option<u64>,
    /// Time until the same request may pass; none when allowed, or where it never will or nobody
    /// knows.
    pub retry_after: Option<Duration>,
    /// Who decided.
    pub by: DecidedBy,
}

/// What became of the questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Decided by the agent.
    pub answered: u64,
    /// Asked in vain.
    pub failed: u64,
    /// Not asked, because the agent failed just before.
    pub not_asked: u64,
}

/// Asks the agent; clones share connections and memory of failures.
#[derive(Clone)]
pub struct RateLimiterClient {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    /// Failures since the last answer.
    failures: AtomicU32,
    /// Until when nobody asks, CLOCK_MONOTONIC in nanoseconds.
    open_until_ns: AtomicU64,
    probing: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    not_asked: AtomicU64,
}

#[derive(Serialize)]
struct Question<'a> {
    client_id: &'a str,
    cost: u64,
}

#[derive(Deserialize)]
struct Answer {
    allowed: bool,
    remaining: u64,
    retry_after: Option<f64>,
}

/// Whether a question may be put to the agent.
enum Ticket {
    Ask,
    /// It decides whether everybody asks again.
    Probe,
    No,
}

/// Ends a probe, also one whose question was dropped half-way.
struct Probing<'a>(Option<&'a AtomicBool>);

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        if let Some(probing) = self.0 {
            probing.store(false, Ordering::Release);
        }
    }
}

impl RateLimiterClient {
    /// A client; nothing is connected yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            inner: Arc::new(Inner {
                options,
                idle: Mutex::default(),
                failures: AtomicU32::new(0),
                open_until_ns: AtomicU64::new(0),
                probing: AtomicBool::new(false),
                answered: AtomicU64::new(0),
                failed: AtomicU64::new(0),
                not_asked: AtomicU64::new(0),
            }),
        }
    }

    /// Whether a request of `client_id` that costs `cost` units may go on; charges if so. Takes at
    /// most [`Options::deadline`]. Needs a tokio runtime with I/O and time.
    pub async fn check(&self, client_id: &str, cost: u64) -> Decision {
        let inner = &*self.inner;
        let ticket = inner.ticket();
        let probing = match ticket {
            Ticket::No => {
                inner.not_asked.fetch_add(1, Ordering::Relaxed);
                return inner.fall_back(client_id, cost, Unavailable::NotAsked);
            }
            Ticket::Probe => Probing(Some(&inner.probing)),
            Ticket::Ask => Probing(None),
        };
        let asked = tokio::time::timeout(inner.options.deadline, inner.ask(client_id, cost)).await;
        let answer = asked.unwrap_or(Err(Unavailable::Deadline));
        let decision = match answer {
            Ok(answer) => {
                inner.failures.store(0, Ordering::Relaxed);
                inner.open_until_ns.store(0, Ordering::Release);
                inner.answered.fetch_add(1, Ordering::Relaxed);
                Decision {
                    allowed: answer.allowed,
                    remaining: Some(answer.remaining),
                    retry_after: answer
                        .retry_after
                        .filter(|_| !answer.allowed)
                        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
                    by: DecidedBy::Agent,
                }
            }
            Err(why) => {
                inner.note_failure();
                inner.fall_back(client_id, cost, why)
            }
        };
        drop(probing);
        decision
    }

    /// As [`RateLimiterClient::check`] with a cost of 1, without the details.
    pub async fn allow_request(&self, client_id: &str) -> bool {
        self.check(client_id, 1).await.allowed
    }

    /// What became of the questions.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            answered: self.inner.answered.load(Ordering::Relaxed),
            failed: self.inner.failed.load(Ordering::Relaxed),
            not_asked: self.inner.not_asked.load(Ordering::Relaxed),
        }
    }
}

impl std::fmt::Debug for RateLimiterClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The options hold a token.
        f.debug_struct("RateLimiterClient")
            .field("address", &self.inner.options.address)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn ticket(&self) -> Ticket {
        let open_until_ns = self.open_until_ns.load(Ordering::Acquire);
        if open_until_ns == 0 {
            return Ticket::Ask;
        }
        if clock::monotonic_ns() < open_until_ns || self.probing.swap(true, Ordering::AcqRel) {
            return Ticket::No;
        }
        Ticket::Probe
    }

    fn note_failure(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= self.options.failures.max(1) {
            let open_ns = u64::try_from(self.options.open_for.as_nanos()).unwrap_or(u64::MAX);
            let until_ns = clock::monotonic_ns().saturating_add(open_ns);
            self.open_until_ns.store(until_ns, Ordering::Release);
        }
    }

    fn fall_back(&self, client_id: &str, cost: u64, why: Unavailable) -> Decision {
        let by = DecidedBy::Fallback(why);
        let plain = |allowed| Decision {
            allowed,
            remaining: None,
            retry_after: None,
            by,
        };
        match &self.options.on_unavailable {
            OnUnavailable::Allow => plain(true),
            OnUnavailable::Deny => plain(false),
            OnUnavailable::Local(limiter) => match limiter.check(client_id, cost) {
                Ok(answer) => Decision {
                    allowed: answer.allowed,
                    remaining: Some(answer.remaining),
                    retry_after: (!answer.allowed && answer.retry_after_ns != u64::MAX)
                        .then(|| Duration::from_nanos(answer.retry_after_ns)),
                    by,
                },
                Err(_) => plain(false),
            },
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<SendRequest<Full<Bytes>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, client_id: &str, cost: u64) -> Result<Answer, Unavailable> {
        let question = Question { client_id, cost };
        let body = serde_json::to_vec(&question).map_err(|_| Unavailable::Connection)?;
        let body = Bytes::from(body);
        // A connection that was idle may have been closed by the agent meanwhile: then the question
        // never reached it, and another connection is tried.
        loop {
            let kept = self.idle().pop();
            let fresh = kept.is_none();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            if sender.ready().await.is_err() {
                if fresh {
                    return Err(Unavailable::Connection);
                }
                continue;
            }
            return self.ask_on(sender, body).await;
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Unavailable> {
        let lost = |_| Unavailable::Connection;
        let stream = TcpStream::connect(self.options.address)
            .await
            .map_err(lost)?;
        stream.set_nodelay(true).map_err(lost)?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Unavailable::Connection)?;
        tokio::spawn(async move {
            // How it ended is seen by whoever has the sender.
            let _ended = connection.await.is_ok();
        });
        Ok(sender)
    }

    async fn ask_on(
        &self,
        mut sender: SendRequest<Full<Bytes>>,
        body: Bytes,
    ) -> Result<Answer, Unavailable> {
        let mut request = Request::post("/v1/check")
            .header(HOST, self.options.address.to_string())
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.options.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Full::new(body))
            .map_err(|_| Unavailable::Connection)?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|_| Unavailable::Connection)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|_| Unavailable::Connection)?
            .to_bytes();
        if status != StatusCode::OK {
            return Err(Unavailable::Answer(status));
        }
        let answer = serde_json::from_slice(&body).map_err(|_| Unavailable::Answer(status))?;
        let mut idle = self.idle();
        if idle.len() < self.options.idle {
            idle.push(sender);
        }
        Ok(answer)
    }
}
