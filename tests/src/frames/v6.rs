//! IPv6.

use std::net::Ipv6Addr;

use super::Table;
use crate::packet::Packet;
use crate::reference::Verdict::{Control, Malformed, V6};

const SOURCE: &str = "2001:db8:1:2::1";

/// Puts extension headers on a packet.
type Stack = fn(Packet) -> Packet;

fn from(source: &str) -> Packet {
    Packet::eth().ipv6(source, "2001:db8:ffff::1")
}

fn address(text: &str) -> Ipv6Addr {
    text.parse().unwrap_or(Ipv6Addr::UNSPECIFIED)
}

pub(super) fn rows(table: &mut Table) {
    let base = || from(SOURCE);
    let (quiet, opening) = (V6(address(SOURCE), false), V6(address(SOURCE), true));

    for flags in [
        0x00, 0x01, 0x02, 0x03, 0x04, 0x0a, 0x10, 0x12, 0x13, 0x18, 0x1a, 0x22, 0x32, 0x3f,
    ] {
        let opens = flags & 0x02 != 0 && flags & 0x10 == 0;
        table.row(
            format!("IPv6 TCP flags {flags:#04x}"),
            &base().tcp(1, 2, flags),
            V6(address(SOURCE), opens),
        );
    }
    table.cuts("IPv6 TCP SYN", &base().tcp_syn(1, 2), 14, 74);
    table.cuts(
        "IPv6 hop-by-hop UDP",
        &base().hop_by_hop().udp(1, 2),
        54,
        70,
    );
    table.cuts(
        "IPv6 fragment TCP",
        &base().fragment6(0, true).tcp_syn(1, 2),
        54,
        82,
    );
    for version in [0, 4, 5, 7, 15] {
        table.row(
            format!("IPv6 with version {version}"),
            &base().lie_version6(version).udp(1, 2),
            Malformed,
        );
    }
    for length in [0, 1, 7, 9, 100, 65_535] {
        table.row(
            format!("IPv6 payload length {length} around 8 bytes of UDP"),
            &base().lie_payload_length(length).udp(1, 2),
            Malformed,
        );
    }
    table.row(
        "payload length shorter than the frame",
        &base().lie_payload_length(8).udp(1, 2).zeros(64),
        quiet,
    );
    table.row(
        "payload length that leaves the SYN outside",
        &base().lie_payload_length(13).tcp_syn(1, 2),
        Malformed,
    );
    table.row(
        "no next header, no payload",
        &base().lie_next_header(59).lie_payload_length(0),
        quiet,
    );
    table.row(
        "no next header with payload",
        &base().lie_next_header(59).zeros(40),
        quiet,
    );
    table.row(
        "jumbogram: payload length 0 with hop-by-hop",
        &base().lie_payload_length(0).hop_by_hop().udp(1, 2),
        Malformed,
    );

    // Extension headers never hide the source or the SYN.
    let stacks: [(&str, Stack); 7] = [
        ("hop-by-hop", Packet::hop_by_hop),
        ("destination options", Packet::destination_options),
        ("routing", Packet::routing),
        ("hop-by-hop, destination", |p| {
            p.hop_by_hop().destination_options()
        }),
        ("hop-by-hop, routing, destination", |p| {
            p.hop_by_hop().routing().destination_options()
        }),
        ("atomic fragment", |p| p.fragment6(0, false)),
        ("destination, atomic fragment, destination", |p| {
            p.destination_options()
                .fragment6(0, false)
                .destination_options()
        }),
    ];
    for (name, stack) in stacks {
        table.row(
            format!("SYN behind {name}"),
            &stack(base()).tcp_syn(1, 2),
            opening,
        );
        table.row(
            format!("ACK behind {name}"),
            &stack(base()).tcp(1, 2, 0x10),
            quiet,
        );
        table.row(
            format!("UDP behind {name}"),
            &stack(base()).udp(1, 2),
            quiet,
        );
    }
    for body in [6, 14, 22, 62, 254] {
        table.row(
            format!("destination options of {} bytes", body + 2),
            &base().ext(60, &vec![0; body]).tcp_syn(1, 2),
            opening,
        );
    }
    for (number, name) in [(135, "mobility"), (139, "HIP"), (140, "Shim6")] {
        table.row(
            format!("SYN behind {name}"),
            &base().ext(number, &[0; 6]).tcp_syn(1, 2),
            opening,
        );
    }
    for body in [10, 14, 22] {
        table.row(
            format!("SYN behind an authentication header of {} bytes", body + 2),
            &base().ext(51, &vec![0; body]).tcp_syn(1, 2),
            opening,
        );
    }
    for count in 1..=8 {
        let packet = (0..count).fold(base(), |p, _| p.destination_options());
        table.row(
            format!("SYN behind {count} extension headers"),
            &packet.tcp_syn(1, 2),
            opening,
        );
    }
    for count in [9, 10, 16, 40] {
        let packet = (0..count).fold(base(), |p, _| p.destination_options());
        table.row(
            format!("{count} extension headers are too many"),
            &packet.tcp_syn(1, 2),
            Malformed,
        );
    }
    table.row(
        "hop-by-hop twice",
        &base().hop_by_hop().hop_by_hop().udp(1, 2),
        Malformed,
    );
    table.row(
        "hop-by-hop behind destination options",
        &base().destination_options().hop_by_hop().udp(1, 2),
        Malformed,
    );
    for length in [1, 2, 10, 31, 255] {
        table.row(
            format!("extension header length {length} beyond the packet"),
            &base()
                .ext(60, &[0; 6])
                .lie_ext_length(length)
                .lie_ext_next(59),
            Malformed,
        );
    }
    table.row(
        "extension header that announces TCP and ends",
        &base().ext(60, &[0; 6]).lie_ext_next(6),
        Malformed,
    );
    table.row(
        "extension header that announces another and ends",
        &base().ext(60, &[0; 6]).lie_ext_next(60),
        Malformed,
    );
    table.row(
        "ESP is not walked",
        &base().lie_next_header(50).zeros(40),
        quiet,
    );
    for number in [1, 2, 4, 41, 47, 59, 89, 112, 132, 143, 200, 254, 255] {
        table.row(
            format!("IPv6 next header {number} is not walked"),
            &base().lie_next_header(number).zeros(40),
            quiet,
        );
    }

    // Fragments.
    table.row(
        "first fragment of SYN",
        &base().fragment6(0, true).tcp_syn(1, 2).zeros(4),
        opening,
    );
    for offset in [1, 2] {
        table.row(
            format!("IPv6 TCP fragment that starts at byte {}", offset * 8),
            &base()
                .fragment6(offset, false)
                .lie_fragment_next(6)
                .zeros(24),
            Malformed,
        );
    }
    for offset in [3, 181, 8_191] {
        table.row(
            format!("later IPv6 TCP fragment at unit {offset}"),
            &base().fragment6(offset, true).tcp_syn(1, 2),
            quiet,
        );
        table.row(
            format!("later fragment at unit {offset} that announces more headers"),
            &base()
                .fragment6(offset, true)
                .lie_fragment_next(60)
                .zeros(8),
            quiet,
        );
    }
    table.row(
        "first fragment cut inside UDP",
        &base().fragment6(0, true).lie_fragment_next(17).zeros(4),
        Malformed,
    );
    table.row(
        "fragmented DHCPv6 is not exempt",
        &base().fragment6(0, true).dhcp6_solicit(),
        quiet,
    );

    // Neighbour discovery and DHCPv6.
    for kind in 133..=137_u8 {
        table.row(
            format!("ND type {kind}"),
            &from("fe80::1")
                .hop_limit(255)
                .icmp6(kind, 0, [0; 4])
                .zeros(16),
            Control,
        );
        table.row(
            format!("ND type {kind} from far away"),
            &from("fe80::1")
                .hop_limit(254)
                .icmp6(kind, 0, [0; 4])
                .zeros(16),
            V6(address("fe80::1"), false),
        );
        table.row(
            format!("ND type {kind} with code 1"),
            &from("fe80::1")
                .hop_limit(255)
                .icmp6(kind, 1, [0; 4])
                .zeros(16),
            V6(address("fe80::1"), false),
        );
        table.row(
            format!("ND type {kind} in a fragment"),
            &from("fe80::1")
                .hop_limit(255)
                .fragment6(0, true)
                .icmp6(kind, 0, [0; 4])
                .zeros(16),
            V6(address("fe80::1"), false),
        );
    }
    for kind in [1, 128, 129, 130, 131, 132, 138, 143, 255] {
        table.row(
            format!("ICMPv6 type {kind} is limited"),
            &from("fe80::1")
                .hop_limit(255)
                .icmp6(kind, 0, [0; 4])
                .zeros(16),
            V6(address("fe80::1"), false),
        );
    }
    table.row(
        "duplicate address detection",
        &from("::")
            .hop_limit(255)
            .neighbour_solicitation(address("fe80::2")),
        Control,
    );
    table.row(
        "neighbour advertisement",
        &base()
            .hop_limit(255)
            .neighbour_advertisement(address("fe80::2")),
        Control,
    );
    table.row(
        "ND behind a tag",
        &Packet::eth()
            .vlan(3)
            .ipv6("fe80::1", "ff02::1")
            .hop_limit(255)
            .neighbour_solicitation(address("fe80::2")),
        Control,
    );
    table.row("DHCPv6 solicit", &from("fe80::1").dhcp6_solicit(), Control);
    table.row(
        "DHCPv6 reply",
        &from("fe80::1").udp(547, 546).zeros(40),
        Control,
    );
    table.row(
        "UDP 546 to 53 is not DHCPv6",
        &from("fe80::1").udp(546, 53),
        V6(address("fe80::1"), false),
    );
    table.row(
        "IPv4 DHCP ports are not exempt in IPv6",
        &from("fe80::1").udp(68, 67),
        V6(address("fe80::1"), false),
    );

    // Sources.
    for text in [
        "2001:db8::",
        "2001:db8::ffff",
        "2001:db8:0:1::",
        "2002:a00:1::1",
        "2620:fe::fe",
        "fc00::1",
        "fd00::1",
        "fdff:ffff:ffff:ffff::1",
        "fe80::1",
        "fe80::211:22ff:fe33:4455",
        "febf::1",
        "fec0::1",
        "3fff::1",
        "100::1",
        "64:ff9b::c000:201",
        "64:ff9b::",
        "64:ff9b:1::1",
        "64:ff9b:1:2:3:4:5:6",
        "4000::1",
        "e000::1",
    ] {
        table.row(
            format!("source {text}"),
            &from(text).udp(1, 2),
            V6(address(text), false),
        );
    }
    for text in [
        "::",
        "::1",
        "::2",
        "::ffff:192.0.2.1",
        "::192.0.2.1",
        "::ffff:0:192.0.2.1",
        "64:ff9b::1:0:0",
        "64:ff9a::1",
        "ff00::1",
        "ff02::1",
        "ff0e::1",
        "ffff::1",
        "0:1::1",
        "ff:ffff::1",
    ] {
        table.row(
            format!("impossible source {text}"),
            &from(text).udp(1, 2),
            Malformed,
        );
    }
}
