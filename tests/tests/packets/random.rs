//! Mutated and random packets through each program: with plain tunnels, with encrypted ones, and
//! for tenants in full failover. A million for each program; ten million with `CAUSEWAY_LONG=1`.
//!
//! The oracle judges each: the action is permitted, a passed packet is unchanged, a sent one is
//! well-formed and has a permitted destination. At the end, the maps that user space writes are
//! unchanged except for the two marks on neighbours, and all ring-buffer records were valid.
//!
//! `CAUSEWAY_SEED` replays a run; `CAUSEWAY_RANDOM_PACKETS` sets the count for each program.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use causeway_tests::{
    dump,
    harness::{Harness, MAX_PACKET, Program, describe},
    oracle::{self, Kind},
    packet::*,
    rng::{Seeded, seed_from_env},
    series,
    world::*,
};

/// Packets that programs answer or carry, to start from: interface and frame.
fn corpus(program: Program) -> Vec<(u32, Vec<u8>)> {
    let v4 = |t: &str| match ip(t) {
        std::net::IpAddr::V4(a) => a,
        std::net::IpAddr::V6(_) => unreachable!("an IPv4 fixture"),
    };
    let v6a = |t: &str| match ip(t) {
        std::net::IpAddr::V6(a) => a,
        std::net::IpAddr::V4(_) => unreachable!("an IPv6 fixture"),
    };
    let mut all: Vec<(u32, Vec<u8>)> = Vec::new();
    let mut port = |ifindex: u32,
                    ours: Mac,
                    mac: Mac,
                    tags: &[(u16, u16)],
                    net: u8,
                    me: u8,
                    you: u8,
                    sibling: u8| {
        let (s, d) = (format!("10.{net}.0.{me}"), format!("10.{net}.0.{you}"));
        let (s6, d6) = (
            format!("2001:db8:{net}::{me}"),
            format!("2001:db8:{net}::{you}"),
        );
        let on = |l3: &[u8]| (ifindex, frame(ours, mac, tags, l3));
        let mut no_df = V4::new(v4(&s), v4(&d), 17);
        no_df.frag = 0;
        let mut optioned = V4::new(v4(&s), v4(&d), 6);
        optioned.options = vec![0x94, 4, 0, 0];
        let group = solicited_node(v6a(&d6));
        let extension = [
            vec![60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0],
            tcp_segment(
                ip(&s6),
                ip(&d6),
                1,
                2,
                tcp_flags::SYN,
                &syn_options(1440),
                &[],
            ),
        ]
        .concat();
        all.extend([
            (
                ifindex,
                eth(
                    [0xff; 6],
                    mac,
                    tags,
                    0x0806,
                    &arp(1, mac, v4(&s), [0; 6], v4(&d)),
                ),
            ),
            (
                ifindex,
                eth(ours, mac, tags, 0x0806, &arp(2, mac, v4(&s), ours, v4(&d))),
            ),
            (
                ifindex,
                frame(
                    multicast_mac(group),
                    mac,
                    tags,
                    &ns(v6a(&s6), group, v6a(&d6), Some(mac)),
                ),
            ),
            (
                ifindex,
                frame(
                    multicast_mac(group),
                    mac,
                    tags,
                    &ns(v6a("::"), group, v6a(&d6), None),
                ),
            ),
            (
                ifindex,
                frame(
                    ours,
                    mac,
                    tags,
                    &na(v6a(&s6), v6a(&d6), v6a(&s6), 0x60, Some(mac)),
                ),
            ),
            on(&echo(ip(&s), ip(&d), 32)),
            on(&echo(ip(&s6), ip(&d6), 32)),
            on(&udp(ip(&s), ip(&d), 1000, 2000, b"payload")),
            on(&udp(ip(&s6), ip(&d6), 1000, 2000, b"payload")),
            on(&tcp(
                ip(&s),
                ip(&d),
                1,
                2,
                tcp_flags::SYN,
                &syn_options(1460),
                &[],
            )),
            on(&tcp(
                ip(&s6),
                ip(&d6),
                1,
                2,
                tcp_flags::SYN,
                &syn_options(1440),
                &[],
            )),
            on(&tcp(
                ip(&s),
                ip(&d),
                1,
                2,
                tcp_flags::ACK,
                &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
                b"data",
            )),
            on(&optioned.build(&tcp_segment(
                ip(&s),
                ip(&d),
                1,
                2,
                tcp_flags::SYN,
                &syn_options(1460),
                &[],
            ))),
            on(&ip_packet(ip(&s6), ip(&d6), 0, &extension)),
            on(&udp(
                ip(&s),
                ip(&format!("10.{net}.0.{sibling}")),
                1,
                2,
                b"sibling",
            )),
            on(&udp(
                ip(&s6),
                ip(&format!("2001:db8:{net}::{sibling}")),
                1,
                2,
                b"sibling",
            )),
            on(&udp(ip(&s), ip("192.0.2.9"), 1, 2, b"far")),
        ]);
        // Large ones are few: they cost most of the time.
        if all.len() < 40 {
            all.extend([
                on(&udp(ip(&s), ip(&d), 1000, 2000, &[3; 1460])),
                on(&udp(ip(&s6), ip(&d6), 1000, 2000, &[3; 1440])),
                on(&no_df.build(&udp_segment(ip(&s), ip(&d), 1, 2, &[4; 1460]))),
            ]);
        }
    };
    match program {
        Program::Access => {
            port(TRUNK, TRUNK_MAC, A_MAC, &[tag(101)], 1, 10, 11, 12);
            port(
                TRUNK,
                TRUNK_MAC,
                A_MAC,
                &[service_tag(200), tag(102)],
                3,
                10,
                11,
                12,
            );
            port(TRUNK, TRUNK_MAC, G_MAC, &[tag(201)], 1, 10, 11, 12);
            port(ACCESS, ACCESS_MAC, A_MAC, &[], 4, 10, 11, 12);
        }
        Program::Combined => port(UPLINK, UPLINK_MAC, B_MAC, &[], 1, 11, 10, 1),
        // Comes behind the first.
        Program::Uplink | Program::Full | Program::NatOut | Program::NatIn => {}
    }
    if program != Program::Access {
        let mut tunnel = |from: &str, to: &str, vni: u32, net: u8, me: u8, you: u8| {
            let (s, d) = (format!("10.{net}.0.{me}"), format!("10.{net}.0.{you}"));
            let (s6, d6) = (
                format!("2001:db8:{net}::{me}"),
                format!("2001:db8:{net}::{you}"),
            );
            let extension = [
                vec![6, 0, 1, 4, 0, 0, 0, 0],
                tcp_segment(
                    ip(&s6),
                    ip(&d6),
                    1,
                    2,
                    tcp_flags::SYN,
                    &syn_options(1440),
                    &[],
                ),
            ]
            .concat();
            for l3 in [
                echo(ip(&s), ip(&d), 32),
                echo(ip(&s6), ip(&d6), 32),
                udp(ip(&s), ip(&d), 1, 2, b"payload"),
                udp(ip("10.9.0.2"), ip(&d), 1, 2, b"far"),
                udp(ip(&s), ip("10.9.0.2"), 1, 2, b"far"),
                tcp(
                    ip(&s),
                    ip(&d),
                    1,
                    2,
                    tcp_flags::SYN,
                    &syn_options(1460),
                    &[],
                ),
                tcp(
                    ip(&s6),
                    ip(&d6),
                    1,
                    2,
                    tcp_flags::SYN,
                    &syn_options(1440),
                    &[],
                ),
                ip_packet(ip(&s6), ip(&d6), 60, &extension),
                udp(ip(&s), ip(&format!("10.{net}.0.12")), 1, 2, b"unresolved"),
            ] {
                all.push((UPLINK, tunnelled(from, to, vni, &l3)));
            }
        };
        if program == Program::Uplink {
            tunnel(TENANT, PROVIDER, NET1, 1, 11, 10);
            tunnel(TENANT2, PROVIDER, NET2, 1, 11, 10);
            tunnel(TENANT6, PROVIDER6, NET3, 3, 11, 10);
            tunnel(TENANT, PROVIDER, NET4, 4, 11, 10);
        } else {
            tunnel(PROVIDER, TENANT, NET1, 1, 10, 11);
            tunnel(PROVIDER, TENANT, NET2T, 2, 10, 11);
        }
    }
    all
}

/// Datagrams to the port of the encrypted tunnels, to start from.
fn datagrams(program: Program) -> Vec<(u32, Vec<u8>)> {
    let ends: &[(&str, &str)] = match program {
        Program::Access | Program::Full | Program::NatOut | Program::NatIn => return Vec::new(),
        Program::Uplink => &[(TENANT, PROVIDER), (TENANT6, PROVIDER6)],
        Program::Combined => &[(PROVIDER, TENANT)],
    };
    let mut all = Vec::new();
    for (from, to) in ends {
        let mut add = |l3: &[u8]| all.push((UPLINK, frame(UPLINK_MAC, NEXT_HOP_MAC, &[], l3)));
        let mut messages: Vec<_> = SESSIONS.iter().map(|index| data(*index, 100)).collect();
        messages.extend([data(2, 100), data(1, 0), data(1, 1400)]);
        messages.extend((0..=5).map(message));
        for kind in 1..=3 {
            // Lengths of others' kinds.
            let mut message = message(kind % 3 + 1);
            message[0] = kind;
            messages.push(message);
        }
        for message in &messages {
            add(&udp(ip(from), ip(to), 6180, SECURE_PORT, message));
        }
        for message in [message(1), data(1, 32)] {
            let segment = udp_segment(ip(from), ip(to), 6180, SECURE_PORT, &message);
            if let (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) = (ip(from), ip(to)) {
                let mut header = V4::new(from, to, 17);
                header.options = vec![1; 8];
                add(&header.build(&segment));
            } else {
                for extension in [
                    vec![60, 0, 0, 0, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0],
                    vec![44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 9],
                ] {
                    let body = [extension, segment.clone()].concat();
                    add(&ip_packet(ip(from), ip(to), 0, &body));
                }
            }
        }
    }
    all
}

/// Packets between the networks of a tenant in full failover, and to its gateways, to start from.
fn routed() -> Vec<(u32, Vec<u8>)> {
    let mut all = Vec::new();
    for (ifindex, ours, tags, from) in [
        (TRUNK, TRUNK_MAC, vec![tag(101)], 1),
        (TRUNK, TRUNK_MAC, vec![service_tag(200), tag(102)], 3),
        (ACCESS, ACCESS_MAC, vec![], 4),
    ] {
        let mut add = |l3: &[u8]| all.push((ifindex, frame(ours, A_MAC, &tags, l3)));
        let (s, s6) = (format!("10.{from}.0.10"), format!("2001:db8:{from}::10"));
        for to in [1, 3, 4] {
            for (s, d) in [
                (&s, format!("10.{to}.0.10")),
                (&s, format!("10.{to}.0.12")),
                (&s6, format!("2001:db8:{to}::10")),
                (&s6, format!("2001:db8:{to}::12")),
            ] {
                let l3 = udp(ip(s), ip(&d), 1, 2, b"payload");
                add(&l3);
                add(&udp(ip(s), ip(&d), 1, 2, &[5; 600]));
                let mut last = l3;
                let v4 = last[0] >> 4 == 4;
                last[if v4 { 8 } else { 7 }] = 1;
                if v4 {
                    last[10..12].fill(0);
                    let sum = checksum(&last[..20]);
                    last[10..12].copy_from_slice(&sum.to_be_bytes());
                }
                add(&last);
            }
        }
        for (s, gateway) in [
            (&s, format!("10.{from}.0.1")),
            (&s6, format!("2001:db8:{from}::1")),
        ] {
            add(&echo(ip(s), ip(&gateway), 32));
            add(&udp(ip(s), ip(&gateway), 1, 2, b"for the gateway"));
        }
        let (gateway, gateway6) = (
            std::net::Ipv4Addr::new(10, from, 0, 1),
            std::net::Ipv6Addr::new(0x2001, 0xdb8, from.into(), 0, 0, 0, 0, 1),
        );
        let me = std::net::Ipv4Addr::new(10, from, 0, 10);
        let group = solicited_node(gateway6);
        let IpAddr::V6(me6) = ip(&s6) else {
            unreachable!("an IPv6 fixture");
        };
        let ask = arp(1, A_MAC, me, [0; 6], gateway);
        let solicit = ns(me6, group, gateway6, Some(A_MAC));
        let solicitation = frame(multicast_mac(group), A_MAC, &tags, &solicit);
        add(&udp(ip(&s), ip("198.51.100.9"), 1, 2, &[6; 80]));
        add(&udp(ip(&s6), ip("2001:db8:ffff::9"), 1, 2, &[6; 80]));
        all.push((ifindex, eth([0xff; 6], A_MAC, &tags, 0x0806, &ask)));
        all.push((ifindex, solicitation));
    }
    // Longer than net4's port takes.
    for (s, d) in [
        ("10.1.0.10", "10.4.0.10"),
        ("2001:db8:1::10", "2001:db8:4::10"),
    ] {
        let l3 = udp(ip(s), ip(d), 1, 2, &[7; 1400]);
        all.push((TRUNK, replica(&l3)));
    }
    all
}

/// Numbers that break parsers.
const EDGES: [u16; 16] = [
    0, 1, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8,
    4789, 6180,
];

/// Changes a packet a little, or a lot.
fn mutate(rng: &mut Seeded, packet: &mut Vec<u8>) {
    let rounds = [0, 1, 1, 1, 2, 3, 6][rng.below(7)];
    for _ in 0..rounds {
        // Headers are where programs look.
        let reach = if rng.below(4) == 0 {
            packet.len()
        } else {
            packet.len().min(128)
        };
        let at = rng.below(reach.max(1));
        match rng.below(12) {
            0..=2 => {
                if let Some(b) = packet.get_mut(at) {
                    *b = rng.byte();
                }
            }
            3..=4 => {
                if let Some(b) = packet.get_mut(at) {
                    *b ^= 1 << rng.below(8);
                }
            }
            5..=6 => {
                let value = rng.pick(&EDGES).to_be_bytes();
                if let Some(word) = packet.get_mut(at..at + 2) {
                    word.copy_from_slice(&value);
                }
            }
            7 => packet.truncate(14 + rng.below(packet.len().max(15) - 14)),
            8 => {
                let more = rng.below(64);
                packet.resize(packet.len() + more, 0xa5);
            }
            9 => {
                // Another tag, or one less.
                if rng.below(2) == 0 && packet.len() >= 14 {
                    let tag = [0x81, 0, rng.byte() & 0x0f, rng.byte()];
                    packet.splice(12..12, tag);
                } else if packet.len() >= 18 {
                    packet.drain(12..16);
                }
            }
            10 => {
                // Nudge a 16-bit number, as lengths are.
                if let Some(word) = packet.get_mut(at..at + 2) {
                    let value = u16::from_be_bytes([word[0], word[1]])
                        .wrapping_add(rng.below(9) as u16)
                        .wrapping_sub(4);
                    word.copy_from_slice(&value.to_be_bytes());
                }
            }
            _ => {
                let len = rng.below(16).min(packet.len() - at.min(packet.len()));
                rng.fill(&mut packet[at..at + len]);
            }
        }
    }
    packet.truncate(MAX_PACKET);
    if packet.len() < 14 {
        packet.resize(14, 0);
    }
}

/// The mode and kind of tunnels that the packets meet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Setting {
    /// Partial failover by plain tunnels.
    Plain,
    /// By encrypted ones.
    Encrypted,
    /// Full failover.
    Full,
}

fn run_random(program: Program, setting: Setting, must_see: &[Kind]) {
    let encrypted = setting == Setting::Encrypted;
    let mut world = match (setting, program) {
        (Setting::Full, _) => World::full(),
        (_, Program::Combined) => World::tenant(),
        (_, _) => World::provider(),
    };
    if encrypted {
        world = world.encrypted();
    }
    let Some(mut h) = Harness::new(world.clone()) else {
        return;
    };
    if encrypted {
        h.bind_sockets().expect("sockets for the workers");
    }
    let seed = seed_from_env();
    let count = series::length("CAUSEWAY_RANDOM_PACKETS", 1_000_000, 10_000_000);
    println!("{}: CAUSEWAY_SEED={seed}, {count} packets", program.name());
    let started = Instant::now();
    let mut tally: BTreeMap<Kind, u64> = BTreeMap::new();
    let mut records = 0u64;
    let mut corpus = corpus(program);
    match setting {
        Setting::Plain => {}
        Setting::Encrypted => corpus.extend(datagrams(program)),
        Setting::Full => corpus.extend(routed()),
    }
    let ports: &[u32] = &[UPLINK, TRUNK, ACCESS, STRAY];
    // Nine tenths in failover, one tenth idle.
    for (phase, world, share) in [
        ("failover", world.clone(), count - count / 10),
        ("idle", world.idle(), count / 10),
    ] {
        h.fill(world.clone()).expect("filled");
        let before = h.snapshot().without_marks();
        let mut rng = Seeded::new(seed ^ share ^ (program as u64) << 56);
        let mut packet = Vec::with_capacity(4096);
        for index in 0..share {
            packet.clear();
            let mut ifindex = *rng.pick(ports);
            if rng.below(16) == 0 {
                packet.resize(14 + rng.below(200), 0);
                rng.fill(&mut packet);
                if rng.below(2) == 0 {
                    packet[12..14].copy_from_slice(&rng.pick(&EDGES).to_be_bytes());
                }
            } else {
                let (port, base) = rng.pick(&corpus);
                packet.extend_from_slice(base);
                if rng.below(64) != 0 {
                    ifindex = *port;
                }
                mutate(&mut rng, &mut packet);
            }
            let (action, out) = match h.run(program, ifindex, &packet) {
                Ok((action, out)) => (action, out.to_vec()),
                Err(e) => panic!("{phase} packet {index}: {}", describe(&e)),
            };
            match oracle::check(&world, ifindex, &packet, action, &out) {
                Ok(kind) => *tally.entry(kind).or_default() += 1,
                Err(why) => panic!(
                    "CAUSEWAY_SEED={seed}, {phase} packet {index}: {why}\n\
                     action {action:?}, packet out:\n{}{}",
                    dump::hex(&out),
                    h.describe_run(program, ifindex, &packet)
                ),
            }
            if encrypted && index % 4096 == 4095 {
                // So that the limits do not hide handshakes from the reference.
                h.clear_handshake_limits().expect("maps");
            }
            if index % 64 == 63 || index + 1 == share {
                let mut wrong = None;
                h.each_record(|record| {
                    records += 1;
                    if let Err(why) = oracle::check_record(&world, &record) {
                        wrong.get_or_insert_with(|| format!("{why}: {record:x?}"));
                    }
                });
                if let Some(why) = wrong {
                    panic!("CAUSEWAY_SEED={seed}, {phase} up to packet {index}: record: {why}");
                }
            }
        }
        let after = h.snapshot().without_marks();
        assert!(
            before == after,
            "CAUSEWAY_SEED={seed}: {phase}: maps changed\n{}",
            h.describe()
        );
        if phase == "idle" {
            assert!(
                h.world.tenants.iter().all(|t| t.mode == 0),
                "the idle phase was idle"
            );
        }
    }
    println!(
        "{}: {tally:?}, {records} records, {:.1} s",
        program.name(),
        started.elapsed().as_secs_f64()
    );
    if count >= 100_000 {
        for kind in must_see {
            assert!(
                tally.get(kind).copied().unwrap_or(0) > 100,
                "the packets hardly reached {kind:?}: {tally:?}"
            );
        }
    }
}

#[test]
fn access_survives_random_packets() {
    run_random(
        Program::Access,
        Setting::Plain,
        &[
            Kind::ArpReply,
            Kind::Advertisement,
            Kind::FragNeeded,
            Kind::PacketTooBig,
            Kind::Encapsulated,
        ],
    );
}

#[test]
fn access_of_encrypted_networks_survives_random_packets() {
    run_random(
        Program::Access,
        Setting::Encrypted,
        &[
            Kind::ArpReply,
            Kind::Advertisement,
            Kind::FragNeeded,
            Kind::PacketTooBig,
            Kind::Encapsulated,
            Kind::ToSeal,
        ],
    );
}

#[test]
fn full_failover_survives_random_packets() {
    run_random(
        Program::Access,
        Setting::Full,
        &[
            Kind::ArpReply,
            Kind::Advertisement,
            Kind::FragNeeded,
            Kind::PacketTooBig,
            Kind::Routed,
            Kind::EchoReply,
            Kind::TimeExceeded,
            Kind::Unreachable,
        ],
    );
}

#[test]
fn uplink_survives_random_packets() {
    run_random(
        Program::Uplink,
        Setting::Plain,
        &[Kind::Decapsulated, Kind::Passed],
    );
}

#[test]
fn uplink_with_encrypted_tunnels_survives_random_packets() {
    run_random(
        Program::Uplink,
        Setting::Encrypted,
        &[
            Kind::Decapsulated,
            Kind::Passed,
            Kind::ToOpen,
            Kind::Handshake,
        ],
    );
}

#[test]
fn combined_survives_random_packets() {
    run_random(
        Program::Combined,
        Setting::Plain,
        &[
            Kind::ArpReply,
            Kind::Advertisement,
            Kind::FragNeeded,
            Kind::PacketTooBig,
            Kind::Encapsulated,
            Kind::Decapsulated,
            Kind::Hairpinned,
        ],
    );
}

#[test]
fn combined_with_encrypted_tunnels_survives_random_packets() {
    run_random(
        Program::Combined,
        Setting::Encrypted,
        &[
            Kind::ArpReply,
            Kind::Advertisement,
            Kind::FragNeeded,
            Kind::PacketTooBig,
            Kind::Decapsulated,
            Kind::Hairpinned,
            Kind::ToSeal,
            Kind::ToOpen,
            Kind::Handshake,
        ],
    );
}
