//! The gateway's XDP program: it forwards datagrams byte for byte, and passes others to the table
//! in user space.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use causeway_tests::{
    gateway::*,
    harness::{Action, map_memory},
    packet::{V4, frame, transport_checksum, udp_no_checksum, udp_segment, v6},
    rng::{Seeded, seed_from_env},
    series,
};
use etherparse::{LaxNetSlice, LaxSlicedPacket, NetSlice, SlicedPacket, TransportSlice};
use gateway::circuit::{
    clock,
    table::{self, Path, Reason},
};
use gateway_client::wire::Side;
use gateway_common::maps::Outcome;
use test_support::StopOnDrop;

const LONG: Duration = Duration::from_secs(3600);

fn v4() -> [SideAddress; 2] {
    [
        SideAddress::new("192.0.2.10:1001", "192.0.2.1"),
        SideAddress::new("192.0.2.11:1002", "192.0.2.1"),
    ]
}

fn v6s() -> [SideAddress; 2] {
    [
        SideAddress::new("[2001:db8:1::10]:1001", "2001:db8:1::1"),
        SideAddress::new("[2001:db8:1::11]:1002", "2001:db8:1::1"),
    ]
}

/// The second end is reached through the interface of the smaller MTU.
fn v4_out() -> [SideAddress; 2] {
    [
        v4()[0],
        SideAddress::new("198.51.100.20:1003", "198.51.100.1"),
    ]
}

fn v6_out() -> [SideAddress; 2] {
    [
        v6s()[0],
        SideAddress::new("[2001:db8:2::20]:1003", "2001:db8:2::1"),
    ]
}

/// Both are in the VLAN.
fn v4_vlan() -> [SideAddress; 2] {
    [
        SideAddress::new("203.0.113.30:1001", "203.0.113.1"),
        SideAddress::new("203.0.113.31:1002", "203.0.113.1"),
    ]
}

fn v6_vlan() -> [SideAddress; 2] {
    [
        SideAddress::new("[2001:db8:3::30]:1001", "2001:db8:3::1"),
        SideAddress::new("[2001:db8:3::31]:1002", "2001:db8:3::1"),
    ]
}

/// Fields of a frame, as an independent parser reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Read {
    source: SocketAddr,
    destination: SocketAddr,
    payload: Vec<u8>,
    vlan: Option<u16>,
    hops: u8,
    /// Whether the checksum is correct; `None` without one.
    is_right: Option<bool>,
}

/// Parses a frame as a receiver does; panics where a receiver would drop it.
fn read(bytes: &[u8]) -> Read {
    let packet = SlicedPacket::from_ethernet(bytes).expect("a packet");
    let Some(TransportSlice::Udp(udp)) = &packet.transport else {
        panic!("not UDP: {packet:?}");
    };
    let (from, to, hops): (IpAddr, IpAddr, u8) = match packet.net.as_ref().expect("IP") {
        NetSlice::Ipv4(ip) => {
            let h = ip.header().to_header();
            assert_eq!(h.header_checksum, h.calc_header_checksum());
            assert!(!h.more_fragments && h.fragment_offset.value() == 0);
            (h.source.into(), h.destination.into(), h.time_to_live)
        }
        NetSlice::Ipv6(ip) => {
            let h = ip.header();
            assert!(ip.extensions().is_empty());
            (
                h.source_addr().into(),
                h.destination_addr().into(),
                h.hop_limit(),
            )
        }
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let segment = udp.slice();
    let is_right = (udp.checksum() != 0).then(|| transport_checksum(from, to, 17, segment) == 0);
    assert_eq!(usize::from(udp.length()), segment.len());
    Read {
        source: SocketAddr::new(from, udp.source_port()),
        destination: SocketAddr::new(to, udp.destination_port()),
        payload: udp.payload().to_vec(),
        vlan: packet.vlan_ids().first().map(|id| id.value()),
        hops,
        is_right,
    }
}

/// Checks that a frame is carried from one address to the other.
fn assert_forwarded(
    harness: &GatewayHarness,
    sent: &[u8],
    addresses: [&SideAddress; 2],
    device: u32,
) {
    let (action, out, outcome) = harness.run(IN, sent);
    assert_eq!(outcome, Outcome::Forwarded);
    let expected = if device == IN {
        Action::Tx
    } else {
        Action::Redirect
    };
    assert_eq!(action, expected);
    assert_eq!(out.len(), sent.len());
    let (before, after) = (read(sent), read(&out));
    let to = addresses[1];
    let is_tagged = before.vlan.is_some();
    let source = if is_tagged { VLAN } else { device };
    assert_eq!(out[..6], neighbour_mac(to.remote.ip()));
    assert_eq!(out[6..12], gateway_mac(source));
    assert_eq!(
        after,
        Read {
            source: to.local,
            destination: to.remote,
            hops: 64,
            ..before
        }
    );
    if to.remote.is_ipv4() {
        let l3 = if is_tagged { 18 } else { 14 };
        assert_eq!(out[l3 + 1], 0, "type of service is 0");
        assert_eq!(
            out[l3 + 4..l3 + 8],
            [0, 0, 0x40, 0],
            "don't fragment is set"
        );
    }
}

/// Checks that a frame passes to user space unchanged.
fn assert_passed(harness: &GatewayHarness, ifindex: u32, sent: &[u8], expected: Outcome) {
    let (action, out, outcome) = harness.run(ifindex, sent);
    assert_eq!((action, outcome), (Action::Pass, expected));
    assert!(out == sent, "changed");
}

#[test]
fn a_datagram_is_forwarded_byte_for_byte() {
    let Some(mut harness) = GatewayHarness::new(8, LONG, None, None) else {
        return;
    };
    let circuits = [
        (1, v4(), IN),
        (2, v6s(), IN),
        (3, v4_out(), OUT),
        (4, v6_out(), OUT),
    ];
    for (circuit, addresses, device) in circuits {
        harness.join(circuit, &addresses);
        let [a, b] = &addresses;
        let mut bytes = [0; 2];
        for length in [1, 2, 3, 17, 46, 500, 1301, 1302] {
            let payload = payload(circuit, length);
            assert_forwarded(&harness, &a.frame(&payload), [a, b], device);
            bytes[0] += payload.len() as u64;
            if device == IN {
                assert_forwarded(&harness, &b.frame(&payload), [b, a], device);
                bytes[1] += payload.len() as u64;
            }
        }
        let stats = harness.stats(circuit);
        let back = if device == IN { 8 } else { 0 };
        assert_eq!((stats.datagrams, stats.bytes), ([8, back], bytes));
        assert_eq!(stats.rate, 0);
    }
    for (circuit, addresses) in [(5, v4_vlan()), (6, v6_vlan())] {
        harness.join(circuit, &addresses);
        let [a, b] = &addresses;
        let payload = payload(circuit, 100);
        // The priority is kept, too.
        let sent = a.tagged(&[(0x8100, 0x6000 | VID)], &payload);
        assert_forwarded(&harness, &sent, [a, b], IN);
        let (_, out, _) = harness.run(IN, &sent);
        assert_eq!(out[12..16], sent[12..16]);
        // With another VLAN or untagged it is not forwarded.
        for tags in [&[(0x8100, VID + 1)][..], &[]] {
            assert_passed(
                &harness,
                IN,
                &a.tagged(tags, &payload),
                Outcome::OtherInterface,
            );
        }
    }
}

#[test]
fn only_short_frames_are_padded() {
    let Some(mut harness) = GatewayHarness::new(1, LONG, None, None) else {
        return;
    };
    let addresses @ [a, b] = &v4();
    harness.join(1, addresses);
    let mut sent = a.frame(&payload(1, 1));
    sent.resize(60, 0);
    assert_forwarded(&harness, &sent, [a, b], IN);
    sent.resize(51 + 46, 7);
    assert_forwarded(&harness, &sent, [a, b], IN);
    sent.push(7);
    assert_passed(&harness, IN, &sent, Outcome::Malformed);
}

#[test]
fn a_missing_or_wrong_udp_checksum_is_kept() {
    let Some(mut harness) = GatewayHarness::new(2, LONG, None, None) else {
        return;
    };
    let addresses @ [a, b] = &v4();
    harness.join(1, addresses);
    let none = |address: &SideAddress, circuit| {
        let l3 = udp_no_checksum(
            address.remote.ip(),
            address.local.ip(),
            address.remote.port(),
            address.local.port(),
            &payload(circuit, 77),
        );
        frame(
            gateway_mac(IN),
            neighbour_mac(address.remote.ip()),
            &[],
            &l3,
        )
    };
    assert_forwarded(&harness, &none(a, 1), [a, b], IN);
    let mut wrong = a.frame(&payload(1, 77));
    *wrong.last_mut().expect("a byte") ^= 1;
    assert_eq!(read(&wrong).is_right, Some(false));
    assert_forwarded(&harness, &wrong, [a, b], IN);
    // IPv6 requires a checksum (RFC 8200 section 8.1).
    let addresses @ [a, b] = &v6s();
    harness.join(2, addresses);
    assert_passed(&harness, IN, &none(a, 2), Outcome::Malformed);
    let mut wrong = a.frame(&payload(2, 77));
    *wrong.last_mut().expect("a byte") ^= 1;
    assert_forwarded(&harness, &wrong, [a, b], IN);
    // A computed checksum of zero is sent as 0xffff (RFC 768).
    let mut seen = false;
    for n in 0..=u16::MAX {
        let mut bytes = payload(2, 2);
        bytes[8..10].copy_from_slice(&n.to_be_bytes());
        let sent = a.frame(&bytes);
        let (_, out) = run_frame(&harness, &sent);
        let check = &out[14 + 46..14 + 48];
        assert_ne!(check, [0, 0]);
        if check == [0xff, 0xff] {
            assert_eq!(read(&out).is_right, Some(true));
            seen = true;
            break;
        }
    }
    assert!(seen);
}

fn run_frame(harness: &GatewayHarness, sent: &[u8]) -> (Action, Vec<u8>) {
    let mut runner = harness.runner();
    let (action, out) = runner.run(IN, sent);
    (action, out.to_vec())
}

#[test]
fn other_frames_than_plain_datagrams_pass_to_the_kernel() {
    let Some(mut harness) = GatewayHarness::new(2, LONG, None, None) else {
        return;
    };
    let four = v4();
    let six = v6s();
    harness.join(1, &four);
    harness.join(2, &six);
    let (IpAddr::V4(from), IpAddr::V4(to)) = (four[0].remote.ip(), four[0].local.ip()) else {
        unreachable!("IPv4");
    };
    let segment = |address: &SideAddress, payload: &[u8]| {
        let (from, to) = (address.remote, address.local);
        udp_segment(from.ip(), to.ip(), from.port(), to.port(), payload)
    };
    let whole = segment(&four[0], &payload(1, 30));
    let mac = neighbour_mac(four[0].remote.ip());
    let wrap = |l3: &[u8]| frame(gateway_mac(IN), mac, &[], l3);
    let header = |change: fn(&mut V4)| {
        let mut header = V4::new(from, to, 17);
        change(&mut header);
        wrap(&header.build(&whole))
    };
    assert_passed(
        &harness,
        IN,
        &header(|h| h.frag = 0x2000),
        Outcome::Fragment,
    );
    assert_passed(
        &harness,
        IN,
        &header(|h| h.frag = 0x4001),
        Outcome::Fragment,
    );
    assert_passed(
        &harness,
        IN,
        &header(|h| h.frag = 0x8000),
        Outcome::Fragment,
    );
    assert_passed(
        &harness,
        IN,
        &header(|h| h.options = vec![1; 4]),
        Outcome::Options,
    );
    assert_passed(&harness, IN, &header(|h| h.proto = 6), Outcome::Other);
    // Without "don't fragment", or with another type of service or a low TTL, it is forwarded.
    for change in [
        |h: &mut V4| h.frag = 0,
        |h: &mut V4| h.tos = 0xb8,
        |h: &mut V4| h.ttl = 1,
    ] {
        let [a, b] = &four;
        assert_forwarded(&harness, &header(change), [a, b], IN);
    }
    let mut broken = header(|_| {});
    broken[14 + 10] ^= 1;
    assert_passed(&harness, IN, &broken, Outcome::Malformed);
    // Lengths: of the datagram, one more and one less; of the packet, longer than the frame.
    for change in [-1i16, 1] {
        let mut segment = whole.clone();
        let length = segment.len() as i16 + change;
        segment[4..6].copy_from_slice(&length.to_be_bytes());
        let sent = wrap(&V4::new(from, to, 17).build(&segment));
        assert_passed(&harness, IN, &sent, Outcome::Malformed);
        let l3 = v6(six_of(&six[0]), six_of_local(&six[0]), 17, 64, &{
            let mut segment = self::segment_of(&six[0], &payload(2, 30));
            let length = segment.len() as i16 + change;
            segment[4..6].copy_from_slice(&length.to_be_bytes());
            segment
        });
        assert_passed(&harness, IN, &wrap(&l3), Outcome::Malformed);
    }
    let sent = four[0].frame(&payload(1, 30));
    assert_passed(&harness, IN, &sent[..sent.len() - 1], Outcome::Malformed);
    assert_passed(&harness, IN, &sent[..14 + 36], Outcome::Other);
    let sent = six[0].frame(&payload(2, 30));
    assert_passed(&harness, IN, &sent[..sent.len() - 1], Outcome::Malformed);
    // Extension headers, a fragment's one of them.
    let behind = |next: u8| {
        let mut bytes = vec![17, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(segment(&six[0], &payload(2, 30)));
        wrap(&v6(
            six_of(&six[0]),
            six_of_local(&six[0]),
            next,
            64,
            &bytes,
        ))
    };
    assert_passed(&harness, IN, &behind(0), Outcome::Other);
    assert_passed(&harness, IN, &behind(60), Outcome::Other);
    assert_passed(&harness, IN, &behind(44), Outcome::Fragment);
    // Tags: two, one of a provider, one of no VLAN.
    let bytes = payload(1, 30);
    for tags in [
        &[(0x8100, 5), (0x8100, 5)][..],
        &[(0x88a8, 5)],
        &[(0x8100, 0)],
    ] {
        assert_passed(&harness, IN, &four[0].tagged(tags, &bytes), Outcome::Other);
    }
    // To another MAC address, to broadcast, and on an interface that the program does not know.
    let mut sent = four[0].frame(&bytes);
    assert_passed(&harness, STRAY, &sent, Outcome::ForeignMac);
    sent[5] ^= 1;
    assert_passed(&harness, IN, &sent, Outcome::ForeignMac);
    sent[..6].fill(0xff);
    assert_passed(&harness, IN, &sent, Outcome::ForeignMac);
    // Not IP.
    sent = four[0].frame(&bytes);
    sent[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_passed(&harness, IN, &sent, Outcome::Other);
}

fn segment_of(address: &SideAddress, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (address.remote, address.local);
    udp_segment(from.ip(), to.ip(), from.port(), to.port(), payload)
}

fn six_of(address: &SideAddress) -> std::net::Ipv6Addr {
    match address.remote.ip() {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(_) => unreachable!("IPv6"),
    }
}

fn six_of_local(address: &SideAddress) -> std::net::Ipv6Addr {
    match address.local.ip() {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(_) => unreachable!("IPv6"),
    }
}

#[test]
fn datagrams_that_need_the_table_pass_to_user_space() {
    let Some(mut harness) = GatewayHarness::new(8, LONG, None, None) else {
        return;
    };
    let addresses @ [a, b] = &v4();
    harness.join(1, addresses);
    // Control messages, and datagrams too short for an id.
    assert_passed(&harness, IN, &a.frame(&[0; 64]), Outcome::Message);
    assert_passed(
        &harness,
        IN,
        &a.frame(&[0, 0, 0, 0, 1, 2, 3, 4, 5]),
        Outcome::Message,
    );
    assert_passed(&harness, IN, &a.frame(&id(1).to_bytes()), Outcome::Other);
    let mut padded = a.frame(&id(1).to_bytes());
    padded.resize(60, 0);
    assert_passed(&harness, IN, &padded, Outcome::Malformed);
    // Unknown circuits, and one with an unbound side.
    assert_passed(
        &harness,
        IN,
        &a.frame(&payload(99, 10)),
        Outcome::UnknownCircuit,
    );
    harness.bind(2, Side::A, a);
    assert_passed(
        &harness,
        IN,
        &a.frame(&payload(2, 10)),
        Outcome::UnknownCircuit,
    );
    // Other sources: another port, another address, the other end's circuit; to another address or
    // port of the gateway.
    let bytes = &payload(1, 10);
    for (remote, local) in [
        ("192.0.2.10:1009", "192.0.2.1"),
        ("192.0.2.12:1001", "192.0.2.1"),
        ("192.0.2.10:1001", "198.51.100.1"),
    ] {
        let other = SideAddress::new(remote, local);
        assert_passed(&harness, IN, &other.frame(bytes), Outcome::WrongSource);
    }
    let mut other = *a;
    other.local.set_port(PORT + 1);
    assert_passed(&harness, IN, &other.frame(bytes), Outcome::WrongSource);
    assert_passed(
        &harness,
        IN,
        &v6s()[0].frame(bytes),
        Outcome::UnknownCircuit,
    );
    // An IPv4 end and an IPv6 one.
    harness.join(3, &[*a, v6s()[1]]);
    assert_passed(
        &harness,
        IN,
        &a.frame(&payload(3, 10)),
        Outcome::UnknownCircuit,
    );
    // No way: no route, a neighbour that is not known; or one by an interface without the program.
    for (circuit, remote, local, outcome) in [
        (4, "10.77.0.5:1002", "192.0.2.1", Outcome::NoNextHop),
        (5, "192.0.2.99:1002", "192.0.2.1", Outcome::NoNextHop),
        (6, "10.9.0.40:1002", "10.9.0.1", Outcome::OtherInterface),
        (7, "192.0.2.1:7777", "192.0.2.1", Outcome::NoNextHop),
        (
            8,
            "203.0.113.30:1002",
            "203.0.113.1",
            Outcome::OtherInterface,
        ),
    ] {
        harness.join(circuit, &[*a, SideAddress::new(remote, local)]);
        assert_passed(&harness, IN, &a.frame(&payload(circuit, 10)), outcome);
    }
    assert_forwarded(&harness, &a.frame(bytes), [a, b], IN);
}

#[test]
fn a_stale_entry_never_forwards_into_another_circuit() {
    let Some(mut harness) = GatewayHarness::new(2, LONG, None, None) else {
        return;
    };
    // Both circuits have the same ends: only the id distinguishes them.
    let addresses @ [a, b] = &v4();
    harness.join(1, addresses);
    harness.join(2, addresses);
    let info = harness.fast.with_program(|program| program.info());
    let of_program = info.expect("a program").expect("its info").map_ids();
    let of_program = of_program.expect("to root").expect("Linux 4.15");
    let ids = aya::maps::loaded_maps().flatten();
    let ids = ids.filter(|map| map.name_as_str() == Some("IDS"));
    let id_of_map = ids.map(|map| map.id()).find(|id| of_program.contains(id));
    let map = MapData::from_id(id_of_map.expect("the map")).expect("opened");
    let mut ids: HashMap<_, u64, u32> = Map::HashMap(map).try_into().expect("its kind");
    let key = |n| u64::from_ne_bytes(id(n).to_bytes());
    let place = ids.get(&key(2), 0).expect("an entry");
    ids.insert(key(1), place, 0).expect("written");
    assert_passed(
        &harness,
        IN,
        &a.frame(&payload(1, 10)),
        Outcome::UnknownCircuit,
    );
    assert_forwarded(&harness, &a.frame(&payload(2, 10)), [a, b], IN);
    // An index outside of the map.
    ids.insert(key(1), u32::MAX, 0).expect("written");
    assert_passed(
        &harness,
        IN,
        &a.frame(&payload(1, 10)),
        Outcome::UnknownCircuit,
    );
}

#[test]
fn no_frame_is_redirected_to_a_driver_that_cannot_accept_it() {
    let Some(mut harness) = GatewayHarness::new(2, LONG, None, None) else {
        return;
    };
    let (here, there) = (v4(), v4_out());
    harness.join(1, &here);
    harness.join(2, &there);
    assert_forwarded(
        &harness,
        &there[0].frame(&payload(2, 10)),
        [&there[0], &there[1]],
        OUT,
    );
    harness.fast.set_ports(&ports(0)).expect("PORTS");
    assert_passed(
        &harness,
        IN,
        &there[0].frame(&payload(2, 10)),
        Outcome::OtherInterface,
    );
    // Through its input interface it is still forwarded.
    assert_forwarded(
        &harness,
        &here[0].frame(&payload(1, 10)),
        [&here[0], &here[1]],
        IN,
    );
    // An interface that was removed from the map.
    harness.fast.set_ports(&Default::default()).expect("PORTS");
    assert_passed(
        &harness,
        IN,
        &here[0].frame(&payload(1, 10)),
        Outcome::ForeignMac,
    );
}

#[test]
fn a_datagram_over_the_mtu_passes_to_the_kernel() {
    let Some(mut harness) = GatewayHarness::new(2, LONG, None, None) else {
        return;
    };
    for (circuit, addresses, headers) in [(1, v4_out(), 28), (2, v6_out(), 48)] {
        harness.join(circuit, &addresses);
        let [a, b] = &addresses;
        let fits = SMALL_MTU - headers - 8;
        assert_forwarded(&harness, &a.frame(&payload(circuit, fits)), [a, b], OUT);
        let longer = a.frame(&payload(circuit, fits + 1));
        assert_passed(&harness, IN, &longer, Outcome::TooLong);
    }
}

#[test]
fn the_program_follows_the_table() {
    let lifetime = Duration::from_millis(600);
    let Some(mut harness) = GatewayHarness::new(1, lifetime, None, None) else {
        return;
    };
    let addresses @ [a, b] = &v4();
    harness.join(1, addresses);
    let bytes = &payload(1, 10);
    // Renewed in time, again and again.
    for _ in 0..4 {
        sleep(Duration::from_millis(300));
        harness.bind(1, Side::A, a);
        harness.bind(1, Side::B, b);
        assert_forwarded(&harness, &a.frame(bytes), [a, b], IN);
    }
    // One side is silent: nothing is forwarded in either direction, before and after a sweep.
    sleep(Duration::from_millis(400));
    harness.bind(1, Side::A, a);
    sleep(Duration::from_millis(300));
    assert_passed(&harness, IN, &a.frame(bytes), Outcome::Expired);
    assert_passed(&harness, IN, &b.frame(bytes), Outcome::Expired);
    harness.table.sweep(clock());
    harness.publish();
    assert_passed(&harness, IN, &a.frame(bytes), Outcome::UnknownCircuit);
    harness.join(1, addresses);
    assert_forwarded(&harness, &a.frame(bytes), [a, b], IN);
    // It moves: nothing is accepted from or sent to its former address.
    let moved = SideAddress::new("192.0.2.11:2222", "192.0.2.1");
    harness.bind(1, Side::B, &moved);
    assert_passed(&harness, IN, &b.frame(bytes), Outcome::WrongSource);
    assert_forwarded(&harness, &moved.frame(bytes), [&moved, a], IN);
    assert_forwarded(&harness, &a.frame(bytes), [a, &moved], IN);
    let counted = harness.stats(1);
    assert_eq!(counted.datagrams, [6, 1]);
    // It unbinds.
    harness.unbind(1, Side::B, &moved);
    assert_passed(&harness, IN, &a.frame(bytes), Outcome::UnknownCircuit);
    harness.bind(1, Side::B, b);
    assert_forwarded(&harness, &a.frame(bytes), [a, b], IN);
    // The circuit is put again as it is, removed, and added again.
    harness.table.set_lifetime(LONG);
    harness.change([1], []);
    assert_forwarded(&harness, &a.frame(bytes), [a, b], IN);
    assert_eq!(harness.stats(1).datagrams, [8, 1]);
    harness.change([], [1]);
    assert_passed(&harness, IN, &a.frame(bytes), Outcome::UnknownCircuit);
    harness.change([1], []);
    assert_passed(&harness, IN, &a.frame(bytes), Outcome::UnknownCircuit);
    harness.join(1, addresses);
    assert_forwarded(&harness, &a.frame(bytes), [a, b], IN);
    assert_eq!(harness.stats(1).datagrams, [1, 0]);
    // Its socket is removed.
    harness.table.renumber_sockets(&[None, Some(0)]);
    harness.publish();
    assert_passed(&harness, IN, &a.frame(bytes), Outcome::UnknownCircuit);
}

/// A limit is changed in its map entry, also from or to none: no circuit is published again.
#[test]
fn a_changed_limit_is_in_force_without_a_new_entry() {
    let Some(mut harness) = GatewayHarness::new(1, LONG, Some(1), None) else {
        return;
    };
    let addresses @ [a, b] = &v4();
    harness.join(1, addresses);
    let bytes = &payload(1, 10);
    let drops = |harness: &GatewayHarness| {
        let (action, ..) = harness.run(IN, &a.frame(bytes));
        action == Action::Drop
    };
    // A tenth of a datagram a second is the burst, and each may overdraw it once.
    assert_forwarded(&harness, &a.frame(bytes), [a, b], IN);
    assert!(drops(&harness), "one a second");
    // The debt of a second is one of a microsecond at a million times the rate.
    harness.tenant.datagrams.set_rate(clock(), 1_000_000);
    for _ in 0..100 {
        assert_forwarded(&harness, &a.frame(bytes), [a, b], IN);
    }
    harness.tenant.datagrams.set_rate(clock(), 0);
    for _ in 0..100 {
        assert_forwarded(&harness, &a.frame(bytes), [a, b], IN);
    }
    harness.tenant.datagrams.set_rate(clock(), 1);
    assert_forwarded(&harness, &a.frame(bytes), [a, b], IN);
    assert!(drops(&harness), "a limit again");
}

#[test]
fn repeated_roaming_needs_no_more_map_entries() {
    let Some(mut harness) = GatewayHarness::new(1, LONG, None, None) else {
        return;
    };
    let addresses @ [a, _] = &v4();
    harness.join(1, addresses);
    let bytes = &payload(1, 10);
    // At the highest permitted rate, for longer than freed map entries stay unused.
    let begun = Instant::now();
    let mut moves = 0u16;
    while begun.elapsed() < Duration::from_millis(2500) {
        let b = SideAddress::new(&format!("192.0.2.11:{}", 3000 + moves), "192.0.2.1");
        harness.bind(1, Side::B, &b);
        assert_forwarded(&harness, &a.frame(bytes), [a, &b], IN);
        moves += 1;
        sleep(Duration::from_millis(70));
    }
    assert_eq!(harness.stats(1).datagrams, [u64::from(moves), 0]);
}

#[test]
fn a_tenant_s_rate_limit_covers_program_and_user_space() {
    // 1000 a second, and 100 at once.
    let Some(mut harness) = GatewayHarness::new(2, LONG, Some(1000), None) else {
        return;
    };
    let addresses @ [a, b] = &v4();
    harness.join(1, addresses);
    harness.join(2, &v6s());
    let done = AtomicBool::new(false);
    let (carried, dropped) = (AtomicU64::new(0), AtomicU64::new(0));
    let begun = Instant::now();
    // The program on several processors, and the table at the same time.
    let by_table = std::thread::scope(|scope| {
        let _stop = StopOnDrop(&done);
        for sent in [
            a.frame(&payload(1, 10)),
            b.frame(&payload(1, 10)),
            v6s()[0].frame(&payload(2, 10)),
        ] {
            let mut runner = harness.runner();
            let (done, carried, dropped) = (&done, &carried, &dropped);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    match runner.run(IN, &sent).0 {
                        Action::Tx => carried.fetch_add(1, Ordering::Relaxed),
                        Action::Drop => dropped.fetch_add(1, Ordering::Relaxed),
                        // The bucket's compare-and-swap failed eight times.
                        Action::Pass => 0,
                        other => panic!("{other:?}"),
                    };
                }
            });
        }
        let mut by_table = 0u64;
        while begun.elapsed() < Duration::from_secs(1) {
            let action = harness.table.handle(clock(), &payload(1, 10), &a.path());
            match action {
                table::Action::Forward(_) => by_table += 1,
                table::Action::Drop(Reason::Rate) => {}
                other => panic!("{other:?}"),
            }
        }
        by_table
    });
    // The last of the threads may have ended a while later.
    let seconds = begun.elapsed().as_secs_f64();
    let by_program = carried.load(Ordering::Relaxed);
    let all = by_program + by_table;
    println!("{by_program} by the program, {by_table} by the table in {seconds:.2} s");
    let share = 1000.0 * seconds + 100.0;
    assert!((all as f64) <= share + 2.0, "{all} of {share}");
    assert!(all >= 1000, "{all} of {share}");
    let stats = [harness.stats(1), harness.stats(2)];
    let counted: u64 = stats.iter().flat_map(|s| s.datagrams).sum();
    assert_eq!(counted, by_program);
    let counted: u64 = stats.iter().map(|s| s.rate).sum();
    assert_eq!(counted, dropped.load(Ordering::Relaxed));
}

#[test]
fn bytes_are_limited_and_passed_datagrams_are_not_counted() {
    let Some(mut harness) = GatewayHarness::new(1, LONG, Some(1_000_000), Some(10_000)) else {
        return;
    };
    let addresses @ [a, _] = &v4();
    harness.join(1, addresses);
    // A tenth of a second: 1000 bytes. Datagrams that are not forwarded use none.
    let other = SideAddress::new("192.0.2.10:1009", "192.0.2.1");
    for _ in 0..1000 {
        assert_passed(
            &harness,
            IN,
            &other.frame(&payload(1, 500)),
            Outcome::WrongSource,
        );
    }
    let sent = a.frame(&payload(1, 492));
    let begun = Instant::now();
    let mut got = 0u64;
    while begun.elapsed() < Duration::from_millis(1500) {
        let (action, _, outcome) = harness.run(IN, &sent);
        match outcome {
            Outcome::Forwarded => got += 1,
            Outcome::OverRate => assert_eq!(action, Action::Drop),
            other => panic!("{other:?}"),
        }
    }
    let share = 20.0 * begun.elapsed().as_secs_f64() + 2.0;
    assert!(
        ((share - 2.0)..=(share + 1.0)).contains(&(got as f64)),
        "{got} of {share}"
    );
    assert_eq!(harness.stats(1).bytes, [got * 500, 0]);
    assert!(harness.stats(1).rate > 0);
}

/// Random changes to datagrams of circuits: the table would forward each datagram that the program
/// forwards, unchanged and to the same address.
#[test]
fn the_program_forwards_only_what_the_table_would_forward() {
    let count = series::length("CAUSEWAY_RANDOM_PACKETS", 200_000, 1_000_000);
    let Some(mut harness) = GatewayHarness::new(8, LONG, None, None) else {
        return;
    };
    let circuits = [
        (1, v4()),
        (2, v6s()),
        (3, v4_out()),
        (4, v6_out()),
        (5, v4_vlan()),
        (6, v6_vlan()),
    ];
    for (circuit, addresses) in &circuits {
        harness.join(*circuit, addresses);
    }
    harness.bind(7, Side::A, &v4()[0]);
    let seed = seed_from_env();
    println!("CAUSEWAY_SEED={seed}");
    let mut rng = Seeded::new(seed);
    let mut runner = harness.runner();
    let begun = Instant::now();
    let (mut forwarded, mut changed) = (0u64, 0u64);
    for n in 0..count {
        let (circuit, addresses) = rng.pick(&circuits);
        let address = addresses[rng.below(2)];
        let most = if rng.below(4) == 0 { 1450 } else { 60 };
        let length = 1 + rng.below(most);
        let circuit = if rng.below(16) == 0 {
            rng.below(9) as u64
        } else {
            *circuit
        };
        let mut bytes = payload(circuit.max(1), length);
        rng.fill(&mut bytes[8..]);
        let is_tagged = matches!(circuit, 5 | 6) != (rng.below(50) == 0);
        let tags: &[(u16, u16)] = if is_tagged { &[(0x8100, VID)] } else { &[] };
        let mut sent = address.tagged(tags, &bytes);
        let changes = rng.below(4);
        for _ in 0..changes {
            change(&mut rng, &mut sent);
        }
        if rng.below(2) == 0 {
            fix_checksum(&mut sent);
        }
        if sent.len() < 14 {
            continue;
        }
        let ifindex = *rng.pick(&[IN, IN, IN, IN, OUT, VLAN, STRAY]);
        let (action, out) = runner.run(ifindex, &sent);
        let fail = |what: &str| -> ! {
            panic!("packet {n} of seed {seed}: {what}: {action:?}\n in {sent:02x?}\nout {out:02x?}")
        };
        match action {
            Action::Pass => {
                if out != sent {
                    fail("changed");
                }
            }
            Action::Tx | Action::Redirect => {
                forwarded += 1;
                changed += u64::from(changes > 0);
                let before = read_lax(&sent).unwrap_or_else(|| fail("it was not a UDP datagram"));
                let after = read(out);
                let from = Path {
                    socket: before.source.is_ipv6().into(),
                    local: Some(before.destination.ip()),
                    remote: before.source,
                };
                if before.destination.port() != PORT || sent[..6] != gateway_mac(ifindex) {
                    fail("it was not sent to the gateway");
                }
                let to = match harness.table.handle(clock(), &before.payload, &from) {
                    table::Action::Forward(to) => to,
                    other => fail(&format!("the table decides {other:?}")),
                };
                let expected = Read {
                    source: SocketAddr::new(to.local.expect("ours"), PORT),
                    destination: to.remote,
                    hops: 64,
                    ..before
                };
                if after != expected || out[..6] != neighbour_mac(to.remote.ip()) {
                    fail(&format!("{after:?}, expected {expected:?}"));
                }
                let is_out = to.remote.ip().to_string().contains("198.51.100.20")
                    || to.remote.ip().to_string().contains("db8:2::20");
                let device = if is_out { OUT } else { IN };
                let there = if device == ifindex {
                    Action::Tx
                } else {
                    Action::Redirect
                };
                if action != there {
                    fail("through another interface");
                }
            }
            _ => fail("unexpected action"),
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{count} frames in {seconds:.1} s: {forwarded} carried, {changed} of them changed before"
    );
    assert!(forwarded > count / 10 && changed > count / 1000);
}

fn change(rng: &mut Seeded, sent: &mut Vec<u8>) {
    if sent.is_empty() {
        return;
    }
    let l3 = if sent.get(12..14) == Some(&[0x81, 0]) {
        18
    } else {
        14
    };
    match rng.below(10) {
        0 => {
            let at = rng.below(sent.len());
            sent[at] = rng.byte();
        }
        // A bit of the headers.
        1..=3 => {
            let at = rng.below(sent.len().min(80));
            sent[at] ^= 1 << rng.below(8);
        }
        4 => sent.truncate(rng.below(sent.len())),
        5 => sent.extend(std::iter::repeat_n(rng.byte(), rng.below(60))),
        // A length, off by a little.
        6 => {
            let at = l3 + *rng.pick(&[2, 4, 24, 44]);
            if let Some(byte) = sent.get_mut(at + 1) {
                *byte = byte.wrapping_add(*rng.pick(&[1, 255, 8, 248]));
            }
        }
        // Flags, fragment offset, TTL, type of service, checksum.
        7 => {
            let at = l3 + *rng.pick(&[1, 6, 7, 8, 26, 46]);
            if let Some(byte) = sent.get_mut(at) {
                *byte = rng.byte();
            }
        }
        // A byte at the end.
        _ => {
            let at = sent.len() - 1 - rng.below(sent.len().min(8));
            sent[at] = rng.byte();
        }
    }
}

/// Recomputes the checksum of an IPv4 header, so that other faults are reached.
fn fix_checksum(sent: &mut [u8]) {
    let l3 = if sent.get(12..14) == Some(&[0x81, 0]) {
        18
    } else {
        14
    };
    let Some(header) = sent.get_mut(l3..l3 + 20) else {
        return;
    };
    if header[0] == 0x45 {
        header[10..12].fill(0);
        let check = causeway_tests::packet::checksum(header);
        header[10..12].copy_from_slice(&check.to_be_bytes());
    }
}

/// As [`read`]; `None` if the frame is not a UDP datagram.
fn read_lax(bytes: &[u8]) -> Option<Read> {
    let packet = LaxSlicedPacket::from_ethernet(bytes).ok()?;
    if packet.stop_err.is_some() {
        return None;
    }
    match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) if !ip.header().options().is_empty() => return None,
        _ => {}
    }
    matches!(&packet.transport, Some(TransportSlice::Udp(_))).then(|| read(bytes))
}

/// Most instructions of the program after the verifier, and most that it may walk through in
/// checking it.
const XLATED_BUDGET: usize = 3_300;
const VERIFIED_BUDGET: u32 = 75_000;
/// Most memory of the maps for a thousand circuits, bytes, on a machine of up to 64 CPUs: 40 KiB
/// for each CPU.
const MEMORY_BUDGET: u64 = 6 << 20;

#[test]
fn the_program_and_its_maps_stay_within_their_budgets() {
    let Some(harness) = GatewayHarness::new(500, LONG, Some(1), None) else {
        return;
    };
    let info = harness.fast.with_program(|program| program.info());
    let info = info.expect("a program").expect("its info");
    let instructions = info.size_translated().expect("to root") as usize / 8;
    let verified = info.verified_instruction_count().expect("Linux 5.16");
    println!(
        "circuits: {instructions} instructions, {} bytes of machine code, {verified} verified",
        info.size_jitted()
    );
    assert!(instructions <= XLATED_BUDGET && verified <= VERIFIED_BUDGET);
    // The maps of this program, by the kernel's own account.
    let ids = info.map_ids().expect("to root").expect("Linux 4.15");
    let mut total = 0;
    let mut seen = Vec::new();
    println!("{:<18} {:>10} {:>12}", "map", "entries", "bytes");
    for map in aya::maps::loaded_maps().flatten() {
        if !ids.contains(&map.id()) {
            continue;
        }
        let bytes = map_memory(map.fd().expect("a descriptor").as_fd()).expect("procfs");
        let name = map.name_as_str().unwrap_or("?").to_owned();
        println!("{name:<18} {:>10} {bytes:>12}", map.max_entries());
        total += bytes;
        seen.push(name);
    }
    println!("{:<18} {:>10} {total:>12}", "all", "");
    seen.sort();
    let all = [
        "ADMISSION",
        "BUCKETS",
        "CIRCUITS",
        "COUNTERS",
        "IDS",
        "KNOWN",
        "PORTS",
        "SOURCES",
        "STATS",
    ];
    assert_eq!(seen, all, "each map is there, once, and no other");
    assert!(
        total <= MEMORY_BUDGET,
        "{total} bytes, over {MEMORY_BUDGET}"
    );
}
