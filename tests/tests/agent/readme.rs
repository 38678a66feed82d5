//! Every command in the README is run, in its order, as it stands there. Two kinds are not: the test
//! command itself, which would run itself, and what is marked `(destructive)`; those are parsed.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::OrFail as _;
use tests::agent::binary;
use tests::http::request;
use tests::netns::{Netns, veth};
use tests::process::{Child, wait_until};
use tests::residue::{Residue, TEMP_PREFIX};

/// The test command, as the README has it.
const TEST: &str = "cargo xtask test";
/// The demo, as the README has it.
const DEMO: &str = "cargo xtask run";

/// Commands of the blocks marked `console`, each on one line, without prompt and remark.
fn commands() -> Vec<(String, bool)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = fs::read_to_string(path).or_fail("read the README");
    let mut found: Vec<(String, bool)> = Vec::new();
    let mut inside = false;
    let mut continues = false;
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
            continue;
        }
        let new = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
        let (Some(part), true) = (new.or(continues.then_some(line)), inside) else {
            continue;
        };
        let (part, remark) = part.split_once("  #").unwrap_or((part, ""));
        let next = part.trim_end().ends_with('\\');
        let part = part.trim().trim_end_matches('\\').trim_end();
        match found.last_mut().filter(|_| continues) {
            Some((command, _)) => *command = format!("{command} {part}"),
            None => found.push((part.to_owned(), remark.contains("(destructive)"))),
        }
        continues = next;
    }
    found
}

/// A machine for the README's reader: an interface `eth0`, and the program in the `PATH`.
struct Reader {
    edge: Netns,
    directory: tempfile::TempDir,
}

impl Reader {
    fn shell(&self, line: &str) -> Command {
        let binary = binary();
        let mut path = binary
            .parent()
            .or_fail("a directory")
            .as_os_str()
            .to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = Command::new("/bin/bash");
        command
            .args(["-euo", "pipefail", "-c", line])
            .env("PATH", path)
            // Where the machine's own agent would be.
            .env("RATELIMITER_STATE_DIR", self.directory.path().join("state"))
            .env("RATELIMITER_ADMIN_SOCKET", self.socket())
            .stdin(Stdio::null());
        command
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("admin.sock")
    }

    #[track_caller]
    fn run(&self, line: &str) {
        let mut command = self.shell(line);
        self.edge.prepare(&mut command);
        let output = command.output().or_fail("run a command of the README");
        assert!(
            output.status.success(),
            "`{line}` ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Starts the agent as the README does, and waits until it is ready.
    #[track_caller]
    fn start(&self, line: &str) -> Child {
        let mut agent = self.edge.spawn(self.shell(&format!("exec {line}")));
        wait_until("the README's agent", Duration::from_secs(20), || {
            let ready = request(&self.socket(), "GET", "/readyz", None);
            agent.exited().is_some() || ready.is_ok_and(|answer| answer.status == 200)
        });
        assert_eq!(agent.exited(), None, "{}", agent.output());
        agent
    }
}

/// What the demo is when everything is built: the program that `cargo xtask run` becomes.
fn demo() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    // It must not ask cargo again.
    command.args(["--for", "3s"]).env_remove("CARGO");
    // SAFETY: one system call, between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let output = command.output().or_fail("run the demo");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("attached and enforcing"), "{said}");
    assert!(said.contains("removed the agent"), "{said}");
}

#[test]
fn every_command_in_the_readme_runs() {
    let _residue = Residue::watch();
    tests::requires::bpf();
    tests::requires::program("curl", "curl");
    let reader = Reader {
        edge: Netns::new(),
        directory: tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir()
            .or_fail("make a directory"),
    };
    let client = Netns::new();
    veth((&reader.edge, "eth0"), (&client, "client0"));
    reader.edge.address("eth0", "192.0.2.1/24");
    let commands = commands();
    let mut agent = None;
    let (mut run, mut parsed) = (0, 0);
    for (line, destructive) in &commands {
        println!("{line}");
        if *destructive || line == TEST {
            let checked = Command::new("/bin/bash").args(["-n", "-c", line]).status();
            assert!(checked.or_fail("run bash").success(), "{line}");
            parsed += 1;
            continue;
        }
        run += 1;
        if line == DEMO {
            demo();
        } else if line.starts_with("ratelimiter agent ") {
            agent = Some(reader.start(line));
        } else {
            reader.run(line);
        }
    }
    println!("{run} run, {parsed} parsed");
    assert!(run >= 10 && parsed >= 1, "{commands:?}");
    let mut agent = agent.or_fail("the README starts an agent");
    assert_eq!(agent.terminate(Duration::from_secs(10)), 0);
}
