//! A pending (`--try`) change: what the kernel holds until it is confirmed, its way back included.
//!
//! The overlay of two compiled documents enforces the pending one until the deadline and the
//! confirmed one from then on, with nobody's help: even if the agent is dead by then.
//!
//! - install: plan to `overlay(confirmed, pending, deadline)`
//! - confirm: plan to `pending`
//! - roll back, or after the deadline: plan to `confirmed`, then
//!   [`super::plan::clamps_in_force`]

use std::sync::Arc;

use ratelimiter_common::abi::config::flags;
use ratelimiter_common::abi::policy::{NO_REGION, PrefixValue, Zone, action};

use super::lookup::Lookup;
use super::plan::Prefix;
use super::set::{Compiled, PolicyTarget};
use super::slots::PolicyName;
use super::validate::Issue;

/// Returns what enforces `pending` until `deadline_ns` (CLOCK_MONOTONIC) and `confirmed` from then
/// on. Both must have been compiled against the same installed numbers.
///
/// # Errors
///
/// When the tables are so full that the pending change needs a number the confirmed policies still
/// have: it can then only be made without a way back.
pub fn overlay(
    confirmed: &Compiled,
    pending: &Compiled,
    deadline_ns: u64,
) -> Result<Compiled, Issue> {
    let mut merged = pending.clone();
    for (slot, target) in &mut merged.policies {
        match confirmed.policies.get(slot) {
            Some(before) if before.identity == target.identity => {
                if before.units != target.units {
                    target.way_back = Some((deadline_ns, before.units));
                }
            }
            Some(before) => return Err(full(&target.name, &before.name)),
            None => {
                let before = stand_in(confirmed, target);
                target.way_back = before.map(|before| (deadline_ns, before.units));
            }
        }
    }
    for (slot, before) in &confirmed.policies {
        merged
            .policies
            .entry(*slot)
            .or_insert_with(|| before.clone());
    }
    for (name, number) in &confirmed.segments {
        merged.segments.entry(name.clone()).or_insert(*number);
    }
    for (zone, before) in merged.zones.iter_mut().zip(&confirmed.zones) {
        *zone = both_zones(*zone, *before).ok_or_else(|| {
            Issue::at(
                &["segments"],
                "every wide region is taken, so the change has no way back; make it without \
                 `--try`"
                    .to_owned(),
            )
        })?;
    }
    let prefixes = both_prefixes(&confirmed.prefixes, &pending.prefixes, deadline_ns);
    merged.lookup = Arc::new(Lookup::of(&prefixes));
    if !prefixes.is_empty() {
        merged.flags |= flags::PREFIXES;
    }
    merged.prefixes = Arc::new(prefixes);
    let mut tracked = pending.tracked.to_vec();
    tracked.extend(confirmed.tracked.iter().copied());
    tracked.sort_by_key(|(key, _)| *key);
    tracked.dedup_by_key(|(key, _)| *key);
    merged.tracked = Arc::new(tracked);
    merged.next_expiry_unix_ms = [confirmed, pending]
        .iter()
        .filter_map(|set| set.next_expiry_unix_ms)
        .min();
    Ok(merged)
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

/// The policy that judged the sources of a policy which did not exist.
fn stand_in<'a>(confirmed: &'a Compiled, target: &PolicyTarget) -> Option<&'a PolicyTarget> {
    confirmed
        .policies
        .values()
        .find(|before| {
            before.segment == target.segment && matches!(before.name, PolicyName::Segment(_))
        })
        .or_else(|| confirmed.policies.get(&0))
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

/// One side of the merge: its next entry, and those around the current prefix.
struct Side<'a> {
    rest: std::iter::Peekable<std::slice::Iter<'a, (Prefix, PrefixValue)>>,
    around: Vec<&'a (Prefix, PrefixValue)>,
}

impl<'a> Side<'a> {
    fn new(list: &'a [(Prefix, PrefixValue)]) -> Self {
        Self {
            rest: list.iter().peekable(),
            around: Vec::new(),
        }
    }

    fn next(&mut self) -> Option<Prefix> {
        self.rest.peek().map(|(prefix, _)| *prefix)
    }

    /// Moves to `prefix`: its own value, and what the prefixes around it say at `time_ns`.
    fn seek(&mut self, prefix: Prefix) -> (Option<&'a PrefixValue>, Option<&'a PrefixValue>) {
        while self
            .around
            .last()
            .is_some_and(|(outer, _)| !outer.contains(&prefix))
        {
            self.around.pop();
        }
        let outer = self.around.last().map(|(_, value)| value);
        let own = self.rest.next_if(|(candidate, _)| *candidate == prefix);
        if let Some(own) = own {
            self.around.push(own);
        }
        (own.map(|(_, value)| value), outer)
    }
}

fn both_prefixes(
    confirmed: &[(Prefix, PrefixValue)],
    pending: &[(Prefix, PrefixValue)],
    deadline_ns: u64,
) -> Vec<(Prefix, PrefixValue)> {
    let (mut old, mut new) = (Side::new(confirmed), Side::new(pending));
    let mut merged = Vec::with_capacity(confirmed.len().max(pending.len()));
    while let Some(prefix) = [old.next(), new.next()].into_iter().flatten().min() {
        let (before, before_around) = old.seek(prefix);
        let (after, after_around) = new.seek(prefix);
        if before == after
            && let Some(value) = after
        {
            merged.push((prefix, *value));
            continue;
        }
        // A change that ends by itself before the deadline ends then.
        let until_ns = after
            .map_or(deadline_ns, |value| value.until_ns)
            .min(deadline_ns);
        let first = after
            .or(after_around)
            .map_or(NOTHING, |value| (value.action, value.slot));
        let then = before
            .or(before_around)
            .map_or(NOTHING, |value| at(value, until_ns));
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
    merged
}
