//! `ratelimiter top` in a real terminal: tmux holds it, presses the keys and reads the screen.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tests::OrFail as _;
use tests::agent::{Agent, Setup, binary};
use tests::flood::Flood;
use tests::packet::Packet;
use tests::process::{Child, MARK, Spawn, rest, wait_for, wait_until};
use tests::residue::Residue;

use crate::edge::{CLIENT, EDGE, Edge};
use crate::limits::SMALL;

/// How long the screen may take to show what is waited for.
const SOON: Duration = Duration::from_secs(20);

/// A terminal with a shell in it. Ends with the guard.
struct Terminal {
    socket: String,
    _server: Child,
}

impl Terminal {
    fn new(agent: &Agent<'_>, (columns, rows): (u16, u16)) -> Self {
        let socket = agent.directory().join("tmux.sock").display().to_string();
        let mut server = Command::new(tests::requires::program("tmux", "tmux"));
        server
            .args(["-S", &socket, "-f", "/dev/null", "-D"])
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8")
            .env("RATELIMITER_ADMIN_SOCKET", agent.socket())
            .env("SSH_CONNECTION", "")
            .env_remove("TMUX");
        let terminal = Self {
            _server: Spawn::new(server).start(),
            socket,
        };
        wait_until("tmux listens", SOON, || {
            std::path::Path::new(&terminal.socket).exists()
        });
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let new = ["new-session", "-d", "-x", &columns, "-y", &rows, "sh"];
        terminal.tmux(&new);
        terminal.tmux(&["set-option", "-g", "window-size", "manual"]);
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new(tests::requires::program("tmux", "tmux"))
            .args(["-S", &self.socket])
            .args(arguments)
            .env(MARK, std::process::id().to_string())
            .env_remove("TMUX")
            .output()
            .or_fail("run tmux");
        assert!(
            output.status.success(),
            "tmux {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.press("Enter");
    }

    /// Waits until the screen has `part`; returns the screen.
    #[track_caller]
    fn shows(&self, part: &str) -> String {
        let mut last = String::new();
        let found = tests::process::holds_within(SOON, || {
            last = self.screen();
            last.contains(part)
        });
        assert!(found, "no `{part}` on the screen:\n{last}");
        last
    }

    fn start_top(&self, arguments: &str) {
        self.line(&format!("{} top {arguments}", binary().display()));
        self.shows("? help");
    }

    /// The shell has its terminal back: what stood there before, a line discipline, a cursor.
    #[track_caller]
    fn is_restored(&self) {
        // A key that is pressed before it has ended is still its own.
        wait_until("top ends", SOON, || self.children().is_empty());
        self.line("echo modes $(stty -a | tr ' ;' '\\n\\n' | grep -cxE 'icanon|echo|isig')");
        let screen = self.shows("modes 3");
        assert!(screen.contains("before top"), "{screen}");
        assert!(!screen.contains("? help"), "{screen}");
        let cursor = self.tmux(&["display-message", "-p", "#{cursor_flag}#{alternate_on}"]);
        assert_eq!(cursor.trim(), "10", "a cursor, and no alternate screen");
    }

    /// The process of `top`, the only child of the shell.
    fn top_pid(&self) -> i32 {
        wait_for("top runs", SOON, || {
            self.children().split_whitespace().next()?.parse().ok()
        })
    }

    /// Processes of the shell.
    fn children(&self) -> String {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let children = format!("/proc/{0}/task/{0}/children", shell.trim());
        std::fs::read_to_string(children).or_fail("read the shell's children")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(
            Command::new("tmux")
                .args(["-S", &self.socket, "kill-server"])
                .output(),
        );
    }
}

fn clock_ticks(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).or_fail("read a process");
    let behind = stat.rsplit_once(')').or_fail("a name").1;
    let field = |n: usize| -> f64 {
        let field = behind.split_whitespace().nth(n).or_fail("a field");
        field.parse().or_fail("a number")
    };
    field(11) + field(12)
}

fn save(name: &str, screen: &str) {
    if let Some(directory) = std::env::var_os("SCREENS_OF_TOP") {
        let path = std::path::Path::new(&directory).join(name);
        std::fs::write(path, screen).or_fail("keep a screen");
    }
}

#[test]
fn a_source_is_seen_explained_and_blocked_and_the_terminal_comes_back() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = Setup::new()
        .interface(EDGE)
        .enforce()
        .settings(SMALL)
        .start(&edge.edge);
    let mac = edge.client.mac(CLIENT);
    let frames = ["192.0.2.2", "192.0.2.77"].map(|source| {
        let between = Packet::eth_between(mac, edge.edge.mac(EDGE));
        between.ipv4(source, "192.0.2.1").udp(1, 9).build()
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let flood = Flood::new(frames.to_vec())
                .rate(4_000)
                .lasting(Duration::from_secs(110));
            edge.client.run(|| flood.send(CLIENT, &stop))
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            watch_and_block(&agent);
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
}

fn watch_and_block(agent: &Agent<'_>) {
    let terminal = Terminal::new(agent, (80, 24));
    terminal.line("echo before top");
    terminal.start_top("");
    terminal.shows("192.0.2.77");
    terminal.shows("over_packets");
    save("80x24.txt", &terminal.screen());

    // Choose it by its address, ask why, and block it.
    terminal.press("/");
    terminal.line("2.77");
    terminal.shows("with `2.77`");
    terminal.press("Enter");
    let screen = terminal.shows("the default segment applies");
    save("80x24-explain.txt", &screen);
    terminal.press("b");
    terminal.shows("block `192.0.2.77/32`?  y for 10 min  p for good  n no");
    terminal.press("x");
    terminal.shows("block `192.0.2.77/32`?");
    terminal.press("y");
    terminal.shows("done: block `192.0.2.77/32`");
    let blocked = agent.get("/v1/blocklist").expect(200).json();
    assert_eq!(blocked["items"][0]["cidr"], "192.0.2.77/32", "{blocked}");
    assert!(blocked["items"][0]["expires_unix_ms"].is_u64(), "{blocked}");
    terminal.shows("`192.0.2.77/32` is on the block list");
    terminal.shows("blocked ");

    // A large window: more columns, the explanation beside the table.
    terminal.tmux(&["resize-window", "-x", "200", "-y", "60"]);
    let screen = terminal.shows("SEGMENT");
    save("200x60.txt", &screen);
    let beside = screen
        .lines()
        .any(|line| line.contains("192.0.2.77") && line.contains('\u{2502}'));
    assert!(beside, "{screen}");
    terminal.press("?");
    save(
        "200x60-help.txt",
        &terminal.shows("give it its full burst again"),
    );
    terminal.press("q");
    terminal.press("u");
    terminal.shows("take `192.0.2.77/32` from the allow and block lists?");
    terminal.press("y");
    terminal.shows("remove `192.0.2.77/32` from the block list");
    assert_eq!(agent.get("/v1/blocklist").expect(200).json()["total"], 0);
    terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]);

    // What it costs to look.
    let pid = terminal.top_pid();
    let before = clock_ticks(pid);
    rest(Duration::from_secs(5));
    let percent = (clock_ticks(pid) - before) / 5.0;
    println!("top takes {percent:.1} % of a core (a build without optimisation)");
    assert!(percent <= 10.0, "{percent} % of a core");

    terminal.press("q");
    terminal.is_restored();
    for signal in [libc::SIGTERM, libc::SIGINT] {
        terminal.line("clear; echo before top");
        terminal.start_top("");
        // SAFETY: plain system call on a process that this test's shell started.
        assert_eq!(unsafe { libc::kill(terminal.top_pid(), signal) }, 0);
        terminal.is_restored();
    }
    terminal.line("clear; echo before top");
    terminal.start_top("");
    terminal.press("C-c");
    terminal.is_restored();
}

#[test]
fn says_when_the_agent_is_gone_and_finds_the_next_one() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = Setup::new().settings(SMALL).start(&edge.edge);
    let terminal = Terminal::new(&agent, (80, 24));
    terminal.start_top("--every 200ms");
    terminal.shows("ready");
    agent.kill();
    terminal.shows("AGENT UNREACHABLE");
    agent.restart();
    wait_until("it is found again", SOON, || {
        !terminal.screen().contains("UNREACHABLE")
    });
    terminal.shows("ready");
    terminal.press("q");
}

#[test]
fn without_a_terminal_it_refuses_or_draws_one_frame() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = Setup::new()
        .interface(EDGE)
        .settings(SMALL)
        .start(&edge.edge);
    let (status, out, err) = agent.cli("top");
    assert_eq!(status, 2, "{out}{err}");
    assert!(
        err.contains("needs a terminal") && err.contains("--once"),
        "{err}"
    );
    let (status, out, err) = agent.cli("top --once --size 100x30");
    assert_eq!(status, 0, "{err}");
    assert_eq!(out.lines().count(), 30, "{out}");
    assert!(out.contains("SHADOW") && out.contains(EDGE), "{out}");
    let (status, out, _) = agent.cli("top -o json");
    assert_eq!(status, 0);
    let json: serde_json::Value = serde_json::from_str(&out).or_fail("JSON");
    assert_eq!(json["status"]["mode"], "shadow");
    assert!(json["sources"].is_array());
}
