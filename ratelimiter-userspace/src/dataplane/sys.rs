//! Raw `bpf(2)`: what aya 0.14 lacks (batches, checked adoption, links without a silent fall-back).
//!
//! One safe function per command; no policy, no retries, no logging. Layouts follow
//! `union bpf_attr` of `linux/bpf.h`; the kernel accepts a shorter attribute than its own.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Insert only.
pub(super) const NOEXIST: u64 = 1;
/// Replace only.
pub(super) const EXIST: u64 = 2;
/// `BPF_F_MMAPABLE` of a map's flags.
pub(super) const F_MMAPABLE: u32 = 1 << 10;
/// `BPF_LINK_TYPE_XDP`.
pub(super) const LINK_TYPE_XDP: u32 = 6;

const ATTACH_TYPE_XDP: u32 = 37;

/// Whether an error says that something is short for the moment: then nothing is known about what
/// was looked at, least of all that it is gone.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN | libc::EINTR
        )
    )
}

/// Commands of `bpf(2)`.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    LookupElem = 1,
    UpdateElem = 2,
    DeleteElem = 3,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ProgGetFdById = 13,
    ObjGetInfo = 15,
    LookupBatch = 24,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkGetFdById = 30,
    LinkGetNextId = 31,
    LinkDetach = 34,
}

/// Issues one `bpf(2)` command.
///
/// `attr` must be the layout the command expects, and every address in it must be valid for what
/// the command reads or writes there; each caller below says why that holds.
unsafe fn bpf<T>(command: Command, attr: &mut T) -> io::Result<i64> {
    loop {
        // SAFETY: `attr` is a live, exclusively borrowed value of the size given; the addresses in
        // it are the caller's obligation.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command as i32,
                std::ptr::from_mut(attr),
                size_of::<T>(),
            )
        };
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Turns a descriptor the kernel just returned into an owned one.
fn own(fd: i64) -> OwnedFd {
    // SAFETY: the kernel returned `fd` from a successful call that creates a descriptor; nobody
    // else owns it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

#[repr(C)]
#[derive(Default)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn elem(map: BorrowedFd<'_>, key: &[u8], value: u64, flags: u64) -> ElemAttr {
    ElemAttr {
        map_fd: raw(map),
        pad: 0,
        key: key.as_ptr() as u64,
        value,
        flags,
    }
}

/// Copies the value under `key` into `value`. Both must have the map's sizes; for a per-CPU map
/// `value` holds one value (rounded up to 8 bytes) per possible CPU. Returns false if there is none.
pub(super) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = elem(map, key, value.as_mut_ptr() as u64, 0);
    // SAFETY: the caller passes buffers of the map's key and value sizes; both outlive the call.
    match unsafe { bpf(Command::LookupElem, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Stores `value` under `key`; `flags` is 0, [`NOEXIST`] or [`EXIST`].
pub(super) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let mut attr = elem(map, key, value.as_ptr() as u64, flags);
    // SAFETY: as in `lookup`; the kernel only reads both buffers.
    unsafe { bpf(Command::UpdateElem, &mut attr) }.map(drop)
}

/// Deletes `key`; returns false if there was none.
pub(super) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attr = elem(map, key, 0, 0);
    // SAFETY: `key` has the map's key size and outlives the call.
    match unsafe { bpf(Command::DeleteElem, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads up to `count` entries into `keys` and `values` (each `count` entries long). `position` is
/// `None` before the first call and is advanced; its buffer must hold the map's key size and at
/// least 4 bytes. Returns the number read and whether that was the end.
pub(super) fn lookup_batch(
    map: BorrowedFd<'_>,
    position: &mut Option<Vec<u8>>,
    position_len: usize,
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<(u32, bool)> {
    let mut out = vec![0_u8; position_len];
    let mut attr = BatchAttr {
        in_batch: position.as_ref().map_or(0, |bytes| bytes.as_ptr() as u64),
        out_batch: out.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    // SAFETY: the caller passes buffers of `count` keys and values; `in_batch` and `out_batch` have
    // the size the map type needs; all outlive the call.
    let result = unsafe { bpf(Command::LookupBatch, &mut attr) };
    match result {
        Ok(_) => {
            *position = Some(out);
            Ok((attr.count, false))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count, true)),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "path with a NUL byte"))
}

/// Pins `fd` at `path`, which must not exist.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: raw(fd),
        file_flags: 0,
    };
    // SAFETY: `pathname` is a NUL-terminated string that outlives the call.
    unsafe { bpf(Command::ObjPin, &mut attr) }.map(drop)
}

/// Opens the object pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        ..ObjAttr::default()
    };
    // SAFETY: `pathname` is a NUL-terminated string that outlives the call.
    unsafe { bpf(Command::ObjGet, &mut attr) }.map(own)
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Reads the information record of any BPF object into `info`; `T` is a prefix of the kernel's
/// record (or the whole) of plain integers.
fn object_info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attr = InfoAttr {
        bpf_fd: raw(fd),
        info_len: size_of::<T>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `info` is a live value of plain integers and `info_len` its size; the kernel writes
    // at most that much.
    unsafe { bpf(Command::ObjGetInfo, &mut attr) }?;
    Ok(info)
}

/// `struct bpf_map_info`, its first part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct MapInfo {
    pub(super) map_type: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
    pub(super) name: [u8; 16],
}

/// `struct bpf_prog_info`, up to the name.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct ProgInfo {
    pub(super) prog_type: u32,
    pub(super) id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    pub(super) name: [u8; 16],
}

/// `struct bpf_link_info` of an XDP link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct LinkInfo {
    pub(super) link_type: u32,
    pub(super) id: u32,
    pub(super) prog_id: u32,
    pad: u32,
    /// Interface index; 0 once the interface or the attachment is gone.
    pub(super) ifindex: u32,
    pad2: u32,
}

/// Describes a map.
pub(super) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    expect_kind(fd, "bpf-map")?;
    object_info(fd)
}

/// Describes a program.
pub(super) fn prog_info(fd: BorrowedFd<'_>) -> io::Result<ProgInfo> {
    expect_kind(fd, "bpf-prog")?;
    object_info(fd)
}

/// Describes a link.
pub(super) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    expect_kind(fd, "bpf-link")?;
    object_info(fd)
}

/// What kind of BPF object `fd` is: `bpf-map`, `bpf-prog`, `bpf-link`. The kernel calls a link
/// `bpf_link` where it was created and `bpf-link` where it was opened from a pin.
pub(super) fn kind(fd: BorrowedFd<'_>) -> io::Result<String> {
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    let target = target.to_string_lossy();
    Ok(target
        .trim_start_matches("anon_inode:")
        .trim_matches(['[', ']'])
        .replace('_', "-"))
}

/// The information record has no kind in it: a program read as a map would be garbage.
fn expect_kind(fd: BorrowedFd<'_>, expected: &str) -> io::Result<()> {
    let is = kind(fd)?;
    if is == expected {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is a `{is}`, not a `{expected}`"),
        ))
    }
}

/// A kernel name as text.
pub(super) fn name(bytes: &[u8; 16]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(16);
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// Memory charged for a map, in bytes, as `/proc` tells it.
pub(super) fn memory(fd: BorrowedFd<'_>) -> u64 {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("memlock:"))
                .and_then(|value| value.trim().parse().ok())
        })
        .unwrap_or(0)
}

/// `prog_fd`, `target_ifindex`, `attach_type`, `flags`.
#[repr(C)]
struct LinkCreateAttr([u32; 4]);

/// Attaches an XDP program to an interface by a link; `flags` is one of [`XDP_NATIVE`],
/// [`XDP_GENERIC`]. Never falls back to a netlink attachment.
pub(super) fn link_create(prog: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr([raw(prog), ifindex, ATTACH_TYPE_XDP, flags]);
    // SAFETY: the attribute holds no address.
    unsafe { bpf(Command::LinkCreate, &mut attr) }.map(own)
}

/// `XDP_FLAGS_SKB_MODE`.
pub(super) const XDP_GENERIC: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`.
pub(super) const XDP_NATIVE: u32 = 1 << 2;

/// `link_fd`, `new_prog_fd`, `flags`, `old_prog_fd`.
#[repr(C)]
struct LinkUpdateAttr([u32; 4]);

/// Replaces the program of a link, atomically for every packet.
pub(super) fn link_update(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr([raw(link), raw(prog), 0, 0]);
    // SAFETY: the attribute holds no address.
    unsafe { bpf(Command::LinkUpdate, &mut attr) }.map(drop)
}

/// A descriptor or an id, and padding.
#[repr(C)]
struct OneAttr([u32; 4]);

/// Detaches a link; it stays as an object without an interface.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = OneAttr([raw(link), 0, 0, 0]);
    // SAFETY: the attribute holds no address.
    unsafe { bpf(Command::LinkDetach, &mut attr) }.map(drop)
}

/// Opens a link by id. Needs CAP_SYS_ADMIN.
pub(super) fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = OneAttr([id, 0, 0, 0]);
    // SAFETY: the attribute holds no address.
    unsafe { bpf(Command::LinkGetFdById, &mut attr) }.map(own)
}

/// Returns the id of the next link after `id`, or `None`. Needs CAP_SYS_ADMIN.
pub(super) fn next_link_id(id: u32) -> io::Result<Option<u32>> {
    let mut attr = OneAttr([id, 0, 0, 0]);
    // SAFETY: the attribute holds no address.
    match unsafe { bpf(Command::LinkGetNextId, &mut attr) } {
        Ok(_) => Ok(attr.0.get(1).copied()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a program by id. Needs CAP_SYS_ADMIN.
pub(super) fn prog_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = OneAttr([id, 0, 0, 0]);
    // SAFETY: the attribute holds no address.
    unsafe { bpf(Command::ProgGetFdById, &mut attr) }.map(own)
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// Runs a program once over `frame` and replaces it by what the program made of it; returns the
/// program's return value. Fails if the frame came back with another length.
pub(super) fn test_run(prog: BorrowedFd<'_>, frame: &mut [u8]) -> io::Result<u32> {
    let input = frame.to_vec();
    let mut attr = TestRunAttr {
        prog_fd: raw(prog),
        data_size_in: input.len() as u32,
        data_size_out: frame.len() as u32,
        data_in: input.as_ptr() as u64,
        data_out: frame.as_mut_ptr() as u64,
        repeat: 1,
        ..TestRunAttr::default()
    };
    // SAFETY: `data_in` and `data_out` point to live buffers of the sizes given.
    unsafe { bpf(Command::ProgTestRun, &mut attr) }?;
    if attr.data_size_out as usize == frame.len() {
        Ok(attr.retval)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the frame came back with {} bytes, not {}",
                attr.data_size_out,
                frame.len()
            ),
        ))
    }
}
