//! Limits from somewhere else: a [`ConfigurationService`], possibly remote, possibly slow.
//!
//! It is never awaited by a check. A client nobody configured is judged by the default segment
//! while one background thread asks; answers are kept for a while and refreshed before they are
//! old. A service that is slow, fails or is away changes nothing: the last known answer stays, and
//! is counted as stale.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::identity::ClientKey;
use super::rate_limiter::{Inner, RateLimiter};
use super::spec::{PolicySpec, QuotaSpec};
use crate::clock;
use crate::policy::model::{DEFAULT_SEGMENT, Limits, Unit};

/// A client's configuration, as a service knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateLimitConfiguration {
    /// The client's segment; the default one if not named.
    pub segment: Option<String>,
    /// Request quotas by name; none: the segment's.
    pub limits: Limits,
}

/// Why a service has no answer. The text is for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigurationError(pub String);

/// What a service returns.
pub type Answered<'a> = Pin<
    Box<
        dyn Future<Output = Result<Option<RateLimitConfiguration>, ConfigurationError>> + Send + 'a,
    >,
>;

/// Knows the limits of clients.
///
/// ```
/// use ratelimiter_userspace::limiter::source::Answered;
/// use ratelimiter_userspace::limiter::{ConfigurationService, RateLimitConfiguration};
///
/// struct Nobody;
///
/// impl ConfigurationService for Nobody {
///     fn configuration<'a>(&'a self, _client_id: &'a str) -> Answered<'a> {
///         Box::pin(async { Ok(None) })
///     }
/// }
/// ```
pub trait ConfigurationService: Send + Sync + 'static {
    /// Returns what is configured for `client_id`; `None` if nothing is.
    ///
    /// # Errors
    ///
    /// Whatever keeps the service from knowing; it is asked again later.
    fn configuration<'a>(&'a self, client_id: &'a str) -> Answered<'a>;
}

/// How a service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceOptions {
    /// How long an answer counts as fresh.
    pub ttl: Duration,
    /// How long one question may take.
    pub deadline: Duration,
    /// Time before a question that failed is asked again.
    pub retry: Duration,
    /// Questions under way at once.
    pub concurrency: usize,
    /// Answers kept; the oldest are forgotten, and their clients return to the default segment.
    pub capacity: usize,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            ttl: Duration::from_mins(1),
            deadline: Duration::from_secs(2),
            retry: Duration::from_secs(1),
            concurrency: 32,
            capacity: 100_000,
        }
    }
}

/// Questions that wait for the background thread; more are dropped and counted.
const QUEUE: usize = 4_096;
/// How often due answers are looked for.
const TICK: Duration = Duration::from_millis(20);

/// What became of the questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Answered, with or without a configuration.
    pub answered: u64,
    /// Failed or too late; the last known answer, or the default segment, stays.
    pub failed: u64,
    /// Answers that could not be enforced.
    pub refused: u64,
    /// Not asked, because too many waited.
    pub dropped: u64,
}

#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
}

/// The way to the background thread; it ends when this is dropped.
pub(super) struct Source {
    questions: mpsc::Sender<(Box<str>, ClientKey)>,
    tally: Arc<Tally>,
}

struct Kept {
    id: Arc<str>,
    due_ns: u64,
    serial: u64,
    asking: bool,
}

struct Answer {
    key: ClientKey,
    /// What the service said; an error where it did not in time.
    result: Result<Option<RateLimitConfiguration>, ConfigurationError>,
}

impl Source {
    pub(super) fn start(
        limiter: Weak<Inner>,
        service: Arc<dyn ConfigurationService>,
        options: SourceOptions,
    ) -> std::io::Result<Self> {
        let (questions, inbox) = mpsc::channel(QUEUE);
        let tally = Arc::new(Tally::default());
        let counted = Arc::clone(&tally);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .enable_io()
            .build()?;
        std::thread::Builder::new()
            .name("rl-config".to_owned())
            .spawn(move || {
                let worker = Worker {
                    limiter,
                    service,
                    options,
                    tally: counted,
                    kept: HashMap::new(),
                    by_due: BTreeMap::new(),
                    serial: 0,
                    permits: Arc::new(Semaphore::new(options.concurrency.max(1))),
                };
                runtime.block_on(worker.run(inbox));
            })?;
        Ok(Self { questions, tally })
    }

    /// Asks for a client nobody configured, some time soon. Never waits.
    pub(super) fn wonder(&self, id: &[u8], key: ClientKey) {
        // A service knows text; other ids have the default segment.
        let Ok(id) = std::str::from_utf8(id) else {
            return;
        };
        if self.questions.try_send((Box::from(id), key)).is_err() {
            self.tally.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn stats(&self) -> SourceStats {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        SourceStats {
            answered: read(&self.tally.answered),
            failed: read(&self.tally.failed),
            refused: read(&self.tally.refused),
            dropped: read(&self.tally.dropped),
        }
    }
}

struct Worker {
    limiter: Weak<Inner>,
    service: Arc<dyn ConfigurationService>,
    options: SourceOptions,
    tally: Arc<Tally>,
    kept: HashMap<ClientKey, Kept>,
    /// What is due next, by time and serial.
    by_due: BTreeMap<(u64, u64), ClientKey>,
    serial: u64,
    permits: Arc<Semaphore>,
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::Receiver<(Box<str>, ClientKey)>) {
        let (answers, mut answered) = mpsc::channel(QUEUE);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                question = inbox.recv() => match question {
                    Some((id, key)) => self.wonder(Arc::from(id), key, &answers),
                    // The limiter is gone.
                    None => return,
                },
                Some(answer) = answered.recv() => self.take(&answer),
                _ = tick.tick() => self.refresh(&answers),
            }
        }
    }

    fn wonder(&mut self, id: Arc<str>, key: ClientKey, answers: &mpsc::Sender<Answer>) {
        if self.kept.contains_key(&key) {
            return;
        }
        if self.kept.len() >= self.options.capacity.max(1)
            && let Some((_, oldest)) = self.by_due.pop_first()
        {
            self.kept.remove(&oldest);
            self.enforce(oldest, None);
        }
        self.kept.insert(
            key,
            Kept {
                id: Arc::clone(&id),
                due_ns: 0,
                serial: 0,
                asking: true,
            },
        );
        self.schedule(key, self.options.deadline * 2);
        self.ask(id, key, answers);
    }

    fn schedule(&mut self, key: ClientKey, after: Duration) {
        self.serial += 1;
        let due_ns = clock::monotonic_ns().saturating_add(after.as_nanos() as u64);
        if let Some(kept) = self.kept.get_mut(&key) {
            self.by_due.remove(&(kept.due_ns, kept.serial));
            kept.due_ns = due_ns;
            kept.serial = self.serial;
            self.by_due.insert((due_ns, self.serial), key);
        }
    }

    fn ask(&self, id: Arc<str>, key: ClientKey, answers: &mpsc::Sender<Answer>) {
        let service = Arc::clone(&self.service);
        let permits = Arc::clone(&self.permits);
        let deadline = self.options.deadline;
        let answers = answers.clone();
        tokio::spawn(async move {
            let asked = async {
                let _permit = permits.acquire().await;
                service.configuration(&id).await
            };
            let late = |_elapsed| Err(ConfigurationError("no answer in time".to_owned()));
            let result = tokio::time::timeout(deadline, asked)
                .await
                .unwrap_or_else(late);
            // The worker outlives its questions, or nobody wants the answer.
            let _sent = answers.send(Answer { key, result }).await;
        });
    }

    fn take(&mut self, answer: &Answer) {
        let Some(kept) = self.kept.get_mut(&answer.key) else {
            return;
        };
        kept.asking = false;
        if let Ok(configuration) = &answer.result {
            self.tally.answered.fetch_add(1, Ordering::Relaxed);
            self.enforce(answer.key, configuration.as_ref());
            self.schedule(answer.key, self.options.ttl);
        } else {
            self.tally.failed.fetch_add(1, Ordering::Relaxed);
            self.schedule(answer.key, self.options.retry);
        }
    }

    /// Asks again what is due.
    fn refresh(&mut self, answers: &mpsc::Sender<Answer>) {
        let now_ns = clock::monotonic_ns();
        let mut due = Vec::new();
        while due.len() < QUEUE
            && let Some((&(due_ns, _), _)) = self.by_due.first_key_value()
            && due_ns <= now_ns
        {
            if let Some((_, key)) = self.by_due.pop_first() {
                due.push(key);
            }
        }
        for key in due {
            let Some(kept) = self.kept.get_mut(&key) else {
                continue;
            };
            let id = Arc::clone(&kept.id);
            let was_asking = std::mem::replace(&mut kept.asking, true);
            self.schedule(key, self.options.deadline * 2);
            if !was_asking {
                self.ask(id, key, answers);
            }
        }
    }

    fn enforce(&self, key: ClientKey, configuration: Option<&RateLimitConfiguration>) {
        let Some(limiter) = self.limiter.upgrade().map(RateLimiter::from_inner) else {
            return;
        };
        let spec = configuration.map(|configuration| resolve(&limiter, configuration));
        let done = match spec {
            Some(Ok(spec)) => limiter.set_spec(key, Some(&spec)),
            None => limiter.set_spec(key, None),
            Some(Err(error)) => Err(error),
        };
        if done.is_err() {
            self.tally.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn resolve(
    limiter: &RateLimiter,
    configuration: &RateLimitConfiguration,
) -> Result<PolicySpec, super::SpecError> {
    let segment = configuration.segment.as_deref().unwrap_or(DEFAULT_SEGMENT);
    let of = limiter
        .segment_spec(segment)
        .ok_or_else(|| super::SpecError::UnknownSegment(segment.to_owned()))?;
    let mut spec = (*of).clone();
    let own = configuration
        .limits
        .iter()
        .filter(|(_, limit)| limit.unit == Unit::Requests);
    let own: Vec<QuotaSpec> = own
        .map(|(name, limit)| QuotaSpec::simple(name, limit))
        .collect::<Result<_, _>>()?;
    if !own.is_empty() {
        spec.quotas = own;
    }
    Ok(spec)
}
