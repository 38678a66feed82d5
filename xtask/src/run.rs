//! `cargo xtask run`: from a fresh clone to the first packet seen dropped.
//!
//! Sets up and builds, then becomes the program `demo` (package `tests`), which does the showing.
use std::path::Path;

use anyhow::Result;
use clap::Args as ClapArgs;

use crate::report::Steps;
use crate::{setup, shell};

/// What to show.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// Attach to this interface instead of a veth pair of our own; counts only, unless --enforce
    #[arg(long, value_name = "INTERFACE")]
    iface: Option<String>,
    /// End by itself after this long, e.g. 60s or 5m
    #[arg(long = "for", value_name = "TIME")]
    duration: Option<String>,
    /// With --iface: really drop
    #[arg(long, requires = "iface")]
    enforce: bool,
}

/// Entry point.
pub(crate) fn main(args: &Args) -> Result<()> {
    setup::ensure(setup::Args::default())?;
    let mut steps = Steps::new(2);
    steps.step("build the agent and the demo", || {
        let mut command = shell::cargo();
        command
            .args([
                "build",
                "--package",
                "ratelimiter-userspace",
                "--package",
                "tests",
            ])
            .args(["--bin", "ratelimiter", "--bin", "demo"])
            // The demo shows packets: without gRPC it is built sooner.
            .arg("--no-default-features");
        shell::quietly(command)?;
        Ok("built".to_owned())
    })?;
    steps.begin("start");
    let mut command = shell::as_root(Path::new(&shell::target_dir().join("debug/demo")), &[])?;
    if let Some(interface) = &args.iface {
        command.args(["--iface", interface]);
    }
    if let Some(duration) = &args.duration {
        command.args(["--for", duration]);
    }
    if args.enforce {
        command.arg("--enforce");
    }
    // Everything is built; the demo must not ask cargo again.
    command.env_remove("CARGO");
    shell::become_(command)
}
