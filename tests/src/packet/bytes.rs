//! Network byte order and the Internet checksum.

/// Appends a 16-bit number as on the wire.
pub(super) fn put16(frame: &mut Vec<u8>, value: u16) {
    frame.extend(value.to_be_bytes());
}

/// The Internet checksum (RFC 1071) over several parts, each padded to an even length by itself.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            let high = pair.first().copied().unwrap_or(0);
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([high, low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
