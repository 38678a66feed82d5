//! `ratelimiter doctor`: what keeps this machine from being protected, and what to do.
pub mod checks;
pub mod collect;
pub mod facts;
pub mod features;
pub mod render;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::Args;

use serde::Serialize;

use super::client::{Client, ConnectionArgs};
use super::config::judge;
use super::exit::{Exit, Outcome};
use super::output::OutputArgs;
use super::settings::{ProcessEnvironment, read_file};
use crate::admin::views::Status;
use crate::config::{AttachMode, DEFAULT_PATH, File, Interface, Settings, load};
use crate::dataplane::caps;
use checks::{Finding, Level};
use facts::{AgentFacts, Facts, RunningAgent, TableFacts};

/// Flags of `doctor`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Works with and without a running agent and changes nothing. Run it as root, or as the agent's user,
to see pins and programs. Exit code 0 if nothing failed, 1 if something did (with --strict: or if
there are warnings).

Examples:
  ratelimiter doctor --iface eth0
  ratelimiter doctor --iface eth0:generic --config ./ratelimiter.toml
  ratelimiter doctor -o json | jq '.findings[] | select(.level == \"failed\")'")]
pub struct DoctorArgs {
    /// Interface to look at, `eth0` or `eth0:generic`; repeat for several. Default: those of the
    /// configuration and those with a pinned link
    #[arg(long = "iface", value_name = "IFACE")]
    interfaces: Vec<Interface>,
    /// Configuration file
    #[arg(
        long,
        value_name = "PATH",
        env = "RATELIMITER_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
    /// Directory of the pins. Default: the configuration's
    #[arg(
        long,
        value_name = "DIR",
        env = "RATELIMITER_PIN_DIR",
        hide_env_values = true
    )]
    pins: Option<PathBuf>,
    /// State directory. Default: the configuration's
    #[arg(
        long,
        value_name = "DIR",
        env = "RATELIMITER_STATE_DIR",
        hide_env_values = true
    )]
    state_dir: Option<PathBuf>,
    /// Count warnings as failures
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// What `-o json` shows.
#[derive(Debug, Serialize)]
struct Report {
    /// The worst level of all findings.
    level: Level,
    findings: Vec<Finding>,
    facts: Facts,
}

/// Runs `doctor`.
pub async fn run(args: DoctorArgs) -> Outcome {
    let client = args.connection.client()?;
    let facts = collected(&args, &client).await;
    let findings = checks::examine(&facts, env!("CARGO_PKG_VERSION"));
    let level = checks::worst(&findings);
    let report = Report {
        level,
        findings,
        facts,
    };
    args.output.show(&report, |report, style| {
        render::report(&report.findings, style)
    })?;
    let bound = if args.strict {
        Level::Warning
    } else {
        Level::Failed
    };
    Ok(if level >= bound {
        Exit::Failed
    } else {
        Exit::Ok
    })
}

async fn collected(args: &DoctorArgs, client: &Client) -> Facts {
    let config_path = args.config.clone().unwrap_or_else(|| DEFAULT_PATH.into());
    let settings = settings(&config_path);
    let pin_dir = args
        .pins
        .clone()
        .unwrap_or_else(|| settings.pin_dir.as_str().into());
    let state_dir = args
        .state_dir
        .clone()
        .unwrap_or_else(|| settings.state_dir.as_str().into());
    let pins = collect::pins(&pin_dir, &settings);
    let interfaces = if args.interfaces.is_empty() {
        let mut interfaces = settings.interfaces.clone();
        for name in &pins.links {
            if interfaces.iter().all(|known| known.name != *name) {
                interfaces.extend(name.parse());
            }
        }
        interfaces
    } else {
        args.interfaces.clone()
    };
    let own_programs = collect::own_programs(&pin_dir, &settings);
    Facts {
        kernel_release: collect::kernel_release(),
        kernel_btf: collect::kernel_btf(),
        jit: collect::jit(),
        clock_source: collect::clock_source(),
        memlock_bytes: collect::memlock_bytes(),
        missing_capabilities: caps::missing(),
        bpffs: collect::bpffs(&pin_dir),
        pins,
        interfaces: interfaces
            .iter()
            .map(|interface| {
                let generic = interface.mode == AttachMode::Generic;
                collect::interface(&interface.name, generic, &own_programs)
            })
            .collect(),
        config: collect::config(&config_path, |text| {
            judge(&config_path.display().to_string(), text.as_bytes())
                .map(drop)
                .map_err(|refused| refused.to_string())
        }),
        state_dir: collect::directory(&state_dir),
        agent: AgentFacts {
            target: client.target().to_string(),
            state: running(client).await,
        },
    }
}

/// The settings an agent would start with, as far as they are valid: directories and interfaces
/// matter here, mistakes are judged apart.
fn settings(path: &std::path::Path) -> Settings {
    let name = path.display().to_string();
    let bytes = read_file(path).ok();
    let file = bytes.as_deref().map(|bytes| File { name: &name, bytes });
    load(file, &ProcessEnvironment, &[])
        .or_else(|_| load(None, &ProcessEnvironment, &[]))
        .map(|loaded| loaded.settings)
        .unwrap_or_default()
}

async fn running(client: &Client) -> Result<RunningAgent, String> {
    let status: Status = client
        .get("/v1/status")
        .await
        .map_err(|failure| failure.message)?;
    let tracked = status
        .tables
        .iter()
        .find(|table| table.name == ratelimiter_common::abi::names::TRACKED)
        .and_then(|table| Some((table.used?, table.capacity / 4 * 3)));
    Ok(RunningAgent {
        version: status.version,
        mode: super::limit_text::mode_word(status.mode).to_owned(),
        problems: status.problems,
        tables: status
            .crowd
            .iter()
            .map(|region| TableFacts {
                name: format!(
                    "IPv{} region {} ({})",
                    region.family, region.region, region.unit
                ),
                capacity: region.capacity,
                over_limit: region.over_limit,
                phi: region.phi,
            })
            .collect(),
        tracked,
    })
}
