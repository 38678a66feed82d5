//! Compiling: from a [`Document`] to the state the kernel shall have.
//!
//! Deterministic: the same document, inputs and installed numbers give the same [`Compiled`].

use std::collections::BTreeMap;
use std::sync::Arc;

use ratelimiter_common::abi::config::{ZONES, flags};
use ratelimiter_common::abi::policy::{PolicyEntry, PrefixValue, Zone, action};
use ratelimiter_common::abi::tracked::{SourceKey, shared_key};
use ratelimiter_common::quota::KERNEL_UNITS;
use ratelimiter_common::vclock::{NEVER, Piece, UnitClock};

use super::clock::UnitTarget;
use super::keys::{is_narrow, narrow_keys};
use super::lookup::Lookup;
use super::model::{Client, DEFAULT_SEGMENT, Document, Mode, Unit};
use super::plan::Prefix;
use super::prefixes::{Claim, TimeBase, merge, next_expiry_unix_ms};
use super::resolve::{KERNEL, is_normal, kernel_limits, normalise, segment_of};
use super::slots::{
    Known, PolicyName, Want, ZoneWant, number_segments, place_policies, place_zones,
};
use super::validate::{Issue, Report, validate};

/// Sizes of the kernel's tables, as far as policy is bound by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Entries of the tracked table; three quarters of them may be configured.
    pub tracked: u32,
    /// Policy slots.
    pub policies: u32,
    /// Prefixes per IP version.
    pub prefixes: u32,
    /// Prefix length that makes one IPv6 source, 32..=64.
    pub v6_prefix_len: u8,
}

impl Geometry {
    /// Most sources and shared buckets that may be configured: 75 % of the tracked table.
    #[must_use]
    pub fn tracked_limit(&self) -> u64 {
        u64::from(self.tracked / 4 * 3)
    }
}

impl Default for Geometry {
    fn default() -> Self {
        let tables = crate::config::settings::Tables::default();
        Self {
            tracked: tables.tracked,
            policies: tables.policies,
            prefixes: tables.prefixes,
            v6_prefix_len: crate::config::settings::Kernel::default().v6_prefix_len,
        }
    }
}

/// What compiling needs beside the document.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    /// The agent's mode: bounds every policy's, by the flag `ENFORCE`.
    pub mode: Mode,
    /// Bits of `CONFIG.flags` that follow neither from the document nor from what is attached and
    /// promoted: `MALFORMED_BUDGET`.
    pub flags: u32,
    /// Table sizes.
    pub geometry: Geometry,
    /// Key of the policies' identities: from `CONFIG.perm`, so that it lives as long as they do.
    pub identity_key: [u64; 2],
    /// Relates dates to the kernel's clock.
    pub time: TimeBase,
    /// CLOCK_MONOTONIC: list entries that have ended by now are left out.
    pub now_ns: u64,
}

/// What a policy shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTarget {
    /// Whose it is.
    pub name: PolicyName,
    /// Its name in the kernel.
    pub identity: [u64; 2],
    /// Distinguishes its TATs from others', 1..=255.
    pub tag: u32,
    /// Segment whose clock drives it.
    pub segment: u32,
    /// What is limited, by unit.
    pub units: [Option<UnitTarget>; KERNEL_UNITS],
    /// A pending change: when it ends (CLOCK_MONOTONIC), and what is limited from then on.
    pub way_back: Option<(u64, [Option<UnitTarget>; KERNEL_UNITS])>,
}

impl PolicyTarget {
    /// An entry with the policy's numbers that limits nothing: for those who look for numbers only.
    #[must_use]
    pub fn empty_entry(&self, slot: u32) -> PolicyEntry {
        PolicyEntry {
            identity: self.identity,
            units: 0,
            segment: self.segment,
            slot,
            tag: self.tag,
            revision: 0,
            reserved: 0,
            clocks: [UnitClock::single(Piece::UNUSED); KERNEL_UNITS],
        }
    }
}

/// The state the kernel shall have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// Policies by slot; slot 0 is the default segment's.
    pub policies: BTreeMap<u32, PolicyTarget>,
    /// Segment numbers by name; the default segment is 0.
    pub segments: BTreeMap<String, u32>,
    /// Slots of clients that have a policy of their own, by id.
    pub clients: BTreeMap<String, u32>,
    /// Zones; zone 0 is the default segment's.
    pub zones: Vec<Zone>,
    /// What the tries hold, ascending.
    pub prefixes: Arc<Vec<(Prefix, PrefixValue)>>,
    /// What the coarse bytes and fine bits hold.
    pub lookup: Arc<Lookup>,
    /// Configured tracked sources and the slots they are first bound to, ascending by key.
    pub tracked: Arc<Vec<(SourceKey, u32)>>,
    /// `CONFIG.flags`.
    pub flags: u32,
    /// When the next list entry ends and the document must be compiled again: milliseconds since
    /// the Unix epoch.
    pub next_expiry_unix_ms: Option<u64>,
    /// Things that are legal and probably not meant.
    pub warnings: Vec<Issue>,
}

/// Compiles a document.
///
/// `policies` and `zones` are what is installed: they keep their numbers.
///
/// # Errors
///
/// Every reason why the document is refused; nothing is to be installed then.
pub fn compile(
    document: &Document,
    inputs: &Inputs,
    policies: &BTreeMap<u32, PolicyEntry>,
    zones: &[Zone; ZONES],
) -> Result<Compiled, Vec<Issue>> {
    let Report { errors, warnings } = validate(document, &inputs.geometry);
    if !errors.is_empty() {
        return Err(errors);
    }
    let completed;
    let document = if is_normal(document) {
        document
    } else {
        let mut copy = document.clone();
        normalise(&mut copy);
        completed = copy;
        &completed
    };
    let known = Known::new(policies, zones);
    build(document, inputs, &known, warnings).map_err(|issue| vec![issue])
}

/// How a client's sources are limited in the kernel.
struct ClientPlan<'a> {
    id: &'a str,
    client: &'a Client,
    /// Index among the wants; `None` if the segment's policy serves.
    want: Option<usize>,
    zone: bool,
}

fn build(
    document: &Document,
    inputs: &Inputs,
    known: &Known,
    warnings: Vec<Issue>,
) -> Result<Compiled, Issue> {
    let key = inputs.identity_key;
    let v6_len = inputs.geometry.v6_prefix_len;
    let narrow = |prefix: &Prefix| is_narrow(prefix, v6_len);
    let targets = |client: Option<&Client>, segment: &str| {
        // The agent's own mode is one flag, not part of every policy: to switch it is one store.
        kernel_limits(document, client, segment, Mode::Enforce)
            .map(|limit| limit.and_then(|limit| limit.target()))
    };

    // Whose policy: the default segment first, the other segments, clients that need their own.
    let segments = number_segments(document.segments.keys().map(String::as_str), key, known)?;
    let number = |name: &str| segments.get(name).copied().unwrap_or(0);
    let mut wants = vec![Want {
        name: PolicyName::Segment(DEFAULT_SEGMENT.to_owned()),
        segment: 0,
    }];
    let mut units = vec![targets(None, DEFAULT_SEGMENT)];
    let mut segment_wants = BTreeMap::from([(DEFAULT_SEGMENT, 0)]);
    for name in document
        .segments
        .keys()
        .filter(|name| *name != DEFAULT_SEGMENT)
    {
        segment_wants.insert(name, wants.len());
        units.push(targets(None, name));
        wants.push(Want {
            name: PolicyName::Segment(name.clone()),
            segment: number(name),
        });
    }
    let mut clients = Vec::with_capacity(document.clients.len());
    for (id, client) in document
        .clients
        .iter()
        .filter(|(_, c)| !c.sources.is_empty())
    {
        let wide = client.sources.iter().any(|prefix| !narrow(prefix));
        let shared = client.one_bucket.unwrap_or(wide);
        let own = shared
            || wide
            || client.mode.is_some()
            || client
                .limits
                .values()
                .any(|spec| KERNEL.contains(&spec.unit));
        let want = own.then(|| {
            units.push(targets(Some(client), segment_of(client)));
            wants.push(Want {
                name: PolicyName::Client(id.clone()),
                segment: number(segment_of(client)),
            });
            wants.len() - 1
        });
        clients.push(ClientPlan {
            id,
            client,
            want,
            zone: wide && !shared,
        });
    }
    let places = place_policies(&wants, key, known, inputs.geometry.policies)?;
    let slot = |want: usize| places.get(want).map_or(0, |(place, _)| place.slot);

    // Whose zone.
    let mut zone_wants = Vec::new();
    let mut zone_of_want = BTreeMap::new();
    let mut want_zone = |want: usize| {
        if let (Some(entry), Some(units)) = (wants.get(want), units.get(want)) {
            zone_of_want.insert(want, zone_wants.len());
            zone_wants.push(ZoneWant {
                name: entry.name.clone(),
                slot: slot(want),
                units: units.map(|unit| unit.is_some()),
            });
        }
    };
    want_zone(0);
    for (name, segment) in &document.segments {
        if name != DEFAULT_SEGMENT && segment.sources.iter().any(|prefix| !narrow(prefix)) {
            want_zone(segment_wants.get(name.as_str()).copied().unwrap_or(0));
        }
    }
    for plan in clients.iter().filter(|plan| plan.zone) {
        want_zone(plan.want.unwrap_or(0));
    }
    let (zones, zone_numbers) = place_zones(&zone_wants, known)?;
    let zone = |want: usize| {
        let number = zone_of_want.get(&want).and_then(|n| zone_numbers.get(*n));
        Claim {
            action: action::ZONE,
            slot: number.copied().unwrap_or(0),
        }
    };

    // Who claims which prefix.
    let mut claims: Vec<(Prefix, Claim)> = Vec::new();
    for (name, segment) in &document.segments {
        let want = segment_wants.get(name.as_str()).copied().unwrap_or(0);
        claims.extend(segment.sources.iter().map(|prefix| {
            let claim = if narrow(prefix) {
                Claim {
                    action: action::TRACKED,
                    slot: slot(want),
                }
            } else {
                zone(want)
            };
            (*prefix, claim)
        }));
    }
    for plan in &clients {
        let own = plan.want;
        let want = own.unwrap_or_else(|| {
            segment_wants
                .get(segment_of(plan.client))
                .copied()
                .unwrap_or(0)
        });
        let slot = slot(want);
        claims.extend(plan.client.sources.iter().map(|prefix| {
            let claim = match plan.client.one_bucket {
                Some(true) => Claim {
                    action: action::SHARED,
                    slot,
                },
                _ if narrow(prefix) => Claim {
                    action: action::TRACKED,
                    slot,
                },
                Some(false) => zone(want),
                None => Claim {
                    action: action::SHARED,
                    slot,
                },
            };
            (*prefix, claim)
        }));
    }
    // Stable: of a segment and a client with the same prefix the client, added later, is kept.
    claims.sort_by_key(|(prefix, _)| *prefix);
    claims.reverse();
    claims.dedup_by_key(|(prefix, _)| *prefix);
    claims.reverse();

    let prefixes = merge(
        &claims,
        &document.allow,
        &document.block,
        inputs.time,
        inputs.now_ns,
    );
    let tracked = tracked_sources(&prefixes, &claims, v6_len);
    let mut flag_bits = inputs.flags;
    if !prefixes.is_empty() {
        flag_bits |= flags::PREFIXES;
    }
    if inputs.mode == Mode::Enforce {
        flag_bits |= flags::ENFORCE;
    }
    let client_slots = clients
        .iter()
        .filter_map(|plan| Some((plan.id.to_owned(), slot(plan.want?))))
        .collect();
    let policies = wants
        .into_iter()
        .zip(units)
        .zip(&places)
        .map(|((want, units), (place, identity))| {
            let target = PolicyTarget {
                name: want.name,
                identity: *identity,
                tag: place.tag,
                segment: place.segment,
                units,
                way_back: None,
            };
            (place.slot, target)
        })
        .collect();
    Ok(Compiled {
        policies,
        segments,
        clients: client_slots,
        zones: zones.to_vec(),
        lookup: Arc::new(Lookup::of(&prefixes)),
        prefixes: Arc::new(prefixes),
        tracked: Arc::new(tracked),
        flags: flag_bits,
        next_expiry_unix_ms: next_expiry_unix_ms(
            [&document.allow, &document.block],
            inputs.time.unix_ms(inputs.now_ns),
        ),
        warnings,
    })
}

/// Sources and shared buckets to insert: those of claims that are not allowed for good. Where
/// narrow prefixes lie inside each other the most specific binds.
fn tracked_sources(
    prefixes: &[(Prefix, PrefixValue)],
    claims: &[(Prefix, Claim)],
    v6_len: u8,
) -> Vec<(SourceKey, u32)> {
    let mut tracked: Vec<(SourceKey, u32)> = Vec::new();
    let mut values = prefixes.iter();
    for (prefix, claim) in claims {
        let value = values.find(|(candidate, _)| candidate == prefix);
        let limited = value.is_none_or(|(_, value)| {
            value.until_ns != NEVER || !matches!(value.action, action::ALLOW | action::BLOCK)
        });
        match claim.action {
            _ if !limited => {}
            action::TRACKED => {
                tracked.extend(narrow_keys(prefix, v6_len).map(|key| (key, claim.slot)));
            }
            action::SHARED => tracked.push((shared_key(claim.slot), claim.slot)),
            _ => {}
        }
    }
    tracked.sort_by_key(|(key, _)| *key);
    tracked.reverse();
    tracked.dedup_by_key(|(key, _)| *key);
    tracked.reverse();
    tracked
}

/// Whether the unit is counted in the kernel.
#[must_use]
pub fn is_kernel_unit(unit: Unit) -> bool {
    KERNEL.contains(&unit)
}
