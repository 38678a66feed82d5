//! Developer commands: `cargo xtask <command>`, one file each.
//!
//! Everything a person or CI needs is here; nothing of the product is. This crate depends on little,
//! so that it is ready seconds after a fresh clone and can say what it does next.
mod apt;
mod bench;
mod browser;
mod ci;
mod clippy;
mod deb;
mod doctor;
mod envoy;
mod goals;
mod kubernetes;
mod libtest;
mod report;
mod run;
mod rungs;
mod schemathesis;
mod setup;
mod shell;
mod test;
mod throttlecrab;
mod tidy;
mod toolchain;
mod venv;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Developer commands of ratelimiter")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// See it work: build, attach in a namespace, one polite and one noisy client, a live table
    Run(run::Args),
    /// Run every rung of the tests: host, program, netns, agent
    Test(test::Args),
    /// Measure, and print each figure beside its goal
    Bench(bench::Args),
    /// Install what is missing to build (and with --tests, to test)
    Setup(setup::Args),
    /// Say what this machine can build, test and run
    Doctor,
    /// Check what the compiler does not: file length, layers, docs, ASCII, promises
    Tidy,
    /// Lint everything, warnings are errors
    Clippy,
    /// Make the Debian package
    Deb(deb::Args),
    /// What `.ci/run` calls: fmt, clippy, tidy, test
    Ci,
}

/// The error of a command that has said everything already.
#[derive(Debug)]
struct Said;

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed, as said above")
    }
}

impl std::error::Error for Said {}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Run(args) => run::main(&args),
        Task::Test(args) => test::main(&args),
        Task::Bench(args) => bench::main(&args),
        Task::Setup(args) => setup::main(args),
        Task::Doctor => doctor::main(),
        Task::Tidy => tidy::main(),
        Task::Clippy => clippy::main(),
        Task::Deb(args) => deb::main(&args),
        Task::Ci => ci::main(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Said>() => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
