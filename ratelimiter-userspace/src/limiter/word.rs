//! Policies whose state is one word: judging it, and reading and writing it as a [`State`].

use ratelimiter_common::window::fixed_window;
use ratelimiter_common::window::sliding_window;
use ratelimiter_common::window::{Decision, WindowLimit, token_bucket};

use super::meter::State;
use super::rule::{Kind, TICK_BITS, UnitClock};

/// How far a thread's clock reading, or a stamp, may lie behind another's, in nanoseconds; see
/// [`token_bucket::clamp`].
pub(super) const MAX_SLACK_NS: u64 = 10_000_000_000;

/// What a word says to an arrival; times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Passes; the word after the charge.
    Passes {
        word: u64,
        remaining: u64,
        reset_ns: u64,
    },
    Refuses {
        retry_ns: u64,
        reset_ns: u64,
    },
    Never,
}

/// Judges an arrival of `cost` against `word`. Blocks are judged elsewhere and read as `Never`.
#[inline(always)]
pub(super) fn judge(kind: Kind, word: u64, now_ns: u64, cost: u64) -> Outcome {
    match kind {
        Kind::TokenBucket(clock) => judge_bucket(&clock, word, now_ns, cost),
        Kind::Sliding(packing, limit) => {
            let counters = packing.unpack_sliding(word, now_ns);
            match sliding_window::decide(counters, now_ns, cost, &limit) {
                Decision::Conforming {
                    state,
                    remaining,
                    reset_after,
                } => Outcome::Passes {
                    word: packing.pack_sliding(state),
                    remaining,
                    reset_ns: reset_after,
                },
                Decision::NonConforming { retry_after } => Outcome::Refuses {
                    retry_ns: retry_after,
                    reset_ns: limit.window_ns.saturating_mul(2).saturating_sub(
                        now_ns.saturating_sub(counters.roll(now_ns, limit.window_ns).start_ns),
                    ),
                },
                Decision::ExceedsBurst => Outcome::Never,
            }
        }
        Kind::Fixed(packing, limit) => {
            let counter = packing.unpack_fixed(word, now_ns);
            match fixed_window::decide(counter, now_ns, cost, &limit) {
                Decision::Conforming {
                    state,
                    remaining,
                    reset_after,
                } => Outcome::Passes {
                    word: packing.pack_fixed(state),
                    remaining,
                    reset_ns: reset_after,
                },
                Decision::NonConforming { retry_after } => Outcome::Refuses {
                    retry_ns: retry_after,
                    reset_ns: retry_after,
                },
                Decision::ExceedsBurst => Outcome::Never,
            }
        }
        Kind::Unlimited => Outcome::Passes {
            word,
            remaining: 0,
            reset_ns: 0,
        },
        Kind::Block => Outcome::Never,
    }
}

#[inline(always)]
fn judge_bucket(clock: &UnitClock, word: u64, now_ns: u64, cost: u64) -> Outcome {
    let v = clock.at(now_ns);
    let mut tat = word;
    if tat.saturating_sub(v) > clock.burst {
        let slack = clock.speed.advance(MAX_SLACK_NS);
        tat = token_bucket::clamp(tat, v, slack, clock.base, clock.burst);
    }
    match token_bucket::decide(tat, v, cost.saturating_mul(1 << TICK_BITS), clock.burst) {
        Decision::Conforming {
            state,
            remaining,
            reset_after,
        } => Outcome::Passes {
            word: state,
            remaining: remaining >> TICK_BITS,
            reset_ns: clock.about_ns(reset_after),
        },
        Decision::NonConforming { retry_after } => Outcome::Refuses {
            retry_ns: clock.wait_ns(now_ns, retry_after).max(1),
            reset_ns: clock.about_ns(tat.saturating_sub(v)),
        },
        Decision::ExceedsBurst => Outcome::Never,
    }
}

/// Reads a word as a state at `now_ns`; `None` for kinds without one.
pub(super) fn read(kind: &Kind, word: u64, now_ns: u64) -> Option<State> {
    match kind {
        Kind::TokenBucket(clock) => {
            let v = clock.at(now_ns);
            Some(State::Bucket(word.saturating_sub(v).min(clock.burst)))
        }
        Kind::Sliding(packing, limit) => Some(State::Sliding(
            packing
                .unpack_sliding(word, now_ns)
                .roll(now_ns, limit.window_ns),
        )),
        Kind::Fixed(packing, limit) => Some(State::Fixed(
            packing
                .unpack_fixed(word, now_ns)
                .roll(now_ns, limit.window_ns),
        )),
        Kind::Unlimited | Kind::Block => None,
    }
}

/// How long a bucket of the quota's rate would take to drain what `word` owes, in nanoseconds.
#[inline]
pub(super) fn debt_ns(kind: &Kind, word: u64, now_ns: u64) -> u64 {
    let windows = |used: u64, limit: &WindowLimit| {
        let cap = limit.cap.max(1);
        used.checked_mul(limit.window_ns).map_or_else(
            || used.saturating_mul(limit.window_ns / cap),
            |product| product / cap,
        )
    };
    match read(kind, word, now_ns) {
        Some(State::Bucket(debt)) => match kind {
            Kind::TokenBucket(clock) => clock.about_ns(debt),
            _ => 0,
        },
        Some(State::Sliding(counters)) => match kind {
            Kind::Sliding(_, limit) => windows(counters.used(now_ns, limit.window_ns), limit),
            _ => 0,
        },
        Some(State::Fixed(counter)) => match kind {
            Kind::Fixed(_, limit) => windows(counter.used(now_ns, limit.window_ns), limit),
            _ => 0,
        },
        Some(State::Log(_)) | None => 0,
    }
}

/// Writes a state of this kind as of `now_ns`.
pub(super) fn write(kind: &Kind, state: &State, now_ns: u64) -> u64 {
    match (kind, state) {
        (Kind::TokenBucket(clock), State::Bucket(debt)) => clock.at(now_ns).saturating_add(*debt),
        (Kind::Sliding(packing, _), State::Sliding(counters)) => packing.pack_sliding(*counters),
        (Kind::Fixed(packing, _), State::Fixed(counter)) => packing.pack_fixed(*counter),
        _ => 0,
    }
}

/// Returns a word that owes at least as much as `word` and differs from it: what is written over a
/// word must never equal it, or a thread that still knows the old one could change the new one.
pub(super) fn other_than(kind: &Kind, word: u64, old: u64) -> u64 {
    if word != old {
        return word;
    }
    match kind {
        // One tick of debt more; a window that begins one tick later.
        Kind::TokenBucket(_) => word.saturating_add(1),
        Kind::Sliding(packing, _) => word.wrapping_add(1 << (2 * packing.count_bits)),
        Kind::Fixed(packing, _) => word.wrapping_add(1 << packing.count_bits),
        // A block knows its owner and policy: whoever locks it finds out.
        Kind::Unlimited | Kind::Block => word,
    }
}
