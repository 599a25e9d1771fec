//! The TCP relay: connects a client to the backend that its TLS hello names, then copies bytes.
//!
//! ```text
//!            limits      hello, in time     route        dial, PROXY header
//!   accept ─────────▶ ○ ───────────────▶ ○ ───────▶ ○ ────────────────────▶ carry ─▶ ended, counted
//!     │               └───── refused, counted, answered by a TLS alert if the client speaks TLS
//!     └ drain: accepts no more; relayed connections go on
//! ```
//!
//! The relay never terminates TLS; the gateway has no key for that. An idle connection has two
//! sockets, a task and no buffer, and stays on one thread (`threads`).

pub mod access;
pub mod carry;
pub mod counters;
pub mod dial;
pub mod limits;
mod open;
mod pipe;
mod received;
mod threads;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    os::fd::AsFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use gateway_core::{prefix::Prefix, route};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use self::{
    access::{AccessLog, Record},
    carry::{End, Traffic, abort, carry},
    counters::Counters,
    dial::Learned,
    limits::Connections,
    pipe::Pipes,
    route::Table,
    threads::{Busy, Threads},
};
pub use self::{dial::Endpoint, open::Refused};

/// Length of the accept queue; `net.core.somaxconn` may limit it further.
const BACKLOG: u32 = 4096;
/// Pause after a failed accept: its usual cause, too many open files, does not end at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time that the accept tasks of a drain have to close their sockets.
const LEFT_BEHIND: Duration = Duration::from_secs(1);
/// TCP keepalive: idle time and interval in seconds, and number of probes without an answer.
const KEEPALIVE: (u32, u32, u32) = (60, 10, 6);
/// Threads at most, on any number of processors.
const MOST_THREADS: usize = 64;

/// Timeouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From the accept to the last byte of the hello.
    pub hello: Duration,
    /// Connect to one address of a backend.
    pub dial: Duration,
    /// Time without a byte from either side.
    pub idle: Duration,
    /// Age at which a connection counts for the limit of its tenant: backends have closed those of
    /// clients that they do not know by then.
    pub trial: Duration,
}

/// Limits of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the gateway.
    pub connections: usize,
    /// Of one source: an IPv4 address, or an IPv6 /64.
    pub per_source: u32,
    /// Pipes for splice(2), two open files each; without a pipe, bytes are copied.
    pub pipes: usize,
}

/// A backend: the server behind the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// In order of preference.
    pub endpoints: Vec<Endpoint>,
    /// Whether the gateway sends a PROXY protocol header (version 2) first.
    pub proxy: bool,
}

impl Backend {
    /// A backend with these addresses.
    #[must_use]
    pub fn new(addresses: Vec<SocketAddr>, proxy: bool) -> Self {
        Self {
            endpoints: addresses.into_iter().map(Endpoint::Address).collect(),
            proxy,
        }
    }
}

/// The configuration of the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Addresses to listen on; the kernel chooses a port for port 0.
    pub listen: Vec<SocketAddr>,
    pub limits: Limits,
    pub times: Times,
    /// Senders whose connections begin with a PROXY protocol header of version 2.
    pub proxy_from: Vec<Prefix>,
    /// File of access records.
    pub access_log: Option<PathBuf>,
    pub desired: Desired,
}

/// The part of the configuration that may change with every update. Parts that stay are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Connections of each tenant at most.
    pub tenants: Arc<HashMap<Arc<str>, u32>>,
    /// Backends by name.
    pub backends: Arc<HashMap<Arc<str>, Backend>>,
    /// Routes from hellos to backends.
    pub table: Arc<Table>,
}

impl Plan {
    /// Whether a sender's connections begin with a PROXY header.
    fn is_proxy(&self, sender: IpAddr) -> bool {
        self.proxy_from.iter().any(|prefix| prefix.contains(sender))
    }
}

/// Why the relay does not start, or keeps its old plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be bound.
    #[error(
        "cannot listen on {address}: {source}; check that no other gateway runs and that the \
         address belongs to this machine"
    )]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    /// The file of access records cannot be opened.
    #[error(
        "relay.access_log: cannot open {}: {source}; its folder must exist and belong to the user \
         of the gateway", path.display()
    )]
    AccessLog { path: PathBuf, source: io::Error },
    /// The threads cannot be started.
    #[error("cannot start the threads of the relay: {0}")]
    Threads(#[source] io::Error),
    /// The relay drains.
    #[error("the gateway is draining and accepts no new configuration; `undrain` or restart it")]
    Draining,
}

/// State that all connections share.
struct Shared {
    plan: RwLock<Arc<Plan>>,
    access: RwLock<Option<Arc<AccessLog>>>,
    learned: Arc<Learned>,
    connections: Arc<Connections>,
    pipes: Pipes,
    counters: Counters,
    threads: Threads,
}

impl Shared {
    fn access(&self) -> Option<Arc<AccessLog>> {
        let access = self.access.read();
        access.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An address with its accept tasks.
struct Listening {
    /// As in the plan.
    wanted: SocketAddr,
    /// With the port in use.
    address: SocketAddr,
    /// Its drop ends the tasks.
    _stop: watch::Sender<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        tracing::info!(address = %self.address, "no longer listening");
    }
}

/// A new plan, with its new addresses bound. Dropped, it changes nothing.
pub struct Prepared {
    plan: Plan,
    bound: Vec<Bound>,
    access: Option<Arc<AccessLog>>,
}

/// An address that is bound and not yet accepted on.
struct Bound {
    wanted: SocketAddr,
    address: SocketAddr,
    /// One for each thread.
    sockets: Vec<TcpListener>,
}

/// A running relay. Its drop ends the listeners; connections go on.
pub struct Relay {
    shared: Arc<Shared>,
    listening: Mutex<Listeners>,
}

enum Listeners {
    Open(Vec<Listening>),
    /// The addresses of the plan, each with the address in use before.
    Draining(Vec<(SocketAddr, SocketAddr)>),
}

impl Relay {
    /// Open files other than those of connections, with this number of listen addresses.
    #[must_use]
    pub fn files(addresses: usize) -> usize {
        processors() * (threads::FILES + addresses)
    }

    /// Starts the relay with a thread for each processor.
    ///
    /// # Errors
    /// When an address cannot be bound; the relay listens on none then.
    pub fn start(plan: Plan) -> Result<Self, Error> {
        let relay = Self::start_drained(plan)?;
        let plan = relay.shared.plan();
        *relay.listening() = Listeners::Open(Vec::new());
        let bound = relay.bind(&plan.listen)?;
        relay.listen(&plan.listen, bound);
        Ok(relay)
    }

    /// As [`start`](Self::start), but the relay drains from the first: it accepts nothing until
    /// [`resume`](Self::resume).
    ///
    /// # Errors
    /// When threads or the file of access records are not possible.
    pub fn start_drained(plan: Plan) -> Result<Self, Error> {
        let pipes = Pipes::new(plan.limits.pipes);
        let shared = Arc::new(Shared {
            connections: Arc::default(),
            counters: Counters::new(pipes.short.clone()),
            pipes,
            access: RwLock::default(),
            learned: Arc::default(),
            threads: Threads::start(processors()).map_err(Error::Threads)?,
            plan: RwLock::new(Arc::new(plan)),
        });
        let plan = shared.plan();
        let addresses = plan.listen.iter().map(|address| (*address, *address));
        let relay = Self {
            shared,
            listening: Mutex::new(Listeners::Draining(addresses.collect())),
        };
        relay.set_access(relay.open_access(&plan)?);
        Ok(relay)
    }

    /// Puts other tenants, backends and routes in force for new connections. It cannot fail, and
    /// changes nothing of a drain.
    pub fn set_desired(&self, desired: Desired) {
        let mut current = self
            .shared
            .plan
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let plan = Plan {
            desired,
            ..(**current).clone()
        };
        *current = Arc::new(plan);
    }

    /// Puts a new plan in force for new connections. Existing ones go on as they began.
    ///
    /// # Errors
    /// When a new address cannot be bound, or the relay drains; the old plan stays in force.
    pub fn replan(&self, plan: Plan) -> Result<(), Error> {
        self.take(self.prepare(plan)?);
        Ok(())
    }

    /// Does the part of [`replan`](Self::replan) that can fail: binds the new addresses of a plan.
    ///
    /// # Errors
    /// As [`replan`](Self::replan).
    pub fn prepare(&self, plan: Plan) -> Result<Prepared, Error> {
        let bound = self.bind(&plan.listen)?;
        let access = self.open_access(&plan)?;
        Ok(Prepared {
            plan,
            bound,
            access,
        })
    }

    /// Opens the file of access records, also if it is open: it may have been moved away.
    fn open_access(&self, plan: &Plan) -> Result<Option<Arc<AccessLog>>, Error> {
        let Some(path) = &plan.access_log else {
            return Ok(None);
        };
        let lost = self.shared.counters.lost_records.clone();
        match AccessLog::open(path, lost) {
            Ok(log) => Ok(Some(Arc::new(log))),
            Err(source) => Err(Error::AccessLog {
                path: path.clone(),
                source,
            }),
        }
    }

    fn set_access(&self, access: Option<Arc<AccessLog>>) {
        let present = self.shared.access.write();
        *present.unwrap_or_else(PoisonError::into_inner) = access;
    }

    /// Puts a prepared plan in force. A relay that drains since keeps its old plan.
    pub fn take(&self, prepared: Prepared) {
        let Prepared {
            plan,
            bound,
            access,
        } = prepared;
        self.set_access(access);
        self.shared.learned.prune(Instant::now());
        self.listen(&plan.listen, bound);
        self.shared.pipes.limit(plan.limits.pipes);
        let mut current = self
            .shared
            .plan
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(plan);
    }

    /// Binds those of the addresses that are not listened on yet.
    fn bind(&self, wanted: &[SocketAddr]) -> Result<Vec<Bound>, Error> {
        let listening = self.listening();
        let Listeners::Open(open) = &*listening else {
            return Err(Error::Draining);
        };
        let new = wanted
            .iter()
            .filter(|&address| !open.iter().any(|l| l.wanted == *address));
        new.map(|&wanted| {
            let failed = |source| Error::Listen {
                address: wanted,
                source,
            };
            let (address, sockets) = bind(wanted, &self.shared.threads).map_err(failed)?;
            Ok(Bound {
                wanted,
                address,
                sockets,
            })
        })
        .collect()
    }

    /// Accepts on the new addresses, and no longer on those that are not wanted.
    fn listen(&self, wanted: &[SocketAddr], bound: Vec<Bound>) {
        let mut listening = self.listening();
        let Listeners::Open(open) = &mut *listening else {
            return;
        };
        open.retain(|l| wanted.contains(&l.wanted));
        for new in bound {
            let (stop, stopped) = watch::channel(());
            let address = new.address;
            for (n, socket) in new.sockets.into_iter().enumerate() {
                let listener = self.shared.connections.listener();
                let shared = Arc::clone(&self.shared);
                let stopped = stopped.clone();
                self.shared.threads.runtime(n).spawn(async move {
                    accept(n, socket, address, stopped, shared).await;
                    drop(listener);
                });
            }
            tracing::info!(%address, "listening");
            open.push(Listening {
                wanted: new.wanted,
                address,
                _stop: stop,
            });
        }
    }

    /// Listen addresses with the ports in use.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        match &*self.listening() {
            Listeners::Open(open) => open.iter().map(|l| l.address).collect(),
            Listeners::Draining(_) => Vec::new(),
        }
    }

    /// Stops accepting. Connections in the accept queue are still served.
    pub fn drain(&self) {
        let mut listening = self.listening();
        if let Listeners::Open(open) = &*listening {
            let addresses = open.iter().map(|l| (l.wanted, l.address)).collect();
            *listening = Listeners::Draining(addresses);
        }
    }

    /// Accepts again after [`drain`](Self::drain), at the same addresses.
    ///
    /// # Errors
    /// When an address cannot be bound; the relay still drains then.
    pub async fn resume(&self) -> Result<(), Error> {
        let addresses = match &*self.listening() {
            Listeners::Open(_) => return Ok(()),
            Listeners::Draining(addresses) => addresses.clone(),
        };
        let begun = tokio::time::Instant::now();
        let bound = loop {
            let bound = addresses.iter().map(|&(wanted, before)| {
                let (address, sockets) =
                    bind(before, &self.shared.threads).map_err(|source| Error::Listen {
                        address: before,
                        source,
                    })?;
                Ok(Bound {
                    wanted,
                    address,
                    sockets,
                })
            });
            match bound.collect::<Result<Vec<_>, Error>>() {
                Ok(bound) => break bound,
                // The accept tasks close the old sockets on their threads.
                Err(_) if begun.elapsed() < LEFT_BEHIND => sleep(ACCEPT_PAUSE / 10).await,
                Err(error) => return Err(error),
            }
        };
        *self.listening() = Listeners::Open(Vec::new());
        let wanted: Vec<_> = addresses.iter().map(|(wanted, _)| *wanted).collect();
        self.listen(&wanted, bound);
        Ok(())
    }

    /// Whether [`drain`](Self::drain) was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        matches!(*self.listening(), Listeners::Draining(_))
    }

    /// Waits until no connection is left and no listener.
    pub async fn empty(&self) {
        self.shared.connections.empty().await;
    }

    /// Present connections, those being opened included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.all()
    }

    /// Present connections of a tenant.
    #[must_use]
    pub fn connections_of(&self, tenant: &str) -> u32 {
        self.shared.connections.of(tenant)
    }

    /// Pipes and buffers that no connection uses.
    #[must_use]
    pub fn unused_pipes(&self) -> usize {
        self.shared.pipes.unused()
    }

    /// The counters of the relay.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    fn listening(&self) -> std::sync::MutexGuard<'_, Listeners> {
        self.listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of threads.
fn processors() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    processors.min(MOST_THREADS)
}

/// Binds a listener for each thread, all to one address; returns the address with its port.
fn bind(address: SocketAddr, threads: &Threads) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let first = open(address)?;
    // Bound before SO_REUSEPORT is set: fails if another process has the address, even one that
    // shares it.
    first.bind(address)?;
    first.set_reuseport(true)?;
    let bound = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..threads.count() {
        let socket = open(bound)?;
        socket.set_reuseport(true)?;
        socket.bind(bound)?;
        sockets.push(socket);
    }
    let listening = sockets.into_iter().enumerate().map(|(n, socket)| {
        let _in = threads.runtime(n).enter();
        socket.listen(BACKLOG)
    });
    Ok((bound, listening.collect::<io::Result<_>>()?))
}

fn open(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            // IPv4 has sockets of its own.
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    // A restarted gateway binds at once, although connections of the old process are in TIME-WAIT.
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit the options.
    socket.set_nodelay(true)?;
    enable_keepalive(&socket)?;
    Ok(socket)
}

/// Switches TCP keepalive on.
fn enable_keepalive(socket: &impl AsFd) -> io::Result<()> {
    let (idle, interval, count) = KEEPALIVE;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(socket, sockopt::TcpKeepCount, &count)?;
    Ok(())
}

/// Accepts on thread `n` until the listener is stopped, and then the rest of the accept queue.
async fn accept(
    n: usize,
    socket: TcpListener,
    local: SocketAddr,
    mut stopped: watch::Receiver<()>,
    shared: Arc<Shared>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            // No value is ever sent.
            _ = stopped.changed() => break,
        };
        match accepted {
            Ok((client, from)) => begin(n, client, (from, local), &shared),
            Err(error) => {
                not_accepted(&error, &shared);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    while let Ok(Ok((client, from))) = timeout(Duration::ZERO, socket.accept()).await {
        begin(n, client, (from, local), &shared);
    }
}

fn not_accepted(error: &io::Error, shared: &Shared) {
    shared.counters.accept_failures.inc();
    tracing::warn!(%error, "cannot accept a connection");
}

fn begin(n: usize, client: TcpStream, ends: (SocketAddr, SocketAddr), shared: &Arc<Shared>) {
    shared.counters.accepted.inc();
    let plan = shared.plan();
    let Limits {
        connections,
        per_source,
        ..
    } = plan.limits;
    let counted = if plan.is_proxy(ends.0.ip()) {
        shared.connections.take_of_proxy(connections)
    } else {
        let source = ends.0.ip();
        shared.connections.take(source, connections, per_source)
    };
    let counted = match counted {
        Ok(counted) => counted,
        Err(full) => return refuse(ends.0, &full.into(), shared),
    };
    let (chosen, busy) = shared.threads.take(n);
    let shared = Arc::clone(shared);
    if chosen == n {
        tokio::spawn(serve(client, ends, (counted, busy), plan, shared));
        return;
    }
    // The socket moves to the runtime of another thread.
    match client.into_std() {
        Ok(client) => {
            let there = shared.threads.runtime(chosen).clone();
            there.spawn(async move {
                match TcpStream::from_std(client) {
                    Ok(client) => serve(client, ends, (counted, busy), plan, shared).await,
                    Err(error) => not_accepted(&error, &shared),
                }
            });
        }
        Err(error) => not_accepted(&error, &shared),
    }
}

fn refuse(from: SocketAddr, refused: &Refused, shared: &Shared) {
    shared.counters.refuse(refused);
    tracing::debug!(%from, reason = refused.reason(), error = %refused, "connection refused");
}

async fn serve(
    client: TcpStream,
    (from, local): (SocketAddr, SocketAddr),
    (mut counted, busy): (limits::Counted, Busy),
    plan: Arc<Plan>,
    shared: Arc<Shared>,
) {
    let counters = &shared.counters;
    let accepted = (SystemTime::now(), Instant::now());
    let mut info = open::ConnectionInfo {
        from,
        local,
        name: String::new(),
        tenant: String::new(),
        backend: String::new(),
        address: None,
    };
    // Boxed, so that the large state of opening is freed before the connection may become idle.
    let opened = Box::pin(open::open(
        &client,
        &mut info,
        &mut counted,
        &plan,
        (counters, &shared.learned),
    ))
    .await;
    let open::Opened {
        backend,
        limit,
        bytes,
        header,
    } = match opened {
        Ok(opened) => opened,
        Err(refused) => {
            refuse(info.from, &refused, &shared);
            // Connections without a route leave no record.
            if !info.backend.is_empty() {
                record(&shared, accepted, info, [0; 2], refused.reason());
            }
            return;
        }
    };
    let Times { idle, trial, .. } = plan.times;
    drop(plan);
    let traffic: Traffic = counters.traffic(&info.tenant);
    traffic.up.inc_by(bytes as u64);
    let open = counters.opened(&info.tenant);
    tracing::debug!(from = %info.from, tenant = info.tenant, "connection relayed");
    let read = [bytes + header, 0].map(|read| AtomicU64::new(read as u64));
    // Boxed, so that it is not kept where there is nothing to record.
    let info = shared.access().is_some().then(|| Box::new(info));
    let carried = carry(&client, &read, &backend, idle, &traffic, &shared.pipes);
    let end = match limit {
        Some(limit) => on_trial(carried, &mut counted, (trial, limit)).await,
        None => carried.await,
    };
    if end == End::Evicted {
        abort(&client, &backend);
    }
    let reason = end.name();
    counters
        .ended
        .get_or_create(&counters::Reason { reason })
        .inc();
    tracing::debug!(%from, end = reason, "connection ended");
    if let Some(info) = info {
        let [up, down] = read.map(AtomicU64::into_inner);
        record(&shared, accepted, *info, [up - header as u64, down], reason);
    }
    // Closed before they leave the count: an empty relay has no socket.
    drop((client, backend, open));
    drop((busy, counted));
}

/// Relays a connection of a tenant, which may be evicted for others while it is on trial.
async fn on_trial(
    carried: impl Future<Output = End>,
    counted: &mut limits::Counted,
    (trial, limit): (Duration, u32),
) -> End {
    tokio::pin!(carried);
    tokio::select! {
        end = &mut carried => return end,
        () = counted.evicted() => return End::Evicted,
        () = sleep(trial) => {}
    }
    match counted.establish(limit) {
        Ok(()) => carried.await,
        Err(_) => End::Evicted,
    }
}

/// Writes an access record, if there is a file for them.
fn record(
    shared: &Shared,
    (time, begun): (SystemTime, Instant),
    info: open::ConnectionInfo,
    [up, down]: [u64; 2],
    end: &'static str,
) {
    let Some(access) = shared.access() else {
        return;
    };
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    access.add(Record {
        accepted: time.duration_since(UNIX_EPOCH).map_or(0, milliseconds),
        milliseconds: milliseconds(begun.elapsed()),
        client: info.from,
        local: info.local,
        name: info.name,
        tenant: info.tenant,
        backend: info.backend,
        address: info.address,
        up,
        down,
        end,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;
    use std::net::Ipv4Addr;

    #[test]
    fn accepted_sockets_have_nodelay_and_keepalive() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let threads = Threads::start(1).expect("a thread");
            let (address, sockets) =
                bind((Ipv4Addr::LOCALHOST, 0).into(), &threads).expect("bound");
            let _client = std::net::TcpStream::connect(address).expect("connect");
            let socket = sockets.into_iter().next().expect("one");
            let accepted = threads
                .runtime(0)
                .spawn(async move { socket.accept().await });
            let (stream, _) = accepted.await.expect("no panic").expect("accepted");
            let kept = (
                getsockopt(&stream, sockopt::TcpKeepIdle).expect("an option"),
                getsockopt(&stream, sockopt::TcpKeepInterval).expect("an option"),
                getsockopt(&stream, sockopt::TcpKeepCount).expect("an option"),
            );
            assert_eq!(kept, KEEPALIVE);
            assert!(getsockopt(&stream, sockopt::KeepAlive).expect("an option"));
            assert!(getsockopt(&stream, sockopt::TcpNoDelay).expect("an option"));
        });
    }

    #[test]
    fn threads_share_an_address_and_other_processes_cannot() {
        let threads = Threads::start(3).expect("threads");
        let (address, sockets) = bind((Ipv4Addr::LOCALHOST, 0).into(), &threads).expect("bound");
        let bound = sockets.iter().map(|s| s.local_addr().expect("an address"));
        assert_eq!(bound.collect::<Vec<_>>(), [address; 3]);
        let error = bind(address, &threads).expect_err("another gateway");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
