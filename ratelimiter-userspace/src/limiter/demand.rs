//! What the clients of one backend ask for, client by client: what fair shares are made from.
//!
//! One counter per place, and a client's place follows from its fingerprint. Two clients that meet
//! in one place count as one greedy client: with a thousand clients asking at once that befalls one
//! in a hundred.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Places: 1 MiB per backend.
const PLACES: usize = 1 << 16;

#[derive(Default)]
struct Place {
    count: AtomicU32,
    /// Policy of whoever counted here last.
    policy: AtomicU32,
    /// Who it was, as all hosts of a fleet know it; 0 without one.
    who: AtomicU64,
}

/// Checks by client since they were last taken.
pub(super) struct Demand {
    places: Box<[Place]>,
}

impl Demand {
    pub(super) fn new() -> Self {
        Self {
            places: (0..PLACES).map(|_| Place::default()).collect(),
        }
    }

    /// Counts one check of the client with this fingerprint; `who` is asked once per reading.
    pub(super) fn note(&self, print: u64, policy: u32, who: impl FnOnce() -> u64) {
        if let Some(place) = self.places.get(print as usize % PLACES) {
            place.policy.store(policy, Ordering::Relaxed);
            if place.count.fetch_add(1, Ordering::Relaxed) == 0 {
                place.who.store(who(), Ordering::Relaxed);
            }
        }
    }

    /// Takes what was counted: policy and number of checks of each client, and who it is.
    pub(super) fn take(&self, mut visit: impl FnMut(u32, u32, u64)) {
        for place in &self.places {
            if place.count.load(Ordering::Relaxed) > 0 {
                let count = place.count.swap(0, Ordering::Relaxed);
                let who = place.who.load(Ordering::Relaxed);
                visit(place.policy.load(Ordering::Relaxed), count, who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_gone() {
        let demand = Demand::new();
        for _ in 0..5 {
            demand.note(7, 3, || 70);
        }
        demand.note(8 + PLACES as u64, 4, || 0);
        let mut taken = Vec::new();
        demand.take(|policy, count, who| taken.push((policy, count, who)));
        assert_eq!(taken, [(3, 5, 70), (4, 1, 0)]);
        demand.take(|_, _, _| panic!("taken twice"));
    }
}
