//! Limits that hold over several hosts: the limiter's side of [`crate::sync`].
//!
//! A client of a policy with quotas that are not `local` has its states in a block; such a quota's
//! state is a [`Lease`]. A check that finds no units there gets a [`Ticket`] and waits, at most the
//! deadline, for the next exchange with the store, which serves everybody who waits for the same
//! client at once. Everything else is decided here and now, and the exchange fills up behind.
//!
//! - `ticket`: a check that waits; `queue`: who waits for what
//! - `judge`: leases in blocks; `exchange`: the task that talks to the store
//!
//! [`Lease`]: crate::sync::lease::Lease

mod exchange;
mod judge;
mod queue;
mod ticket;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ratelimiter_common::quota::Unit;
use tokio::runtime::Handle;
use tokio::sync::Notify;

pub(super) use self::judge::{FLEET_WORDS, fleet_terms, judge};
use self::queue::Queue;
use self::ticket::Ticket;
use super::answer::{Answer, Reason};
use super::engine::Ask;
use super::identity::ClientKey;
use super::rate_limiter::{RateLimiter, Request};
use super::rule::PolicyWord;
use super::{ClientIdError, check_client_id};
use crate::sync::lease::Around;
use crate::sync::{FleetKey, KeyHasher, Plane, Settle};

/// How a limiter takes part in a fleet.
#[derive(Clone, Copy, Debug)]
pub struct FleetOptions {
    /// Secret under which ids are hashed into keys, the same on all hosts.
    pub secret: [u8; 16],
    /// A random number that tells hosts apart.
    pub host: u64,
    /// Hosts the fleet had when this one knew last; 1 if it never did. What `strict` goes by before
    /// the store has answered.
    pub known: u32,
    /// How long units taken ahead are valid.
    pub lease: Duration,
    /// The sync interval.
    pub interval: Duration,
    /// How long an exact check waits for the store.
    pub exact_deadline: Duration,
}

impl Default for FleetOptions {
    /// The defaults of the configuration, a host of its own, and a secret that is none.
    fn default() -> Self {
        use std::hash::{BuildHasher as _, Hasher as _, RandomState};
        Self {
            secret: [0; 16],
            host: RandomState::new().build_hasher().finish(),
            known: 1,
            lease: Duration::from_secs(2),
            interval: Duration::from_millis(100),
            exact_deadline: Duration::from_millis(20),
        }
    }
}

/// How it goes with the fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetStatus {
    /// The store is away: this host decides alone.
    pub alone: bool,
    /// Hosts that are not forgotten.
    pub known: u32,
    /// Hosts that are there.
    pub live: u32,
    /// Clients whose units are exchanged.
    pub clients: u64,
    /// Checks that waited for the store.
    pub waited: u64,
    /// Checks that waited in vain and were decided alone.
    pub overdue: u64,
    /// Exchanges that were answered.
    pub exchanges: u64,
    /// Exchanges that were not.
    pub lost: u64,
    /// How often the store may have been emptied, and was told again.
    pub refills: u64,
}

/// A client's states under one policy: what is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Who {
    pub(super) key: ClientKey,
    pub(super) policy: PolicyWord,
}

/// See the module's text.
pub(super) struct Fleet {
    options: FleetOptions,
    hasher: KeyHasher,
    known: AtomicU32,
    live: AtomicU32,
    alone: AtomicBool,
    epoch: AtomicU64,
    /// What quotas carry: rises with every change of the configuration.
    revision: AtomicU64,
    queue: Mutex<Queue>,
    wake: Notify,
    waited: AtomicU64,
    overdue: AtomicU64,
    exchanges: AtomicU64,
    lost: AtomicU64,
}

impl Fleet {
    pub(super) fn new(options: FleetOptions) -> Self {
        Self {
            options,
            hasher: KeyHasher::new(&options.secret),
            known: AtomicU32::new(options.known.max(1)),
            live: AtomicU32::new(1),
            // Nobody has answered yet.
            alone: AtomicBool::new(true),
            epoch: AtomicU64::new(1),
            revision: AtomicU64::new(0),
            queue: Mutex::default(),
            wake: Notify::new(),
            waited: AtomicU64::new(0),
            overdue: AtomicU64::new(0),
            exchanges: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the fleet now.
    pub(super) fn around(&self) -> Around {
        Around {
            known: self.known.load(Ordering::Relaxed).max(1),
            live: self.live.load(Ordering::Relaxed).max(1),
            alone: self.alone.load(Ordering::Relaxed),
            epoch: self.epoch.load(Ordering::Relaxed),
            lease_ns: ns(self.options.lease),
            interval_ns: ns(self.options.interval),
        }
    }

    /// Name of a client's bucket under the quota `name`.
    pub(super) fn key(&self, name: &str, id: &[u8]) -> FleetKey {
        self.hasher.key(Plane::Requests, name, Unit::Requests, id)
    }

    /// An entry for `who` is due, though nobody waits for it.
    pub(super) fn is_due(&self, who: Who) {
        if self.queue().due(who) {
            self.wake.notify_one();
        }
    }

    /// Lets a check wait; `false` if too many do.
    fn wait_for(&self, who: Who, ticket: &Arc<Ticket>) -> bool {
        let waits = self.queue().wait(who, Arc::clone(ticket));
        if waits {
            self.waited.fetch_add(1, Ordering::Relaxed);
            self.wake.notify_one();
        }
        waits
    }

    fn status(&self) -> FleetStatus {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let around = self.around();
        FleetStatus {
            alone: around.alone,
            known: around.known,
            live: around.live,
            clients: self.queue().len() as u64,
            waited: read(&self.waited),
            overdue: read(&self.overdue),
            exchanges: read(&self.exchanges),
            lost: read(&self.lost),
            refills: around.epoch - 1,
        }
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A check that waits, until it is answered or dropped.
struct Waits<'a> {
    limiter: &'a RateLimiter,
    ticket: Arc<Ticket>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.ticket.give_up();
    }
}

impl Waits<'_> {
    /// The answer, or where there is none what counts alone.
    fn end(&self, answer: Option<Answer>) -> Answer {
        if let Some(answer) = answer.or_else(|| self.ticket.give_up()) {
            return answer;
        }
        let inner = self.limiter.inner();
        if let Some(fleet) = &inner.engine.fleet {
            fleet.overdue.fetch_add(1, Ordering::Relaxed);
        }
        let ask = self.ticket.ask(self.limiter.now_ns(), true);
        inner.engine.check(ask, || ())
    }
}

impl RateLimiter {
    /// Takes part in a fleet through `store`; tasks run on `runtime`, and end with the limiter.
    /// Does nothing for a limiter that was not built with [`super::Builder::fleet`].
    pub fn join(&self, store: Arc<dyn Settle>, runtime: &Handle) {
        let inner = self.inner();
        let Some(fleet) = &inner.engine.fleet else {
            return;
        };
        runtime.spawn(exchange::beat(
            self.weak(),
            Arc::clone(fleet),
            Arc::clone(&store),
        ));
        runtime.spawn(exchange::run(self.weak(), Arc::clone(fleet), store));
    }

    /// Whether this host decides alone although it is one of many.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        let fleet = self.inner().engine.fleet.as_ref();
        fleet.is_some_and(|fleet| fleet.alone.load(Ordering::Relaxed))
    }

    /// How it goes with the fleet; `None` for a limiter of its own.
    #[must_use]
    pub fn fleet_status(&self) -> Option<FleetStatus> {
        self.inner()
            .engine
            .fleet
            .as_ref()
            .map(|fleet| fleet.status())
    }

    /// The quotas in force are those of `revision` of the configuration that the fleet shares: a
    /// store that knows a larger burst from an older revision lowers what is owed to the new one.
    /// To be said after they were applied.
    pub fn quotas_are_of(&self, revision: u64) {
        if let Some(fleet) = &self.inner().engine.fleet {
            fleet.revision.store(revision, Ordering::Relaxed);
        }
    }

    /// Settles everything with the store at the next moment, as after it was emptied.
    pub fn resync(&self) {
        if let Some(fleet) = &self.inner().engine.fleet {
            fleet.refill();
        }
    }

    /// As [`RateLimiter::check_request`], without holding the thread where the store must be asked.
    pub async fn check_request_soon(&self, request: &Request<'_>) -> Result<Answer, ClientIdError> {
        check_client_id(request.client_id)?;
        let (now_ns, clamped) = self.moment(request.timestamp);
        let mut answer = self.ask(request, now_ns);
        if answer.reason == Reason::Pending {
            answer = self.wait_soon(request).await;
        }
        answer.clamped = clamped;
        Ok(answer)
    }

    /// As [`RateLimiter::check_many`], without holding the thread where the store must be asked.
    /// All that wait do so together.
    pub async fn check_many_soon<I: AsRef<[u8]>>(
        &self,
        requests: &[(I, u64)],
        now_ns: u64,
        out: &mut Vec<Answer>,
    ) {
        self.check_many_now(requests, now_ns, out);
        let pending: Vec<usize> = (0..out.len())
            .filter(|place| out.get(*place).is_some_and(|a| a.reason == Reason::Pending))
            .collect();
        if pending.is_empty() {
            return;
        }
        let waits = pending.iter().filter_map(|place| {
            let (id, cost) = requests.get(*place)?;
            let request = Request {
                cost: *cost,
                ..Request::new(id.as_ref())
            };
            Some(async move { (*place, self.wait_soon(&request).await) })
        });
        for (place, answer) in futures_util::future::join_all(waits).await {
            if let Some(slot) = out.get_mut(place) {
                *slot = answer;
            }
        }
    }

    /// Waits for the store, on this thread.
    #[cold]
    pub(super) fn wait(&self, request: &Request<'_>) -> Answer {
        match self.queued(request) {
            Ok(waits) => {
                let answer = waits.ticket.wait(self.deadline());
                waits.end(answer)
            }
            Err(answer) => answer,
        }
    }

    async fn wait_soon(&self, request: &Request<'_>) -> Answer {
        match self.queued(request) {
            Ok(waits) => {
                let ready = ticket::Ready(Arc::clone(&waits.ticket));
                let answer = tokio::time::timeout(self.deadline(), ready).await.ok();
                waits.end(answer)
            }
            Err(answer) => answer,
        }
    }

    fn deadline(&self) -> Duration {
        let fleet = self.inner().engine.fleet.as_ref();
        fleet.map_or(Duration::ZERO, |fleet| fleet.options.exact_deadline)
    }

    /// Lets a check wait that only the store can decide.
    fn queued(&self, request: &Request<'_>) -> Result<Waits<'_>, Answer> {
        let engine = &self.inner().engine;
        let key = self.inner().identity.of(request.client_id);
        let waits = Waits {
            limiter: self,
            ticket: Arc::new(Ticket::new(key, request)),
        };
        let queued = engine
            .fleet
            .as_ref()
            .zip(engine.block_policy(key))
            .is_some_and(|(fleet, policy)| fleet.wait_for(Who { key, policy }, &waits.ticket));
        if queued {
            Ok(waits)
        } else {
            Err(waits.end(None))
        }
    }
}

impl Ask<'_> {
    /// Whether the id is known from which a fleet's key is made.
    pub(super) fn has_id(&self) -> bool {
        !self.id.is_empty()
    }
}
