//! The listener for tunnels over TLS: prepared, replaced as a whole, and tried again at a start.
//!
//! ```text
//!   owner ─ ListenSpec ─▶ ListenerSetup ─▶ another thread: prepare: file, addresses ─▶ NewListener
//!                                              └─ fails: refused, the present one stays    │
//!   owner ◀──────────────────────── listen: in the place of the present one ◀──────────────┘
//! ```
//!
//! A listener is prepared on another thread: that may read and write the file of the certificate,
//! and the manager's loop does not wait for a disk.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use failover::IpPrefix;
use gateway_client::wire::{CircuitId, Key};
use tunnel::Instant;

use super::retry::Retry;
use crate::{
    clock,
    tls::{
        EventSender, Fingerprint, Identity, IdentityError, Limits, ListenConfig, ListenError,
        Listener, ListenerStats, PreparedListener, RingSetup, Sockets,
    },
};

/// Where tunnels over TLS are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSpec {
    /// Addresses to listen on.
    pub addresses: Vec<SocketAddr>,
    /// Sources that may connect; empty: any.
    pub from: Vec<IpPrefix>,
    /// Whether connections begin with a PROXY protocol header that names the client.
    pub proxy: bool,
    /// The file with certificate and key; made when it is missing.
    pub file: PathBuf,
    /// The name in a certificate that is made.
    pub name: String,
}

/// Why tunnels over TLS cannot be accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// All that a listener needs, for the thread that prepares it.
pub struct ListenerSetup {
    spec: ListenSpec,
    rings: RingSetup,
    events: EventSender,
    /// The sockets of the present listener, which the new one may share.
    present: Option<Arc<Sockets>>,
}

impl ListenerSetup {
    /// Reads the certificate, or makes one, and binds the addresses. It waits for the disk.
    ///
    /// # Errors
    /// When one of these fails. Only a certificate that was made is left.
    pub fn prepare(self) -> Result<NewListener, Error> {
        let Self {
            spec,
            rings,
            events,
            present,
        } = self;
        let identity = Identity::load_or_generate(&spec.file, &spec.name)?;
        let fingerprint = identity.fingerprint();
        let config = ListenConfig {
            addresses: spec.addresses.clone(),
            identity,
            circuits: HashMap::new(),
            from: spec.from.clone(),
            proxy: spec.proxy,
            limits: Limits::default(),
        };
        let prepared = Listener::prepare(config, rings, events, present.as_deref())?;
        Ok(NewListener {
            spec,
            fingerprint,
            prepared,
        })
    }
}

/// A listener whose addresses are bound. Dropped, it changes nothing.
#[must_use]
pub struct NewListener {
    spec: ListenSpec,
    fingerprint: Fingerprint,
    prepared: PreparedListener,
}

/// A listener that could not be prepared, while it is tried again.
struct Retried {
    spec: ListenSpec,
    /// The attempt that is under way.
    attempt: Option<mpsc::Receiver<Result<NewListener, Error>>>,
}

/// The listener, and the parts of another one.
pub(super) struct Listening {
    rings: RingSetup,
    events: EventSender,
    listener: Option<(ListenSpec, Fingerprint, Listener)>,
    error: Option<String>,
    retry: Retry,
    /// The listener that there should be and is not.
    wanted: Option<Retried>,
    /// Circuits whose other end may connect.
    circuits: HashMap<CircuitId, Key>,
}

impl Listening {
    /// Nowhere yet. `events` are those of connections; they wake the manager.
    pub fn new(rings: RingSetup, events: EventSender) -> Self {
        Self {
            rings,
            events,
            listener: None,
            error: None,
            retry: Retry::default(),
            wanted: None,
            circuits: HashMap::new(),
        }
    }

    /// Whether tunnels are accepted.
    pub const fn is_there(&self) -> bool {
        self.listener.is_some()
    }

    /// Lets the other ends of these circuits connect, and no others.
    pub fn set_circuits(&mut self, circuits: HashMap<CircuitId, Key>) {
        if let Some((_, _, listener)) = &self.listener {
            listener.set_circuits(circuits.clone());
        }
        self.circuits = circuits;
    }

    /// The setup of a listener as specified; `None`: it is there already, or is being retried.
    pub fn prepare(&self, spec: &ListenSpec) -> Option<ListenerSetup> {
        let present = self.listener.as_ref().map(|(spec, ..)| spec);
        let retried = self.wanted.as_ref().map(|retried| &retried.spec);
        (present != Some(spec) && retried != Some(spec)).then(|| self.setup(spec))
    }

    fn setup(&self, spec: &ListenSpec) -> ListenerSetup {
        let present = self.listener.as_ref();
        ListenerSetup {
            spec: spec.clone(),
            rings: self.rings.clone(),
            events: self.events.clone(),
            present: present.map(|(_, _, listener)| listener.sockets()),
        }
    }

    /// Listens, in the place of the present listener. It cannot fail.
    pub fn listen(&mut self, new: NewListener) {
        let NewListener {
            spec,
            fingerprint,
            prepared,
        } = new;
        // Its sockets are shared: what waits in their queues is accepted by the new one.
        self.listener = None;
        let listener = prepared.start();
        listener.set_circuits(self.circuits.clone());
        tracing::info!(addresses = ?listener.addresses(), %fingerprint, "listening for tunnels \
            over TLS");
        self.listener = Some((spec, fingerprint, listener));
        self.given_up();
    }

    /// Listens no longer.
    pub fn stop_listening(&mut self) {
        self.listener = None;
        self.given_up();
    }

    fn given_up(&mut self) {
        self.wanted = None;
        self.error = None;
        self.retry = Retry::default();
    }

    /// Listens as specified; a failure is reported as a [`problem`](Self::problem) and tried again,
    /// for ever. It waits for the disk.
    pub fn listen_or_retry(&mut self, spec: &ListenSpec) {
        if let Some(setup) = self.prepare(spec) {
            self.attempted(spec.clone(), setup.prepare());
        }
    }

    fn attempted(&mut self, spec: ListenSpec, result: Result<NewListener, Error>) {
        match result {
            Ok(new) => self.listen(new),
            Err(error) => {
                let text = format!("tunnels over TLS: {error}");
                if self.error.as_ref() != Some(&text) {
                    tracing::warn!(reason = text, "cannot listen for tunnels over TLS");
                }
                self.error = Some(text);
                self.wanted = Some(Retried {
                    spec,
                    attempt: None,
                });
                self.retry.attempted(clock::mono(), false);
            }
        }
    }

    /// As [`listen_again`](Self::listen_again), if it is time for that.
    pub fn listen_if_due(&mut self, now: Instant) {
        if self.retry.is_due(now) {
            self.listen_again();
        }
    }

    /// Begins to listen if that failed before: the addresses may exist now. The outcome is taken by
    /// [`take_attempt`](Self::take_attempt).
    pub fn listen_again(&mut self) {
        let Some(retried) = self.wanted.take_if(|retried| retried.attempt.is_none()) else {
            return;
        };
        let setup = self.setup(&retried.spec);
        let (sender, outcome) = mpsc::channel();
        let event = Arc::clone(&self.events.wake);
        let spawned = std::thread::Builder::new()
            .name("tls-prepare".to_owned())
            .spawn(move || {
                // Its loss: the attempt was given up.
                let _ = sender.send(setup.prepare());
                let _ = event.write(1);
            });
        match spawned {
            Ok(_) => {
                self.wanted = Some(Retried {
                    attempt: Some(outcome),
                    ..retried
                });
            }
            Err(error) => {
                let error = ListenError::Thread(error).into();
                self.attempted(retried.spec, Err(error));
            }
        }
    }

    /// Takes the outcome of [`listen_again`](Self::listen_again).
    pub fn take_attempt(&mut self) {
        let outcome = self.wanted.as_ref().and_then(|retried| {
            let attempt = retried.attempt.as_ref()?;
            attempt.try_recv().ok()
        });
        if let Some(outcome) = outcome
            && let Some(retried) = self.wanted.take()
        {
            self.attempted(retried.spec, outcome);
        }
    }

    /// The listener: the fingerprint that tenants pin, counters, and how many connections are
    /// established.
    pub fn status(&self) -> Option<(Fingerprint, ListenerStats, usize)> {
        let (_, fingerprint, listener) = self.listener.as_ref()?;
        Some((*fingerprint, listener.stats(), listener.connections().0))
    }

    /// Why there is no listener that should be there, for the operator.
    pub fn problem(&self) -> Option<&String> {
        self.error.as_ref()
    }
}

/// The file of an appliance's certificate and key.
#[must_use]
pub fn certificate_file(state_dir: &Path) -> PathBuf {
    state_dir.join("tls.pem")
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        io::Write as _,
        net::{Ipv4Addr, TcpListener, TcpStream},
        os::unix::fs::PermissionsExt as _,
        time::Duration,
    };

    use nix::{
        sys::{
            eventfd::{EfdFlags, EventFd},
            stat::Mode,
        },
        unistd::mkfifo,
    };

    use super::*;
    use crate::tls::{RefusalReason, ThreadWaker};

    /// Why a connection that begins with these bytes is refused.
    fn refused(listening: &Listening, to: SocketAddr, first: &[u8]) -> RefusalReason {
        let counts = || {
            let (_, stats, _) = listening.status().expect("a listener");
            RefusalReason::ALL.map(|why| (why, stats.refused(why)))
        };
        let before = counts();
        let mut client = TcpStream::connect(to).expect("connect");
        // The listener may close the connection before all is written.
        let _ = client.write_all(first);
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

    const NO_HEADER: &[u8] = b"\x16\x03\x01\x00\x10 neither a header nor TLS";

    fn listening() -> Listening {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
        let event = Arc::new(event);
        let rings = RingSetup {
            consumers: vec![ThreadWaker::new(Arc::clone(&event))],
            steer: Arc::new(|_| 0),
            capacity: 16,
        };
        let (sender, _) = mpsc::channel();
        let events = EventSender {
            events: sender,
            wake: event,
        };
        Listening::new(rings, events)
    }

    fn spec(at: SocketAddr, directory: &Path) -> ListenSpec {
        ListenSpec {
            addresses: vec![at],
            from: Vec::new(),
            proxy: false,
            file: certificate_file(directory),
            name: "provider".to_owned(),
        }
    }

    /// A listener of another program.
    fn taken() -> (TcpListener, SocketAddr) {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let at = socket.local_addr().expect("an address");
        (socket, at)
    }

    #[test]
    fn an_address_in_use_is_refused_and_the_present_listener_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut listening = listening();
        let (free, at) = taken();
        drop(free);
        let present = spec(at, directory.path());
        listening.listen_or_retry(&present);
        assert_eq!(listening.problem(), None);
        let (other, in_use) = taken();
        // One free address beside it does not help.
        let (free, beside) = taken();
        drop(free);
        let mut wanted = spec(beside, directory.path());
        wanted.addresses.push(in_use);
        let setup = listening.prepare(&wanted).expect("another one");
        let error = setup.prepare().err().expect("in use").to_string();
        assert!(error.contains(&in_use.to_string()), "{error}");
        TcpListener::bind(beside).expect("no socket is left there");
        assert!(listening.prepare(&present).is_none(), "it stays");
        assert_eq!(listening.problem(), None);
        let why = refused(&listening, at, NO_HEADER);
        assert_eq!(why, RefusalReason::Tls, "it accepts");
        // Once the address is free, the listener changes; what waits in a queue is not lost.
        drop(other);
        wanted.addresses.push(at);
        let setup = listening.prepare(&wanted).expect("another one");
        listening.listen(setup.prepare().expect("free"));
        for at in [beside, in_use, at] {
            let why = refused(&listening, at, NO_HEADER);
            assert_eq!(why, RefusalReason::Tls, "{at}");
        }
    }

    #[test]
    fn the_loop_does_not_wait_for_the_file_of_the_certificate() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut listening = listening();
        let (free, at) = taken();
        drop(free);
        let wanted = spec(at, directory.path());
        fs::write(&wanted.file, "").expect("written");
        fs::set_permissions(&wanted.file, Permissions::from_mode(0o644)).expect("a mode");
        listening.listen_or_retry(&wanted);
        let problem = listening.problem().expect("readable for all").clone();
        assert!(problem.contains("chmod 600"), "{problem}");
        // A file that takes until the test writes it: to read it here would take for ever.
        fs::remove_file(&wanted.file).expect("removed");
        mkfifo(&wanted.file, Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe");
        listening.listen_again();
        for _ in 0..10 {
            listening.take_attempt();
            listening.listen_again();
            assert!(listening.problem().is_some());
        }
        let made = directory.path().join("made.pem");
        Identity::load_or_generate(&made, "provider").expect("made");
        fs::write(&wanted.file, fs::read(&made).expect("read")).expect("written");
        let begun = std::time::Instant::now();
        while listening.problem().is_some() {
            listening.take_attempt();
            assert!(begun.elapsed().as_secs() < 20, "never listening");
            std::thread::yield_now();
        }
        assert_eq!(refused(&listening, at, NO_HEADER), RefusalReason::Tls);
    }

    #[test]
    fn a_failure_at_the_start_is_tried_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut listening = listening();
        let (other, at) = taken();
        let wanted = spec(at, directory.path());
        listening.listen_or_retry(&wanted);
        let problem = listening.problem().expect("in use").clone();
        assert!(problem.contains(&at.to_string()), "{problem}");
        assert!(listening.prepare(&wanted).is_none(), "retried");
        drop(other);
        let begun = std::time::Instant::now();
        while listening.problem().is_some() {
            listening.listen_again();
            listening.take_attempt();
            assert!(begun.elapsed().as_secs() < 20, "never listening");
            std::thread::yield_now();
        }
        assert_eq!(refused(&listening, at, NO_HEADER), RefusalReason::Tls);
        listening.stop_listening();
        TcpListener::bind(at).expect("free again");
    }

    #[test]
    fn a_proxy_header_is_required_as_configured() {
        let mut listening = listening();
        let directory = tempfile::tempdir().expect("a directory");
        let (free, at) = taken();
        drop(free);
        let spec = |from: &[&str], proxy| ListenSpec {
            from: from
                .iter()
                .map(|net| net.parse().expect("a prefix"))
                .collect(),
            proxy,
            ..spec(at, directory.path())
        };
        const HEADER: &[u8] =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x07\xc3\x50\x18\x24";
        let with_header = [HEADER, NO_HEADER].concat();
        for (spec, without, with) in [
            (spec(&[], false), RefusalReason::Tls, RefusalReason::Tls),
            (spec(&[], true), RefusalReason::NoProxy, RefusalReason::Tls),
            (
                spec(&["127.0.0.1"], true),
                RefusalReason::NoProxy,
                RefusalReason::Tls,
            ),
            (
                spec(&["192.0.2.1"], true),
                RefusalReason::NoGateway,
                RefusalReason::NoGateway,
            ),
            (spec(&[], false), RefusalReason::Tls, RefusalReason::Tls),
        ] {
            listening.listen_or_retry(&spec);
            assert_eq!(listening.problem(), None);
            assert_eq!(refused(&listening, at, NO_HEADER), without, "{spec:?}");
            assert_eq!(refused(&listening, at, &with_header), with, "{spec:?}");
        }
    }
}
