//! How fast the segments' clocks run: what the controllers decide, in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ratelimiter_common::vclock::{LEAD_NS, NEVER, SegmentClock, Speed};

use super::Core;
use super::errors::plane_error;
use crate::admin::Result;
use crate::agent::state::View;
use crate::clock::monotonic_ns;
use crate::policy::clock::{retime, turn_segment_until};
use crate::policy::plan::Update;

/// How long a slowed clock stays slow without an agent: 70 s. Its own last piece brings the
/// configured limits back then.
const VALID_NS: u64 = 70_000_000_000;
/// A slowed clock is prolonged when less than this is left: 60 s.
const PROLONG_NS: u64 = 60_000_000_000;

impl Core {
    /// Turns the clock of every segment to its scale in (0, 1], 1 where none is named. All at one
    /// moment, 20 ms ahead; a segment that runs as it should is left alone.
    pub(in crate::agent) fn turn(&mut self, scales: &BTreeMap<String, f64>) -> Result<()> {
        let now_ns = monotonic_ns();
        let at_ns = now_ns.saturating_add(LEAD_NS);
        let until_ns = at_ns.saturating_add(VALID_NS);
        let mut updates = Vec::new();
        let mut turned = BTreeSet::new();
        for (name, number) in &self.compiled.segments {
            let scale = scales.get(name).copied().unwrap_or(1.0);
            let speed = Speed::ONE.scaled((scale.clamp(0.0, 1.0) * 4_294_967_296.0) as u64);
            let clock = self.segment_clock(*number);
            if !runs(&clock, speed, at_ns) {
                let clock = turn_segment_until(&clock, speed, now_ns, at_ns, until_ns);
                updates.push(Update::Segment {
                    segment: *number,
                    clock,
                });
                turned.insert(*number);
            }
        }
        if updates.is_empty() {
            return Ok(());
        }
        self.apply_turned(&updates)?;
        // Pieces of unit clocks that are still to come count on the segment's time.
        let mut late = Vec::new();
        for entry in self.installed.policies.values() {
            if !turned.contains(&entry.segment) {
                continue;
            }
            let segment = self.segment_clock(entry.segment);
            let mut entry = *entry;
            let mut changed = false;
            for clock in &mut entry.clocks {
                if let Some(retimed) = retime(clock, &segment, now_ns) {
                    *clock = retimed;
                    changed = true;
                }
            }
            if changed {
                late.push(Update::Policy(Box::new(entry)));
            }
        }
        let policies = !late.is_empty();
        if policies {
            self.apply_turned(&late)?;
        }
        let view = self.shared.view.load();
        self.shared.view.store(Arc::new(View {
            segments: self.installed.segments.clone(),
            policies: if policies {
                Arc::new(self.installed.policies.clone())
            } else {
                Arc::clone(&view.policies)
            },
            ..(**view).clone()
        }));
        Ok(())
    }

    fn apply_turned(&mut self, updates: &[Update]) -> Result<()> {
        let applied = self.plane.apply(updates).map_err(plane_error)?;
        self.installed.apply(updates);
        self.installed.apply(&applied.moved);
        Ok(())
    }

    fn segment_clock(&self, number: u32) -> SegmentClock {
        let clock = self.installed.segments.get(&number);
        clock.copied().unwrap_or(SegmentClock::REAL)
    }
}

/// Whether `clock` runs at `speed` from `at_ns` on, and long enough.
fn runs(clock: &SegmentClock, speed: Speed, at_ns: u64) -> bool {
    let used = clock.pieces.iter().filter(|piece| piece.from_ns != NEVER);
    let [first, ..] = &clock.pieces;
    let mut in_force = first.speed;
    let mut next_ns = NEVER;
    for piece in used {
        if piece.from_ns <= at_ns {
            in_force = piece.speed;
        } else if piece.speed != in_force {
            next_ns = next_ns.min(piece.from_ns);
        }
    }
    in_force == speed
        && if speed == Speed::ONE {
            next_ns == NEVER
        } else {
            next_ns != NEVER && next_ns - at_ns >= PROLONG_NS
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_slow_clock_is_prolonged_and_a_fast_one_left_alone() {
        let half = Speed::ONE.scaled(1 << 31);
        assert!(runs(&SegmentClock::REAL, Speed::ONE, 5 * S));
        assert!(!runs(&SegmentClock::REAL, half, 5 * S));
        let slow = turn_segment_until(&SegmentClock::REAL, half, S, 2 * S, 72 * S);
        assert!(runs(&slow, half, 3 * S));
        assert!(runs(&slow, half, 12 * S));
        assert!(!runs(&slow, half, 13 * S), "less than 60 s are left");
        assert!(!runs(&slow, Speed::ONE, 3 * S));
        assert!(runs(&slow, Speed::ONE, 73 * S), "it has run out");
        // 70 s at half speed, then as configured.
        assert_eq!(slow.at(72 * S) - slow.at(2 * S), 35 * S);
        assert_eq!(slow.at(80 * S) - slow.at(72 * S), 8 * S);
        let again = turn_segment_until(&slow, half, 12 * S, 13 * S, 83 * S);
        assert_eq!(again.at(83 * S) - again.at(13 * S), 35 * S);
        let back = turn_segment_until(&again, Speed::ONE, 20 * S, 21 * S, 91 * S);
        assert_eq!(back.at(90 * S) - back.at(21 * S), 69 * S);
        assert!(runs(&back, Speed::ONE, 22 * S));
    }
}
