//! Fleets of leases on one ledger, on virtual time: requests and answers are late or lost, the store
//! goes away, and everything any host admits is written down.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;
use crate::sync::Ledger;
use crate::sync::settle::{Answer, Entry, FleetKey};

const UNIT: u64 = 1 << 16;
const KEY: FleetKey = FleetKey(7);
const SECOND: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;

fn terms(algorithm: Algorithm, units: u64, window_s: u64, burst: u64, exact: bool) -> Terms {
    Terms {
        quota: FleetQuota {
            algorithm,
            limit: units * UNIT,
            burst: burst * UNIT,
            window_us: window_s * 1_000_000,
            grain: UNIT,
            revision: 1,
        },
        exact,
        on_loss: OnStoreLoss::Hold,
    }
}

#[derive(Clone, Debug)]
struct Plan {
    terms: Terms,
    /// Arrivals per second at each host, and whether they are even.
    offered: Vec<f64>,
    even: bool,
    /// Shares of entries and of answers that are lost, in 1/256.
    lost: (u8, u8),
    /// The store is away in this span of seconds.
    away: Option<(u64, u64)>,
    seconds: u64,
    seed: u64,
}

impl Plan {
    fn new(terms: Terms, offered: &[f64], seconds: u64) -> Self {
        Self {
            terms,
            offered: offered.to_vec(),
            even: false,
            lost: (0, 0),
            away: None,
            seconds,
            seed: 1,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival(usize),
    Settle(usize),
    Answer(usize, bool),
    Look(usize),
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[derive(Default)]
struct Host {
    lease: Lease,
    /// Requests that wait: how many.
    waiting: u64,
    under_way: Option<(Entry, Option<Answer>)>,
    epoch: u64,
}

/// When each request was admitted and refused, by host.
#[derive(Debug, Default)]
struct Outcome {
    /// When the first request came.
    first: Option<u64>,
    admitted: Vec<(u64, usize)>,
    refused: Vec<(u64, usize)>,
}

impl Outcome {
    fn within(list: &[(u64, usize)], from_s: u64, to_s: u64) -> f64 {
        let span = from_s * SECOND..to_s * SECOND;
        list.iter().filter(|(at, _)| span.contains(at)).count() as f64
    }
    fn admitted_within(&self, from_s: u64, to_s: u64) -> f64 {
        Self::within(&self.admitted, from_s, to_s)
    }
}

fn run(plan: &Plan) -> Outcome {
    let hosts = plan.offered.len();
    let mut random = Random(plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut fleet: Vec<Host> = (0..hosts).map(|_| Host::default()).collect();
    let mut ledger = Ledger::new();
    let mut outcome = Outcome::default();
    let mut events = BinaryHeap::new();
    let begin = 1_000 * SECOND;
    for host in 0..hosts {
        if plan.offered[host] > 0.0 {
            let first = random.unit() / plan.offered[host];
            events.push(Reverse((
                begin + (first * 1e9) as u64,
                Event::Arrival(host),
            )));
        }
        events.push(Reverse((begin + random.below(100 * MS), Event::Look(host))));
    }
    let around = |now: u64, epoch: u64| Around {
        known: hosts as u32,
        live: hosts as u32,
        // Noticed by the third unanswered call.
        alone: plan.away.is_some_and(|(from, to)| {
            (begin + from * SECOND + 60 * MS..begin + to * SECOND).contains(&now)
        }),
        epoch,
        lease_ns: 2 * SECOND,
        interval_ns: 100 * MS,
    };
    let is_away = |now: u64| {
        plan.away
            .is_some_and(|(from, to)| (begin + from * SECOND..begin + to * SECOND).contains(&now))
    };
    while let Some(Reverse((now, event))) = events.pop() {
        if now > begin + plan.seconds * SECOND {
            break;
        }
        let since = now - begin;
        match event {
            Event::Arrival(at) => {
                let gap = if plan.even {
                    1.0
                } else {
                    -(1.0 - random.unit()).ln()
                };
                let next = now + ((gap / plan.offered[at]) * 1e9) as u64 + 1;
                events.push(Reverse((next, Event::Arrival(at))));
                outcome.first.get_or_insert(since);
                let host = &mut fleet[at];
                match host
                    .lease
                    .decide(&plan.terms, &around(now, host.epoch), now, UNIT, true)
                {
                    Verdict::Passes { .. } => outcome.admitted.push((since, at)),
                    Verdict::Ask => host.waiting += 1,
                    _ => outcome.refused.push((since, at)),
                }
            }
            Event::Look(at) => {
                let host = &mut fleet[at];
                let env = around(now, host.epoch);
                if host.lease.look_after(&plan.terms, &env, now) && host.under_way.is_none() {
                    let entry = host.lease.ask(&plan.terms, &env, now, KEY, (0, 0));
                    host.under_way = Some((entry, None));
                    events.push(Reverse((now + random.below(3 * MS), Event::Settle(at))));
                }
                events.push(Reverse((
                    now + 95 * MS + random.below(10 * MS),
                    Event::Look(at),
                )));
            }
            Event::Settle(at) => {
                let away = is_away(now);
                let host = &mut fleet[at];
                let lost = random.below(256) < u64::from(plan.lost.0);
                let mut arrived = false;
                if !lost
                    && !away
                    && let Some((entry, answer)) = &mut host.under_way
                {
                    let settled = ledger.settle(now / 1_000, &[*entry]);
                    *answer = settled.answers.first().copied();
                    arrived = random.below(256) >= u64::from(plan.lost.1);
                }
                let wait = if arrived {
                    random.below(3 * MS)
                } else {
                    50 * MS
                };
                events.push(Reverse((now + wait, Event::Answer(at, arrived))));
            }
            Event::Answer(at, arrived) => {
                let host = &mut fleet[at];
                let Some((entry, answer)) = host.under_way.take() else {
                    continue;
                };
                let env = around(now, host.epoch);
                let waiting = std::mem::take(&mut host.waiting);
                match answer.filter(|_| arrived) {
                    Some(answer) => {
                        if host.lease.answered(&plan.terms, &env, now, &entry, &answer) {
                            host.epoch += 1;
                        }
                    }
                    None => host.lease.lost(),
                }
                // Who waited is judged again; without an answer by what counts alone.
                let env = Around {
                    alone: env.alone || !arrived,
                    ..env
                };
                for _ in 0..waiting {
                    match host.lease.decide(&plan.terms, &env, now, UNIT, true) {
                        Verdict::Passes { .. } => outcome.admitted.push((since, at)),
                        Verdict::Ask => host.waiting += 1,
                        _ => outcome.refused.push((since, at)),
                    }
                }
            }
        }
        for (at, host) in fleet.iter_mut().enumerate() {
            let env = around(now, host.epoch);
            let due = host.waiting > 0 || host.lease.is_due(&env);
            if due && host.under_way.is_none() && !env.alone {
                let need = (host.waiting * UNIT, UNIT * u64::from(host.waiting > 0));
                let entry = host.lease.ask(&plan.terms, &env, now, KEY, need);
                host.under_way = Some((entry, None));
                events.push(Reverse((now + random.below(3 * MS), Event::Settle(at))));
            }
        }
    }
    outcome
}

/// Panics where more was admitted, counted from the first, than `burst + rate * t`.
fn holds_from_the_first(plan: &Plan, outcome: &Outcome) -> Result<(), TestCaseError> {
    let quota = &plan.terms.quota;
    let Some(first) = outcome.first else {
        return Ok(());
    };
    let rate = quota.limit as f64 / quota.window_us as f64 / 1_000.0;
    for (n, (at, _)) in outcome.admitted.iter().enumerate() {
        let entitled = (quota.depth() as f64 + rate * (at - first) as f64) / UNIT as f64;
        prop_assert!(
            (n + 1) as f64 <= entitled + 1e-6,
            "{} admitted {} ns after the first, entitled to {entitled}",
            n + 1,
            at - first
        );
    }
    Ok(())
}

fn algorithm() -> impl Strategy<Value = Algorithm> {
    prop_oneof![
        Just(Algorithm::TokenBucket),
        Just(Algorithm::SlidingLog),
        Just(Algorithm::SlidingWindow),
        Just(Algorithm::FixedWindow),
    ]
}

prop_compose! {
    fn plans()(
        algorithm in algorithm(),
        units in 1_u64..400,
        window_s in 1_u64..5,
        burst in 1_u64..400,
        exact in any::<bool>(),
        offered in prop::collection::vec(0.0_f64..300.0, 1..5),
        even in any::<bool>(),
        lost in (0_u8..60, 0_u8..60),
        seed in any::<u64>(),
    ) -> Plan {
        Plan {
            terms: terms(algorithm, units, window_s, burst, exact),
            offered,
            even,
            lost: if seed % 2 == 0 { (0, 0) } else { lost },
            away: None,
            seconds: 8,
            seed,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// However requests are spread, whatever is late: never more than the limit from the first on.
    #[test]
    fn a_fleet_never_admits_more_than_the_limit_counted_from_the_first(plan in plans()) {
        // Who gets no answer decides alone: that is not bounded by this, but by `on_store_loss`.
        let plan = Plan { lost: (0, 0), ..plan };
        holds_from_the_first(&plan, &run(&plan))?;
    }

    /// Where it must rather refuse than decide alone, it may lose whatever it likes.
    #[test]
    fn lost_entries_and_answers_give_nobody_more(plan in plans()) {
        let mut plan = plan;
        plan.terms.on_loss = OnStoreLoss::Deny;
        holds_from_the_first(&plan, &run(&plan))?;
    }

    /// Words keep everything.
    #[test]
    fn words_hold_the_lease(words in prop::array::uniform27(any::<u64>())) {
        let back = Lease::from_words(&words).to_words();
        prop_assert_eq!(back, words);
    }
}

#[test]
fn saturating_everywhere_gets_the_limit_once() {
    for hosts in [3_usize, 10] {
        for (units, exact) in [(100, true), (1_000, false), (1_000, true)] {
            let terms = terms(Algorithm::TokenBucket, units, 1, units, exact);
            let plan = Plan::new(terms, &vec![2.0 * units as f64; hosts], 20);
            let admitted = run(&plan).admitted_within(5, 20) / (units * 15) as f64;
            assert!(
                (0.95..=1.01).contains(&admitted),
                "{hosts} hosts, {units}/s: {admitted}"
            );
        }
    }
}

#[test]
fn a_client_that_hits_one_host_gets_its_whole_limit_there() {
    let terms = terms(Algorithm::TokenBucket, 1_000, 1, 1_000, false);
    let plan = Plan::new(terms, &[3_000.0, 0.0, 0.0], 20);
    let admitted = run(&plan).admitted_within(5, 20) / 15_000.0;
    assert!((0.95..=1.01).contains(&admitted), "{admitted}");
}

#[test]
fn a_polite_client_is_never_refused_also_while_the_store_is_away_and_after() {
    for algorithm in [Algorithm::TokenBucket, Algorithm::SlidingWindow] {
        for (units, burst) in [
            (10, 10),
            (10, 5),
            (100, 100),
            (100, 10),
            (1_000, 1_000),
            (1_000, 100),
        ] {
            for spread in [[1.0, 1.0, 1.0], [3.0, 0.0, 0.0]] {
                let terms = terms(algorithm, units, 1, burst, false);
                let offered = spread.map(|share| share * units as f64 / 6.0);
                let mut plan = Plan::new(terms, &offered, 60);
                plan.even = true;
                plan.away = Some((15, 30));
                let outcome = run(&plan);
                let refused = outcome.refused.as_slice();
                assert!(
                    refused.is_empty(),
                    "{algorithm:?} {units}/s burst {burst} {spread:?}: {refused:?}"
                );
            }
        }
    }
}

#[test]
fn a_store_that_is_away_is_held_to_the_parts_that_were() {
    for (on_loss, low, high) in [
        (OnStoreLoss::Hold, 0.85, 1.10),
        (OnStoreLoss::Strict, 0.85, 1.10),
        (OnStoreLoss::Local, 2.0, 3.2),
        (OnStoreLoss::Deny, 0.0, 0.05),
    ] {
        for exact in [true, false] {
            let mut terms = terms(Algorithm::TokenBucket, 200, 1, 200, exact);
            terms.on_loss = on_loss;
            let mut plan = Plan::new(terms, &[400.0; 3], 60);
            plan.away = Some((15, 45));
            let outcome = run(&plan);
            let away = outcome.admitted_within(15, 45) / 6_000.0;
            assert!(
                (low..=high).contains(&away),
                "{on_loss:?} exact {exact}: {away}"
            );
            let after = outcome.admitted_within(47, 60) / 2_600.0;
            assert!(
                (0.9..=1.05).contains(&after),
                "{on_loss:?} exact {exact}: {after} after"
            );
        }
    }
}

#[test]
fn an_idle_host_hands_its_block_back() {
    let terms = terms(Algorithm::FixedWindow, 1_000, 60, 1_000, false);
    let around = Around {
        known: 1,
        live: 1,
        alone: false,
        epoch: 0,
        lease_ns: 60 * SECOND,
        interval_ns: 100 * MS,
    };
    let mut ledger = Ledger::new();
    let mut lease = Lease::default();
    let mut exchange = |lease: &mut Lease, now: u64, need: u64| {
        let entry = lease.ask(&terms, &around, now, KEY, (need, need.min(UNIT)));
        let answer = ledger.settle(now / 1_000, &[entry]).answers[0];
        assert!(!lease.answered(&terms, &around, now, &entry, &answer));
        answer
    };
    let mut now = 100 * SECOND;
    assert_eq!(lease.decide(&terms, &around, now, UNIT, true), Verdict::Ask);
    exchange(&mut lease, now, UNIT);
    for _ in 0..20 {
        now += 20 * MS;
        if lease.decide(&terms, &around, now, UNIT, true) == Verdict::Ask {
            exchange(&mut lease, now, UNIT);
            lease.decide(&terms, &around, now, UNIT, true);
        }
    }
    assert!(lease.held > 0, "blocks are taken ahead");
    now += IDLE_NS;
    assert!(lease.look_after(&terms, &around, now));
    let answer = exchange(&mut lease, now, 0);
    assert_eq!(lease.held, 0);
    assert_eq!(
        answer.level,
        20 * UNIT + UNIT - UNIT,
        "only what was used is owed: {answer:?}"
    );
}
