//! Two pipelines and two control halves, joined by lists of frames: for tests, here and in
//! `tests/`, and for fuzzing.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use appliance_common::{
    addr::{Address, Prefix, from_ip},
    counters::Counter,
    events::SlowHeader,
    maps::{HostKey, Mode, Neighbour, Network, Tenant, network_flags},
    wire::SEGMENT_IP,
};
use tunnel::{
    Cipher, Framing, InitiationPolicy, Instant, LoadLimits, Now, Output, PeerConfig, PeerId,
    ReassemblyLimits, Receiver, RxSession, SecretKey, Sender, TunnelControl, TxSession,
};

pub use tunnel::testing::Seeded;

use crate::pipeline::{
    Command, Event, LANES, LaneAssignment, OuterHeader, PacketSink, PeerLanes, Pipeline, Sent,
    WorkerCounters, parse_datagram,
};

pub const UPLINK: u32 = 2;
pub const ACCESS: u32 = 3;
pub const VNI: u32 = 1001;

#[derive(Default)]
pub struct Memory {
    pub frames: Vec<(u32, Vec<u8>)>,
    pub events: Vec<Event>,
    pub waiting: Vec<(SlowHeader, Vec<u8>)>,
    /// For other workers.
    pub handed: Vec<(u32, Vec<u8>)>,
    pub full: bool,
    /// How many more are taken before it is full, if not all are.
    pub room: Option<usize>,
}

impl PacketSink for Memory {
    fn transmit(&mut self, ifindex: u32, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Sent {
        if self.full || self.room == Some(0) {
            return Sent::Full;
        }
        let mut frame = vec![0xee; 2048];
        match write(&mut frame) {
            Some(len) => {
                frame.truncate(len);
                self.frames.push((ifindex, frame));
                self.room = self.room.map(|room| room - 1);
                Sent::Queued
            }
            None => Sent::Abandoned,
        }
    }

    fn event(&mut self, event: Event) {
        self.events.push(event);
    }

    fn unresolved(&mut self, header: &SlowHeader, packet: &[u8]) -> bool {
        self.waiting.push((*header, packet.to_vec()));
        true
    }

    fn hand_over(&mut self, worker: u32, frame: &[u8]) -> bool {
        let room = !self.full;
        if room {
            self.handed.push((worker, frame.to_vec()));
        }
        room
    }
}

/// One appliance.
pub struct TestAppliance {
    pub control: TunnelControl,
    pub id: PeerId,
    /// Of its first worker.
    pub pipeline: Pipeline,
    pub counters: Arc<WorkerCounters>,
    pub others: Vec<(Pipeline, Arc<WorkerCounters>)>,
    pub wire: Memory,
    pub address: SocketAddr,
    pub handshakes: Vec<Vec<u8>>,
}

pub fn address(text: &str) -> Address {
    from_ip(text.parse().expect("an address"))
}

/// A prefix as the maps have it; an address alone is a whole one.
///
/// # Panics
/// When the text is none.
pub fn prefix(text: &str) -> Prefix {
    let net: failover::IpPrefix = text.parse().expect("a prefix");
    let offset = if net.address().is_ipv4() { 96 } else { 0 };
    Prefix::new(&from_ip(net.address()), net.length() + offset).expect("at most 128 bits")
}

pub fn at(ms: u64) -> Now {
    let mono = Instant::from_nanos(1_000_000_000 + ms * 1_000_000);
    Now {
        mono,
        unix: Duration::from_millis(1_700_000_000_000 + ms),
    }
}

impl TestAppliance {
    pub fn new(
        provider: bool,
        workers: u32,
        secret: SecretKey,
        peer: PeerConfig,
        addresses: [&str; 2],
    ) -> Self {
        let mut wire = Memory::default();
        let mut network = Network {
            vni: VNI,
            tenant: 0,
            peer: 0,
            flags: network_flags::ACTIVE
                | network_flags::SECURE
                | if provider { network_flags::PROVIDER } else { 0 },
            mtu: 1432,
            lan_mtu: u16::MAX,
            prefix_count: 2,
            gateway_v4: address("10.1.0.1"),
            ..Network::default()
        };
        for (place, net) in network
            .prefixes
            .iter_mut()
            .zip(["10.1.0.0/24", "2001:db8:1::/64"])
        {
            *place = prefix(net);
        }
        let local: SocketAddr = addresses[0].parse().expect("an address");
        let remote: SocketAddr = addresses[1].parse().expect("an address");
        let outer = OuterHeader::new(UPLINK, [9; 6], [8; 6], local, remote).expect("one family");
        let host = |text: &str| HostKey {
            vni: VNI,
            address: address(text),
        };
        let here = if provider {
            ["10.1.0.10", "2001:db8:1::10"]
        } else {
            ["10.1.0.11", "2001:db8:1::11"]
        };
        let mut all = Vec::new();
        for assignment in (0..workers).filter_map(|index| LaneAssignment::new(index, workers)) {
            let counters = Arc::new(WorkerCounters::default());
            let mut pipeline = Pipeline::new(assignment, 7, Arc::clone(&counters));
            let mut commands = vec![
                Command::Network(4, Some(Box::new(network))),
                Command::Tenant(
                    0,
                    Tenant {
                        mode: Mode::Partial as u32,
                        epoch: 1,
                    },
                ),
                Command::Peer(0, Some(Box::new(PeerLanes::appliance(assignment)))),
                Command::OuterHeader(0, Some(Box::new(outer))),
                Command::MaxDatagram(0, 1472),
            ];
            for endpoint in ["10.1.0.10", "2001:db8:1::10"] {
                commands.push(Command::Endpoint(host(endpoint), true));
            }
            for (last, text) in (1..).zip(here) {
                let vlan = if provider { 101 } else { 0 };
                let neighbour =
                    Neighbour::new(ACCESS, [2, 0, 0, 0, 0, last], [4; 6], vlan, 0, 0x8100);
                commands.push(Command::Neighbour(host(text), Some(Box::new(neighbour))));
            }
            for command in commands {
                pipeline.command(at(0).mono, command, &mut wire);
            }
            all.push((pipeline, counters));
        }
        let (pipeline, counters) = all.remove(0);
        let mut control = TunnelControl::new(secret, LoadLimits::default());
        let id = control.add_peer(at(0).mono, peer);
        Self {
            control,
            id,
            pipeline,
            counters,
            others: all,
            wire,
            address: local,
            handshakes: Vec::new(),
        }
    }

    pub fn drive(&mut self, now: Now) {
        let mut random = Seeded(u64::from(self.address.port()) + now.mono.as_nanos());
        self.control.handle_timeout(now, &mut random);
        for event in std::mem::take(&mut self.wire.events) {
            match event {
                Event::SessionConfirmed { index, .. } => {
                    self.control.confirm_session(now.mono, self.id, index);
                }
                Event::ControlMessage { message, .. } => {
                    self.control
                        .handle_control_message(now.mono, self.id, message);
                }
                Event::Activity { rx, .. } => {
                    if let Some(session) = rx.session {
                        self.control.confirm_session(now.mono, self.id, session);
                    }
                    if let (Some(path), Some(seen)) = (rx.path, rx.path_seen) {
                        self.control.follow_peer(now.mono, self.id, path, seen);
                    }
                }
                Event::HostUsed { .. } => {}
            }
        }
        while let Some(output) = self.control.poll_output() {
            let command = match output {
                Output::Transmit { datagram, .. } => {
                    self.handshakes.push(datagram.as_bytes().to_vec());
                    continue;
                }
                Output::Receive { session, lane, .. } => {
                    let opener = lane as usize % (1 + self.others.len());
                    self.command_worker(now, opener, Command::Receive(0, session));
                    continue;
                }
                Output::Send { session, lane, .. } => {
                    if lane as usize <= self.others.len() {
                        self.command_worker(
                            now,
                            lane as usize,
                            Command::Send(0, Box::new(session)),
                        );
                    }
                    continue;
                }
                Output::Path { path: address, .. } => {
                    for worker in 1..=self.others.len() {
                        self.command_worker(now, worker, Command::PeerPath(0, address));
                    }
                    Command::PeerPath(0, address)
                }
                Output::Retire { index, .. } => {
                    for worker in 1..=self.others.len() {
                        self.command_worker(now, worker, Command::Retire(0, index));
                    }
                    Command::Retire(0, index)
                }
                Output::Keepalive { .. } => Command::Keepalive(0),
                _ => continue,
            };
            self.command_worker(now, 0, command);
        }
    }

    /// Commands one worker.
    pub fn command_worker(&mut self, now: Now, worker: usize, command: Command) {
        let pipeline = match worker.checked_sub(1) {
            None => &mut self.pipeline,
            Some(other) => &mut self.others[other].0,
        };
        pipeline.command(now.mono, command, &mut self.wire);
    }

    pub fn take(&mut self) -> Vec<(u32, Vec<u8>)> {
        std::mem::take(&mut self.wire.frames)
    }

    pub fn open(&mut self, now: Now, frames: Vec<(u32, Vec<u8>)>) {
        for (_, frame) in frames {
            self.frame(now, 0, frame);
        }
    }

    /// Passes a packet of the network to the pipeline, as the programs do.
    pub fn seal(&mut self, now: Now, packet: &[u8]) {
        let mut frame = to_seal(4, VNI, packet);
        self.pipeline.frame(now.mono, &mut frame, &mut self.wire);
    }

    /// One worker's socket has a frame. Others get what it hands over; returns how many frames that
    /// is.
    pub fn frame(&mut self, now: Now, worker: usize, mut frame: Vec<u8>) -> usize {
        let mut handed = 0;
        let mut worker = worker;
        loop {
            let pipeline = match worker.checked_sub(1) {
                None => &mut self.pipeline,
                Some(other) => &mut self.others[other].0,
            };
            pipeline.frame(now.mono, &mut frame, &mut self.wire);
            let Some((to, next)) = self.wire.handed.pop() else {
                return handed;
            };
            assert!(self.wire.handed.is_empty(), "handed over twice");
            (worker, frame) = (to as usize, next);
            handed += 1;
        }
    }

    /// Commands the first worker.
    pub fn command(&mut self, now: Now, command: Command) {
        self.pipeline.command(now.mono, command, &mut self.wire);
    }

    pub fn count(&self, counter: Counter) -> u64 {
        let others = self.others.iter().map(|(_, counters)| counters);
        others
            .chain([&self.counters])
            .map(|counters| counters.counter(counter))
            .sum()
    }
}

/// A packet as the programs hand it over: of the network in `slot`, called `vni`.
pub fn to_seal(slot: u32, vni: u32, packet: &[u8]) -> Vec<u8> {
    let mut frame = slot.to_ne_bytes().to_vec();
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&((u32::from(SEGMENT_IP) << 24) | vni).to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(packet);
    frame
}

/// A peer whose messages the test composes, so that they may be of any content.
pub struct TestPeer {
    pub sender: Sender,
    pub receiver: Receiver,
    /// From where to where its datagrams go.
    pub path: [SocketAddr; 2],
}

impl TestPeer {
    /// A peer at an address, with a session; and the halves of that for the other end. `seed` tells
    /// it from others.
    pub fn new(framing: Framing, seed: u64, path: [&str; 2]) -> (Self, TxSession, Box<RxSession>) {
        let path = path.map(|text| text.parse::<SocketAddr>().expect("an address"));
        let secret = |last: u8| {
            let mut bytes = [last; 32];
            bytes[..8].copy_from_slice(&seed.to_le_bytes());
            SecretKey::from_bytes(&bytes)
        };
        let config = |key, dial, address| PeerConfig {
            framing,
            cipher: Cipher::ChaCha20Poly1305,
            paths: vec![address],
            ..PeerConfig::causeway(key, dial)
        };
        let mut random = Seeded(seed);
        let mut ours = TunnelControl::new(secret(1), LoadLimits::default());
        let mut theirs = TunnelControl::new(secret(2), LoadLimits::default());
        ours.add_peer(
            at(0).mono,
            config(secret(2).public(), InitiationPolicy::Always, path[0].into()),
        );
        let id = theirs.add_peer(
            at(0).mono,
            config(secret(1).public(), InitiationPolicy::Never, path[1].into()),
        );
        let mut test_peer = Self {
            sender: Sender::new(framing),
            receiver: Receiver::new(framing, ReassemblyLimits::default()),
            path,
        };
        let (mut tx, mut rx) = (None, None);
        ours.handle_timeout(at(0), &mut random);
        for _ in 0..2 {
            while let Some(output) = ours.poll_output() {
                match output {
                    Output::Transmit { datagram, .. } => {
                        let message = datagram.as_bytes();
                        let handled = theirs.handle_datagram(at(0), path[1], message, &mut random);
                        handled.expect("an honest handshake");
                    }
                    Output::Send { session, .. } => tx = Some(session),
                    Output::Receive { session, .. } => rx = Some(session),
                    _ => {}
                }
            }
            while let Some(output) = theirs.poll_output() {
                match output {
                    Output::Transmit { datagram, .. } => {
                        let message = datagram.as_bytes();
                        let handled = ours.handle_datagram(at(0), path[0], message, &mut random);
                        handled.expect("an honest handshake");
                    }
                    Output::Receive { session, .. } => {
                        theirs.confirm_session(at(0).mono, id, session.index());
                        test_peer.receiver.install(session);
                    }
                    Output::Send { session, .. } => test_peer.sender.install(session),
                    _ => {}
                }
            }
        }
        assert!(test_peer.sender.session().is_some(), "a session");
        (test_peer, tx.expect("a session"), rx.expect("a session"))
    }

    /// The headers by which the other end sends to it.
    pub fn outer(&self) -> OuterHeader {
        OuterHeader::new(UPLINK, [9; 6], [8; 6], self.path[1], self.path[0]).expect("one family")
    }

    /// Commands that make it the peer in a slot.
    pub fn commands(
        &self,
        slot: u32,
        lane: PeerLanes,
        (tx, rx): (TxSession, Box<RxSession>),
    ) -> [Command; 5] {
        [
            Command::Peer(slot, Some(Box::new(lane))),
            Command::OuterHeader(slot, Some(Box::new(self.outer()))),
            Command::MaxDatagram(slot, 1472),
            Command::Receive(slot, rx),
            Command::Send(slot, Box::new(tx)),
        ]
    }

    /// A frame with `plaintext` sealed, as it arrives.
    pub fn send(&mut self, now: Now, plaintext: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0; plaintext.len() + 32];
        let len = self
            .sender
            .seal_into(now.mono, &[plaintext], &mut datagram)
            .expect("a session");
        around(self.path, &datagram[..len])
    }

    /// Takes a frame: the plaintext's payload, if it is authentic.
    pub fn receive(&mut self, now: Now, frame: &[u8]) -> Option<Vec<u8>> {
        let (from, place) = parse_datagram(frame)?;
        let mut datagram = frame[place].to_vec();
        let opened = self.receiver.open(now.mono, from, &mut datagram).ok()?;
        match opened.payload {
            tunnel::Payload::Packet { network, bytes, .. } => {
                let mut out = network.to_be_bytes().to_vec();
                out.extend_from_slice(bytes);
                Some(out)
            }
            tunnel::Payload::Ip(bytes) => Some(bytes.to_vec()),
            _ => Some(Vec::new()),
        }
    }
}

/// A frame with a datagram.
pub fn around([from, to]: [SocketAddr; 2], datagram: &[u8]) -> Vec<u8> {
    let outer = OuterHeader::new(UPLINK, [8; 6], [9; 6], from, to).expect("one family");
    let mut frame = vec![0; outer.bytes() + datagram.len()];
    frame[outer.bytes()..].copy_from_slice(datagram);
    let len = outer
        .finish(&mut frame, datagram.len())
        .expect("not too long");
    frame.truncate(len);
    frame
}

/// A tenant's and a provider's side with a session between them.
pub fn pair() -> (TestAppliance, TestAppliance) {
    joined(["198.51.100.5:6180", "203.0.113.5:6180"])
}

pub fn joined(addresses: [&str; 2]) -> (TestAppliance, TestAppliance) {
    joined_with_workers(addresses, [1, 1])
}

/// With so many workers each.
pub fn joined_with_workers(
    addresses: [&str; 2],
    workers: [u32; 2],
) -> (TestAppliance, TestAppliance) {
    let (a, b) = (
        SecretKey::from_bytes(&[1; 32]),
        SecretKey::from_bytes(&[2; 32]),
    );
    let (of_a, of_b) = (a.public(), b.public());
    let to_provider = PeerConfig {
        lanes: LANES,
        paths: vec![
            addresses[1]
                .parse::<SocketAddr>()
                .expect("an address")
                .into(),
        ],
        ..PeerConfig::causeway(of_b, InitiationPolicy::Always)
    };
    let mut tenant = TestAppliance::new(false, workers[0], a, to_provider, addresses);
    let mut provider = TestAppliance::new(
        true,
        workers[1],
        b,
        PeerConfig {
            lanes: LANES,
            ..PeerConfig::causeway(of_a, InitiationPolicy::Never)
        },
        [addresses[1], addresses[0]],
    );
    for step in 0..4 {
        join(&mut tenant, &mut provider, at(step));
    }
    (tenant, provider)
}

/// Carries handshakes and frames between the two until there are no more.
pub fn join(tenant: &mut TestAppliance, provider: &mut TestAppliance, now: Now) {
    for step in 0..4 {
        tenant.drive(now);
        provider.drive(now);
        let mut random = Seeded(step + now.mono.as_nanos());
        for message in std::mem::take(&mut tenant.handshakes) {
            let handled =
                provider
                    .control
                    .handle_datagram(now, tenant.address, &message, &mut random);
            handled.expect("an honest handshake");
        }
        for message in std::mem::take(&mut provider.handshakes) {
            let handled =
                tenant
                    .control
                    .handle_datagram(now, provider.address, &message, &mut random);
            handled.expect("an honest handshake");
        }
        let frames = tenant.take();
        provider.open(now, frames);
        let (out, delivered) = provider
            .take()
            .into_iter()
            .partition(|(ifindex, _)| *ifindex == UPLINK);
        tenant.open(now, out);
        provider.wire.frames = delivered;
    }
}

pub fn packet(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let builder = match (
        from.parse::<IpAddr>().expect("an address"),
        to.parse::<IpAddr>().expect("an address"),
    ) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            etherparse::PacketBuilder::ipv4(from.octets(), to.octets(), 64)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            etherparse::PacketBuilder::ipv6(from.octets(), to.octets(), 64)
        }
        _ => panic!("two families"),
    };
    let mut out = Vec::new();
    builder
        .udp(1000, 2000)
        .write(&mut out, payload)
        .expect("a packet");
    out
}
