//! The store that a fleet shares: whether it answers, and what goes to and fro.

use super::text::{Kind, Text};
use crate::admin::views::{ConfigState, SyncView};

/// A series: name, help, value.
type Series = (&'static str, &'static str, fn(&SyncView) -> f64);

const GAUGES: [Series; 6] = [
    (
        "ratelimiter_sync_connected",
        "Whether calls go out to the store that the fleet shares.",
        |sync| f64::from(u8::from(sync.connected)),
    ),
    (
        "ratelimiter_sync_alone",
        "Whether this host limits by itself because the store is away.",
        |sync| f64::from(u8::from(sync.alone)),
    ),
    (
        "ratelimiter_sync_clients",
        "Clients whose units are exchanged with the fleet.",
        |sync| sync.clients as f64,
    ),
    (
        "ratelimiter_sync_config_revision",
        "Revision of the fleet's configuration that is in force on this host.",
        |sync| sync.config.revision as f64,
    ),
    (
        "ratelimiter_sync_config_ahead",
        "Changes made on this host that the fleet's store does not have.",
        |sync| sync.config.ahead as f64,
    ),
    (
        "ratelimiter_sync_config_in_step",
        "Whether this host has the fleet's configuration, as of the last 2 s.",
        |sync| f64::from(u8::from(sync.config.state == ConfigState::InStep)),
    ),
];

const COUNTERS: [Series; 15] = [
    (
        "ratelimiter_sync_calls",
        "Scripts called in the store.",
        |sync| sync.calls as f64,
    ),
    (
        "ratelimiter_sync_entries",
        "Entries in the scripts called.",
        |sync| sync.entries as f64,
    ),
    (
        "ratelimiter_sync_late",
        "Calls without an answer in time.",
        |sync| sync.late as f64,
    ),
    (
        "ratelimiter_sync_failed",
        "Calls that failed otherwise.",
        |sync| sync.failed as f64,
    ),
    (
        "ratelimiter_sync_tries",
        "Tries to connect to the store.",
        |sync| sync.tries as f64,
    ),
    (
        "ratelimiter_sync_call_seconds",
        "Time all answered calls took together.",
        |sync| sync.call_s,
    ),
    (
        "ratelimiter_sync_waited",
        "Checks that waited for the store.",
        |sync| sync.waited as f64,
    ),
    (
        "ratelimiter_sync_overdue",
        "Checks that waited for the store in vain.",
        |sync| sync.overdue as f64,
    ),
    (
        "ratelimiter_sync_refills",
        "How often the store was told everything again.",
        |sync| sync.refills as f64,
    ),
    (
        "ratelimiter_sync_mended",
        "Keys in the store whose state made no sense and was dropped.",
        |sync| sync.mended as f64,
    ),
    (
        "ratelimiter_sync_clamped",
        "Amounts that were larger than they may be.",
        |sync| sync.clamped as f64,
    ),
    (
        "ratelimiter_sync_config_followed",
        "Configurations taken from the fleet's store.",
        |sync| sync.config.followed as f64,
    ),
    (
        "ratelimiter_sync_config_written",
        "Configurations given to the fleet's store.",
        |sync| sync.config.written as f64,
    ),
    (
        "ratelimiter_sync_config_lost",
        "Configurations that gave way to another one that was made apart from them.",
        |sync| sync.config.lost as f64,
    ),
    (
        "ratelimiter_sync_config_refused",
        "Configurations of the fleet that could not be put in force on this host.",
        |sync| sync.config.refused as f64,
    ),
];

/// Nothing where there is no fleet.
pub(super) fn render(text: &mut Text, sync: &SyncView) {
    if !sync.configured {
        return;
    }
    for (kind, series) in [(Kind::Gauge, &GAUGES[..]), (Kind::Counter, &COUNTERS[..])] {
        for (name, help, value) in series {
            text.family(name, kind, help).sample(&[], value(sync));
        }
    }
}
