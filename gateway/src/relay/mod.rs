//! The TCP relay: from a client's hello to the backend it names, and then byte for byte.
//!
//! ```text
//!            limits      hello, in time     route        dial, PROXY header
//!   accept ─────────▶ ○ ───────────────▶ ○ ───────▶ ○ ────────────────────▶ carry ─▶ ended, counted
//!     │               └───── refused, counted, told by a TLS alert where TLS is spoken
//!     └ drain: no more of these; those that are carried go on
//! ```
//!
//! TLS is never terminated: the gateway has no key that could. A connection that is idle has two sockets, a task and no
//! buffer, and lives on one thread (`threads`).

pub mod carry;
pub mod counters;
pub mod limits;
mod open;
mod pipe;
mod proxy;
mod received;
pub mod route;
mod threads;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    num::NonZero,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicUsize},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

pub use self::open::Refused;
use self::{
    carry::{Traffic, carry},
    counters::Counters,
    limits::Places,
    pipe::Pipes,
    route::Table,
    threads::{Busy, Threads},
};

/// Connections that wait to be accepted, at most; the kernel's `net.core.somaxconn` may be less.
const BACKLOG: u32 = 4096;
/// Pause after a connection could not be accepted: the reason, most often too many open files, stays for a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Silence after which a side is asked whether it is still there, how often, and how many answers may be missing.
const KEEPALIVE: (u32, u32, u32) = (60, 10, 6);
/// Threads are no more than this, how many processors there may be.
const MOST_THREADS: usize = 64;

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From the first moment to the last byte of the hello.
    pub hello: Duration,
    /// To reach one address of a backend.
    pub dial: Duration,
    /// Neither side sends anything.
    pub idle: Duration,
}

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub connections: usize,
    /// Of one IPv4 address, or of one IPv6 /64.
    pub per_source: u32,
    /// Pipes that the kernel moves bytes through, two open files each; beyond them, bytes are copied.
    pub pipes: usize,
}

/// Where connections go.
#[derive(Debug)]
pub struct Backend {
    /// Where it listens: the next is tried when one does not answer.
    pub addresses: Vec<SocketAddr>,
    /// Whether it is told who connected, by PROXY protocol version 2.
    pub proxy: bool,
    /// The place of the address that last answered.
    last: AtomicUsize,
}

impl Backend {
    /// A backend at these addresses.
    #[must_use]
    pub const fn new(addresses: Vec<SocketAddr>, proxy: bool) -> Self {
        Self {
            addresses,
            proxy,
            last: AtomicUsize::new(0),
        }
    }
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        (&self.addresses, self.proxy) == (&other.addresses, other.proxy)
    }
}

impl Eq for Backend {}

/// What the relay is to do.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where it listens; of port 0 the kernel chooses one.
    pub listen: Vec<SocketAddr>,
    /// Bounds.
    pub limits: Limits,
    /// Deadlines.
    pub times: Times,
    /// Connections that each tenant may have.
    pub tenants: HashMap<Arc<str>, u32>,
    /// Backends by name.
    pub backends: HashMap<Arc<str>, Backend>,
    /// Which hello is for which backend.
    pub table: Table,
}

/// Why the relay does not listen. It goes on as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be had.
    #[error(
        "cannot listen on {address}: {source}; is another gateway running, and is the address this machine's?"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// There are no threads.
    #[error("the relay's threads cannot be started: {0}")]
    Threads(#[source] io::Error),
    /// It drains.
    #[error("the gateway is draining and takes no new plan; start it again")]
    Draining,
}

/// What every connection needs.
struct Shared {
    plan: RwLock<Arc<Plan>>,
    places: Arc<Places>,
    pipes: Pipes,
    counters: Counters,
    threads: Threads,
}

impl Shared {
    fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An address that is listened on.
struct Listening {
    /// As the plan has it.
    wanted: SocketAddr,
    /// With the port that the kernel chose.
    address: SocketAddr,
    /// Ends it when it is dropped.
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
}

/// An address that is bound and not yet accepted on.
struct Bound {
    wanted: SocketAddr,
    address: SocketAddr,
    /// One for each thread.
    sockets: Vec<TcpListener>,
}

/// A relay that runs. Dropped, it accepts no more; connections go on.
pub struct Relay {
    shared: Arc<Shared>,
    listening: Mutex<Listeners>,
}

enum Listeners {
    Open(Vec<Listening>),
    Draining,
}

impl Relay {
    /// Open files beside those of connections, if it listens on so many addresses.
    #[must_use]
    pub fn files(addresses: usize) -> usize {
        processors() * (threads::FILES + addresses)
    }

    /// Listens, with a thread for each processor.
    ///
    /// # Errors
    /// When an address cannot be had; none is listened on then.
    pub fn start(plan: Plan) -> Result<Self, Error> {
        let pipes = Pipes::new(plan.limits.pipes);
        let shared = Arc::new(Shared {
            places: Arc::default(),
            counters: Counters::new(pipes.short.clone()),
            pipes,
            threads: Threads::start(processors()).map_err(Error::Threads)?,
            plan: RwLock::new(Arc::new(plan)),
        });
        let relay = Self {
            shared,
            listening: Mutex::new(Listeners::Open(Vec::new())),
        };
        let bound = relay.bind(&relay.shared.plan().listen)?;
        relay.listen(&relay.shared.plan().listen, bound);
        Ok(relay)
    }

    /// Puts a new plan in force for new connections. Existing ones go on as they began.
    ///
    /// # Errors
    /// When a new address cannot be bound, or the relay drains; the old plan stays in force.
    pub fn replan(&self, plan: Plan) -> Result<(), Error> {
        self.take(self.prepare(plan)?);
        Ok(())
    }

    /// Does what can fail of [`replan`](Self::replan): binds the new addresses of a plan.
    ///
    /// # Errors
    /// As [`replan`](Self::replan).
    pub fn prepare(&self, plan: Plan) -> Result<Prepared, Error> {
        let bound = self.bind(&plan.listen)?;
        Ok(Prepared { plan, bound })
    }

    /// Puts a prepared plan in force. A relay that drains since keeps its old plan.
    pub fn take(&self, prepared: Prepared) {
        let Prepared { plan, bound } = prepared;
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
                let taker = self.shared.places.taker();
                let shared = Arc::clone(&self.shared);
                let stopped = stopped.clone();
                self.shared.threads.runtime(n).spawn(async move {
                    accept(n, socket, address, stopped, shared).await;
                    drop(taker);
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

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        match &*self.listening() {
            Listeners::Open(open) => open.iter().map(|l| l.address).collect(),
            Listeners::Draining => Vec::new(),
        }
    }

    /// Accepts no more. What had come is still served.
    pub fn drain(&self) {
        *self.listening() = Listeners::Draining;
    }

    /// Whether it drains.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        matches!(*self.listening(), Listeners::Draining)
    }

    /// Waits until there is no connection and it listens no more.
    pub async fn empty(&self) {
        self.shared.places.empty().await;
    }

    /// Connections now, those that are being opened included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.places.all()
    }

    /// Connections of a tenant now.
    #[must_use]
    pub fn connections_of(&self, tenant: &str) -> u32 {
        self.shared.places.of(tenant)
    }

    /// Pipes and buffers that no connection holds.
    #[must_use]
    pub fn unused_pipes(&self) -> usize {
        self.shared.pipes.unused()
    }

    /// What it counted.
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

/// How many threads there are.
fn processors() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    processors.min(MOST_THREADS)
}

/// A listener for each thread, and the address that they have.
fn bind(address: SocketAddr, threads: &Threads) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let first = open(address)?;
    // Bound before it shares: an address that another process has is refused, even if that one would share it.
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
            // IPv4 has a socket of its own, so that addresses are of one family everywhere.
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    // A gateway that was killed is back at once, although connections of its time are not forgotten.
    socket.set_reuseaddr(true)?;
    // What is accepted has them from its listener.
    socket.set_nodelay(true)?;
    ask_when_silent(&socket)?;
    Ok(socket)
}

/// Has the kernel ask the other side of a silent connection whether it is still there.
fn ask_when_silent(socket: &impl AsFd) -> io::Result<()> {
    let (idle, interval, count) = KEEPALIVE;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(socket, sockopt::TcpKeepCount, &count)?;
    Ok(())
}

/// Accepts on thread `n` until it is stopped, and then what has come by then.
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
            // Only its end is ever heard.
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
    tracing::warn!(%error, "a connection could not be accepted");
}

fn begin(n: usize, client: TcpStream, ends: (SocketAddr, SocketAddr), shared: &Arc<Shared>) {
    shared.counters.accepted.inc();
    let plan = shared.plan();
    let Limits {
        connections,
        per_source,
        ..
    } = plan.limits;
    let place = match shared.places.take(ends.0.ip(), connections, per_source) {
        Ok(place) => place,
        Err(full) => return refuse(ends.0, &full.into(), shared),
    };
    let (chosen, busy) = shared.threads.take(n);
    let shared = Arc::clone(shared);
    if chosen == n {
        tokio::spawn(serve(client, ends, (place, busy), plan, shared));
        return;
    }
    // Its socket leaves this thread's runtime for the other's.
    match client.into_std() {
        Ok(client) => {
            let there = shared.threads.runtime(chosen).clone();
            there.spawn(async move {
                match TcpStream::from_std(client) {
                    Ok(client) => serve(client, ends, (place, busy), plan, shared).await,
                    Err(error) => not_accepted(&error, &shared),
                }
            });
        }
        Err(error) => not_accepted(&error, &shared),
    }
}

fn refuse(from: SocketAddr, refused: &Refused, shared: &Shared) {
    shared.counters.refuse(refused);
    tracing::debug!(%from, reason = refused.reason(), why = %refused, "refused");
}

async fn serve(
    client: TcpStream,
    (from, local): (SocketAddr, SocketAddr),
    (mut place, busy): (limits::Place, Busy),
    plan: Arc<Plan>,
    shared: Arc<Shared>,
) {
    let counters = &shared.counters;
    // Boxed, and gone when it is opened: what is needed to open is much more than what is kept while it is idle.
    let opened = Box::pin(open::open(
        &client,
        (from, local),
        &mut place,
        &plan,
        counters,
    ))
    .await;
    let open::Opened {
        backend,
        tenant,
        bytes,
    } = match opened {
        Ok(opened) => opened,
        Err(refused) => return refuse(from, &refused, &shared),
    };
    let idle = plan.times.idle;
    drop(plan);
    let traffic: Traffic = counters.traffic(&tenant);
    traffic.up.inc_by(bytes as u64);
    let open = counters.opened(&tenant);
    tracing::debug!(%from, tenant, "relayed");
    drop(tenant);
    let end = carry(&client, bytes, &backend, idle, &traffic, &shared.pipes).await;
    let reason = end.name();
    counters
        .ended
        .get_or_create(&counters::Reason { reason })
        .inc();
    tracing::debug!(%from, end = reason, "ended");
    // Closed before they are no longer counted: an empty relay has no socket.
    drop((client, backend, open));
    drop((busy, place));
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;
    use std::net::Ipv4Addr;

    #[test]
    fn what_is_accepted_sends_at_once_and_is_asked_when_silent() {
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
    fn threads_share_an_address_and_nobody_else_does() {
        let threads = Threads::start(3).expect("threads");
        let (address, sockets) = bind((Ipv4Addr::LOCALHOST, 0).into(), &threads).expect("bound");
        let bound = sockets.iter().map(|s| s.local_addr().expect("an address"));
        assert_eq!(bound.collect::<Vec<_>>(), [address; 3]);
        let error = bind(address, &threads).expect_err("another gateway");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
