//! schemathesis for the tests: it asks the check API what its own description says may be asked, and
//! what it says may not. In an environment of its own, from PyPI.
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::apt::{self, Tool};
use crate::shell;

/// The version the tests were written for.
const VERSION: &str = "4.32.0";

/// What makes the environment.
const TOOLS: [Tool; 1] = [Tool {
    program: "python3",
    package: "python3",
    why: "runs schemathesis",
}];

/// Where the tests look for it.
fn place() -> PathBuf {
    shell::target_dir().join("tools/schemathesis")
}

fn is_right() -> bool {
    let program = place().join("bin/st");
    shell::ask(&program.to_string_lossy(), &["--version"])
        .is_some_and(|said| said.trim().ends_with(VERSION))
}

/// Installs schemathesis, unless it is there; returns a sentence about what was done.
pub(crate) fn ensure() -> Result<String> {
    let place = place();
    if is_right() {
        return Ok(format!("found {}", place.display()));
    }
    apt::ensure(&TOOLS)?;
    // A part of Debian's Python that is no program of its own.
    if shell::ask("python3", &["-c", "import ensurepip"]).is_none() {
        apt::install(&["python3-venv"])?;
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(&place);
    shell::quietly(make)?;
    let mut install = Command::new(place.join("bin/python"));
    install
        .args(["-m", "pip", "install", "--quiet"])
        .arg(format!("schemathesis=={VERSION}"));
    shell::quietly(install)?;
    if !is_right() {
        bail!("`{}` holds no schemathesis {VERSION}", place.display());
    }
    Ok(format!("installed {}", place.display()))
}
