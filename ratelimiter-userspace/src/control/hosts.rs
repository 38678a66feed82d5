//! What the hosts of a fleet tell each other about a backend, and how it becomes one observation.
//!
//! Each host publishes a [`Record`]: what it has admitted, and what its clients ask for. Whoever
//! steps the controllers merges the records of all live hosts. The merge depends on nothing but the
//! set of records: not on their order, not on who merges, and a record that is stale, seen twice or
//! no number is as if it were not there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::counters::History;
use super::fairness::{BUCKETS, BUCKETS_PER_OCTAVE, Group, Histogram};

/// Records older than this are those of hosts that are gone, in seconds.
pub const RECORD_S: f64 = 3.0;
/// Hosts that are merged at most.
pub const HOSTS_MAX: usize = 1_024;
/// Segments of one record at most.
const SEGMENTS_MAX: usize = 1_024;
/// Clients of a segment that are told of one by one.
pub const HEAVY_MAX: usize = 64;
/// Points of a history that are told, and how far apart, in seconds: six seconds.
const POINTS: usize = 25;
const POINTS_APART_S: f64 = 0.24;
/// Largest demand, weight and rate that is believed.
const CLAIM_MAX: f64 = 1e12;

/// What one host contributes to the steps of a backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Grows with each record of a host: of two the larger counts.
    pub seq: u64,
    /// What it has admitted, on its own clock.
    pub history: History,
    /// What its clients ask for, by segment.
    pub demand: BTreeMap<String, Demand>,
}

/// What the clients of one segment ask for on one host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    /// The segment's share in a shortage.
    pub weight: f64,
    /// The largest of those that have one limit over the fleet: what a client asks for on many
    /// hosts is added up, since all of them give it one level.
    pub heavy: Vec<Heavy>,
    /// The others of them.
    pub shared: Cells,
    /// Clients that each host limits by itself.
    pub own: Cells,
}

/// One client: who (a keyed hash that is the same on all hosts), want per second, weight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heavy(pub u64, pub f64, pub f64);

/// A histogram without its empty buckets: bucket, want, weight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cells(Vec<(u16, f64, f64)>);

impl From<&Histogram> for Cells {
    fn from(histogram: &Histogram) -> Self {
        let cells = histogram.cells();
        Self(
            cells
                .map(|(bucket, want, weight)| (bucket as u16, want, weight))
                .collect(),
        )
    }
}

impl Cells {
    fn is_sound(&self) -> bool {
        self.0.len() <= BUCKETS
            && self.0.iter().all(|(bucket, want, weight)| {
                usize::from(*bucket) < BUCKETS && is_claim(*want) && is_claim(*weight)
            })
    }

    /// Adds them, each client being seen by `hosts` hosts.
    fn add_to(&self, sum: &mut Histogram, hosts: f64) {
        // A client's want over the fleet is larger per weight by as much.
        let up = (hosts.log2() * BUCKETS_PER_OCTAVE as f64).round() as usize;
        for (bucket, want, weight) in &self.0 {
            let bucket = (usize::from(*bucket) + up).min(BUCKETS - 1);
            sum.add_bucket(bucket, *want, weight / hosts);
        }
    }
}

fn is_claim(value: f64) -> bool {
    (0.0..=CLAIM_MAX).contains(&value)
}

impl Record {
    /// What is told of `history`: its last six seconds.
    #[must_use]
    pub fn new(seq: u64, history: &History, demand: BTreeMap<String, Demand>) -> Self {
        Self {
            seq,
            history: history.thinned(POINTS_APART_S, POINTS),
            demand,
        }
    }

    fn is_sound(&self) -> bool {
        self.history.is_sound()
            && self.demand.len() <= SEGMENTS_MAX
            && self.demand.values().all(Demand::is_sound)
    }
}

impl Demand {
    fn is_sound(&self) -> bool {
        let heavy = |heavy: &Heavy| is_claim(heavy.1) && heavy.2 > 0.0 && is_claim(heavy.2);
        self.weight > 0.0
            && is_claim(self.weight)
            && self.heavy.len() <= HEAVY_MAX
            && self.heavy.iter().all(heavy)
            && self.shared.is_sound()
            && self.own.is_sound()
    }
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Whose it is.
    pub host: String,
    /// How long ago it was published, in seconds.
    pub age_s: f64,
    /// What it says, times on the reader's clock.
    pub record: Record,
}

/// All live hosts together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merged {
    /// What each has admitted, by host.
    pub hosts: Vec<(String, History)>,
    /// What clients ask for over the fleet, by segment, in the order of names.
    pub groups: Vec<Group>,
}

/// Merges what was read; the same for the same set.
#[must_use]
pub fn merge(mut read: Vec<Published>) -> Merged {
    read.retain(|one| (0.0..=RECORD_S).contains(&one.age_s) && one.record.is_sound());
    read.sort_by(|a, b| {
        let newest = b.record.seq.cmp(&a.record.seq);
        let youngest = a.age_s.total_cmp(&b.age_s);
        a.host.cmp(&b.host).then(newest).then(youngest)
    });
    read.dedup_by(|later, first| later.host == first.host);
    read.truncate(HOSTS_MAX);
    let mut segments: BTreeMap<&str, Vec<&Demand>> = BTreeMap::new();
    for one in &read {
        for (segment, demand) in &one.record.demand {
            segments.entry(segment).or_default().push(demand);
        }
    }
    let groups = segments
        .into_iter()
        .map(|(segment, demands)| group(segment, &demands))
        .collect();
    let hosts = read.into_iter().map(|one| (one.host, one.record.history));
    Merged {
        hosts: hosts.collect(),
        groups,
    }
}

fn group(segment: &str, demands: &[&Demand]) -> Group {
    let mut clients: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
    let mut seen = 0.0;
    for Heavy(who, want, weight) in demands.iter().flat_map(|demand| &demand.heavy) {
        let client = clients.entry(*who).or_default();
        client.0 += want;
        client.1 = client.1.max(*weight);
        seen += 1.0;
    }
    // On how many hosts a client is seen: of those told of one by one, and so of the others.
    let hosts = if clients.is_empty() {
        1.0
    } else {
        seen / clients.len() as f64
    };
    let mut demand = Histogram::default();
    for (want, weight) in clients.values() {
        demand.add(*want, *weight);
    }
    for one in demands {
        one.shared.add_to(&mut demand, hosts);
        one.own.add_to(&mut demand, 1.0);
    }
    // Hosts whose settings differ for a moment: the middle one counts.
    let mut weights: Vec<f64> = demands.iter().map(|demand| demand.weight).collect();
    weights.sort_by(f64::total_cmp);
    Group {
        name: segment.to_owned(),
        weight: weights.get(weights.len() / 2).copied().unwrap_or(1.0),
        demand,
    }
}

/// This host's part of a group bound over the fleet: what its own demand is of everybody's, and a
/// tenth more; never less than a twentieth, so that new clients get in.
#[must_use]
pub fn part(own: f64, all: f64) -> f64 {
    if all > 0.0 {
        (1.10 * own / all).clamp(0.05, 1.0)
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn history(rate: f64) -> History {
        let mut history = History::default();
        for tick in 0..60_u32 {
            let at_s = f64::from(tick) * 0.1;
            history.push(at_s, rate * at_s);
        }
        history
    }

    fn record(seq: u64, rate: f64, clients: &[(u64, f64)]) -> Record {
        let mut rest = Histogram::default();
        rest.add(rate, 2.0);
        let demand = Demand {
            weight: 1.0,
            heavy: clients
                .iter()
                .map(|(who, want)| Heavy(*who, *want, 1.0))
                .collect(),
            shared: Cells::from(&rest),
            own: Cells::from(&rest),
        };
        Record::new(
            seq,
            &history(rate),
            BTreeMap::from([("gold".to_owned(), demand)]),
        )
    }

    fn published(host: u64, seq: u64, age_s: f64, rate: f64) -> Published {
        Published {
            host: format!("{host:016x}"),
            age_s,
            record: record(seq, rate, &[(host % 3, rate), (7, 5.0)]),
        }
    }

    proptest! {
        #[test]
        fn order_repetition_and_the_dead_change_nothing(
            rates in prop::collection::vec(1.0..1_000.0_f64, 1..12),
            order in any::<u64>(),
        ) {
            let all: Vec<Published> = (0..)
                .zip(&rates)
                .map(|(host, rate)| published(host, 9, 0.1, *rate))
                .collect();
            let expected = merge(all.clone());
            prop_assert_eq!(expected.hosts.len(), rates.len());
            let mut noisy = all.clone();
            noisy.extend(all.iter().cloned().map(|one| Published { age_s: 0.2, ..one }));
            noisy.extend((0..6).map(|host| published(host, 3, 0.0, 77.0)));
            noisy.push(published(99, 9, RECORD_S + 0.01, 1.0));
            noisy.push(published(98, 9, f64::NAN, 1.0));
            noisy.push(published(97, 9, -1.0, 1.0));
            for bad in [f64::NAN, f64::INFINITY, -1.0, 1e13] {
                let mut odd = published(96, 9, 0.0, 1.0);
                if let Some(demand) = odd.record.demand.get_mut("gold") {
                    demand.heavy = vec![Heavy(1, bad, 1.0)];
                }
                noisy.push(odd);
                let mut odd = published(95, 9, 0.0, 1.0);
                if let Some(demand) = odd.record.demand.get_mut("gold") {
                    demand.weight = bad;
                }
                noisy.push(odd);
            }
            // Any order: sorted by a hash that depends on the seed.
            let key = |one: &Published| {
                let mut hash = order;
                for byte in format!("{}{}{}", one.host, one.record.seq, one.age_s).bytes() {
                    hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
                hash
            };
            // What is older of a host that lives may not count, so hosts 0..6 must be there.
            noisy.retain(|one| {
                one.record.seq != 3 || all.iter().any(|live| live.host == one.host)
            });
            noisy.sort_by_key(key);
            prop_assert_eq!(merge(noisy), expected);
        }
    }

    #[test]
    fn a_client_that_is_on_all_hosts_counts_once() {
        let on = |host: u64| Published {
            host: host.to_string(),
            age_s: 0.0,
            record: Record {
                demand: BTreeMap::from([(
                    "gold".to_owned(),
                    Demand {
                        weight: 1.0,
                        heavy: (0..10).map(|who| Heavy(who, 100.0, 1.0)).collect(),
                        ..Demand::default()
                    },
                )]),
                ..Record::default()
            },
        };
        let merged = merge((0..4).map(on).collect());
        // 10 clients of 400/s; 1000/s to share out: 100/s each, over the fleet.
        let level = merged.groups[0].demand.level(1_000.0).unwrap();
        assert!((level / 100.0 - 1.0).abs() < 0.005, "{level}");
        assert!((merged.groups[0].demand.total() - 4_000.0).abs() < 1e-6);
    }

    #[test]
    fn those_who_are_not_told_one_by_one_count_as_the_others_do() {
        let mut rest = Histogram::default();
        (0..100).for_each(|_| rest.add(50.0, 1.0));
        let on = |host: u64| Published {
            host: host.to_string(),
            age_s: 0.0,
            record: Record {
                demand: BTreeMap::from([(
                    "gold".to_owned(),
                    Demand {
                        weight: 1.0,
                        heavy: vec![Heavy(1, 100.0, 1.0)],
                        shared: Cells::from(&rest),
                        ..Demand::default()
                    },
                )]),
                ..Record::default()
            },
        };
        let merged = merge((0..4).map(on).collect());
        // 100 clients of 200/s and one of 400/s; half of it all is 102/s each.
        let level = merged.groups[0].demand.level(10_200.0).unwrap();
        assert!((level / 101.0 - 1.0).abs() < 0.01, "{level}");
    }

    #[test]
    fn a_part_follows_demand_and_is_never_nothing() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(part(50.0, 200.0), 0.275));
        assert!(near(part(0.0, 200.0), 0.05));
        assert!(near(part(200.0, 200.0), 1.0));
        assert!(near(part(0.0, 0.0), 1.0));
    }

    #[test]
    fn what_is_told_of_a_history_reads_the_same() {
        let whole = history(100.0);
        let told = whole.thinned(POINTS_APART_S, POINTS);
        for at_s in [0.5, 2.22, 5.9, 7.0] {
            assert!((told.at(at_s) - whole.at(at_s)).abs() < 10.0, "{at_s}");
        }
        let mut later = told.clone();
        later.shift(1_000.0);
        assert!((later.at(1_002.22) - told.at(2.22)).abs() < 1e-6);
    }
}
