//! [`RateLimiter`]: what applications and transports call.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::answer::{Answer, Reason};
use super::apply::Applied;
use super::breakers::BreakerStatus;
use super::counters::Totals;
use super::engine::{Ask, Engine};
use super::identity::{ClientKey, Identity, IdentityKey};
use super::source::{ConfigurationService, Source, SourceOptions, SourceStats};
use super::spec::{PolicySpec, QuotaSpec, SpecError};
use super::time::{TimeMode, Timestamp, clamp};
use super::{ClientIdError, Unknown, check_client_id};
use crate::clock;
use crate::control::breaker::BreakerConfig;
use crate::policy::model::{DEFAULT_LIMIT, DEFAULT_SEGMENT, Document, LimitSpec, Mode, Unit};
use crate::policy::units::Window;

/// Longest latency an outcome is taken to have had, in milliseconds: one minute.
const MOST_LATENCY_MS: f64 = 60_000.0;

/// Decides whether clients may go on. Clones share everything.
#[derive(Clone)]
pub struct RateLimiter {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) engine: Engine,
    pub(super) identity: Identity,
    pub(super) applied: Mutex<Applied>,
    time_mode: TimeMode,
    source: OnceLock<Source>,
}

/// One question, in full.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who asks; 1 to 256 bytes, any bytes.
    pub client_id: &'a [u8],
    /// How many units it costs; 0 asks without spending.
    pub cost: u64,
    /// The caller's clock; see [`TimeMode`].
    pub timestamp: Option<Timestamp>,
    /// Only the quota of this name is asked and charged.
    pub limit: Option<&'a str>,
    /// Whether what passes is charged.
    pub charge: bool,
}

impl<'a> Request<'a> {
    /// A request of cost 1 now, against all quotas.
    #[must_use]
    pub const fn new(client_id: &'a [u8]) -> Self {
        Self {
            client_id,
            cost: 1,
            timestamp: None,
            limit: None,
            charge: true,
        }
    }
}

/// A policy, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Quotas, segment and backend.
    pub spec: Arc<PolicySpec>,
    /// Its number, as in [`Answer::policy`].
    pub number: u32,
}

/// What is in the limiter now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Clients known.
    pub clients: u64,
    /// Clients the table was built for.
    pub capacity: u64,
    /// Idle clients that gave way to others.
    pub evicted_idle: u64,
    /// Clients in debt that gave way to others, who took over their debt.
    pub evicted_in_debt: u64,
    /// States built in one word because there was no block for them.
    pub without_block: u64,
    /// States converted because a policy changed.
    pub converted: u64,
    /// Bytes of blocks handed out.
    pub block_bytes: u64,
    /// Bytes the table takes when full.
    pub table_bytes: u64,
    /// Policies in force.
    pub policies: u64,
}

impl RateLimiter {
    /// Starts setting one up.
    #[must_use]
    pub fn builder() -> super::Builder {
        super::Builder::default()
    }

    pub(super) fn assemble(
        engine: Engine,
        identity: Identity,
        time_mode: TimeMode,
        mode: Mode,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                engine,
                identity,
                applied: Mutex::new(Applied::new(mode)),
                time_mode,
                source: OnceLock::new(),
            }),
        }
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    pub(super) fn weak(&self) -> std::sync::Weak<Inner> {
        Arc::downgrade(&self.inner)
    }

    pub(super) fn from_inner(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    fn applied(&self) -> MutexGuard<'_, Applied> {
        self.inner
            .applied
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// This limiter's time, in nanoseconds; what [`RateLimiter::check_many`] takes. Read it once
    /// per batch.
    #[inline]
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        clock::fast_ns()
    }

    /// The moment at which a request stamped `stamp` counts, and whether the stamp was clamped.
    #[must_use]
    pub fn moment(&self, stamp: Option<Timestamp>) -> (u64, bool) {
        match (self.inner.time_mode, stamp) {
            (TimeMode::Caller, Some(stamp)) => (stamp.as_ns(), false),
            (TimeMode::Caller, None) => (clock::unix_ns(), false),
            (TimeMode::System { .. }, None) => (self.now_ns(), false),
            (TimeMode::System { skew }, Some(stamp)) => {
                clamp(stamp, clock::unix_ns(), self.now_ns(), skew)
            }
        }
    }

    /// Checks, and charges if it passes.
    pub fn check(&self, client_id: impl AsRef<[u8]>, cost: u64) -> Result<Answer, ClientIdError> {
        check_client_id(client_id.as_ref())?;
        Ok(self.check_now(client_id.as_ref(), cost))
    }

    /// Checks a valid id now. Not generic, so that it is compiled as one piece.
    fn check_now(&self, id: &[u8], cost: u64) -> Answer {
        let answer = self.decide(id, cost);
        if answer.reason == Reason::Pending {
            return self.wait(&Request {
                cost,
                ..Request::new(id)
            });
        }
        answer
    }

    /// As [`RateLimiter::check_now`], where nobody reads more of the answer.
    fn allow_now(&self, id: &[u8]) -> bool {
        let answer = self.decide(id, 1);
        if answer.reason == Reason::Pending {
            return self.wait(&Request::new(id)).allowed;
        }
        answer.allowed
    }

    #[inline(always)]
    fn decide(&self, id: &[u8], cost: u64) -> Answer {
        let inner = &*self.inner;
        let key = inner.identity.of(id);
        // The line is fetched while the clock is read.
        inner.engine.table.prefetch(inner.engine.table.home(key));
        let ask = Ask {
            key,
            now_ns: match inner.time_mode {
                TimeMode::System { .. } => self.now_ns(),
                TimeMode::Caller => clock::unix_ns(),
            },
            cost,
            charge: true,
            only: None,
            under: 0,
            id,
            alone: false,
        };
        inner.engine.check(ask, || self.unknown(id, key))
    }

    /// As [`RateLimiter::check`], with everything that can be asked. Where only the store of a fleet
    /// knows, it is waited for on this thread; see [`RateLimiter::check_request_soon`].
    pub fn check_request(&self, request: &Request<'_>) -> Result<Answer, ClientIdError> {
        check_client_id(request.client_id)?;
        let (now_ns, clamped) = self.moment(request.timestamp);
        let mut answer = self.ask(request, now_ns);
        if answer.reason == Reason::Pending {
            answer = self.wait(request);
        }
        answer.clamped = clamped;
        Ok(answer)
    }

    /// Whether one request of `client_id` at `request_timestamp` may go on; charges if so. An
    /// invalid id may not.
    pub fn is_allowed(
        &self,
        client_id: impl AsRef<[u8]>,
        request_timestamp: impl Into<Timestamp>,
    ) -> bool {
        self.check_request(&Request {
            timestamp: Some(request_timestamp.into()),
            ..Request::new(client_id.as_ref())
        })
        .is_ok_and(|answer| answer.allowed)
    }

    /// Whether one request of `client_id` may go on now; charges if so. An invalid id may not.
    pub fn allow_request(&self, client_id: impl AsRef<[u8]>) -> bool {
        let id = client_id.as_ref();
        check_client_id(id).is_ok() && self.allow_now(id)
    }

    /// What [`RateLimiter::check`] would answer; changes nothing and is not counted.
    pub fn peek(&self, client_id: impl AsRef<[u8]>, cost: u64) -> Result<Answer, ClientIdError> {
        self.check_request(&Request {
            cost,
            charge: false,
            ..Request::new(client_id.as_ref())
        })
    }

    #[inline(always)]
    pub(super) fn ask(&self, request: &Request<'_>, now_ns: u64) -> Answer {
        let key = self.inner.identity.of(request.client_id);
        let ask = Ask {
            key,
            now_ns,
            cost: request.cost,
            charge: request.charge,
            only: request.limit,
            under: 0,
            id: request.client_id,
            alone: false,
        };
        self.inner
            .engine
            .check(ask, || self.unknown(request.client_id, key))
    }

    /// A client has to be placed that nobody configured.
    pub(super) fn unknown(&self, id: &[u8], key: ClientKey) {
        if let Some(source) = self.inner.source.get() {
            source.wonder(id, key);
        }
    }

    /// Gives `client_id` a limit of its own: `new_limit` requests per `window_size`, with the
    /// default algorithm. Takes effect at once: what is owed stays owed, nobody gets a second burst
    /// and nobody is locked out.
    pub fn update_limit(
        &self,
        client_id: impl AsRef<[u8]>,
        new_limit: u64,
        window_size: Duration,
    ) -> Result<(), SpecError> {
        let window_ns = u64::try_from(window_size.as_nanos()).unwrap_or(u64::MAX);
        let time_window = Window::from_ns(window_ns).map_err(|_bound| {
            let error = ratelimiter_common::quota::QuotaError::Window(window_ns);
            SpecError::Quota(DEFAULT_LIMIT.to_owned(), error)
        })?;
        let limit = LimitSpec {
            rate_limit: new_limit,
            time_window,
            burst: None,
            unit: Unit::Requests,
            algorithm: None,
            mode: None,
            consistency: None,
            on_store_loss: None,
        };
        let quota = QuotaSpec::simple(DEFAULT_LIMIT, &limit)?;
        self.set_policy(client_id, Some(vec![quota]))
    }

    /// Gives `client_id` quotas of its own, or (`None`) what the document says. A later
    /// [`RateLimiter::apply_document`] that names the client replaces them.
    pub fn set_policy(
        &self,
        client_id: impl AsRef<[u8]>,
        quotas: Option<Vec<QuotaSpec>>,
    ) -> Result<(), SpecError> {
        let id = client_id.as_ref();
        check_client_id(id)?;
        let spec = quotas.map(|quotas| PolicySpec {
            quotas,
            ..PolicySpec::unlimited()
        });
        let key = self.inner.identity.of(id);
        self.applied()
            .set_client(&self.inner.engine, key, spec.as_ref(), self.edit_ns())
    }

    /// As [`RateLimiter::set_policy`] for a client in `segment`, by identity.
    pub(super) fn set_spec(
        &self,
        key: ClientKey,
        spec: Option<&PolicySpec>,
    ) -> Result<(), SpecError> {
        self.applied()
            .set_client(&self.inner.engine, key, spec, self.edit_ns())
    }

    /// The segment's policy, to be extended by a configuration service's answer.
    pub(super) fn segment_spec(&self, segment: &str) -> Option<Arc<PolicySpec>> {
        let index = self.applied().segment(segment)?;
        let compiled = self.inner.engine.registry.current(index)?;
        Some(Arc::clone(&compiled.spec))
    }

    /// Puts a document in force, whole or not at all. Nobody's debt is forgotten: clients whose
    /// limits changed keep what they owe, in units, up to the new limit.
    pub fn apply_document(&self, document: &Document) -> Result<(), SpecError> {
        let mode = self.applied().mode();
        self.apply_document_in(document, mode)
    }

    /// As [`RateLimiter::apply_document`], with another mode to bound those of the document.
    pub fn apply_document_in(&self, document: &Document, mode: Mode) -> Result<(), SpecError> {
        let inner = &*self.inner;
        self.applied().apply(
            &inner.engine,
            &inner.identity,
            document,
            mode,
            self.edit_ns(),
        )
    }

    /// Decides what applies to clients nobody configured.
    pub fn set_unknown(&self, unknown: Unknown) -> Result<(), SpecError> {
        self.applied()
            .set_unknown(&self.inner.engine, unknown, self.edit_ns())
    }

    /// Configures the circuit breaker of a backend, or switches it off.
    pub fn set_breaker(
        &self,
        backend: &str,
        config: Option<BreakerConfig>,
    ) -> Result<(), SpecError> {
        let engine = &self.inner.engine;
        let now_ns = self.edit_ns();
        let number = engine
            .breakers
            .configure(backend, config, now_ns, &engine.counters)
            .map_err(SpecError::TooManyBackends)?;
        engine
            .registry
            .edit(now_ns, |edit| edit.watch(backend, number))
    }

    /// Reports what became of an allowed request and how many milliseconds it took, for the
    /// backend's breaker and controllers.
    pub fn outcome(&self, backend: &str, good: bool, latency_ms: f64) {
        let engine = &self.inner.engine;
        // More is believed of nobody: one report must not outweigh all others.
        let latency_us = (latency_ms.clamp(0.0, MOST_LATENCY_MS) * 1e3) as u64;
        let now_ns = self.now_ns();
        engine
            .breakers
            .outcome(backend, good, latency_us, now_ns, &engine.counters);
    }

    /// As [`RateLimiter::outcome`] for the backend of a client's segment.
    pub fn outcome_of(&self, client_id: impl AsRef<[u8]>, good: bool, latency_ms: f64) {
        let key = self.inner.identity.of(client_id.as_ref());
        let engine = &self.inner.engine;
        let (super::assign::Assigned::Configured(index) | super::assign::Assigned::Default(index)) =
            engine.assigned(key)
        else {
            return;
        };
        if let Some(compiled) = engine.registry.current(index) {
            self.outcome(&compiled.spec.backend, good, latency_ms);
        }
    }

    /// Every configured breaker.
    #[must_use]
    pub fn breakers(&self) -> Vec<BreakerStatus> {
        self.inner.engine.breakers.status()
    }

    /// Forgets what a client owes; whether it was known.
    pub fn reset(&self, client_id: impl AsRef<[u8]>) -> bool {
        let key = self.inner.identity.of(client_id.as_ref());
        let engine = &self.inner.engine;
        engine.tally.resets.fetch_add(1, Ordering::Relaxed);
        engine.forget(key)
    }

    /// Describes a policy, by the number in an answer.
    #[must_use]
    pub fn policy(&self, number: u32) -> Option<Policy> {
        let compiled = self.inner.engine.registry.current(number)?;
        Some(Policy {
            spec: Arc::clone(&compiled.spec),
            number,
        })
    }

    /// Describes the policy that applies to a client; `None` where unknown clients are refused.
    #[must_use]
    pub fn policy_of(&self, client_id: impl AsRef<[u8]>) -> Option<Policy> {
        use super::assign::Assigned;
        match self
            .inner
            .engine
            .assigned(self.inner.identity.of(client_id.as_ref()))
        {
            Assigned::Configured(index) | Assigned::Default(index) => self.policy(index),
            Assigned::Refused => None,
        }
    }

    /// The segment of clients that name none.
    #[must_use]
    pub fn default_policy(&self) -> Option<Policy> {
        let index = self.applied().segment(DEFAULT_SEGMENT)?;
        self.policy(index)
    }

    /// Counts so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.inner.engine.counters.totals()
    }

    /// Records that `checks` checks took `duration_ns` together, from the request being read to the
    /// answer being ready. For transports.
    pub fn observe_duration(&self, duration_ns: u64, checks: u64) {
        self.inner.engine.counters.observe(duration_ns, checks);
    }

    /// What is in the limiter now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let engine = &self.inner.engine;
        let read = |cell: &std::sync::atomic::AtomicU64| cell.load(Ordering::Relaxed);
        Stats {
            clients: read(&engine.tally.clients),
            capacity: (engine.table.lines() * super::table::WAYS / 2) as u64,
            evicted_idle: read(&engine.tally.evicted_idle),
            evicted_in_debt: read(&engine.tally.evicted_in_debt),
            without_block: read(&engine.tally.without_block),
            converted: read(&engine.tally.converted),
            block_bytes: engine.blocks.used_bytes(),
            table_bytes: engine.table.bytes() as u64,
            policies: engine.registry.len() as u64,
        }
    }

    /// What became of the questions to the configuration service.
    #[must_use]
    pub fn source_stats(&self) -> SourceStats {
        self.inner
            .source
            .get()
            .map_or_else(SourceStats::default, Source::stats)
    }

    /// The key under which ids are hashed; keep it secret, and save it with a snapshot.
    #[must_use]
    pub fn identity_key(&self) -> IdentityKey {
        self.inner.identity.key()
    }

    /// The time edits count from. By the caller's clock each client's is its newest stamp.
    pub(super) fn edit_ns(&self) -> u64 {
        match self.inner.time_mode {
            TimeMode::System { .. } => self.now_ns(),
            TimeMode::Caller => 0,
        }
    }

    pub(super) fn follow(
        &self,
        service: Arc<dyn ConfigurationService>,
        options: SourceOptions,
    ) -> std::io::Result<()> {
        let source = Source::start(self.weak(), service, options)?;
        // Built once, before anybody else has the limiter.
        let _first = self.inner.source.set(source);
        Ok(())
    }
}

impl std::fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimiter")
            .field("time_mode", &self.inner.time_mode)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
