//! Asks the kernel which XDP features an interface's driver has: generic netlink family `netdev`
//! (kernel 6.3 and later). One request at a time; encoding and decoding are pure.

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const XDP_FEATURE_BASIC: u64 = 1;
const XDP_FEATURE_RX_SG: u64 = 32;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 16 + 4;

/// What a driver can do with XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Runs programs in native mode.
    pub native: bool,
    /// Hands over frames larger than a page, in pieces.
    pub multi_buffer: bool,
}

/// Returns the features of the interface with `index`.
///
/// # Errors
///
/// `NotFound` if this kernel has no `netdev` family; else what the kernel answered.
pub fn xdp_features(index: u32) -> io::Result<XdpFeatures> {
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let answer = exchange(&message(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name))?;
    let family = find(&answer, CTRL_ATTR_FAMILY_ID)
        .and_then(|value| Some(u16::from_ne_bytes(value.try_into().ok()?)))
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let index = attribute(NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes());
    let answer = exchange(&message(family, NETDEV_CMD_DEV_GET, &index))?;
    let bits = find(&answer, NETDEV_A_DEV_XDP_FEATURES)
        .and_then(|value| Some(u64::from_ne_bytes(value.try_into().ok()?)))
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(XdpFeatures {
        native: bits & XDP_FEATURE_BASIC != 0,
        multi_buffer: bits & XDP_FEATURE_RX_SG != 0,
    })
}

fn exchange(request: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    payload(&answer).map(<[u8]>::to_vec)
}

fn message(kind: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADERS + attributes.len());
    bytes.extend(((HEADERS + attributes.len()) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes()); // sequence
    bytes.extend(0_u32.to_ne_bytes()); // port, filled in by the kernel
    bytes.extend([command, 1, 0, 0]); // version 1, reserved
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes of an answer, or the error it carries.
fn payload(answer: &[u8]) -> io::Result<&[u8]> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let length = number(answer, 0).ok_or_else(short)? as usize;
    let kind = number(answer, 4).ok_or_else(short)? as u16;
    if kind == NLMSG_ERROR {
        let code = number(answer, 16).ok_or_else(short)? as i32;
        return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
    }
    answer.get(HEADERS..length).ok_or_else(short)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// The value of the first attribute of `kind`; stops at a malformed one.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let head = number(attributes, 0)?.to_ne_bytes();
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) & 0x3fff == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_attributes_and_stops_at_malformed_ones() {
        let mut bytes = attribute(1, &[9]);
        bytes.extend(attribute(3, &5_u64.to_ne_bytes()));
        assert_eq!(find(&bytes, 1), Some(&[9][..]));
        assert_eq!(find(&bytes, 3), Some(&5_u64.to_ne_bytes()[..]));
        assert_eq!(find(&bytes, 4), None);
        for cut in 0..bytes.len() {
            let _outcome = find(&bytes[..cut], 3);
        }
        assert_eq!(find(&[3, 0, 1, 0], 1), None);
    }

    #[test]
    fn reads_errors_of_the_kernel() {
        let mut answer = message(NLMSG_ERROR, 0, &[]);
        answer[16..20].copy_from_slice(&(-2_i32).to_ne_bytes());
        assert_eq!(payload(&answer).unwrap_err().raw_os_error(), Some(2));
        assert!(payload(&answer[..10]).is_err());
    }

    #[test]
    fn loopback_has_no_native_xdp() {
        // Kernels before 6.3 have no such family; those after it know loopback.
        match xdp_features(1) {
            Ok(features) => assert!(!features.native),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
        }
    }
}
