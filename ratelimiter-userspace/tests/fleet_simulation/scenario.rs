//! What happens in a run: hosts, keys, traffic and faults, all from the seed.

use ratelimiter_userspace::sync::OnStoreLoss;

use crate::bucket::ONE;
use crate::random::Random;

pub(crate) const MILLI: u64 = 1_000;
pub(crate) const SECOND: u64 = 1_000_000;

/// The key that sends more than its limit.
pub(crate) const GREEDY: usize = 0;
/// The key that sends half of its limit, evenly.
pub(crate) const POLITE: usize = 1;
/// The key that spends a deep burst and then falls silent.
pub(crate) const DEEP: usize = 2;

/// One limited key. The limit is in units per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeySpec {
    pub(crate) limit: u64,
    pub(crate) burst: u64,
    pub(crate) on_loss: OnStoreLoss,
}

impl KeySpec {
    pub(crate) const fn amount_per_s(&self) -> u64 {
        self.limit * ONE
    }
}

/// Packets of a key to a host: `count` at once, every `gap_us` on average.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) key: usize,
    pub(crate) host: usize,
    pub(crate) gap_us: u64,
    pub(crate) count: u64,
    pub(crate) even: bool,
    pub(crate) from_us: u64,
    pub(crate) until_us: u64,
}

/// What happens at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    /// The store loses everything.
    Emptied,
    /// These hosts do not reach the store.
    Cut(Vec<usize>),
    /// They do again.
    Healed,
    /// The agent dies; its buckets stay.
    Died(usize),
    /// It starts again.
    Started(usize),
    /// It says good-bye and stops; its traffic goes elsewhere.
    Left(usize),
}

/// The kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Lossy,
    Emptied,
    StoreGone,
    SomeCut,
    Restart,
    JoinAndLeave,
}

const FAULTS: [Fault; 7] = [
    Fault::None,
    Fault::Lossy,
    Fault::Emptied,
    Fault::StoreGone,
    Fault::SomeCut,
    Fault::Restart,
    Fault::JoinAndLeave,
];

/// How the greedy key spreads over the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Saturating all of them.
    All,
    /// Saturating one; below the threshold of being hot on the others.
    OneAndBelow,
    /// All of it to one host.
    One,
}

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) hosts: usize,
    pub(crate) interval_us: u64,
    pub(crate) keys: Vec<KeySpec>,
    pub(crate) flows: Vec<Flow>,
    pub(crate) happenings: Vec<(u64, Happening)>,
    pub(crate) fault: Fault,
    pub(crate) shape: Shape,
    /// Share of requests, and of answers, that are lost, in percent.
    pub(crate) loss: u64,
    /// Shortest and longest way to the store, one way.
    pub(crate) delay_us: [u64; 2],
    /// Whether a host that is cut off is refused at once, or waits in vain.
    pub(crate) refused: bool,
    /// Whether the hosts' clocks differ, by hours and in speed.
    pub(crate) skewed: bool,
    /// When the fault begins and ends.
    pub(crate) fault_us: [u64; 2],
    pub(crate) until_us: u64,
    /// Hosts that start at [`Self::fault_us`] only.
    pub(crate) late: Vec<usize>,
}

impl Scenario {
    /// The run of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let hosts = random.between(3, 4) as usize;
        let fault = random.one_of(&FAULTS);
        let shape = random.one_of(&[Shape::All, Shape::All, Shape::OneAndBelow, Shape::One]);
        let limit = match shape {
            Shape::OneAndBelow => random.between(900, 1_200),
            _ => random.between(20, 100),
        };
        let on_loss = random.one_of(&[
            OnStoreLoss::Hold,
            OnStoreLoss::Strict,
            OnStoreLoss::Local,
            OnStoreLoss::Deny,
        ]);
        let polite_limit = random.between(10, 40);
        let keys = vec![
            KeySpec {
                limit,
                // At least what comes at once, so that a saturating client can use its limit.
                burst: random.between((limit / 8).max(5), (limit / 4).max(5)),
                on_loss,
            },
            KeySpec {
                limit: polite_limit,
                burst: random.between(5, polite_limit),
                on_loss: OnStoreLoss::Hold,
            },
            KeySpec {
                limit: 10,
                burst: 60,
                on_loss: OnStoreLoss::Hold,
            },
        ];
        let fault_us = [
            2 * SECOND,
            2 * SECOND + random.between(1_000, 2_000) * MILLI,
        ];
        let mut scenario = Self {
            seed,
            hosts,
            interval_us: 100 * MILLI,
            keys,
            flows: Vec::new(),
            happenings: Vec::new(),
            fault,
            shape,
            loss: if fault == Fault::Lossy {
                random.between(5, 25)
            } else {
                0
            },
            delay_us: random.one_of(&[[100, 900], [500, 5_000], [1_000, 30_000]]),
            refused: random.percent(50),
            skewed: random.percent(50),
            fault_us,
            until_us: if fault == Fault::JoinAndLeave {
                11 * SECOND
            } else {
                9 * SECOND
            },
            late: Vec::new(),
        };
        scenario.fall(&mut random);
        scenario.send(&mut random);
        scenario
    }

    fn fall(&mut self, random: &mut Random) {
        let [begin, end] = self.fault_us;
        let one = random.below(self.hosts as u64) as usize;
        self.happenings = match self.fault {
            Fault::None | Fault::Lossy => Vec::new(),
            Fault::Emptied => vec![(begin, Happening::Emptied)],
            Fault::StoreGone => vec![
                (begin, Happening::Cut((0..self.hosts).collect())),
                (end, Happening::Healed),
            ],
            Fault::SomeCut => vec![(begin, Happening::Cut(vec![one])), (end, Happening::Healed)],
            Fault::Restart => vec![
                (begin, Happening::Died(one)),
                (end, Happening::Started(one)),
            ],
            Fault::JoinAndLeave => {
                self.late = vec![(one + 1) % self.hosts];
                vec![
                    (begin, Happening::Started((one + 1) % self.hosts)),
                    (end, Happening::Left(one)),
                ]
            }
        };
    }

    /// The traffic. Every host's share stays where it is, but for hosts that come and go.
    fn send(&mut self, random: &mut Random) {
        let hosts = self.hosts as u64;
        let limit = self.keys[GREEDY].limit;
        let chosen = random.below(hosts) as usize;
        for host in 0..self.hosts {
            let per_s = match self.shape {
                Shape::All => limit * 2,
                Shape::One | Shape::OneAndBelow if host == chosen => limit * 2,
                Shape::OneAndBelow => limit * 45 / 100 / (2 * hosts),
                Shape::One => 0,
            };
            self.flow(GREEDY, host, per_s, 20 + random.below(20), false);
            self.flow(DEEP, host, 90, 10, false);
        }
        let half = self.keys[POLITE].limit / 2;
        if random.percent(30) {
            self.flow(POLITE, chosen, half, 0, true);
        } else {
            for host in 0..self.hosts {
                self.flow(POLITE, host, half / hosts, 0, true);
            }
        }
        let deep_until = self.fault_us[0] - 200 * MILLI;
        for flow in &mut self.flows {
            if flow.key == DEEP {
                flow.from_us = 500 * MILLI;
                flow.until_us = deep_until;
            }
        }
        for (at_us, happening) in &self.happenings {
            for flow in &mut self.flows {
                match happening {
                    Happening::Left(host) if flow.host == *host => flow.until_us = *at_us,
                    Happening::Started(host)
                        if flow.host == *host && self.fault == Fault::JoinAndLeave =>
                    {
                        flow.from_us = *at_us;
                    }
                    _ => {}
                }
            }
        }
    }

    /// A flow of `per_s` packets, some at once so that there are about `batches_per_s` events; one
    /// by one where that is 0.
    fn flow(&mut self, key: usize, host: usize, per_s: u64, batches_per_s: u64, even: bool) {
        if per_s == 0 {
            return;
        }
        let count = per_s.checked_div(batches_per_s).unwrap_or(1).max(1);
        self.flows.push(Flow {
            key,
            host,
            gap_us: SECOND * count / per_s,
            count,
            even,
            from_us: 0,
            until_us: self.until_us,
        });
    }

    /// From when on everything is as it was before the fault.
    pub(crate) fn settled_us(&self) -> u64 {
        match self.fault {
            Fault::None | Fault::Lossy => 2 * SECOND,
            Fault::Emptied => self.fault_us[0] + SECOND,
            // A host that left is believed to have after two seconds and a beat.
            Fault::JoinAndLeave => self.fault_us[1] + 3 * SECOND + 500 * MILLI,
            _ => self.fault_us[1] + 2 * SECOND,
        }
    }
}
