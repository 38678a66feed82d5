//! A bpffs of its own for a test that needs no network: pins never meet those of another test.
use std::process::Command;

use crate::OrFail as _;
use crate::space::{Own, Space};

/// Where the private bpffs is mounted, for whoever runs inside.
pub const MOUNT: &str = "/sys/fs/bpf";

/// A mount namespace whose `/sys/fs/bpf` is empty and nobody else's. Everything pinned in it goes
/// when the guard is dropped.
#[derive(Debug)]
pub struct Bpffs {
    space: Space,
}

impl Bpffs {
    /// Mounts it. Fails without root.
    #[must_use]
    #[track_caller]
    pub fn new() -> Self {
        Self {
            space: Space::new(Own { network: false }),
        }
    }

    /// Runs `work` on a thread that sees this bpffs, and returns what it returns.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.space.run(work)
    }

    /// Makes `command` start where this bpffs is seen.
    pub fn prepare(&self, command: &mut Command) {
        self.space.prepare(command);
    }

    /// Names of what is pinned below `directory` (absolute, inside), relative and sorted.
    #[must_use]
    pub fn pins(&self, directory: &str) -> Vec<String> {
        self.run(|| pins(directory))
    }
}

impl Default for Bpffs {
    fn default() -> Self {
        Self::new()
    }
}

/// Names of what is pinned below `directory` for the calling thread, relative and sorted.
#[must_use]
pub fn pins(directory: &str) -> Vec<String> {
    let mut found = Vec::new();
    collect(directory.as_ref(), "", &mut found);
    found.sort();
    found
}

fn collect(directory: &std::path::Path, prefix: &str, found: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries {
        let entry = entry.or_fail("read a bpffs directory");
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // The kernel puts these two into every new bpffs (CONFIG_BPF_PRELOAD).
        if ["maps.debug", "progs.debug"].contains(&name.as_str()) {
            continue;
        }
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{name}/"), found);
        } else {
            found.push(name);
        }
    }
}
