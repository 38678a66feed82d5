//! `cargo xtask ci`: what `.ci/run` calls, in this order, stopping at the first failure.
use anyhow::Result;

use crate::report::Steps;
use crate::shell::{self, now, seconds};
use crate::{clippy, setup, test, tidy};

/// Entry point.
pub(crate) fn main() -> Result<()> {
    let start = now();
    setup::ensure(setup::Args {
        tests: true,
        ..setup::Args::default()
    })?;
    let mut steps = Steps::new(4);
    steps.step("cargo fmt --all --check", || {
        let mut command = shell::cargo();
        command.args(["fmt", "--all", "--check"]);
        shell::show(command)?;
        Ok("formatted".to_owned())
    })?;
    steps.step("cargo xtask clippy", || {
        clippy::main()?;
        Ok("no warnings".to_owned())
    })?;
    steps.step("cargo xtask tidy", || {
        tidy::main()?;
        Ok("tidy".to_owned())
    })?;
    steps.begin("cargo xtask test");
    let report = test::run(&test::Args::default());
    println!("whole run: {}", seconds(start.elapsed()));
    report?.close()
}
