//! A second opinion on frames: what the RFCs say of a frame, written without the product's parser.
//!
//! Reads a frame front to back as a list of headers, each consumed whole, and decides at the end.
//! Slow and literal on purpose. [`Bug`] plants one known mistake, to prove that the comparison with
//! the product would find it.

use std::net::{Ipv4Addr, Ipv6Addr};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not IP, not ARP.
    NonIp,
    /// ARP, neighbour discovery, DHCP.
    Control,
    /// Broken.
    Malformed,
    /// IPv4: the source, and whether it opens a TCP connection.
    V4(Ipv4Addr, bool),
    /// IPv6: the same.
    V6(Ipv6Addr, bool),
}

/// A planted mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Stops at the second VLAN tag.
    OneTagOnly,
    /// Ignores IPv4 options when looking for the transport header.
    IgnoresOptions,
    /// Reads a transport header in later fragments.
    ReadsLaterFragments,
    /// Does not check the IPv4 total length against the frame.
    TrustsTotalLength,
    /// Counts SYN with ACK as a new connection.
    SynAckOpens,
    /// Computes extension header lengths without the first eight bytes.
    ShortExtensions,
    /// Treats the authentication header's length as units of eight bytes.
    LongAuthentication,
    /// Walks any number of extension headers.
    Bottomless,
    /// Accepts neighbour discovery with any hop limit.
    DistantNeighbours,
    /// Takes any UDP packet to port 67 for DHCP.
    LooseDhcp,
}

impl Bug {
    /// Every planted mistake.
    pub const ALL: [Self; 10] = [
        Self::OneTagOnly,
        Self::IgnoresOptions,
        Self::ReadsLaterFragments,
        Self::TrustsTotalLength,
        Self::SynAckOpens,
        Self::ShortExtensions,
        Self::LongAuthentication,
        Self::Bottomless,
        Self::DistantNeighbours,
        Self::LooseDhcp,
    ];
}

/// The rest of a frame.
struct Rest<'a>(&'a [u8]);

/// The frame ended before the header did, or contradicts itself.
struct Broken;

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Broken> {
        if self.0.len() < count {
            return Err(Broken);
        }
        let (head, tail) = self.0.split_at(count);
        self.0 = tail;
        Ok(head)
    }
}

fn word(bytes: &[u8]) -> u16 {
    u16::from(bytes[0]) * 256 + u16::from(bytes[1])
}

/// What the network layer found.
struct Network {
    source: Source,
    /// Protocol of what follows.
    next: u8,
    first_fragment: bool,
    fragment_units: u16,
    whole: bool,
    hop_limit: u8,
}

#[derive(Clone, Copy)]
enum Source {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

/// Judges a frame, with one planted mistake or none.
pub fn judge(frame: &[u8], bug: Option<Bug>) -> Verdict {
    link(&mut Rest(frame), bug).unwrap_or(Verdict::Malformed)
}

fn link(rest: &mut Rest<'_>, bug: Option<Bug>) -> Result<Verdict, Broken> {
    let mut kind = word(&rest.take(14)?[12..]);
    let mut tags = 0;
    while [0x8100, 0x88a8, 0x9100].contains(&kind) {
        tags += 1;
        if tags > 4 || (tags > 1 && bug == Some(Bug::OneTagOnly)) {
            return Err(Broken);
        }
        kind = word(&rest.take(4)?[2..]);
    }
    match kind {
        0x0806 => Ok(Verdict::Control),
        0x0800 => {
            let network = ip4(rest, bug)?;
            transport(rest, &network, bug)
        }
        0x86dd => {
            let network = ip6(rest, bug)?;
            transport(rest, &network, bug)
        }
        _ => Ok(Verdict::NonIp),
    }
}

fn ip4(rest: &mut Rest<'_>, bug: Option<Bug>) -> Result<Network, Broken> {
    let available = rest.0.len();
    let header = rest.take(20)?;
    let (version, words) = (header[0] / 16, usize::from(header[0] % 16));
    let total = usize::from(word(&header[2..]));
    if version != 4 || words < 5 || total < words * 4 {
        return Err(Broken);
    }
    if total > available && bug != Some(Bug::TrustsTotalLength) {
        return Err(Broken);
    }
    // Ethernet padding behind the packet is not part of it.
    rest.0 = &rest.0[..total.min(available) - 20];
    if bug != Some(Bug::IgnoresOptions) {
        rest.take(words * 4 - 20)?;
    }
    let (more, offset) = (header[6] & 0x20 != 0, word(&header[6..]) % 8_192);
    Ok(Network {
        source: Source::V4(Ipv4Addr::new(
            header[12], header[13], header[14], header[15],
        )),
        next: header[9],
        first_fragment: offset == 0,
        fragment_units: offset,
        whole: offset == 0 && !more,
        hop_limit: header[8],
    })
}

fn ip6(rest: &mut Rest<'_>, bug: Option<Bug>) -> Result<Network, Broken> {
    let header = rest.take(40)?;
    let payload = usize::from(word(&header[4..]));
    if header[0] / 16 != 6 || payload > rest.0.len() {
        return Err(Broken);
    }
    rest.0 = &rest.0[..payload];
    let mut source = [0; 16];
    source.copy_from_slice(&header[8..24]);
    let mut network = Network {
        source: Source::V6(Ipv6Addr::from(source)),
        next: header[6],
        first_fragment: true,
        fragment_units: 0,
        whole: true,
        hop_limit: header[7],
    };
    let mut headers = 0;
    while network.first_fragment && [0, 43, 44, 51, 60, 135, 139, 140].contains(&network.next) {
        if network.next == 0 && headers > 0 {
            return Err(Broken);
        }
        headers += 1;
        if headers > 8 && bug != Some(Bug::Bottomless) {
            return Err(Broken);
        }
        let start = rest.take(8)?;
        let more = match network.next {
            44 => {
                let field = word(&start[2..]);
                network.fragment_units = field / 8;
                network.first_fragment = field / 8 == 0;
                network.whole = field / 8 == 0 && field & 1 == 0;
                0
            }
            51 if bug == Some(Bug::LongAuthentication) => usize::from(start[1]) * 8,
            // Words of four bytes, less two: a total below eight is a lie the length cannot tell.
            51 => usize::from(start[1]) * 4,
            _ if bug == Some(Bug::ShortExtensions) => (usize::from(start[1]) * 8).saturating_sub(8),
            _ => usize::from(start[1]) * 8,
        };
        network.next = start[0];
        rest.take(more)?;
    }
    Ok(network)
}

fn transport(rest: &mut Rest<'_>, network: &Network, bug: Option<Bug>) -> Result<Verdict, Broken> {
    let mut opens = false;
    let readable = network.first_fragment || bug == Some(Bug::ReadsLaterFragments);
    match network.next {
        6 if readable => {
            let packet = rest.0.len();
            let header = rest.take(14)?;
            let bytes = usize::from(header[12] / 16) * 4;
            if bytes < 20 || bytes > packet {
                return Err(Broken);
            }
            let (syn, ack) = (header[13] & 2 != 0, header[13] & 16 != 0);
            opens = syn && (!ack || bug == Some(Bug::SynAckOpens));
        }
        // RFC 1858 and RFC 3128: a fragment that starts inside the TCP header.
        6 if network.fragment_units < 3 => return Err(Broken),
        17 if readable => {
            let header = rest.take(8)?;
            let ports = (word(header), word(&header[2..]));
            let range = match network.source {
                Source::V4(_) => [67, 68],
                Source::V6(_) => [546, 547],
            };
            if network.whole && range.contains(&ports.0) && range.contains(&ports.1) {
                return Ok(Verdict::Control);
            }
            if bug == Some(Bug::LooseDhcp) && ports.1 == 67 {
                return Ok(Verdict::Control);
            }
        }
        58 if matches!(network.source, Source::V6(_)) && network.whole && rest.0.len() >= 8 => {
            let near = network.hop_limit == 255 || bug == Some(Bug::DistantNeighbours);
            if near && (133..138).contains(&rest.0[0]) && rest.0[1] == 0 {
                return Ok(Verdict::Control);
            }
        }
        _ => {}
    }
    match network.source {
        Source::V4(address) => Ok(Verdict::V4(address, opens)),
        Source::V6(address) if may_send(address) => Ok(Verdict::V6(address, opens)),
        Source::V6(_) => Err(Broken),
    }
}

/// Whether a host may send from this address: not multicast, and of `0000::/8` only NAT64.
fn may_send(address: Ipv6Addr) -> bool {
    let s = address.segments();
    match s[0] >> 8 {
        0 if s[0] == 0x64 && s[1] == 0xff9b => {
            // 64:ff9b::/96, or anything of 64:ff9b:1::/48 and its like beyond the first /64.
            s[2] != 0 || s[3] != 0 || (s[4] == 0 && s[5] == 0)
        }
        0 | 0xff => false,
        _ => true,
    }
}
