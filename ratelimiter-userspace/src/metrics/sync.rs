//! Packets over a fleet: how the exchange with the shared store goes.

use super::text::{Kind, Text};
use crate::sync::host::Figures;

pub(super) fn render(text: &mut Text, fleet: &Figures) {
    for (name, help, value) in [
        (
            "ratelimiter_sync_apart",
            "Whether the shared store has been silent for three intervals.",
            u64::from(fleet.apart),
        ),
        (
            "ratelimiter_sync_hot_sources",
            "Sources whose packets are settled with the fleet.",
            fleet.hot,
        ),
        (
            "ratelimiter_sync_stretch",
            "Intervals it takes to settle every hot source that has something to say.",
            fleet.stretch,
        ),
        (
            "ratelimiter_sync_hosts_known",
            "Hosts in the fleet's registry.",
            u64::from(fleet.known),
        ),
        (
            "ratelimiter_sync_hosts_live",
            "Hosts that were heard of in the last two seconds.",
            u64::from(fleet.live),
        ),
    ] {
        text.family(name, Kind::Gauge, help)
            .sample(&[], value as f64);
    }
    text.family(
        "ratelimiter_sync_sources_refused",
        Kind::Counter,
        "Hot sources that were not taken up because there were too many.",
    )
    .sample(&[], fleet.refused as f64);
}
