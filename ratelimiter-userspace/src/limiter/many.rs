//! Many checks at one moment: what every transport calls with what its read buffer held.

use super::answer::{Answer, REASONS, Reason};
use super::check_client_id;
use super::engine::Ask;
use super::identity::ClientKey;
use super::rate_limiter::{Inner, RateLimiter, Request};

/// How many checks ahead an identity is computed and its line fetched.
const AHEAD: usize = 16;
/// How many checks ahead a line is looked at, when it has arrived, for whether others must be
/// fetched.
const LOOK: usize = 6;

/// Stands for an id that cannot be one.
const NOBODY: ClientKey = ClientKey { place: 0, print: 0 };

/// Identities of checks that are near: a ring.
struct Near {
    keys: [ClientKey; AHEAD],
}

impl Near {
    fn key(&self, number: usize) -> ClientKey {
        self.keys.get(number % AHEAD).copied().unwrap_or(NOBODY)
    }

    /// Computes an identity and has its line fetched.
    #[inline(always)]
    fn meet(&mut self, inner: &Inner, number: usize, id: &[u8]) {
        let mut key = NOBODY;
        if check_client_id(id).is_ok() {
            key = inner.identity.of(id);
            inner.engine.table.prefetch(inner.engine.table.home(key));
        }
        if let Some(place) = self.keys.get_mut(number % AHEAD) {
            *place = key;
        }
    }

    /// Has the next lines fetched of whom the home line had no way for: else each of them would
    /// wait alone, one line after the other.
    #[inline(always)]
    fn look(&self, inner: &Inner, number: usize) {
        let key = self.key(number);
        let home = inner.engine.table.home(key);
        if inner.engine.table.line(home).find(key.print).is_none() {
            inner.engine.table.prefetch_neighbours(home);
        }
    }
}

impl RateLimiter {
    /// Checks many requests at one moment, in order; `out` is emptied first and receives one answer
    /// each. Several times faster per check than one by one where clients are many: identities are
    /// computed and cache lines fetched while those before them are decided. An invalid id is
    /// answered as such.
    pub fn check_many<I: AsRef<[u8]>>(
        &self,
        requests: &[(I, u64)],
        now_ns: u64,
        out: &mut Vec<Answer>,
    ) {
        self.check_many_now(requests, now_ns, out);
        for (answer, (id, cost)) in out.iter_mut().zip(requests) {
            if answer.reason == Reason::Pending {
                *answer = self.wait(&Request {
                    cost: *cost,
                    ..Request::new(id.as_ref())
                });
            }
        }
    }

    /// As [`RateLimiter::check_many`]; what only the store of a fleet can decide stays pending.
    pub(super) fn check_many_now<I: AsRef<[u8]>>(
        &self,
        requests: &[(I, u64)],
        now_ns: u64,
        out: &mut Vec<Answer>,
    ) {
        out.clear();
        out.reserve(requests.len());
        let inner = self.inner();
        let mut reasons = [0_u64; REASONS];
        let mut near = Near {
            keys: [NOBODY; AHEAD],
        };
        for (number, (id, _)) in requests.iter().enumerate().take(AHEAD) {
            near.meet(inner, number, id.as_ref());
        }
        for number in 0..LOOK.min(requests.len()) {
            near.look(inner, number);
        }
        for (number, (id, cost)) in requests.iter().enumerate() {
            let key = near.key(number);
            let answer = if key == NOBODY {
                Answer::bare(Reason::InvalidClientId, 0)
            } else {
                let ask = Ask {
                    key,
                    now_ns,
                    cost: *cost,
                    charge: true,
                    only: None,
                    under: 0,
                    id: id.as_ref(),
                    alone: false,
                };
                inner.engine.answer(ask, || self.unknown(id.as_ref(), key))
            };
            if let Some(count) = reasons.get_mut(answer.reason as usize) {
                *count += 1;
            }
            out.push(answer);
            if let Some((id, _)) = requests.get(number + AHEAD) {
                near.meet(inner, number + AHEAD, id.as_ref());
            }
            if number + LOOK < requests.len() {
                near.look(inner, number + LOOK);
            }
        }
        inner.engine.counters.count_all(&reasons);
    }
}
