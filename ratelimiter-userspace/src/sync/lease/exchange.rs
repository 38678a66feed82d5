//! Entries for the store and what it says to them.

use super::{Around, IDLE_NS, Lease, MARGIN_NS, Terms};
use crate::policy::model::Algorithm;
use crate::sync::settle::{Answer, Entry, FleetKey};

/// A block is at most this part of a lease's demand, so that it is used up before it ends.
const AHEAD: f64 = 0.5;
/// The same for a window, of which it is lost what is not used at its end.
const AHEAD_OF_WINDOW: f64 = 0.125;
/// What a host remembers of shares is this old at most, or a window, in seconds.
const MEMORY_S: f64 = 3.0;
/// Least share of a host that spends anything: a client that just moved here gets something, should
/// the store go away now.
const LEAST_PART: f64 = 1.0 / 16.0;
/// After the store had no room, a block is not asked for again sooner than this part of an interval.
const PATIENCE: u64 = 5;

impl Lease {
    /// Makes the entry for the store, where requests of `need` in all wait for it, the smallest of
    /// which costs `least`. At most one entry is under way.
    pub fn ask(
        &mut self,
        terms: &Terms,
        around: &Around,
        now_ns: u64,
        key: FleetKey,
        (need, least): (u64, u64),
    ) -> Entry {
        self.rejoin(terms, now_ns);
        self.expire(terms, now_ns);
        let ahead = self.ahead(terms, around, now_ns);
        let mut entry = Entry::take(
            key,
            terms.sent(around),
            need.saturating_add(ahead)
                .saturating_sub(self.held.min(ahead)),
            least,
        );
        let back = std::mem::take(&mut self.back);
        entry.returned = self.undrained(terms, now_ns.saturating_add(MARGIN_NS), back);
        entry.spend = std::mem::take(&mut self.behind);
        if self.epoch != around.epoch || entry.spend > 0 {
            entry.debt = self.told(terms, now_ns).saturating_sub(entry.spend);
        }
        if !terms.is_bucket() {
            entry.age_us = now_ns.saturating_sub(self.start_ns) / 1_000;
        }
        if entry.spend > 0 {
            // Told as of when it was: charged to a window that begins now, or to a log as of now, it
            // would deny the innocent.
            match terms.quota.algorithm {
                Algorithm::TokenBucket => {}
                Algorithm::SlidingLog => {
                    let left = self.window_left(terms, now_ns) as f64;
                    entry.spend = (entry.spend as f64 * left / terms.window_ns() as f64) as u64;
                }
                Algorithm::SlidingWindow | Algorithm::FixedWindow => {
                    entry.debt = entry.debt.max(1);
                }
            }
        }
        self.sent = entry.spend;
        self.asked_ns = now_ns.max(1);
        entry
    }

    /// How much to hold beyond what is waited for.
    fn ahead(&mut self, terms: &Terms, around: &Around, now_ns: u64) -> u64 {
        let elapsed = now_ns.saturating_sub(self.demand_at_ns).max(1) as f64 / 1e9;
        let seen = self.used as f64 / elapsed;
        // Forgets within a second, and learns at once when there is more.
        let kept = self.demand * (-elapsed).exp();
        self.demand = if elapsed < 0.01 {
            kept.max(self.demand)
        } else {
            kept.max(seen)
        };
        if elapsed >= 0.01 {
            self.used = 0;
            self.demand_at_ns = now_ns;
        }
        let idles = now_ns.saturating_sub(self.touched_ns) >= IDLE_NS;
        if idles || terms.is_exact(around) {
            return 0;
        }
        let mut ahead_s = around.lease_ns as f64 / 1e9 * AHEAD;
        if !terms.is_bucket() {
            // What is left when its window ends is lost.
            ahead_s = ahead_s.min(terms.quota.window_us as f64 / 1e6 * AHEAD_OF_WINDOW);
        }
        let share = terms.quota.depth() / (2 * u64::from(around.known.max(1)));
        ((self.demand * ahead_s) as u64).min(share)
    }

    /// Takes the store's answer to the entry under way; whether the store has forgotten what this
    /// host remembers.
    pub fn answered(
        &mut self,
        terms: &Terms,
        around: &Around,
        now_ns: u64,
        entry: &Entry,
        answer: &Answer,
    ) -> bool {
        let before = self.told(terms, now_ns);
        let asked_ns = std::mem::take(&mut self.asked_ns);
        if answer.outdated {
            // Somebody has a newer quota of another algorithm; ours will change too.
            return false;
        }
        let restarted = self.heard_ns != 0 && answer.fleet_spend < self.fleet_seen;
        let forgot = restarted && entry.debt == 0 && before > entry.quota.grain;
        self.remember_part(terms, now_ns, restarted, answer);
        if answer.granted > 0 {
            if self.held == 0 {
                self.since_ns = asked_ns;
            }
            self.held = self.held.saturating_add(answer.granted);
            self.until_ns = asked_ns.saturating_add(around.lease_ns);
            if !terms.is_bucket() {
                let ends_ns = asked_ns.saturating_add(answer.ends_us.saturating_mul(1_000));
                self.until_ns = self.until_ns.min(ends_ns);
            }
        }
        let waited_for = entry.least > 0;
        self.low = if terms.is_exact(around) {
            0
        } else {
            (self.held / 2).max(u64::from(self.held > 0))
        };
        if !forgot {
            self.epoch = around.epoch;
            self.level = answer.level as f64;
            self.level_at_ns = asked_ns;
            if !terms.is_bucket() {
                let ends_ns = now_ns.saturating_add(answer.ends_us.saturating_mul(1_000));
                self.start_ns = ends_ns.saturating_sub(terms.window_ns());
            }
        }
        if answer.wait_us > 0 && waited_for {
            let mut wait_ns = answer.wait_us.saturating_mul(1_000);
            if !terms.is_exact(around) {
                wait_ns = wait_ns.max(around.interval_ns / PATIENCE);
            }
            self.wait_until_ns = now_ns.saturating_add(wait_ns);
            // Somebody may give back meanwhile: it is asked once an interval.
            self.ask_again_ns = now_ns.saturating_add(wait_ns.min(around.interval_ns));
            self.no_room_for = entry.least;
        } else if waited_for {
            self.ask_again_ns = 0;
        }
        self.heard_ns = now_ns.max(1);
        forgot
    }

    /// The entry under way was not answered. It may have been settled: nothing of it is sent again.
    pub fn lost(&mut self) {
        self.asked_ns = 0;
        self.sent = 0;
    }

    /// Learns which share of what the fleet spends is spent here.
    fn remember_part(&mut self, terms: &Terms, now_ns: u64, restarted: bool, answer: &Answer) {
        let own = (answer.granted + self.sent) as f64;
        self.sent = 0;
        let fleet = if self.heard_ns == 0 || restarted {
            own.max(answer.level as f64)
        } else {
            answer.fleet_spend.saturating_sub(self.fleet_seen) as f64
        };
        let memory_s = MEMORY_S.max(terms.quota.window_us as f64 / 1e6);
        let age_s = now_ns.saturating_sub(self.heard_ns) as f64 / 1e9;
        let kept = (-age_s / memory_s).exp();
        // Of what others spent while this host had not asked, the end counts.
        let fleet = fleet * (memory_s / age_s.max(memory_s));
        self.own = self.own * kept + own;
        self.fleet = self.fleet * kept + fleet.max(own);
        self.fleet_seen = answer.fleet_spend;
    }

    /// This host's share of what the fleet spends, [`LEAST_PART`] or more; 1 where nothing is known.
    #[must_use]
    pub fn share(&self, around: &Around) -> f64 {
        if self.fleet <= 0.0 {
            1.0
        } else if self.own <= 0.0 {
            1.0 / f64::from(around.known.max(1))
        } else {
            (self.own / self.fleet).clamp(LEAST_PART, 1.0)
        }
    }
}
