//! R46: starved of descriptors, disk, memory or time, the kernel goes on limiting and the agent
//! recovers. And what the agent tells its supervisor.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tests::OrFail as _;
use tests::agent::{Agent, Setup, binary};
use tests::process::{Child, holds_within, rest};
use tests::residue::Residue;

use crate::edge::{EDGE, Edge};
use crate::limits::{SMALL, client, enforcing};

/// How long the agent may take to be ready again once it has what it lacked.
const RECOVERY: Duration = Duration::from_secs(5);

/// An agent that limits the client to 20 packets and six a minute, and the client has had them.
fn spent(edge: &Edge) -> Agent<'_> {
    let agent = enforcing(edge);
    agent.put("/v1/clients/alice", &client(6, 20)).expect(201);
    let passed = edge.pings(60);
    assert!((19..=22).contains(&passed), "{passed}");
    agent
}

/// Not a packet more than the six a minute while `what`.
#[track_caller]
fn still_limited(edge: &Edge, what: &str) {
    let passed = edge.pings(60);
    assert!(passed <= 2, "{passed} packets passed while {what}");
}

#[track_caller]
fn recovers(agent: &mut Agent<'_>) {
    let mut last = String::new();
    let ready = holds_within(RECOVERY, || {
        match tests::http::request(&agent.socket(), "GET", "/readyz", None) {
            Ok(answer) if answer.status == 200 => return true,
            Ok(answer) => last = answer.body,
            Err(error) => last = error.to_string(),
        }
        false
    });
    assert!(
        ready,
        "not ready again within {RECOVERY:?}: {last}\n{}",
        agent.child().output()
    );
}

/// Sets the soft limit of open descriptors of a process and returns the former one.
fn limit_descriptors(pid: u32, soft: u64) -> u64 {
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let pid = pid.cast_signed();
    // SAFETY: reads and writes the structures given, of a process this test started.
    let status =
        unsafe { libc::prlimit64(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut old) };
    assert_eq!(status, 0, "read the limit");
    let new = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: old.rlim_max,
    };
    // SAFETY: as above.
    let status = unsafe {
        libc::prlimit64(
            pid,
            libc::RLIMIT_NOFILE,
            &raw const new,
            std::ptr::null_mut(),
        )
    };
    assert_eq!(status, 0, "set the limit");
    old.rlim_cur
}

#[test]
fn without_descriptors_the_kernel_limits_and_the_agent_comes_back() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = spent(&edge);
    let pid = agent.child().pid();
    // Not one more than it has.
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .or_fail("descriptors")
        .count() as u64;
    let before = limit_descriptors(pid, open.min(16));
    let ask = || tests::http::request(&agent.socket(), "GET", "/livez", None);
    assert!(ask().is_err(), "no descriptor is left to accept with");
    still_limited(&edge, "no descriptor was left");
    // Held long enough for every periodic job to meet it.
    rest(Duration::from_secs(2));
    limit_descriptors(pid, before);
    recovers(&mut agent);
    still_limited(&edge, "the agent came back");
    // What could not be looked at was not taken for gone.
    let status = agent.get("/v1/status").expect(200).json();
    assert_eq!(status["repairs"], 0, "{status}");
    agent.put("/v1/clients/alice", &client(6, 30)).expect(200);
    assert_eq!(agent.child().exited(), None);
}

#[test]
fn with_a_full_disk_a_change_is_refused_and_the_policy_stays() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = enforcing(&edge);
    agent.terminate();
    let config = agent.config_path();
    let state = config.parent().or_fail("a directory").join("state");
    let state = state.to_string_lossy();
    // Seen by this namespace only, and gone with it.
    edge.edge
        .sh(&format!("mount -t tmpfs -o size=12m,mode=700 none {state}"));
    agent.restart();
    agent.put("/v1/clients/alice", &client(6, 20)).expect(201);
    let passed = edge.pings(60);
    assert!((19..=22).contains(&passed), "{passed}");
    let (_, _, said) = edge
        .edge
        .try_sh(&format!("dd if=/dev/zero of={state}/filler bs=4096"));
    assert!(said.contains("No space left"), "{said}");

    // Large enough for new pages: at the latest one of these finds none.
    let mut refused = None;
    for n in 0..40 {
        let prefixes: Vec<String> = (0..200).map(|m| format!("10.{n}.{m}.0/24")).collect();
        let client = json!({"sources": prefixes, "one_bucket": true});
        let answer = agent.put(&format!("/v1/clients/large-{n}"), &client);
        if answer.status != 201 {
            refused = Some((n, answer));
            break;
        }
    }
    let (n, answer) = refused.or_fail("a full disk takes everything");
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(
        answer.body.contains("previous state stays in force"),
        "{}",
        answer.body
    );
    agent.get(&format!("/v1/clients/large-{n}")).expect(404);
    agent.get("/v1/clients/alice").expect(200);
    still_limited(&edge, "the disk was full");
    edge.edge.sh(&format!("rm {state}/filler"));
    recovers(&mut agent);
    agent.put("/v1/clients/bob", &json!({})).expect(201);
    // What was acknowledged is there after a crash.
    agent.kill();
    agent.restart();
    agent.get("/v1/clients/bob").expect(200);
    agent.get("/v1/clients/alice").expect(200);
    still_limited(&edge, "the agent came back");
    agent.kill();
    edge.edge.sh(&format!("umount {state}"));
}

#[test]
fn a_stopped_agent_leaves_the_limit_in_force_and_goes_on_where_it_was() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = spent(&edge);
    agent.child().signal(libc::SIGSTOP);
    still_limited(&edge, "the agent was stopped");
    // Longer than anything the agent takes for stale.
    rest(Duration::from_secs(4));
    still_limited(&edge, "the agent was stopped");
    agent.child().signal(libc::SIGCONT);
    recovers(&mut agent);
    still_limited(&edge, "the agent went on");
    agent.put("/v1/clients/alice", &client(6, 30)).expect(200);
}

/// A memory cgroup of its own, removed when dropped.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(bytes: u64) -> Self {
        let first = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = if first.is_dir() {
            (first, "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup"), "memory.max")
        };
        let path = root.join(format!("ratelimiter-test-{}", std::process::id()));
        std::fs::create_dir(&path).or_fail("make a memory cgroup");
        let group = Self(path);
        std::fs::write(group.0.join(limit), bytes.to_string()).or_fail("limit its memory");
        group
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Its processes have ended; the kernel may take a moment to notice.
        let removed = holds_within(Duration::from_secs(5), || {
            std::fs::remove_dir(&self.0).is_ok()
        });
        assert!(removed || std::thread::panicking(), "a cgroup is left");
    }
}

/// The agent's command with an agent's configuration.
fn command(config: &Path) -> Command {
    let mut command = Command::new(binary());
    command
        .arg("agent")
        .arg("--config")
        .arg(config)
        .env_remove("RATELIMITER_SOCKET");
    command
}

#[test]
fn without_memory_for_the_tables_nothing_is_attached_and_nothing_is_left() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    // Tables of the default size take more than 100 MiB.
    let mut refused = Setup::new()
        .interface("nosuch0")
        .enforce()
        .launch(&edge.edge);
    refused.child().wait(Duration::from_secs(20));
    let config = refused.config_path();
    let text = std::fs::read_to_string(&config).or_fail("configuration");
    std::fs::write(&config, text.replace("nosuch0", EDGE)).or_fail("configuration");
    edge.edge.run(|| {
        ratelimiter_userspace::dataplane::detach_all(Path::new(
            ratelimiter_userspace::dataplane::DEFAULT_ROOT,
        ))
        .or_fail("clear the pins")
    });
    let group = MemoryGroup::new(48 << 20);
    let tasks = std::fs::OpenOptions::new()
        .write(true)
        .open(group.0.join("cgroup.procs"))
        .or_fail("the cgroup's processes");
    let mut starved = command(&config);
    // SAFETY: one write to an open file, between fork and exec.
    unsafe {
        starved.pre_exec(move || (&tasks).write_all(b"0"));
    }
    let mut starved: Child = edge.edge.spawn(starved);
    let status = starved.wait(Duration::from_mins(1));
    assert_ne!(status, 0, "{}", starved.output());
    assert_eq!(edge.running(), None, "{}", starved.output());
    assert_eq!(edge.pings(3), 3);
    // It has all it needs now, and starts on what the other one left.
    let mut agent: Child = edge.edge.spawn(command(&config));
    let socket = config.parent().or_fail("a directory").join("admin.sock");
    let ready = holds_within(Duration::from_secs(30), || {
        tests::http::request(&socket, "GET", "/readyz", None).is_ok_and(|a| a.status == 200)
    });
    assert!(ready, "{}", agent.output());
    assert!(edge.running().is_some());
    assert_eq!(agent.terminate(Duration::from_secs(10)), 0);
}

#[test]
fn a_supervisor_hears_of_readiness_reloads_and_the_end() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut first = Setup::new()
        .interface(EDGE)
        .settings(SMALL)
        .start(&edge.edge);
    first.terminate();
    let config = first.config_path();
    let directory = config.parent().or_fail("a directory");
    assert_eq!(directory.metadata().or_fail("metadata").uid(), 0);
    let path = directory.join("notify.sock");
    let supervisor = UnixDatagram::bind(&path).or_fail("bind");
    supervisor
        .set_read_timeout(Some(Duration::from_secs(15)))
        .or_fail("a time limit");
    // A supervisor names the process it means.
    let mut command = Command::new("/bin/sh");
    command
        .args([
            "-c",
            "export WATCHDOG_PID=$$; exec \"$0\" agent --config \"$1\"",
        ])
        .args([binary().as_path(), &config])
        .env_remove("RATELIMITER_SOCKET")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "1000000");
    let mut agent: Child = edge.edge.spawn(command);
    let hears = |wanted: &str| {
        for _ in 0..200 {
            let mut message = [0; 4_096];
            let read = supervisor.recv(&mut message);
            let len = read.or_fail(&format!("no `{wanted}`"));
            let text = String::from_utf8_lossy(message.get(..len).unwrap_or_default());
            if text.lines().any(|line| line.starts_with(wanted)) {
                return;
            }
        }
        panic!("200 messages and no `{wanted}`");
    };
    hears("READY=1");
    hears("WATCHDOG=1");
    agent.signal(libc::SIGHUP);
    hears("RELOADING=1");
    hears("READY=1");
    let socket = directory.join("admin.sock");
    let events = tests::http::request(&socket, "GET", "/v1/events", None).or_fail("events");
    assert!(
        events.body.contains("SIGHUP: configuration reloaded"),
        "{}",
        events.body
    );
    hears("WATCHDOG=1");
    agent.signal(libc::SIGTERM);
    hears("STOPPING=1");
    assert_eq!(agent.wait(Duration::from_secs(10)), 0);
}
