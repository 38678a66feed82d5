//! Benchmarks on real interfaces, and the form in which every benchmark writes its figures.
pub mod adaptive;
pub mod agent;
pub mod churn;
pub mod fleet;
pub mod kernel;
pub mod veth;

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

/// One measurement, as `cargo xtask bench` reads it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Name of the bar.
    pub name: String,
    /// What was measured.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// What it is compared with, in the same unit.
    pub baseline: Option<f64>,
    /// The comparison; which way round is part of the name.
    pub ratio: Option<f64>,
}

/// Prints the figures and, where a file is named, writes them to it.
#[must_use]
pub fn write(figures: &[Figure], file: Option<&Path>) -> ExitCode {
    for figure in figures {
        print!("{}: {:.3} {}", figure.name, figure.value, figure.unit);
        match (figure.baseline, figure.ratio) {
            (Some(baseline), Some(ratio)) => println!(" / {baseline:.3} = {ratio:.3}"),
            _ => println!(),
        }
    }
    let Some(file) = file else {
        return ExitCode::SUCCESS;
    };
    let written = serde_json::to_string_pretty(figures)
        .map_err(std::io::Error::other)
        .and_then(|text| std::fs::write(file, text));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write `{}`: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}

/// The middle of the values, or of the middle two.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle.wrapping_sub(1)), sorted.get(middle)) {
        (Some(low), Some(high)) if sorted.len().is_multiple_of(2) => f64::midpoint(*low, *high),
        (_, Some(high)) => *high,
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
