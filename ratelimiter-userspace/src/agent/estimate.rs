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
pub(super) enum Treatment {
    /// Never limited.
    Allowed,
    /// Dropped.
    Blocked,
    /// By a policy: the slot if its sources share one bucket, and what is limited.
    Limited(Option<u32>, [Option<UnitTarget>; KERNEL_UNITS]),
}

/// How `set` treats `address`.
pub(super) fn treatment(set: &Compiled, address: IpAddr) -> Treatment {
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

impl Treatment {
    /// Whether a source may lose packets under this treatment that it would keep under `other`: a
    /// lower rate or burst of any unit, a limit where there was none, or a bucket shared with others.
    pub(super) fn is_tighter_than(&self, other: &Self) -> bool {
        let (Self::Limited(shared, units), Self::Limited(was_shared, were)) = (self, other) else {
            return false;
        };
        let enforced =
            |unit: &Option<UnitTarget>| unit.filter(|target| target.mode == Mode::Enforce);
        let tighter =
            units
                .iter()
                .zip(were)
                .any(|(unit, was)| match (enforced(unit), enforced(was)) {
                    (Some(unit), Some(was)) => {
                        let speed = |target: UnitTarget| target.limit.speed.advance(1 << 40);
                        speed(unit) < speed(was) || unit.limit.burst < was.limit.burst
                    }
                    (unit, None) => unit.is_some(),
                    (None, _) => false,
                });
        tighter || (shared.is_some() && was_shared.is_none())
    }

    /// Packets refused of those asked for in `observed_ns`, from full buckets.
    fn refuses(&self, asked: &Asked, observed_ns: u64) -> u64 {
        match self {
            Self::Allowed => 0,
            Self::Blocked => asked.packets,
            Self::Limited(_, units) => refused(units, asked, observed_ns),
        }
    }
}

/// Whom a change would hit of those who send now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Harm {
    /// Sources that would lose packets they do not lose now.
    pub(super) hit: u64,
    /// Sources seen in the last minute.
    pub(super) active: u64,
}

/// Returns whom `next` would hit of those who sent in the last minute.
pub(super) fn harm(now: &Compiled, next: &Compiled, talkers: &[Talker], observed_s: f64) -> Harm {
    let mut harm = Harm::default();
    for bucket in buckets(now, next, talkers) {
        let observed_ns = observed_ns(observed_s);
        let refused = |treated: &Treatment| treated.refuses(&bucket.asked, observed_ns);
        if refused(&bucket.next) > refused(&bucket.now) {
            harm.hit += bucket.asked.sources;
        }
    }
    harm.active = talkers.iter().filter_map(address_of).count() as u64;
    harm
}

/// Packets and bytes one bucket was asked for, and by how many sources.
#[derive(Default)]
struct Asked {
    packets: u64,
    bytes: u64,
    sources: u64,
}

/// Sources that one bucket serves under the next policy, and that are treated otherwise now.
struct Bucket {
    now: Treatment,
    next: Treatment,
    asked: Asked,
}

fn buckets(now: &Compiled, next: &Compiled, talkers: &[Talker]) -> Vec<Bucket> {
    let mut buckets: BTreeMap<(SourceKey, u8), Bucket> = BTreeMap::new();
    for talker in talkers {
        let Some(address) = address_of(talker) else {
            continue;
        };
        let (was, treated) = (treatment(now, address), treatment(next, address));
        if treated == was {
            continue;
        }
        let id = match treated {
            Treatment::Limited(Some(slot), _) => (shared_key(slot), 0),
            _ => (talker.key, talker.family),
        };
        let Bucket { asked, .. } = buckets.entry(id).or_insert_with(|| Bucket {
            now: was,
            next: treated,
            asked: Asked::default(),
        });
        let [packets, bytes] = talker.last_minute();
        asked.packets += packets;
        asked.bytes += bytes;
        asked.sources += 1;
    }
    buckets.into_values().collect()
}

fn observed_ns(observed_s: f64) -> u64 {
    (observed_s.clamp(0.0, 60.0) * 1e9) as u64
}

/// Returns what `next` would have done to `talkers` in the last `observed_s` seconds, where it
/// treats them otherwise than `now`. Connections are not sampled, so their limits do not count.
pub(super) fn estimate(
    now: &Compiled,
    next: &Compiled,
    talkers: &[Talker],
    observed_s: f64,
) -> DryRun {
    let mut answer = DryRun {
        observed_s,
        ..DryRun::default()
    };
    for bucket in buckets(now, next, talkers) {
        let refused = bucket.next.refuses(&bucket.asked, observed_ns(observed_s));
        answer.packets += bucket.asked.packets;
        answer.would_refuse += refused;
        answer.sources += if refused > 0 { bucket.asked.sources } else { 0 };
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
