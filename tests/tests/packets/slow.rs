//! The slow path: each tenant has a budget for each reason, hosts that are known to be absent and
//! fragments that no rule can translate are not handed to the daemon.

use std::time::Instant;

use appliance_common::{
    counters::Counter,
    events::SlowReason,
    maps::{Budget, CLAIMS_PER_NETWORK, Neighbour},
};
use causeway_tests::{
    harness::{Harness, Program, Record},
    nat::{HostPort, Message, Verdict, end, fragments, inside, outside, packet},
    packet::{tcp_flags::SYN, *},
    table::{Case, Out, run},
    world::*,
};

/// Slow packets among the records: reason and VNI of each.
fn slow(h: &mut Harness) -> Vec<(u16, u32)> {
    let records = h.records();
    let of = |record: &Record| match record {
        Record::Slow(header, _) => Some((header.reason, header.vni)),
        _ => None,
    };
    records.iter().filter_map(of).collect()
}

/// A packet out of a tenant's tunnel to a replica that is not resolved.
fn to_unresolved(from: &str, vni: u32) -> Vec<u8> {
    let l3 = udp(ip("10.1.0.11"), ip("10.1.0.12"), 1, 2, b"waits");
    tunnelled(from, PROVIDER, vni, &l3)
}

#[test]
fn a_flood_of_one_tenant_and_reason_takes_the_slow_path_of_no_other() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let (per_second, burst) = Budget::Unresolved.rate();
    let began = Instant::now();
    let (mut handed, sent) = (0, 20 * burst);
    for _ in 0..sent {
        h.run(Program::Uplink, UPLINK, &to_unresolved(TENANT, NET1))
            .expect("it runs");
        handed += slow(&mut h).len() as u64;
    }
    let most = burst + per_second * (began.elapsed().as_millis() as u64 + 1) / 1000;
    assert!(
        handed >= burst && handed <= most,
        "{handed}, at most {most}"
    );
    let refused = h.counters()[&(Counter::DropSlowRate as u32)];
    assert_eq!(refused, sent - handed, "the others are counted");
    // Another tenant, and another reason of the same tenant.
    h.run(Program::Uplink, UPLINK, &to_unresolved(TENANT2, NET2))
        .expect("it runs");
    assert_eq!(slow(&mut h), [(SlowReason::Unresolved as u16, NET2)]);
    let mut header = V4::new([10, 1, 0, 10].into(), [10, 1, 0, 11].into(), 17);
    header.frag = 0;
    let long = header.build(&[0; 1460]);
    h.run(Program::Access, TRUNK, &replica(&long))
        .expect("it runs");
    assert_eq!(slow(&mut h), [(SlowReason::Split as u16, NET1)]);
}

#[test]
fn packets_to_an_absent_host_are_dropped_by_the_programs() {
    let mut world = World::provider();
    let key = host(NET1, "10.1.0.12");
    world.neighbours.push((key, Neighbour::absent()));
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    run(
        &mut h,
        vec![
            Case::new(
                "out of the tunnel",
                Program::Uplink,
                UPLINK,
                to_unresolved(TENANT, NET1),
            )
            .dropped(Counter::DropHostAbsent),
        ],
    );
    // The other tenant's host of that address is asked for.
    h.run(Program::Uplink, UPLINK, &to_unresolved(TENANT2, NET2))
        .expect("it runs");
    assert_eq!(slow(&mut h), [(SlowReason::Unresolved as u16, NET2)]);
    // The host itself is reported when it sends.
    let request = arp(
        1,
        B_MAC,
        [10, 1, 0, 12].into(),
        [0; 6],
        [10, 1, 0, 1].into(),
    );
    let frame = eth([0xff; 6], B_MAC, &[tag(101)], 0x0806, &request);
    h.run(Program::Access, TRUNK, &frame).expect("it runs");
    let records = h.records();
    let [Record::Neighbour(event)] = &records[..] else {
        panic!("{records:?}");
    };
    assert_eq!((event.address, event.mac), (key.address, B_MAC));
}

#[test]
fn the_router_says_that_a_host_is_absent() {
    let mut world = World::full();
    for text in ["10.4.0.12", "2001:db8:4::12"] {
        world
            .neighbours
            .push((host(NET4, text), Neighbour::absent()));
    }
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let cases = [
        ("10.1.0.10", "10.4.0.12", 20, [3, 1]),
        ("2001:db8:1::10", "2001:db8:4::12", 40, [1, 3]),
    ];
    let cases = cases.map(|(from, to, l4, kind)| {
        Case::new(
            to,
            Program::Access,
            TRUNK,
            replica(&udp(ip(from), ip(to), 1, 2, &[0; 600])),
        )
        .gives(
            causeway_tests::harness::Action::Tx,
            Out::Check(Box::new(move |out| {
                let at = 18 + l4;
                (out[at..at + 2] == kind)
                    .then_some(())
                    .ok_or(format!("{:?}", &out[at..at + 2]))
            })),
        )
        .counts(Counter::DropHostAbsent)
        .counts(Counter::UnreachableSent)
    });
    run(&mut h, cases.into());
}

#[test]
fn a_client_of_a_public_address_is_told_that_the_machine_is_absent() {
    let mut world = World::nat();
    for text in ["10.1.0.10", "2001:db8:1::10"] {
        let key = host(NET1, text);
        world.neighbours.retain(|(other, _)| *other != key);
        world.neighbours.push((key, Neighbour::absent()));
    }
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let families = [
        (PUBLIC4, REMOTE, "10.1.0.11", 20, [3, 1]),
        (PUBLIC6, REMOTE6, "2001:db8:1::11", 40, [1, 3]),
    ];
    for (public, remote, neighbour, at, kind) in families {
        let syn = |from| packet(Message::Tcp(SYN), end(from, 50_000), end(public, 443));
        // From outside, by the address that the client knows; quoted as the client sent it.
        let sent = syn(remote);
        let Verdict::Outside(error) = outside(&mut h, &sent) else {
            panic!("{public}: no error");
        };
        assert_eq!(error[at..at + 2], kind, "{public}");
        let from = if at == 20 { 12..16 } else { 8..24 };
        let to = if at == 20 { 16..20 } else { 24..40 };
        assert_eq!(error[from], sent[to], "{public}: the error's source");
        assert!(error[at + 8..].starts_with(&sent[..at + 8]), "{public}");
        // From inside, by the gateway.
        let Verdict::Host(error) = inside(&mut h, HostPort::trunk(101, B_MAC), &syn(neighbour))
        else {
            panic!("{public}: no error inside");
        };
        assert_eq!(error[18 + at..18 + at + 2], kind, "{public}, from inside");
    }
    // Strangers have a budget of their own.
    let (per_second, burst) = Budget::OutsideError.rate();
    let began = Instant::now();
    let mut told = 0;
    for port in (1000..).take(20 * burst as usize) {
        let syn = packet(Message::Tcp(SYN), end(REMOTE, port), end(PUBLIC4, 443));
        match outside(&mut h, &syn) {
            Verdict::Outside(_) => told += 1,
            Verdict::Dropped(reason) => assert_eq!(reason, Counter::DropHostAbsent),
            other => panic!("{other:?}"),
        }
    }
    let most = burst + per_second * (began.elapsed().as_millis() as u64 + 1) / 1000;
    assert!(told <= most && told < 20 * burst, "{told}, at most {most}");
}

#[test]
fn fragments_that_no_rule_can_translate_are_not_handed_over() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    // The second fragment of a datagram to each address, by protocol.
    for (what, message, to, expected) in [
        ("UDP, rules for UDP", Message::Udp, PUBLIC4, true),
        ("UDP, rules for TCP only", Message::Udp, PUBLIC2, false),
        ("TCP, rules for TCP only", Message::Tcp(0x10), PUBLIC2, true),
        (
            "ICMP, rules for ports",
            Message::EchoRequest,
            PUBLIC4,
            false,
        ),
        ("ICMP, 1:1", Message::EchoRequest, ONE_TO_ONE4, true),
        ("UDP, mappings", Message::Udp, NAT4, true),
        ("UDP, rules for UDP, IPv6", Message::Udp, PUBLIC6, true),
        (
            "ICMP, rules for ports, IPv6",
            Message::EchoRequest,
            PUBLIC6,
            false,
        ),
    ] {
        let from = if ip(to).is_ipv4() { REMOTE } else { REMOTE6 };
        let whole = packet(message, end(from, 5000), end(to, 5001));
        let [_, later] = fragments(&whole, 8, 77);
        let frame = frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &later);
        let dropped = h.counters().get(&(Counter::DropFragment as u32)).copied();
        let (action, _) = h.run(Program::Uplink, UPLINK, &frame).expect("it runs");
        assert!(!action.sends(), "{what}: {action:?}");
        let handed = slow(&mut h);
        assert_eq!(handed.len(), usize::from(expected), "{what}");
        let now = h.counters().get(&(Counter::DropFragment as u32)).copied();
        assert_eq!(now == dropped, expected, "{what}: counted");
    }
    // A flood of fragments to one tenant's address leaves that of the other alone.
    let later = |to: &str, id| {
        let whole = packet(Message::Tcp(0x10), end(REMOTE, 5000), end(to, 443));
        let [_, later] = fragments(&whole, 8, id);
        frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &later)
    };
    let (_, burst) = Budget::Fragment.rate();
    for id in 0..10 * burst as u16 {
        h.run(Program::Uplink, UPLINK, &later(PUBLIC4, id))
            .expect("it runs");
        h.each_record(|_| {});
    }
    assert!(h.counters()[&(Counter::DropSlowRate as u32)] > 0);
    h.run(Program::Uplink, UPLINK, &later(PUBLIC2, 1))
        .expect("it runs");
    assert_eq!(slow(&mut h), [(SlowReason::Fragment as u16, 0)]);
}

#[test]
fn errors_about_one_tenant_leave_the_budget_of_the_other() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    let (acme, globex) = (HostPort::trunk(101, A_MAC), HostPort::trunk(201, G_MAC));
    let expired = |mac_port: &HostPort| {
        let mut l3 = udp(ip("10.1.0.10"), ip(REMOTE), 1, 2, &[0; 600]);
        l3[8] = 1;
        l3[10..12].fill(0);
        let sum = checksum(&l3[..20]);
        l3[10..12].copy_from_slice(&sum.to_be_bytes());
        mac_port.sends(&l3)
    };
    let sent = |h: &Harness| {
        let counters = h.counters();
        let sent = counters.get(&(Counter::TimeExceededSent as u32));
        sent.copied().unwrap_or(0)
    };
    for _ in 0..2000 {
        h.run(Program::Access, TRUNK, &expired(&acme))
            .expect("it runs");
    }
    let of_acme = sent(&h);
    assert!(of_acme < 2000, "all {of_acme} errors were sent");
    for _ in 0..20 {
        h.run(Program::Access, TRUNK, &expired(&globex))
            .expect("it runs");
    }
    assert!(sent(&h) >= of_acme + 20, "{} and {of_acme}", sent(&h));
}

/// Hosts and claims of the records, by VNI.
fn reported(h: &mut Harness) -> Vec<(u32, u16)> {
    let records = h.records();
    let of = |record: &Record| match record {
        Record::Neighbour(event) => Some((event.vni, event.kind)),
        _ => None,
    };
    records.iter().filter_map(of).collect()
}

#[test]
fn one_tenant_s_claims_and_hosts_leave_the_ring_to_others() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    // A machine says that it has the gateway's address, from ever another MAC address.
    let claim = |n: u32| {
        let [a, b, c, d] = n.to_be_bytes();
        let mac = [2, 9, a, b, c, d];
        let body = arp(1, mac, [10, 1, 0, 1].into(), [0; 6], [10, 1, 0, 1].into());
        eth([0xff; 6], mac, &[tag(101)], 0x0806, &body)
    };
    let begun = Instant::now();
    for n in 0..20_000 {
        h.run(Program::Access, TRUNK, &claim(n)).expect("it runs");
    }
    // And it says that the replica is at ever another MAC address.
    let host = |n: u32| {
        let [a, b, c, d] = n.to_be_bytes();
        let mac = [2, 8, a, b, c, d];
        let body = arp(1, mac, [10, 1, 0, 10].into(), [0; 6], [10, 1, 0, 10].into());
        eth([0xff; 6], mac, &[tag(101)], 0x0806, &body)
    };
    for n in 0..20_000 {
        h.run(Program::Access, TRUNK, &host(n)).expect("it runs");
    }
    // A host of another tenant, before anything was read.
    let mac = [2, 0, 0, 0, 7, 7];
    let body = arp(1, mac, [10, 1, 0, 10].into(), [0; 6], [10, 1, 0, 1].into());
    let other = eth([0xff; 6], mac, &[tag(201)], 0x0806, &body);
    h.run(Program::Access, TRUNK, &other).expect("it runs");
    let seen = reported(&mut h);
    let of = |vni| seen.iter().filter(|(v, _)| *v == vni).count() as u64;
    assert_eq!(of(NET2), 1, "{} of the first tenant", of(NET1));
    let most = [Budget::Claims, Budget::Neighbours].map(|budget| {
        let (per_second, burst) = budget.rate();
        burst + per_second * (begun.elapsed().as_millis() as u64 + 1) / 1000
    });
    let most: u64 = most.iter().sum();
    assert!((2..=most).contains(&of(NET1)), "{} of {most}", of(NET1));
    let lost = h.counters()[&(Counter::NeighbourSeenLost as u32)];
    assert_eq!(lost, 40_000 - of(NET1), "the others are counted");
}

#[test]
fn claims_on_one_network_leave_reports_to_another_of_the_same_tenant() {
    let mut world = World::provider();
    let slot = world.slot(NET2).expect("a network");
    let tenant = world.networks[world.slot(NET1).expect("a network")].tenant;
    world.networks[slot].tenant = tenant;
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    let claim = |vlan: u16, n: u32| {
        let [a, b, c, d] = n.to_be_bytes();
        let mac = [2, 9, a, b, c, d];
        let body = arp(1, mac, [10, 1, 0, 1].into(), [0; 6], [10, 1, 0, 1].into());
        eth([0xff; 6], mac, &[tag(vlan)], 0x0806, &body)
    };
    let begun = Instant::now();
    for n in 0..10_000 {
        h.run(Program::Access, TRUNK, &claim(101, n))
            .expect("it runs");
    }
    h.run(Program::Access, TRUNK, &claim(201, 7))
        .expect("it runs");
    let seen = reported(&mut h);
    let of = |vni| seen.iter().filter(|(v, _)| *v == vni).count() as u64;
    assert_eq!(of(NET2), 1, "{} of the other network", of(NET1));
    let (per_second, burst) = CLAIMS_PER_NETWORK;
    let most = burst + per_second * (begun.elapsed().as_millis() as u64 + 1) / 1000;
    assert!((2..=most).contains(&of(NET1)), "{} of {most}", of(NET1));
    let lost = h.counters()[&(Counter::NeighbourSeenLost as u32)];
    assert_eq!(lost, 10_000 - of(NET1), "the others are counted");
}
