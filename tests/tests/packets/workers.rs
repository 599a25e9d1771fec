//! Packets out of a tunnel: a worker makes of a sealed datagram what the `uplink` program makes of
//! a VXLAN datagram.
//!
//! ```text
//!   World ──▶ maps ─────────── VXLAN(packet) ──▶ program ──▶ frame, record, counters ┐
//!         └─▶ commands ─ sealed(packet) ──▶ Pipeline ──────▶ frame, record, counters ┴─ equal
//! ```
//!
//! [`DIFFERENCES`] lists the cases where both differ on purpose, with the reason.
//!
//! 20 000 packets for each world, a million with `CAUSEWAY_LONG=1`, or `CAUSEWAY_WORKER_PACKETS`;
//! `CAUSEWAY_SEED` replays a run.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use appliance_common::{
    addr::Address,
    counters::Counter,
    events::{SlowHeader, SlowReason},
    maps::network_flags,
};
use causeway_tests::{
    dump,
    harness::{Action, Harness, Program, Record, describe},
    packet::{self, V4, ip, syn_options, tcp_flags, tcp_segment},
    rng::{Seeded, seed_from_env},
    series,
    world::*,
};
use tunnel::{
    Framing, PayloadKind,
    segment::{HEADER_BYTES, Header},
};
use tunnel_worker::{
    pipeline::{
        Command, Event, LaneAssignment, PacketSink, PeerLanes, Pipeline, Sent, WorkerCounters,
    },
    testing::{self, TestPeer},
};

/// Longest inner packet, bytes: with VXLAN's headers over IPv6 no longer than a test run takes.
const MAX_INNER_LEN: usize = 3400;

/// Outcome of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Delivery {
    /// The frame sent, and whether it left by the input interface.
    sent: Option<(bool, Vec<u8>)>,
    /// VNI, next hop and packet, where it waits for its host.
    waits: Option<(u32, Address, Vec<u8>)>,
    counters: BTreeMap<u32, u64>,
}

impl Delivery {
    fn counters(&self, counter: Counter) -> u64 {
        self.counters.get(&(counter as u32)).copied().unwrap_or(0)
    }

    fn without(mut self, counter: Counter) -> Self {
        self.counters.remove(&(counter as u32));
        self
    }
}

/// A difference that is right.
struct Difference {
    why: &'static str,
    /// Whether this listed difference applies to a packet, given both deliveries.
    is: fn(&[u8], &Delivery, &Delivery) -> bool,
}

const DIFFERENCES: [Difference; 3] = [
    Difference {
        why: "nothing inside: no segment is empty, so a worker does not get as far as to miss the \
            packet",
        is: |packet, program, worker| {
            packet.is_empty()
                && program.counters(Counter::DropMalformed) + program.counters(Counter::DropIdle)
                    == 1
                && worker.counters(Counter::DropBadSegment) == 1
        },
    },
    Difference {
        why: "ICMPv6 of under eight bytes and more bytes behind the packet: a worker looks at the \
              packet only, a program at the frame, for a window of a fixed size is what the \
              verifier allows",
        is: |packet, program, worker| {
            let payload = packet.get(4..6).map(|b| u16::from_be_bytes([b[0], b[1]]));
            packet.first().is_some_and(|first| first >> 4 == 6)
                && packet.get(6) == Some(&58)
                && payload.is_some_and(|len| len < 8)
                && packet.len() >= 48
                && program.counters(Counter::DropMalformed) == 0
                && worker.counters(Counter::DropMalformed) == 1
        },
    },
    Difference {
        why: "a SYN that is dropped or finds no room after it was clamped: a program has counters \
              it then, a worker counts those that went on",
        is: |_, program, worker| {
            program.counters(Counter::MssClamped) == 1
                && program.sent.is_none()
                && program.waits.is_none()
                && program.clone().without(Counter::MssClamped) == *worker
        },
    },
];

/// A socket that takes frames of 4096 bytes, as with jumbo frames.
#[derive(Default)]
struct Socket {
    sent: Option<(u32, Vec<u8>)>,
    waits: Option<(SlowHeader, Vec<u8>)>,
}

impl PacketSink for Socket {
    fn transmit(&mut self, ifindex: u32, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Sent {
        let mut frame = vec![0xee; 4096];
        let Some(len) = write(&mut frame) else {
            return Sent::Abandoned;
        };
        frame.truncate(len);
        assert!(self.sent.replace((ifindex, frame)).is_none(), "sent twice");
        Sent::Queued
    }

    fn event(&mut self, _: Event) {}

    fn unresolved(&mut self, header: &SlowHeader, packet: &[u8]) -> bool {
        let record = (*header, packet.to_vec());
        assert!(self.waits.replace(record).is_none(), "waits twice");
        true
    }

    fn hand_over(&mut self, _: u32, _: &[u8]) -> bool {
        panic!("it is the only worker");
    }
}

/// A worker with the tables of a world, and its peers.
struct Worker {
    pipeline: Pipeline,
    counters: Arc<WorkerCounters>,
    /// By slot.
    peers: Vec<TestPeer>,
    socket: Socket,
}

impl Worker {
    fn new(world: &World, peer_paths: &[[&str; 2]]) -> Self {
        let counters = Arc::new(WorkerCounters::default());
        let mut pipeline = Pipeline::new(LaneAssignment::WHOLE, 1, Arc::clone(&counters));
        let mut commands = Vec::new();
        let mut peers = Vec::new();
        for (slot, [from, to]) in (0..).zip(peer_paths) {
            let with_port =
                |text: &str| std::net::SocketAddr::new(ip(text), SECURE_PORT).to_string();
            let (from, to) = (with_port(from), with_port(to));
            let (test_peer, tx, rx) =
                TestPeer::new(Framing::Segments, u64::from(slot), [&from, &to]);
            commands.extend(test_peer.commands(
                slot,
                PeerLanes::appliance(LaneAssignment::WHOLE),
                (tx, rx),
            ));
            peers.push(test_peer);
        }
        for (slot, network) in (0..).zip(&world.networks) {
            let mut network = *network;
            network.flags |= network_flags::SECURE;
            commands.push(Command::Network(slot, Some(Box::new(network))));
        }
        for (slot, tenant) in (0..).zip(&world.tenants) {
            commands.push(Command::Tenant(slot, *tenant));
        }
        for key in &world.endpoints {
            commands.push(Command::Endpoint(*key, true));
        }
        for (key, neighbour) in &world.neighbours {
            commands.push(Command::Neighbour(*key, Some(Box::new(*neighbour))));
        }
        let mut socket = Socket::default();
        for command in commands {
            pipeline.command(testing::at(1).mono, command, &mut socket);
        }
        Self {
            pipeline,
            counters,
            peers,
            socket,
        }
    }

    fn counters(&self) -> BTreeMap<u32, u64> {
        let all = Counter::ALL.iter();
        all.map(|c| (*c as u32, self.counters.counter(*c)))
            .filter(|(_, n)| *n != 0)
            .collect()
    }

    fn run(&mut self, peer: u32, vni: u32, l3: &[u8]) -> Delivery {
        let before = self.counters();
        let mut plaintext = Header::whole(PayloadKind::Ip, vni).to_bytes().to_vec();
        plaintext.extend_from_slice(l3);
        assert_eq!(plaintext.len(), HEADER_BYTES + l3.len());
        let now = testing::at(10);
        let mut frame = self.peers[peer as usize].send(now, &plaintext);
        self.pipeline.frame(now.mono, &mut frame, &mut self.socket);
        let sent = self.socket.sent.take();
        let waits = self.socket.waits.take();
        Delivery {
            sent: sent.map(|(ifindex, frame)| (ifindex == UPLINK, frame)),
            waits: waits.map(|(header, packet)| {
                assert_eq!(header.reason, SlowReason::Unresolved as u16);
                assert_eq!(header.len as usize, packet.len());
                (header.vni, header.next_hop, packet)
            }),
            counters: rise(&before, &self.counters()),
        }
    }
}

fn rise(before: &BTreeMap<u32, u64>, after: &BTreeMap<u32, u64>) -> BTreeMap<u32, u64> {
    after
        .iter()
        .map(|(c, n)| (*c, n - before.get(c).copied().unwrap_or(0)))
        .filter(|(_, n)| *n != 0)
        .collect()
}

fn run_program(
    h: &mut Harness,
    program: Program,
    [from, to]: [&str; 2],
    vni: u32,
    l3: &[u8],
) -> Delivery {
    let before = h.counters();
    let datagram = tunnelled(from, to, vni, l3);
    let (action, out) = match h.run(program, UPLINK, &datagram) {
        Ok((action, out)) => (action, out.to_vec()),
        Err(error) => panic!("{}", describe(&error)),
    };
    let sent = match action {
        Action::Tx => Some((true, out)),
        Action::Redirect => Some((false, out)),
        Action::Drop => None,
        other => panic!("{other:?}\n{}", h.describe_run(program, UPLINK, &datagram)),
    };
    let mut waits = None;
    h.each_record(|record| match record {
        Record::Slow(header, frame) => {
            let packet = frame[usize::from(header.l3)..].to_vec();
            waits = Some((header.vni, header.next_hop, packet));
        }
        other => panic!("{other:?}"),
    });
    Delivery {
        sent,
        waits,
        counters: rise(&before, &h.counters()),
    }
}

/// Addresses with something about them, for networks with the third byte `net`.
fn addresses(net: u8) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
    let mut v4: Vec<Ipv4Addr> = [0, 1, 10, 11, 12, 13, 255]
        .map(|part| Ipv4Addr::new(10, net, 0, part))
        .to_vec();
    v4.extend([
        Ipv4Addr::new(10, 9, 0, 2),
        Ipv4Addr::new(192, 0, 2, 255),
        Ipv4Addr::new(127, 0, 0, 1),
        Ipv4Addr::new(169, 254, 3, 4),
        Ipv4Addr::new(0, 1, 2, 3),
        Ipv4Addr::new(223, 255, 255, 255),
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::new(240, 0, 0, 1),
        Ipv4Addr::BROADCAST,
    ]);
    let mut v6: Vec<Ipv6Addr> = [0, 1, 0x10, 0x11, 0x12, 0x13]
        .map(|part| Ipv6Addr::new(0x2001, 0xdb8, net.into(), 0, 0, 0, 0, part))
        .to_vec();
    let text = [
        "2001:db8:9::2",
        "::",
        "::1",
        "::ffff:10.1.0.10",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
        "fd00::1",
        "0:0:0:1::1",
    ];
    v6.extend(text.map(|text| match ip(text) {
        IpAddr::V6(address) => address,
        IpAddr::V4(_) => unreachable!("an IPv6 fixture"),
    }));
    (v4, v6)
}

/// TCP options, good and bad.
fn options(rng: &mut Seeded) -> Vec<u8> {
    let mss = [0_u16, 536, 1369, 1370, 1390, 1391, 1410, 1411, 1460, 0xffff][rng.below(10)];
    let [high, low] = mss.to_be_bytes();
    match rng.below(10) {
        0 => vec![],
        1 => vec![1, 2, 4, high, low, 1, 0, 0],
        2 => vec![1, 1, 1, 1, 1, 1, 1, 2, 4, high, low, 0],
        // One option more than is looked at.
        3 => vec![1, 1, 1, 1, 1, 1, 1, 1, 2, 4, high, low],
        // An MSS option of another length, a good one behind it.
        4 => vec![
            2,
            [0, 1, 2, 3, 5, 6][rng.below(6)],
            high,
            low,
            2,
            4,
            high,
            low,
        ],
        5 => vec![0, 0, 0, 0, 2, 4, high, low],
        6 => vec![3, [0, 1, 2, 4, 40][rng.below(5)], 2, 4, 2, 4, high, low],
        7 => vec![1, 1, 2, 4],
        _ => syn_options(mss),
    }
}

/// A payload and its protocol; with `v6`, extension headers may come first.
fn content(rng: &mut Seeded, src: IpAddr, dst: IpAddr) -> (u8, Vec<u8>) {
    let payload = vec![rng.byte(); [0, 1, 7, 8, 40, 1300, 3000][rng.below(7)]];
    let flags = *rng.pick(&[tcp_flags::SYN, 0x12, tcp_flags::ACK, 0xff, 0]);
    let (mut proto, mut body) = match rng.below(8) {
        0..=3 => {
            let options = options(rng);
            let segment = tcp_segment(src, dst, 1, 2, flags, &options, &payload);
            (6, segment)
        }
        4 => (17, packet::udp_segment(src, dst, 1, 2, &payload)),
        5 => {
            let kind = *rng.pick(&[1, 2, 128, 129, 132, 133, 134, 135, 136, 137, 138]);
            let proto = if src.is_ipv4() { 1 } else { 58 };
            (proto, packet::icmp_message(src, dst, kind, 0, &payload))
        }
        6 => (58, vec![*rng.pick(&[128, 135, 136]); rng.below(12)]),
        _ => (rng.byte(), payload),
    };
    if src.is_ipv6() {
        for _ in 0..[0, 0, 0, 1, 1, 2, 3, 4, 5, 6][rng.below(10)] {
            let words = [0, 0, 0, 1, 2, 255][rng.below(6)];
            let mut header = vec![proto, words, 1, 4, 0, 0, 0, 0];
            header.resize(8 + 8 * usize::from(words.min(2)), 0);
            header.extend_from_slice(&body);
            body = header;
            proto = *rng.pick(&[0, 43, 60, 60, 0, 44, 51]);
        }
    }
    (proto, body)
}

/// An IP packet, mostly sound but for one thing.
fn inner(rng: &mut Seeded, net: u8, here: u8, there: u8) -> Vec<u8> {
    let (v4, v6) = addresses(net);
    // Half of them from and to the right hosts, so that they get far.
    let right = [rng.below(3) != 0, rng.below(3) != 0];
    let mut out = if rng.below(2) == 0 {
        let part = |own: u8| Ipv4Addr::new(10, net, 0, own);
        let src = if right[0] {
            part(there)
        } else {
            *rng.pick(&v4)
        };
        let dst = if right[1] { part(here) } else { *rng.pick(&v4) };
        let (proto, body) = content(rng, src.into(), dst.into());
        let mut header = V4::new(src, dst, proto);
        header.frag = *rng.pick(&[0x4000, 0x4000, 0, 0x2000, 0x2001, 0x0001, 0x1fff, 0x8000]);
        if rng.below(4) == 0 {
            header.options = vec![1; 4 * rng.below(11)];
        }
        header.build(&body)
    } else {
        let part = |own: u8| {
            let last = u16::from(own / 10 * 16 + own % 10);
            Ipv6Addr::new(0x2001, 0xdb8, net.into(), 0, 0, 0, 0, last)
        };
        let src = if right[0] {
            part(there)
        } else {
            *rng.pick(&v6)
        };
        let dst = if right[1] { part(here) } else { *rng.pick(&v6) };
        let (next, body) = content(rng, src.into(), dst.into());
        packet::v6(src, dst, next, 64, &body)
    };
    // Some bytes changed, near the front; cut, or with bytes behind.
    for _ in 0..[0, 0, 0, 0, 1, 1, 2, 4][rng.below(8)] {
        let at = rng.below(out.len().clamp(1, 96));
        match rng.below(6) {
            0 => out[at] = rng.byte(),
            1 => out[at] ^= 1 << rng.below(8),
            2 => {
                let edge = *rng.pick(&[0_u16, 1, 19, 20, 39, 40, 41, 48, 0xff, 0x7fff, 0xffff]);
                if let Some(word) = out.get_mut(at..at + 2) {
                    word.copy_from_slice(&edge.to_be_bytes());
                }
            }
            3 => {
                // A length, a little off.
                let place = if out[0] >> 4 == 4 { 2 } else { 4 };
                if let Some([high, low]) = out.get_mut(place..place + 2) {
                    let len = u16::from_be_bytes([*high, *low]);
                    let off = rng.below(64) as u16;
                    let len = len.wrapping_add(off).wrapping_sub(32);
                    [*high, *low] = len.to_be_bytes();
                }
            }
            4 => out.truncate(at),
            _ => {
                let more = rng.below(80);
                out.resize(out.len() + more, rng.byte());
            }
        }
        if out.is_empty() {
            break;
        }
    }
    out.truncate(MAX_INNER_LEN);
    out
}

/// Packets of each length up to a little over the headers, and with each first byte.
fn boundaries(net: u8, here: u8, there: u8) -> Vec<Vec<u8>> {
    let at = |part: u8| Ipv4Addr::new(10, net, 0, part);
    let mut tcp4 = V4::new(at(there), at(here), 6);
    tcp4.options = vec![1; 4];
    let (a, b): (IpAddr, IpAddr) = (at(there).into(), at(here).into());
    let tcp4 = tcp4.build(&tcp_segment(
        a,
        b,
        1,
        2,
        tcp_flags::SYN,
        &syn_options(1460),
        &[],
    ));
    let part = |own: u8| ip(&format!("2001:db8:{net}::{own}"));
    let chain = [
        vec![60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0],
        tcp_segment(
            part(there),
            part(here),
            1,
            2,
            tcp_flags::SYN,
            &syn_options(1460),
            &[],
        ),
    ]
    .concat();
    let tcp6 = packet::ip_packet(part(there), part(here), 0, &chain);
    let mut all = Vec::new();
    for whole in [tcp4, tcp6] {
        for len in 0..=whole.len() {
            // Cut; and cut with the length field adjusted.
            let mut cut = whole[..len].to_vec();
            all.push(cut.clone());
            let (place, less) = if whole[0] >> 4 == 4 { (2, 0) } else { (4, 40) };
            if let (Some(bytes), Some(len)) = (cut.get_mut(place..place + 2), len.checked_sub(less))
            {
                bytes.copy_from_slice(&(len as u16).to_be_bytes());
                all.push(cut.clone());
                cut.resize(whole.len() + 9, 0x87);
                all.push(cut);
            }
        }
        for first in 0..=255 {
            let mut packet = whole.clone();
            packet[0] = first;
            all.push(packet);
        }
    }
    all
}

fn packets() -> usize {
    series::length("CAUSEWAY_WORKER_PACKETS", 20_000, 1_000_000) as usize
}

/// Holds both against each other in a world: `networks` are slot, peer and third byte of the
/// addresses; `hosts` the host parts of one here and one there.
fn compare(
    what: &str,
    world: &World,
    program: Program,
    peer_paths: &[[&str; 2]],
    networks: &[(usize, u32, u8)],
    hosts: (u8, u8),
) {
    let Some(mut h) = Harness::new(world.clone()) else {
        return;
    };
    let mut worker = Worker::new(world, peer_paths);
    let seed = seed_from_env();
    let mut rng = Seeded::new(seed);
    println!("{what}: CAUSEWAY_SEED={seed}");
    let mut tally: BTreeMap<String, u64> = BTreeMap::new();
    let mut one = |slot: usize, peer: u32, l3: &[u8]| {
        let vni = world.networks[slot].vni;
        let programs = run_program(&mut h, program, peer_paths[peer as usize], vni, l3);
        let workers = worker.run(peer, vni, l3);
        let mut end = programs
            .counters
            .keys()
            .map(|c| causeway_tests::harness::counter_name(*c))
            .collect::<Vec<_>>()
            .join("+");
        if programs != workers {
            let known = DIFFERENCES.iter().find(|d| (d.is)(l3, &programs, &workers));
            let Some(known) = known else {
                panic!(
                    "CAUSEWAY_SEED={seed}, {what}, VNI {vni}, packet of {} bytes:\n{}\
                     the program: {programs:x?}\na worker: {workers:x?}\n{}",
                    l3.len(),
                    dump::hex(l3),
                    h.describe()
                );
            };
            end = format!("rightly different: {}", known.why);
        }
        *tally.entry(end).or_default() += 1;
    };
    for &(slot, peer, net) in networks {
        for l3 in boundaries(net, hosts.0, hosts.1) {
            one(slot, peer, &l3);
        }
    }
    let packets = packets();
    for _ in 0..packets {
        let &(slot, peer, net) = rng.pick(networks);
        let l3 = inner(&mut rng, net, hosts.0, hosts.1);
        one(slot, peer, &l3);
    }
    for (end, count) in &tally {
        println!("  {count:>8} {end}");
    }
    // The packets got everywhere.
    if what != "idle" && packets >= 10_000 {
        for wanted in [
            "decapsulated",
            "decapsulated+mss_clamped",
            "slow_unresolved",
            "drop_malformed",
            "drop_not_carried",
            "drop_split_horizon",
            "drop_inner_source",
            "drop_link_local",
        ] {
            let seen = tally.get(wanted).copied().unwrap_or(0);
            assert!(seen >= 20, "{wanted}: {seen} packets of {tally:?}");
        }
    }
}

const PROVIDER_PATHS: [[&str; 2]; 3] = [
    [TENANT, PROVIDER],
    [TENANT2, PROVIDER],
    [TENANT6, PROVIDER6],
];
const PROVIDER_NETWORKS: [(usize, u32, u8); 4] = [(0, 0, 1), (1, 1, 1), (2, 2, 3), (3, 0, 4)];

#[test]
fn at_the_provider_a_worker_delivers_what_the_program_does() {
    compare(
        "provider",
        &World::provider(),
        Program::Uplink,
        &PROVIDER_PATHS,
        &PROVIDER_NETWORKS,
        (10, 11),
    );
}

#[test]
fn at_the_production_site_a_worker_delivers_what_the_program_does() {
    compare(
        "tenant",
        &World::tenant(),
        Program::Combined,
        &[[PROVIDER, TENANT]],
        &[(0, 0, 1), (1, 0, 2)],
        (11, 10),
    );
}

#[test]
fn without_gateways_and_resolved_hosts_both_agree() {
    let mut world = World::tenant();
    world.neighbours.clear();
    for network in &mut world.networks {
        network.gateway_v4 = Address::default();
        network.gateway_v6 = Address::default();
    }
    let Some(mut h) = Harness::new(world.clone()) else {
        return;
    };
    let peer_paths = [[PROVIDER, TENANT]];
    let mut worker = Worker::new(&world, &peer_paths);
    let mut rng = Seeded::new(seed_from_env());
    for _ in 0..packets() / 4 {
        // The program hands over as many packets as its tenant's budget permits.
        h.clear_budgets().expect("BUDGETS");
        let l3 = inner(&mut rng, 1, 11, 10);
        let programs = run_program(&mut h, Program::Combined, peer_paths[0], NET1, &l3);
        let workers = worker.run(0, NET1, &l3);
        assert!(
            programs == workers || DIFFERENCES.iter().any(|d| (d.is)(&l3, &programs, &workers)),
            "packet:\n{}the program: {programs:x?}\na worker: {workers:x?}",
            dump::hex(&l3)
        );
    }
}

#[test]
fn for_an_idle_tenant_neither_delivers() {
    compare(
        "idle",
        &World::provider().idle(),
        Program::Uplink,
        &PROVIDER_PATHS,
        &PROVIDER_NETWORKS,
        (10, 11),
    );
}
