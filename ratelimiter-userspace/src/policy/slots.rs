//! Numbers: which slot, tag, segment, zone and regions each policy has.
//!
//! What is installed keeps its numbers, found again by identity, so that neither a restart nor an
//! edit elsewhere moves a bucket. New policies take the lowest numbers that nobody has or had.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::Hasher as _;

use ratelimiter_common::abi::config::{REGIONS, SEGMENTS, ZONES};
use ratelimiter_common::abi::policy::{NO_REGION, PolicyEntry, Zone};
use ratelimiter_common::quota::KERNEL_UNITS;
use serde::Serialize;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

use super::model::DEFAULT_SEGMENT;
use super::resolve::KERNEL;
use super::validate::Issue;

/// Whose policy it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyName {
    /// The default packet policy of a segment.
    Segment(String),
    /// The policy of one client.
    Client(String),
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => write!(f, "segment:{name}"),
            Self::Client(id) => write!(f, "client:{id}"),
        }
    }
}

impl PolicyName {
    /// The keyed hash that names the policy in the kernel; never zero.
    #[must_use]
    pub fn identity(&self, key: [u64; 2]) -> [u64; 2] {
        let mut hasher = SipHasher13::new_with_keys(key[0], key[1]);
        let (kind, name) = match self {
            Self::Segment(name) => ("segment:", name),
            Self::Client(id) => ("client:", id),
        };
        hasher.write(kind.as_bytes());
        hasher.write(name.as_bytes());
        let hash = hasher.finish128();
        if (hash.h1, hash.h2) == (0, 0) {
            [1, 0]
        } else {
            [hash.h1, hash.h2]
        }
    }
}

/// An empty zone.
pub const UNUSED_ZONE: Zone = Zone {
    slot: 0,
    regions: [NO_REGION; KERNEL_UNITS],
    used: 0,
};

/// What is installed, as far as numbers go.
#[derive(Clone, Debug, Default)]
pub struct Known {
    by_identity: HashMap<[u64; 2], Place>,
    slots: BTreeSet<u32>,
    segments: BTreeSet<u32>,
    zones: Vec<Zone>,
}

/// The numbers of one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Policy slot.
    pub slot: u32,
    /// Tag of its TATs, 1..=255.
    pub tag: u32,
    /// Segment number.
    pub segment: u32,
}

impl Known {
    /// Reads the numbers of the policies and zones that are installed.
    #[must_use]
    pub fn new(policies: &BTreeMap<u32, PolicyEntry>, zones: &[Zone; ZONES]) -> Self {
        Self {
            by_identity: policies
                .values()
                .map(|entry| {
                    let place = Place {
                        slot: entry.slot,
                        tag: entry.tag,
                        segment: entry.segment,
                    };
                    (entry.identity, place)
                })
                .collect(),
            slots: policies.keys().copied().collect(),
            segments: policies.values().map(|entry| entry.segment).collect(),
            zones: zones.to_vec(),
        }
    }
}

/// The lowest number in `range` that is in none of the sets; failing that, one that is only in
/// `before` and so about to be free.
fn lowest_free(
    range: std::ops::Range<u32>,
    taken: &BTreeSet<u32>,
    before: &BTreeSet<u32>,
    from: &mut u32,
) -> Option<u32> {
    let mut candidate = (*from).max(range.start);
    while candidate < range.end {
        if !taken.contains(&candidate) && !before.contains(&candidate) {
            *from = candidate + 1;
            return Some(candidate);
        }
        candidate += 1;
    }
    range.into_iter().find(|number| !taken.contains(number))
}

/// Hands out segment numbers by name: the default segment is 0.
pub(super) fn number_segments<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    key: [u64; 2],
    known: &Known,
) -> Result<BTreeMap<String, u32>, Issue> {
    let mut numbers = BTreeMap::from([(DEFAULT_SEGMENT.to_owned(), 0)]);
    let mut taken = BTreeSet::from([0]);
    for name in names.clone() {
        let identity = PolicyName::Segment(name.to_owned()).identity(key);
        if let Some(place) = known.by_identity.get(&identity)
            && name != DEFAULT_SEGMENT
            && taken.insert(place.segment)
        {
            numbers.insert(name.to_owned(), place.segment);
        }
    }
    let mut from = 1;
    for name in names {
        if numbers.contains_key(name) {
            continue;
        }
        let Some(number) = lowest_free(1..SEGMENTS as u32, &taken, &known.segments, &mut from)
        else {
            return Err(Issue::at(
                &["segments", name],
                format!(
                    "segment `{name}` is one too many; there may be at most {SEGMENTS} segments"
                ),
            ));
        };
        taken.insert(number);
        numbers.insert(name.to_owned(), number);
    }
    Ok(numbers)
}

/// A policy that wants a place.
pub(super) struct Want {
    pub(super) name: PolicyName,
    pub(super) segment: u32,
}

/// Tags of segment policies are 1..=64, those of clients 65..=255: two segments never share one, so
/// a source that moves between segments is always recognised.
const CLIENT_TAGS: u64 = 255 - SEGMENTS as u64;

/// Hands out slots and tags; the first want is the default segment and has slot 0.
pub(super) fn place_policies(
    wants: &[Want],
    key: [u64; 2],
    known: &Known,
    slots: u32,
) -> Result<Vec<(Place, [u64; 2])>, Issue> {
    let mut taken = BTreeSet::from([0]);
    let identities: Vec<_> = wants.iter().map(|want| want.name.identity(key)).collect();
    let mut places: Vec<Option<Place>> = Vec::with_capacity(wants.len());
    for (n, (want, identity)) in wants.iter().zip(&identities).enumerate() {
        let kept = known
            .by_identity
            .get(identity)
            .filter(|place| place.slot < slots && (n == 0) == (place.slot == 0))
            .filter(|place| n == 0 || taken.insert(place.slot))
            .map(|place| Place {
                segment: want.segment,
                ..*place
            });
        places.push(kept);
    }
    let mut from = 1;
    let mut placed = Vec::with_capacity(wants.len());
    for ((n, want), (place, identity)) in
        wants.iter().enumerate().zip(places.iter().zip(identities))
    {
        let place = if let Some(place) = place {
            *place
        } else {
            let slot = if n == 0 {
                0
            } else {
                lowest_free(1..slots, &taken, &known.slots, &mut from).ok_or_else(|| {
                    Issue::at(
                        &["tables", "policies"],
                        format!(
                            "`{}` policies are configured (segments, and clients with packet \
                             limits of their own); the table holds {slots} (`tables.policies`)",
                            wants.len()
                        ),
                    )
                })?
            };
            taken.insert(slot);
            let tag = match want.name {
                PolicyName::Segment(_) => 1 + want.segment,
                PolicyName::Client(_) => (1 + SEGMENTS as u64 + identity[0] % CLIENT_TAGS) as u32,
            };
            Place {
                slot,
                tag,
                segment: want.segment,
            }
        };
        placed.push((place, identity));
    }
    Ok(placed)
}

/// Somebody whose sources have buckets of their own in the crowd: a policy and its limited units.
pub(super) struct ZoneWant {
    pub(super) name: PolicyName,
    pub(super) slot: u32,
    pub(super) units: [bool; KERNEL_UNITS],
}

/// Hands out zones and regions; the first want is the default segment and has zone 0.
///
/// Region 0 is the large one and belongs to the default segment's first limited unit; every other
/// unit of every zone takes one of the 15 others.
pub(super) fn place_zones(
    wants: &[ZoneWant],
    known: &Known,
) -> Result<([Zone; ZONES], Vec<u32>), Issue> {
    let mut zones = [UNUSED_ZONE; ZONES];
    let mut numbers = Vec::with_capacity(wants.len());
    let mut taken = BTreeSet::from([0]);
    // The zones that stay.
    for (n, want) in wants.iter().enumerate() {
        let kept = known
            .zones
            .iter()
            .position(|zone| zone.used == 1 && zone.slot == want.slot)
            .map(|zone| zone as u32)
            .filter(|zone| n != 0 && *zone != 0 && taken.insert(*zone));
        numbers.push(if n == 0 { Some(0) } else { kept });
    }
    let before: BTreeSet<u32> = (0..)
        .zip(&known.zones)
        .filter(|(_, zone)| zone.used == 1)
        .map(|(number, _)| number)
        .collect();
    let mut from = 1;
    let mut given = Vec::with_capacity(wants.len());
    for (want, number) in wants.iter().zip(&numbers) {
        let number = match number {
            Some(number) => *number,
            None => lowest_free(1..ZONES as u32, &taken, &before, &mut from)
                .ok_or_else(|| too_wide(want, wants))?,
        };
        taken.insert(number);
        given.push(number);
    }
    // The regions that stay.
    let mut regions = BTreeSet::new();
    let stays = |number: u32, unit: usize, slot: u32| {
        known
            .zones
            .get(number as usize)
            .filter(|zone| zone.used == 1 && zone.slot == slot)
            .and_then(|zone| zone.regions.get(unit).copied())
            .filter(|region| (*region as usize) < REGIONS)
    };
    for (want, number) in wants.iter().zip(&given) {
        let mut zone = Zone {
            slot: want.slot,
            regions: [NO_REGION; KERNEL_UNITS],
            used: 1,
        };
        for (unit, limited) in want.units.iter().enumerate() {
            if *limited
                && let Some(region) = stays(*number, unit, want.slot)
                && regions.insert(u32::from(region))
                && let Some(place) = zone.regions.get_mut(unit)
            {
                *place = region;
            }
        }
        if let Some(place) = zones.get_mut(*number as usize) {
            *place = zone;
        }
    }
    let had: BTreeSet<u32> = known
        .zones
        .iter()
        .filter(|zone| zone.used == 1)
        .flat_map(|zone| zone.regions)
        .filter(|region| (*region as usize) < REGIONS)
        .map(u32::from)
        .collect();
    let mut from = 1;
    for (want, number) in wants.iter().zip(&given) {
        let Some(zone) = zones.get_mut(*number as usize) else {
            continue;
        };
        for (unit, limited) in want.units.iter().enumerate() {
            let Some(place) = zone.regions.get_mut(unit) else {
                continue;
            };
            if !*limited || *place != NO_REGION {
                continue;
            }
            let region = if *number == 0 && !regions.contains(&0) {
                Some(0)
            } else {
                lowest_free(1..REGIONS as u32, &regions, &had, &mut from)
            };
            let Some(region) = region else {
                return Err(too_wide(want, wants));
            };
            regions.insert(region);
            *place = region as u8;
        }
    }
    Ok((zones, given))
}

fn too_wide(want: &ZoneWant, wants: &[ZoneWant]) -> Issue {
    let (kind, name, who) = match &want.name {
        PolicyName::Segment(name) => ("segments", name, format!("segment `{name}`")),
        PolicyName::Client(id) => ("clients", id, format!("client `{id}`")),
    };
    let holders: Vec<String> = wants
        .iter()
        .map(|want| {
            let units = want.units.iter().zip(KERNEL).filter(|(on, _)| **on);
            format!("{} {}", units.count(), want.name)
        })
        .collect();
    Issue::at(
        &[kind, name, "sources"],
        format!(
            "{who} needs a 16th wide region; there are {} beside the default one, one for each \
             limited unit of each wide segment (wanted: {})",
            REGIONS - 1,
            holders.join(", ")
        ),
    )
}
