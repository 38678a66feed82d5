//! `ratelimiter agent`: flags over environment over file over defaults, then the service.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::exit::{Exit, Failure, Outcome};
use super::settings::{config_path, settings};
use crate::agent::{self, Loader, Options};
use crate::config::{Attach, AttachMode, Interface, Listen, Loaded, LogFormat, Override, Settings};
use crate::dataplane::{Error as DataPlaneError, ErrorKind};

/// Flags of `agent`. Each stands for a key of the configuration and wins over it.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Each setting is taken from its flag, else from its RATELIMITER_* variable, else from the
configuration file, else from its default (`ratelimiter config show` tells which). Without --config
the file is /etc/ratelimiter/ratelimiter.toml if it exists.

The agent attaches to nothing it was not told to, and starts in shadow: it counts what it would
drop and drops nothing until --enforce. SIGTERM ends it; the last policy stays in force in the
kernel and the next agent takes it over as it is. SIGHUP reads the configuration again.

Examples:
  ratelimiter agent --iface eth0                    watch only
  ratelimiter agent --iface eth0 --enforce          drop what is over its limit
  ratelimiter agent --iface eth0 --iface eth1:generic --config ./ratelimiter.toml")]
pub struct AgentArgs {
    /// Configuration file (TOML)
    #[arg(
        long,
        value_name = "PATH",
        env = "RATELIMITER_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
    /// Interface to protect, `eth0`, or `eth0:generic` where the driver has no native XDP; repeat
    /// for several. Replaces those of the configuration
    #[arg(long = "iface", value_name = "IFACE")]
    interfaces: Vec<Interface>,
    /// Drop what is over its limit, instead of only counting it
    #[arg(long)]
    enforce: bool,
    /// Address of the admin API, dashboard and metrics, or `off`
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<Listen>,
    /// Address of the check API, or `off`
    #[arg(long, value_name = "ADDRESS:PORT")]
    check_listen: Option<Listen>,
    /// Unix socket of the admin API
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// Directory that keeps configuration and usage
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Directory on a bpf file system for programs, maps and links
    #[arg(long, value_name = "DIR")]
    pins: Option<String>,
    /// Make new tables where pins of another shape are found (every bucket starts full), and take
    /// the place of a foreign XDP program
    #[arg(long)]
    replace: bool,
    /// Keep nothing on disk: what is set over the API is gone when the agent ends
    #[arg(long)]
    ephemeral: bool,
    /// What is logged, for example `info` or `warn,ratelimiter_userspace::dataplane=debug`
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

impl AgentArgs {
    /// The flags as settings that win over environment and file.
    fn overrides(&self) -> Vec<Override> {
        let mut overrides = Vec::new();
        let mut add = |flag: &str, path: &str, value: Option<String>| {
            if let Some(value) = value {
                overrides.push(Override::flag(flag, path, &value));
            }
        };
        let interfaces: Vec<String> = self
            .interfaces
            .iter()
            .map(|interface| match interface.mode {
                AttachMode::Native => interface.name.clone(),
                AttachMode::Generic => format!("{}:generic", interface.name),
            })
            .collect();
        add(
            "--iface",
            "interfaces",
            (!interfaces.is_empty()).then(|| interfaces.join(",")),
        );
        add(
            "--enforce",
            "enforce",
            self.enforce.then(|| "true".to_owned()),
        );
        add(
            "--listen",
            "admin.listen",
            self.listen.map(|at| at.to_string()),
        );
        add(
            "--check-listen",
            "check.http",
            self.check_listen.map(|at| at.to_string()),
        );
        add("--socket", "admin.socket", self.socket.clone());
        add("--state-dir", "state_dir", self.state_dir.clone());
        add("--pins", "pin_dir", self.pins.clone());
        add("--log", "log.level", self.log.clone());
        overrides
    }
}

/// Runs the service until SIGTERM or SIGINT.
pub fn run(args: &AgentArgs) -> Outcome {
    let path = config_path(args.config.as_deref());
    let flags = args.overrides();
    let settings = merged(settings(path.as_deref(), &flags)?, args.replace);
    start_log(&settings)?;
    // Before there are threads: rights are a thread's own.
    agent::privileges::restrict().map_err(|error| failed(&error))?;
    let options = Options {
        settings,
        config_path: path.clone(),
        load: Some(loader(path, flags, args.replace)),
        ephemeral: args.ephemeral,
        ssh_peer: super::ssh::peer(),
        replace_pins: args.replace,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("the runtime cannot be started: {e}")))?;
    // The agent itself listens for SIGTERM and SIGINT.
    let outcome = runtime
        .block_on(agent::run(options, std::future::pending()))
        .map_err(|error| failed(&error));
    // Whatever still blocks (a slow system call) must not keep a drained agent alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome.map(|()| Exit::Ok)
}

/// The settings with what `--replace` says about foreign programs.
fn merged(loaded: Loaded, replace: bool) -> Settings {
    let mut settings = loaded.settings;
    if replace {
        for interface in &mut settings.interfaces {
            interface.foreign = Attach::Replace;
        }
    }
    settings
}

/// Reads the settings again for a reload, with the flags of the start.
fn loader(path: Option<PathBuf>, flags: Vec<Override>, replace: bool) -> Loader {
    Arc::new(move || {
        settings(path.as_deref(), &flags)
            .map(|loaded| merged(loaded, replace))
            .map_err(|failure| failure.message)
    })
}

/// Log lines go to standard error.
fn start_log(settings: &Settings) -> Result<(), Failure> {
    use std::io::IsTerminal;
    let level = &settings.log.level;
    let filter = EnvFilter::try_new(level)
        .map_err(|e| Failure::usage(format!("`log.level` is `{level}`: {e}")))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(super::output::Style::of_stderr().colour && std::io::stderr().is_terminal());
    let started = match settings.log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|e| Failure::new(format!("the log cannot be started: {e}")))
}

/// Why the agent could not start or had to end.
fn failed(error: &anyhow::Error) -> Failure {
    let message = format!("{error:#}");
    let denied = error.chain().any(|cause| {
        cause
            .downcast_ref::<DataPlaneError>()
            .is_some_and(|error| error.kind() == ErrorKind::Permission)
            || cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    });
    let failure = Failure::new(message)
        .with_help("`ratelimiter doctor` looks for what keeps this machine from being protected");
    if denied {
        failure.with_exit(Exit::Permission)
    } else {
        failure
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser;

    use super::*;
    use crate::config::load;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        agent: AgentArgs,
    }

    fn loaded(line: &str) -> Settings {
        let words = std::iter::once("agent").chain(line.split_whitespace());
        let args = Line::try_parse_from(words).unwrap().agent;
        load(None, &BTreeMap::<String, String>::new(), &args.overrides())
            .unwrap()
            .settings
    }

    #[test]
    fn flags_become_settings() {
        let settings = loaded(
            "--iface eth0 --iface eth1:generic --enforce --listen 127.0.0.1:1 --check-listen off \
             --socket /tmp/x.sock --state-dir /tmp/s --pins /sys/fs/bpf/x --log debug",
        );
        assert_eq!(settings.interfaces.len(), 2);
        assert_eq!(settings.interfaces[1].name, "eth1");
        assert_eq!(settings.interfaces[1].mode, AttachMode::Generic);
        assert!(settings.enforce);
        assert_eq!(settings.admin.listen.to_string(), "127.0.0.1:1");
        assert_eq!(settings.check.http, Listen::Off);
        assert_eq!(settings.admin.socket, "/tmp/x.sock");
        assert_eq!(settings.state_dir, "/tmp/s");
        assert_eq!(settings.pin_dir, "/sys/fs/bpf/x");
        assert_eq!(settings.log.level, "debug");
    }

    #[test]
    fn nothing_is_overridden_without_flags() {
        assert_eq!(loaded(""), Settings::default());
    }

    #[test]
    fn refusals_of_the_kernel_are_exit_code_5() {
        let denied = DataPlaneError::Permission {
            missing: "CAP_BPF".to_owned(),
            doing: "creating a map".to_owned(),
            source: std::io::Error::from(std::io::ErrorKind::PermissionDenied),
        };
        assert_eq!(failed(&anyhow::Error::new(denied)).exit, Exit::Permission);
        let other = DataPlaneError::UnknownInterface("eth9".to_owned());
        let failure = failed(&anyhow::Error::new(other));
        assert_eq!(failure.exit, Exit::Failed);
        assert_eq!(failure.message, "there is no interface `eth9`");
    }
}
