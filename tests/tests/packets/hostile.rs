//! Hostile and odd frames, each with a named outcome.

use appliance_common::counters::Counter;
use causeway_tests::{
    dump,
    harness::{Action, Harness, Program, counter_name, describe},
    oracle,
    packet::*,
    table::{Case, run},
    world::*,
};

const A: &str = "10.1.0.10";
const B: &str = "10.1.0.11";
const A6: &str = "2001:db8:1::10";
const B6: &str = "2001:db8:1::11";

/// Valid packets that the programs answer or carry: name, program, interface, frame.
fn valid(provider: bool) -> Vec<(&'static str, Program, u32, Vec<u8>)> {
    let v4 = |t: &str| match ip(t) {
        std::net::IpAddr::V4(a) => a,
        std::net::IpAddr::V6(_) => unreachable!("an IPv4 fixture"),
    };
    let v6 = |t: &str| match ip(t) {
        std::net::IpAddr::V6(a) => a,
        std::net::IpAddr::V4(_) => unreachable!("an IPv6 fixture"),
    };
    let (program, port, ours, mac, tags, me, you, me6, you6) = if provider {
        (
            Program::Access,
            TRUNK,
            TRUNK_MAC,
            A_MAC,
            vec![tag(101)],
            A,
            B,
            A6,
            B6,
        )
    } else {
        (
            Program::Combined,
            UPLINK,
            UPLINK_MAC,
            B_MAC,
            vec![],
            B,
            A,
            B6,
            A6,
        )
    };
    let on = |l3: &[u8]| frame(ours, mac, &tags, l3);
    let (up, from, to) = if provider {
        (Program::Uplink, TENANT, PROVIDER)
    } else {
        (Program::Combined, PROVIDER, TENANT)
    };
    let group = solicited_node(v6(you6));
    let mut all = vec![
        (
            "ARP request",
            program,
            port,
            eth(
                [0xff; 6],
                mac,
                &tags,
                0x0806,
                &arp(1, mac, v4(me), [0; 6], v4(you)),
            ),
        ),
        (
            "solicitation",
            program,
            port,
            frame(
                multicast_mac(group),
                mac,
                &tags,
                &ns(v6(me6), group, v6(you6), Some(mac)),
            ),
        ),
        ("echo", program, port, on(&echo(ip(me), ip(you), 56))),
        (
            "SYN",
            program,
            port,
            on(&tcp(
                ip(me),
                ip(you),
                1,
                2,
                tcp_flags::SYN,
                &syn_options(1460),
                &[],
            )),
        ),
        (
            "SYN over IPv6",
            program,
            port,
            on(&tcp(
                ip(me6),
                ip(you6),
                1,
                2,
                tcp_flags::SYN,
                &syn_options(1460),
                &[],
            )),
        ),
        (
            "too big, DF",
            program,
            port,
            on(&udp(ip(me), ip(you), 1, 2, &[1; 1472])),
        ),
        (
            "too big, IPv6",
            program,
            port,
            on(&udp(ip(me6), ip(you6), 1, 2, &[1; 1452])),
        ),
        (
            "datagram with echo",
            up,
            UPLINK,
            tunnelled(from, to, NET1, &echo(ip(you), ip(me), 56)),
        ),
        (
            "datagram with SYN",
            up,
            UPLINK,
            tunnelled(
                from,
                to,
                NET1,
                &tcp(
                    ip(you),
                    ip(me),
                    1,
                    2,
                    tcp_flags::SYN,
                    &syn_options(1460),
                    &[],
                ),
            ),
        ),
        (
            "datagram with IPv6",
            up,
            UPLINK,
            tunnelled(from, to, NET1, &udp(ip(you6), ip(me6), 1, 2, &[1; 100])),
        ),
    ];
    if provider {
        let tags = [service_tag(200), tag(102)];
        all.push((
            "QinQ",
            Program::Access,
            TRUNK,
            frame(
                TRUNK_MAC,
                A_MAC,
                &tags,
                &echo(ip("10.3.0.10"), ip("10.3.0.11"), 8),
            ),
        ));
        all.push((
            "datagram over IPv6",
            Program::Uplink,
            UPLINK,
            tunnelled(
                TENANT6,
                PROVIDER6,
                NET3,
                &echo(ip("10.3.0.11"), ip("10.3.0.10"), 8),
            ),
        ));
    }
    all
}

/// The same with encrypted tunnels: packets that go to workers, and handshakes.
fn valid_encrypted(provider: bool) -> Vec<(&'static str, Program, u32, Vec<u8>)> {
    let mut all = valid(provider);
    all.retain(|(what, ..)| !what.starts_with("datagram"));
    let (program, ends) = if provider {
        (
            Program::Uplink,
            &[(TENANT, PROVIDER), (TENANT6, PROVIDER6)][..],
        )
    } else {
        (Program::Combined, &[(PROVIDER, TENANT)][..])
    };
    for (from, to) in ends {
        for (what, message) in [
            ("data", data(SESSIONS[0], 64)),
            ("initiation", message(1)),
            ("response", message(2)),
            ("cookie reply", message(3)),
        ] {
            all.push((what, program, UPLINK, datagram(from, to, &message)));
        }
    }
    all
}

/// Every valid packet, cut at every length the kernel accepts: dropped as malformed, or passed
/// where the kernel shares the port or the port of the datagram is cut off; never sent, to a worker
/// neither.
fn truncations(h: &mut Harness, packets: Vec<(&'static str, Program, u32, Vec<u8>)>) {
    let mut runs = 0;
    for (what, program, ifindex, packet) in packets {
        let (action, out) = h
            .run(program, ifindex, &packet)
            .map(|(a, o)| (a, o.to_vec()))
            .unwrap_or_else(|e| panic!("{what}: {}", describe(&e)));
        let handshake = ["initiation", "response", "cookie reply"].contains(&what);
        assert!(
            action.sends() || (handshake && action == Action::Pass),
            "{what} whole: {action:?}\n{}",
            h.describe_run(program, ifindex, &packet)
        );
        if let Err(why) = oracle::check(&h.world, ifindex, &packet, action, &out) {
            panic!(
                "{what} whole: {why}\n{}",
                h.describe_run(program, ifindex, &packet)
            );
        }
        for len in 14..packet.len() {
            let cut = &packet[..len];
            let before = h.counters();
            let (action, out) = h
                .run(program, ifindex, cut)
                .map(|(a, o)| (a, o.to_vec()))
                .unwrap_or_else(|e| panic!("{what} cut to {len}: {}", describe(&e)));
            let after = h.counters();
            let moved: Vec<u32> = after
                .iter()
                .filter(|(k, v)| before.get(k) != Some(v))
                .map(|(k, _)| *k)
                .collect();
            let expected = match action {
                Action::Drop => Counter::DropMalformed,
                Action::Pass => Counter::Passed,
                _ => panic!(
                    "{what} cut to {len} bytes is sent: {action:?}\nout:\n{}{}",
                    dump::hex(&out),
                    h.describe_run(program, ifindex, cut)
                ),
            };
            let udp_at = if cut.get(12..14) == Some(&[0x86, 0xdd]) {
                54
            } else {
                34
            };
            let may_pass = match program {
                Program::Access => false,
                Program::Uplink => len < udp_at + 8,
                Program::Combined => true,
                // Comes behind one of the others.
                Program::Full | Program::NatOut | Program::NatIn => false,
            };
            assert!(
                (action == Action::Drop || may_pass) && moved == [expected as u32],
                "{what} cut to {len} bytes: {action:?}, counted {:?}\n{}",
                moved.iter().map(|n| counter_name(*n)).collect::<Vec<_>>(),
                h.describe_run(program, ifindex, cut)
            );
            assert!(
                action == Action::Drop || out == cut,
                "{what} cut to {len} bytes is passed, but changed"
            );
            runs += 1;
        }
    }
    println!("{runs} truncations");
}

#[test]
fn every_truncation_is_malformed_at_the_provider() {
    if let Some(mut h) = Harness::new(World::provider()) {
        truncations(&mut h, valid(true));
        h.bind_sockets().expect("sockets for the workers");
        h.fill(World::provider().encrypted()).expect("filled");
        truncations(&mut h, valid_encrypted(true));
    }
}

#[test]
fn every_truncation_is_malformed_at_the_tenant() {
    if let Some(mut h) = Harness::new(World::tenant()) {
        truncations(&mut h, valid(false));
        h.bind_sockets().expect("sockets for the workers");
        h.fill(World::tenant().encrypted()).expect("filled");
        truncations(&mut h, valid_encrypted(false));
    }
}

#[test]
fn lengths_that_contradict_each_other_are_malformed() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let v4 = udp(ip(A), ip(B), 1, 2, &[1; 64]);
    let v6 = udp(ip(A6), ip(B6), 1, 2, &[1; 64]);
    let edit = |l3: &[u8], edits: &[(usize, u8)]| {
        let mut l3 = l3.to_vec();
        for (at, value) in edits {
            l3[*at] = *value;
        }
        l3
    };
    let case = |what: &str, l3: Vec<u8>| {
        // The Ethernet type stays that of the packet before its first byte was changed.
        let kind = if l3.len() == v6.len() && l3[8..24] == v6[8..24] {
            0x86dd
        } else {
            0x0800
        };
        Case::new(
            what,
            Program::Access,
            TRUNK,
            eth(TRUNK_MAC, A_MAC, &[tag(101)], kind, &l3),
        )
        .dropped(Counter::DropMalformed)
    };
    let inner = |what: &str, l3: Vec<u8>, kind: u16| {
        let mac = [2, 0x43, 0x57, 0, 3, 0xe9];
        let datagram = vxlan(8, NET1, &eth(mac, mac, &[], kind, &l3));
        let outer = udp_no_checksum(ip(TENANT), ip(PROVIDER), 50_000, PORT, &datagram);
        Case::new(
            format!("inner: {what}"),
            Program::Uplink,
            UPLINK,
            frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &outer),
        )
        .dropped(Counter::DropMalformed)
    };
    let back = udp(ip(B), ip(A), 1, 2, &[1; 64]);
    let back6 = udp(ip(B6), ip(A6), 1, 2, &[1; 64]);
    run(
        &mut h,
        vec![
            case("version 5", edit(&v4, &[(0, 0x55)])),
            case("version 6 under the type of IPv4", edit(&v4, &[(0, 0x65)])),
            case("header length 0", edit(&v4, &[(0, 0x40)])),
            case("header length 4 words", edit(&v4, &[(0, 0x44)])),
            case("total length 0", edit(&v4, &[(2, 0), (3, 0)])),
            case(
                "total length below the header",
                edit(&v4, &[(2, 0), (3, 19)]),
            ),
            case(
                "total length below the header with options",
                edit(&v4, &[(0, 0x4f), (2, 0), (3, 59)]),
            ),
            case(
                "total length one too long",
                edit(&v4, &[(3, v4.len() as u8 + 1)]),
            ),
            case("total length 65535", edit(&v4, &[(2, 0xff), (3, 0xff)])),
            case("IPv6 with version 4", edit(&v6, &[(0, 0x40)])),
            case("payload length one too long", edit(&v6, &[(5, 73)])),
            case("payload length 65535", edit(&v6, &[(4, 0xff), (5, 0xff)])),
            inner("version 5", edit(&back, &[(0, 0x55)]), 0x0800),
            inner("header length 4 words", edit(&back, &[(0, 0x44)]), 0x0800),
            inner(
                "total length below the header",
                edit(&back, &[(3, 19)]),
                0x0800,
            ),
            inner(
                "total length one too long",
                edit(&back, &[(3, back.len() as u8 + 1)]),
                0x0800,
            ),
            inner(
                "payload length one too long",
                edit(&back6, &[(5, 73)]),
                0x86dd,
            ),
            inner("nothing", vec![], 0x0800),
            inner("half a header", back[..12].to_vec(), 0x0800),
            inner("half an IPv6 header", back6[..30].to_vec(), 0x86dd),
        ],
    );
}

#[test]
fn looped_traffic_of_our_own_is_dropped() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let l3 = echo(ip(A), ip(B), 8);
    run(
        &mut h,
        vec![
            Case::new(
                "our MAC as source",
                Program::Access,
                TRUNK,
                frame(TRUNK_MAC, TRUNK_MAC, &[tag(101)], &l3),
            )
            .dropped(Counter::DropLoop),
            Case::new(
                "our MAC as source, broadcast",
                Program::Access,
                TRUNK,
                frame([0xff; 6], TRUNK_MAC, &[tag(101)], &l3),
            )
            .dropped(Counter::DropLoop),
            Case::new(
                "our tunnel address as source",
                Program::Uplink,
                UPLINK,
                tunnelled(PROVIDER, PROVIDER, NET1, &echo(ip(B), ip(A), 8)),
            )
            .dropped(Counter::DropLoop),
            Case::new(
                "our tunnel address as source, IPv6",
                Program::Uplink,
                UPLINK,
                tunnelled(
                    PROVIDER6,
                    PROVIDER6,
                    NET3,
                    &echo(ip("10.3.0.11"), ip("10.3.0.10"), 8),
                ),
            )
            .dropped(Counter::DropLoop),
        ],
    );
    h.fill(World::tenant()).expect("filled");
    run(
        &mut h,
        vec![
            Case::new(
                "shared port",
                Program::Combined,
                UPLINK,
                frame(UPLINK_MAC, UPLINK_MAC, &[], &echo(ip(B), ip(A), 8)),
            )
            .dropped(Counter::DropLoop),
        ],
    );
}

#[test]
fn datagrams_of_unknown_peers_and_unknown_networks_are_counted_apart() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let good = echo(ip(B), ip(A), 8);
    let case = |what: &str, from: &str, to: &str, vni: u32, reason: Counter| {
        Case::new(
            what,
            Program::Uplink,
            UPLINK,
            tunnelled(from, to, vni, &good),
        )
        .dropped(reason)
    };
    let raw = |what: &str, flags: u8, inner: &[u8], reason: Counter| {
        let outer = udp_no_checksum(
            ip(TENANT),
            ip(PROVIDER),
            50_000,
            PORT,
            &vxlan(flags, NET1, inner),
        );
        Case::new(
            what,
            Program::Uplink,
            UPLINK,
            frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &outer),
        )
        .dropped(reason)
    };
    let mac = [2, 0x43, 0x57, 0, 3, 0xe9];
    run(
        &mut h,
        vec![
            case(
                "unknown VNI",
                TENANT,
                PROVIDER,
                4242,
                Counter::DropUnknownVni,
            ),
            case("VNI 0", TENANT, PROVIDER, 0, Counter::DropUnknownVni),
            case(
                "largest VNI",
                TENANT,
                PROVIDER,
                0xff_ffff,
                Counter::DropUnknownVni,
            ),
            case(
                "an unknown sender",
                "192.0.2.66",
                PROVIDER,
                NET1,
                Counter::DropUnknownPeer,
            ),
            case(
                "the other tenant's peer",
                TENANT2,
                PROVIDER,
                NET1,
                Counter::DropUnknownPeer,
            ),
            case(
                "the first tenant's peer in the other's network",
                TENANT,
                PROVIDER,
                NET2,
                Counter::DropUnknownPeer,
            ),
            case(
                "an unknown IPv6 sender",
                "2001:db8:bad::1",
                PROVIDER6,
                NET3,
                Counter::DropUnknownPeer,
            ),
            case(
                "a v4 peer's network over v6",
                TENANT6,
                PROVIDER6,
                NET1,
                Counter::DropUnknownPeer,
            ),
            raw(
                "no I flag",
                0,
                &frame(mac, mac, &[], &good),
                Counter::DropBadVxlan,
            ),
            raw(
                "all flags but I",
                0xf7,
                &frame(mac, mac, &[], &good),
                Counter::DropBadVxlan,
            ),
            raw(
                "inner ARP",
                8,
                &eth([0xff; 6], mac, &[], 0x0806, &[0; 28]),
                Counter::DropNotCarried,
            ),
            raw(
                "inner tag",
                8,
                &frame(mac, mac, &[tag(101)], &good),
                Counter::DropNotCarried,
            ),
            raw(
                "inner frame of 13 bytes",
                8,
                &[0; 13],
                Counter::DropMalformed,
            ),
            raw("no inner frame", 8, &[], Counter::DropMalformed),
        ],
    );
}

#[test]
fn fragments_of_tunnel_datagrams_are_not_reassembled() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let whole = tunnelled(TENANT, PROVIDER, NET1, &echo(ip(B), ip(A), 400));
    let with = |frag: u16| {
        let mut f = whole.clone();
        f[20..22].copy_from_slice(&frag.to_be_bytes());
        f[24..26].fill(0);
        let check = checksum(&f[14..34]);
        f[24..26].copy_from_slice(&check.to_be_bytes());
        f
    };
    // A fragment header in front of UDP.
    let mut inner = vec![17, 0, 0, 1, 0, 0, 0, 9];
    inner.extend_from_slice(
        &tunnelled(
            TENANT6,
            PROVIDER6,
            NET3,
            &echo(ip("10.3.0.11"), ip("10.3.0.10"), 400),
        )[54..],
    );
    let v6 = frame(
        UPLINK_MAC,
        NEXT_HOP_MAC,
        &[],
        &ip_packet(ip(TENANT6), ip(PROVIDER6), 44, &inner),
    );
    run(
        &mut h,
        vec![
            Case::new("the first", Program::Uplink, UPLINK, with(0x2000))
                .dropped(Counter::DropOuterFragment),
            Case::new("the first, with DF", Program::Uplink, UPLINK, with(0x6000))
                .dropped(Counter::DropOuterFragment),
            Case::new(
                "a later one has no ports: the kernel's",
                Program::Uplink,
                UPLINK,
                with(0x2000 | 9),
            )
            .passed(),
            Case::new(
                "the last one: the kernel's",
                Program::Uplink,
                UPLINK,
                with(9),
            )
            .passed(),
            Case::new(
                "IPv6: behind an extension header, the kernel's",
                Program::Uplink,
                UPLINK,
                v6,
            )
            .passed(),
        ],
    );
}

#[test]
fn outer_lengths_that_contradict_each_other_are_malformed() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let whole = tunnelled(TENANT, PROVIDER, NET1, &echo(ip(B), ip(A), 64));
    let whole6 = tunnelled(
        TENANT6,
        PROVIDER6,
        NET3,
        &echo(ip("10.3.0.11"), ip("10.3.0.10"), 64),
    );
    let total = be16(&whole, 16).expect("IPv4");
    let payload = be16(&whole6, 18).expect("IPv6");
    let set = |f: &[u8], at: usize, value: u16| {
        let mut f = f.to_vec();
        f[at..at + 2].copy_from_slice(&value.to_be_bytes());
        f
    };
    let case = |what: &str, packet: Vec<u8>| {
        Case::new(what, Program::Uplink, UPLINK, packet).dropped(Counter::DropMalformed)
    };
    run(
        &mut h,
        vec![
            case("total length beyond the frame", set(&whole, 16, total + 1)),
            case("total length below the headers", set(&whole, 16, 40)),
            case(
                "UDP length beyond the packet",
                set(&whole, 38, total - 20 + 1),
            ),
            case("UDP length short", set(&whole, 38, total - 20 - 1)),
            case("UDP length 0", set(&whole, 38, 0)),
            case(
                "IPv6 payload length beyond the frame",
                set(&whole6, 18, payload + 1),
            ),
            case("IPv6 payload length short", set(&whole6, 18, payload - 1)),
            case("IPv6 UDP length 0", set(&whole6, 58, 0)),
        ],
    );
    // Padding after the datagram is not part of it.
    let l3 = echo(ip(B), ip(A), 64);
    run(
        &mut h,
        vec![
            Case::new(
                "a trailer",
                Program::Uplink,
                UPLINK,
                [whole, vec![0xcc; 30]].concat(),
            )
            .gives(
                Action::Redirect,
                causeway_tests::table::Out::Is(frame(A_MAC, TRUNK_MAC, &[tag(101)], &l3)),
            )
            .counts(Counter::Decapsulated),
        ],
    );
}

#[test]
fn options_extension_headers_and_fragments_are_carried_unchanged() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let mut with_options = V4::new([10, 1, 0, 10].into(), [10, 1, 0, 11].into(), 17);
    with_options.options = vec![1; 40];
    let mut last = V4::new([10, 1, 0, 10].into(), [10, 1, 0, 11].into(), 17);
    last.frag = 100;
    let mut tiny = V4::new([10, 1, 0, 10].into(), [10, 1, 0, 11].into(), 6);
    tiny.frag = 0x2000;
    let packets = [
        (
            "40 bytes of IP options",
            with_options.build(&udp_segment(ip(A), ip(B), 1, 2, b"x")),
        ),
        ("a last fragment", last.build(&[5; 200])),
        ("a first fragment of 8 bytes of TCP", tiny.build(&[0; 8])),
        (
            "TCP cut in its header",
            ip_packet(ip(A), ip(B), 6, &[0; 12]),
        ),
        (
            "TCP whose data offset is beyond the packet",
            ip_packet(
                ip(A),
                ip(B),
                6,
                &[
                    0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0xf0, 2, 0, 0, 0, 0, 0, 0,
                ],
            ),
        ),
        ("UDP of 4 bytes", ip_packet(ip(A), ip(B), 17, &[0, 1, 0, 2])),
        ("no payload", ip_packet(ip(A), ip(B), 6, &[])),
        (
            "IPv6 fragment header",
            ip_packet(
                ip(A6),
                ip(B6),
                44,
                &[17, 0, 0, 1, 0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8],
            ),
        ),
        ("IPv6 hop-by-hop cut", ip_packet(ip(A6), ip(B6), 0, &[6])),
        (
            "IPv6 hop-by-hop that lies",
            ip_packet(ip(A6), ip(B6), 0, &[6, 255, 0, 0, 0, 0, 0, 0]),
        ),
        (
            "IPv6 routing header of type 0",
            ip_packet(ip(A6), ip(B6), 43, &[59, 0, 0, 0, 0, 0, 0, 0]),
        ),
        (
            "IPv6 without a next header",
            ip_packet(ip(A6), ip(B6), 59, &[]),
        ),
        ("ESP", ip_packet(ip(A6), ip(B6), 50, &[9; 32])),
    ];
    let cases = packets
        .into_iter()
        .map(|(what, l3)| {
            Case::new(what, Program::Access, TRUNK, replica(&l3))
                .gives(
                    Action::Redirect,
                    causeway_tests::table::tunnelled(PROVIDER, TENANT, NET1, l3),
                )
                .counts(Counter::Encapsulated)
        })
        .collect();
    run(&mut h, cases);
}

#[test]
fn neighbour_discovery_is_never_decapsulated() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let (a, b) = (ip(A6), ip(B6));
    let mut cases = Vec::new();
    for kind in 133..=137u8 {
        cases.push(
            Case::new(
                format!("type {kind}"),
                Program::Uplink,
                UPLINK,
                tunnelled(TENANT, PROVIDER, NET1, &icmp(b, a, kind, 0, &[0; 40])),
            )
            .dropped(Counter::DropNotCarried),
        );
        let message = icmp_message(b, a, kind, 0, &[0; 40]);
        let hidden = [vec![58, 0, 1, 4, 0, 0, 0, 0], message].concat();
        cases.push(
            Case::new(
                format!("type {kind} behind destination options"),
                Program::Uplink,
                UPLINK,
                tunnelled(TENANT, PROVIDER, NET1, &ip_packet(b, a, 60, &hidden)),
            )
            .dropped(Counter::DropNotCarried),
        );
    }
    run(&mut h, cases);
}
