//! The adaptive controllers against a simulated backend: virtual time, seeded, no root.
//!
//! `cargo test -p ratelimiter-userspace --test adaptive -- --nocapture` prints every figure beside
//! its bar. The numbers of the bars are those of issue 6.
#![expect(
    clippy::expect_used,
    reason = "helpers of tests; the lint knows test functions only"
)]
mod bars;
mod fleet;
mod hostile;
mod interface;
mod laws;
mod lifecycle;
mod measure;
mod plant;
mod properties;
mod rng;
mod scenario;
mod shares;
mod windows;

use bars::{Bars, Printed, Required};
use fleet::Fleet;
use laws::{Aimd, Shipped};
use measure::Figures;
use ratelimiter_userspace::control::settings::{Law, Settings};
use scenario::Scenario;

/// Figures per phase, as means over seeds.
fn figures(
    scenario: &Scenario,
    seeds: u64,
    law: &dyn Fn() -> Box<dyn interface::Law>,
) -> Vec<Figures> {
    let phases = 0..scenario.phases.len();
    let runs: Vec<Vec<Figures>> = (1..=seeds)
        .map(|seed| {
            let out = plant::run(scenario, law().as_mut(), seed);
            let figures = phases.clone().map(|i| measure::phase(scenario, &out, i));
            figures.collect()
        })
        .collect();
    let of_phase = |i: usize| runs.iter().map(|run| run[i]).collect::<Vec<_>>();
    phases
        .clone()
        .map(|i| Figures::mean(&of_phase(i)))
        .collect()
}

fn shipped(scenario: &Scenario, seeds: u64) -> Vec<Figures> {
    figures(scenario, seeds, &|| {
        Box::new(Shipped::new(Settings::default()))
    })
}

fn fleet_of(scenario: &Scenario, seeds: u64) -> Vec<Figures> {
    figures(scenario, seeds, &|| {
        Box::new(Fleet::new(Settings::default(), scenario))
    })
}

#[test]
fn keeps_the_backend_at_its_best_through_2x_5x_10x_overload() {
    let scenario = scenario::steps();
    let [calm, two, five, ten, after] = shipped(&scenario, 3)[..] else {
        panic!("five phases");
    };
    let mut bars = Bars::default();
    bars.at_least(Required, "1 settled goodput at 2x", two.settled, 0.98);
    bars.at_least(Required, "1 settled goodput at 5x", five.settled, 0.98);
    bars.at_least(Required, "1 settled goodput at 10x", ten.settled, 0.98);
    bars.at_least(
        Required,
        "2 first-ever surge to 2x, goodput",
        two.goodput,
        0.97,
    );
    bars.at_most(Required, "3 its settling time, s", two.settle_s, 5.0);
    bars.at_most(Required, "4 settling 2x -> 5x, s", five.settle_s, 2.0);
    bars.at_most(Required, "4 settling 5x -> 10x, s", ten.settle_s, 2.0);
    bars.at_most(Required, "5 average latency at 10x, s", ten.mean_s, 0.2);
    bars.at_most(Required, "6 p99 at 10x, s", ten.p99_s, 0.5);
    bars.at_most(Required, "6 worst 1-s average at 10x, s", ten.worst_s, 0.5);
    bars.at_most(
        Required,
        "7 oscillation at 10x, 1000/s",
        ten.oscillation,
        0.08,
    );
    bars.at_least(Required, "8 polite clients served at 10x", ten.polite, 0.98);
    bars.at_least(
        Required,
        "9 Jain, polite clients, 10x",
        ten.jain_polite,
        0.999,
    );
    bars.at_least(
        Required,
        "9 Jain, all against max-min, 10x",
        ten.jain_all,
        0.99,
    );
    bars.at_least(Required, "10 calm is not throttled", calm.goodput, 0.995);
    bars.at_least(Required, "11 after overload", after.goodput, 0.99);
    bars.close("calm, 2x, 5x, 10x, calm; 1000/s, 1 s reports");
}

#[test]
fn rivals_on_the_same_plant_waste_what_the_budget_keeps() {
    let scenario = scenario::steps();
    let mut bars = Bars::default();
    let ours = shipped(&scenario, 1);
    let literal = figures(&scenario, 1, &|| {
        Box::new(Shipped::new(Settings {
            law: Law::Threshold,
            ..Settings::default()
        }))
    });
    let aimd = figures(&scenario, 1, &|| Box::new(Aimd { factor: 1.0 }));
    for (i, multiple) in [(1, "2x"), (2, "5x"), (3, "10x")] {
        for (law, phases) in [("budget", &ours), ("threshold", &literal), ("aimd", &aimd)] {
            let f = phases[i];
            bars.note(&format!("{multiple} {law}: settled goodput"), f.settled);
            bars.note(&format!("{multiple} {law}: settling time, s"), f.settle_s);
            bars.note(&format!("{multiple} {law}: oscillation"), f.oscillation);
            bars.note(&format!("{multiple} {law}: polite served"), f.polite);
        }
        let rival = literal[i].settled.max(aimd[i].settled);
        let name = format!("{multiple}: settled goodput above the better rival's by");
        bars.at_least(Required, &name, ours[i].settled - rival, 0.0);
    }
    bars.close("the literal threshold law and AIMD beside ours");
}

#[test]
fn oscillates_less_on_a_large_backend() {
    let scenario = Scenario {
        scale: 10.0,
        ..Scenario::new(&[(0.0, 0.7), (20.0, 2.0), (40.0, 10.0)], 90.0)
    };
    let ten = shipped(&scenario, 1)[2];
    let mut bars = Bars::default();
    bars.at_most(
        Required,
        "7 oscillation at 10x, 10,000/s",
        ten.oscillation,
        0.03,
    );
    bars.at_least(
        Required,
        "1 settled goodput at 10x, 10,000/s",
        ten.settled,
        0.98,
    );
    bars.close("a backend of 10,000/s");
}

#[test]
fn remembers_what_was_proven_when_the_second_surge_comes() {
    let scenario = scenario::surges();
    let phases = shipped(&scenario, 5);
    let mut bars = Bars::default();
    bars.at_least(
        Printed,
        "13 first surge straight to 10x",
        phases[1].goodput,
        0.94,
    );
    bars.at_most(Printed, "13 its settling time, s", phases[1].settle_s, 10.0);
    bars.at_least(Required, "14 second surge to 10x", phases[3].goodput, 0.98);
    bars.close("calm, 10x, calm, 10x");
}

#[test]
fn protects_the_backend_while_the_signal_is_lost() {
    let mut bars = Bars::default();
    let blind = shipped(&scenario::lost_in_overload(), 3)[2];
    bars.at_least(
        Required,
        "18 signal lost at 2x, then 10x: goodput",
        blind.goodput,
        0.85,
    );
    bars.at_least(Required, "18 the same, polite served", blind.polite, 0.98);
    let calm = shipped(&scenario::lost_in_calm(), 3);
    bars.at_least(
        Required,
        "19 signal lost in calm, then 5x",
        calm[2].goodput,
        0.80,
    );
    bars.note(
        "19 the same, once the signal is back: settling, s",
        calm[3].settle_s,
    );
    let frozen = Scenario {
        frozen: true,
        ..scenario::lost_in_calm()
    };
    let frozen = shipped(&frozen, 2)[2];
    bars.at_least(
        Required,
        "19 a frozen monitor is a lost one",
        frozen.goodput,
        0.80,
    );
    bars.close("signal lost");
}

#[test]
fn known_polite_clients_are_served_while_3000_new_ones_arrive() {
    let mut bars = Bars::default();
    let crowd = shipped(&scenario::crowd(false), 2)[1];
    bars.at_least(
        Required,
        "24 3000 new clients: goodput",
        crowd.goodput,
        0.92,
    );
    let grouped = shipped(&scenario::crowd(true), 2)[1];
    bars.at_least(
        Required,
        "24 with groups: known polite served",
        grouped.polite,
        0.93,
    );
    bars.note("24 without groups: known polite served", crowd.polite);
    bars.close("3000 new clients at once");
}

#[test]
fn a_fleet_acts_as_one() {
    let mut bars = Bars::default();
    let quick = fleet_of(&scenario::fleet(0.25), 2);
    bars.at_least(
        Required,
        "25 5 hosts, 250 ms: goodput 10x",
        quick[3].settled,
        0.97,
    );
    bars.at_most(
        Required,
        "25 5 hosts, 250 ms: settling, s",
        quick[1].settle_s,
        10.0,
    );
    let slow = fleet_of(&scenario::fleet(1.0), 2);
    bars.at_least(
        Printed,
        "26 5 hosts, 1000 ms: goodput 10x",
        slow[3].settled,
        0.97,
    );
    bars.at_most(
        Printed,
        "26 5 hosts, 1000 ms: settling, s",
        slow[1].settle_s,
        10.0,
    );
    let apart = fleet_of(&scenario::fleet_apart(), 2)[3];
    bars.at_least(
        Required,
        "27 one of 5 without the store, 10x: goodput",
        apart.goodput,
        0.97,
    );
    bars.at_least(Required, "27 the same, polite served", apart.polite, 0.97);
    bars.close("five hosts");
}

#[test]
fn prints_the_figures_of_harder_weather() {
    let mut bars = Bars::default();
    let push = Scenario {
        period_s: 0.2,
        ..Scenario::new(&[(0.0, 0.7), (40.0, 2.0)], 100.0)
    };
    let push = shipped(&push, 3)[1];
    bars.at_least(Printed, "12 200 ms push: first surge", push.goodput, 0.99);
    bars.at_most(Printed, "12 its settling time, s", push.settle_s, 4.0);
    let near = shipped(&scenario::capacity_halves(0.9), 3);
    bars.at_least(Printed, "15 capacity halves at 0.9x", near[1].goodput, 0.93);
    bars.at_most(
        Printed,
        "15 settling after it is back, s",
        near[2].settle_s,
        12.0,
    );
    let over = shipped(&scenario::capacity_halves(2.0), 5);
    bars.at_least(Printed, "16 capacity halves at 2x", over[1].goodput, 0.90);
    bars.at_least(
        Printed,
        "16 capacity comes back at 2x",
        over[2].goodput,
        0.94,
    );
    let noisy = Scenario {
        noise: 0.5,
        outliers: 0.03,
        ..Scenario::new(&[(0.0, 0.7), (100.0, 5.0)], 200.0)
    };
    let noisy = shipped(&noisy, 3);
    bars.at_least(
        Printed,
        "17 50 % noise, 3 % outliers: calm",
        noisy[0].goodput,
        0.995,
    );
    bars.at_least(Printed, "17 the same, 5x settled", noisy[1].settled, 0.95);
    let calm = [(0.0, 0.7), (40.0, 0.7), (120.0, 0.7)];
    let errors = Scenario {
        foreign_errors: Some((40.0, 120.0, 0.3)),
        ..Scenario::new(&calm, 150.0)
    };
    let errors = shipped(&errors, 5);
    bars.at_least(
        Printed,
        "20 30 % foreign errors (0.70 possible)",
        errors[1].goodput,
        0.65,
    );
    let latency = Scenario {
        foreign_rt: Some((40.0, 120.0, 0.65)),
        ..Scenario::new(&calm, 150.0)
    };
    bars.at_least(
        Printed,
        "21 +650 ms foreign latency",
        shipped(&latency, 5)[1].goodput,
        0.92,
    );
    let outage = Scenario {
        outage: Some((40.0, 80.0)),
        ..Scenario::new(&[(0.0, 0.8), (40.0, 0.8), (80.0, 0.8)], 120.0)
    };
    bars.at_most(
        Printed,
        "22 back after 40 s down: settling, s",
        shipped(&outage, 3)[2].settle_s,
        15.0,
    );
    let unseen = Scenario {
        unseen: Some((60.0, 130.0, 300.0)),
        ..Scenario::new(&[(0.0, 5.0), (60.0, 5.0)], 130.0)
    };
    bars.at_least(
        Printed,
        "23 30 % of capacity used unseen",
        shipped(&unseen, 3)[1].goodput,
        0.95,
    );
    let ageless = figures(&scenario::steps(), 2, &|| {
        Box::new(Shipped::new(Settings::default()).with_ageless_reports())
    });
    bars.at_least(
        Printed,
        "1 10x, reports 50 ms older than they say",
        ageless[3].settled,
        0.98,
    );
    bars.at_most(Printed, "6 the same, p99 at 10x, s", ageless[3].p99_s, 0.5);
    bars.close("harder weather (not required, printed)");
}
