//! From a source address to the key its bucket has ([`SourceKey`]).

use crate::abi::tracked::SourceKey;

/// Top 10 bits of a link-local IPv6 address.
const LINK_LOCAL: u64 = 0xfe80 >> 6;
/// First 64 bits of NAT64's well-known prefix 64:ff9b::/96 (RFC 6052).
const NAT64: u64 = 0x0064_ff9b_0000_0000;

/// Returns the key of an IPv4 source: the whole address.
#[inline(always)]
#[must_use]
pub const fn v4(address: u32) -> SourceKey {
    address as u64
}

/// Returns the key of an IPv6 source, or `None` where no host can legally send from it.
///
/// `high` and `low` are the address in host order, `mask` the configured prefix (the top 32 to 64
/// bits). A /64 is one source, since whoever has one address of it has all of them; link-local
/// and NAT64 hosts share their /64 with strangers and so have keys of their own (see
/// [`SourceKey`]). `None`: other addresses under `0000::/8` (unspecified, loopback, IPv4-mapped)
/// and multicast.
#[inline(always)]
#[must_use]
pub const fn v6(high: u64, low: u64, mask: u64) -> Option<SourceKey> {
    match high >> 56 {
        0x00 => {
            if high == NAT64 && low >> 32 == 0 {
                Some((0x0064 << 48) | low)
            } else if high >> 32 == NAT64 >> 32 && high != NAT64 {
                // 64:ff9b:1::/48, NAT64 for local use (RFC 8215): a prefix like any other.
                Some(high & mask)
            } else {
                None
            }
        }
        0xff => None,
        _ if high >> 54 == LINK_LOCAL => Some((0xff << 56) | fold(low)),
        _ => Some(high & mask),
    }
}

/// Returns an address, as its two halves, whose source has the key of an IPv6 source.
#[inline(always)]
#[must_use]
pub const fn top6(key: SourceKey) -> (u64, u64) {
    match key >> 56 {
        0x00 if key >> 32 == 0x0064 << 16 => (NAT64, key & 0xffff_ffff),
        // Which host it is does not matter: a link is one prefix.
        0xff => (LINK_LOCAL << 54, key & !(0xff << 56)),
        _ => (key, 0),
    }
}

/// Folds a 64-bit interface identifier into 56 bits.
///
/// Exact for identifiers made from a MAC address (`ff:fe` in the middle, RFC 4291 appendix A); any
/// other is hashed to 55 bits, so that two random ones of a link share a bucket with probability
/// 2^-55.
#[inline(always)]
const fn fold(identifier: u64) -> u64 {
    if (identifier >> 24) & 0xffff == 0xfffe {
        (1 << 55) | ((identifier >> 40) << 24) | (identifier & 0xff_ffff)
    } else {
        let mixed = identifier.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 9
    }
}

/// Bit in `PROMOTED` of a source: word `bit >> 6`, bit `bit & 63`.
#[inline(always)]
#[must_use]
pub const fn promoted_bit(key: SourceKey) -> u32 {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const M64: u64 = u64::MAX;

    fn key(text: &str) -> Option<SourceKey> {
        let bits = u128::from(text.parse::<std::net::Ipv6Addr>().unwrap());
        v6((bits >> 64) as u64, bits as u64, M64)
    }

    #[test]
    fn an_address_is_found_for_a_key() {
        for text in ["2001:db8:1:2::", "64:ff9b::c000:201", "64:ff9b:1::"] {
            let key = key(text).unwrap();
            let (high, low) = top6(key);
            assert_eq!(v6(high, low, M64), Some(key), "{text}");
        }
        assert_eq!(top6(key("fe80::1").unwrap()).0, 0xfe80 << 48);
    }

    #[test]
    fn one_64_is_one_source() {
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
    }

    #[test]
    fn link_local_and_nat64_hosts_have_their_own_keys() {
        assert_ne!(key("fe80::1"), key("fe80::2"));
        assert_ne!(
            key("fe80::211:22ff:fe33:4455"),
            key("fe80::211:22ff:fe33:4456")
        );
        assert_ne!(key("64:ff9b::192.0.2.1"), key("64:ff9b::192.0.2.2"));
        assert_ne!(key("64:ff9b::192.0.2.1"), Some(v4(0xc000_0201)));
    }

    #[test]
    fn impossible_sources_have_no_key() {
        for text in [
            "::",
            "::1",
            "::ffff:192.0.2.1",
            "::192.0.2.1",
            "ff02::1",
            "64:ff9b::1:0:0",
        ] {
            assert_eq!(key(text), None, "{text}");
        }
    }

    #[test]
    fn families_and_kinds_never_share_a_key() {
        let v4_keys = [v4(0), v4(u32::MAX), v4(0x0a00_0001)];
        for text in [
            "64:ff9b::10.0.0.1",
            "64:ff9b::",
            "64:ff9b:1::a00:1",
            "100::a00:1",
            "2002:a00:1::",
            "fe80::a00:1",
            "2001::a00:1",
            "fc00::a00:1",
        ] {
            let six = key(text).unwrap();
            assert!(!v4_keys.contains(&six), "{text}");
            assert_ne!(six >> 48, 1, "{text} reads as a shared bucket");
        }
    }
}
