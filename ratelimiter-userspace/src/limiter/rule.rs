//! A compiled policy as the fast path reads it: seven words behind a sequence counter.
//!
//! A policy number never moves in memory; what stands under it may change while checks run. A
//! reader copies the words and tries again if a writer was at work meanwhile, so no check is judged
//! by a mixture, and nobody waits for anybody but the one writer of the one policy.
//!
//! A policy word (as kept beside each client) is the number and a generation. While the generation
//! stays, states keep their meaning: a new rate turns the unit clock's speed, a new limit is
//! compared against. A change of shape raises the generation, and each client is converted when
//! it is met next.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use ratelimiter_common::vclock::Speed;
use ratelimiter_common::window::WindowLimit;
use ratelimiter_common::window::word::Packing;

use super::memory::{Zeroable, Zeroed};

/// Bits of a policy word that are the number; the rest are the generation.
pub(super) const INDEX_BITS: u32 = 20;
/// Largest number of policies.
pub(super) const MAX_POLICIES: usize = 1 << INDEX_BITS;

/// A policy's number and generation, in 32 bits. 0 is no policy: number 0 is never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PolicyWord(pub(super) u32);

impl PolicyWord {
    pub(super) const fn new(index: u32, generation: u32) -> Self {
        Self(index & ((1 << INDEX_BITS) - 1) | generation << INDEX_BITS)
    }
    pub(super) const fn index(self) -> u32 {
        self.0 & ((1 << INDEX_BITS) - 1)
    }
    pub(super) const fn generation(self) -> u32 {
        self.0 >> INDEX_BITS
    }
}

/// A policy's unit clock: ticks of 2^-16 request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct UnitClock {
    pub(super) from_ns: u64,
    pub(super) base: u64,
    pub(super) speed: Speed,
    /// Bucket depth in ticks.
    pub(super) burst: u64,
    /// Nanoseconds per tick, with [`NS_BITS`] fraction bits; for `reset_after`.
    pub(super) ns_per_tick: u64,
}

/// Fraction bits of a request on a unit clock.
pub(super) const TICK_BITS: u32 = 16;

/// Fraction bits of nanoseconds per tick: from 2^-9 at the fastest to 2^39 at the slowest there is.
const NS_BITS: i32 = 24;

impl UnitClock {
    /// A clock that reads `base` at `from_ns`.
    pub(super) fn new(from_ns: u64, base: u64, speed: Speed, burst: u64) -> Self {
        let per_ns = f64::from(speed.mult) * (-f64::from(speed.shift)).exp2();
        // Saturates where the clock stands still.
        let ns_per_tick = (f64::from(NS_BITS).exp2() / per_ns) as u64;
        Self {
            from_ns,
            base,
            speed,
            burst,
            ns_per_tick,
        }
    }

    /// Reads the clock.
    #[inline(always)]
    pub(super) fn at(&self, now_ns: u64) -> u64 {
        self.base
            .saturating_add(self.speed.advance(now_ns.saturating_sub(self.from_ns)))
    }

    /// Returns the least time after `now_ns` at which the clock is `ticks` further than now.
    pub(super) fn wait_ns(&self, now_ns: u64, ticks: u64) -> u64 {
        let elapsed = now_ns.saturating_sub(self.from_ns);
        let target = self.speed.advance(elapsed).saturating_add(ticks);
        let until = self.speed.time_for(target).saturating_sub(elapsed);
        // A stamp before the clock began waits for its beginning first.
        until.saturating_add(self.from_ns.saturating_sub(now_ns))
    }

    /// Roughly how long the clock takes for `ticks`, rounded up.
    #[inline(always)]
    pub(super) fn about_ns(&self, ticks: u64) -> u64 {
        let ns = (u128::from(ticks) * u128::from(self.ns_per_tick)) >> NS_BITS;
        u64::try_from(ns)
            .unwrap_or(u64::MAX)
            .saturating_add(u64::from(ticks != 0))
    }
}

/// How a client's word is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// Not limited.
    Unlimited,
    /// The word is a TAT.
    TokenBucket(UnitClock),
    /// The word packs two counters.
    Sliding(Packing, WindowLimit),
    /// The word packs one counter.
    Fixed(Packing, WindowLimit),
    /// The word is the number of a block; the policy's quotas are in the registry.
    Block,
}

/// A policy as a check reads it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) kind: Kind,
    pub(super) generation: u32,
    /// Would-be refusals pass.
    pub(super) shadow: bool,
    /// The limits are below the configured ones, for the sake of the backend.
    pub(super) reduced: bool,
    /// Number of the backend, if its checks are counted apart.
    pub(super) watched: Option<u8>,
    /// Configured units per window, for answers.
    pub(super) shown_limit: u64,
}

const KIND_UNLIMITED: u64 = 1;
const KIND_TOKEN_BUCKET: u64 = 2;
const KIND_SLIDING: u64 = 3;
const KIND_FIXED: u64 = 4;
const KIND_BLOCK: u64 = 5;

/// Words of a rule: what it is, the shown limit, and five that depend on the kind.
const WORDS: usize = 7;

impl Rule {
    /// Why what does not conform is refused.
    #[inline(always)]
    pub(super) fn over(&self) -> super::Reason {
        if self.reduced {
            super::Reason::ReducedCapacity
        } else {
            super::Reason::OverLimit
        }
    }

    /// Whether a word alone does not decide.
    #[inline(always)]
    pub(super) fn is_special(&self) -> bool {
        matches!(self.kind, Kind::Block | Kind::Unlimited) || self.watched.is_some()
    }

    fn encode(&self) -> [u64; WORDS] {
        let (kind, packing, rest) = match &self.kind {
            Kind::Unlimited => (KIND_UNLIMITED, None, [0; 5]),
            Kind::TokenBucket(clock) => (
                KIND_TOKEN_BUCKET,
                None,
                [
                    clock.from_ns,
                    clock.base,
                    u64::from(clock.speed.mult) | u64::from(clock.speed.shift) << 32,
                    clock.burst,
                    clock.ns_per_tick,
                ],
            ),
            Kind::Sliding(packing, limit) | Kind::Fixed(packing, limit) => (
                if matches!(self.kind, Kind::Sliding(..)) {
                    KIND_SLIDING
                } else {
                    KIND_FIXED
                },
                Some(packing),
                [limit.window_ns, limit.limit, limit.cap, 0, 0],
            ),
            Kind::Block => (KIND_BLOCK, None, [0; 5]),
        };
        let packing = packing.map_or(0, |packing| {
            u64::from(packing.count_bits) << 8 | u64::from(packing.tick_shift) << 16
        });
        let watched = self.watched.map_or(0, |backend| u64::from(backend) + 1);
        let meta = kind
            | packing
            | u64::from(self.shadow) << 24
            | u64::from(self.reduced) << 25
            | watched << 32
            | u64::from(self.generation) << 48;
        let mut words = [meta, self.shown_limit, 0, 0, 0, 0, 0];
        for (word, value) in words.iter_mut().skip(2).zip(rest) {
            *word = value;
        }
        words
    }

    #[inline(always)]
    fn decode(words: [u64; WORDS]) -> Option<Self> {
        let [meta, shown_limit, first, second, third, burst, ns_per_tick] = words;
        let packing = Packing {
            count_bits: (meta >> 8) as u32 & 0xff,
            tick_shift: (meta >> 16) as u32 & 0xff,
        };
        let limit = WindowLimit {
            window_ns: first,
            limit: second,
            cap: third,
        };
        let kind = match meta & 0xff {
            KIND_UNLIMITED => Kind::Unlimited,
            KIND_TOKEN_BUCKET => Kind::TokenBucket(UnitClock {
                from_ns: first,
                base: second,
                speed: Speed {
                    mult: third as u32,
                    shift: (third >> 32) as u32,
                },
                burst,
                ns_per_tick,
            }),
            KIND_SLIDING => Kind::Sliding(packing, limit),
            KIND_FIXED => Kind::Fixed(packing, limit),
            KIND_BLOCK => Kind::Block,
            _ => return None,
        };
        Some(Self {
            kind,
            generation: (meta >> 48) as u32,
            shadow: meta >> 24 & 1 != 0,
            reduced: meta >> 25 & 1 != 0,
            watched: (meta >> 32 & 0xffff).checked_sub(1).map(|n| n as u8),
            shown_limit,
        })
    }
}

/// One cache line: a sequence counter (odd while a writer is at work) and a rule.
#[repr(C, align(64))]
struct Slot {
    sequence: AtomicU64,
    words: [AtomicU64; WORDS],
}

// SAFETY: atomics of integers; zero is a valid value of each.
unsafe impl Zeroable for Slot {}

/// Every rule in force, by policy number.
pub(super) struct Rules {
    slots: Zeroed<Slot>,
}

impl Rules {
    /// Room for `capacity` policies.
    pub(super) fn new(capacity: usize) -> std::io::Result<Self> {
        Ok(Self {
            slots: Zeroed::new(capacity.clamp(2, MAX_POLICIES))?,
        })
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Returns the rule behind `word`, or `None` where the word's generation has passed.
    #[inline(always)]
    pub(super) fn read(&self, word: PolicyWord) -> Option<Rule> {
        let rule = self.current(word.index())?;
        (rule.generation == word.generation()).then_some(rule)
    }

    /// Returns the rule in force under `index`.
    #[inline(always)]
    pub(super) fn current(&self, index: u32) -> Option<Rule> {
        let slot = self.slots.get(index as usize)?;
        loop {
            let before = slot.sequence.load(Ordering::Acquire);
            let words = slot
                .words
                .each_ref()
                .map(|word| word.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before & 1 == 0 && slot.sequence.load(Ordering::Relaxed) == before {
                return Rule::decode(words);
            }
            // A writer copies seven words: this ends as soon as it has.
            std::hint::spin_loop();
        }
    }

    /// Puts `rule` into force under `index`. One writer at a time: the registry's lock is held.
    pub(super) fn write(&self, index: u32, rule: &Rule) {
        let Some(slot) = self.slots.get(index as usize) else {
            return;
        };
        let before = slot.sequence.load(Ordering::Relaxed);
        slot.sequence.store(before + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in slot.words.iter().zip(rule.encode()) {
            word.store(value, Ordering::Relaxed);
        }
        slot.sequence.store(before + 2, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: Kind) -> Rule {
        Rule {
            kind,
            generation: 4_095,
            shadow: true,
            reduced: true,
            watched: Some(63),
            shown_limit: 1 << 36,
        }
    }

    #[test]
    fn a_rule_reads_as_it_was_written() {
        let rules = Rules::new(8).unwrap();
        let clock = UnitClock::new(7, 1 << 40, Speed::from_ratio(65_536, 777).unwrap(), 9 << 16);
        let packing = Packing::sliding(1_000, 60_000_000_000).unwrap();
        let limit = WindowLimit {
            limit: 10,
            cap: 1_000,
            window_ns: 60_000_000_000,
        };
        for kind in [
            Kind::Unlimited,
            Kind::TokenBucket(clock),
            Kind::Sliding(packing, limit),
            Kind::Fixed(packing, limit),
            Kind::Block,
        ] {
            rules.write(3, &rule(kind));
            let word = PolicyWord::new(3, 4_095);
            assert_eq!(rules.read(word), Some(rule(kind)));
            assert_eq!(rules.read(PolicyWord::new(3, 4_094)), None);
        }
        assert_eq!(
            rules.read(PolicyWord::new(2, 0)),
            None,
            "a slot nobody wrote"
        );
    }

    #[test]
    fn no_reader_sees_a_mixture() {
        let rules = Rules::new(4).unwrap();
        let of = |n: u64| {
            let limit = WindowLimit {
                limit: n,
                cap: n,
                window_ns: n,
            };
            let packing = Packing {
                count_bits: 12,
                tick_shift: 18,
            };
            Rule {
                shown_limit: n,
                ..rule(Kind::Sliding(packing, limit))
            }
        };
        rules.write(1, &of(1));
        std::thread::scope(|scope| {
            scope.spawn(|| (1..200_000).for_each(|n| rules.write(1, &of(n))));
            let mut seen = 0;
            while seen < 199_999 {
                let Some(Rule {
                    kind: Kind::Sliding(_, limit),
                    shown_limit,
                    ..
                }) = rules.current(1)
                else {
                    panic!("no rule");
                };
                assert_eq!([limit.limit, limit.cap, limit.window_ns], [shown_limit; 3]);
                assert!(shown_limit >= seen);
                seen = shown_limit;
            }
        });
    }
}
