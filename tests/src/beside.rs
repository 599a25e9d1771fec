//! Sequences of packets through the programs and through a Linux router, side by side.
//!
//! ```text
//!   Sequence ─▶ Ours (harness)     ─▶ what comes out after each step, where ┐
//!            └▶ Kernel (a Router)  ─▶ likewise                              ┴─▶ equal, or how they differ
//! ```
//!
//! What comes out is compared byte for byte, but for this:
//!
//! - An external port or identifier that could not be kept is another on each side: each is given the name that the
//!   sequence has for it, and a name has one port and a port one name, or the step says so.
//! - Fragments are put together within a step: the kernel does that before it translates and sends the whole if it
//!   fits; a receiver sees the same (RFC 791 section 3.2, RFC 8200 section 4.5).
//! - What Ethernet padded a packet with is no part of it.
//! - An ICMP error that the router makes itself is compared by addresses, type, code, MTU and the first eight bytes
//!   behind the header that it quotes: length of the quote, TTL, type of service and identification are the maker's
//!   (RFC 792, RFC 1812 section 4.3.2, RFC 4443 section 2.4).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io,
    net::IpAddr,
    time::Duration,
};

use appliance_common::{
    counters::Counter,
    nat::{Flow, FlowKey, ticks},
};

use crate::{
    dump,
    harness::{Harness, SharedHarness},
    nat::{Fate, Place, inside, outside},
    packet::{Mac, checksum, frame, ip, l2},
    router::{Port, Router},
    world::{A_MAC, B_MAC, NAT4, NAT6, NET1, NEXT_HOP_MAC, TRUNK, TRUNK_MAC, UPLINK_MAC, World},
};

/// A host inside, or whoever is outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// Host 10: rules lead to it.
    A,
    /// Host 11: it has a public address to itself.
    B,
    /// Host 30.
    C,
    /// Host 31.
    D,
    /// The outside.
    Remote,
}

impl Who {
    /// Those inside.
    pub const HOSTS: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    /// Its MAC address.
    #[must_use]
    pub const fn mac(self) -> Mac {
        match self {
            Self::A => A_MAC,
            Self::B => B_MAC,
            Self::C => [0x02, 0, 0, 0xaa, 0, 0x1e],
            Self::D => [0x02, 0, 0, 0xaa, 0, 0x1f],
            Self::Remote => NEXT_HOP_MAC,
        }
    }

    /// Its addresses inside.
    #[must_use]
    pub const fn addresses(self) -> [&'static str; 2] {
        match self {
            Self::A => ["10.1.0.10", "2001:db8:1::10"],
            Self::B => ["10.1.0.11", "2001:db8:1::11"],
            Self::C => ["10.1.0.30", "2001:db8:1::30"],
            Self::D => ["10.1.0.31", "2001:db8:1::31"],
            Self::Remote => [crate::world::REMOTE, crate::world::REMOTE6],
        }
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// IP packets are sent, one right behind the other; one, or the fragments of one.
    Send(Who, Vec<Vec<u8>>),
    /// Nothing happens: for so many seconds of the standards' timeouts. The kernel's are shortened by
    /// [`Sequence::timeouts`], and it waits for [`EXPIRED`] where `expires`.
    Silence {
        /// Seconds, for us.
        seconds: u32,
        /// Whether the kernel's shortened timeouts are to pass.
        expires: bool,
    },
}

/// A bit more than the kernel's shortened timeout of a second.
pub const EXPIRED: Duration = Duration::from_millis(1150);

/// Packets with a name.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// The name: unique.
    pub name: String,
    /// What happens.
    pub steps: Vec<Step>,
    /// Timeouts of the kernel that are a second for it: names below `netfilter/nf_conntrack_`.
    pub timeouts: &'static [&'static str],
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Out {
    /// An IP packet, to whom.
    Packet(Who, Vec<u8>),
    /// The router's own ICMP error, to whom, as far as it is compared.
    OwnError(Who, Vec<u8>),
    /// An external port stands for two endpoints, or an endpoint has two.
    Clash(&'static str),
}

impl Out {
    /// For a person.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Packet(who, bytes) => {
                format!("to {who:?}, {} bytes\n{}", bytes.len(), dump::hex(bytes))
            }
            Self::OwnError(who, bytes) => {
                format!("an error of its own to {who:?}\n{}", dump::hex(bytes))
            }
            Self::Clash(what) => format!("{what}\n"),
        }
    }
}

/// How a sequence differs first.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The step's number.
    pub step: usize,
    /// What came out of the programs.
    pub ours: Vec<Out>,
    /// Why nothing did.
    pub dropped: Vec<Counter>,
    /// What came out of the router.
    pub kernel: Vec<Out>,
}

impl Difference {
    /// For a person.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("step {}\n ours, dropped {:?}:\n", self.step, self.dropped);
        for o in &self.ours {
            let _ = write!(out, "  {}", o.text());
        }
        let _ = writeln!(out, " kernel:");
        for o in &self.kernel {
            let _ = write!(out, "  {}", o.text());
        }
        out
    }
}

/// Both, and what they have in common.
#[derive(Debug)]
pub struct Beside {
    ours: SharedHarness,
    kernel: Router,
    patience: Patience,
}

/// How long the router is waited for. Mostly it is done before the packet counts as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// To find what may differ: a machine that was held up looks like a difference.
    Little,
    /// To be sure.
    Much,
}

impl Beside {
    /// Both with the hosts of [`Who`]. The calling thread moves to the harness's namespace. `None` after saying
    /// why, where that is impossible.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[must_use]
    pub fn new() -> Option<Self> {
        if !Router::is_possible() {
            crate::skip("nft is missing; run `cargo xtask setup`");
            return None;
        }
        let mut world = World::nat();
        for who in [Who::C, Who::D] {
            for address in who.addresses() {
                world.neighbour(NET1, address, TRUNK, who.mac(), TRUNK_MAC, 101, 0);
            }
        }
        let ours = Harness::new(world)?;
        let hosts: Vec<_> = Who::HOSTS
            .iter()
            .flat_map(|who| who.addresses().map(|a| (a, who.mac())))
            .collect();
        let kernel = Router::new(&hosts).unwrap_or_else(|e| panic!("the router: {e}"));
        Some(Self {
            ours,
            kernel,
            patience: Patience::Much,
        })
    }

    /// Runs a sequence through both, from nothing.
    ///
    /// # Errors
    ///
    /// How they differ first.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn run(&mut self, sequence: &Sequence, patience: Patience) -> Result<(), Box<Difference>> {
        self.patience = patience;
        // What came late to the one before.
        let zero = Duration::ZERO;
        let _ = self.kernel.receive(0, zero, zero).expect("the router");
        self.ours.clear_connections().expect("maps");
        self.kernel.forget().expect("conntrack");
        let shortened = sequence.timeouts.iter().map(|name| {
            let path = format!("netfilter/nf_conntrack_{name}");
            let was = self.kernel.get(&path).unwrap_or_else(|e| panic!("{e}"));
            self.kernel
                .set(&path, "1")
                .unwrap_or_else(|e| panic!("{e}"));
            (path, was)
        });
        let shortened: Vec<_> = shortened.collect();
        let result = self.steps(sequence);
        for (path, was) in shortened {
            self.kernel
                .set(&path, was.trim())
                .unwrap_or_else(|e| panic!("{e}"));
        }
        result
    }

    fn steps(&mut self, sequence: &Sequence) -> Result<(), Box<Difference>> {
        let mut symbols = Symbols::default();
        let (mut names, mut kernel_names) = (Names::default(), Names::default());
        for (number, step) in sequence.steps.iter().enumerate() {
            let (who, packets) = match step {
                Step::Silence { seconds, expires } => {
                    self.age(*seconds);
                    if *expires {
                        std::thread::sleep(EXPIRED);
                    }
                    continue;
                }
                Step::Send(who, packets) => (*who, packets),
            };
            let symbol = (who != Who::Remote)
                .then(|| symbols.of(&packets[0]))
                .flatten();
            let (raw, dropped) = self.through_ours(who, packets, &names);
            let expected = raw.len().min(1);
            let ours = names.canonical(packets, raw, symbol);
            let raw = self
                .through_kernel(who, packets, &kernel_names, expected)
                .expect("the router");
            let kernel = kernel_names.canonical(packets, raw, symbol);
            if ours != kernel {
                return Err(Box::new(Difference {
                    step: number,
                    ours,
                    dropped,
                    kernel,
                }));
            }
        }
        Ok(())
    }

    /// Makes every connection older.
    fn age(&mut self, seconds: u32) {
        let by = ticks(u64::from(seconds) * 1_000_000_000);
        for map in ["FLOWS", "OPENING", "FRAGMENTS"] {
            for (key, mut flow) in self.ours.entries::<FlowKey, Flow>(map).expect("map") {
                flow.last_seen = flow.last_seen.wrapping_sub(by);
                self.ours.put(map, key, flow).expect("map");
            }
        }
    }

    fn through_ours(
        &mut self,
        who: Who,
        packets: &[Vec<u8>],
        names: &Names,
    ) -> (Vec<(Who, Vec<u8>)>, Vec<Counter>) {
        let (mut out, mut dropped) = (Vec::new(), Vec::new());
        for packet in packets {
            let packet = names.actual(packet);
            let fate = if who == Who::Remote {
                outside(&mut self.ours, &packet)
            } else {
                inside(&mut self.ours, Place::trunk(101, who.mac()), &packet)
            };
            match fate {
                Fate::Outside(l3) => out.push((Who::Remote, trimmed(&l3))),
                Fate::Host(frame) => {
                    let head = l2(&frame).expect("a frame");
                    out.push((receiver(&frame), trimmed(&frame[head.l3..])));
                }
                Fate::Dropped(reason) => dropped.push(reason),
                Fate::Passed => panic!("passed to the kernel, whom it isn't for"),
            }
        }
        (out, dropped)
    }

    fn through_kernel(
        &self,
        who: Who,
        packets: &[Vec<u8>],
        names: &Names,
        expected: usize,
    ) -> io::Result<Vec<(Who, Vec<u8>)>> {
        for packet in packets {
            let packet = names.actual(packet);
            if who == Who::Remote {
                self.kernel
                    .send(Port::Outside, &frame(UPLINK_MAC, who.mac(), &[], &packet))?;
            } else {
                self.kernel
                    .send(Port::Inside, &frame(TRUNK_MAC, who.mac(), &[], &packet))?;
            }
        }
        let (patience, quiet) = match self.patience {
            Patience::Little => (20, 1),
            Patience::Much => (1000, 20),
        };
        let [patience, quiet] = [patience, quiet].map(Duration::from_millis);
        let frames = self.kernel.receive(expected, patience, quiet)?;
        Ok(frames
            .into_iter()
            .map(|(_, frame)| (receiver(&frame), trimmed(&frame[14..])))
            .collect())
    }
}

/// An IP packet without what Ethernet padded it with, which the kernel cuts off.
fn trimmed(l3: &[u8]) -> Vec<u8> {
    let total = if l3[0] >> 4 == 4 {
        usize::from(be16(l3, 2))
    } else {
        40 + usize::from(be16(l3, 4))
    };
    l3[..total.min(l3.len())].to_vec()
}

/// To whom a frame is.
fn receiver(frame: &[u8]) -> Who {
    Who::HOSTS
        .into_iter()
        .chain([Who::Remote])
        .find(|who| frame[..6] == who.mac())
        .unwrap_or_else(|| panic!("to nobody:\n{}", dump::hex(frame)))
}

/// Protocol, address, port.
type Endpoint = (u8, IpAddr, u16);

/// The names that a sequence has for external ports: the endpoint's own port, if no other has that name yet.
#[derive(Debug, Default)]
struct Symbols {
    of: BTreeMap<Endpoint, u16>,
    used: BTreeSet<(u8, bool, u16)>,
}

/// The first name of a port that is another endpoint's, too: the second endpoint's name. Sequences use it to
/// answer that.
pub const SECOND: u16 = 61_000;

impl Symbols {
    fn of(&mut self, packet: &[u8]) -> Option<u16> {
        let view = View::of(packet)?;
        let (address, at) = view.source?;
        let inner = (view.protocol, address, be16(packet, at));
        if let Some(symbol) = self.of.get(&inner) {
            return Some(*symbol);
        }
        let mut symbol = inner.2;
        let mut next = SECOND;
        while !self.used.insert((view.protocol, address.is_ipv6(), symbol)) {
            symbol = next;
            next += 1;
        }
        self.of.insert(inner, symbol);
        Some(symbol)
    }
}

/// What external ports one side has given to names.
#[derive(Debug, Default)]
struct Names {
    actual: BTreeMap<Endpoint, u16>,
    symbol: BTreeMap<Endpoint, u16>,
}

impl Names {
    /// What came out of `sent`, with the sequence's names and in order; `symbol` is that of the sender's endpoint.
    fn canonical(
        &mut self,
        sent: &[Vec<u8>],
        out: Vec<(Who, Vec<u8>)>,
        symbol: Option<u16>,
    ) -> Vec<Out> {
        let mut all = Vec::new();
        let about_error = View::of(&sent[0]).is_some_and(|v| v.quoted.is_some());
        for (who, packet) in reassembled(out) {
            if let Some(view) = View::of(&packet)
                && let (Some((address, at)), Some(symbol)) = (view.source, symbol)
                && [ip(NAT4), ip(NAT6)].contains(&address)
            {
                let port = be16(&packet, at);
                let new = self.symbol.insert((view.protocol, address, port), symbol);
                if new.is_some_and(|old| old != symbol) {
                    all.push(Out::Clash("two endpoints are seen as one"));
                }
                let new = self.actual.insert((view.protocol, address, symbol), port);
                if new.is_some_and(|old| old != port) {
                    all.push(Out::Clash("an endpoint is seen as two"));
                }
            }
            let packet = renamed(&packet, &self.symbol);
            match own_error(&packet).filter(|_| !about_error) {
                Some(error) => all.push(Out::OwnError(who, error)),
                None => all.push(Out::Packet(who, packet)),
            }
        }
        all.sort();
        all
    }

    /// A packet as it is to be sent for a sequence's.
    fn actual(&self, packet: &[u8]) -> Vec<u8> {
        renamed(packet, &self.actual)
    }
}

/// What of an ICMP error is compared, if it is one.
fn own_error(l3: &[u8]) -> Option<Vec<u8>> {
    let view = View::of(l3)?;
    let quoted = view.quoted?;
    let header = if l3[0] >> 4 == 4 {
        usize::from(l3[quoted] & 15) * 4
    } else {
        40
    };
    let mut out = if l3[0] >> 4 == 4 {
        l3[12..20].to_vec()
    } else {
        l3[8..40].to_vec()
    };
    out.extend_from_slice(&l3[view.l4..view.l4 + 2]);
    out.extend_from_slice(&l3[view.l4 + 4..view.l4 + 8]);
    out.extend_from_slice(l3.get(quoted..quoted + header + 8)?);
    Some(out)
}

/// Where things are in an IP packet, whole or first fragment.
#[derive(Debug)]
struct View {
    protocol: u8,
    l4: usize,
    /// The source's address and where its port is.
    source: Option<(IpAddr, usize)>,
    /// The destination's.
    destination: Option<(IpAddr, usize)>,
    /// Where the checksum is.
    check: usize,
    /// Where the IP packet begins that an error quotes.
    quoted: Option<usize>,
}

impl View {
    fn of(l3: &[u8]) -> Option<Self> {
        let (source, destination) = addresses(l3)?;
        let (protocol, l4) = if l3[0] >> 4 == 4 {
            if be16(l3, 6) & 0x1fff != 0 {
                return None;
            }
            (l3[9], usize::from(l3[0] & 15) * 4)
        } else if l3[6] == 44 {
            if be16(l3, 42) & 0xfff8 != 0 {
                return None;
            }
            (l3[40], 48)
        } else {
            (l3[6], 40)
        };
        if l3.len() < l4 + 8 {
            return None;
        }
        let mut view = Self {
            protocol,
            l4,
            source: None,
            destination: None,
            check: l4 + 2,
            quoted: None,
        };
        match (protocol, l3[l4]) {
            (6 | 17, _) => {
                view.source = Some((source, l4));
                view.destination = Some((destination, l4 + 2));
                view.check = l4 + if protocol == 6 { 16 } else { 6 };
            }
            (1, 8 | 13) | (58, 128) => view.source = Some((source, l4 + 4)),
            (1, 0 | 14) | (58, 129) => view.destination = Some((destination, l4 + 4)),
            (1, 3 | 4 | 5 | 11 | 12) | (58, 1..=4) => view.quoted = Some(l4 + 8),
            _ => {}
        }
        Some(view)
    }
}

fn addresses(l3: &[u8]) -> Option<(IpAddr, IpAddr)> {
    if *l3.first()? >> 4 == 4 {
        let a: [u8; 4] = l3.get(12..16)?.try_into().ok()?;
        let b: [u8; 4] = l3.get(16..20)?.try_into().ok()?;
        Some((a.into(), b.into()))
    } else {
        let a: [u8; 16] = l3.get(8..24)?.try_into().ok()?;
        let b: [u8; 16] = l3.get(24..40)?.try_into().ok()?;
        Some((a.into(), b.into()))
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The packet with other ports at the endpoints of `names`, in what it quotes, too. Checksums take the change in
/// (RFC 1624 equation 3), so that a wrong one stays wrong.
fn renamed(l3: &[u8], names: &BTreeMap<Endpoint, u16>) -> Vec<u8> {
    let mut out = l3.to_vec();
    rename(&mut out, names);
    out
}

/// Returns the 16-bit words that changed, old and new.
fn rename(l3: &mut [u8], names: &BTreeMap<Endpoint, u16>) -> Vec<(u16, u16)> {
    let Some(view) = View::of(l3) else {
        return Vec::new();
    };
    let mut changed = Vec::new();
    for (address, at) in view.source.into_iter().chain(view.destination) {
        let old = be16(l3, at);
        if let Some(new) = names.get(&(view.protocol, address, old))
            && *new != old
        {
            l3[at..at + 2].copy_from_slice(&new.to_be_bytes());
            changed.push((old, *new));
        }
    }
    if let Some(quoted) = view.quoted {
        changed.extend(rename(&mut l3[quoted..], names));
    }
    let has_check =
        l3.len() >= view.check + 2 && (view.protocol != 17 || be16(l3, view.check) != 0);
    if !changed.is_empty() && has_check {
        let old = be16(l3, view.check);
        let mut sum = u32::from(!old);
        for (from, to) in &changed {
            sum += u32::from(!from) + u32::from(*to);
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let new = !(sum as u16);
        l3[view.check..view.check + 2].copy_from_slice(&new.to_be_bytes());
        changed.push((old, new));
    }
    changed
}

/// One receiver's fragments of one datagram: offset, whether more follow, packet.
type Pieces = Vec<(usize, bool, Vec<u8>)>;

/// The packets with those fragments put together that make a whole.
fn reassembled(packets: Vec<(Who, Vec<u8>)>) -> Vec<(Who, Vec<u8>)> {
    let mut out = Vec::new();
    let mut pieces: BTreeMap<(Who, Vec<u8>), Pieces> = BTreeMap::new();
    for (who, l3) in packets {
        let (key, offset, more) = if l3[0] >> 4 == 4 && be16(&l3, 6) & 0x3fff != 0 {
            let key = [&l3[4..6], &l3[9..10], &l3[12..20]].concat();
            let field = be16(&l3, 6);
            (key, usize::from(field & 0x1fff) * 8, field & 0x2000 != 0)
        } else if l3[0] >> 4 == 6 && l3[6] == 44 {
            let key = [&l3[8..40], &l3[44..48]].concat();
            let field = be16(&l3, 42);
            (key, usize::from(field & 0xfff8), field & 1 != 0)
        } else {
            out.push((who, l3));
            continue;
        };
        pieces
            .entry((who, key))
            .or_default()
            .push((offset, more, l3));
    }
    for ((who, _), mut pieces) in pieces {
        pieces.sort();
        match joined(&pieces) {
            Some(whole) => out.push((who, whole)),
            None => out.extend(pieces.into_iter().map(|(_, _, l3)| (who, l3))),
        }
    }
    out
}

fn joined(pieces: &[(usize, bool, Vec<u8>)]) -> Option<Vec<u8>> {
    let (_, _, first) = pieces.first()?;
    let v4 = first[0] >> 4 == 4;
    let header = if v4 {
        usize::from(first[0] & 15) * 4
    } else {
        48
    };
    let mut body = Vec::new();
    for (i, (offset, more, l3)) in pieces.iter().enumerate() {
        if *offset != body.len() || *more == (i + 1 == pieces.len()) {
            return None;
        }
        let header = if v4 { usize::from(l3[0] & 15) * 4 } else { 48 };
        body.extend_from_slice(&l3[header..]);
    }
    if v4 {
        let mut whole = first[..header].to_vec();
        whole[2..4].copy_from_slice(&((header + body.len()) as u16).to_be_bytes());
        whole[6..8].fill(0);
        whole[10..12].fill(0);
        let check = checksum(&whole);
        whole[10..12].copy_from_slice(&check.to_be_bytes());
        whole.extend_from_slice(&body);
        return Some(whole);
    }
    let mut whole = first[..40].to_vec();
    whole[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
    whole[6] = first[40];
    whole.extend_from_slice(&body);
    Some(whole)
}
