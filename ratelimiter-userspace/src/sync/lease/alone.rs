//! What a host does with a client while the store is away, and when it is back.

use ratelimiter_common::window::{Decision, WindowLimit, fixed_window, sliding_window};

use super::{Around, Lease, Terms, Verdict};
use crate::policy::model::{Algorithm, OnStoreLoss};

impl Lease {
    /// Leaves the fleet: from now on this host's own bucket counts, at its part of the speed.
    fn leave(&mut self, terms: &Terms, around: &Around, now_ns: u64) {
        self.part = match terms.on_loss {
            OnStoreLoss::Hold | OnStoreLoss::Deny => self.share(around),
            OnStoreLoss::Strict => 1.0 / f64::from(around.known.max(1)),
            OnStoreLoss::Local => 1.0,
        };
        self.expire(terms, now_ns);
        if terms.is_bucket() {
            // What it holds is charged, so it is no debt of its own.
            let mine = self.held.saturating_add(self.back) as f64;
            self.level = (self.level_at(terms, now_ns, 1.0) - mine).max(0.0);
        } else {
            self.note_own(terms, now_ns, 0);
            self.level = self.own_current as f64;
            self.start_ns = self.own_start_ns;
        }
        self.level_at_ns = now_ns;
        (self.held, self.back, self.low) = (0, 0, 0);
        self.ask_again_ns = 0;
    }

    pub(super) fn decide_alone(
        &mut self,
        terms: &Terms,
        around: &Around,
        now_ns: u64,
        cost: u64,
    ) -> Verdict {
        if self.part <= 0.0 {
            self.leave(terms, around, now_ns);
        }
        if terms.on_loss == OnStoreLoss::Deny {
            return Verdict::Refuses {
                retry_ns: around.lease_ns.max(1),
            };
        }
        if terms.is_bucket() {
            let owed = self.level_at(terms, now_ns, self.part);
            let over = owed + cost as f64 - terms.quota.burst as f64;
            let speed = terms.speed() * self.part;
            if over > 0.0 {
                return Verdict::Refuses {
                    retry_ns: ((over / speed).ceil() as u64).max(1),
                };
            }
            self.level = owed + cost as f64;
            self.level_at_ns = now_ns;
            self.behind = self.behind.saturating_add(cost);
            return Verdict::Passes {
                remaining: (-over) as u64,
                reset_ns: (self.level / speed).ceil() as u64,
            };
        }
        let scaled = (terms.quota.limit as f64 * self.part) as u64;
        let limit = WindowLimit {
            limit: scaled
                .max(terms.quota.grain)
                .max(cost.min(terms.quota.limit)),
            cap: terms.quota.limit,
            window_ns: terms.window_ns(),
        };
        let (current, start_ns) = (self.level as u64, self.start_ns);
        let (state, remaining, reset_ns) = if terms.quota.algorithm == Algorithm::FixedWindow {
            let counter = fixed_window::Counter { start_ns, current };
            match fixed_window::decide(counter, now_ns, cost, &limit) {
                Decision::Conforming {
                    state,
                    remaining,
                    reset_after,
                } => ((state.start_ns, state.current, 0), remaining, reset_after),
                refused => return refusal(&refused),
            }
        } else {
            let counters = sliding_window::Counters {
                start_ns,
                current,
                previous: self.previous,
            };
            match sliding_window::decide(counters, now_ns, cost, &limit) {
                Decision::Conforming {
                    state,
                    remaining,
                    reset_after,
                } => (
                    (state.start_ns, state.current, state.previous),
                    remaining,
                    reset_after,
                ),
                refused => return refusal(&refused),
            }
        };
        (self.start_ns, self.previous) = (state.0, state.2);
        self.level = state.1 as f64;
        self.behind = self.behind.saturating_add(cost);
        Verdict::Passes {
            remaining,
            reset_ns,
        }
    }

    /// Comes back to the fleet. What was admitted alone is told as far as it is still owed: old
    /// spend charged into a new window would deny the innocent.
    pub(super) fn rejoin(&mut self, terms: &Terms, now_ns: u64) {
        if self.part <= 0.0 {
            return;
        }
        let owed = self.level_at(terms, now_ns, self.part);
        self.level = owed;
        self.level_at_ns = now_ns;
        self.behind = self.behind.min(owed as u64);
        self.part = 0.0;
        (self.own_start_ns, self.own_current) = (self.start_ns, owed as u64);
    }
}

fn refusal<S>(decision: &Decision<S>) -> Verdict {
    match decision {
        Decision::NonConforming { retry_after } => Verdict::Refuses {
            retry_ns: *retry_after,
        },
        _ => Verdict::Never,
    }
}
