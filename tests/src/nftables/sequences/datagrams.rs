//! Datagrams and echoes in connections of each carrier, and their timeouts.

use super::super::{Node, Step};
use super::packets::send_step;
use super::{Corpus, FlowPath, Left, NONE, Right, Side, Transport};

use crate::packet::{icmp, ip, ip_packet, udp, udp_segment};
use crate::world::{LISTED, LISTED6};

pub(super) const UDP_SHORT: &[&str] = &["udp_timeout", "udp_timeout_stream"];

const ICMP_SHORT: &[&str] = &["icmp_timeout", "icmpv6_timeout"];

impl Corpus {
    /// Datagrams in both directions. The left side sends first.
    pub(super) fn datagrams(&mut self, carrier: Transport, path: &FlowPath) {
        if carrier == Transport::Tcp {
            return;
        }
        let name = if carrier == Transport::Udp {
            "udp"
        } else {
            "icmp"
        };
        let send = |side, len| send_step(carrier, path, side, len);
        let short = if carrier == Transport::Udp {
            UDP_SHORT
        } else {
            ICMP_SHORT
        };
        let mut add = |what: &str, timeouts, steps: Vec<Step>| {
            self.add(&format!("{name} {what}"), &path.name, timeouts, steps);
        };
        add(
            "requests without a reply",
            NONE,
            vec![send(Left, 30), send(Left, 30)],
        );
        add(
            "requests and replies",
            NONE,
            vec![
                send(Left, 30),
                send(Right, 60),
                send(Left, 31),
                send(Right, 1),
            ],
        );
        add(
            "several replies to one request",
            NONE,
            vec![
                send(Left, 1),
                send(Right, 2),
                send(Right, 3),
                send(Right, 4),
            ],
        );
        add(
            "of many lengths",
            NONE,
            (0..8)
                .map(|i| send(if i % 2 == 0 { Left } else { Right }, 40 * i + 1))
                .collect(),
        );
        add("reply without a request", NONE, vec![send(Right, 30)]);
        add(
            "full-sized",
            NONE,
            vec![send(Left, 1400), send(Right, 1400)],
        );
        add("without data", NONE, vec![send(Left, 0), send(Right, 0)]);
        add("padded by Ethernet", NONE, {
            let mut steps = vec![send(Left, 1), send(Right, 1)];
            for step in &mut steps {
                if let Step::Send(_, packets) = step {
                    packets[0].extend_from_slice(&[0; 9]);
                }
            }
            steps
        });
        if !["out", "in", "own-in"].contains(&&path.name[..path.name.len() - 1]) {
            return;
        }
        let silence = |seconds, expires| Step::Silence { seconds, expires };
        let long = if carrier == Transport::Udp { 310 } else { 70 };
        add(
            "reply after the timeout",
            short,
            vec![send(Left, 1), silence(long, true), send(Right, 1)],
        );
        add(
            "silent for too long",
            short,
            vec![
                send(Left, 1),
                send(Right, 1),
                silence(long, true),
                send(Right, 1),
                send(Left, 1),
                send(Right, 1),
            ],
        );
        add(
            "silent for less",
            NONE,
            vec![
                send(Left, 1),
                send(Right, 1),
                silence(long - 20, false),
                send(Right, 1),
            ],
        );
        add(
            "kept by the requester",
            NONE,
            vec![
                send(Left, 1),
                send(Right, 1),
                silence(long - 20, false),
                send(Left, 1),
                silence(long - 20, false),
                send(Right, 1),
            ],
        );
    }

    pub(super) fn udp(&mut self, path: &FlowPath) {
        let send = |side, len| send_step(Transport::Udp, path, side, len);
        let bare = |side| {
            let (from, to) = path.sends(side);
            let mut body = udp_segment(from.0, to.0, from.1, to.1, b"no checksum");
            body[6..8].fill(0);
            Step::Send(path.node(side), vec![ip_packet(from.0, to.0, 17, &body)])
        };
        self.add(
            "udp without checksum",
            &path.name,
            NONE,
            vec![bare(Left), bare(Right)],
        );
        let from = |side, by: u16, address: Option<&str>| {
            let (from, to) = path.sends(side);
            let from = (address.map_or(from.0, ip), from.1 + by);
            Step::Send(
                path.node(side),
                vec![udp(from.0, to.0, from.1, to.1, b"another")],
            )
        };
        self.add(
            "udp answered by another port",
            &path.name,
            NONE,
            vec![send(Left, 9), from(Right, 1, None), send(Right, 9)],
        );
        if path.right == Node::Remote {
            let stranger = if path.is_v4() { LISTED } else { LISTED6 };
            self.add(
                "udp answered by another address",
                &path.name,
                NONE,
                vec![
                    send(Left, 9),
                    from(Right, 0, Some(stranger)),
                    send(Right, 9),
                ],
            );
        }
        self.add(
            "udp of two ports",
            &path.name,
            NONE,
            vec![send(Left, 9), from(Left, 1, None), send(Right, 9)],
        );
        let mut wrong = send_step(Transport::Udp, path, Left, 9);
        if let Step::Send(_, packets) = &mut wrong {
            let last = packets[0].len() - 1;
            packets[0][last] ^= 1;
        }
        self.add("udp with a wrong checksum", &path.name, NONE, vec![wrong]);
    }

    pub(super) fn icmp(&mut self, path: &FlowPath) {
        let of = |side: Side, kind: u8, data: &[u8]| {
            let (from, to) = path.sends(side);
            let id = if from.1 != 0 { from.1 } else { to.1 };
            let mut rest = id.to_be_bytes().to_vec();
            rest.extend_from_slice(&[0, 1]);
            rest.extend_from_slice(data);
            Step::Send(path.node(side), vec![icmp(from.0, to.0, kind, 0, &rest)])
        };
        if path.is_v4() {
            let times = [0; 12];
            self.add(
                "icmp timestamp",
                &path.name,
                NONE,
                vec![of(Left, 13, &times), of(Right, 14, &times)],
            );
            self.add(
                "icmp timestamp reply without a request",
                &path.name,
                NONE,
                vec![of(Right, 14, &times)],
            );
            self.add(
                "icmp information request",
                &path.name,
                NONE,
                vec![of(Left, 15, &[]), of(Right, 16, &[])],
            );
            self.add(
                "icmp address mask request",
                &path.name,
                NONE,
                vec![of(Left, 17, &[0; 4]), of(Right, 18, &[0; 4])],
            );
            self.add(
                "icmp router solicitation",
                &path.name,
                NONE,
                vec![of(Left, 10, &[])],
            );
        } else {
            self.add(
                "icmp node information",
                &path.name,
                NONE,
                vec![of(Left, 139, &[0; 8])],
            );
        }
        self.add(
            "icmp of an unknown type",
            &path.name,
            NONE,
            vec![of(Left, 200, &[])],
        );
        self.add(
            "icmp requests with the same identifier",
            &path.name,
            NONE,
            {
                let ask = |_| send_step(Transport::Icmp, path, Left, 5);
                let answer = |_| send_step(Transport::Icmp, path, Right, 5);
                vec![ask(0), ask(1), answer(0), answer(1), answer(2)]
            },
        );
    }
}
