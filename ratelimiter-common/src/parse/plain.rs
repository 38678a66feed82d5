//! The short way for plain packets: what the hot path of the kernel program parses in registers.

use super::{
    Bytes, ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_HEADER, IPV6_HEADER, Kind, Packet,
    TCP, UDP, UDP_HEADER, is_dhcp, ports, tcp_header,
};

/// The common case of [`super::parse`], and the same answer: an untagged IPv4 packet in one piece without
/// options, in a frame that is long enough for a TCP header. `None` asks for `parse`.
#[inline(always)]
#[must_use]
pub fn plain4<B: Bytes>(bytes: &B) -> Option<Packet> {
    // All that may matter, so that the length is compared once: from behind the addresses on.
    let [ethertype, w0, w1, w2, source, _, ports, _, _, tcp, _] = bytes.words::<11>(10)?;
    let total = w0 & 0xffff;
    let left = total.wrapping_sub(IPV4_HEADER);
    let other = ethertype & 0xffff != u32::from(ETHERTYPE_IPV4) || w0 >> 24 != 0x45;
    let longer = total + ETHERNET_HEADER > bytes.length();
    if other || total < IPV4_HEADER || longer || w1 & 0x3fff != 0 {
        return None;
    }
    let protocol = (w2 >> 16) as u8;
    let packet = Packet::new(Kind::V4, protocol, 0, u64::from(source), left);
    match protocol {
        TCP => tcp_header(packet, (tcp >> 16) as u16, left).ok(),
        UDP if left < UDP_HEADER || is_dhcp(ports, true) => None,
        _ => Some(packet),
    }
}

/// The common case of [`super::parse`], and the same answer: an untagged IPv6 packet with TCP or UDP and
/// nothing between. `None` asks for `parse`.
#[inline(always)]
#[must_use]
pub fn plain6<B: Bytes>(bytes: &B) -> Option<Packet> {
    let at = ETHERNET_HEADER;
    if bytes.half(12)? != ETHERTYPE_IPV6 {
        return None;
    }
    let [w0, w1, s0, s1, s2, s3] = bytes.words::<6>(at)?;
    let payload = w1 >> 16;
    let transport = at + IPV6_HEADER;
    let next = (w1 >> 8) as u8;
    let short = w0 >> 28 != 6 || transport + payload > bytes.length();
    if short || (next != TCP && next != UDP) {
        return None;
    }
    let high = u64::from(s0) << 32 | u64::from(s1);
    let low = u64::from(s2) << 32 | u64::from(s3);
    let packet = Packet::new(Kind::V6, next, high, low, payload);
    ports(bytes, packet, next, transport, payload, true, false).ok()
}
