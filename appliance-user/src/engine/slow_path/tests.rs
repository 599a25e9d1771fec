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
            ..Network::default()
        })
    }

    fn peer(&self, _slot: u32) -> Option<Peer> {
        None
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
    }

    let now = Instant::now();
    let limits = Limits::default();
    let mut slow = SlowPath::new(limits);
    let mut unresolved = header(VNI, SlowReason::Unresolved);
    let mut scan = |slow: &mut SlowPath, now, vni, n: u32| {
        let [_, b, c, d] = n.to_be_bytes();
        unresolved.vni = vni;
        unresolved.next_hop = appliance_common::addr::mapped([10, b, c, d]);
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
