//! Out of the tunnel: to the host, behind none, one or two tags.

use appliance_common::{counters::Counter, events::SlowReason, maps::neighbour_flags};
use causeway_tests::{
    harness::{Action, Harness, Program},
    packet::*,
    table::{Case, Out, run, slow},
    world::*,
};

#[test]
fn a_decapsulated_packet_is_framed_for_its_neighbour() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let mut cases = Vec::new();
    for (what, from, to, vni, net, mac, ours, tags) in [
        (
            "one tag",
            TENANT,
            PROVIDER,
            NET1,
            1,
            A_MAC,
            TRUNK_MAC,
            vec![tag(101)],
        ),
        (
            "the other tenant's tag",
            TENANT2,
            PROVIDER,
            NET2,
            1,
            G_MAC,
            TRUNK_MAC,
            vec![tag(201)],
        ),
        (
            "two tags, IPv6 underlay",
            TENANT6,
            PROVIDER6,
            NET3,
            3,
            A_MAC,
            TRUNK_MAC,
            vec![service_tag(200), tag(102)],
        ),
        (
            "no tag",
            TENANT,
            PROVIDER,
            NET4,
            4,
            A_MAC,
            ACCESS_MAC,
            vec![],
        ),
    ] {
        for (src, dst) in [
            (format!("10.{net}.0.11"), format!("10.{net}.0.10")),
            ("10.9.0.2".to_owned(), format!("10.{net}.0.10")),
            (format!("2001:db8:{net}::11"), format!("2001:db8:{net}::10")),
        ] {
            let (src, dst) = (ip(&src), ip(&dst));
            for (kind, l3) in [
                ("echo", echo(src, dst, 56)),
                ("full size", udp(src, dst, 9, 9, &[5; 1300])),
                ("tiny", ip_packet(src, dst, 99, &[])),
            ] {
                cases.push(
                    Case::new(
                        format!("{what}, {src}, {kind}"),
                        Program::Uplink,
                        UPLINK,
                        tunnelled(from, to, vni, &l3),
                    )
                    .gives(Action::Redirect, Out::Is(frame(mac, ours, &tags, &l3)))
                    .counts(Counter::Decapsulated),
                );
            }
        }
    }
    run(&mut h, cases);
    assert_eq!(h.stats(0).rx_packets, 9, "net1's packets out of the tunnel");
    let used = h
        .snapshot()
        .neighbours
        .iter()
        .all(|(_, n)| n.flags & neighbour_flags::USED != 0);
    assert!(used, "every neighbour was sent to\n{}", h.describe());
}

#[test]
fn the_tenant_side_sends_to_the_host_or_to_the_router() {
    let Some(mut h) = Harness::new(World::tenant()) else {
        return;
    };
    let mut cases = Vec::new();
    for (dst, mac) in [
        ("10.1.0.11", B_MAC),
        ("10.9.0.2", ROUTER_MAC),
        ("8.8.8.8", ROUTER_MAC),
    ] {
        let l3 = echo(ip("10.1.0.10"), ip(dst), 56);
        cases.push(
            Case::new(
                format!("to {dst}"),
                Program::Combined,
                UPLINK,
                tunnelled(PROVIDER, TENANT, NET1, &l3),
            )
            .gives(Action::Tx, Out::Is(frame(mac, UPLINK_MAC, &[], &l3)))
            .counts(Counter::Decapsulated),
        );
    }
    for (dst, mac) in [("2001:db8:1::11", B_MAC), ("2001:db8:9::2", ROUTER_MAC)] {
        let l3 = echo(ip("2001:db8:1::10"), ip(dst), 56);
        cases.push(
            Case::new(
                format!("to {dst}"),
                Program::Combined,
                UPLINK,
                tunnelled(PROVIDER, TENANT, NET1, &l3),
            )
            .gives(Action::Tx, Out::Is(frame(mac, UPLINK_MAC, &[], &l3)))
            .counts(Counter::Decapsulated),
        );
    }
    let l3 = echo(ip("10.2.0.10"), ip("10.2.0.11"), 56);
    cases.push(
        Case::new(
            "to the second network's port",
            Program::Combined,
            UPLINK,
            tunnelled(PROVIDER, TENANT, NET2T, &l3),
        )
        .gives(
            Action::Redirect,
            Out::Is(frame(B_MAC, ACCESS_MAC, &[], &l3)),
        )
        .counts(Counter::Decapsulated),
    );
    run(&mut h, cases);
}

#[test]
fn a_packet_for_an_unresolved_host_goes_to_the_slow_path_with_its_next_hop() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let mut cases = Vec::new();
    for (src, dst) in [
        ("10.1.0.11", "10.1.0.12"),
        ("2001:db8:1::11", "2001:db8:1::12"),
    ] {
        let l3 = echo(ip(src), ip(dst), 56);
        cases.push(
            Case::new(
                format!("to {dst}"),
                Program::Uplink,
                UPLINK,
                tunnelled(TENANT, PROVIDER, NET1, &l3),
            )
            .dropped(Counter::SlowUnresolved)
            .records(slow(SlowReason::Unresolved, NET1, dst, l3)),
        );
    }
    run(&mut h, cases);

    let mut world = World::tenant();
    world.neighbours.clear();
    h.fill(world).expect("filled");
    let mut cases = Vec::new();
    for (dst, hop) in [
        ("10.1.0.11", "10.1.0.11"),
        ("10.9.0.2", "10.1.0.1"),
        ("2001:db8:9::2", "2001:db8:1::1"),
    ] {
        let src = if ip(dst).is_ipv4() {
            "10.1.0.10"
        } else {
            "2001:db8:1::10"
        };
        let l3 = echo(ip(src), ip(dst), 56);
        cases.push(
            Case::new(
                format!("to {dst} by {hop}"),
                Program::Combined,
                UPLINK,
                tunnelled(PROVIDER, TENANT, NET1, &l3),
            )
            .dropped(Counter::SlowUnresolved)
            .records(slow(SlowReason::Unresolved, NET1, hop, l3)),
        );
    }
    run(&mut h, cases);
}

#[test]
fn packets_between_tunnels_and_from_local_addresses_are_dropped() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let case = |what: &str, src: &str, dst: &str, reason: Counter| {
        Case::new(
            what,
            Program::Uplink,
            UPLINK,
            tunnelled(TENANT, PROVIDER, NET1, &echo(ip(src), ip(dst), 56)),
        )
        .dropped(reason)
    };
    run(
        &mut h,
        vec![
            case(
                "not a replica",
                "10.1.0.11",
                "10.1.0.20",
                Counter::DropSplitHorizon,
            ),
            case(
                "a network of no tenant",
                "10.1.0.11",
                "192.0.2.1",
                Counter::DropSplitHorizon,
            ),
            case(
                "from a replica",
                "10.1.0.10",
                "10.1.0.12",
                Counter::DropInnerSource,
            ),
            case(
                "from itself",
                "10.1.0.10",
                "10.1.0.10",
                Counter::DropInnerSource,
            ),
            case(
                "from loopback",
                "127.0.0.1",
                "10.1.0.10",
                Counter::DropInnerSource,
            ),
            case(
                "from multicast",
                "224.0.0.1",
                "10.1.0.10",
                Counter::DropInnerSource,
            ),
            case(
                "to multicast",
                "10.1.0.11",
                "224.0.0.1",
                Counter::DropNotCarried,
            ),
            case(
                "to broadcast",
                "10.1.0.11",
                "255.255.255.255",
                Counter::DropNotCarried,
            ),
            case(
                "v6 not a replica",
                "2001:db8:1::11",
                "2001:db8:1::20",
                Counter::DropSplitHorizon,
            ),
            case(
                "v6 from a replica",
                "2001:db8:1::10",
                "2001:db8:1::12",
                Counter::DropInnerSource,
            ),
            case(
                "v6 from nowhere",
                "::",
                "2001:db8:1::10",
                Counter::DropInnerSource,
            ),
            case(
                "v6 to multicast",
                "2001:db8:1::11",
                "ff02::1",
                Counter::DropNotCarried,
            ),
            case(
                "v6 link-local source",
                "fe80::1",
                "2001:db8:1::10",
                Counter::DropLinkLocal,
            ),
            case(
                "v6 link-local target",
                "2001:db8:1::11",
                "fe80::1",
                Counter::DropLinkLocal,
            ),
        ],
    );
}

#[test]
fn other_packets_than_tunnel_datagrams_pass_to_the_kernel() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let (peer, me) = (ip(TENANT), ip(PROVIDER));
    let up = |l3: &[u8]| frame(UPLINK_MAC, NEXT_HOP_MAC, &[], l3);
    let pass =
        |what: &str, packet: Vec<u8>| Case::new(what, Program::Uplink, UPLINK, packet).passed();
    run(
        &mut h,
        vec![
            pass(
                "SSH",
                up(&tcp(
                    peer,
                    me,
                    40_000,
                    22,
                    tcp_flags::SYN,
                    &syn_options(1460),
                    &[],
                )),
            ),
            pass("ping", up(&echo(peer, me, 56))),
            pass(
                "UDP to another port",
                up(&udp(peer, me, 4789, 4790, &[8, 0, 0, 0, 0, 3, 0xe9, 0])),
            ),
            pass(
                "TCP to the tunnel's port",
                up(&tcp(peer, me, 1, 4789, tcp_flags::SYN, &[], &[])),
            ),
            pass(
                "VXLAN to another address",
                up(&udp(peer, ip("203.0.113.6"), 50_000, 4789, &[8; 64])),
            ),
            pass(
                "ARP",
                eth(
                    [0xff; 6],
                    NEXT_HOP_MAC,
                    &[],
                    0x0806,
                    &arp(
                        1,
                        NEXT_HOP_MAC,
                        [203, 0, 113, 1].into(),
                        [0; 6],
                        [203, 0, 113, 5].into(),
                    ),
                ),
            ),
            pass(
                "LLDP",
                eth(
                    [1, 0x80, 0xc2, 0, 0, 0x0e],
                    NEXT_HOP_MAC,
                    &[],
                    0x88cc,
                    &[0; 46],
                ),
            ),
            pass(
                "a tagged frame",
                frame(
                    UPLINK_MAC,
                    NEXT_HOP_MAC,
                    &[tag(5)],
                    &udp(peer, me, 1, 4789, &[8; 64]),
                ),
            ),
            pass("IPv6", up(&echo(ip(TENANT6), ip(PROVIDER6), 56))),
        ],
    );
}

#[test]
fn a_packet_over_the_lans_mtu_is_dropped_and_counted() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let mut cases = Vec::new();
    for (src, dst, header) in [
        ("10.1.0.11", "10.1.0.10", 28),
        ("2001:db8:1::11", "2001:db8:1::10", 48),
    ] {
        let of = |len: usize| {
            let payload = vec![5; len - header];
            let l3 = udp(ip(src), ip(dst), 9, 9, &payload);
            (tunnelled(TENANT, PROVIDER, NET1, &l3), l3)
        };
        let (fits, l3) = of(usize::from(LAN_MTU));
        cases.push(
            Case::new(format!("{src}, fits"), Program::Uplink, UPLINK, fits)
                .gives(
                    Action::Redirect,
                    Out::Is(frame(A_MAC, TRUNK_MAC, &[tag(101)], &l3)),
                )
                .counts(Counter::Decapsulated),
        );
        let (over, _) = of(usize::from(LAN_MTU) + 1);
        cases.push(
            Case::new(format!("{src}, over"), Program::Uplink, UPLINK, over)
                .dropped(Counter::DropTooLarge),
        );
    }
    run(&mut h, cases);
}
