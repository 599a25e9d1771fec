//! Into the tunnel: every byte of the outer headers, and entropy of the source port.

use std::collections::BTreeSet;

use appliance_common::counters::Counter;
use causeway_tests::{
    harness::{Action, Harness, Program},
    packet::*,
    table::{Case, run, tunnelled},
    world::*,
};

#[test]
fn both_families_go_over_both_underlays_byte_for_byte() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let mut cases = Vec::new();
    for (what, tags, from, to, vni, src, dst) in [
        (
            "v4 in v4",
            vec![tag(101)],
            PROVIDER,
            TENANT,
            NET1,
            "10.1.0.10",
            "10.1.0.11",
        ),
        (
            "v6 in v4",
            vec![tag(101)],
            PROVIDER,
            TENANT,
            NET1,
            "2001:db8:1::10",
            "2001:db8:1::11",
        ),
        (
            "v4 in v6",
            vec![service_tag(200), tag(102)],
            PROVIDER6,
            TENANT6,
            NET3,
            "10.3.0.10",
            "10.3.0.11",
        ),
        (
            "v6 in v6",
            vec![service_tag(200), tag(102)],
            PROVIDER6,
            TENANT6,
            NET3,
            "2001:db8:3::10",
            "2001:db8:3::11",
        ),
        (
            "v4 beyond the prefix, to the router",
            vec![tag(101)],
            PROVIDER,
            TENANT,
            NET1,
            "10.1.0.10",
            "192.0.2.9",
        ),
        (
            "v6 beyond the prefix",
            vec![tag(101)],
            PROVIDER,
            TENANT,
            NET1,
            "2001:db8:1::10",
            "2001:db8:9::2",
        ),
    ] {
        let (src, dst) = (ip(src), ip(dst));
        for (kind, l3) in [
            ("echo", echo(src, dst, 56)),
            ("udp", udp(src, dst, 40_000, 53, b"question")),
            ("empty udp", udp(src, dst, 40_000, 53, b"")),
            (
                "tcp data",
                tcp(src, dst, 40_000, 80, tcp_flags::ACK, &[], &[7; 1000]),
            ),
            ("odd length", udp(src, dst, 40_000, 53, &[1; 333])),
            ("another protocol", ip_packet(src, dst, 132, &[3; 64])),
        ] {
            cases.push(
                Case::new(
                    format!("{what}, {kind}"),
                    Program::Access,
                    TRUNK,
                    frame(TRUNK_MAC, A_MAC, &tags, &l3),
                )
                .gives(Action::Redirect, tunnelled(from, to, vni, l3))
                .counts(Counter::Encapsulated),
            );
        }
    }
    run(&mut h, cases);
    let stats = h.stats(0);
    assert_eq!(stats.tx_packets, 24, "net1's packets into the tunnel");
}

#[test]
fn the_largest_packet_that_fits_is_encapsulated_without_padding() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let (a, b) = (ip("10.1.0.10"), ip("10.1.0.11"));
    let (a6, b6) = (ip("2001:db8:1::10"), ip("2001:db8:1::11"));
    let full = udp(a, b, 1, 2, &[0x5a; 1450 - 28]);
    let full6 = udp(a6, b6, 1, 2, &[0x5a; 1450 - 48]);
    let small = udp(a, b, 1, 2, b"x");
    let small6 = udp(a6, b6, 1, 2, b"x");
    let padded = |l3: &[u8], pad: usize| [replica(l3), vec![0xee; pad]].concat();
    let case = |what: &str, packet: Vec<u8>, l3: Vec<u8>| {
        Case::new(what, Program::Access, TRUNK, packet)
            .gives(Action::Redirect, tunnelled(PROVIDER, TENANT, NET1, l3))
            .counts(Counter::Encapsulated)
    };
    run(
        &mut h,
        vec![
            case("1450 bytes of IPv4", replica(&full), full.clone()),
            case("1450 bytes of IPv6", replica(&full6), full6.clone()),
            case("padded to 64 bytes", padded(&small, 17), small.clone()),
            case("padded by one byte", padded(&small, 1), small.clone()),
            case("IPv6 with a trailer", padded(&small6, 400), small6.clone()),
        ],
    );
}

#[test]
fn the_tenant_side_encapsulates_for_neighbours_and_for_hosts_behind_the_router() {
    let Some(mut h) = Harness::new(World::tenant()) else {
        return;
    };
    let mut cases = Vec::new();
    for (what, src, dst) in [
        ("a neighbour", "10.1.0.11", "10.1.0.10"),
        ("a host behind the router", "10.9.0.2", "10.1.0.10"),
        ("a neighbour, IPv6", "2001:db8:1::11", "2001:db8:1::10"),
        (
            "a host behind the router, IPv6",
            "2001:db8:9::2",
            "2001:db8:1::10",
        ),
    ] {
        let l3 = echo(ip(src), ip(dst), 56);
        cases.push(
            Case::new(what, Program::Combined, UPLINK, production(&l3))
                .gives(Action::Tx, tunnelled(TENANT, PROVIDER, NET1, l3))
                .counts(Counter::Encapsulated),
        );
    }
    let l3 = echo(ip("10.2.0.11"), ip("10.2.0.10"), 56);
    cases.push(
        Case::new(
            "the second network",
            Program::Access,
            ACCESS,
            frame(ACCESS_MAC, B_MAC, &[], &l3),
        )
        .gives(Action::Redirect, tunnelled(TENANT, PROVIDER, NET2T, l3))
        .counts(Counter::Encapsulated),
    );
    run(&mut h, cases);
}

#[test]
fn source_ports_are_stable_per_flow_and_spread_over_flows() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    for (src, dst) in [
        ("10.1.0.10", "10.1.0.11"),
        ("2001:db8:1::10", "2001:db8:1::11"),
    ] {
        let mut port = |sport: u16, len: usize| {
            let l3 = udp(ip(src), ip(dst), sport, 443, &vec![1; len]);
            let (action, out) = h
                .run(Program::Access, TRUNK, &replica(&l3))
                .expect("the kernel runs it");
            assert_eq!(action, Action::Redirect);
            be16(out, 34).expect("a UDP header")
        };
        let mut ports = BTreeSet::new();
        for sport in 0..2000u16 {
            let first = port(10_000 + sport, 20);
            assert!(first >= 49152, "port {first} is not dynamic");
            assert_eq!(
                first,
                port(10_000 + sport, 900),
                "one flow, two source ports"
            );
            ports.insert(first);
        }
        // 2000 balls in 16384 boxes leave 1884 occupied on average.
        assert!(
            ports.len() > 1700,
            "{src}: {} source ports for 2000 flows",
            ports.len()
        );
    }
}

#[test]
fn fragments_of_one_datagram_keep_one_source_port() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let segment = udp_segment(ip("10.1.0.10"), ip("10.1.0.11"), 7777, 8888, &[9; 2000]);
    let mut ports = BTreeSet::new();
    for (offset, range) in [(0u16, 0..1400), (175, 1400..2008)] {
        let mut header = V4::new([10, 1, 0, 10].into(), [10, 1, 0, 11].into(), 17);
        header.frag = offset | if offset == 0 { 0x2000 } else { 0 };
        let l3 = header.build(&segment[range]);
        let (action, out) = h
            .run(Program::Access, TRUNK, &replica(&l3))
            .expect("the kernel runs it");
        assert_eq!(action, Action::Redirect);
        assert_eq!(&out[64..], &l3[..], "a fragment is carried as it is");
        ports.insert(be16(out, 34));
    }
    assert_eq!(ports.len(), 1, "fragments took two paths: {ports:?}");
}

#[test]
fn without_a_next_hop_the_packet_is_dropped_and_counted() {
    let mut world = World::provider();
    world.peers[0].flags = 0;
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    run(
        &mut h,
        vec![
            Case::new(
                "unresolved peer",
                Program::Access,
                TRUNK,
                replica(&echo(ip("10.1.0.10"), ip("10.1.0.11"), 56)),
            )
            .dropped(Counter::DropNoPeer),
        ],
    );
    let mut world = World::provider();
    world.networks[0].peer = 9_999_999;
    h.fill(world).expect("filled");
    run(
        &mut h,
        vec![
            Case::new(
                "a peer slot that does not exist",
                Program::Access,
                TRUNK,
                replica(&echo(ip("10.1.0.10"), ip("10.1.0.11"), 56)),
            )
            .dropped(Counter::DropInconsistent),
        ],
    );
}
