//! The MSS of a SYN is lowered to what fits the tunnel, both ways, and no other byte changes.

use appliance_common::counters::Counter;
use causeway_tests::{
    harness::{Action, Harness, Program},
    nat::{HostPort, Message, end, inside, outside, packet},
    packet::{tcp_flags::*, *},
    table::{Case, Out, run},
    world::*,
};

/// The packet with another MSS and a recomputed TCP checksum.
fn remade(src: &str, dst: &str, flags: u8, options: &[u8]) -> Vec<u8> {
    tcp(ip(src), ip(dst), 40_000, 443, flags, options, &[])
}

#[test]
fn syns_are_clamped_into_the_tunnel() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let v4 = ("10.1.0.10", "10.1.0.11");
    let v6 = ("2001:db8:1::10", "2001:db8:1::11");
    let odd = |mss: u16| {
        let [high, low] = mss.to_be_bytes();
        vec![1, 2, 4, high, low, 1, 1, 1]
    };
    let late = |mss: u16| {
        let mut o = vec![4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 3, 3, 7, 1];
        o.extend_from_slice(&[2, 4, mss.to_be_bytes()[0], mss.to_be_bytes()[1]]);
        o
    };
    let mut cases = Vec::new();
    for (name, (src, dst), limit) in [("v4", v4, 1410u16), ("v6", v6, 1390)] {
        let mut clamped = |what: &str, flags: u8, options: &dyn Fn(u16) -> Vec<u8>, mss: u16| {
            let out = remade(src, dst, flags, &options(limit));
            cases.push(
                Case::new(
                    format!("{name}, {what}, {mss}"),
                    Program::Access,
                    TRUNK,
                    replica(&remade(src, dst, flags, &options(mss))),
                )
                .gives(
                    Action::Redirect,
                    causeway_tests::table::tunnelled(PROVIDER, TENANT, NET1, out),
                )
                .counts(Counter::Encapsulated)
                .counts(Counter::MssClamped),
            );
        };
        clamped("SYN", SYN, &syn_options, 1460);
        clamped("SYN, jumbo", SYN, &syn_options, 8960);
        clamped("SYN, largest", SYN, &syn_options, 65535);
        clamped("SYN, one too many", SYN, &syn_options, limit + 1);
        clamped("SYN and ACK", SYN | ACK, &syn_options, 1460);
        clamped("MSS at an odd offset", SYN, &odd, 1460);
        clamped("MSS behind other options", SYN, &late, 1460);

        let untouched: Vec<(&str, u8, Vec<u8>)> = vec![
            ("MSS that fits", SYN, syn_options(limit)),
            ("small MSS", SYN, syn_options(536)),
            ("no options", SYN, vec![]),
            ("no MSS", SYN, vec![1, 1, 4, 2]),
            ("ACK with an MSS option", ACK, syn_options(1460)),
            ("RST", RST, syn_options(1460)),
            ("FIN", FIN | ACK, syn_options(1460)),
            ("MSS of length 3", SYN, vec![2, 3, 0xff, 0]),
            ("MSS cut by the header's end", SYN, vec![1, 1, 2, 4]),
            (
                "option of length 0",
                SYN,
                vec![8, 0, 0, 0, 2, 4, 0xff, 0xff],
            ),
            (
                "option of length 1",
                SYN,
                vec![8, 1, 0, 0, 2, 4, 0xff, 0xff],
            ),
            (
                "option beyond the header",
                SYN,
                vec![8, 40, 0, 0, 2, 4, 0xff, 0xff],
            ),
            (
                "MSS after the end of the list",
                SYN,
                vec![0, 0, 0, 0, 2, 4, 0xff, 0xff],
            ),
        ];
        for (what, flags, options) in untouched {
            let l3 = remade(src, dst, flags, &options);
            cases.push(
                Case::new(
                    format!("{name}, {what}"),
                    Program::Access,
                    TRUNK,
                    replica(&l3),
                )
                .gives(
                    Action::Redirect,
                    causeway_tests::table::tunnelled(PROVIDER, TENANT, NET1, l3),
                )
                .counts(Counter::Encapsulated),
            );
        }
    }
    run(&mut h, cases);
}

#[test]
fn syns_are_clamped_out_of_the_tunnel() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let mut cases = Vec::new();
    for (src, dst, limit) in [
        ("10.1.0.11", "10.1.0.10", 1410),
        ("2001:db8:1::11", "2001:db8:1::10", 1390),
    ] {
        for flags in [SYN, SYN | ACK] {
            let out = remade(src, dst, flags, &syn_options(limit));
            cases.push(
                Case::new(
                    format!("from {src}, flags {flags}"),
                    Program::Uplink,
                    UPLINK,
                    tunnelled(
                        TENANT,
                        PROVIDER,
                        NET1,
                        &remade(src, dst, flags, &syn_options(1460)),
                    ),
                )
                .gives(
                    Action::Redirect,
                    Out::Is(frame(A_MAC, TRUNK_MAC, &[tag(101)], &out)),
                )
                .counts(Counter::Decapsulated)
                .counts(Counter::MssClamped),
            );
        }
        let data = remade(src, dst, ACK, &syn_options(1460));
        cases.push(
            Case::new(
                format!("from {src}, no SYN"),
                Program::Uplink,
                UPLINK,
                tunnelled(TENANT, PROVIDER, NET1, &data),
            )
            .gives(
                Action::Redirect,
                Out::Is(frame(A_MAC, TRUNK_MAC, &[tag(101)], &data)),
            )
            .counts(Counter::Decapsulated),
        );
    }
    run(&mut h, cases);
}

#[test]
fn tcp_is_found_behind_ip_options_and_extension_headers() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let (a4, b4) = ([10, 1, 0, 10].into(), [10, 1, 0, 11].into());
    let with_options = |mss: u16| {
        let mut header = V4::new(a4, b4, 6);
        header.options = vec![0x94, 4, 0, 0]; // router alert
        header.build(&tcp_segment(
            a4.into(),
            b4.into(),
            1,
            2,
            SYN,
            &syn_options(mss),
            &[],
        ))
    };
    let (a6, b6) = (ip("2001:db8:1::10"), ip("2001:db8:1::11"));
    let extended = |headers: &[u8], mss: u16| {
        // Each 8 bytes: next header, length 0, a PadN of 4.
        let mut payload = Vec::new();
        for i in 0..headers.len() {
            let next = headers.get(i + 1).copied().unwrap_or(6);
            payload.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]);
        }
        payload.extend(tcp_segment(a6, b6, 1, 2, SYN, &syn_options(mss), &[]));
        ip_packet(a6, b6, headers[0], &payload)
    };
    let fragment = |offset: u16| {
        let mut header = V4::new(a4, b4, 6);
        header.frag = offset;
        header.build(&tcp_segment(
            a4.into(),
            b4.into(),
            1,
            2,
            SYN,
            &syn_options(1460),
            &[],
        ))
    };
    let clamped = |what: &str, l3: Vec<u8>, out: Vec<u8>| {
        Case::new(what, Program::Access, TRUNK, replica(&l3))
            .gives(
                Action::Redirect,
                causeway_tests::table::tunnelled(PROVIDER, TENANT, NET1, out),
            )
            .counts(Counter::Encapsulated)
            .counts(Counter::MssClamped)
    };
    let untouched = |what: &str, l3: Vec<u8>| {
        Case::new(what, Program::Access, TRUNK, replica(&l3))
            .gives(
                Action::Redirect,
                causeway_tests::table::tunnelled(PROVIDER, TENANT, NET1, l3),
            )
            .counts(Counter::Encapsulated)
    };
    run(
        &mut h,
        vec![
            clamped("IP options", with_options(1460), with_options(1410)),
            clamped("hop-by-hop", extended(&[0], 1440), extended(&[0], 1390)),
            clamped(
                "four headers",
                extended(&[0, 60, 43, 60], 1440),
                extended(&[0, 60, 43, 60], 1390),
            ),
            untouched("five headers", extended(&[0, 60, 43, 60, 60], 1440)),
            untouched("a later fragment's bytes are not TCP", fragment(100)),
        ],
    );
}

/// The packet with the checksum that a sender leaves to its NIC: the pseudo-header's alone.
fn partial(l3: &[u8]) -> Vec<u8> {
    let mut l3 = l3.to_vec();
    let v6 = l3[0] >> 4 == 6;
    let (header, protocol) = if v6 { (40, l3[6]) } else { (20, l3[9]) };
    let field = header + if protocol == 6 { 16 } else { 6 };
    let addresses = if v6 { &l3[8..40] } else { &l3[12..20] };
    let length = (l3.len() - header) as u16;
    let words = addresses
        .chunks(2)
        .map(|w| u16::from_be_bytes([w[0], w[1]]));
    let mut sum: u32 = words.chain([protocol.into(), length]).map(u32::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    l3[field..field + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    l3
}

#[test]
fn packets_whose_checksum_the_sender_left_to_its_nic_are_counted() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    let mut cases = Vec::new();
    for (src, dst) in [
        ("10.1.0.10", "10.1.0.11"),
        ("2001:db8:1::10", "2001:db8:1::11"),
    ] {
        // An MSS that fits: no other byte changes.
        let whole = remade(src, dst, SYN, &syn_options(1300));
        let datagram = |len: usize| udp(ip(src), ip(dst), 5353, 53, &vec![7; len]);
        for (what, l3, counter) in [
            ("whole", whole.clone(), None),
            ("partial", partial(&whole), Some(Counter::ChecksumPartial)),
            ("no SYN", partial(&remade(src, dst, ACK, &[])), None),
            ("whole datagram", datagram(21), None),
            (
                "partial datagram",
                partial(&datagram(21)),
                Some(Counter::ChecksumPartialUdp),
            ),
            ("long partial datagram", partial(&datagram(600)), None),
        ] {
            let out = causeway_tests::table::tunnelled(PROVIDER, TENANT, NET1, l3.clone());
            let case = Case::new(
                format!("{src}, {what}"),
                Program::Access,
                TRUNK,
                replica(&l3),
            )
            .gives(Action::Redirect, out)
            .counts(Counter::Encapsulated);
            cases.push(match counter {
                Some(counter) => case.counts(counter),
                None => case,
            });
        }
    }
    run(&mut h, cases);
}

#[test]
fn partial_checksums_are_counted_in_full_failover_apart_from_inside_and_outside() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    let inside_place = HostPort::trunk(101, A_MAC);
    let counted = |h: &mut Harness| {
        let all = h.counters();
        [
            Counter::ChecksumPartial,
            Counter::ChecksumPartialUdp,
            Counter::ChecksumPartialOutside,
        ]
        .map(|counter| all.get(&(counter as u32)).copied().unwrap_or(0))
    };
    for (a, b, remote, public) in [
        ("10.1.0.10", "10.1.0.11", REMOTE, PUBLIC4),
        ("2001:db8:1::10", "2001:db8:1::11", REMOTE6, PUBLIC6),
    ] {
        let out = |message, port| packet(message, end(a, 40_000), end(remote, port));
        let routed = |message, port| packet(message, end(a, 40_000), end(b, port));
        let into = |message, port| packet(message, end(remote, 50_000), end(public, port));
        let syn = Message::Tcp(SYN);
        // Risen by the partial SYN and the partial datagram.
        let (by_hosts, by_strangers) = ([1, 1, 0], [0, 0, 2]);
        for (what, tcp, udp, risen) in [
            (
                "to the internet",
                out(syn, 80),
                out(Message::Udp, 53),
                by_hosts,
            ),
            (
                "in the network",
                routed(syn, 80),
                routed(Message::Udp, 53),
                by_hosts,
            ),
            (
                "by a rule",
                into(syn, 443),
                into(Message::Udp, 5000),
                by_strangers,
            ),
        ] {
            let before = counted(&mut h);
            for l3 in [&tcp, &udp] {
                for l3 in [l3.clone(), partial(l3)] {
                    if risen == by_strangers {
                        outside(&mut h, &l3);
                    } else {
                        inside(&mut h, inside_place, &l3);
                    }
                }
            }
            let after = counted(&mut h);
            let rise = [0, 1, 2].map(|at| after[at] - before[at]);
            assert_eq!(rise, risen, "{a}, {what}: TCP, UDP and outside");
        }
    }
}

#[test]
fn partial_checksums_on_the_uplink_in_frames_for_other_machines_are_not_counted() {
    let Some(mut h) = Harness::new(World::nat()) else {
        return;
    };
    let l3 = packet(Message::Tcp(SYN), end(REMOTE, 50_000), end(PUBLIC4, 443));
    let sent = frame(B_MAC, NEXT_HOP_MAC, &[], &partial(&l3));
    h.run(Program::Uplink, UPLINK, &sent).expect("it runs");
    let counters = h.counters();
    for counter in [Counter::ChecksumPartial, Counter::ChecksumPartialOutside] {
        assert_eq!(counters.get(&(counter as u32)), None, "{counter:?}");
    }
}
