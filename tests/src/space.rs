//! Private namespaces, held by file descriptors: when the last descriptor is closed, the kernel
//! removes the namespace and everything in it, also when the test was killed.
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread;

use crate::OrFail as _;

/// What a space has of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    /// A network namespace.
    pub(crate) network: bool,
}

/// A mount namespace with a bpffs of its own on `/sys/fs/bpf`, and perhaps a network namespace.
#[derive(Debug)]
pub(crate) struct Space {
    mount: File,
    network: Option<File>,
}

impl Space {
    /// Makes the namespaces.
    pub(crate) fn new(own: Own) -> Self {
        crate::requires::root();
        thread::scope(|scope| {
            scope
                .spawn(|| Self::make(own))
                .join()
                .unwrap_or_else(|cause| std::panic::resume_unwind(cause))
        })
    }

    fn make(own: Own) -> Self {
        let mut flags = libc::CLONE_NEWNS;
        if own.network {
            flags |= libc::CLONE_NEWNET;
        }
        // SAFETY: no memory is passed; the thread was started for this and shares nothing that the
        // flags change.
        check(unsafe { libc::unshare(flags) }).or_fail("unshare namespaces");
        mount("none", "/", None, libc::MS_REC | libc::MS_PRIVATE, None)
            .or_fail("make mounts private");
        if own.network {
            // A new sysfs shows the interfaces of the namespace it is mounted in.
            mount("sysfs", "/sys", Some("sysfs"), 0, None).or_fail("mount /sys");
        }
        mount("bpf", "/sys/fs/bpf", Some("bpf"), 0, Some("mode=0700")).or_fail("mount bpffs");
        Self {
            mount: File::open("/proc/thread-self/ns/mnt").or_fail("open mount namespace"),
            network: own
                .network
                .then(|| File::open("/proc/thread-self/ns/net").or_fail("open network namespace")),
        }
    }

    /// Runs `work` on a thread inside, and returns what it returns. Panics pass through.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let (mount, network) = self.descriptors();
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    // SAFETY: no memory is passed; a thread may only change its mount namespace
                    // once it no longer shares its root and working directory.
                    check(unsafe { libc::unshare(libc::CLONE_FS) }).or_fail("unshare fs");
                    enter(mount, network).or_fail("enter namespaces");
                    work()
                })
                .join()
                .unwrap_or_else(|cause| std::panic::resume_unwind(cause))
        })
    }

    /// Makes `command` start inside. Its working directory becomes `/`.
    pub(crate) fn prepare(&self, command: &mut Command) {
        let (mount, network) = self.descriptors();
        // SAFETY: the closure only makes system calls, which are async-signal-safe; the
        // descriptors stay open because the command is spawned while `self` is borrowed.
        unsafe {
            command.pre_exec(move || enter(mount, network));
        }
    }

    /// Path under which another process or `ip` can name the network namespace.
    pub(crate) fn network_path(&self) -> String {
        let network = self.network.as_ref().or_fail("no network namespace");
        format!("/proc/{}/fd/{}", std::process::id(), network.as_raw_fd())
    }

    fn descriptors(&self) -> (RawFd, Option<RawFd>) {
        (
            self.mount.as_raw_fd(),
            self.network.as_ref().map(std::os::fd::AsRawFd::as_raw_fd),
        )
    }
}

/// Enters the namespaces behind the descriptors. Async-signal-safe.
fn enter(mount: RawFd, network: Option<RawFd>) -> io::Result<()> {
    if let Some(network) = network {
        // SAFETY: only descriptors are passed.
        check(unsafe { libc::setns(network, libc::CLONE_NEWNET) })?;
    }
    // SAFETY: only descriptors are passed.
    check(unsafe { libc::setns(mount, libc::CLONE_NEWNS) })
}

/// `mount(2)` in the calling thread's mount namespace.
pub(crate) fn mount(
    source: &str,
    target: &str,
    kind: Option<&str>,
    flags: libc::c_ulong,
    options: Option<&str>,
) -> io::Result<()> {
    let source = CString::new(source)?;
    let target = CString::new(target)?;
    let kind = kind.map(CString::new).transpose()?;
    let options = options.map(CString::new).transpose()?;
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
    // SAFETY: every pointer is null or a NUL-terminated string that lives until the call returns.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            pointer(&kind),
            flags,
            pointer(&options).cast(),
        )
    })
}

/// Turns the result of a system call into an `io::Result`.
pub(crate) fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
