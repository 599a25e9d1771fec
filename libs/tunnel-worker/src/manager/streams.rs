//! Tunnels over TLS: the connections that there are, and those that are wanted (`crate::tls`, `fallback`).

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    num::NonZeroU64,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use gateway_client::wire::{CircuitId, Key};
use nix::sys::eventfd::EventFd;
use tunnel::{Instant, PublicKey, SecretKey};

use crate::tls::{
    Carrier, ConnectionId, Counted, DialError, Dialer, Dialing, Event, Fingerprint, FromStream,
    Identity, IdentityError, Landing, Limits, ListenError, Listener, Listening, Refusals, Reports,
    Times, ToStream, Wake, by_lane,
};
use crate::{
    clock,
    worker::{Order, Worker},
};
use failover::IpPrefix;

/// How long TCP may take to connect to a gateway: others wait.
const CONNECT: Duration = Duration::from_secs(1);
/// How long a gateway is tried last where a connection did not last: then it may be as good as before.
const AVOIDED: Duration = Duration::from_secs(60);
/// Datagrams that wait in a ring at most.
const WAITING: usize = 512;

/// Where tunnels over TLS arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSpec {
    /// The addresses.
    pub addresses: Vec<SocketAddr>,
    /// Who may connect; empty: anybody.
    pub from: Vec<IpPrefix>,
    /// Whether a gateway says who connected there.
    pub proxy: bool,
    /// The file with certificate and key.
    pub file: PathBuf,
    /// Whose the certificate is.
    pub name: String,
}

/// Where to open a tunnel over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSpec {
    /// The server name.
    pub name: String,
    /// Of the other end's certificate.
    pub fingerprint: Fingerprint,
}

/// Why tunnels over TLS cannot arrive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// A connection that carries a circuit's tunnel.
struct Live {
    id: ConnectionId,
    peer: SocketAddr,
    /// Dropping it closes the connection.
    carrier: Carrier,
    to: ToStream,
    from: FromStream,
    /// Nothing comes by it, not even answers.
    silent: bool,
}

/// What became of connections.
#[derive(Debug)]
pub(super) enum Change {
    /// One is there for this circuit, or another one instead.
    Up(CircuitId),
    /// Nothing comes any more by the one that is there.
    Silent(CircuitId),
    /// Something comes by it again.
    Heard(CircuitId),
    /// The one that was there is not any more.
    Down(CircuitId),
    /// An attempt failed.
    Failed(CircuitId),
}

/// All connections of this appliance.
pub(super) struct Streams {
    events: mpsc::Receiver<Event>,
    reports: Reports,
    landing: Landing,
    listener: Option<(ListenSpec, Fingerprint, Listener)>,
    /// Why there is no listener that should be.
    listen_error: Option<String>,
    live: BTreeMap<CircuitId, Live>,
    dialers: BTreeMap<CircuitId, Dialer>,
    /// Of attempts, why the last one failed.
    failures: BTreeMap<CircuitId, String>,
    /// Where the last connection was that did not last.
    failed_at: BTreeMap<CircuitId, (SocketAddr, Instant)>,
    /// What is to be listened for, while it cannot be.
    wanted: Option<(ListenSpec, HashMap<CircuitId, Key>)>,
}

impl Streams {
    /// None yet. `event` wakes the daemon.
    pub fn new(workers: &[Worker], event: &Arc<EventFd>) -> Self {
        let (sender, events) = mpsc::channel();
        let daemon = Wake::new(Arc::clone(event));
        let places = workers.iter().map(|worker| worker.stream_wake.clone());
        Self {
            events,
            reports: Reports {
                events: sender,
                wake: Arc::clone(event),
            },
            landing: Landing {
                places: std::iter::once(daemon).chain(places).collect(),
                steer: by_lane(u32::try_from(workers.len()).unwrap_or(1)),
                datagrams: WAITING,
            },
            listener: None,
            listen_error: None,
            live: BTreeMap::new(),
            dialers: BTreeMap::new(),
            failures: BTreeMap::new(),
            failed_at: BTreeMap::new(),
            wanted: None,
        }
    }

    /// Listens as asked, for these circuits. What fails is tried again by [`Streams::listen_again`].
    pub fn listen(&mut self, spec: Option<&ListenSpec>, circuits: HashMap<CircuitId, Key>) {
        self.wanted = None;
        let Some(spec) = spec else {
            (self.listener, self.listen_error) = (None, None);
            return;
        };
        if let Some((there, _, listener)) = &self.listener
            && there == spec
        {
            listener.set_circuits(circuits);
            return;
        }
        self.listener = None;
        match self.start(spec, circuits.clone()) {
            Ok((fingerprint, listener)) => {
                tracing::info!(addresses = ?listener.addresses(), %fingerprint, "tunnels over TLS may arrive");
                self.listener = Some((spec.clone(), fingerprint, listener));
                self.listen_error = None;
            }
            Err(error) => {
                let text = format!("tunnels over TLS: {error}");
                if self.listen_error.as_ref() != Some(&text) {
                    tracing::warn!(reason = text, "no tunnel over TLS can arrive");
                }
                self.listen_error = Some(text);
                self.wanted = Some((spec.clone(), circuits));
            }
        }
    }

    /// Listens if that failed before: addresses may be there now.
    pub fn listen_again(&mut self) {
        if let Some((spec, circuits)) = self.wanted.take() {
            self.listen(Some(&spec), circuits);
        }
    }

    fn start(
        &self,
        spec: &ListenSpec,
        circuits: HashMap<CircuitId, Key>,
    ) -> Result<(Fingerprint, Listener), Error> {
        let identity = Identity::load_or_generate(&spec.file, &spec.name)?;
        let fingerprint = identity.fingerprint();
        let listening = Listening {
            addresses: spec.addresses.clone(),
            identity,
            circuits,
            from: spec.from.clone(),
            proxy: spec.proxy,
            limits: Limits::default(),
        };
        let listener = Listener::start(listening, self.landing.clone(), self.reports.clone())?;
        Ok((fingerprint, listener))
    }

    /// Where the last connection of a circuit was that did not last, for some time.
    pub fn failed_at(&self, circuit: CircuitId, now: Instant) -> Option<SocketAddr> {
        let (address, at) = self.failed_at.get(&circuit)?;
        (now.since(*at) < AVOIDED).then_some(*address)
    }

    /// Where a circuit's connection comes from, or goes to.
    pub fn peer(&self, circuit: CircuitId) -> Option<SocketAddr> {
        self.live.get(&circuit).map(|live| live.peer)
    }

    /// Begins an attempt; whether it could.
    pub fn dial(
        &mut self,
        circuit: CircuitId,
        key: Key,
        tls: &TlsSpec,
        addresses: Vec<SocketAddr>,
    ) -> bool {
        if let Some(live) = self.live.get(&circuit) {
            tracing::info!(%circuit, peer = %live.peer, "a tunnel over TLS is silent: another one is dialed beside it");
        }
        let dialing = Dialing {
            addresses,
            name: tls.name.clone(),
            fingerprint: tls.fingerprint,
            circuit,
            key,
            clock: Box::new(clock::grown),
            times: Times {
                connect: CONNECT,
                ..Times::default()
            },
        };
        match Dialer::start(dialing, self.landing.clone(), self.reports.clone()) {
            Ok(dialer) => {
                self.dialers.insert(circuit, dialer);
                true
            }
            Err(error) => {
                self.failed(circuit, &error);
                false
            }
        }
    }

    fn failed(&mut self, circuit: CircuitId, error: &dyn std::error::Error) {
        let text = error.to_string();
        if self.failures.get(&circuit) != Some(&text) {
            tracing::warn!(%circuit, reason = text, "no tunnel over TLS");
        }
        self.failures.insert(circuit, text);
    }

    /// Whether an attempt is going on.
    pub fn is_dialing(&self, circuit: CircuitId) -> bool {
        self.dialers.contains_key(&circuit)
    }

    /// Whether nothing comes by the connection that is there.
    pub fn is_silent(&self, circuit: CircuitId) -> bool {
        self.live.get(&circuit).is_some_and(|live| live.silent)
    }

    /// Gives an attempt up, unless it is about to succeed.
    pub fn give_up(&self, circuit: CircuitId) {
        if let Some(dialer) = self.dialers.get(&circuit) {
            dialer.give_up();
        }
    }

    /// Whether a connection is there.
    pub fn is_live(&self, circuit: CircuitId) -> bool {
        self.live.contains_key(&circuit)
    }

    /// Why the last attempt failed.
    pub fn failure(&self, circuit: CircuitId) -> Option<&str> {
        self.failures.get(&circuit).map(String::as_str)
    }

    /// TunnelManager what there is for a circuit.
    pub fn close(&mut self, circuit: CircuitId, workers: &mut [Worker]) {
        self.dialers.remove(&circuit);
        self.failures.remove(&circuit);
        self.failed_at.remove(&circuit);
        if let Some(live) = self.live.remove(&circuit) {
            tracing::info!(%circuit, peer = %live.peer, "the tunnel over TLS is not wanted any more");
            unstream(circuit, workers);
        }
    }

    /// The same, of a connection by which nothing is heard: the next one is not to be there, if it can be elsewhere.
    pub fn abandon(&mut self, circuit: CircuitId, workers: &mut [Worker], now: Instant) {
        let peer = self.peer(circuit);
        self.close(circuit, workers);
        if let Some(peer) = peer {
            self.failed_at.insert(circuit, (peer, now));
        }
    }

    /// Takes what was reported.
    pub fn work(&mut self, workers: &mut [Worker]) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Established(new) => {
                    let circuit = new.circuit;
                    // A newer one of the circuit has taken its place already.
                    if new.carrier.is_over() {
                        continue;
                    }
                    // An attempt that was given up in the moment that it succeeded.
                    if self.listener.is_none() && self.dialers.remove(&circuit).is_none() {
                        continue;
                    }
                    let mut places = new.places.into_iter();
                    let Some(ours) = places.next() else { continue };
                    tracing::info!(%circuit, peer = %new.peer, "a tunnel over TLS is open");
                    for (worker, place) in workers.iter_mut().zip(places) {
                        worker.order(Order::Stream(circuit.number(), place));
                        worker.wake();
                    }
                    self.failures.remove(&circuit);
                    let live = Live {
                        id: new.id,
                        peer: new.peer,
                        carrier: new.carrier,
                        to: ours.to,
                        from: ours.from,
                        silent: false,
                    };
                    if let Some(old) = self.live.insert(circuit, live)
                        && old.silent
                    {
                        self.failed_at.insert(circuit, (old.peer, clock::mono()));
                    }
                    changes.push(Change::Up(circuit));
                }
                Event::Failed {
                    circuit,
                    attempt,
                    why,
                } => {
                    // Of one that was dropped nothing is to be done; there may be another by now.
                    if self.dialers.get(&circuit).map(Dialer::attempt) != Some(attempt) {
                        continue;
                    }
                    self.dialers.remove(&circuit);
                    // One that was given up was not needed.
                    if !matches!(why, DialError::Cancelled) {
                        self.failed(circuit, &why);
                        changes.push(Change::Failed(circuit));
                    }
                }
                Event::Silent { circuit, id } => {
                    if let Some(live) = self.live.get_mut(&circuit).filter(|live| live.id == id) {
                        tracing::debug!(%circuit, peer = %live.peer, "a tunnel over TLS is silent");
                        live.silent = true;
                        changes.push(Change::Silent(circuit));
                    }
                }
                Event::Heard { circuit, id } => {
                    if let Some(live) = self.live.get_mut(&circuit).filter(|live| live.id == id) {
                        tracing::debug!(%circuit, peer = %live.peer, "a tunnel over TLS is heard again");
                        live.silent = false;
                        changes.push(Change::Heard(circuit));
                    }
                }
                Event::Closed { circuit, id, why } => {
                    if self.live.get(&circuit).is_some_and(|live| live.id == id) {
                        tracing::info!(%circuit, reason = %why, "a tunnel over TLS is closed");
                        if let Some(live) = self.live.remove(&circuit) {
                            self.failed_at.insert(circuit, (live.peer, clock::mono()));
                        }
                        unstream(circuit, workers);
                        changes.push(Change::Down(circuit));
                    }
                }
            }
        }
        changes
    }

    /// Gives what came for the daemon, handshakes, to `take`.
    pub fn messages(&mut self, mut take: impl FnMut(CircuitId, &[u8])) {
        for (circuit, live) in &mut self.live {
            live.from.take(WAITING, |message| take(*circuit, message));
        }
    }

    /// Sends a message of the daemon's; whether there was room.
    pub fn send(&mut self, circuit: NonZeroU64, message: &[u8]) -> bool {
        let live = CircuitId::new(circuit.get()).and_then(|id| self.live.get_mut(&id));
        let Some(live) = live else { return false };
        let sent = live.to.push(message);
        live.to.wake();
        sent
    }

    /// What a connection carried.
    pub fn counted(&self, circuit: CircuitId) -> Option<Counted> {
        Some(self.live.get(&circuit)?.carrier.counted())
    }

    /// Of the listener: what tenants pin, what came of the connections that came, and how many there are.
    pub fn arrived(&self) -> Option<(Fingerprint, Refusals, usize)> {
        let (_, fingerprint, listener) = self.listener.as_ref()?;
        Some((*fingerprint, listener.refusals(), listener.connections().0))
    }

    /// What keeps tunnels over TLS from arriving.
    pub fn problem(&self) -> Option<&String> {
        self.listen_error.as_ref()
    }
}

fn unstream(circuit: CircuitId, workers: &mut [Worker]) {
    for worker in workers {
        worker.order(Order::Unstream(circuit.number()));
        worker.wake();
    }
}

/// The key by which two ends of a circuit know each other before the tunnel in a TLS connection is up: made of what makes them the
/// tunnel's ends, so that there is nothing more to configure.
#[must_use]
pub(super) fn key(secret: &SecretKey, peer: &PublicKey, circuit: CircuitId) -> Option<Key> {
    let label = [&b"causeway tunnel over tls 1"[..], &circuit.to_bytes()].concat();
    Some(Key::new(*secret.shared(peer, &label)?))
}

/// The file of an appliance's certificate.
#[must_use]
pub fn certificate_file(state_dir: &Path) -> PathBuf {
    state_dir.join("tls.pem")
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{Ipv4Addr, TcpListener, TcpStream},
    };

    use nix::sys::eventfd::EfdFlags;

    use super::*;
    use crate::{
        pipeline::LaneAssignment,
        tls::Reason,
        worker::{Settings, WaitMode},
    };

    /// Where one connection got that says this first.
    fn refused(streams: &Streams, to: SocketAddr, says: &[u8]) -> Reason {
        let counts = || {
            let (_, refusals, _) = streams.arrived().expect("a listener");
            Reason::ALL.map(|why| (why, refusals.refused(why)))
        };
        let before = counts();
        let mut client = TcpStream::connect(to).expect("connect");
        // What comes late may find the connection closed.
        let _ = client.write_all(says);
        let begun = std::time::Instant::now();
        loop {
            let after = counts();
            if let Some((why, _)) = after.into_iter().find(|count| !before.contains(count)) {
                return why;
            }
            assert!(begun.elapsed().as_secs() < 20, "never refused");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn who_must_say_who_connected_follows_the_configuration() {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
        let event = Arc::new(event);
        let settings = Settings {
            assignment: LaneAssignment::new(0, 1).expect("a worker's share"),
            cpu: None,
            waiting: WaitMode::Wake,
            seed: 1,
        };
        let workers = Worker::start(&[settings], &event).expect("a worker");
        let mut streams = Streams::new(&workers, &event);
        let directory = tempfile::tempdir().expect("a directory");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let at = free.local_addr().expect("an address");
        drop(free);
        let spec = |from: &[&str], proxy| ListenSpec {
            addresses: vec![at],
            from: from
                .iter()
                .map(|net| net.parse().expect("a prefix"))
                .collect(),
            proxy,
            file: certificate_file(directory.path()),
            name: "provider".to_owned(),
        };
        const NO_HEADER: &[u8] = b"\x16\x03\x01\x00\x10 neither a header nor TLS";
        const HEADER: &[u8] =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x07\xc3\x50\x18\x24";
        let with_header = [HEADER, NO_HEADER].concat();
        for (spec, without, with) in [
            (spec(&[], false), Reason::Tls, Reason::Tls),
            (spec(&[], true), Reason::NoProxy, Reason::Tls),
            (spec(&["127.0.0.1"], true), Reason::NoProxy, Reason::Tls),
            (
                spec(&["192.0.2.1"], true),
                Reason::NoGateway,
                Reason::NoGateway,
            ),
            (spec(&[], false), Reason::Tls, Reason::Tls),
        ] {
            streams.listen(Some(&spec), HashMap::new());
            assert_eq!(streams.problem(), None);
            assert_eq!(refused(&streams, at, NO_HEADER), without, "{spec:?}");
            assert_eq!(refused(&streams, at, &with_header), with, "{spec:?}");
        }
    }

    #[test]
    fn two_ends_have_the_same_key_and_nobody_else() {
        let secret = |n: u8| SecretKey::from_bytes(&[n; 32]);
        let circuit = |n: u64| CircuitId::new(1 << 32 | n).expect("an id");
        let of = |a: u8, b: u8, n| key(&secret(a), &secret(b).public(), circuit(n)).expect("a key");
        assert!(of(1, 2, 1) == of(2, 1, 1));
        assert!(of(1, 2, 1) != of(1, 3, 1));
        assert!(of(1, 2, 1) != of(1, 2, 2), "one for each circuit");
        let nobody = PublicKey::from_bytes([0; 32]);
        assert!(key(&secret(1), &nobody, circuit(1)).is_none());
    }
}
