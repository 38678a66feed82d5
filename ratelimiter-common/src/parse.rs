//! From a frame to what the limiter must know of it: its class, its source, whether it opens a
//! connection.
//!
//! Generic over [`Frame`], so the same code reads packet memory under the verifier's eyes and a
//! slice on the host. Reads addresses, never options, and follows no tunnel: an encapsulated packet
//! belongs to its outer source. Checksums are left to the stack.
//!
//! A frame that cannot be read to the end of what is needed is malformed, never "something else
//! that passes": no frame escapes both the limit and the count unless it is not IP or is listed
//! control traffic.

use crate::abi::tracked::SourceKey;
use crate::source;

/// Most VLAN tags a frame may carry; one more is malformed.
pub const MAX_VLAN_TAGS: usize = 4;
/// Most IPv6 extension headers a frame may carry; one more is malformed.
pub const MAX_EXTENSION_HEADERS: usize = 8;
/// Shortest Ethernet frame: its header.
pub const ETHERNET_BYTES: usize = 14;

/// Bytes of a frame, from the Ethernet header on.
pub trait Frame {
    /// Length in bytes.
    fn length(&self) -> usize;

    /// Returns the `N` bytes from `at` on, or `None` if any lies outside the frame.
    fn bytes<const N: usize>(&self, at: usize) -> Option<&[u8; N]>;
}

impl Frame for [u8] {
    #[inline(always)]
    fn length(&self) -> usize {
        self.len()
    }

    #[inline(always)]
    fn bytes<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        self.get(at..at.checked_add(N)?)?.first_chunk()
    }
}

/// Where a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4, host order.
    V4(u32),
    /// IPv6, host order: the first 64 bits, then the last.
    V6(u64, u64),
}

/// An IP packet that is subject to limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Key of the source's bucket.
    pub key: SourceKey,
    /// The source address, for prefixes.
    pub address: Address,
    /// Protocol number of the last header seen.
    pub protocol: u8,
    /// Whether this is a TCP segment with SYN and without ACK.
    pub opens_connection: bool,
    /// Bytes of headers before the TCP payload; 0 unless the packet is TCP and not a later
    /// fragment. Generic mode divides by what follows.
    pub payload_at: u32,
}

/// What kind of frame this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Neither IP nor ARP.
    NonIp,
    /// ARP, neighbour discovery or DHCP.
    Control,
    /// Broken, truncated, too deeply nested, or from a source no host may have.
    Malformed,
    /// A packet to be judged.
    Packet(Packet),
}

mod ether {
    pub(super) const IPV4: u16 = 0x0800;
    pub(super) const ARP: u16 = 0x0806;
    pub(super) const IPV6: u16 = 0x86dd;
    pub(super) const VLAN: u16 = 0x8100;
    pub(super) const QINQ: u16 = 0x88a8;
    pub(super) const QINQ_OLD: u16 = 0x9100;
}

mod protocol {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const ICMPV6: u8 = 58;
    pub(super) const DESTINATION: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
    pub(super) const HIP: u8 = 139;
    pub(super) const SHIM6: u8 = 140;
}

/// Classifies a frame. `v6_mask` is [`crate::abi::config::Config::v6_mask`].
#[inline(always)]
pub fn classify<F: Frame + ?Sized>(frame: &F, v6_mask: u64) -> Class {
    let Some(ethernet) = frame.bytes::<ETHERNET_BYTES>(0) else {
        return Class::Malformed;
    };
    let ethertype = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    if ethertype == ether::IPV4 {
        return ipv4(frame, ETHERNET_BYTES);
    }
    if ethertype == ether::IPV6 {
        return ipv6(frame, ETHERNET_BYTES, v6_mask);
    }
    tagged(frame, ethertype, v6_mask)
}

/// Everything behind VLAN tags, and what is not IP.
#[inline(always)]
fn tagged<F: Frame + ?Sized>(frame: &F, first: u16, v6_mask: u64) -> Class {
    let mut ethertype = first;
    let mut at = ETHERNET_BYTES;
    for _ in 0..MAX_VLAN_TAGS {
        if !is_tag(ethertype) {
            break;
        }
        let Some(tag) = frame.bytes::<4>(at) else {
            return Class::Malformed;
        };
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        at += 4;
    }
    match ethertype {
        ether::IPV4 => ipv4(frame, at),
        ether::IPV6 => ipv6(frame, at, v6_mask),
        ether::ARP => Class::Control,
        _ if is_tag(ethertype) => Class::Malformed,
        _ => Class::NonIp,
    }
}

#[inline(always)]
const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ether::VLAN | ether::QINQ | ether::QINQ_OLD)
}

/// RFC 791. `at` is where the header begins.
#[inline(always)]
fn ipv4<F: Frame + ?Sized>(frame: &F, at: usize) -> Class {
    let Some(header) = frame.bytes::<20>(at) else {
        return Class::Malformed;
    };
    let header_bytes = (header[0] as usize & 0x0f) * 4;
    let total = u16::from_be_bytes([header[2], header[3]]) as usize;
    if header[0] >> 4 != 4
        || header_bytes < 20
        || total < header_bytes
        || total > frame.length().saturating_sub(at)
    {
        return Class::Malformed;
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let address = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
    let transport = Transport {
        at: at + header_bytes,
        end: at + total,
        protocol: header[9],
        fragment_offset: fragment & 0x1fff,
        more_fragments: fragment & 0x2000 != 0,
    };
    match transport.inspect(frame) {
        Inspected::Malformed => Class::Malformed,
        Inspected::Udp(67 | 68, 67 | 68) => Class::Control,
        Inspected::Udp(..) | Inspected::Other => packet(
            source::v4(address),
            Address::V4(address),
            transport.protocol,
        ),
        Inspected::Tcp {
            opens_connection,
            payload_at,
        } => Class::Packet(Packet {
            key: source::v4(address),
            address: Address::V4(address),
            protocol: protocol::TCP,
            opens_connection,
            payload_at,
        }),
    }
}

/// RFC 8200. `at` is where the header begins.
#[inline(always)]
fn ipv6<F: Frame + ?Sized>(frame: &F, at: usize, mask: u64) -> Class {
    let Some(header) = frame.bytes::<40>(at) else {
        return Class::Malformed;
    };
    let payload = u16::from_be_bytes([header[4], header[5]]) as usize;
    if header[0] >> 4 != 6 || payload > frame.length().saturating_sub(at + 40) {
        return Class::Malformed;
    }
    let high = u64::from_be_bytes([
        header[8], header[9], header[10], header[11], header[12], header[13], header[14],
        header[15],
    ]);
    let low = u64::from_be_bytes([
        header[16], header[17], header[18], header[19], header[20], header[21], header[22],
        header[23],
    ]);
    let hop_limit = header[7];
    let start = Transport {
        at: at + 40,
        end: at + 40 + payload,
        protocol: header[6],
        fragment_offset: 0,
        more_fragments: false,
    };
    let Some(transport) = extensions(frame, start) else {
        return Class::Malformed;
    };
    let inspected = transport.inspect(frame);
    match inspected {
        Inspected::Malformed => return Class::Malformed,
        Inspected::Udp(546 | 547, 546 | 547) => return Class::Control,
        _ if transport.is_neighbour_discovery(frame, hop_limit) => return Class::Control,
        _ => {}
    }
    let Some(key) = source::v6(high, low, mask) else {
        return Class::Malformed;
    };
    let address = Address::V6(high, low);
    if let Inspected::Tcp {
        opens_connection,
        payload_at,
    } = inspected
    {
        Class::Packet(Packet {
            key,
            address,
            protocol: protocol::TCP,
            opens_connection,
            payload_at,
        })
    } else {
        packet(key, address, transport.protocol)
    }
}

#[inline(always)]
const fn packet(key: SourceKey, address: Address, protocol: u8) -> Class {
    Class::Packet(Packet {
        key,
        address,
        protocol,
        opens_connection: false,
        payload_at: 0,
    })
}

/// What follows the IP headers.
#[derive(Clone, Copy)]
struct Transport {
    /// First byte.
    at: usize,
    /// End of the IP packet; what lies behind is padding.
    end: usize,
    protocol: u8,
    /// In units of eight bytes; not zero for a later fragment.
    fragment_offset: u16,
    more_fragments: bool,
}

/// What was found there.
#[derive(Clone, Copy)]
enum Inspected {
    Malformed,
    /// A whole UDP header, with source and destination port.
    Udp(u16, u16),
    Tcp {
        opens_connection: bool,
        payload_at: u32,
    },
    Other,
}

/// Walks IPv6 extension headers. `None` if one is cut off, out of place, or one too many.
#[inline(always)]
fn extensions<F: Frame + ?Sized>(frame: &F, start: Transport) -> Option<Transport> {
    let mut transport = start;
    for depth in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(transport.protocol) || transport.fragment_offset != 0 {
            return Some(transport);
        }
        // Hop-by-hop options stand directly behind the IPv6 header or not at all.
        if transport.protocol == protocol::HOP_BY_HOP && depth != 0 {
            return None;
        }
        let header = frame.bytes::<8>(transport.at)?;
        let bytes = match transport.protocol {
            protocol::FRAGMENT => {
                let fragment = u16::from_be_bytes([header[2], header[3]]);
                transport.fragment_offset = fragment >> 3;
                transport.more_fragments = fragment & 1 != 0;
                8
            }
            protocol::AUTHENTICATION => (header[1] as usize + 2) * 4,
            _ => (header[1] as usize + 1) * 8,
        };
        transport.at += bytes;
        if transport.at > transport.end {
            return None;
        }
        transport.protocol = header[0];
    }
    if is_extension(transport.protocol) && transport.fragment_offset == 0 {
        return None;
    }
    Some(transport)
}

#[inline(always)]
const fn is_extension(number: u8) -> bool {
    matches!(
        number,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
    )
}

impl Transport {
    /// Reads the transport header where there is one.
    ///
    /// A TCP or UDP header must be whole in the packet that carries its beginning, and no TCP
    /// fragment may start inside the header (RFC 1858, RFC 3128): fragments must not hide a SYN.
    #[inline(always)]
    fn inspect<F: Frame + ?Sized>(&self, frame: &F) -> Inspected {
        match self.protocol {
            protocol::TCP if self.fragment_offset == 0 => {
                let Some(header) = self.header::<14, F>(frame) else {
                    return Inspected::Malformed;
                };
                let header_bytes = (header[12] >> 4) as usize * 4;
                if header_bytes < 20 || self.at + header_bytes > self.end {
                    return Inspected::Malformed;
                }
                Inspected::Tcp {
                    opens_connection: header[13] & 0x12 == 0x02,
                    payload_at: (self.at + header_bytes) as u32,
                }
            }
            protocol::TCP if self.fragment_offset < 3 => Inspected::Malformed,
            protocol::UDP if self.fragment_offset == 0 => {
                let Some(header) = self.header::<8, F>(frame) else {
                    return Inspected::Malformed;
                };
                if self.more_fragments {
                    return Inspected::Other;
                }
                Inspected::Udp(
                    u16::from_be_bytes([header[0], header[1]]),
                    u16::from_be_bytes([header[2], header[3]]),
                )
            }
            _ => Inspected::Other,
        }
    }

    /// RFC 4861: types 133 to 137, code 0, hop limit 255; never in fragments (RFC 6980).
    #[inline(always)]
    fn is_neighbour_discovery<F: Frame + ?Sized>(&self, frame: &F, hop_limit: u8) -> bool {
        self.protocol == protocol::ICMPV6
            && hop_limit == 255
            && self.fragment_offset == 0
            && !self.more_fragments
            && matches!(self.header::<8, F>(frame), Some([133..=137, 0, ..]))
    }

    /// Returns the first `N` bytes if they belong to the IP packet and to the frame.
    #[inline(always)]
    fn header<'a, const N: usize, F: Frame + ?Sized>(&self, frame: &'a F) -> Option<&'a [u8; N]> {
        if self.at + N > self.end {
            None
        } else {
            frame.bytes::<N>(self.at)
        }
    }
}
