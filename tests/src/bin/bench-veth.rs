//! `bench-veth [--json FILE] [--rounds N] [--seconds S]`: CPU per packet over a veth pair beside
//! nftables and iptables, and TCP goodput under a flood. Needs root.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tests::bench::veth::{Plan, run};

fn main() -> ExitCode {
    let (plan, file) = match arguments(std::env::args().skip(1)) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("bench-veth: {error}");
            return ExitCode::from(2);
        }
    };
    let figures = run(plan);
    for figure in &figures {
        println!(
            "{}: {:.2} {} (baseline {:.2}, ratio {:.3})",
            figure.name,
            figure.value,
            figure.unit,
            figure.baseline.unwrap_or(f64::NAN),
            figure.ratio.unwrap_or(f64::NAN)
        );
    }
    let Some(file) = file else {
        return ExitCode::SUCCESS;
    };
    let written = serde_json::to_string_pretty(&figures)
        .map_err(std::io::Error::other)
        .and_then(|text| std::fs::write(&file, text));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-veth: cannot write `{}`: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<(Plan, Option<PathBuf>), String> {
    let mut plan = Plan::default();
    let mut file = None;
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .ok_or_else(|| format!("`{word}` needs a value"))
        };
        match word.as_str() {
            "--json" => file = Some(PathBuf::from(value()?)),
            "--rounds" => plan.rounds = number(&value()?)?.max(1) as u32,
            "--seconds" => plan.slice = Duration::from_secs(number(&value()?)?.clamp(1, 60)),
            _ => return Err(format!("unknown argument `{word}`")),
        }
    }
    Ok((plan, file))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is not a whole number"))
}
