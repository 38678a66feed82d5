//! `cargo xtask test`: every rung after the other, time per rung, and one line of counts.
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::Args as ClapArgs;

use crate::libtest::{self, Counts};
use crate::report::Steps;
use crate::rungs::{self, RUNGS, Rung, TestBinary};
use crate::shell::{self, now, seconds};
use crate::{Said, setup};

/// Longest time one test binary may run, in seconds; then it hangs.
const BOUND_S: u32 = 1800;

/// Variable that tells tests to run their long form.
const NIGHTLY: &str = "RATELIMITER_NIGHTLY";

/// What to run.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct Args {
    /// Only this rung
    #[arg(long, value_enum)]
    rung: Option<Rung>,
    /// Long forms: more cycles, more frames, more time
    #[arg(long)]
    nightly: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// Entry point.
pub(crate) fn main(args: &Args) -> Result<()> {
    setup::ensure(setup::Args {
        tests: true,
        ..setup::Args::default()
    })?;
    run(args)?.close()
}

/// What became of all rungs.
#[derive(Debug, Default)]
pub(crate) struct Report {
    counts: Counts,
    rungs: Vec<(Rung, Counts, Duration)>,
    complaints: Vec<String>,
}

impl Report {
    /// Prints the summary; its last line is `N passed, N failed`, alone.
    pub(crate) fn close(self) -> Result<()> {
        println!();
        println!("{:<10}{:>8}{:>8}{:>12}", "rung", "passed", "failed", "time");
        for (rung, counts, time) in &self.rungs {
            let time = seconds(*time);
            println!(
                "{:<10}{:>8}{:>8}{time:>12}",
                rung.name(),
                counts.passed,
                counts.failed
            );
        }
        for complaint in &self.complaints {
            println!("error: {complaint}");
        }
        // What is wrong beside failing tests counts as failed too: the last line must not lie.
        let failed = self.counts.failed + self.complaints.len() as u32;
        println!("{} passed, {failed} failed", self.counts.passed);
        if failed > 0 {
            return Err(Said.into());
        }
        Ok(())
    }
}

/// Builds and runs the rungs.
pub(crate) fn run(args: &Args) -> Result<Report> {
    let mut steps = Steps::new(2);
    steps.step("build the tests", || {
        let mut command = shell::cargo();
        command.args(["test", "--no-run"]).args(rungs::WORKSPACE);
        shell::quietly(command)?;
        // The agent that the tests start; `cargo test` does not build other packages' binaries.
        let mut command = shell::cargo();
        command.args(["build", "--package", "ratelimiter-userspace", "--bins"]);
        shell::quietly(command)?;
        Ok("built".to_owned())
    })?;
    steps.begin("run the tests");
    let binaries = rungs::binaries()?;
    let mut report = Report::default();
    for rung in RUNGS {
        if args.rung.is_none_or(|only| only == rung) {
            run_rung(rung, &binaries, args, &mut report)?;
        }
    }
    Ok(report)
}

fn run_rung(rung: Rung, binaries: &[TestBinary], args: &Args, report: &mut Report) -> Result<()> {
    println!("--- {}", rung.name());
    let start = now();
    let mut counts = Counts::default();
    for binary in binaries.iter().filter(|binary| binary.rung == rung) {
        run_binary(binary, args, &mut counts, &mut report.complaints)?;
    }
    if rung == Rung::Host {
        run_doc_tests(args, &mut counts, &mut report.complaints)?;
    }
    if counts.ignored > 0 {
        let ignored = counts.ignored;
        report.complaints.push(format!(
            "rung `{}`: {ignored} ignored tests; a test runs or goes",
            rung.name()
        ));
    }
    if counts.passed + counts.failed == 0 && args.filter.is_none() {
        report
            .complaints
            .push(format!("rung `{}` has no tests", rung.name()));
    }
    report.counts.add(counts);
    report.rungs.push((rung, counts, start.elapsed()));
    Ok(())
}

fn run_binary(
    binary: &TestBinary,
    args: &Args,
    counts: &mut Counts,
    complaints: &mut Vec<String>,
) -> Result<()> {
    let timeout = shell::find("timeout").context("there is no `timeout` (coreutils)")?;
    let mut command = if binary.rung.needs_root() {
        shell::as_root(&timeout, &["RUST_BACKTRACE", NIGHTLY])?
    } else {
        std::process::Command::new(timeout)
    };
    command
        .args(["--foreground", "--kill-after=10"])
        .arg(BOUND_S.to_string())
        .arg(&binary.executable)
        .args(&args.filter)
        .current_dir(&binary.directory);
    if binary.rung.needs_root() {
        // They share the CPUs, the list of BPF objects and the time.
        command.arg("--test-threads=1");
    }
    run_command(
        &binary.name,
        command,
        binary.rung.needs_root(),
        args,
        counts,
        complaints,
    )
}

fn run_doc_tests(args: &Args, counts: &mut Counts, complaints: &mut Vec<String>) -> Result<()> {
    let mut command = shell::cargo();
    command
        .args(["test", "--doc", "--quiet"])
        .args(rungs::WORKSPACE);
    if let Some(filter) = &args.filter {
        command.args(["--", filter]);
    }
    run_command("doc tests", command, false, args, counts, complaints)
}

fn run_command(
    name: &str,
    mut command: std::process::Command,
    one_by_one: bool,
    args: &Args,
    counts: &mut Counts,
    complaints: &mut Vec<String>,
) -> Result<()> {
    let start = now();
    if args.nightly {
        command.env(NIGHTLY, "1");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{name}`"))?;
    let output = child
        .stdout
        .take()
        .ok_or_else(|| anyhow!("no output of `{name}`"))?;
    let mut own = Counts::default();
    let mut reports = 0;
    let mut since = now();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if let Some(found) = libtest::result(&line) {
            own.add(found);
            reports += 1;
        } else if let Some(test) = libtest::passed(&line).filter(|_| one_by_one) {
            println!("    ok {:>8}  {test}", seconds(since.elapsed()));
        } else if libtest::is_news(&line) {
            println!("    {line}");
        }
        if line.starts_with("test ") {
            since = now();
        }
    }
    let status = child.wait()?;
    if status.code() == Some(124) {
        complaints.push(format!("`{name}` ran longer than {BOUND_S} s"));
    } else if reports == 0 || (!status.success() && own.failed == 0) {
        complaints.push(format!("`{name}` ended with {status} without a verdict"));
    }
    if own != Counts::default() {
        println!(
            "  {name}: {} passed, {} failed, {}",
            own.passed,
            own.failed,
            seconds(start.elapsed())
        );
    }
    counts.add(own);
    Ok(())
}
