//! What the kernel holds, kept up to date from the updates applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use ratelimiter_common::abi::config::ZONES;
use ratelimiter_common::abi::policy::{PolicyEntry, PrefixValue, Zone};
use ratelimiter_common::abi::tracked::SourceKey;
use ratelimiter_common::vclock::SegmentClock;

use super::lookup::Lookup;
use super::plan::{Prefix, Update};
use super::slots::UNUSED_ZONE;

/// What the kernel holds, as the agent remembers it or has read it back.
#[derive(Clone, Debug, PartialEq)]
pub struct Installed {
    /// Policy entries in force, by slot.
    pub policies: BTreeMap<u32, PolicyEntry>,
    /// Segment clocks in force, by number.
    pub segments: BTreeMap<u32, SegmentClock>,
    /// Zones by number.
    pub zones: [Zone; ZONES],
    /// What the tries hold, ascending.
    pub prefixes: Arc<Vec<(Prefix, PrefixValue)>>,
    /// What the coarse bytes and fine bits hold.
    pub lookup: Arc<Lookup>,
    /// Configured tracked sources, ascending by key. Promoted sources are not among them: whoever
    /// promotes them demotes them.
    pub tracked: Arc<Vec<(SourceKey, u32)>>,
    /// `CONFIG.flags` without those the data plane sets by itself.
    pub flags: u32,
}

impl Default for Installed {
    fn default() -> Self {
        Self {
            policies: BTreeMap::new(),
            segments: BTreeMap::new(),
            zones: [UNUSED_ZONE; ZONES],
            prefixes: Arc::default(),
            lookup: Arc::default(),
            tracked: Arc::default(),
            flags: 0,
        }
    }
}

impl Installed {
    /// Remembers that `updates` were applied, all of them.
    pub fn apply(&mut self, updates: &[Update]) {
        let mut put = Vec::new();
        let mut gone = Vec::new();
        let mut track = Vec::new();
        let mut untrack = Vec::new();
        for update in updates {
            match update {
                Update::Policy(entry) => {
                    self.policies.insert(entry.slot, **entry);
                }
                Update::RemovePolicy(slot) => {
                    self.policies.remove(slot);
                }
                Update::Segment { segment, clock } => {
                    self.segments.insert(*segment, *clock);
                }
                Update::Zone { zone, value } => {
                    if let Some(place) = self.zones.get_mut(*zone as usize) {
                        *place = *value;
                    }
                }
                Update::Prefixes(list) => put.extend_from_slice(list),
                Update::RemovePrefixes(list) => gone.extend_from_slice(list),
                Update::Coarse { v6, bytes } => {
                    let lookup = Arc::make_mut(&mut self.lookup);
                    if let Some(table) = lookup.coarse.get_mut(usize::from(*v6)) {
                        for (index, byte) in bytes {
                            if let Some(place) = table.get_mut(usize::from(*index)) {
                                *place = *byte;
                            }
                        }
                    }
                }
                Update::Fine { v6, words } => {
                    let lookup = Arc::make_mut(&mut self.lookup);
                    if let Some(table) = lookup.fine.get_mut(usize::from(*v6)) {
                        for (index, word) in words {
                            if let Some(place) = table.get_mut(*index as usize) {
                                *place = *word;
                            }
                        }
                    }
                }
                Update::Track(list) => track.extend_from_slice(list),
                Update::Untrack(list) => untrack.extend_from_slice(list),
                Update::Flags(flags) => self.flags = *flags,
                Update::Budgets(_) | Update::BumpGeneration | Update::Clamp { .. } => {}
            }
        }
        revise(&mut self.prefixes, put, gone);
        revise(&mut self.tracked, track, untrack);
    }
}

/// Puts and removes keys of an ascending list in one pass.
fn revise<K: Ord + Copy, V: Copy>(
    list: &mut Arc<Vec<(K, V)>>,
    mut put: Vec<(K, V)>,
    mut gone: Vec<K>,
) {
    if put.is_empty() && gone.is_empty() {
        return;
    }
    put.sort_by_key(|(key, _)| *key);
    gone.sort_unstable();
    let mut revised = Vec::with_capacity(list.len() + put.len());
    let mut put = put.into_iter().peekable();
    let mut gone = gone.into_iter().peekable();
    for (key, value) in list.iter() {
        while let Some(new) = put.next_if(|(new, _)| new < key) {
            revised.push(new);
        }
        while gone.next_if(|old| old < key).is_some() {}
        if let Some(new) = put.next_if(|(new, _)| new == key) {
            revised.push(new);
        } else if gone.peek() != Some(key) {
            revised.push((*key, *value));
        }
    }
    revised.extend(put);
    *list = Arc::new(revised);
}

/// What must be put (new, or not the same) and what is gone, of two ascending lists.
pub(super) fn difference<K: Ord + Copy, V: Copy>(
    has: &Arc<Vec<(K, V)>>,
    wants: &Arc<Vec<(K, V)>>,
    same: impl Fn(&V, &V) -> bool,
) -> (Vec<(K, V)>, Vec<K>) {
    let (mut put, mut gone) = (Vec::new(), Vec::new());
    if Arc::ptr_eq(has, wants) {
        return (put, gone);
    }
    let mut has = has.iter().peekable();
    for (key, value) in wants.iter() {
        while let Some((old, _)) = has.next_if(|(old, _)| old < key) {
            gone.push(*old);
        }
        match has.next_if(|(old, _)| old == key) {
            Some((_, old)) if same(old, value) => {}
            _ => put.push((*key, *value)),
        }
    }
    gone.extend(has.map(|(key, _)| *key));
    (put, gone)
}
