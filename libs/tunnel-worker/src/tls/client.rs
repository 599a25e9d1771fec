//! The tenant's part: one attempt at a connection, in a thread that goes on as its carrier.
//!
//! ```text
//!   connect to the first address, 0.25 s later to the next as well, at once where one fails (RFC 8305 section 5); with the first that is there:
//!     TLS: the pinned certificate, the protocol ─▶ hello ─▶ answer ─▶ Established, carry ─▶ Closed
//!        └──────── each in its time, cancelable ────────┘ └ it fails: the next that is there
//!   none will do ─▶ Failed, with each address and why
//! ```
//!
//! The others stay as they are meanwhile: one address at a time is spoken to, and says hello.

use std::{
    fmt,
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use gateway_client::{
    stream::{ALPN, hello, is_answer},
    wire::{CircuitId, Key},
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket},
};
use rustls::{AlertDescription, ClientConfig, ClientConnection, pki_types::ServerName};

use super::{
    Closed, ConnectionId, Event, Fingerprint, Landing, Reports,
    carrier::{self, Part},
    config::{self, OtherCertificate},
    link::{Control, Link, Order, Unmade, prepare, within},
};

/// How long an address has for itself before the next one is connected to as well (RFC 8305 section 8).
const STAGGER: Duration = Duration::from_millis(250);
/// How long TLS and the hello may take, at least, while there are other addresses: a gateway may be there and its way on not.
const HURRY: Duration = Duration::from_secs(1);
/// Or as many times what TCP took: TLS, the hello and what the gateway needs for its own connection.
const HURRY_TIMES: u32 = 8;

/// How long the steps of an attempt may take, for each address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// TCP.
    pub connect: Duration,
    /// TLS, the hello and its answer, together.
    pub handshake: Duration,
}

impl Default for Times {
    /// 3 s and 5 s.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            handshake: Duration::from_secs(5),
        }
    }
}

/// What is dialled.
pub struct Dialing {
    /// Gateways, or the listener itself; begun with in this order.
    pub addresses: Vec<SocketAddr>,
    /// The server name by which a gateway finds the listener.
    pub name: String,
    /// Of the listener's certificate.
    pub fingerprint: Fingerprint,
    /// Whose datagrams.
    pub circuit: CircuitId,
    /// The circuit's key of side a.
    pub key: Key,
    /// Nanoseconds since 1970; each more than the last that this circuit's key was used with, also in earlier attempts. See
    /// [`unix_nanos`].
    pub clock: Box<dyn FnMut() -> u64 + Send>,
    /// Deadlines.
    pub times: Times,
}

/// The machine's clock.
#[must_use]
pub fn unix_nanos() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// What was wrong with an address.
#[derive(Debug, thiserror::Error)]
pub enum Step {
    /// TCP was refused, or there is no way.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// Nothing answered.
    #[error("no answer to TCP within {0:?}: is the port open on the way?")]
    NoAnswer(Duration),
    /// The gateway does not know the name.
    #[error(
        "the gateway has no route for the server name \"{0}\" and the tunnel's protocol: compare the name with its configuration"
    )]
    NoRoute(String),
    /// The gateway has the name, but no way on.
    #[error(
        "the gateway does not reach the provider's appliance, or its tenant has all the connections that it may have; its `status` tells which"
    )]
    NoBackend,
    /// Another certificate than the pinned one.
    #[error(
        "the certificate has the fingerprint {presented}, not {pinned} as `tls.fingerprint` has it: either something on the way answers in the provider's place, or the provider has a new certificate; ask for its fingerprint and compare"
    )]
    Fingerprint {
        /// What it has.
        presented: Fingerprint,
        /// What it should have.
        pinned: Fingerprint,
    },
    /// TLS failed otherwise.
    #[error("TLS: {0}")]
    Tls(#[source] rustls::Error),
    /// TLS or the hello's answer took too long.
    #[error("connected, but TLS and its hello were not answered within {0:?}")]
    Slow(Duration),
    /// It has the certificate, but not the protocol.
    #[error(
        "the other end speaks TLS, but not the tunnel's protocol: is the server name \"{0}\" that of an appliance?"
    )]
    NoProtocol(String),
    /// It closed instead of answering the hello.
    #[error(
        "the provider's appliance did not accept the circuit: is it configured there with the same key, and has this machine's clock not been set back?"
    )]
    Refused,
    /// What it answered is not made with the key.
    #[error("the answer to the hello is not made with the circuit's key")]
    WrongAnswer,
    /// The connection ended in between.
    #[error("{0}")]
    Ended(#[source] Closed),
    /// There are no descriptors, or an option of the socket is refused.
    #[error("the socket cannot be set up: {0}")]
    Socket(#[source] io::Error),
}

/// An address and what was wrong with it.
#[derive(Debug)]
pub struct Attempt {
    /// The address.
    pub address: SocketAddr,
    /// What was wrong.
    pub why: Step,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum DialError {
    /// The owner cancelled it.
    Cancelled,
    /// None of the addresses would do; in the order they failed.
    Exhausted(Vec<Attempt>),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("cancelled"),
            Self::Exhausted(attempts) if attempts.is_empty() => {
                f.write_str("there is no address to connect to")
            }
            Self::Exhausted(attempts) => {
                for (n, Attempt { address, why }) in attempts.iter().enumerate() {
                    let separator = if n == 0 { "" } else { "; " };
                    write!(f, "{separator}{address}: {why}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for DialError {}

/// Why nothing is dialled.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It is no server name.
    #[error(
        "\"{0}\" is not a server name: it needs to be a DNS name, by which the gateway finds the provider's appliance"
    )]
    Name(String),
    /// TLS does not take what it is given.
    #[error("TLS: {0}")]
    Tls(#[source] rustls::Error),
    /// There are no threads or descriptors left.
    #[error("a connection's thread cannot be started: {0}")]
    Thread(#[source] io::Error),
}

/// An attempt, as its owner has it. Dropping it cancels what is not yet established.
#[derive(Debug)]
pub struct Dialer {
    control: Arc<Control>,
    attempt: ConnectionId,
}

impl Dialer {
    /// Begins an attempt. Its outcome is reported: [`Event::Established`], then at last [`Event::Closed`]; or [`Event::Failed`].
    ///
    /// # Errors
    /// [`StartError`]; nothing is reported then.
    pub fn start(dialing: Dialing, landing: Landing, reports: Reports) -> Result<Self, StartError> {
        let name = match ServerName::try_from(dialing.name.clone()) {
            Ok(name @ ServerName::DnsName(_)) => name,
            Ok(_) | Err(_) => return Err(StartError::Name(dialing.name)),
        };
        let config = config::client(dialing.fingerprint).map_err(StartError::Tls)?;
        let control = Control::new().map_err(StartError::Thread)?;
        let attempt = ConnectionId::next();
        let mut thread = Thread {
            dialing,
            name,
            config,
            control: Arc::clone(&control),
            attempt,
        };
        std::thread::Builder::new()
            .name("stream-dial".to_owned())
            .spawn(move || thread.run(&landing, &reports))
            .map_err(StartError::Thread)?;
        Ok(Self { control, attempt })
    }

    /// Its name in [`Event::Failed`].
    #[must_use]
    pub const fn attempt(&self) -> ConnectionId {
        self.attempt
    }

    /// Gives up, unless a connection is established.
    pub fn cancel(&self) {
        self.control.order(Order::Close);
    }

    /// Gives up, unless a connection may be established at the other end, where it takes the place of the one that there was:
    /// then what comes of it is reported as if nobody had given up.
    pub fn give_up(&self) {
        self.control.order(Order::GiveUp);
    }
}

impl Drop for Dialer {
    fn drop(&mut self) {
        self.cancel();
    }
}

struct Thread {
    dialing: Dialing,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    control: Arc<Control>,
    attempt: ConnectionId,
}

impl Thread {
    fn run(&mut self, landing: &Landing, reports: &Reports) {
        let circuit = self.dialing.circuit;
        let mut connects = Connects {
            left: std::mem::take(&mut self.dialing.addresses).into_iter(),
            under_way: Vec::new(),
            failed: Vec::new(),
            patience: self.dialing.times.connect,
        };
        let why = loop {
            let (address, socket, took) = match connects.next(&self.control) {
                Ok(Some(connected)) => connected,
                Ok(None) => break DialError::Exhausted(connects.failed),
                Err(Cancelled) => break DialError::Cancelled,
            };
            let mut patience = self.dialing.times.handshake;
            if connects.has_more() {
                patience = patience.min(HURRY.max(took * HURRY_TIMES));
            }
            let made = self.greet(socket, patience).and_then(|link| {
                // One of its own: a dialer that is dropped now leaves what it made.
                let control = Control::new().map_err(|error| Failed::Step(Step::Socket(error)))?;
                Ok((link, control))
            });
            match made {
                Ok((link, control)) => {
                    drop(connects);
                    let id = ConnectionId::next();
                    let connection = (circuit, id, address);
                    let why =
                        carrier::carry(connection, link, &control, landing, reports, Part::Asks);
                    reports.tell(Event::Closed { circuit, id, why });
                    return;
                }
                Err(Failed::Cancelled) => break DialError::Cancelled,
                Err(Failed::Step(why)) => connects.failed.push(Attempt { address, why }),
            }
        };
        let attempt = self.attempt;
        reports.tell(Event::Failed {
            circuit,
            attempt,
            why,
        });
    }

    /// TLS, the hello and its answer.
    fn greet(&mut self, socket: TcpStream, patience: Duration) -> Result<Link, Failed> {
        let Dialing {
            name,
            circuit,
            key,
            clock,
            ..
        } = &mut self.dialing;
        let deadline = within(patience);
        let tls = ClientConnection::new(Arc::clone(&self.config), self.name.clone())
            .map_err(|error| Failed::Step(Step::Tls(error)))?;
        let mut link = Link::new(socket, tls.into());
        let failed = |unmade| match unmade {
            Unmade::Ordered => Failed::Cancelled,
            Unmade::Slow => Failed::Step(Step::Slow(patience)),
            Unmade::Ended(Closed::Tls(error)) => Failed::Step(of_tls(error, name)),
            Unmade::Ended(closed) => Failed::Step(Step::Ended(closed)),
        };
        link.handshake(&self.control, deadline).map_err(failed)?;
        if link.tls.alpn_protocol() != Some(ALPN) {
            return Err(Failed::Step(Step::NoProtocol(name.clone())));
        }
        let connection = link.tag().map_err(|closed| failed(closed.into()))?;
        let timestamp = clock();
        link.tls
            .writer()
            .write_all(&hello(*circuit, key, timestamp, connection))
            .map_err(|error| failed(Closed::Lost(error).into()))?;
        link.greeted = true;
        let answer = link
            .first(&self.control, deadline)
            .map_err(|unmade| match unmade {
                Unmade::Ended(Closed::ByPeer | Closed::Cut) => Failed::Step(Step::Refused),
                Unmade::Ended(Closed::Lost(error))
                    if error.kind() == io::ErrorKind::ConnectionReset =>
                {
                    Failed::Step(Step::Refused)
                }
                other => failed(other),
            })?;
        if !is_answer(&answer, *circuit, key, timestamp, connection) {
            return Err(Failed::Step(Step::WrongAnswer));
        }
        Ok(link)
    }
}

/// It is not wanted any more.
struct Cancelled;

/// A connection that TCP has not answered yet.
struct Connecting {
    address: SocketAddr,
    socket: TcpStream,
    since: Instant,
}

/// One that it has, and how long that took.
type Connected = (SocketAddr, TcpStream, Duration);

/// Addresses that are connected to, one after the other and beside each other.
struct Connects {
    left: std::vec::IntoIter<SocketAddr>,
    under_way: Vec<Connecting>,
    failed: Vec<Attempt>,
    /// How long each has.
    patience: Duration,
}

impl Connects {
    /// Whether there are others yet.
    fn has_more(&self) -> bool {
        !self.left.as_slice().is_empty() || !self.under_way.is_empty()
    }

    /// The next that is there, and how long that took; `None`: no other will do.
    fn next(&mut self, control: &Control) -> Result<Option<Connected>, Cancelled> {
        loop {
            if control.ordered().is_some() {
                return Err(Cancelled);
            }
            let now = Instant::now();
            if let Some(connected) = self.look(now) {
                return Ok(Some(connected));
            }
            let next = self.under_way.last().map(|last| last.since + STAGGER);
            if next.is_none_or(|at| now >= at)
                && let Some(address) = self.left.next()
            {
                match begin(address) {
                    Ok(socket) => self.under_way.push(Connecting {
                        address,
                        socket,
                        since: now,
                    }),
                    Err(why) => self.failed.push(Attempt { address, why }),
                }
                continue;
            }
            let Some(first) = self.under_way.first() else {
                return Ok(None);
            };
            let end = first.since + self.patience;
            let next = next.filter(|_| !self.left.as_slice().is_empty());
            let deadline = next.map_or(end, |next| next.min(end));
            control.wait_for_one(self.under_way.iter().map(|one| &one.socket), deadline);
        }
    }

    /// The first of those under way that is there. Those that are not, and will not be, have failed.
    fn look(&mut self, now: Instant) -> Option<Connected> {
        let mut place = 0;
        while let Some(one) = self.under_way.get(place) {
            let came_of_it = match connected(&one.socket) {
                Ok(false) if now < one.since + self.patience => {
                    place += 1;
                    continue;
                }
                Ok(false) => Err(Step::NoAnswer(self.patience)),
                Ok(true) => Ok(()),
                Err(why) => Err(why),
            };
            let Connecting {
                address,
                socket,
                since,
            } = self.under_way.remove(place);
            match came_of_it {
                Ok(()) => return Some((address, socket, now.saturating_duration_since(since))),
                Err(why) => self.failed.push(Attempt { address, why }),
            }
        }
        None
    }
}

/// Begins to connect.
fn begin(address: SocketAddr) -> Result<TcpStream, Step> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(family, SockType::Stream, flags, None)
        .map_err(|error| Step::Socket(error.into()))?;
    let socket = TcpStream::from(fd);
    prepare(&socket).map_err(Step::Socket)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(socket),
        Err(error) => Err(Step::Connect(error.into())),
    }
}

/// Whether it is connected by now.
fn connected(socket: &TcpStream) -> Result<bool, Step> {
    if let Some(error) = socket.take_error().map_err(Step::Socket)? {
        return Err(Step::Connect(error));
    }
    match socket.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(Step::Connect(error)),
    }
}

enum Failed {
    Cancelled,
    Step(Step),
}

/// What TLS says, in words that say what to do.
fn of_tls(error: rustls::Error, name: &str) -> Step {
    if let Some((presented, pinned)) = OtherCertificate::of(&error) {
        return Step::Fingerprint { presented, pinned };
    }
    match error {
        rustls::Error::AlertReceived(
            AlertDescription::UnrecognisedName | AlertDescription::NoApplicationProtocol,
        ) => Step::NoRoute(name.to_owned()),
        rustls::Error::AlertReceived(AlertDescription::InternalError) => Step::NoBackend,
        error => Step::Tls(error),
    }
}
