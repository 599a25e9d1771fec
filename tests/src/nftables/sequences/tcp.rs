//! TCP connections, regular and irregular, and their timeouts.

use super::super::Step;
use super::{Corpus, FlowPath, Left, NONE, Right, Side};

use crate::nat::End;
use crate::packet::tcp_flags::{ACK, FIN, RST, SYN};
use crate::packet::{ip_packet, syn_options, tcp_segment, transport_checksum};

/// A segment of TCP with its numbers.
pub(super) fn segment(
    from: End,
    to: End,
    flags: u8,
    seq: u32,
    ack: u32,
    options: &[u8],
    data: usize,
) -> Vec<u8> {
    let data: Vec<u8> = (0..data).map(|i| i as u8).collect();
    let mut out = tcp_segment(from.0, to.0, from.1, to.1, flags, options, &data);
    out[4..8].copy_from_slice(&seq.to_be_bytes());
    out[8..12].copy_from_slice(&ack.to_be_bytes());
    out[16..18].fill(0);
    let check = transport_checksum(from.0, to.0, 6, &out);
    out[16..18].copy_from_slice(&check.to_be_bytes());
    ip_packet(from.0, to.0, 6, &out)
}

/// A TCP connection as a list of steps.
pub(super) struct Tcp<'p> {
    pub path: &'p FlowPath,
    pub next: [u32; 2],
    pub steps: Vec<Step>,
}

impl<'p> Tcp<'p> {
    pub(super) const fn new(path: &'p FlowPath) -> Self {
        Self {
            path,
            next: [1_000_000, 3_000_000_000],
            steps: Vec::new(),
        }
    }

    /// A segment with arbitrary sequence numbers.
    pub(super) fn raw(
        &mut self,
        side: Side,
        flags: u8,
        seq: u32,
        ack: u32,
        options: &[u8],
        data: usize,
    ) {
        let (from, to) = self.path.sends(side);
        let packet = segment(from, to, flags, seq, ack, options, data);
        self.steps
            .push(Step::Send(self.path.node(side), vec![packet]));
    }

    /// The next segment of a side.
    pub(super) fn send(&mut self, side: Side, flags: u8, data: usize) -> &mut Self {
        self.send_with(side, flags, &[], data)
    }

    pub(super) fn send_with(
        &mut self,
        side: Side,
        flags: u8,
        options: &[u8],
        data: usize,
    ) -> &mut Self {
        let (own, other) = (side as usize, side.other() as usize);
        let ack = if flags & ACK == 0 {
            0
        } else {
            self.next[other]
        };
        self.raw(side, flags, self.next[own], ack, options, data);
        let taken = data as u32 + u32::from(flags & (SYN | FIN) != 0);
        self.next[own] = self.next[own].wrapping_add(taken);
        self
    }

    /// The last segment of a side once more.
    pub(super) fn again(&mut self) -> &mut Self {
        let last = self.steps.last().expect("one was sent").clone();
        self.steps.push(last);
        self
    }

    pub(super) fn open(&mut self) -> &mut Self {
        self.send(Left, SYN, 0)
            .send(Right, SYN | ACK, 0)
            .send(Left, ACK, 0)
    }

    pub(super) fn data(&mut self) -> &mut Self {
        self.send(Left, ACK | 8, 100)
            .send(Right, ACK, 0)
            .send(Right, ACK | 8, 301)
            .send(Left, ACK, 0)
    }

    pub(super) fn close(&mut self, first: Side) -> &mut Self {
        self.send(first, FIN | ACK, 0)
            .send(first.other(), ACK, 0)
            .send(first.other(), FIN | ACK, 0)
            .send(first, ACK, 0)
    }

    pub(super) fn silence(&mut self, seconds: u32, expires: bool) -> &mut Self {
        self.steps.push(Step::Silence { seconds, expires });
        self
    }
}

const TCP_SHORT: &[&str] = &[
    "tcp_timeout_syn_sent",
    "tcp_timeout_syn_recv",
    "tcp_timeout_fin_wait",
    "tcp_timeout_close_wait",
    "tcp_timeout_last_ack",
    "tcp_timeout_time_wait",
    "tcp_timeout_close",
];

const TCP_ESTABLISHED: &[&str] = &["tcp_timeout_established"];

impl Corpus {
    pub(super) fn tcp(&mut self, path: &FlowPath) {
        let mut add = |what: &str, write: &dyn Fn(&mut Tcp<'_>)| {
            let mut tcp = Tcp::new(path);
            write(&mut tcp);
            self.add(what, &path.name, NONE, tcp.steps);
        };
        add("tcp open", &|t| {
            t.open();
        });
        add("tcp open, data, closed by the opener", &|t| {
            t.open().data().close(Left);
        });
        add("tcp open, data, closed by the other", &|t| {
            t.open().data().close(Right);
        });
        add("tcp closed by both at once", &|t| {
            t.open().data();
            let [l, r] = t.next;
            t.raw(Left, FIN | ACK, l, r, &[], 0);
            t.raw(Right, FIN | ACK, r, l, &[], 0);
            t.next = [l + 1, r + 1];
            t.send(Left, ACK, 0).send(Right, ACK, 0);
        });
        for side in [Left, Right] {
            let name = if side == Left {
                "the opener"
            } else {
                "the other"
            };
            add(&format!("tcp reset by {name}"), &|t| {
                t.open().data().send(side, RST | ACK, 0);
            });
            add(&format!("tcp half-closed by {name}"), &|t| {
                t.open().send(side, FIN | ACK, 0).send(side.other(), ACK, 0);
                t.send(side.other(), ACK | 8, 500).send(side, ACK, 0);
                t.send(side.other(), FIN | ACK, 0).send(side, ACK, 0);
            });
        }
        add("tcp refused", &|t| {
            t.send(Left, SYN, 0).send(Right, RST | ACK, 0);
        });
        add("tcp refused, tried again", &|t| {
            t.send(Left, SYN, 0).send(Right, RST | ACK, 0);
            t.next[0] += 70_000;
            t.open().data();
        });
        add("tcp half-open", &|t| {
            t.send(Left, SYN, 0).again().again();
        });
        add("tcp half-open, then answered", &|t| {
            t.send(Left, SYN, 0).again();
            t.send(Right, SYN | ACK, 0).again();
            t.send(Left, ACK, 0).data();
        });
        add("tcp half-open, given up", &|t| {
            t.send(Left, SYN, 0)
                .send(Right, SYN | ACK, 0)
                .send(Left, RST, 0);
        });
        add("tcp simultaneous open", &|t| {
            let [l, r] = t.next;
            t.raw(Left, SYN, l, 0, &[], 0);
            t.raw(Right, SYN, r, 0, &[], 0);
            t.raw(Left, SYN | ACK, l, r + 1, &[], 0);
            t.raw(Right, SYN | ACK, r, l + 1, &[], 0);
            t.next = [l + 1, r + 1];
            t.send(Left, ACK, 0).send(Right, ACK, 0).data();
        });
        add("tcp port used again after a close", &|t| {
            t.open().data().close(Left);
            t.next[0] += 100_000;
            t.next[1] += 100_000;
            t.open().data();
        });
        add("tcp port used again after a reset", &|t| {
            t.open().data().send(Left, RST | ACK, 0);
            t.next[0] += 100_000;
            t.next[1] += 100_000;
            t.open().data();
        });
        add("tcp with usual options", &|t| {
            let options = syn_options(1400);
            t.send_with(Left, SYN, &options, 0)
                .send_with(Right, SYN | ACK, &options, 0);
            t.send(Left, ACK, 0).data();
        });
        add("tcp with congestion notification", &|t| {
            t.send(Left, SYN | 0xc0, 0)
                .send(Right, SYN | ACK | 0x40, 0)
                .send(Left, ACK, 0)
                .data();
        });
        add("tcp with data in the first segment", &|t| {
            t.send(Left, SYN, 10);
            t.send(Right, SYN | ACK, 0).send(Left, ACK, 0).data();
        });
        add("tcp keepalive probes", &|t| {
            t.open().data();
            let [l, r] = t.next;
            t.raw(Left, ACK, l - 1, r, &[], 0);
            t.send(Right, ACK, 0);
            t.raw(Right, ACK, r - 1, l, &[], 1);
            t.send(Left, ACK, 0);
        });
        add("tcp urgent data", &|t| {
            t.open().send(Left, ACK | 0x20 | 8, 5).send(Right, ACK, 0);
        });
    }

    pub(super) fn tcp_odd(&mut self, path: &FlowPath) {
        let mut add = |what: &str, write: &dyn Fn(&mut Tcp<'_>)| {
            let mut tcp = Tcp::new(path);
            write(&mut tcp);
            self.add(what, &path.name, NONE, tcp.steps);
        };
        for (name, flags) in [
            ("ack", ACK),
            ("syn and ack", SYN | ACK),
            ("fin", FIN | ACK),
            ("rst", RST),
            ("syn and fin", SYN | FIN),
            ("no flag", 0),
            ("every flag", 0x3f),
        ] {
            add(&format!("tcp begins with {name}"), &|t| {
                t.send(Left, flags, 0);
            });
        }
        add("tcp begins at the other end", &|t| {
            t.send(Right, SYN, 0).send(Left, SYN | ACK, 0);
        });
        add("tcp syn within a connection", &|t| {
            t.open().data();
            let [l, _] = t.next;
            t.raw(Left, SYN, l + 10, 0, &[], 0);
            t.send(Right, ACK, 0);
        });
        add("tcp data outside of the window", &|t| {
            t.open().data();
            let [l, r] = t.next;
            t.raw(Left, ACK | 8, l + 10_000_000, r, &[], 10);
        });
        add("tcp acknowledges data that was not sent", &|t| {
            t.open().data();
            let [l, r] = t.next;
            t.raw(Right, ACK, r, l + 10_000_000, &[], 0);
        });
        add("tcp reset outside of the window", &|t| {
            t.open().data();
            let [_, r] = t.next;
            t.raw(Right, RST, r.wrapping_add(500_000_000), 0, &[], 0);
            t.send(Left, ACK | 8, 20).send(Right, ACK, 0);
        });
        add("tcp data after a reset", &|t| {
            t.open().data().send(Right, RST | ACK, 0);
            t.send(Left, ACK | 8, 20);
        });
        add("tcp data before the answer", &|t| {
            t.send(Left, SYN, 0).send(Left, ACK | 8, 20);
        });
        add("tcp ack before the answer", &|t| {
            t.send(Left, SYN, 0).send(Right, ACK, 0);
        });
        add("tcp no flag within a connection", &|t| {
            t.open().data().send(Left, 0, 0);
        });
        add("tcp syn and fin within a connection", &|t| {
            t.open().data().send(Left, SYN | FIN, 0);
        });
        add("tcp late data after a close", &|t| {
            t.open().data();
            let [l, r] = t.next;
            t.close(Left);
            t.raw(Left, ACK | 8, l - 100, r, &[], 100);
            t.raw(Right, FIN | ACK, r, l + 1, &[], 0);
        });
        add("tcp with a wrong checksum", &|t| {
            t.open().send(Left, ACK | 8, 10);
            if let Some(Step::Send(_, packets)) = t.steps.last_mut() {
                let last = packets[0].len() - 1;
                packets[0][last] ^= 0x10;
            }
        });
        // A segment with another source port belongs to no connection.
        add("tcp answered by another port", &|t| {
            t.send(Left, SYN, 0);
            let (from, to) = t.path.sends(Right);
            let packet = segment((from.0, from.1 + 1), to, SYN | ACK, 7, t.next[0], &[], 0);
            t.steps.push(Step::Send(t.path.right, vec![packet]));
        });
    }

    pub(super) fn tcp_timeouts(&mut self, path: &FlowPath) {
        // One path of each kind, because each waits for a shortened kernel timeout.
        if !["out4", "in6", "hairpin4"].contains(&&path.name[..]) {
            return;
        }
        let mut add = |what: &str, timeouts, write: &dyn Fn(&mut Tcp<'_>)| {
            let mut tcp = Tcp::new(path);
            write(&mut tcp);
            self.add(what, &path.name, timeouts, tcp.steps);
        };
        add(
            "tcp established, silent for too long",
            TCP_ESTABLISHED,
            &|t| {
                t.open()
                    .data()
                    .silence(7500, true)
                    .send(Left, ACK | 8, 10)
                    .send(Right, ACK, 0);
            },
        );
        add("tcp established, silent for hours", NONE, &|t| {
            t.open()
                .data()
                .silence(7400, false)
                .send(Right, ACK | 8, 10)
                .send(Left, ACK, 0);
        });
        add(
            "tcp established, not as short-lived as others",
            TCP_SHORT,
            &|t| {
                t.open()
                    .data()
                    .silence(1000, true)
                    .send(Right, ACK | 8, 10)
                    .send(Left, ACK, 0);
            },
        );
        add("tcp never answered in time", TCP_SHORT, &|t| {
            t.send(Left, SYN, 0)
                .silence(250, true)
                .send(Right, SYN | ACK, 0);
        });
        add("tcp reset, its port used again later", TCP_SHORT, &|t| {
            t.open().send(Right, RST | ACK, 0).silence(250, true);
            t.next[0] += 100_000;
            t.open().data();
        });
        add("tcp closed, its port used again later", TCP_SHORT, &|t| {
            t.open().close(Left).silence(250, true).send(Right, ACK, 0);
            t.next[0] += 100_000;
            t.open().data();
        });
        add("tcp expired, opened again", TCP_ESTABLISHED, &|t| {
            t.open().data().silence(7500, true);
            t.next[0] += 100_000;
            t.open().data();
        });
    }
}
