//! Translation in full failover: to the outside, by rule, hairpin, errors, fragments, and refusals.

use std::net::IpAddr;

use appliance_common::{
    counters::Counter,
    events::SlowReason,
    nat::{Flow, FlowKey, Mapping, MappingKey, TenantQuota, public_flags},
};
use causeway_tests::{
    harness::{Harness, Program, Record, SharedHarness},
    nat::{HostPort, Message, Verdict, end, ends, fragments, hop, inside, outside, packet, send},
    packet::*,
    world::*,
};
use tcp_flags::{ACK, FIN, RST, SYN};

const A: &str = "10.1.0.10";
const A6: &str = "2001:db8:1::10";
const B: &str = "10.1.0.11";
const B6: &str = "2001:db8:1::11";
const PA: HostPort = HostPort::trunk(101, A_MAC);
const PB: HostPort = HostPort::trunk(101, B_MAC);
/// Globex's replica with the addresses of A.
const PG: HostPort = HostPort::trunk(201, G_MAC);
/// A host of net4, which has no internet access.
const D: &str = "10.4.0.10";
const PD: HostPort = HostPort {
    ifindex: ACCESS,
    ours: ACCESS_MAC,
    mac: A_MAC,
    vlan: 0,
};

/// Replica, its external address, a public address with rules, a remote host; of each family.
const FAMILIES: [(&str, &str, &str, &str); 2] =
    [(A, NAT4, PUBLIC4, REMOTE), (A6, NAT6, PUBLIC6, REMOTE6)];

fn nat() -> Option<SharedHarness> {
    Harness::new(World::nat())
}

fn dropped(reason: Counter) -> Verdict {
    Verdict::Dropped(reason)
}

fn to_a(l3: &[u8]) -> Verdict {
    Verdict::Host(PA.receives(l3))
}

#[test]
fn outbound_packets_get_the_tenant_s_address_and_their_answers_return() {
    let Some(mut h) = nat() else { return };
    for (a, seen, _, remote) in FAMILIES {
        for (there, back, rport) in [
            (Message::Udp, Message::Udp, 53),
            (Message::Tcp(SYN), Message::Tcp(SYN | ACK), 443),
            (Message::EchoRequest, Message::EchoReply, 0),
        ] {
            let (from, far) = (end(a, 40_000), end(remote, rport));
            // The port is kept where it is free.
            let outer = end(seen, 40_000);
            for _ in 0..3 {
                assert_eq!(
                    inside(&mut h, PA, &packet(there, from, far)),
                    Verdict::Outside(hop(&packet(there, outer, far))),
                    "{there:?} from {a}"
                );
                assert_eq!(
                    outside(&mut h, &packet(back, far, outer)),
                    to_a(&hop(&packet(back, far, from))),
                    "{back:?} to {a}"
                );
            }
            // No other remote endpoint may use it (RFC 4787 section 5, address and port dependent).
            let stranger = end(LISTED, rport);
            if a == A {
                assert_eq!(
                    outside(&mut h, &packet(back, stranger, outer)),
                    dropped(match back {
                        Message::Udp => Counter::DropNoRule,
                        _ => Counter::DropNoFlow,
                    })
                );
            }
        }
    }
}

#[test]
fn an_endpoint_has_one_mapping_for_all_destinations() {
    let Some(mut h) = nat() else { return };
    // RFC 4787 REQ-1, RFC 5382 REQ-1, RFC 5508 REQ-3: endpoint-independent mapping.
    for (a, seen, _, _) in FAMILIES {
        let remotes = if a == A {
            [REMOTE, LISTED, "198.51.100.99"]
        } else {
            [REMOTE6, LISTED6, "2001:db8:ee::9"]
        };
        for message in [Message::Udp, Message::Tcp(SYN), Message::EchoRequest] {
            // A port below the range is not kept.
            let from = end(a, 700);
            let mut outer = Vec::new();
            for remote in remotes {
                for port in [80, 81] {
                    let port = if message == Message::EchoRequest {
                        0
                    } else {
                        port
                    };
                    match inside(&mut h, PA, &packet(message, from, end(remote, port))) {
                        Verdict::Outside(l3) => outer.push(ends(&l3).0),
                        other => panic!("{message:?} to {remote}: {other:?}"),
                    }
                }
            }
            assert!(outer[0].1 >= 1024 && outer[0].0 == ip(seen), "{outer:?}");
            assert!(outer.iter().all(|o| *o == outer[0]), "{outer:?}");
        }
    }
}

#[test]
fn two_endpoints_never_share_a_mapping() {
    let Some(mut h) = nat() else { return };
    h.world
        .neighbour(NET1, "10.1.0.30", TRUNK, B_MAC, TRUNK_MAC, 101, 0);
    let far = end(REMOTE, 53);
    let mut seen = std::collections::BTreeMap::new();
    for host in 30..=80u8 {
        for port in [40_000, 40_001] {
            let from = end(&format!("10.1.0.{host}"), port);
            let Verdict::Outside(l3) = inside(&mut h, PA, &packet(Message::Udp, from, far)) else {
                panic!("{from:?} does not leave");
            };
            let outer = ends(&l3).0;
            assert_eq!(outer.0, ip(NAT4));
            if let Some(other) = seen.insert(outer, from) {
                panic!("{from:?} and {other:?} are both seen as {outer:?}");
            }
        }
    }
}

#[test]
fn tenants_with_equal_addresses_are_kept_apart() {
    let Some(mut h) = nat() else { return };
    let (from, far) = (end(A, 20_000), end(REMOTE, 53));
    let acme = inside(&mut h, PA, &packet(Message::Udp, from, far));
    let globex = inside(&mut h, PG, &packet(Message::Udp, from, far));
    let (one, two) = (end(NAT4, 20_000), end(PROVIDER, 20_000));
    assert_eq!(acme, Verdict::Outside(hop(&packet(Message::Udp, one, far))));
    assert_eq!(
        globex,
        Verdict::Outside(hop(&packet(Message::Udp, two, far)))
    );
    assert_eq!(
        outside(&mut h, &packet(Message::Udp, far, one)),
        to_a(&hop(&packet(Message::Udp, far, from)))
    );
    assert_eq!(
        outside(&mut h, &packet(Message::Udp, far, two)),
        Verdict::Host(PG.receives(&hop(&packet(Message::Udp, far, from))))
    );
}

#[test]
fn a_rule_forwards_to_its_machine_and_translates_the_answers() {
    let Some(mut h) = nat() else { return };
    for (a, _, public, remote) in FAMILIES {
        for (message, answer, port, internal) in [
            (Message::Tcp(SYN), Message::Tcp(SYN | ACK), 443, 8443),
            // The machine's own 22 is reached by another public port.
            (Message::Tcp(SYN), Message::Tcp(SYN | ACK), 2222, 22),
            (Message::Tcp(SYN), Message::Tcp(SYN | ACK), 5000, 6000),
            (Message::Udp, Message::Udp, 5009, 6009),
        ] {
            let (client, outer, inner) = (end(remote, 50_000), end(public, port), end(a, internal));
            assert_eq!(
                outside(&mut h, &packet(message, client, outer)),
                to_a(&hop(&packet(message, client, inner))),
                "{public} {port}"
            );
            assert_eq!(
                inside(&mut h, PA, &packet(answer, inner, client)),
                Verdict::Outside(hop(&packet(answer, outer, client)))
            );
            assert_eq!(
                outside(&mut h, &packet(Message::Tcp(ACK), client, outer)),
                if message == Message::Udp {
                    dropped(Counter::DropNoFlow)
                } else {
                    to_a(&hop(&packet(Message::Tcp(ACK), client, inner)))
                }
            );
        }
        for (message, port, reason) in [
            (Message::Tcp(SYN), 444, Counter::DropNoRule),
            (Message::Udp, 443, Counter::DropNoRule),
            (Message::Tcp(SYN), 5010, Counter::DropNoRule),
            (Message::Tcp(ACK), 443, Counter::DropNoFlow),
            (Message::Tcp(RST), 443, Counter::DropNoFlow),
            (Message::Tcp(FIN | ACK), 443, Counter::DropNoFlow),
            (Message::EchoRequest, 0, Counter::DropNoRule),
        ] {
            let client = end(remote, 50_001);
            assert_eq!(
                outside(&mut h, &packet(message, client, end(public, port))),
                dropped(reason),
                "{message:?} to {public} {port}"
            );
        }
    }
    // A packet from outside with a source address of the tenant's networks.
    for (inner, public) in [
        ("10.4.0.10", PUBLIC4),
        ("2001:db8:1::77", PUBLIC6),
        // With one of our own public addresses as the source (LAND).
        (PUBLIC4, PUBLIC4),
        (NAT6, PUBLIC6),
        (PROVIDER, PUBLIC4),
        (PUBLIC2, PUBLIC4),
    ] {
        let l3 = packet(Message::Tcp(SYN), end(inner, 1), end(public, 443));
        assert_eq!(outside(&mut h, &l3), dropped(Counter::DropSourceGuard));
    }
    // A network without internet has its rules all the same, and no more.
    let (client, outer, inner) = (end(REMOTE, 5353), end(PUBLIC4, 53), end(D, 53));
    assert_eq!(
        outside(&mut h, &packet(Message::Udp, client, outer)),
        Verdict::Host(PD.receives(&hop(&packet(Message::Udp, client, inner))))
    );
    assert_eq!(
        inside(&mut h, PD, &packet(Message::Udp, inner, client)),
        Verdict::Outside(hop(&packet(Message::Udp, outer, client)))
    );
    let other = end(REMOTE, 5354);
    match inside(&mut h, PD, &packet(Message::Udp, inner, other)) {
        Verdict::Host(frame) => assert_eq!(frame[14 + 20], 3, "unreachable: {frame:02x?}"),
        fate => panic!("net4 has no internet: {fate:?}"),
    }
}

#[test]
fn a_rule_with_a_source_list_admits_listed_sources_only() {
    let Some(mut h) = nat() else { return };
    for (a, listed, public, remote) in [
        (A, LISTED, PUBLIC4, REMOTE),
        (A6, LISTED6, PUBLIC6, REMOTE6),
    ] {
        let to = end(public, 8080);
        let syn = |from: &str| packet(Message::Tcp(SYN), end(from, 1000), to);
        assert_eq!(
            outside(&mut h, &syn(remote)),
            dropped(Counter::DropNotListed)
        );
        let inner = packet(Message::Tcp(SYN), end(listed, 1000), end(a, 80));
        assert_eq!(outside(&mut h, &syn(listed)), to_a(&hop(&inner)));
    }
}

#[test]
fn port_22_is_dropped_even_if_a_map_holds_such_a_rule() {
    let mut world = World::nat();
    // A rule that no controller writes.
    world.rule(0, NET1, PUBLIC4, A, (22, 22, 22), &[6, 17]);
    world.rule(0, NET1, PUBLIC6, A6, (22, 22, 22), &[6, 17]);
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    for (public, remote) in [
        (PUBLIC4, REMOTE),
        (PUBLIC6, REMOTE6),
        (ONE_TO_ONE4, REMOTE),
        (ONE_TO_ONE6, REMOTE6),
        (NAT4, REMOTE),
    ] {
        for message in [Message::Tcp(SYN), Message::Tcp(ACK), Message::Udp] {
            assert_eq!(
                outside(&mut h, &packet(message, end(remote, 1000), end(public, 22))),
                dropped(Counter::DropManagementPort),
                "{message:?} to {public}"
            );
        }
    }
    // The same from inside.
    for (place, a, public) in [(PA, A, PUBLIC4), (PA, A6, PUBLIC6), (PG, A, ONE_TO_ONE4)] {
        assert_eq!(
            inside(
                &mut h,
                place,
                &packet(Message::Tcp(SYN), end(a, 1000), end(public, 22))
            ),
            dropped(Counter::DropManagementPort)
        );
    }
    // The appliance's own address is managed over it, always.
    for message in [Message::Tcp(SYN), Message::Tcp(ACK), Message::Udp] {
        for (own, remote) in [(PROVIDER, REMOTE), (PROVIDER6, REMOTE6)] {
            let l3 = packet(message, end(remote, 1000), end(own, 22));
            assert_eq!(outside(&mut h, &l3), Verdict::Passed);
        }
    }
}

#[test]
fn packets_to_our_own_address_without_a_connection_pass_to_the_kernel() {
    let Some(mut h) = nat() else { return };
    for (own, remote) in [(PROVIDER, REMOTE), (PROVIDER6, REMOTE6)] {
        for (message, port) in [
            (Message::Udp, 20_000),
            (Message::Tcp(SYN), 443),
            (Message::Tcp(ACK), 20_000),
            (Message::EchoRequest, 0),
            (Message::EchoReply, 20_000),
        ] {
            let l3 = packet(message, end(remote, 53), end(own, port));
            assert_eq!(
                outside(&mut h, &l3),
                Verdict::Passed,
                "{message:?} to {own} {port}"
            );
        }
        // Tenants do not reach it.
        let a = if own == PROVIDER { A } else { A6 };
        for port in [22, 443] {
            let l3 = packet(Message::Tcp(SYN), end(a, 1000), end(own, port));
            let want = if port == 22 {
                Counter::DropManagementPort
            } else {
                Counter::DropNoRule
            };
            assert_eq!(inside(&mut h, PA, &l3), dropped(want));
        }
    }
}

#[test]
fn a_one_to_one_machine_is_translated_to_its_public_address() {
    let Some(mut h) = nat() else { return };
    for (b, public, remote) in [(B, ONE_TO_ONE4, REMOTE), (B6, ONE_TO_ONE6, REMOTE6)] {
        let to_b = |l3: &[u8]| Verdict::Host(PB.receives(l3));
        for (message, answer, port) in [
            (Message::Tcp(SYN), Message::Tcp(SYN | ACK), 443),
            (Message::Udp, Message::Udp, 1),
            (Message::Udp, Message::Udp, 65_535),
            (Message::EchoRequest, Message::EchoReply, 0),
        ] {
            // In.
            let (client, outer, inner) = (end(remote, 777), end(public, port), end(b, port));
            assert_eq!(
                outside(&mut h, &packet(message, client, outer)),
                to_b(&hop(&packet(message, client, inner)))
            );
            assert_eq!(
                inside(&mut h, PB, &packet(answer, inner, client)),
                Verdict::Outside(hop(&packet(answer, outer, client)))
            );
            // In the other direction, by the same port.
            let (inner, outer, far) = (end(b, 900), end(public, 900), end(remote, port));
            assert_eq!(
                inside(&mut h, PB, &packet(message, inner, far)),
                Verdict::Outside(hop(&packet(message, outer, far)))
            );
            assert_eq!(
                outside(&mut h, &packet(answer, far, outer)),
                to_b(&hop(&packet(answer, far, inner)))
            );
        }
        // Replies to source port 22 would be refused.
        assert_eq!(
            inside(
                &mut h,
                PB,
                &packet(Message::Udp, end(b, 22), end(remote, 1))
            ),
            dropped(Counter::DropManagementPort)
        );
    }
}

/// GRE, ESP and SCTP packets, and ICMP messages of a type that no NAT knows: by the addresses of
/// both ends.
type Whole = fn(IpAddr, IpAddr) -> Vec<u8>;
const WHOLE: [(&str, Whole); 5] = [
    ("GRE", |from, to| {
        ip_packet(from, to, 47, &[0, 0, 0x08, 0, 0x45, 1, 2, 3, 4, 5])
    }),
    ("the shortest GRE", |from, to| {
        ip_packet(from, to, 47, &[0, 0, 0x08, 0])
    }),
    ("ESP", |from, to| ip_packet(from, to, 50, &[7; 64])),
    ("SCTP", |from, to| {
        // Ports 5000 and 5001, a tag, and a checksum that covers no address.
        let mut body = vec![0x13, 0x88, 0x13, 0x89, 1, 2, 3, 4, 0xaa, 0xbb, 0xcc, 0xdd];
        body.extend_from_slice(&[1, 0, 0, 20, 9, 9, 9, 9]);
        ip_packet(from, to, 132, &body)
    }),
    ("experimental ICMP", |from, to| {
        let kind = if from.is_ipv4() { 253 } else { 200 };
        icmp(from, to, kind, 0, &[0, 1, 2, 3, 4, 5, 6, 7])
    }),
];

#[test]
fn a_one_to_one_machine_sends_and_receives_esp_gre_sctp_and_unknown_icmp() {
    let Some(mut h) = nat() else { return };
    for (b, a, public, remote) in [(B, A, ONE_TO_ONE4, REMOTE), (B6, A6, ONE_TO_ONE6, REMOTE6)] {
        for (what, make) in WHOLE {
            for first in ["out", "in"] {
                h.clear_connections().expect("maps");
                let out = |h: &mut Harness| {
                    assert_eq!(
                        inside(h, PB, &make(ip(b), ip(remote))),
                        Verdict::Outside(hop(&make(ip(public), ip(remote)))),
                        "{what}, {first} first"
                    );
                };
                let back = |h: &mut Harness| {
                    assert_eq!(
                        outside(h, &make(ip(remote), ip(public))),
                        Verdict::Host(PB.receives(&hop(&make(ip(remote), ip(b))))),
                        "{what}, {first} first"
                    );
                };
                for _ in 0..2 {
                    if first == "out" {
                        out(&mut h);
                        back(&mut h);
                    } else {
                        back(&mut h);
                        out(&mut h);
                    }
                }
            }
            // Others are not translated.
            assert_eq!(
                inside(&mut h, PA, &make(ip(a), ip(remote))),
                dropped(Counter::DropNatProtocol),
                "{what}"
            );
            let nat = if ip(a).is_ipv4() { NAT4 } else { NAT6 };
            assert_eq!(
                outside(&mut h, &make(ip(remote), ip(nat))),
                dropped(Counter::DropNoRule),
                "{what}"
            );
        }
    }
    // An established tunnel is displaced by no flood of first packets.
    let (_, esp) = WHOLE[2];
    inside(&mut h, PB, &esp(ip(B), ip(REMOTE)));
    outside(&mut h, &esp(ip(REMOTE), ip(ONE_TO_ONE4)));
    let kept = h.entries::<FlowKey, Flow>("FLOWS").expect("FLOWS");
    assert!(kept.iter().any(|(key, _)| key.protocol == 50));
    // SCTP has ports, and the management port is not public.
    let ssh = |from: IpAddr, to: IpAddr| {
        let mut body = vec![0; 20];
        body[..4].copy_from_slice(&[0x13, 0x88, 0, 22]);
        ip_packet(from, to, 132, &body)
    };
    assert_eq!(
        outside(&mut h, &ssh(ip(REMOTE), ip(ONE_TO_ONE4))),
        dropped(Counter::DropManagementPort)
    );
}

#[test]
fn errors_about_esp_and_sctp_reach_the_one_to_one_machine() {
    let Some(mut h) = nat() else { return };
    for (what, make) in [WHOLE[2], WHOLE[3]] {
        inside(&mut h, PB, &make(ip(B), ip(REMOTE)));
        let quote = hop(&make(ip(ONE_TO_ONE4), ip(REMOTE)));
        let sent = error(REMOTE, ONE_TO_ONE4, &quote, 28);
        let inner = hop(&make(ip(B), ip(REMOTE)));
        assert_eq!(
            outside(&mut h, &sent),
            Verdict::Host(PB.receives(&hop(&error(REMOTE, B, &inner, 28)))),
            "{what}"
        );
    }
}

#[test]
fn a_public_address_of_the_same_tenant_is_reached_from_inside() {
    let Some(mut h) = nat() else { return };
    // RFC 4787 REQ-9: the source is seen as outside.
    for (a, b, seen, public) in [(A, B, ONE_TO_ONE4, PUBLIC4), (A6, B6, ONE_TO_ONE6, PUBLIC6)] {
        let (from, target, inner) = (end(b, 30_000), end(public, 443), end(a, 8443));
        let outer = end(seen, 30_000);
        assert_eq!(
            inside(&mut h, PB, &packet(Message::Tcp(SYN), from, target)),
            to_a(&hop(&packet(Message::Tcp(SYN), outer, inner)))
        );
        assert_eq!(
            inside(&mut h, PA, &packet(Message::Tcp(SYN | ACK), inner, outer)),
            Verdict::Host(PB.receives(&hop(&packet(Message::Tcp(SYN | ACK), target, from))))
        );
        // Its own, too.
        let own = end(a, 30_001);
        let Verdict::Host(frame) =
            inside(&mut h, PA, &packet(Message::Udp, own, end(public, 5000)))
        else {
            panic!("no way back in");
        };
        let (source, destination) = ends(&frame[18..]);
        assert_eq!(destination, end(a, 6000));
        assert_eq!(
            inside(&mut h, PA, &packet(Message::Udp, destination, source)),
            to_a(&hop(&packet(Message::Udp, end(public, 5000), own)))
        );
    }
    // Another tenant is treated as any host outside.
    let (from, target) = (end(A, 25_000), end(PUBLIC4, 443));
    assert_eq!(
        inside(&mut h, PG, &packet(Message::Tcp(SYN), from, target)),
        to_a(&hop(&packet(
            Message::Tcp(SYN),
            end(PROVIDER, 25_000),
            end(A, 8443)
        )))
    );
    assert_eq!(
        inside(
            &mut h,
            PA,
            &packet(Message::Tcp(SYN | ACK), end(A, 8443), end(PROVIDER, 25_000))
        ),
        Verdict::Host(PG.receives(&hop(&packet(Message::Tcp(SYN | ACK), target, from))))
    );
}

/// An ICMP error from `from` to `to` about the packet `quoted`, of which `bytes` are quoted.
fn error(from: &str, to: &str, quoted: &[u8], bytes: usize) -> Vec<u8> {
    let mut rest = vec![0; 4];
    rest.extend_from_slice(&quoted[..bytes.min(quoted.len())]);
    let (kind, code) = if ip(from).is_ipv4() { (3, 4) } else { (2, 0) };
    icmp(ip(from), ip(to), kind, code, &rest)
}

#[test]
fn icmp_errors_are_translated_with_their_quote() {
    let Some(mut h) = nat() else { return };
    for (a, seen, public, remote) in FAMILIES {
        let router = if a == A {
            "198.18.0.1"
        } else {
            "2001:db8:ab::1"
        };
        let header = if a == A { 20 } else { 40 };
        for (message, rport) in [
            (Message::Udp, 33_434),
            (Message::Tcp(SYN), 80),
            (Message::EchoRequest, 0),
        ] {
            let (from, outer, far) = (end(a, 41_000), end(seen, 41_000), end(remote, rport));
            let there = packet(message, from, far);
            let Verdict::Outside(left) = inside(&mut h, PA, &there) else {
                panic!("it does not leave");
            };
            assert_eq!(ends(&left).0, outer);
            // The error quotes the packet as the sender sent it, one hop further, byte for byte.
            let received = hop(&there);
            for bytes in [header + 8, header + 20, 4000] {
                for who in [router, remote] {
                    assert_eq!(
                        outside(&mut h, &error(who, seen, &left, bytes)),
                        to_a(&hop(&error(who, a, &received, bytes))),
                        "{bytes} bytes of {message:?} from {who}"
                    );
                }
            }
        }
        // By rule, and the machine sends the error: its source becomes the public address.
        let (client, outer, inner) = (end(remote, 999), end(public, 5000), end(a, 6000));
        let there = packet(Message::Udp, client, outer);
        assert_eq!(
            outside(&mut h, &there),
            to_a(&hop(&packet(Message::Udp, client, inner)))
        );
        let got = hop(&packet(Message::Udp, client, inner));
        for bytes in [header + 8, 4000] {
            assert_eq!(
                inside(&mut h, PA, &error(a, remote, &got, bytes)),
                Verdict::Outside(hop(&error(public, remote, &hop(&there), bytes)))
            );
        }
        // About nothing that is known.
        let unknown = packet(Message::Udp, end(seen, 41_999), end(remote, 1));
        assert_eq!(
            outside(&mut h, &error(router, seen, &unknown, 4000)),
            dropped(Counter::DropNoFlow)
        );
        // An error whose quoted packet has another source than the error's destination.
        let forged = packet(Message::Udp, end(public, 41_000), end(remote, 33_434));
        assert_eq!(
            outside(&mut h, &error(router, seen, &forged, 4000)),
            dropped(Counter::DropNoFlow)
        );
        let cut = error(router, seen, &unknown, header + 4);
        assert_eq!(outside(&mut h, &cut), dropped(Counter::DropMalformed));
    }
}

/// User space has the frame, to be run again.
fn held(h: &mut Harness, vni: u32, frame: &[u8]) {
    match h.records().as_slice() {
        [Record::Slow(header, bytes)] => {
            assert_eq!(
                (header.vni, header.reason),
                (vni, SlowReason::Fragment as u16)
            );
            assert_eq!(bytes, frame);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn fragments_follow_the_translation_of_the_first() {
    let Some(mut h) = nat() else { return };
    for (a, seen, public, remote) in FAMILIES {
        let (from, outer, far) = (end(a, 42_000), end(seen, 42_000), end(remote, 53));
        for (id, message) in [(7, Message::Udp), (8, Message::Tcp(SYN))] {
            let cut = if message == Message::Udp { 16 } else { 24 };
            let whole = fragments(&packet(message, from, far), cut, id);
            let want = fragments(&packet(message, outer, far), cut, id);
            // A later one before the first waits in user space.
            h.records();
            assert_eq!(
                inside(&mut h, PA, &whole[1]),
                dropped(Counter::SlowFragment)
            );
            held(&mut h, NET1, &PA.sends(&whole[1]));
            for (piece, want) in whole.iter().zip(&want) {
                assert_eq!(inside(&mut h, PA, piece), Verdict::Outside(hop(want)));
            }
        }
        // By rule.
        let (client, outer, inner) = (end(remote, 998), end(public, 5001), end(a, 6001));
        let whole = fragments(&packet(Message::Udp, client, outer), 8, 9);
        let want = fragments(&packet(Message::Udp, client, inner), 8, 9);
        for (piece, want) in whole.iter().zip(&want) {
            assert_eq!(outside(&mut h, piece), to_a(&hop(want)));
        }
        // A fragment of another datagram.
        let other = fragments(&packet(Message::Udp, client, outer), 8, 10);
        h.records();
        assert_eq!(outside(&mut h, &other[1]), dropped(Counter::SlowFragment));
        held(&mut h, 0, &frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &other[1]));
        // To our own address the kernel has it, too.
        let own = if a == A { PROVIDER } else { PROVIDER6 };
        let own = fragments(&packet(Message::Udp, client, end(own, 1)), 8, 12);
        assert_eq!(outside(&mut h, &own[1]), Verdict::Passed);
        held(&mut h, 0, &frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &own[1]));
    }
    // A first fragment too short for its ports (RFC 1858).
    let tiny = fragments(&packet(Message::Tcp(SYN), end(A, 1), end(REMOTE, 2)), 8, 11);
    assert_eq!(
        inside(&mut h, PA, &tiny[0]),
        dropped(Counter::DropMalformed)
    );
}

#[test]
fn a_connection_is_established_once_both_ends_have_sent() {
    let Some(mut h) = nat() else { return };
    let (client, outer, inner) = (end(REMOTE, 50_000), end(PUBLIC4, 443), end(A, 8443));
    let count = |h: &mut Harness| {
        let flows = h.entries::<FlowKey, Flow>("FLOWS").expect("FLOWS").len();
        let opening = h
            .entries::<FlowKey, Flow>("OPENING")
            .expect("OPENING")
            .len();
        (flows, opening)
    };
    assert_eq!(count(&mut h), (0, 0));
    outside(&mut h, &packet(Message::Tcp(SYN), client, outer));
    assert_eq!(count(&mut h), (0, 2));
    // Repeated packets of one end do not make the flow assured.
    outside(&mut h, &packet(Message::Tcp(SYN), client, outer));
    outside(&mut h, &packet(Message::Tcp(ACK), client, outer));
    assert_eq!(count(&mut h), (0, 2));
    inside(&mut h, PA, &packet(Message::Tcp(SYN | ACK), inner, client));
    assert_eq!(count(&mut h), (0, 2));
    outside(&mut h, &packet(Message::Tcp(ACK), client, outer));
    assert_eq!(count(&mut h), (2, 0));
    for (key, flow) in h.entries::<FlowKey, Flow>("FLOWS").expect("FLOWS") {
        assert_eq!(flow.entry_hash, key.entry_hash());
        assert_eq!(flow.packets, if key.zone == 0 { 4 } else { 1 });
        let (mut k, mut f) = (FlowKey::default(), Flow::default());
        flow.inverse(&key, &mut k, &mut f);
        let there: Vec<_> = h.entries::<FlowKey, Flow>("FLOWS").expect("FLOWS");
        assert!(
            there
                .iter()
                .any(|(key, flow)| *key == k && flow.same_translation(&f))
        );
    }
    // UDP: once there is an answer.
    let (from, far) = (end(A, 1234), end(REMOTE, 53));
    inside(&mut h, PA, &packet(Message::Udp, from, far));
    inside(&mut h, PA, &packet(Message::Udp, from, far));
    assert_eq!(count(&mut h), (2, 2));
    outside(&mut h, &packet(Message::Udp, far, end(NAT4, 1234)));
    assert_eq!(count(&mut h), (4, 0));
}

#[test]
fn changing_a_rule_ends_only_its_connections() {
    let Some(mut h) = nat() else { return };
    let rules = [(443, 8443), (2222, 22)];
    let open = |h: &mut Harness, port, internal| {
        let (client, outer, inner) = (end(REMOTE, 50_000), end(PUBLIC4, port), end(A, internal));
        outside(h, &packet(Message::Tcp(SYN), client, outer));
        inside(h, PA, &packet(Message::Tcp(SYN | ACK), inner, client));
        outside(h, &packet(Message::Tcp(ACK), client, outer))
    };
    for (port, internal) in rules {
        assert!(matches!(open(&mut h, port, internal), Verdict::Host(_)));
    }
    let data = |h: &mut Harness, port| {
        outside(
            h,
            &packet(Message::Tcp(ACK), end(REMOTE, 50_000), end(PUBLIC4, port)),
        )
    };
    // Another one, elsewhere; then the first is of a later epoch.
    let mut world = h.world.clone();
    world.rule(0, NET1, PUBLIC4, A, (9000, 9000, 9000), &[6]);
    h.refill_rules(&world).expect("refilled");
    for (port, _) in rules {
        assert!(matches!(data(&mut h, port), Verdict::Host(_)), "{port}");
    }
    world.rules[0].epoch += 1;
    h.refill_rules(&world).expect("refilled");
    assert_eq!(data(&mut h, 443), dropped(Counter::DropNoFlow));
    assert!(matches!(data(&mut h, 2222), Verdict::Host(_)));
    // The machine's side of the flow: the machine learns that it is lost.
    let back = packet(Message::Tcp(ACK), end(A, 8443), end(REMOTE, 50_000));
    assert_eq!(
        inside(&mut h, PA, &back),
        Verdict::Host(PA.receives(&tcp_reset_of(&back)))
    );
    assert!(
        matches!(open(&mut h, 443, 8443), Verdict::Host(_)),
        "it is opened again"
    );
}

#[test]
fn a_mode_switch_ends_every_connection_of_the_tenant() {
    let Some(mut h) = nat() else { return };
    let (from, far) = (end(A, 20_000), end(REMOTE, 53));
    for place in [PA, PG] {
        assert!(matches!(
            inside(&mut h, place, &packet(Message::Udp, from, far)),
            Verdict::Outside(_)
        ));
    }
    let mut world = h.world.clone();
    world.tenants[0].epoch += 1;
    h.refill_rules(&world).expect("refilled");
    assert_eq!(
        outside(&mut h, &packet(Message::Udp, far, end(NAT4, 20_000))),
        dropped(Counter::DropNoRule)
    );
    assert!(matches!(
        outside(&mut h, &packet(Message::Udp, far, end(PROVIDER, 20_000))),
        Verdict::Host(_)
    ));
    // Neither its former mapping nor its former destination blocks the next connection.
    assert!(matches!(
        inside(&mut h, PA, &packet(Message::Udp, from, far)),
        Verdict::Outside(_)
    ));
    world.tenants[0].mode = 0;
    h.refill_rules(&world).expect("refilled");
    assert_eq!(
        outside(&mut h, &packet(Message::Tcp(SYN), far, end(PUBLIC4, 443))),
        dropped(Counter::DropNoRule)
    );
}

#[test]
fn without_a_free_port_packets_are_dropped() {
    let mut world = World::nat();
    world.nat_addresses[0].first = 2000;
    world.nat_addresses[0].last = 2003;
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let far = end(REMOTE, 53);
    let mut seen = std::collections::BTreeSet::new();
    let mut refused = 0;
    for port in 1000..1020 {
        match inside(&mut h, PA, &packet(Message::Udp, end(A, port), far)) {
            Verdict::Outside(l3) => assert!(seen.insert(ends(&l3).0), "twice the same port"),
            fate => {
                assert_eq!(fate, dropped(Counter::DropNoPort));
                refused += 1;
            }
        }
    }
    assert_eq!((seen.len(), refused), (4, 16));
    // A host with a port keeps it; ports of another protocol are counted apart.
    for _ in 0..2 {
        let fate = inside(&mut h, PA, &packet(Message::Tcp(SYN), end(A, 1000), far));
        assert!(matches!(fate, Verdict::Outside(_)), "{fate:?}");
    }
    let mappings = h
        .entries::<MappingKey, Mapping>("MAPPINGS")
        .expect("MAPPINGS");
    assert_eq!(mappings.len(), 2 * (4 + 1));
}

#[test]
fn expired_and_too_long_packets_are_reported_to_their_source() {
    let Some(mut h) = nat() else { return };
    let kind = |fate: Verdict, at: usize| match fate {
        Verdict::Host(frame) | Verdict::Outside(frame) => frame[at],
        other => panic!("{other:?}"),
    };
    let mut l3 = packet(Message::Udp, end(A, 1), end(REMOTE, 2));
    l3[8] = 3;
    let l3 = hop(&l3);
    let last = hop(&l3);
    assert!(matches!(inside(&mut h, PA, &l3), Verdict::Outside(_)));
    assert_eq!(
        kind(inside(&mut h, PA, &last), 18 + 20),
        11,
        "time exceeded"
    );
    // From outside, the error's source is the address of the request; net4's MTU is 1400.
    let mut l3 = packet(Message::Udp, end(REMOTE, 1), end(PUBLIC4, 53));
    l3[8] = 3;
    let l3 = hop(&l3);
    let last = hop(&l3);
    assert!(matches!(outside(&mut h, &l3), Verdict::Host(_)));
    match outside(&mut h, &last) {
        Verdict::Outside(l3) => {
            assert_eq!(l3[20], 11);
            assert_eq!(l3[12..16], [192, 0, 2, 11]);
        }
        other => panic!("{other:?}"),
    }
    let long = udp(ip(REMOTE), ip(PUBLIC4), 1, 53, &[0; 1400]);
    match outside(&mut h, &long) {
        Verdict::Outside(l3) => {
            assert_eq!(l3[20..22], [3, 4]);
            assert_eq!(l3[26..28], 1400u16.to_be_bytes());
        }
        other => panic!("{other:?}"),
    }
    // The way out takes 1500.
    let long = udp(ip(A), ip(REMOTE), 1, 53, &[0; 1600]);
    match inside(&mut h, PA, &long) {
        Verdict::Host(frame) => {
            assert_eq!(frame[18 + 20..18 + 22], [3, 4]);
            assert_eq!(frame[18 + 26..18 + 28], 1500u16.to_be_bytes());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn arp_and_discovery_for_public_addresses_are_answered_on_the_uplink() {
    let Some(mut h) = nat() else { return };
    let asker = [2, 0, 0, 0, 0x99, 9];
    for target in [PUBLIC4, ONE_TO_ONE4, NAT4, PUBLIC2] {
        let std::net::IpAddr::V4(target) = ip(target) else {
            unreachable!()
        };
        let from = [203, 0, 113, 1].into();
        let question = eth(
            [0xff; 6],
            asker,
            &[],
            0x0806,
            &arp(1, asker, from, [0; 6], target),
        );
        let (action, out) = h.run(Program::Uplink, UPLINK, &question).expect("it runs");
        assert_eq!(action, causeway_tests::harness::Action::Tx);
        let want = eth(
            asker,
            UPLINK_MAC,
            &[],
            0x0806,
            &arp(2, UPLINK_MAC, target, asker, from),
        );
        assert_eq!(out, want);
    }
    // The kernel answers for our own address; no program answers for others.
    for target in [[203, 0, 113, 5], [192, 0, 2, 99]] {
        let arp = arp(1, asker, [203, 0, 113, 1].into(), [0; 6], target.into());
        let question = eth([0xff; 6], asker, &[], 0x0806, &arp);
        assert_eq!(
            send(&mut h, Program::Uplink, UPLINK, &question),
            Verdict::Passed
        );
    }
    for (target, ours) in [(PUBLIC6, true), (NAT6, true), (PROVIDER6, false)] {
        let std::net::IpAddr::V6(target) = ip(target) else {
            unreachable!()
        };
        let from = "2001:db8:f::1".parse().expect("an address");
        let group = solicited_node(target);
        // To the group, and by unicast as a router confirms its cache entry.
        for (mac, destination) in [(multicast_mac(group), group), (UPLINK_MAC, target)] {
            let question = eth(
                mac,
                asker,
                &[],
                0x86dd,
                &ns(from, destination, target, Some(asker)),
            );
            let (action, out) = h.run(Program::Uplink, UPLINK, &question).expect("it runs");
            if !ours {
                assert_eq!(action, causeway_tests::harness::Action::Pass);
                continue;
            }
            assert_eq!(action, causeway_tests::harness::Action::Tx);
            // Solicited and override, no router.
            let answer = na(target, from, target, 0x60, Some(UPLINK_MAC));
            assert_eq!(out, eth(asker, UPLINK_MAC, &[], 0x86dd, &answer));
        }
    }
}

#[test]
fn a_second_owner_of_a_public_address_is_reported() {
    use appliance_common::events::NeighbourEventKind;
    use causeway_tests::{
        harness::Record,
        table::{Case, run},
    };

    let Some(mut h) = nat() else { return };
    let other = [2, 0, 0, 0, 0x99, 9];
    let is_v4 = |text| match ip(text) {
        std::net::IpAddr::V4(a) => a,
        std::net::IpAddr::V6(_) => unreachable!("an IPv4 fixture"),
    };
    let is_v6 = |text| match ip(text) {
        std::net::IpAddr::V6(a) => a,
        std::net::IpAddr::V4(_) => unreachable!("an IPv6 fixture"),
    };
    let arp_from = |mac, sender| {
        let target = [203, 0, 113, 1].into();
        eth(
            [0xff; 6],
            other,
            &[],
            0x0806,
            &arp(1, mac, sender, [0; 6], target),
        )
    };
    let advertised = |target| {
        let all_nodes = is_v6("ff02::1");
        let l3 = na(target, all_nodes, target, 0x20, Some(other));
        eth([0x33, 0x33, 0, 0, 0, 1], other, &[], 0x86dd, &l3)
    };
    let claim = |address: &'static str| {
        move |records: &[Record]| match records {
            [Record::Neighbour(event)]
                if event.kind == NeighbourEventKind::Claim as u16
                    && (event.vni, event.mac) == (0, other)
                    && event.address == causeway_tests::world::address(address) =>
            {
                Ok(())
            }
            _ => Err(format!("expected one claim to {address}")),
        }
    };
    let none = |records: &[Record]| match records {
        [] => Ok(()),
        _ => Err("expected no claim".to_owned()),
    };
    let case = |what: &str, packet| Case::new(what, Program::Uplink, UPLINK, packet).passed();
    run(
        &mut h,
        vec![
            case("by ARP", arp_from(other, is_v4(PUBLIC4)))
                .counts(Counter::NeighbourSeen)
                .records(claim(PUBLIC4)),
            case("our own frame", arp_from(UPLINK_MAC, is_v4(PUBLIC4))).records(none),
            case(
                "an address of others",
                arp_from(other, [203, 0, 113, 9].into()),
            )
            .records(none),
            case("by advertisement", advertised(is_v6(PUBLIC6)))
                .counts(Counter::NeighbourSeen)
                .records(claim(PUBLIC6)),
            case(
                "an advertisement of others",
                advertised(is_v6("2001:db8:f::9")),
            )
            .records(none),
        ],
    );
}

#[test]
fn a_segment_of_a_lost_connection_is_answered_with_a_reset_inside() {
    let Some(mut h) = nat() else { return };
    for (a, seen, public, remote) in FAMILIES {
        let (from, far) = (end(a, 43_000), end(remote, 443));
        // Established, then lost: as after a change of the schema, or `detach`.
        inside(&mut h, PA, &packet(Message::Tcp(SYN), from, far));
        outside(
            &mut h,
            &packet(Message::Tcp(SYN | ACK), far, end(seen, 43_000)),
        );
        let segment = packet(Message::Tcp(ACK), from, far);
        assert!(matches!(inside(&mut h, PA, &segment), Verdict::Outside(_)));
        h.clear_connections().expect("cleared");
        let before = h.counters();
        let Verdict::Host(frame) = inside(&mut h, PA, &segment) else {
            panic!("no answer to the host");
        };
        let reset = tcp_reset_of(&segment);
        assert_eq!(frame, PA.receives(&reset), "{a}");
        let rise = |h: &Harness, counter: Counter| {
            let now = h.counters();
            let of = |counts: &std::collections::BTreeMap<u32, u64>| {
                counts.get(&(counter as u32)).copied().unwrap_or(0)
            };
            of(&now) - of(&before)
        };
        assert_eq!(rise(&h, Counter::ResetSent), 1);
        assert_eq!(rise(&h, Counter::DropNoFlow), 1);
        // Not about a reset, not to the outside, and not for another protocol.
        let again = packet(Message::Tcp(4), from, far);
        assert_eq!(inside(&mut h, PA, &again), dropped(Counter::DropNoFlow));
        let stranger = packet(Message::Tcp(ACK), far, end(public, 43_000));
        assert_eq!(outside(&mut h, &stranger), dropped(Counter::DropNoFlow));
        let reply = packet(Message::EchoReply, end(a, 0), end(remote, 5));
        assert_eq!(inside(&mut h, PA, &reply), dropped(Counter::DropNoFlow));
    }
}

/// The reset that answers a segment with ACK (RFC 9293 section 3.10.7.1).
fn tcp_reset_of(l3: &[u8]) -> Vec<u8> {
    let (from, to) = ends(l3);
    let l4 = if from.0.is_ipv4() { 20 } else { 40 };
    let mut tcp = tcp_segment(to.0, from.0, to.1, from.1, 4, &[], &[]);
    tcp[4..8].copy_from_slice(&l3[l4 + 8..l4 + 12]);
    tcp[8..12].fill(0);
    tcp[14..18].fill(0);
    let check = transport_checksum(to.0, from.0, 6, &tcp);
    tcp[16..18].copy_from_slice(&check.to_be_bytes());
    match (to.0, from.0) {
        (IpAddr::V4(to), IpAddr::V4(from)) => {
            let mut header = V4::new(to, from, 6);
            header.id = 0;
            header.build(&tcp)
        }
        (IpAddr::V6(to), IpAddr::V6(from)) => v6(to, from, 6, 64, &tcp),
        _ => unreachable!("of one family"),
    }
}

#[test]
fn public_addresses_answer_pings_where_it_is_set_so() {
    let mut world = World::nat();
    for (_, public) in &mut world.public {
        public.flags |= public_flags::PING;
    }
    let Some(mut h) = Harness::new(world.clone()) else {
        return;
    };
    for (public, one_to_one, remote) in [
        (PUBLIC4, ONE_TO_ONE4, REMOTE),
        (PUBLIC6, ONE_TO_ONE6, REMOTE6),
    ] {
        let ping = |to| packet(Message::EchoRequest, end(remote, 77), end(to, 0));
        let mut reply = packet(Message::EchoReply, end(public, 0), end(remote, 77));
        if ip(public).is_ipv4() {
            // The request's identification.
            reply[4..8].copy_from_slice(&ping(public)[4..8]);
            reply[10..12].fill(0);
            let check = checksum(&reply[..20]);
            reply[10..12].copy_from_slice(&check.to_be_bytes());
        }
        assert_eq!(outside(&mut h, &ping(public)), Verdict::Outside(reply));
        // That of a 1:1 rule goes to its machine.
        let fate = outside(&mut h, &ping(one_to_one));
        assert!(matches!(fate, Verdict::Host(_)), "{fate:?}");
        let timestamp = icmp(ip(remote), ip(public), 13, 0, &[0; 16]);
        if ip(public).is_ipv4() {
            let fate = outside(&mut h, &timestamp);
            assert_eq!(fate, dropped(Counter::DropNoRule));
        }
    }
    // The appliance's own address: the kernel answers.
    let ping = packet(Message::EchoRequest, end(REMOTE, 77), end(PROVIDER, 0));
    assert_eq!(outside(&mut h, &ping), Verdict::Passed);
    // At a bounded rate, and not where it is not set.
    let ping = packet(Message::EchoRequest, end(REMOTE, 77), end(PUBLIC4, 0));
    let answered = (0..3000)
        .filter(|_| matches!(outside(&mut h, &ping), Verdict::Outside(_)))
        .count();
    assert!((50..3000).contains(&answered), "{answered} answered");
    h.fill(World::nat()).expect("filled");
    assert_eq!(outside(&mut h, &ping), dropped(Counter::DropNoRule));
}

#[test]
fn frames_to_other_machines_are_the_kernel_s_even_if_their_address_is_public() {
    let Some(mut h) = nat() else { return };
    let foreign = [2, 0, 0, 0, 0, 0x99];
    for (public, remote) in [(PUBLIC4, REMOTE), (PUBLIC6, REMOTE6), (PROVIDER, REMOTE)] {
        for hops in [64, 1] {
            let mut l3 = packet(Message::Tcp(SYN), end(remote, 998), end(public, 443));
            if ip(public).is_ipv4() {
                l3[8] = hops;
                l3[10..12].fill(0);
                let check = checksum(&l3[..20]);
                l3[10..12].copy_from_slice(&check.to_be_bytes());
            } else {
                l3[7] = hops;
            }
            let flooded = frame(foreign, NEXT_HOP_MAC, &[], &l3);
            let (action, out) = h.run(Program::Uplink, UPLINK, &flooded).expect("it runs");
            assert!(!action.sends(), "{public}, {hops} hops: {action:?}");
            assert_eq!(out, flooded);
        }
    }
    assert_eq!(
        h.counters()
            .get(&(Counter::FlowOpened as u32))
            .copied()
            .unwrap_or(0),
        0
    );
}

#[test]
fn a_refused_connection_on_our_own_address_is_not_the_kernel_s() {
    let mut world = World::nat();
    // The second tenant, which is seen as the appliance's own address, may have one connection.
    world.quotas = vec![
        TenantQuota {
            connections: 1,
            mappings: 1000,
        };
        2
    ];
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let remote = end(REMOTE, 4000);
    let mut fates = Vec::new();
    for port in [20_001, 20_002] {
        let sent = inside(&mut h, PG, &packet(Message::Udp, end(A, port), remote));
        let Verdict::Outside(out) = sent else {
            panic!("{port}: {sent:?}");
        };
        let outer = ends(&out).0;
        assert_eq!(outer.0, ip(PROVIDER));
        fates.push(outside(&mut h, &packet(Message::Udp, remote, outer)));
    }
    assert!(matches!(fates[0], Verdict::Host(_)), "{:?}", fates[0]);
    assert_eq!(
        fates[1],
        dropped(Counter::DropQuota),
        "the kernel would refuse the port"
    );
}

#[test]
fn pings_from_outside_take_no_resets_and_errors_from_hosts_inside() {
    let mut world = World::nat();
    for (_, public) in &mut world.public {
        public.flags |= public_flags::PING;
    }
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let ping = packet(Message::EchoRequest, end(REMOTE, 77), end(PUBLIC4, 0));
    let mut expired = packet(Message::Tcp(SYN), end(REMOTE, 998), end(PUBLIC4, 443));
    expired[8] = 1;
    expired[10..12].fill(0);
    let check = checksum(&expired[..20]);
    expired[10..12].copy_from_slice(&check.to_be_bytes());
    for _ in 0..400 {
        outside(&mut h, &ping);
        outside(&mut h, &expired);
    }
    let counted = |h: &mut Harness, counter: Counter| {
        h.counters().get(&(counter as u32)).copied().unwrap_or(0)
    };
    // A segment of a lost connection, and a packet whose hops are used up.
    assert_eq!(counted(&mut h, Counter::ResetSent), 0);
    let expired_outside = counted(&mut h, Counter::TimeExceededSent);
    assert!((50..400).contains(&expired_outside), "{expired_outside}");
    inside(
        &mut h,
        PA,
        &packet(Message::Tcp(ACK), end(A, 5000), end(REMOTE, 80)),
    );
    assert_eq!(counted(&mut h, Counter::ResetSent), 1);
    let mut l3 = packet(Message::Udp, end(A, 5000), end(REMOTE, 80));
    l3[8] = 1;
    l3[10..12].fill(0);
    let check = checksum(&l3[..20]);
    l3[10..12].copy_from_slice(&check.to_be_bytes());
    inside(&mut h, PA, &l3);
    assert_eq!(
        counted(&mut h, Counter::TimeExceededSent),
        expired_outside + 1
    );
}
