//! One quota of a policy: how its state is judged, read and written where it takes several words,
//! and what becomes of a state when the quota changes.

use std::sync::atomic::{AtomicU64, Ordering};

use ratelimiter_common::window::fixed_window::{self, Counter};
use ratelimiter_common::window::sliding_log::{self, Ring, Span};
use ratelimiter_common::window::sliding_window::{self, Counters};
use ratelimiter_common::window::{Decision, WindowLimit, token_bucket};

use super::fleet::FLEET_WORDS;
use super::rule::{TICK_BITS, UnitClock};
use crate::policy::model::Algorithm;
use crate::sync::lease::Terms;

/// A compiled quota.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Meter {
    pub(super) algorithm: Algorithm,
    /// What the window algorithms compare with.
    pub(super) limit: WindowLimit,
    /// What the token bucket counts on.
    pub(super) clock: UnitClock,
    /// Would-be refusals of this quota pass.
    pub(super) shadow: bool,
    /// The caller's stamps are the only clock.
    pub(super) caller_clock: bool,
    /// First state word in the client's block.
    pub(super) offset: usize,
    /// What counts where the quota holds over a fleet: then its state is a lease.
    pub(super) fleet: Option<Terms>,
}

/// What one quota says to an arrival; times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    Passes {
        remaining: u64,
        reset_ns: u64,
    },
    Refuses {
        retry_ns: u64,
    },
    Never,
    /// Only the store knows.
    Asks,
    /// The store is away, and nothing passes without it.
    IsAway {
        retry_ns: u64,
    },
}

/// A quota's state at one moment, apart from how it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Debt in ticks.
    Bucket(u64),
    Sliding(Counters),
    Fixed(Counter),
    /// Times of admitted units, oldest first.
    Log(Vec<u64>),
}

/// A log's ring in a block; `dry` looks without touching.
struct WordRing<'a> {
    words: &'a [AtomicU64],
    dry: bool,
}

impl Ring for WordRing<'_> {
    fn capacity(&self) -> u32 {
        self.words.len() as u32
    }
    fn get(&self, place: u32) -> u64 {
        load(self.words, place as usize)
    }
    fn set(&mut self, place: u32, time_ns: u64) {
        if !self.dry {
            store(self.words, place as usize, time_ns);
        }
    }
}

fn load(words: &[AtomicU64], at: usize) -> u64 {
    words.get(at).map_or(0, |word| word.load(Ordering::Relaxed))
}

fn store(words: &[AtomicU64], at: usize, value: u64) {
    if let Some(word) = words.get(at) {
        word.store(value, Ordering::Relaxed);
    }
}

fn span_of(word: u64) -> Span {
    Span {
        head: word as u32,
        len: (word >> 32) as u32,
    }
}

fn says<S>(decision: Decision<S>) -> (Option<S>, Says) {
    match decision {
        Decision::Conforming {
            state,
            remaining,
            reset_after,
        } => (
            Some(state),
            Says::Passes {
                remaining,
                reset_ns: reset_after,
            },
        ),
        Decision::NonConforming { retry_after } => (
            None,
            Says::Refuses {
                retry_ns: retry_after,
            },
        ),
        Decision::ExceedsBurst => (None, Says::Never),
    }
}

impl Meter {
    /// Number of state words in a block.
    pub(super) fn words(&self) -> usize {
        if self.is_of_fleet() {
            return FLEET_WORDS;
        }
        match self.algorithm {
            Algorithm::TokenBucket | Algorithm::SlidingWindow => 3,
            Algorithm::FixedWindow => 2,
            Algorithm::SlidingLog => 1 + self.limit.cap as usize,
        }
    }

    /// Judges an arrival against the state in `words`, and charges it if `charge` and it passes.
    pub(super) fn judge(&self, words: &[AtomicU64], now_ns: u64, cost: u64, charge: bool) -> Says {
        match self.algorithm {
            Algorithm::TokenBucket => self.judge_bucket(words, now_ns, cost, charge),
            Algorithm::SlidingWindow => {
                let counters = Counters {
                    start_ns: load(words, 0),
                    current: load(words, 1),
                    previous: load(words, 2),
                };
                let decision = sliding_window::decide(counters, now_ns, cost, &self.limit);
                let (state, says) = says(decision);
                if let (Some(state), true) = (state, charge) {
                    store(words, 0, state.start_ns);
                    store(words, 1, state.current);
                    store(words, 2, state.previous);
                }
                says
            }
            Algorithm::FixedWindow => {
                let counter = Counter {
                    start_ns: load(words, 0),
                    current: load(words, 1),
                };
                let (state, says) = says(fixed_window::decide(counter, now_ns, cost, &self.limit));
                if let (Some(state), true) = (state, charge) {
                    store(words, 0, state.start_ns);
                    store(words, 1, state.current);
                }
                says
            }
            Algorithm::SlidingLog => {
                let Some((span, times)) = words.split_first() else {
                    return Says::Never;
                };
                let mut ring = WordRing {
                    words: times,
                    dry: !charge,
                };
                let before = span_of(span.load(Ordering::Relaxed));
                let decision = sliding_log::decide(&mut ring, before, now_ns, cost, &self.limit);
                let (state, says) = says(decision);
                if let (Some(state), true) = (state, charge) {
                    span.store(
                        u64::from(state.head) | u64::from(state.len) << 32,
                        Ordering::Relaxed,
                    );
                }
                says
            }
        }
    }

    fn judge_bucket(&self, words: &[AtomicU64], now_ns: u64, cost: u64, charge: bool) -> Says {
        let ticks = cost.saturating_mul(1 << TICK_BITS);
        if self.caller_clock {
            return self.judge_exact(words, now_ns, cost, charge);
        }
        let v = self.clock.at(now_ns);
        // A block is judged under its lock, so only skew is behind: none worth a slack here.
        let tat = load(words, 0);
        match token_bucket::decide(tat, v, ticks, self.clock.burst) {
            Decision::Conforming {
                state,
                remaining,
                reset_after,
            } => {
                if charge {
                    store(words, 0, state);
                }
                Says::Passes {
                    remaining: remaining >> TICK_BITS,
                    reset_ns: self.clock.about_ns(reset_after),
                }
            }
            Decision::NonConforming { retry_after } => Says::Refuses {
                retry_ns: self.clock.wait_ns(now_ns, retry_after).max(1),
            },
            Decision::ExceedsBurst => Says::Never,
        }
    }

    /// What a bucket by the caller's clock owes at `now_ns`, in units times the window.
    fn owes_exactly(&self, words: &[AtomicU64], now_ns: u64) -> u128 {
        let debt = u128::from(load(words, 0)) | u128::from(load(words, 1)) << 64;
        let elapsed = now_ns.saturating_sub(load(words, 2));
        debt.saturating_sub(u128::from(elapsed) * u128::from(self.limit.limit))
    }

    fn store_exactly(words: &[AtomicU64], debt: u128, now_ns: u64) {
        store(words, 0, debt as u64);
        store(words, 1, (debt >> 64) as u64);
        store(words, 2, now_ns);
    }

    /// The token bucket by the caller's clock: debt and its time, in whole numbers, because there
    /// is no unit clock that would be right for every client, and a history must replay exactly.
    fn judge_exact(&self, words: &[AtomicU64], now_ns: u64, cost: u64, charge: bool) -> Says {
        let window = u128::from(self.limit.window_ns);
        let rate = u128::from(self.limit.limit.max(1));
        let depth = u128::from(self.depth()) * window;
        let price = u128::from(cost) * window;
        let debt = self.owes_exactly(words, now_ns);
        let after = debt.saturating_add(price);
        let in_ns = |owed: u128| u64::try_from(owed.div_ceil(rate)).unwrap_or(u64::MAX);
        if after <= depth {
            if charge && cost > 0 {
                Self::store_exactly(words, after, now_ns);
            }
            Says::Passes {
                remaining: u64::try_from((depth - after) / window.max(1)).unwrap_or(u64::MAX),
                reset_ns: in_ns(after),
            }
        } else if price > depth {
            Says::Never
        } else {
            Says::Refuses {
                retry_ns: in_ns(after - depth).max(1),
            }
        }
    }

    /// Reads the state in `words` as of `now_ns`.
    pub(super) fn read(&self, words: &[AtomicU64], now_ns: u64) -> State {
        if let Some(terms) = &self.fleet {
            return self.read_lease(terms, words, now_ns);
        }
        match self.algorithm {
            Algorithm::TokenBucket if self.caller_clock => {
                let window = u128::from(self.limit.window_ns.max(1));
                let ticks = (self.owes_exactly(words, now_ns) << TICK_BITS).div_ceil(window);
                State::Bucket(u64::try_from(ticks).unwrap_or(u64::MAX))
            }
            Algorithm::TokenBucket => {
                State::Bucket(load(words, 0).saturating_sub(self.clock.at(now_ns)))
            }
            Algorithm::SlidingWindow => State::Sliding(
                Counters {
                    start_ns: load(words, 0),
                    current: load(words, 1),
                    previous: load(words, 2),
                }
                .roll(now_ns, self.limit.window_ns),
            ),
            Algorithm::FixedWindow => State::Fixed(
                Counter {
                    start_ns: load(words, 0),
                    current: load(words, 1),
                }
                .roll(now_ns, self.limit.window_ns),
            ),
            Algorithm::SlidingLog => {
                let Some((span, times)) = words.split_first() else {
                    return State::Log(Vec::new());
                };
                let ring = WordRing {
                    words: times,
                    dry: true,
                };
                let span =
                    span_of(span.load(Ordering::Relaxed)).roll(&ring, now_ns, self.limit.window_ns);
                State::Log((0..span.len).map(|n| span.entry(&ring, n)).collect())
            }
        }
    }

    /// Writes `state`, which is of this meter's algorithm and as of `now_ns`.
    pub(super) fn write(&self, words: &[AtomicU64], state: &State, now_ns: u64) {
        if self.is_of_fleet() {
            return self.write_lease(words, state, now_ns);
        }
        match state {
            State::Bucket(debt) if self.caller_clock => {
                let debt = (u128::from(*debt) * u128::from(self.limit.window_ns)) >> TICK_BITS;
                Self::store_exactly(words, debt, now_ns);
            }
            State::Bucket(debt) => store(words, 0, self.clock.at(now_ns).saturating_add(*debt)),
            State::Sliding(counters) => {
                store(words, 0, counters.start_ns);
                store(words, 1, counters.current);
                store(words, 2, counters.previous);
            }
            State::Fixed(counter) => {
                store(words, 0, counter.start_ns);
                store(words, 1, counter.current);
            }
            State::Log(times) => {
                let room = words.len().saturating_sub(1);
                let newest = times.iter().skip(times.len().saturating_sub(room));
                let mut len = 0;
                for (at, time) in newest.enumerate() {
                    store(words, 1 + at, *time);
                    len += 1;
                }
                store(words, 0, len << 32);
            }
        }
    }

    /// Units of the limit that `state` holds at `now_ns`, rounded up.
    pub(super) fn used(&self, state: &State, now_ns: u64) -> u64 {
        match state {
            State::Bucket(debt) => debt.div_ceil(1 << TICK_BITS),
            State::Sliding(counters) => counters.used(now_ns, self.limit.window_ns),
            State::Fixed(counter) => counter.used(now_ns, self.limit.window_ns),
            State::Log(times) => times.len() as u64,
        }
    }

    /// How long a bucket of this quota's rate would take to drain what `state` holds, in
    /// nanoseconds: the one measure by which clients of different quotas are compared.
    pub(super) fn debt_ns(&self, state: &State, now_ns: u64) -> u64 {
        match state {
            State::Bucket(debt) => self.clock.about_ns(*debt),
            _ => (u128::from(self.used(state, now_ns)) * u128::from(self.limit.window_ns)
                / u128::from(self.limit.cap.max(1)))
            .min(u128::from(u64::MAX)) as u64,
        }
    }

    /// Most units one client can owe.
    pub(super) fn depth(&self) -> u64 {
        match self.algorithm {
            Algorithm::TokenBucket => self.clock.burst >> TICK_BITS,
            _ => self.limit.cap,
        }
    }

    /// A state in which `units` were admitted at `now_ns`, capped at the limit.
    pub(super) fn holding(&self, units: u64, now_ns: u64) -> State {
        let units = units.min(self.depth());
        match self.algorithm {
            Algorithm::TokenBucket => State::Bucket(units << TICK_BITS),
            Algorithm::SlidingWindow => State::Sliding(Counters {
                start_ns: now_ns,
                current: units,
                previous: 0,
            }),
            Algorithm::FixedWindow => State::Fixed(Counter {
                start_ns: now_ns,
                current: units,
            }),
            Algorithm::SlidingLog => State::Log(vec![now_ns; units as usize]),
        }
    }

    /// A state whose debt drains in `debt_ns` at this quota's rate, capped at its limit: what a
    /// newcomer takes over from a client of another policy.
    pub(super) fn inheriting(&self, debt_ns: u64, now_ns: u64) -> State {
        let units = (u128::from(debt_ns) * u128::from(self.limit.cap))
            .div_ceil(u128::from(self.limit.window_ns.max(1)));
        self.holding(u64::try_from(units).unwrap_or(u64::MAX), now_ns)
    }

    /// Converts a state of `old` at `now_ns` to this quota, when somebody edits it: what is owed
    /// stays owed in units, up to the new limit, and leaves at the new pace.
    pub(super) fn carry(&self, old: &Self, state: &State, now_ns: u64) -> State {
        let scaled = |start_ns: u64| {
            let elapsed = u128::from(now_ns.saturating_sub(start_ns));
            let new =
                u128::from(self.limit.window_ns) * elapsed / u128::from(old.limit.window_ns.max(1));
            now_ns.saturating_sub(u64::try_from(new).unwrap_or(u64::MAX))
        };
        match (self.algorithm, state) {
            (Algorithm::TokenBucket, State::Bucket(debt)) => {
                State::Bucket((*debt).min(self.clock.burst))
            }
            (Algorithm::SlidingWindow, State::Sliding(counters)) => State::Sliding(
                Counters {
                    start_ns: scaled(counters.start_ns),
                    ..*counters
                }
                .capped(self.limit.cap),
            ),
            (Algorithm::FixedWindow, State::Fixed(counter)) => State::Fixed(Counter {
                start_ns: scaled(counter.start_ns),
                current: counter.current.min(self.limit.cap),
            }),
            (Algorithm::SlidingLog, State::Log(times)) => {
                let keep = usize::try_from(self.limit.cap).unwrap_or(usize::MAX);
                let newest = times.iter().skip(times.len().saturating_sub(keep));
                State::Log(newest.map(|&time| scaled(time)).collect())
            }
            _ => self.holding(old.used(state, now_ns), now_ns),
        }
    }
}
