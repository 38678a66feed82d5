//! The few raw `bpf(2)` calls the residue scan needs: ids and names of what the kernel holds.
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};

/// A kind of BPF object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Program,
    Map,
    Link,
}

/// Every kind.
pub(crate) const KINDS: [Kind; 3] = [Kind::Program, Kind::Map, Kind::Link];

/// Command numbers of `bpf(2)` (include/uapi/linux/bpf.h).
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;

impl Kind {
    /// `BPF_*_GET_NEXT_ID`.
    const fn next_id(self) -> libc::c_long {
        match self {
            Self::Program => 11,
            Self::Map => 12,
            Self::Link => 31,
        }
    }

    /// `BPF_*_GET_FD_BY_ID`.
    const fn fd_by_id(self) -> libc::c_long {
        match self {
            Self::Program => 13,
            Self::Map => 14,
            Self::Link => 30,
        }
    }

    /// What comes before the id in the `fdinfo` of a descriptor of such an object.
    pub(crate) const fn fdinfo_id(self) -> &'static str {
        match self {
            Self::Program => "prog_id:",
            Self::Map => "map_id:",
            Self::Link => "link_id:",
        }
    }

    /// Offset of the name in the object's info structure; links have none.
    const fn name_offset(self) -> Option<usize> {
        match self {
            Self::Program => Some(64),
            Self::Map => Some(24),
            Self::Link => None,
        }
    }
}

/// What is known of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    /// Name; for a link, that of its program.
    pub(crate) name: String,
}

/// Every object of a kind the kernel holds now, by id.
pub(crate) fn objects(kind: Kind) -> io::Result<BTreeMap<u32, Object>> {
    let mut found = BTreeMap::new();
    let mut id = 0;
    while let Some(next) = next_id(kind, id)? {
        id = next;
        // An object may go between the two calls: it is no longer there.
        if let Ok(object) = object(kind, id) {
            found.insert(id, object);
        }
    }
    Ok(found)
}

fn next_id(kind: Kind, after: u32) -> io::Result<Option<u32>> {
    let mut attributes = [after, 0, 0, 0];
    match call(kind.next_id(), attributes.as_mut_ptr().cast(), 16) {
        Ok(_) => Ok(Some(attributes[1])),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn object(kind: Kind, id: u32) -> io::Result<Object> {
    let info = info(kind, id)?;
    let name = match kind.name_offset() {
        Some(offset) => text(info.get(offset..offset + 16).unwrap_or(&[])),
        // `struct bpf_link_info`: type, id, prog_id.
        None => match word(&info, 8) {
            Some(program) => object(Kind::Program, program)?.name,
            None => String::new(),
        },
    };
    Ok(Object { name })
}

fn info(kind: Kind, id: u32) -> io::Result<Vec<u8>> {
    let mut attributes = [id, 0, 0, 0];
    let descriptor = call(kind.fd_by_id(), attributes.as_mut_ptr().cast(), 16)?;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    let object = unsafe { File::from_raw_fd(descriptor as i32) };
    let mut info = vec![0_u8; 256];
    let mut attributes = [0_u64; 2];
    attributes[0] = object.as_raw_fd() as u64 | (256_u64 << 32);
    attributes[1] = info.as_mut_ptr() as u64;
    call(OBJ_GET_INFO_BY_FD, attributes.as_mut_ptr().cast(), 16)?;
    Ok(info)
}

fn word(info: &[u8], offset: usize) -> Option<u32> {
    let bytes = info.get(offset..offset + 4)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes)
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn call(command: libc::c_long, attributes: *mut libc::c_void, size: usize) -> io::Result<i64> {
    // SAFETY: callers pass `size` writable bytes laid out as the command's part of `bpf_attr`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
