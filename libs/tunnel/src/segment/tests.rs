//! Fragments of honest and hostile peers.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::time::Instant;

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

fn fragments(packet: &[u8], room: usize) -> Vec<(Header, Vec<u8>)> {
    let plan = FragmentLayout::new(packet.len(), room).expect("fits");
    (0..plan.fragments() as u8)
        .map(|index| {
            let header = Header {
                kind: PayloadKind::Ip,
                network: 5,
                stride: plan.stride,
                index,
                last: plan.last,
            };
            (header, plan.fragment(packet, index).to_vec())
        })
        .collect()
}

#[test]
fn a_full_ethernet_packet_goes_in_two_balanced_fragments() {
    let cut = fragments(&[7; 1500], 1432);
    assert_eq!(cut.len(), 2);
    assert_eq!((cut[0].1.len(), cut[1].1.len()), (750, 750));
}

#[test]
fn missing_fragments_time_out_and_make_room() {
    let mut reassembler = Reassembler::new(ReassemblyLimits {
        slots: 2,
        max_packet: 4000,
        timeout: Duration::from_millis(100),
    });
    let cut = fragments(&[1; 3000], 1000);
    for n in 0..3_u64 {
        assert_eq!(
            reassembler.offer(at(n), 1, n * 10, cut[0].0, &cut[0].1),
            Ok(None)
        );
    }
    assert_eq!((reassembler.pending(), reassembler.stats().evicted), (2, 1));
    reassembler.expire(at(150));
    assert_eq!(
        (reassembler.pending(), reassembler.stats().timed_out),
        (0, 2)
    );
    // A late fragment starts its packet again; it never joins a dropped one.
    assert_eq!(
        reassembler.offer(at(151), 1, 11, cut[1].0, &cut[1].1),
        Ok(None)
    );
    assert_eq!(
        reassembler.offer(at(151), 1, 12, cut[2].0, &cut[2].1),
        Ok(None)
    );
    assert_eq!(reassembler.pending(), 1);
}

#[test]
fn the_same_counters_of_another_session_are_another_packet() {
    let mut reassembler = Reassembler::new(ReassemblyLimits::default());
    let cut = fragments(&[1; 2000], 1000);
    assert_eq!(
        reassembler.offer(at(0), 1, 0, cut[0].0, &cut[0].1),
        Ok(None)
    );
    assert_eq!(
        reassembler.offer(at(0), 2, 1, cut[1].0, &cut[1].1),
        Ok(None)
    );
    assert!(
        reassembler
            .offer(at(0), 1, 1, cut[1].0, &cut[1].1)
            .unwrap()
            .is_some()
    );
}

#[test]
fn contradicting_fragments_take_their_packet_with_them() {
    let mut reassembler = Reassembler::new(ReassemblyLimits::default());
    let cut = fragments(&[1; 2000], 1000);
    assert_eq!(
        reassembler.offer(at(0), 1, 0, cut[0].0, &cut[0].1),
        Ok(None)
    );
    let other = Header {
        network: 6,
        ..cut[1].0
    };
    assert_eq!(
        reassembler.offer(at(0), 1, 1, other, &cut[1].1),
        Err(InvalidSegment::Conflict)
    );
    assert_eq!(reassembler.pending(), 0);
}

#[test]
fn sixteen_fragments_in_reverse_order_are_reassembled() {
    let packet: Vec<u8> = (0..16_000_u32).map(|n| n as u8).collect();
    let mut reassembler = Reassembler::new(ReassemblyLimits {
        max_packet: 16_000,
        ..ReassemblyLimits::default()
    });
    let cut = fragments(&packet, 1000);
    assert_eq!(cut.len(), MAX_FRAGMENTS);
    for (n, (header, body)) in cut.iter().enumerate().rev() {
        let got = reassembler
            .offer(at(0), 1, 100 + n as u64, *header, body)
            .unwrap();
        assert_eq!(got.is_some(), n == 0);
        if let Some(got) = got {
            assert_eq!(got, packet);
        }
    }
}

proptest! {
    #[test]
    fn headers_read_as_written(
        network in 0..=MAX_NETWORK,
        body in proptest::collection::vec(any::<u8>(), 1..50),
    ) {
        let header = Header::whole(PayloadKind::Frame, network);
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(&body);
        prop_assert_eq!(Header::parse(&bytes), Ok((header, &body[..])));
    }

    #[test]
    fn control_messages_read_as_written(token: u64, size: u16, pad in 0_usize..100) {
        let echo = ControlMessage::Echo { token, size };
        for message in [echo, ControlMessage::EchoReply { token, size }] {
            let mut bytes = message.to_bytes().to_vec();
            bytes.resize(bytes.len() + pad, 0);
            prop_assert_eq!(ControlMessage::parse(&bytes), Ok(message));
        }
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Header::parse(&bytes);
        let _ = ControlMessage::parse(&bytes);
    }

    #[test]
    fn packets_are_reassembled_in_any_order(
        len in 1_usize..9000,
        room in 600_usize..9000,
        order in any::<u64>(),
    ) {
        let packet: Vec<u8> = (0..len).map(|n| (n * 31 % 251) as u8).collect();
        let plan = FragmentLayout::new(len, room);
        prop_assert!(plan.is_some() || len.div_ceil(room) > MAX_FRAGMENTS);
        let Some(plan) = plan else { return Ok(()) };
        prop_assert!(plan.fragments() == len.div_ceil(room), "no more fragments than needed");
        if plan.last == 0 {
            prop_assert_eq!(plan.fragment(&packet, 0), &packet[..]);
            return Ok(());
        }
        let mut cut: Vec<_> = fragments(&packet, room).into_iter().enumerate().collect();
        let mut seed = order;
        for n in (1..cut.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            cut.swap(n, (seed >> 33) as usize % (n + 1));
        }
        let mut reassembler = Reassembler::new(ReassemblyLimits::default());
        let total = cut.len();
        for (n, (index, (header, body))) in cut.into_iter().enumerate() {
            prop_assert!(body.len() <= room && !body.is_empty());
            let mut bytes = header.to_bytes().to_vec();
            bytes.extend(&body);
            let (header, body) = Header::parse(&bytes).unwrap();
            let got = reassembler.offer(at(0), 9, 1000 + index as u64, header, body).unwrap();
            prop_assert_eq!(got.is_some(), n + 1 == total);
            if let Some(got) = got {
                prop_assert_eq!(got, &packet[..]);
            }
        }
    }

    /// For any fragments of a hostile peer, memory stays constant and no packet is longer
    /// than allowed, and none that mixes sessions: every byte is tagged with its session.
    #[test]
    fn hostile_fragments_stay_within_bounds(
        offers in proptest::collection::vec(
            (
                0_u64..200,
                0_u32..3,
                0_u64..40,
                0_u16..700,
                0_u8..20,
                0_u8..20,
                0_usize..700,
                0_u32..2,
            ),
            1..400,
        ),
    ) {
        let limits = ReassemblyLimits {
            slots: 4,
            max_packet: 2000,
            timeout: Duration::from_millis(50),
        };
        let mut reassembler = Reassembler::new(limits);
        let mut clock = 0;
        for (step, session, counter, stride, index, last, len, network) in offers {
            clock += step;
            let header = Header { kind: PayloadKind::Ip, network, stride, index, last };
            let mut bytes = header.to_bytes().to_vec();
            bytes.extend(vec![session as u8; len]);
            let Ok((header, body)) = Header::parse(&bytes) else { continue };
            if header.is_whole() {
                continue;
            }
            let now = at(clock);
            if let Ok(Some(packet)) = reassembler.offer(now, session, counter, header, body) {
                prop_assert!(packet.len() <= 2000);
                prop_assert!(packet.len() > usize::from(last) * usize::from(stride));
                prop_assert!(packet.iter().all(|&byte| u32::from(byte) == session));
            }
            prop_assert!(reassembler.pending() <= 4);
        }
    }
}
