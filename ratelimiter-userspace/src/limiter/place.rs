//! The slow path, under a group's lock: who gets a way, who loses one, and what becomes of a state
//! when its policy changes.
//!
//! A client that has no way takes an empty one, else an idle client's, else that of the client of
//! least debt, **and that debt with it** (Space-Saving, Metwally et al. 2005): in a full table
//! nobody gains by being crowded out and coming back, and filling the table never frees a client
//! that is at its limit. Debt is compared as the time in which a bucket of the quota's rate would
//! drain it, and what a newcomer of another policy takes over is capped at its own limit.

use std::sync::atomic::{AtomicU64, Ordering};

use super::assign::Assigned;
use super::block::{Block, BlockId};
use super::engine::{Ask, Engine, block_size};
use super::identity::{ClientKey, EMPTY, TOMBSTONE};
use super::meter::{Meter, State};
use super::registry::Compiled;
use super::rule::{Kind, PolicyWord};
use super::spec::QuotaSpec;
use super::table::{GROUP, WAYS, Way};
use super::word;

/// How often a victim that was charged meanwhile is spared for another choice.
const CHOICES: u32 = 4;

/// What happened in the slow path.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) clients: AtomicU64,
    pub(super) evicted_idle: AtomicU64,
    pub(super) evicted_in_debt: AtomicU64,
    pub(super) without_block: AtomicU64,
    pub(super) converted: AtomicU64,
    /// Clients whose debt was forgiven on request.
    pub(super) resets: AtomicU64,
}

/// A way, and what was seen in it.
pub(super) struct Candidate<'a> {
    pub(super) way: Way<'a>,
    pub(super) print: u64,
    word: u64,
    pub(super) debt_ns: u64,
}

/// A client's states under the policy they belong to.
pub(super) struct Known {
    pub(super) of: std::sync::Arc<Compiled>,
    pub(super) states: Vec<State>,
}

impl Engine {
    /// Makes sure the client has a way whose policy is the one that applies to it.
    pub(super) fn place(&self, home: usize, ask: &Ask<'_>) {
        let _group = self.table.lock(home);
        self.registry.settled();
        // Read under the lock: whoever changes an assignment comes by here afterwards.
        let (Assigned::Configured(index) | Assigned::Default(index)) = self.applies(ask) else {
            return;
        };
        for line in self.table.neighbours(home) {
            if let Some(way) = line.find(ask.key.print) {
                self.refresh(line.way(way), ask.key.print, index, ask.now_ns);
                return;
            }
        }
        self.settle_newcomer(home, ask, index);
    }

    /// Brings a known client under the policy `index`, if it has a way. For edits.
    pub(super) fn reassign(&self, key: ClientKey, index: u32, now_ns: u64) {
        let home = self.table.home(key);
        let _group = self.table.lock(home);
        for line in self.table.neighbours(home) {
            if let Some(way) = line.find(key.print) {
                self.refresh(line.way(way), key.print, index, now_ns);
            }
        }
    }

    /// Brings every client under the policy that applies to it now. For a change of what applies
    /// to clients nobody configured.
    pub(super) fn reassign_all(&self, now_ns: u64) {
        self.registry.settled();
        for home in (0..self.table.lines()).step_by(GROUP) {
            let _group = self.table.lock(home);
            for line in self.table.neighbours(home) {
                for number in 0..WAYS {
                    let way = line.way(number);
                    let print = way.print.load(Ordering::Acquire);
                    if print == EMPTY || print == TOMBSTONE {
                        continue;
                    }
                    // Whoever asks for these names their policy with every question.
                    let class = self.registry.behind(way.policy());
                    if class.is_some_and(|of| of.spec.is_class()) {
                        continue;
                    }
                    match self.assigned_print(print, home) {
                        Assigned::Configured(index) | Assigned::Default(index) => {
                            self.refresh(way, print, index, now_ns);
                        }
                        Assigned::Refused => self.vacate(way, print),
                    }
                }
            }
        }
    }

    /// Forgets what a client owes.
    pub(super) fn forget(&self, key: ClientKey) -> bool {
        let home = self.table.home(key);
        let _group = self.table.lock(home);
        for line in self.table.neighbours(home) {
            if let Some(way) = line.find(key.print) {
                self.vacate(line.way(way), key.print);
                return true;
            }
        }
        false
    }

    /// Empties a way. Under the group's lock.
    fn vacate(&self, way: Way<'_>, print: u64) {
        let policy = way.policy();
        if let Some(word) = way.seize(print) {
            self.drop_block(policy, word);
            way.clear();
            self.tally.clients.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Brings a way under the policy `index` if it is under another.
    fn refresh(&self, way: Way<'_>, print: u64, index: u32, now_ns: u64) {
        let before = way.policy();
        let Some(target) = self.registry.current(index) else {
            return;
        };
        let companion =
            target.companion == Some(before.index()) && self.registry.rules.read(before).is_some();
        if before == target.word || companion {
            return;
        }
        let Some(old_word) = way.seize(print) else {
            return;
        };
        let now_ns = self.time_of(before, old_word, now_ns);
        let known = self.states_of(before, old_word, now_ns);
        self.drop_block(before, old_word);
        let (word, policy) = self.build(&target, print, now_ns, &|spec, meter| {
            known.as_ref().map_or_else(
                // Nobody remembers what it owed: the whole limit, which is back in one window.
                || meter.holding(u64::MAX, now_ns),
                |known| known.carried(spec, meter, now_ns),
            )
        });
        way.settle(
            print,
            word::other_than(&target.rule.kind, word, old_word),
            policy,
        );
        self.tally.converted.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the client the best way of its group.
    fn settle_newcomer(&self, home: usize, ask: &Ask<'_>, index: u32) {
        let Some(target) = self.registry.current(index) else {
            return;
        };
        for choice in 0..=CHOICES {
            let Some(chosen) = self.choose(home, ask.now_ns) else {
                return;
            };
            if chosen.print == EMPTY {
                let (word, policy) = self.newborn(&target, ask);
                chosen.way.set_home(home);
                chosen.way.settle(ask.key.print, word, policy);
                self.tally.clients.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let policy = chosen.way.policy();
            let Some(last) = chosen.way.seize(chosen.print) else {
                continue;
            };
            // Charged since it was looked at: perhaps another owes less now.
            if last != chosen.word && choice < CHOICES {
                chosen.way.restore(chosen.print);
                continue;
            }
            chosen.way.set_home(home);
            self.take_over(&chosen, policy, last, &target, ask);
            return;
        }
    }

    /// Gives a seized way, with what its owner owed, to the newcomer.
    fn take_over(
        &self,
        chosen: &Candidate<'_>,
        policy: PolicyWord,
        last: u64,
        target: &Compiled,
        ask: &Ask<'_>,
    ) {
        let print = ask.key.print;
        // As of the last word: it may have been charged since it was chosen.
        let debt_ns = self.debt_ns(policy, last, ask.now_ns);
        if debt_ns == 0 {
            self.tally.evicted_idle.fetch_add(1, Ordering::Relaxed);
            self.drop_block(policy, last);
            let (word, new) = self.newborn(target, ask);
            let word = word::other_than(&target.rule.kind, word, last);
            chosen.way.settle(print, word, new);
            return;
        }
        self.tally.evicted_in_debt.fetch_add(1, Ordering::Relaxed);
        if policy == target.word {
            let word = if target.rule.kind == Kind::Block {
                if let Some(mut held) = self.blocks.get(BlockId(last)).and_then(Block::lock) {
                    held.hand_over(print, policy);
                }
                last
            } else {
                word::other_than(&target.rule.kind, last, last)
            };
            chosen.way.settle(print, word, policy);
            return;
        }
        self.drop_block(policy, last);
        let (word, new) = self.build(target, print, ask.now_ns, &|_, meter| {
            meter.inheriting(debt_ns, ask.now_ns)
        });
        let word = word::other_than(&target.rule.kind, word, last);
        chosen.way.settle(print, word, new);
    }

    /// The word and policy of a client that owes nothing.
    fn newborn(&self, target: &Compiled, ask: &Ask<'_>) -> (u64, PolicyWord) {
        self.build(target, ask.key.print, ask.now_ns, &|_, meter| {
            meter.holding(0, ask.now_ns)
        })
    }

    /// Chooses an empty way, else an idle client's, else that of least debt; of equals the nearest
    /// to home.
    pub(super) fn choose(&self, home: usize, now_ns: u64) -> Option<Candidate<'_>> {
        let mut best: Option<Candidate<'_>> = None;
        for line in self.table.neighbours(home) {
            for number in 0..WAYS {
                let way = line.way(number);
                let print = way.print.load(Ordering::Acquire);
                if print == EMPTY {
                    return Some(Candidate {
                        way,
                        print,
                        word: 0,
                        debt_ns: 0,
                    });
                }
                if print == TOMBSTONE || best.as_ref().is_some_and(|best| best.debt_ns == 0) {
                    continue;
                }
                let Some((policy, word)) = way.read(print) else {
                    continue;
                };
                let debt_ns = self.debt_ns(policy, word, now_ns);
                if best.as_ref().is_none_or(|best| debt_ns < best.debt_ns) {
                    best = Some(Candidate {
                        way,
                        print,
                        word,
                        debt_ns,
                    });
                }
            }
        }
        best
    }

    /// What a way's client owes, as time.
    fn debt_ns(&self, policy: PolicyWord, word: u64, now_ns: u64) -> u64 {
        if let Some(rule) = self.registry.rules.read(policy)
            && rule.kind != Kind::Block
        {
            return word::debt_ns(&rule.kind, word, now_ns);
        }
        self.states_of(policy, word, now_ns)
            .map_or(u64::MAX, |known| known.debt_ns(now_ns))
    }

    /// The time at which a state is to be read: `now_ns`, but with the caller's clock never before
    /// the newest stamp of the client.
    pub(super) fn time_of(&self, policy: PolicyWord, word: u64, now_ns: u64) -> u64 {
        if !self.common.caller_clock || BlockId(word).is_none() {
            return now_ns;
        }
        let newest = self
            .blocks
            .get(BlockId(word))
            .and_then(Block::lock)
            .filter(|held| held.policy() == policy)
            .map_or(0, |held| held.newest());
        now_ns.max(newest)
    }

    /// Reads a client's states; `None` where nobody remembers its policy or its block.
    pub(super) fn states_of(&self, policy: PolicyWord, word: u64, now_ns: u64) -> Option<Known> {
        let of = self.registry.behind(policy)?;
        let states = match of.rule.kind {
            Kind::Unlimited => Vec::new(),
            Kind::Block => {
                let held = self.blocks.get(BlockId(word))?.lock()?;
                if held.policy() != policy {
                    return None;
                }
                let read =
                    |meter: &Meter| meter.read(held.states(meter.offset, meter.words()), now_ns);
                of.meters.iter().map(read).collect()
            }
            ref kind => vec![word::read(kind, word, now_ns)?],
        };
        Some(Known { of, states })
    }

    /// Frees the block of a seized way, if it has one. A thread that still holds its number finds
    /// nobody's fingerprint in it.
    pub(super) fn drop_block(&self, policy: PolicyWord, word: u64) {
        if BlockId(word).is_none() || self.has_one_word(policy) {
            return;
        }
        let Some(mut held) = self.blocks.get(BlockId(word)).and_then(Block::lock) else {
            return;
        };
        if held.policy() != policy || held.owner() == EMPTY {
            return;
        }
        held.hand_over(EMPTY, PolicyWord(0));
        drop(held);
        self.blocks.give_back(BlockId(word));
    }

    fn has_one_word(&self, policy: PolicyWord) -> bool {
        self.registry
            .behind(policy)
            .is_none_or(|of| of.rule.kind != Kind::Block)
    }

    /// Builds a client's state under `target`, each quota's by `state`.
    pub(super) fn build(
        &self,
        target: &Compiled,
        print: u64,
        now_ns: u64,
        state: &dyn Fn(&QuotaSpec, &Meter) -> State,
    ) -> (u64, PolicyWord) {
        let quotas = || target.spec.quotas.iter().zip(&target.meters);
        if target.rule.kind != Kind::Block {
            let word = quotas().next().map_or(0, |(spec, meter)| {
                word::write(&target.rule.kind, &state(spec, meter), now_ns)
            });
            return (word, target.word);
        }
        let id = self.blocks.take(block_size(target));
        if let Some(id) = id
            && let Some(mut held) = self.blocks.get(id).and_then(Block::lock)
        {
            held.hand_over(print, target.word);
            held.set_newest(if self.common.caller_clock { now_ns } else { 0 });
            for (spec, meter) in quotas() {
                let states = held.states(meter.offset, meter.words());
                meter.write(states, &state(spec, meter), now_ns);
            }
            return (id.0, target.word);
        }
        self.tally.without_block.fetch_add(1, Ordering::Relaxed);
        let Some(companion) = target
            .companion
            .and_then(|index| self.registry.current(index))
        else {
            return (0, target.word);
        };
        let debt_ns = quotas()
            .map(|(spec, meter)| meter.debt_ns(&state(spec, meter), now_ns))
            .max()
            .unwrap_or(0);
        let word = companion.meters.first().map_or(0, |meter| {
            word::write(
                &companion.rule.kind,
                &meter.inheriting(debt_ns, now_ns),
                now_ns,
            )
        });
        (word, companion.word)
    }

    /// Sweeps the next `groups` groups; returns how many clients were let go.
    pub(super) fn sweep_some(&self, groups: usize, now_ns: u64) -> u64 {
        // By the caller's clock nobody knows who is idle: everyone has a time of his own.
        if self.common.caller_clock {
            return 0;
        }
        let all = self.table.lines() / GROUP;
        let groups = groups.min(all);
        let first = self.hand.fetch_add(groups, Ordering::Relaxed);
        (first..first.saturating_add(groups))
            .map(|group| self.sweep(group % all * GROUP, now_ns))
            .sum()
    }

    /// Empties the ways of idle clients in the group of line `home`. For maintenance: it keeps
    /// window starts from wrapping and gives blocks back.
    pub(super) fn sweep(&self, home: usize, now_ns: u64) -> u64 {
        let _group = self.table.lock(home);
        let mut swept = 0;
        for line in self.table.neighbours(home) {
            for number in 0..WAYS {
                let way = line.way(number);
                let print = way.print.load(Ordering::Acquire);
                if print == EMPTY || print == TOMBSTONE {
                    continue;
                }
                let Some((policy, word)) = way.read(print) else {
                    continue;
                };
                if self.debt_ns(policy, word, now_ns) > 0 {
                    continue;
                }
                let Some(last) = way.seize(print) else {
                    continue;
                };
                if last != word || self.debt_ns(policy, last, now_ns) > 0 {
                    way.restore(print);
                    continue;
                }
                self.drop_block(policy, last);
                way.clear();
                self.tally.clients.fetch_sub(1, Ordering::Relaxed);
                swept += 1;
            }
        }
        swept
    }

    /// Returns the policy that applies to the owner of a way in the group of line `home`.
    pub(super) fn assigned_print(&self, print: u64, home: usize) -> Assigned {
        let group = |place: u64| {
            let key = ClientKey { place, print };
            self.table.home(key) / GROUP == home / GROUP
        };
        self.assignments
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .of_print(print, group)
    }
}

impl Known {
    /// The state under a quota of another policy: carried over from the old quota of the same name,
    /// else from the one with the most similar window.
    pub(super) fn carried(&self, spec: &QuotaSpec, meter: &Meter, now_ns: u64) -> State {
        let old = || {
            self.of
                .spec
                .quotas
                .iter()
                .zip(self.of.meters.iter().zip(&self.states))
        };
        let named = old().find(|(old, _)| old.name == spec.name);
        let nearest = || old().min_by_key(|(old, _)| old.window_ns.abs_diff(spec.window_ns));
        named.or_else(nearest).map_or_else(
            || meter.holding(0, now_ns),
            |(_, (old, state))| meter.carry(old, state, now_ns),
        )
    }

    /// What is owed, as time; the most of all quotas.
    pub(super) fn debt_ns(&self, now_ns: u64) -> u64 {
        self.of
            .meters
            .iter()
            .zip(&self.states)
            .map(|(meter, state)| meter.debt_ns(state, now_ns))
            .max()
            .unwrap_or(0)
    }
}
