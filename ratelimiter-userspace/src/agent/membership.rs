//! The check plane as one host of a fleet: what it joins with, and how that goes.

use std::time::Duration;

use super::shared_store::SharedStore;
use crate::admin::views::{ConfigSyncView, SyncView};
use crate::check::Checks;
use crate::clock;
use crate::config::settings::Redis;
use crate::limiter::FleetOptions;
use crate::redis::RedisStore;

/// What the check plane joins with.
pub(super) struct Membership {
    pub(super) redis: RedisStore,
    pub(super) options: FleetOptions,
}

impl Membership {
    /// As `settings` say, as the host numbered `host`, which knew of `known` hosts.
    pub(super) fn new(settings: &Redis, store: &SharedStore, host: u64, known: u32) -> Self {
        let ms = Duration::from_millis;
        Self {
            redis: store.store.clone(),
            options: FleetOptions {
                secret: store.key,
                host,
                known,
                lease: ms(settings.lease_ms),
                interval: ms(settings.sync_interval_ms),
                exact_deadline: ms(settings.exact_deadline_ms),
            },
        }
    }
}

/// How it goes with the fleet.
pub(super) fn view(
    checks: &Checks,
    redis: Option<&RedisStore>,
    settings_url: &str,
    config: ConfigSyncView,
) -> SyncView {
    let status = checks.limiter().fleet_status().unwrap_or_default();
    let figures = redis.map(RedisStore::figures).unwrap_or_default();
    let since_s =
        |at_ns: u64| (at_ns != 0).then(|| clock::monotonic_ns().saturating_sub(at_ns) as f64 / 1e9);
    SyncView {
        configured: redis.is_some(),
        store: settings_url.to_owned(),
        connected: figures.connected,
        alone: status.alone && redis.is_some(),
        since_s: since_s(figures.since_ns).unwrap_or(0.0),
        answered_s: since_s(figures.answered_ns),
        error: Some(figures.error).filter(|error| !error.is_empty()),
        hosts_known: status.known,
        hosts_live: status.live,
        clients: status.clients,
        waited: status.waited,
        overdue: status.overdue,
        exchanges: status.exchanges,
        lost: status.lost,
        refills: status.refills,
        tries: figures.tries,
        connections: figures.connections,
        calls: figures.calls,
        entries: figures.entries,
        late: figures.late,
        failed: figures.failed,
        mended: figures.mended,
        clamped: figures.clamped,
        call_s: figures.call_ns as f64 / 1e9,
        config,
    }
}
