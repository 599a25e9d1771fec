//! ICMP errors about packets of a connection.

use super::super::Step;
use super::packets::{error, received, send_step};
use super::tcp::Tcp;
use super::{Corpus, FlowPath, Left, NONE, Right, Transport};

use crate::nat::hop;
use crate::packet::icmp;

impl Corpus {
    /// ICMP errors of every kind about a packet that either side receives, from it or from a router
    /// before it.
    pub(super) fn errors(&mut self, carrier: Transport, path: &FlowPath) {
        let carried = match carrier {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Icmp => "icmp",
        };
        let v4 = path.is_v4();
        let mut begin = vec![
            send_step(carrier, path, Left, 40),
            send_step(carrier, path, Right, 40),
        ];
        if carrier == Transport::Tcp {
            let mut tcp = Tcp::new(path);
            tcp.open().data();
            begin = tcp.steps;
        }
        let kinds: &[(u8, u8)] = if v4 {
            &[
                (3, 0),
                (3, 1),
                (3, 2),
                (3, 3),
                (3, 4),
                (3, 9),
                (3, 10),
                (3, 13),
                (11, 0),
                (11, 1),
                (12, 0),
            ]
        } else {
            &[
                (1, 0),
                (1, 1),
                (1, 3),
                (1, 4),
                (1, 5),
                (2, 0),
                (3, 0),
                (3, 1),
                (4, 0),
                (4, 1),
                (4, 2),
            ]
        };
        for side in [Left, Right] {
            let about = if side == Left { "answers" } else { "questions" };
            let received = hop(&received(carrier, path, side));
            let header = if v4 { 20 } else { 40 };
            for (by, who, from) in [
                ("their receiver", path.node(side), path.sends(side).0.0),
                ("a router", path.router(side).0, path.router(side).1),
            ] {
                let error =
                    |kind: (u8, u8), quote: &[u8]| error(from, path.sends(side).1.0, kind, quote);
                for (length, bytes) in [("little", header + 8), ("all", received.len())] {
                    let mut steps = begin.clone();
                    for kind in kinds {
                        steps.push(Step::Send(who, vec![error(*kind, &received[..bytes])]));
                    }
                    // These errors must not end the connection.
                    steps.extend(if carrier == Transport::Tcp {
                        Vec::new()
                    } else {
                        vec![
                            send_step(carrier, path, Left, 3),
                            send_step(carrier, path, Right, 3),
                        ]
                    });
                    let what = format!("errors about {carried} {about} by {by}, {length} quoted");
                    self.add(&what, &path.name, NONE, steps);
                }
                let mut then = |what: &str, packet: Vec<u8>| {
                    let mut steps = begin.clone();
                    steps.push(Step::Send(who, vec![packet]));
                    let what = format!("{what} about {carried} {about} by {by}");
                    self.add(&what, &path.name, NONE, steps);
                };
                if v4 {
                    then("source quench", error((4, 0), &received));
                    then("redirect", error((5, 1), &received));
                }
                let some = if v4 { (3, 3) } else { (1, 4) };
                then("too short an error", error(some, &received[..header + 4]));
                let mut wrong = error(some, &received);
                let last = wrong.len() - 1;
                wrong[last] ^= 1;
                then("an error with a wrong checksum", wrong);
                if v4 {
                    let mut quote = received.clone();
                    quote[10] ^= 1;
                    then("an error that quotes a wrong checksum", error(some, &quote));
                    let mut quote = received.clone();
                    quote[6..8].copy_from_slice(&[0, 100]);
                    then("an error about a later fragment", error(some, &quote));
                    let mut quote = received.clone();
                    quote[6..8].copy_from_slice(&[0x20, 0]);
                    then("an error about a first fragment", error(some, &quote));
                } else {
                    let mut quote = received[..40].to_vec();
                    quote[6] = 44;
                    quote.extend_from_slice(&[received[6], 0, 0, 1, 0, 0, 0, 9]);
                    quote.extend_from_slice(&received[40..]);
                    then("an error about a first fragment", error(some, &quote));
                    let mut quote = received[..40].to_vec();
                    quote[6] = 60;
                    quote.extend_from_slice(&[received[6], 0, 1, 4, 0, 0, 0, 0]);
                    quote.extend_from_slice(&received[40..]);
                    then("an error about one with options", error(some, &quote));
                }
                let about_error = {
                    let inner = error(some, &received);
                    let (a, b) = (path.receives(side).0.0, path.receives(side).1.0);
                    let mut quoted = icmp(a, b, some.0, some.1, &inner[header + 4..]);
                    quoted.truncate(header + 60);
                    error(some, &quoted)
                };
                then("an error about an error", about_error);
            }
        }
        // An error about an unknown connection.
        let received = received(carrier, path, Right);
        let some = if v4 { (3, 3) } else { (1, 4) };
        let (from, to) = (path.sends(Right).0.0, path.sends(Right).1.0);
        let step = Step::Send(path.right, vec![error(from, to, some, &received)]);
        self.add(
            &format!("an error about an unknown {carried} connection"),
            &path.name,
            NONE,
            vec![step],
        );
    }
}
