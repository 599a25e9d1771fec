//! Two pipelines and two control halves, joined by lists of frames: for tests, here and in `tests/`, and for
//! fuzzing.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use appliance_common::{
    addr::{Address, from_ip},
    counters::Counter,
    events::SlowHeader,
    maps::{HostKey, Mode, Neighbour, Network, Tenant, network_flags},
    wire::SEGMENT_IP,
};
use appliance_user::{
    config::Net,
    secure::pipeline::{Command, Counted, Event, Lane, Outer, Pipeline, Sent, Wire},
};
use tunnel::{
    Dial, Instant, LoadLimits, Now, Output, PeerConfig, PeerId, Random, SecretKey, TunnelControl,
};

pub const UPLINK: u32 = 2;
pub const ACCESS: u32 = 3;
pub const VNI: u32 = 1001;

/// A seeded generator (SplitMix64).
pub struct Seeded(pub u64);

impl Random for Seeded {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let bytes = (z ^ (z >> 31)).to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

#[derive(Default)]
pub struct Memory {
    pub frames: Vec<(u32, Vec<u8>)>,
    pub events: Vec<Event>,
    pub waiting: Vec<(SlowHeader, Vec<u8>)>,
    pub full: bool,
}

impl Wire for Memory {
    fn transmit(&mut self, ifindex: u32, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Sent {
        if self.full {
            return Sent::Full;
        }
        let mut frame = vec![0xee; 2048];
        match write(&mut frame) {
            Some(len) => {
                frame.truncate(len);
                self.frames.push((ifindex, frame));
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
}

/// One appliance.
pub struct Side {
    pub control: TunnelControl,
    pub id: PeerId,
    pub pipeline: Pipeline,
    pub counted: Arc<Counted>,
    pub wire: Memory,
    pub address: SocketAddr,
    pub handshakes: Vec<Vec<u8>>,
}

pub fn address(text: &str) -> Address {
    from_ip(text.parse().expect("an address"))
}

pub fn at(ms: u64) -> Now {
    let mono = Instant::from_nanos(1_000_000_000 + ms * 1_000_000);
    Now {
        mono,
        unix: Duration::from_millis(1_700_000_000_000 + ms),
    }
}

impl Side {
    pub fn new(provider: bool, secret: SecretKey, peer: PeerConfig, addresses: [&str; 2]) -> Self {
        let counted = Arc::new(Counted::default());
        let mut pipeline = Pipeline::new(7, Arc::clone(&counted));
        let mut wire = Memory::default();
        let mut network = Network {
            vni: VNI,
            tenant: 0,
            peer: 0,
            flags: network_flags::ACTIVE
                | network_flags::SECURE
                | if provider { network_flags::PROVIDER } else { 0 },
            mtu: 1432,
            prefix_count: 2,
            gateway_v4: address("10.1.0.1"),
            ..Network::default()
        };
        for (place, (net, length)) in network
            .prefixes
            .iter_mut()
            .zip([("10.1.0.0", 24), ("2001:db8:1::", 64)])
        {
            let net = Net {
                address: net.parse().expect("an address"),
                length,
            };
            *place = net.prefix();
        }
        let local: SocketAddr = addresses[0].parse().expect("an address");
        let remote = addresses[1].parse().expect("an address");
        let outer = Outer::new(UPLINK, [9; 6], [8; 6], local, remote).expect("one family");
        let host = |text: &str| HostKey {
            vni: VNI,
            address: address(text),
        };
        let mut commands = vec![
            Command::Network(4, Some(Box::new(network))),
            Command::Tenant(
                0,
                Tenant {
                    mode: Mode::Partial as u32,
                    epoch: 1,
                },
            ),
            Command::Peer(0, Some(Box::new(Lane::appliance()))),
            Command::Outer(0, Some(Box::new(outer))),
            Command::MaxDatagram(0, 1472),
        ];
        for endpoint in ["10.1.0.10", "2001:db8:1::10"] {
            commands.push(Command::Endpoint(host(endpoint), true));
        }
        let here = if provider {
            ["10.1.0.10", "2001:db8:1::10"]
        } else {
            ["10.1.0.11", "2001:db8:1::11"]
        };
        for (last, text) in (1..).zip(here) {
            let vlan = if provider { 101 } else { 0 };
            let neighbour = Neighbour::new(ACCESS, [2, 0, 0, 0, 0, last], [4; 6], vlan, 0, 0x8100);
            commands.push(Command::Neighbour(host(text), Some(Box::new(neighbour))));
        }
        for command in commands {
            pipeline.command(at(0).mono, command, &mut wire);
        }
        let mut control = TunnelControl::new(secret, LoadLimits::default());
        let id = control.add_peer(at(0).mono, peer);
        Self {
            control,
            id,
            pipeline,
            counted,
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
                Event::Confirmed { index, .. } => {
                    self.control.confirmed(now.mono, self.id, index);
                }
                Event::Moved { address, .. } => self.control.moved(now.mono, self.id, address),
                Event::Word { word, .. } => self.control.control_word(now.mono, self.id, word),
                Event::Report { .. } | Event::Used { .. } => {}
            }
        }
        while let Some(output) = self.control.poll_output() {
            let command = match output {
                Output::Transmit { datagram, .. } => {
                    self.handshakes.push(datagram.as_bytes().to_vec());
                    continue;
                }
                Output::Receive { session, .. } => Command::Receive(0, session),
                Output::Send { session, .. } => Command::Send(0, Box::new(session)),
                Output::Keepalive { .. } => Command::Keepalive(0),
                Output::Address { address, .. } => Command::Address(0, address),
                _ => continue,
            };
            self.pipeline.command(now.mono, command, &mut self.wire);
        }
    }

    pub fn take(&mut self) -> Vec<(u32, Vec<u8>)> {
        std::mem::take(&mut self.wire.frames)
    }

    pub fn open(&mut self, now: Now, frames: Vec<(u32, Vec<u8>)>) {
        for (_, mut frame) in frames {
            self.pipeline.frame(now.mono, &mut frame, &mut self.wire);
        }
    }

    /// What the programs hand over for a packet of the network.
    pub fn seal(&mut self, now: Now, packet: &[u8]) {
        let mut frame = Vec::new();
        frame.extend_from_slice(&4_u32.to_ne_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&((u32::from(SEGMENT_IP) << 24) | VNI).to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(packet);
        self.pipeline.frame(now.mono, &mut frame, &mut self.wire);
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.counted.counter(counter)
    }
}

/// A tenant's and a provider's side with a session between them.
pub fn pair() -> (Side, Side) {
    joined(["198.51.100.5:6180", "203.0.113.5:6180"])
}

pub fn joined(addresses: [&str; 2]) -> (Side, Side) {
    let (a, b) = (
        SecretKey::from_bytes(&[1; 32]),
        SecretKey::from_bytes(&[2; 32]),
    );
    let (of_a, of_b) = (a.public(), b.public());
    let to_provider = PeerConfig {
        addresses: vec![addresses[1].parse().expect("an address")],
        ..PeerConfig::causeway(of_b, Dial::Always)
    };
    let mut tenant = Side::new(false, a, to_provider, addresses);
    let mut provider = Side::new(
        true,
        b,
        PeerConfig::causeway(of_a, Dial::Never),
        [addresses[1], addresses[0]],
    );
    for step in 0..4 {
        join(&mut tenant, &mut provider, at(step));
    }
    (tenant, provider)
}

/// Carries handshakes and frames between the two until there are no more.
pub fn join(tenant: &mut Side, provider: &mut Side, now: Now) {
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
