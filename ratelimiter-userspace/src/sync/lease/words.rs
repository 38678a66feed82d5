//! A lease as words, for where states are kept as such.

use super::Lease;

/// Words a lease takes.
pub const WORDS: usize = 27;

impl Lease {
    /// The lease as words, for where states are kept as such.
    #[must_use]
    pub fn to_words(&self) -> [u64; WORDS] {
        [
            self.held,
            self.until_ns,
            self.since_ns,
            self.low,
            self.used,
            self.back,
            self.behind,
            self.sent,
            self.asked_ns,
            self.heard_ns,
            self.touched_ns,
            self.demand_at_ns,
            self.demand.to_bits(),
            self.level.to_bits(),
            self.level_at_ns,
            self.start_ns,
            self.previous,
            self.own_start_ns,
            self.own_current,
            self.wait_until_ns,
            self.ask_again_ns,
            self.no_room_for,
            self.own.to_bits(),
            self.fleet.to_bits(),
            self.fleet_seen,
            self.epoch,
            self.part.to_bits(),
        ]
    }

    /// The lease in `words`; all zero is a client nobody has seen.
    #[must_use]
    pub fn from_words(words: &[u64; WORDS]) -> Self {
        let [
            held,
            until_ns,
            since_ns,
            low,
            used,
            back,
            behind,
            sent,
            asked_ns,
            heard_ns,
            touched_ns,
            demand_at_ns,
            demand,
            level,
            level_at_ns,
            start_ns,
            previous,
            own_start_ns,
            own_current,
            wait_until_ns,
            ask_again_ns,
            no_room_for,
            own,
            fleet,
            fleet_seen,
            epoch,
            part,
        ] = *words;
        Self {
            held,
            until_ns,
            since_ns,
            low,
            used,
            back,
            behind,
            sent,
            asked_ns,
            heard_ns,
            touched_ns,
            demand_at_ns,
            demand: f64::from_bits(demand),
            level: f64::from_bits(level),
            level_at_ns,
            start_ns,
            previous,
            own_start_ns,
            own_current,
            wait_until_ns,
            ask_again_ns,
            no_room_for,
            own: f64::from_bits(own),
            fleet: f64::from_bits(fleet),
            fleet_seen,
            epoch,
            part: f64::from_bits(part),
        }
    }
}
