//! The watch: interfaces come and go, and others meddle with pins and maps.
//!
//! A thread verifies everything twice a second and at every link event, repairs what it can and
//! writes down what it cannot. Pins lie, so it compares what the kernel says.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Error;
use super::attach::{self, OwnLink};
use super::netlink::{self, LinkEvents};
use super::pins::{Pins, every_map, is_bpffs};
use super::state::{AttachMode, InterfaceState};
use super::sys;
use super::xdp::{Shared, Watched, lock};
use crate::clock::monotonic_ns;

/// Longest time between two verifications.
const PERIOD: Duration = Duration::from_millis(500);
/// Shortest time between two verifications, so that a storm of link events costs little.
const PAUSE: Duration = Duration::from_millis(20);

/// Ends the watch when dropped.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the watch in the caller's network namespace.
    pub(super) fn start(shared: &Arc<Shared>) -> Result<Self, Error> {
        let failed = |source| Error::kernel("starting the watch", source);
        let events = LinkEvents::subscribe().map_err(failed)?;
        // SAFETY: plain system call.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: just created, owned by nobody else.
        let stop = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        let weak = Arc::downgrade(shared);
        let ends = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("dataplane-watch".to_owned())
            .spawn(move || watch(&weak, &events, &ends))
            .map_err(failed)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: 8 live bytes, as an eventfd takes them.
        unsafe { libc::write(self.stop.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the watch of the data plane panicked");
        }
    }
}

fn watch(shared: &Weak<Shared>, events: &LinkEvents, stop: &OwnedFd) {
    loop {
        let waited = events.wait(PERIOD, stop);
        if let Err(error) = &waited {
            tracing::warn!(%error, "waiting for link events");
            std::thread::park_timeout(PERIOD);
        }
        if is_set(stop) {
            return;
        }
        let Some(shared) = shared.upgrade() else {
            return;
        };
        shared.verify(monotonic_ns());
        drop(shared);
        std::thread::park_timeout(PAUSE);
    }
}

fn is_set(stop: &OwnedFd) -> bool {
    let mut polled = libc::pollfd {
        fd: stop.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live entry.
    unsafe { libc::poll(&raw mut polled, 1, 0) == 1 }
}

/// Descriptors one verification needs at a time.
const SPARE_DESCRIPTORS: usize = 4;

/// What one verification met.
#[derive(Default)]
struct Findings {
    problems: Vec<String>,
    repairs: u64,
    reattached: u64,
}

impl Shared {
    /// Compares everything with what it should be, and repairs it.
    pub(super) fn verify(&self, now_ns: u64) {
        let mut findings = Findings::default();
        if let Err(error) = self.can_look() {
            findings.problems.push(format!(
                "whether pins and links are in place cannot be verified: {error}"
            ));
            self.publish(findings);
            return;
        }
        let mut links = lock(&self.links);
        let was_there = is_bpffs(self.pins.root());
        if self.verify_directory(&mut findings) {
            self.verify_maps(&mut findings);
            let names: Vec<String> = links.keys().cloned().collect();
            for name in names {
                if let Some(watched) = links.get_mut(&name) {
                    self.verify_link(&name, watched, now_ns, &mut findings);
                }
            }
        }
        for watched in links.values() {
            let name = &watched.view.name;
            match &watched.view.state {
                InterfaceState::Attached => {}
                InterfaceState::Absent => {
                    findings
                        .problems
                        .push(format!("interface `{name}` does not exist"));
                }
                InterfaceState::Failed { reason } => {
                    findings
                        .problems
                        .push(format!("interface `{name}` is not limited: {reason}"));
                }
            }
        }
        drop(links);
        if !was_there {
            // One event, however many pins were in the directory.
            findings.repairs = findings.repairs.min(1);
        }
        // Busy applying: the next verification comes in half a second.
        if let Ok(mut writer) = self.writer.try_lock() {
            if let Err(error) = writer.clamp_due(&self.kernel, now_ns) {
                findings.problems.push(error.to_string());
            }
            match writer.repair(&self.kernel) {
                Ok(repaired) => {
                    for name in repaired {
                        tracing::warn!(map = name, "another process changed a map; restored");
                        findings.repairs += 1;
                    }
                }
                Err(error) => findings.problems.push(error.to_string()),
            }
        }
        self.publish(findings);
    }

    /// Whether there are descriptors to look with: without them everything seems to be gone.
    fn can_look(&self) -> io::Result<()> {
        let mut spare = Vec::with_capacity(SPARE_DESCRIPTORS);
        for _ in 0..SPARE_DESCRIPTORS {
            spare.push(self.kernel.program.try_clone()?);
        }
        Ok(())
    }

    fn publish(&self, findings: Findings) {
        let mut health = lock(&self.health);
        for problem in &findings.problems {
            if !health.problems.contains(problem) {
                tracing::warn!("{problem}");
            }
        }
        health.ok = findings.problems.is_empty();
        health.problems = findings.problems;
        health.repairs += findings.repairs;
        health.reattached += findings.reattached;
    }

    /// Whether the pins' directory is there; mounts and fills it again where that is possible.
    fn verify_directory(&self, findings: &mut Findings) -> bool {
        let root = self.pins.root();
        if is_bpffs(root) {
            return true;
        }
        let restored = remount(root).and_then(|()| self.pins.restore());
        match restored {
            Ok(()) => {
                tracing::warn!(root = %root.display(), "the pins' directory was gone; restored");
                findings.repairs += 1;
                true
            }
            Err(error) => {
                findings.problems.push(format!(
                    "the pins are gone, the program would not outlive this agent: {error}"
                ));
                // The links still enforce: this process holds them.
                false
            }
        }
    }

    fn verify_maps(&self, findings: &mut Findings) {
        let mut restored = Vec::new();
        for name in every_map() {
            let Some(map) = self.kernel.maps.get(name) else {
                continue;
            };
            let path = self.pins.map(name);
            let pinned = sys::open_pin(&path).and_then(|fd| sys::map_info(fd.as_fd()));
            match pinned {
                Ok(info) if info.id == map.info.id => continue,
                Err(error) if sys::is_shortage(&error) => {
                    findings
                        .problems
                        .push(format!("pin `{name}` cannot be looked at: {error}"));
                    break;
                }
                _ => {}
            }
            let again = self
                .pins
                .remove_map(name)
                .and_then(|()| Pins::pin(map.fd(), &path));
            match again {
                Ok(()) => restored.push(name),
                Err(error) => findings.problems.push(error.to_string()),
            }
        }
        if !restored.is_empty() {
            tracing::warn!(maps = ?restored, "pins of maps were gone; restored");
            findings.repairs += 1;
        }
    }

    fn verify_link(&self, name: &str, watched: &mut Watched, now_ns: u64, findings: &mut Findings) {
        let unseen = |error: io::Error| format!("interface `{name}` cannot be looked at: {error}");
        let index = match netlink::find(name) {
            Ok(index) => index,
            Err(error) => {
                findings.problems.push(unseen(error));
                return;
            }
        };
        let info = watched.link.as_ref().and_then(|link| link.info().ok());
        if index == 0 {
            self.interface_is_gone(name, watched, info.map_or(0, |info| info.ifindex), now_ns);
            return;
        }
        let sound = info.is_some_and(|info| {
            info.ifindex == index && (!watched.wanted || info.prog_id == self.kernel.program_id)
        });
        match self.runs(watched, index) {
            Ok(true) if sound => {
                watched.set(InterfaceState::Attached, index, now_ns);
                self.verify_pin(name, watched.link.as_ref(), findings);
                return;
            }
            Err(error) if sys::is_shortage(&error) => {
                findings.problems.push(unseen(error));
                return;
            }
            _ => {}
        }
        let was_here = watched.view.index == index && watched.view.is_attached();
        let held = watched.link.take();
        // Should this fail, what is held must not be let go.
        let kept = held.as_ref().and_then(OwnLink::again);
        match attach::attach(&self.kernel, &self.pins, held, name, watched.options) {
            Ok(link) => {
                watched.link = Some(link);
                watched.wanted = true;
                watched.set(InterfaceState::Attached, index, now_ns);
                if was_here {
                    findings.repairs += 1;
                    tracing::warn!(
                        interface = name,
                        "another process detached the program; restored"
                    );
                } else {
                    findings.reattached += 1;
                    tracing::info!(
                        interface = name,
                        index,
                        "interface is back and limited again"
                    );
                }
            }
            Err(Error::UnknownInterface(_)) => {
                watched.link = kept;
                watched.set(InterfaceState::Absent, 0, now_ns);
            }
            Err(error) => {
                watched.link = kept;
                let reason = error.to_string();
                watched.set(InterfaceState::Failed { reason }, index, now_ns);
            }
        }
    }

    /// Whether the interface itself says that our program runs there.
    fn runs(&self, watched: &Watched, index: u32) -> io::Result<bool> {
        let Some(described) = netlink::link(index)? else {
            return Ok(false);
        };
        let running = match watched.options.mode {
            AttachMode::Native => described.native_prog,
            AttachMode::Generic => described.generic_prog,
        };
        Ok(if watched.wanted {
            running == self.kernel.program_id
        } else {
            running != 0
        })
    }

    /// Forgets a link whose interface was deleted. One that lives on an interface of another name
    /// (renamed, or moved to another namespace) keeps enforcing there until this name is back.
    fn interface_is_gone(&self, name: &str, watched: &mut Watched, lives_on: u32, now_ns: u64) {
        if lives_on == 0
            && watched.link.take().is_some()
            && let Err(error) = self.pins.remove_link(name)
        {
            tracing::warn!(%error, "removing the pin of a vanished interface");
        }
        if watched.set(InterfaceState::Absent, 0, now_ns) {
            let now_called = netlink::link(lives_on).ok().flatten().map(|link| link.name);
            tracing::warn!(
                interface = name,
                now_called,
                "interface is gone; waiting for it"
            );
        }
    }

    fn verify_pin(&self, name: &str, link: Option<&OwnLink>, findings: &mut Findings) {
        let Some(link) = link else {
            return;
        };
        let pinned = attach::is_pinned(&self.pins, name, link);
        let restored = match pinned {
            Ok(true) => return,
            Ok(false) => attach::ensure_pinned(&self.pins, name, link),
            Err(error) => Err(error),
        };
        match restored {
            Ok(()) => {
                findings.repairs += 1;
                tracing::warn!(interface = name, "the pin of a link was gone; restored");
            }
            Err(error) => findings.problems.push(error.to_string()),
        }
    }
}

/// Mounts a bpffs where the one with the pins was. Needs CAP_SYS_ADMIN; without it, the error
/// says how to mount.
fn remount(root: &std::path::Path) -> Result<(), Error> {
    use std::os::unix::ffi::OsStrExt;
    let mount = root.parent().unwrap_or(root);
    let no_bpffs = || Error::NoBpffs {
        path: root.to_owned(),
        mount: mount.to_owned(),
    };
    if is_bpffs(mount) {
        // Only our directory was removed.
        return Ok(());
    }
    let target = std::ffi::CString::new(mount.as_os_str().as_bytes()).map_err(|_| no_bpffs())?;
    // SAFETY: NUL-terminated strings that outlive the call; bpffs takes its options as a string.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            target.as_ptr(),
            c"bpf".as_ptr(),
            0,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if result == 0 { Ok(()) } else { Err(no_bpffs()) }
}
