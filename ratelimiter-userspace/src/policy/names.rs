//! What single names, ids and prefixes must be, and the words for units and algorithms.

use ipnet::IpNet;

use super::keys::{is_nat64, source_key};
use super::model::{Algorithm, MAX_CLIENT_ID_BYTES, MAX_NAME_BYTES, Unit};

/// Why a name of a segment, limit or backend is refused; `None` if it is legal.
#[must_use]
pub fn name_problem(what: &str, name: &str) -> Option<String> {
    let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_' || c == b'-';
    if name.is_empty() {
        return Some(format!(
            "a {what} has an empty name; it must have 1 to {MAX_NAME_BYTES} characters"
        ));
    }
    if name.len() > MAX_NAME_BYTES {
        return Some(format!(
            "{what} `{}...` has a name of {} bytes; it must have at most {MAX_NAME_BYTES}",
            shorten(name, 24),
            name.len()
        ));
    }
    (!name.bytes().all(legal)).then(|| {
        format!(
            "{what} `{}` has characters other than a-z, 0-9, _ and -",
            name.escape_debug()
        )
    })
}

/// Why a client id is refused; `None` if it is legal.
#[must_use]
pub fn client_id_problem(id: &str) -> Option<String> {
    if id.is_empty() {
        return Some(format!(
            "a client has an empty id; it must have 1 to {MAX_CLIENT_ID_BYTES} bytes"
        ));
    }
    if id.len() > MAX_CLIENT_ID_BYTES {
        return Some(format!(
            "client `{}...` has an id of {} bytes; it must have at most {MAX_CLIENT_ID_BYTES}",
            shorten(id, 24).escape_debug(),
            id.len()
        ));
    }
    id.chars().any(char::is_control).then(|| {
        format!(
            "client `{}` has a control character in its id",
            id.escape_debug()
        )
    })
}

fn shorten(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

/// Why a prefix is refused anywhere; `None` if it is legal.
#[must_use]
pub fn prefix_problem(prefix: &IpNet) -> Option<String> {
    if let IpNet::V6(six) = prefix {
        let mapped = u128::from(six.network()) >> 32 == 0xffff;
        if mapped && six.prefix_len() >= 96 {
            let four = u128::from(six.addr()) as u32;
            return Some(format!(
                "`{prefix}` is an IPv4-mapped prefix; no packet has such a source: write `{}/{}`",
                std::net::Ipv4Addr::from(four),
                six.prefix_len() - 96
            ));
        }
    }
    (prefix.trunc() != *prefix).then(|| {
        format!(
            "`{prefix}` has host bits set; write `{}` for the prefix or `{}` for the address",
            prefix.trunc(),
            IpNet::from(prefix.addr())
        )
    })
}

/// Why a prefix cannot have limits of its own; `None` if it can.
#[must_use]
pub fn source_problem(prefix: &IpNet, v6_len: u8) -> Option<String> {
    let IpNet::V6(six) = prefix else {
        return None;
    };
    if is_nat64(prefix) {
        return None;
    }
    if six.prefix_len() >= 8 && source_key(prefix.network(), v6_len).is_none() {
        return Some(format!(
            "`{prefix}` lies in ::/8 or ff00::/8, from where no packet comes"
        ));
    }
    if six.prefix_len() >= 10 && u128::from(six.network()) >> 118 == 0xfe80 >> 6 {
        return Some(format!(
            "`{prefix}` is link-local; such addresses cannot be told apart between \
                 interfaces, so they have the default segment's limit"
        ));
    }
    (six.prefix_len() > v6_len).then(|| {
        format!(
            "`{prefix}` is longer than /{v6_len}, which is one source (`kernel.v6_prefix_len`); \
                 write `{}`",
            six.supernet_of(v6_len)
        )
    })
}

/// The word for a unit in sentences.
#[must_use]
pub fn unit_word(unit: Unit) -> &'static str {
    ratelimiter_common::quota::Unit::from(unit).as_str()
}

/// The word for an algorithm in configuration and sentences.
#[must_use]
pub fn algorithm_word(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::TokenBucket => "token_bucket",
        Algorithm::SlidingLog => "sliding_log",
        Algorithm::SlidingWindow => "sliding_window",
        Algorithm::FixedWindow => "fixed_window",
    }
}

/// The prefix of length `len` around a longer one.
trait Supernet {
    fn supernet_of(&self, len: u8) -> IpNet;
}

impl Supernet for ipnet::Ipv6Net {
    fn supernet_of(&self, len: u8) -> IpNet {
        Self::new(self.addr(), len).map_or(IpNet::V6(*self), |net| IpNet::V6(net.trunc()))
    }
}
