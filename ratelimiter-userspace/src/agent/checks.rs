//! The check plane in the agent: its listener, and its usage on disk, put back at the start, saved
//! every flush interval and at the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::state::Shared;
use crate::check::Checks;
use crate::clock;
use crate::config::{Right, Settings};
use crate::http::check::CheckApi;
use crate::http::gate::Gate;
use crate::http::listen::ListenError;
use crate::http::{Limits, Listener};
use crate::limiter::{FleetOptions, IdentityKey, snapshot};
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
    for warning in store.status().warnings {
        tracing::warn!(%warning, "store");
    }
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
    fleet: Option<FleetOptions>,
) -> anyhow::Result<Checks> {
    let key = found.map_or_else(IdentityKey::random, |found| found.key);
    Ok(Checks::of_fleet(settings, key, gate, fleet)?)
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

/// Binds the check API's listener. On an address others can reach it needs a credential that may
/// check.
pub(super) async fn bind(
    settings: &Settings,
    address: SocketAddr,
) -> Result<Listener, ListenError> {
    let locked = settings
        .credentials
        .values()
        .any(|credential| credential.grants(Right::Check));
    Listener::tcp_for("check.http", address, locked).await
}

/// The check API over HTTP, and the bounds of its listener.
pub(super) fn api(settings: &Settings, checks: &Checks, exposed: bool) -> (CheckApi, Limits) {
    let check = &settings.check;
    let header_timeout = Duration::from_millis(check.header_timeout_ms);
    let limits = Limits {
        connections: check.max_connections as usize,
        connections_per_peer: check.max_connections_per_peer as usize,
        header_timeout,
        drain: Duration::from_millis(settings.safety.drain_ms),
        ..Limits::default()
    };
    let max_body_bytes = usize::try_from(check.max_body_bytes).unwrap_or(usize::MAX);
    let api = CheckApi::new(checks.clone(), exposed, max_body_bytes, header_timeout);
    (api, limits)
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
