//! Connections on loopback: what they carry, and who is not let in.

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
const PATIENCE: Duration = Duration::from_secs(20);
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
        assert!(begun.elapsed() < PATIENCE, "never {what}");
        sleep(Duration::from_millis(2));
    }
}

/// The daemon, with one place for datagrams.
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
        self.events.recv_timeout(PATIENCE).expect("an event")
    }

    #[track_caller]
    fn established(&self) -> Established {
        match self.next() {
            ConnectionEvent::Established(established) => established,
            other => panic!("{other:?}"),
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

    /// Likewise, for who comes from there.
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

    fn dial(&self, dialing: DialConfig) -> Dialer {
        Dialer::start(dialing, self.rings.clone(), self.event_sender.clone()).expect("dial")
    }
}

fn circuits(of: &[u8]) -> HashMap<CircuitId, Key> {
    let circuits = of.iter().map(|n| (circuit(u64::from(*n)), key(*n)));
    circuits.collect()
}

fn dialing(to: SocketAddr, fingerprint: Fingerprint, n: u8) -> DialConfig {
    DialConfig {
        addresses: vec![to],
        name: NAME.to_owned(),
        fingerprints: vec![fingerprint],
        circuit: circuit(u64::from(n)),
        key: key(n),
        clock: Box::new(unix_nanos),
        timeouts: DialTimeouts::default(),
    }
}

/// Two ends, joined: the dialing one first.
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

/// A datagram that no other is like.
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

/// Sends what `make` makes both ways, some on the way at a time: each must come as it was, in its
/// turn.
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
            progressed.elapsed() < PATIENCE,
            "{sent:?} sent, {heard:?} heard"
        );
    }
}

#[test]
fn datagrams_of_every_length_arrive_as_they_were() {
    let mut joined = joined();
    const LENGTHS: u64 = (DATAGRAM_BYTES - MIN_DATAGRAM + 1) as u64;
    let length = |n: u64| (n % LENGTHS) as usize + MIN_DATAGRAM;
    let (a, b) = (&mut joined.a.rings[0], &mut joined.b.rings[0]);
    exchange(a, b, LENGTHS, |n| payload(n, length(n)));
    let sum: u64 = (MIN_DATAGRAM as u64..=DATAGRAM_BYTES as u64).sum();
    for end in [&joined.a, &joined.b] {
        let all = ConnectionStats {
            datagrams_in: LENGTHS,
            bytes_in: sum,
            datagrams_out: LENGTHS,
            bytes_out: sum,
            ..ConnectionStats::default()
        };
        assert_eq!(end.handle.stats(), all);
    }
    let (a, b) = (&mut joined.a.rings[0], &mut joined.b.rings[0]);
    assert!(!a.sender.push(&[]));
    assert!(!a.sender.push(&[1]), "it would be a word");
    assert!(!a.sender.push(&[0; DATAGRAM_BYTES + 1]));
    exchange(a, b, 10, |n| payload(n, 2));
    assert_eq!(joined.a.handle.stats().full_out, 3);
    assert_eq!(joined.a.circuit, circuit(1));
    assert_eq!(joined.b.circuit, circuit(1));
    assert_eq!(joined.a.peer, joined.listener.addresses()[0]);
    assert!(
        joined.tenant.event_sender.wake.read().is_ok(),
        "told by a wake"
    );
}

#[test]
fn a_gigabyte_goes_through_and_nothing_is_lost_uncounted() {
    const LENGTH: u64 = 1400;
    /// More than the rings hold: some is dropped, but not most of it.
    const AHEAD: u64 = 2048;
    let mut joined = joined();
    let body = payload(1, LENGTH as usize - 8);
    let (a, b) = (&mut joined.a.rings[0], &mut joined.b.rings[0]);
    let enough = AtomicBool::new(false);
    let (mut heard, last) = (0, AtomicU64::new(0));
    // As fast as it goes: what finds no room is dropped.
    let (sent, refused) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut datagram = [&[0; 8], &body[..]].concat();
            let (mut sent, mut refused) = (0u64, 0u64);
            while !enough.load(SeqCst) {
                if sent >= last.load(SeqCst) + AHEAD {
                    a.sender.wake();
                    yield_now();
                    continue;
                }
                datagram[..8].copy_from_slice(&(sent + 1).to_be_bytes());
                if a.sender.push(&datagram) {
                    sent += 1;
                } else {
                    refused += 1;
                    yield_now();
                }
                if sent % 32 == 0 || refused > 0 {
                    a.sender.wake();
                }
            }
            a.sender.wake();
            (sent, refused)
        });
        let begun = Instant::now();
        let mut take = || {
            b.receiver.take(256, |came| {
                let (number, rest) = came.split_first_chunk().expect("a number");
                let number = u64::from_be_bytes(*number);
                let last = last.swap(number, SeqCst);
                assert!(number > last && *rest == body, "{number} after {last}");
                heard += 1;
            })
        };
        let mut taken = 0;
        while taken < (1 << 30) / LENGTH as usize {
            match take() {
                0 => yield_now(),
                some => taken += some,
            }
            assert!(begun.elapsed() < PATIENCE * 10, "{taken} taken");
        }
        enough.store(true, SeqCst);
        let sent = sending.join().expect("sent");
        until("all accounted for", || {
            take();
            let came = joined.b.handle.stats();
            came.datagrams_in + came.full_in == sent.0
        });
        while take() > 0 {}
        sent
    });
    let (out, came) = (joined.a.handle.stats(), joined.b.handle.stats());
    assert_eq!((out.datagrams_out, out.full_out), (sent, refused));
    assert_eq!(out.bytes_out, sent * LENGTH);
    assert_eq!((came.datagrams_in, came.bytes_in), (heard, heard * LENGTH));
    println!("{out:?} {came:?}");
}

#[test]
fn each_of_several_pinned_certificates_is_accepted() {
    let provider = Owner::new();
    let (listener, presented) = provider.listen(Limits::default(), false);
    let other = Identity::generate(NAME).expect("one").fingerprint();
    // A provider changes its certificate while its tenants pin both.
    for (n, pinned) in [(1, vec![other, presented]), (2, vec![presented, other])] {
        let mut dialing = dialing(listener.addresses()[0], presented, n);
        dialing.fingerprints = pinned;
        let tenant = Owner::new();
        let _dialer = tenant.dial(dialing);
        tenant.established();
    }
    let tenant = Owner::new();
    let mut neither = dialing(listener.addresses()[0], presented, 3);
    neither.fingerprints = vec![other, Identity::generate(NAME).expect("one").fingerprint()];
    let _dialer = tenant.dial(neither);
    let error = tenant.failed().to_string();
    assert!(error.contains(&format!("not {other} or ")), "{error}");
}

#[test]
fn another_certificate_is_refused_and_said() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, presented) = provider.listen(Limits::default(), false);
    let pinned = Identity::generate(NAME).expect("one").fingerprint();
    let _dialer = tenant.dial(dialing(listener.addresses()[0], pinned, 1));
    let step = tenant.failed();
    let said = step.to_string();
    assert!(
        matches!(step, DialStepError::Fingerprint { .. }),
        "{step:?}"
    );
    assert!(said.contains(&presented.to_string()), "{said}");
    assert!(said.contains(&pinned.to_string()), "{said}");
    until("counted", || {
        listener.stats().refused(RefusalReason::Tls) == 1
    });
}

#[test]
fn peers_without_the_circuits_key_are_refused() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let at = listener.addresses()[0];
    let mut wrong = dialing(at, fingerprint, 1);
    wrong.key = key(2);
    let _first = tenant.dial(wrong);
    assert!(matches!(tenant.failed(), DialStepError::Refused));
    let _second = tenant.dial(dialing(at, fingerprint, 9));
    assert!(matches!(tenant.failed(), DialStepError::Refused));
    let refused = |reason| listener.stats().refused(reason);
    until("counted", || {
        refused(RefusalReason::Forged) + refused(RefusalReason::NoCircuit) == 2
    });
    let stats = listener.stats();
    assert_eq!(stats.refused(RefusalReason::Forged), 1);
    assert_eq!((stats.accepted, stats.established), (2, 0));
    // The dialer refuses a server that answers without the key.
    let identity = Identity::generate(NAME).expect("one");
    let fingerprint = identity.fingerprint();
    let server = config::server(&identity).expect("a server");
    let (at, serving) = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let at = listener.local_addr().expect("an address");
        let serving = spawn(move || {
            let (socket, _) = listener.accept().expect("accept");
            patient(&socket);
            let server = rustls::ServerConnection::new(server).expect("a server");
            let mut tls = StreamOwned::new(server, socket);
            let mut hello = [0; stream::HELLO_BYTES];
            tls.read_exact(&mut hello).expect("a hello");
            // Sent back as it is.
            tls.write_all(&hello).expect("an answer");
            let _ = tls.read(&mut hello);
        });
        (at, serving)
    };
    let _third = tenant.dial(dialing(at, fingerprint, 1));
    assert!(matches!(tenant.failed(), DialStepError::WrongAnswer));
    serving.join().expect("served");
}

fn patient(socket: &TcpStream) {
    socket.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    socket
        .set_write_timeout(Some(PATIENCE))
        .expect("a deadline");
}

/// A client of our own making, TLS spoken.
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

/// Whether it is closed without another byte.
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

#[test]
fn hellos_said_before_or_elsewhere_open_nothing() {
    let provider = Owner::new();
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let at = listener.addresses()[0];
    let (mut first, tag) = raw(at, fingerprint);
    let hello = stream::hello(circuit(1), &key(1), 1000, tag);
    first.write_all(&hello).expect("send");
    let mut answer = [0; stream::HELLO_BYTES];
    first.read_exact(&mut answer).expect("an answer");
    assert!(stream::is_answer(
        &answer[2..],
        circuit(1),
        &key(1),
        1000,
        tag
    ));
    let established = provider.established();

    let tries = [
        // The same bytes; the same time, and an older one; on another connection's account.
        (Some(hello), 0, RefusalReason::OtherConnection),
        (None, 1000, RefusalReason::Replayed),
        (None, 999, RefusalReason::Replayed),
    ];
    for (captured, timestamp, reason) in tries {
        let (mut next, tag) = raw(at, fingerprint);
        let hello = captured.unwrap_or_else(|| stream::hello(circuit(1), &key(1), timestamp, tag));
        next.write_all(&hello).expect("send");
        let before = Instant::now();
        assert!(is_closed(&mut next), "{reason:?}");
        assert!(before.elapsed() < Duration::from_secs(4), "at once");
        until("counted", || listener.stats().refused(reason) >= 1);
    }
    until("counted", || {
        listener.stats().refused(RefusalReason::Replayed) == 2
    });
    // The first has noticed nothing.
    assert_eq!(listener.connections(), (1, 0));
    first.write_all(b"\x00\x03abc").expect("send");
    let mut place = established.rings.into_iter().next().expect("a place");
    let mut came: Vec<u8> = Vec::new();
    until("come", || {
        place.receiver.take(1, |datagram| came.extend(&*datagram)) == 1
    });
    assert_eq!(came, b"abc");
}

#[test]
fn garbage_and_silence_are_closed_in_time_and_counted() {
    let provider = Owner::new();
    let limits = Limits {
        authenticate: Duration::from_secs(2),
        ..Limits::default()
    };
    let (listener, fingerprint) = provider.listen(limits, false);
    let at = listener.addresses()[0];
    let connect = || {
        let socket = TcpStream::connect(at).expect("connect");
        patient(&socket);
        socket
    };
    let counted = |reason| listener.stats().refused(reason);
    let begun = Instant::now();
    // Silent: before TLS, and in it.
    let mut silent = connect();
    let (mut mute, _) = raw(at, fingerprint);
    // One that trickles gets no more time.
    let trickling = connect();
    let trickle = spawn({
        let mut socket = trickling.try_clone().expect("a socket");
        move || {
            for byte in [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 1, 1, 1, 1, 1] {
                sleep(Duration::from_millis(100));
                if socket.write_all(&[byte]).is_err() {
                    return;
                }
            }
        }
    });
    for _ in 0..20 {
        let mut garbage = connect();
        let _ = garbage.write_all(&payload(7, 3000));
        while !is_closed(&mut garbage) {}
    }
    until("counted", || counted(RefusalReason::Tls) == 20);
    let frames: [&[u8]; 4] = [
        b"\x00\x00",
        b"\x00\x03abc",
        b"\xff\xff",
        &[&[0, 64][..], &[7; 64]].concat(),
    ];
    for frame in frames {
        let (mut client, _) = raw(at, fingerprint);
        client.write_all(frame).expect("send");
        assert!(is_closed(&mut client));
    }
    until("counted", || counted(RefusalReason::NotAHello) == 4);
    assert!(is_closed(&mut silent) && is_closed(&mut mute));
    trickle.join().expect("no panic");
    until("counted", || counted(RefusalReason::Slow) == 3);
    assert!(begun.elapsed() < PATIENCE);
    // A client that closes the connection before its hello is complete.
    drop(connect());
    until("counted", || counted(RefusalReason::Gone) == 1);
    until("gone", || listener.connections() == (0, 0));
    assert!(provider.events.try_recv().is_err());
}

#[test]
fn an_older_tls_and_another_protocol_are_refused() {
    let provider = Owner::new();
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let at = listener.addresses()[0];
    let attempt = |config: Arc<rustls::ClientConfig>| {
        let name = NAME.try_into().expect("a name");
        let mut tls = ClientConnection::new(config, name).expect("a client");
        let mut socket = TcpStream::connect(at).expect("connect");
        patient(&socket);
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        let mut stream = StreamOwned::new(tls, socket);
        match is_closed(&mut stream) {
            true => Ok(()),
            false => Err(io::Error::other("it speaks")),
        }
    };
    let config = |alpn: &[&[u8]]| {
        let mut config = (*config::client(&[fingerprint]).expect("a client")).clone();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    };
    attempt(config(&[])).expect("closed, but TLS");
    attempt(config(&[b"h2"])).expect_err("an alert");
    until("counted", || {
        listener.stats().refused(RefusalReason::Protocol) == 2
    });
    let mut old = rustls::ClientConfig::builder_with_protocol_versions(&[&TLS12])
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    old.alpn_protocols = vec![ALPN.to_vec()];
    let error = attempt(Arc::new(old)).expect_err("an alert");
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    until("counted", || {
        listener.stats().refused(RefusalReason::Tls) == 1
    });
}

#[test]
fn a_newer_connection_takes_the_place_of_the_older() {
    let mut joined = joined();
    let (tenant, provider) = (&joined.tenant, &joined.provider);
    let at = joined.listener.addresses()[0];
    let other = tenant.dial(dialing(at, joined.fingerprint, 2));
    let (mut c, mut d) = (tenant.established(), provider.established());
    let again = tenant.dial(dialing(at, joined.fingerprint, 1));
    let mut new = None;
    let mut closed = None;
    for _ in 0..2 {
        match provider.next() {
            ConnectionEvent::Established(established) => new = Some(established),
            ConnectionEvent::Closed { id, reason, .. } => closed = Some((id, reason)),
            failed => panic!("{failed:?}"),
        }
    }
    let (id, why) = closed.expect("closed");
    assert!(matches!(why, CloseReason::Replaced), "{why}");
    assert_eq!(id, joined.b.id);
    let (mut old, mut newer) = (None, None);
    for _ in 0..2 {
        match tenant.next() {
            ConnectionEvent::Established(established) => newer = Some(established),
            ConnectionEvent::Closed { id, reason, .. } => old = Some((id, reason)),
            failed => panic!("{failed:?}"),
        }
    }
    let (id, why) = old.expect("closed");
    assert!(matches!(why, CloseReason::ByPeer), "{why}");
    assert_eq!(id, joined.a.id);
    let (mut a, mut b) = (newer.expect("a new one"), new.expect("a new one"));
    exchange(&mut a.rings[0], &mut b.rings[0], 1000, |n| payload(n, 900));
    // Another circuit's goes on.
    exchange(&mut c.rings[0], &mut d.rings[0], 1000, |n| payload(n, 90));
    // Halves of the old one do no harm.
    let place = &mut joined.a.rings[0];
    assert!(!place.sender.push(b"xy"));
    place.sender.wake();
    assert_eq!(place.receiver.take(1, |_| ()), 0);
    assert_eq!(joined.a.handle.stats().full_out, 1);
    let stats = joined.listener.stats();
    assert_eq!((stats.established, stats.replaced), (3, 1));
    assert_eq!(joined.listener.connections(), (2, 0));
    // The dialers are done: dropping them changes nothing.
    drop((other, again));
    exchange(&mut a.rings[0], &mut b.rings[0], 10, |n| payload(n, 900));
}

#[test]
fn a_close_at_either_end_is_reported_at_the_other() {
    let tenant_closes = joined();
    drop(tenant_closes.a);
    assert!(matches!(
        tenant_closes.tenant.closed().1,
        CloseReason::Requested
    ));
    let (id, why) = tenant_closes.provider.closed();
    assert!(matches!(why, CloseReason::ByPeer), "{why}");
    assert_eq!(id, tenant_closes.b.id);
    assert_eq!(tenant_closes.listener.connections(), (0, 0));

    let mut provider_closes = joined();
    // The listener may go: what is established stays.
    drop(provider_closes.listener);
    let (a, b) = (&mut provider_closes.a, &mut provider_closes.b);
    exchange(&mut a.rings[0], &mut b.rings[0], 100, |n| payload(n, 100));
    drop(provider_closes.b);
    assert!(matches!(
        provider_closes.tenant.closed().1,
        CloseReason::ByPeer
    ));

    let removed = joined();
    removed.listener.set_circuits(circuits(&[1, 2]));
    sleep(Duration::from_millis(50));
    assert!(removed.provider.events.try_recv().is_err(), "as it was");
    let mut other = circuits(&[2]);
    other.insert(circuit(1), key(77));
    removed.listener.set_circuits(other);
    assert!(matches!(removed.provider.closed().1, CloseReason::Removed));
    assert!(matches!(removed.tenant.closed().1, CloseReason::ByPeer));
}

/// A way between the two that stops carrying when told.
struct Way {
    at: SocketAddr,
    stop: Arc<AtomicBool>,
    ends: mpsc::Receiver<(TcpStream, TcpStream)>,
}

fn way(to: SocketAddr) -> Way {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let at = listener.local_addr().expect("an address");
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, ends) = mpsc::channel();
    spawn({
        let stop = Arc::clone(&stop);
        move || {
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect(to).expect("connect");
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let stop = Arc::clone(&stop);
                    spawn(move || {
                        let mut room = [0; 4096];
                        while !stop.load(Relaxed) {
                            match from.read(&mut room) {
                                Ok(bytes @ 1..) if to.write_all(&room[..bytes]).is_ok() => {}
                                Ok(_) | Err(_) => return,
                            }
                        }
                    });
                }
                let _ = sender.send((near, far));
            }
        }
    });
    Way { at, stop, ends }
}

#[test]
fn a_way_that_takes_no_more_costs_datagrams_and_no_memory() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let way = way(listener.addresses()[0]);
    let _dialer = tenant.dial(dialing(way.at, fingerprint, 1));
    let (mut a, mut b) = (tenant.established(), provider.established());
    exchange(&mut a.rings[0], &mut b.rings[0], 100, |n| payload(n, 100));
    way.stop.store(true, Relaxed);
    let datagram = payload(1, 1400);
    let place = &mut a.rings[0];
    let (mut taken, mut refused) = (0u64, 0u64);
    let begun = Instant::now();
    // Full for a while, whatever is tried.
    while refused < 200_000 && begun.elapsed() < PATIENCE {
        if place.sender.push(&datagram) {
            taken += 1;
        } else {
            refused += 1;
        }
        place.sender.wake();
    }
    assert_eq!(a.handle.stats().full_out, refused);
    // The kernels on the path hold the taken datagrams; the process holds one ring at most.
    assert!(taken < 100_000, "{taken} taken");
    until("counted", || {
        let out = a.handle.stats().datagrams_out;
        out <= 100 + taken && 100 + taken - out <= 256
    });
    // It ends at once all the same.
    let before = Instant::now();
    a.handle.close();
    assert!(matches!(tenant.closed().1, CloseReason::Requested));
    assert!(before.elapsed() < Duration::from_secs(2));
}

#[test]
fn half_an_end_and_a_reset_are_an_end() {
    for hard in [false, true] {
        let (tenant, provider) = (Owner::new(), Owner::new());
        let (listener, fingerprint) = provider.listen(Limits::default(), false);
        let way = way(listener.addresses()[0]);
        let _dialer = tenant.dial(dialing(way.at, fingerprint, 1));
        let (_a, _b) = (tenant.established(), provider.established());
        let (near, far) = way.ends.recv_timeout(PATIENCE).expect("ends");
        if hard {
            for end in [&near, &far] {
                let linger = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(end, sockopt::Linger, &linger).expect("no lingering");
            }
            way.stop.store(true, Relaxed);
            for end in [&near, &far] {
                end.shutdown(Shutdown::Read).expect("the copies end");
            }
            drop((near, far));
        } else {
            // The other direction stays open, and is of no use.
            far.shutdown(Shutdown::Write).expect("half an end");
        }
        let (_, why) = provider.closed();
        assert!(
            matches!(why, CloseReason::Cut | CloseReason::Lost(_)),
            "{why}"
        );
        assert_eq!(listener.connections(), (0, 0));
        if hard {
            let (_, why) = tenant.closed();
            assert!(
                matches!(why, CloseReason::Cut | CloseReason::Lost(_)),
                "{why}"
            );
        }
    }
}

#[test]
fn an_end_that_breaks_the_protocol_later_is_closed() {
    let provider = Owner::new();
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let at = listener.addresses()[0];
    let (mut client, tag) = raw(at, fingerprint);
    let hello = stream::hello(circuit(1), &key(1), 1, tag);
    let long = [&[0x10, 0][..], &[7; 4096]].concat();
    // All at once: what comes behind a hello is not lost.
    let all = [&hello[..], b"\x00\x02xx", &long, b"\x00\x02yy\x00\x00"].concat();
    client.write_all(&all).expect("send");
    let mut established = provider.established();
    let (_, why) = provider.closed();
    assert!(matches!(why, CloseReason::Malformed(_)), "{why}");
    let mut came = Vec::new();
    established.rings[0]
        .receiver
        .take(10, |datagram| came.push(datagram.to_vec()));
    assert_eq!(came, [b"xx", b"yy"]);
    let counted = established.handle.stats();
    assert_eq!((counted.datagrams_in, counted.too_long_in), (2, 1));
}

#[test]
fn strangers_do_not_keep_out_an_end_with_a_key() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let limits = Limits {
        connections: 2,
        pending: 4,
        authenticate: PATIENCE,
    };
    let (listener, fingerprint) = provider.listen(limits, false);
    let at = listener.addresses()[0];
    let mut strangers = Vec::new();
    for n in 1..=12 {
        strangers.push(TcpStream::connect(at).expect("connect"));
        until("accepted", || listener.stats().accepted == n);
        until("bounded", || listener.connections().1 <= 4);
    }
    let _one = tenant.dial(dialing(at, fingerprint, 1));
    let (_a, _b) = (tenant.established(), provider.established());
    let refused = |reason| listener.stats().refused(reason);
    until("counted", || refused(RefusalReason::Crowded) >= 9);
    for stranger in &mut strangers[..8] {
        patient(stranger);
        assert!(is_closed(stranger), "the oldest went");
    }
    // As many as there may be; but a circuit that has one may have another instead.
    let _two = tenant.dial(dialing(at, fingerprint, 2));
    let (_c, _d) = (tenant.established(), provider.established());
    let _three = tenant.dial(dialing(at, fingerprint, 3));
    assert!(matches!(tenant.failed(), DialStepError::Refused));
    until("counted", || refused(RefusalReason::Full) == 1);
    let _again = tenant.dial(dialing(at, fingerprint, 2));
    until("replaced", || listener.stats().replaced == 1);
    drop(listener);
}

#[test]
fn a_dialer_says_what_is_wrong_with_each_address_and_takes_the_next() {
    let (tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let at = listener.addresses()[0];
    let nobody = {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        socket.local_addr().expect("an address")
    };
    let mut two = dialing(nobody, fingerprint, 1);
    two.addresses.push(at);
    let _dialer = tenant.dial(two);
    assert_eq!(tenant.established().peer, at);
    drop(provider.established());

    // One that takes connections and says nothing; one that speaks something else.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let web = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let mut all = dialing(nobody, fingerprint, 1);
    all.addresses.push(silent.local_addr().expect("an address"));
    all.addresses.push(web.local_addr().expect("an address"));
    all.timeouts.handshake = Duration::from_secs(1);
    spawn(move || {
        let (mut socket, _) = web.accept().expect("accept");
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        sleep(PATIENCE);
    });
    tenant.closed();
    let _second = tenant.dial(all);
    let why = match tenant.next() {
        ConnectionEvent::Failed {
            error: DialError::Exhausted(attempts),
            ..
        } => attempts,
        other => panic!("{other:?}"),
    };
    assert!(matches!(why[0].error, DialStepError::Connect(_)), "{why:?}");
    assert!(matches!(why[1].error, DialStepError::Slow(_)), "{why:?}");
    assert!(matches!(why[2].error, DialStepError::Tls(_)), "{why:?}");
    let said = DialError::Exhausted(why).to_string();
    assert!(
        said.contains("refused") && said.contains("; 127.0.0.1"),
        "{said}"
    );

    let mut bad = dialing(at, fingerprint, 1);
    bad.name = "192.0.2.1".to_owned();
    let started = Dialer::start(bad, tenant.rings.clone(), tenant.event_sender.clone());
    assert!(matches!(started, Err(DialStartError::Name(_))));
}

#[test]
fn a_dialer_that_is_dropped_gives_up_at_once() {
    let tenant = Owner::new();
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let at = silent.local_addr().expect("an address");
    let fingerprint = Identity::generate(NAME).expect("one").fingerprint();
    let dialer = tenant.dial(dialing(at, fingerprint, 1));
    let (mut accepted, _) = silent.accept().expect("accept");
    let before = Instant::now();
    drop(dialer);
    assert!(matches!(
        tenant.next(),
        ConnectionEvent::Failed {
            error: DialError::Cancelled,
            ..
        }
    ));
    assert!(before.elapsed() < Duration::from_secs(2));
    patient(&accepted);
    let mut hello = Vec::new();
    accepted.read_to_end(&mut hello).expect("an end");
}

#[test]
fn datagrams_reach_the_ring_of_their_worker_and_wake_it() {
    let (mut tenant, provider) = (Owner::new(), Owner::new());
    let (listener, fingerprint) = provider.listen(Limits::default(), false);
    let sleeps: Vec<Arc<AtomicBool>> = (0..2).map(|_| Arc::default()).collect();
    let wakes: Vec<Arc<EventFd>> = (0..3).map(|_| event()).collect();
    tenant.rings.steer = steer_by_lane(3);
    tenant.rings.consumers = vec![
        ThreadWaker::new(Arc::clone(&wakes[0])),
        ThreadWaker::of_sleeper(Arc::clone(&wakes[1]), Arc::clone(&sleeps[0])),
        ThreadWaker::of_sleeper(Arc::clone(&wakes[2]), Arc::clone(&sleeps[1])),
    ];
    let _dialer = tenant.dial(dialing(listener.addresses()[0], fingerprint, 1));
    let (mut a, mut b) = (tenant.established(), provider.established());
    let data = |lane: u32| [&[4, 0, 0, 0][..], &(640 + lane).to_le_bytes(), &[7; 24]].concat();
    sleeps[1].store(true, SeqCst);
    let datagrams = [
        vec![1; 148],
        vec![2; 92],
        vec![3; 64],
        data(0),
        data(1),
        data(2),
        data(4),
        vec![4, 4],
    ];
    for datagram in &datagrams {
        assert!(b.rings[0].sender.push(datagram));
    }
    b.rings[0].sender.wake();
    let total = || {
        let counted = a.handle.stats();
        (counted.datagrams_in, counted.no_ring_in)
    };
    until("come", || total() == (7, 1));
    let came = a.rings.iter_mut().map(|place| {
        let mut came = Vec::new();
        place
            .receiver
            .take(10, |datagram| came.push(datagram.to_vec()));
        came
    });
    let came: Vec<Vec<Vec<u8>>> = came.collect();
    assert_eq!(came[0], datagrams[..3]);
    assert_eq!(came[1], [data(0), vec![4, 4]]);
    assert_eq!(came[2], [data(1), data(4)]);
    until("woken", || wakes[0].read().is_ok());
    until("woken", || wakes[2].read().is_ok());
    assert!(wakes[1].read().is_err(), "it was awake");
    // From any of them.
    for n in 0..3 {
        assert!(a.rings[n].sender.push(&[n as u8; 2]));
        a.rings[n].sender.wake();
        let mut came: Vec<u8> = Vec::new();
        until("come", || {
            b.rings[0]
                .receiver
                .take(1, |datagram| came.extend(&*datagram))
                == 1
        });
        assert_eq!(came, [n as u8; 2]);
    }
}

mod silence;
mod through;
