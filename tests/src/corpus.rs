//! What [`beside`](crate::beside) is asked: sequences of packets of every kind of connection on every way through the
//! translation, generated. A name is `<what happens>/<way>`.

use std::net::IpAddr;

use crate::{
    beside::{Sequence, Step, Who},
    nat::{End, end, hop},
    packet::{
        V4, checksum, icmp, icmp_message, ip, ip_packet, syn_options,
        tcp_flags::{ACK, FIN, RST, SYN},
        tcp_segment, transport_checksum, udp, udp_segment, v6,
    },
    world::{
        LISTED, LISTED6, NAT4, NAT6, ONE_TO_ONE4, ONE_TO_ONE6, PUBLIC4, PUBLIC6, REMOTE, REMOTE6,
    },
};

/// A way through the translation: what both ends are, and what each sees the other as. The left one begins.
#[derive(Clone, Debug)]
pub struct Way {
    /// Its name: where it goes, and the IP version.
    pub name: String,
    /// Who begins.
    pub left: Who,
    /// Its own end.
    pub l: End,
    /// Whom it speaks to.
    pub l_peer: End,
    /// Who answers.
    pub right: Who,
    /// Its own end.
    pub r: End,
    /// Whom it answers.
    pub r_peer: End,
}

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that begins.
    Left,
    /// The other.
    Right,
}
use Side::{Left, Right};

impl Side {
    const fn other(self) -> Self {
        match self {
            Left => Right,
            Right => Left,
        }
    }
}

impl Way {
    fn who(&self, side: Side) -> Who {
        match side {
            Left => self.left,
            Right => self.right,
        }
    }

    /// From and to of what a side sends.
    const fn sends(&self, side: Side) -> (End, End) {
        match side {
            Left => (self.l, self.l_peer),
            Right => (self.r, self.r_peer),
        }
    }

    /// From and to of what a side hears.
    const fn hears(&self, side: Side) -> (End, End) {
        match side {
            Left => (self.l_peer, self.l),
            Right => (self.r_peer, self.r),
        }
    }

    fn is_v4(&self) -> bool {
        self.l.0.is_ipv4()
    }

    /// A router on a side, and who passes its packets on.
    fn router(&self, side: Side) -> (Who, IpAddr) {
        match (self.who(side), self.is_v4()) {
            (Who::Remote, true) => (Who::Remote, ip("198.18.0.1")),
            (Who::Remote, false) => (Who::Remote, ip("2001:db8:ab::1")),
            (_, v4) => (Who::D, ip(Who::D.addresses()[usize::from(!v4)])),
        }
    }
}

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echoes.
    Icmp,
}

/// All ways of a carrier, both families.
#[must_use]
pub fn ways(carrier: Carrier) -> Vec<Way> {
    let mut all = Vec::new();
    for (family, remote, listed, seen, public, own) in [
        (0, REMOTE, LISTED, NAT4, PUBLIC4, ONE_TO_ONE4),
        (1, REMOTE6, LISTED6, NAT6, PUBLIC6, ONE_TO_ONE6),
    ] {
        let at = |who: Who| who.addresses()[family];
        let (a, b, c) = (at(Who::A), at(Who::B), at(Who::C));
        let icmp = carrier == Carrier::Icmp;
        // The port that the left end speaks to, and the rule's.
        let asked = if icmp { 0 } else { 80 };
        let (rule, internal) = if carrier == Carrier::Tcp {
            (443, 8443)
        } else {
            (5000, 6000)
        };
        let mut way = |name: &str, left, l: End, l_peer: End, right, r: End, r_peer: End| {
            let name = format!("{name}{}", if family == 0 { 4 } else { 6 });
            all.push(Way {
                name,
                left,
                l,
                l_peer,
                right,
                r,
                r_peer,
            });
        };
        let (c1, b1) = (end(c, 40_000), end(b, 40_000));
        let (seen_c, seen_b) = (end(seen, 40_000), end(own, 40_000));
        let (far, client) = (end(remote, asked), end(remote, 50_000));
        use Who::{A, B, C, Remote};
        way("out", C, c1, far, Remote, far, seen_c);
        way("own-out", B, b1, far, Remote, far, seen_b);
        let asked = if icmp { 0 } else { 3389 };
        way(
            "own-in",
            Remote,
            client,
            end(own, asked),
            B,
            end(b, asked),
            client,
        );
        way(
            "hairpin-own",
            C,
            c1,
            end(own, asked),
            B,
            end(b, asked),
            seen_c,
        );
        if icmp {
            continue;
        }
        let (to, inner) = (end(public, rule), end(a, internal));
        way("in", Remote, client, to, A, inner, client);
        way("hairpin", C, c1, to, A, inner, seen_c);
        way("hairpin-from-own", B, b1, to, A, inner, seen_b);
        way("hairpin-self", A, end(a, 40_000), to, A, inner, seen_c);
        let (to, inner) = (end(public, 5009), end(a, 6009));
        way("range", Remote, client, to, A, inner, client);
        if carrier == Carrier::Tcp {
            let client = end(listed, 50_000);
            way(
                "listed",
                Remote,
                client,
                end(public, 8080),
                A,
                end(a, 80),
                client,
            );
            way(
                "to-22",
                Remote,
                client,
                end(public, 2222),
                A,
                end(a, 22),
                client,
            );
        }
    }
    all
}

/// A segment of TCP with its numbers.
fn segment(
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

/// A connection of TCP that is written down.
struct Tcp<'w> {
    way: &'w Way,
    next: [u32; 2],
    steps: Vec<Step>,
}

impl<'w> Tcp<'w> {
    const fn new(way: &'w Way) -> Self {
        Self {
            way,
            next: [1_000_000, 3_000_000_000],
            steps: Vec::new(),
        }
    }

    /// A segment with numbers of its own.
    fn raw(&mut self, side: Side, flags: u8, seq: u32, ack: u32, options: &[u8], data: usize) {
        let (from, to) = self.way.sends(side);
        let packet = segment(from, to, flags, seq, ack, options, data);
        self.steps
            .push(Step::Send(self.way.who(side), vec![packet]));
    }

    /// The next segment of a side.
    fn send(&mut self, side: Side, flags: u8, data: usize) -> &mut Self {
        self.send_with(side, flags, &[], data)
    }

    fn send_with(&mut self, side: Side, flags: u8, options: &[u8], data: usize) -> &mut Self {
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
    fn again(&mut self) -> &mut Self {
        let last = self.steps.last().expect("one was sent").clone();
        self.steps.push(last);
        self
    }

    fn open(&mut self) -> &mut Self {
        self.send(Left, SYN, 0)
            .send(Right, SYN | ACK, 0)
            .send(Left, ACK, 0)
    }

    fn data(&mut self) -> &mut Self {
        self.send(Left, ACK | 8, 100)
            .send(Right, ACK, 0)
            .send(Right, ACK | 8, 301)
            .send(Left, ACK, 0)
    }

    fn close(&mut self, first: Side) -> &mut Self {
        self.send(first, FIN | ACK, 0)
            .send(first.other(), ACK, 0)
            .send(first.other(), FIN | ACK, 0)
            .send(first, ACK, 0)
    }

    fn silence(&mut self, seconds: u32, expires: bool) -> &mut Self {
        self.steps.push(Step::Silence { seconds, expires });
        self
    }
}

/// What carries nothing further: kernel timeouts that are shortened.
const NONE: &[&str] = &[];
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
const UDP_SHORT: &[&str] = &["udp_timeout", "udp_timeout_stream"];
const ICMP_SHORT: &[&str] = &["icmp_timeout", "icmpv6_timeout"];

/// Every sequence.
#[must_use]
pub fn all() -> Vec<Sequence> {
    let mut out = Corpus(Vec::new());
    for way in ways(Carrier::Tcp) {
        out.tcp(&way);
        out.tcp_odd(&way);
        out.tcp_timeouts(&way);
    }
    for carrier in [Carrier::Tcp, Carrier::Udp, Carrier::Icmp] {
        for way in ways(carrier) {
            out.datagrams(carrier, &way);
            out.errors(carrier, &way);
            out.fragments(carrier, &way);
            out.routing(carrier, &way);
        }
    }
    for way in ways(Carrier::Udp) {
        out.udp(&way);
    }
    for way in ways(Carrier::Icmp) {
        out.icmp(&way);
    }
    out.ports();
    out.others();
    out.0
}

struct Corpus(Vec<Sequence>);

impl Corpus {
    fn add(&mut self, what: &str, way: &str, timeouts: &'static [&'static str], steps: Vec<Step>) {
        self.0.push(Sequence {
            name: format!("{what}/{way}"),
            steps,
            timeouts,
        });
    }

    fn tcp(&mut self, way: &Way) {
        let mut add = |what: &str, write: &dyn Fn(&mut Tcp<'_>)| {
            let mut tcp = Tcp::new(way);
            write(&mut tcp);
            self.add(what, &way.name, NONE, tcp.steps);
        };
        add("tcp open", &|t| {
            t.open();
        });
        add("tcp open, data, closed by who opened", &|t| {
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
                "who opened"
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
        add("tcp probes whether the other is there", &|t| {
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

    fn tcp_odd(&mut self, way: &Way) {
        let mut add = |what: &str, write: &dyn Fn(&mut Tcp<'_>)| {
            let mut tcp = Tcp::new(way);
            write(&mut tcp);
            self.add(what, &way.name, NONE, tcp.steps);
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
        add("tcp acknowledges what was not sent", &|t| {
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
        add("tcp goes on after a reset", &|t| {
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
        // Seen from elsewhere, a connection is not there.
        add("tcp answered by another port", &|t| {
            t.send(Left, SYN, 0);
            let (from, to) = t.way.sends(Right);
            let packet = segment((from.0, from.1 + 1), to, SYN | ACK, 7, t.next[0], &[], 0);
            t.steps.push(Step::Send(t.way.right, vec![packet]));
        });
    }

    fn tcp_timeouts(&mut self, way: &Way) {
        // One way of each kind: the kernel's second passes in each.
        if !["out4", "in6", "hairpin4"].contains(&&way.name[..]) {
            return;
        }
        let mut add = |what: &str, timeouts, write: &dyn Fn(&mut Tcp<'_>)| {
            let mut tcp = Tcp::new(way);
            write(&mut tcp);
            self.add(what, &way.name, timeouts, tcp.steps);
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

    /// What a side of the carrier says: the first of two is the left one's.
    fn datagrams(&mut self, carrier: Carrier, way: &Way) {
        if carrier == Carrier::Tcp {
            return;
        }
        let name = if carrier == Carrier::Udp {
            "udp"
        } else {
            "icmp"
        };
        let say = |side, len| said(carrier, way, side, len);
        let short = if carrier == Carrier::Udp {
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
        let long = if carrier == Carrier::Udp { 310 } else { 70 };
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
            "kept by who asks",
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

    fn udp(&mut self, way: &Way) {
        let say = |side, len| said(Carrier::Udp, way, side, len);
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
        if way.right == Who::Remote {
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
        let mut wrong = said(Carrier::Udp, way, Left, 9);
        if let Step::Send(_, packets) = &mut wrong {
            let last = packets[0].len() - 1;
            packets[0][last] ^= 1;
        }
        self.add("udp with a wrong checksum", &way.name, NONE, vec![wrong]);
    }

    fn icmp(&mut self, way: &Way) {
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
                let ask = |_| said(Carrier::Icmp, way, Left, 5);
                let answer = |_| said(Carrier::Icmp, way, Right, 5);
                vec![ask(0), ask(1), answer(0), answer(1), answer(2)]
            },
        );
    }

    /// ICMP errors of every kind about what either side hears, by it or by a router before it.
    fn errors(&mut self, carrier: Carrier, way: &Way) {
        let carried = match carrier {
            Carrier::Tcp => "tcp",
            Carrier::Udp => "udp",
            Carrier::Icmp => "icmp",
        };
        let v4 = way.is_v4();
        let mut begin = vec![said(carrier, way, Left, 40), said(carrier, way, Right, 40)];
        if carrier == Carrier::Tcp {
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
                    steps.extend(if carrier == Carrier::Tcp {
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
                    let (a, b) = (way.hears(side).0.0, way.hears(side).1.0);
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

    fn fragments(&mut self, carrier: Carrier, way: &Way) {
        let carried = match carrier {
            Carrier::Tcp => "tcp",
            Carrier::Udp => "udp",
            Carrier::Icmp => "icmp",
        };
        let mut id = 100 * (self.0.len() as u16 % 600);
        let mut pieces = |side: Side, len: usize, each: usize| {
            id += 1;
            let packet = if carrier == Carrier::Tcp {
                let (from, to) = way.sends(side);
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
                packet(carrier, way, side, len)
            };
            cut(&packet, each, id)
        };
        let step = |side: Side, pieces: Vec<Vec<u8>>| Step::Send(way.who(side), pieces);
        let name = |what: &str| format!("{carried} {what}");
        if carrier != Carrier::Tcp {
            let steps = vec![
                step(Left, pieces(Left, 3000, 1400)),
                step(Right, pieces(Right, 4000, 1400)),
            ];
            self.add(&name("fragments in order"), &way.name, NONE, steps);
            let steps = vec![
                step(Left, pieces(Left, 1800, 1280)),
                step(Right, pieces(Right, 1500, 1280)),
            ];
            self.add(&name("two fragments"), &way.name, NONE, steps);
        }
        let steps = vec![
            step(Left, pieces(Left, 200, 64)),
            step(Right, pieces(Right, 120, 24)),
        ];
        self.add(&name("small fragments"), &way.name, NONE, steps);
        let mut backwards = pieces(Left, 3000, 1400);
        backwards.reverse();
        self.add(
            &name("fragments backwards"),
            &way.name,
            NONE,
            vec![step(Left, backwards)],
        );
        let mut swapped = pieces(Left, 3000, 1400);
        swapped.swap(1, 2);
        self.add(
            &name("later fragments out of order"),
            &way.name,
            NONE,
            vec![step(Left, swapped)],
        );
        let first = pieces(Left, 3000, 1400);
        self.add(
            &name("first fragment alone"),
            &way.name,
            NONE,
            vec![step(Left, first[..1].to_vec())],
        );
        let later = pieces(Left, 3000, 1400);
        self.add(
            &name("later fragments alone"),
            &way.name,
            NONE,
            vec![step(Left, later[1..].to_vec())],
        );
    }

    fn routing(&mut self, carrier: Carrier, way: &Way) {
        let carried = match carrier {
            Carrier::Tcp => "tcp",
            Carrier::Udp => "udp",
            Carrier::Icmp => "icmp",
        };
        let name = |what: &str| format!("{carried} {what}");
        let first = packet(carrier, way, Left, 20);
        let with_hops = |hops: u8| {
            let mut l3 = first.clone();
            set_hops(&mut l3, hops);
            vec![Step::Send(way.left, vec![l3])]
        };
        self.add(
            &name("with the last hop but one"),
            &way.name,
            NONE,
            with_hops(2),
        );
        let mut steps = vec![said(carrier, way, Left, 20)];
        steps.extend(with_hops(1));
        self.add(&name("without hops left"), &way.name, NONE, steps);
        if carrier != Carrier::Tcp {
            let mut l3 = packet(carrier, way, Right, 20);
            set_hops(&mut l3, 1);
            let steps = vec![
                said(carrier, way, Left, 20),
                Step::Send(way.right, vec![l3]),
            ];
            self.add(&name("answered without hops left"), &way.name, NONE, steps);
        }
        if way.left != Who::Remote && way.right == Who::Remote && carrier != Carrier::Tcp {
            let steps = vec![said(carrier, way, Left, 20), said(carrier, way, Left, 1600)];
            self.add(&name("too long for the way out"), &way.name, NONE, steps);
            if way.is_v4() {
                let mut l3 = packet(carrier, way, Left, 1600);
                l3[6] = 0;
                mend(&mut l3);
                let steps = vec![Step::Send(way.left, vec![l3])];
                self.add(
                    &name("too long for the way out, to be split"),
                    &way.name,
                    NONE,
                    steps,
                );
            }
        }
        if way.is_v4() {
            let body = &first[20..];
            for (what, options) in [
                ("no operation", vec![1, 1, 1, 0]),
                ("router alert", vec![148, 4, 0, 0]),
                ("record route", vec![7, 7, 4, 0, 0, 0, 0, 0]),
                ("loose source route", vec![131, 7, 4, 198, 18, 0, 1, 0]),
            ] {
                let (IpAddr::V4(a), IpAddr::V4(b)) = (way.l.0, way.l_peer.0) else {
                    continue;
                };
                let mut header = V4::new(a, b, first[9]);
                header.options = options;
                let step = Step::Send(way.left, vec![header.build(body)]);
                self.add(
                    &name(&format!("with IP option {what}")),
                    &way.name,
                    NONE,
                    vec![step],
                );
            }
            let mut wrong = first.clone();
            wrong[10] ^= 1;
            let steps = vec![Step::Send(way.left, vec![wrong])];
            self.add(&name("with a wrong IP checksum"), &way.name, NONE, steps);
            let mut marked = first;
            marked[1] = 0xb9;
            mend(&mut marked);
            self.add(
                &name("with a class of service"),
                &way.name,
                NONE,
                vec![Step::Send(way.left, vec![marked])],
            );
        } else {
            for (what, header) in [("destination options", 60), ("hop-by-hop options", 0)] {
                let (IpAddr::V6(a), IpAddr::V6(b)) = (way.l.0, way.l_peer.0) else {
                    continue;
                };
                let mut body = vec![first[6], 0, 1, 4, 0, 0, 0, 0];
                body.extend_from_slice(&first[40..]);
                let step = Step::Send(way.left, vec![v6(a, b, header, 64, &body)]);
                self.add(&name(&format!("with {what}")), &way.name, NONE, vec![step]);
            }
            let mut marked = first;
            marked[0..4].copy_from_slice(&[0x6b, 0x91, 0x23, 0x45]);
            self.add(
                &name("with a class of service"),
                &way.name,
                NONE,
                vec![Step::Send(way.left, vec![marked])],
            );
        }
    }

    /// Ports that two want, that are not allowed, that were another's.
    fn ports(&mut self) {
        use crate::beside::SECOND;
        for (family, remote, other, seen, public, own) in [
            (0, REMOTE, LISTED, NAT4, PUBLIC4, ONE_TO_ONE4),
            (1, REMOTE6, LISTED6, NAT6, PUBLIC6, ONE_TO_ONE6),
        ] {
            let version = if family == 0 { "4" } else { "6" };
            let at = |who: Who, port| end(who.addresses()[family], port);
            let far = end(remote, 53);
            let datagram = |who, from: End, to: End| {
                Step::Send(who, vec![udp(from.0, to.0, from.1, to.1, b"a datagram")])
            };
            let syn = |who, from: End, to: End| {
                Step::Send(who, vec![segment(from, to, SYN, 9, 0, &[], 0)])
            };
            let (c, d) = (at(Who::C, 40_000), at(Who::D, 40_000));
            let (one, two) = (end(seen, 40_000), end(seen, SECOND));
            let mut add = |what: &str, timeouts, steps| self.add(what, version, timeouts, steps);
            add(
                "udp two want one port for one far end",
                NONE,
                vec![
                    datagram(Who::C, c, far),
                    datagram(Who::D, d, far),
                    datagram(Who::Remote, far, one),
                    datagram(Who::Remote, far, two),
                    datagram(Who::C, c, far),
                    datagram(Who::D, d, far),
                ],
            );
            add(
                "udp two want one port for two far ends",
                NONE,
                vec![
                    datagram(Who::C, c, far),
                    datagram(Who::D, d, end(other, 53)),
                    datagram(Who::Remote, far, one),
                    datagram(Who::Remote, end(other, 53), two),
                ],
            );
            add(
                "tcp two want one port for one far end",
                NONE,
                vec![
                    syn(Who::C, c, far),
                    syn(Who::D, d, far),
                    Step::Send(
                        Who::Remote,
                        vec![segment(far, two, SYN | ACK, 77, 10, &[], 0)],
                    ),
                    Step::Send(
                        Who::Remote,
                        vec![segment(far, one, SYN | ACK, 77, 10, &[], 0)],
                    ),
                ],
            );
            add(
                "tcp two want one port for two far ends",
                NONE,
                vec![syn(Who::C, c, far), syn(Who::D, d, end(other, 53))],
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
                    Who::Remote,
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
                "icmp two want one identifier",
                NONE,
                vec![ask(Who::C, c), ask(Who::D, d), answer(one), answer(two)],
            );
            add("icmp identifier below the range", NONE, {
                let low = at(Who::C, 7);
                vec![ask(Who::C, low), answer(end(seen, 7))]
            });
            add("udp one port for many far ends", NONE, {
                let mut steps = Vec::new();
                for port in 1000..1010 {
                    steps.push(datagram(Who::C, c, end(remote, port)));
                    steps.push(datagram(Who::Remote, end(remote, port), one));
                }
                steps.push(datagram(Who::Remote, end(remote, 1010), one));
                steps.push(datagram(Who::C, c, end(other, 9)));
                steps.push(datagram(Who::Remote, end(other, 9), one));
                steps
            });
            for port in [1, 53, 700, 1023] {
                add(
                    &format!("udp from port {port}"),
                    NONE,
                    vec![
                        datagram(Who::C, at(Who::C, port), far),
                        datagram(Who::Remote, far, end(seen, port)),
                        datagram(Who::C, at(Who::C, port), far),
                    ],
                );
            }
            for port in [1024, 65_535] {
                add(
                    &format!("tcp from port {port}"),
                    NONE,
                    vec![
                        syn(Who::C, at(Who::C, port), far),
                        Step::Send(
                            Who::Remote,
                            vec![segment(far, end(seen, port), SYN | ACK, 77, 10, &[], 0)],
                        ),
                    ],
                );
            }
            add(
                "udp port of one who expired",
                UDP_SHORT,
                vec![
                    datagram(Who::C, c, far),
                    datagram(Who::Remote, far, one),
                    Step::Silence {
                        seconds: 310,
                        expires: true,
                    },
                    datagram(Who::Remote, far, one),
                    datagram(Who::C, c, far),
                    datagram(Who::Remote, far, one),
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
                    vec![syn(Who::Remote, client, to)],
                );
                add(
                    &format!("udp to {what}"),
                    NONE,
                    vec![datagram(Who::Remote, client, to)],
                );
                add(
                    &format!("tcp from inside to {what}"),
                    NONE,
                    vec![syn(Who::C, c, to)],
                );
                add(
                    &format!("udp from inside to {what}"),
                    NONE,
                    vec![datagram(Who::C, c, to)],
                );
            }
            for port in 5000..=5009 {
                let l = end(public, port);
                add(
                    &format!("udp port {port} of a range"),
                    NONE,
                    vec![
                        datagram(Who::Remote, client, l),
                        datagram(Who::A, at(Who::A, port + 1000), client),
                    ],
                );
            }
            add(
                "tcp from 22 of a machine with its own address",
                NONE,
                vec![syn(Who::B, at(Who::B, 22), far)],
            );
            add(
                "tcp from inside's addresses, outside",
                NONE,
                vec![syn(Who::Remote, at(Who::D, 9), end(public, 443))],
            );
            add(
                "udp between two by their external ends",
                NONE,
                vec![
                    datagram(Who::C, c, far),
                    datagram(Who::D, at(Who::D, 41_000), far),
                    datagram(Who::C, c, end(seen, 41_000)),
                    datagram(Who::D, at(Who::D, 41_000), one),
                    datagram(Who::C, c, end(seen, 41_000)),
                ],
            );
            add(
                "udp by rule and by mapping at once",
                NONE,
                vec![
                    datagram(Who::Remote, client, end(public, 5000)),
                    datagram(Who::A, at(Who::A, 6000), client),
                    datagram(Who::A, at(Who::A, 6000), far),
                    datagram(Who::Remote, far, end(seen, 6000)),
                    datagram(Who::Remote, client, end(public, 5000)),
                ],
            );
        }
    }

    /// What is neither TCP, UDP nor ICMP.
    fn others(&mut self) {
        for way in ways(Carrier::Icmp) {
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
                let l3 = ip_packet(way.l.0, way.l_peer.0, protocol, body);
                self.add(name, &way.name, NONE, vec![Step::Send(way.left, vec![l3])]);
            }
        }
    }
}

/// What a side of the carrier says.
fn packet(carrier: Carrier, way: &Way, side: Side, len: usize) -> Vec<u8> {
    let (from, to) = way.sends(side);
    between(carrier, side, from, to, len)
}

/// What a side hears the other say.
fn heard(carrier: Carrier, way: &Way, side: Side) -> Vec<u8> {
    let (from, to) = way.hears(side);
    between(carrier, side.other(), from, to, 40)
}

fn between(carrier: Carrier, side: Side, from: End, to: End, len: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
    match carrier {
        Carrier::Udp => udp(from.0, to.0, from.1, to.1, &data),
        Carrier::Tcp => segment(
            from,
            to,
            SYN | if side == Right { ACK } else { 0 },
            1,
            0,
            &[],
            0,
        ),
        Carrier::Icmp => {
            let kind = match (side, from.0.is_ipv4()) {
                (Left, true) => 8,
                (Left, false) => 128,
                (Right, true) => 0,
                (Right, false) => 129,
            };
            let id = if side == Left { from.1 } else { to.1 };
            let mut rest = id.to_be_bytes().to_vec();
            rest.extend_from_slice(&[0, 7]);
            rest.extend_from_slice(&data);
            icmp(from.0, to.0, kind, 0, &rest)
        }
    }
}

fn said(carrier: Carrier, way: &Way, side: Side, len: usize) -> Step {
    Step::Send(way.who(side), vec![packet(carrier, way, side, len)])
}

/// An error of a type and code that quotes this; what the type has in its second word is 1400, an MTU.
fn error(from: IpAddr, to: IpAddr, (kind, code): (u8, u8), quote: &[u8]) -> Vec<u8> {
    let mut rest = match (from.is_ipv4(), kind, code) {
        (true, 3, 4) | (false, 2, _) => vec![0, 0, 5, 120],
        (true, 5, _) => vec![198, 18, 0, 9],
        (true, 12, _) => vec![8, 0, 0, 0],
        (false, 4, _) => vec![0, 0, 0, 6],
        _ => vec![0; 4],
    };
    rest.extend_from_slice(quote);
    let message = icmp_message(from, to, kind, code, &rest);
    ip_packet(from, to, if from.is_ipv4() { 1 } else { 58 }, &message)
}

/// Fragments of an IP packet with `each` bytes behind their IP headers, a multiple of eight; the last with the rest.
fn cut(l3: &[u8], each: usize, id: u16) -> Vec<Vec<u8>> {
    let v4 = l3[0] >> 4 == 4;
    let body = &l3[if v4 { 20 } else { 40 }..];
    let mut out = Vec::new();
    for (i, piece) in body.chunks(each).enumerate() {
        let (at, more) = (i * each, (i + 1) * each < body.len());
        if v4 {
            let mut fragment = l3[..20].to_vec();
            fragment[2..4].copy_from_slice(&((20 + piece.len()) as u16).to_be_bytes());
            fragment[4..6].copy_from_slice(&id.to_be_bytes());
            let field = (at / 8) as u16 | if more { 0x2000 } else { 0 };
            fragment[6..8].copy_from_slice(&field.to_be_bytes());
            fragment.extend_from_slice(piece);
            mend(&mut fragment);
            out.push(fragment);
        } else {
            let mut fragment = l3[..40].to_vec();
            fragment[4..6].copy_from_slice(&((8 + piece.len()) as u16).to_be_bytes());
            fragment[6] = 44;
            fragment.extend_from_slice(&[l3[6], 0]);
            fragment.extend_from_slice(&(at as u16 | u16::from(more)).to_be_bytes());
            fragment.extend_from_slice(&u32::from(id).to_be_bytes());
            fragment.extend_from_slice(piece);
            out.push(fragment);
        }
    }
    out
}

/// Makes the checksum of an IPv4 header right.
fn mend(l3: &mut [u8]) {
    let header = usize::from(l3[0] & 15) * 4;
    l3[10..12].fill(0);
    let check = checksum(&l3[..header]);
    l3[10..12].copy_from_slice(&check.to_be_bytes());
}

fn set_hops(l3: &mut [u8], hops: u8) {
    if l3[0] >> 4 == 4 {
        l3[8] = hops;
        mend(l3);
    } else {
        l3[7] = hops;
    }
}
