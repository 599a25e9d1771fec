//! The provider's end: accepts connections, authenticates them, and keeps the newest of each
//! circuit.
//!
//! ```text
//!   accept ─▶ source allowed? ─▶ a thread: (PROXY header ─▶) TLS ─▶ hello ─▶ key, connection, timestamp? ─▶ answer
//!               └──────── 5 s at most in all ────────────────────────┘        ─▶ Established, carry ─▶ Closed
//!               too many of them, in all or of a source: see `pending`         │
//!                                                                              └▶ the circuit's older connection
//!                                                                                 is closed
//! ```
//!
//! Any client that knows a gateway and the server name gets here. Connections that have not
//! authenticated are bounded in number, in all and by source, and in time, get no answer but TLS,
//! and are counted. When there are too many, the oldest of the source with most gives way, at once
//! to other sources, and to its own after half a second: an end that has the key needs a few round
//! trips only. Until then a connection waits without a thread.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use failover::IpPrefix;
use gateway_client::{
    proxy_header::NoHeader,
    source::Source,
    stream::{ALPN, BadHello, answer, open_hello, read_hello},
    wire::{CircuitId, Key, Message},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::{ServerConfig, ServerConnection};

use super::{
    close_reason::CloseReason,
    config,
    connection::{self, Role},
    event::{ConnectionEvent, ConnectionId, EventSender},
    identity::Identity,
    link::{HandshakeError, TlsLink, prepare},
    pending::{Admission, Eviction, Pending, greediest},
    proxy_header,
    ring::RingSetup,
    sockets::Sockets,
    thread_control::{StopReason, ThreadControl},
};

/// Pause after `accept` failed: the reason, most often too many open files, lasts for a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Interval of checks whether a connection that waits may authenticate, milliseconds.
const ROOM_PAUSE: u16 = 5;

/// Limits of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Established connections, at most one for each circuit.
    pub connections: usize,
    /// Connections that have not authenticated yet.
    pub pending: usize,
    /// Of those, of one source: an IPv4 address, or an IPv6 /64. A source is what the PROXY header
    /// names, if there is one, else a gateway with all its tenants.
    pub pending_per_source: usize,
    /// Connections that wait until they may authenticate: each is a descriptor only.
    pub waiting: usize,
    /// Time to authenticate, from when the connection was accepted.
    pub authenticate: Duration,
}

impl Default for Limits {
    /// 1024, 256, 192, 512 and 5 s.
    fn default() -> Self {
        Self {
            connections: 1024,
            // As many tenants as may lose the same gateway at once; each is a thread for some round
            // trips.
            pending: 256,
            // A gateway without a PROXY header is one source, of many tenants.
            pending_per_source: 192,
            waiting: 512,
            authenticate: Duration::from_secs(5),
        }
    }
}

/// Configuration of a listener.
pub struct ListenConfig {
    /// Addresses; for port 0 the kernel chooses one.
    pub addresses: Vec<SocketAddr>,
    /// Sources that may connect; empty: any.
    pub from: Vec<IpPrefix>,
    /// Certificate and key.
    pub identity: Identity,
    /// Circuits and their keys of side a.
    pub circuits: HashMap<CircuitId, Key>,
    /// Whether every connection begins with a PROXY header in which the gateway names the client
    /// (`proxy = true` there). Connections without it are refused then.
    pub proxy: bool,
    /// Limits of connections.
    pub limits: Limits,
}

/// Why the listener cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address cannot be bound.
    #[error(
        "cannot listen on {address} (TCP): {source}; is another process on this port, and is the \
         address this machine's?"
    )]
    Address {
        address: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// TLS refuses the identity.
    #[error("TLS refuses the certificate and its key: {0}")]
    Tls(#[source] rustls::Error),
    /// There are no threads or descriptors left.
    #[error("cannot start the listener's thread: {0}")]
    Thread(#[source] io::Error),
}

/// Why a connection was not established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum RefusalReason {
    /// Too many connections had not authenticated, of sources with one each, and this one was the
    /// oldest.
    Crowded,
    /// Its source had most of the connections that had not authenticated, and others needed the
    /// room; or as many as one source may have; or most of those that waited.
    GreedySource,
    /// It did not authenticate in time.
    Slow,
    /// The client closed it, or it was lost.
    Gone,
    /// Its source is not allowed (`tls.from`).
    NoGateway,
    /// The PROXY header is missing.
    NoProxy,
    /// The TLS 1.3 handshake failed.
    Tls,
    /// It offered another protocol (ALPN), or none.
    Protocol,
    /// Its first frame is not a hello.
    NotAHello,
    /// The circuit is not configured.
    NoCircuit,
    /// The hello is not made with the circuit's key.
    Forged,
    /// The hello was made for another connection.
    OtherConnection,
    /// The hello is not newer than the last one.
    Replayed,
    /// The limit of established connections is reached.
    Full,
    /// There are no threads or descriptors left.
    NoRoom,
    /// The listener was stopped.
    Stopped,
}

impl RefusalReason {
    /// All reasons.
    pub const ALL: [Self; 16] = [
        Self::Crowded,
        Self::GreedySource,
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

    /// Stable name, in metrics and status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crowded => "crowded",
            Self::GreedySource => "greedy-source",
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

impl From<BadHello> for RefusalReason {
    fn from(bad: BadHello) -> Self {
        match bad {
            BadHello::NotAHello => Self::NotAHello,
            BadHello::Forged => Self::Forged,
            BadHello::OtherConnection => Self::OtherConnection,
            BadHello::Replayed => Self::Replayed,
        }
    }
}

/// Counters of a listener's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerStats {
    /// Connections accepted from the kernel.
    pub accepted: u64,
    /// Of those, established.
    pub established: u64,
    /// Of those, in the place of an older connection of the circuit.
    pub replaced: u64,
    refused: [u64; RefusalReason::ALL.len()],
}

impl ListenerStats {
    /// Connections refused for this reason.
    #[must_use]
    pub const fn refused(&self, reason: RefusalReason) -> u64 {
        self.refused[reason as usize]
    }
}

#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    established: AtomicU64,
    replaced: AtomicU64,
    refused: [AtomicU64; RefusalReason::ALL.len()],
}

struct CircuitEntry {
    key: Key,
    /// Timestamp of the hello of the current connection.
    newest: u64,
    current: Option<(ConnectionId, Arc<ThreadControl>)>,
}

struct Table {
    circuits: HashMap<CircuitId, CircuitEntry>,
    /// Connections that have not authenticated.
    pending: Pending<Arc<ThreadControl>>,
    established: usize,
}

/// State that all threads share.
struct Shared {
    table: Mutex<Table>,
    counts: Counts,
    /// Threads of connections that have not authenticated.
    authenticating: AtomicUsize,
    config: Arc<ServerConfig>,
    from: Vec<IpPrefix>,
    proxy: bool,
    limits: Limits,
    rings: RingSetup,
    events: EventSender,
}

impl Shared {
    fn refuse(&self, reason: RefusalReason) {
        self.counts.refused[reason as usize].fetch_add(1, Relaxed);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of a circuit has ended.
    fn connection_ended(&self, circuit: CircuitId, id: ConnectionId) {
        let table = &mut *self.table();
        table.established -= 1;
        if let Some(entry) = table.circuits.get_mut(&circuit)
            && entry
                .current
                .as_ref()
                .is_some_and(|(current, _)| *current == id)
        {
            entry.current = None;
        }
    }
}

/// Listens until it is dropped. Established connections stay with their owner.
pub struct Listener {
    shared: Arc<Shared>,
    sockets: Arc<Sockets>,
    control: Arc<ThreadControl>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("addresses", &self.sockets.addresses())
            .finish_non_exhaustive()
    }
}

/// A listener whose addresses are bound, and that accepts nothing yet. Dropped, it changes nothing.
#[derive(Debug)]
#[must_use]
pub struct PreparedListener {
    /// Lets the thread accept. Dropped before the listener, which waits for the thread.
    begin: SyncSender<()>,
    listener: Listener,
}

impl PreparedListener {
    /// Accepts connections from now on. It cannot fail.
    #[must_use]
    pub fn start(self) -> Listener {
        let Self { begin, listener } = self;
        // The thread waits for it.
        let _ = begin.send(());
        listener
    }
}

impl Listener {
    /// Listens. Each established connection sends [`ConnectionEvent::Established`], then at last
    /// [`ConnectionEvent::Closed`].
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn start(
        config: ListenConfig,
        rings: RingSetup,
        events: EventSender,
    ) -> Result<Self, ListenError> {
        Ok(Self::prepare(config, rings, events, None)?.start())
    }

    /// Does all of [`start`](Self::start) that can fail: binds the addresses. Those that `present`
    /// has are shared with it, so that it may be dropped without losing a connection in their
    /// queues.
    ///
    /// # Errors
    /// [`ListenError`]; nothing has changed then.
    pub fn prepare(
        listen_config: ListenConfig,
        rings: RingSetup,
        events: EventSender,
        present: Option<&Sockets>,
    ) -> Result<PreparedListener, ListenError> {
        let config = config::server(&listen_config.identity).map_err(ListenError::Tls)?;
        let sockets = Sockets::bind(&listen_config.addresses, present)
            .map_err(|(address, source)| ListenError::Address { address, source })?;
        let sockets = Arc::new(sockets);
        let control = ThreadControl::new().map_err(ListenError::Thread)?;
        let limits = listen_config.limits;
        let shared = Arc::new(Shared {
            table: Mutex::new(Table {
                circuits: HashMap::new(),
                pending: Pending::new(limits.pending, limits.pending_per_source),
                established: 0,
            }),
            counts: Counts::default(),
            authenticating: AtomicUsize::new(0),
            config,
            from: listen_config.from,
            proxy: listen_config.proxy,
            limits,
            rings,
            events,
        });
        let (begin, begun) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("tls-listen".to_owned())
            .spawn({
                let (shared, control) = (Arc::clone(&shared), Arc::clone(&control));
                let sockets = Arc::clone(&sockets);
                move || {
                    if begun.recv().is_ok() {
                        accept(&shared, &sockets, &control);
                    }
                }
            })
            .map_err(ListenError::Thread)?;
        let listener = Self {
            shared,
            sockets,
            control,
            thread: Some(thread),
        };
        listener.set_circuits(listen_config.circuits);
        Ok(PreparedListener { begin, listener })
    }

    /// Its sockets, for the listener that will take its place.
    #[must_use]
    pub fn sockets(&self) -> Arc<Sockets> {
        Arc::clone(&self.sockets)
    }

    /// Addresses that it listens on, with the ports that the kernel chose.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.addresses()
    }

    /// Replaces the circuits. Connections of circuits that are removed or have another key are
    /// closed.
    pub fn set_circuits(&self, circuits: HashMap<CircuitId, Key>) {
        let table = &mut *self.shared.table();
        let mut old = std::mem::take(&mut table.circuits);
        for (circuit, key) in circuits {
            let kept = old
                .remove_entry(&circuit)
                .and_then(|(_, entry)| match entry.key == key {
                    true => Some(entry),
                    false => {
                        old.insert(circuit, entry);
                        None
                    }
                });
            let entry = kept.unwrap_or(CircuitEntry {
                key,
                newest: 0,
                current: None,
            });
            table.circuits.insert(circuit, entry);
        }
        for (_, control) in old.into_values().filter_map(|entry| entry.current) {
            control.stop(StopReason::Removed);
        }
    }

    /// Counters of connections.
    #[must_use]
    pub fn stats(&self) -> ListenerStats {
        let counts = &self.shared.counts;
        ListenerStats {
            accepted: counts.accepted.load(Relaxed),
            established: counts.established.load(Relaxed),
            replaced: counts.replaced.load(Relaxed),
            refused: counts.refused.each_ref().map(|count| count.load(Relaxed)),
        }
    }

    /// Connections that are established, and connections that have not authenticated yet.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        let established = self.shared.table().established;
        (established, self.shared.authenticating.load(SeqCst))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.control.stop(StopReason::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for control in self.shared.table().pending.controls() {
            control.stop(StopReason::Close);
        }
    }
}

/// A connection that waits until it may authenticate.
struct Waiting {
    socket: TcpStream,
    from: SocketAddr,
    source: Source,
    /// When it was accepted.
    since: Instant,
}

fn accept(shared: &Arc<Shared>, sockets: &Sockets, control: &ThreadControl) {
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
    while control.stop_reason().is_none() {
        let mut fds = vec![PollFd::new(control.event.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            sockets
                .iter()
                .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)),
        );
        let timeout = if waiting.is_empty() {
            PollTimeout::NONE
        } else {
            ROOM_PAUSE.into()
        };
        let _ = poll(&mut fds, timeout);
        for socket in sockets.iter() {
            match socket.accept() {
                Ok((socket, from)) => accepted(shared, socket, from, &mut waiting),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
        begin_waiting(shared, &mut waiting);
    }
    for _ in &waiting {
        shared.refuse(RefusalReason::Stopped);
    }
}

/// Takes a connection from the kernel: it waits with the others, and begins if it may.
fn accepted(
    shared: &Arc<Shared>,
    socket: TcpStream,
    from: SocketAddr,
    waiting: &mut VecDeque<Waiting>,
) {
    shared.counts.accepted.fetch_add(1, Relaxed);
    let ip = from.ip().to_canonical();
    if !shared.from.is_empty() && !shared.from.iter().any(|net| net.contains(ip)) {
        tracing::debug!(%from, "connection refused: its source is not in tls.from");
        return shared.refuse(RefusalReason::NoGateway);
    }
    waiting.push_back(Waiting {
        socket,
        from,
        source: Source::of(ip),
        since: Instant::now(),
    });
    begin_waiting(shared, waiting);
    if waiting.len() > shared.limits.waiting
        && let Some(n) = greediest(waiting.iter().map(|waiting| waiting.source))
        && waiting.remove(n).is_some()
    {
        shared.refuse(RefusalReason::GreedySource);
    }
}

/// Starts the threads of those that may authenticate now, the oldest first, and closes those that
/// have waited too long.
fn begin_waiting(shared: &Arc<Shared>, waiting: &mut VecDeque<Waiting>) {
    let now = Instant::now();
    let limits = shared.limits;
    // Sources whose connections have to wait: no later one of theirs may begin before.
    let mut held: HashSet<Source> = HashSet::new();
    let mut n = 0;
    while let Some(next) = waiting.get(n) {
        let source = next.source;
        if now.saturating_duration_since(next.since) >= limits.authenticate {
            waiting.remove(n);
            shared.refuse(RefusalReason::Slow);
            continue;
        }
        // Bounds all threads, those included that were told to stop and still run.
        if shared.authenticating.load(SeqCst) >= 2 * limits.pending {
            return;
        }
        if held.contains(&source) {
            n += 1;
            continue;
        }
        let table = shared.table();
        let (admission, own) = (
            table.pending.admission(source, now),
            table.pending.of(source),
        );
        drop(table);
        match admission {
            Admission::Begin(evicted) => {
                if let Some(begun) = waiting.remove(n) {
                    start_connection(shared, begun, evicted);
                }
            }
            // There is no room for a source without a connection, so for none.
            Admission::Wait if own == 0 => return,
            Admission::Wait => {
                held.insert(source);
                n += 1;
            }
        }
    }
}

/// Starts the thread of a connection, in the place of another one.
fn start_connection(
    shared: &Arc<Shared>,
    begun: Waiting,
    evicted: Option<(ConnectionId, Eviction)>,
) {
    let Ok(control) = ThreadControl::new() else {
        return shared.refuse(RefusalReason::NoRoom);
    };
    let id = ConnectionId::next();
    {
        let pending = &mut shared.table().pending;
        if let Some((old, why)) = evicted
            && let Some(old) = pending.remove(old)
        {
            old.stop(match why {
                Eviction::Source => StopReason::GreedySource,
                Eviction::All => StopReason::Crowded,
            });
        }
        // Its time counts from now: those that waited get the whole grace.
        pending.insert(id, begun.source, Instant::now(), Arc::clone(&control));
    }
    shared.authenticating.fetch_add(1, SeqCst);
    let thread = Thread {
        shared: Arc::clone(shared),
        control,
        id,
    };
    let spawned = std::thread::Builder::new()
        .name("tls".to_owned())
        .spawn(move || thread.run(begun));
    if spawned.is_err() {
        shared.authenticating.fetch_sub(1, SeqCst);
        shared.table().pending.remove(id);
        shared.refuse(RefusalReason::NoRoom);
    }
}

struct Thread {
    shared: Arc<Shared>,
    control: Arc<ThreadControl>,
    id: ConnectionId,
}

impl Thread {
    fn run(self, begun: Waiting) {
        let shared = &*self.shared;
        let from = begun.from;
        let authenticated = self.authenticate(begun);
        // It may have been told to stop.
        shared.table().pending.remove(self.id);
        shared.authenticating.fetch_sub(1, SeqCst);
        let (link, circuit, peer) = match authenticated {
            Ok(authenticated) => authenticated,
            Err(reason) => {
                tracing::debug!(%from, reason = reason.name(), "connection refused");
                return shared.refuse(reason);
            }
        };
        shared.counts.established.fetch_add(1, Relaxed);
        let id = self.id;
        let reason = connection::carry(
            (circuit, id, peer),
            link,
            &self.control,
            &shared.rings,
            &shared.events,
            Role::Responder,
        );
        shared.connection_ended(circuit, id);
        shared.events.send(ConnectionEvent::Closed {
            circuit,
            id,
            reason,
        });
    }

    /// Authenticates the connection, up to the answer to its hello.
    fn authenticate(
        &self,
        begun: Waiting,
    ) -> Result<(TlsLink, CircuitId, SocketAddr), RefusalReason> {
        let shared = &*self.shared;
        let Waiting {
            socket,
            from,
            since,
            ..
        } = begun;
        let deadline = since + shared.limits.authenticate;
        prepare(&socket).map_err(|_| RefusalReason::Gone)?;
        let mut peer = from;
        if shared.proxy {
            match proxy_header::read(&socket, &self.control, deadline)
                .map_err(|e| self.refusal(&e))?
            {
                Ok(Some(source)) => {
                    peer = source;
                    self.name_source(source);
                }
                Ok(None) => {}
                Err(NoHeader) => return Err(RefusalReason::NoProxy),
            }
        }
        let tls =
            ServerConnection::new(Arc::clone(&shared.config)).map_err(|_| RefusalReason::Tls)?;
        let mut link = TlsLink::new(socket, tls.into());
        link.handshake(&self.control, deadline)
            .map_err(|e| self.refusal(&e))?;
        if link.tls.alpn_protocol() != Some(ALPN) {
            return Err(RefusalReason::Protocol);
        }
        let connection = link.tag().map_err(|_| RefusalReason::Tls)?;
        let first = link
            .first_frame(&self.control, deadline)
            .map_err(|e| self.refusal(&e))?;
        let sealed = read_hello(&first)?;
        let circuit = sealed.circuit();
        let admitted = self.admit(circuit, |entry| {
            let newest = entry.current.as_ref().map(|_| entry.newest);
            open_hello(&sealed, &entry.key, connection, newest)
        });
        let answer = admitted.inspect_err(|_| link.send_close_notify())?;
        let written = link.tls.writer().write_all(&answer);
        debug_assert!(written.is_ok(), "its memory is not bounded");
        Ok((link, circuit, peer))
    }

    /// Makes it the circuit's connection, which replaces the older one; the answer to its hello.
    fn admit(
        &self,
        circuit: CircuitId,
        open: impl FnOnce(&CircuitEntry) -> Result<Message, BadHello>,
    ) -> Result<[u8; gateway_client::stream::HELLO_BYTES], RefusalReason> {
        let shared = &*self.shared;
        let table = &mut *shared.table();
        let entry = table
            .circuits
            .get_mut(&circuit)
            .ok_or(RefusalReason::NoCircuit)?;
        let message = open(entry)?;
        entry.newest = message.timestamp;
        if entry.current.is_none() && table.established >= shared.limits.connections {
            return Err(RefusalReason::Full);
        }
        if self.control.stop_reason().is_some() {
            return Err(self.refusal(&HandshakeError::Stopped));
        }
        table.established += 1;
        let current = (self.id, Arc::clone(&self.control));
        if let Some((_, older)) = entry.current.replace(current) {
            older.stop(StopReason::Replaced);
            shared.counts.replaced.fetch_add(1, Relaxed);
        }
        // From now on it is not closed for a lack of room.
        table.pending.remove(self.id);
        Ok(answer(&message, &entry.key))
    }

    /// Counts the connection for the source that its gateway has named.
    fn name_source(&self, source: SocketAddr) {
        let pending = &mut self.shared.table().pending;
        if let Some(other) = pending.name_source(self.id, Source::of(source.ip())) {
            other.stop(StopReason::GreedySource);
        }
    }

    fn refusal(&self, error: &HandshakeError) -> RefusalReason {
        match error {
            HandshakeError::Slow => RefusalReason::Slow,
            HandshakeError::Stopped => match self.control.stop_reason() {
                Some(StopReason::Crowded) => RefusalReason::Crowded,
                Some(StopReason::GreedySource) => RefusalReason::GreedySource,
                Some(_) | None => RefusalReason::Stopped,
            },
            HandshakeError::Ended(CloseReason::Tls(rustls::Error::NoApplicationProtocol)) => {
                RefusalReason::Protocol
            }
            HandshakeError::Ended(CloseReason::Tls(_)) => RefusalReason::Tls,
            HandshakeError::Ended(CloseReason::Malformed(_)) => RefusalReason::NotAHello,
            HandshakeError::Ended(_) => RefusalReason::Gone,
        }
    }
}
