//! What the clients of a segment ask for on this host. Pure.

use std::collections::HashMap;

use crate::control::fairness::Histogram;
use crate::control::hosts::{Cells, Demand, HEAVY_MAX, Heavy};

/// A client that wants less of what it did is forgotten, per second.
const FORGOTTEN: f64 = 0.01;

/// Wants of a segment's clients, by how they are told to others.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wants {
    /// Everybody's.
    pub(super) all: Histogram,
    /// Clients with one limit over the fleet: want and weight, by who they are.
    shared: HashMap<u64, (f64, f64)>,
    /// The others'.
    own: Histogram,
}

impl Wants {
    /// Counts a client; `who` is said where its limit holds over the fleet.
    pub(super) fn add(&mut self, want: f64, weight: f64, who: Option<u64>) {
        self.all.add(want, weight);
        match who {
            Some(who) if who != 0 => {
                let client = self.shared.entry(who).or_default();
                *client = (client.0 + want, client.1.max(weight));
            }
            _ => self.own.add(want, weight),
        }
    }

    /// Moves towards a newer reading by `share` (0..=1) of the difference.
    pub(super) fn blend(&mut self, newer: &Self, share: f64) {
        self.all.blend(&newer.all, share);
        self.own.blend(&newer.own, share);
        for client in self.shared.values_mut() {
            client.0 *= 1.0 - share;
        }
        for (who, (want, weight)) in &newer.shared {
            let client = self.shared.entry(*who).or_default();
            *client = (client.0 + share * want, *weight);
        }
        self.shared.retain(|_, (want, _)| *want > FORGOTTEN);
    }

    /// Whether nobody asks for anything worth mentioning.
    pub(super) fn is_empty(&self) -> bool {
        self.all.total() <= FORGOTTEN
    }

    /// As other hosts are told, for a segment of this weight.
    pub(super) fn told(&self, weight: f64) -> Demand {
        let mut clients: Vec<Heavy> = self
            .shared
            .iter()
            .filter(|(_, (want, weight))| *want > 0.0 && *weight > 0.0)
            .map(|(who, (want, weight))| Heavy(*who, *want, *weight))
            .collect();
        clients.sort_by(|a, b| (b.1 / b.2).total_cmp(&(a.1 / a.2)).then(a.0.cmp(&b.0)));
        let mut rest = Histogram::default();
        for Heavy(_, want, weight) in clients.iter().skip(HEAVY_MAX) {
            rest.add(*want, *weight);
        }
        clients.truncate(HEAVY_MAX);
        Demand {
            weight,
            heavy: clients,
            shared: Cells::from(&rest),
            own: Cells::from(&self.own),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_told_one_by_one() {
        let mut reading = Wants::default();
        for who in 1..=100 {
            reading.add(who as f64, 1.0, Some(who));
        }
        reading.add(7.0, 1.0, None);
        let mut wants = Wants::default();
        for _ in 0..20 {
            wants.blend(&reading, 0.5);
        }
        let told = wants.told(2.0);
        assert_eq!(told.heavy.len(), HEAVY_MAX);
        assert_eq!((told.heavy[0].0, told.weight), (100, 2.0));
        assert!((told.heavy[0].1 - 100.0).abs() < 0.01);
        assert_ne!(told.shared, Cells::default());
        assert_ne!(told.own, Cells::default());
        for _ in 0..30 {
            wants.blend(&Wants::default(), 0.5);
        }
        assert!(wants.is_empty());
        assert_eq!(wants.told(2.0).heavy, []);
    }
}
