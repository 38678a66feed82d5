//! Which bucket a source has: from addresses to the kernel's keys (`abi::tracked::SourceKey`).

use std::net::IpAddr;

use ipnet::IpNet;
use ratelimiter_common::abi::tracked::SourceKey;
use ratelimiter_common::source;

/// IPv4 prefixes at least this long are addresses: each of theirs is tracked.
pub const NARROW_V4: u8 = 28;
/// IPv6 prefixes are addresses if at most this much shorter than a source.
pub const NARROW_V6_BITS: u8 = 4;

const NAT64: u128 = 0x0064_ff9b << 96;

/// The mask of the top 64 bits of an IPv6 source.
#[must_use]
pub fn v6_mask(v6_prefix_len: u8) -> u64 {
    match v6_prefix_len {
        0 => 0,
        1..=63 => u64::MAX << (64 - v6_prefix_len),
        _ => u64::MAX,
    }
}

/// Returns the key of a source's bucket; `None` for addresses that no packet may come from.
#[must_use]
pub fn source_key(address: IpAddr, v6_prefix_len: u8) -> Option<SourceKey> {
    match super::prefixes::unmapped(address) {
        IpAddr::V4(four) => Some(source::v4(u32::from(four))),
        IpAddr::V6(six) => {
            let bits = u128::from(six);
            source::v6((bits >> 64) as u64, bits as u64, v6_mask(v6_prefix_len))
        }
    }
}

/// Whether the sources of `prefix` are few enough to be tracked one by one.
#[must_use]
pub fn is_narrow(prefix: &IpNet, v6_prefix_len: u8) -> bool {
    match prefix {
        IpNet::V4(net) => net.prefix_len() >= NARROW_V4,
        IpNet::V6(net) if is_nat64(prefix) => net.prefix_len() >= 128 - NARROW_V6_BITS,
        IpNet::V6(net) => net.prefix_len() >= v6_prefix_len - NARROW_V6_BITS,
    }
}

/// Whether `prefix` lies in 64:ff9b::/96, whose sources are single addresses.
#[must_use]
pub fn is_nat64(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(net)
        if net.prefix_len() >= 96 && u128::from(net.network()) & (u128::MAX << 32) == NAT64)
}

/// Number of sources in a narrow prefix, at most 16.
#[must_use]
pub fn narrow_sources(prefix: &IpNet, v6_prefix_len: u8) -> u32 {
    let host_bits = match prefix {
        IpNet::V4(net) => 32 - net.prefix_len(),
        IpNet::V6(net) if is_nat64(prefix) => 128 - net.prefix_len(),
        IpNet::V6(net) => v6_prefix_len.saturating_sub(net.prefix_len()),
    };
    1 << host_bits.min(NARROW_V6_BITS)
}

/// The keys of all sources of a narrow prefix, ascending.
pub fn narrow_keys(prefix: &IpNet, v6_prefix_len: u8) -> impl Iterator<Item = SourceKey> {
    let count = u64::from(narrow_sources(prefix, v6_prefix_len));
    let first = source_key(prefix.network(), v6_prefix_len);
    let step = match prefix {
        IpNet::V6(_) if !is_nat64(prefix) => 1 << (64 - v6_prefix_len.min(64)),
        _ => 1,
    };
    (0..count).filter_map(move |n| first.map(|first| first + n * step))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<u64> {
        narrow_keys(&text.parse().unwrap(), 64).collect()
    }

    #[test]
    fn a_slash_30_has_four_neighbouring_sources() {
        assert_eq!(
            keys("192.0.2.4/30"),
            [0xc000_0204, 0xc000_0205, 0xc000_0206, 0xc000_0207]
        );
    }

    #[test]
    fn a_slash_62_has_four_slash_64s() {
        assert_eq!(
            keys("2001:db8:0:4::/62"),
            [
                0x2001_0db8_0000_0004,
                0x2001_0db8_0000_0005,
                0x2001_0db8_0000_0006,
                0x2001_0db8_0000_0007
            ]
        );
    }

    #[test]
    fn nat64_and_ipv4_never_share_a_key() {
        let four = source_key("192.0.2.1".parse().unwrap(), 64).unwrap();
        let nat64 = source_key("64:ff9b::192.0.2.1".parse().unwrap(), 64).unwrap();
        let mapped = source_key("::ffff:192.0.2.1".parse().unwrap(), 64).unwrap();
        assert_ne!(four, nat64);
        assert_eq!(four, mapped);
        assert_eq!(source_key("::1".parse().unwrap(), 64), None);
        assert_eq!(source_key("ff02::1".parse().unwrap(), 64), None);
    }

    #[test]
    fn shorter_source_prefixes_mask_the_key() {
        let key = |text: &str| source_key(text.parse().unwrap(), 56).unwrap();
        assert_eq!(key("2001:db8:0:1ff::1"), key("2001:db8:0:100::2"));
        assert_ne!(key("2001:db8:0:1ff::1"), key("2001:db8:0:200::1"));
    }
}
