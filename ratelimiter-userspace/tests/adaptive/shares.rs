//! Bar 28: the level from the histogram against the exact one.
use ratelimiter_userspace::clock;
use ratelimiter_userspace::control::fairness::{Group, Histogram, exact_level, share_out};

use crate::bars::{Bars, Printed, Required};
use crate::rng::Rng;

/// Clients with demand over four decades, a limit and a weight.
fn population(rng: &mut Rng) -> (Vec<f64>, Vec<f64>) {
    let n = 10 + (rng.unit().powi(2) * 4990.0) as usize;
    let want = |rng: &mut Rng| (10f64.powf(4.0 * rng.unit())).min(10f64.powf(4.0 * rng.unit()));
    let weight = |rng: &mut Rng| if rng.unit() < 0.2 { 4.0 } else { 1.0 };
    (0..n).map(|_| (want(rng), weight(rng))).unzip()
}

fn admitted(wants: &[f64], weights: &[f64], level: f64) -> f64 {
    let pairs = wants.iter().zip(weights);
    pairs.map(|(want, weight)| want.min(level * weight)).sum()
}

#[test]
fn the_level_from_208_buckets_is_as_good_as_the_exact_one() {
    let mut rng = Rng::new(28);
    let (mut worst_level, mut worst_admitted, mut sum) = (0f64, 0f64, 0.0);
    let mut walks_us = 0.0;
    let populations = 400;
    for _ in 0..populations {
        let (wants, weights) = population(&mut rng);
        let mut histogram = Histogram::default();
        for (want, weight) in wants.iter().zip(&weights) {
            histogram.add(*want, *weight);
        }
        let budget = histogram.total() * (0.02 + 0.96 * rng.unit());
        let exact = exact_level(&wants, &weights, budget).expect("less than the demand");
        let mut level = None;
        let mut quickest = std::time::Duration::MAX;
        for _ in 0..10 {
            let begin = clock::instant();
            level = std::hint::black_box(&histogram).level(std::hint::black_box(budget));
            quickest = quickest.min(begin.elapsed());
        }
        walks_us += quickest.as_secs_f64() * 1e6;
        let level = level.expect("less than the demand");
        let error = (level / exact - 1.0).abs();
        sum += error;
        worst_level = worst_level.max(error);
        let got = admitted(&wants, &weights, level);
        assert!(got <= budget * 1.002, "{got} of {budget}");
        worst_admitted = worst_admitted.max((got / budget - 1.0).abs());
    }
    let mut bars = Bars::default();
    bars.at_most(Required, "28 worst error of the level", worst_level, 0.01);
    bars.note("28 mean error of the level", sum / f64::from(populations));
    bars.at_most(
        Required,
        "28 worst error of the admitted rate",
        worst_admitted,
        0.002,
    );
    let each_us = walks_us / f64::from(populations);
    // An unoptimised build is not what the bar is about.
    let weight = if cfg!(debug_assertions) {
        Printed
    } else {
        Required
    };
    bars.at_most(weight, "28 one walk, us", each_us, 2.0);
    bars.close("level from the histogram");
}

#[test]
fn a_group_below_its_part_is_served_and_keeps_its_headroom() {
    let group = |weight: f64, clients: u32, each: f64| {
        let mut group = Group {
            weight,
            ..Group::default()
        };
        for _ in 0..clients {
            group.demand.add(each, 1.0);
        }
        group
    };
    let groups = [group(0.8, 100, 5.0), group(0.2, 3000, 3.0)];
    let shares = share_out(&groups, Some(1000.0));
    assert_eq!(shares[0].level, None);
    let newcomers = groups[1].demand.admitted(shares[1].level);
    assert!((newcomers - 500.0).abs() < 1.0, "{newcomers}");
    assert!(shares[0].aggregate.is_some_and(|rate| rate > 1000.0));
    let open = share_out(&groups, None);
    assert!(
        open.iter()
            .all(|share| share.level.is_none() && share.aggregate.is_none())
    );
    // All fits: no level, but nobody new takes more than what is left over.
    let shares = share_out(&groups, Some(10_000.0));
    assert!(shares.iter().all(|share| share.level.is_none()));
    assert!(shares[0].aggregate.is_some_and(|rate| rate < 1100.0));
}
