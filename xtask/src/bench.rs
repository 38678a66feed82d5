//! `cargo xtask bench`: runs the benchmarks and prints each figure beside its goal.
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args as ClapArgs, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::goals::{self, Goal};
use crate::report::Steps;
use crate::{setup, shell};

/// What to measure.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// Which plane
    #[arg(value_enum, default_value = "kernel")]
    plane: Plane,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Arguments for the benchmark itself, after `--`
    #[arg(last = true)]
    rest: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Plane {
    /// Time per packet of the kernel program, by test runs
    Kernel,
    /// Packets over a veth pair, beside nftables and iptables
    Veth,
    /// The check API
    Check,
}

impl Plane {
    fn binary(self) -> &'static str {
        match self {
            Self::Kernel => "bench-kernel",
            Self::Veth => "bench-veth",
            Self::Check => "bench-check",
        }
    }
}

/// One measurement, as benchmarks write it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Figure {
    name: String,
    value: f64,
    unit: String,
    baseline: Option<f64>,
    ratio: Option<f64>,
}

/// Entry point.
pub(crate) fn main(args: &Args) -> Result<()> {
    setup::ensure(setup::Args {
        tests: args.plane == Plane::Veth,
    })?;
    let binary = args.plane.binary();
    let mut steps = Steps::new(2);
    steps.step(&format!("build {binary}, optimised"), || {
        let mut command = shell::cargo();
        command.args(["build", "--release", "--package", "tests", "--bin", binary]);
        command.args(["--package", "ratelimiter-userspace", "--bin", "ratelimiter"]);
        shell::quietly(command)?;
        Ok("built".to_owned())
    })?;
    steps.begin("measure");
    let file = args.json.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("ratelimiter-{binary}-{}.json", std::process::id()))
    });
    let mut command = shell::as_root(&shell::target_dir().join("release").join(binary), &[])?;
    command.arg("--json").arg(&file).args(&args.rest);
    shell::show(command)?;
    let result = report(&file);
    if args.json.is_none() {
        // Somebody else may have cleaned up already.
        drop(std::fs::remove_file(&file));
    }
    result
}

fn report(file: &Path) -> Result<()> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("no figures in `{name}`"))?;
    let figures: Vec<Figure> =
        serde_json::from_str(&text).with_context(|| format!("cannot read `{name}`"))?;
    if figures.is_empty() {
        bail!("`{name}` holds no figures");
    }
    println!();
    println!(
        "{:<44}{:>14} {:<8}{:>12}{:>9}{:>9}",
        "figure", "value", "unit", "baseline", "ratio", "goal"
    );
    let mut missed = 0;
    for figure in &figures {
        let goal = goals::of(&figure.name);
        missed += u32::from(goal.is_some_and(|goal| !goal.is_met(figure.ratio, figure.value)));
        println!("{}", row(figure, goal));
    }
    println!();
    if missed > 0 {
        println!("{missed} goals missed");
    } else {
        println!("every goal met");
    }
    Ok(())
}

fn row(figure: &Figure, goal: Option<Goal>) -> String {
    let optional = |number: Option<f64>| number.map(|n| format!("{n:.2}")).unwrap_or_default();
    let verdict = match goal {
        Some(goal) if goal.is_met(figure.ratio, figure.value) => "met",
        Some(_) => "MISSED",
        None => "",
    };
    format!(
        "{:<44}{:>14.4} {:<8}{:>12}{:>9}{:>9} {verdict}",
        figure.name,
        figure.value,
        figure.unit,
        optional(figure.baseline),
        optional(figure.ratio),
        goal.map(|goal| goal.to_string()).unwrap_or_default(),
    )
}
