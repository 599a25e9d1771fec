//! The tenant's part: one attempt at a connection, in a thread that goes on as its carrier.
//!
//! ```text
//!   for each address, until one will do:
//!     connect ─▶ TLS: the pinned certificate, the protocol ─▶ hello ─▶ answer ─▶ Established, carry ─▶ Closed
//!        └────────────── each in its time, cancelable ───────────┘
//!   none will do ─▶ Failed, with each address and why
//! ```

use std::{
    fmt,
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use gateway_client::{
    stream::{ALPN, hello, is_answer},
    wire::{CircuitId, Key},
};
use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket},
};
use rustls::{AlertDescription, ClientConfig, ClientConnection, pki_types::ServerName};

use super::{
    Closed, ConnectionId, Event, Fingerprint, Landing, Reports, carrier,
    link::{Control, Link, Order, Unmade, prepare, within},
    tls::{self, OtherCertificate},
};

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
    /// Gateways, or the listener itself; tried in this order.
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
    /// None of the addresses would do; in the order they were tried.
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
        let config = tls::client(dialing.fingerprint).map_err(StartError::Tls)?;
        let control = Control::new().map_err(StartError::Thread)?;
        let mut attempt = Thread {
            dialing,
            name,
            config,
            control: Arc::clone(&control),
        };
        std::thread::Builder::new()
            .name("stream-dial".to_owned())
            .spawn(move || attempt.run(&landing, &reports))
            .map_err(StartError::Thread)?;
        Ok(Self { control })
    }

    /// Gives up, unless a connection is established.
    pub fn cancel(&self) {
        self.control.order(Order::Close);
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
}

impl Thread {
    fn run(&mut self, landing: &Landing, reports: &Reports) {
        let circuit = self.dialing.circuit;
        let mut attempts = Vec::new();
        for address in self.dialing.addresses.clone() {
            let made = self.dial(address).and_then(|link| {
                // One of its own: a dialer that is dropped now leaves what it made.
                let control = Control::new().map_err(|error| Failed::Step(Step::Socket(error)))?;
                Ok((link, control))
            });
            match made {
                Ok((link, control)) => {
                    let id = ConnectionId::next();
                    let connection = (circuit, id, address);
                    let why = carrier::carry(connection, link, &control, landing, reports);
                    reports.tell(Event::Closed { circuit, id, why });
                    return;
                }
                Err(Failed::Cancelled) => {
                    let why = DialError::Cancelled;
                    reports.tell(Event::Failed { circuit, why });
                    return;
                }
                Err(Failed::Step(why)) => attempts.push(Attempt { address, why }),
            }
        }
        let why = DialError::Exhausted(attempts);
        reports.tell(Event::Failed { circuit, why });
    }

    fn dial(&mut self, address: SocketAddr) -> Result<Link, Failed> {
        let socket = self.connect(address)?;
        let Dialing {
            name,
            circuit,
            key,
            clock,
            times,
            ..
        } = &mut self.dialing;
        let deadline = within(times.handshake);
        let tls = ClientConnection::new(Arc::clone(&self.config), self.name.clone())
            .map_err(|error| Failed::Step(Step::Tls(error)))?;
        let mut link = Link::new(socket, tls.into());
        let failed = |unmade| match unmade {
            Unmade::Ordered => Failed::Cancelled,
            Unmade::Slow => Failed::Step(Step::Slow(times.handshake)),
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

    fn connect(&self, address: SocketAddr) -> Result<TcpStream, Failed> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let setup = |error| Failed::Step(Step::Socket(error));
        let fd: OwnedFd =
            socket(family, SockType::Stream, flags, None).map_err(|error| setup(error.into()))?;
        let socket = TcpStream::from(fd);
        prepare(&socket).map_err(setup)?;
        let refused = |error| Failed::Step(Step::Connect(error));
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
            Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => {}
            Err(error) => return Err(refused(error.into())),
        }
        let time = self.dialing.times.connect;
        let deadline = within(time);
        loop {
            if self.control.ordered().is_some() {
                return Err(Failed::Cancelled);
            }
            if let Some(error) = socket.take_error().map_err(setup)? {
                return Err(refused(error));
            }
            match socket.peer_addr() {
                Ok(_) => return Ok(socket),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                Err(error) => return Err(refused(error)),
            }
            if std::time::Instant::now() >= deadline {
                return Err(Failed::Step(Step::NoAnswer(time)));
            }
            self.control
                .wait(&socket, PollFlags::POLLOUT, Some(deadline));
        }
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
