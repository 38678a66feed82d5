//! What a change would have done to the last minute of traffic, as far as the samples of the busiest
//! sources tell: about one packet in 32 is sampled, and 2048 sources are kept.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ratelimiter_common::abi::policy::action;
use ratelimiter_common::abi::tracked::{SourceKey, shared_key};
use ratelimiter_common::quota::{KERNEL_UNITS, Unit};
use ratelimiter_common::verdict::Mode;

use super::explain::address_of;
use super::state::covering;
use super::talkers::Talker;
use crate::admin::views::DryRun;
use crate::policy::clock::UnitTarget;
use crate::policy::set::Compiled;

/// How a source is treated.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Treatment {
    Allowed,
    Blocked,
    /// By a policy: the slot if its sources share one bucket, and what is limited.
    Limited(Option<u32>, [Option<UnitTarget>; KERNEL_UNITS]),
}

fn treatment(set: &Compiled, address: IpAddr) -> Treatment {
    let found = covering(&set.prefixes, address).map(|(_, value)| (value.action, value.slot));
    let units = |slot: u32| {
        set.policies
            .get(&slot)
            .map_or([None; KERNEL_UNITS], |target| target.units)
    };
    let zone = |number: u32| set.zones.get(number as usize).map_or(0, |zone| zone.slot);
    match found {
        Some((action::ALLOW, _)) => Treatment::Allowed,
        Some((action::BLOCK, _)) => Treatment::Blocked,
        Some((action::TRACKED, slot)) => Treatment::Limited(None, units(slot)),
        Some((action::SHARED, slot)) => Treatment::Limited(Some(slot), units(slot)),
        Some((action::ZONE, number)) => Treatment::Limited(None, units(zone(number))),
        _ => Treatment::Limited(None, units(zone(0))),
    }
}

/// Packets and bytes one bucket was asked for, and by how many sources.
#[derive(Default)]
struct Asked {
    packets: u64,
    bytes: u64,
    sources: u64,
}

/// Returns what `next` would have done to `talkers` in the last `observed_s` seconds, where it
/// treats them otherwise than `now`. Connections are not sampled, so their limits do not count.
pub(super) fn estimate(
    now: &Compiled,
    next: &Compiled,
    talkers: &[Talker],
    observed_s: f64,
) -> DryRun {
    let mut buckets: BTreeMap<(SourceKey, u8), (Treatment, Asked)> = BTreeMap::new();
    for talker in talkers {
        let Some(address) = address_of(talker) else {
            continue;
        };
        let treated = treatment(next, address);
        if treated == treatment(now, address) {
            continue;
        }
        let id = match treated {
            Treatment::Limited(Some(slot), _) => (shared_key(slot), 0),
            _ => (talker.key, talker.family),
        };
        let (_, asked) = buckets
            .entry(id)
            .or_insert_with(|| (treated, Asked::default()));
        let [packets, bytes] = talker.last_minute();
        asked.packets += packets;
        asked.bytes += bytes;
        asked.sources += 1;
    }
    let observed_ns = (observed_s.clamp(0.0, 60.0) * 1e9) as u64;
    let mut answer = DryRun {
        observed_s,
        ..DryRun::default()
    };
    for (treated, asked) in buckets.values() {
        answer.packets += asked.packets;
        let refused = match treated {
            Treatment::Allowed => 0,
            Treatment::Blocked => asked.packets,
            Treatment::Limited(_, units) => refused(units, asked, observed_ns),
        };
        answer.would_refuse += refused;
        answer.sources += if refused > 0 { asked.sources } else { 0 };
    }
    answer
}

/// Packets beyond the tightest limit, from full buckets.
fn refused(units: &[Option<UnitTarget>; KERNEL_UNITS], asked: &Asked, observed_ns: u64) -> u64 {
    let beyond = |unit: Unit, asked: u64| {
        let target = units.get(unit as usize).copied().flatten()?;
        let limit = target.limit;
        let entitled = limit.burst.saturating_add(limit.speed.advance(observed_ns));
        let whole = entitled >> unit.fraction_bits();
        (target.mode == Mode::Enforce).then(|| asked.saturating_sub(whole))
    };
    let packets = beyond(Unit::Packets, asked.packets).unwrap_or(0);
    let bytes = beyond(Unit::Bytes, asked.bytes).unwrap_or(0);
    let of_bytes = u128::from(bytes) * u128::from(asked.packets) / u128::from(asked.bytes.max(1));
    packets.max(of_bytes as u64)
}
