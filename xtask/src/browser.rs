//! What drives a browser in the tests: playwright-core, and axe-core, which judges a page. From npm,
//! without running anything they bring; the browser itself is Debian's.
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Tool};
use crate::shell;

/// The versions the tests were written for; playwright-core's newest that runs on Debian 12's Node 18.
const PACKAGES: [(&str, &str); 2] = [("playwright-core", "1.60.0"), ("axe-core", "4.14.1")];

/// What installs and runs them.
const TOOLS: [Tool; 3] = [
    Tool {
        program: "chromium",
        package: "chromium",
        why: "opens the dashboard in tests",
    },
    Tool {
        program: "node",
        package: "nodejs",
        why: "drives the browser",
    },
    Tool {
        program: "npm",
        package: "npm",
        why: "downloads what drives the browser",
    },
];

/// Where the tests look for them.
fn place() -> PathBuf {
    shell::target_dir().join("tools/browser")
}

fn is_right() -> bool {
    PACKAGES.iter().all(|(name, version)| {
        let manifest = place().join("node_modules").join(name).join("package.json");
        fs::read_to_string(manifest)
            .is_ok_and(|text| text.contains(&format!("\"version\": \"{version}\"")))
    })
}

/// Installs them, unless they are there; returns a sentence about what was done.
pub(crate) fn ensure() -> Result<String> {
    let place = place();
    let said = apt::ensure(&TOOLS)?;
    if is_right() {
        return Ok(format!("{said}, {}", place.display()));
    }
    // What an interrupted setup left.
    drop(fs::remove_dir_all(&place));
    fs::create_dir_all(&place).with_context(|| format!("making `{}`", place.display()))?;
    let mut install = Command::new("npm");
    install
        .args([
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
        ])
        .arg("--prefix")
        .arg(&place)
        .args(PACKAGES.map(|(name, version)| format!("{name}@{version}")));
    shell::quietly(install)?;
    if !is_right() {
        bail!("`{}` holds not what was asked for", place.display());
    }
    Ok(format!("installed {}", place.display()))
}
