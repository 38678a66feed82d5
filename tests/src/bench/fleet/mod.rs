//! A fleet of three hosts and a real Redis: what they admit together, also without it, and what that
//! costs.
//!
//! - [`packets`]: three agents in namespaces, flooded; [`checks`]: the check API while Redis is stopped
//! - [`requests`]: limiters in this process; [`costs`]: cores that Redis and the agent take
mod checks;
mod costs;
mod packets;
mod requests;
mod scene;

use std::time::Duration;

use super::Figure;

/// Runs everything; the steady state is counted for `steady`, outages last half of it.
#[must_use]
pub fn run(steady: Duration) -> Vec<Figure> {
    let mut figures = packets::run(steady);
    figures.extend(checks::run(steady / 12));
    figures.extend(requests::run());
    figures.extend(costs::run());
    figures
}

fn figure(name: &str, value: f64, unit: &str) -> Figure {
    let figure = Figure {
        name: name.to_owned(),
        value,
        unit: unit.to_owned(),
        baseline: None,
        ratio: None,
    };
    println!("{name}: {value:.4} {unit}");
    figure
}

fn compared(name: &str, value: f64, baseline: f64, unit: &str) -> Figure {
    let ratio = value / baseline;
    println!("{name}: {value:.4} / {baseline:.4} {unit} = {ratio:.3}");
    Figure {
        name: name.to_owned(),
        value,
        unit: unit.to_owned(),
        baseline: Some(baseline),
        ratio: Some(ratio),
    }
}
