//! What an agent does beside checking: letting go of idle clients, noticing that there is something
//! to save.

use std::sync::atomic::Ordering;

use super::answer::Reason;
use super::rate_limiter::RateLimiter;
use super::table::GROUP;

impl RateLimiter {
    /// Looks through `groups` groups of the table for idle clients and lets go of them; returns how
    /// many. Every new client pays for one group, so a limiter nobody maintains stays tidy too; an
    /// agent calls this so that the number of clients is current.
    pub fn maintain(&self, groups: usize) -> u64 {
        self.inner().engine.sweep_some(groups, self.now_ns())
    }

    /// Groups of the table; what [`RateLimiter::maintain`] counts in.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.inner().engine.table.lines().div_ceil(GROUP)
    }

    /// A number that differs once something was charged or forgotten that a snapshot would show.
    #[must_use]
    pub fn changes(&self) -> u64 {
        let engine = &self.inner().engine;
        let totals = engine.counters.totals();
        totals
            .of(Reason::Conforming)
            .wrapping_add(totals.of(Reason::Shadow))
            .wrapping_add(engine.tally.resets.load(Ordering::Relaxed))
    }
}
