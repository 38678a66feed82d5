//! The store's handle, and the task that owns its connection.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use redis::{RedisResult, ServerErrorKind, Value};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;

use super::connect::{Access, Connection, Connector};
use super::figures::{Counts, Figures, count};
use super::pace::{Failure, Pace};
use super::script::{Script, command, is_server, reason, severity};
use super::wire;
use crate::clock;
use crate::policy::model::Algorithm;
use crate::sync::settle::MAX_BATCH;
use crate::sync::{Beat, Entry, Fleet, FleetKey, FleetQuota, Settle, Settled, Unsettled};

/// Calls under way at once; one more is refused, so that nothing queues up behind a slow store.
const IN_FLIGHT: usize = 256;
/// Least time to connect, and to be answered once.
const CONNECT: Duration = Duration::from_millis(500);
/// Threads for looking up names, which cannot be interrupted.
const LOOKUPS: usize = 4;
/// Hexadecimal digits of a key that are its hash tag: 4096 tags share a cluster's slots, so that
/// a batch makes few calls.
const TAG_DIGITS: usize = 3;

/// What a store is opened with.
#[derive(Clone)]
pub struct Options {
    /// Where it is.
    pub access: Access,
    /// Start of every key.
    pub prefix: String,
    /// How long a call may take before it counts as unanswered.
    pub deadline: Duration,
    /// What the shared configuration is signed with; the same on all hosts.
    pub secret: [u8; 16],
}

impl std::fmt::Debug for Options {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("access", &self.access)
            .field("prefix", &self.prefix)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// The fleet's store in Redis. Clones share the connection; the last one closes it.
#[derive(Clone)]
pub struct RedisStore {
    pub(super) inner: Arc<Inner>,
    owner: Arc<Owner>,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore")
            .field("options", &self.inner.options)
            .finish_non_exhaustive()
    }
}

/// Ends the thread of the connection.
struct Owner {
    stop: watch::Sender<bool>,
    handle: Handle,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

pub(super) struct Inner {
    options: Options,
    counts: Counts,
    /// The connection in use; `None` while the breaker is open.
    current: ArcSwapOption<Current>,
    pace: Mutex<Pace>,
    /// The connection in use is of no use any more.
    broken: Notify,
    in_flight: Semaphore,
    settle: Script,
    pub(super) beat: Script,
    adaptive: Script,
    pub(super) config: Script,
}

pub(super) struct Current {
    connection: Connection,
    is_cluster: bool,
}

impl RedisStore {
    /// Starts the thread that owns the connection. Does not wait for the store: it may be away.
    ///
    /// # Errors
    ///
    /// If the settings contradict themselves, a certificate cannot be read, or there is no thread.
    pub fn open(options: Options) -> Result<Self, String> {
        let connector = Connector::new(&options.access)
            .map_err(|error| format!("`redis.url` cannot be used: {}", reason(&error)))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(LOOKUPS)
            .build()
            .map_err(|error| format!("no event loop for the store: {error}"))?;
        let inner = Arc::new(Inner {
            options,
            counts: Counts::default(),
            current: ArcSwapOption::empty(),
            pace: Mutex::default(),
            broken: Notify::new(),
            in_flight: Semaphore::new(IN_FLIGHT),
            settle: Script::new(include_str!("lua/settle.lua")),
            beat: Script::new(include_str!("lua/beat.lua")),
            adaptive: Script::new(include_str!("lua/adaptive.lua")).beside(),
            config: Script::new(include_str!("lua/config.lua")).beside(),
        });
        inner.counts.say("not connected yet".to_owned());
        let (stop, stopped) = watch::channel(false);
        let handle = runtime.handle().clone();
        let keeper = Arc::clone(&inner);
        std::thread::Builder::new()
            .name("redis".to_owned())
            .spawn(move || {
                runtime.block_on(keep(keeper, connector, stopped));
                // A look-up of a name may hang longer than anybody wants to wait.
                runtime.shutdown_background();
            })
            .map_err(|error| format!("no thread for the store: {error}"))?;
        Ok(Self {
            inner,
            owner: Arc::new(Owner { stop, handle }),
        })
    }

    /// Where tasks run that live on the store's answers: its own thread, which does nothing else.
    #[must_use]
    pub fn runtime(&self) -> Handle {
        self.owner.handle.clone()
    }

    /// How it goes.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.inner.counts.read()
    }

    /// Whether calls go out now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.counts.connected.load(Ordering::Relaxed)
    }

    /// As [`Settle::settle`], with the store's time at which it was done, in microseconds since the
    /// Unix epoch. Not for batches that a cluster would divide.
    pub async fn settle_at(&self, batch: &[Entry]) -> Result<(u64, Settled), Unsettled> {
        let current = self.inner.current()?;
        self.inner.settle_together(&current, batch, true).await
    }

    /// Names of a backend's state and records; they share a slot of a cluster.
    pub(super) fn adaptive_keys(&self, backend: &str) -> [String; 2] {
        let prefix = &self.inner.options.prefix;
        ["state", "hosts"].map(|what| format!("{prefix}:a:{{{backend}}}:{what}"))
    }

    pub(super) async fn run_adaptive(
        &self,
        keys: &[String],
        arguments: &[Vec<u8>],
    ) -> Result<Value, Unsettled> {
        let inner = &self.inner;
        let current = inner.current()?;
        inner.run(&current, &inner.adaptive, keys, arguments).await
    }

    pub(super) fn misunderstood(&self, what: &str) -> Unsettled {
        self.inner.garbled(what)
    }

    /// Name of a usage key in Redis.
    #[must_use]
    pub fn usage_key(&self, key: FleetKey) -> String {
        self.inner.usage_key(key)
    }
}

#[async_trait]
impl Settle for RedisStore {
    async fn settle(&self, batch: &[Entry]) -> Result<Settled, Unsettled> {
        self.inner.settle_all(batch).await
    }

    async fn beat(&self, beat: &Beat) -> Result<Fleet, Unsettled> {
        self.inner.beat_once(beat).await
    }
}

impl Inner {
    pub(super) fn prefix(&self) -> &str {
        &self.options.prefix
    }

    pub(super) fn deadline(&self) -> Duration {
        self.options.deadline
    }

    pub(super) fn config_secret(&self) -> &[u8; 16] {
        &self.options.secret
    }

    fn usage_key(&self, key: FleetKey) -> String {
        let digits = key.to_string();
        let (tag, rest) = digits.split_at(TAG_DIGITS);
        format!("{}:u:{{{tag}}}:{rest}", self.options.prefix)
    }

    async fn settle_all(&self, batch: &[Entry]) -> Result<Settled, Unsettled> {
        if batch.is_empty() {
            return Ok(Settled::default());
        }
        let current = self.current()?;
        if batch.len() > MAX_BATCH {
            return Err(Unsettled::Away(format!(
                "a batch has {} entries, {MAX_BATCH} at most",
                batch.len()
            )));
        }
        if !current.is_cluster {
            let (_, settled) = self.settle_together(&current, batch, true).await?;
            return Ok(settled);
        }
        // One call per hash tag: the keys of one call must share a slot.
        let mut places: Vec<usize> = (0..batch.len()).collect();
        let tag = |place: usize| {
            batch
                .get(place)
                .map(|entry| entry.key.0 >> (128 - 4 * TAG_DIGITS))
        };
        places.sort_by_key(|place| tag(*place));
        let groups: Vec<(Vec<usize>, Vec<Entry>)> = places
            .chunk_by(|a, b| tag(*a) == tag(*b))
            .map(|group| {
                let entries = group.iter().filter_map(|place| batch.get(*place)).copied();
                (group.to_vec(), entries.collect())
            })
            .collect();
        let calls = groups
            .iter()
            .map(|(_, entries)| self.settle_together(&current, entries, false));
        let mut all = Settled {
            answers: vec![crate::sync::Answer::default(); batch.len()],
            ..Settled::default()
        };
        let settled = futures_util::future::join_all(calls).await;
        // One server of several that is away takes its own entries with it and nobody else's.
        if !settled.iter().any(Result::is_ok)
            && let Some(Err(error)) = settled.first()
        {
            self.failed(Failure::Doubtful);
            return Err(error.clone());
        }
        for ((group, _), settled) in groups.iter().zip(settled) {
            let Ok((_, settled)) = settled else {
                all.lost.extend(group);
                continue;
            };
            all.clamped += settled.clamped;
            all.mended += settled.mended;
            for (place, answer) in group.iter().zip(settled.answers) {
                if let Some(slot) = all.answers.get_mut(*place) {
                    *slot = answer;
                }
            }
        }
        all.lost.sort_unstable();
        Ok(all)
    }

    /// Settles entries whose keys are in one place. `alone` says whether a failure counts as the
    /// store's.
    async fn settle_together(
        &self,
        current: &Current,
        batch: &[Entry],
        alone: bool,
    ) -> Result<(u64, Settled), Unsettled> {
        let keys: Vec<String> = batch
            .iter()
            .map(|entry| self.usage_key(entry.key))
            .collect();
        let arguments: Vec<Vec<u8>> = batch.iter().map(wire::pack).collect();
        count(&self.counts.entries, batch.len() as u64);
        let within = self.options.deadline;
        let value = self
            .run_within(current, &self.settle, (&keys, &arguments), within, alone)
            .await?;
        let Value::BulkString(bytes) = value else {
            return Err(self.garbled("not a string"));
        };
        let unpacked = wire::unpack(&bytes, batch.len()).map_err(|what| self.garbled(&what))?;
        count(&self.counts.clamped, unpacked.settled.clamped);
        count(&self.counts.mended, unpacked.settled.mended);
        Ok((unpacked.now_us, unpacked.settled))
    }

    pub(super) fn current(&self) -> Result<Arc<Current>, Unsettled> {
        self.current.load_full().ok_or_else(|| {
            count(&self.counts.refused, 1);
            Unsettled::Away(self.counts.error.load().as_ref().clone())
        })
    }

    pub(super) fn garbled(&self, what: &str) -> Unsettled {
        count(&self.counts.failed, 1);
        self.counts
            .say(format!("an answer is not understood: {what}"));
        self.failed(Failure::Doubtful);
        Unsettled::Garbled(what.to_owned())
    }

    /// Calls a script, with the deadline around everything.
    pub(super) async fn run(
        &self,
        current: &Current,
        script: &Script,
        keys: &[String],
        arguments: &[Vec<u8>],
    ) -> Result<Value, Unsettled> {
        let within = self.options.deadline;
        self.run_within(current, script, (keys, arguments), within, true)
            .await
    }

    pub(super) async fn run_within(
        &self,
        current: &Current,
        script: &Script,
        (keys, arguments): (&[String], &[Vec<u8>]),
        within: Duration,
        alone: bool,
    ) -> Result<Value, Unsettled> {
        // A connection is everybody's; what else fails beside the limits is not theirs.
        let failed = |failure, of_connection: bool| {
            if alone && (script.is_vital || of_connection) {
                self.failed(failure);
            }
        };
        let Ok(_permit) = self.in_flight.try_acquire() else {
            count(&self.counts.refused, 1);
            return Err(Unsettled::Away(format!(
                "{IN_FLIGHT} calls wait for answers already"
            )));
        };
        count(&self.counts.calls, 1);
        let begin_ns = clock::monotonic_ns();
        let call = self.call(current, script, keys, arguments);
        let answer = timeout(within, call).await;
        let now_ns = clock::monotonic_ns();
        match answer {
            Ok(Ok(value)) => {
                self.counts.answered_ns.store(now_ns, Ordering::Relaxed);
                count(&self.counts.call_ns, now_ns.saturating_sub(begin_ns));
                if script.is_vital {
                    self.pace().answered();
                }
                Ok(value)
            }
            Ok(Err(error)) => {
                count(&self.counts.failed, 1);
                let text = reason(&error);
                self.counts.say(text.clone());
                failed(severity(&error, current.is_cluster), error.is_io_error());
                // What was on its way when the connection went may have arrived.
                if error.is_io_error() && !error.is_connection_refusal() {
                    Err(Unsettled::Broken(text))
                } else {
                    Err(Unsettled::Away(text))
                }
            }
            Err(_) => {
                count(&self.counts.late, 1);
                let ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
                self.counts.say(format!("no answer within {ms} ms"));
                failed(Failure::Doubtful, false);
                Err(Unsettled::Late(ms))
            }
        }
    }

    /// Sends a script's call; again only where the answer says that it was not run.
    async fn call(
        &self,
        current: &Current,
        script: &Script,
        keys: &[String],
        arguments: &[Vec<u8>],
    ) -> RedisResult<Value> {
        let mut connection = current.connection.clone();
        let by_hash = command("EVALSHA", &script.hash, keys, arguments);
        match connection.call(&by_hash).await {
            Err(error) if is_server(&error, ServerErrorKind::NoScript) => {
                count(&self.counts.reloads, 1);
                let whole = command("EVAL", script.code, keys, arguments);
                connection.call(&whole).await
            }
            // The library has been told where the slot is now.
            Err(error)
                if current.is_cluster
                    && (is_server(&error, ServerErrorKind::Moved)
                        || is_server(&error, ServerErrorKind::TryAgain)) =>
            {
                connection.call(&by_hash).await
            }
            answer => answer,
        }
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, failure: Failure) {
        if self.pace().failed(failure) {
            // At once, so that nobody waits for a dead connection meanwhile.
            self.current.store(None);
            self.broken.notify_one();
        }
    }

    /// Whether a fresh connection can do what it is for: a script that writes, on every server of
    /// one key at least. Finds read-only replicas, full memory, missing rights and slow servers.
    async fn probe(&self, current: &Current) -> Result<(), Unsettled> {
        let quota = FleetQuota {
            algorithm: Algorithm::FixedWindow,
            limit: 1,
            burst: 1,
            window_us: 1_000_000,
            grain: 1,
            revision: 0,
        };
        let entry = Entry::read(FleetKey(0), quota);
        self.settle_together(current, &[entry], true)
            .await
            .map(drop)
    }
}

/// Keeps a connection until told to stop.
async fn keep(inner: Arc<Inner>, mut connector: Connector, mut stopped: watch::Receiver<bool>) {
    let chance = RandomState::new();
    let mut tries = 0_u64;
    loop {
        let now_ns = clock::monotonic_ns();
        let mut random = chance.build_hasher();
        random.write_u64(tries);
        let next_ns = inner.pace().next_try_ns(now_ns, random.finish());
        let wait = Duration::from_nanos(next_ns.saturating_sub(now_ns));
        if timeout(wait, stopped.wait_for(|stop| *stop)).await.is_ok() {
            return;
        }
        tries += 1;
        inner.pace().tried(clock::monotonic_ns());
        count(&inner.counts.tries, 1);
        let is_cluster = connector.is_cluster();
        let within = CONNECT.max(inner.options.deadline * 2);
        let connection = match timeout(within, connector.connect()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                refused(&inner, &reason(&error));
                continue;
            }
            Err(_) => {
                refused(
                    &inner,
                    &format!("no connection within {} ms", within.as_millis()),
                );
                continue;
            }
        };
        let current = Arc::new(Current {
            connection,
            is_cluster,
        });
        // A failure noted for the connection before says nothing of this one.
        let _stale = timeout(Duration::ZERO, inner.broken.notified()).await;
        if inner.probe(&current).await.is_err() {
            let text = inner.counts.error.load().as_ref().clone();
            refused(&inner, &text);
            continue;
        }
        count(&inner.counts.connections, 1);
        inner.counts.say(String::new());
        inner.current.store(Some(current));
        inner.counts.turn(true, clock::monotonic_ns());
        tracing::info!(store = ?inner.options.access.target.form, "connected to the store");
        let told = tokio::select! {
            () = inner.broken.notified() => false,
            _ = stopped.wait_for(|stop| *stop) => true,
        };
        inner.current.store(None);
        if told {
            return;
        }
        let error = inner.counts.error.load().as_ref().clone();
        inner.counts.turn(false, clock::monotonic_ns());
        tracing::warn!(%error, "the store is away; limits hold as `on_store_loss` says");
    }
}

fn refused(inner: &Inner, error: &str) {
    // Said once for each reason, not twice a second.
    if inner.counts.error.load().as_str() != error {
        tracing::warn!(%error, "no connection to the store; trying again for ever");
        inner.counts.say(error.to_owned());
    }
    inner.pace().failed(Failure::Final);
}
