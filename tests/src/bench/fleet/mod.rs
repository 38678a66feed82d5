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

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Packets over three hosts, with and without the store.
    Packets,
    /// The check API while the store is stopped.
    Checks,
    /// Leased and exact requests.
    Requests,
    /// Cores of the store and of the agent.
    Costs,
}

/// Runs everything, or `only` one part; the steady state is counted for `steady`, outages last half
/// of it.
#[must_use]
pub fn run(steady: Duration, only: Option<Part>) -> Vec<Figure> {
    let wanted = |part| only.is_none_or(|only| only == part);
    let mut figures = Vec::new();
    if wanted(Part::Packets) {
        figures.extend(packets::run(steady));
    }
    if wanted(Part::Checks) {
        figures.extend(checks::run(steady / 12));
    }
    if wanted(Part::Requests) {
        figures.extend(requests::run());
    }
    if wanted(Part::Costs) {
        figures.extend(costs::run());
    }
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
