//! Hops, IP options, lengths and addresses that a router looks at.

use std::net::IpAddr;

use super::super::{Node, Step};
use super::packets::{fix_checksum, packet, send_step, set_hops};
use super::{Corpus, FlowPath, Left, NONE, Right, Transport};

use crate::packet::{V4, v6};

impl Corpus {
    pub(super) fn routing(&mut self, carrier: Transport, path: &FlowPath) {
        let carried = match carrier {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Icmp => "icmp",
        };
        let name = |what: &str| format!("{carried} {what}");
        let first = packet(carrier, path, Left, 20);
        let with_hops = |hops: u8| {
            let mut l3 = first.clone();
            set_hops(&mut l3, hops);
            vec![Step::Send(path.left, vec![l3])]
        };
        self.add(
            &name("with the last hop but one"),
            &path.name,
            NONE,
            with_hops(2),
        );
        let mut steps = vec![send_step(carrier, path, Left, 20)];
        steps.extend(with_hops(1));
        self.add(&name("without hops left"), &path.name, NONE, steps);
        if carrier != Transport::Tcp {
            let mut l3 = packet(carrier, path, Right, 20);
            set_hops(&mut l3, 1);
            let steps = vec![
                send_step(carrier, path, Left, 20),
                Step::Send(path.right, vec![l3]),
            ];
            self.add(&name("answered without hops left"), &path.name, NONE, steps);
        }
        if path.left != Node::Remote && path.right == Node::Remote && carrier != Transport::Tcp {
            let steps = vec![
                send_step(carrier, path, Left, 20),
                send_step(carrier, path, Left, 1600),
            ];
            self.add(&name("too long for the path out"), &path.name, NONE, steps);
            if path.is_v4() {
                let mut l3 = packet(carrier, path, Left, 1600);
                l3[6] = 0;
                fix_checksum(&mut l3);
                let steps = vec![Step::Send(path.left, vec![l3])];
                self.add(
                    &name("too long for the path out, to be split"),
                    &path.name,
                    NONE,
                    steps,
                );
            }
        }
        if path.is_v4() {
            let body = &first[20..];
            for (what, options) in [
                ("no operation", vec![1, 1, 1, 0]),
                ("router alert", vec![148, 4, 0, 0]),
                ("record route", vec![7, 7, 4, 0, 0, 0, 0, 0]),
                ("loose source route", vec![131, 7, 4, 198, 18, 0, 1, 0]),
            ] {
                let (IpAddr::V4(a), IpAddr::V4(b)) = (path.l.0, path.l_peer.0) else {
                    continue;
                };
                let mut header = V4::new(a, b, first[9]);
                header.options = options;
                let step = Step::Send(path.left, vec![header.build(body)]);
                self.add(
                    &name(&format!("with IP option {what}")),
                    &path.name,
                    NONE,
                    vec![step],
                );
            }
            let mut wrong = first.clone();
            wrong[10] ^= 1;
            let steps = vec![Step::Send(path.left, vec![wrong])];
            self.add(&name("with a wrong IP checksum"), &path.name, NONE, steps);
            let mut marked = first;
            marked[1] = 0xb9;
            fix_checksum(&mut marked);
            self.add(
                &name("with a class of service"),
                &path.name,
                NONE,
                vec![Step::Send(path.left, vec![marked])],
            );
        } else {
            for (what, header) in [("destination options", 60), ("hop-by-hop options", 0)] {
                let (IpAddr::V6(a), IpAddr::V6(b)) = (path.l.0, path.l_peer.0) else {
                    continue;
                };
                let mut body = vec![first[6], 0, 1, 4, 0, 0, 0, 0];
                body.extend_from_slice(&first[40..]);
                let step = Step::Send(path.left, vec![v6(a, b, header, 64, &body)]);
                self.add(&name(&format!("with {what}")), &path.name, NONE, vec![step]);
            }
            let mut marked = first;
            marked[0..4].copy_from_slice(&[0x6b, 0x91, 0x23, 0x45]);
            self.add(
                &name("with a class of service"),
                &path.name,
                NONE,
                vec![Step::Send(path.left, vec![marked])],
            );
        }
    }
}
