//! The packet parser: what a frame is, who sent it, and what it costs.
//!
//! Pure and total, generic over [`Bytes`], so that one parser reads packets in the kernel and byte
//! slices on the host. It answers with a class and never guesses: a frame that is cut, or lies about
//! a length, or nests deeper than a named bound, is [`Kind::Malformed`].
//!
//! Tunnels are not opened: the outer source is charged.

mod class;
mod plain;

pub use class::{Address, Class, Subject, classify};
pub use plain::{plain4, plain6};

/// Read access to a frame. Multi-byte reads are big-endian, `None` beyond the end.
pub trait Bytes {
    /// Length of the frame in bytes.
    fn length(&self) -> u32;
    /// Two bytes at `at`.
    fn half(&self, at: u32) -> Option<u16>;
    /// `N` words of four bytes at `at`.
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]>;
    /// The same frame, for reading at offsets that are not known when the program is compiled: the
    /// kernel must read those in another way.
    type Far: Bytes;
    /// See [`Bytes::Far`].
    fn far(&self) -> Self::Far;
    /// Returns the place a packet is written to. The kernel's implementation finds it anew, where it
    /// is rarely needed, rather than keeping it.
    #[inline(always)]
    fn place<'a>(&self, packet: &'a mut Packet) -> &'a mut Packet {
        packet
    }
    /// Returns `value`, which is at most `mask` (one less than a power of two). The kernel's
    /// implementation makes the verifier forget everything else about it, so that it follows one
    /// path for all values.
    #[inline(always)]
    fn forget(&self, value: u32, mask: u32) -> u32 {
        value & mask
    }
}

impl Bytes for &[u8] {
    type Far = Self;

    fn far(&self) -> Self {
        self
    }

    fn length(&self) -> u32 {
        self.len() as u32
    }

    fn half(&self, at: u32) -> Option<u16> {
        let bytes = self.get(at as usize..)?.first_chunk::<2>()?;
        Some(u16::from_be_bytes(*bytes))
    }

    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        let mut words = [0; N];
        let bytes = self.get(at as usize..)?.get(..4 * N)?;
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_be_bytes(*chunk.first_chunk::<4>()?);
        }
        Some(words)
    }
}

/// Most VLAN tags of a frame (802.1Q, 802.1ad, the old 0x9100); more is malformed.
pub const MAX_VLAN_TAGS: u32 = 4;
/// Most IPv6 extension headers of a packet; more is malformed.
pub const MAX_EXTENSION_HEADERS: u32 = 8;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Neither IP nor ARP.
    NonIp = 0,
    /// ARP, neighbour discovery or DHCP.
    Control = 1,
    /// Broken, truncated or too deeply encapsulated.
    Malformed = 2,
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

/// What the parser found. Three words, so that it crosses a call in the kernel in whole ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Packet {
    /// Source address, host order: IPv4 in `low`, IPv6 in both. Zero unless the class is an IP
    /// version.
    pub high: u64,
    /// See `high`.
    pub low: u64,
    /// Kind in bits 0..8, protocol in 8..16, SYN in 16, transport bytes in 32..64.
    facts: u64,
}

/// [`Packet::protocol`] where there is none.
pub const NO_PROTOCOL: u8 = 255;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERNET_HEADER: u32 = 14;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const TCP_HEADER: u32 = 20;
/// The same in the units of fragment offsets.
const TCP_HEADER_UNITS: u32 = 3;
const UDP_HEADER: u32 = 8;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

impl Packet {
    #[inline(always)]
    const fn new(class: Kind, protocol: u8, high: u64, low: u64, transport_bytes: u32) -> Self {
        Self {
            high,
            low,
            facts: class as u64 | (protocol as u64) << 8 | (transport_bytes as u64) << 32,
        }
    }

    /// What is no packet at all.
    pub const MALFORMED: Self = Self::of(Kind::Malformed);

    #[inline(always)]
    const fn of(class: Kind) -> Self {
        Self::new(class, NO_PROTOCOL, 0, 0, 0)
    }

    /// Kind, protocol, SYN and transport bytes in one word, for [`Packet::from_parts`].
    #[inline(always)]
    #[must_use]
    pub const fn facts(&self) -> u64 {
        self.facts
    }

    /// The word of [`Packet::facts`], for whoever writes a packet word by word.
    #[inline(always)]
    pub const fn facts_mut(&mut self) -> &mut u64 {
        &mut self.facts
    }

    /// Puts a packet together again from its three words.
    #[inline(always)]
    #[must_use]
    pub const fn from_parts(high: u64, low: u64, facts: u64) -> Self {
        Self { high, low, facts }
    }

    /// What the frame is.
    #[inline(always)]
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self.facts & 0xff {
            4 => Kind::V4,
            6 => Kind::V6,
            0 => Kind::NonIp,
            1 => Kind::Control,
            _ => Kind::Malformed,
        }
    }

    /// IP protocol of the last header seen; [`NO_PROTOCOL`] if there is none.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        (self.facts >> 8) as u8
    }

    /// Whether it is a TCP segment with SYN and without ACK: the opening of a connection.
    #[inline(always)]
    #[must_use]
    pub const fn syn(&self) -> bool {
        self.facts >> 16 & 1 != 0
    }

    /// Bytes behind the IP header and its extensions, by the headers' own account.
    #[inline(always)]
    #[must_use]
    pub const fn transport_bytes(&self) -> u32 {
        (self.facts >> 32) as u32
    }

    #[inline(always)]
    const fn with_syn(self, syn: bool) -> Self {
        Self {
            facts: self.facts | (syn as u64) << 16,
            ..self
        }
    }

    #[inline(always)]
    const fn with_transport(self, protocol: u8, transport_bytes: u32) -> Self {
        let class = self.facts & 0xff;
        Self {
            facts: class | (protocol as u64) << 8 | (transport_bytes as u64) << 32,
            ..self
        }
    }

    /// Packets this frame counts as in generic mode, where the kernel hands over merged segments:
    /// its transport bytes over `segment_bytes` of payload each, after 32 bytes of header.
    #[must_use]
    pub const fn segments(&self, segment_bytes: u32) -> u32 {
        let payload = self.transport_bytes().saturating_sub(32);
        match payload
            .saturating_add(segment_bytes.saturating_sub(1))
            .checked_div(segment_bytes)
        {
            None | Some(0) => 1,
            Some(segments) => segments,
        }
    }
}

/// Parses a frame that begins with an Ethernet header.
#[inline(always)]
#[must_use]
pub fn parse<B: Bytes>(bytes: &B) -> Packet {
    let mut packet = Packet::MALFORMED;
    parse_into(bytes, &mut packet);
    packet
}

/// [`parse`] to a place that holds [`Packet::MALFORMED`].
#[inline(always)]
pub fn parse_into<B: Bytes>(bytes: &B, packet: &mut Packet) {
    match bytes.half(12) {
        Some(ETHERTYPE_IPV4) => *packet = ipv4(bytes, ETHERNET_HEADER),
        Some(ETHERTYPE_IPV6) => *packet = ipv6(bytes, ETHERNET_HEADER, packet),
        Some(other) => not_plain_ip(&bytes.far(), other, bytes.place(packet)),
        None => {}
    }
}

const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, 0x8100 | 0x88a8 | 0x9100)
}

/// Everything behind an EtherType that is not IP: tags, ARP, the rest. A call of its own, which in
/// the kernel must not return a structure; leaves `packet` malformed where it says nothing.
#[inline(never)]
fn not_plain_ip<B: Bytes>(bytes: &B, first: u16, packet: &mut Packet) {
    let mut ethertype = first;
    let mut at = ETHERNET_HEADER;
    let mut tags = 0;
    while tags < MAX_VLAN_TAGS && is_tag(ethertype) {
        let Some(next) = bytes.half(at + 2) else {
            return;
        };
        ethertype = next;
        at += 4;
        tags += 1;
    }
    let at = bytes.forget(at, 0x3f);
    *packet = match ethertype {
        ETHERTYPE_IPV4 => ipv4(bytes, at),
        ETHERTYPE_IPV6 => ipv6(bytes, at, packet),
        ETHERTYPE_ARP => Packet::of(Kind::Control),
        deeper if is_tag(deeper) => return,
        _ => Packet::of(Kind::NonIp),
    };
}

#[inline(always)]
fn ipv4<B: Bytes>(bytes: &B, at: u32) -> Packet {
    let malformed = Packet::of(Kind::Malformed);
    let Some([w0, w1, w2, source]) = bytes.words::<4>(at) else {
        return malformed;
    };
    let header = (w0 >> 22) & 0x3c;
    let total = w0 & 0xffff;
    if w0 >> 28 != 4 || header < IPV4_HEADER || total < header || at + total > bytes.length() {
        return malformed;
    }
    let protocol = (w2 >> 16) as u8;
    let transport_bytes = total - header;
    let packet = Packet::new(Kind::V4, protocol, 0, u64::from(source), transport_bytes);
    let more = w1 & 0x2000 != 0;
    let offset = w1 & 0x1fff;
    if offset != 0 {
        // A later fragment. One that would lie over the TCP header serves no honest purpose.
        return if protocol == TCP && offset < TCP_HEADER_UNITS {
            malformed
        } else {
            packet
        };
    }
    let seen = if header == IPV4_HEADER {
        let transport = at + IPV4_HEADER;
        ports(
            bytes,
            packet,
            protocol,
            transport,
            transport_bytes,
            !more,
            true,
        )
    } else {
        let far = bytes.far();
        ports(
            &far,
            packet,
            protocol,
            at + header,
            transport_bytes,
            !more,
            true,
        )
    };
    seen.unwrap_or_else(Packet::of)
}

/// `place` is where extension headers may be walked in.
#[inline(always)]
fn ipv6<B: Bytes>(bytes: &B, at: u32, place: &mut Packet) -> Packet {
    let malformed = Packet::of(Kind::Malformed);
    let Some([w0, w1, s0, s1, s2, s3]) = bytes.words::<6>(at) else {
        return malformed;
    };
    let payload = w1 >> 16;
    let transport = at + IPV6_HEADER;
    // No jumbograms: a length of zero is just that.
    if w0 >> 28 != 6 || transport + payload > bytes.length() {
        return malformed;
    }
    let next = (w1 >> 8) as u8;
    let high = u64::from(s0) << 32 | u64::from(s1);
    let low = u64::from(s2) << 32 | u64::from(s3);
    let packet = Packet::new(Kind::V6, next, high, low, payload);
    match next {
        TCP | UDP => {
            ports(bytes, packet, next, transport, payload, true, false).unwrap_or_else(Packet::of)
        }
        ICMPV6 => {
            if is_neighbour_discovery(bytes, transport, payload, w1 as u8) {
                Packet::of(Kind::Control)
            } else {
                packet
            }
        }
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HIP | SHIM6 => {
            let place = bytes.place(place);
            *place = packet;
            if extensions(&bytes.far(), place, transport, w1 as u8) {
                *place
            } else {
                malformed
            }
        }
        _ => packet,
    }
}

/// Walks IPv6 extension headers from `at`, where one of kind `packet.protocol()` stands, and
/// completes the packet; false if it is malformed. A call of its own, as [`not_plain_ip`].
#[inline(never)]
fn extensions<B: Bytes>(bytes: &B, packet: &mut Packet, at: u32, hop_limit: u8) -> bool {
    let mut kind = packet.protocol();
    let mut left = packet.transport_bytes();
    let mut at = at;
    let mut whole = true;
    let mut seen = 0;
    while seen < MAX_EXTENSION_HEADERS {
        kind = bytes.forget(u32::from(kind), 0xff) as u8;
        left = bytes.forget(left, 0xffff);
        // 4 tags, the IPv6 header and 8 extensions of 2 048 bytes end below 2^15.
        at = bytes.forget(at, 0x7fff);
        whole = bytes.forget(u32::from(whole), 1) != 0;
        let size = match kind {
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6 => {
                if kind == HOP_BY_HOP && seen != 0 {
                    return false;
                }
                let Some(head) = bytes.half(at) else {
                    return false;
                };
                kind = (head >> 8) as u8;
                (u32::from(head & 0xff) + 1) * 8
            }
            AUTHENTICATION => {
                let Some(head) = bytes.half(at) else {
                    return false;
                };
                kind = (head >> 8) as u8;
                (u32::from(head & 0xff) + 2) * 4
            }
            FRAGMENT => {
                let (Some(head), Some(field)) = (bytes.half(at), bytes.half(at + 2)) else {
                    return false;
                };
                kind = (head >> 8) as u8;
                let offset = u32::from(field >> 3);
                whole = field & !6 == 0;
                if offset != 0 {
                    // A later fragment; as for IPv4.
                    if left < 8 || (kind == TCP && offset < TCP_HEADER_UNITS) {
                        return false;
                    }
                    *packet = packet.with_transport(kind, left - 8);
                    return true;
                }
                8
            }
            _ => break,
        };
        if size > left {
            return false;
        }
        left -= size;
        at += size;
        seen += 1;
    }
    let done = packet.with_transport(kind, left);
    *packet = match kind {
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HIP | SHIM6 => {
            return false;
        }
        ICMPV6 if whole && is_neighbour_discovery(bytes, at, left, hop_limit) => {
            Packet::of(Kind::Control)
        }
        TCP | UDP => ports(bytes, done, kind, at, left, whole, false).unwrap_or_else(Packet::of),
        _ => done,
    };
    true
}

/// Reads what of the transport header matters, in the first fragment or the whole packet. Where the
/// packet is of another kind after all, that.
///
/// A header that is cut is malformed also in a first fragment: no honest sender splits it (RFC 1858,
/// RFC 7112).
#[inline(always)]
fn ports<B: Bytes>(
    bytes: &B,
    packet: Packet,
    protocol: u8,
    at: u32,
    transport_bytes: u32,
    whole: bool,
    v4: bool,
) -> Result<Packet, Kind> {
    let malformed = Err(Kind::Malformed);
    match protocol {
        TCP => {
            if transport_bytes < TCP_HEADER {
                return malformed;
            }
            let Some(flags) = bytes.half(at + 12) else {
                return malformed;
            };
            tcp_header(packet, flags, transport_bytes)
        }
        UDP => {
            if transport_bytes < UDP_HEADER {
                return malformed;
            }
            let Some([ports]) = bytes.words::<1>(at) else {
                return malformed;
            };
            if whole && is_dhcp(ports, v4) {
                Err(Kind::Control)
            } else {
                Ok(packet)
            }
        }
        _ => Ok(packet),
    }
}

/// Reads length and flags of a TCP header.
#[inline(always)]
fn tcp_header(packet: Packet, flags: u16, transport_bytes: u32) -> Result<Packet, Kind> {
    let header = u32::from(flags >> 12) * 4;
    if header < TCP_HEADER || header > transport_bytes {
        return Err(Kind::Malformed);
    }
    Ok(packet.with_syn(flags & 0x12 == 0x02))
}

#[inline(always)]
fn is_dhcp(ports: u32, v4: bool) -> bool {
    let (source, destination) = (ports >> 16, ports & 0xffff);
    let first = if v4 { 67 } else { 546 };
    source.wrapping_sub(first) < 2 && destination.wrapping_sub(first) < 2
}

/// RFC 4861: types 133 to 137, code 0, hop limit 255: what has crossed a router is none.
#[inline(always)]
fn is_neighbour_discovery<B: Bytes>(bytes: &B, at: u32, left: u32, hop_limit: u8) -> bool {
    if left < 8 || hop_limit != 255 {
        return false;
    }
    match bytes.half(at) {
        Some(head) => head as u8 == 0 && (head >> 8).wrapping_sub(133) < 5,
        None => false,
    }
}
