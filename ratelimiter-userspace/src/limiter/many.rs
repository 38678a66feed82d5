//! Many checks at one moment: what every transport calls with what its read buffer held.

use super::answer::{Answer, Reason};
use super::check_client_id;
use super::engine::Ask;
use super::identity::ClientKey;
use super::rate_limiter::{RateLimiter, Request};

/// Checks hashed and prefetched together.
const BATCH: usize = 32;

impl RateLimiter {
    /// Checks many requests at one moment, in order; `out` is emptied first and receives one answer
    /// each. Several times faster per check than one by one where clients are many: identities are
    /// computed and cache lines fetched for 32 at a time. An invalid id is answered as such.
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
        let nobody = ClientKey { place: 0, print: 0 };
        for chunk in requests.chunks(BATCH) {
            let mut keys = [nobody; BATCH];
            for (key, (id, _)) in keys.iter_mut().zip(chunk) {
                if check_client_id(id.as_ref()).is_ok() {
                    *key = inner.identity.of(id.as_ref());
                    inner.engine.table.prefetch(inner.engine.table.home(*key));
                }
            }
            for (key, (id, cost)) in keys.into_iter().zip(chunk) {
                if key == nobody {
                    inner.engine.counters.count(Reason::InvalidClientId);
                    out.push(Answer::bare(Reason::InvalidClientId, 0));
                    continue;
                }
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
                out.push(inner.engine.check(ask, || self.unknown(id.as_ref(), key)));
            }
        }
    }
}
