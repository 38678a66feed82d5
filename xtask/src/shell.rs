//! Running other programs: where, as whom, and what a person sees meanwhile.
#![expect(
    clippy::disallowed_methods,
    reason = "a developer command has no configuration or clock of its own to go through"
)]
use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Lines of a failed program's output that are shown.
const SHOWN_LINES: usize = 40;

/// How often a step that takes long says so where there is no terminal.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The cargo that started us, or the one on the `PATH`.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Directory of build products: `debug` or the profile's name lies in it.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Full path of a program, also where `sbin` is not in a user's `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    // The owner of our own /proc entry is the effective user.
    use std::os::unix::fs::MetadataExt as _;
    Path::new("/proc/self")
        .metadata()
        .is_ok_and(|own| own.uid() == 0)
}

/// A command that runs as root: directly, or through sudo, keeping the named variables.
pub(crate) fn as_root(program: &Path, keep: &[&str]) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let Some(sudo) = find("sudo") else {
        bail!(
            "`{}` needs root, and there is no `sudo`: run this command as root",
            program.display()
        );
    };
    let mut command = Command::new(sudo);
    if !keep.is_empty() {
        command.arg(format!("--preserve-env={}", keep.join(",")));
    }
    command.arg(program);
    Ok(command)
}

/// Text that a program prints, trimmed; nothing if it fails or is missing.
pub(crate) fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a command whose output people want to read as it comes. Fails if it fails.
pub(crate) fn show(mut command: Command) -> Result<()> {
    let text = line(&command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{text}`"))?;
    if !status.success() {
        bail!("`{text}` failed ({status})");
    }
    Ok(())
}

/// Runs a command whose output matters only if it fails: shows the last line as it goes on a
/// terminal, else a sign of life now and then. Returns how long it took.
pub(crate) fn quietly(mut command: Command) -> Result<Duration> {
    let text = line(&command);
    let log_path =
        std::env::temp_dir().join(format!("ratelimiter-xtask-{}.log", std::process::id()));
    let log = File::create(&log_path)
        .with_context(|| format!("cannot write `{}`", log_path.display()))?;
    // Without a name it goes with us, also on Ctrl-C.
    std::fs::remove_file(&log_path)?;
    let log_path = PathBuf::from(format!("/proc/self/fd/{}", log.as_raw_fd()));
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::inherit())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start `{text}`"))?;
    let terminal = std::io::stdout().is_terminal();
    let mut said = start;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if terminal {
            let last = last_line(&log_path);
            print!("\r\x1b[2K      {:>3} s  {last}", start.elapsed().as_secs());
            std::io::stdout().flush()?;
        } else if said.elapsed() >= HEARTBEAT {
            said = Instant::now();
            println!(
                "      {:>3} s  {}",
                start.elapsed().as_secs(),
                last_line(&log_path)
            );
        }
        thread::sleep(Duration::from_millis(100));
    };
    if terminal {
        print!("\r\x1b[2K");
        std::io::stdout().flush()?;
    }
    let output = std::fs::read(&log_path).unwrap_or_default();
    if !status.success() {
        let output = String::from_utf8_lossy(&output);
        let lines: Vec<&str> = output.lines().collect();
        let shown = lines.len().saturating_sub(SHOWN_LINES);
        eprintln!("{}", lines.get(shown..).unwrap_or(&[]).join("\n"));
        bail!("`{text}` failed ({status})");
    }
    Ok(start.elapsed())
}

/// Replaces this process by `command`, so that signals and the exit status are its own.
pub(crate) fn become_(mut command: Command) -> Result<()> {
    let text = line(&command);
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{text}`"))
}

/// Time since `start`, for people.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Now, for durations people are told.
pub(crate) fn now() -> Instant {
    Instant::now()
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text
        .split(['\n', '\r'])
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("");
    line.chars().filter(|c| !c.is_control()).take(90).collect()
}

/// A command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
