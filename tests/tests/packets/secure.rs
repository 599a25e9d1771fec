//! Encrypted tunnels: the packets that a worker seals and opens, and the handshakes that reach the
//! daemon. A packet of an encrypted network passes the same checks as any other.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use appliance_common::{
    counters::Counter,
    events::SlowReason,
    limits::{HANDSHAKES_FROM_PEERS, HANDSHAKES_FROM_UNKNOWN, HANDSHAKES_PER_SOURCE},
    maps::{Mode, Tunnel, TunnelKey},
};
use causeway_tests::{
    dump,
    harness::{Action, Harness, Program, describe},
    packet::*,
    rng::{Seeded, seed_from_env},
    table::{self, Case, Out, run, slow},
    world::*,
};

const A: &str = "10.1.0.10";
const B: &str = "10.1.0.11";
const A6: &str = "2001:db8:1::10";
const B6: &str = "2001:db8:1::11";

/// Longest packet to run live: there the kernel keeps more of the page for itself
/// (net/bpf/test_run.c).
const MAX_LIVE: usize = 3000;

/// A port of an encrypted network.
struct Port {
    what: &'static str,
    program: Program,
    ifindex: u32,
    ours: Mac,
    host: Mac,
    tags: Vec<(u16, u16)>,
    slot: u32,
    vni: u32,
    net: u8,
    /// Host parts of a machine on this side and of one on the other.
    here: u8,
    there: u8,
    mtu: u16,
}

impl Port {
    fn frame(&self, l3: &[u8]) -> Vec<u8> {
        frame(self.ours, self.host, &self.tags, l3)
    }

    fn v4(&self) -> (IpAddr, IpAddr) {
        let at = |part| Ipv4Addr::new(10, self.net, 0, part).into();
        (at(self.here), at(self.there))
    }

    fn v6(&self) -> (IpAddr, IpAddr) {
        let at = |part| ip(&format!("2001:db8:{}::{part}", self.net));
        (at(self.here), at(self.there))
    }
}

/// Ports with no, one and two tags at the provider.
fn provider_ports() -> Vec<Port> {
    let port = |what, ifindex, ours, tags, slot, vni, net, mtu| Port {
        what,
        program: Program::Access,
        ifindex,
        ours,
        host: A_MAC,
        tags,
        slot,
        vni,
        net,
        here: 10,
        there: 11,
        mtu,
    };
    vec![
        port("no tag", ACCESS, ACCESS_MAC, vec![], 3, NET4, 4, MTU),
        port("one tag", TRUNK, TRUNK_MAC, vec![tag(101)], 0, NET1, 1, MTU),
        port(
            "two tags",
            TRUNK,
            TRUNK_MAC,
            vec![service_tag(200), tag(102)],
            2,
            NET3,
            3,
            1430,
        ),
    ]
}

/// The tenant's first interface, which it shares with the tunnels.
fn tenant_port() -> Port {
    Port {
        what: "the tenant's port",
        program: Program::Combined,
        ifindex: UPLINK,
        ours: UPLINK_MAC,
        host: B_MAC,
        tags: vec![],
        slot: 0,
        vni: NET1,
        net: 1,
        here: 11,
        there: 10,
        mtu: MTU,
    }
}

/// Packets for the other side: name, the packet as the host sends it, the packet that a worker
/// gets, and whether an MSS was clamped.
fn carried(port: &Port) -> Vec<(&'static str, Vec<u8>, Vec<u8>, bool)> {
    let ((s, d), (s6, d6)) = (port.v4(), port.v6());
    let (IpAddr::V4(v4s), IpAddr::V4(v4d)) = (s, d) else {
        unreachable!("IPv4 of a port");
    };
    let mtu = usize::from(port.mtu);
    let v4 = |frag: u16, options: &[u8], payload: &[u8]| {
        let mut header = V4::new(v4s, v4d, 17);
        header.frag = frag;
        header.options = options.to_vec();
        header.build(payload)
    };
    let syn = |s: IpAddr, d, mss| tcp(s, d, 1, 2, tcp_flags::SYN, &syn_options(mss), &[]);
    let mut all = vec![
        ("echo", echo(s, d, 56)),
        ("no payload", ip_packet(s, d, 99, &[])),
        ("an octet", udp(s, d, 1, 2, &[7])),
        ("as long as the MTU", udp(s, d, 1, 2, &vec![1; mtu - 28])),
        ("IP options", v4(0x4000, &[1; 40], &[9; 64])),
        ("a first fragment", v4(0x2000, &[], &[9; 64])),
        ("a later fragment", v4(185, &[], &[9; 64])),
        ("a small MSS", syn(s, d, 536)),
        ("no DF, one octet over", v4(0, &[], &vec![3; mtu - 19])),
        ("no DF, 1500 octets", v4(0, &[], &[3; 1480])),
        ("no DF, 3400 octets", v4(0, &[], &[3; 3380])),
        ("a first fragment, over", v4(0x2000, &[], &[3; 1480])),
        ("a later fragment, over", v4(0x2000 | 185, &[], &[3; 1480])),
        ("IPv6 echo", echo(s6, d6, 56)),
        ("IPv6, no payload", ip_packet(s6, d6, 59, &[])),
        (
            "IPv6, as long as the MTU",
            udp(s6, d6, 1, 2, &vec![1; mtu - 48]),
        ),
        (
            "IPv6 fragment",
            ip_packet(s6, d6, 44, &[17, 0, 0, 1, 0, 0, 0, 7, 1, 2, 3, 4]),
        ),
    ]
    .into_iter()
    .map(|(what, l3)| (what, l3.clone(), l3, false))
    .collect::<Vec<_>>();
    all.push(("SYN", syn(s, d, 1460), syn(s, d, port.mtu - 40), true));
    all.push((
        "IPv6 SYN",
        syn(s6, d6, 1440),
        syn(s6, d6, port.mtu - 60),
        true,
    ));
    all
}

/// Expects the packet of a worker, byte for byte but for the hash.
fn sealable<'a>(port: &Port, l3: Vec<u8>) -> Out<'a> {
    let (slot, vni) = (port.slot, port.vni);
    Out::Check(Box::new(move |got| {
        let expected = expect_to_seal(got, slot, vni, &l3);
        if expected == got {
            Ok(())
        } else {
            Err(dump::difference(&expected, got))
        }
    }))
}

/// Every packet of a port, with and without padding behind it.
fn seal_cases<'a>(port: &Port, action: Action, counter: Counter) -> Vec<Case<'a>> {
    let mut cases = Vec::new();
    for (what, sent, got, clamped) in carried(port) {
        for padding in [0, 1, 46] {
            let mut packet = port.frame(&sent);
            packet.resize(packet.len() + padding, 0xee);
            let mut case = Case::new(
                format!("{}, {what}, {padding} octets of padding", port.what),
                port.program,
                port.ifindex,
                packet,
            )
            .gives(action, sealable(port, got.clone()))
            .counts(counter);
            if clamped {
                case = case.counts(Counter::MssClamped);
            }
            cases.push(case);
        }
    }
    cases
}

#[test]
fn a_packet_to_seal_is_preceded_by_slot_hash_and_segment_header() {
    let Some(mut h) = Harness::new(World::provider().encrypted()) else {
        return;
    };
    let ports = provider_ports();
    for port in &ports {
        run(
            &mut h,
            seal_cases(port, Action::Drop, Counter::DropNoWorker),
        );
    }
    h.bind_sockets().expect("sockets");
    for port in &ports {
        run(&mut h, seal_cases(port, Action::Redirect, Counter::ToSeal));
    }
    // The kernel takes a closed socket out of the map.
    h.close_sockets();
    for port in &ports {
        run(
            &mut h,
            seal_cases(port, Action::Drop, Counter::DropNoWorker),
        );
    }
    h.fill(World::tenant().encrypted()).expect("filled");
    let port = tenant_port();
    run(
        &mut h,
        seal_cases(&port, Action::Drop, Counter::DropNoWorker),
    );
    h.bind_sockets().expect("sockets");
    run(&mut h, seal_cases(&port, Action::Redirect, Counter::ToSeal));
}

#[test]
fn the_worker_of_the_port_receives_the_packet_byte_for_byte() {
    let Some(mut h) = Harness::new(World::provider().encrypted()) else {
        return;
    };
    h.bind_sockets().expect("sockets");
    let mut ports = provider_ports();
    ports.push(tenant_port());
    for port in ports {
        if port.program == Program::Combined {
            h.fill(World::tenant().encrypted()).expect("filled");
        }
        for (what, sent, got, _) in carried(&port) {
            if sent.len() > MAX_LIVE {
                continue;
            }
            let received = h
                .run_live(port.program, port.ifindex, &port.frame(&sent))
                .unwrap_or_else(|e| panic!("{}, {what}: {}", port.what, describe(&e)));
            let [(ifindex, bytes)] = &received[..] else {
                panic!("{}, {what}: {} frames", port.what, received.len());
            };
            assert_eq!(*ifindex, port.ifindex, "{}, {what}", port.what);
            let expected = expect_to_seal(bytes, port.slot, port.vni, &got);
            assert!(
                expected == *bytes,
                "{}, {what}: {}",
                port.what,
                dump::difference(&expected, bytes)
            );
        }
    }
    let message = data(SESSIONS[0], 200);
    for (program, world, from, to) in [
        (Program::Uplink, World::provider(), TENANT, PROVIDER),
        (Program::Uplink, World::provider(), TENANT6, PROVIDER6),
        (Program::Combined, World::tenant(), PROVIDER, TENANT),
    ] {
        h.fill(world.encrypted()).expect("filled");
        let packet = datagram(from, to, &message);
        let received = h
            .run_live(program, UPLINK, &packet)
            .expect("the kernel runs it");
        assert!(
            received == [(UPLINK, packet)],
            "from {from}: {received:02x?}"
        );
    }
}

#[test]
fn a_flow_has_one_hash_and_hashes_spread_over_flows() {
    let Some(mut h) = Harness::new(World::provider().encrypted()) else {
        return;
    };
    let mut hash = |l3: &[u8]| {
        let (action, out) = h
            .run(Program::Access, TRUNK, &replica(l3))
            .expect("the kernel runs it");
        assert_eq!(action, Action::Drop, "there is no socket");
        be32(out, 4).expect("a worker's header")
    };
    for (s, d) in [(A, B), (A6, B6)] {
        let (s, d) = (ip(s), ip(d));
        let once = hash(&udp(s, d, 1000, 53, b"one"));
        assert_eq!(once, hash(&udp(s, d, 1000, 53, &[0; 900])));
        let ports: BTreeSet<u32> = (0..500)
            .map(|port| hash(&udp(s, d, 1000 + port, 53, b"")))
            .collect();
        assert!(ports.len() > 490, "{} hashes of 500 flows", ports.len());
    }
    // Fragments of one packet take one way.
    let mut header = V4::new([10, 1, 0, 10].into(), [10, 1, 0, 11].into(), 17);
    header.frag = 0x2000;
    let first = hash(&header.build(&[1; 64]));
    header.frag = 8;
    assert_eq!(first, hash(&header.build(&[2; 64])));
}

#[test]
fn the_source_guards_apply_before_sealing() {
    let Some(mut h) = Harness::new(World::provider().encrypted()) else {
        return;
    };
    h.bind_sockets().expect("sockets");
    let on = |what: &str, l3: Vec<u8>| Case::new(what, Program::Access, TRUNK, replica(&l3));
    let ping = |s: &str, d: &str| echo(ip(s), ip(d), 8);
    let answered = |case: Case<'static>, counter| {
        // The reference judges it byte for byte.
        case.gives(Action::Tx, Out::Check(Box::new(|_| Ok(()))))
            .counts(counter)
    };
    let mut cases = vec![
        on("not a replica", ping("10.1.0.99", B)).dropped(Counter::DropSourceGuard),
        on("v6 not a replica", ping("2001:db8:1::99", B6)).dropped(Counter::DropSourceGuard),
        on("from loopback", ping("127.0.0.1", B)).dropped(Counter::DropSourceGuard),
        on("link-local source", ping("169.254.1.1", B)).dropped(Counter::DropLinkLocal),
        on("link-local target", ping(A, "169.254.1.1")).dropped(Counter::DropLinkLocal),
        on("v6 link-local source", ping("fe80::10", B6)).dropped(Counter::DropLinkLocal),
        on("v6 link-local target", ping(A6, "fe80::11")).dropped(Counter::DropLinkLocal),
        on("broadcast", ping(A, "255.255.255.255")).dropped(Counter::DropNotCarried),
        on("directed broadcast", ping(A, "10.1.0.255")).dropped(Counter::DropNotCarried),
        on("multicast", ping(A, "224.0.0.5")).dropped(Counter::DropNotCarried),
        on("v6 multicast", ping(A6, "ff02::5")).dropped(Counter::DropNotCarried),
        on(
            "an ICMP error over the MTU",
            icmp(ip(A), ip(B), 3, 1, &[0; 1470]),
        )
        .dropped(Counter::DropNoErrorAboutError),
        on("for an unresolved neighbour", ping(A, "10.1.0.12"))
            .dropped(Counter::SlowUnresolved)
            .records(slow(
                SlowReason::Unresolved,
                NET1,
                "10.1.0.12",
                ping(A, "10.1.0.12"),
            )),
        Case::new(
            "for another host's MAC",
            Program::Access,
            TRUNK,
            frame(B_MAC, A_MAC, &[tag(101)], &ping(A, B)),
        )
        .dropped(Counter::DropForeignMac),
        Case::new(
            "our own MAC as source",
            Program::Access,
            TRUNK,
            frame(TRUNK_MAC, TRUNK_MAC, &[tag(101)], &ping(A, B)),
        )
        .dropped(Counter::DropLoop),
        Case::new("cut", Program::Access, TRUNK, replica(&ping(A, B)[..30]))
            .dropped(Counter::DropMalformed),
    ];
    for len in [1451, 1500, 3400] {
        cases.push(answered(
            on(
                &format!("DF, {len} octets"),
                udp(ip(A), ip(B), 1, 2, &vec![3; len - 28]),
            ),
            Counter::FragNeededSent,
        ));
        cases.push(answered(
            on(
                &format!("IPv6, {len} octets"),
                udp(ip(A6), ip(B6), 1, 2, &vec![3; len - 48]),
            ),
            Counter::PacketTooBigSent,
        ));
    }
    run(&mut h, cases);

    h.fill(World::provider().encrypted().idle())
        .expect("filled");
    let cases = provider_ports()
        .iter()
        .flat_map(|port| {
            carried(port).into_iter().map(|(what, sent, _, _)| {
                Case::new(
                    format!("idle, {}, {what}", port.what),
                    port.program,
                    port.ifindex,
                    port.frame(&sent),
                )
                .dropped(Counter::DropIdle)
            })
        })
        .collect();
    run(&mut h, cases);

    h.fill(World::tenant().encrypted()).expect("filled");
    let sibling = echo(ip(B), ip("10.1.0.1"), 8);
    run(
        &mut h,
        vec![
            Case::new(
                "for a host of the same side",
                Program::Combined,
                UPLINK,
                production(&sibling),
            )
            .gives(
                Action::Tx,
                Out::Is(frame(ROUTER_MAC, UPLINK_MAC, &[], &sibling)),
            )
            .counts(Counter::Hairpinned),
            Case::new(
                "from an address of the other side",
                Program::Combined,
                UPLINK,
                production(&ping("10.1.0.12", A)),
            )
            .dropped(Counter::DropSourceGuard),
        ],
    );
}

#[test]
fn a_port_or_queue_without_a_socket_has_no_worker() {
    let mut world = World::provider().encrypted();
    for (key, attachment) in &mut world.attachments {
        if key.ifindex == ACCESS {
            attachment.xsk = 0;
        }
    }
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    h.bind_sockets().expect("sockets");
    let ports = provider_ports();
    run(
        &mut h,
        seal_cases(&ports[0], Action::Drop, Counter::DropNoWorker),
    );
    run(
        &mut h,
        seal_cases(&ports[1], Action::Redirect, Counter::ToSeal),
    );
    let to_open = datagram(TENANT, PROVIDER, &data(1, 9));
    let to_seal = replica(&echo(ip(A), ip(B), 8));
    for (program, ifindex, packet) in [
        (Program::Uplink, UPLINK, &to_open),
        (Program::Access, TRUNK, &to_seal),
    ] {
        // Sixty-four slots on are the next interface's.
        for (queue, expected) in [
            (0, Action::Redirect),
            (1, Action::Drop),
            (63, Action::Drop),
            (64, Action::Drop),
            (69, Action::Drop),
        ] {
            let (action, _) = h
                .run_on(program, ifindex, queue, packet)
                .expect("the kernel runs it");
            assert_eq!(action, expected, "interface {ifindex}, queue {queue}");
        }
    }
    let mut world = World::provider().encrypted();
    world.config.uplink_xsk = 0;
    h.fill(world).expect("filled");
    run(
        &mut h,
        vec![
            Case::new("an uplink without", Program::Uplink, UPLINK, to_open)
                .dropped(Counter::DropNoWorker),
        ],
    );
}

#[test]
fn a_plain_tunnel_next_to_encrypted_ones_is_unchanged() {
    let Some(mut h) = Harness::new(World::provider().encrypted()) else {
        return;
    };
    let out = echo(ip(A), ip(B), 56);
    let back = echo(ip(B), ip(A), 56);
    let plain = vec![
        Case::new(
            "into the plain tunnel",
            Program::Access,
            TRUNK,
            frame(TRUNK_MAC, G_MAC, &[tag(201)], &out),
        )
        .gives(
            Action::Redirect,
            table::tunnelled(PROVIDER, TENANT2, NET2, out.clone()),
        )
        .counts(Counter::Encapsulated),
        Case::new(
            "out of the plain tunnel",
            Program::Uplink,
            UPLINK,
            tunnelled(TENANT2, PROVIDER, NET2, &back),
        )
        .gives(
            Action::Redirect,
            Out::Is(frame(G_MAC, TRUNK_MAC, &[tag(201)], &back)),
        )
        .counts(Counter::Decapsulated),
        Case::new(
            "in the clear, for an encrypted network",
            Program::Uplink,
            UPLINK,
            tunnelled(TENANT, PROVIDER, NET1, &back),
        )
        .dropped(Counter::DropUnknownVni),
    ];
    run(&mut h, plain);

    // Even with an entry in the map, as while a network's peer changes.
    let mut world = World::provider().encrypted();
    for peer in [address(TENANT), [0; 16]] {
        world.tunnels.push((
            TunnelKey { vni: NET1, peer },
            Tunnel {
                network: 0,
                flags: 1,
            },
        ));
    }
    h.fill(world).expect("filled");
    run(
        &mut h,
        vec![
            Case::new(
                "in the clear, for a network that has become encrypted",
                Program::Uplink,
                UPLINK,
                tunnelled(TENANT, PROVIDER, NET1, &back),
            )
            .dropped(Counter::DropInconsistent),
        ],
    );
}

/// The destination of a datagram to the tunnels' port.
#[derive(Clone, Copy)]
enum Steering {
    Open,
    Handshake,
    Passed,
    Dropped(Counter),
}

/// Datagrams to the encrypted tunnels' port, and where each must go: the same over both families.
fn datagrams(from: &str, to: &str) -> Vec<(String, Vec<u8>, Steering)> {
    use Steering::{Dropped, Handshake, Open, Passed};
    let (bad, malformed) = (
        Dropped(Counter::DropBadDatagram),
        Dropped(Counter::DropMalformed),
    );
    let unknown = Dropped(Counter::DropUnknownSession);
    let edit = |mut message: Vec<u8>, edits: &[(usize, u8)]| {
        for (at, value) in edits {
            message[*at] = *value;
        }
        message
    };
    let sized = |kind: u8, len: usize| {
        let mut message = vec![0x33; len];
        message[..4].copy_from_slice(&[kind, 0, 0, 0]);
        message
    };
    let mut messages: Vec<(String, Vec<u8>, Steering)> = vec![
        ("empty".into(), vec![], bad),
        ("an octet".into(), vec![4], bad),
        ("three octets".into(), vec![4, 0, 0], bad),
        ("seven octets".into(), vec![4, 0, 0, 0, 1, 0, 0], bad),
        ("a header only".into(), data(1, 0)[..16].to_vec(), bad),
        ("one octet short".into(), data(1, 0)[..31].to_vec(), bad),
        ("the shortest".into(), data(1, 0), Open),
        ("one octet of content".into(), data(1, 1), Open),
        ("long".into(), data(1, 1400), Open),
        ("the longest".into(), data(1, 3300), Open),
        ("cipher 1".into(), edit(data(1, 64), &[(1, 1)]), Open),
        ("cipher 2".into(), edit(data(1, 64), &[(1, 2)]), bad),
        ("cipher 255".into(), edit(data(1, 64), &[(1, 255)]), bad),
        ("reserved 1".into(), edit(data(1, 64), &[(2, 1)]), bad),
        ("reserved 2".into(), edit(data(1, 64), &[(3, 1)]), bad),
        ("session 0".into(), data(0, 64), unknown),
        ("session 2".into(), data(2, 64), unknown),
        (
            "a session in the wrong byte order".into(),
            data(SESSIONS[1].swap_bytes(), 64),
            unknown,
        ),
        (
            "unknown, and cipher 2".into(),
            edit(data(2, 64), &[(1, 2)]),
            bad,
        ),
        ("zeros".into(), vec![0; 148], bad),
        ("text".into(), b"GET / HTTP/1.1\r\n\r\n".to_vec(), bad),
    ];
    for index in SESSIONS {
        messages.push((format!("session {index:#x}"), data(index, 64), Open));
    }
    for kind in [0, 5, 6, 127, 128, 255] {
        for len in [32, 64, 92, 148] {
            messages.push((format!("type {kind}, {len}"), sized(kind, len), bad));
        }
    }
    for (kind, len) in [(1, 148), (2, 92), (3, 64)] {
        messages.push((format!("type {kind}"), sized(kind, len), Handshake));
        for wrong in [4, 8, 32, 64, 92, 148, len - 1, len + 1, 1400] {
            if wrong != len {
                messages.push((format!("type {kind}, {wrong}"), sized(kind, wrong), bad));
            }
        }
        for at in 1..4 {
            let message = edit(sized(kind, len), &[(at, 1)]);
            messages.push((format!("type {kind}, octet {at}"), message, bad));
        }
    }
    let of_a_gateway = |len: usize| {
        let mut message = vec![0; len];
        message[8..].fill(0x44);
        message
    };
    messages.push(("a gateway's message".into(), of_a_gateway(64), Handshake));
    for len in [8, 32, 63, 65, 92, 148, 1400] {
        messages.push((
            format!("a gateway's message, {len}"),
            of_a_gateway(len),
            bad,
        ));
    }
    for at in 0..8 {
        let message = edit(of_a_gateway(64), &[(at, 0x5a)]);
        messages.push((format!("a gateway's message, octet {at}"), message, bad));
    }
    // The same behind a circuit's id, or behind a truncated one.
    for id in [
        [0x3f, 0x9a, 0x1c, 2, 0x77, 0xd1, 0xe0, 0x5b],
        [4, 0, 0, 1, 1, 0, 0, 0],
    ] {
        let behind: Vec<_> = messages[..messages.len()]
            .iter()
            .filter(|(what, ..)| !what.contains("circuit"))
            .map(|(what, message, fate)| {
                let message = [&id[..], message].concat();
                (format!("circuit {id:02x?}, {what}"), message, *fate)
            })
            .collect();
        messages.extend(behind);
        for len in 1..8 {
            messages.push((
                format!("{len} octets of circuit {id:02x?}"),
                id[..len].to_vec(),
                bad,
            ));
        }
        messages.push((format!("circuit {id:02x?} twice"), [id, id].concat(), bad));
    }
    let on = |l3: &[u8]| frame(UPLINK_MAC, NEXT_HOP_MAC, &[], l3);
    let mut all: Vec<_> = messages
        .into_iter()
        .map(|(what, message, fate)| (what, datagram(from, to, &message), fate))
        .collect();
    let (source, target) = (ip(from), ip(to));
    let udp_at = if target.is_ipv4() { 34 } else { 54 };
    for (kind, fate) in [(1, Handshake), (4, Open)] {
        let whole = datagram(from, to, &message(kind));
        let len = (whole.len() - udp_at) as u16;
        let set = |at: usize, value: u16| {
            edit(
                whole.clone(),
                &[(at, (value >> 8) as u8), (at + 1, value as u8)],
            )
        };
        let mut also =
            |what: &str, packet, fate| all.push((format!("type {kind}, {what}"), packet, fate));
        also("a trailer", [&whole[..], &[0xcc; 30]].concat(), fate);
        also("UDP length one more", set(udp_at + 4, len + 1), malformed);
        also("UDP length one less", set(udp_at + 4, len - 1), malformed);
        also("UDP length 0", set(udp_at + 4, 0), malformed);
        also("UDP length 7", set(udp_at + 4, 7), malformed);
        also("UDP length 65535", set(udp_at + 4, 0xffff), malformed);
        also(
            "a wrong checksum is not looked at",
            set(udp_at + 6, 1),
            fate,
        );
        also("from another port", set(udp_at, 1), fate);
        also("to the next port", set(udp_at + 2, SECURE_PORT + 1), Passed);
        also("to port 0", set(udp_at + 2, 0), Passed);
        also(
            "cut by an octet",
            whole[..whole.len() - 1].to_vec(),
            malformed,
        );
        also(
            "cut in the UDP header",
            whole[..udp_at + 7].to_vec(),
            Passed,
        );
        let segment = udp_segment(source, target, SECURE_PORT, SECURE_PORT, &message(kind));
        match (source, target) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                let with = |frag: u16, options: &[u8], to: Ipv4Addr| {
                    let mut header = V4::new(s, to, 17);
                    header.frag = frag;
                    header.options = options.to_vec();
                    on(&header.build(&segment))
                };
                let fragment = Dropped(Counter::DropOuterFragment);
                also("a first fragment", with(0x2000, &[], d), fragment);
                also("a first fragment, DF", with(0x6000, &[], d), fragment);
                also("a later fragment", with(0x2000 | 9, &[], d), Passed);
                also("the last fragment", with(9, &[], d), Passed);
                also("four octets of options", with(0x4000, &[1; 4], d), bad);
                also("40 octets of options", with(0x4000, &[1; 40], d), bad);
                also("a first fragment, options", with(0x2000, &[1; 8], d), bad);
                also("a later fragment, options", with(9, &[1; 8], d), Passed);
                also("total length one more", set(16, len + 21), malformed);
                also("total length short", set(16, 27), malformed);
                let other = Ipv4Addr::from(u32::from(d) + 1);
                also("to another address", with(0x4000, &[], other), Passed);
                also("options, to another", with(0x4000, &[1; 4], other), Passed);
            }
            (IpAddr::V6(_), IpAddr::V6(d)) => {
                also("payload length one more", set(18, len + 1), malformed);
                also("payload length 7", set(18, 7), malformed);
                let other = Ipv6Addr::from(u128::from(d) + 1).into();
                let moved = udp(source, other, 1, SECURE_PORT, &message(kind));
                also("to another address", on(&moved), Passed);
                let behind = |first: u8, headers: &[&[u8]]| {
                    let body = [&headers.concat()[..], &segment].concat();
                    on(&ip_packet(source, target, first, &body))
                };
                let (udp_next, options_next) =
                    ([17, 0, 1, 4, 0, 0, 0, 0], [60, 0, 1, 4, 0, 0, 0, 0]);
                let long = [&[17, 1, 1, 12][..], &[0; 12]].concat();
                also("hop-by-hop options", behind(0, &[&udp_next]), bad);
                also("destination options", behind(60, &[&udp_next]), bad);
                also("long destination options", behind(60, &[&long]), bad);
                also("a routing header", behind(43, &[&udp_next]), bad);
                also("options twice", behind(0, &[&options_next, &udp_next]), bad);
                also(
                    "more headers than any host sends",
                    behind(60, &[&options_next[..]; 20][..]),
                    bad,
                );
                let fragment = |next: u8, offset: u8| [next, 0, 0, offset, 0, 0, 0, 9];
                also("an atomic fragment", behind(44, &[&fragment(17, 0)]), bad);
                also("a first fragment", behind(44, &[&fragment(17, 1)]), bad);
                also("a later fragment", behind(44, &[&fragment(17, 9)]), Passed);
                also(
                    "a first fragment of options",
                    behind(44, &[&fragment(60, 1), &udp_next]),
                    bad,
                );
                also(
                    "options and a first fragment",
                    behind(0, &[&[44, 0, 1, 4, 0, 0, 0, 0], &fragment(17, 1)]),
                    bad,
                );
                let hop = [44, 0, 1, 4, 0, 0, 0, 0];
                let ends_early = on(&ip_packet(
                    source,
                    target,
                    0,
                    &[hop, fragment(60, 1), udp_next].concat(),
                ));
                also(
                    "a first fragment that ends before UDP begins",
                    ends_early.clone(),
                    bad,
                );
                also(
                    "the same, and a trailer that looks like UDP to elsewhere",
                    [&ends_early[..], &[0, 9, 0, 9, 0, 8, 0, 0]].concat(),
                    bad,
                );
                also(
                    "cut in its options",
                    on(&ip_packet(source, target, 60, &[17, 1, 1, 4, 0, 0, 0, 0])),
                    bad,
                );
                also(
                    "options, and to the next port",
                    on(&ip_packet(
                        source,
                        target,
                        60,
                        &[
                            &udp_next[..],
                            &udp_segment(source, target, 1, SECURE_PORT + 1, &[]),
                        ]
                        .concat(),
                    )),
                    Passed,
                );
                also(
                    "no next header",
                    on(&ip_packet(source, target, 59, &segment)),
                    Passed,
                );
                also("ESP", on(&ip_packet(source, target, 50, &segment)), Passed);
            }
            _ => unreachable!("one family"),
        }
        let tcp = tcp_segment(source, target, 1, SECURE_PORT, tcp_flags::SYN, &[], &[]);
        also(
            "TCP to the port",
            on(&ip_packet(source, target, 6, &tcp)),
            Passed,
        );
        also(
            "behind a tag",
            frame(
                UPLINK_MAC,
                NEXT_HOP_MAC,
                &[tag(5)],
                &ip_packet(source, target, 17, &segment),
            ),
            Passed,
        );
    }
    all
}

/// The table, with or without a worker's socket.
fn steer(h: &mut Harness, program: Program, from: &str, to: &str, worker: bool) {
    let mut cases = Vec::new();
    for (what, packet, fate) in datagrams(from, to) {
        let case = Case::new(format!("from {from}, {what}"), program, UPLINK, packet);
        cases.push(match fate {
            Steering::Open if worker => case
                .gives(Action::Redirect, Out::Same)
                .counts(Counter::ToOpen),
            Steering::Open => case
                .gives(Action::Drop, Out::Same)
                .counts(Counter::DropNoWorker),
            Steering::Handshake => case
                .gives(Action::Pass, Out::Same)
                .counts(Counter::HandshakePassed),
            Steering::Passed => case.passed(),
            Steering::Dropped(reason) => case.dropped(reason),
        });
    }
    // The handshakes in it are fewer than a source's share.
    h.clear_handshake_limits().expect("maps");
    run(h, cases);
}

#[test]
fn each_datagram_to_the_tunnel_port_has_a_counted_outcome() {
    let Some(mut h) = Harness::new(World::provider().encrypted()) else {
        return;
    };
    for worker in [false, true] {
        if worker {
            h.bind_sockets().expect("sockets");
        }
        h.fill(World::provider().encrypted()).expect("filled");
        steer(&mut h, Program::Uplink, TENANT, PROVIDER, worker);
        steer(&mut h, Program::Uplink, TENANT6, PROVIDER6, worker);
        let mut world = World::tenant().encrypted();
        world.config.local_v6 = address(TENANT6);
        h.fill(world).expect("filled");
        steer(&mut h, Program::Combined, PROVIDER, TENANT, worker);
        steer(&mut h, Program::Combined, PROVIDER6, TENANT6, worker);
    }
}

#[test]
fn without_encrypted_tunnels_every_datagram_passes_to_the_kernel() {
    let Some(mut h) = Harness::new(World::provider().encrypted()) else {
        return;
    };
    for (what, version, port, counter) in [
        ("not configured", 0, SECURE_PORT, Counter::NotConfigured),
        ("another layout", 1, SECURE_PORT, Counter::NotConfigured),
        (
            "no encrypted tunnels",
            World::provider().config.version,
            0,
            Counter::Passed,
        ),
    ] {
        for (program, world, from, to) in [
            (Program::Uplink, World::provider(), TENANT, PROVIDER),
            (Program::Uplink, World::provider(), TENANT6, PROVIDER6),
            (Program::Combined, World::tenant(), PROVIDER, TENANT),
        ] {
            let mut world = world.encrypted();
            world.config.version = version;
            world.config.secure_port = port;
            h.fill(world).expect("filled");
            let cases = datagrams(from, to)
                .into_iter()
                .map(|(line, packet, _)| {
                    Case::new(
                        format!("{what}, from {from}, {line}"),
                        program,
                        UPLINK,
                        packet,
                    )
                    .gives(Action::Pass, Out::Same)
                    .counts(counter)
                })
                .collect();
            // The reference knows no unconfigured appliance.
            h.world.config.secure_port = 0;
            run(&mut h, cases);
        }
    }
}

#[test]
fn datagrams_are_steered_while_the_tenants_are_idle() {
    let Some(mut h) = Harness::new(World::provider().encrypted().idle()) else {
        return;
    };
    assert!(
        h.world.tenants.iter().all(|t| t.mode == Mode::Idle as u32),
        "idle"
    );
    steer(&mut h, Program::Uplink, TENANT, PROVIDER, false);
}

/// How many of `count` initiations the sources that `source` gives get through, and how long that
/// took in seconds.
fn flood(
    h: &mut Harness,
    program: Program,
    to: &str,
    count: usize,
    mut source: impl FnMut() -> IpAddr,
) -> (u64, f64) {
    let before = h.counters();
    let mut passed = 0;
    let mut packet = Vec::new();
    let mut last = None;
    let started = Instant::now();
    for _ in 0..count {
        let from = source();
        if last != Some(from) {
            packet = datagram(&from.to_string(), to, &message(1));
            last = Some(from);
        }
        let (action, out) = h.run(program, UPLINK, &packet).expect("the kernel runs it");
        match action {
            Action::Pass => {
                assert!(out == packet, "passed, but changed");
                passed += 1;
            }
            other => assert_eq!(other, Action::Drop, "from {from}"),
        }
    }
    let took = started.elapsed().as_secs_f64();
    let after = h.counters();
    let moved = |counter: Counter| {
        let of = |map: &std::collections::BTreeMap<u32, u64>| {
            map.get(&(counter as u32)).copied().unwrap_or(0)
        };
        of(&after) - of(&before)
    };
    assert_eq!(moved(Counter::HandshakePassed), passed, "as counted");
    assert_eq!(
        moved(Counter::DropHandshakeRate),
        count as u64 - passed,
        "as counted"
    );
    (passed, took)
}

/// Checks that the burst passed, and what the rate added since.
fn within(what: &str, (passed, took): (u64, f64), burst: u64, per_second: u64) {
    let most = burst + (took * per_second as f64).ceil() as u64 + 1;
    println!("{what}: {passed} passed in {took:.3} s, at most {most} may");
    assert!(
        (burst..=most).contains(&passed),
        "{what}: {passed} passed in {took} s; the burst is {burst}, and at most {most} may"
    );
}

#[test]
fn handshakes_are_rate_limited_for_each_source() {
    let Some(mut h) = Harness::new(World::provider().encrypted()) else {
        return;
    };
    let share = HANDSHAKES_PER_SOURCE;
    let from = |h: &mut Harness, text: &str, count: usize| {
        let source = ip(text);
        let to = if source.is_ipv4() {
            PROVIDER
        } else {
            PROVIDER6
        };
        flood(h, Program::Uplink, to, count, || source)
    };
    assert_eq!(share, 20);
    for (what, one, another) in [
        ("unknown IPv4 sources", "192.0.2.1", "192.0.2.2"),
        ("unknown IPv6 sources", "2001:db8:a:1::1", "2001:db8:a:2::1"),
    ] {
        within(what, from(&mut h, one, 500), share, share);
        within(what, from(&mut h, another, 500), share, share);
        let (passed, _) = from(&mut h, one, 20);
        assert!(passed < 20, "{what}: the share does not come back at once");
    }
    // In a /64, addresses are free.
    let mut rng = Seeded::new(seed_from_env());
    let got = flood(&mut h, Program::Uplink, PROVIDER6, 500, || {
        let low = u128::from(rng.next_u64());
        Ipv6Addr::from(0x2001_0db8_000a_0003_u128 << 64 | low).into()
    });
    within("a /64", got, share, share);
    // All kinds of messages are of one share, and other datagrams are of none.
    h.clear_handshake_limits().expect("maps");
    let mut passed = 0;
    let started = Instant::now();
    for round in 0..240u8 {
        let packet = datagram("192.0.2.7", PROVIDER, &message(1 + round % 3));
        let (action, _) = h
            .run(Program::Uplink, UPLINK, &packet)
            .expect("the kernel runs it");
        passed += u64::from(action == Action::Pass);
        let packet = datagram("192.0.2.7", PROVIDER, &data(1, 9));
        h.run(Program::Uplink, UPLINK, &packet)
            .expect("the kernel runs it");
    }
    let took = started.elapsed().as_secs_f64();
    within("three kinds", (passed, took), share, share);
    // The bucket refills with time.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    within(
        "a second later",
        from(&mut h, "192.0.2.7", 500),
        share,
        share,
    );
}

#[test]
fn unknown_sources_share_a_handshake_budget_apart_from_peers() {
    let Some(mut h) = Harness::new(World::provider().encrypted()) else {
        return;
    };
    h.bind_sockets().expect("sockets");
    // The budget is one of each CPU.
    let mut cpus = nix::sched::CpuSet::new();
    let here = nix::sched::sched_getcpu().expect("this CPU");
    cpus.set(here).expect("a CPU");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).expect("to stay here");
    let seed = seed_from_env();
    println!("CAUSEWAY_SEED={seed}");
    let mut rng = Seeded::new(seed);
    let budget = HANDSHAKES_FROM_UNKNOWN;
    for (what, to) in [("IPv4", PROVIDER), ("IPv6", PROVIDER6)] {
        h.clear_handshake_limits().expect("maps");
        let v6 = ip(to).is_ipv6();
        let got = flood(&mut h, Program::Uplink, to, 100_000, || {
            if v6 {
                let (high, low) = (rng.next_u64() | 0x2000 << 48, rng.next_u64());
                Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)).into()
            } else {
                // 11/8 to 110/8: no peer is there.
                let [a, b, c, d] = (rng.next_u64() as u32).to_be_bytes();
                Ipv4Addr::new(11 + a % 100, b, c, d).into()
            }
        });
        within(what, got, budget, budget);
        // The budget of unknown sources is used up, that of peers is not.
        let (peer, at) = if v6 {
            (TENANT6, PROVIDER6)
        } else {
            (TENANT, PROVIDER)
        };
        let address = ip(peer);
        let got = flood(&mut h, Program::Uplink, at, 100, || address);
        assert_eq!(
            got.0, 100,
            "handshakes of a peer pass despite a flood from unknown sources"
        );
        // A forged source of a peer uses the peers' budget, and no more.
        let got = flood(&mut h, Program::Uplink, at, 100_000, || address);
        within(
            "a peer's name",
            got,
            HANDSHAKES_FROM_PEERS / 10,
            HANDSHAKES_FROM_PEERS,
        );
        let l3 = echo(ip(B), ip(A), 56);
        run(
            &mut h,
            vec![
                Case::new(
                    "a session",
                    Program::Uplink,
                    UPLINK,
                    datagram(peer, at, &data(1, 9)),
                )
                .gives(Action::Redirect, Out::Same)
                .counts(Counter::ToOpen),
                Case::new(
                    "the plain tunnel",
                    Program::Uplink,
                    UPLINK,
                    tunnelled(TENANT2, PROVIDER, NET2, &l3),
                )
                .gives(
                    Action::Redirect,
                    Out::Is(frame(G_MAC, TRUNK_MAC, &[tag(201)], &l3)),
                )
                .counts(Counter::Decapsulated),
            ],
        );
    }
}
