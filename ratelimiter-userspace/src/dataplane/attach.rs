//! Links: made, adopted, updated, never detached and attached again.
//!
//! Every attachment is a BPF link pinned at `links/<interface>`; the netlink way, which no pin
//! outlives, is never used.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::loader::Kernel;
use super::netlink::{self, Link};
use super::pins::Pins;
use super::state::{AttachMode, AttachOptions};
use super::sys::{self, LinkInfo};
use super::{Error, caps};

/// The largest MTU that native XDP takes on every driver: one page less headroom and tailroom.
const MTU_ALWAYS_FITS: u32 = 3_498;
/// Longest interface name, without the terminating zero.
const MAX_NAME_BYTES: usize = 15;

/// A link of ours.
#[derive(Debug)]
pub(super) struct OwnLink {
    pub(super) fd: OwnedFd,
    pub(super) id: u32,
}

impl OwnLink {
    /// The same link by another descriptor; `None` if there is none left.
    pub(super) fn again(&self) -> Option<Self> {
        let fd = self.fd.try_clone().ok()?;
        Some(Self { fd, id: self.id })
    }

    /// Asks the kernel where the link is attached now.
    pub(super) fn info(&self) -> Result<LinkInfo, Error> {
        sys::link_info(self.fd.as_fd()).map_err(|source| Error::kernel("describing a link", source))
    }
}

pub(super) fn check_name(interface: &str) -> Result<(), Error> {
    let legal = (1..=MAX_NAME_BYTES).contains(&interface.len())
        && !interface.contains(['/', ':', '\0'])
        && !interface.contains(char::is_whitespace)
        && interface != "."
        && interface != "..";
    if legal {
        Ok(())
    } else {
        Err(Error::BadInterfaceName(interface.to_owned()))
    }
}

/// Makes the program run on `interface`: updates the link that is there, or makes one. Pinned on
/// success; nothing of ours is attached anew on failure.
pub(super) fn attach(
    kernel: &Kernel,
    pins: &Pins,
    held: Option<OwnLink>,
    interface: &str,
    options: AttachOptions,
) -> Result<OwnLink, Error> {
    check_name(interface)?;
    let index = netlink::index(interface);
    let described = netlink::link(index)
        .map_err(|source| Error::kernel(format!("describing interface `{interface}`"), source))?;
    let (Some(described), true) = (described, index != 0) else {
        return Err(Error::UnknownInterface(interface.to_owned()));
    };
    if let Some(link) = link_on(pins, held, index, &described)? {
        let is = mode_of(&described, link.info()?.prog_id);
        if is != options.mode {
            return Err(Error::OtherMode {
                interface: interface.to_owned(),
                is: is.as_str(),
                asked: options.mode.as_str(),
            });
        }
        sys::link_update(link.fd.as_fd(), kernel.program.as_fd()).map_err(|source| {
            denied_or(
                source,
                format!("updating the link of interface `{interface}`"),
            )
        })?;
        ensure_pinned(pins, interface, &link)?;
        return Ok(link);
    }
    clear_pin(pins, interface)?;
    let fd = create(kernel, interface, index, &described, options)?;
    let id = sys::link_info(fd.as_fd())
        .map_err(|source| Error::kernel("describing a link", source))?
        .id;
    let link = OwnLink { fd, id };
    // On failure the link is dropped here, and with it the attachment: no partial attach.
    ensure_pinned(pins, interface, &link)?;
    Ok(link)
}

/// The link of ours that is attached to interface `index`: the one held, or a pinned one under any
/// name, for the interface may have been renamed.
fn link_on(
    pins: &Pins,
    held: Option<OwnLink>,
    index: u32,
    described: &Link,
) -> Result<Option<OwnLink>, Error> {
    if let Some(held) = held
        && is_on(&held.info()?, index, described)
    {
        return Ok(Some(held));
    }
    Ok(pins
        .links()
        .into_iter()
        .find(|(_, _, info)| is_on(info, index, described))
        .map(|(_, fd, info)| OwnLink { fd, id: info.id }))
}

/// Whether a link is attached to this very interface: another network namespace may have one with
/// the same index, so the interface must say that it runs the link's program.
fn is_on(info: &LinkInfo, index: u32, described: &Link) -> bool {
    info.link_type == sys::LINK_TYPE_XDP
        && info.ifindex == index
        && [described.native_prog, described.generic_prog].contains(&info.prog_id)
}

/// In which mode program `prog_id` runs on an interface.
pub(super) fn mode_of(described: &Link, prog_id: u32) -> AttachMode {
    if prog_id != 0 && described.generic_prog == prog_id {
        AttachMode::Generic
    } else {
        AttachMode::Native
    }
}

/// Whether the pin of `interface` is this very link.
///
/// # Errors
///
/// When that cannot be found out for want of descriptors or memory.
pub(super) fn is_pinned(pins: &Pins, interface: &str, link: &OwnLink) -> Result<bool, Error> {
    let path = pins.link(interface);
    match sys::open_pin(&path).and_then(|fd| sys::link_info(fd.as_fd())) {
        Ok(info) => Ok(info.id == link.id),
        Err(error) if sys::is_shortage(&error) => {
            let text = format!("looking at pin `{}`", path.display());
            Err(Error::kernel(text, error))
        }
        Err(_) => Ok(false),
    }
}

/// Pins a link under the interface's name, in place of whatever lies there, and removes pins of
/// the same link under other names.
pub(super) fn ensure_pinned(pins: &Pins, interface: &str, link: &OwnLink) -> Result<(), Error> {
    if !is_pinned(pins, interface, link)? {
        clear_pin(pins, interface)?;
        Pins::pin(link.fd.as_fd(), &pins.link(interface))?;
    }
    for (name, _, info) in pins.links() {
        if info.id == link.id && name != interface {
            pins.remove_link(&name)?;
        }
    }
    Ok(())
}

/// Removes the pin of `interface`. A link that is alive on an interface of another name (it was
/// renamed) is kept under that name.
pub(super) fn clear_pin(pins: &Pins, interface: &str) -> Result<(), Error> {
    let path = pins.link(interface);
    if let Ok(fd) = sys::open_pin(&path)
        && let Ok(info) = sys::link_info(fd.as_fd())
        && info.ifindex != 0
        && let Ok(Some(now)) = netlink::link(info.ifindex)
        && is_on(&info, info.ifindex, &now)
        && now.name != interface
        && !pins.link(&now.name).exists()
    {
        Pins::pin(fd.as_fd(), &pins.link(&now.name))?;
    }
    pins.remove_link(interface).map(drop)
}

fn create(
    kernel: &Kernel,
    interface: &str,
    index: u32,
    described: &Link,
    options: AttachOptions,
) -> Result<OwnedFd, Error> {
    let flags = match options.mode {
        AttachMode::Native => sys::XDP_NATIVE,
        AttachMode::Generic => sys::XDP_GENERIC,
    };
    let make = || sys::link_create(kernel.program.as_fd(), index, flags);
    let error = match make() {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    if (described.native_prog, described.generic_prog) != (0, 0) {
        let foreign = foreign(interface, index, described);
        if !options.replace {
            return Err(foreign.into_error());
        }
        foreign.remove()?;
        return make().map_err(|error| refused(interface, described, options.mode, error));
    }
    Err(refused(interface, described, options.mode, error))
}

fn refused(interface: &str, described: &Link, mode: AttachMode, error: io::Error) -> Error {
    let code = error.raw_os_error().unwrap_or(0);
    let native = mode == AttachMode::Native;
    match code {
        libc::ENODEV => Error::UnknownInterface(interface.to_owned()),
        libc::EOPNOTSUPP if native => Error::NoNative {
            interface: interface.to_owned(),
            reason: "its driver has no XDP support".to_owned(),
        },
        libc::ERANGE | libc::EINVAL | libc::E2BIG | libc::EMSGSIZE
            if native && described.mtu > MTU_ALWAYS_FITS =>
        {
            Error::MtuTooLarge {
                interface: interface.to_owned(),
                mtu: described.mtu,
            }
        }
        libc::EINVAL | libc::ERANGE if native => Error::NoNative {
            interface: interface.to_owned(),
            reason: format!("its driver refuses: {error}"),
        },
        _ => denied_or(error, format!("attaching to interface `{interface}`")),
    }
}

fn denied_or(error: io::Error, doing: String) -> Error {
    if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
        caps::denied(&doing, error)
    } else {
        Error::kernel(doing, error)
    }
}

/// An XDP program that is not ours.
struct Foreign {
    interface: String,
    index: u32,
    prog_id: u32,
    mode: AttachMode,
    name: String,
    link: Option<(OwnedFd, u32)>,
    can_look: bool,
}

fn foreign(interface: &str, index: u32, described: &Link) -> Foreign {
    let (prog_id, mode) = if described.native_prog == 0 {
        (described.generic_prog, AttachMode::Generic)
    } else {
        (described.native_prog, AttachMode::Native)
    };
    let name = sys::prog_by_id(prog_id)
        .and_then(|fd| sys::prog_info(fd.as_fd()))
        .map_or_else(|_| "?".to_owned(), |info| sys::name(&info.name));
    let (link, can_look) = match find_link(index, prog_id) {
        Ok(link) => (link, true),
        Err(_) => (None, false),
    };
    Foreign {
        interface: interface.to_owned(),
        index,
        prog_id,
        mode,
        name,
        link,
        can_look,
    }
}

/// Looks through every link of the machine for the XDP link of `prog_id` on `index` (another
/// network namespace may have an interface with the same index). Needs CAP_SYS_ADMIN.
fn find_link(index: u32, prog_id: u32) -> io::Result<Option<(OwnedFd, u32)>> {
    let mut id = 0;
    // At most 65 536 links are looked at.
    for _ in 0..1 << 16 {
        let Some(next) = sys::next_link_id(id)? else {
            return Ok(None);
        };
        id = next;
        if let Ok(fd) = sys::link_by_id(id)
            && let Ok(info) = sys::link_info(fd.as_fd())
            && info.link_type == sys::LINK_TYPE_XDP
            && info.ifindex == index
            && info.prog_id == prog_id
        {
            return Ok(Some((fd, id)));
        }
    }
    Ok(None)
}

impl Foreign {
    fn into_error(self) -> Error {
        Error::ForeignProgram {
            interface: self.interface,
            id: self.prog_id,
            name: self.name,
            by: match (&self.link, self.can_look) {
                (Some((_, id)), _) => format!("link {id}"),
                (None, true) => "netlink".to_owned(),
                (None, false) => "another process".to_owned(),
            },
        }
    }

    fn remove(self) -> Result<(), Error> {
        tracing::warn!(
            interface = self.interface,
            program = self.prog_id,
            name = self.name,
            "replacing a foreign XDP program"
        );
        if let Some((link, id)) = &self.link {
            return sys::link_detach(link.as_fd()).map_err(|_| Error::ForeignLink {
                interface: self.interface.clone(),
                link: *id,
            });
        }
        let flags = match self.mode {
            AttachMode::Native => sys::XDP_NATIVE,
            AttachMode::Generic => sys::XDP_GENERIC,
        };
        netlink::remove_xdp(self.index, flags).map_err(|error| {
            if error.raw_os_error() == Some(libc::EBUSY) {
                self.into_error()
            } else {
                Error::kernel("removing the foreign XDP program", error)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_names_the_kernel_would_not_take() {
        for name in ["", "a/b", "..", "sixteen-letters-", "a b", "eth0:1"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["lo", "eth0.100", "fifteen-letters"] {
            check_name(name).unwrap();
        }
    }

    #[test]
    fn large_mtu_is_named_as_the_cause() {
        let described = Link {
            mtu: 9_000,
            ..Link::default()
        };
        let error = refused(
            "eth0",
            &described,
            AttachMode::Native,
            io::Error::from_raw_os_error(libc::ERANGE),
        );
        assert!(error.to_string().contains("an MTU of 9000"), "{error}");
    }
}
