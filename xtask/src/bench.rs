//! `cargo xtask bench`: runs the benchmarks and prints each figure beside its goal.
//!
//! A plane is one or more programs of the package `tests`; each writes its figures to a file of its
//! own, and they are judged and written together.
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
    /// Arguments for the benchmarks themselves, after `--`, e.g. `-- --rounds 9`
    #[arg(last = true)]
    rest: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Plane {
    /// Everything of the kernel plane: program, veth and agent together
    Kernel,
    /// Time per packet of the kernel program, by test runs
    Program,
    /// Packets over a veth pair, beside nftables and iptables
    Veth,
    /// Start, loading and memory of the agent
    Agent,
    /// The check API
    Check,
    /// Limits that follow health, with a real backend
    Adaptive,
    /// One limit over three hosts and a Redis
    Fleet,
}

impl Plane {
    /// The programs that measure it.
    fn binaries(self) -> &'static [&'static str] {
        match self {
            Self::Kernel => &["bench-kernel", "bench-veth", "bench-agent"],
            Self::Program => &["bench-kernel"],
            Self::Veth => &["bench-veth"],
            Self::Agent => &["bench-agent"],
            Self::Check => &["bench-check"],
            Self::Adaptive => &["bench-adaptive"],
            Self::Fleet => &["bench-fleet"],
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
        tests: args.plane != Plane::Program,
        rivals: args.plane == Plane::Check,
    })?;
    let binaries = args.plane.binaries();
    let mut steps = Steps::new(1 + binaries.len());
    steps.step(&format!("build {}, optimised", binaries.join(", ")), || {
        let mut command = shell::cargo();
        command.args(["build", "--release", "--package", "tests"]);
        for binary in binaries {
            command.args(["--bin", binary]);
        }
        command.args(["--package", "ratelimiter-userspace", "--bin", "ratelimiter"]);
        shell::quietly(command)?;
        Ok("built".to_owned())
    })?;
    let mut figures = Vec::new();
    let mut failed = Vec::new();
    for binary in binaries {
        steps.begin(&format!("measure: {binary}"));
        // What one of them measured is worth having although another failed.
        match measure(binary, &args.rest) {
            Ok(measured) => figures.extend(measured),
            Err(error) => {
                println!("      {binary}: {error:#}");
                failed.push(*binary);
            }
        }
    }
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&figures)?;
        std::fs::write(file, text).with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    report(&figures, binaries);
    if !failed.is_empty() {
        bail!("{} failed, as said above", failed.join(", "));
    }
    Ok(())
}

/// Runs one program and reads what it measured.
fn measure(binary: &str, arguments: &[String]) -> Result<Vec<Figure>> {
    let file =
        std::env::temp_dir().join(format!("ratelimiter-{binary}-{}.json", std::process::id()));
    let mut command = shell::as_root(&shell::target_dir().join("release").join(binary), &[])?;
    command.arg("--json").arg(&file).args(arguments);
    // Everything is built; nothing must ask cargo again.
    command.env_remove("CARGO");
    let figures = shell::show(command).and_then(|()| read(&file));
    // Somebody else may have cleaned up already.
    drop(std::fs::remove_file(&file));
    figures
}

fn read(file: &Path) -> Result<Vec<Figure>> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("no figures in `{name}`"))?;
    let figures: Vec<Figure> =
        serde_json::from_str(&text).with_context(|| format!("cannot read `{name}`"))?;
    if figures.is_empty() {
        bail!("`{name}` holds no figures");
    }
    Ok(figures)
}

/// Prints every figure beside its goal, and the goals of these programs that nothing measured.
fn report(figures: &[Figure], binaries: &[&str]) {
    println!();
    println!(
        "{:<44}{:>14} {:<10}{:>12}{:>9}{:>9}",
        "figure", "value", "unit", "baseline", "ratio", "goal"
    );
    let mut missed = 0;
    for figure in figures {
        let goal = goals::of(&figure.name);
        missed += u32::from(goal.is_some_and(|goal| !goal.is_met(figure.ratio, figure.value)));
        println!("{}", row(figure, goal));
    }
    let measured: Vec<&str> = figures.iter().map(|figure| figure.name.as_str()).collect();
    let absent = goals::absent(binaries, &measured);
    for name in &absent {
        println!("{name:<44} not measured");
    }
    println!();
    match (missed, absent.len()) {
        (0, 0) => println!("every goal met"),
        (missed, 0) => println!("{missed} goals missed"),
        (missed, absent) => println!("{missed} goals missed, {absent} not measured"),
    }
}

fn row(figure: &Figure, goal: Option<Goal>) -> String {
    let optional = |number: Option<f64>| number.map(|n| format!("{n:.2}")).unwrap_or_default();
    let verdict = match goal {
        Some(goal) if goal.is_met(figure.ratio, figure.value) => "met",
        Some(_) => "MISSED",
        None => "",
    };
    format!(
        "{:<44}{:>14.4} {:<10}{:>12}{:>9}{:>9} {verdict}",
        figure.name,
        figure.value,
        figure.unit,
        optional(figure.baseline),
        optional(figure.ratio),
        goal.map(|goal| goal.to_string()).unwrap_or_default(),
    )
}
