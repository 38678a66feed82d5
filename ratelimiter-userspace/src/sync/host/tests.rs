//! A host, call by call, with a ledger in place of the store.

use super::super::ledger::Ledger;
use super::super::settle::FleetKey;
use super::*;
use crate::policy::model::Algorithm;

const SECOND: u64 = 1_000_000;
const START: u64 = 1_000 * SECOND;

fn rule(key: u128, limit: u64) -> Rule {
    Rule {
        key: FleetKey(key),
        quota: FleetQuota {
            algorithm: Algorithm::TokenBucket,
            limit,
            burst: limit,
            window_us: SECOND,
            grain: 1,
            revision: 1,
        },
        one: 1,
        on_loss: OnStoreLoss::Hold,
    }
}

fn reading(source: HotSource, limit: u64, spent: u64, owed: u64) -> Reading {
    Reading {
        id: Id { source, unit: 0 },
        rule: rule(u128::from(source), limit),
        spent,
        owed,
    }
}

fn host() -> Host {
    Host::new(1, Tuning::default())
}

/// Settles everything that is due and returns what is to be raised.
fn exchange(host: &mut Host, ledger: &mut Ledger, now_us: u64, readings: &[Reading]) -> Vec<Raise> {
    let mut raises = Vec::new();
    for exchange in host.due(now_us, readings) {
        let settled = ledger.settle(now_us, &exchange.entries);
        raises.extend(host.answered(now_us, &exchange, &settled));
    }
    raises
}

#[test]
fn a_sampled_source_above_the_threshold_is_hot_and_announced_once() {
    let mut host = host();
    let fleet = Fleet {
        known: 3,
        live: 3,
        ..Fleet::default()
    };
    host.beaten(START, &fleet);
    let quota = rule(7, 600).quota;
    // 600 over twice three hosts: 100.
    assert!(!host.sampled(START, 7, 64, &quota));
    assert!(host.sampled(START + 1, 7, 64, &quota));
    assert!(host.heat(START + 1, 7));
    assert_eq!(host.beat(START + 2).map(|beat| beat.hot), Some(vec![7]));
    assert_eq!(host.beat(START + 3), None);
    assert_eq!(
        host.beat(START + 2 * SECOND).map(|beat| beat.hot),
        Some(vec![])
    );
    // Still spending: announced again before the list forgets it.
    host.sampled(START + 6 * SECOND, 7, 32, &quota);
    assert_eq!(
        host.beat(START + 6 * SECOND).map(|beat| beat.hot),
        Some(vec![7])
    );
}

#[test]
fn what_is_hot_elsewhere_is_looked_for_and_taken_up_at_the_first_sample() {
    let mut host = host();
    let fleet = Fleet {
        known: 3,
        live: 3,
        hot: vec![7, 8],
        cursor_us: 5,
    };
    host.beaten(START, &fleet);
    let mut probes = host.probes(START, 10);
    probes.sort_unstable();
    assert_eq!(probes, [7, 8]);
    assert!(host.probes(START + 1, 10).is_empty());
    assert_eq!(host.probes(START + SECOND, 1).len(), 1);
    assert!(host.sampled(START, 8, 1, &rule(8, 1_000_000).quota));
    assert!(host.heat(START, 8));
    // It was announced by somebody else just now.
    assert_eq!(
        host.beat(START + 1)
            .map(|beat| (beat.hot.len(), beat.cursor_us)),
        Some((0, 5))
    );
    assert!(host.probes(START + HOT_US + 1, 10).is_empty());
}

#[test]
fn spend_goes_out_once_and_the_fleets_level_comes_back() {
    let (mut host, mut ledger) = (host(), Ledger::new());
    host.heat(START, 7);
    exchange(&mut host, &mut ledger, START, &[reading(7, 1_000, 0, 0)]);
    // Another host spends 400.
    let other = Entry::charge(FleetKey(7), rule(7, 1_000).quota, 400, 0);
    ledger.settle(START, &[other]);
    let raises = exchange(
        &mut host,
        &mut ledger,
        START,
        &[reading(7, 1_000, 300, 300)],
    );
    let id = Id { source: 7, unit: 0 };
    assert_eq!(raises, [Raise { id, level: 700 }]);
    // Nothing new was spent: nothing is charged, and the local bucket needs no raise.
    let raises = exchange(
        &mut host,
        &mut ledger,
        START,
        &[reading(7, 1_000, 300, 700)],
    );
    assert_eq!(raises, []);
}

#[test]
fn an_unanswered_spend_is_not_sent_again_unless_it_never_left() {
    let mut host = host();
    host.heat(START, 7);
    let mut ledger = Ledger::new();
    exchange(&mut host, &mut ledger, START, &[reading(7, 1_000, 0, 0)]);
    let spends = |exchanges: &[Exchange]| -> u64 {
        exchanges
            .iter()
            .flat_map(|exchange| &exchange.entries)
            .map(|entry| entry.spend)
            .sum()
    };
    let lost = host.due(START + 1, &[reading(7, 1_000, 100, 100)]);
    assert_eq!(spends(&lost), 100);
    host.unanswered(&lost[0], true);
    let next = host.due(START + 2, &[reading(7, 1_000, 130, 130)]);
    assert_eq!((spends(&next), next[0].entries[0].debt), (30, 100));
    host.unanswered(&next[0], false);
    assert_eq!(
        spends(&host.due(START + 3, &[reading(7, 1_000, 130, 130)])),
        30
    );
}

#[test]
fn who_comes_back_sends_no_more_than_is_still_owed() {
    let (mut host, mut ledger) = (host(), Ledger::new());
    host.heat(START, 7);
    exchange(&mut host, &mut ledger, START, &[reading(7, 1_000, 0, 0)]);
    let mut now_us = START;
    for spent in 1..=30 {
        now_us += SECOND;
        for gone in host.due(now_us, &[reading(7, 1_000, spent * 500, 40)]) {
            host.unanswered(&gone, false);
        }
        assert!(host.is_apart(now_us + SECOND));
    }
    let back = host.due(now_us + 1, &[reading(7, 1_000, 15_000, 40)]);
    assert_eq!(back[0].entries[0].spend + back[0].entries[0].debt, 40);
}

#[test]
fn apart_the_clock_runs_at_the_remembered_part_and_back_at_the_whole() {
    let (mut host, mut ledger) = (host(), Ledger::new());
    host.heat(START, 7);
    let mut now_us = START;
    for tick in 0..60_u64 {
        now_us += SECOND / 10;
        exchange(
            &mut host,
            &mut ledger,
            now_us,
            &[reading(7, 1_000, tick * 25, 0)],
        );
        let other = Entry::charge(FleetKey(7), rule(7, 1_000).quota, 75, 0);
        ledger.settle(now_us, &[other]);
    }
    assert_eq!(host.scales(now_us), []);
    let gone = host.due(now_us + SECOND / 10, &[reading(7, 1_000, 1_500, 0)]);
    host.unanswered(&gone[0], true);
    now_us += SECOND;
    let [scale] = host.scales(now_us)[..] else {
        panic!("one source, one scale");
    };
    assert!(scale.part.abs_diff(WHOLE / 4) < WHOLE / 50, "{scale:?}");
    assert_eq!(host.scales(now_us), []);
    exchange(
        &mut host,
        &mut ledger,
        now_us,
        &[reading(7, 1_000, 1_600, 0)],
    );
    let whole = Scale {
        source: 7,
        part: WHOLE,
    };
    assert_eq!(host.scales(now_us), [whole]);
}

#[test]
fn a_hundred_thousand_hot_sources_settle_within_a_second_largest_first() {
    let (mut host, mut ledger) = (host(), Ledger::new());
    for source in 0..100_000 {
        assert!(host.heat(START, source));
    }
    assert!(!host.heat(START, 100_000) && host.figures(START).refused == 1);
    let mut settled = vec![0_u64; 100_000];
    let mut now_us = START;
    for tick in 1..=20_u64 {
        now_us += SECOND / 10;
        let readings: Vec<Reading> = (0..100_000)
            .map(|source| reading(source, 1_000, tick * (1 + source / 1_000), 1))
            .collect();
        let exchanges = host.due(now_us, &readings);
        let entries = exchanges.iter().map(|exchange| exchange.entries.len());
        assert!(entries.clone().sum::<usize>() <= 20_000 && entries.max() <= Some(MAX_BATCH));
        assert_eq!(host.figures(now_us).stretch, 5);
        let first = exchanges.iter().flat_map(|exchange| &exchange.keys);
        if tick == 1 {
            // All are overdue at first; then whoever spends most.
            assert!(
                first
                    .clone()
                    .all(|sent| sent.id.source >= 80_000 || sent.spend == 0)
            );
        }
        for sent in first {
            settled[sent.id.source as usize] = now_us;
        }
        for exchange in &exchanges {
            let answers = ledger.settle(now_us, &exchange.entries);
            host.answered(now_us, exchange, &answers);
        }
        if tick > 10 {
            let oldest = settled.iter().min().copied().unwrap_or(0);
            assert!(
                now_us - oldest <= SECOND + SECOND / 10,
                "{}",
                now_us - oldest
            );
        }
    }
}

#[test]
fn cold_everywhere_for_ten_seconds_is_no_longer_hot() {
    let (mut host, mut ledger) = (host(), Ledger::new());
    host.heat(START, 7);
    let mut now_us = START;
    let mut spent = 0;
    let mut run = |host: &mut Host, seconds: u64, own: u64, others: u64| {
        for _ in 0..seconds * 10 {
            now_us += SECOND / 10;
            spent += own;
            exchange(host, &mut ledger, now_us, &[reading(7, 1_000, spent, 0)]);
            let other = Entry::charge(FleetKey(7), rule(7, 1_000).quota, others, 0);
            ledger.settle(now_us, &[other]);
        }
        host.cold(now_us).len()
    };
    // Half of the limit is the threshold of a host that is alone; a quarter of that is 125/s.
    assert_eq!(run(&mut host, 21, 10, 10), 0);
    assert_eq!(run(&mut host, 21, 2, 2), 1);
    assert_eq!(run(&mut host, 21, 0, 14), 0);
    host.cool(7);
    assert!(!host.is_hot(7));
}

#[test]
fn strict_settles_at_the_parts_of_the_hosts_that_live() {
    let mut host = host();
    let fleet = Fleet {
        known: 4,
        live: 3,
        ..Fleet::default()
    };
    host.beaten(START, &fleet);
    host.heat(START, 7);
    let mut strict = reading(7, 1_000, 10, 10);
    strict.rule.on_loss = OnStoreLoss::Strict;
    let due = host.due(START, &[strict]);
    assert_eq!(due[0].entries[0].quota.limit, 750);
    assert_eq!(host.strict(START), Share::new(3, 4));
    assert_eq!(host.strict(START + SECOND), Share::new(1, 4));
}
