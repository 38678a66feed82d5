//! Children that never outlive their guard, and waiting with a bound.
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use ratelimiter_userspace::clock;

use crate::OrFail as _;

/// Name in the environment of every child, so that [`crate::residue`] finds those left behind.
pub const MARK: &str = "RATELIMITER_TEST_PID";

/// Longest time a child is given to end after a signal that must end it.
const END_BOUND: Duration = Duration::from_secs(10);

/// Waits until `condition` holds; fails after `bound`, naming `what`.
#[track_caller]
pub fn wait_until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    assert!(
        holds_within(bound, &mut condition),
        "waited `{bound:?}` in vain: {what}"
    );
}

/// Waits until `probe` answers, and returns the answer; fails after `bound`, naming `what`.
#[track_caller]
pub fn wait_for<T>(what: &str, bound: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let mut answer = None;
    let found = holds_within(bound, &mut || {
        answer = probe();
        answer.is_some()
    });
    assert!(found, "waited `{bound:?}` in vain: {what}");
    answer.or_fail(what)
}

/// Says whether `condition` came to hold within `bound`. Asks at once, then every 1 to 20 ms.
pub fn holds_within(bound: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = clock::instant();
    let mut pause = Duration::from_millis(1);
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() >= bound {
            return false;
        }
        rest(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Lets real time pass, for what is bound to real time (traffic at a rate, a lease that runs out).
#[expect(
    clippy::disallowed_methods,
    reason = "the one place of the tests that sleeps; everything else waits for a condition"
)]
pub fn rest(duration: Duration) {
    thread::sleep(duration);
}

/// How a child is started.
#[derive(Debug)]
pub struct Spawn {
    command: Command,
}

impl Spawn {
    /// Starts from a command; its output goes to a buffer that [`Child::output`] reads.
    #[must_use]
    pub fn new(command: Command) -> Self {
        Self { command }
    }

    /// Starts the child. It is killed when the guard is dropped, and when the test process dies.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Child {
        let mut command = self.command;
        let name = command.get_program().to_string_lossy().into_owned();
        let log = tempfile::tempfile().or_fail("make a log file");
        command
            .env(MARK, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().or_fail("clone a log file"))
            .stderr(log.try_clone().or_fail("clone a log file"));
        // SAFETY: only system calls, on a signal set of this frame. The mask is reset because a
        // child inherits ours, and the demo holds back SIGTERM: an agent that inherits that never
        // hears it.
        unsafe {
            command.pre_exec(|| {
                let mut none: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut none);
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
                crate::space::check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))
            });
        }
        let process = nursery(command).or_fail(&format!("start `{name}`"));
        Child {
            name,
            process,
            log,
            status: None,
        }
    }
}

/// A running child, and what it wrote.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: std::process::Child,
    log: File,
    status: Option<ExitStatus>,
}

impl Child {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends a signal, e.g. `libc::SIGTERM`. Does nothing once the child has been waited for.
    #[track_caller]
    pub fn signal(&mut self, signal: i32) {
        if self.exited().is_none() {
            // SAFETY: the child has not been waited for, so the id is still its own.
            crate::space::check(unsafe { libc::kill(self.process.id().cast_signed(), signal) })
                .or_fail("signal a child");
        }
    }

    /// `kill -9`, and waits until it is gone.
    #[track_caller]
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait(END_BOUND);
    }

    /// SIGTERM, and waits for an orderly end within `bound`; returns the exit status.
    #[track_caller]
    pub fn terminate(&mut self, bound: Duration) -> i32 {
        self.signal(libc::SIGTERM);
        self.wait(bound)
    }

    /// The exit status if it has ended: its code, or 128 + the signal that ended it.
    pub fn exited(&mut self) -> Option<i32> {
        if self.status.is_none() {
            self.status = self.process.try_wait().or_fail("wait for a child");
        }
        self.status
            .map(|status| status.code().unwrap_or(128 + status.signal().unwrap_or(0)))
    }

    /// Waits for its end; fails with its output after `bound`.
    #[track_caller]
    pub fn wait(&mut self, bound: Duration) -> i32 {
        let mut status = None;
        let ended = holds_within(bound, || {
            status = self.exited();
            status.is_some()
        });
        assert!(
            ended,
            "`{}` did not end within `{bound:?}`; it said:\n{}",
            self.name,
            self.output()
        );
        status.or_fail("an exit status")
    }

    /// Everything it wrote so far, standard output and error together.
    #[must_use]
    pub fn output(&self) -> String {
        let read = || -> std::io::Result<String> {
            // A descriptor of its own position: the child appends through the shared one.
            let mut log = File::open(format!(
                "/proc/self/fd/{}",
                std::os::fd::AsRawFd::as_raw_fd(&self.log)
            ))?;
            log.rewind()?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().or_fail("read a child's output")
    }

    /// A number of its `/proc/<pid>/status` in KiB, e.g. `VmRSS`.
    #[must_use]
    #[track_caller]
    pub fn memory_kib(&self, field: &str) -> u64 {
        std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .or_fail("read a child's status")
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|value| value.trim().trim_end_matches(" kB").parse().ok())
            .or_fail("a field of a child's status")
    }

    /// Its resident memory, the kernel's BPF maps that it has mapped told apart: those pages are
    /// the maps' own, whoever looks at them.
    #[must_use]
    #[track_caller]
    pub fn resident_kib(&self) -> Resident {
        let path = format!("/proc/{}/smaps", self.pid());
        let text = std::fs::read_to_string(path).or_fail("read a child's smaps");
        let mut resident = Resident::default();
        let mut is_map = false;
        for line in text.lines() {
            if let Some(size) = line.strip_prefix("Rss:") {
                let kib: u64 = size
                    .trim()
                    .trim_end_matches(" kB")
                    .parse()
                    .or_fail("a size in smaps");
                let part = if is_map {
                    &mut resident.maps
                } else {
                    &mut resident.own
                };
                *part += kib;
            } else if line
                .split_once(' ')
                .is_some_and(|(range, _)| range.contains('-'))
            {
                is_map = line.contains("bpf-map") || line.contains("bpf_map");
            }
        }
        resident
    }

    /// CPU time it has taken so far, all threads together.
    #[must_use]
    #[track_caller]
    pub fn cpu_time(&self) -> Duration {
        let path = format!("/proc/{}/task", self.pid());
        let threads = std::fs::read_dir(path).or_fail("list a child's threads");
        let run_time_ns = |thread: std::fs::DirEntry| -> Option<u64> {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse().ok()
        };
        Duration::from_nanos(threads.flatten().filter_map(run_time_ns).sum())
    }

    /// Number of its open file descriptors.
    #[must_use]
    #[track_caller]
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .or_fail("list a child's descriptors")
            .count()
    }
}

/// Resident memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Code, heap, stacks and everything else that is its own.
    pub own: u64,
    /// Pages of BPF maps.
    pub maps: u64,
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exited().is_none() {
            // Errors mean that it is gone already.
            drop(self.process.kill());
            drop(self.process.wait());
        }
        if thread::panicking() {
            eprintln!("--- output of `{}`\n{}---", self.name, self.output());
        }
    }
}

type Order = (Command, Sender<std::io::Result<std::process::Child>>);

/// Spawns on a thread that lives as long as the process: the parent-death signal is tied to the
/// *thread* that spawned, and a test's thread may end before its child's guard.
fn nursery(command: Command) -> std::io::Result<std::process::Child> {
    static ORDERS: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (sender, receiver) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in receiver {
                // The other end waits; if it panicked, the child dies with the process.
                drop(answer.send(command.spawn()));
            }
        });
        Mutex::new(sender)
    });
    let (answer, spawned) = channel();
    orders
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer))
        .map_err(std::io::Error::other)?;
    spawned.recv().map_err(std::io::Error::other)?
}
