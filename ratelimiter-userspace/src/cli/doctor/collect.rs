//! Collects [`Facts`] from this machine. All of `doctor`'s I/O, except asking the agent.

use std::io;
use std::path::{Path, PathBuf};

use super::facts::AttachedXdp;
use super::facts::{
    BpffsFacts, ConfigFacts, ConfigState, DirectoryFacts, InterfaceFacts, LinkFacts, NativeXdp,
    PinFacts,
};
use super::features::xdp_features;
use crate::config::Settings;
use crate::dataplane::{self, inspect};

/// `uname -r`.
pub fn kernel_release() -> String {
    read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned())
}

/// Whether the kernel describes its own types.
pub fn kernel_btf() -> bool {
    Path::new("/sys/kernel/btf/vmlinux").exists()
}

/// Whether programs are compiled.
pub fn jit() -> Option<u8> {
    read("/proc/sys/net/core/bpf_jit_enable")?.parse().ok()
}

/// The clock source in use.
pub fn clock_source() -> Option<String> {
    read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
}

/// `RLIMIT_MEMLOCK` in bytes, if there is a limit.
pub fn memlock_bytes() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid, writable rlimit.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (asked == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn read(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The nearest existing directory on the way to `path`.
fn nearest(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or_else(|| Path::new("/"))
        .to_owned()
}

/// Whether this process may write to `path`.
fn writable(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: `path` is a NUL-terminated string that lives through the call.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK, libc::AT_EACCESS) == 0 }
}

/// Bytes an unprivileged user may still take on the file system of `path`.
fn free_bytes(path: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all-zero is a valid `statvfs`.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path and a live buffer.
    let asked = unsafe { libc::statvfs(path.as_ptr(), &raw mut answer) };
    (asked == 0).then(|| answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// The state directory.
pub fn directory(path: &Path) -> DirectoryFacts {
    let nearest = nearest(path);
    DirectoryFacts {
        path: path.to_owned(),
        exists: path.is_dir(),
        writable: writable(&nearest),
        free_bytes: free_bytes(&nearest),
    }
}

/// The configuration file; `judge` says what is wrong with its text.
pub fn config(path: &Path, judge: impl FnOnce(&str) -> Result<(), String>) -> ConfigFacts {
    use std::os::unix::fs::MetadataExt;
    let world_writable = std::fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o002 != 0);
    let state = match std::fs::read_to_string(path) {
        Ok(text) => match judge(&text) {
            Ok(()) => ConfigState::Valid,
            Err(why) => ConfigState::Broken(why),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => ConfigState::Missing,
        Err(e) => ConfigState::Unreadable(e.to_string()),
    };
    ConfigFacts {
        path: path.to_owned(),
        state,
        world_writable,
    }
}

/// The sizes an agent with these settings would ask for.
fn tables(settings: &Settings) -> dataplane::Tables {
    let tables = &settings.tables;
    dataplane::Tables {
        crowd4_words: tables.crowd4_words,
        crowd6_ways: tables.crowd6_ways,
        region_words: tables.region_words,
        tracked: tables.tracked,
        policies: tables.policies,
        prefixes: tables.prefixes,
        events_bytes: tables.events_bytes,
        v6_prefix_len: settings.kernel.v6_prefix_len,
    }
}

/// The pins under `root`, judged as an agent with these settings would.
pub fn pins(root: &Path, settings: &Settings) -> PinFacts {
    let report = inspect::pins(root, &tables(settings));
    PinFacts {
        links: report.links.into_iter().map(|(name, _)| name).collect(),
        maps: report.maps,
        maps_expected: report.maps_expected,
        problem: report.problem,
    }
}

/// Ids of the programs that pinned links run.
pub fn own_programs(root: &Path, settings: &Settings) -> Vec<u32> {
    inspect::pins(root, &tables(settings))
        .links
        .into_iter()
        .map(|(_, program)| program)
        .collect()
}

/// The directory of the pins.
pub fn bpffs(root: &Path) -> BpffsFacts {
    let nearest = nearest(root);
    BpffsFacts {
        path: root.to_owned(),
        is_bpffs: inspect::is_bpffs(&nearest),
        writable: writable(&nearest),
        nearest,
    }
}

/// One interface; `own_programs` are the ids of the programs that pinned links run.
pub fn interface(name: &str, generic_asked: bool, own_programs: &[u32]) -> InterfaceFacts {
    let link = inspect::interface(name).ok().flatten().map(|report| {
        let features = xdp_features(report.index);
        LinkFacts {
            up: is_up(name),
            mtu: report.mtu,
            driver: driver(name),
            native: match &features {
                Ok(features) if features.native => NativeXdp::Supported,
                Ok(_) => NativeXdp::Unsupported,
                Err(_) => NativeXdp::Unknown,
            },
            multi_buffer: features.is_ok_and(|features| features.multi_buffer),
            xdp: report.program.map(|program| AttachedXdp {
                id: program.id,
                ours: own_programs.contains(&program.id),
                name: program.name,
                generic: program.generic,
            }),
        }
    });
    InterfaceFacts {
        name: name.to_owned(),
        generic_asked,
        link,
    }
}

/// Whether the interface is administratively up.
fn is_up(name: &str) -> bool {
    read(&format!("/sys/class/net/{name}/flags"))
        .and_then(|flags| u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok())
        .is_some_and(|flags| flags & libc::IFF_UP as u32 != 0)
}

/// The driver's name; `virtual` for devices without hardware.
fn driver(name: &str) -> String {
    std::fs::read_link(format!("/sys/class/net/{name}/device/driver"))
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "virtual".to_owned())
}
