//! The directory of pins: where it lies, who holds it, what is in it, and how it is emptied.
//!
//! `<root>/<MAP>` and `<root>/links/<interface>`; directories 0700, pins 0600.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ratelimiter_common::abi::names;

use super::Error;
use super::shape::Found;
use super::sys::{self, LinkInfo};

/// `BPF_FS_MAGIC`.
const BPFFS: i64 = 0xcafe_4a11;
/// How long a starting agent waits for the one before it to end.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// An open pin directory, locked against other agents until it is dropped.
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
    _lock: File,
}

impl Pins {
    /// Opens `root`, making it (and `links` in it) where missing, and locks it.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let parent = root.parent().unwrap_or(root);
        if !is_bpffs(if root.exists() { root } else { parent }) {
            return Err(Error::NoBpffs {
                path: root.to_owned(),
                mount: parent.to_owned(),
            });
        }
        make_dir(root)?;
        make_dir(&root.join("links"))?;
        let lock = lock(root)?;
        Ok(Self {
            root: root.to_owned(),
            _lock: lock,
        })
    }

    /// Makes the directories again after someone removed them.
    pub(super) fn restore(&self) -> Result<(), Error> {
        make_dir(&self.root)?;
        make_dir(&self.root.join("links"))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where a map's pin lies.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where an interface's link pin lies.
    pub(super) fn link(&self, interface: &str) -> PathBuf {
        self.root.join("links").join(link_file(interface))
    }

    /// What lies at the place of every map.
    pub(super) fn found(&self) -> BTreeMap<&'static str, Found> {
        found(&self.root)
    }

    /// Every pinned link by file name; what cannot be opened as a link is left out.
    pub(super) fn links(&self) -> Vec<(String, OwnedFd, LinkInfo)> {
        links(&self.root)
    }

    /// Removes a map's pin, whatever it is.
    pub(super) fn remove_map(&self, name: &str) -> Result<(), Error> {
        remove(&self.map(name)).map(drop)
    }

    /// Removes a link's pin; returns whether there was one.
    pub(super) fn remove_link(&self, interface: &str) -> Result<bool, Error> {
        remove(&self.link(interface))
    }

    /// Pins `fd` at `path` with mode 0600.
    pub(super) fn pin(fd: impl AsFd, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::kernel(format!("pinning `{}`", path.display()), source);
        sys::pin(fd.as_fd(), path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)
    }
}

/// Every map of the program that is pinned.
pub(super) fn every_map() -> impl Iterator<Item = &'static str> {
    names::MAPS.into_iter().chain(names::OBSERVATION_MAPS)
}

/// Whether `path` lies on a bpffs.
pub fn is_bpffs(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: all-zero is a valid `statfs`.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path and a live buffer.
    let result = unsafe { libc::statfs(path.as_ptr(), &raw mut answer) };
    result == 0 && answer.f_type as i64 == BPFFS
}

fn make_dir(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::kernel(
            format!("making directory `{}`", path.display()),
            error,
        )),
    }
}

/// Locks a directory, so that two agents never write the same maps. The kernel drops the lock when
/// its holder dies, however it dies.
fn lock(root: &Path) -> Result<File, Error> {
    let failed = |source| Error::kernel(format!("locking `{}`", root.display()), source);
    let directory = File::open(root).map_err(failed)?;
    let began = crate::clock::instant();
    loop {
        // SAFETY: plain system call on an open descriptor.
        if unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(directory);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(failed(error));
        }
        if began.elapsed() >= LOCK_WAIT {
            return Err(Error::Busy(root.to_owned()));
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// File name of an interface's pin. bpffs reserves dots, which names of VLAN devices have;
/// colons it allows, which names of interfaces never have.
fn link_file(interface: &str) -> String {
    interface.replace('.', ":")
}

fn look(path: &Path) -> Found {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
        Err(error) => return Found::Other(format!("unreadable ({error})")),
        Ok(meta) if meta.is_dir() => return Found::Other("a directory".to_owned()),
        Ok(_) => {}
    }
    let object = match sys::open_pin(path) {
        Ok(object) => object,
        Err(error) => return Found::Other(format!("unreadable ({error})")),
    };
    match sys::map_info(object.as_fd()) {
        Ok(info) => Found::Map(info.into()),
        Err(_) => Found::Other(sys::kind(object.as_fd()).map_or_else(
            |error| format!("unreadable ({error})"),
            |kind| format!("a `{kind}`"),
        )),
    }
}

/// What lies at the place of every map under `root`.
pub(super) fn found(root: &Path) -> BTreeMap<&'static str, Found> {
    every_map()
        .map(|name| (name, look(&root.join(name))))
        .collect()
}

/// Every link pinned under `root`, as [`Pins::links`].
pub(super) fn links(root: &Path) -> Vec<(String, OwnedFd, LinkInfo)> {
    let Ok(entries) = fs::read_dir(root.join("links")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let link = sys::open_pin(&entry.path()).ok()?;
            let info = sys::link_info(link.as_fd()).ok()?;
            let name = entry.file_name().into_string().ok()?.replace(':', ".");
            Some((name, link, info))
        })
        .collect()
}

/// Removes a file; returns whether it was there.
fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::kernel(
            format!("removing pin `{}`", path.display()),
            error,
        )),
    }
}

/// What [`detach_all`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Interfaces that were detached (names of their pins).
    pub interfaces: Vec<String>,
    /// Number of map pins removed.
    pub maps: usize,
}

impl Removed {
    /// Whether there was nothing to do.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.interfaces.is_empty() && self.maps == 0
    }
}

/// Detaches every interface and removes every pin under `root`, and `root` itself where it is
/// empty then. Succeeds when there is nothing to do. Refused while an agent runs.
pub fn detach_all(root: &Path) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    if !root.exists() {
        return Ok(removed);
    }
    if !is_bpffs(root) {
        return Err(Error::NoBpffs {
            path: root.to_owned(),
            mount: root.parent().unwrap_or(root).to_owned(),
        });
    }
    let _lock = lock(root)?;
    for (name, link, _) in links(root) {
        // Without an interface (a zombie) the kernel answers an error, and there is no need.
        let detached = sys::link_detach(link.as_fd());
        tracing::debug!(interface = name, ?detached, "removing link");
        removed.interfaces.push(name);
    }
    if let Ok(entries) = fs::read_dir(root.join("links")) {
        for entry in entries.flatten() {
            remove(&entry.path())?;
        }
    }
    for name in every_map() {
        removed.maps += usize::from(remove(&root.join(name))?);
    }
    for directory in [root.join("links"), root.to_owned()] {
        match fs::remove_dir(&directory) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::DirectoryNotEmpty
                        | io::ErrorKind::PermissionDenied
                ) => {}
            // The directory is the root of the mount itself: nothing of ours is left in it.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => {
                return Err(Error::kernel(
                    format!("removing `{}`", directory.display()),
                    error,
                ));
            }
        }
    }
    removed.interfaces.sort();
    Ok(removed)
}
