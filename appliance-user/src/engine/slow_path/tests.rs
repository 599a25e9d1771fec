use appliance_common::addr::UNSPECIFIED;

use super::*;
use crate::frame::BROADCAST;

const VNI: u32 = 1001;

/// One active network, and no peers.
struct OneNetwork;

impl Lookup for OneNetwork {
    fn network(&self, vni: u32) -> Option<Network> {
        (vni == VNI).then(|| Network {
            vni,
            flags: network_flags::ACTIVE,
            lan_mtu: 1400,
            ..Network::default()
        })
    }

    fn peer(&self, _slot: u32) -> Option<Peer> {
        None
    }

    fn uplink_mtu(&self) -> u16 {
        1500
    }
}

/// An IPv4 packet of 24 bytes behind an Ethernet header, padded as Ethernet does.
fn frame() -> Vec<u8> {
    let mut frame = [&BROADCAST[..], &[2; 6], &ETHERTYPE_IPV4.to_be_bytes()].concat();
    frame.extend_from_slice(&[0x45, 0, 0, 24]);
    frame.resize(60, 0);
    frame
}

fn header(vni: u32, reason: SlowReason) -> SlowHeader {
    SlowHeader {
        vni,
        ifindex: 3,
        len: 60,
        reason: reason as u16,
        l3: ETH_LEN as u16,
        next_hop: UNSPECIFIED,
    }
}

#[test]
fn an_uplink_packet_goes_to_the_kernel_without_ethernet_header_and_padding() {
    let now = Instant::now();
    let mut slow = SlowPath::new(Limits::default());
    let frame = frame();
    slow.packet(
        now,
        &header(VNI, SlowReason::UplinkUnresolved),
        &frame,
        &OneNetwork,
    );
    let packet = frame[ETH_LEN..ETH_LEN + 24].to_vec();
    assert_eq!(slow.poll(now), Some(Output::Route { packet }));
    assert!(slow.counters().contains(&("slow_outside", 1)));
}

#[test]
fn uplink_packets_are_bounded_and_checked() {
    let now = Instant::now();
    let mut slow = SlowPath::new(Limits {
        outputs: 2,
        ..Limits::default()
    });
    let unresolved = header(VNI, SlowReason::UplinkUnresolved);
    for _ in 0..5 {
        slow.packet(now, &unresolved, &frame(), &OneNetwork);
    }
    assert_eq!(slow.dropped(DropReason::OutputFull), 3);
    let unknown = header(VNI + 1, SlowReason::UplinkUnresolved);
    slow.packet(now, &unknown, &frame(), &OneNetwork);
    assert_eq!(slow.dropped(DropReason::UnknownNetwork), 1);
    slow.packet(now, &unresolved, &frame()[..30], &OneNetwork);
    assert_eq!(slow.dropped(DropReason::Malformed), 1);
}

#[test]
fn a_scan_of_one_network_leaves_places_to_others() {
    struct TwoNetworks;
    impl Lookup for TwoNetworks {
        fn network(&self, vni: u32) -> Option<Network> {
            OneNetwork.network(if vni == VNI + 1 { VNI } else { vni })
        }
        fn peer(&self, _slot: u32) -> Option<Peer> {
            None
        }
        fn uplink_mtu(&self) -> u16 {
            1500
        }
    }

    let now = Instant::now();
    let limits = Limits::default();
    let mut slow = SlowPath::new(limits);
    let mut unresolved = header(VNI, SlowReason::Unresolved);
    let mut scan = |slow: &mut SlowPath, now, vni, n: u32| {
        let [_, b, c, d] = n.to_be_bytes();
        unresolved.vni = vni;
        unresolved.next_hop = appliance_common::addr::v4_mapped([10, b, c, d]);
        slow.packet(now, &unresolved, &frame(), &TwoNetworks);
        while slow.poll(now).is_some() {}
    };
    let most = limits.hosts_per_network as u32;
    for n in 0..most + 100 {
        scan(&mut slow, now, VNI, n);
    }
    assert_eq!(slow.dropped(DropReason::QueueFull), 100);
    // The other network, and hosts that packets wait for already.
    scan(&mut slow, now, VNI + 1, 1);
    scan(&mut slow, now, VNI, 1);
    assert_eq!(slow.dropped(DropReason::QueueFull), 100);
    // Places are free again when the packets have expired.
    let later = now + limits.wait;
    scan(&mut slow, later, VNI, most + 200);
    assert_eq!(slow.dropped(DropReason::QueueFull), 101);
    scan(&mut slow, later, VNI, most + 200);
    assert_eq!(slow.dropped(DropReason::QueueFull), 101);
    assert!(slow.queued_in(VNI).hosts == 1, "{:?}", slow.queued_in(VNI));
}

/// An IPv4 packet without DF, with `len` bytes of payload and a right header checksum, behind an
/// Ethernet header.
fn long_frame(id: u16, len: usize) -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 9, 10, 1, 0, 10,
    ];
    packet[2..4].copy_from_slice(&((20 + len) as u16).to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    let check = checksum::checksum(&packet);
    packet[10..12].copy_from_slice(&check.to_ne_bytes());
    packet.extend((0..len).map(|n| n as u8));
    let head = [&BROADCAST[..], &[2; 6], &ETHERTYPE_IPV4.to_be_bytes()].concat();
    [head, packet].concat()
}

/// The payload that IPv4 fragments carry together; checks that they fit `mtu` and have one
/// identification, which is not zero.
fn joined(packets: &[Vec<u8>], mtu: usize) -> Vec<u8> {
    let mut payload = Vec::new();
    for packet in packets {
        assert!(packet.len() <= mtu, "{} bytes", packet.len());
        assert_eq!(checksum::checksum(&packet[..20]), 0);
        assert_eq!(packet[4..6], packets[0][4..6]);
        assert_ne!(packet[4..6], [0, 0]);
        let field = u16::from_be_bytes([packet[6], packet[7]]);
        assert_eq!(usize::from(field & 0x1fff) * 8, payload.len());
        payload.extend_from_slice(&packet[20..]);
    }
    payload
}

#[test]
fn a_packet_over_the_uplinks_mtu_goes_to_the_kernel_in_fragments() {
    let now = Instant::now();
    let mut slow = SlowPath::new(Limits::default());
    // Without an identification, and with one.
    for id in [0, 7] {
        let frame = long_frame(id, 2500);
        let split = header(VNI, SlowReason::UplinkSplit);
        slow.packet(now, &split, &frame, &OneNetwork);
        let mut packets = Vec::new();
        while let Some(Output::Route { packet }) = slow.poll(now) {
            packets.push(packet);
        }
        assert_eq!(packets.len(), 2);
        assert_eq!(joined(&packets, 1500), frame[ETH_LEN + 20..]);
        if id != 0 {
            assert_eq!(packets[0][4..6], id.to_be_bytes());
        }
    }
    let counters = slow.counters();
    assert!(counters.contains(&("slow_split_packets", 2)));
    assert!(counters.contains(&("slow_split_pieces", 4)));
}

#[test]
fn a_packet_over_the_mtu_of_its_hosts_port_is_sent_in_fragments() {
    let now = Instant::now();
    let mut slow = SlowPath::new(Limits::default());
    let mut split = header(VNI, SlowReason::HostSplit);
    split.next_hop = appliance_common::addr::v4_mapped([10, 1, 0, 10]);
    let frame = long_frame(9, 1470);
    slow.packet(now, &split, &frame, &OneNetwork);
    let key = HostKey {
        vni: VNI,
        address: split.next_hop,
    };
    assert_eq!(slow.poll(now), Some(Output::Resolve { key }));
    assert_eq!(slow.poll(now), None);
    let neighbour = Neighbour::new(3, [2; 6], [4; 6], 101, 0, 0x8100);
    slow.resolved(now, key, &neighbour);
    let mut packets = Vec::new();
    while let Some(Output::Send { ifindex: 3, frame }) = slow.poll(now) {
        assert_eq!(frame[..6], [2; 6]);
        packets.push(frame[18..].to_vec());
    }
    assert_eq!(packets.len(), 2);
    assert_eq!(joined(&packets, 1400), frame[ETH_LEN + 20..]);
}
