//! The provider's part: connections that come, who they are, and the newest of each circuit.
//!
//! ```text
//!   accept ─▶ (from a gateway?) ─▶ a thread: (PROXY header ─▶) TLS ─▶ hello ─▶ key, connection, newer? ─▶ answer ─▶ Established, carry ─▶ Closed
//!               └──────────── in 5 s all together ────────────┘      │
//!               more than `pending` of them: they wait              └▶ the circuit's older connection is closed
//! ```
//!
//! Anybody who knows a gateway and the server name gets here: what has not proved itself is bounded in number and time, answers
//! nothing but TLS, and is counted. When there are too many the next ones wait in the kernel until one is done, or the oldest has had half
//! a second and goes: who knows the key needs a few round trips only.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    io::{self, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use failover::IpPrefix;
use gateway_client::{
    stream::{ALPN, BadHello, answer, open_hello, read_hello},
    wire::{CircuitId, Key, Message},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{Backlog, listen},
};
use rustls::{ServerConfig, ServerConnection};

use super::{
    Closed, ConnectionId, Event, Identity, Landing, Reports,
    carrier::{self, Part},
    config,
    link::{Control, Link, Order, Unmade, prepare, within},
    proxy,
};

/// Pause after a connection could not be accepted: the reason, most often too many open files, stays for a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Pause until it is looked again whether there is room for another one.
const ROOM_PAUSE: Duration = Duration::from_millis(5);
/// How long one that proves itself is let alone, whoever else comes.
const LET_ALONE: Duration = Duration::from_millis(500);

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Established, one for each circuit at most.
    pub connections: usize,
    /// Not yet proved.
    pub pending: usize,
    /// Time to prove, from the first moment.
    pub prove: Duration,
}

impl Default for Limits {
    /// 1024, 256 and 5 s.
    fn default() -> Self {
        Self {
            connections: 1024,
            // As many tenants as may lose the same gateway at once; each is a thread for some round trips.
            pending: 256,
            prove: Duration::from_secs(5),
        }
    }
}

/// What is listened for.
pub struct Listening {
    /// Where; of port 0 the kernel chooses one.
    pub addresses: Vec<SocketAddr>,
    /// Who may connect; empty: anybody.
    pub from: Vec<IpPrefix>,
    /// Certificate and key.
    pub identity: Identity,
    /// Circuits and their keys of side a.
    pub circuits: HashMap<CircuitId, Key>,
    /// Whether every connection begins with the header by which a gateway says who connected (`proxy = true` there). Others are
    /// refused then.
    pub proxy: bool,
    /// Bounds.
    pub limits: Limits,
}

/// Why nothing is listened for.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address cannot be had.
    #[error(
        "cannot listen on {address} (TCP): {source}; is another process there, and is the address this machine's?"
    )]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// TLS does not take the identity.
    #[error("TLS does not take the certificate and its key: {0}")]
    Tls(#[source] rustls::Error),
    /// There are no threads or descriptors left.
    #[error("the listener's thread cannot be started: {0}")]
    Thread(#[source] io::Error),
}

/// Why a connection was not established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Reason {
    /// It was the oldest of too many that had not proved themselves, or came when not even closing those made room.
    Crowded,
    /// It had not proved itself in time.
    Slow,
    /// It left, or was lost.
    Gone,
    /// It came from nowhere that a gateway is.
    NoGateway,
    /// The gateway's header was missing.
    NoProxy,
    /// It did not speak TLS 1.3, or not to the end.
    Tls,
    /// It asked for another protocol, or none.
    Protocol,
    /// Its first frame was no hello.
    NotAHello,
    /// Its circuit is not configured.
    NoCircuit,
    /// It did not have the key.
    Forged,
    /// Its hello was made for another connection.
    OtherConnection,
    /// Its hello was not newer than the last one.
    Replayed,
    /// There were as many connections as there may be.
    Full,
    /// There were no threads or descriptors left.
    NoRoom,
    /// The listener was stopped.
    Stopped,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Crowded,
        Self::Slow,
        Self::Gone,
        Self::NoGateway,
        Self::NoProxy,
        Self::Tls,
        Self::Protocol,
        Self::NotAHello,
        Self::NoCircuit,
        Self::Forged,
        Self::OtherConnection,
        Self::Replayed,
        Self::Full,
        Self::NoRoom,
        Self::Stopped,
    ];

    /// As metrics and status have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crowded => "crowded",
            Self::Slow => "slow",
            Self::Gone => "gone",
            Self::NoGateway => "no-gateway",
            Self::NoProxy => "no-proxy",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::NotAHello => "not-a-hello",
            Self::NoCircuit => "no-circuit",
            Self::Forged => "forged",
            Self::OtherConnection => "other-connection",
            Self::Replayed => "replayed",
            Self::Full => "full",
            Self::NoRoom => "no-room",
            Self::Stopped => "stopped",
        }
    }
}

impl From<BadHello> for Reason {
    fn from(bad: BadHello) -> Self {
        match bad {
            BadHello::NotAHello => Self::NotAHello,
            BadHello::Forged => Self::Forged,
            BadHello::OtherConnection => Self::OtherConnection,
            BadHello::Replayed => Self::Replayed,
        }
    }
}

/// What came of the connections that came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// That came.
    pub accepted: u64,
    /// Of them, established.
    pub established: u64,
    /// Of them, in the place of an older one.
    pub replaced: u64,
    refused: [u64; Reason::ALL.len()],
}

impl Refusals {
    /// Refused for this reason.
    #[must_use]
    pub const fn refused(&self, reason: Reason) -> u64 {
        self.refused[reason as usize]
    }
}

#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    established: AtomicU64,
    replaced: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
}

/// A circuit.
struct Slot {
    key: Key,
    /// Of the newest hello.
    newest: u64,
    current: Option<(ConnectionId, Arc<Control>)>,
}

#[derive(Default)]
struct Table {
    circuits: HashMap<CircuitId, Slot>,
    /// Not yet proved, oldest first.
    pending: BTreeMap<ConnectionId, (Arc<Control>, Instant)>,
    established: usize,
}

/// What every thread needs.
struct Shared {
    table: Mutex<Table>,
    counts: Counts,
    /// Threads of connections that are not established.
    proving: AtomicUsize,
    config: Arc<ServerConfig>,
    from: Vec<IpPrefix>,
    proxy: bool,
    limits: Limits,
    landing: Landing,
    reports: Reports,
}

impl Shared {
    /// Whether another one may begin to prove itself: one of those that do has ended, or had its time.
    fn has_room(&self) -> bool {
        let pending = &self.table().pending;
        let oldest = pending.first_key_value();
        pending.len() < self.limits.pending
            || oldest.is_none_or(|(_, (_, since))| since.elapsed() >= LET_ALONE)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of a circuit has ended.
    fn leave(&self, circuit: CircuitId, id: ConnectionId) {
        let table = &mut *self.table();
        table.established -= 1;
        if let Some(slot) = table.circuits.get_mut(&circuit)
            && slot
                .current
                .as_ref()
                .is_some_and(|(current, _)| *current == id)
        {
            slot.current = None;
        }
    }
}

/// Listens until it is dropped; what is established stays with its owner.
pub struct Listener {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl Listener {
    /// Listens. What is established is reported: [`Event::Established`], then at last [`Event::Closed`].
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn start(
        listening: Listening,
        landing: Landing,
        reports: Reports,
    ) -> Result<Self, ListenError> {
        let config = config::server(&listening.identity).map_err(ListenError::Tls)?;
        let (mut sockets, mut addresses) = (Vec::new(), Vec::new());
        for address in listening.addresses {
            let failed = |source| ListenError::Address { address, source };
            let socket = TcpListener::bind(address).map_err(failed)?;
            // As many as may lose the same gateway at once; std asks for 128.
            listen(&socket, Backlog::MAXCONN).map_err(|errno| failed(errno.into()))?;
            socket.set_nonblocking(true).map_err(failed)?;
            addresses.push(socket.local_addr().map_err(failed)?);
            sockets.push(socket);
        }
        let control = Control::new().map_err(ListenError::Thread)?;
        let shared = Arc::new(Shared {
            table: Mutex::default(),
            counts: Counts::default(),
            proving: AtomicUsize::new(0),
            config,
            from: listening.from,
            proxy: listening.proxy,
            limits: listening.limits,
            landing,
            reports,
        });
        let thread = std::thread::Builder::new()
            .name("stream-listen".to_owned())
            .spawn({
                let (shared, control) = (Arc::clone(&shared), Arc::clone(&control));
                move || accept(&shared, &sockets, &control)
            })
            .map_err(ListenError::Thread)?;
        let listener = Self {
            shared,
            addresses,
            control,
            thread: Some(thread),
        };
        listener.set_circuits(listening.circuits);
        Ok(listener)
    }

    /// Where it listens, with the ports that the kernel chose.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Other circuits from now on. Connections of those that are gone or have another key are closed.
    pub fn set_circuits(&self, circuits: HashMap<CircuitId, Key>) {
        let table = &mut *self.shared.table();
        let mut old = std::mem::take(&mut table.circuits);
        for (circuit, key) in circuits {
            let kept = old
                .remove_entry(&circuit)
                .and_then(|(_, slot)| match slot.key == key {
                    true => Some(slot),
                    false => {
                        old.insert(circuit, slot);
                        None
                    }
                });
            let slot = kept.unwrap_or(Slot {
                key,
                newest: 0,
                current: None,
            });
            table.circuits.insert(circuit, slot);
        }
        for (_, control) in old.into_values().filter_map(|slot| slot.current) {
            control.order(Order::Removed);
        }
    }

    /// What came of the connections that came.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        let counts = &self.shared.counts;
        Refusals {
            accepted: counts.accepted.load(Relaxed),
            established: counts.established.load(Relaxed),
            replaced: counts.replaced.load(Relaxed),
            refused: counts.refused.each_ref().map(|count| count.load(Relaxed)),
        }
    }

    /// Connections that are established, and that have yet to prove themselves.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        let established = self.shared.table().established;
        (established, self.shared.proving.load(SeqCst))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.control.order(Order::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for (control, _) in self.shared.table().pending.values() {
            control.order(Order::Close);
        }
    }
}

fn accept(shared: &Arc<Shared>, sockets: &[TcpListener], control: &Control) {
    while control.ordered().is_none() {
        let mut fds = vec![PollFd::new(control.event.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            sockets
                .iter()
                .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)),
        );
        let _ = poll(&mut fds, PollTimeout::NONE);
        for socket in sockets {
            // They wait in the kernel meanwhile, which is no harm; to begin with ever more at once would be.
            while !shared.has_room() && control.ordered().is_none() {
                std::thread::sleep(ROOM_PAUSE);
            }
            match socket.accept() {
                Ok((socket, from)) => begin(shared, socket, from),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }
}

/// A thread for a connection.
fn begin(shared: &Arc<Shared>, socket: TcpStream, from: SocketAddr) {
    shared.counts.accepted.fetch_add(1, Relaxed);
    let refuse = |reason: Reason| {
        shared.counts.refused[reason as usize].fetch_add(1, Relaxed);
    };
    let ip = from.ip().to_canonical();
    if !shared.from.is_empty() && !shared.from.iter().any(|net| net.contains(ip)) {
        tracing::debug!(%from, "a connection from nowhere that a gateway is was refused");
        return refuse(Reason::NoGateway);
    }
    // Those that were told to go are going; should they not, there is a bound yet.
    if shared.proving.load(SeqCst) >= 2 * shared.limits.pending {
        return refuse(Reason::Crowded);
    }
    let Ok(control) = Control::new() else {
        return refuse(Reason::NoRoom);
    };
    let id = ConnectionId::next();
    {
        let table = &mut *shared.table();
        if table.pending.len() >= shared.limits.pending
            && let Some((_, (oldest, _))) = table.pending.pop_first()
        {
            oldest.order(Order::Crowded);
        }
        table
            .pending
            .insert(id, (Arc::clone(&control), Instant::now()));
    }
    shared.proving.fetch_add(1, SeqCst);
    let thread = Thread {
        shared: Arc::clone(shared),
        control,
        id,
    };
    let spawned = std::thread::Builder::new()
        .name("stream".to_owned())
        .spawn(move || thread.run(socket, from));
    if spawned.is_err() {
        shared.proving.fetch_sub(1, SeqCst);
        shared.table().pending.remove(&id);
        refuse(Reason::NoRoom);
    }
}

/// A connection's thread.
struct Thread {
    shared: Arc<Shared>,
    control: Arc<Control>,
    id: ConnectionId,
}

impl Thread {
    fn run(self, socket: TcpStream, from: SocketAddr) {
        let shared = &*self.shared;
        let proved = self.prove(socket, from);
        // It may have been told to go.
        shared.table().pending.remove(&self.id);
        shared.proving.fetch_sub(1, SeqCst);
        let (link, circuit, peer) = match proved {
            Ok(proved) => proved,
            Err(reason) => {
                tracing::debug!(%from, reason = reason.name(), "a connection was refused");
                shared.counts.refused[reason as usize].fetch_add(1, Relaxed);
                return;
            }
        };
        shared.counts.established.fetch_add(1, Relaxed);
        let id = self.id;
        let why = carrier::carry(
            (circuit, id, peer),
            link,
            &self.control,
            &shared.landing,
            &shared.reports,
            Part::Answers,
        );
        shared.leave(circuit, id);
        shared.reports.tell(Event::Closed { circuit, id, why });
    }

    /// Who it is, answered.
    fn prove(
        &self,
        socket: TcpStream,
        from: SocketAddr,
    ) -> Result<(Link, CircuitId, SocketAddr), Reason> {
        let shared = &*self.shared;
        let deadline = within(shared.limits.prove);
        prepare(&socket).map_err(|_| Reason::Gone)?;
        let mut peer = from;
        if shared.proxy {
            match proxy::read(&socket, &self.control, deadline).map_err(|e| self.unmade(&e))? {
                Ok(source) => peer = source.unwrap_or(from),
                Err(proxy::NoHeader) => return Err(Reason::NoProxy),
            }
        }
        let tls = ServerConnection::new(Arc::clone(&shared.config)).map_err(|_| Reason::Tls)?;
        let mut link = Link::new(socket, tls.into());
        link.handshake(&self.control, deadline)
            .map_err(|e| self.unmade(&e))?;
        if link.tls.alpn_protocol() != Some(ALPN) {
            return Err(Reason::Protocol);
        }
        let connection = link.tag().map_err(|_| Reason::Tls)?;
        let first = link
            .first(&self.control, deadline)
            .map_err(|e| self.unmade(&e))?;
        let sealed = read_hello(&first)?;
        let circuit = sealed.circuit();
        let admitted = self.admit(circuit, |slot| {
            open_hello(&sealed, &slot.key, connection, slot.newest)
        });
        let answer = admitted.inspect_err(|_| link.goodbye())?;
        let written = link.tls.writer().write_all(&answer);
        debug_assert!(written.is_ok(), "its memory is not bounded");
        Ok((link, circuit, peer))
    }

    /// Puts it in its circuit's place; what to answer.
    fn admit(
        &self,
        circuit: CircuitId,
        open: impl FnOnce(&Slot) -> Result<Message, BadHello>,
    ) -> Result<[u8; gateway_client::stream::HELLO_BYTES], Reason> {
        let shared = &*self.shared;
        let table = &mut *shared.table();
        let slot = table.circuits.get_mut(&circuit).ok_or(Reason::NoCircuit)?;
        let message = open(slot)?;
        slot.newest = message.timestamp;
        if slot.current.is_none() && table.established >= shared.limits.connections {
            return Err(Reason::Full);
        }
        if self.control.ordered().is_some() {
            return Err(self.unmade(&Unmade::Ordered));
        }
        table.established += 1;
        let current = (self.id, Arc::clone(&self.control));
        if let Some((_, older)) = slot.current.replace(current) {
            older.order(Order::Replaced);
            shared.counts.replaced.fetch_add(1, Relaxed);
        }
        // Nobody closes it for a lack of room from now on.
        table.pending.remove(&self.id);
        Ok(answer(&message, &slot.key))
    }

    fn unmade(&self, unmade: &Unmade) -> Reason {
        match unmade {
            Unmade::Slow => Reason::Slow,
            Unmade::Ordered if self.control.ordered() == Some(Order::Crowded) => Reason::Crowded,
            Unmade::Ordered => Reason::Stopped,
            Unmade::Ended(Closed::Tls(rustls::Error::NoApplicationProtocol)) => Reason::Protocol,
            Unmade::Ended(Closed::Tls(_)) => Reason::Tls,
            Unmade::Ended(Closed::Malformed(_)) => Reason::NotAHello,
            Unmade::Ended(_) => Reason::Gone,
        }
    }
}
