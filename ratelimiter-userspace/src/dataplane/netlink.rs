//! What the kernel says about interfaces: a few raw rtnetlink messages.
//!
//! Asks for one link at a time, removes a foreign program on explicit request, and waits for link
//! events. An event only wakes its reader up, which then asks again: nothing is trusted from it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
pub(super) const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const NESTED: u16 = 1 << 15;
const RTMGRP_LINK: u32 = 1;
/// `struct nlmsghdr` and `struct ifinfomsg`.
pub(super) const HEADER: usize = 16;
const IFINFO: usize = 16;

/// What an interface looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// Its name.
    pub(super) name: String,
    /// Largest payload of a frame, bytes.
    pub(super) mtu: u32,
    /// Id of the program in native mode; 0 if none.
    pub(super) native_prog: u32,
    /// Id of the program in generic mode; 0 if none.
    pub(super) generic_prog: u32,
}

/// Returns the index of the interface called `name` in this network namespace, 0 if there is none.
///
/// # Errors
///
/// When that cannot be found out for want of descriptors or memory.
pub(super) fn find(name: &str) -> io::Result<u32> {
    match index(name) {
        0 => Some(io::Error::last_os_error())
            .filter(super::sys::is_shortage)
            .map_or(Ok(0), Err),
        index => Ok(index),
    }
}

/// Returns the index of the interface called `name` in this network namespace, or 0.
pub(super) fn index(name: &str) -> u32 {
    CString::new(name).map_or(0, |name| {
        // SAFETY: a NUL-terminated string that outlives the call.
        unsafe { libc::if_nametoindex(name.as_ptr()) }
    })
}

/// Returns the interface with `index`, or `None` if there is none (as for index 0).
pub(super) fn link(index: u32) -> io::Result<Option<Link>> {
    if index == 0 {
        return Ok(None);
    }
    let answer = request(RTM_GETLINK, index, &[], NLM_F_REQUEST)?;
    match answer {
        Answer::Error(libc::ENODEV) => Ok(None),
        Answer::Error(code) => Err(io::Error::from_raw_os_error(code)),
        Answer::Message(body) => Ok(Some(parse_link(&body))),
    }
}

/// Removes a program that was attached by netlink (not by a link) in the given mode.
pub(super) fn remove_xdp(index: u32, flags: u32) -> io::Result<()> {
    let mut nested = attribute(IFLA_XDP_FD, &(-1_i32).to_ne_bytes());
    nested.extend(attribute(IFLA_XDP_FLAGS, &flags.to_ne_bytes()));
    let body = attribute(IFLA_XDP | NESTED, &nested);
    match request(RTM_SETLINK, index, &body, NLM_F_REQUEST | NLM_F_ACK)? {
        Answer::Error(0) | Answer::Message(_) => Ok(()),
        Answer::Error(code) => Err(io::Error::from_raw_os_error(code)),
    }
}

enum Answer {
    /// Positive error code; 0 is an acknowledgement.
    Error(i32),
    /// The message without its netlink header.
    Message(Vec<u8>),
}

pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends one message.
pub(super) fn send(socket: &OwnedFd, message: &[u8]) -> io::Result<()> {
    // SAFETY: `message` is a live buffer of the length given.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            0,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Waits for messages; returns how many bytes of `buffer` they take.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `buffer` is a live buffer of the length given.
    let received = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// Sends one request about interface `index` and returns the first answer.
fn request(kind: u16, index: u32, attributes: &[u8], flags: u16) -> io::Result<Answer> {
    let socket = socket(0)?;
    let mut message = Vec::with_capacity(HEADER + IFINFO + attributes.len());
    message.extend(((HEADER + IFINFO + attributes.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes()); // sequence
    message.extend(0_u32.to_ne_bytes()); // port: the kernel fills it in
    message.extend([libc::AF_UNSPEC as u8, 0, 0, 0]); // family, padding, device type
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]); // flags, change mask
    message.extend(attributes);
    send(&socket, &message)?;
    let mut buffer = vec![0_u8; 32_768];
    let received = receive(&socket, &mut buffer)?;
    buffer.truncate(received);
    let short = || io::Error::new(io::ErrorKind::InvalidData, "short netlink answer");
    let answer_kind = u16_at(&buffer, 4).ok_or_else(short)?;
    if answer_kind == NLMSG_ERROR {
        let code = u32_at(&buffer, HEADER).ok_or_else(short)? as i32;
        return Ok(Answer::Error(-code));
    }
    if answer_kind != RTM_NEWLINK {
        return Err(short());
    }
    let length = u32_at(&buffer, 0).ok_or_else(short)? as usize;
    let body = buffer.get(HEADER..length).ok_or_else(short)?;
    Ok(Answer::Message(body.to_vec()))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Walks attributes; stops at the first malformed one.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & !NESTED;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn parse_link(body: &[u8]) -> Link {
    let mut link = Link::default();
    for (kind, value) in attributes(body.get(IFINFO..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => {
                let name = value.strip_suffix(&[0]).unwrap_or(value);
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            IFLA_MTU => link.mtu = u32_at(value, 0).unwrap_or(0),
            IFLA_XDP => parse_xdp(value, &mut link),
            _ => {}
        }
    }
    link
}

fn parse_xdp(nested: &[u8], link: &mut Link) {
    let mut attached = 0;
    let mut single = 0;
    for (kind, value) in attributes(nested) {
        let id = u32_at(value, 0).unwrap_or(0);
        match kind {
            IFLA_XDP_ATTACHED => attached = value.first().copied().unwrap_or(0),
            IFLA_XDP_PROG_ID => single = id,
            IFLA_XDP_DRV_PROG_ID => link.native_prog = id,
            IFLA_XDP_SKB_PROG_ID => link.generic_prog = id,
            _ => {}
        }
    }
    // XDP_ATTACHED_DRV = 1, XDP_ATTACHED_SKB = 2.
    match attached {
        1 if link.native_prog == 0 => link.native_prog = single,
        2 if link.generic_prog == 0 => link.generic_prog = single,
        _ => {}
    }
}

pub(super) fn socket(groups: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain system call.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid `sockaddr_nl`.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_groups = groups;
    // SAFETY: `address` is a live `sockaddr_nl` of the size given.
    let bound = unsafe {
        libc::bind(
            fd,
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_nl>() as u32,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Wakes up when any interface of the namespace it was made in changes.
#[derive(Debug)]
pub(super) struct LinkEvents {
    socket: OwnedFd,
}

impl LinkEvents {
    /// Subscribes to link events of the calling thread's network namespace.
    pub(super) fn subscribe() -> io::Result<Self> {
        socket(RTMGRP_LINK).map(|socket| Self { socket })
    }

    /// Waits at most `timeout` for an event or for `stop` to become readable; returns whether
    /// there was an event. Empties the queue.
    pub(super) fn wait(&self, timeout: Duration, stop: &OwnedFd) -> io::Result<bool> {
        let mut polled = [self.socket.as_raw_fd(), stop.as_raw_fd()].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        let milliseconds = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: `polled` is a live array of two entries.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), 2, milliseconds) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(false)
            } else {
                Err(error)
            };
        }
        let mut any = false;
        let mut buffer = [0_u8; 8_192];
        // At most 1 000 messages: a flood of events must not keep the caller here.
        for _ in 0..1_000 {
            // SAFETY: `buffer` is a live buffer of the length given. An overrun (ENOBUFS) counts
            // as an event too: the caller asks again anyway.
            let received = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            if received < 0 {
                let error = io::Error::last_os_error();
                any |= error.raw_os_error() == Some(libc::ENOBUFS);
                break;
            }
            any = true;
        }
        Ok(any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_loopback() {
        let index = index("lo");
        assert!(index > 0);
        let link = link(index).unwrap().unwrap();
        assert_eq!(link.name, "lo");
        assert!(link.mtu >= 1_500);
        assert_eq!((link.native_prog, link.generic_prog), (0, 0));
    }

    #[test]
    fn absent_interface_reads_as_none() {
        assert_eq!(index("no-such-if0"), 0);
        assert_eq!(link(0x7fff_fff0).unwrap(), None);
    }

    #[test]
    fn nested_attributes_round_trip() {
        let mut nested = attribute(IFLA_XDP_ATTACHED, &[2]);
        nested.extend(attribute(IFLA_XDP_PROG_ID, &77_u32.to_ne_bytes()));
        let mut body = vec![0; IFINFO];
        body.extend(attribute(IFLA_IFNAME, b"eth0\0"));
        body.extend(attribute(IFLA_XDP | NESTED, &nested));
        let link = parse_link(&body);
        assert_eq!(link.name, "eth0");
        assert_eq!(link.generic_prog, 77);
        assert_eq!(link.native_prog, 0);
    }

    #[test]
    fn truncated_attributes_end_the_walk() {
        let mut body = attribute(IFLA_MTU, &1_500_u32.to_ne_bytes());
        body.extend([200, 0, 3]);
        assert_eq!(attributes(&body).count(), 1);
    }
}
