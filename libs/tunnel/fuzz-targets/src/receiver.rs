//! A real session: the receiver delivers what the sender sealed, once, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tunnel::segment::{ControlMessage, Header};
use tunnel::{
    Cipher, Framing, InitiationPolicy, LoadLimits, OpenError, Output, Payload, PayloadKind,
    PeerConfig, ReassemblyLimits, Receiver, RxStats, Sender, TunnelControl,
};

use fuzzing::{Input, mutate};

use super::common::{Clock, Seeded, addresses, outputs, publics, secrets};

const ACTS: usize = 64;
const LANES: usize = 2;
/// Lifetime of the session, nanoseconds.
const SESSION_LIFETIME_NS: u64 = 180_000_000_000;
const LIMITS: ReassemblyLimits = ReassemblyLimits {
    slots: 2,
    max_packet: 700,
    timeout: Duration::from_millis(500),
};

/// Makes a session by a handshake, then seals plaintexts of the input, including invalid content,
/// and delivers it in any order, changed or not, to the right lane or a wrong one.
pub fn receiver(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(&mut input);
    for _ in 0..ACTS {
        if input.is_empty() {
            break;
        }
        world.act(&mut input);
    }
}

/// Sending halves of one end and receiving halves of the other.
pub(crate) fn session(
    clock: Clock,
    framing: Framing,
    cipher: Cipher,
) -> (Vec<Sender>, Vec<Receiver>) {
    let ([ours, theirs], [here, there, ..]) = (secrets(), addresses());
    let mut random = Seeded(1);
    let config = |key, dial, address| PeerConfig {
        framing,
        cipher,
        lanes: LANES as u32,
        paths: vec![address],
        ..PeerConfig::causeway(key, dial)
    };
    let mut one = TunnelControl::new(ours, LoadLimits::default());
    let mut two = TunnelControl::new(theirs, LoadLimits::default());
    one.add_peer(
        clock.instant(),
        config(publics()[1], InitiationPolicy::Always, there),
    );
    two.add_peer(
        clock.instant(),
        config(publics()[0], InitiationPolicy::Never, here),
    );
    let (mut sending, mut receiving) = (Vec::new(), Vec::new());
    one.handle_timeout(clock.now(), &mut random);
    for output in outputs(&mut one, 16) {
        if let Output::Transmit { datagram, .. } = output {
            let taken = two.handle_datagram(clock.now(), here, datagram.as_bytes(), &mut random);
            taken.expect("an honest initiation is taken");
        }
    }
    for output in outputs(&mut two, 16) {
        match output {
            Output::Transmit { datagram, .. } => {
                let taken =
                    one.handle_datagram(clock.now(), there, datagram.as_bytes(), &mut random);
                taken.expect("an honest response is taken");
            }
            Output::Receive { session, .. } => {
                let mut receiver = Receiver::new(framing, LIMITS);
                receiver.install(session);
                receiving.push(receiver);
            }
            _ => {}
        }
    }
    for output in outputs(&mut one, 16) {
        if let Output::Send { session, .. } = output {
            let mut sender = Sender::new(framing);
            sender.install(session);
            sending.push(sender);
        }
    }
    (sending, receiving)
}

struct Sealed {
    lane: usize,
    bytes: Vec<u8>,
}

struct World {
    clock: Clock,
    made: u64,
    framing: Framing,
    senders: Vec<Sender>,
    receivers: Vec<Receiver>,
    wire: Vec<Sealed>,
    /// Plaintexts by lane and counter.
    plain: BTreeMap<(usize, u64), Vec<u8>>,
    /// Accepted, by lane and counter.
    taken: BTreeSet<(usize, u64)>,
    /// Delivered after reassembly, by lane and counter of the first fragment.
    reassembled: BTreeSet<(usize, u64)>,
    opens: u64,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let framing = if input.flag() {
            Framing::WireGuard
        } else {
            Framing::Segments
        };
        let cipher = Cipher::ALL[input.below(2)];
        let clock = Clock::new();
        let (senders, receivers) = session(clock, framing, cipher);
        Self {
            clock,
            made: clock.mono,
            framing,
            senders,
            receivers,
            wire: Vec::new(),
            plain: BTreeMap::new(),
            taken: BTreeSet::new(),
            reassembled: BTreeSet::new(),
            opens: 0,
        }
    }

    /// Stores a sealed message. `plain`: the plaintext that was given.
    fn sealed(&mut self, lane: usize, plain: &[u8], bytes: &[u8]) {
        let mut counter = [0; 8];
        counter.copy_from_slice(&bytes[8..16]);
        let before = self
            .plain
            .insert((lane, u64::from_le_bytes(counter)), plain.to_vec());
        assert!(before.is_none(), "a counter was used twice");
        self.wire.push(Sealed {
            lane,
            bytes: bytes.to_vec(),
        });
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let lane = input.below(self.senders.len());
        let mut out = [0; 2048];
        let now = self.clock.instant();
        match input.below(10) {
            // Any plaintext.
            0 => {
                let len = input.below(256);
                let plain = input.bytes(len).to_vec();
                if let Ok(bytes) = self.senders[lane].seal_into(now, &[&plain], &mut out) {
                    self.sealed(lane, &plain, &out[..bytes]);
                }
            }
            // A fragment with a header from the input, and a body that is long enough for it.
            1 => {
                let last = input.u8() % 17;
                let stride = input.u8();
                let header = Header {
                    kind: PayloadKind::Ip,
                    network: 5,
                    stride: u16::from(stride),
                    index: input.u8() % 17,
                    last,
                };
                let mut plain = header.to_bytes().to_vec();
                plain.resize(8 + usize::from(stride), input.u8());
                if let Ok(bytes) = self.senders[lane].seal_into(now, &[&plain], &mut out) {
                    self.sealed(lane, &plain, &out[..bytes]);
                }
            }
            // A packet as an honest end sends it, in fragments if it is long.
            2 => {
                let mut packet = vec![input.u8(); 20 + usize::from(input.u16() % 3000)];
                if self.framing == Framing::WireGuard {
                    let len = packet.len() as u16;
                    packet[0] = 0x45;
                    packet[2..4].copy_from_slice(&len.to_be_bytes());
                }
                let mut all = Vec::new();
                if let Ok(mut fragments) =
                    self.senders[lane].fragments(now, PayloadKind::Ip, 5, &packet)
                {
                    while let Some(Ok(bytes)) = fragments.next_into(&mut out) {
                        all.push(out[..bytes].to_vec());
                    }
                }
                let many = all.len();
                let stride = packet.len().div_ceil(many.max(1));
                for (index, bytes) in all.iter().enumerate() {
                    let mut plain = Vec::new();
                    if self.framing == Framing::Segments {
                        let header = Header {
                            kind: PayloadKind::Ip,
                            network: 5,
                            stride: if many == 1 { 0 } else { stride as u16 },
                            index: index as u8,
                            last: many as u8 - 1,
                        };
                        plain.extend(header.to_bytes());
                    }
                    plain.extend(packet.chunks(stride).nth(index).unwrap_or_default());
                    self.sealed(lane, &plain, bytes);
                }
            }
            3 => {
                let (token, size) = (input.u64(), input.u16());
                let message = ControlMessage::Echo { token, size };
                let pad_to = usize::from(input.u16() % 2000);
                if let Ok(bytes) = self.senders[lane].seal_control(now, message, pad_to, &mut out) {
                    let mut plain = Header::whole(PayloadKind::Control, 0).to_bytes().to_vec();
                    plain.extend(message.to_bytes());
                    plain.resize(plain.len().max(pad_to.saturating_sub(32)), 0);
                    self.sealed(lane, &plain, &out[..bytes]);
                }
            }
            4 => {
                let nanos = u64::from(input.u16()) * 1_000_000;
                match input.below(4) {
                    0 => self.clock.advance(nanos * 100),
                    1 => self.clock.set(self.clock.mono.saturating_sub(nanos)),
                    _ => self.clock.advance(nanos),
                }
                self.receivers[lane].expire(self.clock.instant());
            }
            5 => {
                let len = input.below(256);
                let bytes = input.bytes(len).to_vec();
                self.open(lane, bytes);
            }
            6 | 7 => {
                if let Some(at) = self.pick(input) {
                    let (lane, mut bytes) = (self.wire[at].lane, self.wire[at].bytes.clone());
                    mutate(input, &mut bytes, 16);
                    self.open(lane, bytes);
                }
            }
            8 => {
                // To a wrong lane.
                if let Some(at) = self.pick(input) {
                    self.open(lane, self.wire[at].bytes.clone());
                }
            }
            _ => {
                if let Some(at) = self.pick(input) {
                    self.open(self.wire[at].lane, self.wire[at].bytes.clone());
                }
            }
        }
    }

    /// A message on the wire, counted from the newest.
    fn pick(&self, input: &mut Input<'_>) -> Option<usize> {
        let back = input.below(self.wire.len());
        self.wire.len().checked_sub(back + 1)
    }

    fn open(&mut self, lane: usize, mut datagram: Vec<u8>) {
        let original = datagram.clone();
        let genuine = self
            .wire
            .iter()
            .any(|sealed| sealed.lane == lane && sealed.bytes == original);
        let counter = original
            .get(8..16)
            .and_then(|bytes| bytes.first_chunk())
            .map(|bytes| u64::from_le_bytes(*bytes));
        let over = self.clock.mono >= self.made + SESSION_LIFETIME_NS;
        let from = addresses()[usize::from(original.last().copied().unwrap_or(0)) % 4];
        self.opens += 1;
        let receiver = &mut self.receivers[lane];
        let opened = receiver.open(self.clock.instant(), from, &mut datagram);
        match opened {
            Ok(opened) => {
                assert!(genuine, "a forged message was accepted");
                let counter = counter.expect("longer than a header");
                assert!(
                    self.taken.insert((lane, counter)),
                    "counter {counter} was accepted twice"
                );
                assert!(!over, "a session outlived its keys");
                judge(
                    self.framing,
                    &self.plain,
                    &self.taken,
                    &mut self.reassembled,
                    (lane, counter),
                    opened.payload,
                );
            }
            Err(error) if genuine => {
                let counter = counter.expect("longer than a header");
                let seen = self.taken.contains(&(lane, counter));
                let expected = match error {
                    OpenError::Expired { .. } => over,
                    OpenError::Duplicate { .. } => seen,
                    _ => false,
                };
                assert!(expected, "genuine counter {counter} refused: {error}");
            }
            Err(_) => {}
        }
        let counted: u64 = self
            .receivers
            .iter()
            .map(|receiver| refusals(&receiver.stats()) + receiver.stats().opened)
            .sum();
        assert_eq!(counted, self.opens, "every datagram is counted once");
    }
}

fn refusals(stats: &RxStats) -> u64 {
    stats.duplicates + stats.too_old + stats.forged + stats.no_session + stats.malformed
}

/// Whether an authentic message was parsed as it was sealed.
fn judge(
    framing: Framing,
    plain: &BTreeMap<(usize, u64), Vec<u8>>,
    taken: &BTreeSet<(usize, u64)>,
    reassembled: &mut BTreeSet<(usize, u64)>,
    (lane, counter): (usize, u64),
    payload: Payload<'_>,
) {
    let own = &plain[&(lane, counter)];
    if own.is_empty() {
        assert_eq!(payload, Payload::Keepalive);
        return;
    }
    if framing == Framing::WireGuard {
        match payload {
            Payload::Ip(packet) => {
                // A sealed packet may be padded with zeros.
                let mut padded = own.clone();
                padded.resize(padded.len().next_multiple_of(16), 0);
                assert!(padded.starts_with(packet) && packet.len() >= 20);
                let long = match packet[0] >> 4 {
                    4 => usize::from(packet[2]) << 8 | usize::from(packet[3]),
                    _ => 40 + (usize::from(packet[4]) << 8 | usize::from(packet[5])),
                };
                assert_eq!(packet.len(), long);
            }
            Payload::Invalid(_) => {}
            other => panic!("{other:?} from a WireGuard peer"),
        }
        return;
    }
    let read = Header::parse(own);
    match (payload, read) {
        (Payload::Invalid(_), _) => {}
        (Payload::Control(message), Ok((header, body))) => {
            assert_eq!(header.kind, PayloadKind::Control);
            assert_eq!(ControlMessage::parse(body), Ok(message));
        }
        (Payload::Fragment, Ok((header, _))) => assert!(!header.is_whole()),
        (
            Payload::Packet {
                kind,
                network,
                bytes,
            },
            Ok((header, body)),
        ) => {
            assert_eq!((kind, network), (header.kind, header.network));
            if header.is_whole() {
                assert_eq!(bytes, body);
                return;
            }
            let base = counter - u64::from(header.index);
            assert!(
                reassembled.insert((lane, base)),
                "a packet was delivered twice"
            );
            let mut joined = Vec::new();
            for index in 0..=header.last {
                let at = (lane, base + u64::from(index));
                assert!(
                    taken.contains(&at),
                    "a fragment that was never received was used"
                );
                let (fragment, body) =
                    Header::parse(&plain[&at]).expect("only fragments are reassembled");
                assert_eq!(fragment, Header { index, ..header });
                joined.extend_from_slice(body);
            }
            assert_eq!(bytes, joined);
        }
        (payload, read) => panic!("{payload:?} from {read:?}"),
    }
}
