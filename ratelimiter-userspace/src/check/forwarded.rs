//! Whose request a proxy forwards: the configured identity header, or the address that asked.
//!
//! `X-Forwarded-For` is believed only from listed proxies, and then its right-most hop that is not
//! a listed proxy counts: everything left of it was written by whoever that hop is. `X-Real-IP` and
//! `Forwarded` are never looked at.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// Hops looked at; what lies further left is nobody's business.
const MAX_HOPS: usize = 64;

/// Whose word counts.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    trusted: Vec<IpNet>,
    /// Name of the identity header in lower case; empty for none.
    header: String,
    v6_prefix_len: u8,
}

impl Proxies {
    /// Believes `trusted`; an IPv6 client is its prefix of `v6_prefix_len` bits.
    #[must_use]
    pub fn new(trusted: Vec<IpNet>, header: &str, v6_prefix_len: u8) -> Self {
        Self {
            trusted,
            header: header.to_ascii_lowercase(),
            v6_prefix_len,
        }
    }

    /// Name of the identity header in lower case, if there is one.
    #[must_use]
    pub fn identity_header(&self) -> Option<&str> {
        Some(self.header.as_str()).filter(|name| !name.is_empty())
    }

    /// The listed proxies.
    #[must_use]
    pub fn prefixes(&self) -> &[IpNet] {
        &self.trusted
    }

    /// Whether `address` is a listed proxy.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|prefix| prefix.contains(&address))
    }

    /// The address a request came from: `peer`, or if that is a listed proxy, the right-most hop of
    /// the `X-Forwarded-For` values (in the order they came) that is none.
    pub fn origin<'a>(
        &self,
        peer: IpAddr,
        values: impl DoubleEndedIterator<Item = &'a [u8]>,
    ) -> IpAddr {
        let mut nearest = peer.to_canonical();
        if !self.trusts(nearest) {
            return nearest;
        }
        let hops = values
            .rev()
            .flat_map(|value| value.rsplit(|byte| *byte == b','))
            .take(MAX_HOPS);
        for hop in hops {
            // Junk was written by, or let through by, the nearest hop: its bucket.
            let Some(address) = parse_hop(hop) else {
                return nearest;
            };
            nearest = address;
            if !self.trusts(nearest) {
                return nearest;
            }
        }
        nearest
    }

    /// The client id of an address: itself, or the prefix that makes one IPv6 source.
    #[must_use]
    pub fn id_of(&self, address: IpAddr) -> String {
        match address.to_canonical() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => {
                let len = u32::from(self.v6_prefix_len).clamp(1, 128);
                let mask = u128::MAX << (128 - len);
                let mut id = Ipv6Addr::from(u128::from(address) & mask).to_string();
                if len < 128 {
                    // Writing to a string cannot fail.
                    let _written = write!(id, "/{len}");
                }
                id
            }
        }
    }
}

/// Reads `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1%eth0]:80`, with
/// blanks around.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim_matches([' ', '\t']);
    let address = if let Some(rest) = hop.strip_prefix('[') {
        let (inside, after) = rest.split_once(']')?;
        if !(after.is_empty() || after.strip_prefix(':').is_some_and(is_port)) {
            return None;
        }
        without_zone(inside).parse::<Ipv6Addr>().ok()?.into()
    } else if let Some((address, _)) = hop.split_once(':').filter(|(_, port)| is_port(port)) {
        address.parse::<std::net::Ipv4Addr>().ok()?.into()
    } else {
        without_zone(hop).parse::<IpAddr>().ok()?
    };
    Some(address.to_canonical())
}

fn is_port(text: &str) -> bool {
    (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn without_zone(text: &str) -> &str {
    text.split_once('%').map_or(text, |(address, _)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(trusted: &[&str], peer: &str, values: &[&str]) -> String {
        let trusted = trusted.iter().map(|p| p.parse().unwrap()).collect();
        let proxies = Proxies::new(trusted, "", 64);
        let address = proxies.origin(
            peer.parse().unwrap(),
            values.iter().map(|value| value.as_bytes()),
        );
        proxies.id_of(address)
    }

    #[test]
    fn strangers_are_who_they_are() {
        assert_eq!(origin(&[], "192.0.2.1", &["198.51.100.1"]), "192.0.2.1");
        let proxies = ["10.0.0.0/8"];
        assert_eq!(origin(&proxies, "192.0.2.1", &["10.1.1.1"]), "192.0.2.1");
        assert_eq!(origin(&[], "::ffff:192.0.2.1", &[]), "192.0.2.1");
    }

    #[test]
    fn the_right_most_untrusted_hop_counts() {
        let proxies = ["10.0.0.0/8", "2001:db8:f::/48"];
        for (values, expected) in [
            (&[][..], "10.0.0.1"),
            (&["192.0.2.1"], "192.0.2.1"),
            (&["8.8.8.8, 192.0.2.1"], "192.0.2.1"),
            (&["192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            (&["8.8.8.8", "192.0.2.1"], "192.0.2.1"),
            (&["8.8.8.8, 192.0.2.1,10.0.0.2", "10.0.0.3"], "192.0.2.1"),
            (&["192.0.2.1:1234"], "192.0.2.1"),
            (&["[2001:db8:0:7::1]:443"], "2001:db8:0:7::/64"),
            (&["2001:db8:0:7::9%eth0"], "2001:db8:0:7::/64"),
            (&["192.0.2.1, [2001:db8:f::1]"], "192.0.2.1"),
            (&["::ffff:192.0.2.9"], "192.0.2.9"),
            (&["10.0.0.9"], "10.0.0.9"),
        ] {
            assert_eq!(origin(&proxies, "10.0.0.1", values), expected, "{values:?}");
        }
    }

    #[test]
    fn junk_is_the_nearest_hops() {
        for junk in [
            "unknown",
            "",
            " , ",
            "192.0.2.1:999999",
            "192.0.2.256",
            "[::1",
            "a:b",
            "\u{202e}1",
            "0x7f.1",
            "192.0.2.1, evil",
        ] {
            assert_eq!(
                origin(&["10.0.0.0/8"], "10.0.0.1", &[junk]),
                "10.0.0.1",
                "{junk:?}"
            );
        }
        assert_eq!(
            origin(&["10.0.0.0/8"], "10.0.0.1", &["junk, 192.0.2.1"]),
            "192.0.2.1"
        );
        let long = "10.0.0.2,".repeat(100_000);
        assert_eq!(
            origin(&["10.0.0.0/8"], "10.0.0.1", &[long.as_str()]),
            "10.0.0.1"
        );
    }
}
