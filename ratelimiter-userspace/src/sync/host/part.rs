//! A host's part of a key: its own spend over the fleet's, over the last seconds.

/// How long one of the two halves of the memory is filled, in microseconds: 1.5 s.
const HALF_US: u64 = 1_500_000;
/// A half with less fleet spend than this many units is filled for longer, up to [`LONG_US`].
const ENOUGH: u64 = 16;
/// Longest half, in microseconds: 60 s.
const LONG_US: u64 = 60_000_000;
/// Fraction bits of a part.
pub const PART_BITS: u32 = 16;
/// A part of one: this host has the key to itself.
pub const WHOLE: u32 = 1 << PART_BITS;
/// Smallest part: 1/16, so that a client that moves here while the store is away gets something.
pub const LEAST: u32 = WHOLE / 16;

/// Own and fleet spend in two halves of time, the older of which is forgotten in turn.
#[derive(Clone, Debug)]
pub(super) struct Part {
    since_us: u64,
    /// Own and fleet spend of the half that is over, and of the one that is being filled.
    before: [u64; 2],
    now: [u64; 2],
    /// The fleet's counter at the last answer; `None` before the first.
    fleet: Option<u64>,
    value: u32,
}

impl Part {
    pub(super) const fn new(now_us: u64) -> Self {
        Self {
            since_us: now_us,
            before: [0; 2],
            now: [0; 2],
            fleet: None,
            value: WHOLE,
        }
    }

    /// An answer: `own` was sent and charged, and the fleet's counter reads `fleet`. `unit` is one
    /// unit as an amount. Returns what the fleet spent since the last answer.
    pub(super) fn note(&mut self, now_us: u64, own: u64, fleet: u64, unit: u64) -> u64 {
        let more = match self.fleet {
            // What was spent before this host looked for the first time is nobody's part.
            None => own,
            // The counter started anew: all it shows is news.
            Some(last) if fleet < last => fleet,
            Some(last) => fleet - last,
        };
        self.fleet = Some(fleet);
        let [own_now, fleet_now] = &mut self.now;
        *own_now += own;
        *fleet_now += more;
        let age_us = now_us.saturating_sub(self.since_us);
        if age_us >= LONG_US || (age_us >= HALF_US && *fleet_now >= unit.saturating_mul(ENOUGH)) {
            self.before = self.now;
            self.now = [0; 2];
            self.since_us = now_us;
        }
        let own = self.before[0] + self.now[0];
        let fleet = self.before[1] + self.now[1];
        if fleet > 0 {
            let part = (u128::from(own) << PART_BITS) / u128::from(fleet);
            self.value = (part.min(u128::from(WHOLE)) as u32).max(LEAST);
        }
        more
    }

    /// The part, [`LEAST`]..=[`WHOLE`].
    pub(super) const fn part(&self) -> u32 {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn follows_the_share_and_forgets_in_seconds() {
        let mut part = Part::new(0);
        assert_eq!(part.part(), WHOLE);
        let mut fleet = 5_000;
        for tick in 1..=50_u64 {
            fleet += 40;
            part.note(tick * SECOND / 10, 10, fleet, 1);
        }
        assert!(
            part.part().abs_diff(WHOLE / 4) < WHOLE / 50,
            "{}",
            part.part()
        );
        for tick in 51..=100_u64 {
            fleet += 40;
            part.note(tick * SECOND / 10, 40, fleet, 1);
        }
        assert_eq!(part.part(), WHOLE);
    }

    #[test]
    fn a_counter_that_starts_anew_loses_nothing_and_invents_nothing() {
        let mut part = Part::new(0);
        part.note(SECOND, 10, 1_000, 1);
        assert_eq!(part.note(2 * SECOND, 10, 1_040, 1), 40);
        assert_eq!(part.note(3 * SECOND, 10, 20, 1), 20);
    }

    #[test]
    fn a_client_that_spends_elsewhere_only_keeps_a_little_here() {
        let mut part = Part::new(0);
        for tick in 1..=50_u64 {
            part.note(tick * SECOND / 10, 0, tick * 100, 1);
        }
        assert_eq!(part.part(), LEAST);
    }
}
