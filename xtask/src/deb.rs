//! `cargo xtask deb`: the Debian package. What is in it stands in `ratelimiter-userspace/Cargo.toml`
//! and `packaging/`; manual pages and completions are written by the program itself.
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;

use crate::report::Steps;
use crate::shell;

/// The version of cargo-deb the metadata was written for.
const VERSION: &str = "3.8.0";

/// What to package.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct Args {
    /// Package the program as the tests built it: to look at, not to install
    #[arg(long)]
    dev: bool,
    /// Revision of the package, after the version
    #[arg(long, default_value = "1")]
    revision: String,
    /// Where to write it; a file, or a directory that exists
    #[arg(long, short, default_value = "target/debian")]
    output: PathBuf,
}

fn root() -> PathBuf {
    shell::target_dir().join("tools/cargo-deb")
}

fn program() -> PathBuf {
    root().join("bin/cargo-deb")
}

fn is_right() -> bool {
    shell::ask(&program().to_string_lossy(), &["--version"])
        .is_some_and(|said| said.contains(VERSION))
}

/// Builds cargo-deb below the target directory, unless it is there; returns a sentence about what
/// was done.
pub(crate) fn ensure() -> Result<String> {
    let root = root();
    if is_right() {
        return Ok(format!("found {}", root.display()));
    }
    let mut install = shell::cargo();
    install
        .args(["install", "--quiet", "--locked", "--debug", "cargo-deb"])
        // Compressing by the program `xz` needs no C library.
        .args(["--no-default-features", "--version", VERSION, "--root"])
        .arg(&root);
    shell::quietly(install)?;
    if !is_right() {
        bail!("`{}` holds no cargo-deb {VERSION}", root.display());
    }
    Ok(format!("installed {}", root.display()))
}

/// Entry point.
pub(crate) fn main(args: &Args) -> Result<()> {
    let mut steps = Steps::new(4);
    steps.step("cargo-deb, which makes the package", ensure)?;
    let profile = if args.dev { "debug" } else { "release" };
    steps.step("build the program", || {
        let mut command = shell::cargo();
        command.args(["build", "--package", "ratelimiter-userspace", "--bins"]);
        if !args.dev {
            command.arg("--release");
        }
        shell::quietly(command)?;
        Ok("built".to_owned())
    })?;
    let binary = shell::target_dir().join(profile).join("ratelimiter");
    steps.step("write manual pages and completions", || {
        write_beside(&binary)?;
        Ok("written".to_owned())
    })?;
    steps.step("make the package", || {
        let mut command = Command::new(program());
        command
            .args(["--no-build", "--package", "ratelimiter-userspace"])
            .args(["--deb-revision", &args.revision, "--output"])
            .arg(&args.output);
        if args.dev {
            command.args(["--profile", "dev", "--fast"]);
        }
        shell::quietly(command)?;
        Ok(format!("in {}", args.output.display()))
    })
}

/// Writes what the program writes about itself to where the package takes it from.
fn write_beside(binary: &std::path::Path) -> Result<()> {
    let place = shell::target_dir().join("package");
    // Pages of commands that are no more.
    drop(fs::remove_dir_all(&place));
    let man = place.join("man");
    fs::create_dir_all(&man).with_context(|| format!("making `{}`", man.display()))?;
    let mut pages = Command::new(binary);
    pages.args(["man", "--all"]).arg(&man);
    shell::quietly(pages)?;
    for shell_name in ["bash", "zsh", "fish"] {
        let output = Command::new(binary)
            .args(["completions", shell_name])
            .output()
            .with_context(|| format!("cannot run `{}`", binary.display()))?;
        if !output.status.success() {
            bail!("`{}` writes no completions", binary.display());
        }
        let file = place.join(format!("ratelimiter.{shell_name}"));
        fs::write(&file, output.stdout).with_context(|| format!("making `{}`", file.display()))?;
    }
    Ok(())
}
