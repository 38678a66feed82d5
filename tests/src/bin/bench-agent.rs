//! `bench-agent [--json FILE] [--rounds N]`: start, loading and memory of the agent; see
//! `tests::bench::agent`. Needs root.
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tests::bench::{agent, write};

#[derive(Debug, Parser)]
struct Args {
    /// Write the figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

fn main() -> ExitCode {
    let args = Args::parse();
    tests::requires::bpf();
    write(&agent::run(args.rounds), args.json.as_deref())
}
