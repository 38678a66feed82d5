//! Follows the configuration that the fleet shares: looks at the store a few times a second, and has
//! what changed there dealt with on the control thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;

use super::control::Control;
use super::state::Shared;
use crate::admin::views::{ConfigState, ConfigSyncView};
use crate::clock;
use crate::redis::RedisStore;
use crate::sync::Unsettled;
use crate::sync::config::{LOOK_EVERY, Standing};

/// How often a host looks that has refused what it saw: it tries rarely and compares much.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long after its start a change waits for the first answer of the store: 2 s.
const FIRST_ANSWER: Duration = Duration::from_secs(2);
/// How old the newest look may be for this host to be called in step, in nanoseconds: 2 s.
const STALE_NS: u64 = 2_000_000_000;

/// Where this host stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Following {
    pub(super) standing: Standing,
    /// The head that the store had last.
    pub(super) store: Vec<u8>,
}

/// What has been done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) followed: u64,
    pub(super) written: u64,
    pub(super) lost: u64,
    pub(super) refused: u64,
}

/// How it goes with the fleet's configuration, for whoever wants to know.
#[derive(Debug, Default)]
pub(super) struct ConfigSync {
    now: ArcSwap<Following>,
    problem: ArcSwap<Option<String>>,
    counts: Mutex<Counts>,
    /// The store was looked at, and what it had was dealt with.
    met: AtomicBool,
    looked_ns: AtomicU64,
}

impl ConfigSync {
    pub(super) fn show(&self, following: Following) {
        self.now.store(Arc::new(following));
    }

    pub(super) fn say(&self, problem: Option<String>) {
        self.problem.store(Arc::new(problem));
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.problem.load().as_ref().clone()
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The revision that quotas carry in the store.
    pub(super) fn revision(&self) -> u64 {
        self.now.load().standing.revision()
    }

    fn looked(&self) {
        self.looked_ns
            .store(clock::monotonic_ns(), Ordering::Relaxed);
        self.met.store(true, Ordering::Relaxed);
    }

    /// The head for which the store need not send anything.
    fn known(&self) -> Vec<u8> {
        let now = self.now.load();
        match now.standing.head {
            Some(head) if now.standing.ahead == 0 => head.to_string().into_bytes(),
            _ => Vec::new(),
        }
    }

    /// For people and metrics. `configured` says whether there is a store.
    pub(super) fn view(&self, configured: bool) -> ConfigSyncView {
        let now = self.now.load();
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let looked_ns = self.looked_ns.load(Ordering::Relaxed);
        let age_ns = clock::monotonic_ns().saturating_sub(looked_ns);
        let error = self.problem();
        let state = match () {
            () if !configured => ConfigState::Off,
            () if error.is_some() => ConfigState::Refused,
            () if now.standing.ahead > 0 => ConfigState::Ahead,
            () if looked_ns == 0 || age_ns > STALE_NS => ConfigState::Unknown,
            () => ConfigState::InStep,
        };
        ConfigSyncView {
            state,
            revision: now.standing.revision(),
            ahead: now.standing.ahead,
            looked_s: (looked_ns != 0).then_some(age_ns as f64 / 1e9),
            error,
            followed: counts.followed,
            written: counts.written,
            lost: counts.lost,
            refused: counts.refused,
        }
    }
}

impl Shared {
    /// Waits until the store was looked at once, or has had its time: what is changed before that
    /// may be built upon something old.
    pub(super) async fn met_fleet(&self) {
        if self.redis.is_none() {
            return;
        }
        while !self.following.met.load(Ordering::Relaxed) && self.begin.elapsed() < FIRST_ANSWER {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The thread that looks, and what ends it when it is dropped.
pub(super) type Running = (Sender<()>, JoinHandle<()>);

/// Starts the thread, where there is a store.
pub(super) fn start(
    redis: Option<RedisStore>,
    control: &Control,
    shared: &Arc<Shared>,
) -> anyhow::Result<Option<Running>> {
    let Some(redis) = redis else {
        return Ok(None);
    };
    let (stop, stopped) = channel();
    let follower = Follower {
        redis,
        control: control.clone(),
        shared: Arc::clone(shared),
    };
    let thread = std::thread::Builder::new()
        .name("follower".to_owned())
        .spawn(move || follower.run(&stopped))
        .context("starting the thread that follows the fleet's configuration")?;
    Ok(Some((stop, thread)))
}

/// The thread that looks.
struct Follower {
    redis: RedisStore,
    control: Control,
    shared: Arc<Shared>,
}

impl Follower {
    /// Looks until `stop` is dropped.
    fn run(self, stop: &Receiver<()>) {
        loop {
            let began = clock::instant();
            self.look();
            let following = &self.shared.following;
            let every = match following.problem() {
                Some(_) => LOOK_AGAIN,
                None if following.met.load(Ordering::Relaxed) => LOOK_EVERY,
                // Soon after the connection is made.
                None => LOOK_EVERY / 10,
            };
            let rest = every.saturating_sub(began.elapsed());
            match stop.recv_timeout(rest.max(Duration::from_millis(1))) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return,
            }
        }
    }

    fn look(&self) {
        let runtime = self.redis.runtime();
        let known = self.shared.following.known();
        let found = match runtime.block_on(self.redis.configuration(&known)) {
            Ok(found) => found,
            Err(error) => {
                // Why a store does not answer is said where its connection is kept, and one late
                // answer is none of the configuration's.
                let is_passing = matches!(error, Unsettled::Late(_) | Unsettled::Broken(_));
                if !is_passing && self.redis.is_connected() {
                    self.shared.following.say(Some(error.to_string()));
                }
                return;
            }
        };
        if found.is_none() {
            // What the store has is in force here.
            self.shared.following.say(None);
        }
        if let Some(found) = found {
            let job = self.control.with(move |core| {
                core.follow(&found);
                Ok(())
            });
            if runtime.block_on(job).is_err() {
                return;
            }
        }
        self.shared.following.looked();
    }
}
