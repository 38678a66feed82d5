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

/// Settles what is due, but for the entries of one part of the store, which is away.
fn exchange_without(host: &mut Host, ledger: &mut Ledger, now_us: u64, readings: &[Reading]) {
    for exchange in host.due(now_us, readings) {
        let mut settled = ledger.settle(now_us, &exchange.entries);
        let even = |place: &usize| exchange.entries[*place].key.0 % 2 == 0;
        settled.lost = (0..exchange.entries.len()).filter(even).collect();
        for place in &settled.lost {
            settled.answers[*place] = crate::sync::Answer::default();
        }
        host.answered(now_us, &exchange, &settled);
    }
}

#[test]
fn keys_of_a_part_of_the_store_that_is_away_are_held_and_the_others_are_not() {
    let (mut host, mut ledger) = (host(), Ledger::new());
    let mut now = START;
    let mut spent = 0;
    for source in [1, 2] {
        host.heat(now, source);
    }
    let both = |spent| [reading(1, 100, spent, 10), reading(2, 100, spent, 10)];
    // Another host spends three times as much of both.
    for _ in 0..50 {
        spent += 10;
        for key in [1, 2] {
            ledger.settle(
                now,
                &[Entry::charge(FleetKey(key), rule(key, 100).quota, 30, 0)],
            );
        }
        exchange(&mut host, &mut ledger, now, &both(spent));
        now += 100_000;
    }
    assert!(host.scales(now).is_empty());
    for _ in 0..5 {
        spent += 10;
        exchange_without(&mut host, &mut ledger, now, &both(spent));
        now += 100_000;
    }
    assert!(!host.is_apart(now), "the store answers");
    let scales = host.scales(now);
    assert_eq!(scales.len(), 1, "{scales:?}");
    assert_eq!(scales[0].source, 2);
    assert!(
        scales[0].part.abs_diff(WHOLE / 4) < WHOLE / 20,
        "{scales:?}"
    );
    exchange(&mut host, &mut ledger, now, &both(spent));
    let back = host.scales(now);
    assert_eq!(
        back,
        [Scale {
            source: 2,
            part: WHOLE
        }]
    );
    assert!(host.scales(now).is_empty());
}

#[test]
fn a_scale_that_the_kernel_refused_is_tried_again_and_undone_before_a_source_cools() {
    let mut host = host().remembering(4);
    let mut strict = reading(7, 100, 0, 0);
    strict.rule.on_loss = OnStoreLoss::Strict;
    host.heat(START, 7);
    let _asked = host.due(START, &[strict]);
    let apart = START + SECOND;
    let quarter = Scale {
        source: 7,
        part: WHOLE / 4,
    };
    // Remembered: this host never had an answer.
    assert_eq!(host.scales(apart), [quarter]);
    assert!(host.scales(apart).is_empty() && host.is_scaled(7));
    host.unscaled(7);
    assert_eq!(host.scales(apart), [quarter]);
    host.beaten(
        apart,
        &Fleet {
            known: 4,
            live: 4,
            ..Fleet::default()
        },
    );
    let whole = Scale {
        source: 7,
        part: WHOLE,
    };
    assert_eq!(host.scales(apart), [whole]);
    assert!(!host.is_scaled(7));
    host.unscaled(7);
    assert!(host.is_scaled(7), "it may still be slow");
    assert_eq!(host.scales(apart), [whole]);
    assert!(!host.is_scaled(7));
}
