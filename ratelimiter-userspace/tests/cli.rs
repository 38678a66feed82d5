//! The built binary as a shell sees it: exit codes, streams, and requests to a scripted agent.
#![expect(
    clippy::unwrap_used,
    reason = "in a test an unwrap is the assertion, also in its helpers"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

fn ratelimiter() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratelimiter"));
    // What the machine that runs the tests has set must not matter.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RATELIMITER_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> Output {
    ratelimiter().args(words).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// An agent that answers one request after the other from a script and returns what it was asked.
struct ScriptedAgent {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    served: JoinHandle<Vec<String>>,
}

impl ScriptedAgent {
    fn new(answers: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let answers: Vec<(String, String)> = answers
            .iter()
            .map(|(status, body)| ((*status).to_owned(), (*body).to_owned()))
            .collect();
        let served = std::thread::spawn(move || {
            answers
                .iter()
                .map(|(status, body)| serve_one(&listener, status, body))
                .collect()
        });
        Self {
            _folder: folder,
            socket,
            served,
        }
    }

    fn run(&self, words: &[&str]) -> Output {
        ratelimiter()
            .args(words)
            .arg("--socket")
            .arg(&self.socket)
            .output()
            .unwrap()
    }

    fn requests(self) -> Vec<String> {
        self.served.join().unwrap()
    }
}

fn serve_one(listener: &UnixListener, status: &str, body: &str) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let n = stream.read(&mut chunk).unwrap();
        request.extend_from_slice(&chunk[..n]);
        let text = String::from_utf8_lossy(&request);
        if let Some((head, rest)) = text.split_once("\r\n\r\n") {
            let length = head
                .to_ascii_lowercase()
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0_usize);
            if rest.len() >= length {
                break;
            }
        }
        assert!(n > 0, "the request ended early");
    }
    let answer = format!(
        "HTTP/1.1 {status}\r\netag: \"t1\"\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).unwrap();
    String::from_utf8(request).unwrap()
}

const CHANGED: &str = r#"{"revision":3,"changed":true,"dry_run":false,"path":"clients/alice",
    "what":"set limit `default` of client `alice`","differences":[],"differences_total":0}"#;

#[test]
fn help_and_version_are_code_0_on_stdout() {
    let help = run(&["--help"]);
    assert_eq!(code(&help), 0);
    for part in ["Exit codes:", "First steps:", "Limits packets and requests"] {
        assert!(stdout(&help).contains(part), "{part}");
    }
    let version = run(&["--version"]);
    assert_eq!(code(&version), 0);
    assert!(stdout(&version).starts_with("ratelimiter 0."));
}

#[test]
fn mistakes_on_the_command_line_are_code_2_on_stderr() {
    for words in [
        &["frobnicate"][..],
        &[],
        &["limits", "set", "alice", "fast"],
        &["limits", "set", "alice", "0/s"],
        &["limits", "set", "alice", "5/s", "--try", "60s", "--dry-run"],
        &["block", "add", "192.0.2.7/24"],
        &["detach"],
        &["detach", "eth0", "--all"],
        &["status", "--url", "ftp://edge1"],
        &["agent", "--iface", "eth0:fast"],
    ] {
        let output = run(words);
        assert_eq!(code(&output), 2, "{words:?}: {}", stderr(&output));
        assert!(!stderr(&output).is_empty(), "{words:?}");
        assert!(stdout(&output).is_empty(), "{words:?}");
    }
    let output = run(&["block", "add", "192.0.2.7/24"]);
    assert!(stderr(&output).contains("did you mean `192.0.2.0/24`?"));
}

#[test]
fn every_command_without_an_agent_is_code_4() {
    for words in [
        &["status"][..],
        &["attach", "eth0"],
        &["limits", "list"],
        &["limits", "set", "alice", "5/s"],
        &["clients", "get", "alice"],
        &["segments", "list"],
        &["allow", "add", "192.0.2.7"],
        &["block", "list"],
        &["sources"],
        &["explain", "192.0.2.7"],
        &["reset", "alice"],
        &["confirm"],
        &["rollback"],
        &["changes"],
    ] {
        let mut words = words.to_vec();
        words.extend(["--socket", "/nowhere/admin.sock"]);
        let output = run(&words);
        assert_eq!(code(&output), 4, "{words:?}: {}", stderr(&output));
        assert!(
            stderr(&output)
                .contains("agent unreachable: there is no socket at `/nowhere/admin.sock`"),
            "{words:?}"
        );
        assert!(stderr(&output).contains("help: "), "{words:?}");
    }
}

#[test]
fn a_change_sends_what_was_asked_and_says_what_was_done() {
    let agent = ScriptedAgent::new(&[("200 OK", CHANGED)]);
    let output = agent.run(&[
        "limits", "set", "alice", "10k/min", "--burst", "20k", "--try", "60s",
    ]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        "done: set limit `default` of client `alice` (revision 3)\n"
    );
    let requests = agent.requests();
    assert!(
        requests[0].starts_with("PUT /v1/clients/alice/limit?name=default&try=60s HTTP/1.1"),
        "{}",
        requests[0]
    );
    let body = requests[0].split_once("\r\n\r\n").unwrap().1;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(body).unwrap(),
        serde_json::json!({
            "rate_limit": 10_000, "time_window": 60, "burst": 20_000, "unit": "requests"
        })
    );
}

#[test]
fn setting_a_client_keeps_the_rest_and_guards_against_others() {
    let before =
        r#"{"id":"alice","segment":"free","limits":{},"defined_in":"store","effective":[]}"#;
    let agent = ScriptedAgent::new(&[("200 OK", before), ("200 OK", CHANGED)]);
    let output = agent.run(&[
        "clients",
        "set",
        "alice",
        "--source",
        "192.0.2.7",
        "-o",
        "json",
    ]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let shown: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(shown["revision"], 3);
    let requests = agent.requests();
    assert!(
        requests[1].contains("if-match: \"t1\"\r\n"),
        "{}",
        requests[1]
    );
    let body = requests[1].split_once("\r\n\r\n").unwrap().1;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(body).unwrap(),
        serde_json::json!({"segment": "free", "sources": ["192.0.2.7/32"], "limits": {}})
    );
}

#[test]
fn refusals_of_the_agent_have_codes_and_sentences() {
    for (status, expected) in [
        ("422 Unprocessable Content", 2),
        ("401 Unauthorized", 5),
        ("403 Forbidden", 5),
        ("404 Not Found", 1),
        ("409 Conflict", 1),
        ("503 Service Unavailable", 1),
    ] {
        let problem = r#"{"title":"no","detail":"`burst` is 0; it must be 1 or more"}"#;
        let agent = ScriptedAgent::new(&[(status, problem)]);
        let output = agent.run(&["clients", "rm", "alice"]);
        assert_eq!(code(&output), expected, "{status}");
        assert!(
            stderr(&output).starts_with("error: `burst` is 0; it must be 1 or more"),
            "{}",
            stderr(&output)
        );
        agent.requests();
    }
}

#[test]
fn a_denied_check_is_code_3() {
    let denied = r#"{"allowed":false,"limit":"default","remaining":0,"retry_after":1.5,"reset_after":60,"degraded":false}"#;
    let agent = ScriptedAgent::new(&[("200 OK", denied)]);
    let url = format!("unix://{}", agent.socket.display());
    let output = run(&["check", "alice", "--url", &url]);
    assert_eq!(code(&output), 3);
    assert_eq!(stdout(&output), "alice: denied, next allowed in 1.5 s\n");
    agent.requests();
    let nobody = run(&["check", "alice", "--url", "http://127.0.0.1:1"]);
    assert_eq!(code(&nobody), 4, "{}", stderr(&nobody));
}

#[test]
fn a_degraded_agent_is_code_1() {
    let status = include_str!("fixtures/status.json");
    let agent = ScriptedAgent::new(&[("200 OK", status)]);
    let output = agent.run(&["status"]);
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert!(stdout(&output).contains("DEGRADED"));
    agent.requests();
}

#[test]
fn a_diff_with_differences_is_code_3_and_without_code_0() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("limits.toml");
    std::fs::write(&file, "[clients.alice]\nsegment = \"free\"\n").unwrap();
    let file = file.to_str().unwrap();
    let document = |clients: &str| {
        format!(r#"{{"revision":1,"segments":{{}},"clients":{clients},"allow":{{}},"block":{{}}}}"#)
    };
    let agent = ScriptedAgent::new(&[("200 OK", &document("{}"))]);
    let output = agent.run(&["limits", "diff", file]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert_eq!(stdout(&output), "+ client alice\n    segment: free\n");
    agent.requests();

    let same = document(r#"{"alice":{"segment":"free","limits":{}}}"#);
    let agent = ScriptedAgent::new(&[("200 OK", &same)]);
    let output = agent.run(&["limits", "diff", file]);
    assert_eq!(
        (code(&output), stdout(&output).as_str()),
        (0, "no differences\n")
    );
    agent.requests();
}

#[test]
fn confirming_too_late_is_code_6() {
    let log = r#"{"items":[
        {"revision":8,"at_unix_ms":1000,"by":"rollback","what":"x","path":"clients/alice","pending":false},
        {"revision":7,"at_unix_ms":500,"by":"local","what":"x","path":"clients/alice","pending":false}
    ],"total":2}"#;
    let agent = ScriptedAgent::new(&[("200 OK", "[]"), ("200 OK", log)]);
    let output = agent.run(&["confirm"]);
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains("too late: the change of `clients/alice` took itself back"));
    agent.requests();
}

#[test]
fn a_socket_that_may_not_be_opened_is_code_5() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = folder.path().join("admin.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).unwrap();
    let binary = copied_for_everybody(folder.path());
    let mut command = Command::new(binary);
    command.args(["status", "--socket"]).arg(&socket);
    // SAFETY: plain system call without arguments; it cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        // Root may open everything: become somebody else.
        command.uid(65_534).gid(65_534);
    }
    // A test that started a child meanwhile may still hold the copy open for writing.
    let output = (0..50)
        .find_map(|_| match command.output() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                std::thread::park_timeout(std::time::Duration::from_millis(20));
                None
            }
            done => Some(done.unwrap()),
        })
        .unwrap();
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(stderr(&output).contains("no permission to open the agent's socket"));
}

/// The build directory may be closed to others.
fn copied_for_everybody(folder: &Path) -> PathBuf {
    let binary = folder.join("ratelimiter");
    std::fs::copy(env!("CARGO_BIN_EXE_ratelimiter"), &binary).unwrap();
    binary
}

#[test]
fn checks_configuration_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ratelimiter.toml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "enforce = true\ninterfaces = [\"eth0\"]\n").unwrap();
    let good = run(&["config", "check", path]);
    assert_eq!(code(&good), 0, "{}", stderr(&good));
    assert!(stdout(&good).contains("is valid"));

    std::fs::write(&file, "enforce = true\nenforc = 1\n").unwrap();
    let bad = run(&["config", "check", path]);
    assert_eq!(code(&bad), 2);
    assert!(stderr(&bad).contains(":2:"), "{}", stderr(&bad));
    assert!(stderr(&bad).contains('^'), "{}", stderr(&bad));

    let json = run(&["config", "check", path, "-o", "json"]);
    assert_eq!(code(&json), 2);
    let report: serde_json::Value = serde_json::from_str(&stdout(&json)).unwrap();
    assert_eq!(report["valid"], false);
    assert_eq!(report["problems"][0]["line"], 2);

    let missing = run(&["config", "check", "/nowhere/x.toml"]);
    assert_eq!(code(&missing), 2);
    assert!(stderr(&missing).contains("`/nowhere/x.toml` cannot be read"));
}

#[test]
fn the_example_configuration_is_valid() {
    let example = run(&["config", "example"]);
    assert_eq!(code(&example), 0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ratelimiter.toml");
    std::fs::write(&file, &example.stdout).unwrap();
    let check = run(&["config", "check", file.to_str().unwrap()]);
    assert_eq!(code(&check), 0, "{}", stderr(&check));
}

#[test]
fn shows_where_each_setting_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ratelimiter.toml");
    std::fs::write(&file, "enforce = true\n").unwrap();
    let output = ratelimiter()
        .args(["config", "show", "--config", file.to_str().unwrap()])
        .env("RATELIMITER_STATE_DIR", "/tmp/elsewhere")
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let line = |key: &str| {
        stdout(&output)
            .lines()
            .find(|line| line.starts_with(&format!("{key} ")))
            .unwrap()
            .to_owned()
    };
    assert!(line("enforce").contains("ratelimiter.toml"));
    assert!(line("state_dir").contains("RATELIMITER_STATE_DIR"));
    assert!(line("pin_dir").ends_with("default"));
}

#[test]
fn detaching_without_an_agent_and_without_pins_succeeds_twice() {
    let folder = tempfile::tempdir().unwrap();
    let pins = folder.path().join("none");
    for _ in 0..2 {
        for words in [&["detach", "--all"][..], &["detach", "eth0"]] {
            let output = ratelimiter()
                .args(words)
                .args(["--socket", "/nowhere/admin.sock", "--pins"])
                .arg(&pins)
                .output()
                .unwrap();
            assert_eq!(code(&output), 0, "{}", stderr(&output));
            assert!(
                stdout(&output).starts_with("nothing to do: "),
                "{}",
                stdout(&output)
            );
        }
    }
}

#[test]
fn doctor_reports_findings_as_json_and_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let output = ratelimiter()
        .args([
            "doctor",
            "-o",
            "json",
            "--iface",
            "no-such-if0",
            "--socket",
            "/nowhere/x",
        ])
        .args(["--pins", "/nowhere/pins", "--state-dir"])
        .arg(folder.path())
        .output()
        .unwrap();
    // The interface does not exist and the pins are on no bpffs: that fails everywhere.
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let level = |check: &str| {
        findings
            .iter()
            .find(|finding| finding["check"] == check)
            .map(|finding| finding["level"].as_str().unwrap().to_owned())
            .unwrap()
    };
    assert_eq!(level("interface"), "failed");
    assert_eq!(level("bpffs"), "failed");
    assert_eq!(level("agent"), "note");
    assert_eq!(level("state_dir"), "ok");
    for finding in findings {
        for field in ["thing", "value", "bound"] {
            assert!(finding[field].is_string(), "{finding}");
        }
        assert!(
            finding["level"] == "ok" || finding["fix"].is_string(),
            "{finding}"
        );
    }
}

#[test]
fn completions_and_manual_pages_cover_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert_eq!(code(&output), 0);
        for word in ["limits", "explain", "rollback"] {
            assert!(stdout(&output).contains(word), "{shell} {word}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let output = run(&["man", "--all", folder.path().to_str().unwrap()]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for page in [
        "ratelimiter.1",
        "ratelimiter-limits.1",
        "ratelimiter-limits-set.1",
    ] {
        let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(".SH"), "{page}");
    }
}

#[test]
fn never_colours_what_is_not_a_terminal() {
    let output = run(&["config", "show"]);
    assert!(!stdout(&output).contains('\x1b'));
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let mut child = ratelimiter()
        .args(["config", "schema"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}
