//! What a frame is, in full: the parser's answer with the key of its source.

use super::{Kind, parse};
use crate::abi::tracked::SourceKey;
use crate::source;

/// An IP packet that is subject to limits, in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Key of the source's bucket.
    pub key: SourceKey,
    /// The source address, for prefixes.
    pub address: Address,
    /// Protocol number of the last header seen.
    pub protocol: u8,
    /// Whether this is a TCP segment with SYN and without ACK.
    pub opens_connection: bool,
}

/// Where a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4, host order.
    V4(u32),
    /// IPv6, host order: the first 64 bits, then the last.
    V6(u64, u64),
}

/// What kind of frame this is, with the key of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Neither IP nor ARP.
    NonIp,
    /// ARP, neighbour discovery or DHCP.
    Control,
    /// Broken, truncated, too deeply nested, or from a source no host may have.
    Malformed,
    /// A packet to be judged.
    Packet(Subject),
}

/// Parses a frame and finds its key, as the kernel program does. `v6_mask` is
/// [`crate::abi::config::Config::v6_mask`].
#[must_use]
pub fn classify(frame: &[u8], v6_mask: u64) -> Class {
    let packet = parse(&frame);
    let (key, address) = match packet.kind() {
        Kind::NonIp => return Class::NonIp,
        Kind::Control => return Class::Control,
        Kind::Malformed => return Class::Malformed,
        Kind::V4 => (
            Some(source::v4(packet.low as u32)),
            Address::V4(packet.low as u32),
        ),
        Kind::V6 => (
            source::v6(packet.high, packet.low, v6_mask),
            Address::V6(packet.high, packet.low),
        ),
    };
    match key {
        None => Class::Malformed,
        Some(key) => Class::Packet(Subject {
            key,
            address,
            protocol: packet.protocol(),
            opens_connection: packet.syn(),
        }),
    }
}
