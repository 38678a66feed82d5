//! An XDP program that is not ours, made by hand: `r0 = XDP_PASS; exit`. Named `stranger`.
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::OrFail as _;

const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// `XDP_FLAGS_DRV_MODE`.
const NATIVE: u32 = 1 << 2;

/// The loaded program. Gone when dropped, unless attached by netlink or pinned.
#[derive(Debug)]
pub struct Stranger {
    program: OwnedFd,
}

/// `union bpf_attr` of `BPF_PROG_LOAD`, its first part.
#[repr(C)]
struct LoadAttr {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u64; 2],
    version_and_flags: [u32; 2],
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

impl Stranger {
    /// Loads it: it passes everything.
    #[must_use]
    #[track_caller]
    pub fn load() -> Self {
        Self::answering(2)
    }

    /// Loads one that drops everything.
    #[must_use]
    #[track_caller]
    pub fn dropping() -> Self {
        Self::answering(1)
    }

    /// Loads one that drops everything after it has read the IPv4 source: what every limiter must
    /// pay, because the header is not in this CPU's cache yet.
    #[must_use]
    #[track_caller]
    pub fn dropping_after_a_look() -> Self {
        let code = [
            0x0000_0000_0000_1261, // r2 = data
            0x0000_0000_0004_1361, // r3 = data_end
            0x0000_0000_0000_24bf, // r4 = r2
            0x0000_0022_0000_0407, // r4 += 34
            0x0000_0000_0001_342d, // if r4 > r3 skip one
            0x0000_0000_001a_2061, // r0 = source
            0x0000_0001_0000_00b7, // r0 = XDP_DROP
            0x0000_0000_0000_0095, // exit
        ];
        Self {
            program: load_xdp(&code),
        }
    }

    #[track_caller]
    fn answering(action: u64) -> Self {
        // mov64 r0, action; exit
        Self {
            program: load_xdp(&[action << 32 | 0xb7, 0x95]),
        }
    }

    /// Attaches it in native mode by a link, in the calling thread's network namespace. Detached
    /// when the link is dropped.
    #[must_use]
    #[track_caller]
    pub fn link(&self, index: u32) -> OwnedFd {
        let mut attr = [
            self.program.as_raw_fd().cast_unsigned(),
            index,
            ATTACH_XDP,
            NATIVE,
        ];
        bpf(LINK_CREATE, &mut attr).or_fail("attach the foreign program")
    }

    /// Its id, by which bpftool knows it.
    #[must_use]
    #[track_caller]
    pub fn id(&self) -> u32 {
        let path = format!("/proc/self/fdinfo/{}", self.program.as_raw_fd());
        std::fs::read_to_string(path)
            .or_fail("read fdinfo")
            .lines()
            .find_map(|line| line.strip_prefix("prog_id:"))
            .and_then(|id| id.trim().parse().ok())
            .or_fail("a program id")
    }
}

/// Loads an XDP program named `stranger` from its instructions.
#[track_caller]
pub(crate) fn load_xdp(code: &[u64]) -> OwnedFd {
    let mut name = [0; 16];
    name[..8].copy_from_slice(b"stranger");
    let mut attr = LoadAttr {
        kind: TYPE_XDP,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 2],
        version_and_flags: [0; 2],
        name,
        interface: 0,
        attach_type: ATTACH_XDP,
    };
    bpf(PROG_LOAD, &mut attr).or_fail("load a hand-made program")
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: callers pass the command's part of `bpf_attr`, whose addresses are live.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created by the kernel, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
