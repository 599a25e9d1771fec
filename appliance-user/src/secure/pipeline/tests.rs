//! Two pipelines and two control halves, joined by lists of frames.

use std::net::{IpAddr, SocketAddr};

use appliance_common::{
    addr::from_ip,
    maps::{Endpoint, Mode, network_flags},
    wire::{SEGMENT_IP, mss_for},
};
use tunnel::{Dial, LoadLimits, Now, Output, PeerConfig, PeerId, Random, SecretKey, TunnelControl};

use super::*;
use crate::config::Net;

const UPLINK: u32 = 2;
const ACCESS: u32 = 3;
const VNI: u32 = 1001;

/// A seeded generator (SplitMix64).
struct Seeded(u64);

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
struct Memory {
    frames: Vec<(u32, Vec<u8>)>,
    events: Vec<Event>,
    waiting: Vec<(SlowHeader, Vec<u8>)>,
    full: bool,
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
struct Side {
    control: TunnelControl,
    id: PeerId,
    pipeline: Pipeline,
    counted: Arc<Counted>,
    wire: Memory,
    address: SocketAddr,
    handshakes: Vec<Vec<u8>>,
}

fn address(text: &str) -> Address {
    from_ip(text.parse().expect("an address"))
}

fn at(ms: u64) -> Now {
    let mono = Instant::from_nanos(1_000_000_000 + ms * 1_000_000);
    Now {
        mono,
        unix: std::time::Duration::from_millis(1_700_000_000_000 + ms),
    }
}

impl Side {
    fn new(provider: bool, secret: SecretKey, peer: PeerConfig, addresses: [&str; 2]) -> Self {
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
        let _ = Endpoint::default();
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

    fn drive(&mut self, now: Now) {
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
                _ => continue,
            };
            self.pipeline.command(now.mono, command, &mut self.wire);
        }
    }

    fn take(&mut self) -> Vec<(u32, Vec<u8>)> {
        std::mem::take(&mut self.wire.frames)
    }

    fn open(&mut self, now: Now, frames: Vec<(u32, Vec<u8>)>) {
        for (_, mut frame) in frames {
            self.pipeline.frame(now.mono, &mut frame, &mut self.wire);
        }
    }

    /// What the programs hand over for a packet of the network.
    fn seal(&mut self, now: Now, packet: &[u8]) {
        let mut frame = Vec::new();
        frame.extend_from_slice(&4_u32.to_ne_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&((u32::from(SEGMENT_IP) << 24) | VNI).to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(packet);
        self.pipeline.frame(now.mono, &mut frame, &mut self.wire);
    }

    fn count(&self, counter: Counter) -> u64 {
        self.counted.counter(counter)
    }
}

/// A tenant's and a provider's side with a session between them.
fn pair() -> (Side, Side) {
    joined(["198.51.100.5:6180", "203.0.113.5:6180"])
}

fn joined(addresses: [&str; 2]) -> (Side, Side) {
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
fn join(tenant: &mut Side, provider: &mut Side, now: Now) {
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

fn packet(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
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

#[test]
fn a_packet_crosses_byte_for_byte() {
    for (from, to) in [
        ("10.1.0.11", "10.1.0.10"),
        ("2001:db8:1::11", "2001:db8:1::10"),
    ] {
        let (mut tenant, mut provider) = pair();
        let sent = packet(from, to, b"what a machine says");
        tenant.seal(at(10), &sent);
        let frames = tenant.take();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].0, UPLINK);
        assert!(!frames[0].1.windows(8).any(|w| w == b"what a m"));
        provider.open(at(11), frames);
        let out = provider.take();
        let [(ifindex, frame)] = out.as_slice() else {
            panic!("{} frames", out.len());
        };
        assert_eq!(*ifindex, ACCESS);
        assert_eq!(frame[12..14], [0x81, 0]);
        assert_eq!(u16::from_be_bytes([frame[14], frame[15]]), 101);
        assert_eq!(frame[18..], sent);
        assert_eq!(provider.count(Counter::Decapsulated), 1);
        assert_eq!(provider.counted.network(4).rx_bytes, sent.len() as u64);
        assert_eq!(tenant.counted.network(4).tx_packets, 1);
    }
}

#[test]
fn over_ipv6_the_outer_checksum_is_right() {
    let (mut tenant, mut provider) = joined(["[2001:db8:5::1]:6180", "[2001:db8:6::1]:6180"]);
    for len in [1, 2, 7, 500, 1300] {
        tenant.seal(at(10), &packet("10.1.0.11", "10.1.0.10", &vec![0x77; len]));
        let frames = tenant.take();
        let datagram = &frames[0].1;
        let headers = etherparse::PacketHeaders::from_ethernet_slice(datagram).expect("a frame");
        let (
            Some(etherparse::NetHeaders::Ipv6(ip, _)),
            Some(etherparse::TransportHeader::Udp(udp)),
        ) = (headers.net, headers.transport)
        else {
            panic!("no UDP over IPv6");
        };
        let wanted = udp.calc_checksum_ipv6(&ip, headers.payload.slice());
        assert_eq!(Ok(udp.checksum), wanted.map_err(|_| ()));
        provider.open(at(11), frames);
    }
    assert_eq!(provider.count(Counter::Decapsulated), 5);
}

#[test]
fn a_longer_packet_goes_in_pieces_and_arrives_whole() {
    let (mut tenant, mut provider) = pair();
    let sent = packet("10.1.0.11", "10.1.0.10", &[0x5a; 1472]);
    tenant.seal(at(10), &sent);
    let frames = tenant.take();
    assert_eq!(frames.len(), 2);
    assert!(frames.iter().all(|(_, frame)| frame.len() <= 14 + 1500));
    provider.open(at(11), frames);
    let out = provider.take();
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].1[18..], sent);
    assert_eq!(tenant.count(Counter::SplitInTunnel), 1);
    provider.pipeline.report(at(20).mono, &mut provider.wire);
    assert_eq!(provider.count(Counter::Rejoined), 1);
}

#[test]
fn what_was_seen_or_touched_is_refused() {
    let (mut tenant, mut provider) = pair();
    tenant.seal(at(10), &packet("10.1.0.11", "10.1.0.10", b"once"));
    let frames = tenant.take();
    provider.open(at(11), frames.clone());
    provider.open(at(12), frames.clone());
    assert_eq!(provider.count(Counter::DropReplayed), 1);
    tenant.seal(at(13), &packet("10.1.0.11", "10.1.0.10", b"twice"));
    let mut frames = tenant.take();
    frames[0].1[60] ^= 1;
    provider.open(at(14), frames);
    assert_eq!(provider.count(Counter::DropForged), 1);
    assert_eq!(provider.take().len(), 1);
}

#[test]
fn a_syn_is_clamped_to_what_the_tunnel_carries() {
    let (mut tenant, mut provider) = pair();
    let mut sent = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 1, 0, 11], [10, 1, 0, 10], 64)
        .tcp(1, 2, 3, 4)
        .syn()
        .options(&[
            etherparse::TcpOptionElement::Noop,
            etherparse::TcpOptionElement::MaximumSegmentSize(1460),
        ])
        .expect("options")
        .write(&mut sent, &[])
        .expect("a packet");
    tenant.seal(at(10), &sent);
    let frames = tenant.take();
    provider.open(at(11), frames);
    let out = provider.take();
    let headers = etherparse::PacketHeaders::from_ethernet_slice(&out[0].1).expect("a frame");
    let (Some(etherparse::NetHeaders::Ipv4(ip, _)), Some(etherparse::TransportHeader::Tcp(tcp))) =
        (headers.net, headers.transport)
    else {
        panic!("no TCP over IPv4");
    };
    let mss = tcp.options_iterator().find_map(|option| match option {
        Ok(etherparse::TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
        _ => None,
    });
    assert_eq!(mss, Some(mss_for(1432, false)));
    assert_eq!(tcp.calc_checksum_ipv4(&ip, &[]), Ok(tcp.checksum));
    assert_eq!(provider.count(Counter::MssClamped), 1);
}

#[test]
fn a_packet_without_a_resolved_host_waits() {
    let (mut tenant, mut provider) = pair();
    let sent = packet("10.1.0.10", "10.1.0.77", b"who is there");
    provider.seal(at(10), &sent);
    let frames = provider.take();
    tenant.open(at(11), frames);
    assert!(tenant.take().is_empty());
    let [(header, waiting)] = tenant.wire.waiting.as_slice() else {
        panic!("nothing waits");
    };
    assert_eq!(header.next_hop, address("10.1.0.77"));
    assert_eq!(*waiting, sent);
}

fn segment(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 1, 0, 11], [10, 1, 0, 10], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut out, payload)
        .expect("a packet");
    out
}

#[test]
fn after_a_silence_the_newest_segment_of_a_flow_is_sent_again() {
    let (mut tenant, mut provider) = pair();
    tenant
        .pipeline
        .command(at(10).mono, Command::Silent(0), &mut tenant.wire);
    for payload in [&b"old"[..], b"new", b""] {
        tenant.seal(at(20), &segment(payload));
    }
    tenant.seal(
        at(21),
        &packet("10.1.0.11", "10.1.0.10", b"datagrams are not kept"),
    );
    // All of it was sent, into the void.
    assert_eq!(tenant.take().len(), 4);
    provider.seal(at(30), &packet("10.1.0.10", "10.1.0.11", b"here again"));
    let frames = provider.take();
    tenant.open(at(31), frames);
    let frames: Vec<_> = tenant
        .take()
        .into_iter()
        .filter(|(ifindex, _)| *ifindex == UPLINK)
        .collect();
    assert_eq!(frames.len(), 1);
    provider.open(at(32), frames);
    assert_eq!(provider.take()[0].1[18..], segment(b"new"));
    assert_eq!(tenant.count(Counter::Released), 1);
    // Once, and not again.
    provider.seal(at(40), &packet("10.1.0.10", "10.1.0.11", b"and again"));
    let frames = provider.take();
    tenant.open(at(41), frames);
    assert_eq!(tenant.count(Counter::Released), 1);
}

#[test]
fn without_a_session_a_segment_waits_for_the_next_for_two_minutes_at_most() {
    for (wait, wanted) in [(119_000, 1), (121_000, 0)] {
        let (mut tenant, mut provider) = pair();
        // Sessions end after three minutes.
        tenant.seal(at(200_000), &segment(b"kept"));
        assert_eq!(tenant.count(Counter::Parked), 1);
        assert_eq!(tenant.count(Counter::DropNoSession), 0);
        assert!(tenant.take().is_empty());
        let now = at(200_000 + wait);
        join(&mut tenant, &mut provider, now);
        assert_eq!(tenant.count(Counter::Released), wanted);
        let frames = provider.take();
        assert_eq!(
            frames.iter().filter(|(at, _)| *at == ACCESS).count() as u64,
            wanted
        );
    }
}
