//! Pending (`--try`) changes: what the kernel holds until they are confirmed, their ways back
//! included.
//!
//! The overlay of compiled documents enforces each stage until its own deadline and the confirmed
//! document from the last one on, with nobody's help: even if the agent is dead by then.
//!
//! - install: plan to `overlay(stages, confirmed)`
//! - confirm: plan to the overlay of what is left
//! - roll back, or after the deadline: the same, then [`super::plan::clamps_in_force`]
//!
//! A clock and a prefix have room for one way back, so an object changes at one deadline at most:
//! whoever asks for a second change of the same object is told to wait.

use std::collections::BTreeSet;
use std::sync::Arc;

use ratelimiter_common::abi::config::flags;
use ratelimiter_common::abi::policy::{NO_REGION, PrefixValue, Zone, action};
use ratelimiter_common::abi::tracked::SourceKey;
use ratelimiter_common::vclock::NEVER;

use super::clock::UnitTarget;
use super::lookup::Lookup;
use super::plan::Prefix;
use super::set::{Compiled, PolicyTarget};
use super::slots::PolicyName;
use super::validate::Issue;

/// A compiled document and when it stops being in force.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    /// What is in force.
    pub set: &'a Compiled,
    /// Until when (CLOCK_MONOTONIC).
    pub until_ns: u64,
}

/// Returns what enforces each of `stages` until its deadline, in their order, and `confirmed` from
/// the last deadline on. All must have been compiled against the same installed numbers.
///
/// # Errors
///
/// When one object would change at two deadlines, and when the tables are so full that a pending
/// change needs a number that another stage still has: it can then only be made without a way back.
pub fn overlay(stages: &[Stage<'_>], confirmed: &Compiled) -> Result<Compiled, Issue> {
    let Some(first) = stages.first() else {
        return Ok(confirmed.clone());
    };
    let sets: Vec<&Compiled> = stages
        .iter()
        .map(|stage| stage.set)
        .chain([confirmed])
        .collect();
    let ends: Vec<u64> = stages.iter().map(|stage| stage.until_ns).collect();
    let mut merged = first.set.clone();

    let slots: BTreeSet<u32> = sets
        .iter()
        .flat_map(|set| set.policies.keys().copied())
        .collect();
    merged.policies.clear();
    for slot in slots {
        if let Some(target) = policy(slot, &sets, &ends)? {
            merged.policies.insert(slot, target);
        }
    }
    for set in &sets {
        for (name, number) in &set.segments {
            merged.segments.entry(name.clone()).or_insert(*number);
        }
        for (zone, other) in merged.zones.iter_mut().zip(&set.zones) {
            *zone = both_zones(*zone, *other).ok_or_else(no_region)?;
        }
    }
    let mut regions = BTreeSet::new();
    let used = merged.zones.iter().flat_map(|zone| zone.regions);
    for region in used.filter(|region| *region != NO_REGION) {
        if !regions.insert(region) {
            return Err(no_region());
        }
    }

    if sets.iter().any(|set| set.prefixes != merged.prefixes) {
        let lists: Vec<&[Entry]> = sets.iter().map(|set| set.prefixes.as_slice()).collect();
        let prefixes = prefixes(&lists, &ends)?;
        merged.lookup = Arc::new(Lookup::of(&prefixes));
        if !prefixes.is_empty() {
            merged.flags |= flags::PREFIXES;
        }
        merged.prefixes = Arc::new(prefixes);
    }
    if sets.iter().any(|set| set.tracked != merged.tracked) {
        let mut tracked: Vec<(SourceKey, u32)> = sets
            .iter()
            .flat_map(|set| set.tracked.iter().copied())
            .collect();
        // Stable: a source keeps the binding of the earliest stage that has it.
        tracked.sort_by_key(|(key, _)| *key);
        tracked.dedup_by_key(|(key, _)| *key);
        merged.tracked = Arc::new(tracked);
    }
    merged.next_expiry_unix_ms = sets.iter().filter_map(|set| set.next_expiry_unix_ms).min();
    Ok(merged)
}

fn no_region() -> Issue {
    Issue::at(
        &["segments"],
        "every wide region is taken, so the change has no way back; make it without `--try`"
            .to_owned(),
    )
}

fn full(new: &PolicyName, old: &PolicyName) -> Issue {
    Issue::at(
        &["tables", "policies"],
        format!(
            "`{new}` needs the slot of `{old}`, so the change has no way back; make it without \
             `--try`, or raise `tables.policies`"
        ),
    )
}

fn twice(what: &str) -> Issue {
    Issue::at(
        &[],
        format!(
            "{what} would change at two deadlines: it is part of another change on trial; confirm \
             that one or take it back first"
        ),
    )
}

/// The policy of a slot over all stages.
fn policy(slot: u32, sets: &[&Compiled], ends: &[u64]) -> Result<Option<PolicyTarget>, Issue> {
    let mut lead: Option<PolicyTarget> = None;
    let mut units: Option<[Option<UnitTarget>; 3]> = None;
    let mut present = false;
    for (set, since_ns) in sets.iter().zip(std::iter::once(&0).chain(ends)) {
        let next = match (set.policies.get(&slot), &lead) {
            (Some(target), Some(lead)) if lead.identity != target.identity => {
                return Err(full(&lead.name, &target.name));
            }
            (Some(target), _) => {
                present = true;
                Some(target.units)
            }
            // Its sources are judged by another policy from now on, and on their way there by what
            // that one says now.
            (None, Some(lead)) if present => {
                present = false;
                stand_in(set, lead).map(|before| before.units)
            }
            (None, _) => None,
        };
        if lead.is_none() {
            lead = set.policies.get(&slot).cloned();
            units = lead.as_ref().map(|target| target.units);
            continue;
        }
        let Some(next) = next.filter(|next| Some(*next) != units) else {
            continue;
        };
        units = Some(next);
        if let Some(target) = &mut lead {
            if target.way_back.is_some() {
                return Err(twice(&format!("policy `{}`", target.name)));
            }
            target.way_back = Some((*since_ns, next));
        }
    }
    Ok(lead)
}

/// The policy that judges the sources of a policy which is not there.
fn stand_in<'a>(set: &'a Compiled, target: &PolicyTarget) -> Option<&'a PolicyTarget> {
    set.policies
        .values()
        .find(|before| {
            before.segment == target.segment && matches!(before.name, PolicyName::Segment(_))
        })
        .or_else(|| set.policies.get(&0))
}

/// A zone that serves both; `None` if they are different zones.
fn both_zones(new: Zone, old: Zone) -> Option<Zone> {
    match (new.used, old.used) {
        (_, 0) => Some(new),
        (0, _) => Some(old),
        _ if new.slot != old.slot => None,
        _ => {
            let mut zone = new;
            for (region, before) in zone.regions.iter_mut().zip(old.regions) {
                if *region == NO_REGION {
                    *region = before;
                }
            }
            Some(zone)
        }
    }
}

type Entry = (Prefix, PrefixValue);

/// One list on its way through the merge: its next entry, and those around the current prefix.
struct Side<'a> {
    rest: std::iter::Peekable<std::slice::Iter<'a, Entry>>,
    around: Vec<&'a Entry>,
}

/// What one list says about a prefix: of its own, and what the next prefix around it says.
#[derive(Clone, Copy, PartialEq)]
struct Said<'a> {
    own: Option<&'a PrefixValue>,
    around: Option<&'a PrefixValue>,
}

impl<'a> Side<'a> {
    fn new(list: &'a [Entry]) -> Self {
        Self {
            rest: list.iter().peekable(),
            around: Vec::new(),
        }
    }

    fn next(&mut self) -> Option<Prefix> {
        self.rest.peek().map(|(prefix, _)| *prefix)
    }

    /// Moves to `prefix`.
    fn seek(&mut self, prefix: Prefix) -> Said<'a> {
        while self
            .around
            .last()
            .is_some_and(|(outer, _)| !outer.contains(&prefix))
        {
            self.around.pop();
        }
        let around = self.around.last().map(|(_, value)| value);
        let own = self.rest.next_if(|(candidate, _)| *candidate == prefix);
        if let Some(own) = own {
            self.around.push(own);
        }
        Said {
            own: own.map(|(_, value)| value),
            around,
        }
    }
}

type Value = (u32, u32);

const NOTHING: Value = (action::PARENT, 0);

/// What a value says at a moment.
fn at(value: &PrefixValue, time_ns: u64) -> Value {
    if time_ns < value.until_ns {
        (value.action, value.slot)
    } else {
        (value.after_action, value.after_slot)
    }
}

/// What a prefix of no entry of its own falls under, over the stages `said`: what the prefix around
/// it says, where that never changes, else "ask it", which costs each packet a look-up more.
fn fallen(said: &[Said<'_>]) -> Value {
    let mut around = said.iter().map(|said| said.around);
    let Some(Some(first)) = around.next() else {
        return NOTHING;
    };
    if first.until_ns == NEVER && around.all(|other| other == Some(first)) {
        (first.action, first.slot)
    } else {
        NOTHING
    }
}

fn prefixes(lists: &[&[Entry]], ends: &[u64]) -> Result<Vec<Entry>, Issue> {
    let mut sides: Vec<Side<'_>> = lists.iter().map(|list| Side::new(list)).collect();
    let mut merged = Vec::with_capacity(lists.iter().map(|list| list.len()).max().unwrap_or(0));
    let mut said = Vec::with_capacity(sides.len());
    while let Some(prefix) = sides.iter_mut().filter_map(Side::next).min() {
        said.clear();
        said.extend(sides.iter_mut().map(|side| side.seek(prefix)));
        let mut turns = said
            .windows(2)
            .enumerate()
            .filter(|(_, pair)| matches!(pair, [a, b] if a.own != b.own))
            .map(|(stage, _)| stage);
        let Some(turn) = turns.next() else {
            if let Some(value) = said.first().and_then(|said| said.own) {
                merged.push((prefix, *value));
            }
            continue;
        };
        if turns.next().is_some() {
            return Err(twice(&format!("prefix `{prefix}`")));
        }
        let (before, after) = said.split_at(turn + 1);
        let deadline_ns = ends.get(turn).copied().unwrap_or(NEVER);
        let own = |said: &[Said<'_>]| said.first().and_then(|said| said.own.copied());
        // A change that ends by itself before the deadline ends then.
        let until_ns = own(before).map_or(deadline_ns, |value| value.until_ns.min(deadline_ns));
        let first = own(before).map_or_else(|| fallen(before), |value| (value.action, value.slot));
        let then = own(after).map_or_else(|| fallen(after), |value| at(&value, until_ns));
        merged.push((
            prefix,
            PrefixValue {
                action: first.0,
                slot: first.1,
                until_ns,
                after_action: then.0,
                after_slot: then.1,
                prefix_len: u32::from(prefix.prefix_len()),
                reserved: 0,
            },
        ));
    }
    Ok(merged)
}
