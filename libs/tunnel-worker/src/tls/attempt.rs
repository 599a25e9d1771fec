//! The tenant's end: one attempt at a connection, in a thread that goes on as the connection's.
//!
//! ```text
//!   connect as the race decides (gateway_client::dial); with the first address that TCP connects:
//!     TLS: the pinned certificate, the protocol ─▶ hello ─▶ answer ─▶ Established, carry ─▶ Closed
//!        └──────── each with a deadline, cancelable ──────┘ └ it fails: the next one that is connected
//!   all failed ─▶ Failed, with the error of each address
//! ```
//!
//! The other sockets stay connected meanwhile; TLS and the hello are tried with one address at a
//! time.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use gateway_client::{
    dial::{AttemptId, Race, RaceAction},
    stream::{ALPN, hello, is_answer},
    wire::{CircuitId, Key},
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket},
};
use rustls::{AlertDescription, ClientConfig, ClientConnection, pki_types::ServerName};

use super::{
    close_reason::CloseReason,
    config::{self, FingerprintMismatch},
    connection::{self, Role},
    dial_error::{AddressError, DialError, DialStartError, DialStepError},
    event::{ConnectionEvent, ConnectionId, EventSender},
    identity::Fingerprint,
    link::{HandshakeError, TlsLink, prepare, within},
    ring::RingSetup,
    thread_control::{StopReason, ThreadControl},
};

/// Least time for TLS and the hello while other addresses are left: a gateway may answer and the
/// appliance behind it not.
const MIN_TLS_TIMEOUT: Duration = Duration::from_secs(1);
/// The same as a multiple of the time of TCP's handshake: for TLS, the hello and the gateway's own
/// connection.
const MIN_TLS_TIMEOUT_ROUND_TRIPS: u32 = 8;

/// Configuration of a dialer.
pub struct DialConfig {
    /// The connects, to gateways or to the listener itself. It has not begun.
    pub race: Race,
    /// The server name by which a gateway finds the listener.
    pub name: String,
    /// Fingerprint of the listener's certificate.
    pub fingerprints: Vec<Fingerprint>,
    pub circuit: CircuitId,
    /// The circuit's key of side a.
    pub key: Key,
    /// Nanoseconds since 1970, each more than the last that this circuit's key was used with, also
    /// in earlier attempts. See [`unix_nanos`].
    pub clock: Box<dyn FnMut() -> u64 + Send>,
    /// Time for TLS, the hello and its answer together, with each address.
    pub timeout: Duration,
}

/// [`DialConfig::timeout`] of a tunnel.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The wall clock, nanoseconds since 1970.
#[must_use]
pub fn unix_nanos() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// The owner's handle of an attempt. Dropping it cancels an attempt that is not yet established.
#[derive(Debug)]
pub struct TlsAttempt {
    control: Arc<ThreadControl>,
    attempt: ConnectionId,
}

impl TlsAttempt {
    /// Begins an attempt. Its outcome is an event: [`ConnectionEvent::Established`], then at last
    /// [`ConnectionEvent::Closed`]; or [`ConnectionEvent::Failed`].
    ///
    /// # Errors
    /// [`DialStartError`]; there is no event then.
    pub fn start(
        dial: DialConfig,
        rings: RingSetup,
        events: EventSender,
    ) -> Result<Self, DialStartError> {
        let name = match ServerName::try_from(dial.name.clone()) {
            Ok(name @ ServerName::DnsName(_)) => name,
            Ok(_) | Err(_) => return Err(DialStartError::Name(dial.name)),
        };
        let config = config::client(&dial.fingerprints).map_err(DialStartError::Tls)?;
        let control = ThreadControl::new().map_err(DialStartError::Thread)?;
        let attempt = ConnectionId::next();
        let connects = Connects::new(dial.race.clone());
        let mut thread = Thread {
            dial,
            name,
            config,
            control: Arc::clone(&control),
            attempt,
        };
        std::thread::Builder::new()
            .name("tls-dial".to_owned())
            .spawn(move || thread.run(connects, &rings, &events))
            .map_err(DialStartError::Thread)?;
        Ok(Self { control, attempt })
    }

    /// Its name in [`ConnectionEvent::Failed`].
    #[must_use]
    pub const fn attempt(&self) -> ConnectionId {
        self.attempt
    }

    /// Cancels the attempt, unless a connection is established.
    pub fn cancel(&self) {
        self.control.stop(StopReason::Close);
    }

    /// Cancels the attempt, unless its hello was sent: the other end may have replaced the
    /// circuit's connection then, and the attempt goes on as if it had not been given up.
    pub fn cancel_before_hello(&self) {
        self.control.stop(StopReason::GiveUp);
    }
}

impl Drop for TlsAttempt {
    fn drop(&mut self) {
        self.cancel();
    }
}

struct Thread {
    dial: DialConfig,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    control: Arc<ThreadControl>,
    attempt: ConnectionId,
}

impl Thread {
    fn run(&mut self, mut connects: Connects, rings: &RingSetup, events: &EventSender) {
        let circuit = self.dial.circuit;
        let error = loop {
            let (address, socket, took) = match connects.next(&self.control) {
                Ok(Some(connected)) => connected,
                Ok(None) => break DialError::Exhausted(connects.failed),
                Err(Cancelled) => break DialError::Cancelled,
            };
            let mut timeout = self.dial.timeout;
            if connects.race.has_more() {
                timeout = timeout.min(MIN_TLS_TIMEOUT.max(took * MIN_TLS_TIMEOUT_ROUND_TRIPS));
            }
            let made = self.handshake(socket, timeout).and_then(|link| {
                // A control of its own: dropping the dialer does not end the connection.
                let control = ThreadControl::new()
                    .map_err(|error| Failed::Step(DialStepError::Socket(error)))?;
                Ok((link, control))
            });
            match made {
                Ok((link, control)) => {
                    for AddressError { address, error } in connects.finish() {
                        events.send(ConnectionEvent::AddressFailed {
                            circuit,
                            attempt: self.attempt,
                            address,
                            failure: error.failure(),
                        });
                    }
                    let id = ConnectionId::next();
                    let connection = (circuit, id, address);
                    let reason =
                        connection::carry(connection, link, &control, rings, events, Role::Prober);
                    events.send(ConnectionEvent::Closed {
                        circuit,
                        id,
                        reason,
                    });
                    return;
                }
                Err(Failed::Cancelled) => break DialError::Cancelled,
                Err(Failed::Step(error)) => connects.failed.push(AddressError { address, error }),
            }
        };
        let attempt = self.attempt;
        events.send(ConnectionEvent::Failed {
            circuit,
            attempt,
            error,
        });
    }

    /// TLS, the hello and its answer.
    fn handshake(&mut self, socket: TcpStream, timeout: Duration) -> Result<TlsLink, Failed> {
        let DialConfig {
            name,
            circuit,
            key,
            clock,
            ..
        } = &mut self.dial;
        let deadline = within(timeout);
        let tls = ClientConnection::new(Arc::clone(&self.config), self.name.clone())
            .map_err(|error| Failed::Step(DialStepError::Tls(error)))?;
        let mut link = TlsLink::new(socket, tls.into());
        let failed = |error| match error {
            HandshakeError::Stopped => Failed::Cancelled,
            HandshakeError::Slow => Failed::Step(DialStepError::Slow(timeout)),
            HandshakeError::Ended(CloseReason::Tls(error)) => Failed::Step(tls_error(error, name)),
            HandshakeError::Ended(reason) => Failed::Step(DialStepError::Ended(reason)),
        };
        link.handshake(&self.control, deadline).map_err(failed)?;
        if link.tls.alpn_protocol() != Some(ALPN) {
            return Err(Failed::Step(DialStepError::NoProtocol(name.clone())));
        }
        let connection = link.tag().map_err(|reason| failed(reason.into()))?;
        let timestamp = clock();
        link.tls
            .writer()
            .write_all(&hello(*circuit, key, timestamp, connection))
            .map_err(|error| failed(CloseReason::Lost(error).into()))?;
        link.hello_sent = true;
        let answer = link
            .first_frame(&self.control, deadline)
            .map_err(|error| match error {
                HandshakeError::Ended(CloseReason::ByPeer | CloseReason::Cut) => {
                    Failed::Step(DialStepError::Refused)
                }
                HandshakeError::Ended(CloseReason::Lost(error))
                    if error.kind() == io::ErrorKind::ConnectionReset =>
                {
                    Failed::Step(DialStepError::Refused)
                }
                other => failed(other),
            })?;
        if !is_answer(&answer, *circuit, key, timestamp, connection) {
            return Err(Failed::Step(DialStepError::WrongAnswer));
        }
        Ok(link)
    }
}

/// The attempt was cancelled.
struct Cancelled;

/// A socket that TCP has not connected yet.
struct Connecting {
    attempt: AttemptId,
    address: SocketAddr,
    socket: TcpStream,
}

/// A connected socket, and how long TCP took.
type Connected = (SocketAddr, TcpStream, Duration);

/// Connects to several addresses as a [`Race`] decides.
struct Connects {
    race: Race,
    /// The race's times count from here.
    begun: Instant,
    connecting: Vec<Connecting>,
    failed: Vec<AddressError>,
}

impl Connects {
    fn new(race: Race) -> Self {
        Self {
            race,
            begun: Instant::now(),
            connecting: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Closes the other sockets; returns the addresses that failed, or were slower than the one
    /// that is used.
    fn finish(mut self) -> Vec<AddressError> {
        let begun = self.begun.elapsed();
        let slow = self.race.finish(begun).map(|address| {
            let error = DialStepError::NoAnswer(begun);
            AddressError { address, error }
        });
        self.failed.extend(slow);
        self.failed
    }

    /// Waits for the next connected socket; `None`: all other addresses failed.
    fn next(&mut self, control: &ThreadControl) -> Result<Option<Connected>, Cancelled> {
        loop {
            if control.stop_reason().is_some() {
                return Err(Cancelled);
            }
            let now = self.begun.elapsed();
            if let Some(connected) = self.take_connected(now) {
                return Ok(Some(connected));
            }
            while let Some(action) = self.race.poll(now) {
                self.act(action, now);
            }
            let Some(deadline) = self.race.next_deadline() else {
                return Ok(None);
            };
            let sockets = self.connecting.iter().map(|one| &one.socket);
            control.wait_for_one(sockets, self.begun + deadline);
        }
    }

    fn act(&mut self, action: RaceAction, now: Duration) {
        match action {
            RaceAction::Connect { attempt, address } => match start_connect(address) {
                Ok(socket) => self.connecting.push(Connecting {
                    attempt,
                    address,
                    socket,
                }),
                Err(error) => {
                    self.race.failed(attempt, now);
                    self.failed.push(AddressError { address, error });
                }
            },
            RaceAction::Expire { attempt, address } => {
                self.connecting.retain(|one| one.attempt != attempt);
                let error = DialStepError::NoAnswer(self.race.attempt_timeout());
                self.failed.push(AddressError { address, error });
            }
        }
    }

    /// The first socket that is connected by now. Those that failed before it are recorded.
    fn take_connected(&mut self, now: Duration) -> Option<Connected> {
        let mut index = 0;
        while let Some(one) = self.connecting.get(index) {
            let outcome = match is_connected(&one.socket) {
                Ok(false) => {
                    index += 1;
                    continue;
                }
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            let Connecting {
                attempt,
                address,
                socket,
            } = self.connecting.remove(index);
            match outcome {
                Ok(()) => {
                    let (address, took) = self.race.connected(attempt, now)?;
                    return Some((address, socket, took));
                }
                Err(error) => {
                    self.race.failed(attempt, now);
                    self.failed.push(AddressError { address, error });
                }
            }
        }
        None
    }
}

/// Starts a connect without waiting for it.
fn start_connect(address: SocketAddr) -> Result<TcpStream, DialStepError> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(family, SockType::Stream, flags, None)
        .map_err(|error| DialStepError::Socket(error.into()))?;
    let socket = TcpStream::from(fd);
    prepare(&socket).map_err(DialStepError::Socket)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(socket),
        Err(error) => Err(DialStepError::Connect(error.into())),
    }
}

/// Whether the socket is connected by now.
fn is_connected(socket: &TcpStream) -> Result<bool, DialStepError> {
    if let Some(error) = socket.take_error().map_err(DialStepError::Socket)? {
        return Err(DialStepError::Connect(error));
    }
    match socket.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(DialStepError::Connect(error)),
    }
}

/// How the handshake with one address ended.
enum Failed {
    Cancelled,
    Step(DialStepError),
}

/// A TLS error as a message with the remedy.
fn tls_error(error: rustls::Error, name: &str) -> DialStepError {
    if let Some((presented, pinned)) = FingerprintMismatch::of(&error) {
        return DialStepError::Fingerprint { presented, pinned };
    }
    match error {
        rustls::Error::AlertReceived(
            AlertDescription::UnrecognisedName | AlertDescription::NoApplicationProtocol,
        ) => DialStepError::NoRoute(name.to_owned()),
        rustls::Error::AlertReceived(AlertDescription::InternalError) => DialStepError::NoBackend,
        error => DialStepError::Tls(error),
    }
}
