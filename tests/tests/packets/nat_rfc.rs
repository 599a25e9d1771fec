//! Requirements of RFC 4787 (UDP), RFC 5382 (TCP), RFC 5508 (ICMP) and RFC 7857 for a NAT, one test
//! each; and the mapping and filtering that a client of RFC 5780 detects. The table is in
//! docs/nat.md.

use std::net::IpAddr;

use appliance_common::{
    counters::Counter,
    nat::{Flow, FlowKey, Timeouts, ticks},
};
use causeway_tests::{
    harness::{Harness, SharedHarness},
    nat::{End, HostPort, Message, Verdict, end, ends, fragments, hop, inside, outside, packet},
    packet::*,
    world::*,
};
use tcp_flags::{ACK, FIN, RST, SYN};

const A: &str = "10.1.0.10";
const A6: &str = "2001:db8:1::10";
const PA: HostPort = HostPort::trunk(101, A_MAC);
/// A second host of net1.
const C: &str = "10.1.0.30";
const C6: &str = "2001:db8:1::30";
const C_MAC: Mac = [0x02, 0, 0, 0xaa, 0, 0x1e];
const PC: HostPort = HostPort::trunk(101, C_MAC);
/// Hosts, their external address, a remote host; of each family.
const FAMILIES: [(&str, &str, &str, &str); 2] = [(A, C, NAT4, REMOTE), (A6, C6, NAT6, REMOTE6)];

fn nat() -> Option<SharedHarness> {
    let mut world = World::nat();
    for host in [C, C6] {
        world.neighbour(NET1, host, TRUNK, C_MAC, TRUNK_MAC, 101, 0);
    }
    Harness::new(world)
}

fn dropped(reason: Counter) -> Verdict {
    Verdict::Dropped(reason)
}

fn seen_as(fate: Verdict) -> End {
    match fate {
        Verdict::Outside(l3) => ends(&l3).0,
        other => panic!("it does not leave: {other:?}"),
    }
}

/// Makes every connection so many seconds older.
fn silence(h: &mut Harness, seconds: u32) {
    let by = ticks(u64::from(seconds) * 1_000_000_000);
    for map in ["FLOWS", "OPENING", "OPENING_EXCESS", "FRAGMENTS"] {
        for (key, mut flow) in h.entries::<FlowKey, Flow>(map).expect("a map") {
            flow.last_seen = flow.last_seen.wrapping_sub(by);
            h.put(map, key, flow).expect("a map");
        }
    }
}

/// Opens a TCP connection from A; returns its external endpoint.
fn connect(h: &mut Harness, from: End, far: End) -> End {
    let outer = seen_as(inside(h, PA, &packet(Message::Tcp(SYN), from, far)));
    let answer = outside(h, &packet(Message::Tcp(SYN | ACK), far, outer));
    assert!(matches!(answer, Verdict::Host(_)), "{answer:?}");
    inside(h, PA, &packet(Message::Tcp(ACK), from, far));
    outer
}

fn is_received(h: &mut Harness, message: Message, far: End, outer: End) -> bool {
    matches!(outside(h, &packet(message, far, outer)), Verdict::Host(_))
}

#[test]
fn rfc4787_req3_no_two_endpoints_share_a_port() {
    let Some(mut h) = nat() else { return };
    for (a, c, _, remote) in FAMILIES {
        for message in [Message::Udp, Message::Tcp(SYN), Message::EchoRequest] {
            let one = seen_as(inside(
                &mut h,
                PA,
                &packet(message, end(a, 40_000), end(remote, 53)),
            ));
            let two = seen_as(inside(
                &mut h,
                PC,
                &packet(message, end(c, 40_000), end(remote, 54)),
            ));
            assert_ne!(one, two, "{message:?}");
            assert!(one.1 >= 1024 && two.1 >= 1024);
        }
    }
}

#[test]
fn rfc4787_req2_all_endpoints_of_a_host_get_one_address() {
    let Some(mut h) = nat() else { return };
    for (a, _, seen, remote) in FAMILIES {
        for port in [1, 1023, 1024, 30_000, 65_535] {
            for message in [Message::Udp, Message::Tcp(SYN), Message::EchoRequest] {
                let outer = seen_as(inside(
                    &mut h,
                    PA,
                    &packet(message, end(a, port), end(remote, 9)),
                ));
                assert_eq!(outer.0, ip(seen));
            }
        }
    }
}

/// A world whose first tenant has four IPv4 addresses of a few ports each.
fn several_addresses(ports: u16) -> (World, Vec<IpAddr>) {
    let mut world = World::nat();
    world.nat_addresses[0].last = 1024 + ports - 1;
    let mut all = vec![ip(NAT4)];
    for last in 26..29 {
        let text = format!("203.0.113.{last}");
        world.public(&text, 0);
        world.nat_address(0, &text, 1024, 1024 + ports - 1);
        all.push(ip(&text));
    }
    (world, all)
}

/// Hosts of net1, which all answer from the same MAC address.
fn hosts(world: &mut World) -> Vec<String> {
    let hosts: Vec<_> = (100..164).map(|last| format!("10.1.0.{last}")).collect();
    for host in &hosts {
        world.neighbour(NET1, host, TRUNK, C_MAC, TRUNK_MAC, 101, 0);
    }
    hosts
}

#[test]
fn rfc4787_req2_hosts_are_paired_with_one_of_several_addresses() {
    let (mut world, addresses) = several_addresses(60_000);
    let hosts = hosts(&mut world);
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let mut used = std::collections::BTreeMap::<IpAddr, u32>::new();
    for host in &hosts {
        let seen: Vec<_> = [Message::Udp, Message::Tcp(SYN), Message::EchoRequest]
            .into_iter()
            .flat_map(|message| [2000, 3000, 4000].map(|port| (message, port)))
            .map(|(message, port)| {
                let sent = packet(message, end(host, port), end(REMOTE, 9));
                seen_as(inside(&mut h, PC, &sent)).0
            })
            .collect();
        assert!(seen.iter().all(|a| *a == seen[0]), "{host}: {seen:?}");
        assert!(addresses.contains(&seen[0]), "{host}: {seen:?}");
        *used.entry(seen[0]).or_default() += 1;
    }
    println!("{used:?}");
    assert_eq!(used.len(), addresses.len(), "{used:?}");
    assert!(used.values().all(|hosts| *hosts >= 6), "{used:?}");
    // Replies to each come back.
    let from = end(&hosts[0], 2000);
    let outer = seen_as(inside(
        &mut h,
        PC,
        &packet(Message::Udp, from, end(REMOTE, 9)),
    ));
    assert!(is_received(&mut h, Message::Udp, end(REMOTE, 9), outer));
}

#[test]
fn new_hosts_avoid_an_address_without_free_ports() {
    let (mut world, addresses) = several_addresses(8);
    let hosts = hosts(&mut world);
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    // A host that is there takes all ports of its address, and gets no other.
    let (mut seen, mut refused) = (Vec::new(), 0);
    for port in 2000..2100 {
        match inside(
            &mut h,
            PC,
            &packet(Message::Udp, end(&hosts[0], port), end(REMOTE, 9)),
        ) {
            Verdict::Outside(l3) => seen.push(ends(&l3).0.0),
            fate => {
                assert_eq!(fate, dropped(Counter::DropNoPort));
                refused += 1;
            }
        }
    }
    assert_eq!((seen.len(), refused), (8, 92));
    let full = seen[0];
    assert!(seen.iter().all(|a| *a == full), "{seen:?}");
    // Others get ports while there are some at any address.
    let mut used = std::collections::BTreeMap::<IpAddr, u32>::new();
    for host in &hosts[1..] {
        for _attempt in 0..addresses.len() {
            let sent = packet(Message::Udp, end(host, 2000), end(REMOTE, 9));
            if let Verdict::Outside(l3) = inside(&mut h, PC, &sent) {
                *used.entry(ends(&l3).0.0).or_default() += 1;
                break;
            }
        }
    }
    println!("{full} is full; {used:?}");
    assert!(!used.contains_key(&full), "{used:?}");
    assert_eq!(used.values().sum::<u32>(), 3 * 8, "{used:?}");
}

#[test]
fn rfc4787_req5_udp_is_kept_for_five_minutes_and_no_longer() {
    let Some(mut h) = nat() else { return };
    for (a, _, _, remote) in FAMILIES {
        let (from, far) = (end(a, 41_000), end(remote, 5300));
        for answered in [false, true] {
            h.clear_connections().expect("maps");
            let outer = seen_as(inside(&mut h, PA, &packet(Message::Udp, from, far)));
            if answered {
                assert!(is_received(&mut h, Message::Udp, far, outer));
            }
            silence(&mut h, 295);
            assert!(
                is_received(&mut h, Message::Udp, far, outer),
                "answered: {answered}"
            );
            silence(&mut h, 310);
            assert_eq!(
                outside(&mut h, &packet(Message::Udp, far, outer)),
                dropped(Counter::DropNoRule)
            );
        }
    }
}

#[test]
fn rfc4787_req5a_queries_to_well_known_ports_are_kept_for_half_a_minute() {
    let Some(mut h) = nat() else { return };
    for (a, _, _, remote) in FAMILIES {
        for (port, short) in [
            (53, true),
            (123, true),
            (1023, true),
            (1024, false),
            // QUIC, IKE, and DNS over QUIC pause for longer.
            (443, false),
            (500, false),
            (853, false),
        ] {
            let (from, far) = (end(a, 41_000), end(remote, port));
            h.clear_connections().expect("maps");
            let outer = seen_as(inside(&mut h, PA, &packet(Message::Udp, from, far)));
            assert!(is_received(&mut h, Message::Udp, far, outer), "{port}");
            silence(&mut h, 28);
            assert!(is_received(&mut h, Message::Udp, far, outer), "{port}");
            silence(&mut h, 40);
            let kept = is_received(&mut h, Message::Udp, far, outer);
            assert_eq!(kept, !short, "port {port} after 40 s");
        }
    }
}

#[test]
fn rfc5382_a_connection_that_both_ends_closed_is_kept_for_seconds() {
    let Some(mut h) = nat() else { return };
    for (a, _, _, remote) in FAMILIES {
        let (from, far) = (end(a, 43_000), end(remote, 80));
        for last in [FIN | ACK, RST | ACK] {
            h.clear_connections().expect("maps");
            let outer = connect(&mut h, from, far);
            inside(&mut h, PA, &packet(Message::Tcp(FIN | ACK), from, far));
            assert!(is_received(&mut h, Message::Tcp(last), far, outer));
            // The last acknowledgment, and FINs that are sent again.
            silence(&mut h, 8);
            assert!(is_received(&mut h, Message::Tcp(FIN | ACK), far, outer));
            let answer = packet(Message::Tcp(ACK), from, far);
            assert_eq!(seen_as(inside(&mut h, PA, &answer)), outer);
            silence(&mut h, 14);
            assert_eq!(
                outside(&mut h, &packet(Message::Tcp(ACK), far, outer)),
                dropped(Counter::DropNoFlow),
                "{last}"
            );
        }
    }
}

#[test]
fn rfc4787_req6_outbound_packets_refresh_a_connection() {
    let Some(mut h) = nat() else { return };
    let (from, far) = (end(A, 41_000), end(REMOTE, 5300));
    let outer = seen_as(inside(&mut h, PA, &packet(Message::Udp, from, far)));
    assert!(is_received(&mut h, Message::Udp, far, outer));
    for _ in 0..5 {
        silence(&mut h, 200);
        assert_eq!(
            seen_as(inside(&mut h, PA, &packet(Message::Udp, from, far))),
            outer
        );
    }
    silence(&mut h, 200);
    assert!(is_received(&mut h, Message::Udp, far, outer));
}

#[test]
fn timeouts_are_read_from_the_map() {
    let mut world = World::nat();
    world.nat.timeouts = Timeouts {
        established: 8,
        transitory: 4,
        closed: 4,
        opening: 4,
        udp: 4,
        udp_short: 4,
        icmp: 4,
    };
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let far = end(REMOTE, 80);
    for (message, answer) in [
        (Message::Udp, Message::Udp),
        (Message::EchoRequest, Message::EchoReply),
        (Message::Tcp(SYN), Message::Tcp(SYN | ACK)),
    ] {
        let far = if message == Message::EchoRequest {
            end(REMOTE, 0)
        } else {
            far
        };
        let outer = seen_as(inside(&mut h, PA, &packet(message, end(A, 42_000), far)));
        silence(&mut h, 3);
        assert!(is_received(&mut h, answer, far, outer), "{message:?}");
        silence(&mut h, 6);
        assert!(!is_received(&mut h, answer, far, outer), "{message:?}");
    }
    let outer = connect(&mut h, end(A, 42_001), far);
    silence(&mut h, 6);
    assert!(
        is_received(&mut h, Message::Tcp(ACK), far, outer),
        "established"
    );
    silence(&mut h, 11);
    assert!(!is_received(&mut h, Message::Tcp(ACK), far, outer));
}

#[test]
fn rfc5382_req5_tcp_is_kept_for_two_hours_and_four_minutes_and_four_minutes_once_it_ends() {
    let Some(mut h) = nat() else { return };
    for (a, _, _, remote) in FAMILIES {
        let (from, far) = (end(a, 43_000), end(remote, 80));
        let outer = connect(&mut h, from, far);
        for _ in 0..2 {
            silence(&mut h, 7435);
            assert!(is_received(&mut h, Message::Tcp(ACK), far, outer));
        }
        silence(&mut h, 7450);
        assert_eq!(
            outside(&mut h, &packet(Message::Tcp(ACK), far, outer)),
            dropped(Counter::DropNoFlow)
        );
        // Ended by both, by one, by a reset, or never opened: four minutes.
        for end_of_it in [FIN | ACK, RST | ACK] {
            h.clear_connections().expect("maps");
            let outer = connect(&mut h, from, far);
            inside(&mut h, PA, &packet(Message::Tcp(end_of_it), from, far));
            silence(&mut h, 235);
            assert!(
                is_received(&mut h, Message::Tcp(FIN | ACK), far, outer),
                "{end_of_it}"
            );
            silence(&mut h, 250);
            assert!(
                !is_received(&mut h, Message::Tcp(ACK), far, outer),
                "{end_of_it}"
            );
        }
        h.clear_connections().expect("maps");
        let outer = seen_as(inside(&mut h, PA, &packet(Message::Tcp(SYN), from, far)));
        silence(&mut h, 235);
        assert!(is_received(&mut h, Message::Tcp(SYN | ACK), far, outer));
        silence(&mut h, 250);
        assert!(!is_received(&mut h, Message::Tcp(SYN | ACK), far, outer));
    }
}

#[test]
fn rfc5382_req2_simultaneous_open_works() {
    let Some(mut h) = nat() else { return };
    for (a, _, _, remote) in FAMILIES {
        let (from, far) = (end(a, 44_000), end(remote, 80));
        let outer = seen_as(inside(&mut h, PA, &packet(Message::Tcp(SYN), from, far)));
        for flags in [SYN, SYN | ACK, ACK] {
            assert!(is_received(&mut h, Message::Tcp(flags), far, outer));
            inside(&mut h, PA, &packet(Message::Tcp(flags | ACK), from, far));
        }
        assert_eq!(h.entries::<FlowKey, Flow>("FLOWS").expect("FLOWS").len(), 2);
        h.clear_connections().expect("maps");
    }
}

#[test]
fn rfc5382_req4_an_unsolicited_syn_is_dropped_silently_and_blocks_nothing() {
    let Some(mut h) = nat() else { return };
    for (a, _, seen, remote) in FAMILIES {
        let (from, far) = (end(a, 45_000), end(remote, 80));
        let outer = end(seen, 45_000);
        for _ in 0..2 {
            assert_eq!(
                outside(&mut h, &packet(Message::Tcp(SYN), far, outer)),
                dropped(Counter::DropNoRule)
            );
        }
        assert_eq!(connect(&mut h, from, far), outer);
    }
}

#[test]
fn rfc7857_a_reset_does_not_end_a_connection_that_continues() {
    let Some(mut h) = nat() else { return };
    let (from, far) = (end(A, 46_000), end(REMOTE, 80));
    let outer = connect(&mut h, from, far);
    assert!(is_received(&mut h, Message::Tcp(RST), far, outer));
    silence(&mut h, 200);
    inside(&mut h, PA, &packet(Message::Tcp(ACK), from, far));
    silence(&mut h, 7000);
    assert!(
        is_received(&mut h, Message::Tcp(ACK), far, outer),
        "established again"
    );
}

/// An ICMP error from `from` to `to` about `quoted`.
fn error(from: IpAddr, to: IpAddr, kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut rest = vec![0; 4];
    rest.extend_from_slice(quoted);
    icmp(from, to, kind, code, &rest)
}

#[test]
fn rfc4787_req12_no_icmp_message_ends_or_refreshes_a_connection() {
    let Some(mut h) = nat() else { return };
    for (a, _, _, remote) in FAMILIES {
        let far = end(remote, 80);
        let kinds: &[(u8, u8)] = if a == A {
            &[
                (3, 0),
                (3, 1),
                (3, 2),
                (3, 3),
                (3, 4),
                (3, 13),
                (11, 0),
                (11, 1),
                (12, 0),
            ]
        } else {
            &[(1, 0), (1, 3), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0)]
        };
        let outer = connect(&mut h, end(a, 47_000), far);
        let sent = packet(Message::Tcp(ACK), outer, far);
        for (kind, code) in kinds {
            let fate = outside(&mut h, &error(far.0, outer.0, *kind, *code, &sent));
            assert!(matches!(fate, Verdict::Host(_)), "{kind} {code}: {fate:?}");
            assert!(
                is_received(&mut h, Message::Tcp(ACK), far, outer),
                "{kind} {code}"
            );
        }
        // RFC 5508 REQ-6: nor does one keep it.
        let from = end(a, 47_001);
        let outer = seen_as(inside(&mut h, PA, &packet(Message::Udp, from, far)));
        let sent = packet(Message::Udp, outer, far);
        for _ in 0..2 {
            silence(&mut h, 200);
            outside(
                &mut h,
                &error(far.0, outer.0, kinds[0].0, kinds[0].1, &sent),
            );
        }
        assert!(!is_received(&mut h, Message::Udp, far, outer));
    }
}

#[test]
fn rfc5508_req1_echo_and_timestamp_queries_are_translated() {
    let Some(mut h) = nat() else { return };
    let query = |from: &str, to: &str, kind: u8, id: u16| {
        let rest = [&id.to_be_bytes()[..], &[0, 1], &[0; 12]].concat();
        icmp(ip(from), ip(to), kind, 0, &rest)
    };
    for (a, seen, remote, kinds) in [
        (A, NAT4, REMOTE, &[(8, 0), (13, 14)][..]),
        (A6, NAT6, REMOTE6, &[(128, 129)]),
    ] {
        for (ask, answer) in kinds {
            let out = inside(&mut h, PA, &query(a, remote, *ask, 2000));
            assert_eq!(out, Verdict::Outside(hop(&query(seen, remote, *ask, 2000))));
            let back = outside(&mut h, &query(remote, seen, *answer, 2000));
            assert_eq!(
                back,
                Verdict::Host(PA.receives(&hop(&query(remote, a, *answer, 2000))))
            );
            // About the question itself.
            let about = error(
                ip(remote),
                ip(seen),
                if a == A { 3 } else { 1 },
                1,
                &query(seen, remote, *ask, 2000),
            );
            assert!(matches!(outside(&mut h, &about), Verdict::Host(_)), "{ask}");
        }
    }
}

#[test]
fn rfc5508_req2_a_query_mapping_lasts_a_minute() {
    let Some(mut h) = nat() else { return };
    for (a, _, _, remote) in FAMILIES {
        let far = end(remote, 0);
        let outer = seen_as(inside(
            &mut h,
            PA,
            &packet(Message::EchoRequest, end(a, 2001), far),
        ));
        silence(&mut h, 58);
        assert!(is_received(&mut h, Message::EchoReply, far, outer));
        silence(&mut h, 65);
        assert!(!is_received(&mut h, Message::EchoReply, far, outer));
    }
}

#[test]
fn rfc5508_req4_packet_too_big_about_a_fragment_reaches_its_sender() {
    let Some(mut h) = nat() else { return };
    let (from, outer, far) = (end(A6, 48_000), end(NAT6, 48_000), end(REMOTE6, 53));
    let sent = fragments(&packet(Message::Udp, from, far), 16, 77);
    let left = fragments(&packet(Message::Udp, outer, far), 16, 77);
    assert_eq!(
        inside(&mut h, PA, &sent[0]),
        Verdict::Outside(hop(&left[0]))
    );
    let router = ip("2001:db8:ab::1");
    assert_eq!(
        outside(&mut h, &error(router, outer.0, 2, 0, &hop(&left[0]))),
        Verdict::Host(PA.receives(&hop(&error(router, from.0, 2, 0, &hop(&sent[0])))))
    );
    // A later fragment has no ports.
    assert_eq!(
        outside(&mut h, &error(router, outer.0, 2, 0, &hop(&left[1]))),
        dropped(Counter::DropNoFlow)
    );
}

#[test]
fn rfc4787_req9_two_hosts_inside_reach_each_other_by_their_external_endpoints() {
    let Some(mut h) = nat() else { return };
    for (a, c, _, remote) in FAMILIES {
        for (first, answer) in [
            (Message::Udp, Message::Udp),
            (Message::Tcp(SYN), Message::Tcp(SYN | ACK)),
        ] {
            let (x, y, far) = (end(a, 49_000), end(c, 49_001), end(remote, 3478));
            let x_seen = seen_as(inside(&mut h, PA, &packet(first, x, far)));
            let y_seen = seen_as(inside(&mut h, PC, &packet(first, y, far)));
            // As from outside: not before the other has sent, however often (section 5).
            for _ in 0..3 {
                assert_eq!(
                    inside(&mut h, PA, &packet(first, x, y_seen)),
                    dropped(Counter::DropNoRule)
                );
            }
            assert_eq!(
                inside(&mut h, PC, &packet(first, y, x_seen)),
                Verdict::Host(PA.receives(&hop(&packet(first, y_seen, x)))),
                "the source is the external one"
            );
            assert_eq!(
                inside(&mut h, PA, &packet(answer, x, y_seen)),
                Verdict::Host(PC.receives(&hop(&packet(answer, x_seen, y))))
            );
            assert_eq!(
                inside(&mut h, PC, &packet(answer, y, x_seen)),
                Verdict::Host(PA.receives(&hop(&packet(answer, y_seen, x))))
            );
            // Another port of the same host is another.
            let z = end(c, 49_002);
            assert_eq!(
                inside(&mut h, PC, &packet(first, z, x_seen)),
                dropped(Counter::DropNoRule)
            );
        }
        // A port without a mapping.
        let unused = end(if a == A { NAT4 } else { NAT6 }, 50_999);
        assert_eq!(
            inside(&mut h, PA, &packet(Message::Udp, end(a, 49_000), unused)),
            dropped(Counter::DropNoRule)
        );
        // A mapping whose endpoint has not sent to this source.
        let own = end(a, 49_005);
        let seen = seen_as(inside(
            &mut h,
            PA,
            &packet(Message::Udp, own, end(remote, 9)),
        ));
        assert_eq!(
            inside(&mut h, PA, &packet(Message::Udp, own, seen)),
            dropped(Counter::DropNoRule)
        );
    }
}

#[test]
fn rfc5508_req7_errors_about_hairpinned_packets_are_translated() {
    let Some(mut h) = nat() else { return };
    for (a, c, seen, public) in [(A, C, NAT4, PUBLIC4), (A6, C6, NAT6, PUBLIC6)] {
        let (from, to) = (end(c, 49_100), end(public, 5000));
        let (outer, inner) = (end(seen, 49_100), end(a, 6000));
        let received = hop(&packet(Message::Udp, outer, inner));
        assert_eq!(
            inside(&mut h, PC, &packet(Message::Udp, from, to)),
            Verdict::Host(PA.receives(&received))
        );
        let (kind, code) = if a == A { (3, 3) } else { (1, 4) };
        let sent = hop(&packet(Message::Udp, from, to));
        assert_eq!(
            inside(&mut h, PA, &error(inner.0, outer.0, kind, code, &received)),
            Verdict::Host(PC.receives(&hop(&error(to.0, from.0, kind, code, &sent))))
        );
    }
}

#[test]
fn an_outbound_connection_does_not_block_clients_of_a_rule() {
    let Some(mut h) = nat() else { return };
    for (a, public, remote) in [(A, PUBLIC4, REMOTE), (A6, PUBLIC6, REMOTE6)] {
        let (client, to, inner) = (end(remote, 50_000), end(public, 5000), end(a, 6000));
        for _ in 0..3 {
            let seen = seen_as(inside(&mut h, PA, &packet(Message::Udp, inner, client)));
            assert_ne!(seen, to);
        }
        assert_eq!(
            outside(&mut h, &packet(Message::Udp, client, to)),
            Verdict::Host(PA.receives(&hop(&packet(Message::Udp, client, inner))))
        );
        assert_eq!(
            inside(&mut h, PA, &packet(Message::Udp, inner, client)),
            Verdict::Outside(hop(&packet(Message::Udp, to, client)))
        );
        assert_eq!(
            h.entries::<FlowKey, Flow>("OPENING")
                .expect("OPENING")
                .len(),
            0,
            "no half is left"
        );
        h.clear_connections().expect("maps");
    }
}

#[test]
fn a_one_way_connection_is_not_handed_to_another() {
    let Some(mut h) = nat() else { return };
    // Two rules that lead to one port of the machine: the client's same port by the other rule is
    // the same way back.
    let mut world = h.world.clone();
    world.rule(0, NET1, PUBLIC4, A, (7000, 7000, 6000), &[17]);
    h.fill(world).expect("filled");
    let (client, inner) = (end(REMOTE, 50_000), end(A, 6000));
    let by = |port| packet(Message::Udp, client, end(PUBLIC4, port));
    assert!(matches!(outside(&mut h, &by(5000)), Verdict::Host(_)));
    inside(&mut h, PA, &packet(Message::Udp, inner, client));
    // Only the client sends.
    for _ in 0..3 {
        silence(&mut h, 200);
        assert!(matches!(outside(&mut h, &by(5000)), Verdict::Host(_)));
    }
    assert_eq!(outside(&mut h, &by(7000)), dropped(Counter::DropFlowTaken));
    assert!(matches!(outside(&mut h, &by(5000)), Verdict::Host(_)));
    // Both silent: it is another's.
    silence(&mut h, 310);
    assert!(matches!(outside(&mut h, &by(7000)), Verdict::Host(_)));
}

#[test]
fn malformed_and_source_routed_packets_are_dropped() {
    let Some(mut h) = nat() else { return };
    let (from, far) = (end(A, 51_000), end(REMOTE, 53));
    let good = packet(Message::Udp, from, far);
    let mut wrong = good.clone();
    wrong[10] ^= 1;
    assert_eq!(inside(&mut h, PA, &wrong), dropped(Counter::DropMalformed));
    let with = |options: &[u8]| {
        let mut header = V4::new([10, 1, 0, 10].into(), [203, 0, 114, 9].into(), 17);
        header.options = options.to_vec();
        header.build(&good[20..])
    };
    for options in [
        &[1, 1, 1, 1][..],
        &[148, 4, 0, 0],
        &[0, 131, 3, 4],
        &[1; 40],
    ] {
        assert!(
            matches!(inside(&mut h, PA, &with(options)), Verdict::Outside(_)),
            "{options:?}"
        );
    }
    for options in [[131, 7, 4, 198, 18, 0, 1, 0], [1, 137, 7, 4, 198, 18, 0, 1]] {
        assert_eq!(
            inside(&mut h, PA, &with(&options)),
            dropped(Counter::DropNatProtocol)
        );
    }
    for options in [[7, 9, 4, 0], [7, 1, 0, 0], [1, 1, 1, 7]] {
        assert_eq!(
            inside(&mut h, PA, &with(&options)),
            dropped(Counter::DropMalformed),
            "{options:?}"
        );
    }
}

/// A STUN server of RFC 5780: two addresses, two ports, of one family.
struct Stun {
    addresses: [IpAddr; 2],
    ports: [u16; 2],
}

impl Stun {
    const fn at(&self, address: usize, port: usize) -> End {
        (self.addresses[address], self.ports[port])
    }

    /// Sends a binding request to one of the server's endpoints; it replies from `answers`. Returns
    /// the mapped address in the reply, if it arrives, and the one that the server sees.
    fn ask(&self, h: &mut Harness, from: End, to: End, answers: End) -> (Option<End>, End) {
        let seen = seen_as(inside(h, PA, &packet(Message::Udp, from, to)));
        let answer = packet(Message::Udp, answers, seen);
        match outside(h, &answer) {
            Verdict::Host(frame) => {
                assert_eq!(
                    frame,
                    PA.receives(&hop(&packet(Message::Udp, answers, from)))
                );
                (Some(seen), seen)
            }
            _ => (None, seen),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Behaviour {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

/// RFC 5780 section 4.3.
fn mapping(h: &mut Harness, stun: &Stun, from: End) -> Behaviour {
    let test = |h: &mut Harness, to| stun.ask(h, from, to, to).0.expect("UDP gets through");
    let one = test(h, stun.at(0, 0));
    assert_ne!(one, from, "there is a NAT");
    let two = test(h, stun.at(1, 0));
    if one == two {
        return Behaviour::EndpointIndependent;
    }
    let three = test(h, stun.at(1, 1));
    if two == three {
        Behaviour::AddressDependent
    } else {
        Behaviour::AddressAndPortDependent
    }
}

/// RFC 5780 section 4.4: the client requests a reply from another endpoint.
fn filtering(h: &mut Harness, stun: &Stun, from: End) -> Behaviour {
    let to = stun.at(0, 0);
    assert!(stun.ask(h, from, to, to).0.is_some());
    if stun.ask(h, from, to, stun.at(1, 1)).0.is_some() {
        return Behaviour::EndpointIndependent;
    }
    if stun.ask(h, from, to, stun.at(0, 1)).0.is_some() {
        Behaviour::AddressDependent
    } else {
        Behaviour::AddressAndPortDependent
    }
}

#[test]
fn rfc5780_discovers_endpoint_independent_mapping_and_address_and_port_filtering() {
    let Some(mut h) = nat() else { return };
    for (a, addresses) in [(A, [REMOTE, LISTED]), (A6, [REMOTE6, LISTED6])] {
        let stun = Stun {
            addresses: addresses.map(ip),
            ports: [3478, 3479],
        };
        // Ports that are preserved and ports that are not. Each test uses another source port
        // (section 4.6).
        for ports in [[52_000, 52_001], [700, 701]] {
            let found = mapping(&mut h, &stun, end(a, ports[0]));
            assert_eq!(
                found,
                Behaviour::EndpointIndependent,
                "mapping, {a} {}",
                ports[0]
            );
            let found = filtering(&mut h, &stun, end(a, ports[1]));
            assert_eq!(
                found,
                Behaviour::AddressAndPortDependent,
                "filtering, {a} {}",
                ports[1]
            );
        }
    }
}
