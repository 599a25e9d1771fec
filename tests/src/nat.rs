//! Packets by addresses and ports, and the verdict of the programs on both sides of an appliance in
//! full failover: for tests of translation.

use std::net::IpAddr;

use appliance_common::counters::Counter;

use crate::{
    harness::{Action, Harness, Program, counter_name},
    packet::{Mac, V4, eth, ethertype_of, frame, icmp, ip, l2, tcp, udp, v6},
    world::{NEXT_HOP_MAC, TRUNK, TRUNK_MAC, UPLINK, UPLINK_MAC},
};

/// Transport message of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Udp,
    /// TCP with these flags.
    Tcp(u8),
    /// An echo request: the source port is its identifier.
    EchoRequest,
    /// An echo reply: the destination port is its identifier.
    EchoReply,
}

impl Message {
    /// Its IP protocol.
    #[must_use]
    pub const fn protocol(self, ipv6: bool) -> u8 {
        match (self, ipv6) {
            (Self::Udp, _) => 17,
            (Self::Tcp(_), _) => 6,
            (_, false) => 1,
            (_, true) => 58,
        }
    }
}

/// An end of a connection.
pub type End = (IpAddr, u16);

/// An end, from text.
///
/// # Panics
///
/// When `text` is no address.
#[must_use]
pub fn end(text: &str, port: u16) -> End {
    (ip(text), port)
}

/// An IP packet with this message and some data.
#[must_use]
pub fn packet(message: Message, from: End, to: End) -> Vec<u8> {
    const DATA: &[u8] = b"some data, of odd length.";
    let (src, dst) = (from.0, to.0);
    let query = |kind: u8, id: u16| {
        let mut rest = id.to_be_bytes().to_vec();
        rest.extend_from_slice(&[0, 7]);
        rest.extend_from_slice(DATA);
        icmp(src, dst, kind, 0, &rest)
    };
    match (message, src.is_ipv4()) {
        (Message::Udp, _) => udp(src, dst, from.1, to.1, DATA),
        (Message::Tcp(flags), _) => tcp(src, dst, from.1, to.1, flags, &[], DATA),
        (Message::EchoRequest, true) => query(8, from.1),
        (Message::EchoRequest, false) => query(128, from.1),
        (Message::EchoReply, true) => query(0, to.1),
        (Message::EchoReply, false) => query(129, to.1),
    }
}

/// The packet one hop further.
///
/// # Panics
///
/// When it has none left.
#[must_use]
pub fn hop(l3: &[u8]) -> Vec<u8> {
    let mut out = l3.to_vec();
    if out[0] >> 4 == 4 {
        out[8] = out[8].checked_sub(1).expect("a hop");
        out[10..12].fill(0);
        let header = usize::from(out[0] & 0xf) * 4;
        let sum = crate::packet::checksum(&out[..header]);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        out[7] = out[7].checked_sub(1).expect("a hop");
    }
    out
}

/// Fragments of an IP packet: the first with `first` bytes behind its IP header, a multiple of
/// eight, the second with the rest; `id` is that of the datagram.
///
/// # Panics
///
/// When the packet is not longer.
#[must_use]
pub fn fragments(l3: &[u8], first: usize, id: u16) -> [Vec<u8>; 2] {
    assert!(first.is_multiple_of(8));
    if l3[0] >> 4 == 4 {
        let address = |at: usize| [l3[at], l3[at + 1], l3[at + 2], l3[at + 3]].into();
        let body = &l3[20..];
        let piece = |at: usize, end: usize, more: bool| {
            let mut header = V4::new(address(12), address(16), l3[9]);
            header.id = id;
            header.frag = (at / 8) as u16 | if more { 0x2000 } else { 0 };
            header.build(&body[at..end])
        };
        return [piece(0, first, true), piece(first, body.len(), false)];
    }
    let address = |at: usize| {
        let bytes: [u8; 16] = l3[at..at + 16].try_into().expect("16 bytes");
        bytes.into()
    };
    let body = &l3[40..];
    let piece = |at: usize, end: usize, more: bool| {
        let mut payload = vec![l3[6], 0];
        payload.extend_from_slice(&((at as u16) | u16::from(more)).to_be_bytes());
        payload.extend_from_slice(&u32::from(id).to_be_bytes());
        payload.extend_from_slice(&body[at..end]);
        v6(address(8), address(24), 44, 64, &payload)
    };
    [piece(0, first, true), piece(first, body.len(), false)]
}

/// The port of a tenant's host: interface, tags and MAC addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Interface.
    pub ifindex: u32,
    /// Our MAC there.
    pub ours: Mac,
    pub mac: Mac,
    /// VLAN; 0: untagged.
    pub vlan: u16,
}

impl HostPort {
    /// On the trunk.
    #[must_use]
    pub const fn trunk(vlan: u16, mac: Mac) -> Self {
        Self {
            ifindex: TRUNK,
            ours: TRUNK_MAC,
            mac,
            vlan,
        }
    }

    fn tags(self) -> Vec<(u16, u16)> {
        if self.vlan == 0 {
            return Vec::new();
        }
        vec![(0x8100, self.vlan)]
    }

    /// A frame from the host to its gateway.
    #[must_use]
    pub fn sends(self, l3: &[u8]) -> Vec<u8> {
        frame(self.ours, self.mac, &self.tags(), l3)
    }

    /// A frame from the appliance to the host.
    #[must_use]
    pub fn receives(self, l3: &[u8]) -> Vec<u8> {
        frame(self.mac, self.ours, &self.tags(), l3)
    }
}

/// Outcome of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Out of the uplink: the IP packet.
    Outside(Vec<u8>),
    /// Sent to a host: the frame.
    Host(Vec<u8>),
    /// To the kernel.
    Passed,
    /// Nowhere, counted by this, with nothing else dropped.
    Dropped(Counter),
}

/// Sends a frame and returns the verdict.
///
/// # Panics
///
/// When the kernel refuses to run it, or the result is none of [`Verdict`].
pub fn send(h: &mut Harness, program: Program, ifindex: u32, packet: &[u8]) -> Verdict {
    let before = h.counters();
    let (action, out) = h.run(program, ifindex, packet).expect("it runs");
    let out = out.to_vec();
    match action {
        Action::Pass => {
            assert_eq!(out, packet, "passed, and not as it was");
            Verdict::Passed
        }
        Action::Drop => {
            let after = h.counters();
            let risen: Vec<u32> = after
                .iter()
                .filter(|(slot, n)| before.get(slot).unwrap_or(&0) < n)
                .map(|(slot, _)| *slot)
                .collect();
            let drops: Vec<Counter> = Counter::ALL
                .iter()
                .copied()
                .filter(|c| {
                    risen.contains(&(*c as u32))
                        && (c.is_drop()
                            || [
                                Counter::SlowUnresolved,
                                Counter::SlowFragment,
                                Counter::SlowSplit,
                            ]
                            .contains(c))
                })
                .collect();
            match drops.as_slice() {
                [reason] => Verdict::Dropped(*reason),
                _ => panic!(
                    "dropped, and counted {:?}",
                    risen.iter().map(|s| counter_name(*s)).collect::<Vec<_>>()
                ),
            }
        }
        Action::Redirect | Action::Tx => {
            let head = l2(&out).expect("a frame");
            let l3 = &out[head.l3..];
            if head.tags == 0 && out[..12] == eth(NEXT_HOP_MAC, UPLINK_MAC, &[], 0, &[])[..12] {
                assert_eq!(head.ethertype, ethertype_of(l3));
                return Verdict::Outside(l3.to_vec());
            }
            Verdict::Host(out)
        }
        other => panic!("{other:?}"),
    }
}

/// A tenant's host sends an IP packet to its gateway.
pub fn inside(h: &mut Harness, place: HostPort, l3: &[u8]) -> Verdict {
    send(h, Program::Access, place.ifindex, &place.sends(l3))
}

/// Sends an IP packet to the uplink.
pub fn outside(h: &mut Harness, l3: &[u8]) -> Verdict {
    let packet = frame(UPLINK_MAC, NEXT_HOP_MAC, &[], l3);
    send(h, Program::Uplink, UPLINK, &packet)
}

/// Source and destination of a whole IP packet. The identifier of an echo is used as the
/// requester's port.
///
/// # Panics
///
/// When it is too short, or of another protocol.
#[must_use]
pub fn ends(l3: &[u8]) -> (End, End) {
    let (src, dst, protocol, l4) = if l3[0] >> 4 == 4 {
        let a: [u8; 4] = l3[12..16].try_into().expect("4 bytes");
        let b: [u8; 4] = l3[16..20].try_into().expect("4 bytes");
        (
            IpAddr::from(a),
            IpAddr::from(b),
            l3[9],
            usize::from(l3[0] & 15) * 4,
        )
    } else {
        let a: [u8; 16] = l3[8..24].try_into().expect("16 bytes");
        let b: [u8; 16] = l3[24..40].try_into().expect("16 bytes");
        (IpAddr::from(a), IpAddr::from(b), l3[6], 40)
    };
    let port = |at: usize| u16::from_be_bytes([l3[l4 + at], l3[l4 + at + 1]]);
    match (protocol, l3[l4]) {
        (6 | 17, _) => ((src, port(0)), (dst, port(2))),
        (1, 8) | (58, 128) => ((src, port(4)), (dst, 0)),
        (1, 0) | (58, 129) => ((src, 0), (dst, port(4))),
        other => panic!("{other:?} has no ends"),
    }
}
