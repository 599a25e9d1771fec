//! The handshake and data messages against an independent WireGuard (boringtun), over UDP on
//! loopback: as initiator and as responder, with and without a preshared key.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use tunnel::testing::Seeded;
use tunnel::{
    InitiationPolicy, Instant, LoadLimits, Now, Payload, PayloadKind, PeerConfig, PeerId, PeerPath,
    PresharedKey, ReassemblyLimits, SealError, SecretKey, Tunnel,
};

/// An IPv4 packet of `len` bytes with a recognisable content.
fn ip_packet(len: u16, tag: u8) -> Vec<u8> {
    let mut packet = vec![tag; usize::from(len)];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    packet
}

struct Pair {
    random: Seeded,
    started: std::time::Instant,
    ours: Tunnel,
    peer: PeerId,
    socket: UdpSocket,
    theirs: Tunn,
    their_socket: UdpSocket,
    their_address: SocketAddr,
    our_address: SocketAddr,
}

impl Pair {
    fn new(seed: u64, shared: Option<[u8; 32]>) -> Self {
        let mut random = Seeded(seed);
        let secret = SecretKey::generate(&mut random);
        let their_secret = SecretKey::generate(&mut random);
        let theirs = Tunn::new(
            x25519::StaticSecret::from(*their_secret.expose()),
            x25519::PublicKey::from(*secret.public().as_bytes()),
            shared,
            None,
            7,
            None,
        );
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let their_socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for socket in [&socket, &their_socket] {
            socket
                .set_read_timeout(Some(Duration::from_millis(20)))
                .unwrap();
        }
        let (our_address, their_address) = (
            socket.local_addr().unwrap(),
            their_socket.local_addr().unwrap(),
        );
        let mut ours = Tunnel::new(secret, LoadLimits::default(), ReassemblyLimits::default());
        let peer = ours.add_peer(
            Instant::ORIGIN,
            PeerConfig {
                paths: vec![their_address.into()],
                initiation: InitiationPolicy::OnDemand,
                preshared_key: shared.map_or_else(PresharedKey::none, PresharedKey::from_bytes),
                ..PeerConfig::wireguard(their_secret.public())
            },
        );
        let started = std::time::Instant::now();
        Self {
            random,
            started,
            ours,
            peer,
            socket,
            theirs,
            their_socket,
            their_address,
            our_address,
        }
    }

    fn now(&self) -> Now {
        Now {
            mono: Instant::from_nanos(self.started.elapsed().as_nanos() as u64),
            unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap(),
        }
    }

    fn we_send(&mut self, packet: &[u8]) -> Result<(), SealError> {
        let (now, socket) = (self.now(), &self.socket);
        let sent = self.ours.send(
            now.mono,
            self.peer,
            0,
            PayloadKind::Ip,
            0,
            packet,
            &mut |to, bytes| {
                socket.send_to(bytes, to.address().unwrap()).unwrap();
            },
        );
        self.poll();
        sent
    }

    fn poll(&mut self) {
        let (now, socket) = (self.now(), &self.socket);
        let transmit = &mut |to: PeerPath, bytes: &[u8]| {
            socket.send_to(bytes, to.address().unwrap()).unwrap();
        };
        self.ours
            .poll(now, &mut self.random, transmit, &mut |_, _| {});
    }

    /// Receives datagrams; yields the packets in them.
    fn we_receive(&mut self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2048];
        let mut packets = Vec::new();
        while let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
            let now = self.now();
            let deliver = &mut |_: PeerId, payload: Payload<'_>| {
                if let Payload::Ip(packet) = payload {
                    packets.push(packet.to_vec());
                }
            };
            self.ours
                .receive(
                    now,
                    from.into(),
                    &mut buffer[..len],
                    &mut self.random,
                    deliver,
                )
                .unwrap();
            self.poll();
        }
        packets
    }

    fn they_send(&mut self, packet: &[u8]) {
        let mut out = [0; 2048];
        if let TunnResult::WriteToNetwork(bytes) = self.theirs.encapsulate(packet, &mut out) {
            self.their_socket.send_to(bytes, self.our_address).unwrap();
        }
    }

    fn they_receive(&mut self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2048];
        let mut packets = Vec::new();
        while let Ok((len, _)) = self.their_socket.recv_from(&mut buffer) {
            let mut out = [0; 2048];
            let mut datagram = &buffer[..len];
            loop {
                match self
                    .theirs
                    .decapsulate(Some(self.our_address.ip()), datagram, &mut out)
                {
                    TunnResult::WriteToNetwork(bytes) => {
                        self.their_socket.send_to(bytes, self.our_address).unwrap();
                        datagram = &[];
                    }
                    TunnResult::WriteToTunnelV4(packet, _)
                    | TunnResult::WriteToTunnelV6(packet, _) => {
                        packets.push(packet.to_vec());
                        break;
                    }
                    TunnResult::Done => break,
                    TunnResult::Err(error) => {
                        panic!("boringtun refused a datagram of ours: {error:?}")
                    }
                }
            }
        }
        packets
    }

    /// Packets of many lengths modulo the padding, up to WireGuard's usual MTU, both ways.
    fn exchange(&mut self) {
        for len in [20, 21, 31, 32, 33, 100, 576, 1180, 1408, 1409, 1420] {
            let packet = ip_packet(len, len as u8);
            self.we_send(&packet).unwrap();
            assert_eq!(
                self.they_receive(),
                std::slice::from_ref(&packet),
                "{len} bytes to boringtun"
            );
            self.they_send(&packet);
            assert_eq!(self.we_receive(), [packet], "{len} bytes from boringtun");
        }
    }
}

#[test]
fn we_initiate_and_boringtun_answers() {
    for shared in [None, Some([0x77; 32])] {
        let mut pair = Pair::new(1, shared);
        assert_eq!(pair.we_send(&ip_packet(60, 1)), Err(SealError::NoSession));
        assert!(pair.they_receive().is_empty());
        assert!(pair.we_receive().is_empty());
        assert!(
            pair.they_receive().is_empty(),
            "our keep-alive confirms the session"
        );
        let status = pair.ours.status(pair.now().mono, pair.peer).unwrap();
        assert!(status.session_since.is_some(), "{status:?}");
        assert_eq!(status.path, Some(pair.their_address.into()));
        pair.exchange();
    }
}

#[test]
fn padding_never_makes_a_datagram_longer_than_the_path() {
    let mut pair = Pair::new(4, None);
    assert_eq!(pair.we_send(&ip_packet(60, 1)), Err(SealError::NoSession));
    assert!(pair.they_receive().is_empty());
    assert!(pair.we_receive().is_empty());
    let status = pair.ours.status(pair.now().mono, pair.peer).unwrap();
    assert_eq!(
        status.max_datagram, 1452,
        "1500 less the headers of IPv6 and UDP"
    );
    for (packet, datagram) in [(1408, 1440), (1409, 1452), (1419, 1452), (1420, 1452)] {
        let now = pair.now();
        let mut seen = Vec::new();
        pair.ours
            .send(
                now.mono,
                pair.peer,
                0,
                PayloadKind::Ip,
                0,
                &ip_packet(packet, 1),
                &mut |_, bytes| seen.push(bytes.len()),
            )
            .unwrap();
        assert_eq!(seen, [datagram], "{packet} bytes inside");
    }
    assert_eq!(
        pair.we_send(&ip_packet(1421, 1)),
        Err(SealError::TooLong {
            len: 1421,
            limit: 1420
        })
    );
}

#[test]
fn boringtun_initiates_and_we_answer() {
    for shared in [None, Some([0x78; 32])] {
        let mut pair = Pair::new(2, shared);
        let first = ip_packet(60, 1);
        pair.they_send(&first);
        assert!(pair.we_receive().is_empty(), "only the handshake so far");
        // boringtun sends a keep-alive and then what it had queued.
        assert!(pair.they_receive().is_empty());
        assert_eq!(pair.we_receive(), [first]);
        pair.exchange();
    }
}

#[test]
fn a_wrong_shared_key_gives_no_session() {
    let mut pair = Pair::new(3, Some([1; 32]));
    let key = pair.ours.control().public_key();
    assert_eq!(key.to_string().len(), 44);
    let mut random = Seeded(9);
    let mut other = Tunnel::new(
        SecretKey::generate(&mut random),
        LoadLimits::default(),
        ReassemblyLimits::default(),
    );
    let stranger = other.add_peer(
        Instant::ORIGIN,
        PeerConfig {
            paths: vec![pair.our_address.into()],
            ..PeerConfig::wireguard(*pair.ours.control().public_key())
        },
    );
    let now = pair.now();
    let mut first = Vec::new();
    assert!(
        other
            .send(
                now.mono,
                stranger,
                0,
                PayloadKind::Ip,
                0,
                &ip_packet(60, 1),
                &mut |_, _| {}
            )
            .is_err()
    );
    other.poll(
        now,
        &mut random,
        &mut |_, bytes| first.push(bytes.to_vec()),
        &mut |_, _| {},
    );
    assert_eq!(first.len(), 1);
    let refused = pair.ours.receive(
        now,
        pair.their_address.into(),
        &mut first[0],
        &mut random,
        &mut |_, _| {},
    );
    assert!(
        refused.is_err(),
        "a key that is not configured gets no answer"
    );
    pair.poll();
    let mut buffer = [0; 256];
    assert!(
        pair.their_socket.recv_from(&mut buffer).is_err(),
        "no reply to an unknown key"
    );
}
