//! Fragmented packets of a connection.

use super::super::Step;
use super::packets::{cut, packet};
use super::tcp::segment;
use super::{Corpus, FlowPath, Left, NONE, Right, Side, Transport};

use crate::packet::tcp_flags::{ACK, SYN};

impl Corpus {
    pub(super) fn fragments(&mut self, carrier: Transport, path: &FlowPath) {
        let carried = match carrier {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Icmp => "icmp",
        };
        let mut id = 100 * (self.0.len() as u16 % 600);
        let mut pieces = |side: Side, len: usize, each: usize| {
            id += 1;
            let packet = if carrier == Transport::Tcp {
                let (from, to) = path.sends(side);
                segment(
                    from,
                    to,
                    SYN | if side == Right { ACK } else { 0 },
                    5000,
                    if side == Right { 5001 } else { 0 },
                    &[],
                    len,
                )
            } else {
                packet(carrier, path, side, len)
            };
            cut(&packet, each, id)
        };
        let step = |side: Side, pieces: Vec<Vec<u8>>| Step::Send(path.node(side), pieces);
        let name = |what: &str| format!("{carried} {what}");
        if carrier != Transport::Tcp {
            let steps = vec![
                step(Left, pieces(Left, 3000, 1400)),
                step(Right, pieces(Right, 4000, 1400)),
            ];
            self.add(&name("fragments in order"), &path.name, NONE, steps);
            let steps = vec![
                step(Left, pieces(Left, 1800, 1280)),
                step(Right, pieces(Right, 1500, 1280)),
            ];
            self.add(&name("two fragments"), &path.name, NONE, steps);
        }
        let steps = vec![
            step(Left, pieces(Left, 200, 64)),
            step(Right, pieces(Right, 120, 24)),
        ];
        self.add(&name("small fragments"), &path.name, NONE, steps);
        let mut backwards = pieces(Left, 3000, 1400);
        backwards.reverse();
        self.add(
            &name("fragments backwards"),
            &path.name,
            NONE,
            vec![step(Left, backwards)],
        );
        let mut swapped = pieces(Left, 3000, 1400);
        swapped.swap(1, 2);
        self.add(
            &name("later fragments out of order"),
            &path.name,
            NONE,
            vec![step(Left, swapped)],
        );
        let first = pieces(Left, 3000, 1400);
        self.add(
            &name("first fragment alone"),
            &path.name,
            NONE,
            vec![step(Left, first[..1].to_vec())],
        );
        let later = pieces(Left, 3000, 1400);
        self.add(
            &name("later fragments alone"),
            &path.name,
            NONE,
            vec![step(Left, later[1..].to_vec())],
        );
    }
}
