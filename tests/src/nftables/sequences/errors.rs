//! ICMP errors about packets of a connection.

use super::super::Step;
use super::packets::{error, heard, said};
use super::tcp::Tcp;
use super::{Corpus, FlowPath, Left, NONE, Right, Transport};

use crate::nat::hop;
use crate::packet::icmp;

impl Corpus {
    /// ICMP errors of every kind about a packet that either side receives, from it or from a router
    /// before it.
    pub(super) fn errors(&mut self, carrier: Transport, way: &FlowPath) {
        let carried = match carrier {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Icmp => "icmp",
        };
        let v4 = way.is_v4();
        let mut begin = vec![said(carrier, way, Left, 40), said(carrier, way, Right, 40)];
        if carrier == Transport::Tcp {
            let mut tcp = Tcp::new(way);
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
            let heard = hop(&heard(carrier, way, side));
            let header = if v4 { 20 } else { 40 };
            for (by, who, from) in [
                ("their receiver", way.who(side), way.sends(side).0.0),
                ("a router", way.router(side).0, way.router(side).1),
            ] {
                let error =
                    |kind: (u8, u8), quote: &[u8]| error(from, way.sends(side).1.0, kind, quote);
                for (length, bytes) in [("little", header + 8), ("all", heard.len())] {
                    let mut steps = begin.clone();
                    for kind in kinds {
                        steps.push(Step::Send(who, vec![error(*kind, &heard[..bytes])]));
                    }
                    // None of which ends the connection.
                    steps.extend(if carrier == Transport::Tcp {
                        Vec::new()
                    } else {
                        vec![said(carrier, way, Left, 3), said(carrier, way, Right, 3)]
                    });
                    let what = format!("errors about {carried} {about} by {by}, {length} quoted");
                    self.add(&what, &way.name, NONE, steps);
                }
                let mut then = |what: &str, packet: Vec<u8>| {
                    let mut steps = begin.clone();
                    steps.push(Step::Send(who, vec![packet]));
                    let what = format!("{what} about {carried} {about} by {by}");
                    self.add(&what, &way.name, NONE, steps);
                };
                if v4 {
                    then("source quench", error((4, 0), &heard));
                    then("redirect", error((5, 1), &heard));
                }
                let some = if v4 { (3, 3) } else { (1, 4) };
                then("too short an error", error(some, &heard[..header + 4]));
                let mut wrong = error(some, &heard);
                let last = wrong.len() - 1;
                wrong[last] ^= 1;
                then("an error with a wrong checksum", wrong);
                if v4 {
                    let mut quote = heard.clone();
                    quote[10] ^= 1;
                    then("an error that quotes a wrong checksum", error(some, &quote));
                    let mut quote = heard.clone();
                    quote[6..8].copy_from_slice(&[0, 100]);
                    then("an error about a later fragment", error(some, &quote));
                    let mut quote = heard.clone();
                    quote[6..8].copy_from_slice(&[0x20, 0]);
                    then("an error about a first fragment", error(some, &quote));
                } else {
                    let mut quote = heard[..40].to_vec();
                    quote[6] = 44;
                    quote.extend_from_slice(&[heard[6], 0, 0, 1, 0, 0, 0, 9]);
                    quote.extend_from_slice(&heard[40..]);
                    then("an error about a first fragment", error(some, &quote));
                    let mut quote = heard[..40].to_vec();
                    quote[6] = 60;
                    quote.extend_from_slice(&[heard[6], 0, 1, 4, 0, 0, 0, 0]);
                    quote.extend_from_slice(&heard[40..]);
                    then("an error about one with options", error(some, &quote));
                }
                let about_error = {
                    let inner = error(some, &heard);
                    let (a, b) = (way.receives(side).0.0, way.receives(side).1.0);
                    let mut quoted = icmp(a, b, some.0, some.1, &inner[header + 4..]);
                    quoted.truncate(header + 60);
                    error(some, &quoted)
                };
                then("an error about an error", about_error);
            }
        }
        // About a connection that is not there.
        let heard = heard(carrier, way, Right);
        let some = if v4 { (3, 3) } else { (1, 4) };
        let (from, to) = (way.sends(Right).0.0, way.sends(Right).1.0);
        let step = Step::Send(way.right, vec![error(from, to, some, &heard)]);
        self.add(
            &format!("an error about no {carried} at all"),
            &way.name,
            NONE,
            vec![step],
        );
    }
}
