//! Where a bucket stands on its clocks, and who set the rule it is under.

use ratelimiter_common::abi::policy::PolicyEntry;
use ratelimiter_common::quota::Unit as CommonUnit;
use ratelimiter_common::vclock::{NEVER, PIECES, Piece, SegmentClock, UnitClock};
use ratelimiter_common::verdict::Mode as CommonMode;

use super::core::store_error;
use crate::admin::Result;
use crate::admin::views::{DefinedIn, Explanation, RuleKind, UnitState};
use crate::policy::model::Mode;
use crate::policy::resolve::Effective;
use crate::store::{MAX_CHANGES, Store};

/// Nanoseconds of a millisecond.
const MS_NS: u64 = 1_000_000;

/// One moment on three clocks.
pub(super) struct Now {
    pub(super) real_ns: u64,
    pub(super) unix_ms: u64,
    pub(super) segment: SegmentClock,
}

impl Now {
    /// Real time until `wanted` of the clock is left to count, at most: 0 if that is so now,
    /// `u64::MAX` if it never will be. `wanted` says how far the clock must still move, in fractions
    /// of a unit, given what is owed and the piece in force; `None` for "not in this piece".
    ///
    /// Follows every change that is to come: of the segment's speed, which makes sources wait longer,
    /// and of the limit, whose next piece may be another rate or depth.
    fn wait_ns(
        &self,
        clock: &UnitClock,
        debt: u64,
        wanted: impl Fn(u64, &Piece) -> Option<u64>,
    ) -> u64 {
        let reading = |at_ns: u64| clock.piece(at_ns).at(self.segment.at(at_ns));
        let tat = reading(self.real_ns).wrapping_add(debt);
        let mut from_ns = self.real_ns;
        // As many stretches as there are pieces of both clocks.
        for _ in 0..=2 * PIECES {
            let begins = clock.pieces.iter().map(|piece| piece.from_ns);
            let next_ns = begins
                .chain(self.segment.pieces.iter().map(|piece| piece.from_ns))
                .filter(|begin| *begin > from_ns)
                .min()
                .unwrap_or(NEVER);
            let piece = clock.piece(from_ns);
            // A clock beyond the TAT: nothing is owed.
            let owed = tat.wrapping_sub(reading(from_ns)).cast_signed().max(0);
            let at_ns = match wanted(owed.cast_unsigned(), piece) {
                Some(0) => from_ns,
                // The clock counts whole fractions: at slow rates one takes seconds, and part of it
                // has passed already. So the moment is found from where the pieces begin.
                Some(ticks) => {
                    let target = reading(from_ns).wrapping_add(ticks);
                    let segment_ns = piece
                        .base_ns
                        .saturating_add(piece.speed.time_for(target.wrapping_sub(piece.base)));
                    self.when(from_ns, segment_ns).max(from_ns)
                }
                None => NEVER,
            };
            if at_ns < next_ns {
                return at_ns.saturating_sub(self.real_ns);
            }
            if next_ns == NEVER {
                break;
            }
            from_ns = next_ns;
        }
        u64::MAX
    }

    /// When the segment's clock reads `segment_ns`, if the piece in force at `at_ns` goes on.
    fn when(&self, at_ns: u64, segment_ns: u64) -> u64 {
        let begun = self
            .segment
            .pieces
            .iter()
            .rev()
            .find(|piece| piece.from_ns <= at_ns);
        begun
            .or(self.segment.pieces.first())
            .map_or(NEVER, |piece| {
                let left_ns = segment_ns.saturating_sub(piece.base_ns);
                piece.from_ns.saturating_add(piece.speed.time_for(left_ns))
            })
    }
}

/// Where one bucket stands: the piece in force now, and what it owes.
pub(super) fn unit_state(
    entry: &PolicyEntry,
    unit: u32,
    debt: u64,
    effective: Option<&Effective<'_>>,
    now: &Now,
) -> Option<UnitState> {
    let effective = effective?;
    let clock = entry.clocks.get(unit as usize)?;
    let piece = clock.piece(now.real_ns);
    let one = 1_u64 << CommonUnit::from(effective.spec.unit).fraction_bits();
    let free = piece.burst.saturating_sub(debt);
    let retry_after_ns = now.wait_ns(clock, debt, |owed, piece| {
        // Nobody counts in a piece that is off.
        if piece.mode == CommonMode::Off as u32 {
            return Some(0);
        }
        (one <= piece.burst).then(|| owed.saturating_add(one).saturating_sub(piece.burst))
    });
    let reset_after_ns = now.wait_ns(clock, debt, |owed, _| Some(owed));
    Some(UnitState {
        unit: effective.spec.unit,
        limit: effective.name.to_owned(),
        rate_limit: effective.spec.rate_limit,
        time_window: effective.spec.time_window,
        burst: piece.burst / one,
        mode: match CommonMode::from_abi(piece.mode) {
            CommonMode::Off => Mode::Off,
            CommonMode::Shadow => Mode::Shadow,
            CommonMode::Enforce => Mode::Enforce,
        },
        tokens: free as f64 / one as f64,
        debt: debt as f64 / one as f64,
        retry_after_s: retry_after_ns as f64 / 1e9,
        next_allowed_unix_ms: now.unix_ms.saturating_add(retry_after_ns.div_ceil(MS_NS)),
        reset_after_s: reset_after_ns as f64 / 1e9,
    })
}

/// Completes an explanation with who set its rule and when, if the audit log still knows.
pub(super) fn sign(explanation: &mut Explanation, store: &dyn Store) -> Result<()> {
    let rule = &mut explanation.rule;
    let kind = match rule.kind {
        RuleKind::Client => "clients",
        RuleKind::Segment | RuleKind::Default => "segments",
        RuleKind::Allow => "allow",
        RuleKind::Block => "block",
        RuleKind::Malformed => return Ok(()),
    };
    if rule.defined_in != DefinedIn::Store {
        return Ok(());
    }
    let path = format!("{kind}/{}", rule.name);
    let changes = store.changes(None, MAX_CHANGES).map_err(store_error)?;
    let newest = changes
        .into_iter()
        .map(|change| change.change)
        .find(|change| change.path == path || change.path == "document");
    if let Some(change) = newest {
        rule.set_by = Some(change.by);
        rule.set_at_unix_ms = Some(change.at_unix_ms);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ratelimiter_common::gcra::{Decision, decide};
    use ratelimiter_common::vclock::{SegmentPiece, Speed};

    use super::*;
    use crate::policy::model::{LimitSpec, Unit};
    use crate::policy::resolve::Source;
    use crate::policy::units::Window;

    const S: u64 = 1_000_000_000;

    /// A repeatable stream of numbers (SplitMix64).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        /// From 0 to `most`, small ones as often as large ones.
        fn upto(&mut self, most: u64) -> u64 {
            let bits = self.next() % u64::from(64 - most.leading_zeros() + 1);
            (self.next() & ((1_u64 << bits) - 1)).min(most)
        }
    }

    /// A policy with a limit of packets, perhaps with another one to come, in a segment that is
    /// slowed, perhaps otherwise soon; the clocks go on where the piece before them ends.
    fn random_state(random: &mut Random) -> (PolicyEntry, Now, u64) {
        let real_ns = 100 * S + random.upto(1_000_000 * S);
        let one = 1_u64 << CommonUnit::Packets.fraction_bits();
        let mut segment = SegmentClock::REAL;
        let mut begin_ns = real_ns - random.upto(60 * S);
        let mut base_ns = 5 * S + random.upto(1_000 * S);
        for piece in segment
            .pieces
            .iter_mut()
            .take(1 + (random.next() % 3) as usize)
        {
            *piece = SegmentPiece {
                from_ns: begin_ns,
                base_ns,
                speed: Speed::ONE.scaled((random.next() >> 32).max(1 << 22)),
            };
            let length_ns = S / 50 + random.upto(120 * S);
            base_ns += piece.speed.advance(length_ns);
            begin_ns += length_ns;
        }
        let mut clock = UnitClock {
            pieces: [Piece::UNUSED; PIECES],
        };
        let mut begin_ns = real_ns - random.upto(60 * S);
        let mut base = random.next() >> 8;
        let last = (random.next() % 3) as usize;
        for place in clock.pieces.iter_mut().take(last + 1) {
            let (rate, window) = (1 + random.upto(5_000), 1 + random.upto(3_600));
            let piece = Piece {
                from_ns: begin_ns,
                base_ns: segment.at(begin_ns),
                base,
                speed: Speed::from_ratio(u128::from(rate * one), window * S).unwrap(),
                burst: one * (1 + random.upto(5_000)),
                mode: CommonMode::Enforce as u32,
                debt_bits: 0,
            };
            *place = piece;
            begin_ns = begin_ns.max(real_ns) + S / 50 + random.upto(120 * S);
            base = piece.at(segment.at(begin_ns));
        }
        let burst = clock.piece(real_ns).burst;
        let debt = (random.upto(burst + burst / 4)).min(burst + one);
        let off = UnitClock::single(Piece::UNUSED);
        let entry = PolicyEntry {
            identity: [1, 1],
            units: 1,
            segment: 0,
            slot: 0,
            tag: 1,
            revision: 1,
            reserved: 0,
            clocks: [clock, off, off],
        };
        let now = Now {
            real_ns,
            unix_ms: 1_700_000_000_000,
            segment,
        };
        (entry, now, debt)
    }

    fn spec() -> LimitSpec {
        LimitSpec {
            rate_limit: 1,
            time_window: Window::SECOND,
            burst: None,
            unit: Unit::Packets,
            algorithm: None,
            mode: None,
            consistency: None,
            on_store_loss: None,
        }
    }

    /// What is explained is what the arithmetic of both planes does: at no moment up to a millisecond
    /// before the time named does one more unit pass, a millisecond behind it one does, and what is
    /// left now is what passes now, to the unit.
    #[test]
    fn explains_a_thousand_random_states_to_a_millisecond_and_a_unit() {
        let mut random = Random(7);
        let one = 1_u64 << CommonUnit::Packets.fraction_bits();
        let spec = spec();
        let (mut waited, mut crossed) = (0, 0);
        for number in 0..1_000 {
            let (entry, now, debt) = random_state(&mut random);
            let clock = &entry.clocks[0];
            let effective = Effective {
                name: "packets",
                spec: &spec,
                source: Source::Client,
                mode: Mode::Enforce,
            };
            let state = unit_state(&entry, 0, debt, Some(&effective), &now).unwrap();
            let at = |at_ns: u64| clock.piece(at_ns).at(now.segment.at(at_ns));
            let tat = at(now.real_ns) + debt;
            let passes = |at_ns: u64, units: u64| {
                let burst = clock.piece(at_ns).burst;
                let decision = decide(tat, at(at_ns), units * one, burst);
                matches!(decision, Decision::Conforming { .. })
            };
            let left = state.tokens.floor() as u64;
            assert!(
                left == 0 || passes(now.real_ns, left),
                "state {number}: {state:?}"
            );
            assert!(!passes(now.real_ns, left + 2), "state {number}: {state:?}");
            let retry_ns = (state.retry_after_s * 1e9).round() as u64;
            assert_eq!(
                retry_ns == 0,
                passes(now.real_ns, 1),
                "state {number}: {state:?}"
            );
            if retry_ns == 0 {
                continue;
            }
            waited += 1;
            let allowed_ns = now.real_ns + retry_ns;
            let begins = clock.pieces.iter().map(|piece| piece.from_ns);
            let segments = now.segment.pieces.iter().map(|piece| piece.from_ns);
            crossed += u32::from(
                begins
                    .chain(segments)
                    .any(|begin| (now.real_ns..allowed_ns).contains(&begin)),
            );
            assert!(passes(allowed_ns + MS_NS, 1), "state {number}: {state:?}");
            for _ in 0..20 {
                let before_ns = now.real_ns + random.next() % retry_ns;
                let early = before_ns + MS_NS < allowed_ns;
                assert!(!early || !passes(before_ns, 1), "state {number}: {state:?}");
            }
            let unix_ms = state.next_allowed_unix_ms - now.unix_ms;
            assert!(unix_ms.abs_diff(retry_ns / MS_NS) <= 1);
        }
        assert!(
            waited > 100 && crossed > 25,
            "{waited} wait, {crossed} cross a change"
        );
    }
}
