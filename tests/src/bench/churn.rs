//! What churning the crowd's table gains an attacker, and what it costs the polite: on simulated
//! time, with the kernel program's arithmetic (see [`crate::churn`]).

use std::thread;

use super::Figure;
use crate::churn::scene::{Arrivals, Mix, Outcome, mixes, play};

/// The values of phi and k of the whole table.
const PHIS: [f64; 5] = [0.1, 0.5, 1.0, 2.0, 5.0];
const KS: [u32; 4] = [1, 4, 16, 64];

/// The scene of `polite_loss_phi08`.
#[must_use]
pub fn polite_mix(bits: u32, budget: bool, seconds: u64) -> Mix {
    Mix {
        bits,
        phi: 0.8,
        k: 1,
        arrivals: Arrivals::Even(3),
        polite: 64 << bits.saturating_sub(9),
        budget,
        seconds,
    }
}

/// Plays mixes on two threads; the outcomes in the order of the mixes.
#[must_use]
#[track_caller]
pub fn play_all(mixes: &[Mix]) -> Vec<Outcome> {
    let (even, odd) = thread::scope(|scope| {
        let odd = scope.spawn(|| mixes.iter().skip(1).step_by(2).map(play).collect());
        let even: Vec<Outcome> = mixes.iter().step_by(2).map(play).collect();
        let odd: Vec<Outcome> = match odd.join() {
            Ok(odd) => odd,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        (even, odd)
    });
    let mut odd = odd.into_iter();
    let mut all = Vec::new();
    for outcome in even {
        all.push(outcome);
        all.extend(odd.next());
    }
    all
}

/// The rows `churn_gain` and `polite_loss_phi08`. Takes about half a minute.
#[must_use]
#[track_caller]
pub fn rows() -> Vec<Figure> {
    let mut all = mixes(&PHIS, &KS, 9, 4);
    let budgeted = mixes(&[2.0, 5.0], &KS, 9, 2);
    all.extend(budgeted.into_iter().map(|mix| Mix {
        budget: true,
        ..mix
    }));
    let outcomes = play_all(&all);
    let mut gain = 0.0_f64;
    for (mix, outcome) in all.iter().zip(&outcomes) {
        if outcome.gain > gain {
            gain = outcome.gain;
            println!("churn_gain {gain:.4}: {mix:?}");
        }
    }
    println!("churn_gain: worst of {} mixes {gain:.4}", all.len());
    let scenes = [polite_mix(13, false, 10), polite_mix(13, true, 10)];
    let mut loss = 0.0_f64;
    for (mix, outcome) in scenes.iter().zip(play_all(&scenes)) {
        println!(
            "polite_loss_phi08, first-seen budget {}: {:.5}; new sources passed {:.4}",
            if mix.budget { "on" } else { "off" },
            outcome.polite_loss,
            outcome.new_passed
        );
        loss = loss.max(outcome.polite_loss);
    }
    let figure = |name: &str, value: f64, unit: &str| Figure {
        name: name.to_owned(),
        value,
        unit: unit.to_owned(),
        baseline: None,
        ratio: None,
    };
    vec![
        figure("churn_gain", gain, "admitted/entitled"),
        figure("polite_loss_phi08", loss, "share of packets"),
    ]
}
