//! A data plane in memory, for tests of the agent: applies updates, judges nothing.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ratelimiter_common::abi::config::{Config, FINE_WORDS, PermKey};
use ratelimiter_common::abi::counters::Sample;
use ratelimiter_common::abi::merge::{MergeOp, op, result};
use ratelimiter_common::abi::policy::{PolicyEntry, PrefixValue, Zone};
use ratelimiter_common::abi::tracked::{SLOT_MASK, SourceKey, Tracked};
use ratelimiter_common::abi::{SCHEMA, names};
use ratelimiter_common::vclock::{NEVER, SegmentClock};

use super::state::{
    Applied, AttachOptions, CrowdSource, Drained, Figures, Health, Installed, Interface,
    InterfaceState, Stats, TableFigure,
};
use super::tables::set_budgets;
use super::{DataPlane, Error, Tables};
use crate::policy::plan::{KERNEL_FLAGS, Prefix, Update};

/// What the fake remembers. Tests set and read every field.
#[derive(Debug)]
pub struct FakeState {
    /// Sizes, for capacity checks.
    pub tables: Tables,
    /// Interfaces that exist; attaching to another one fails as in the kernel.
    pub existing: Vec<String>,
    /// What was attached.
    pub interfaces: BTreeMap<String, Interface>,
    /// Answered by `gateways`.
    pub gateways: Vec<std::net::IpAddr>,
    /// Reported by `health`, beside interfaces that are not attached.
    pub problems: Vec<String>,
    /// Scalars.
    pub config: Config,
    /// Entries by slot.
    pub policies: BTreeMap<u32, PolicyEntry>,
    /// Clocks by segment.
    pub segments: BTreeMap<u32, SegmentClock>,
    /// Zones by number.
    pub zones: BTreeMap<u32, Zone>,
    /// Prefixes.
    pub prefixes: BTreeMap<Prefix, PrefixValue>,
    /// `COARSE4`, `COARSE6`.
    pub coarse: [Vec<u8>; 2],
    /// `FINE4`, `FINE6`.
    pub fine: [Vec<u64>; 2],
    /// Tracked sources.
    pub tracked: BTreeMap<SourceKey, Tracked>,
    /// Answered by `stats`.
    pub stats: Stats,
    /// Handed out by `drain_samples`.
    pub samples: VecDeque<Sample>,
    /// Handed out by `drain_events`.
    pub events: VecDeque<Sample>,
    /// Handed out by `scan_crowd`.
    pub crowd: Vec<CrowdSource>,
    /// Every operation `merge` was asked for.
    pub merged: Vec<MergeOp>,
    /// Every update `apply` was asked for.
    pub applied: Vec<Update>,
    /// If set, the next `apply` fails with this capacity sentence and changes nothing.
    pub refuse_next_apply: Option<String>,
    /// If not 0, the next `apply` moves the pieces that are still to begin by this much, as a swap
    /// that came too late does, and says so.
    pub delay_next_apply_ns: u64,
}

/// The in-memory stand-in of [`super::XdpDataPlane`].
#[derive(Debug)]
pub struct FakeDataPlane {
    state: Mutex<FakeState>,
}

impl Default for FakeDataPlane {
    fn default() -> Self {
        Self::new(Tables::small(), &["lo", "eth0", "eth1"])
    }
}

impl FakeDataPlane {
    /// An empty data plane on a machine with the interfaces `existing`.
    pub fn new(tables: Tables, existing: &[&str]) -> Self {
        Self {
            state: Mutex::new(FakeState {
                tables,
                existing: existing.iter().map(|&name| name.to_owned()).collect(),
                interfaces: BTreeMap::new(),
                gateways: Vec::new(),
                problems: Vec::new(),
                config: Config {
                    schema: SCHEMA,
                    flags: 0,
                    prefix_generation: 0,
                    v6_prefix_len: u32::from(tables.v6_prefix_len),
                    v6_mask: u64::MAX,
                    perm: PermKey {
                        xor: [1, 2],
                        mul: [3, 5],
                    },
                    regions4: tables.regions4(),
                    regions6: tables.regions6(),
                    malformed_ns: 0,
                    malformed_burst_ns: 0,
                    generic_segment_bytes: 0,
                    reserved: 0,
                },
                policies: BTreeMap::new(),
                segments: BTreeMap::new(),
                zones: BTreeMap::new(),
                prefixes: BTreeMap::new(),
                coarse: [vec![0; 65_536], vec![0; 65_536]],
                fine: [vec![0; FINE_WORDS as usize], vec![0; FINE_WORDS as usize]],
                tracked: BTreeMap::new(),
                stats: Stats::default(),
                samples: VecDeque::new(),
                events: VecDeque::new(),
                crowd: Vec::new(),
                merged: Vec::new(),
                applied: Vec::new(),
                refuse_next_apply: None,
                delay_next_apply_ns: 0,
            }),
        }
    }

    /// The state, to set and to read in tests.
    pub fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeState {
    fn apply_one(&mut self, update: &Update) {
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
                if value.used == 0 {
                    self.zones.remove(zone);
                } else {
                    self.zones.insert(*zone, *value);
                }
            }
            Update::Prefixes(prefixes) => self.prefixes.extend(prefixes.iter().copied()),
            Update::RemovePrefixes(prefixes) => {
                for prefix in prefixes {
                    self.prefixes.remove(prefix);
                }
            }
            Update::Coarse { v6, bytes } => {
                let [four, six] = &mut self.coarse;
                let table = if *v6 { six } else { four };
                for (index, byte) in bytes {
                    if let Some(place) = table.get_mut(usize::from(*index)) {
                        *place = *byte;
                    }
                }
            }
            Update::Fine { v6, words } => {
                let [four, six] = &mut self.fine;
                let table = if *v6 { six } else { four };
                for (index, word) in words {
                    if let Some(place) = table.get_mut(*index as usize) {
                        *place = *word;
                    }
                }
            }
            Update::Track(sources) => {
                for (key, slot) in sources {
                    self.tracked.entry(*key).or_insert(Tracked {
                        binding: u64::from(self.config.prefix_generation) << 32 | u64::from(*slot),
                        ..Tracked::default()
                    });
                }
            }
            Update::Untrack(sources) => {
                for key in sources {
                    self.tracked.remove(key);
                }
            }
            Update::Flags(flags) => {
                self.config.flags = (flags & !KERNEL_FLAGS) | (self.config.flags & KERNEL_FLAGS);
            }
            Update::Budgets(budgets) => set_budgets(&mut self.config, budgets),
            Update::BumpGeneration => {
                self.config.prefix_generation = self.config.prefix_generation.wrapping_add(1);
            }
            Update::Clamp { .. } => {}
        }
    }
}

/// `entry` with the second piece of its first clock `delay_ns` later; `None` if that is no change.
fn delayed(entry: &PolicyEntry, delay_ns: u64) -> Option<PolicyEntry> {
    let mut moved = *entry;
    let [first, second, _] = &mut moved.clocks.first_mut()?.pieces;
    if delay_ns == 0 || second.from_ns == NEVER {
        return None;
    }
    second.from_ns += delay_ns;
    second.base_ns += delay_ns;
    second.base = first.at(second.base_ns);
    Some(moved)
}

impl DataPlane for FakeDataPlane {
    fn attach(&self, interface: &str, options: AttachOptions) -> Result<(), Error> {
        let mut state = self.state();
        let Some(position) = state.existing.iter().position(|name| name == interface) else {
            return Err(Error::UnknownInterface(interface.to_owned()));
        };
        if let Some(attached) = state.interfaces.get(interface)
            && attached.mode != options.mode
        {
            return Err(Error::OtherMode {
                interface: interface.to_owned(),
                is: attached.mode.as_str(),
                asked: options.mode.as_str(),
            });
        }
        state.interfaces.insert(
            interface.to_owned(),
            Interface {
                name: interface.to_owned(),
                index: position as u32 + 1,
                mode: options.mode,
                state: InterfaceState::Attached,
                since_ns: 0,
            },
        );
        Ok(())
    }

    fn detach(&self, interface: &str) -> Result<bool, Error> {
        Ok(self.state().interfaces.remove(interface).is_some())
    }

    fn interfaces(&self) -> Vec<Interface> {
        self.state().interfaces.values().cloned().collect()
    }

    fn gateways(&self) -> Result<Vec<std::net::IpAddr>, Error> {
        Ok(self.state().gateways.clone())
    }

    fn health(&self) -> Health {
        let state = self.state();
        let mut problems = state.problems.clone();
        problems.extend(
            state
                .interfaces
                .values()
                .filter(|interface| !interface.is_attached())
                .map(|interface| format!("interface `{}` is not attached", interface.name)),
        );
        Health {
            ok: problems.is_empty(),
            problems,
            program_id: 1,
            ..Health::default()
        }
    }

    fn apply(&self, updates: &[Update]) -> Result<Applied, Error> {
        let mut state = self.state();
        if let Some(sentence) = state.refuse_next_apply.take() {
            return Err(Error::Capacity(sentence));
        }
        let delay_ns = std::mem::take(&mut state.delay_next_apply_ns);
        let mut applied = Applied::default();
        for update in updates {
            state.apply_one(update);
            if let Update::Policy(entry) = update
                && let Some(moved) = delayed(entry, delay_ns)
            {
                let moved = Update::Policy(Box::new(moved));
                state.apply_one(&moved);
                applied.moved.push(moved);
            }
        }
        state.applied.extend_from_slice(updates);
        Ok(applied)
    }

    fn installed(&self) -> Result<Installed, Error> {
        let state = self.state();
        Ok(Installed {
            config: state.config,
            policies: state.policies.values().copied().collect(),
            segments: state
                .segments
                .iter()
                .map(|(&n, &clock)| (n, clock))
                .collect(),
            zones: state.zones.iter().map(|(&n, &zone)| (n, zone)).collect(),
            prefixes: state.prefixes.iter().map(|(&p, &v)| (p, v)).collect(),
            coarse: state.coarse.clone(),
            fine: state.fine.clone(),
            tracked: state
                .tracked
                .iter()
                .map(|(&key, tracked)| (key, tracked.binding as u32 & SLOT_MASK))
                .collect(),
        })
    }

    fn stats(&self) -> Result<Stats, Error> {
        Ok(self.state().stats.clone())
    }

    fn drain_samples(&self, visit: &mut dyn FnMut(&Sample)) -> Result<Drained, Error> {
        let samples = std::mem::take(&mut self.state().samples);
        samples.iter().for_each(visit);
        Ok(Drained {
            taken: samples.len() as u64,
            lost: 0,
        })
    }

    fn drain_events(&self, visit: &mut dyn FnMut(&Sample)) -> Result<u64, Error> {
        let events = std::mem::take(&mut self.state().events);
        events.iter().for_each(visit);
        Ok(events.len() as u64)
    }

    fn scan_crowd(&self, _now_ns: u64, visit: &mut dyn FnMut(&CrowdSource)) -> Result<(), Error> {
        let crowd = self.state().crowd.clone();
        crowd.iter().for_each(visit);
        Ok(())
    }

    fn scan_tracked(&self, visit: &mut dyn FnMut(SourceKey, &Tracked)) -> Result<(), Error> {
        let tracked = self.state().tracked.clone();
        for (key, value) in &tracked {
            visit(*key, value);
        }
        Ok(())
    }

    /// Knows which sources exist, not what they owe: `READ` answers 0, `PROMOTE` inserts,
    /// `DEMOTE` deletes, the rest is recorded.
    fn read_tracked(
        &self,
        keys: &[SourceKey],
        visit: &mut dyn FnMut(SourceKey, Option<&Tracked>),
    ) -> Result<(), Error> {
        let tracked = self.state().tracked.clone();
        for key in keys {
            visit(*key, tracked.get(key));
        }
        Ok(())
    }

    fn merge(&self, ops: &mut [MergeOp]) -> Result<(), Error> {
        let mut state = self.state();
        for merge_op in ops {
            let tracked = state.tracked.contains_key(&merge_op.key);
            let in_crowd = state.crowd.iter().any(|source| source.key == merge_op.key);
            merge_op.result = match merge_op.op {
                op::PROMOTE if tracked => result::REFUSED,
                op::PROMOTE => {
                    state.tracked.insert(
                        merge_op.key,
                        Tracked {
                            binding: u64::from(merge_op.generation) << 32
                                | u64::from(merge_op.slot),
                            ..Tracked::default()
                        },
                    );
                    result::DONE
                }
                op::DEMOTE if tracked => {
                    state.tracked.remove(&merge_op.key);
                    result::DONE
                }
                op::READ | op::RESET if tracked || in_crowd => {
                    merge_op.level = 0;
                    result::DONE
                }
                op::RAISE | op::CLAMP | op::SCALE if tracked => result::DONE,
                _ => result::ABSENT,
            };
            state.merged.push(*merge_op);
        }
        Ok(())
    }

    fn figures(&self, _now_ns: u64) -> Result<Figures, Error> {
        let state = self.state();
        Ok(Figures {
            tables: vec![
                TableFigure {
                    name: names::TRACKED,
                    capacity: u64::from(state.tables.tracked),
                    used: Some(state.tracked.len() as u64),
                    bytes: 0,
                },
                TableFigure {
                    name: names::POLICIES,
                    capacity: u64::from(state.tables.policies),
                    used: Some(state.policies.len() as u64),
                    bytes: 0,
                },
            ],
            crowd: Vec::new(),
        })
    }

    fn tables(&self) -> Tables {
        self.state().tables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applies_what_it_reads_back() {
        let plane = FakeDataPlane::default();
        plane
            .apply(&[
                Update::Flags(1),
                Update::BumpGeneration,
                Update::Track(vec![(7, 3)]),
                Update::Coarse {
                    v6: false,
                    bytes: vec![(10, 255)],
                },
            ])
            .unwrap();
        let installed = plane.installed().unwrap();
        assert_eq!(installed.config.flags, 1);
        assert_eq!(installed.tracked, [(7, 3)]);
        assert_eq!(installed.coarse[0][10], 255);
    }

    #[test]
    fn refuses_an_interface_that_does_not_exist() {
        let plane = FakeDataPlane::default();
        let error = plane.attach("nope0", AttachOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), "there is no interface `nope0`");
        assert!(plane.interfaces().is_empty());
    }

    #[test]
    fn unhealthy_while_an_interface_is_absent() {
        let plane = FakeDataPlane::default();
        plane.attach("eth0", AttachOptions::default()).unwrap();
        assert!(plane.health().ok);
        if let Some(interface) = plane.state().interfaces.get_mut("eth0") {
            interface.state = InterfaceState::Absent;
        }
        assert!(!plane.health().ok);
    }
}
