//! What the clients of one backend ask for, client by client: what fair shares are made from.
//!
//! One counter per place, and a client's place follows from its fingerprint. Two clients that meet
//! in one place count as one greedy client: with a thousand clients asking at once that befalls one
//! in a hundred.

use std::sync::atomic::{AtomicU32, Ordering};

/// Places: 512 KiB per backend.
const PLACES: usize = 1 << 16;

#[derive(Default)]
struct Place {
    count: AtomicU32,
    /// Policy of whoever counted here last.
    policy: AtomicU32,
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

    /// Counts one check of the client with this fingerprint.
    pub(super) fn note(&self, print: u64, policy: u32) {
        if let Some(place) = self.places.get(print as usize % PLACES) {
            place.policy.store(policy, Ordering::Relaxed);
            place.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes what was counted: policy and number of checks of each client.
    pub(super) fn take(&self, mut visit: impl FnMut(u32, u32)) {
        for place in &self.places {
            if place.count.load(Ordering::Relaxed) > 0 {
                let count = place.count.swap(0, Ordering::Relaxed);
                visit(place.policy.load(Ordering::Relaxed), count);
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
            demand.note(7, 3);
        }
        demand.note(8 + PLACES as u64, 4);
        let mut taken = Vec::new();
        demand.take(|policy, count| taken.push((policy, count)));
        assert_eq!(taken, [(3, 5), (4, 1)]);
        demand.take(|_, _| panic!("taken twice"));
    }
}
