//! What one host holds of one client's bucket in the fleet: units taken ahead, what the fleet owes
//! as far as this host knows, and what it does while it is alone. Pure; time is an argument.
//!
//! Units are charged in the store when they are taken. So, counted from the first, a fleet admits
//! at most `burst + rate * t`, however requests are spread over hosts and whatever is lost on the
//! way: what is lost was charged. A host
//!
//! - spends what it holds, in nanoseconds, without asking;
//! - asks ahead of need, as much as its own recent demand takes in half a lease, and at most its
//!   share of the depth, so that no host sits on what others need;
//! - has a request that it holds nothing for wait for the store ([`Verdict::Ask`]): nobody gets a free
//!   first block;
//! - gives back what it did not use. Of a token bucket only what would not have drained meanwhile:
//!   else the fleet could spend it twice;
//! - does, while the store is away, what `on_store_loss` says, beginning with what it knows the
//!   fleet to owe.
//!
//! `exact` is the same without asking ahead.

mod alone;
mod exchange;
mod words;

use super::settle::{FleetQuota, MAX_AMOUNT};
use crate::policy::model::{Algorithm, OnStoreLoss};

/// A client idle for so long has its block taken back, in nanoseconds: 1 s.
pub const IDLE_NS: u64 = 1_000_000_000;
/// What is told of the past is understated by so much time, longer than any answer takes, so that
/// the store never learns of more than it charged: 100 ms.
const MARGIN_NS: u64 = 100_000_000;

/// What applies to a client at this host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// The quota, scaled by nobody.
    pub quota: FleetQuota,
    /// Never take ahead.
    pub exact: bool,
    /// What counts while the store is away.
    pub on_loss: OnStoreLoss,
}

/// What a host knows of the fleet now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around {
    /// Hosts that are not forgotten, at least 1.
    pub known: u32,
    /// Hosts that are there, at least 1.
    pub live: u32,
    /// The store is away.
    pub alone: bool,
    /// Rises whenever the store may have been emptied.
    pub epoch: u64,
    /// How long a block is valid.
    pub lease_ns: u64,
    /// The sync interval.
    pub interval_ns: u64,
}

/// What is said to an arrival; amounts as in [`super::settle`], times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passes, and has been charged.
    Passes {
        /// What the fleet may still spend, as far as is known here.
        remaining: u64,
        /// Until nothing is owed any more.
        reset_ns: u64,
    },
    /// Does not pass.
    Refuses {
        /// Until it would, if nobody else comes.
        retry_ns: u64,
    },
    /// Costs more than there ever is.
    Never,
    /// Only the store knows.
    Ask,
}

/// See the module's text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lease {
    /// Granted and not spent, valid until `until_ns`.
    pub held: u64,
    until_ns: u64,
    /// Since when something is held.
    since_ns: u64,
    /// Ask for more when so little is left; 0: not ahead of need.
    low: u64,
    /// Spent of grants since the last entry.
    used: u64,
    /// To be given back.
    back: u64,
    /// Admitted without a grant since the last entry.
    behind: u64,
    /// Spend of the entry that is under way.
    sent: u64,
    /// When the entry under way was made; 0 for none.
    pub asked_ns: u64,
    /// When the last answer came; 0 for never.
    pub heard_ns: u64,
    /// When somebody came last.
    pub touched_ns: u64,
    /// When the last entry was made.
    demand_at_ns: u64,
    /// Amount per second that is spent here.
    demand: f64,
    /// What is owed at `level_at_ns`: by the fleet; alone, by this host's own bucket.
    level: f64,
    level_at_ns: u64,
    /// Windows: when the window began, and what this host admitted in the one before.
    start_ns: u64,
    previous: u64,
    /// Windows: when this host's own began, and what it admitted in it.
    own_start_ns: u64,
    own_current: u64,
    /// The store has no room for `no_room_for` until then.
    wait_until_ns: u64,
    /// It is not asked again before.
    ask_again_ns: u64,
    no_room_for: u64,
    /// What was spent lately, here and by the fleet.
    own: f64,
    fleet: f64,
    /// The fleet's spend in the last answer.
    fleet_seen: u64,
    /// [`Around::epoch`] the store was last told in what is owed.
    epoch: u64,
    /// The share this host polices alone; 0 while it is not alone.
    part: f64,
}

pub use words::WORDS;

impl Terms {
    /// Whether nothing is taken ahead: by choice, or because this host's part is less than one unit
    /// an interval.
    #[must_use]
    pub fn is_exact(&self, around: &Around) -> bool {
        let one = self
            .quota
            .grain
            .saturating_mul(u64::from(around.known.max(1)));
        self.exact || self.quota.in_time(around.interval_ns / 1_000) < one
    }

    fn is_bucket(&self) -> bool {
        self.quota.algorithm == Algorithm::TokenBucket
    }

    fn window_ns(&self) -> u64 {
        self.quota.window_us.saturating_mul(1_000)
    }

    /// Amount per nanosecond.
    fn speed(&self) -> f64 {
        self.quota.limit as f64 / self.window_ns().max(1) as f64
    }

    /// The quota as it is sent: where hosts are cut off, `strict` leaves them their parts.
    fn sent(&self, around: &Around) -> FleetQuota {
        let mut quota = self.quota;
        if self.on_loss == OnStoreLoss::Strict && around.live < around.known {
            let scaled = u128::from(quota.limit) * u128::from(around.live.max(1));
            let scaled = scaled / u128::from(around.known.max(1));
            quota.limit = u64::try_from(scaled).unwrap_or(quota.limit).max(1);
        }
        quota
    }
}

impl Lease {
    /// Judges an arrival of `cost`, and charges it if `charge` and it passes.
    pub fn decide(
        &mut self,
        terms: &Terms,
        around: &Around,
        now_ns: u64,
        cost: u64,
        charge: bool,
    ) -> Verdict {
        if cost > terms.quota.depth() {
            return Verdict::Never;
        }
        if !charge {
            return self.peek(terms, around, now_ns, cost);
        }
        self.touched_ns = now_ns;
        if around.alone {
            return self.decide_alone(terms, around, now_ns, cost);
        }
        self.rejoin(terms, now_ns);
        self.expire(terms, now_ns);
        if cost <= self.held {
            self.held -= cost;
            self.used = self.used.saturating_add(cost);
            if !terms.is_bucket() {
                self.note_own(terms, now_ns, cost);
            }
            return self.passes(terms, now_ns);
        }
        if now_ns < self.ask_again_ns && cost >= self.no_room_for {
            let retry_ns = self.wait_until_ns.saturating_sub(now_ns).max(1);
            return Verdict::Refuses { retry_ns };
        }
        Verdict::Ask
    }

    /// What an arrival would be told, without asking anybody.
    fn peek(&self, terms: &Terms, around: &Around, now_ns: u64, cost: u64) -> Verdict {
        let mut copy = *self;
        if around.alone {
            return copy.decide_alone(terms, around, now_ns, cost);
        }
        copy.rejoin(terms, now_ns);
        copy.expire(terms, now_ns);
        let level = copy.level_at(terms, now_ns, 1.0);
        let room = terms.quota.depth() as f64 - level + copy.held as f64;
        if cost as f64 > room {
            let missing = cost as f64 - room;
            let retry_ns = if terms.is_bucket() {
                (missing / terms.speed()).ceil() as u64
            } else {
                copy.window_left(terms, now_ns)
            };
            return Verdict::Refuses {
                retry_ns: retry_ns.max(1),
            };
        }
        if cost <= copy.held {
            copy.held -= cost;
        } else {
            copy.level = level + (cost - copy.held) as f64;
            copy.level_at_ns = now_ns;
            copy.held = 0;
        }
        copy.passes(terms, now_ns)
    }

    /// Counts what this host admits in windows of its own: what it goes on from alone.
    fn note_own(&mut self, terms: &Terms, now_ns: u64, cost: u64) {
        let elapsed = now_ns.saturating_sub(self.own_start_ns);
        if elapsed >= terms.window_ns() {
            let follows = elapsed - terms.window_ns() < terms.window_ns() && self.own_current > 0;
            self.previous = if follows { self.own_current } else { 0 };
            self.own_start_ns = if follows {
                self.own_start_ns + terms.window_ns()
            } else {
                now_ns
            };
            self.own_current = 0;
        }
        self.own_current = self.own_current.saturating_add(cost);
    }

    fn passes(&self, terms: &Terms, now_ns: u64) -> Verdict {
        let owed = (self.level_at(terms, now_ns, 1.0) - self.held as f64).max(0.0);
        Verdict::Passes {
            remaining: (terms.quota.depth() as f64 - owed).max(0.0) as u64,
            reset_ns: if terms.is_bucket() {
                (owed / terms.speed()).ceil() as u64
            } else {
                self.window_left(terms, now_ns)
            },
        }
    }

    /// What is owed at `now_ns`, where the clock runs at `part` of its speed.
    fn level_at(&self, terms: &Terms, now_ns: u64, part: f64) -> f64 {
        if terms.is_bucket() {
            let elapsed = now_ns.saturating_sub(self.level_at_ns) as f64;
            return (self.level - elapsed * terms.speed() * part).max(0.0);
        }
        if self.window_left(terms, now_ns) == 0 {
            return 0.0;
        }
        self.level
    }

    fn window_left(&self, terms: &Terms, now_ns: u64) -> u64 {
        terms
            .window_ns()
            .saturating_sub(now_ns.saturating_sub(self.start_ns))
    }

    /// Takes back a block that has ended, or is not used.
    fn expire(&mut self, terms: &Terms, now_ns: u64) {
        if self.held > 0 && now_ns >= self.until_ns {
            self.hand_back(terms, now_ns);
        }
    }

    fn hand_back(&mut self, terms: &Terms, now_ns: u64) {
        let left = self.undrained(terms, now_ns, self.held);
        self.back = self.back.saturating_add(left);
        (self.held, self.low) = (0, 0);
        self.since_ns = now_ns;
    }

    /// What of `amount`, taken at `since_ns`, would still be owed: the rest has drained, or its
    /// window is over.
    fn undrained(&self, terms: &Terms, now_ns: u64, amount: u64) -> u64 {
        if terms.is_bucket() {
            let drained = now_ns.saturating_sub(self.since_ns) as f64 * terms.speed();
            (amount as f64 - drained).max(0.0) as u64
        } else if self.window_left(terms, now_ns) == 0 {
            0
        } else {
            amount
        }
    }

    /// Whether an entry is due without anybody waiting: a block runs low, something is to be given
    /// back or to be told.
    #[must_use]
    pub fn is_due(&self, around: &Around) -> bool {
        self.asked_ns == 0 && !around.alone && self.held <= self.low && self.low > 0
    }

    /// Whether something was admitted that the store has not been told yet.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind > 0
    }

    /// For the round that looks after all clients: hands back what idles, and says whether an entry
    /// is due.
    pub fn look_after(&mut self, terms: &Terms, around: &Around, now_ns: u64) -> bool {
        if around.alone || self.asked_ns != 0 {
            return false;
        }
        self.rejoin(terms, now_ns);
        if self.held > 0 && now_ns.saturating_sub(self.touched_ns) >= IDLE_NS {
            self.hand_back(terms, now_ns);
        }
        self.expire(terms, now_ns);
        let tells = self.epoch != around.epoch && self.told(terms, now_ns) > 0;
        self.back > 0 || self.behind > 0 || tells || self.is_due(around)
    }

    /// Whether nothing is known here that the store does not know.
    #[must_use]
    pub fn is_idle(&self, terms: &Terms, now_ns: u64) -> bool {
        self.held == 0
            && self.back == 0
            && self.behind == 0
            && self.asked_ns == 0
            && self.level_at(terms, now_ns, 1.0) <= 0.0
            && now_ns.saturating_sub(self.touched_ns) >= IDLE_NS
    }

    /// What the store is told to be owed, should it have forgotten.
    fn told(&self, terms: &Terms, now_ns: u64) -> u64 {
        let level = self.level_at(terms, now_ns.saturating_add(MARGIN_NS), 1.0);
        (level as u64).min(MAX_AMOUNT)
    }

    /// What is owed at `now_ns` as far as this host knows, in amounts: what is saved, and carried
    /// over when the quota changes.
    #[must_use]
    pub fn owed(&self, terms: &Terms, now_ns: u64) -> u64 {
        let part = if self.part > 0.0 { self.part } else { 1.0 };
        self.level_at(terms, now_ns, part).ceil() as u64
    }

    /// When the window began that [`Lease::owed`] is of; `now_ns` where there is none.
    #[must_use]
    pub fn window_start_ns(&self, terms: &Terms, now_ns: u64) -> u64 {
        if self.window_left(terms, now_ns) == 0 {
            now_ns
        } else {
            self.start_ns
        }
    }

    /// A lease that knows `owed` to be owed at `now_ns`, of a window that began at `start_ns`, and
    /// holds nothing.
    #[must_use]
    pub fn owing(owed: u64, now_ns: u64, start_ns: u64) -> Self {
        Self {
            level: owed as f64,
            level_at_ns: now_ns,
            start_ns,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests;
