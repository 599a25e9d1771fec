//! Datagrams and echoes in connections of each carrier, and their timeouts.

use super::super::{Node, Step};
use super::packets::said;
use super::{Corpus, FlowPath, Left, NONE, Right, Side, Transport};

use crate::packet::{icmp, ip, ip_packet, udp, udp_segment};
use crate::world::{LISTED, LISTED6};

pub(super) const UDP_SHORT: &[&str] = &["udp_timeout", "udp_timeout_stream"];

const ICMP_SHORT: &[&str] = &["icmp_timeout", "icmpv6_timeout"];

impl Corpus {
    /// Packets of each side: the first of two is the left one's.
    pub(super) fn datagrams(&mut self, carrier: Transport, way: &FlowPath) {
        if carrier == Transport::Tcp {
            return;
        }
        let name = if carrier == Transport::Udp {
            "udp"
        } else {
            "icmp"
        };
        let say = |side, len| said(carrier, way, side, len);
        let short = if carrier == Transport::Udp {
            UDP_SHORT
        } else {
            ICMP_SHORT
        };
        let mut add = |what: &str, timeouts, steps: Vec<Step>| {
            self.add(&format!("{name} {what}"), &way.name, timeouts, steps);
        };
        add("asked", NONE, vec![say(Left, 30), say(Left, 30)]);
        add(
            "asked and answered",
            NONE,
            vec![say(Left, 30), say(Right, 60), say(Left, 31), say(Right, 1)],
        );
        add(
            "answered often",
            NONE,
            vec![say(Left, 1), say(Right, 2), say(Right, 3), say(Right, 4)],
        );
        add(
            "of many lengths",
            NONE,
            (0..8)
                .map(|i| say(if i % 2 == 0 { Left } else { Right }, 40 * i + 1))
                .collect(),
        );
        add("answered without a question", NONE, vec![say(Right, 30)]);
        add("full-sized", NONE, vec![say(Left, 1400), say(Right, 1400)]);
        add("without data", NONE, vec![say(Left, 0), say(Right, 0)]);
        add("padded by Ethernet", NONE, {
            let mut steps = vec![say(Left, 1), say(Right, 1)];
            for step in &mut steps {
                if let Step::Send(_, packets) = step {
                    packets[0].extend_from_slice(&[0; 9]);
                }
            }
            steps
        });
        if !["out", "in", "own-in"].contains(&&way.name[..way.name.len() - 1]) {
            return;
        }
        let silence = |seconds, expires| Step::Silence { seconds, expires };
        let long = if carrier == Transport::Udp { 310 } else { 70 };
        add(
            "answered too late",
            short,
            vec![say(Left, 1), silence(long, true), say(Right, 1)],
        );
        add(
            "silent for too long",
            short,
            vec![
                say(Left, 1),
                say(Right, 1),
                silence(long, true),
                say(Right, 1),
                say(Left, 1),
                say(Right, 1),
            ],
        );
        add(
            "silent for less",
            NONE,
            vec![
                say(Left, 1),
                say(Right, 1),
                silence(long - 20, false),
                say(Right, 1),
            ],
        );
        add(
            "kept by the requester",
            NONE,
            vec![
                say(Left, 1),
                say(Right, 1),
                silence(long - 20, false),
                say(Left, 1),
                silence(long - 20, false),
                say(Right, 1),
            ],
        );
    }

    pub(super) fn udp(&mut self, way: &FlowPath) {
        let say = |side, len| said(Transport::Udp, way, side, len);
        let bare = |side| {
            let (from, to) = way.sends(side);
            let mut body = udp_segment(from.0, to.0, from.1, to.1, b"no checksum");
            body[6..8].fill(0);
            Step::Send(way.who(side), vec![ip_packet(from.0, to.0, 17, &body)])
        };
        self.add(
            "udp without checksum",
            &way.name,
            NONE,
            vec![bare(Left), bare(Right)],
        );
        let from = |side, by: u16, address: Option<&str>| {
            let (from, to) = way.sends(side);
            let from = (address.map_or(from.0, ip), from.1 + by);
            Step::Send(
                way.who(side),
                vec![udp(from.0, to.0, from.1, to.1, b"another")],
            )
        };
        self.add(
            "udp answered by another port",
            &way.name,
            NONE,
            vec![say(Left, 9), from(Right, 1, None), say(Right, 9)],
        );
        if way.right == Node::Remote {
            let stranger = if way.is_v4() { LISTED } else { LISTED6 };
            self.add(
                "udp answered by another address",
                &way.name,
                NONE,
                vec![say(Left, 9), from(Right, 0, Some(stranger)), say(Right, 9)],
            );
        }
        self.add(
            "udp of two ports",
            &way.name,
            NONE,
            vec![say(Left, 9), from(Left, 1, None), say(Right, 9)],
        );
        let mut wrong = said(Transport::Udp, way, Left, 9);
        if let Step::Send(_, packets) = &mut wrong {
            let last = packets[0].len() - 1;
            packets[0][last] ^= 1;
        }
        self.add("udp with a wrong checksum", &way.name, NONE, vec![wrong]);
    }

    pub(super) fn icmp(&mut self, way: &FlowPath) {
        let of = |side: Side, kind: u8, data: &[u8]| {
            let (from, to) = way.sends(side);
            let id = if from.1 != 0 { from.1 } else { to.1 };
            let mut rest = id.to_be_bytes().to_vec();
            rest.extend_from_slice(&[0, 1]);
            rest.extend_from_slice(data);
            Step::Send(way.who(side), vec![icmp(from.0, to.0, kind, 0, &rest)])
        };
        if way.is_v4() {
            let times = [0; 12];
            self.add(
                "icmp timestamp",
                &way.name,
                NONE,
                vec![of(Left, 13, &times), of(Right, 14, &times)],
            );
            self.add(
                "icmp timestamp reply without a question",
                &way.name,
                NONE,
                vec![of(Right, 14, &times)],
            );
            self.add(
                "icmp information request",
                &way.name,
                NONE,
                vec![of(Left, 15, &[]), of(Right, 16, &[])],
            );
            self.add(
                "icmp address mask request",
                &way.name,
                NONE,
                vec![of(Left, 17, &[0; 4]), of(Right, 18, &[0; 4])],
            );
            self.add(
                "icmp router solicitation",
                &way.name,
                NONE,
                vec![of(Left, 10, &[])],
            );
        } else {
            self.add(
                "icmp node information",
                &way.name,
                NONE,
                vec![of(Left, 139, &[0; 8])],
            );
        }
        self.add(
            "icmp of an unknown type",
            &way.name,
            NONE,
            vec![of(Left, 200, &[])],
        );
        self.add(
            "icmp asked again by the same identifier",
            &way.name,
            NONE,
            {
                let ask = |_| said(Transport::Icmp, way, Left, 5);
                let answer = |_| said(Transport::Icmp, way, Right, 5);
                vec![ask(0), ask(1), answer(0), answer(1), answer(2)]
            },
        );
    }
}
