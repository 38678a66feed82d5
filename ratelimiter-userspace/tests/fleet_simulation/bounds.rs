//! The bounds of the design's table, over the spans it names: seconds 10 to 70 in steady state, and
//! thirty seconds without the store, counted from their first instant.

use ratelimiter_userspace::sync::OnStoreLoss;

use crate::checks::between;
use crate::scenario::{Fault, Flow, Happening, KeySpec, MILLI, SECOND, Scenario, Shape};
use crate::world::World;

/// One key on some hosts; what each host is offered, in units per second.
struct Setting<'a> {
    limit: u64,
    burst: u64,
    offered: &'a [u64],
    even: bool,
    on_loss: OnStoreLoss,
}

impl Setting<'_> {
    fn saturating(limit: u64, burst: u64, offered: &[u64]) -> Setting<'_> {
        Setting {
            limit,
            burst,
            offered,
            even: false,
            on_loss: OnStoreLoss::Hold,
        }
    }

    /// Runs until `until_s`, cut off as told from second 20 to 50, and `moves` to these rates at
    /// second 30.
    fn run(&self, until_s: u64, cut: &[usize], moves: Option<&[u64]>, loss: u64) -> World {
        let mut flows = Vec::new();
        let turn_us = moves.map_or(until_s, |_| 30) * SECOND;
        let mut add = |offered: &[u64], from_us, until_us| {
            for (host, per_s) in offered.iter().enumerate().filter(|(_, per_s)| **per_s > 0) {
                flows.push(Flow {
                    key: 0,
                    host,
                    gap_us: SECOND / per_s,
                    count: 1,
                    even: self.even,
                    from_us,
                    until_us,
                });
            }
        };
        add(self.offered, 0, turn_us);
        if let Some(moved) = moves {
            add(moved, turn_us, until_s * SECOND);
        }
        let happenings = if cut.is_empty() {
            Vec::new()
        } else {
            vec![
                (20 * SECOND, Happening::Cut(cut.to_vec())),
                (50 * SECOND, Happening::Healed),
            ]
        };
        let scenario = Scenario {
            seed: 1,
            hosts: self.offered.len(),
            interval_us: 100 * MILLI,
            keys: vec![KeySpec {
                limit: self.limit,
                burst: self.burst,
                on_loss: self.on_loss,
            }],
            flows,
            happenings,
            fault: Fault::None,
            shape: Shape::All,
            loss,
            delay_us: [200, 800],
            refused: false,
            skewed: false,
            fault_us: [20 * SECOND, 50 * SECOND],
            until_us: until_s * SECOND,
            late: Vec::new(),
        };
        let mut world = World::new(&scenario, None, false);
        if let Err(broken) = world.run() {
            panic!("{broken}");
        }
        world
    }

    /// What was admitted between two seconds, over the limit.
    fn ratio(&self, world: &World, from_s: u64, to_s: u64) -> f64 {
        let admitted = between(&world.admitted[0], from_s * SECOND, to_s * SECOND);
        admitted as f64 / (self.limit * (to_s - from_s)) as f64
    }
}

fn denied(world: &World) -> u64 {
    world.denied[0].iter().sum()
}

#[test]
fn the_fleet_admits_its_limit_in_steady_state() {
    for hosts in [3_usize, 10] {
        for (limit, burst) in [(10, 10), (100, 100), (1_000, 1_000), (100, 10)] {
            if hosts == 10 && limit == 1_000 {
                // A tenth of the arrivals says the same.
                continue;
            }
            let offered = vec![2 * limit; hosts];
            let setting = Setting::saturating(limit, burst, &offered);
            let ratio = setting.ratio(&setting.run(70, &[], None, 0), 10, 70);
            println!("{hosts} hosts, {limit}/s burst {burst}, saturating: {ratio:.3}");
            assert!((0.97..=1.01).contains(&ratio), "{hosts} {limit} {ratio}");
        }
    }
}

#[test]
fn one_greedy_host_beside_others_just_below_the_threshold_gets_no_more() {
    for hosts in [3_u64, 10] {
        let mut offered = vec![1_000 * 98 / 100 / (2 * hosts); hosts as usize];
        offered[0] = 2_000;
        let setting = Setting::saturating(1_000, 1_000, &offered);
        let ratio = setting.ratio(&setting.run(70, &[], None, 0), 10, 70);
        println!("{hosts} hosts, one greedy: {ratio:.3}");
        assert!((0.97..=1.01).contains(&ratio), "{hosts} {ratio}");
    }
}

#[test]
fn a_source_that_hits_one_host_gets_its_whole_limit_there() {
    let setting = Setting::saturating(300, 300, &[900, 0, 0]);
    let ratio = setting.ratio(&setting.run(70, &[], None, 0), 10, 70);
    assert!((0.99..=1.01).contains(&ratio), "{ratio}");
}

#[test]
fn what_is_lost_on_the_way_is_the_only_thing_not_charged() {
    let setting = Setting::saturating(100, 100, &[200, 200, 200]);
    let ratio = setting.ratio(&setting.run(70, &[], None, 20), 10, 70);
    println!("a fifth of requests and of answers lost: {ratio:.3}");
    assert!((0.95..=1.0 / 0.8 + 0.02).contains(&ratio), "{ratio}");
}

#[test]
fn without_the_store_each_setting_keeps_its_bound() {
    let all: &[usize] = &[0, 1, 2];
    // Beside the bound: whether the lonely hosts' parts come on top of it.
    let bounds = [
        (OnStoreLoss::Hold, all, 1.10, false),
        (OnStoreLoss::Hold, &[0][..], 1.10, true),
        (OnStoreLoss::Strict, all, 1.10, false),
        (OnStoreLoss::Strict, &[0][..], 1.10, false),
        (OnStoreLoss::Local, all, 3.0, false),
        (OnStoreLoss::Deny, all, 0.10, false),
    ];
    for (on_loss, cut, bound, lonely) in bounds {
        let setting = Setting {
            on_loss,
            ..Setting::saturating(300, 300, &[600, 600, 600])
        };
        let world = setting.run(80, cut, None, 0);
        let (apart, after) = (setting.ratio(&world, 20, 50), setting.ratio(&world, 50, 80));
        let seconds_before = |slots: &[u64]| between(slots, 16 * SECOND, 20 * SECOND) as f64;
        let part = seconds_before(&world.by_host[0]) / seconds_before(&world.admitted[0]);
        println!(
            "{on_loss:?}, {} cut off, part {part:.3}: {apart:.3} apart, {after:.3} after",
            cut.len()
        );
        let bound = if lonely { bound + part } else { bound };
        assert!(apart <= bound, "{on_loss:?} {apart}");
        if on_loss == OnStoreLoss::Deny {
            // Nothing was admitted: the whole burst is there again, once.
            assert!((0.97..=1.05).contains(&after), "{after}");
        } else {
            assert!((0.88..=1.01).contains(&after), "{on_loss:?} {after}");
            assert!(apart >= 0.90, "{on_loss:?} {apart}");
        }
    }
}

#[test]
fn strict_holds_whatever_moves_and_hold_is_below_one_limit_a_host() {
    for (on_loss, cut, bound) in [
        (OnStoreLoss::Strict, &[0, 1, 2][..], 1.10),
        (OnStoreLoss::Strict, &[0][..], 1.10),
        (OnStoreLoss::Hold, &[0, 1, 2][..], 3.0),
    ] {
        let setting = Setting {
            on_loss,
            ..Setting::saturating(300, 300, &[600, 0, 0])
        };
        let world = setting.run(80, cut, Some(&[600, 600, 600]), 0);
        let apart = setting.ratio(&world, 20, 50);
        println!("{on_loss:?}, {} cut off, moving: {apart:.3}", cut.len());
        assert!(apart <= bound, "{on_loss:?} {apart}");
    }
}

#[test]
fn a_client_at_half_its_limit_that_stays_is_never_denied() {
    for (limit, burst) in [
        (10, 10),
        (10, 5),
        (100, 100),
        (100, 10),
        (1_000, 1_000),
        (1_000, 100),
    ] {
        for cut in [&[][..], &[0, 1, 2], &[0]] {
            for offered in [[limit / 6; 3], [limit / 2, 0, 0]] {
                let setting = Setting {
                    even: true,
                    ..Setting::saturating(limit, burst, &offered)
                };
                let world = setting.run(80, cut, None, 0);
                assert_eq!(
                    denied(&world),
                    0,
                    "{limit}/s burst {burst}, {offered:?}, {cut:?}"
                );
            }
        }
    }
}
