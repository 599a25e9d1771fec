//! Full failover: the gateway's address answered, pings to it, routes between a tenant's networks
//! by policy, and the errors that a router sends.

use appliance_common::{counters::Counter, events::SlowReason};
use causeway_tests::{
    harness::{Action, Harness, Program},
    packet::*,
    table::{Case, Out, run, slow},
    world::*,
};

const A: &str = "10.1.0.10";
const A6: &str = "2001:db8:1::10";
/// A host of net4. Policy permits net1 and net4 to send to each other.
const D: &str = "10.4.0.10";
const D6: &str = "2001:db8:4::10";
/// A host of net3, which may send to net1, and to which no network may send.
const C: &str = "10.3.0.10";
const C6: &str = "2001:db8:3::10";
const GW: &str = "10.1.0.1";
const GW6: &str = "2001:db8:1::1";

/// The packet one hop further.
fn hop(l3: &[u8]) -> Vec<u8> {
    let mut out = l3.to_vec();
    if out[0] >> 4 == 4 {
        out[8] -= 1;
        out[10..12].fill(0);
        let header = usize::from(out[0] & 0xf) * 4;
        let sum = checksum(&out[..header]);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        out[7] -= 1;
    }
    out
}

fn with_hops(mut l3: Vec<u8>, hops: u8) -> Vec<u8> {
    if l3[0] >> 4 == 4 {
        l3[8] = hops + 1;
        hop(&l3)
    } else {
        l3[7] = hops;
        l3
    }
}

/// An ICMP error of the gateway's about a packet of A's, quoting `quote` bytes.
fn error(l3: &[u8], kind: u8, code: u8, mtu: u16, quote: usize) -> Vec<u8> {
    let v4 = l3[0] >> 4 == 4;
    let mut rest = vec![0; 4];
    rest[2..].copy_from_slice(&mtu.to_be_bytes());
    rest.extend_from_slice(&l3[..quote]);
    if !v4 {
        return icmp(ip(GW6), ip(A6), kind, code, &rest);
    }
    let (gateway, a) = ([10, 1, 0, 1], [10, 1, 0, 10]);
    let mut header = V4::new(gateway.into(), a.into(), 1);
    header.id = 0;
    header.frag = 0;
    header.tos = 0xc0;
    header.build(&icmp_message(ip(GW), ip(A), kind, code, &rest))
}

/// A frame from the appliance to A.
fn to_a(l3: &[u8]) -> Vec<u8> {
    frame(A_MAC, TRUNK_MAC, &[tag(101)], l3)
}

fn from_a(what: &str, l3: &[u8]) -> Case<'static> {
    Case::new(what, Program::Access, TRUNK, replica(l3))
}

#[test]
fn the_policy_decides_between_networks_and_the_ttl_is_decremented() {
    let Some(mut h) = Harness::new(World::full()) else {
        return;
    };
    let mut cases = Vec::new();
    for (a, d) in [(A, D), (A6, D6)] {
        for (what, l3) in [
            ("UDP", udp(ip(a), ip(d), 1, 2, b"payload")),
            ("TCP", tcp(ip(a), ip(d), 1, 2, tcp_flags::SYN, &[], &[])),
            ("echo", echo(ip(a), ip(d), 56)),
            ("two hops left", with_hops(udp(ip(a), ip(d), 1, 2, b"x"), 2)),
        ] {
            // From a tagged port to an untagged one, and back.
            cases.push(
                from_a(&format!("{what} to {d}"), &l3)
                    .gives(
                        Action::Redirect,
                        Out::Is(frame(A_MAC, ACCESS_MAC, &[], &hop(&l3))),
                    )
                    .counts(Counter::Routed),
            );
        }
        let back = udp(ip(d), ip(a), 2, 1, b"answer");
        cases.push(
            Case::new(
                format!("{d} to {a}"),
                Program::Access,
                ACCESS,
                frame(ACCESS_MAC, A_MAC, &[], &back),
            )
            .gives(Action::Redirect, Out::Is(to_a(&hop(&back))))
            .counts(Counter::Routed),
        );
    }
    for (c, a) in [(C, A), (C6, A6)] {
        let l3 = udp(ip(c), ip(a), 2, 1, b"from two tags");
        cases.push(
            Case::new(
                format!("{c} to {a}"),
                Program::Access,
                TRUNK,
                frame(TRUNK_MAC, A_MAC, &[service_tag(200), tag(102)], &l3),
            )
            .gives(Action::Tx, Out::Is(to_a(&hop(&l3))))
            .counts(Counter::Routed),
        );
        let l3 = udp(ip(a), ip(c), 2, 1, b"not the other way");
        let quote = if ip(a).is_ipv4() { 28 } else { 48 };
        let (kind, code) = if ip(a).is_ipv4() { (3, 13) } else { (1, 1) };
        cases.push(
            from_a(&format!("{a} to {c}"), &l3)
                .gives(Action::Tx, Out::Is(to_a(&error(&l3, kind, code, 0, quote))))
                .counts(Counter::DropPolicy)
                .counts(Counter::UnreachableSent),
        );
    }
    run(&mut h, cases);
}

#[test]
fn an_unresolved_host_is_handed_to_the_slow_path() {
    let Some(mut h) = Harness::new(World::full()) else {
        return;
    };
    let mut cases = Vec::new();
    for (a, d) in [(A, "10.4.0.99"), (A6, "2001:db8:4::99")] {
        let l3 = udp(ip(a), ip(d), 1, 2, b"wait");
        cases.push(
            from_a(d, &l3)
                .dropped(Counter::SlowUnresolved)
                .records(slow(SlowReason::Unresolved, NET4, d, hop(&l3))),
        );
    }
    run(&mut h, cases);
}

#[test]
fn the_gateway_answers_as_a_router_without_open_ports() {
    let Some(mut h) = Harness::new(World::full()) else {
        return;
    };
    let mut cases = Vec::new();
    for (a, gw) in [(A, GW), (A6, GW6)] {
        let reply = |len: usize| {
            let mut l3 = echo(ip(gw), ip(a), len);
            let kind = if ip(a).is_ipv4() { 20 } else { 40 };
            l3[kind] = if ip(a).is_ipv4() { 0 } else { 129 };
            // The echo's own fields are the asker's.
            let asked = echo(ip(a), ip(gw), len);
            l3[kind + 4..].copy_from_slice(&asked[kind + 4..]);
            if ip(a).is_ipv4() {
                l3[4..8].copy_from_slice(&asked[4..8]);
            }
            l3
        };
        for len in [0, 1, 56, 1400] {
            let want = reply(len);
            cases.push(
                from_a(&format!("{len} bytes to {gw}"), &echo(ip(a), ip(gw), len))
                    .gives(
                        Action::Tx,
                        Out::Check(Box::new(move |out| answered(out, &want))),
                    )
                    .counts(Counter::EchoAnswered),
            );
        }
        for (what, l3) in [
            ("an echo reply", icmp(ip(a), ip(gw), 0, 0, &[0; 8])),
            ("another code", {
                let kind = if ip(a).is_ipv4() { 8 } else { 128 };
                icmp(ip(a), ip(gw), kind, 1, &[0; 8])
            }),
            ("another protocol", ip_packet(ip(a), ip(gw), 47, &[0; 8])),
            (
                "a reset",
                tcp(ip(a), ip(gw), 1, 22, tcp_flags::RST, &[], &[]),
            ),
        ] {
            cases.push(from_a(&format!("{what} to {gw}"), &l3).dropped(Counter::DropToGateway));
        }
        // UDP gets an error, whole or as a first fragment.
        let asked = udp(ip(a), ip(gw), 1, 53, b"?");
        let (kind, code) = if ip(a).is_ipv4() { (3, 3) } else { (1, 4) };
        let quote = if ip(a).is_ipv4() { 28 } else { 48 };
        let answer = error(&asked, kind, code, 0, quote);
        cases.push(
            from_a(&format!("UDP to {gw}"), &asked)
                .gives(Action::Tx, Out::Is(to_a(&answer)))
                .counts(Counter::DropToGateway)
                .counts(Counter::UnreachableSent),
        );
        // TCP gets a reset, which the oracle checks.
        for (what, flags, data) in [
            ("SYN", tcp_flags::SYN, &b""[..]),
            ("SYN with data", tcp_flags::SYN, &b"early"[..]),
            ("ACK", tcp_flags::ACK, &[7; 700][..]),
            ("FIN and ACK", tcp_flags::FIN | tcp_flags::ACK, &b""[..]),
            ("no flag", 0, &b"odd"[..]),
        ] {
            let l3 = tcp(ip(a), ip(gw), 40_000, 22, flags, &[], data);
            cases.push(
                from_a(&format!("{what} to {gw}"), &l3)
                    .gives(
                        Action::Tx,
                        Out::Check(Box::new(move |out| {
                            let l4 = if ip(a).is_ipv4() { 38 } else { 58 };
                            let len = out.len() == l4 + 20;
                            let ports = out.get(l4..l4 + 4) == Some(&[0, 22, 0x9c, 0x40][..]);
                            (len && ports).then_some(()).ok_or("no reset".to_owned())
                        })),
                    )
                    .counts(Counter::DropToGateway)
                    .counts(Counter::ResetSent),
            );
        }
        // Pings in fragments are answered by the daemon.
        let long = echo(ip(a), ip(gw), 1400);
        for piece in causeway_tests::nat::fragments(&long, 800, 5) {
            cases.push(
                from_a(&format!("a fragment to {gw}"), &piece)
                    .dropped(Counter::SlowEcho)
                    .records(slow(SlowReason::GatewayEcho, NET1, gw, piece.clone())),
            );
        }
        let long = udp(ip(a), ip(gw), 1, 2, &[0; 900]);
        let [_, later] = causeway_tests::nat::fragments(&long, 800, 6);
        cases.push(from_a("a fragment of UDP", &later).dropped(Counter::DropToGateway));
    }
    run(&mut h, cases);
}

/// Checks the reply to a ping: `want`, with any hop limit and a correct checksum.
fn answered(out: &[u8], want: &[u8]) -> Result<(), String> {
    let l3 = &out[18..];
    if out[..18] != to_a(want)[..18] {
        return Err("another Ethernet header".to_owned());
    }
    let v4 = want[0] >> 4 == 4;
    let (hops, header) = if v4 { (8, 20) } else { (7, 40) };
    if l3[hops] != 64 {
        return Err(format!("hop limit {}", l3[hops]));
    }
    if v4 && checksum(&l3[..20]) != 0 {
        return Err("the IPv4 checksum is wrong".to_owned());
    }
    let mut message = l3[header..].to_vec();
    let (src, dst) = if v4 { (GW, A) } else { (GW6, A6) };
    let sum = message.split_off(2);
    message.extend_from_slice(&[0, 0]);
    message.extend_from_slice(&sum[2..]);
    let right = if v4 {
        checksum(&message)
    } else {
        transport_checksum(ip(src), ip(dst), 58, &message)
    };
    if right.to_be_bytes() != sum[..2] {
        return Err("the ICMP checksum is wrong".to_owned());
    }
    let addresses = if v4 { 12..20 } else { 8..40 };
    if l3[addresses.clone()] != want[addresses] || l3[header] != want[header] {
        return Err("addresses or type".to_owned());
    }
    if l3[header + 4..] != want[header + 4..] {
        return Err("the payload is not the asker's".to_owned());
    }
    Ok(())
}

#[test]
fn the_errors_of_the_gateway_follow_the_standards() {
    let Some(mut h) = Harness::new(World::full()) else {
        return;
    };
    let mut cases = Vec::new();
    for (a, d, far) in [(A, D, "198.51.100.9"), (A6, D6, "2001:db8:ffff::9")] {
        let v4 = ip(a).is_ipv4();
        let least = if v4 { 28 } else { 48 };
        let (exceeded, unreachable) = if v4 { (11, 3) } else { (3, 1) };
        for (len, quote) in [(0usize, least), (100, least), (600, 512), (1300, 512)] {
            for hops in [0, 1] {
                let l3 = with_hops(udp(ip(a), ip(d), 1, 2, &vec![7; len]), hops);
                cases.push(
                    from_a(&format!("{len} bytes, {hops} hops left"), &l3)
                        .gives(
                            Action::Tx,
                            Out::Is(to_a(&error(&l3, exceeded, 0, 0, quote))),
                        )
                        .counts(Counter::DropHopLimit)
                        .counts(Counter::TimeExceededSent),
                );
            }
            let l3 = udp(ip(a), ip(far), 1, 2, &vec![7; len]);
            cases.push(
                from_a(&format!("{len} bytes to nowhere"), &l3)
                    .gives(
                        Action::Tx,
                        Out::Is(to_a(&error(&l3, unreachable, 0, 0, quote))),
                    )
                    .counts(Counter::DropNoRoute)
                    .counts(Counter::UnreachableSent),
            );
        }
        // Net4's port takes 1400 bytes.
        let fits = udp(ip(a), ip(d), 1, 2, &vec![7; 1400 - least]);
        cases.push(
            from_a("1400 bytes", &fits)
                .gives(
                    Action::Redirect,
                    Out::Is(frame(A_MAC, ACCESS_MAC, &[], &hop(&fits))),
                )
                .counts(Counter::Routed),
        );
        let long = udp(ip(a), ip(d), 1, 2, &vec![7; 1401 - least]);
        let (kind, code, counter) = if v4 {
            (3, 4, Counter::FragNeededSent)
        } else {
            (2, 0, Counter::PacketTooBigSent)
        };
        cases.push(
            from_a("1401 bytes", &long)
                .gives(
                    Action::Tx,
                    Out::Is(to_a(&error(&long, kind, code, 1400, 512))),
                )
                .counts(counter),
        );
        // About an error, none.
        let about = icmp(ip(a), ip(far), unreachable, 0, &[0; 60]);
        cases.push(from_a("an error to nowhere", &about).dropped(Counter::DropNoRoute));
        let about = with_hops(icmp(ip(a), ip(d), exceeded, 0, &[0; 60]), 1);
        cases.push(from_a("an error too far", &about).dropped(Counter::DropHopLimit));
    }
    run(&mut h, cases);
}

#[test]
fn icmp_errors_are_rate_limited() {
    let Some(mut h) = Harness::new(World::full()) else {
        return;
    };
    let packet = replica(&udp(ip(A), ip("198.51.100.9"), 1, 2, b"to nowhere"));
    let mut sent = 0;
    let begun = std::time::Instant::now();
    for _ in 0..2000 {
        let (action, _) = h.run(Program::Access, TRUNK, &packet).expect("it runs");
        sent += u32::from(action == Action::Tx);
    }
    // 50 at once, and one for each millisecond.
    let most = 50 + begun.elapsed().as_millis() as u32 + 1;
    assert!(sent >= 50 && sent <= most, "{sent} of at most {most}");
    assert!(sent < 2000);
}

#[test]
fn only_packets_from_hosts_of_the_network_are_routed() {
    let Some(mut h) = Harness::new(World::full()) else {
        return;
    };
    let mut cases = Vec::new();
    for (forged, d) in [
        ("10.4.0.11", D),
        ("10.1.0.1", D),
        ("10.1.0.255", D),
        ("10.1.0.0", D),
        ("203.0.113.9", D),
        ("127.0.0.1", D),
        ("0.0.0.0", D),
        ("2001:db8:4::11", D6),
        ("2001:db8:1::1", D6),
        ("2001:db8:ffff::1", D6),
    ] {
        let l3 = udp(ip(forged), ip(d), 1, 2, b"forged");
        cases.push(from_a(&format!("from {forged}"), &l3).dropped(Counter::DropSourceGuard));
    }
    for (a, no_host) in [
        (A, "10.1.0.255"),
        (A, "224.0.0.1"),
        (A, "255.255.255.255"),
        (A6, "ff05::1"),
    ] {
        let l3 = udp(ip(a), ip(no_host), 1, 2, b"to all");
        cases.push(from_a(&format!("to {no_host}"), &l3).dropped(Counter::DropNotCarried));
    }
    // The other network's gateway and broadcast address are no hosts of it.
    for (a, no_host) in [
        (A, "10.4.0.1"),
        (A, "10.4.0.255"),
        (A, "10.4.0.0"),
        (A6, "2001:db8:4::1"),
    ] {
        let l3 = udp(ip(a), ip(no_host), 1, 2, b"to none");
        cases.push(from_a(&format!("to {no_host}"), &l3).dropped(Counter::DropNotCarried));
    }
    for (a, local) in [(A, "169.254.1.1"), (A6, "fe80::99")] {
        let l3 = udp(ip(a), ip(local), 1, 2, b"to the link");
        cases.push(from_a(&format!("to {local}"), &l3).dropped(Counter::DropLinkLocal));
    }
    let l3 = udp(ip(A), ip(D), 1, 2, b"x");
    cases.push(
        Case::new(
            "to another MAC",
            Program::Access,
            TRUNK,
            frame(B_MAC, A_MAC, &[tag(101)], &l3),
        )
        .dropped(Counter::DropForeignMac),
    );
    for (what, l3) in [
        ("a length beyond the frame", {
            let mut l3 = l3.clone();
            l3[2..4].copy_from_slice(&200u16.to_be_bytes());
            l3
        }),
        ("half a header", l3[..12].to_vec()),
    ] {
        cases.push(from_a(what, &l3).dropped(Counter::DropMalformed));
    }
    run(&mut h, cases);
}

#[test]
fn tenants_with_equal_networks_never_meet() {
    let Some(mut h) = Harness::new(World::full()) else {
        return;
    };
    let l3 = udp(ip(A), ip(D), 1, 2, b"of the other tenant");
    run(
        &mut h,
        vec![
            Case::new(
                "globex has no net4",
                Program::Access,
                TRUNK,
                frame(TRUNK_MAC, G_MAC, &[tag(201)], &l3),
            )
            .gives(
                Action::Tx,
                Out::Is(frame(
                    G_MAC,
                    TRUNK_MAC,
                    &[tag(201)],
                    &error(&l3, 3, 0, 0, 28),
                )),
            )
            .counts(Counter::DropNoRoute)
            .counts(Counter::UnreachableSent),
        ],
    );
}

#[test]
fn only_the_gateway_s_address_is_answered() {
    let Some(mut h) = Harness::new(World::full()) else {
        return;
    };
    let v4 = |text: &str| match ip(text) {
        std::net::IpAddr::V4(a) => a,
        std::net::IpAddr::V6(_) => unreachable!("an IPv4 fixture"),
    };
    let ask = |target: &str, sender: &str| {
        eth(
            [0xff; 6],
            A_MAC,
            &[tag(101)],
            0x0806,
            &arp(1, A_MAC, v4(sender), [0; 6], v4(target)),
        )
    };
    let answer = |sender: &str| {
        eth(
            A_MAC,
            TRUNK_MAC,
            &[tag(101)],
            0x0806,
            &arp(2, TRUNK_MAC, v4(GW), A_MAC, v4(sender)),
        )
    };
    let case = |what: &str, packet| Case::new(what, Program::Access, TRUNK, packet);
    let v6 = |text: &str| match ip(text) {
        std::net::IpAddr::V6(a) => a,
        std::net::IpAddr::V4(_) => unreachable!("an IPv6 fixture"),
    };
    let solicit = |target: &str| {
        let group = solicited_node(v6(target));
        frame(
            multicast_mac(group),
            A_MAC,
            &[tag(101)],
            &ns(v6(A6), group, v6(target), Some(A_MAC)),
        )
    };
    run(
        &mut h,
        vec![
            case("for the gateway", ask(GW, A))
                .gives(Action::Tx, Out::Is(answer(A)))
                .counts(Counter::ArpAnswered),
            case("a probe for it", ask(GW, "0.0.0.0"))
                .gives(Action::Tx, Out::Is(answer("0.0.0.0")))
                .counts(Counter::ArpAnswered),
            case("its announcement by another", ask(GW, GW))
                .gives(Action::Tx, Out::Is(answer(GW)))
                .counts(Counter::ArpAnswered)
                .counts(Counter::NeighbourSeen),
            case("for a neighbour that is here", ask("10.1.0.12", A))
                .dropped(Counter::ControlIgnored),
            case("for an address without a host", ask("10.1.0.200", A))
                .dropped(Counter::ControlIgnored),
            case("solicitation for the gateway", solicit(GW6))
                .gives(
                    Action::Tx,
                    Out::Check(Box::new(|out| {
                        let (l3, flags) = (&out[18..], out[18 + 44]);
                        let ok = out[..6] == A_MAC && l3[40] == 136 && flags == 0xe0;
                        ok.then_some(())
                            .ok_or_else(|| "no advertisement of a router".to_owned())
                    })),
                )
                .counts(Counter::NdAnswered),
            case("solicitation for a neighbour", solicit("2001:db8:1::12"))
                .dropped(Counter::ControlIgnored),
        ],
    );
}

#[test]
fn on_a_shared_port_the_appliance_s_own_packets_pass_to_the_kernel() {
    let mut world = World::full();
    for (_, attachment) in &mut world.attachments {
        attachment.flags |= appliance_common::maps::attachment_flags::HOST;
    }
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    run(
        &mut h,
        vec![
            from_a(
                "to the appliance",
                &tcp(ip(A), ip(PROVIDER), 1, 22, tcp_flags::SYN, &[], &[]),
            )
            .passed(),
            from_a(
                "to the appliance over IPv6",
                &tcp(ip(A6), ip(PROVIDER6), 1, 22, tcp_flags::SYN, &[], &[]),
            )
            .passed(),
            // The kernel's routes do not decide about other destinations.
            from_a("forged", &udp(ip("10.9.9.9"), ip(D), 1, 2, b"x"))
                .dropped(Counter::DropSourceGuard),
        ],
    );
}

#[test]
fn a_router_solicitation_is_handed_to_the_slow_path() {
    let Some(mut h) = Harness::new(World::full()) else {
        return;
    };
    let (from, all) = (
        "fe80::a".parse().expect("an address"),
        "ff02::2".parse().expect("an address"),
    );
    let message = |hops, code| {
        let message = icmp_message(ip("fe80::a"), ip("ff02::2"), 133, code, &[0; 4]);
        let l3 = v6(from, all, 58, hops, &message);
        frame([0x33, 0x33, 0, 0, 0, 2], A_MAC, &[tag(101)], &l3)
    };
    let case = |what: &str, packet| Case::new(what, Program::Access, TRUNK, packet);
    let l3 = message(255, 0)[18..].to_vec();
    run(
        &mut h,
        vec![
            case("a solicitation", message(255, 0))
                .dropped(Counter::SlowSolicited)
                .records(slow(SlowReason::RouterSolicitation, NET1, "fe80::a", l3)),
            case("from afar", message(254, 0)).dropped(Counter::DropMalformed),
            case("of another code", message(255, 1)).dropped(Counter::DropMalformed),
        ],
    );
    // In partial failover the production site's router replies, not the appliance.
    h.fill(World::provider()).expect("filled");
    run(
        &mut h,
        vec![case("in partial failover", message(255, 0)).dropped(Counter::DropNotCarried)],
    );
}

#[test]
fn the_link_local_address_of_our_mac_is_answered_as_a_router() {
    let Some(mut h) = Harness::new(World::full()) else {
        return;
    };
    // RFC 4291 appendix A, of the trunk's 02:00:00:00:11:0a: the advertisements' source.
    let target = "fe80::ff:fe00:110a".parse().expect("an address");
    let from = "fe80::a".parse().expect("an address");
    let group = solicited_node(target);
    let ask = |target| {
        let l3 = ns(from, group, target, Some(A_MAC));
        frame(multicast_mac(group), A_MAC, &[tag(101)], &l3)
    };
    let answer = na(target, from, target, 0xe0, Some(TRUNK_MAC));
    let other = "fe80::1:110a".parse().expect("an address");
    run(
        &mut h,
        vec![
            Case::new("ours", Program::Access, TRUNK, ask(target))
                .gives(Action::Tx, Out::Is(to_a(&answer)))
                .counts(Counter::NdAnswered),
            Case::new("another's", Program::Access, TRUNK, ask(other))
                .dropped(Counter::ControlIgnored),
        ],
    );
}
