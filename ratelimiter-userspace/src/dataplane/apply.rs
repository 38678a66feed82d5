//! Applies updates to the maps: the only writer of policy.
//!
//! Entries are immutable and swapped in by their index; scalars change word by word; tracked
//! sources are inserted without replacing, because replacing a value of the LRU table would lose
//! what the kernel wrote to it and evict others.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use ratelimiter_common::abi::config::{Config, REGIONS, ZONES, flags};
use ratelimiter_common::abi::merge::{MergeOp, op, result};
use ratelimiter_common::abi::names;
use ratelimiter_common::abi::policy::{PolicyEntry, PrefixKey4, PrefixKey6, PrefixValue, Zone};
use ratelimiter_common::abi::tracked::{SLOT_MASK, SourceKey, Tracked};
use ratelimiter_common::vclock::{LEAD_NS, NEVER, PIECES, SegmentClock};

use super::entries::{Entries, GRACE_NS};
use super::loader::Kernel;
use super::pod::zeroed;
use super::promoted::Promoted;
use super::redate::{is_late, redate, redate_segment};
use super::state::Applied;
use super::store::{key4, key6};
use super::{Error, Tables, capacity, merge, store};
use crate::clock::monotonic_ns;
use crate::policy::plan::{KERNEL_FLAGS, Prefix, Update};

/// How often a swap that came too late is made again.
const SWAP_TRIES: usize = 4;

/// How long `apply` itself waits for the moment of a clamp, in nanoseconds: the lead of a swap
/// and as much again.
const CLAMP_WAIT_NS: u64 = 2 * LEAD_NS;

/// What the writer knows of the maps, so that it need not read them for each change and notices
/// when something else wrote to them.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) tables: Tables,
    pub(super) config: Config,
    pub(super) policies: Entries,
    pub(super) segments: Entries,
    pub(super) zones: [Zone; ZONES],
    pub(super) tracked: u64,
    pub(super) prefixes: [u64; 2],
    /// Clamps to come: not before, (slot, unit), level.
    clamps: Vec<(u64, (u32, u32), u64)>,
    /// Whether an interface runs in generic mode.
    generic: bool,
    /// Sources that are promoted, by bit.
    pub(super) promoted: Promoted,
    /// Regions that may hold words.
    used_regions: [bool; REGIONS],
    /// Sources that were just tracked, and the zones they come from.
    pub(super) inherited: Vec<MergeOp>,
}

impl Writer {
    /// Takes over the maps as they are.
    pub(super) fn new(kernel: &Kernel, tables: Tables, adopted: bool) -> Result<Self, Error> {
        let now_ns = monotonic_ns();
        let entries = |index: &'static str, values: &'static str| {
            let index_map = kernel.map(index)?;
            let capacity = kernel.map(values)?.info.max_entries;
            let current: Vec<u32> = index_map.array(index_map.info.max_entries)?;
            if let Some(slot) = current.iter().position(|&entry| entry >= capacity) {
                return Err(Error::Corrupt(format!(
                    "map `{index}` names an entry beyond the {capacity} of `{values}` in slot {slot}"
                )));
            }
            Ok(Entries::new(current, capacity, now_ns, !adopted))
        };
        let mut writer = Self {
            tables,
            config: kernel.map(names::CONFIG)?.at(0)?,
            policies: entries(names::POLICY_INDEX, names::POLICIES)?,
            segments: entries(names::SEGMENT_INDEX, names::SEGMENT_CLOCKS)?,
            zones: [zeroed(); ZONES],
            tracked: 0,
            prefixes: [0; 2],
            clamps: Vec::new(),
            generic: false,
            promoted: Promoted::default(),
            used_regions: [adopted; REGIONS],
            inherited: Vec::new(),
        };
        let zones: Vec<Zone> = kernel.map(names::ZONES)?.array(ZONES as u32)?;
        for (place, zone) in writer.zones.iter_mut().zip(zones) {
            *place = zone;
        }
        if adopted {
            let tracked = kernel.map(names::TRACKED)?;
            let bits = kernel.map(names::PROMOTED)?.memory()?;
            tracked.walk::<SourceKey, Tracked>(|&key, _| {
                writer.tracked += 1;
                writer.promoted.found(bits, key);
            })?;
            let [four, six] = &mut writer.prefixes;
            kernel
                .map(names::PREFIXES4)?
                .walk::<PrefixKey4, PrefixValue>(|_, _| *four += 1)?;
            kernel
                .map(names::PREFIXES6)?
                .walk::<PrefixKey6, PrefixValue>(|_, _| *six += 1)?;
        }
        Ok(writer)
    }

    /// Applies all updates in order, after checking that they fit.
    pub(super) fn apply(&mut self, kernel: &Kernel, updates: &[Update]) -> Result<Applied, Error> {
        let mut applied = Applied::default();
        capacity::check(self, kernel, updates)?;
        for update in updates {
            match update {
                Update::Policy(entry) => {
                    let moved = self.policy(kernel, entry)?;
                    applied
                        .moved
                        .extend(moved.map(|entry| Update::Policy(Box::new(entry))));
                }
                Update::RemovePolicy(slot) => self.swap_policy(kernel, *slot, 0)?,
                Update::Segment { segment, clock } => {
                    let moved = self.segment(kernel, *segment, clock)?;
                    applied.moved.extend(moved.map(|clock| Update::Segment {
                        segment: *segment,
                        clock,
                    }));
                }
                Update::Zone { zone, value } => self.zone(kernel, *zone, *value)?,
                Update::Prefixes(prefixes) => {
                    for (prefix, value) in prefixes {
                        self.prefix(kernel, *prefix, value)?;
                    }
                }
                Update::RemovePrefixes(prefixes) => {
                    for prefix in prefixes {
                        self.remove_prefix(kernel, *prefix)?;
                    }
                }
                Update::Coarse { v6, bytes } => store::coarse(kernel, *v6, bytes)?,
                Update::Fine { v6, words } => store::fine(kernel, *v6, words)?,
                Update::Track(sources) => self.track(kernel, sources)?,
                Update::Untrack(sources) => self.untrack(kernel, sources)?,
                Update::Flags(flags) => self.change_config(kernel, |config| {
                    config.flags = (flags & !KERNEL_FLAGS) | (config.flags & KERNEL_FLAGS);
                })?,
                Update::Budgets(budgets) => self.change_config(kernel, |config| {
                    super::tables::set_budgets(config, budgets);
                })?,
                Update::BumpGeneration => self.change_config(kernel, |config| {
                    config.prefix_generation = config.prefix_generation.wrapping_add(1);
                })?,
                Update::Clamp {
                    slot,
                    not_before_ns,
                    unit,
                    level,
                } => {
                    let begins_ns = begins_ns(&applied.moved, *slot, *unit, *level);
                    let not_before_ns =
                        begins_ns.map_or(*not_before_ns, |ns| ns.max(*not_before_ns));
                    self.clamps.push((not_before_ns, (*slot, *unit), *level));
                }
            }
        }
        self.inherit_again(kernel)?;
        self.clamp_soon(kernel)?;
        Ok(applied)
    }

    /// Clamps what is due within a moment, after waiting for it; the watch does the rest.
    fn clamp_soon(&mut self, kernel: &Kernel) -> Result<(), Error> {
        let now_ns = monotonic_ns();
        let soon = self
            .clamps
            .iter()
            .map(|(not_before_ns, ..)| *not_before_ns)
            .filter(|&not_before_ns| not_before_ns <= now_ns + CLAMP_WAIT_NS)
            .max();
        let Some(last) = soon else {
            return Ok(());
        };
        // `park_timeout` may return early.
        while let Some(wait_ns @ 1..) = last.checked_sub(monotonic_ns()) {
            std::thread::park_timeout(Duration::from_nanos(wait_ns));
        }
        self.clamp_due(kernel, last)
    }

    /// Lowers tracked debts to bursts that have come into force: one walk for all of them.
    pub(super) fn clamp_due(&mut self, kernel: &Kernel, now_ns: u64) -> Result<(), Error> {
        let mut due = BTreeMap::new();
        self.clamps.retain(|&(not_before_ns, place, level)| {
            let is_due = not_before_ns <= now_ns;
            if is_due {
                due.insert(place, level);
            }
            !is_due
        });
        clamp(kernel, &due)
    }

    /// Tells the program whether any interface runs in generic mode.
    pub(super) fn set_generic(&mut self, kernel: &Kernel, generic: bool) -> Result<(), Error> {
        if self.generic == generic && (self.config.flags & flags::GENERIC != 0) == generic {
            return Ok(());
        }
        self.generic = generic;
        self.set_flag(kernel, flags::GENERIC, generic)
    }

    fn set_flag(&mut self, kernel: &Kernel, flag: u32, on: bool) -> Result<(), Error> {
        self.change_config(kernel, |config| {
            config.flags = if on {
                config.flags | flag
            } else {
                config.flags & !flag
            };
        })
    }

    fn change_config(
        &mut self,
        kernel: &Kernel,
        change: impl FnOnce(&mut Config),
    ) -> Result<(), Error> {
        change(&mut self.config);
        store::config(kernel, &self.config)
    }

    /// Runs bucket operations, and keeps count of what they promote and demote: packets ask for
    /// promoted sources while there are any.
    pub(super) fn merge(&mut self, kernel: &Kernel, ops: &mut [MergeOp]) -> Result<(), Error> {
        if ops.iter().any(|merge_op| merge_op.op == op::PROMOTE) {
            self.set_flag(kernel, flags::PROMOTED, true)?;
        }
        let ran = merge::run(kernel, ops);
        let bits = kernel.map(names::PROMOTED)?.memory()?;
        for merge_op in ops.iter().filter(|op| op.result == result::DONE) {
            match merge_op.op {
                op::PROMOTE => {
                    self.promoted.promoted(merge_op.key);
                    self.tracked += 1;
                }
                op::DEMOTE => {
                    self.promoted.demoted(bits, merge_op.key);
                    self.tracked = self.tracked.saturating_sub(1);
                }
                _ => {}
            }
        }
        if self.config.flags & flags::PROMOTED != 0 && self.promoted.is_empty() {
            self.set_flag(kernel, flags::PROMOTED, false)?;
        }
        ran
    }

    /// Repairs `CONFIG`, the indices and the zones where something else wrote to them; returns the
    /// names of the maps it repaired.
    pub(super) fn repair(&self, kernel: &Kernel) -> Result<Vec<&'static str>, Error> {
        let mut repaired = Vec::new();
        let config: Config = kernel.map(names::CONFIG)?.at(0)?;
        if config != self.config {
            store::config(kernel, &self.config)?;
            repaired.push(names::CONFIG);
        }
        for (name, entries) in [
            (names::POLICY_INDEX, &self.policies),
            (names::SEGMENT_INDEX, &self.segments),
        ] {
            let map = kernel.map(name)?;
            let is: Vec<u32> = map.array(entries.index().len() as u32)?;
            let mut differs = false;
            for (slot, (is, should)) in is.iter().zip(entries.index()).enumerate() {
                if is != should {
                    store::index(map, slot as u32, *should)?;
                    differs = true;
                }
            }
            if differs {
                repaired.push(name);
            }
        }
        let map = kernel.map(names::ZONES)?;
        let is: Vec<Zone> = map.array(ZONES as u32)?;
        let mut differs = false;
        for (number, (is, should)) in is.iter().zip(&self.zones).enumerate() {
            if is != should {
                store::zone(map, number as u32, *should)?;
                differs = true;
            }
        }
        if differs {
            repaired.push(names::ZONES);
        }
        Ok(repaired)
    }

    // === entries ===

    /// Returns the entry in force where it differs from `wanted`.
    fn policy(
        &mut self,
        kernel: &Kernel,
        wanted: &PolicyEntry,
    ) -> Result<Option<PolicyEntry>, Error> {
        let map = kernel.map(names::POLICIES)?;
        let before = match self.policies.current(wanted.slot) {
            0 => None,
            index => Some(map.at::<PolicyEntry>(index)?),
        };
        if before.is_some_and(|before| before.identity != wanted.identity) {
            // The slot changes hands, and its zones with it.
            let zones = self.zones;
            for zone in zones
                .iter()
                .filter(|zone| zone.used == 1 && zone.slot == wanted.slot)
            {
                self.clear_regions(kernel, *zone, None)?;
            }
        }
        let segment = self.segment_clock(kernel, wanted.segment)?;
        let mut entry = *wanted;
        for _ in 0..SWAP_TRIES {
            let now_ns = monotonic_ns();
            for (unit, clock) in entry.clocks.iter_mut().enumerate() {
                let old = before.as_ref().and_then(|entry| entry.clocks.get(unit));
                *clock = redate(old, clock, &segment, now_ns);
            }
            let place = wait_for_entry(&mut self.policies, names::POLICIES)?;
            if let Err(error) = map.set(&place, &entry) {
                self.policies.give_back(place);
                return Err(error);
            }
            self.swap_policy(kernel, entry.slot, place)?;
            let swapped_ns = monotonic_ns();
            let late = entry.clocks.iter().enumerate().any(|(unit, clock)| {
                let old = before.as_ref().and_then(|entry| entry.clocks.get(unit));
                is_late(old, clock, swapped_ns)
            });
            if !late {
                return Ok((entry != *wanted).then_some(entry));
            }
        }
        tracing::warn!(
            slot = entry.slot,
            tries = SWAP_TRIES,
            "a policy was swapped in after its date"
        );
        Ok((entry != *wanted).then_some(entry))
    }

    fn swap_policy(&mut self, kernel: &Kernel, slot: u32, entry: u32) -> Result<(), Error> {
        store::index(kernel.map(names::POLICY_INDEX)?, slot, entry)?;
        self.policies.swapped(slot, entry, monotonic_ns());
        Ok(())
    }

    pub(super) fn segment_clock(
        &self,
        kernel: &Kernel,
        segment: u32,
    ) -> Result<SegmentClock, Error> {
        kernel
            .map(names::SEGMENT_CLOCKS)?
            .at(self.segments.current(segment))
    }

    /// Returns the clock in force where it differs from `wanted`.
    fn segment(
        &mut self,
        kernel: &Kernel,
        segment: u32,
        wanted: &SegmentClock,
    ) -> Result<Option<SegmentClock>, Error> {
        let before = self.segment_clock(kernel, segment)?;
        let mut clock = *wanted;
        for _ in 0..SWAP_TRIES {
            if let Some(moved) = redate_segment(&before, &clock, monotonic_ns()) {
                clock = moved;
            }
            let place = wait_for_entry(&mut self.segments, names::SEGMENT_CLOCKS)?;
            kernel.map(names::SEGMENT_CLOCKS)?.set(&place, &clock)?;
            store::index(kernel.map(names::SEGMENT_INDEX)?, segment, place)?;
            let swapped_ns = monotonic_ns();
            self.segments.swapped(segment, place, swapped_ns);
            let late = (1..PIECES).any(|at| {
                clock.pieces.get(at).is_some_and(|piece| {
                    piece.from_ns <= swapped_ns && !before.pieces.contains(piece)
                })
            });
            if !late {
                return Ok((clock != *wanted).then_some(clock));
            }
        }
        tracing::warn!(
            segment,
            tries = SWAP_TRIES,
            "a segment clock was swapped in after its date"
        );
        Ok((clock != *wanted).then_some(clock))
    }

    /// Empties the regions of `zone` that are not those of `before`: what another policy's sources
    /// left there was written on another clock, and would be read as debt, or as a proof that a
    /// source was here before.
    fn clear_regions(
        &mut self,
        kernel: &Kernel,
        zone: Zone,
        before: Option<Zone>,
    ) -> Result<(), Error> {
        for (unit, &region) in zone.regions.iter().enumerate() {
            let kept = before.is_some_and(|before| before.regions.get(unit) == Some(&region));
            let Some(used) = self.used_regions.get_mut(usize::from(region)) else {
                continue;
            };
            if std::mem::replace(used, true) && !kept {
                store::clear_region(kernel, &self.config, usize::from(region))?;
            }
        }
        Ok(())
    }

    fn zone(&mut self, kernel: &Kernel, number: u32, zone: Zone) -> Result<(), Error> {
        if zone.used == 1 {
            let before = self.zones.get(number as usize).copied();
            let before = before.filter(|before| before.used == 1 && before.slot == zone.slot);
            self.clear_regions(kernel, zone, before)?;
        }
        store::zone(kernel.map(names::ZONES)?, number, zone)?;
        if let Some(place) = self.zones.get_mut(number as usize) {
            *place = zone;
        }
        Ok(())
    }

    // === prefixes ===

    fn prefix(
        &mut self,
        kernel: &Kernel,
        prefix: Prefix,
        value: &PrefixValue,
    ) -> Result<(), Error> {
        let [four, six] = &mut self.prefixes;
        match prefix {
            IpNet::V4(net) => {
                *four += u64::from(kernel.map(names::PREFIXES4)?.put(&key4(net), value)?);
            }
            IpNet::V6(net) => {
                *six += u64::from(kernel.map(names::PREFIXES6)?.put(&key6(net), value)?);
            }
        }
        Ok(())
    }

    fn remove_prefix(&mut self, kernel: &Kernel, prefix: Prefix) -> Result<(), Error> {
        let [four, six] = &mut self.prefixes;
        let (count, removed) = match prefix {
            IpNet::V4(net) => (four, kernel.map(names::PREFIXES4)?.remove(&key4(net))?),
            IpNet::V6(net) => (six, kernel.map(names::PREFIXES6)?.remove(&key6(net))?),
        };
        *count = count.saturating_sub(u64::from(removed));
        Ok(())
    }
}

/// When a burst of `level` comes into force on a clock that was moved; `None` if it was not.
fn begins_ns(moved: &[Update], slot: u32, unit: u32, level: u64) -> Option<u64> {
    let entry = moved.iter().find_map(|update| match update {
        Update::Policy(entry) if entry.slot == slot => Some(entry),
        _ => None,
    })?;
    let [_, later @ ..] = &entry.clocks.get(unit as usize)?.pieces;
    later
        .iter()
        .find(|piece| piece.from_ns != NEVER && piece.burst == level)
        .map(|piece| piece.from_ns)
}

/// Takes a free entry, waiting for one that rests.
fn wait_for_entry(entries: &mut Entries, table: &str) -> Result<u32, Error> {
    let began_ns = monotonic_ns();
    loop {
        let now_ns = monotonic_ns();
        match entries.take(now_ns) {
            Ok(entry) => return Ok(entry),
            Err(Some(usable_at)) if now_ns < began_ns + 2 * GRACE_NS => {
                let wait_ns = usable_at.saturating_sub(now_ns).min(GRACE_NS);
                std::thread::park_timeout(Duration::from_nanos(wait_ns));
            }
            Err(_) => {
                return Err(Error::Capacity(format!(
                    "every entry of map `{table}` is in use; raise `policies`"
                )));
            }
        }
    }
}

fn clamp(kernel: &Kernel, clamps: &BTreeMap<(u32, u32), u64>) -> Result<(), Error> {
    if clamps.is_empty() {
        return Ok(());
    }
    let mut ops = Vec::new();
    kernel
        .map(names::TRACKED)?
        .walk::<SourceKey, Tracked>(|&key, tracked| {
            let slot = tracked.binding as u32 & SLOT_MASK;
            for (&(_, unit), &level) in clamps.range((slot, 0)..=(slot, u32::MAX)) {
                ops.push(MergeOp {
                    op: op::CLAMP,
                    unit,
                    key,
                    level,
                    slot,
                    ..MergeOp::default()
                });
            }
        })?;
    merge::run(kernel, &mut ops)
}
