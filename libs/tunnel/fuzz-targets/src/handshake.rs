//! Handshakes between two ends over a path on which an attacker reads, stores, changes and forges
//! messages.

use std::collections::BTreeSet;

use tunnel::wire::Message;
use tunnel::{
    COOKIE_LIFETIME, InitiationPolicy, Instant, LoadLimits, OpenError, Output, Payload,
    PayloadKind, PeerConfig, PeerId, PeerPath, PresharedKey, PublicKey, ReassemblyLimits, Receiver,
    Rejected, Sender, TunnelControl,
};

use fuzzing::{Input, mutate};

use super::common::{Clock, Seeded, addresses, le32, outputs, publics, secrets, stamp};

const ACTS: usize = 48;
/// Messages that the attacker stores.
const MAX_RECORDED: usize = 64;

/// Acts on two ends, of which one initiates: time, genuine messages in any order, changed ones with
/// or without a valid mac1, forged ones; with and without load.
pub fn handshake(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(&mut input);
    for _ in 0..ACTS {
        if input.is_empty() {
            break;
        }
        world.act(&mut input);
    }
}

struct End {
    control: TunnelControl,
    key: PublicKey,
    peer: PeerId,
    sender: Sender,
    receiver: Receiver,
    /// Sessions that the receiver was given: name, and since when.
    live_sessions: Vec<(u32, Instant)>,
    handled: u64,
    /// Cookies taken, for which there is no counter.
    cookies: u64,
    /// The cookie taken last, and when.
    cookie: Option<(Cookie, u64)>,
    /// When the secret behind the cookies was drawn.
    drawn: Option<u64>,
}

/// A cookie: for which address, and when the secret behind it was drawn.
type Cookie = (PeerPath, u64);

struct Sent {
    by: usize,
    bytes: Vec<u8>,
    /// The cookie of its mac2.
    cookie: Option<Cookie>,
}

struct World {
    clock: Clock,
    random: Seeded,
    /// Whether every handshake needs a cookie.
    loaded: bool,
    ends: [End; 2],
    wire: Vec<Sent>,
    /// Cookie replies, and the cookies in them.
    replies: Vec<(Vec<u8>, Cookie)>,
    /// Noise parts of handshake messages that were accepted.
    accepted: BTreeSet<(usize, Vec<u8>)>,
    /// Sessions made from a response that was changed on the way: the index for sending is wrong.
    spoiled: bool,
}

/// The part of a message that only its sender can make.
fn proven(message: &[u8]) -> &[u8] {
    match message[0] {
        1 => &message[8..116],
        2 => &message[12..60],
        _ => &message[8..64],
    }
}

/// Whether a cookie or a secret of that moment is still valid.
fn fresh(clock: Clock, at: u64) -> bool {
    clock.instant().since(Instant::from_nanos(at)) < COOKIE_LIFETIME
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let flags = input.u8();
        let load = LoadLimits {
            cookie_threshold: [200, 2, 0, 5][usize::from(flags % 4)],
            per_source: 4,
            burst: 2,
        };
        let clock = Clock::new();
        let shared = PresharedKey::from_bytes([flags & 4; 32]);
        let keys = secrets();
        let end = |own: usize| {
            let mut control = TunnelControl::new(keys[own].clone(), load);
            let dial = if own == 0 {
                InitiationPolicy::Always
            } else {
                InitiationPolicy::Never
            };
            let peer = control.add_peer(
                clock.instant(),
                PeerConfig {
                    preshared_key: shared.clone(),
                    paths: vec![addresses()[1 - own]],
                    lanes: 1 + u32::from(flags >> 3 & 1),
                    ..PeerConfig::causeway(publics()[1 - own], dial)
                },
            );
            let limits = ReassemblyLimits {
                slots: 1,
                max_packet: 64,
                ..ReassemblyLimits::default()
            };
            End {
                key: publics()[own],
                control,
                peer,
                sender: Sender::new(tunnel::Framing::Segments),
                receiver: Receiver::new(tunnel::Framing::Segments, limits),
                live_sessions: Vec::new(),
                handled: 0,
                cookies: 0,
                cookie: None,
                drawn: None,
            }
        };
        let ends = [end(0), end(1)];
        Self {
            clock,
            random: Seeded(u64::from(flags)),
            loaded: load.cookie_threshold == 0,
            ends,
            wire: Vec::new(),
            replies: Vec::new(),
            accepted: BTreeSet::new(),
            spoiled: false,
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.below(8) {
            0 => self.clock.advance(u64::from(input.u16()) * 1_000_000),
            1 => {
                let end = input.below(2);
                let (now, random) = (self.clock.now(), &mut self.random);
                self.ends[end].control.handle_timeout(now, random);
                self.apply_outputs(end, &[]);
            }
            2 => {
                if let Some((sender, bytes)) = self.pick(input) {
                    self.deliver(1 - sender, addresses()[sender], &bytes);
                }
            }
            // Sent by an attacker who saw it.
            3 => {
                if let Some((sender, bytes)) = self.pick(input) {
                    self.deliver(1 - sender, addresses()[input.below(4)], &bytes);
                }
            }
            4 | 5 => {
                if let Some((sender, mut bytes)) = self.pick(input) {
                    let to = if input.u8() < 240 { 1 - sender } else { sender };
                    mutate(input, &mut bytes, 16);
                    if input.flag() {
                        stamp(&self.ends[to].key, &mut bytes);
                    }
                    self.deliver(to, addresses()[input.below(4)], &bytes);
                }
            }
            6 => {
                let to = input.below(2);
                let shape = input.below(5);
                let len = [input.below(256), 148, 92, 64, 32][shape];
                let mut bytes = input.bytes(len).to_vec();
                if shape > 0 {
                    bytes.resize(len, 0);
                    bytes[..4].copy_from_slice(&[shape as u8, 0, 0, 0]);
                }
                if input.flag() {
                    stamp(&self.ends[to].key, &mut bytes);
                }
                self.deliver(to, addresses()[input.below(4)], &bytes);
            }
            _ => {
                let end = input.below(2);
                self.data(end);
            }
        }
    }

    fn pick(&self, input: &mut Input<'_>) -> Option<(usize, Vec<u8>)> {
        let back = input.below(self.wire.len());
        let at = self.wire.len().checked_sub(back + 1)?;
        let sent = &self.wire[at];
        Some((sent.by, sent.bytes.clone()))
    }

    fn deliver(&mut self, to: usize, from: PeerPath, bytes: &[u8]) {
        let (now, random) = (self.clock.now(), &mut self.random);
        let end = &mut self.ends[to];
        end.handled += 1;
        let before = end.control.stats();
        let result = end.control.handle_datagram(now, from, bytes, random);
        let after = end.control.stats();
        let drawn = end.drawn.filter(|&at| fresh(self.clock, at));
        let reachable = self.wire.iter().any(|sent| {
            sent.by != to
                && sent.bytes == bytes
                && drawn.is_some_and(|drawn| sent.cookie == Some((from, drawn)))
        });
        if matches!(
            Message::parse(bytes),
            Ok(Message::Initiation(_) | Message::Response(_))
        ) {
            let mut right = bytes.to_vec();
            stamp(&end.key, &mut right);
            if right != bytes {
                let silent = matches!(
                    result,
                    Err(Rejected::InvalidMac1 | Rejected::NotExpected { .. })
                );
                assert!(silent, "a wrong mac1 got further: {result:?}");
                assert!(bytes[0] != 1 || result == Err(Rejected::InvalidMac1));
            }
            let cookie_sent = result == Err(Rejected::CookieSent);
            assert!(!(cookie_sent && reachable), "a cookie was not honoured");
            assert!(
                !(self.loaded && result.is_ok()) || reachable,
                "a handshake under load without a cookie"
            );
        }
        if result.is_ok() {
            let genuine = self.wire.iter().any(|sent| {
                sent.by != to && sent.bytes[0] == bytes[0] && proven(&sent.bytes) == proven(bytes)
            });
            assert!(genuine, "a forged message of type {}", bytes[0]);
            if bytes[0] == 3 {
                let (_, cookie) = self
                    .replies
                    .iter()
                    .find(|(reply, _)| reply[8..] == bytes[8..])
                    .expect("a genuine reply was recorded");
                self.ends[to].cookies += 1;
                self.ends[to].cookie = Some((*cookie, self.clock.mono));
            }
            assert!(
                self.accepted.insert((to, proven(bytes).to_vec())),
                "a message of type {} was accepted twice",
                bytes[0]
            );
            if bytes[0] == 2 {
                self.spoiled |= !self.wire.iter().any(|sent| sent.bytes[..60] == bytes[..60]);
            }
        }
        assert_eq!(
            after.answered - before.answered,
            u64::from(result.is_ok() && bytes[0] == 1)
        );
        self.apply_outputs(to, bytes);
        let end = &self.ends[to];
        let stats = end.control.stats();
        let counted = stats.malformed
            + stats.invalid_mac1
            + stats.cookies_sent
            + stats.rate_limited
            + stats.authentication_failures
            + stats.replayed
            + stats.unexpected
            + stats.answered
            + stats.completed
            + end.cookies;
        assert_eq!(counted, end.handled, "every message is counted once");
    }

    /// Carries out the outputs of an end after it took `cause`; empty for a timeout.
    fn apply_outputs(&mut self, at: usize, cause: &[u8]) {
        let now = self.clock.instant();
        let end = &mut self.ends[at];
        let mut sent = 0;
        for output in outputs(&mut end.control, 40) {
            match output {
                Output::Transmit { to, datagram } => {
                    let bytes = datagram.as_bytes();
                    if bytes[0] == 3 {
                        let drawn = end.drawn.filter(|&at| fresh(self.clock, at));
                        let drawn = *end.drawn.insert(drawn.unwrap_or(self.clock.mono));
                        self.replies.push((bytes.to_vec(), (to, drawn)));
                    }
                    assert!(matches!(
                        Message::parse(bytes),
                        Ok(Message::Initiation(_) | Message::Response(_) | Message::CookieReply(_))
                    ));
                    sent += bytes.len();
                    if self.wire.len() == MAX_RECORDED {
                        self.wire.remove(0);
                    }
                    let cookie = end.cookie.filter(|&(_, at)| fresh(self.clock, at));
                    self.wire.push(Sent {
                        by: at,
                        bytes: bytes.to_vec(),
                        cookie: cookie.map(|(cookie, _)| cookie),
                    });
                }
                Output::Receive {
                    lane: 0, session, ..
                } => {
                    end.live_sessions.push((session.index(), now));
                    end.receiver.install(session);
                }
                Output::Send {
                    lane: 0, session, ..
                } => end.sender.install(session),
                Output::Retire { index, .. } => {
                    end.live_sessions.retain(|&(name, _)| name != index);
                    end.sender.retire(index);
                    end.receiver.retire(index);
                }
                _ => {}
            }
        }
        // No amplification: an end never sends more bytes than it was sent.
        assert!(cause.is_empty() || sent <= cause.len(), "amplified");
    }

    /// Seals a packet at one end and opens it at the other, if that end still has the session.
    fn data(&mut self, from: usize) {
        let now = self.clock.instant();
        let mut out = [0; 128];
        let [one, two] = &mut self.ends;
        let (sender, receiver) = if from == 0 { (one, two) } else { (two, one) };
        let packet = b"a packet that goes whole";
        let Ok(len) = sender
            .sender
            .seal_packet(now, PayloadKind::Ip, 3, packet, &mut out)
        else {
            return;
        };
        let index = le32(&out, 4);
        let session_entry = receiver
            .live_sessions
            .iter()
            .find(|&&(name, _)| name == index);
        let reject = tunnel::TimerConfig::causeway().reject_after;
        let over = session_entry.is_none_or(|&(_, made)| now.since(made) >= reject);
        let opened = receiver
            .receiver
            .open(now, addresses()[from], &mut out[..len]);
        match opened {
            Ok(opened) => {
                let expected = Payload::Packet {
                    kind: PayloadKind::Ip,
                    network: 3,
                    bytes: packet,
                };
                assert_eq!(opened.payload, expected);
                assert!(!over);
                if let Some(index) = opened.first_of_session {
                    receiver.control.confirm_session(now, receiver.peer, index);
                    self.apply_outputs(1 - from, &[]);
                }
            }
            Err(error) => {
                let gone = matches!(
                    error,
                    OpenError::UnknownSession { .. } | OpenError::Expired { .. }
                );
                assert!(
                    self.spoiled || (gone && over),
                    "two ends of one session differ: {error}, session {session_entry:?}"
                );
            }
        }
    }
}
