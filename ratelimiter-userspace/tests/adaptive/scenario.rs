//! What happens to a backend: who sends how much when, and what breaks.

/// The backend of scale 1 completes this many requests per second.
pub(crate) const CAPACITY: f64 = 1000.0;
/// Load of the calm population at multiple 0.7, requests per second.
const CALM: f64 = 700.0;
/// Mean service time, in seconds.
pub(crate) const SERVICE_S: f64 = 0.050;

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Kind {
    Polite,
    Premium,
    Greedy,
    Attacker,
    Bot,
}

pub(crate) struct Client {
    pub(crate) kind: Kind,
    pub(crate) group: usize,
    pub(crate) limit: f64,
    /// Requests per second at the calm load.
    base: f64,
    /// Part of the load above the calm one.
    share: f64,
}

/// From a time on, this multiple of the capacity is offered.
#[derive(Clone, Copy)]
pub(crate) struct Phase {
    pub(crate) from_s: f64,
    pub(crate) multiple: f64,
}

#[derive(Clone)]
pub(crate) struct Scenario {
    pub(crate) phases: Vec<Phase>,
    pub(crate) end_s: f64,
    pub(crate) scale: f64,
    /// Period and delay of health reports, in seconds.
    pub(crate) period_s: f64,
    pub(crate) delay_s: f64,
    /// (from, share of the workers that are left).
    pub(crate) workers: Vec<(f64, f64)>,
    /// No reports in these intervals.
    pub(crate) silent: Vec<(f64, f64)>,
    /// The last report again and again instead of silence.
    pub(crate) frozen: bool,
    /// Coefficient of variation of reported averages, and share of tenfold outliers.
    pub(crate) noise: f64,
    pub(crate) outliers: f64,
    /// (from, to, share of requests that fail whatever the load).
    pub(crate) foreign_errors: Option<(f64, f64, f64)>,
    /// (from, to, added latency that is not load).
    pub(crate) foreign_rt: Option<(f64, f64, f64)>,
    /// (from, to, requests per second that do not pass the limiter).
    pub(crate) unseen: Option<(f64, f64, f64)>,
    /// The backend refuses everything in this interval.
    pub(crate) outage: Option<(f64, f64)>,
    /// (from, number, requests per second each).
    pub(crate) bots: Option<(f64, usize, f64)>,
    /// New clients are a group of their own.
    pub(crate) grouped: bool,
    pub(crate) hosts: usize,
    /// Interval of the exchange with the store, in seconds; a single host has none.
    pub(crate) sync_s: f64,
    /// (host, from, to) without the store.
    pub(crate) cut_off: Option<(usize, f64, f64)>,
}

impl Scenario {
    pub(crate) fn new(phases: &[(f64, f64)], end_s: f64) -> Self {
        Self {
            phases: phases
                .iter()
                .map(|&(from_s, multiple)| Phase { from_s, multiple })
                .collect(),
            end_s,
            scale: 1.0,
            period_s: 1.0,
            delay_s: 0.05,
            workers: Vec::new(),
            silent: Vec::new(),
            frozen: false,
            noise: 0.0,
            outliers: 0.0,
            foreign_errors: None,
            foreign_rt: None,
            unseen: None,
            outage: None,
            bots: None,
            grouped: false,
            hosts: 1,
            sync_s: 0.0,
            cut_off: None,
        }
    }

    pub(crate) fn workers(&self) -> usize {
        (CAPACITY * self.scale * SERVICE_S).round() as usize
    }

    pub(crate) fn workers_at(&self, at_s: f64) -> usize {
        let left = self
            .workers
            .iter()
            .rev()
            .find(|(from_s, _)| at_s >= *from_s);
        (self.workers() as f64 * left.map_or(1.0, |(_, share)| *share)).round() as usize
    }

    /// What is left of the capacity for traffic that passes the limiter, requests per second.
    pub(crate) fn capacity_at(&self, at_s: f64) -> f64 {
        let unseen = match self.unseen {
            Some((from_s, to_s, rate)) if at_s >= from_s && at_s < to_s => rate,
            _ => 0.0,
        };
        self.workers_at(at_s) as f64 / SERVICE_S - unseen
    }

    pub(crate) fn phase_end_s(&self, phase: usize) -> f64 {
        self.phases
            .get(phase + 1)
            .map_or(self.end_s, |next| next.from_s)
    }

    /// 160 polite clients, 20 premium ones, 19 greedy ones and one attacker; bots if there are any.
    pub(crate) fn population(&self) -> Vec<Client> {
        let client = |kind, limit: f64, base, share| Client {
            kind,
            group: usize::from(self.grouped && kind == Kind::Bot),
            limit: limit * self.scale,
            base,
            share,
        };
        let mut clients = Vec::new();
        for i in 0..160 {
            let base = 1.0 + 4.0 * (f64::from(i) + 0.5) / 160.0;
            clients.push(client(Kind::Polite, 50.0, base, 0.0));
        }
        clients.extend((0..20).map(|_| client(Kind::Premium, 200.0, 10.0, 0.0)));
        clients.extend((0..19).map(|_| client(Kind::Greedy, 500.0, 1.0, 0.4 / 19.0)));
        clients.push(client(Kind::Attacker, 20_000.0, 1.0, 0.6));
        let bots = self.bots.map_or(0, |(_, number, _)| number);
        clients.extend((0..bots).map(|_| client(Kind::Bot, 50.0, 0.0, 0.0)));
        clients
    }

    /// What a client offers in a phase, requests per second.
    pub(crate) fn rate_of(&self, client: &Client, phase: usize) -> f64 {
        if client.kind == Kind::Bot {
            let from_s = self.phases[phase].from_s;
            return match self.bots {
                Some((bots_from_s, _, rate)) if from_s >= bots_from_s => rate,
                _ => 0.0,
            };
        }
        let total = CAPACITY * self.phases[phase].multiple;
        if total <= CALM {
            self.scale * client.base * total / CALM
        } else {
            self.scale * (client.base + client.share * (total - CALM))
        }
    }
}

/// Calm, 2x, 5x, 10x, calm.
pub(crate) fn steps() -> Scenario {
    let phases = [
        (0.0, 0.7),
        (40.0, 2.0),
        (120.0, 5.0),
        (180.0, 10.0),
        (240.0, 0.7),
    ];
    Scenario::new(&phases, 290.0)
}

/// Straight from calm to 10x, calm, and 10x again.
pub(crate) fn surges() -> Scenario {
    let phases = [(0.0, 0.7), (30.0, 10.0), (120.0, 0.7), (180.0, 10.0)];
    Scenario::new(&phases, 240.0)
}

/// The signal is lost at 2x, then 10x comes.
pub(crate) fn lost_in_overload() -> Scenario {
    let phases = [(0.0, 2.0), (60.0, 2.0), (90.0, 10.0), (120.0, 10.0)];
    Scenario {
        silent: vec![(60.0, 120.0)],
        ..Scenario::new(&phases, 160.0)
    }
}

/// The signal is lost in calm, then 5x comes.
pub(crate) fn lost_in_calm() -> Scenario {
    let phases = [(0.0, 0.7), (60.0, 0.7), (90.0, 5.0), (130.0, 5.0)];
    Scenario {
        silent: vec![(60.0, 130.0)],
        ..Scenario::new(&phases, 160.0)
    }
}

/// Half of the workers die and come back, at this multiple.
pub(crate) fn capacity_halves(multiple: f64) -> Scenario {
    let phases = [(0.0, multiple), (60.0, multiple), (140.0, multiple)];
    Scenario {
        workers: vec![(60.0, 0.5), (140.0, 1.0)],
        ..Scenario::new(&phases, 220.0)
    }
}

/// 3000 new clients appear at once.
pub(crate) fn crowd(grouped: bool) -> Scenario {
    Scenario {
        bots: Some((40.0, 3000, 3.0)),
        grouped,
        ..Scenario::new(&[(0.0, 0.7), (40.0, 0.7)], 120.0)
    }
}

/// Five hosts, each with its own clients.
pub(crate) fn fleet(sync_s: f64) -> Scenario {
    Scenario {
        hosts: 5,
        sync_s,
        ..steps()
    }
}

/// Five hosts, one of which loses the store while the load doubles.
pub(crate) fn fleet_apart() -> Scenario {
    let phases = [
        (0.0, 0.7),
        (40.0, 5.0),
        (80.0, 5.0),
        (110.0, 10.0),
        (140.0, 10.0),
    ];
    Scenario {
        hosts: 5,
        sync_s: 0.25,
        cut_off: Some((2, 80.0, 140.0)),
        ..Scenario::new(&phases, 180.0)
    }
}
