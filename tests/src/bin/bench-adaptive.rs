//! `bench-adaptive [--json FILE]`: limits that follow health, in a closed loop with a real backend;
//! see `tests::bench::adaptive`. Needs root.
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tests::bench::{adaptive, write};

#[derive(Debug, Parser)]
struct Args {
    /// Write the figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    tests::requires::bpf();
    write(&adaptive::run(), args.json.as_deref())
}
