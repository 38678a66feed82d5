//! Frames, honest and lying, header by header.
//!
//! Headers are written in the order of the calls. Lengths, next-protocol fields and checksums are
//! filled in when the frame is built, from what follows; every `lie_*` overrides one such field of
//! the header written last.
//!
//! ```
//! # use tests::packet::Packet;
//! let frame = Packet::eth()
//!     .vlan(7)
//!     .ipv4("192.0.2.1", "198.51.100.9")
//!     .ipv4_options(&[1, 1, 1, 1])
//!     .udp(4000, 53)
//!     .payload(b"hello")
//!     .build();
//! assert_eq!(frame.len(), 14 + 4 + 24 + 8 + 5);
//!
//! let cut = Packet::eth().ipv4("192.0.2.1", "198.51.100.9").lie_ihl(15).tcp_syn(1, 80).cut(20).build();
//! assert_eq!(cut.len(), 20);
//! ```
mod bytes;
mod layer;

#[cfg(test)]
mod tests;

pub use layer::{ethertype, protocol};

use std::net::{Ipv4Addr, Ipv6Addr};

use layer::{Arp, Ext, Fragment6, Icmp, Ipv4, Ipv6, Layer, Tcp, Udp};

use crate::OrFail as _;

/// A frame being written.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    layers: Vec<Layer>,
    cut: Option<usize>,
    pad: usize,
}

/// Overrides a field of the header written last, if it is of that kind; fails otherwise.
macro_rules! lie {
    ($(#[$doc:meta])* $name:ident, $layer:ident, $field:ident: $type:ty) => {
        $(#[$doc])*
        #[must_use]
        #[track_caller]
        pub fn $name(mut self, value: $type) -> Self {
            match self.layers.last_mut() {
                Some(Layer::$layer(header)) => header.$field = Some(value),
                other => panic!(concat!(stringify!($name), " must follow ", stringify!($layer), ", not {:?}"), other),
            }
            self
        }
    };
}

impl Packet {
    /// Begins with an Ethernet header between two locally administered addresses.
    #[must_use]
    pub fn eth() -> Self {
        Self::eth_between([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
    }

    /// Begins with an Ethernet header between these addresses.
    #[must_use]
    pub fn eth_between(source: [u8; 6], destination: [u8; 6]) -> Self {
        Self::default().with(Layer::Eth(layer::Eth {
            source,
            destination,
            ethertype: None,
        }))
    }

    /// A 802.1Q tag (TPID 0x8100) with this VLAN id.
    #[must_use]
    pub fn vlan(self, id: u16) -> Self {
        self.tag(ethertype::VLAN, id)
    }

    /// A 802.1ad service tag (TPID 0x88a8) with this VLAN id; the outer one of QinQ.
    #[must_use]
    pub fn qinq(self, id: u16) -> Self {
        self.tag(ethertype::QINQ, id)
    }

    /// A tag with any TPID.
    #[must_use]
    pub fn tag(self, tpid: u16, tci: u16) -> Self {
        self.with(Layer::Vlan(layer::Vlan {
            tpid,
            tci,
            ethertype: None,
        }))
    }

    /// An IPv4 header without options, not fragmented.
    #[must_use]
    #[track_caller]
    pub fn ipv4(self, source: &str, destination: &str) -> Self {
        self.ipv4_between(
            source.parse().or_fail(source),
            destination.parse().or_fail(destination),
        )
    }

    /// An IPv4 header between addresses.
    #[must_use]
    pub fn ipv4_between(self, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        self.with(Layer::Ipv4(Ipv4::between(source, destination)))
    }

    /// Appends options to the IPv4 header written last; padded to a multiple of four.
    #[must_use]
    #[track_caller]
    pub fn ipv4_options(mut self, options: &[u8]) -> Self {
        let header = self.last_ipv4();
        header.options = options.to_vec();
        header.options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    /// Makes the IPv4 header written last a fragment: `offset` in units of eight bytes.
    #[must_use]
    #[track_caller]
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        let header = self.last_ipv4();
        header.fragment = (offset & 0x1fff) | (u16::from(more) << 13);
        self
    }

    /// Sets the time to live of the IPv4 header written last.
    #[must_use]
    #[track_caller]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.last_ipv4().ttl = ttl;
        self
    }

    /// An IPv6 header.
    #[must_use]
    #[track_caller]
    pub fn ipv6(self, source: &str, destination: &str) -> Self {
        self.ipv6_between(
            source.parse().or_fail(source),
            destination.parse().or_fail(destination),
        )
    }

    /// An IPv6 header between addresses.
    #[must_use]
    pub fn ipv6_between(self, source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        self.with(Layer::Ipv6(Ipv6::between(source, destination)))
    }

    /// Sets the hop limit of the IPv6 header written last.
    #[must_use]
    #[track_caller]
    pub fn hop_limit(mut self, hop_limit: u8) -> Self {
        match self.layers.last_mut() {
            Some(Layer::Ipv6(header)) => header.hop_limit = hop_limit,
            other => panic!("hop_limit must follow Ipv6, not {other:?}"),
        }
        self
    }

    /// An IPv6 extension header of `kind` (see [`protocol`]) whose body is padded to a whole
    /// number of eight bytes. For `protocol::AH` the length is written in words of four.
    #[must_use]
    pub fn ext(self, kind: u8, body: &[u8]) -> Self {
        self.with(Layer::Ext(Ext {
            kind,
            body: body.to_vec(),
            next: None,
            length: None,
        }))
    }

    /// Hop-by-hop options with a padding option.
    #[must_use]
    pub fn hop_by_hop(self) -> Self {
        self.ext(protocol::HOP_BY_HOP, &[1, 4, 0, 0, 0, 0])
    }

    /// Destination options with a padding option.
    #[must_use]
    pub fn destination_options(self) -> Self {
        self.ext(protocol::DESTINATION, &[1, 4, 0, 0, 0, 0])
    }

    /// A routing header of type 2, no segments left.
    #[must_use]
    pub fn routing(self) -> Self {
        self.ext(protocol::ROUTING, &[2, 0, 0, 0, 0, 0])
    }

    /// An IPv6 fragment header: `offset` in units of eight bytes.
    #[must_use]
    pub fn fragment6(self, offset: u16, more: bool) -> Self {
        self.with(Layer::Fragment6(Fragment6 {
            field: (offset << 3) | u16::from(more),
            next: None,
        }))
    }

    /// A TCP header with these flags (bit 1 is SYN, bit 4 ACK).
    #[must_use]
    pub fn tcp(self, source: u16, destination: u16, flags: u8) -> Self {
        self.with(Layer::Tcp(Tcp {
            source,
            destination,
            flags,
            options: Vec::new(),
            data_offset: None,
        }))
    }

    /// A TCP connection request.
    #[must_use]
    pub fn tcp_syn(self, source: u16, destination: u16) -> Self {
        self.tcp(source, destination, layer::TCP_SYN)
    }

    /// Appends options to the TCP header written last; padded to a multiple of four.
    #[must_use]
    #[track_caller]
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        match self.layers.last_mut() {
            Some(Layer::Tcp(header)) => {
                header.options = options.to_vec();
                header.options.resize(options.len().next_multiple_of(4), 0);
            }
            other => panic!("tcp_options must follow Tcp, not {other:?}"),
        }
        self
    }

    /// A UDP header.
    #[must_use]
    pub fn udp(self, source: u16, destination: u16) -> Self {
        self.with(Layer::Udp(Udp {
            source,
            destination,
            length: None,
        }))
    }

    /// An ICMP (IPv4) header; `rest` are the four bytes after the checksum.
    #[must_use]
    pub fn icmp(self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        self.with(Layer::Icmp(Icmp {
            protocol: protocol::ICMP,
            kind,
            code,
            rest,
        }))
    }

    /// An ICMP echo request.
    #[must_use]
    pub fn ping(self, sequence: u16) -> Self {
        let [high, low] = sequence.to_be_bytes();
        self.icmp(8, 0, [0, 1, high, low])
    }

    /// An ICMPv6 header; `rest` are the four bytes after the checksum.
    #[must_use]
    pub fn icmp6(self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        self.with(Layer::Icmp(Icmp {
            protocol: protocol::ICMP6,
            kind,
            code,
            rest,
        }))
    }

    /// A whole neighbour solicitation for `target`; the IPv6 header before it gets hop limit 255.
    #[must_use]
    #[track_caller]
    pub fn neighbour_solicitation(self, target: Ipv6Addr) -> Self {
        self.neighbour(135, target)
    }

    /// A whole neighbour advertisement for `target`; the IPv6 header before it gets hop limit 255.
    #[must_use]
    #[track_caller]
    pub fn neighbour_advertisement(self, target: Ipv6Addr) -> Self {
        self.neighbour(136, target)
    }

    #[track_caller]
    fn neighbour(self, kind: u8, target: Ipv6Addr) -> Self {
        self.hop_limit(255)
            .icmp6(kind, 0, [0; 4])
            .payload(&target.octets())
            .payload(&[1, 1, 2, 0, 0, 0, 0, 1])
    }

    /// A whole ARP request from `sender` for `target`.
    #[must_use]
    #[track_caller]
    pub fn arp_request(self, sender: &str, target: &str) -> Self {
        self.with(Layer::Arp(Arp {
            operation: 1,
            sender_mac: [2, 0, 0, 0, 0, 1],
            sender: sender.parse().or_fail(sender),
            target: target.parse().or_fail(target),
        }))
    }

    /// UDP ports and body of a DHCP discover, to follow an IPv4 header.
    #[must_use]
    pub fn dhcp_discover(self) -> Self {
        let mut body = vec![0; 240];
        body[..4].copy_from_slice(&[1, 1, 6, 0]);
        body[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        body[236..240].copy_from_slice(&[99, 130, 83, 99]);
        body.extend([53, 1, 1, 255]);
        self.udp(68, 67).payload(&body)
    }

    /// UDP ports and body of a DHCPv6 solicit, to follow an IPv6 header.
    #[must_use]
    pub fn dhcp6_solicit(self) -> Self {
        self.udp(546, 547).payload(&[1, 0, 0, 1, 0, 1, 0, 2, 0, 0])
    }

    /// Bytes as they are.
    #[must_use]
    pub fn payload(self, bytes: &[u8]) -> Self {
        self.with(Layer::Raw(bytes.to_vec()))
    }

    /// `length` bytes of payload.
    #[must_use]
    pub fn zeros(self, length: usize) -> Self {
        self.payload(&vec![0; length])
    }

    /// Cuts the built frame to this many bytes; lengths in the headers stay as if it were whole.
    #[must_use]
    pub fn cut(mut self, length: usize) -> Self {
        self.cut = Some(length);
        self
    }

    /// Pads the built frame with zeros to at least this many bytes, as Ethernet does to 60;
    /// lengths in the headers do not count the padding.
    #[must_use]
    pub fn pad(mut self, length: usize) -> Self {
        self.pad = length;
        self
    }

    lie!(
        /// Writes this Ethertype instead of that of the next header.
        lie_ethertype, Eth, ethertype: u16);
    lie!(
        /// Writes this Ethertype into the tag instead of that of the next header.
        lie_tag_ethertype, Vlan, ethertype: u16);
    lie!(
        /// Writes this IPv4 header length, in words of four bytes (low four bits).
        lie_ihl, Ipv4, ihl: u8);
    lie!(
        /// Writes this IPv4 total length.
        lie_total_length, Ipv4, total_length: u16);
    lie!(
        /// Writes this version into the IPv4 header.
        lie_version4, Ipv4, version: u8);
    lie!(
        /// Writes this protocol into the IPv4 header.
        lie_protocol, Ipv4, protocol: u8);
    lie!(
        /// Writes this checksum into the IPv4 header.
        lie_checksum, Ipv4, checksum: u16);
    lie!(
        /// Writes this version into the IPv6 header.
        lie_version6, Ipv6, version: u8);
    lie!(
        /// Writes this next header into the IPv6 header.
        lie_next_header, Ipv6, next: u8);
    lie!(
        /// Writes this payload length into the IPv6 header.
        lie_payload_length, Ipv6, payload_length: u16);
    lie!(
        /// Writes this next header into the extension header.
        lie_ext_next, Ext, next: u8);
    lie!(
        /// Writes this length field into the extension header.
        lie_ext_length, Ext, length: u8);
    lie!(
        /// Writes this next header into the fragment header.
        lie_fragment_next, Fragment6, next: u8);
    lie!(
        /// Writes this TCP data offset, in words of four bytes (low four bits).
        lie_data_offset, Tcp, data_offset: u8);
    lie!(
        /// Writes this UDP length.
        lie_udp_length, Udp, length: u16);

    /// Writes the frame.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut frame = layer::write(&self.layers);
        if frame.len() < self.pad {
            frame.resize(self.pad, 0);
        }
        if let Some(length) = self.cut {
            frame.truncate(length);
        }
        frame
    }

    fn with(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    #[track_caller]
    fn last_ipv4(&mut self) -> &mut Ipv4 {
        match self.layers.last_mut() {
            Some(Layer::Ipv4(header)) => header,
            other => panic!("this must follow Ipv4, not {other:?}"),
        }
    }
}
