//! Random orders, packets and datagrams against a model that knows the rules by their names and
//! nothing of the tables: what the pipeline sends is what the model sends, and every frame is
//! counted once.
//!
//! TCP is left out: what is kept of it has tests of its own, and what is changed in it is held
//! against the programs in `tests/tests/packets/workers.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use appliance_common::{
    addr::{from_ip, to_ip},
    maps::{Mode, network_flags},
};
use proptest::prelude::*;
use tunnel::Random as _;

use appliance_common::maps::{Neighbour, Tenant};

use crate::pipeline::*;
use crate::testing::{ACCESS, Memory, Seeded, TestPeer, UPLINK, around, at, packet, to_seal};

const VNIS: [u32; 3] = [1001, 2001, 0x00ff_ffff];
const SLOTS: [u32; 3] = [0, 7, 4095];
/// Two appliances and two WireGuard peers.
const PEERS: u32 = 4;
const LOCAL: &str = "203.0.113.5:6180";

/// Every network has the same prefixes, and the same addresses may be failed over in each.
fn hosts() -> Vec<IpAddr> {
    [
        "10.1.0.10",
        "10.1.0.11",
        "10.1.0.77",
        "10.1.0.1",
        "10.9.9.9",
        "2001:db8:1::10",
        "2001:db8:1::11",
        "2001:db8:9::9",
    ]
    .map(|text| text.parse().expect("an address"))
    .to_vec()
}

/// And addresses that are never carried.
fn nobodies() -> Vec<IpAddr> {
    [
        "10.1.0.0",
        "10.1.0.255",
        "0.0.0.0",
        "127.0.0.1",
        "169.254.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:10.1.0.10",
        "fe80::1",
        "ff02::1",
    ]
    .map(|text| text.parse().expect("an address"))
    .to_vec()
}

struct ModelNetwork {
    vni: u32,
    tenant: u32,
    peer: u32,
    provider: bool,
    router: bool,
}

#[derive(Default)]
struct ModelPeer {
    /// Of a WireGuard peer: network and addresses.
    member: Option<(u32, Vec<(IpAddr, u8)>)>,
    has_path: bool,
    /// The session it is sent to by, as an index of `test_peers`.
    tx: Option<usize>,
    rx: BTreeSet<usize>,
    max_datagram: usize,
}

#[derive(Default)]
struct Model {
    networks: BTreeMap<u32, ModelNetwork>,
    partial: BTreeSet<u32>,
    endpoints: BTreeSet<(u32, IpAddr)>,
    /// To a host number by network and address.
    neighbours: BTreeMap<(u32, IpAddr), u8>,
    members: BTreeMap<u32, Vec<(IpAddr, u8, u32)>>,
    peers: BTreeMap<u32, ModelPeer>,
}

/// The verdict on a packet.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Dropped,
    /// To a host on this side, by number.
    Host(u8, Vec<u8>),
    UnresolvedPacket(u32, IpAddr, Vec<u8>),
}

fn within(net: (IpAddr, u8), address: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)) << 96,
        IpAddr::V6(ip) => u128::from(ip),
    };
    net.0.is_ipv4() == address.is_ipv4()
        && (net.1 == 0 || (bits(net.0) ^ bits(address)) >> (128 - u32::from(net.1)) == 0)
}

fn on_link(address: IpAddr) -> bool {
    let nets = [("10.1.0.0", 24), ("2001:db8:1::", 64)];
    nets.iter()
        .any(|(net, len)| within((net.parse().expect("an address"), *len), address))
}

/// Whether one host may have the address and speak beyond its link with it.
fn carried(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let first = a.octets()[0];
            first != 0 && first < 224 && !a.is_loopback() && !a.is_link_local()
        }
        IpAddr::V6(a) => {
            let segments = a.segments();
            segments[..4] != [0; 4] && segments[0] & 0xffc0 != 0xfe80 && segments[0] < 0xff00
        }
    }
}

/// Source, destination and the packet itself, without what is behind it.
fn read(bytes: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let word =
        |at: usize| Some(usize::from(*bytes.get(at)?) << 8 | usize::from(*bytes.get(at + 1)?));
    match bytes.first()? >> 4 {
        4 => {
            let at = |at: usize| -> Option<IpAddr> {
                Some(Ipv4Addr::from(*bytes.get(at..at + 4)?.first_chunk::<4>()?).into())
            };
            let (header, total) = (usize::from(bytes[0] & 15) * 4, word(2)?);
            let whole = bytes.get(..total)?;
            (header >= 20 && total >= header).then_some((at(12)?, at(16)?, whole))
        }
        6 => {
            let at = |at: usize| -> Option<IpAddr> {
                Some(Ipv6Addr::from(*bytes.get(at..at + 16)?.first_chunk::<16>()?).into())
            };
            let whole = bytes.get(..40 + word(4)?)?;
            let mut next = whole[6];
            let mut place = 40;
            if next == 58 && whole.len() < 48 {
                return None;
            }
            for _ in 0..4 {
                if [0, 43, 60].contains(&next) && whole.len() >= place + 8 {
                    next = whole[place];
                    place += 8 + 8 * usize::from(whole[place + 1]);
                }
            }
            let discovery = next == 58
                && whole
                    .get(place)
                    .is_some_and(|kind| (133..=137).contains(kind));
            (!discovery).then_some((at(8)?, at(24)?, whole))
        }
        _ => None,
    }
}

impl Model {
    /// The peer that has an address: the member with the longest prefix, else the network's own.
    fn peer_of(&self, network: &ModelNetwork, address: IpAddr) -> u32 {
        let members = self
            .members
            .get(&network.vni)
            .map_or(&[][..], Vec::as_slice);
        let mut best = (None, network.peer);
        for (net, len, peer) in members {
            if within((*net, *len), address) && Some(*len) > best.0 {
                best = (Some(*len), *peer);
            }
        }
        best.1
    }

    fn here(&self, network: &ModelNetwork, address: IpAddr) -> bool {
        let failed_over = self.endpoints.contains(&(network.vni, address));
        failed_over == network.provider
    }

    /// A message of a peer that it sealed for us.
    fn opened(&self, peer: u32, plaintext: &[u8]) -> Fate {
        let of = &self.peers[&peer];
        let (vni, bytes) = match &of.member {
            Some((vni, _)) => (*vni, plaintext),
            None => match plaintext {
                [1, a, b, c, 0, 0, 0, 0, packet @ ..] => {
                    (u32::from_be_bytes([0, *a, *b, *c]), packet)
                }
                _ => return Fate::Dropped,
            },
        };
        self.delivered(peer, vni, bytes).unwrap_or(Fate::Dropped)
    }

    fn delivered(&self, peer: u32, vni: u32, bytes: &[u8]) -> Option<Fate> {
        let network = self.networks.values().find(|n| n.vni == vni)?;
        let (source, destination, packet) = read(bytes)?;
        let allowed = match &self.peers[&peer].member {
            None => network.peer == peer,
            Some((_, nets)) => {
                nets.iter().any(|net| within(*net, source)) && self.peer_of(network, source) == peer
            }
        };
        let edge = ["10.1.0.0", "10.1.0.255"].map(|text| text.parse::<IpAddr>().ok());
        let goes = allowed
            && self.partial.contains(&network.tenant)
            && carried(source)
            && carried(destination)
            && !edge.contains(&Some(destination))
            && !self.here(network, source)
            && self.here(network, destination);
        let next_hop = match destination {
            _ if network.provider || on_link(destination) => destination,
            IpAddr::V4(_) if network.router => "10.1.0.1".parse().ok()?,
            _ => return None,
        };
        if !goes {
            return None;
        }
        Some(match self.neighbours.get(&(vni, next_hop)) {
            Some(host) => Fate::Host(*host, packet.to_vec()),
            None => Fate::UnresolvedPacket(vni, next_hop, packet.to_vec()),
        })
    }

    /// A packet that the programs handed over: the session it goes by and what is heard there.
    fn sealed(&self, frame: &[u8]) -> Option<(usize, Vec<u8>)> {
        let (head, packet) = frame.split_at_checked(16)?;
        let slot = u32::from_ne_bytes(*head.first_chunk::<4>()?);
        let network = self.networks.get(&slot)?;
        let segment = [&[1][..], &network.vni.to_be_bytes()[1..], &[0; 4]].concat();
        let destination = match packet.first()? >> 4 {
            4 => Ipv4Addr::from(*packet.get(16..20)?.first_chunk::<4>()?).into(),
            // One form for both families; the programs hand over no such packet.
            6 => Ipv6Addr::from(*packet.get(24..40)?.first_chunk::<16>()?).to_canonical(),
            _ => return None,
        };
        let slot = self.peer_of(network, destination);
        let peer = self.peers.get(&slot)?;
        let fits = match &peer.member {
            None => packet.len() <= 16 * (peer.max_datagram - 40),
            Some((vni, nets)) => {
                *vni == network.vni
                    && nets.iter().any(|net| within(*net, destination))
                    && packet.len() <= peer.max_datagram - 32
            }
        };
        let goes =
            head[8..] == segment && self.partial.contains(&network.tenant) && peer.has_path && fits;
        let test_peer = peer.tx.filter(|_| goes)?;
        // A WireGuard peer reads the packet by its own length; one that contradicts itself it does
        // not.
        Some(match peer.member {
            None => (test_peer, [&network.vni.to_be_bytes()[..], packet].concat()),
            Some(_) => (test_peer, packet.to_vec()),
        })
    }
}

struct World {
    random: Seeded,
    model: Model,
    pipeline: Pipeline,
    counters: Arc<WorkerCounters>,
    wire: Memory,
    test_peers: Vec<(TestPeer, u32, u32)>,
    /// Datagrams sealed for us: session and plaintext; `None` once taken.
    said: BTreeMap<Vec<u8>, Option<(usize, Vec<u8>)>>,
    ms: u64,
}

/// Outcomes, of which a frame has exactly one. The other counters add detail to an outcome.
fn outcomes(counters: &WorkerCounters) -> u64 {
    let details = [
        Counter::TunnelFragmented,
        Counter::TunnelReassembled,
        Counter::MssClamped,
        Counter::OutageFlushed,
    ];
    let all = Counter::ALL.iter().filter(|c| !details.contains(c));
    all.map(|c| counters.counter(*c)).sum()
}

impl World {
    fn new(seed: u64) -> Self {
        let counters = Arc::new(WorkerCounters::default());
        let mut world = Self {
            random: Seeded(seed),
            model: Model::default(),
            pipeline: Pipeline::new(LaneAssignment::WHOLE, seed, Arc::clone(&counters)),
            counters,
            wire: Memory::default(),
            test_peers: Vec::new(),
            said: BTreeMap::new(),
            ms: 10,
        };
        // A beginning from which packets get somewhere.
        for slot in 0..PEERS {
            world.peer(slot);
            world.session(slot);
        }
        for (slot, vni) in VNIS.into_iter().enumerate() {
            world.network(slot, vni, slot as u32 % 2);
            world.command(Command::Tenant(
                slot as u32,
                Tenant {
                    mode: Mode::Partial as u32,
                    epoch: 1,
                },
            ));
            world.model.partial.insert(slot as u32);
        }
        for vni in VNIS {
            world.endpoint(vni, hosts()[0], true);
            world.endpoint(vni, hosts()[5], true);
        }
        world
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.random.u64() % bound as u64) as usize
    }

    fn command(&mut self, command: Command) {
        self.pipeline
            .command(at(self.ms).mono, command, &mut self.wire);
        assert!(self.wire.frames.is_empty(), "an order sends nothing");
    }

    fn peer(&mut self, slot: u32) {
        let vni = VNIS[self.below(2)];
        let nets = [
            ("10.1.0.77".parse().expect("an address"), 32),
            ("10.1.0.64".parse().expect("an address"), 26),
        ];
        let nets = &nets[self.below(2)..];
        let prefixes: Box<[Prefix]> = nets
            .iter()
            .map(|(n, l)| Prefix::new(&from_ip(*n), 96 + l).expect("a length"))
            .collect();
        let (lane, member) = if slot < 2 {
            (PeerLanes::appliance(LaneAssignment::WHOLE), None)
        } else {
            (
                PeerLanes::wireguard(LaneAssignment::WHOLE, vni, prefixes),
                Some((vni, nets.to_vec())),
            )
        };
        self.command(Command::Peer(slot, Some(Box::new(lane))));
        let peer = ModelPeer {
            member,
            max_datagram: 1232,
            ..ModelPeer::default()
        };
        self.model.peers.insert(slot, peer);
        self.outer(slot, true);
    }

    fn addresses(slot: u32) -> [String; 2] {
        [format!("192.0.2.{}:6180", slot + 1), LOCAL.to_owned()]
    }

    fn outer(&mut self, slot: u32, has_path: bool) {
        let [remote, local] = Self::addresses(slot).map(|text| text.parse().expect("an address"));
        let outer = OuterHeader::new(UPLINK, [9; 6], [8; 6], local, remote).filter(|_| has_path);
        self.command(Command::OuterHeader(slot, outer.map(Box::new)));
        if let Some(peer) = self.model.peers.get_mut(&slot) {
            peer.has_path = has_path;
        }
    }

    fn session(&mut self, slot: u32) {
        let framing = if slot < 2 {
            Framing::Segments
        } else {
            Framing::WireGuard
        };
        let [from, to] = Self::addresses(slot);
        let seed = 1 + self.test_peers.len() as u64 + self.random.u64() % (1 << 40) * 1000;
        let (test_peer, tx, rx) = TestPeer::new(framing, seed, [&from, &to]);
        let name = rx.index();
        self.command(Command::Receive(slot, rx));
        self.command(Command::Send(slot, Box::new(tx)));
        let number = self.test_peers.len();
        self.test_peers.push((test_peer, slot, name));
        if let Some(peer) = self.model.peers.get_mut(&slot) {
            peer.tx = Some(number);
            peer.rx.insert(number);
            // Five are held; the oldest gives way.
            if peer.rx.len() > 5 {
                peer.rx.pop_first();
            }
        }
    }

    fn network(&mut self, slot: usize, vni: u32, peer: u32) {
        let (provider, router) = (self.below(2) == 0, self.below(2) == 0);
        let mut network = Network {
            vni,
            tenant: slot as u32,
            peer,
            flags: network_flags::ACTIVE
                | network_flags::SECURE
                | if provider { network_flags::PROVIDER } else { 0 },
            mtu: 1432,
            lan_mtu: u16::MAX,
            prefix_count: 2,
            ..Network::default()
        };
        let v4 = from_ip(Ipv4Addr::new(10, 1, 0, 0).into());
        let v6 = "2001:db8:1::".parse().expect("an address");
        network.prefixes[0] = Prefix::new(&v4, 96 + 24).expect("a length");
        network.prefixes[1] = Prefix::new(&from_ip(v6), 64).expect("a length");
        if router {
            network.gateway_v4 = from_ip(Ipv4Addr::new(10, 1, 0, 1).into());
        }
        self.command(Command::Network(SLOTS[slot], Some(Box::new(network))));
        let tenant = slot as u32;
        let network = ModelNetwork {
            vni,
            tenant,
            peer,
            provider,
            router,
        };
        self.model.networks.insert(SLOTS[slot], network);
    }

    fn endpoint(&mut self, vni: u32, ip: IpAddr, there: bool) {
        let key = HostKey {
            vni,
            address: from_ip(ip),
        };
        self.command(Command::Endpoint(key, there));
        if there {
            self.model.endpoints.insert((vni, ip));
        } else {
            self.model.endpoints.remove(&(vni, ip));
        }
    }

    fn some_order(&mut self) {
        let slot = self.below(PEERS as usize) as u32;
        let place = self.below(3);
        let vni = VNIS[self.below(3)];
        let ip = hosts()[self.below(8)];
        let key = HostKey {
            vni,
            address: from_ip(ip),
        };
        match self.below(14) {
            0 => {
                let taken = |n: (&u32, &ModelNetwork)| *n.0 != SLOTS[place] && n.1.vni == vni;
                if !self.model.networks.iter().any(taken) {
                    self.network(place, vni, slot);
                }
            }
            1 => {
                self.command(Command::Network(SLOTS[place], None));
                self.model.networks.remove(&SLOTS[place]);
            }
            2 => {
                let partial = self.below(4) != 0;
                let mode = if partial { Mode::Partial } else { Mode::Idle } as u32;
                let tenant = place as u32;
                self.command(Command::Tenant(tenant, Tenant { mode, epoch: 2 }));
                if partial {
                    self.model.partial.insert(tenant);
                } else {
                    self.model.partial.remove(&tenant);
                }
            }
            3 | 4 => {
                let there = self.below(2) == 0;
                self.endpoint(vni, ip, there);
            }
            5 | 6 => {
                let number = self.random.u32() as u8;
                let neighbour =
                    Neighbour::new(ACCESS, [2, 0, 0, 0, 0, number], [4; 6], 5, 6, 0x88a8);
                self.command(Command::Neighbour(key, Some(Box::new(neighbour))));
                self.model.neighbours.insert((vni, ip), number);
            }
            7 => {
                self.command(Command::Neighbour(key, None));
                self.model.neighbours.remove(&(vni, ip));
            }
            8 => {
                let all = [
                    ("10.1.0.77", 32, 2),
                    ("10.1.0.64", 26, 3),
                    ("10.1.0.0", 24, 1),
                ];
                let all =
                    all.map(|(n, len, peer)| (n.parse::<IpAddr>().expect("an address"), len, peer));
                let list = all[self.below(4).min(3)..].to_vec();
                let members = list.iter().map(|(n, len, peer)| PeerRoute {
                    prefix: Prefix::new(&from_ip(*n), 96 + len).expect("a length"),
                    peer: *peer,
                });
                self.command(Command::PeerRoutes(vni, members.collect()));
                self.model.members.insert(vni, list);
            }
            9 => self.peer(slot),
            10 => {
                self.command(Command::Peer(slot, None));
                self.model.peers.remove(&slot);
            }
            11 => self.session(slot),
            12 if !self.test_peers.is_empty() => {
                let number = self.below(self.test_peers.len());
                let name = self.test_peers[number].2;
                self.command(Command::Retire(slot, name));
                if let Some(peer) = self.model.peers.get_mut(&slot)
                    && self.test_peers[number].1 == slot
                {
                    peer.rx.remove(&number);
                    peer.tx = peer.tx.filter(|tx| *tx != number);
                }
            }
            _ => {
                let has_path = self.below(3) != 0;
                self.outer(slot, has_path);
                let bytes = 1232 + self.below(300);
                self.command(Command::MaxDatagram(slot, bytes));
                if let Some(peer) = self.model.peers.get_mut(&slot) {
                    peer.max_datagram = bytes;
                }
            }
        }
    }

    /// A packet between addresses of one family, perhaps spoiled.
    fn packet(&mut self, most: usize) -> Vec<u8> {
        let all = if self.below(4) == 0 {
            nobodies()
        } else {
            hosts()
        };
        let source = all[self.below(all.len())];
        let family: Vec<IpAddr> = hosts()
            .into_iter()
            .chain(nobodies())
            .filter(|ip| ip.is_ipv4() == source.is_ipv4())
            .collect();
        let reach = if self.below(4) == 0 { family.len() } else { 3 };
        let destination = family[self.below(reach)];
        let (source, destination) = if self.below(2) == 0 {
            (source, destination)
        } else {
            (destination, source)
        };
        let byte = [0xa5, 128, 135, 0][self.below(4)];
        let len = [0, 1, 8, 40, most][self.below(5)];
        let mut out = packet(
            &source.to_string(),
            &destination.to_string(),
            &vec![byte; len],
        );
        let header = if source.is_ipv4() { 20 } else { 40 };
        out[header..header + 8].fill(byte);
        let protocol = if source.is_ipv4() { 9 } else { 6 };
        out[protocol] = [17, 58, 0, 60, 43, 44, 1][self.below(7)];
        match self.below(8) {
            0 => {
                let at = self.below(out.len().min(48));
                out[at] = self.random.u32() as u8;
            }
            1 => out.truncate(self.random.u32() as usize % (header + 9)),
            2 => out.extend_from_slice(&[byte; 24]),
            _ => {}
        }
        // No TCP, wherever the version byte has gone.
        for at in [6, 9] {
            if out.get(at) == Some(&6) {
                out[at] = 17;
            }
        }
        out
    }

    /// Feeds a frame; how many outcomes were counters.
    fn feed(&mut self, frame: &[u8]) -> u64 {
        let before = outcomes(&self.counters);
        let mut frame = frame.to_vec();
        let now = at(self.ms).mono;
        self.pipeline.frame(now, &mut frame, &mut self.wire);
        outcomes(&self.counters) - before
    }

    fn seals(&mut self) {
        let most = [100, 1100, 1160, 1300, 1472][self.below(5)];
        let packet = self.packet(most);
        let slot = if self.below(16) == 0 {
            self.random.u32()
        } else {
            SLOTS[self.below(3)]
        };
        let own = self.model.networks.get(&slot).map(|n| n.vni);
        let vni = own
            .filter(|_| self.below(8) != 0)
            .unwrap_or(VNIS[self.below(3)]);
        let mut frame = to_seal(slot, vni, &packet);
        if self.below(16) == 0 {
            frame.truncate(14 + self.below(frame.len() - 13));
        }
        let expected = self.model.sealed(&frame);
        let full = self.below(16) == 0;
        self.wire.full = full;
        let counters = self.feed(&frame);
        self.wire.full = false;
        assert_eq!(counters, 1, "{:x?}", &frame[..frame.len().min(80)]);
        let frames = std::mem::take(&mut self.wire.frames);
        let Some((number, wanted)) = expected.filter(|_| !full) else {
            assert!(frames.is_empty(), "{:x?}", &frame[..frame.len().min(80)]);
            return;
        };
        let now = at(self.ms);
        let mut heard = None;
        for (ifindex, sent) in &frames {
            assert_eq!(*ifindex, UPLINK);
            assert!(sent.len() <= 42 + 1532);
            for (other, (test_peer, ..)) in self.test_peers.iter_mut().enumerate() {
                let said = test_peer.receive(now, sent);
                assert_eq!(
                    said.is_some(),
                    other == number,
                    "session {other} for {number}"
                );
                heard = said.or(heard);
            }
        }
        let heard = heard.expect("something was sent");
        match self.model.peers[&self.test_peers[number].1].member {
            None => assert_eq!(heard, wanted),
            // Empty where the peer cannot make sense of it; as long as it says, where that is
            // within the padding.
            Some(_) => {
                let padded = [&wanted[..], &[0; 15]].concat();
                assert!(heard.is_empty() || padded.starts_with(&heard));
            }
        }
    }

    /// Something arrives. `plaintext` and session if it is authentic and new.
    fn arrives(&mut self, frame: &[u8], authentic: Option<(usize, Vec<u8>)>, piece: bool) {
        let fate = authentic.map_or(Fate::Dropped, |(number, plaintext)| {
            let slot = self.test_peers[number].1;
            self.model.opened(slot, &plaintext)
        });
        self.wire.waiting.clear();
        let counters = self.feed(frame);
        // A piece that is kept is counters with the packet it becomes a part of.
        assert!(
            counters == 1 || piece && counters == 0,
            "{counters} of {frame:x?}"
        );
        let frames = std::mem::take(&mut self.wire.frames);
        let got = match (frames.as_slice(), self.wire.waiting.as_slice()) {
            ([], []) => Fate::Dropped,
            ([(ifindex, frame)], []) => {
                assert_eq!(*ifindex, ACCESS);
                assert_eq!(frame[12..20], [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]);
                let kind = if frame[22] >> 4 == 4 {
                    [8, 0]
                } else {
                    [0x86, 0xdd]
                };
                assert_eq!(frame[20..22], kind);
                Fate::Host(frame[5], frame[22..].to_vec())
            }
            ([], [(header, packet)]) => {
                Fate::UnresolvedPacket(header.vni, to_ip(&header.next_hop), packet.clone())
            }
            more => panic!("{more:x?}"),
        };
        assert_eq!(got, fate, "{frame:x?}");
    }

    /// The session and plaintext of a datagram that was said and not taken yet, if the session is
    /// known. It is taken by this.
    fn taken(&mut self, frame: &[u8]) -> Option<(usize, Vec<u8>)> {
        // Ethernet, IPv4, UDP; the length is UDP's.
        let good = frame.get(12..15)? == [8, 0, 0x45] && *frame.get(23)? == 17;
        let len = usize::from(*frame.get(38)?) << 8 | usize::from(*frame.get(39)?);
        let datagram = frame.get(42..34 + len).filter(|_| good)?;
        let entry = self.said.get_mut(datagram)?;
        let (number, _) = entry.as_ref()?;
        let known = self.model.peers.get(&self.test_peers[*number].1);
        if known.is_none_or(|peer| !peer.rx.contains(number)) {
            return None;
        }
        entry.take()
    }

    /// A message sealed by some session; the frame.
    fn says(&mut self, number: usize, plaintext: &[u8]) -> Vec<u8> {
        let now = at(self.ms);
        let frame = self.test_peers[number].0.send(now, plaintext);
        let value = (number, plaintext.to_vec());
        self.said.insert(frame[42..].to_vec(), Some(value));
        frame
    }

    fn opens(&mut self) {
        if self.test_peers.is_empty() {
            return;
        }
        // Often one in use.
        let slot = self.below(PEERS as usize) as u32;
        let current = self.model.peers.get(&slot).and_then(|peer| peer.tx);
        let number = current.unwrap_or(self.below(self.test_peers.len()));
        let segments = self.test_peers[number].1 < 2;
        let vni = VNIS[self.below(3)];
        let packet = self.packet(1300);
        match self.below(8) {
            // Anything at all, sealed.
            0 => {
                let mut plaintext = vec![0; self.below(64)];
                self.random.fill(&mut plaintext);
                let len = plaintext.len();
                // Never a piece, which is for the next arm.
                if len > 7 && segments {
                    plaintext[7] = 0;
                }
                let frame = self.says(number, &plaintext);
                let taken = self.taken(&frame);
                self.arrives(&frame, taken, false);
            }
            // In pieces, in any order, perhaps not all of them.
            1 if segments && packet.len() > 15 => {
                let most = 2 + self.below(14);
                let stride = packet.len().div_ceil(most);
                let last = packet.len().div_ceil(stride) - 1;
                let mut frames = Vec::new();
                for (index, part) in packet.chunks(stride).enumerate() {
                    let header = Header {
                        kind: PayloadKind::Ip,
                        network: vni,
                        stride: stride as u16,
                        index: index as u8,
                        last: last as u8,
                    };
                    frames.push(self.says(number, &[&header.to_bytes()[..], part].concat()));
                }
                for at in (1..frames.len()).rev() {
                    let with = self.below(at + 1);
                    frames.swap(at, with);
                }
                if self.below(4) == 0 {
                    frames.pop();
                }
                let mut came = 0;
                for frame in frames {
                    came += usize::from(self.taken(&frame).is_some());
                    let whole = (came == last + 1).then(|| {
                        let header = Header::whole(PayloadKind::Ip, vni).to_bytes();
                        (number, [&header[..], &packet].concat())
                    });
                    self.arrives(&frame, whole, true);
                }
            }
            // Once more, or touched.
            2 | 3 => {
                let plaintext =
                    [&Header::whole(PayloadKind::Ip, vni).to_bytes()[..], &packet].concat();
                let frame = self.says(number, if segments { &plaintext } else { &packet });
                let mut touched = frame.clone();
                for _ in 0..1 + self.below(3) {
                    let at = self.below(touched.len());
                    match self.below(4) {
                        0 => touched.truncate(at),
                        1 => touched.extend_from_slice(&[7; 9]),
                        // The first bytes tell a packet to seal: not those.
                        _ if at > 13 => touched[at] ^= 1 << self.below(8),
                        _ => {}
                    }
                    if touched.is_empty() {
                        touched.push(0);
                    }
                }
                for frame in [touched, frame.clone(), frame] {
                    let taken = self.taken(&frame);
                    self.arrives(&frame, taken, false);
                }
            }
            // Random bytes, some after outer headers.
            4 => {
                let mut bytes = vec![0; self.below(200)];
                self.random.fill(&mut bytes);
                let path = self.test_peers[number].0.path;
                let frame = around(path, &bytes);
                self.arrives(&frame, None, false);
                // Bytes 12 and 13 zero make a packet to seal; random ones are hardly ever.
                self.arrives(&bytes, None, false);
            }
            _ => {
                let plaintext =
                    [&Header::whole(PayloadKind::Ip, vni).to_bytes()[..], &packet].concat();
                let frame = self.says(number, if segments { &plaintext } else { &packet });
                let taken = self.taken(&frame);
                self.arrives(&frame, taken, false);
            }
        }
    }
}

/// Few cases, for each is long; `PROPTEST_CASES` sets the number.
fn config() -> ProptestConfig {
    let set = std::env::var("PROPTEST_CASES");
    ProptestConfig {
        cases: set.ok().and_then(|n| n.parse().ok()).unwrap_or(24),
        max_shrink_iters: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_sent_is_what_the_rules_send_and_every_frame_is_counted_once(
        seed in any::<u64>(),
        acts in proptest::collection::vec(any::<(u8, u64)>(), 1..300),
    ) {
        let mut world = World::new(seed);
        for (act, seed) in acts {
            world.random = Seeded(seed);
            world.ms += u64::from(act & 1);
            match act >> 1 & 15 {
                0 | 1 => world.some_order(),
                2 => {
                    world.pipeline.report(at(world.ms).mono, &mut world.wire);
                    prop_assert!(!world.pipeline.dirty());
                }
                3..=7 => world.seals(),
                _ => world.opens(),
            }
            world.wire.events.clear();
        }
    }
}
