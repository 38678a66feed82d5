//! `bench-veth [--json FILE] [--rounds N] [--seconds S] [--sources N]`: CPU per packet over a veth pair beside
//! nftables and iptables, and TCP goodput under a flood; see `tests::bench::veth`. Needs root.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tests::bench::veth::{Plan, run};
use tests::bench::write;

#[derive(Debug, Parser)]
struct Args {
    /// Write the figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds a receiver is flooded per round
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Sources that flood a receiver
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    sources: u32,
}

fn main() -> ExitCode {
    let args = Args::parse();
    tests::requires::bpf();
    let plan = Plan {
        rounds: args.rounds,
        slice: Duration::from_secs(args.seconds),
        sources: args.sources,
        ..Plan::default()
    };
    write(&run(plan), args.json.as_deref())
}
