//! Connections that compete for one external port, and other protocols.

use super::super::{Node, SECOND, Step};
use super::datagrams::UDP_SHORT;
use super::tcp::segment;
use super::{Corpus, NONE, Transport, paths};

use crate::nat::{End, end};
use crate::packet::tcp_flags::{ACK, SYN};
use crate::packet::{icmp, ip, ip_packet, udp};
use crate::world::{
    LISTED, LISTED6, NAT4, NAT6, ONE_TO_ONE4, ONE_TO_ONE6, PUBLIC4, PUBLIC6, REMOTE, REMOTE6,
};

impl Corpus {
    /// Ports that two hosts use, that are not allowed, or that another connection used before.
    pub(super) fn ports(&mut self) {
        for (family, remote, other, seen, public, own) in [
            (0, REMOTE, LISTED, NAT4, PUBLIC4, ONE_TO_ONE4),
            (1, REMOTE6, LISTED6, NAT6, PUBLIC6, ONE_TO_ONE6),
        ] {
            let version = if family == 0 { "4" } else { "6" };
            let at = |who: Node, port| end(who.addresses()[family], port);
            let far = end(remote, 53);
            let datagram = |who, from: End, to: End| {
                Step::Send(who, vec![udp(from.0, to.0, from.1, to.1, b"a datagram")])
            };
            let syn = |who, from: End, to: End| {
                Step::Send(who, vec![segment(from, to, SYN, 9, 0, &[], 0)])
            };
            let (c, d) = (at(Node::C, 40_000), at(Node::D, 40_000));
            let (one, two) = (end(seen, 40_000), end(seen, SECOND));
            let mut add = |what: &str, timeouts, steps| self.add(what, version, timeouts, steps);
            add(
                "udp two hosts use one port for one far end",
                NONE,
                vec![
                    datagram(Node::C, c, far),
                    datagram(Node::D, d, far),
                    datagram(Node::Remote, far, one),
                    datagram(Node::Remote, far, two),
                    datagram(Node::C, c, far),
                    datagram(Node::D, d, far),
                ],
            );
            add(
                "udp two hosts use one port for two far ends",
                NONE,
                vec![
                    datagram(Node::C, c, far),
                    datagram(Node::D, d, end(other, 53)),
                    datagram(Node::Remote, far, one),
                    datagram(Node::Remote, end(other, 53), two),
                ],
            );
            add(
                "tcp two hosts use one port for one far end",
                NONE,
                vec![
                    syn(Node::C, c, far),
                    syn(Node::D, d, far),
                    Step::Send(
                        Node::Remote,
                        vec![segment(far, two, SYN | ACK, 77, 10, &[], 0)],
                    ),
                    Step::Send(
                        Node::Remote,
                        vec![segment(far, one, SYN | ACK, 77, 10, &[], 0)],
                    ),
                ],
            );
            add(
                "tcp two hosts use one port for two far ends",
                NONE,
                vec![syn(Node::C, c, far), syn(Node::D, d, end(other, 53))],
            );
            let ask = |who, from: End| {
                let rest = [&from.1.to_be_bytes()[..], &[0, 1, 2, 3]].concat();
                Step::Send(
                    who,
                    vec![icmp(
                        from.0,
                        ip(remote),
                        if family == 0 { 8 } else { 128 },
                        0,
                        &rest,
                    )],
                )
            };
            let answer = |to: End| {
                let rest = [&to.1.to_be_bytes()[..], &[0, 1, 2, 3]].concat();
                Step::Send(
                    Node::Remote,
                    vec![icmp(
                        ip(remote),
                        to.0,
                        if family == 0 { 0 } else { 129 },
                        0,
                        &rest,
                    )],
                )
            };
            add(
                "icmp two hosts use one identifier",
                NONE,
                vec![ask(Node::C, c), ask(Node::D, d), answer(one), answer(two)],
            );
            add("icmp identifier below the range", NONE, {
                let low = at(Node::C, 7);
                vec![ask(Node::C, low), answer(end(seen, 7))]
            });
            add("udp one port for many far ends", NONE, {
                let mut steps = Vec::new();
                for port in 1000..1010 {
                    steps.push(datagram(Node::C, c, end(remote, port)));
                    steps.push(datagram(Node::Remote, end(remote, port), one));
                }
                steps.push(datagram(Node::Remote, end(remote, 1010), one));
                steps.push(datagram(Node::C, c, end(other, 9)));
                steps.push(datagram(Node::Remote, end(other, 9), one));
                steps
            });
            for port in [1, 53, 700, 1023] {
                add(
                    &format!("udp from port {port}"),
                    NONE,
                    vec![
                        datagram(Node::C, at(Node::C, port), far),
                        datagram(Node::Remote, far, end(seen, port)),
                        datagram(Node::C, at(Node::C, port), far),
                    ],
                );
            }
            for port in [1024, 65_535] {
                add(
                    &format!("tcp from port {port}"),
                    NONE,
                    vec![
                        syn(Node::C, at(Node::C, port), far),
                        Step::Send(
                            Node::Remote,
                            vec![segment(far, end(seen, port), SYN | ACK, 77, 10, &[], 0)],
                        ),
                    ],
                );
            }
            add(
                "udp port of an expired mapping",
                UDP_SHORT,
                vec![
                    datagram(Node::C, c, far),
                    datagram(Node::Remote, far, one),
                    Step::Silence {
                        seconds: 310,
                        expires: true,
                    },
                    datagram(Node::Remote, far, one),
                    datagram(Node::C, c, far),
                    datagram(Node::Remote, far, one),
                ],
            );
            let client = end(remote, 50_000);
            for (what, to) in [
                ("port 22 of an address with rules", end(public, 22)),
                ("port 22 of a machine's own address", end(own, 22)),
                ("port 22 of the tenant's address", end(seen, 22)),
                ("a port without a rule", end(public, 444)),
                ("a port behind a range", end(public, 5010)),
                ("a port of the tenant's address", end(seen, 40_000)),
                ("a port whose rule lists others", end(public, 8080)),
            ] {
                add(
                    &format!("tcp to {what}"),
                    NONE,
                    vec![syn(Node::Remote, client, to)],
                );
                add(
                    &format!("udp to {what}"),
                    NONE,
                    vec![datagram(Node::Remote, client, to)],
                );
                add(
                    &format!("tcp from inside to {what}"),
                    NONE,
                    vec![syn(Node::C, c, to)],
                );
                add(
                    &format!("udp from inside to {what}"),
                    NONE,
                    vec![datagram(Node::C, c, to)],
                );
            }
            for port in 5000..=5009 {
                let l = end(public, port);
                add(
                    &format!("udp port {port} of a range"),
                    NONE,
                    vec![
                        datagram(Node::Remote, client, l),
                        datagram(Node::A, at(Node::A, port + 1000), client),
                    ],
                );
            }
            add(
                "tcp from 22 of a machine with its own address",
                NONE,
                vec![syn(Node::B, at(Node::B, 22), far)],
            );
            add(
                "tcp from inside's addresses, outside",
                NONE,
                vec![syn(Node::Remote, at(Node::D, 9), end(public, 443))],
            );
            add(
                "udp between two by their external ends",
                NONE,
                vec![
                    datagram(Node::C, c, far),
                    datagram(Node::D, at(Node::D, 41_000), far),
                    datagram(Node::C, c, end(seen, 41_000)),
                    datagram(Node::D, at(Node::D, 41_000), one),
                    datagram(Node::C, c, end(seen, 41_000)),
                ],
            );
            add(
                "udp by rule and by mapping at once",
                NONE,
                vec![
                    datagram(Node::Remote, client, end(public, 5000)),
                    datagram(Node::A, at(Node::A, 6000), client),
                    datagram(Node::A, at(Node::A, 6000), far),
                    datagram(Node::Remote, far, end(seen, 6000)),
                    datagram(Node::Remote, client, end(public, 5000)),
                ],
            );
        }
    }

    /// Protocols other than TCP, UDP and ICMP.
    pub(super) fn others(&mut self) {
        for path in paths(Transport::Icmp) {
            for (name, protocol, body) in [
                (
                    "sctp",
                    132,
                    &[
                        0x9c, 0x40, 0, 80, 0, 0, 0, 0, 1, 2, 3, 4, 1, 0, 0, 20, 0, 0, 0, 1,
                    ][..],
                ),
                (
                    "udp-lite",
                    136,
                    &[0x9c, 0x40, 0, 80, 0, 8, 0, 0, 1, 2, 3, 4],
                ),
                ("gre", 47, &[0, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
                ("esp", 50, &[0, 0, 1, 0, 0, 0, 0, 1, 5, 6, 7, 8]),
            ] {
                let l3 = ip_packet(path.l.0, path.l_peer.0, protocol, body);
                self.add(
                    name,
                    &path.name,
                    NONE,
                    vec![Step::Send(path.left, vec![l3])],
                );
            }
        }
    }
}
