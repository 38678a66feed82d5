//! The rungs of the tests: which test binary belongs to which, and what each needs.
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;

use crate::shell;

/// A rung: nothing is learned from one while the one before it is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Rung {
    /// Pure logic, without privileges
    Host,
    /// The real kernel program, run on single frames
    Program,
    /// The data plane on real interfaces in namespaces
    Netns,
    /// The whole agent, as people use it
    Agent,
}

/// Every rung, in order.
pub(crate) const RUNGS: [Rung; 4] = [Rung::Host, Rung::Program, Rung::Netns, Rung::Agent];

impl Rung {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Program => "program",
            Self::Netns => "netns",
            Self::Agent => "agent",
        }
    }

    /// Whether its tests make namespaces and load programs.
    pub(crate) fn needs_root(self) -> bool {
        self != Self::Host
    }
}

/// A built test binary.
#[derive(Clone, Debug)]
pub(crate) struct TestBinary {
    pub(crate) rung: Rung,
    /// `package` or `package target`, for people.
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
    /// Where cargo would run it.
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

/// Arguments of cargo that name what is tested. The kernel program only compiles for a BPF target.
pub(crate) const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "ratelimiter-ebpf"];

/// Lists the test binaries that `cargo test --no-run` has built.
pub(crate) fn binaries() -> Result<Vec<TestBinary>> {
    let output = shell::cargo()
        .args(["test", "--no-run", "--quiet", "--message-format=json"])
        .args(WORKSPACE)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo could not build the tests");
    }
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Message>(line) else {
            continue;
        };
        found.extend(binary(message));
    }
    found.sort_by(|a, b| (a.rung, &a.name).cmp(&(b.rung, &b.name)));
    Ok(found)
}

fn binary(message: Message) -> Option<TestBinary> {
    let is_test = message.reason == "compiler-artifact" && message.profile?.test;
    let executable = message.executable.filter(|_| is_test)?;
    let directory = message.manifest_path?.parent()?.to_path_buf();
    let package = directory.file_name()?.to_string_lossy().into_owned();
    let target = message.target?;
    let is_integration = target.kind.iter().any(|kind| kind == "test");
    Some(TestBinary {
        rung: rung_of(&package, &target.name, is_integration),
        name: if is_integration {
            format!("{package} {}", target.name)
        } else if target.kind.iter().any(|kind| kind == "bin") {
            format!("{package} (bin {})", target.name)
        } else {
            package
        },
        executable,
        directory,
    })
}

/// Integration tests of the package `tests` are rungs by name; one that is not known is of the last
/// rung, so that none is forgotten. Everything else runs without privileges.
fn rung_of(package: &str, target: &str, is_integration: bool) -> Rung {
    match target {
        _ if package != "tests" || !is_integration => Rung::Host,
        "docs" | "frames" => Rung::Host,
        "program" => Rung::Program,
        "harness" | "netns" => Rung::Netns,
        _ => Rung::Agent,
    }
}

#[cfg(test)]
mod tests {
    use super::{Rung, rung_of};

    #[test]
    fn puts_an_unknown_integration_test_on_the_last_rung() {
        assert_eq!(rung_of("tests", "brand_new", true), Rung::Agent);
        assert_eq!(rung_of("tests", "program", true), Rung::Program);
        assert_eq!(rung_of("tests", "tests", false), Rung::Host);
        assert_eq!(
            rung_of("ratelimiter-userspace", "configs", true),
            Rung::Host
        );
    }
}
