//! The plant: many clients, limiter hosts with a token bucket per client, one backend with workers
//! and a bounded FIFO queue, and a monitor that reports averages. Virtual time, discrete events.
//!
//! Abandoned work is not cancelled, so an unprotected backend collapses.
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::interface::{GROUPS, Health, Host, Law, Limits};
use crate::measure::{LATENCY_BUCKETS, Outcome, PhaseCounts, Second};
use crate::rng::{Alias, Rng};
use crate::scenario::{Client, SERVICE_S, Scenario};

/// A response later than this is worth nothing.
pub(crate) const DEADLINE_S: f64 = 1.0;
/// Requests the backend queues at scale 1.
const QUEUE: f64 = 2000.0;
/// Network time of a response.
const NETWORK_S: f64 = 0.002;
/// How often hosts measure demand and publish limits.
const TICK_S: f64 = 0.1;
/// Smallest burst of a client's bucket.
const BURST_LEAST: f64 = 4.0;
#[derive(Clone, Copy)]
struct Request {
    client: u32,
    at_s: f64,
    fails: bool,
}

const UNSEEN: u32 = u32::MAX;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Phase(usize),
    Done(usize),
    Monitor,
    Deliver(usize),
    Tick(usize),
    Sync(usize),
    Unseen,
}

struct Bucket {
    tokens: f64,
    at_s: f64,
}

impl Bucket {
    fn refill(&mut self, now_s: f64, rate: f64, burst: f64) -> bool {
        self.tokens = (self.tokens + (now_s - self.at_s) * rate).min(burst);
        self.at_s = now_s;
        self.tokens >= 1.0
    }
}

struct Plant<'a> {
    scenario: &'a Scenario,
    rng: Rng,
    clients: Vec<Client>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    // limiter hosts
    limits: Vec<Limits>,
    buckets: Vec<Bucket>,
    aggregates: Vec<Bucket>,
    counts: Vec<f64>,
    demand: Vec<f64>,
    admitted: Vec<f64>,
    // backend
    busy: usize,
    queue: VecDeque<Request>,
    running: Vec<Request>,
    free: Vec<usize>,
    // monitor
    rt_sum_s: f64,
    served: f64,
    failed: f64,
    seq: u64,
    reports: Vec<Health>,
    out: Outcome,
    phase: usize,
}

fn ns(at_s: f64) -> u64 {
    (at_s * 1e9) as u64
}

fn within(interval: Option<(f64, f64)>, at_s: f64) -> bool {
    interval.is_some_and(|(from_s, to_s)| at_s >= from_s && at_s < to_s)
}

/// Runs a law on a scenario.
pub(crate) fn run(scenario: &Scenario, law: &mut dyn Law, seed: u64) -> Outcome {
    Plant::new(scenario, seed).run(law)
}

impl<'a> Plant<'a> {
    fn new(scenario: &'a Scenario, seed: u64) -> Self {
        let clients = scenario.population();
        let (n, hosts) = (clients.len(), scenario.hosts);
        let counts = || PhaseCounts {
            offered: vec![0.0; n],
            good: vec![0.0; n],
            latencies: vec![0; LATENCY_BUCKETS],
        };
        let full = |i: usize| Bucket {
            tokens: clients[i % n].limit,
            at_s: 0.0,
        };
        Self {
            scenario,
            rng: Rng::new(seed),
            events: BinaryHeap::new(),
            limits: vec![Limits::OPEN; hosts],
            buckets: (0..hosts * n).map(full).collect(),
            aggregates: (0..hosts * GROUPS)
                .map(|_| Bucket {
                    tokens: 50.0,
                    at_s: 0.0,
                })
                .collect(),
            counts: vec![0.0; hosts * n],
            demand: vec![0.0; hosts * n],
            admitted: vec![0.0; hosts],
            busy: 0,
            queue: VecDeque::new(),
            running: Vec::new(),
            free: Vec::new(),
            rt_sum_s: 0.0,
            served: 0.0,
            failed: 0.0,
            seq: 0,
            reports: Vec::new(),
            out: Outcome {
                seconds: vec![Second::default(); scenario.end_s as usize + 1],
                phases: scenario.phases.iter().map(|_| counts()).collect(),
            },
            phase: 0,
            clients,
        }
    }

    fn schedule(&mut self, at_s: f64, event: Event) {
        self.events.push(Reverse((ns(at_s), event)));
    }

    fn run(mut self, law: &mut dyn Law) -> Outcome {
        let scenario = self.scenario;
        for (i, phase) in scenario.phases.iter().enumerate() {
            self.schedule(phase.from_s, Event::Phase(i));
        }
        self.schedule(scenario.period_s, Event::Monitor);
        if let Some((from_s, _, _)) = scenario.unseen {
            self.schedule(from_s, Event::Unseen);
        }
        for host in 0..scenario.hosts {
            let offset = host as f64 / scenario.hosts as f64;
            self.schedule(TICK_S * (1.0 + offset), Event::Tick(host));
            if scenario.sync_s > 0.0 {
                let first_s = scenario.sync_s * (0.2 + 0.8 * self.rng.unit());
                self.schedule(first_s, Event::Sync(host));
            }
        }
        // Arrivals of all clients are one Poisson stream; each is given to a client by its odds.
        let (mut total, mut odds) = (0.0, Alias::default());
        let mut arrival_s = f64::INFINITY;
        while let Some(&Reverse((at, event))) = self.events.peek() {
            let event_s = at as f64 * 1e-9;
            let now_s = arrival_s.min(event_s);
            if now_s >= scenario.end_s {
                break;
            }
            if arrival_s < event_s {
                let client = odds.draw(&mut self.rng);
                self.arrive(now_s, client);
                arrival_s += self.rng.exponential(1.0 / total);
                continue;
            }
            self.events.pop();
            if let Event::Phase(phase) = event {
                self.phase = phase;
                let clients = self.clients.iter();
                let rates: Vec<f64> = clients.map(|c| scenario.rate_of(c, phase)).collect();
                total = rates.iter().sum();
                odds = Alias::new(&rates);
                arrival_s = now_s + self.rng.exponential(1.0 / total);
            } else {
                self.handle(now_s, event, law);
            }
        }
        self.out
    }

    fn handle(&mut self, now_s: f64, event: Event, law: &mut dyn Law) {
        let scenario = self.scenario;
        match event {
            Event::Phase(_) => {}
            Event::Done(id) => self.complete(now_s, id),
            Event::Unseen => {
                if let Some((_, to_s, rate)) = scenario.unseen
                    && now_s < to_s
                {
                    let next_s = now_s + self.rng.exponential(1.0 / rate);
                    self.schedule(next_s, Event::Unseen);
                    self.submit(now_s, UNSEEN);
                }
            }
            Event::Monitor => {
                self.schedule(now_s + scenario.period_s, Event::Monitor);
                self.measure(now_s);
            }
            Event::Deliver(report) => {
                // Reports are load-balanced over the hosts.
                let host = report % scenario.hosts;
                let health = self.reports[report].clone();
                law.report(&health, &self.host(now_s, host));
            }
            Event::Tick(host) => {
                self.schedule(now_s + TICK_S, Event::Tick(host));
                self.measure_demand(host);
                self.limits[host] = law.tick(&self.host(now_s, host));
            }
            Event::Sync(host) => {
                let jitter = 0.95 + 0.1 * self.rng.unit();
                self.schedule(now_s + scenario.sync_s * jitter, Event::Sync(host));
                law.sync(&self.host(now_s, host));
            }
        }
    }

    fn host(&self, now_s: f64, index: usize) -> Host<'_> {
        let n = self.clients.len();
        Host {
            now_s,
            index,
            demand: &self.demand[index * n..(index + 1) * n],
            clients: &self.clients,
            admitted: self.admitted[index],
        }
    }

    fn measure_demand(&mut self, host: usize) {
        let n = self.clients.len();
        for i in host * n..(host + 1) * n {
            let rate = self.counts[i] / TICK_S;
            self.counts[i] = 0.0;
            // Smoothed over 1 s, but a jump is believed within 0.3 s.
            let jump = rate > 3.0 * self.demand[i] + 20.0;
            let share = if jump { 0.3 } else { 0.1 };
            self.demand[i] += share * (rate - self.demand[i]);
        }
    }

    fn arrive(&mut self, now_s: f64, client: usize) {
        let second = now_s as usize;
        let host = client % self.scenario.hosts;
        let slot = host * self.clients.len() + client;
        self.out.seconds[second].offered += 1.0;
        self.out.phases[self.phase].offered[client] += 1.0;
        self.counts[slot] += 1.0;
        let (limit, group) = (self.clients[client].limit, self.clients[client].group);
        let limits = &self.limits[host];
        let rate = (limit * limits.factor).min(limits.levels[group]);
        let bucket = &mut self.buckets[slot];
        if !bucket.refill(now_s, rate, rate.max(BURST_LEAST)) {
            return;
        }
        let aggregate = limits.aggregates[group];
        if aggregate.is_finite() {
            let guard = &mut self.aggregates[host * GROUPS + group];
            if !guard.refill(now_s, aggregate, (aggregate * 0.1).max(2.0)) {
                return;
            }
            guard.tokens -= 1.0;
        }
        bucket.tokens -= 1.0;
        self.out.seconds[second].admitted += 1.0;
        self.admitted[host] += 1.0;
        self.submit(now_s, client as u32);
    }

    fn submit(&mut self, now_s: f64, client: u32) {
        let request = Request {
            client,
            at_s: now_s,
            fails: false,
        };
        let room = (QUEUE * self.scenario.scale) as usize;
        if within(self.scenario.outage, now_s) {
            self.failed += 1.0;
        } else if self.busy < self.scenario.workers_at(now_s) {
            self.start(now_s, request);
        } else if self.queue.len() < room {
            self.queue.push_back(request);
        } else {
            self.failed += 1.0;
        }
    }

    fn start(&mut self, now_s: f64, mut request: Request) {
        if let Some((from_s, to_s, share)) = self.scenario.foreign_errors {
            request.fails = within(Some((from_s, to_s)), now_s) && self.rng.unit() < share;
        }
        let id = self.free.pop().unwrap_or(self.running.len());
        if id == self.running.len() {
            self.running.push(request);
        } else {
            self.running[id] = request;
        }
        self.busy += 1;
        let service_s = self.rng.lognormal(SERVICE_S, 1.0);
        self.schedule(now_s + service_s, Event::Done(id));
    }

    fn complete(&mut self, now_s: f64, id: usize) {
        let request = self.running[id];
        self.free.push(id);
        self.busy -= 1;
        let mut rt_s = now_s - request.at_s + NETWORK_S;
        if let Some((from_s, to_s, added_s)) = self.scenario.foreign_rt
            && within(Some((from_s, to_s)), now_s)
        {
            rt_s += added_s;
        }
        if request.fails {
            self.failed += 1.0;
        } else {
            self.rt_sum_s += rt_s;
            self.served += 1.0;
        }
        if !request.fails && request.client != UNSEEN {
            self.note(now_s, request.client as usize, rt_s);
        }
        let workers = self.scenario.workers_at(now_s);
        while self.busy < workers {
            let Some(next) = self.queue.pop_front() else {
                break;
            };
            self.start(now_s, next);
        }
    }

    fn note(&mut self, now_s: f64, client: usize, rt_s: f64) {
        let second = &mut self.out.seconds[now_s as usize];
        second.rt_sum_s += rt_s;
        let phase = &mut self.out.phases[self.phase];
        let bucket = (40.0 * (rt_s.max(1e-3) / 1e-3).ln()) as usize;
        phase.latencies[bucket.min(LATENCY_BUCKETS - 1)] += 1;
        if rt_s <= DEADLINE_S {
            second.good += 1.0;
            phase.good[client] += 1.0;
        } else {
            second.late += 1.0;
        }
    }

    fn measure(&mut self, now_s: f64) {
        let scenario = self.scenario;
        self.seq += 1;
        let total = self.served + self.failed;
        let mut rt_s = self.rt_sum_s / self.served.max(1.0);
        if scenario.noise > 0.0 {
            rt_s *= self.rng.lognormal(1.0, scenario.noise);
        }
        if scenario.outliers > 0.0 && self.rng.unit() < scenario.outliers {
            rt_s *= 10.0;
        }
        let fresh = Health {
            seq: self.seq,
            period_s: scenario.period_s,
            rt_s,
            count: self.served as u64,
            errors: self.failed / total.max(1.0),
        };
        (self.rt_sum_s, self.served, self.failed) = (0.0, 0.0, 0.0);
        let silent = scenario
            .silent
            .iter()
            .any(|interval| within(Some(*interval), now_s));
        let report = match (silent, scenario.frozen) {
            (false, _) => Some(fresh),
            (true, true) => self.reports.last().cloned(),
            (true, false) => None,
        };
        if let Some(report) = report
            && total > 0.0
        {
            self.reports.push(report);
            let delivery = Event::Deliver(self.reports.len() - 1);
            self.schedule(now_s + scenario.delay_s, delivery);
        }
    }
}
