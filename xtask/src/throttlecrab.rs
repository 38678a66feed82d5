//! throttlecrab-server, a rival of the check API's servers in the benchmarks.
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::apt::{self, Tool};
use crate::shell;

/// The version the figures are compared with.
const VERSION: &str = "0.4.40";

/// What building it takes.
const TOOLS: [Tool; 2] = [
    Tool {
        program: "protoc",
        package: "protobuf-compiler",
        why: "compiles throttlecrab-server's messages",
    },
    Tool {
        program: "taskset",
        package: "util-linux",
        why: "binds a server to one processor",
    },
];

/// Where the benchmark looks for it.
fn root() -> PathBuf {
    shell::target_dir().join("tools/throttlecrab")
}

fn is_right() -> bool {
    let program = root().join("bin/throttlecrab-server");
    shell::ask(&program.to_string_lossy(), &["--version"])
        .is_some_and(|said| said.trim().ends_with(VERSION))
}

/// Builds and installs it below the target directory, unless it is there; returns a sentence about
/// what was done.
pub(crate) fn ensure() -> Result<String> {
    let root = root();
    if is_right() {
        return Ok(format!("found {}", root.display()));
    }
    apt::ensure(&TOOLS)?;
    let mut install = shell::cargo();
    install
        .args(["install", "--quiet", "--locked", "throttlecrab-server"])
        .args(["--version", VERSION, "--root"])
        .arg(&root);
    shell::quietly(install)?;
    if !is_right() {
        bail!(
            "`{}` holds no throttlecrab-server {VERSION}",
            root.display()
        );
    }
    Ok(format!("installed {}", root.display()))
}
