//! The default gateways of this network namespace, by one rtnetlink dump. Reads, writes nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink::{HEADER, NLMSG_ERROR, attributes, receive, send, socket, u16_at, u32_at};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_VIA: u16 = 18;
const RTN_UNICAST: u8 = 1;
/// `struct rtmsg`.
const RTMSG: usize = 12;
/// `struct rtnexthop`.
const NEXT_HOP: usize = 8;
/// Largest message the kernel puts into a dump, bytes.
const BUFFER: usize = 65_536;
/// Most messages read of one dump: routers hold a million routes and a handful of defaults, which
/// come first.
const MAX_READS: usize = 4_096;

/// Returns the gateways of every default route, each once.
///
/// # Errors
///
/// When the kernel does not answer, or with an error.
pub(super) fn default_gateways() -> io::Result<Vec<IpAddr>> {
    let mut gateways = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family as u8, &mut |body| {
            for gateway in of_default(body) {
                if !gateways.contains(&gateway) {
                    gateways.push(gateway);
                }
            }
        })?;
    }
    Ok(gateways)
}

/// Hands out every route of `family` as the kernel describes it: `struct rtmsg` and attributes.
fn dump(family: u8, visit: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let socket = socket(0)?;
    let mut message = Vec::with_capacity(HEADER + RTMSG);
    message.extend(((HEADER + RTMSG) as u32).to_ne_bytes());
    message.extend(RTM_GETROUTE.to_ne_bytes());
    message.extend(DUMP.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes()); // sequence
    message.extend(0_u32.to_ne_bytes()); // port: the kernel fills it in
    message.push(family);
    message.resize(HEADER + RTMSG, 0);
    send(&socket, &message)?;
    let mut buffer = vec![0_u8; BUFFER];
    for _ in 0..MAX_READS {
        let received = receive(&socket, &mut buffer)?;
        let mut rest = buffer.get(..received).unwrap_or_default();
        while let (Some(length), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
            let length = length as usize;
            let body = rest.get(HEADER..length).ok_or_else(short)?;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = u32_at(body, 0).ok_or_else(short)? as i32;
                    return Err(io::Error::from_raw_os_error(-code));
                }
                RTM_NEWROUTE => visit(body),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    Ok(())
}

fn short() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "short netlink answer")
}

/// The gateways of one route, if it is a default one.
fn of_default(body: &[u8]) -> Vec<IpAddr> {
    let (Some(family), Some(0), Some(&RTN_UNICAST)) = (body.first(), body.get(1), body.get(7))
    else {
        return Vec::new();
    };
    let mut found = Vec::new();
    gateways_in(
        *family,
        body.get(RTMSG..).unwrap_or_default(),
        &mut |gateway| {
            found.push(gateway);
        },
    );
    found
}

fn gateways_in(family: u8, bytes: &[u8], put: &mut dyn FnMut(IpAddr)) {
    for (kind, value) in attributes(bytes) {
        match kind {
            RTA_GATEWAY => address(family, value).into_iter().for_each(&mut *put),
            RTA_VIA => {
                let family = u16_at(value, 0).unwrap_or(0) as u8;
                let value = value.get(2..).unwrap_or_default();
                address(family, value).into_iter().for_each(&mut *put);
            }
            RTA_MULTIPATH => {
                let mut hops = value;
                while let Some(length) = u16_at(hops, 0).map(usize::from).filter(|n| *n >= NEXT_HOP)
                {
                    let hop = hops.get(NEXT_HOP..length).unwrap_or_default();
                    // A next hop names no next hops: this goes one level deep.
                    for (kind, value) in attributes(hop) {
                        if kind == RTA_GATEWAY {
                            address(family, value).into_iter().for_each(&mut *put);
                        }
                    }
                    hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::netlink::attribute;

    fn route(destination_len: u8, attributes: &[u8]) -> Vec<u8> {
        let mut body = vec![libc::AF_INET as u8, destination_len, 0, 0, 254, 3, 0, 1];
        body.extend([0; 4]);
        body.extend(attributes);
        body
    }

    #[test]
    fn reads_the_gateway_of_a_default_route_alone() {
        let gateway = attribute(RTA_GATEWAY, &[192, 0, 2, 1]);
        let expected: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap()];
        assert_eq!(of_default(&route(0, &gateway)), expected);
        assert_eq!(of_default(&route(24, &gateway)), Vec::<IpAddr>::new());
        assert_eq!(of_default(&route(0, &[])), Vec::<IpAddr>::new());
        assert_eq!(of_default(&[2]), Vec::<IpAddr>::new());
    }

    #[test]
    fn reads_every_next_hop_and_a_gateway_of_the_other_family() {
        let hop = |last: u8| {
            let gateway = attribute(RTA_GATEWAY, &[192, 0, 2, last]);
            let mut hop = ((NEXT_HOP + gateway.len()) as u16).to_ne_bytes().to_vec();
            hop.extend([0; 6]);
            hop.extend(gateway);
            hop
        };
        let hops = attribute(RTA_MULTIPATH, &[hop(1), hop(2)].concat());
        assert_eq!(of_default(&route(0, &hops)).len(), 2);
        let mut via = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        via.extend("fe80::1".parse::<Ipv6Addr>().unwrap().octets());
        let via = attribute(RTA_VIA, &via);
        let expected: Vec<IpAddr> = vec!["fe80::1".parse().unwrap()];
        assert_eq!(of_default(&route(0, &via)), expected);
    }

    #[test]
    fn the_kernel_answers() {
        default_gateways().unwrap();
    }
}
