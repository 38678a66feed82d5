//! `bench-fleet [--json FILE] [--seconds N] [--only PART]`: one limit over three hosts and a real Redis; see
//! `tests::bench::fleet`. Needs root.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tests::bench::{fleet, write};

#[derive(Debug, Parser)]
struct Args {
    /// Write the figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// How long the steady state is counted, 5 to 60; outages last half of it
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=60))]
    seconds: u64,
    /// Measure this part alone
    #[arg(long, value_enum)]
    only: Option<fleet::Part>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    tests::requires::bpf();
    let figures = fleet::run(Duration::from_secs(args.seconds), args.only);
    write(&figures, args.json.as_deref())
}
