//! Connections on loopback. Test owners, dialers and raw clients; the tests are in the submodules.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread::{sleep, spawn, yield_now},
    time::{Duration, Instant},
};

use failover::IpPrefix;
use gateway_client::{
    dial::{Race, RaceSettings},
    stream::{self, ALPN, EXPORTER_LABEL, LivenessFrame, MIN_DATAGRAM},
    wire::{Key, Tag},
};
use nix::{
    libc,
    sys::{
        eventfd::EfdFlags,
        socket::{setsockopt, sockopt},
    },
};
use rustls::{ClientConnection, StreamOwned, version::TLS12};

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
    mpsc,
};

use gateway_client::wire::CircuitId;
use nix::sys::eventfd::EventFd;

use super::*;

/// No wait of a test is longer.
const TIMEOUT: Duration = Duration::from_secs(20);
const NAME: &str = "tunnel.acme.example";

fn circuit(n: u64) -> CircuitId {
    CircuitId::new(n << 32 | n).expect("an id")
}

fn key(n: u8) -> Key {
    Key::new([n; 32])
}

fn event() -> Arc<EventFd> {
    Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd"))
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < TIMEOUT, "never {what}");
        sleep(Duration::from_millis(2));
    }
}

/// The owner of connections, with one ring for datagrams.
struct Owner {
    rings: RingSetup,
    event_sender: EventSender,
    events: mpsc::Receiver<ConnectionEvent>,
}

impl Owner {
    fn new() -> Self {
        let (sender, events) = mpsc::channel();
        Self {
            rings: RingSetup {
                consumers: vec![ThreadWaker::new(event())],
                steer: Arc::new(|_| 0),
                capacity: 256,
            },
            event_sender: EventSender {
                events: sender,
                wake: event(),
            },
            events,
        }
    }

    #[track_caller]
    fn next(&self) -> ConnectionEvent {
        self.events.recv_timeout(TIMEOUT).expect("an event")
    }

    /// The next connection; failed addresses before it are skipped.
    #[track_caller]
    fn established(&self) -> Established {
        loop {
            match self.next() {
                ConnectionEvent::Established(established) => return established,
                ConnectionEvent::AddressFailed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    #[track_caller]
    fn closed(&self) -> (ConnectionId, CloseReason) {
        match self.next() {
            ConnectionEvent::Closed { id, reason, .. } => (id, reason),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn failed(&self) -> DialStepError {
        match self.next() {
            ConnectionEvent::Failed {
                error: DialError::Exhausted(mut attempts),
                ..
            } => attempts.pop().expect("an attempt").error,
            other => panic!("{other:?}"),
        }
    }

    fn listen(&self, limits: Limits, proxy: bool) -> (Listener, Fingerprint) {
        self.listen_to(Vec::new(), limits, proxy)
    }

    /// As [`listen`](Self::listen), for these sources only.
    fn listen_to(
        &self,
        from: Vec<IpPrefix>,
        limits: Limits,
        proxy: bool,
    ) -> (Listener, Fingerprint) {
        let identity = Identity::generate(NAME).expect("an identity");
        let fingerprint = identity.fingerprint();
        let listening = ListenConfig {
            addresses: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            from,
            identity,
            circuits: circuits(&[1, 2, 3]),
            proxy,
            limits,
        };
        let listener = Listener::start(listening, self.rings.clone(), self.event_sender.clone())
            .expect("listen");
        (listener, fingerprint)
    }

    fn dial(&self, dialing: DialConfig) -> TlsAttempt {
        TlsAttempt::start(dialing, self.rings.clone(), self.event_sender.clone()).expect("dial")
    }
}

fn circuits(of: &[u8]) -> HashMap<CircuitId, Key> {
    let circuits = of.iter().map(|n| (circuit(u64::from(*n)), key(*n)));
    circuits.collect()
}

/// Connects to these addresses, in this order.
fn race(addresses: &[SocketAddr]) -> Race {
    Race::new(addresses.iter().copied(), RaceSettings::default())
}

fn dialing(to: SocketAddr, fingerprint: Fingerprint, n: u8) -> DialConfig {
    DialConfig {
        race: race(&[to]),
        name: NAME.to_owned(),
        fingerprints: vec![fingerprint],
        circuit: circuit(u64::from(n)),
        key: key(n),
        clock: Box::new(unix_nanos),
        timeout: HANDSHAKE_TIMEOUT,
    }
}

/// Two joined ends; the dialing one is first.
struct Joined {
    tenant: Owner,
    provider: Owner,
    listener: Listener,
    fingerprint: Fingerprint,
    a: Established,
    b: Established,
}

fn joined() -> Joined {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let _dialer = tenant.dial(dialing(listener.addresses()[0], fingerprint, 1));
    let (a, b) = (tenant.established(), provider.established());
    Joined {
        tenant,
        provider,
        listener,
        fingerprint,
        a,
        b,
    }
}

/// A datagram whose content is unique to `n`.
fn payload(n: u64, length: usize) -> Vec<u8> {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Sends the datagrams of `make` in both directions, a window at a time; each must arrive unchanged
/// and in order.
fn exchange(a: &mut RingPair, b: &mut RingPair, count: u64, make: impl Fn(u64) -> Vec<u8>) {
    const WINDOW: u64 = 128;
    let begun = Instant::now();
    let mut ways = [
        (&mut a.sender, &mut b.receiver),
        (&mut b.sender, &mut a.receiver),
    ];
    let (mut sent, mut heard) = ([0; 2], [0; 2]);
    let mut progressed = begun;
    while heard != [count; 2] {
        for (way, (to, from)) in ways.iter_mut().enumerate() {
            while sent[way] < count && sent[way] < heard[way] + WINDOW {
                assert!(to.push(&make(sent[way])), "there is room");
                sent[way] += 1;
            }
            to.wake();
            let taken = from.take(64, |datagram| {
                let n = heard[way];
                assert!(*datagram == make(n), "datagram {n} differs");
                heard[way] += 1;
            });
            if taken > 0 {
                progressed = Instant::now();
            }
        }
        yield_now();
        assert!(
            progressed.elapsed() < TIMEOUT,
            "{sent:?} sent, {heard:?} heard"
        );
    }
}

fn patient(socket: &TcpStream) {
    socket.set_read_timeout(Some(TIMEOUT)).expect("a deadline");
    socket.set_write_timeout(Some(TIMEOUT)).expect("a deadline");
}

/// A client after the TLS handshake, and the tag of its connection.
fn raw(
    at: SocketAddr,
    fingerprint: Fingerprint,
) -> (StreamOwned<ClientConnection, TcpStream>, Tag) {
    let config = config::client(&[fingerprint]).expect("a client");
    let name = NAME.try_into().expect("a name");
    let mut tls = ClientConnection::new(config, name).expect("a client");
    let mut socket = TcpStream::connect(at).expect("connect");
    patient(&socket);
    while tls.is_handshaking() {
        tls.complete_io(&mut socket).expect("a handshake");
    }
    let tag = tls
        .export_keying_material([0; 16], EXPORTER_LABEL, None)
        .expect("a tag");
    (StreamOwned::new(tls, socket), Tag(tag))
}

/// Whether the stream is closed without another byte.
fn is_closed(stream: &mut impl io::Read) -> bool {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(bytes) => bytes == 0,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ),
    }
}

mod admission;
mod carry;
mod lifecycle;
mod silence;
mod through;
