//! The pipeline against a model of its rules, which uses none of the pipeline's tables: both send
//! the same packets after random orders, and every frame is counted once.
//!
//! TCP is left out: the outage buffer has its own tests, and `tests/tests/packets/workers.rs`
//! compares changes of TCP packets with those of the programs.

mod world;

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
use world::World;

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

/// Addresses that are never carried.
fn uncarried() -> Vec<IpAddr> {
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
enum Verdict {
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

/// Source, destination and the packet without the bytes behind it.
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
    fn opened(&self, peer: u32, plaintext: &[u8]) -> Verdict {
        let of = &self.peers[&peer];
        let (vni, bytes) = match &of.member {
            Some((vni, _)) => (*vni, plaintext),
            None => match plaintext {
                [1, a, b, c, 0, 0, 0, 0, packet @ ..] => {
                    (u32::from_be_bytes([0, *a, *b, *c]), packet)
                }
                _ => return Verdict::Dropped,
            },
        };
        self.delivered(peer, vni, bytes).unwrap_or(Verdict::Dropped)
    }

    fn delivered(&self, peer: u32, vni: u32, bytes: &[u8]) -> Option<Verdict> {
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
            Some(host) => Verdict::Host(*host, packet.to_vec()),
            None => Verdict::UnresolvedPacket(vni, next_hop, packet.to_vec()),
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
        // A WireGuard peer takes the length from the packet's header, and refuses a packet with
        // contradictory lengths.
        Some(match peer.member {
            None => (test_peer, [&network.vni.to_be_bytes()[..], packet].concat()),
            Some(_) => (test_peer, packet.to_vec()),
        })
    }
}

/// Few cases, because each is long; `PROPTEST_CASES` sets the number.
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
    fn the_pipeline_sends_what_the_model_sends_and_counts_every_frame_once(
        seed in any::<u64>(),
        acts in proptest::collection::vec(any::<(u8, u64)>(), 1..300),
    ) {
        let mut world = World::new(seed);
        for (act, seed) in acts {
            world.random = Seeded(seed);
            world.ms += u64::from(act & 1);
            match act >> 1 & 15 {
                0 | 1 => world.random_order(),
                2 => {
                    world.pipeline.report(at(world.ms).mono, &mut world.wire);
                    prop_assert!(!world.pipeline.dirty());
                }
                3..=7 => world.seal(),
                _ => world.open(),
            }
            world.wire.events.clear();
        }
    }
}
