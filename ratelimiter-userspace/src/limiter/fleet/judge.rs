//! Leases in the blocks of clients.

use std::sync::atomic::{AtomicU64, Ordering};

use ratelimiter_common::window::fixed_window::Counter;
use ratelimiter_common::window::sliding_window::Counters;

use super::{Fleet, Who};
use crate::limiter::block::{Block, BlockId, Held};
use crate::limiter::engine::{Ask, Engine};
use crate::limiter::identity::ClientKey;
use crate::limiter::meter::{Meter, Says, State};
use crate::limiter::registry::Compiled;
use crate::limiter::rule::{PolicyWord, TICK_BITS};
use crate::limiter::spec::QuotaSpec;
use crate::policy::model::{Algorithm, Consistency, OnStoreLoss};
use crate::sync::lease::{Around, Lease, Terms, Verdict, WORDS};
use crate::sync::settle::MAX_AMOUNT;
use crate::sync::{Answer, Entry, FleetKey, FleetQuota};

/// State words of a quota of the fleet: the lease, and the name of its bucket.
pub(in crate::limiter) const FLEET_WORDS: usize = WORDS + 2;

/// Reads the lease in a block's words.
pub(in crate::limiter) fn read(words: &[AtomicU64]) -> Lease {
    let mut plain = [0; WORDS];
    for (plain, word) in plain.iter_mut().zip(words) {
        *plain = word.load(Ordering::Relaxed);
    }
    Lease::from_words(&plain)
}

/// Writes it back.
pub(in crate::limiter) fn write(words: &[AtomicU64], lease: &Lease) {
    for (word, plain) in words.iter().zip(lease.to_words()) {
        word.store(plain, Ordering::Relaxed);
    }
}

fn key(words: &[AtomicU64]) -> Option<FleetKey> {
    let [high, low] = words.get(WORDS..FLEET_WORDS)? else {
        return None;
    };
    let wide = |word: &AtomicU64| u128::from(word.load(Ordering::Relaxed));
    let key = wide(high) << 64 | wide(low);
    (key != 0).then_some(FleetKey(key))
}

fn set_key(words: &[AtomicU64], key: FleetKey) {
    if let Some([high, low]) = words.get(WORDS..FLEET_WORDS) {
        high.store((key.0 >> 64) as u64, Ordering::Relaxed);
        low.store(key.0 as u64, Ordering::Relaxed);
    }
}

/// What a quota of the fleet says to an arrival, and whether an entry is due behind it. `try_only`
/// leaves everything as it is.
pub(in crate::limiter) fn judge(
    fleet: &Fleet,
    (terms, name): (&Terms, &str),
    words: &[AtomicU64],
    (now_ns, ask): (u64, &Ask<'_>),
    try_only: bool,
) -> (Says, bool) {
    if key(words).is_none() && ask.has_id() {
        set_key(words, fleet.key(name, ask.id));
    }
    let mut around = fleet.around();
    around.alone |= ask.alone || key(words).is_none();
    let mut lease = read(words);
    let told = !lease.is_behind();
    let cost = ask.cost.saturating_mul(1 << TICK_BITS);
    let verdict = lease.decide(terms, &around, now_ns, cost, ask.charge);
    if ask.charge && !try_only {
        write(words, &lease);
    }
    let says = match verdict {
        Verdict::Passes {
            remaining,
            reset_ns,
        } => Says::Passes {
            remaining: remaining >> TICK_BITS,
            reset_ns,
        },
        Verdict::Refuses { .. } if around.alone && terms.on_loss == OnStoreLoss::Deny => {
            Says::IsAway {
                retry_ns: around.lease_ns.max(1),
            }
        }
        Verdict::Refuses { retry_ns } => Says::Refuses { retry_ns },
        Verdict::Never => Says::Never,
        Verdict::Ask => Says::Asks,
    };
    // What is admitted alone is to be told once the store is back.
    (says, lease.is_due(&around) || told && lease.is_behind())
}

impl Engine {
    /// The policy of a client whose states are in a block, where some of them are the fleet's.
    pub(super) fn block_policy(&self, key: ClientKey) -> Option<PolicyWord> {
        let home = self.table.home(key);
        self.table.neighbours(home).find_map(|line| {
            let (policy, _) = line.way(line.find(key.print)?).read(key.print)?;
            let compiled = self.registry.behind(policy)?;
            compiled.is_of_fleet().then_some(policy)
        })
    }

    /// Does something with a client's states, if they still are what they were.
    fn with_block<R>(&self, who: Who, with: impl FnOnce(&Compiled, &Held<'_>) -> R) -> Option<R> {
        let home = self.table.home(who.key);
        let word = self.table.neighbours(home).find_map(|line| {
            let (policy, word) = line.way(line.find(who.key.print)?).read(who.key.print)?;
            (policy == who.policy).then_some(word)
        })?;
        let compiled = self.registry.current(who.policy.index())?;
        if compiled.word != who.policy || !compiled.is_of_fleet() {
            return None;
        }
        let held = self.blocks.get(BlockId(word)).and_then(Block::lock)?;
        if held.owner() != who.key.print || held.policy() != who.policy {
            return None;
        }
        Some(with(&compiled, &held))
    }

    /// The entries that are due for a client whose checks need `need` units in all, `least` the least
    /// of them. `None` where it is gone.
    pub(super) fn entries(
        &self,
        around: &Around,
        who: Who,
        (need, least): (u64, u64),
        now_ns: u64,
    ) -> Option<Vec<(usize, Entry)>> {
        let ticks = |units: u64| units.saturating_mul(1 << TICK_BITS);
        self.with_block(who, |compiled, held| {
            let mut entries = Vec::new();
            for_each_lease(compiled, held, |number, terms, words| {
                let Some(key) = key(words) else { return };
                let mut lease = read(words);
                let due = lease.look_after(terms, around, now_ns);
                let lacks = ticks(need) > lease.held;
                if (due || lacks) && lease.asked_ns == 0 {
                    let needs = if lacks {
                        (ticks(need), ticks(least))
                    } else {
                        (0, 0)
                    };
                    entries.push((number, lease.ask(terms, around, now_ns, key, needs)));
                    write(words, &lease);
                }
            });
            entries
        })
    }

    /// Takes the answer to an entry, or that there is none; whether the store has forgotten.
    pub(super) fn answered(
        &self,
        around: &Around,
        who: Who,
        (number, entry): (usize, &Entry),
        answer: Option<&Answer>,
        now_ns: u64,
    ) -> bool {
        let mut forgot = false;
        self.with_block(who, |compiled, held| {
            for_each_lease(compiled, held, |n, terms, words| {
                if n != number || key(words) != Some(entry.key) {
                    return;
                }
                let mut lease = read(words);
                match answer {
                    Some(answer) => {
                        forgot = lease.answered(terms, around, now_ns, entry, answer);
                    }
                    None => lease.lost(),
                }
                write(words, &lease);
            });
        });
        forgot
    }

    /// Looks after a client: whether an entry is due; `None` where there is nothing to look after.
    pub(super) fn look_after(&self, around: &Around, who: Who, now_ns: u64) -> Option<bool> {
        let (mut due, mut idle) = (false, true);
        self.with_block(who, |compiled, held| {
            for_each_lease(compiled, held, |_, terms, words| {
                let mut lease = read(words);
                due |= lease.look_after(terms, around, now_ns);
                idle &= lease.is_idle(terms, now_ns);
                write(words, &lease);
            });
        })?;
        (due || !idle).then_some(due)
    }
}

fn for_each_lease(
    compiled: &Compiled,
    held: &Held<'_>,
    mut with: impl FnMut(usize, &Terms, &[AtomicU64]),
) {
    for (number, meter) in compiled.meters.iter().enumerate() {
        if let Some(terms) = &meter.fleet {
            with(number, terms, held.states(meter.offset, FLEET_WORDS));
        }
    }
}

impl Meter {
    /// Whether the quota holds over the fleet.
    pub(in crate::limiter) fn is_of_fleet(&self) -> bool {
        self.fleet.is_some()
    }
}

impl Compiled {
    /// Whether some quota holds over the fleet.
    pub(in crate::limiter) fn is_of_fleet(&self) -> bool {
        self.meters.iter().any(Meter::is_of_fleet)
    }
}

impl Meter {
    /// The lease in `words` as a state of the quota's algorithm: what is owed as far as is known.
    pub(in crate::limiter) fn read_lease(
        &self,
        terms: &Terms,
        words: &[AtomicU64],
        now_ns: u64,
    ) -> State {
        let lease = read(words);
        let owed = lease.owed(terms, now_ns);
        let units = owed.div_ceil(1 << TICK_BITS);
        let start_ns = lease.window_start_ns(terms, now_ns);
        match self.algorithm {
            Algorithm::TokenBucket => State::Bucket(owed),
            Algorithm::SlidingWindow => State::Sliding(Counters {
                start_ns,
                current: units,
                previous: 0,
            }),
            Algorithm::FixedWindow => State::Fixed(Counter {
                start_ns,
                current: units,
            }),
            Algorithm::SlidingLog => State::Log(vec![start_ns; units.min(self.limit.cap) as usize]),
        }
    }

    /// Writes a state as a lease that holds nothing and owes what the state does.
    pub(in crate::limiter) fn write_lease(&self, words: &[AtomicU64], state: &State, now_ns: u64) {
        let start_ns = match state {
            State::Bucket(_) => now_ns,
            State::Sliding(counters) => counters.start_ns,
            State::Fixed(counter) => counter.start_ns,
            State::Log(times) => times.last().copied().unwrap_or(now_ns),
        };
        let owed = match state {
            State::Bucket(debt) => *debt,
            _ => self.used(state, now_ns).saturating_mul(1 << TICK_BITS),
        };
        write(words, &Lease::owing(owed, now_ns, start_ns));
        set_key(words, FleetKey(0));
    }
}

/// A burst of a bucket that is scaled: never below four requests, or what is configured.
fn scaled_burst(burst: u64, scale: f64) -> u64 {
    const LEAST: u64 = 4;
    ((burst as f64 * scale) as u64).clamp(burst.min(LEAST), burst)
}

/// The terms of a quota that holds over the fleet; `None` for a local one.
pub(in crate::limiter) fn fleet_terms(
    quota: &QuotaSpec,
    meter: &Meter,
    (factor, burst_scale): (f64, f64),
) -> Option<Terms> {
    let consistency = quota.consistency.unwrap_or(Consistency::Leased);
    if consistency == Consistency::Local {
        return None;
    }
    let ticks = |units: u64| units.saturating_mul(1 << TICK_BITS).min(MAX_AMOUNT);
    let limit = if quota.algorithm == Algorithm::TokenBucket {
        // Buckets need no whole requests: 15 % of 10 are 1.5.
        ((ticks(quota.rate_limit) as f64 * factor) as u64).max(1)
    } else {
        ticks(meter.limit.limit)
    };
    Some(Terms {
        quota: FleetQuota {
            algorithm: quota.algorithm,
            limit,
            burst: ticks(scaled_burst(quota.burst, factor * burst_scale)),
            window_us: (quota.window_ns / 1_000).max(1),
            grain: 1 << TICK_BITS,
            // Put in when it is sent: every change of the configuration raises it.
            revision: 0,
        },
        exact: consistency == Consistency::Exact,
        on_loss: quota.on_store_loss,
    })
}
