//! Which sources are hot: admitted more than a threshold here, as far as samples tell.

use std::collections::HashMap;

use super::super::beat::HotSource;

/// How long one of the two halves of the window is, in microseconds: half a second.
const HALF_US: u64 = 500_000;
/// Most candidates. Those that come later wait for the next half window.
const CANDIDATES: usize = 8_192;

/// One source that was sampled.
#[derive(Clone, Copy, Debug, Default)]
struct Candidate {
    half: u64,
    before: u64,
    now: u64,
}

/// The candidates.
#[derive(Clone, Debug, Default)]
pub(super) struct Detector {
    candidates: HashMap<HotSource, Candidate>,
    half: u64,
}

impl Detector {
    /// Notes that a sample stands for `amount` admitted units of `source`; returns whether that
    /// makes more than `threshold` within a second.
    pub(super) fn note(
        &mut self,
        now_us: u64,
        source: HotSource,
        amount: u64,
        threshold: u64,
    ) -> bool {
        let half = now_us / HALF_US;
        if half != self.half {
            self.half = half;
            self.candidates
                .retain(|_, candidate| candidate.half + 1 >= half);
        }
        if self.candidates.len() >= CANDIDATES && !self.candidates.contains_key(&source) {
            return false;
        }
        let candidate = self.candidates.entry(source).or_default();
        if candidate.half != half {
            candidate.before = if candidate.half + 1 == half {
                candidate.now
            } else {
                0
            };
            candidate.now = 0;
            candidate.half = half;
        }
        candidate.now += amount;
        let hot = candidate.before + candidate.now > threshold;
        if hot {
            self.candidates.remove(&source);
        }
        hot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_is_a_rate_and_what_is_older_than_a_second_is_forgotten() {
        let mut detector = Detector::default();
        assert!(!detector.note(0, 1, 32, 100));
        assert!(!detector.note(400_000, 1, 32, 100));
        assert!(!detector.note(900_000, 1, 32, 100));
        // The first two are more than a second old by now.
        assert!(!detector.note(1_100_000, 1, 32, 100));
        assert!(!detector.note(1_200_000, 2, 100, 100));
        assert!(detector.note(1_200_000, 1, 64, 100));
    }

    #[test]
    fn memory_is_bounded_under_a_spoofed_flood() {
        let mut detector = Detector::default();
        for source in 0..100_000 {
            detector.note(source, source, 32, 1_000);
        }
        assert!(detector.candidates.len() <= CANDIDATES);
        let later = 10_000_000;
        assert!(detector.note(later, 7, 2_000, 1_000));
    }
}
