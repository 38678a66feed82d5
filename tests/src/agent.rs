//! The real `ratelimiter agent`, started in a namespace with a state directory of its own.
//!
//! ```no_run
//! # use tests::{agent::Setup, netns::Netns};
//! let edge = Netns::new();
//! let mut agent = Setup::new().interface("edge0").enforce().start(&edge);
//! agent.put("/v1/segments/default", &serde_json::json!({})).expect(200);
//! agent.kill();
//! agent.restart();
//! ```
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::OrFail as _;
use crate::http::{Answer, request};
use crate::netns::Netns;
use crate::process::{Child, holds_within};
use crate::residue::TEMP_PREFIX;

/// How long an agent may take until it is ready; loading the program takes most of it.
pub const READY_BOUND: Duration = Duration::from_secs(15);

/// How long an agent may take to end after SIGTERM.
pub const END_BOUND: Duration = Duration::from_secs(10);

/// Configuration of an agent under test. Listeners other than the Unix socket are off.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    interfaces: Vec<String>,
    enforce: bool,
    settings: String,
    safety: Option<String>,
    arguments: Vec<String>,
    log_level: Option<String>,
    listen: Option<String>,
    check: Option<String>,
    grpc: Option<String>,
    binary: Option<PathBuf>,
    check_settings: String,
}

impl Setup {
    /// Attached to nothing, in shadow.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Attaches to this interface: `edge0`, or `edge0:generic`.
    #[must_use]
    pub fn interface(mut self, name: &str) -> Self {
        self.interfaces.push(name.to_owned());
        self
    }

    /// Drops, not only counts.
    #[must_use]
    pub fn enforce(mut self) -> Self {
        self.enforce = true;
        self
    }

    /// Appends tables to the configuration file, e.g. `[tables]` or `[[allow]]`.
    #[must_use]
    pub fn settings(mut self, toml: &str) -> Self {
        self.settings.push_str(toml);
        self.settings.push('\n');
        self
    }

    /// Sets lines of the table `[safety]`. Without it no change counts as risky for the share of the
    /// active sources it would hit: a test's one source is all of them.
    #[must_use]
    pub fn safety(mut self, lines: &str) -> Self {
        self.safety = Some(lines.to_owned());
        self
    }

    /// Appends an argument to the command line.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Serves the admin API on this address too, e.g. `127.0.0.1:9740`.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        self.listen = Some(address.to_owned());
        self
    }

    /// Serves the check API on this address, e.g. `127.0.0.1:9741`.
    #[must_use]
    pub fn check(mut self, address: &str) -> Self {
        self.check = Some(address.to_owned());
        self
    }

    /// Serves the check API over gRPC on this address, e.g. `127.0.0.1:9742`.
    #[must_use]
    pub fn grpc(mut self, address: &str) -> Self {
        self.grpc = Some(address.to_owned());
        self
    }

    /// Appends lines to the table `[check]` of the configuration file.
    #[must_use]
    pub fn check_settings(mut self, lines: &str) -> Self {
        self.check_settings.push_str(lines);
        self.check_settings.push('\n');
        self
    }

    /// Sets the log level, `info` if not called.
    #[must_use]
    pub fn log_level(mut self, level: &str) -> Self {
        self.log_level = Some(level.to_owned());
        self
    }

    /// Starts it and waits until it is ready.
    #[must_use]
    #[track_caller]
    pub fn start(self, netns: &Netns) -> Agent<'_> {
        let mut agent = self.launch(netns);
        agent.wait_until_ready();
        agent
    }

    /// Starts it without waiting: for agents that must refuse to start.
    #[must_use]
    #[track_caller]
    pub fn launch(self, netns: &Netns) -> Agent<'_> {
        let directory = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir()
            .or_fail("make a state directory");
        write_config(&self, directory.path());
        let child = spawn(netns, directory.path(), &self);
        Agent {
            netns,
            directory,
            setup: self,
            child,
        }
    }
}

/// A running agent; killed, and its state removed, when dropped. Its pins stay in the namespace's
/// bpffs, as they do in life.
#[derive(Debug)]
pub struct Agent<'a> {
    child: Child,
    netns: &'a Netns,
    directory: TempDir,
    setup: Setup,
}

impl Agent<'_> {
    /// The process: signals, output, memory.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// `kill -9`, at once.
    #[track_caller]
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// SIGTERM and an orderly end; returns the exit status.
    #[track_caller]
    pub fn terminate(&mut self) -> i32 {
        self.child.terminate(END_BOUND)
    }

    /// Starts again with the same configuration and state, and waits until it is ready.
    #[track_caller]
    pub fn restart(&mut self) {
        self.relaunch();
        self.wait_until_ready();
    }

    /// Starts again without waiting.
    #[track_caller]
    pub fn relaunch(&mut self) {
        self.child = spawn(self.netns, self.directory.path(), &self.setup);
    }

    /// From its next start on it is another binary.
    pub fn becomes(&mut self, binary: &Path) {
        self.setup.binary = Some(binary.to_owned());
    }

    /// Rewrites the configuration file by `change` and returns its path; the agent follows the
    /// file by itself.
    #[track_caller]
    pub fn reconfigure(&mut self, change: impl FnOnce(Setup) -> Setup) -> PathBuf {
        self.setup = change(std::mem::take(&mut self.setup));
        write_config(&self.setup, self.directory.path());
        self.directory.path().join(CONFIG_FILE)
    }

    /// Path of the configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.directory.path().join(CONFIG_FILE)
    }

    /// Directory of its configuration, state and socket; removed with the guard.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Path of the admin socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join(SOCKET)
    }

    /// Waits until `/readyz` answers 200; fails with the agent's output.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        let mut last = String::new();
        let ready = holds_within(READY_BOUND, || {
            match request(&self.socket(), "GET", "/readyz", None) {
                Ok(answer) if answer.status == 200 => return true,
                Ok(answer) => last = format!("{} {}", answer.status, answer.body),
                Err(error) => last = error.to_string(),
            }
            self.child.exited().is_some()
        });
        if let Some(status) = self.child.exited() {
            panic!(
                "the agent ended with `{status}`; it said:\n{}",
                self.child.output()
            );
        }
        assert!(
            ready,
            "the agent is not ready after `{READY_BOUND:?}` (last answer: {last}); it said:\n{}",
            self.child.output()
        );
    }

    /// `GET`.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, None)
    }

    /// `PUT` with a JSON body.
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) -> Answer {
        self.ask("PUT", path, Some(body))
    }

    /// `POST` with a JSON body.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, Some(body))
    }

    /// `DELETE`.
    #[track_caller]
    pub fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, None)
    }

    /// Any request over the admin socket; fails if there is no answer.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        request(&self.socket(), method, path, body)
            .or_fail(&format!("no answer to `{method} {path}`"))
    }

    /// Runs `ratelimiter` with these arguments (split at blanks) against this agent; returns exit
    /// status, standard output and standard error.
    #[track_caller]
    pub fn cli(&self, arguments: &str) -> (i32, String, String) {
        self.cli_over_ssh(arguments, "")
    }

    /// The same as somebody logged in over SSH, by `SSH_CONNECTION`.
    #[track_caller]
    pub fn cli_over_ssh(&self, arguments: &str, ssh: &str) -> (i32, String, String) {
        let mut command = Command::new(binary());
        command
            .args(arguments.split_whitespace())
            .env("RATELIMITER_ADMIN_SOCKET", self.socket())
            .env("SSH_CONNECTION", ssh);
        self.netns.prepare(&mut command);
        let output = command.output().or_fail("run `ratelimiter`");
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

const CONFIG_FILE: &str = "ratelimiter.toml";
const SOCKET: &str = "admin.sock";

#[track_caller]
fn write_config(setup: &Setup, directory: &Path) {
    let mut text = String::new();
    let quoted = |path: &Path| Value::from(path.to_string_lossy()).to_string();
    let text_of = |value: Option<&String>, default: &str| {
        Value::from(value.map_or(default, String::as_str)).to_string()
    };
    let write = writeln!(
        text,
        "enforce = {}\nstate_dir = {}\npin_dir = \"/sys/fs/bpf/ratelimiter\"\ninterfaces = {}\n",
        setup.enforce,
        quoted(&directory.join("state")),
        Value::from(setup.interfaces.clone()),
    )
    .and_then(|()| {
        writeln!(
            text,
            "[admin]\nlisten = {}\nsocket = {}\n\n[check]\nhttp = {}\ngrpc = {}\n{}\n\
             [safety]\n{}\n\n[log]\nlevel = {}\n\n{}",
            text_of(setup.listen.as_ref(), "off"),
            quoted(&directory.join(SOCKET)),
            text_of(setup.check.as_ref(), "off"),
            text_of(setup.grpc.as_ref(), "off"),
            setup.check_settings,
            setup.safety.as_deref().unwrap_or("risky_percent = 100"),
            text_of(setup.log_level.as_ref(), "info"),
            setup.settings,
        )
    });
    write.or_fail("write the configuration");
    // Renamed into place, so that an agent that watches the file never reads half of it.
    let unfinished = directory.join("ratelimiter.toml.new");
    std::fs::write(&unfinished, text).or_fail("write the configuration");
    std::fs::rename(&unfinished, directory.join(CONFIG_FILE)).or_fail("write the configuration");
}

#[track_caller]
fn spawn(netns: &Netns, directory: &Path, setup: &Setup) -> Child {
    let mut command = Command::new(setup.binary.clone().unwrap_or_else(binary));
    command
        .arg("agent")
        .arg("--config")
        .arg(directory.join(CONFIG_FILE))
        .args(&setup.arguments)
        .env_remove("RATELIMITER_ADMIN_SOCKET")
        // Whoever runs the tests over SSH is not let in.
        .env("SSH_CONNECTION", "");
    netns.spawn(command)
}

/// Path of the `ratelimiter` binary of the same profile as this test, built if that is needed.
#[must_use]
#[track_caller]
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(build).clone()
}

#[track_caller]
fn build() -> PathBuf {
    let test = std::env::current_exe().or_fail("find the test binary");
    // Tests lie in `deps`, programs beside the agent.
    let directory = test
        .ancestors()
        .find(|path| path.file_name().is_some_and(|name| name == "deps"))
        .unwrap_or(&test)
        .parent()
        .or_fail("the test binary lies in no directory");
    // `cargo test` builds libraries and tests, not the binaries of other packages.
    if let Some(cargo) = std::env::var_os("CARGO") {
        let profile = match directory.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(profile) => profile,
        };
        let output = Command::new(cargo)
            .args(["build", "--quiet", "--package", "ratelimiter-userspace"])
            .args(["--bin", "ratelimiter", "--profile", profile])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .output()
            .or_fail("run cargo");
        assert!(
            output.status.success(),
            "cannot build `ratelimiter`:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let binary = directory.join("ratelimiter");
    assert!(
        binary.is_file(),
        "no agent at `{}`: run the tests through `cargo xtask test` or `cargo test`",
        binary.display()
    );
    binary
}
