//! A program from PyPI, in an environment of its own.
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::apt::{self, Tool};
use crate::shell;

/// What makes the environment.
const TOOLS: [Tool; 1] = [Tool {
    program: "python3",
    package: "python3",
    why: "runs tools of the tests",
}];

fn is_right(place: &Path, package: &str, version: &str) -> bool {
    let python = place.join("bin/python");
    let ask = format!("import importlib.metadata as m; print(m.version('{package}'))");
    shell::ask(&python.to_string_lossy(), &["-c", &ask]).is_some_and(|said| said.trim() == version)
}

/// Installs `package` below `place`, unless it is there; returns a sentence about what was done.
pub(crate) fn ensure(place: &Path, package: &str, version: &str) -> Result<String> {
    if is_right(place, package, version) {
        return Ok(format!("found {}", place.display()));
    }
    apt::ensure(&TOOLS)?;
    // A part of Debian's Python that is no program of its own.
    if shell::ask("python3", &["-c", "import ensurepip"]).is_none() {
        apt::install(&["python3-venv"])?;
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(place);
    shell::quietly(make)?;
    let mut install = Command::new(place.join("bin/python"));
    install
        .args(["-m", "pip", "install", "--quiet"])
        .arg(format!("{package}=={version}"));
    shell::quietly(install)?;
    if !is_right(place, package, version) {
        bail!("`{}` holds no {package} {version}", place.display());
    }
    Ok(format!("installed {}", place.display()))
}
