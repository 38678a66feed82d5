//! From the policy in force to what keys are settled by.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ratelimiter_common::abi::counters::Sample;
use ratelimiter_common::abi::policy::action;
use ratelimiter_common::abi::tracked::{SourceKey, shared_key};
use ratelimiter_common::quota::{KERNEL_UNITS, Unit};
use ratelimiter_common::vclock::SegmentClock;

use super::Home;
use crate::agent::explain::limits_of;
use crate::agent::state::View;
use crate::clock;
use crate::policy::model::{Algorithm, Mode};
use crate::policy::set::Compiled;
use crate::sync::host::Rule;
use crate::sync::{FleetQuota, KeyHasher, OnStoreLoss, Plane};

const UNITS: [Unit; KERNEL_UNITS] = [Unit::Packets, Unit::Bytes, Unit::Connections];

/// One unit of a policy.
#[derive(Clone, Debug)]
pub(super) struct UnitRule {
    /// Whose limit it is, for the key.
    policy: Arc<str>,
    unit: Unit,
    pub(super) quota: FleetQuota,
    on_loss: OnStoreLoss,
}

impl UnitRule {
    /// What a sample stands for.
    pub(super) fn amount(&self, sample: &Sample) -> u64 {
        let weight = u64::from(sample.weight.max(1));
        match self.unit {
            Unit::Bytes => weight * u64::from(sample.bytes),
            Unit::Connections => (weight << 8) * u64::from(sample.flags & 1),
            _ => weight << 8,
        }
    }
}

/// The rules of all policies, by slot.
#[derive(Default)]
pub(super) struct Rules {
    slots: HashMap<u32, [Option<UnitRule>; KERNEL_UNITS]>,
    shared: Vec<SourceKey>,
    compiled: Option<Arc<Compiled>>,
    /// Segment speeds the quotas were made with.
    segments: Vec<(u32, u64)>,
}

impl Rules {
    /// Follows the policy in force, and the segments' clocks.
    pub(super) fn refresh(&mut self, view: &View) {
        let now_ns = clock::monotonic_ns();
        let segments: Vec<(u32, u64)> = view
            .segments
            .iter()
            .map(|(number, clock)| (*number, per_second(clock, now_ns)))
            .collect();
        let same = self
            .compiled
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, &view.compiled));
        if same && segments == self.segments {
            return;
        }
        self.slots.clear();
        for slot in view.compiled.policies.keys() {
            self.slots.insert(*slot, rules_of(view, *slot, now_ns));
        }
        self.shared = view
            .compiled
            .tracked
            .iter()
            .map(|(key, _)| *key)
            .filter(|key| is_shared(*key))
            .collect();
        self.compiled = Some(Arc::clone(&view.compiled));
        self.segments = segments;
    }

    /// The first unit that the policy in a slot limits.
    pub(super) fn first(&self, slot: u32) -> Option<&UnitRule> {
        self.slots.get(&slot)?.iter().flatten().next()
    }

    /// Keys of the buckets that all sources of a client share.
    pub(super) fn shared(&self) -> &[SourceKey] {
        &self.shared
    }

    /// What a source's unit is settled by; `None` if nothing is enforced.
    pub(super) fn rule(
        &self,
        hasher: &KeyHasher,
        slot: u32,
        unit: u8,
        key: SourceKey,
    ) -> Option<Rule> {
        let rule = self.slots.get(&slot)?.get(usize::from(unit))?.as_ref()?;
        let bytes = key.to_be_bytes();
        // The number in a shared bucket's key is this host's.
        let who: &[u8] = if is_shared(key) { b"all" } else { &bytes };
        Some(Rule {
            key: hasher.key(Plane::Packets, &rule.policy, rule.unit, who),
            quota: rule.quota,
            one: 1 << rule.unit.fraction_bits(),
            on_loss: rule.on_loss,
        })
    }
}

fn rules_of(view: &View, slot: u32, now_ns: u64) -> [Option<UnitRule>; KERNEL_UNITS] {
    let name = view.compiled.policies.get(&slot).map(|policy| &policy.name);
    let speed = view.policies.get(&slot).map_or(NANOS, |entry| {
        per_second(&view.segment_clock(entry), now_ns)
    });
    let mut rules = [None, None, None];
    let Some(name) = name else {
        return rules;
    };
    let limits = limits_of(view, slot);
    for ((unit, place), effective) in UNITS.into_iter().zip(&mut rules).zip(limits) {
        // Who is only watched is limited nowhere, and spends nothing of the fleet's.
        let Some(effective) = effective.filter(|effective| effective.mode == Mode::Enforce) else {
            continue;
        };
        let quota = effective.spec.quota();
        let bits = unit.fraction_bits();
        let limit = (u128::from(quota.rate_limit) << bits) * u128::from(speed) / u128::from(NANOS);
        *place = Some(UnitRule {
            policy: Arc::from(format!("{name}/{}", effective.name)),
            unit,
            quota: FleetQuota {
                algorithm: Algorithm::TokenBucket,
                limit: (limit as u64).max(1),
                burst: quota.burst << bits,
                window_us: quota.window_ns / 1_000,
                grain: 1,
                // Put in when it is read.
                revision: 0,
            },
            on_loss: effective.spec.on_store_loss.unwrap_or_default(),
        });
    }
    rules
}

const NANOS: u64 = 1_000_000_000;

/// How far a segment's clock moves in a second, in nanoseconds.
fn per_second(clock: &SegmentClock, now_ns: u64) -> u64 {
    let mut begun = clock.pieces.iter().filter(|piece| piece.from_ns <= now_ns);
    let [first, ..] = &clock.pieces;
    begun.next_back().unwrap_or(first).speed.advance(NANOS)
}

/// Whether a key is that of a bucket that all sources of a client share.
pub(super) const fn is_shared(key: SourceKey) -> bool {
    key >> 48 == shared_key(0) >> 48
}

/// Where a source is judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its zone, should it be one of the crowd.
    pub(super) home: Home,
    /// Slot of its policy.
    pub(super) policy: u32,
    /// Whether it is tracked by configuration.
    pub(super) tracked: bool,
}

/// Where the source of `key` is judged; `None` for those that are listed, or whose bucket is their
/// client's.
pub(super) fn place_of(view: &View, key: SourceKey) -> Option<Place> {
    let (address, family) = address_of(key)?;
    let (does, slot) = view
        .covering(address)
        .map_or((action::ZONE, 0), |(_, value)| {
            if clock::monotonic_ns() < value.until_ns {
                (value.action, value.slot)
            } else {
                (value.after_action, value.after_slot)
            }
        });
    let (zone, tracked) = match does {
        action::ALLOW | action::BLOCK | action::SHARED => return None,
        action::TRACKED => (0, true),
        action::ZONE => (slot, false),
        _ => (0, false),
    };
    let policy = if tracked {
        slot
    } else {
        view.compiled
            .zones
            .get(zone as usize)
            .map_or(0, |zone| zone.slot)
    };
    Some(Place {
        home: Home { zone, family },
        policy,
        tracked,
    })
}

/// The units a policy limits.
pub(super) fn units_of(view: &View, policy: u32) -> impl Iterator<Item = u32> {
    let units = view.policies.get(&policy).map_or(0, |entry| entry.units);
    (0..KERNEL_UNITS as u32).filter(move |unit| units >> unit & 1 != 0)
}

/// An address of the source of `key`, and its family.
fn address_of(key: SourceKey) -> Option<(IpAddr, u32)> {
    match key >> 48 {
        0 => Some((Ipv4Addr::from(key as u32).into(), 4)),
        0x0001 => None,
        0x0064 if key >> 32 == 0x0064 << 16 => {
            let prefix = 0x0064_ff9b_u128 << 96;
            Some((Ipv6Addr::from(prefix | u128::from(key as u32)).into(), 6))
        }
        _ => Some((Ipv6Addr::from(u128::from(key) << 64).into(), 6)),
    }
}
