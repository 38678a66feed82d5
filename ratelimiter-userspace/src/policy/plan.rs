//! From what is installed to what is desired: a list of [`Update`]s.
//!
//! Planning is pure and idempotent: planning from the desired state to itself yields nothing.
//! The order of the updates is the order in which the data plane must apply them: new policies
//! before the prefixes that name them, prefixes before the generation that makes tracked sources
//! look again, removals last.

use std::collections::BTreeMap;
use std::sync::Arc;

use ratelimiter_common::abi::config::{REGIONS, flags};
use ratelimiter_common::abi::policy::{PolicyEntry, PrefixValue, Zone};
use ratelimiter_common::abi::tracked::SourceKey;
use ratelimiter_common::quota::KERNEL_UNITS;
use ratelimiter_common::vclock::{LEAD_NS, SegmentClock, Speed, UnitClock};
use ratelimiter_common::verdict::Mode;

use super::clock::{self, ClockTarget, Edit};
pub use super::installed::Installed;
use super::installed::difference;
use super::set::{Compiled, PolicyTarget};

/// An IP prefix as the kernel's tries know it; host bits are zero.
pub type Prefix = ipnet::IpNet;

/// Bits of `CONFIG.flags` that the data plane sets by itself, by what is attached and promoted.
pub const KERNEL_FLAGS: u32 = flags::GENERIC | flags::PROMOTED;

/// Most prefixes or tracked sources in one update.
pub const BATCH: usize = 16_384;

/// What all sources share: the malformed budget, and the first-seen budget of each region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Nanoseconds one malformed frame costs; 0 admits none.
    pub malformed_ns: u64,
    /// Depth of the malformed budget in nanoseconds.
    pub malformed_burst_ns: u64,
    /// Of `CROWD4` and `CROWD6`, by region: newcomers drawn at a time, 1..=64, and nanoseconds one
    /// of them costs; 0 ns switches the budget off.
    pub first_seen: [[(u32, u64); REGIONS]; 2],
}

/// One change of the kernel's maps. Each is atomic for the packets that see it.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Writes `entry` to a free place of `POLICIES`, then swaps `POLICY_INDEX[entry.slot]` to it.
    Policy(Box<PolicyEntry>),
    /// Empties `POLICY_INDEX[slot]` (index 0 is the empty entry).
    RemovePolicy(u32),
    /// Writes a clock to a free place of `SEGMENT_CLOCKS`, then swaps the segment's index.
    Segment {
        /// Segment number.
        segment: u32,
        /// Its clock.
        clock: SegmentClock,
    },
    /// Replaces a zone by one store.
    Zone {
        /// Zone number.
        zone: u32,
        /// Its policy and regions.
        value: Zone,
    },
    /// Inserts or replaces prefixes, in ascending order; at most [`BATCH`] of them.
    Prefixes(Vec<(Prefix, PrefixValue)>),
    /// Removes prefixes, in ascending order; at most [`BATCH`] of them. One that is not there is
    /// no error.
    RemovePrefixes(Vec<Prefix>),
    /// Sets bytes of `COARSE4` or `COARSE6`.
    Coarse {
        /// True for `COARSE6`.
        v6: bool,
        /// Index and new byte.
        bytes: Vec<(u16, u8)>,
    },
    /// Sets words of `FINE4` or `FINE6`.
    Fine {
        /// True for `FINE6`.
        v6: bool,
        /// Index and new word.
        words: Vec<(u32, u64)>,
    },
    /// Inserts tracked sources that are configured (client addresses, shared buckets), bound to a
    /// policy slot; at most [`BATCH`]. One that is already there stays as it is: the next
    /// [`Update::BumpGeneration`] makes it look its policy up again.
    Track(Vec<(SourceKey, u32)>),
    /// Deletes tracked sources that are no longer configured.
    Untrack(Vec<SourceKey>),
    /// Replaces `CONFIG.flags` by one store, but for [`KERNEL_FLAGS`].
    Flags(u32),
    /// Replaces the budgets, word by word. Not planned: they follow from the settings alone.
    Budgets(Box<Budgets>),
    /// Raises `CONFIG.prefix_generation` by one.
    BumpGeneration,
    /// Lowers tracked debts of a slot to at most `level` after its burst was lowered. Must not
    /// be done before `not_before_ns`: until then the old burst holds, and a debt lowered under it
    /// would be a second burst.
    Clamp {
        /// Policy slot.
        slot: u32,
        /// Real time (CLOCK_MONOTONIC) at which the smaller burst has come into force.
        not_before_ns: u64,
        /// Unit number.
        unit: u32,
        /// New burst in fractions of a unit.
        level: u64,
    },
}

/// Nanoseconds allowed for applying one policy update: a change of many policies is dated so that
/// the last is written before its moment.
pub const PACE_NS: u64 = 5_000;
/// Dates that differ by less are the same date: readings of two clocks are never simultaneous.
const SAME_DATE_NS: u64 = 100_000_000;

/// A list of updates, and whether it is all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Updates in the order in which they must be applied.
    pub updates: Vec<Update>,
    /// If set, some policies could not be changed yet: apply this plan, and plan again at this
    /// time (CLOCK_MONOTONIC), less than [`LEAD_NS`] ahead.
    pub again_at_ns: Option<u64>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.updates.is_empty() && self.again_at_ns.is_none()
    }
}

/// Computes what turns `installed` into `desired`.
///
/// `now_ns` is CLOCK_MONOTONIC. The updates must be applied within [`LEAD_NS`] of it, else changes
/// of running clocks come too late for some CPUs; a caller that was held up plans again.
#[must_use]
pub fn plan(installed: &Installed, desired: &Compiled, now_ns: u64) -> Plan {
    let mut plan = Plan::default();
    let mut clamps = Vec::new();
    policies(installed, desired, now_ns, &mut plan, &mut clamps);
    zones(installed, desired, &mut plan.updates, true);

    let (mut track, untrack) = difference(&installed.tracked, &desired.tracked, |_, _| true);
    let mistaken = mistaken(installed, desired);
    if !mistaken.is_empty() {
        let keys = mistaken.iter().map(|(key, _)| *key).collect();
        plan.updates.push(Update::Untrack(keys));
        track.extend(mistaken);
    }
    for chunk in track.chunks(BATCH) {
        plan.updates.push(Update::Track(chunk.to_vec()));
    }
    let (put, gone) = difference(&installed.prefixes, &desired.prefixes, same_value);
    for chunk in put.chunks(BATCH) {
        plan.updates.push(Update::Prefixes(chunk.to_vec()));
    }
    lookup(installed, desired, &mut plan.updates);
    if installed.flags != desired.flags {
        plan.updates.push(Update::Flags(desired.flags));
    }
    for chunk in gone.chunks(BATCH) {
        plan.updates.push(Update::RemovePrefixes(chunk.to_vec()));
    }
    if !put.is_empty() || !gone.is_empty() {
        plan.updates.push(Update::BumpGeneration);
    }
    for chunk in untrack.chunks(BATCH) {
        plan.updates.push(Update::Untrack(chunk.to_vec()));
    }
    zones(installed, desired, &mut plan.updates, false);
    for slot in installed.policies.keys() {
        if !desired.policies.contains_key(slot) {
            plan.updates.push(Update::RemovePolicy(*slot));
        }
    }
    plan.updates.extend(clamps);
    plan
}

/// Tracked sources that move to a policy whose tag is that of the policy they leave: the kernel
/// would read their debt on the wrong clock, so they start anew. One move between clients in 191.
fn mistaken(installed: &Installed, desired: &Compiled) -> Vec<(SourceKey, u32)> {
    if Arc::ptr_eq(&installed.tracked, &desired.tracked) {
        return Vec::new();
    }
    let mut moved = Vec::new();
    let mut has = installed.tracked.iter().peekable();
    for (key, to) in desired.tracked.iter() {
        while has.next_if(|(old, _)| old < key).is_some() {}
        let Some((_, from)) = has.next_if(|(old, _)| old == key) else {
            continue;
        };
        let same_tag = || {
            let old = installed.policies.get(from)?;
            let new = desired.policies.get(to)?;
            Some(old.tag == new.tag && old.identity != new.identity)
        };
        if from != to && same_tag() == Some(true) {
            moved.push((*key, *to));
        }
    }
    moved
}

/// Segment clocks and policies: new ones and changed ones.
fn policies(
    installed: &Installed,
    desired: &Compiled,
    now_ns: u64,
    plan: &mut Plan,
    clamps: &mut Vec<Update>,
) {
    let mut at_ns = now_ns.saturating_add(LEAD_NS);
    let mut clocks = installed.segments.clone();
    for number in desired.segments.values() {
        let in_use = installed
            .policies
            .values()
            .any(|entry| entry.segment == *number);
        let clock = match clocks.get(number) {
            None => SegmentClock::REAL,
            // Left behind slowed by a segment that is gone: its successor starts at full speed.
            Some(clock) if !in_use && !runs_fully(clock, now_ns) => {
                clock::turn_segment(clock, Speed::ONE, now_ns, at_ns)
            }
            Some(_) => continue,
        };
        clocks.insert(*number, clock);
        plan.updates.push(Update::Segment {
            segment: *number,
            clock,
        });
    }
    let clock_of = |number: u32| clocks.get(&number).copied().unwrap_or(SegmentClock::REAL);
    for (slot, target) in &desired.policies {
        let segment = clock_of(target.segment);
        let entry = match installed.policies.get(slot) {
            Some(entry) if entry.identity == target.identity => {
                let mut running = *entry;
                if entry.segment != target.segment {
                    running.segment = target.segment;
                    let before = clock_of(entry.segment);
                    for (unit, clock) in running.clocks.iter_mut().enumerate() {
                        if entry.units & 1 << unit != 0 {
                            *clock = clock::rebase(clock, &before, &segment, now_ns);
                        }
                    }
                }
                match changed(entry, &running, target, &segment, [now_ns, at_ns], clamps) {
                    Ok(None) => continue,
                    Ok(Some(entry)) => {
                        at_ns = at_ns.saturating_add(PACE_NS);
                        entry
                    }
                    Err(until_ns) => {
                        plan.again_at_ns = plan.again_at_ns.max(Some(until_ns));
                        continue;
                    }
                }
            }
            before => created(*slot, target, &segment, now_ns, before),
        };
        plan.updates.push(Update::Policy(Box::new(entry)));
    }
}

fn runs_fully(clock: &SegmentClock, now_ns: u64) -> bool {
    clock
        .pieces
        .iter()
        .all(|piece| piece.speed == Speed::ONE || piece.from_ns > now_ns)
}

/// What one unit shall be, from a policy's target.
fn wish(target: &PolicyTarget, unit: usize) -> ClockTarget {
    ClockTarget {
        target: target.units.get(unit).copied().flatten(),
        way_back: target
            .way_back
            .map(|(at_ns, units)| (at_ns, units.get(unit).copied().flatten())),
    }
}

fn concerns(wish: &ClockTarget) -> bool {
    wish.target.is_some() || wish.way_back.is_some_and(|(_, back)| back.is_some())
}

/// Where the unit clocks of a new policy start: far apart for different policies, so that words
/// left in a region of the crowd by one are not read as debt of the next. 44 bits: the words of
/// the smallest region hold 45.
fn start_base(identity: [u64; 2], unit: usize, now_ns: u64) -> u64 {
    let mixed = (identity[0] ^ identity[1].rotate_left(17 + unit as u32))
        .wrapping_add(now_ns.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (mixed ^ mixed >> 29) & ((1 << 44) - 1)
}

fn created(
    slot: u32,
    target: &PolicyTarget,
    segment: &SegmentClock,
    now_ns: u64,
    before: Option<&PolicyEntry>,
) -> PolicyEntry {
    let mut entry = PolicyEntry {
        identity: target.identity,
        units: 0,
        segment: target.segment,
        slot,
        tag: target.tag,
        revision: before.map_or(1, |before| before.revision.wrapping_add(1)),
        reserved: 0,
        clocks: [UnitClock::single(ratelimiter_common::vclock::Piece::UNUSED); KERNEL_UNITS],
    };
    for (unit, place) in entry.clocks.iter_mut().enumerate() {
        let wish = wish(target, unit);
        if concerns(&wish) {
            entry.units |= 1 << unit;
            let base = start_base(target.identity, unit, now_ns);
            *place = clock::first(&wish, segment, now_ns, base);
        }
    }
    entry
}

/// The entry that turns `entry` into `target`; `Ok(None)` if it already is, `Err` with the moment
/// to try again. `running` is `entry` on the time of the segment it shall belong to.
fn changed(
    entry: &PolicyEntry,
    running: &PolicyEntry,
    target: &PolicyTarget,
    segment: &SegmentClock,
    [now_ns, at_ns]: [u64; 2],
    clamps: &mut Vec<Update>,
) -> Result<Option<PolicyEntry>, u64> {
    let mut next = *running;
    let mut lowered = Vec::new();
    for (unit, place) in next.clocks.iter_mut().enumerate() {
        let wish = wish(target, unit);
        let limited = entry.units & 1 << unit != 0;
        if !limited {
            if concerns(&wish) {
                next.units |= 1 << unit;
                let base = start_base(target.identity, unit, now_ns);
                // Nothing is owed in a unit that was not counted: it may start at once.
                *place = clock::first(&wish, segment, now_ns, base);
            }
            continue;
        }
        if !concerns(&wish) {
            next.units &= !(1 << unit);
            *place = UnitClock::single(ratelimiter_common::vclock::Piece::UNUSED);
            continue;
        }
        match clock::edit(place, &wish, segment, now_ns, at_ns) {
            Edit::Unchanged => {}
            Edit::Busy { until_ns } => return Err(until_ns),
            Edit::Changed(edited) => {
                let (before, after) = (place.piece(now_ns), edited.piece(at_ns));
                if after.mode != Mode::Off as u32 && after.burst < before.burst {
                    lowered.push(Update::Clamp {
                        slot: entry.slot,
                        not_before_ns: at_ns,
                        unit: unit as u32,
                        level: after.burst,
                    });
                }
                *place = edited;
            }
        }
    }
    if next == *entry {
        return Ok(None);
    }
    next.revision = entry.revision.wrapping_add(1);
    clamps.extend(lowered);
    Ok(Some(next))
}

/// Zones to be filled (before any prefix names them) or emptied (after none does).
fn zones(installed: &Installed, desired: &Compiled, updates: &mut Vec<Update>, fill: bool) {
    for (number, (has, wants)) in (0..).zip(installed.zones.iter().zip(&desired.zones)) {
        if has != wants && (wants.used == 1) == fill {
            updates.push(Update::Zone {
                zone: number,
                value: *wants,
            });
        }
    }
}

fn same_value(a: &PrefixValue, b: &PrefixValue) -> bool {
    let same_date = a.until_ns == b.until_ns
        || (a.until_ns.abs_diff(b.until_ns) < SAME_DATE_NS
            && a.until_ns != u64::MAX
            && b.until_ns != u64::MAX);
    same_date
        && PrefixValue {
            until_ns: b.until_ns,
            ..*a
        } == *b
}

/// Words of a fine table compared at a time.
const STRETCH: usize = 1_024;

/// Coarse bytes and fine bits. Bits are set before the byte that makes packets ask for them, and
/// cleared after the byte that makes packets stop asking.
fn lookup(installed: &Installed, desired: &Compiled, updates: &mut Vec<Update>) {
    let (has, wants) = (&installed.lookup, &desired.lookup);
    if Arc::ptr_eq(has, wants) {
        return;
    }
    for v6 in [false, true] {
        let table = usize::from(v6);
        let (Some(has_fine), Some(wants_fine)) = (has.fine.get(table), wants.fine.get(table))
        else {
            continue;
        };
        let (Some(has_coarse), Some(wants_coarse)) =
            (has.coarse.get(table), wants.coarse.get(table))
        else {
            continue;
        };
        let (mut setting, mut clearing) = (Vec::new(), Vec::new());
        let stretches = has_fine.chunks(STRETCH).zip(wants_fine.chunks(STRETCH));
        for (start, (old, new)) in (0..).step_by(STRETCH).zip(stretches) {
            if old == new {
                continue;
            }
            for (index, (old, new)) in (start..).zip(old.iter().zip(new)) {
                let both = old | new;
                if both != *old {
                    setting.push((index, both));
                }
                if both != *new {
                    clearing.push((index, *new));
                }
            }
        }
        let bytes: Vec<(u16, u8)> = (0..=u16::MAX)
            .zip(has_coarse.iter().zip(wants_coarse))
            .filter(|(_, (old, new))| old != new)
            .map(|(index, (_, new))| (index, *new))
            .collect();
        if !setting.is_empty() {
            updates.push(Update::Fine { v6, words: setting });
        }
        if !bytes.is_empty() {
            updates.push(Update::Coarse { v6, bytes });
        }
        if !clearing.is_empty() {
            updates.push(Update::Fine {
                v6,
                words: clearing,
            });
        }
    }
}

/// Clamps for limits whose burst is smaller than that of the piece before: what a way back, once
/// its time has come, leaves to be done. Harmless when done twice.
#[must_use]
pub fn clamps_in_force(policies: &BTreeMap<u32, PolicyEntry>, now_ns: u64) -> Vec<Update> {
    let mut clamps = Vec::new();
    for (slot, entry) in policies {
        for (unit, clock) in (0..).zip(&entry.clocks) {
            let in_force = clock.piece(now_ns);
            let larger = clock
                .pieces
                .iter()
                .any(|piece| piece.from_ns < in_force.from_ns && piece.burst > in_force.burst);
            if entry.units & 1 << unit != 0 && larger && in_force.mode != Mode::Off as u32 {
                clamps.push(Update::Clamp {
                    slot: *slot,
                    not_before_ns: in_force.from_ns,
                    unit,
                    level: in_force.burst,
                });
            }
        }
    }
    clamps
}
