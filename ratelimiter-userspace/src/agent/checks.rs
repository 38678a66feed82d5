//! The check plane's usage on disk: put back at the start, saved every flush interval and at the
//! end.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::state::Shared;
use crate::check::Checks;
use crate::clock;
use crate::config::Settings;
use crate::http::gate::Gate;
use crate::limiter::{IdentityKey, snapshot};
use crate::store::Store;

/// Name of the blob.
const NAME: &str = "checks";
/// Time saves may take, as a share of all time: where one takes longer than a tenth of the flush
/// interval, the next waits ten times as long.
const SHARE: u32 = 10;
/// Groups of the table looked through for idle clients in one round, so that `ratelimiter_clients`
/// is current within about a minute.
const ROUNDS_PER_SWEEP: usize = 60;

/// Usage as it was found.
pub(super) struct Found {
    bytes: Vec<u8>,
    key: IdentityKey,
}

/// Reads saved usage. Where there is none that can be used, a sentence is logged and every bucket
/// starts full.
pub(super) fn load(store: &dyn Store) -> Option<Found> {
    let loaded = store.load_usage(NAME).map_err(|error| error.to_string());
    let bytes = match loaded {
        Ok(bytes) => bytes?,
        Err(error) => {
            tracing::error!(%error, "usage of the check API is not put back: every bucket starts full");
            return None;
        }
    };
    match snapshot::identity_key(&bytes) {
        Ok(key) => Some(Found { bytes, key }),
        Err(error) => {
            tracing::error!(%error, "usage of the check API is not put back: every bucket starts full");
            None
        }
    }
}

/// Makes the check plane, with the key of the saved usage.
pub(super) fn open(
    settings: &Settings,
    gate: Arc<Gate>,
    found: Option<&Found>,
) -> anyhow::Result<Checks> {
    let key = found.map_or_else(IdentityKey::random, |found| found.key);
    Ok(Checks::new(settings, key, gate)?)
}

/// Puts usage back, once the policy is in force.
pub(super) fn restore(checks: &Checks, found: &Found) {
    match checks.limiter().restore(&found.bytes) {
        Ok(restored) => tracing::info!(
            clients = restored.clients,
            forgotten = restored.forgotten,
            "usage of the check API put back"
        ),
        Err(error) => {
            tracing::error!(%error, "usage of the check API is not put back: every bucket starts full");
        }
    }
}

/// Saves usage while the agent runs.
pub(super) struct Keeper {
    pub(super) checks: Checks,
    pub(super) store: Arc<dyn Store>,
    pub(super) shared: Arc<Shared>,
    /// The flush interval.
    pub(super) every: Duration,
}

impl Keeper {
    /// Saves until `stop` is dropped, then once more.
    pub(super) fn run(self, stop: &Receiver<()>) {
        let mut saved = None;
        let mut wait = self.every;
        while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(wait) {
            let groups = self.checks.limiter().groups().div_ceil(ROUNDS_PER_SWEEP);
            self.checks.limiter().maintain(groups);
            let took = self.save(&mut saved);
            wait = self.every.max(took * SHARE);
        }
        self.save(&mut saved);
    }

    /// Saves, if anything was charged or forgotten since. Returns how long it took.
    fn save(&self, saved: &mut Option<u64>) -> Duration {
        let changes = self.checks.limiter().changes();
        if *saved == Some(changes) {
            return Duration::ZERO;
        }
        let begin = clock::instant();
        let bytes = self.checks.limiter().snapshot();
        let text = match self.store.save_usage(NAME, &bytes) {
            Ok(()) => {
                *saved = Some(changes);
                String::new()
            }
            Err(error) => format!("usage of the check API cannot be saved: {error}"),
        };
        self.shared.checks_error.store(Arc::new(text));
        begin.elapsed()
    }
}
