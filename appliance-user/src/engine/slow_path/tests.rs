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
