//! The short way for plain packets: what the hot path of the kernel program parses in registers.

use super::{
    Bytes, ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_HEADER, IPV6_HEADER, Kind, Packet,
    TCP, UDP, ports,
};

/// The common case of [`super::parse`], and the same answer: an untagged IPv4 packet without options, no
/// later fragment. `None` asks for `parse`.
#[inline(always)]
#[must_use]
pub fn plain4<B: Bytes>(bytes: &B) -> Option<Packet> {
    let at = ETHERNET_HEADER;
    if bytes.half(12)? != ETHERTYPE_IPV4 {
        return None;
    }
    let [w0, w1, w2, source] = bytes.words::<4>(at)?;
    let total = w0 & 0xffff;
    let short = w0 >> 24 != 0x45 || total < IPV4_HEADER || at + total > bytes.length();
    if short || w1 & 0x1fff != 0 {
        return None;
    }
    let protocol = (w2 >> 16) as u8;
    let left = total - IPV4_HEADER;
    let packet = Packet::new(Kind::V4, protocol, 0, u64::from(source), left);
    let more = w1 & 0x2000 != 0;
    ports(bytes, packet, protocol, at + IPV4_HEADER, left, !more, true).ok()
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
