//! Debian packages: which are missing, and installing exactly those.
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// A program and the Debian package that brings it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
    pub(crate) why: &'static str,
}

/// Whether packages can be installed by apt here.
pub(crate) fn is_here() -> bool {
    shell::find("apt-get").is_some()
}

/// Whether apt knows a package by this name.
pub(crate) fn offers(package: &str) -> bool {
    shell::ask("apt-cache", &["policy", package]).is_some_and(|policy| {
        policy.contains("Candidate:") && !policy.contains("Candidate: (none)")
    })
}

/// Installs what is missing of `tools`; returns a sentence about what was done.
pub(crate) fn ensure(tools: &[Tool]) -> Result<String> {
    let missing: Vec<&Tool> = tools
        .iter()
        .filter(|tool| shell::find(tool.program).is_none())
        .collect();
    if missing.is_empty() {
        let names: Vec<&str> = tools.iter().map(|tool| tool.program).collect();
        return Ok(format!("found {}", names.join(", ")));
    }
    for tool in &missing {
        println!("      missing `{}`: {}", tool.program, tool.why);
    }
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    install(&packages)?;
    for tool in &missing {
        if shell::find(tool.program).is_none() {
            bail!(
                "package `{}` is installed, but there is no program `{}`",
                tool.package,
                tool.program
            );
        }
    }
    Ok(format!("installed {}", packages.join(" ")))
}

/// Installs packages from a fresh list: a machine's own may be older than its security archive, and
/// then name a version that is too old or no longer there.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if !is_here() {
        bail!(
            "there is no `apt-get` here: install what provides these Debian packages by hand, then \
             run this again: {}",
            packages.join(" ")
        );
    }
    refresh()?;
    let unknown: Vec<&str> = packages
        .iter()
        .filter(|package| !offers(package))
        .copied()
        .collect();
    if !unknown.is_empty() {
        bail!(
            "apt does not offer `{}`: Debian 12 with its security archive does",
            unknown.join("`, `")
        );
    }
    println!("      apt-get install {}", packages.join(" "));
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    shell::quietly(apt(&arguments)?)?;
    Ok(())
}

/// Refreshes the list of packages, once in a run.
pub(crate) fn refresh() -> Result<()> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !is_here() || DONE.load(Ordering::Relaxed) {
        return Ok(());
    }
    println!("      apt-get update");
    shell::quietly(apt(&["update"])?).context("cannot refresh the list of packages")?;
    DONE.store(true, Ordering::Relaxed);
    Ok(())
}

fn apt(arguments: &[&str]) -> Result<Command> {
    let mut command = shell::as_root(Path::new("/usr/bin/env"), &[])?;
    command
        // Services that packages bring must not start by themselves, and nothing may ask.
        .args(["DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"])
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(arguments);
    Ok(command)
}
