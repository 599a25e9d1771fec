//! Full failover: the MSS of a SYN fits every MTU on the way, and IPv4 without DF that is too long
//! is handed to the daemon to be split (RFC 4787 REQ-13a).

use appliance_common::{counters::Counter, events::SlowReason};
use causeway_tests::{
    harness::{Action, Harness, Program, Record},
    nat::{HostPort, Verdict, hop, inside, outside},
    packet::{tcp_flags::*, *},
    table::{Case, Out, run, slow},
    world::*,
};

const PA: HostPort = HostPort::trunk(101, A_MAC);

/// The MSS that the SYN in a frame or packet announces.
fn mss(verdict: &Verdict, l3: usize) -> u16 {
    let bytes = match verdict {
        Verdict::Host(frame) => &frame[l3..],
        Verdict::Outside(packet) => packet,
        other => panic!("{other:?}"),
    };
    let l4 = if bytes[0] >> 4 == 4 { 20 } else { 40 };
    let source_and_destination = if l4 == 20 {
        &bytes[12..20]
    } else {
        &bytes[8..40]
    };
    let mut pseudo = source_and_destination.to_vec();
    pseudo.extend_from_slice(&((bytes.len() - l4) as u32).to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, 6]);
    pseudo.extend_from_slice(&bytes[l4..]);
    assert_eq!(checksum(&pseudo), 0, "the checksum of TCP");
    assert_eq!(bytes[l4 + 20..l4 + 22], [2, 4]);
    u16::from_be_bytes([bytes[l4 + 22], bytes[l4 + 23]])
}

#[test]
fn syns_are_clamped_to_the_uplink_in_both_directions() {
    let mut world = World::nat();
    world.nat.mtu = 1400;
    let Some(mut h) = Harness::new(world) else {
        return;
    };
    for (a, seen, public, remote, headers) in [
        ("10.1.0.10", NAT4, PUBLIC4, REMOTE, 40),
        ("2001:db8:1::10", NAT6, PUBLIC6, REMOTE6, 60),
    ] {
        let syn = |from: &str, to: &str, ports: (u16, u16), flags, mss| {
            let (from, to) = (ip(from), ip(to));
            tcp(from, to, ports.0, ports.1, flags, &syn_options(mss), &[])
        };
        // Opened from inside: the SYN, and its answer.
        let out = inside(&mut h, PA, &syn(a, remote, (50_000, 443), SYN, 1460));
        assert_eq!(mss(&out, 0), 1400 - headers, "{a} to {remote}");
        let back = outside(&mut h, &syn(remote, seen, (443, 50_000), SYN | ACK, 1460));
        assert_eq!(mss(&back, 18), 1400 - headers, "{remote} to {a}");
        // By rule, and what fits stays.
        let first = outside(&mut h, &syn(remote, public, (40_000, 443), SYN, 8960));
        assert_eq!(mss(&first, 18), 1400 - headers, "{remote} by rule");
        let small = inside(&mut h, PA, &syn(a, remote, (50_001, 443), SYN, 536));
        assert_eq!(mss(&small, 0), 536);
    }
    assert_eq!(h.counters()[&(Counter::MssClamped as u32)], 6);
}

#[test]
fn syns_between_networks_are_clamped_to_the_smaller_mtu() {
    let Some(mut h) = Harness::new(World::full()) else {
        return;
    };
    let mut cases = Vec::new();
    // Net4's port takes 1400 bytes.
    for (a, d, limit) in [
        ("10.1.0.10", "10.4.0.10", 1360),
        ("2001:db8:1::10", "2001:db8:4::10", 1340),
    ] {
        let syn = |from, to, mss| tcp(ip(from), ip(to), 1, 2, SYN, &syn_options(mss), &[]);
        cases.push(
            Case::new(a, Program::Access, TRUNK, replica(&syn(a, d, 1460)))
                .gives(
                    Action::Redirect,
                    Out::Is(frame(A_MAC, ACCESS_MAC, &[], &hop(&syn(a, d, limit)))),
                )
                .counts(Counter::MssClamped)
                .counts(Counter::Routed),
        );
        let from_d = frame(ACCESS_MAC, A_MAC, &[], &syn(d, a, 1460));
        let to_a = frame(A_MAC, TRUNK_MAC, &[tag(101)], &hop(&syn(d, a, limit)));
        cases.push(
            Case::new(d, Program::Access, ACCESS, from_d)
                .gives(Action::Redirect, Out::Is(to_a))
                .counts(Counter::MssClamped)
                .counts(Counter::Routed),
        );
    }
    run(&mut h, cases);
}

/// A UDP packet without DF.
fn may_split(from: &str, to: &str, ports: (u16, u16), len: usize) -> Vec<u8> {
    let mut l3 = udp(ip(from), ip(to), ports.0, ports.1, &vec![7; len]);
    l3[6] = 0;
    l3[10..12].fill(0);
    let check = checksum(&l3[..20]);
    l3[10..12].copy_from_slice(&check.to_be_bytes());
    l3
}

#[test]
fn routed_packets_without_df_are_split_for_their_hosts_port() {
    let Some(mut h) = Harness::new(World::full()) else {
        return;
    };
    let long = may_split("10.1.0.10", "10.4.0.10", (1, 2), 1430);
    run(
        &mut h,
        vec![
            Case::new("to net4", Program::Access, TRUNK, replica(&long))
                .dropped(Counter::SlowSplit)
                .records(slow(SlowReason::HostSplit, NET4, "10.4.0.10", hop(&long))),
        ],
    );
}

/// The packet that was handed to the daemon, and why.
fn handed(h: &mut Harness) -> (u16, u32, Vec<u8>) {
    match &h.records()[..] {
        [Record::Slow(header, frame)] => {
            let packet = frame[usize::from(header.l3)..].to_vec();
            (header.reason, header.vni, packet)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn translated_packets_without_df_are_split_after_their_translation() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    let split = Verdict::Dropped(Counter::SlowSplit);
    // Out of the uplink, which takes 1500 bytes.
    let long = may_split("10.1.0.10", REMOTE, (20_000, 53), 1600);
    assert_eq!(inside(&mut h, PA, &long), split);
    let there = hop(&may_split(NAT4, REMOTE, (20_000, 53), 1600));
    let reason = SlowReason::UplinkSplit as u16;
    assert_eq!(handed(&mut h), (reason, NET1, there));
    // By a rule to net4, whose port takes 1400 bytes.
    let long = may_split(REMOTE, PUBLIC4, (5353, 53), 1430);
    assert_eq!(outside(&mut h, &long), split);
    let there = hop(&may_split(REMOTE, "10.4.0.10", (5353, 53), 1430));
    let reason = SlowReason::HostSplit as u16;
    assert_eq!(handed(&mut h), (reason, NET4, there));
}
