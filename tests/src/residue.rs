//! What a test must not leave behind: programs, maps, links, pins, namespaces, children, files.
//!
//! ```no_run
//! # use tests::residue::Residue;
//! let _residue = Residue::watch(); // first, so that it is dropped, and looks, last
//! ```
//!
//! The scan covers the whole machine, so other test processes would be blamed on us: each guard
//! holds a shared lock, and what is left counts only once nobody else holds it.
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use ratelimiter_common::abi::names;

use crate::OrFail as _;
use crate::agent::Agent;
use crate::bpf::{self, Kind};
use crate::process::{MARK, holds_within};

/// Prefix of every file and directory a test makes in the temporary directory.
pub const TEMP_PREFIX: &str = "ratelimiter-test-";

/// Held, shared, by every guard on the machine.
const LOCK: &str = "/run/lock/ratelimiter-tests.lock";

/// How long the kernel may take to free what nobody refers to any more (RCU, deferred work).
const FREE_BOUND: Duration = Duration::from_secs(10);

/// How long to wait for other test processes before leaving the verdict to the last of them.
const OTHERS_BOUND: Duration = Duration::from_mins(1);

/// A guard that fails the test if, when it is dropped, more of ours exists than when it was made.
#[derive(Debug)]
pub struct Residue {
    before: BTreeSet<String>,
    lock: File,
}

impl Residue {
    /// Takes stock. Fails without root, for only root sees every object.
    #[must_use]
    #[track_caller]
    pub fn watch() -> Self {
        crate::requires::root();
        fs::create_dir_all("/run/lock").or_fail("make `/run/lock`");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(LOCK)
            .or_fail(LOCK);
        assert!(flock(&lock, libc::LOCK_SH), "cannot share `{LOCK}`");
        Self {
            before: stock(),
            lock,
        }
    }

    /// What of ours exists now and did not when the guard was made.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        stock().difference(&self.before).cloned().collect()
    }

    #[track_caller]
    fn judge(&self) {
        if holds_within(FREE_BOUND, || self.left().is_empty()) {
            return;
        }
        let alone = || flock(&self.lock, libc::LOCK_EX | libc::LOCK_NB);
        let settled = holds_within(OTHERS_BOUND, || alone() || self.left().is_empty());
        let left = self.left();
        if !settled {
            eprintln!("residue: other tests still run; left to the last of them: {left:?}");
            return;
        }
        assert!(
            left.is_empty(),
            "the test left behind:\n  {}",
            left.join("\n  ")
        );
    }
}

/// What a running agent has made, in the words of the scan: the BPF objects it holds, its process
/// and its files. For [`left_of`], where others may use the machine at the same time.
#[must_use]
pub fn traces_of(agent: &mut Agent<'_>) -> BTreeSet<String> {
    let pid = agent.child().pid();
    let mut held = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        held.extend(bpf::KINDS.into_iter().filter_map(|kind| {
            let id = text
                .lines()
                .find_map(|line| line.strip_prefix(kind.fdinfo_id()))?;
            Some((kind, id.trim().parse::<u32>().ok()?))
        }));
    }
    let directory = agent.directory().display().to_string();
    let is_its_own = |line: &String| {
        held.iter().any(|(kind, id)| {
            line.starts_with(&format!("{kind:?} ")) && line.ends_with(&format!(" id {id}"))
        }) || line.starts_with(&format!("process {pid} "))
            || line.contains(&directory)
    };
    stock().into_iter().filter(is_its_own).collect()
}

/// What still exists of `traces` once the kernel has had its time to free what nobody refers to any
/// more; returns early when nothing does.
#[must_use]
pub fn left_of(traces: &BTreeSet<String>) -> Vec<String> {
    let mut left = Vec::new();
    holds_within(FREE_BOUND, || {
        left = stock().intersection(traces).cloned().collect();
        left.is_empty()
    });
    left
}

impl Drop for Residue {
    fn drop(&mut self) {
        // A failing test has said what is wrong; its guards clean up after this one ran.
        if !thread::panicking() {
            self.judge();
        }
    }
}

fn flock(file: &File, operation: libc::c_int) -> bool {
    // SAFETY: only a descriptor and a flag are passed.
    unsafe { libc::flock(file.as_raw_fd(), operation) == 0 }
}

/// Everything of ours on this machine, one line each.
fn stock() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for kind in bpf::KINDS {
        let objects = bpf::objects(kind).or_fail("list BPF objects");
        found.extend(
            objects
                .iter()
                .filter(|(_, object)| is_ours(kind, &object.name))
                .map(|(id, object)| format!("{kind:?} `{}` with id {id}", object.name)),
        );
    }
    found.extend(children());
    for (directory, prefix) in [
        (std::env::temp_dir().as_path(), TEMP_PREFIX),
        (Path::new("/sys/fs/bpf"), "ratelimiter"),
        (Path::new("/run/netns"), "ratelimiter"),
        (Path::new("/run"), "ratelimiter"),
        (Path::new("/var/lib"), "ratelimiter"),
    ] {
        found.extend(entries(directory, prefix));
    }
    found
}

fn is_ours(kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Map => names::MAPS.contains(&name) || names::OBSERVATION_MAPS.contains(&name),
        Kind::Program | Kind::Link => {
            [names::PROGRAM, names::GUARDED_PROGRAM, names::MERGE_PROGRAM].contains(&name)
        }
    }
}

fn entries(directory: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| format!("file `{}`", entry.path().display()))
        .collect()
}

/// Living processes that this test process started, directly or not.
fn children() -> Vec<String> {
    let mark = format!("{MARK}={}", std::process::id());
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter(|process| {
            fs::read(process.path().join("environ")).is_ok_and(|environment| {
                environment
                    .split(|byte| *byte == 0)
                    .any(|variable| variable == mark.as_bytes())
            })
        })
        .map(|process| {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            format!(
                "process {} `{}`",
                process.file_name().to_string_lossy(),
                name.trim()
            )
        })
        .collect()
}
