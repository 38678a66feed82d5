//! The headers, and how each is written over what follows it.
use std::net::{Ipv4Addr, Ipv6Addr};

use super::bytes::{checksum, put16};

/// Ethertypes.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// 802.1ad service tag.
    pub const QINQ: u16 = 0x88a8;
    /// For local experiments (IEEE): what a header is followed by when nothing says otherwise.
    pub const EXPERIMENTAL: u16 = 0x88b5;
}

/// IP protocol numbers and IPv6 next headers.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// GRE.
    pub const GRE: u8 = 47;
    /// Encapsulating security payload: what follows is unreadable.
    pub const ESP: u8 = 50;
    /// Authentication header.
    pub const AH: u8 = 51;
    /// ICMPv6.
    pub const ICMP6: u8 = 58;
    /// No next header.
    pub const NONE: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
    /// Mobility header.
    pub const MOBILITY: u8 = 135;
    /// For experiments (RFC 3692): what a header is followed by when nothing says otherwise.
    pub const EXPERIMENTAL: u8 = 253;
}

/// The SYN bit of the TCP flags.
pub(super) const TCP_SYN: u8 = 2;

#[derive(Clone, Debug)]
pub(super) enum Layer {
    Eth(Eth),
    Vlan(Vlan),
    Ipv4(Ipv4),
    Ipv6(Ipv6),
    Ext(Ext),
    Fragment6(Fragment6),
    Tcp(Tcp),
    Udp(Udp),
    Icmp(Icmp),
    Arp(Arp),
    Raw(Vec<u8>),
}

#[derive(Clone, Debug)]
pub(super) struct Eth {
    pub(super) source: [u8; 6],
    pub(super) destination: [u8; 6],
    pub(super) ethertype: Option<u16>,
}

#[derive(Clone, Debug)]
pub(super) struct Vlan {
    pub(super) tpid: u16,
    pub(super) tci: u16,
    pub(super) ethertype: Option<u16>,
}

#[derive(Clone, Debug)]
pub(super) struct Ipv4 {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    pub(super) options: Vec<u8>,
    pub(super) fragment: u16,
    pub(super) ttl: u8,
    pub(super) version: Option<u8>,
    pub(super) ihl: Option<u8>,
    pub(super) total_length: Option<u16>,
    pub(super) protocol: Option<u8>,
    pub(super) checksum: Option<u16>,
}

impl Ipv4 {
    pub(super) fn between(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self {
            source,
            destination,
            options: Vec::new(),
            fragment: 0,
            ttl: 64,
            version: None,
            ihl: None,
            total_length: None,
            protocol: None,
            checksum: None,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Ipv6 {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    pub(super) hop_limit: u8,
    pub(super) version: Option<u8>,
    pub(super) next: Option<u8>,
    pub(super) payload_length: Option<u16>,
}

impl Ipv6 {
    pub(super) fn between(source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self {
            source,
            destination,
            hop_limit: 64,
            version: None,
            next: None,
            payload_length: None,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Ext {
    pub(super) kind: u8,
    pub(super) body: Vec<u8>,
    pub(super) next: Option<u8>,
    pub(super) length: Option<u8>,
}

#[derive(Clone, Debug)]
pub(super) struct Fragment6 {
    pub(super) field: u16,
    pub(super) next: Option<u8>,
}

#[derive(Clone, Debug)]
pub(super) struct Tcp {
    pub(super) source: u16,
    pub(super) destination: u16,
    pub(super) flags: u8,
    pub(super) options: Vec<u8>,
    pub(super) data_offset: Option<u8>,
}

#[derive(Clone, Debug)]
pub(super) struct Udp {
    pub(super) source: u16,
    pub(super) destination: u16,
    pub(super) length: Option<u16>,
}

#[derive(Clone, Debug)]
pub(super) struct Icmp {
    pub(super) protocol: u8,
    pub(super) kind: u8,
    pub(super) code: u8,
    pub(super) rest: [u8; 4],
}

#[derive(Clone, Debug)]
pub(super) struct Arp {
    pub(super) operation: u16,
    pub(super) sender_mac: [u8; 6],
    pub(super) sender: Ipv4Addr,
    pub(super) target: Ipv4Addr,
}

impl Layer {
    /// Ethertype by which the header before announces this one.
    fn ethertype(&self) -> u16 {
        match self {
            Self::Vlan(tag) => tag.tpid,
            Self::Ipv4(_) => ethertype::IPV4,
            Self::Ipv6(_) => ethertype::IPV6,
            Self::Arp(_) => ethertype::ARP,
            _ => ethertype::EXPERIMENTAL,
        }
    }

    /// Protocol number by which the header before announces this one.
    fn protocol(&self) -> u8 {
        match self {
            Self::Ipv4(_) => protocol::IPV4,
            Self::Ipv6(_) => protocol::IPV6,
            Self::Ext(header) => header.kind,
            Self::Fragment6(_) => protocol::FRAGMENT,
            Self::Tcp(_) => protocol::TCP,
            Self::Udp(_) => protocol::UDP,
            Self::Icmp(header) => header.protocol,
            _ => protocol::EXPERIMENTAL,
        }
    }
}

/// Writes the headers from the last to the first, each over what follows it.
pub(super) fn write(layers: &[Layer]) -> Vec<u8> {
    let mut rest = Vec::new();
    for (index, layer) in layers.iter().enumerate().rev() {
        let before = layers.get(..index).unwrap_or(&[]);
        rest = put(layer, layers.get(index + 1), before, rest);
    }
    rest
}

fn put(layer: &Layer, next: Option<&Layer>, before: &[Layer], rest: Vec<u8>) -> Vec<u8> {
    let next_ethertype = next.map_or(ethertype::EXPERIMENTAL, Layer::ethertype);
    let next_protocol = next.map_or(protocol::NONE, Layer::protocol);
    let mut bytes = Vec::with_capacity(rest.len() + 64);
    match layer {
        Layer::Eth(eth) => {
            bytes.extend(eth.destination);
            bytes.extend(eth.source);
            put16(&mut bytes, eth.ethertype.unwrap_or(next_ethertype));
        }
        Layer::Vlan(tag) => {
            put16(&mut bytes, tag.tci);
            put16(&mut bytes, tag.ethertype.unwrap_or(next_ethertype));
        }
        Layer::Ipv4(ip) => put_ipv4(&mut bytes, ip, next_protocol, rest.len()),
        Layer::Ipv6(ip) => {
            let length = rest.len() as u16;
            bytes.extend([ip.version.unwrap_or(6) << 4, 0, 0, 0]);
            put16(&mut bytes, ip.payload_length.unwrap_or(length));
            bytes.extend([ip.next.unwrap_or(next_protocol), ip.hop_limit]);
            bytes.extend(ip.source.octets());
            bytes.extend(ip.destination.octets());
        }
        Layer::Ext(ext) => {
            let mut body = ext.body.clone();
            body.resize((body.len() + 2).next_multiple_of(8) - 2, 0);
            let whole = body.len() + 2;
            let length = if ext.kind == protocol::AH {
                whole / 4 - 2
            } else {
                whole / 8 - 1
            };
            bytes.extend([
                ext.next.unwrap_or(next_protocol),
                ext.length.unwrap_or(length as u8),
            ]);
            bytes.extend(body);
        }
        Layer::Fragment6(fragment) => {
            bytes.extend([fragment.next.unwrap_or(next_protocol), 0]);
            put16(&mut bytes, fragment.field);
            bytes.extend([0, 0, 0, 7]);
        }
        Layer::Tcp(tcp) => {
            let words = (20 + tcp.options.len()) / 4;
            put16(&mut bytes, tcp.source);
            put16(&mut bytes, tcp.destination);
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 0]);
            bytes.extend([tcp.data_offset.unwrap_or(words as u8) << 4, tcp.flags]);
            bytes.extend([0xff, 0xff, 0, 0, 0, 0]);
            bytes.extend(&tcp.options);
            fill_checksum(&mut bytes, 16, before, protocol::TCP, &rest);
        }
        Layer::Udp(udp) => {
            put16(&mut bytes, udp.source);
            put16(&mut bytes, udp.destination);
            put16(&mut bytes, udp.length.unwrap_or(rest.len() as u16 + 8));
            put16(&mut bytes, 0);
            fill_checksum(&mut bytes, 6, before, protocol::UDP, &rest);
        }
        Layer::Icmp(icmp) => {
            bytes.extend([icmp.kind, icmp.code, 0, 0]);
            bytes.extend(icmp.rest);
            fill_checksum(&mut bytes, 2, before, icmp.protocol, &rest);
        }
        Layer::Arp(arp) => {
            bytes.extend([0, 1, 8, 0, 6, 4]);
            put16(&mut bytes, arp.operation);
            bytes.extend(arp.sender_mac);
            bytes.extend(arp.sender.octets());
            bytes.extend([0; 6]);
            bytes.extend(arp.target.octets());
        }
        Layer::Raw(raw) => bytes.extend(raw),
    }
    bytes.extend(rest);
    bytes
}

fn put_ipv4(bytes: &mut Vec<u8>, ip: &Ipv4, next: u8, rest: usize) {
    let header = 20 + ip.options.len();
    let words = (header / 4) as u8;
    let ihl = ip.ihl.unwrap_or(words) & 0x0f;
    bytes.extend([(ip.version.unwrap_or(4) << 4) | ihl, 0]);
    put16(bytes, ip.total_length.unwrap_or((header + rest) as u16));
    put16(bytes, 0);
    put16(bytes, ip.fragment);
    bytes.extend([ip.ttl, ip.protocol.unwrap_or(next), 0, 0]);
    bytes.extend(ip.source.octets());
    bytes.extend(ip.destination.octets());
    bytes.extend(&ip.options);
    let sum = ip.checksum.unwrap_or_else(|| checksum(&[bytes]));
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Fills in the checksum of a transport header at `offset`, over the pseudo header of the nearest
/// IP header before it. Left zero if there is none.
fn fill_checksum(header: &mut [u8], offset: usize, before: &[Layer], protocol: u8, rest: &[u8]) {
    let length = (header.len() + rest.len()) as u32;
    let pseudo = before.iter().rev().find_map(|layer| match layer {
        Layer::Ipv4(_) if protocol == protocol::ICMP => Some(Vec::new()),
        Layer::Ipv4(ip) => {
            let mut pseudo = Vec::from(ip.source.octets());
            pseudo.extend(ip.destination.octets());
            pseudo.extend([0, protocol]);
            pseudo.extend((length as u16).to_be_bytes());
            Some(pseudo)
        }
        Layer::Ipv6(ip) => {
            let mut pseudo = Vec::from(ip.source.octets());
            pseudo.extend(ip.destination.octets());
            pseudo.extend(length.to_be_bytes());
            pseudo.extend([0, 0, 0, protocol]);
            Some(pseudo)
        }
        _ => None,
    });
    let Some(pseudo) = pseudo else { return };
    let sum = match checksum(&[&pseudo, header, rest]) {
        // UDP reserves zero for "no checksum".
        0 if protocol == protocol::UDP => 0xffff,
        sum => sum,
    };
    header[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
}
