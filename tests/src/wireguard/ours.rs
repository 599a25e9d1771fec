//! Our end: a [`Tunnel`] with a socket, the clocks and randomness.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tunnel::{
    Event, Now, Payload, PayloadKind, PeerConfig, PeerId, PeerPath, PeerStatus, PresharedKey,
    PublicKey, ReassemblyLimits, RxStats, SecretKey, Tunnel,
};

use super::{OUR_HOST, OURS, Os, Setup, bind, inside};
use crate::packet;

/// Packets that wait for a session, at most.
const STAGED: usize = 128;

/// Our end, running.
#[derive(Debug)]
pub struct Ours {
    shared: Arc<Shared>,
    pump: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: UdpSocket,
    started: Instant,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

/// A received datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Source address.
    pub from: SocketAddr,
    pub bytes: Vec<u8>,
}

/// Counters and events of our end.
#[derive(Debug)]
pub struct State {
    tunnel: Tunnel,
    peer: PeerId,
    random: Os,
    staged: VecDeque<Vec<u8>>,
    /// Answers to our pings: identifier and sequence number, and when.
    answers: BTreeMap<(u16, u16), Instant>,
    /// Number of duplicate replies.
    duplicate_replies: u64,
    /// Why packets could not be sent, other than that there is no session.
    pub refused: Vec<String>,
    next_id: u16,
    /// Received datagrams, by message type.
    pub received: BTreeMap<u8, u64>,
    /// Datagrams that were sent, by message type.
    pub sent: BTreeMap<u8, u64>,
    /// The newest datagram of each type that was accepted.
    pub newest: BTreeMap<u8, Datagram>,
    /// The newest datagram of each type that was sent.
    pub newest_sent: BTreeMap<u8, Vec<u8>>,
    /// Events of the peer, oldest first.
    pub events: Vec<Event>,
    /// Echo requests of theirs that were answered.
    pub answered: u64,
    /// Why datagrams were refused, and how often.
    pub rejected: BTreeMap<String, u64>,
    log: VecDeque<String>,
}

impl Ours {
    pub(super) fn start(mut random: Os, secret: SecretKey, peer: PublicKey, setup: &Setup) -> Self {
        let socket = bind(OURS, setup.underlay.ours());
        socket
            .set_nonblocking(true)
            .expect("a socket can be made so");
        let started = Instant::now();
        let mut tunnel = Tunnel::new(secret, setup.load, ReassemblyLimits::default());
        let psk = |bytes: Option<[u8; 32]>| {
            bytes.map_or_else(PresharedKey::none, PresharedKey::from_bytes)
        };
        let id = tunnel.add_peer(
            tunnel::Instant::ORIGIN,
            PeerConfig {
                preshared_key: psk(setup.our_psk),
                paths: setup
                    .we_know_them
                    .then(|| PeerPath::from(setup.underlay.theirs()))
                    .into_iter()
                    .collect(),
                timers: setup.timers,
                ..PeerConfig::wireguard(peer)
            },
        );
        let next_id = tunnel::Random::u32(&mut random) as u16;
        let state = State {
            tunnel,
            peer: id,
            random,
            staged: VecDeque::new(),
            answers: BTreeMap::new(),
            duplicate_replies: 0,
            refused: Vec::new(),
            next_id,
            received: BTreeMap::new(),
            sent: BTreeMap::new(),
            newest: BTreeMap::new(),
            newest_sent: BTreeMap::new(),
            events: Vec::new(),
            answered: 0,
            rejected: BTreeMap::new(),
            log: VecDeque::new(),
        };
        let shared = Arc::new(Shared {
            socket,
            started,
            state: Mutex::new(state),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let pump = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.pump())
        };
        Self {
            shared,
            pump: Some(pump),
        }
    }

    /// Calls `look` with the state, which is locked meanwhile.
    pub fn with_state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.lock())
    }

    /// Waits until `done`; panics with `what` after `within`. How long it took.
    pub fn wait(
        &self,
        what: &str,
        within: Duration,
        mut done: impl FnMut(&State) -> bool,
    ) -> Duration {
        let begun = Instant::now();
        let (state, timeout) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), within, |state| !done(state))
            .unwrap_or_else(PoisonError::into_inner);
        drop(state);
        assert!(
            !timeout.timed_out(),
            "{what} did not happen within {within:?}"
        );
        begun.elapsed()
    }

    /// How the peer is.
    #[must_use]
    pub fn status(&self) -> PeerStatus {
        self.shared.status(&self.shared.lock())
    }

    /// Counters of the receiver.
    #[must_use]
    pub fn stats(&self) -> RxStats {
        self.with_state(State::stats)
    }

    /// Pings their inside address: `count` echoes, one every `interval`, with the IP lengths of
    /// `packets` in rotation (bytes). Waits at most `within` after the last. Returns the number of
    /// replies.
    #[must_use]
    pub fn ping(
        &self,
        to: IpAddr,
        count: u16,
        interval: Duration,
        packets: &[usize],
        within: Duration,
    ) -> u16 {
        let id = self.send_pings(to, count, interval, packets);
        let have = |state: &State| state.answers.range((id, 0)..=(id, u16::MAX)).count();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), within, |state| {
                have(state) < usize::from(count)
            })
            .unwrap_or_else(PoisonError::into_inner);
        have(&state) as u16
    }

    /// Pings every `interval` until one is answered; how long that took.
    #[must_use]
    pub fn await_reply(&self, to: IpAddr, interval: Duration, within: Duration) -> Duration {
        let begun = Instant::now();
        loop {
            if self.ping(to, 1, Duration::ZERO, &[84], interval) == 1 {
                return begun.elapsed();
            }
            assert!(
                begun.elapsed() < within,
                "we do not reach {to} within {within:?}"
            );
        }
    }

    fn send_pings(&self, to: IpAddr, count: u16, interval: Duration, packets: &[usize]) -> u16 {
        let id = {
            let mut state = self.shared.lock();
            state.next_id = state.next_id.wrapping_add(1);
            state.next_id
        };
        let mut next = Instant::now();
        for seq in 0..count {
            let len = packets
                .get(usize::from(seq) % packets.len().max(1))
                .copied()
                .unwrap_or(84);
            let packet = echo_request(to, id, seq, len);
            let mut state = self.shared.lock();
            self.shared.send(&mut state, packet);
            drop(state);
            next += interval;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        id
    }

    /// Number of duplicate replies.
    #[must_use]
    pub fn duplicate_replies(&self) -> u64 {
        self.with_state(State::duplicate_replies)
    }

    /// Sends these bytes to their address as they are.
    pub fn send_raw(&self, bytes: &[u8], to: SocketAddr) {
        self.shared
            .socket
            .send_to(bytes, to)
            .unwrap_or_else(|e| panic!("sending to {to}: {e}"));
    }

    pub(super) fn report(&self) -> String {
        let state = self.shared.lock();
        let mut text = format!(
            "{:#?}\n{:#?}\n{:?}\nreceived by type {:?}\nsent by type {:?}\nevents {:?}\n\
             rejected {:#?}\necho requests answered {}, staged {}, duplicate_replies {}, \
             refused {:?}\n",
            self.shared.status(&state),
            state.stats(),
            state.tunnel.control().stats(),
            state.received,
            state.sent,
            state.events,
            state.rejected,
            state.answered,
            state.staged.len(),
            state.duplicate_replies,
            state.refused,
        );
        for line in &state.log {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.pump.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl State {
    /// Counters of the receiver.
    #[must_use]
    pub fn stats(&self) -> RxStats {
        self.tunnel.received(self.peer).next().unwrap_or_default()
    }

    /// Counters of handshakes.
    #[must_use]
    pub fn control(&self) -> tunnel::control::ControlStats {
        self.tunnel.control().stats()
    }

    /// Number of duplicate replies.
    #[must_use]
    pub const fn duplicate_replies(&self) -> u64 {
        self.duplicate_replies
    }

    /// Handshakes completed with the peer.
    #[must_use]
    pub fn handshakes(&self) -> u64 {
        self.tunnel
            .status(tunnel::Instant::ORIGIN, self.peer)
            .map_or(0, |status| status.handshakes)
    }

    /// Datagrams received, of a type.
    #[must_use]
    pub fn received_of(&self, kind: u8) -> u64 {
        self.received.get(&kind).copied().unwrap_or(0)
    }

    /// Datagrams sent, of a type.
    #[must_use]
    pub fn sent_of(&self, kind: u8) -> u64 {
        self.sent.get(&kind).copied().unwrap_or(0)
    }

    fn note(&mut self, at: Duration, line: impl std::fmt::Display) {
        if self.log.len() == 400 {
            self.log.pop_front();
        }
        self.log
            .push_back(format!("{:>10.6} {line}", at.as_secs_f64()));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The report is printed also if a test failed while it held the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now {
            mono: tunnel::Instant::from_nanos(self.started.elapsed().as_nanos() as u64),
            unix: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }

    fn status(&self, state: &State) -> PeerStatus {
        state
            .tunnel
            .status(self.now().mono, state.peer)
            .expect("the peer is never removed")
    }

    /// Waits for datagrams and deadlines, and does what they ask for.
    fn pump(&self) {
        let mut buffer = vec![0; 1 << 16];
        while !self.stop.load(Ordering::Relaxed) {
            let mut state = self.lock();
            // First all received datagrams, then expired timers.
            while let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
                if let Some(datagram) = buffer.get_mut(..len) {
                    self.receive(&mut state, from, datagram);
                }
            }
            self.poll(&mut state);
            drop(state);
            self.changed.notify_all();
            // A packet sent by the test may bring a nearer deadline than the one known now.
            self.await_readable(Duration::from_millis(2));
        }
    }

    fn await_readable(&self, within: Duration) {
        use std::os::fd::AsFd as _;
        let mut fds = [nix::poll::PollFd::new(
            self.socket.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        let within =
            nix::poll::PollTimeout::try_from(within).unwrap_or(nix::poll::PollTimeout::ZERO);
        // An interrupted wait is a short one.
        let _ = nix::poll::poll(&mut fds, within);
    }

    fn transmit(&self, notes: &mut Vec<(SocketAddr, Vec<u8>)>, path: PeerPath, bytes: &[u8]) {
        // There are no gateways here.
        let PeerPath::Direct(to) = path else { return };
        if let Err(e) = self.socket.send_to(bytes, to) {
            println!("sending {} bytes to {to}: {e}", bytes.len());
        }
        notes.push((to, bytes.to_vec()));
    }

    fn noted(&self, state: &mut State, sent: Vec<(SocketAddr, Vec<u8>)>) {
        for (to, bytes) in sent {
            let kind = bytes.first().copied().unwrap_or(0);
            *state.sent.entry(kind).or_default() += 1;
            let line = format!("→ {to} type {kind}, {} bytes", bytes.len());
            state.newest_sent.insert(kind, bytes);
            state.note(self.started.elapsed(), line);
        }
    }

    fn poll(&self, state: &mut State) {
        let (mut sent, mut events) = (Vec::new(), Vec::new());
        let State { tunnel, random, .. } = state;
        tunnel.poll(
            self.now(),
            random,
            &mut |to, bytes| self.transmit(&mut sent, to, bytes),
            &mut |_, event| events.push(event),
        );
        self.noted(state, sent);
        let fresh = events
            .iter()
            .any(|event| matches!(event, Event::Up | Event::Rekeyed));
        for event in events {
            state.note(self.started.elapsed(), format!("event {event:?}"));
            state.events.push(event);
        }
        if fresh {
            for packet in std::mem::take(&mut state.staged) {
                self.send(state, packet);
            }
        }
    }

    /// Sends a packet, or keeps it until there is a session.
    fn send(&self, state: &mut State, packet: Vec<u8>) {
        let mut sent = Vec::new();
        let outcome = state.tunnel.send(
            self.now().mono,
            state.peer,
            0,
            PayloadKind::Ip,
            0,
            &packet,
            &mut |to, bytes| self.transmit(&mut sent, to, bytes),
        );
        self.noted(state, sent);
        match outcome {
            Ok(()) => {}
            Err(
                tunnel::SealError::NoSession
                | tunnel::SealError::Expired
                | tunnel::SealError::Exhausted,
            ) => {
                if state.staged.len() == STAGED {
                    state.staged.pop_front();
                }
                state.staged.push_back(packet);
            }
            Err(error) => state.refused.push(error.to_string()),
        }
        self.poll(state);
    }

    fn receive(&self, state: &mut State, from: SocketAddr, datagram: &mut [u8]) {
        let copy = datagram.to_vec();
        let kind = copy.first().copied().unwrap_or(0);
        *state.received.entry(kind).or_default() += 1;
        let mut packets = Vec::new();
        let mut bad = None;
        let State { tunnel, random, .. } = state;
        let taken = tunnel.receive(
            self.now(),
            from.into(),
            datagram,
            random,
            &mut |_, payload| match payload {
                Payload::Ip(packet) => packets.push(packet.to_vec()),
                Payload::Invalid(content) => bad = Some(content),
                Payload::Keepalive | Payload::Packet { .. } | Payload::Fragment => {}
                Payload::Control(_) => {}
            },
        );
        let result = match (&taken, bad) {
            (Ok(_), None) => "taken".to_owned(),
            (Ok(_), Some(content)) => content.to_string(),
            (Err(refused), _) => refused.to_string(),
        };
        state.note(
            self.started.elapsed(),
            format!("← {from} type {kind}, {} bytes: {result}", copy.len()),
        );
        if taken.is_ok() && bad.is_none() {
            state.newest.insert(kind, Datagram { from, bytes: copy });
        } else {
            *state.rejected.entry(result).or_default() += 1;
        }
        self.poll(state);
        for packet in packets {
            match Echo::read(&packet) {
                Some(Echo::Request(answer)) => {
                    state.answered += 1;
                    self.send(state, answer);
                }
                Some(Echo::Reply { id, seq }) => {
                    let first = state.answers.insert((id, seq), Instant::now()).is_none();
                    state.duplicate_replies += u64::from(!first);
                }
                // Router solicitations and listener reports, which a kernel sends on any interface.
                None => {}
            }
        }
    }
}

/// An ICMP echo for or from our inside address.
enum Echo {
    /// A request, as the answer to it.
    Request(Vec<u8>),
    /// An answer to ours, whole and unchanged.
    Reply { id: u16, seq: u16 },
}

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

impl Echo {
    fn read(packet: &[u8]) -> Option<Self> {
        let (source, target, icmp) = split(packet)?;
        if !inside(OUR_HOST).contains(&target) {
            return None;
        }
        let v4 = target.is_ipv4();
        match (v4, icmp.first()?) {
            (true, 8) | (false, 128) => {
                let kind = if v4 { 0 } else { 129 };
                let answer = packet::icmp(target, source, kind, 0, icmp.get(4..)?);
                Some(Self::Request(answer))
            }
            (true, 0) | (false, 129) => {
                let id = u16::from_be_bytes([*icmp.get(4)?, *icmp.get(5)?]);
                let seq = u16::from_be_bytes([*icmp.get(6)?, *icmp.get(7)?]);
                let whole = icmp.get(8..)?.iter().enumerate();
                whole
                    .clone()
                    .all(|(at, byte)| *byte == filling(id, seq, at))
                    .then_some(Self::Reply { id, seq })
            }
            _ => None,
        }
    }
}

fn filling(id: u16, seq: u16, at: usize) -> u8 {
    (usize::from(id) * 31 + usize::from(seq) * 7 + at) as u8
}

/// An echo request from our inside address, `len` bytes of IP.
fn echo_request(to: IpAddr, id: u16, seq: u16, len: usize) -> Vec<u8> {
    let (headers, kind) = if to.is_ipv4() { (28, 8) } else { (48, 128) };
    let mut rest = Vec::new();
    rest.extend(id.to_be_bytes());
    rest.extend(seq.to_be_bytes());
    rest.extend((0..len.saturating_sub(headers)).map(|at| filling(id, seq, at)));
    let from = inside(OUR_HOST)[usize::from(to.is_ipv6())];
    packet::icmp(from, to, kind, 0, &rest)
}

/// Source, target and ICMP message of a packet without options or extension headers, if its
/// checksum is right.
fn split(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    match packet.first()? >> 4 {
        4 if packet.first() == Some(&0x45) && packet.get(9) == Some(&ICMP) => {
            let at = |from: usize| {
                let bytes: [u8; 4] = packet.get(from..from + 4)?.try_into().ok()?;
                Some(IpAddr::from(bytes))
            };
            let icmp = packet.get(20..)?;
            (packet::checksum(icmp) == 0).then_some((at(12)?, at(16)?, icmp))
        }
        6 if packet.get(6) == Some(&ICMPV6) => {
            let at = |from: usize| {
                let bytes: [u8; 16] = packet.get(from..from + 16)?.try_into().ok()?;
                Some(IpAddr::from(bytes))
            };
            let (from, to, icmp) = (at(8)?, at(24)?, packet.get(40..)?);
            (packet::transport_checksum(from, to, ICMPV6, icmp) == 0).then_some((from, to, icmp))
        }
        _ => None,
    }
}
