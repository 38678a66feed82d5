//! The command line: one file per command.
//!
//! Every command is arguments, a request to the agent, and a rendering of its answer. Rendering
//! and parsing are pure; [`client`] is the only place that speaks to an agent, [`output`] the only
//! one that prints. Policy, bounds and decisions are the agent's; nothing is decided here.
#![expect(
    clippy::format_push_string,
    reason = "texts for people: an allocation more does not matter, a fallible `write!` reads worse"
)]
pub mod adaptive;
pub mod agent;
pub mod attach;
pub mod change;
pub mod changes;
pub mod check;
pub mod client;
pub mod clients;
pub mod completions;
pub mod config;
pub mod detach;
pub mod diff;
pub mod doctor;
pub mod exit;
pub mod explain;
pub mod health;
pub mod limit_text;
pub mod limits;
pub mod lists;
pub mod output;
pub mod pages;
pub mod policy_file;
pub mod segments;
pub mod settings;
pub mod sources;
mod ssh;
pub mod status;
pub mod sync;
pub mod top;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::{Failure, Outcome};
use output::remark;

const EXIT_CODES: &str = "\
Exit codes:
  0  ok
  1  failed, or the agent is degraded
  2  the command line or a value on it is wrong; nothing was changed
  3  `check` says denied, or `limits diff` found differences
  4  no agent answers
  5  no permission
  6  a change on trial was rolled back

First steps:
  ratelimiter doctor --iface eth0       is this machine fit?
  ratelimiter agent --iface eth0        count what would be dropped, drop nothing
  ratelimiter status                    what passes, what would be dropped
  ratelimiter top                       the same, live
  ratelimiter sources                   who sends most
  ratelimiter explain 192.0.2.7         why is this one limited?";

/// Limits packets and requests per source and per client, in the kernel and over HTTP
///
/// `ratelimiter agent` is the service. Every other command speaks to it, over a Unix socket unless
/// told otherwise.
#[derive(Debug, Parser)]
#[command(name = "ratelimiter", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[command(subcommand_value_name = "COMMAND", disable_help_subcommand = true)]
enum Command {
    /// Run the service: load the program, attach it, serve the API
    Agent(agent::AgentArgs),
    /// Protect an interface
    Attach(attach::AttachArgs),
    /// Stop protecting an interface, or remove everything
    Detach(detach::DetachArgs),
    /// Show what is protected, what passes and what is dropped
    Status(status::StatusArgs),
    /// Watch what passes, what is dropped and whose, live
    Top(top::TopArgs),
    /// Look for what keeps this machine from being protected
    Doctor(doctor::DoctorArgs),
    /// Set limits of clients and segments; compare and apply whole files
    #[command(subcommand)]
    Limits(limits::LimitsCommand),
    /// Who is limited: ids, segments, source prefixes
    #[command(subcommand)]
    Clients(clients::ClientsCommand),
    /// Classes of clients with the same limits
    #[command(subcommand)]
    Segments(segments::SegmentsCommand),
    /// Prefixes that are never limited
    #[command(subcommand)]
    Allow(lists::ListCommand),
    /// Prefixes that are dropped
    #[command(subcommand)]
    Block(lists::ListCommand),
    /// Show the sources that send most
    Sources(sources::SourcesArgs),
    /// Show why an address or client is limited, what it has left and when it may go on
    Explain(explain::ExplainArgs),
    /// Give an address or client its full burst again
    Reset(explain::ResetArgs),
    /// Ask whether a client's request is allowed, and charge it
    Check(check::CheckArgs),
    /// Limits that follow the health of what they protect
    #[command(subcommand)]
    Adaptive(adaptive::AdaptiveCommand),
    /// The fleet: its shared store, and who is in it
    #[command(subcommand)]
    Sync(sync::SyncCommand),
    /// Report the health of a backend
    #[command(subcommand)]
    Health(health::HealthCommand),
    /// Check, show and explain the configuration file
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Keep a change that is on trial
    Confirm(changes::ConfirmArgs),
    /// Take a change on trial back at once
    Rollback(changes::RollbackArgs),
    /// Show who changed what, and what is on trial
    Changes(changes::ChangesArgs),
    /// Write a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Write manual pages
    Man(completions::ManArgs),
}

/// Parses the command line, runs the command, and says how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output with code 0, mistakes to standard error with 2.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(cli.command) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            remark(&failure.to_string());
            failure.exit.into()
        }
    }
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Agent(args) => agent::run(&args),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
        Command::Config(command) => config::run(command),
        Command::Detach(args) => block_on(detach::run(args)),
        Command::Doctor(args) => block_on(doctor::run(args)),
        Command::Attach(args) => block_on(attach::run(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Top(args) => block_on(top::run(args)),
        Command::Limits(command) => block_on(limits::run(command)),
        Command::Clients(command) => block_on(clients::run(command)),
        Command::Segments(command) => block_on(segments::run(command)),
        Command::Allow(command) => block_on(lists::run(lists::List::Allow, command)),
        Command::Block(command) => block_on(lists::run(lists::List::Block, command)),
        Command::Sources(args) => block_on(sources::run(args)),
        Command::Explain(args) => block_on(explain::run(args)),
        Command::Reset(args) => block_on(explain::reset(args)),
        Command::Check(args) => block_on(check::run(args)),
        Command::Adaptive(command) => block_on(adaptive::run(command)),
        Command::Sync(command) => block_on(sync::run(command)),
        Command::Health(command) => block_on(health::run(command)),
        Command::Confirm(args) => block_on(changes::confirm(args)),
        Command::Rollback(args) => block_on(changes::rollback(args)),
        Command::Changes(args) => block_on(changes::run(args)),
    }
}

/// Runs a client command on a runtime of its own, on this thread.
fn block_on(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("the runtime cannot be started: {e}")))?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests;
