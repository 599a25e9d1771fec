//! Received datagrams: outer headers, circuit ids, and bytes that no end has sent.

use super::*;

#[test]
fn garbage_is_counted_and_goes_nowhere() {
    use tunnel::Random as _;

    let (_, mut provider) = pair();
    let mut random = crate::testing::Seeded(3);
    let before: u64 = Counter::ALL.iter().map(|c| provider.count(*c)).sum();
    for round in 0..20_000_u64 {
        let mut frame = vec![0; (random.u32() % 300) as usize];
        random.fill(&mut frame);
        // Often enough something that begins well.
        if frame.len() > 50 && round % 2 == 0 {
            frame[12..14].copy_from_slice(&[8, 0]);
            frame[14] = 0x45;
            frame[23] = 17;
            let udp = (frame.len() - 34) as u16;
            frame[38..40].copy_from_slice(&udp.to_be_bytes());
        } else if frame.len() > 20 && round % 4 == 1 {
            frame[..4].copy_from_slice(&4_u32.to_ne_bytes());
            frame[12..14].copy_from_slice(&[0, 0]);
        }
        provider
            .pipeline
            .frame(at(20).mono, &mut frame, &mut provider.wire);
    }
    let after: u64 = Counter::ALL.iter().map(|c| provider.count(*c)).sum();
    assert_eq!(
        after - before,
        20_000 + provider.count(Counter::TunnelFragmented)
    );
    let out = provider.take();
    assert!(out.iter().all(|(ifindex, _)| *ifindex == UPLINK));
    assert_eq!(
        out.iter().filter(|(ifindex, _)| *ifindex == ACCESS).count(),
        0
    );
}

#[test]
fn a_datagram_of_no_session_known_is_dropped() {
    let (mut tenant, mut provider) = pair();
    tenant.seal(at(10), &packet("10.1.0.11", "10.1.0.10", b"x"));
    let mut frames = tenant.take();
    // Past the lanes of the session.
    frames[0].1[46] ^= 1 << 6;
    provider.pipeline.report(at(10).mono, &mut provider.wire);
    provider.open(at(11), frames);
    assert_eq!(provider.count(Counter::DropUnknownSession), 1);
    assert!(!provider.pipeline.dirty());
}

#[test]
fn outer_headers_that_do_not_hold_together_are_refused() {
    type Spoil = fn(&mut Vec<u8>);
    let cases: [(&str, Spoil); 13] = [
        ("an ARP packet", |f| f[12..14].copy_from_slice(&[8, 6])),
        ("a tag", |f| f[12..14].copy_from_slice(&[0x81, 0])),
        ("version 6", |f| f[14] = 0x65),
        ("IP options", |f| f[14] = 0x46),
        ("TCP", |f| f[23] = 6),
        ("a UDP length under its header", |f| {
            f[38..40].copy_from_slice(&[0, 7])
        }),
        ("no payload", |f| f[38..40].copy_from_slice(&[0, 8])),
        ("a UDP length past the frame", |f| f[39] += 1),
        ("seven bytes of message", |f| {
            f[38..40].copy_from_slice(&[0, 15])
        }),
        ("a message under its tag", |f| {
            f[38..40].copy_from_slice(&[0, 39])
        }),
        ("cut in the UDP header", |f| f.truncate(40)),
        ("cut in the IP header", |f| f.truncate(30)),
        ("not of type 4", |f| f[42] = 1),
    ];
    for (what, spoil) in cases {
        let (mut tenant, mut provider) = pair();
        tenant.seal(at(10), &packet("10.1.0.11", "10.1.0.10", b"x"));
        let mut frames = tenant.take();
        spoil(&mut frames[0].1);
        provider.open(at(11), frames);
        assert_eq!(provider.count(Counter::DropBadDatagram), 1, "{what}");
        assert!(provider.take().is_empty(), "{what}");
    }
    let (_, mut provider) = pair();
    for len in 0..14 {
        provider.open(at(11), vec![(UPLINK, vec![8; len])]);
    }
    assert_eq!(provider.count(Counter::DropMalformed), 14);
    // A packet to seal that is none.
    for len in 14..17 {
        provider.open(at(11), vec![(UPLINK, vec![0; len])]);
    }
    assert_eq!(
        provider.count(Counter::DropMalformed) + provider.count(Counter::DropInconsistent),
        17
    );
}

#[test]
fn behind_a_circuits_id_a_datagram_is_as_any() {
    let id = std::num::NonZeroU64::new(0x3f9a_1c02_77d1_e05b).expect("an id");
    for (local, gateway) in [
        ("198.51.100.2:6180", "192.0.2.10:6181"),
        ("[2001:db8::2]:6180", "[2001:db8:a::10]:6181"),
    ] {
        let [local, gateway] = [local, gateway].map(|text| text.parse().expect("an address"));
        let message = |len: usize| [&[4, 1, 0, 0][..], &vec![0x5a; len - 4]].concat();
        for (path, front) in [
            (PeerPath::Direct(gateway), &[][..]),
            (
                PeerPath::Circuit { gateway, id },
                &id.get().to_be_bytes()[..],
            ),
        ] {
            let outer = OuterHeader::new(UPLINK, [9; 6], [8; 6], local, path).expect("one family");
            for len in [32, 33, 1400] {
                let mut frame = vec![0xee; 2048];
                frame[outer.bytes()..outer.bytes() + len].copy_from_slice(&message(len));
                let total = outer.finish(&mut frame, len).expect("it fits");
                frame.truncate(total);
                let sliced = etherparse::SlicedPacket::from_ethernet(&frame).expect("a frame");
                let Some(etherparse::TransportSlice::Udp(udp)) = &sliced.transport else {
                    panic!("{sliced:?}");
                };
                assert_eq!(udp.destination_port(), 6181);
                assert_eq!(
                    udp.payload(),
                    [front, &message(len)].concat(),
                    "{path}, {len}"
                );
                if let Some(etherparse::NetSlice::Ipv6(ip)) = &sliced.net {
                    let (from, to) = (ip.header().source(), ip.header().destination());
                    let header = udp.to_header();
                    let sum = header.calc_checksum_ipv6_raw(from, to, udp.payload());
                    assert_eq!(sum.expect("short"), udp.checksum(), "{path}, {len}");
                }
                // The other end sees where it came from.
                let (from, at) = parse_datagram(&frame).expect("a datagram");
                let back = match path.circuit() {
                    None => PeerPath::Direct(local),
                    Some(id) => PeerPath::Circuit { gateway: local, id },
                };
                assert_eq!(from, back);
                assert_eq!(frame[at], message(len));
            }
        }
        assert_eq!(
            OuterHeader::new(UPLINK, [9; 6], [8; 6], local, PeerPath::Stream(id)),
            None
        );
    }
    let stream = OuterHeader::tls(id);
    assert_eq!(
        (stream.bytes(), stream.finish(&mut [0; 40], 32)),
        (0, Some(32))
    );
    assert_eq!(stream.finish(&mut [0; 31], 32), None);
}

#[test]
fn an_id_is_told_from_a_type_by_two_bytes() {
    assert_eq!(circuit_id(&[4, 1, 0, 0, 1, 2, 3, 4, 5]), None, "a message");
    assert_eq!(circuit_id(&[0; 64]), None, "a gateway's message");
    for at in [2, 3] {
        let mut id = [0; 8];
        id[at] = 1;
        let number = std::num::NonZeroU64::new(u64::from_be_bytes(id));
        assert_eq!(circuit_id(&[&id[..], &[4, 0, 0, 0]].concat()), number);
        assert_eq!(circuit_id(&id[..7]), None);
    }
}
