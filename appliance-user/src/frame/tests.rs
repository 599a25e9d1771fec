use appliance_common::addr::{solicited_node, v4_mapped};
use etherparse::{NetSlice, SlicedPacket};
use packet_rules::checksum::checksum;
use proptest::prelude::*;

use super::*;

const PORT: Port = Port {
    ifindex: 3,
    outer: 200,
    inner: 101,
    outer_ethertype: 0x88a8,
    mac: [2, 0, 0, 0, 0, 9],
};
const V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];

#[test]
fn arp_request_names_its_sender_behind_both_tags() {
    let frame = arp_request(&PORT, [10, 1, 0, 1], [10, 1, 0, 7], None);
    assert_eq!(&frame[..6], &[0xff; 6]);
    assert_eq!(&frame[12..22], &[0x88, 0xa8, 0, 200, 0x81, 0, 0, 101, 8, 6]);
    assert_eq!(&frame[22..30], &[0, 1, 8, 0, 6, 4, 0, 1]);
    assert_eq!(&frame[30..36], &PORT.mac);
    assert_eq!(&frame[36..46], &[10, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&frame[46..], &[10, 1, 0, 7]);
    let unicast = arp_request(&PORT, [10, 1, 0, 1], [10, 1, 0, 7], Some([4; 6]));
    assert_eq!(&unicast[..6], &[4; 6]);
}

#[test]
fn arp_announcement_names_the_address_twice_in_both_forms() {
    let untagged = Port {
        outer: 0,
        inner: 0,
        ..PORT
    };
    for reply in [false, true] {
        let frame = arp_announcement(&untagged, [10, 1, 0, 7], [6; 6], reply);
        assert_eq!(frame.len(), 14 + 28);
        assert_eq!(&frame[..6], &[0xff; 6]);
        assert_eq!(&frame[6..12], &PORT.mac);
        assert_eq!(frame[21], if reply { 2 } else { 1 });
        assert_eq!(&frame[22..28], &[6; 6]);
        assert_eq!(&frame[28..32], &[10, 1, 0, 7]);
        assert_eq!(&frame[32..38], &[if reply { 6 } else { 0 }; 6]);
        assert_eq!(&frame[38..42], &[10, 1, 0, 7]);
    }
}

/// The ICMPv6 message, its checksum verified by etherparse.
fn icmpv6(frame: &[u8]) -> (etherparse::Ipv6Header, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).expect("parses");
    let Some(NetSlice::Ipv6(ip)) = &packet.net else {
        panic!("not IPv6: {frame:02x?}")
    };
    let Some(etherparse::TransportSlice::Icmpv6(icmp)) = &packet.transport else {
        panic!("not ICMPv6: {frame:02x?}")
    };
    assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
    (ip.header().to_header(), icmp.slice().to_vec())
}

#[test]
fn solicitation_has_a_source_option_and_the_given_destination() {
    let (ip, message) = icmpv6(&neighbour_solicitation(
        &PORT,
        &link_local(&PORT.mac),
        &V6,
        None,
    ));
    assert_eq!(ip.hop_limit, 255);
    assert_eq!(ip.source, link_local(&PORT.mac));
    assert_eq!(ip.destination, solicited_node(&V6));
    assert_eq!(message[0], 135);
    assert_eq!(&message[8..24], &V6);
    assert_eq!(&message[24..26], &[1, 1]);
    assert_eq!(&message[26..], &PORT.mac);
    let unicast = neighbour_solicitation(&PORT, &[0xfd; 16], &V6, Some([4; 6]));
    assert_eq!(icmpv6(&unicast).0.source, [0xfd; 16]);
    assert_eq!(&unicast[..6], &[4; 6]);
    assert_eq!(icmpv6(&unicast).0.destination, V6);
}

#[test]
fn unsolicited_advertisement_has_the_override_and_router_flags() {
    for router in [false, true] {
        let frame = unsolicited_advertisement(&PORT, &V6, [6; 6], router);
        assert_eq!(&frame[..6], &[0x33, 0x33, 0, 0, 0, 1]);
        let (ip, message) = icmpv6(&frame);
        assert_eq!(ip.source, V6);
        assert_eq!(message[0], 136);
        assert_eq!(message[4], if router { 0xa0 } else { 0x20 });
        assert_eq!(&message[24..26], &[2, 1]);
        assert_eq!(&message[26..], &[6; 6]);
    }
}

#[test]
fn router_advertisement_has_lifetime_and_on_link_prefixes_without_autoconfiguration() {
    let port = Port {
        ifindex: 3,
        outer: 0,
        inner: 0,
        outer_ethertype: 0x8100,
        mac: [2, 0, 0, 0, 0, 9],
    };
    let source = link_local(&port.mac);
    let prefixes = [([0x20; 16], 64), ([0x21; 16], 48)];
    let frame = router_advertisement(&port, &source, 1800, &prefixes);
    let (ip, message) = icmpv6(&frame);
    assert_eq!((ip.source, ip.hop_limit), (source, 255));
    assert_eq!(message.len(), 16 + 8 + 2 * 32);
    assert_eq!(
        (message[0], message[1], message[4], message[5]),
        (134, 0, 64, 0)
    );
    assert_eq!(message[6..8], 1800u16.to_be_bytes());
    assert_eq!(message[16..24], [1, 1, 2, 0, 0, 0, 0, 9]);
    assert_eq!(message[24..28], [3, 4, 64, 0x80]);
    assert_eq!(message[28..36], [0, 0, 7, 8, 0, 0, 7, 8]);
    assert_eq!(message[40..56], [0x20; 16]);
    assert_eq!(message[58], 48);
}

#[test]
fn link_local_matches_rfc_4291_appendix_a() {
    assert_eq!(
        link_local(&[0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde])[8..],
        [0x36, 0x56, 0x78, 0xff, 0xfe, 0x9a, 0xbc, 0xde]
    );
}

#[test]
fn group_and_zero_mac_addresses_are_not_hosts() {
    assert!(is_host_mac(&[2, 0, 0, 0, 0, 1]));
    assert!(!is_host_mac(&[0; 6]));
    assert!(!is_host_mac(&BROADCAST));
    assert!(!is_host_mac(&[0x33, 0x33, 0, 0, 0, 1]));
}

/// An IPv4 packet with a correct header checksum.
pub(crate) fn ipv4(options: &[u8], word: u16, payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let mut p = vec![0u8; header];
    p[0] = 0x40 | (header / 4) as u8;
    p[2..4].copy_from_slice(&((header + payload.len()) as u16).to_be_bytes());
    p[4..6].copy_from_slice(&[0xab, 0xcd]);
    p[6..8].copy_from_slice(&word.to_be_bytes());
    p[8] = 64;
    p[9] = 17;
    p[12..16].copy_from_slice(&v4_mapped([10, 1, 0, 10])[12..]);
    p[16..20].copy_from_slice(&v4_mapped([10, 1, 0, 11])[12..]);
    p[20..].copy_from_slice(options);
    let check = checksum(&p);
    p[10..12].copy_from_slice(&check.to_ne_bytes());
    p.extend_from_slice(payload);
    p
}

/// Reassembles fragments as a receiver does, and asserts that each is well formed and fits the MTU.
pub(crate) fn reassemble(fragments: &[Vec<u8>], mtu: usize) -> (usize, bool, Vec<u8>) {
    let mut out = Vec::new();
    let mut start = None;
    let mut more = true;
    for fragment in fragments {
        assert!(fragment.len() <= mtu, "{} bytes over {mtu}", fragment.len());
        let ip = etherparse::Ipv4Slice::from_slice(fragment).expect("parses");
        let header = ip.header();
        assert_eq!(usize::from(header.total_len()), fragment.len());
        assert_eq!(
            header.header_checksum(),
            header.to_header().calc_header_checksum()
        );
        assert!(more, "fragment behind the last one");
        let offset = usize::from(header.fragments_offset().value()) * 8;
        let first = *start.get_or_insert(offset);
        assert_eq!(offset - first, out.len(), "gap or overlap");
        more = header.more_fragments();
        out.extend_from_slice(ip.payload().payload);
    }
    (start.unwrap_or(0), more, out)
}

#[test]
fn options_are_copied_by_their_flag() {
    // Record route (7, not copied), no-op, loose source route (131, copied), end.
    let options = [7, 7, 4, 1, 2, 3, 4, 1, 131, 3, 4, 0];
    let packet = ipv4(&options, 0, &[9; 100]);
    let fragments = split_v4(&packet, 72).expect("splits");
    assert_eq!(&fragments[0][20..32], &options);
    assert_eq!(fragments[1][0], 0x46);
    assert_eq!(&fragments[1][20..24], &[131, 3, 4, 0]);
    assert_eq!(reassemble(&fragments, 72).2, [9; 100]);
}

#[test]
fn packets_that_must_not_be_split_are_refused() {
    let p = ipv4(&[], 0x4000, &[0; 100]);
    assert_eq!(split_v4(&p, 68), Err(SplitError::DontFragment));
    assert_eq!(split_v4(&p, 120).expect("fits"), vec![p.clone()]);
    let mut bad = ipv4(&[], 0, &[0; 100]);
    assert_eq!(split_v4(&bad, 27), Err(SplitError::MtuTooSmall));
    bad[8] = 1;
    assert_eq!(split_v4(&bad, 68), Err(SplitError::Checksum));
    assert_eq!(split_v4(&bad[..119], 68), Err(SplitError::Malformed));
    let end = ipv4(&[], 0x1fff, &[0; 100]);
    assert_eq!(split_v4(&end, 68), Err(SplitError::TooLong));
}

proptest! {
    #[test]
    fn fragments_reassemble_to_the_packet(
        words in 0usize..=10,
        option_bytes in prop::collection::vec(any::<u8>(), 40),
        offset in 0u16..4000,
        more: bool,
        payload in prop::collection::vec(any::<u8>(), 1..4000),
        padding in 0usize..20,
        mtu in 68usize..2000,
    ) {
        let word = offset | if more { 0x2000 } else { 0 };
        // All fragments but the last carry a multiple of eight bytes.
        let len = if more { (payload.len() & !7).max(8).min(payload.len()) } else { payload.len() };
        prop_assume!(!more || len % 8 == 0);
        let mut packet = ipv4(&option_bytes[..words * 4], word, &payload[..len]);
        let whole = packet.len();
        packet.resize(whole + padding, 0xee);
        let fragments = split_v4(&packet, mtu).expect("splits");
        if whole <= mtu {
            prop_assert_eq!(&fragments, &vec![packet[..whole].to_vec()]);
        }
        let (start, still_more, out) = reassemble(&fragments, mtu);
        prop_assert_eq!(start, usize::from(offset) * 8);
        prop_assert_eq!(still_more, more);
        prop_assert_eq!(out, &payload[..len]);
    }

    #[test]
    fn random_bytes_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        mtu in 0usize..300,
        nice: bool,
    ) {
        if nice && bytes.len() > 20 {
            let len = bytes.len() as u16;
            bytes[0] = 0x45 + (bytes[0] % 11);
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            bytes[6] &= 0x3f;
            if let Some(lengths) = ipv4_lengths(&bytes) {
                bytes[10..12].fill(0);
                let check = checksum(&bytes[..lengths.header]);
                bytes[10..12].copy_from_slice(&check.to_ne_bytes());
            }
        }
        if let Ok(fragments) = split_v4(&bytes, mtu) {
            for fragment in fragments {
                prop_assert!(fragment.len() <= mtu);
            }
        }
    }
}

#[test]
fn announcement_of_another_mac_address_is_sent_from_our_own() {
    let port = Port {
        ifindex: 3,
        outer: 0,
        inner: 0,
        outer_ethertype: 0x8100,
        mac: [2, 0, 0, 0, 0, 1],
    };
    let theirs = [2, 0, 0, 0, 0, 9];
    let arp = arp_announcement(&port, [10, 1, 0, 10], theirs, false);
    assert_eq!(arp[6..12], port.mac, "Ethernet source");
    assert_eq!(arp[22..28], theirs, "sender hardware address");
    let nd = unsolicited_advertisement(&port, &[0x20; 16], theirs, false);
    assert_eq!(nd[6..12], port.mac, "Ethernet source");
    assert_eq!(
        nd[14 + 40 + 26..14 + 40 + 32],
        theirs,
        "target link-layer address"
    );
}
