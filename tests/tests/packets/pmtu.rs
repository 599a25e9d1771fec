//! Packets over the tunnel's MTU: ICMP errors made in XDP, or the slow path.

use appliance_common::{counters::Counter, events::SlowReason};
use causeway_tests::{
    harness::{Action, Harness, Program},
    packet::*,
    table::{Case, Out, run, slow},
    world::*,
};

const A: &str = "10.1.0.10";
const B: &str = "10.1.0.11";
const A6: &str = "2001:db8:1::10";
const B6: &str = "2001:db8:1::11";

/// ICMP "fragmentation needed" as RFC 792 and RFC 1191 draw it, with IPv4 identification 0, TTL 64
/// and the precedence of RFC 1812 section 4.3.2.5.
fn frag_needed(l3: &[u8], mtu: u16) -> Vec<u8> {
    let octets = |at: usize| [l3[at], l3[at + 1], l3[at + 2], l3[at + 3]];
    let mut rest = vec![0, 0];
    rest.extend_from_slice(&mtu.to_be_bytes());
    rest.extend_from_slice(&l3[..512]);
    let mut header = V4::new(octets(16).into(), octets(12).into(), 1);
    header.id = 0;
    header.frag = 0;
    header.tos = 0xc0;
    header.build(&icmp_message(ip(A), ip(B), 3, 4, &rest))
}

/// ICMPv6 "packet too big" (RFC 4443 section 3.2).
fn too_big(src: &str, dst: &str, l3: &[u8], mtu: u16) -> Vec<u8> {
    let mut rest = u32::from(mtu).to_be_bytes().to_vec();
    rest.extend_from_slice(&l3[..512]);
    icmp(ip(dst), ip(src), 2, 0, &rest)
}

#[test]
fn packets_with_df_are_answered_with_frag_needed() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let mut cases = Vec::new();
    for len in [1451usize, 1452, 1500, 1499, 2001, 3400] {
        let l3 = udp(ip(A), ip(B), 1, 2, &vec![0x33; len - 28]);
        cases.push(
            Case::new(format!("{len} bytes"), Program::Access, TRUNK, replica(&l3))
                .gives(
                    Action::Tx,
                    Out::Is(frame(A_MAC, TRUNK_MAC, &[tag(101)], &frag_needed(&l3, MTU))),
                )
                .counts(Counter::FragNeededSent),
        );
    }
    let far = tcp(
        ip(A),
        ip("192.0.2.9"),
        1,
        2,
        tcp_flags::ACK,
        &[],
        &[1; 1460],
    );
    cases.push(
        Case::new(
            "from the address beyond the router",
            Program::Access,
            TRUNK,
            replica(&far),
        )
        .gives(
            Action::Tx,
            Out::Is(frame(
                A_MAC,
                TRUNK_MAC,
                &[tag(101)],
                &frag_needed(&far, MTU),
            )),
        )
        .counts(Counter::FragNeededSent),
    );
    let untagged = udp(ip("10.4.0.10"), ip("10.4.0.11"), 1, 2, &[1; 1472]);
    cases.push(
        Case::new(
            "untagged",
            Program::Access,
            ACCESS,
            frame(ACCESS_MAC, A_MAC, &[], &untagged),
        )
        .gives(
            Action::Tx,
            Out::Is(frame(A_MAC, ACCESS_MAC, &[], &frag_needed(&untagged, MTU))),
        )
        .counts(Counter::FragNeededSent),
    );
    let qinq = udp(ip("10.3.0.10"), ip("10.3.0.11"), 1, 2, &[1; 1472]);
    let tags = [service_tag(200), tag(102)];
    cases.push(
        Case::new(
            "two tags, and that network's MTU",
            Program::Access,
            TRUNK,
            frame(TRUNK_MAC, A_MAC, &tags, &qinq),
        )
        .gives(
            Action::Tx,
            Out::Is(frame(A_MAC, TRUNK_MAC, &tags, &frag_needed(&qinq, 1430))),
        )
        .counts(Counter::FragNeededSent),
    );
    let mut header = V4::new([10, 1, 0, 10].into(), [10, 1, 0, 11].into(), 17);
    header.options = vec![0x94, 4, 0, 0];
    let optioned = header.build(&udp_segment(ip(A), ip(B), 1, 2, &[1; 1440]));
    cases.push(
        Case::new(
            "with IP options, quoted too",
            Program::Access,
            TRUNK,
            replica(&optioned),
        )
        .gives(
            Action::Tx,
            Out::Is(frame(
                A_MAC,
                TRUNK_MAC,
                &[tag(101)],
                &frag_needed(&optioned, MTU),
            )),
        )
        .counts(Counter::FragNeededSent),
    );
    run(&mut h, cases);
}

#[test]
fn ipv6_packets_are_answered_with_packet_too_big() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let mut cases = Vec::new();
    for len in [1451usize, 1500, 1499, 3400] {
        let l3 = udp(ip(A6), ip(B6), 1, 2, &vec![0x33; len - 48]);
        cases.push(
            Case::new(format!("{len} bytes"), Program::Access, TRUNK, replica(&l3))
                .gives(
                    Action::Tx,
                    Out::Is(frame(
                        A_MAC,
                        TRUNK_MAC,
                        &[tag(101)],
                        &too_big(A6, B6, &l3, MTU),
                    )),
                )
                .counts(Counter::PacketTooBigSent),
        );
    }
    run(&mut h, cases);
}

#[test]
fn the_tenant_side_answers_too() {
    let Some(mut h) = Harness::new(World::tenant()) else {
        return;
    };
    let l3 = echo(ip("10.9.0.2"), ip(A), 1472);
    let l6 = echo(ip("2001:db8:9::2"), ip(A6), 1452);
    run(
        &mut h,
        vec![
            Case::new(
                "v4 from behind the router",
                Program::Combined,
                UPLINK,
                production(&l3),
            )
            .gives(
                Action::Tx,
                Out::Is(frame(B_MAC, UPLINK_MAC, &[], &frag_needed(&l3, MTU))),
            )
            .counts(Counter::FragNeededSent),
            Case::new(
                "v6 from behind the router",
                Program::Combined,
                UPLINK,
                production(&l6),
            )
            .gives(
                Action::Tx,
                Out::Is(frame(
                    B_MAC,
                    UPLINK_MAC,
                    &[],
                    &too_big("2001:db8:9::2", A6, &l6, MTU),
                )),
            )
            .counts(Counter::PacketTooBigSent),
        ],
    );
}

#[test]
fn no_error_is_sent_about_an_error_or_a_later_fragment() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let mut cases = Vec::new();
    for kind in [3u8, 4, 5, 11, 12] {
        cases.push(
            Case::new(
                format!("ICMP type {kind}"),
                Program::Access,
                TRUNK,
                replica(&icmp(ip(A), ip(B), kind, 0, &[0; 1470])),
            )
            .dropped(Counter::DropNoErrorAboutError),
        );
    }
    for kind in [1u8, 2, 3, 4, 100, 127] {
        cases.push(
            Case::new(
                format!("ICMPv6 type {kind}"),
                Program::Access,
                TRUNK,
                replica(&icmp(ip(A6), ip(B6), kind, 0, &[0; 1450])),
            )
            .dropped(Counter::DropNoErrorAboutError),
        );
    }
    let mut header = V4::new([10, 1, 0, 10].into(), [10, 1, 0, 11].into(), 17);
    header.frag = 0x4000 | 185;
    cases.push(
        Case::new(
            "a later fragment with DF",
            Program::Access,
            TRUNK,
            replica(&header.build(&[0; 1480])),
        )
        .dropped(Counter::DropNoErrorAboutError),
    );
    run(&mut h, cases);
}

#[test]
fn packets_without_df_are_handed_to_the_slow_path_for_fragmentation() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let mut cases = Vec::new();
    for (what, frag, len) in [
        ("one byte too long", 0u16, 1451usize),
        ("full frame", 0, 1500),
        ("the first fragment", 0x2000, 1500),
        ("a later fragment", 0x2000 | 185, 1500),
        ("the largest frame", 0, 3400),
    ] {
        let mut header = V4::new([10, 1, 0, 10].into(), [10, 1, 0, 11].into(), 17);
        header.frag = frag;
        let l3 = header.build(&vec![0x44; len - 20]);
        cases.push(
            Case::new(what, Program::Access, TRUNK, replica(&l3))
                .dropped(Counter::SlowSplit)
                .records(slow(SlowReason::Split, NET1, B, l3)),
        );
    }
    run(&mut h, cases);
}

#[test]
fn a_full_ring_drops_and_counts() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let mut header = V4::new([10, 1, 0, 10].into(), [10, 1, 0, 11].into(), 17);
    header.frag = 0;
    let packet = replica(&header.build(&[0; 1480]));
    for _ in 0..3000 {
        // The tenant's budget is smaller than the ring.
        h.clear_budgets().expect("BUDGETS");
        let (action, _) = h
            .run(Program::Access, TRUNK, &packet)
            .expect("the kernel runs it");
        assert_eq!(action, Action::Drop);
    }
    let counters = h.counters();
    let of = |c: Counter| counters.get(&(c as u32)).copied().unwrap_or(0);
    assert!(of(Counter::DropSlowRingFull) > 0, "{}", h.describe());
    assert_eq!(
        of(Counter::SlowSplit) + of(Counter::DropSlowRingFull),
        3000,
        "every packet is counted once"
    );
    assert_eq!(
        h.records().len() as u64,
        of(Counter::SlowSplit),
        "the ring has every packet that is counted as handed over"
    );
}
