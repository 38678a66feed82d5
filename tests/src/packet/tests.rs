//! The builder against bytes written down by hand or captured from a real stack.
use super::{Packet, bytes::checksum, protocol};

#[test]
fn checksum_of_a_known_ipv4_header_is_right() {
    // The example of RFC 1071's commentary in common use: checksum 0xb861.
    let header = [
        0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 192, 168, 0, 1, 192, 168, 0, 199,
    ];
    assert_eq!(checksum(&[&header]), 0xb861);
}

#[test]
fn checksum_over_a_filled_header_is_zero() {
    let frame = Packet::eth()
        .ipv4("192.0.2.1", "198.51.100.9")
        .ipv4_options(&[7, 3, 4])
        .udp(1, 2)
        .payload(b"odd")
        .build();
    assert_eq!(checksum(&[&frame[14..38]]), 0);
}

#[test]
fn lengths_and_protocols_follow_from_what_follows() {
    let frame = Packet::eth()
        .qinq(5)
        .vlan(6)
        .ipv6("2001:db8::1", "2001:db8::2")
        .hop_by_hop()
        .fragment6(0, true)
        .tcp_syn(1000, 80)
        .build();
    assert_eq!(frame[12..14], [0x88, 0xa8]);
    assert_eq!(frame[14..18], [0, 5, 0x81, 0]);
    assert_eq!(frame[18..22], [0, 6, 0x86, 0xdd]);
    assert_eq!(frame[26..29], [0, 36, protocol::HOP_BY_HOP]);
    assert_eq!(frame[62..64], [protocol::FRAGMENT, 0]);
    assert_eq!(frame[70], protocol::TCP);
    assert_eq!(frame[78 + 13], 2);
    assert_eq!(frame.len(), 22 + 40 + 8 + 8 + 20);
}

#[test]
fn lies_override_only_their_field() {
    let honest = Packet::eth().ipv4("192.0.2.1", "192.0.2.2").udp(1, 2);
    let lying = Packet::eth()
        .ipv4("192.0.2.1", "192.0.2.2")
        .lie_total_length(9)
        .udp(1, 2);
    let (honest, lying) = (honest.build(), lying.build());
    let different: Vec<usize> = (0..honest.len())
        .filter(|&at| honest[at] != lying[at])
        .collect();
    // Total length (16, 17) and the checksum that covers it (24, 25).
    assert!(different.iter().all(|at| [16, 17, 24, 25].contains(at)));
    assert_eq!(lying[16..18], [0, 9]);
}

#[test]
fn cut_leaves_lengths_as_if_whole() {
    let frame = Packet::eth()
        .ipv4("192.0.2.1", "192.0.2.2")
        .udp(1, 2)
        .zeros(100)
        .cut(30)
        .build();
    assert_eq!(frame.len(), 30);
    assert_eq!(frame[16..18], 128_u16.to_be_bytes());
}

#[test]
fn arp_request_is_42_bytes_of_type_arp() {
    let frame = Packet::eth().arp_request("192.0.2.1", "192.0.2.2").build();
    assert_eq!(frame.len(), 42);
    assert_eq!(frame[12..14], [8, 6]);
    assert_eq!(frame[20..22], [0, 1]);
}

#[test]
#[should_panic(expected = "lie_ihl must follow Ipv4")]
fn a_lie_about_another_header_fails() {
    drop(Packet::eth().lie_ihl(3));
}
