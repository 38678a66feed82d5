//! Below IP: Ethernet, tags, what is not IP.

use super::Table;
use crate::packet::Packet;
use crate::reference::Verdict::{Control, Malformed, NonIp, V4};

pub(super) fn rows(table: &mut Table) {
    let udp = |packet: Packet| {
        packet
            .ipv4("192.0.2.1", "198.51.100.1")
            .udp(1000, 2000)
            .zeros(8)
    };
    let source = V4([192, 0, 2, 1].into(), false);

    table.row("plain UDP", &udp(Packet::eth()), source);
    table.row(
        "ARP request",
        &Packet::eth().arp_request("10.0.0.1", "10.0.0.2"),
        Control,
    );
    table.row(
        "ARP padded to 60 bytes",
        &Packet::eth().arp_request("10.0.0.1", "10.0.0.2").pad(60),
        Control,
    );
    table.row(
        "ARP behind a tag",
        &Packet::eth().vlan(7).arp_request("10.0.0.1", "10.0.0.2"),
        Control,
    );
    table.row(
        "ARP cut to its Ethernet header",
        &Packet::eth().arp_request("10.0.0.1", "10.0.0.2").cut(14),
        Control,
    );
    for (name, ethertype) in [
        ("LLDP", 0x88cc),
        ("MPLS unicast", 0x8847),
        ("MPLS multicast", 0x8848),
        ("PPPoE session", 0x8864),
        ("PPPoE discovery", 0x8863),
        ("RARP", 0x8035),
        ("EAPOL", 0x888e),
        ("802.3 length 38", 38),
        ("802.3 length 1500", 1500),
        ("local experimental", 0x88b5),
        ("MACsec", 0x88e5),
        ("PTP", 0x88f7),
        ("Ethertype 0", 0),
        ("Ethertype 0xffff", 0xffff),
    ] {
        table.row(
            format!("{name} is not IP"),
            &Packet::eth().lie_ethertype(ethertype).zeros(46),
            NonIp,
        );
        table.row(
            format!("{name} behind a tag is not IP"),
            &Packet::eth().vlan(1).lie_tag_ethertype(ethertype).zeros(46),
            NonIp,
        );
    }
    for tags in 1..=4_u16 {
        let mut packet = Packet::eth();
        for tag in 0..tags {
            packet = packet.vlan(tag + 1);
        }
        table.row(format!("{tags} VLAN tags"), &udp(packet), source);
    }
    for tags in 5..=9_u16 {
        let mut packet = Packet::eth();
        for tag in 0..tags {
            packet = packet.vlan(tag + 1);
        }
        table.row(
            format!("{tags} VLAN tags are too many"),
            &udp(packet),
            Malformed,
        );
    }
    table.row(
        "QinQ then VLAN",
        &udp(Packet::eth().qinq(10).vlan(20)),
        source,
    );
    table.row(
        "old QinQ (0x9100)",
        &udp(Packet::eth().tag(0x9100, 10).vlan(20)),
        source,
    );
    table.row(
        "VLAN then QinQ",
        &udp(Packet::eth().vlan(20).qinq(10)),
        source,
    );
    table.row(
        "priority tag, id 0",
        &udp(Packet::eth().tag(0x8100, 0xe000)),
        source,
    );
    table.row("tag id 4095", &udp(Packet::eth().vlan(4095)), source);
    table.row(
        "tag that announces itself and ends",
        &Packet::eth().vlan(1).lie_tag_ethertype(0x8100),
        Malformed,
    );
    table.row(
        "tag that announces IPv4 and ends",
        &Packet::eth().vlan(1).lie_tag_ethertype(0x0800),
        Malformed,
    );
    table.row(
        "tag that announces IPv6 and ends",
        &Packet::eth().vlan(1).lie_tag_ethertype(0x86dd),
        Malformed,
    );
    table.row(
        "Ethernet that announces IPv4 and ends",
        &Packet::eth().lie_ethertype(0x0800),
        Malformed,
    );
    table.row(
        "Ethernet that announces IPv6 and ends",
        &Packet::eth().lie_ethertype(0x86dd),
        Malformed,
    );
    table.cuts("tagged UDP", &udp(Packet::eth().vlan(5)), 14, 46);
    table.row(
        "another pair of MAC addresses buys nothing",
        &udp(Packet::eth_between([0xff; 6], [0; 6])),
        source,
    );
    table.row(
        "IPv4 announced, IPv6 inside",
        &Packet::eth()
            .lie_ethertype(0x0800)
            .ipv6("2001:db8::1", "2001:db8::2")
            .udp(1, 2),
        Malformed,
    );
    table.row(
        "IPv6 announced, IPv4 inside",
        &udp(Packet::eth().lie_ethertype(0x86dd)),
        Malformed,
    );
    table.row(
        "padding behind the packet",
        &udp(Packet::eth()).pad(128),
        source,
    );
}
