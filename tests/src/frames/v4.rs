//! IPv4.

use std::net::Ipv4Addr;

use super::Table;
use crate::packet::Packet;
use crate::reference::Verdict::{Control, Malformed, V4};

fn from(source: &str) -> Packet {
    Packet::eth().ipv4(source, "198.51.100.1")
}

pub(super) fn rows(table: &mut Table) {
    let base = || from("192.0.2.1");
    let address: Ipv4Addr = [192, 0, 2, 1].into();
    let (quiet, opening) = (V4(address, false), V4(address, true));

    // TCP flags: only SYN without ACK opens a connection.
    for flags in 0..64_u8 {
        let opens = flags & 0x02 != 0 && flags & 0x10 == 0;
        table.row(
            format!("TCP flags {flags:#04x}"),
            &base().tcp(40_000, 443, flags),
            V4(address, opens),
        );
    }
    table.cuts("IPv4 TCP SYN", &base().tcp_syn(40_000, 443), 14, 54);
    table.cuts("IPv4 UDP", &base().udp(5_000, 53), 14, 42);
    table.row(
        "TCP with options",
        &base()
            .tcp_syn(1, 2)
            .tcp_options(&[2, 4, 5, 180, 1, 1, 4, 2]),
        opening,
    );
    table.row(
        "TCP with 40 bytes of options",
        &base().tcp_syn(1, 2).tcp_options(&[1; 40]),
        opening,
    );
    for offset in 0..5 {
        table.row(
            format!("TCP data offset {offset}"),
            &base().tcp_syn(1, 2).lie_data_offset(offset),
            Malformed,
        );
    }
    for offset in 6..16 {
        table.row(
            format!("TCP data offset {offset} beyond the packet"),
            &base().tcp_syn(1, 2).lie_data_offset(offset),
            Malformed,
        );
    }
    table.row(
        "TCP data offset over the payload",
        &base().tcp_syn(1, 2).lie_data_offset(15).zeros(40),
        opening,
    );

    // Header lengths and versions.
    for ihl in 0..5 {
        table.row(
            format!("IPv4 header length {ihl} words"),
            &base().lie_ihl(ihl).udp(1, 2).zeros(64),
            Malformed,
        );
    }
    for words in 1..=10_u8 {
        let options = vec![1; usize::from(words) * 4];
        table.row(
            format!("{words} words of options hide no SYN"),
            &base().ipv4_options(&options).tcp_syn(1, 2),
            opening,
        );
        table.row(
            format!("{words} words of options before UDP"),
            &base().ipv4_options(&options).udp(1, 2),
            quiet,
        );
    }
    table.row(
        "header length beyond the packet",
        &base().lie_ihl(15).udp(1, 2),
        Malformed,
    );
    for version in [0, 1, 3, 5, 6, 7, 15] {
        table.row(
            format!("IPv4 with version {version}"),
            &base().lie_version4(version).udp(1, 2),
            Malformed,
        );
    }
    for (total, what) in [
        (0, "zero"),
        (19, "below the header"),
        (20, "of the header alone"),
        (27, "inside the UDP header"),
        (29, "one beyond the frame"),
        (1_500, "far beyond the frame"),
        (65_535, "of 65535"),
    ] {
        table.row(
            format!("IPv4 total length {what}"),
            &base().lie_total_length(total).udp(1, 2),
            Malformed,
        );
    }
    table.row(
        "total length that leaves the SYN outside",
        &base().lie_total_length(32).tcp_syn(1, 2),
        Malformed,
    );
    table.row(
        "total length shorter than the frame",
        &base().lie_total_length(28).udp(1, 2).zeros(100),
        quiet,
    );
    table.row(
        "total length of the header alone, protocol 59",
        &base().lie_total_length(20).lie_protocol(59).zeros(40),
        quiet,
    );
    table.row(
        "wrong checksum is the stack's business",
        &base().lie_checksum(0xdead).udp(1, 2),
        quiet,
    );
    table.row("TTL 0", &base().ttl(0).udp(1, 2), quiet);
    table.row("TTL 255", &base().ttl(255).udp(1, 2), quiet);

    // Fragments.
    table.row(
        "first fragment of TCP SYN",
        &base().fragment(0, true).tcp_syn(1, 2).zeros(4),
        opening,
    );
    table.row(
        "first fragment cut inside TCP",
        &base().fragment(0, true).lie_protocol(6).zeros(8),
        Malformed,
    );
    table.row(
        "first fragment cut inside UDP",
        &base().fragment(0, true).lie_protocol(17).zeros(4),
        Malformed,
    );
    for offset in [1, 2] {
        table.row(
            format!("TCP fragment that starts at byte {}", offset * 8),
            &base().fragment(offset, false).lie_protocol(6).zeros(24),
            Malformed,
        );
    }
    for offset in [3, 4, 100, 8_191] {
        table.row(
            format!("later TCP fragment at unit {offset}"),
            &base().fragment(offset, false).tcp_syn(1, 2),
            quiet,
        );
        table.row(
            format!("later TCP fragment at unit {offset}, more to come"),
            &base().fragment(offset, true).tcp_syn(1, 2),
            quiet,
        );
    }
    for offset in [1, 2, 3, 185] {
        table.row(
            format!("later UDP fragment at unit {offset}"),
            &base().fragment(offset, true).lie_protocol(17).zeros(8),
            quiet,
        );
        table.row(
            format!("later UDP fragment at unit {offset} of one byte"),
            &base().fragment(offset, false).lie_protocol(17).zeros(1),
            quiet,
        );
    }
    table.row(
        "later fragment that looks like DHCP",
        &base().fragment(64, false).dhcp_discover(),
        quiet,
    );
    table.row(
        "first fragment that looks like DHCP",
        &base().fragment(0, true).dhcp_discover(),
        quiet,
    );

    // Control traffic.
    table.row("DHCP discover", &from("0.0.0.0").dhcp_discover(), Control);
    table.row("DHCP offer", &base().udp(67, 68).zeros(300), Control);
    table.row(
        "DHCP between relays",
        &base().udp(67, 67).zeros(300),
        Control,
    );
    table.row(
        "DHCP discover behind two tags",
        &Packet::eth()
            .qinq(1)
            .vlan(2)
            .ipv4("0.0.0.0", "255.255.255.255")
            .dhcp_discover(),
        Control,
    );
    for (from_port, to_port) in [
        (53, 67),
        (67, 53),
        (68, 69),
        (66, 67),
        (546, 547),
        (6_700, 68),
    ] {
        table.row(
            format!("UDP {from_port} to {to_port} is not DHCP"),
            &base().udp(from_port, to_port),
            quiet,
        );
    }
    table.row(
        "TCP on DHCP ports is not DHCP",
        &base().tcp(68, 67, 0x10),
        quiet,
    );

    // Other protocols: tunnels and all the rest belong to the outer source.
    for number in [
        1, 2, 4, 33, 41, 46, 47, 50, 51, 58, 59, 88, 89, 94, 112, 115, 132, 136, 137, 253, 255,
    ] {
        table.row(
            format!("protocol {number}"),
            &base().lie_protocol(number).zeros(40),
            quiet,
        );
        table.row(
            format!("protocol {number} without payload"),
            &base().lie_protocol(number),
            quiet,
        );
    }
    table.row("ping", &base().ping(1), quiet);
    table.row(
        "IP in IP is charged to the outer source",
        &base()
            .lie_protocol(4)
            .payload(&from("203.0.113.9").tcp_syn(1, 2).build()[14..]),
        quiet,
    );

    // Special addresses have keys like any other.
    for text in [
        "0.0.0.0",
        "0.0.0.1",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.0.1",
        "192.0.2.255",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.254",
        "255.255.255.255",
        "1.0.0.0",
        "8.8.8.8",
        "128.0.0.0",
        "191.255.255.255",
    ] {
        let address: Ipv4Addr = text.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
        table.row(
            format!("source {text}"),
            &from(text).udp(1, 2),
            V4(address, false),
        );
    }
    for port in [0, 1, 22, 80, 443, 65_535] {
        table.row(
            format!("port {port} buys nothing"),
            &base().udp(port, port),
            quiet,
        );
    }
}
