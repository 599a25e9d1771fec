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
//! buffer.

pub mod carry;
pub mod counters;
pub mod limits;
mod open;
mod pipe;
mod proxy;
mod received;
pub mod route;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
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
};

/// Connections that wait to be accepted, at most; the kernel's `net.core.somaxconn` may be less.
const BACKLOG: u32 = 4096;
/// Pause after a connection could not be accepted: the reason, most often too many open files, stays for a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Silence after which a side is asked whether it is still there, how often, and how many answers may be missing.
const KEEPALIVE: (u32, u32, u32) = (60, 10, 6);

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
    /// Listens.
    ///
    /// # Errors
    /// When an address cannot be had; none is listened on then.
    pub fn start(plan: Plan) -> Result<Self, Error> {
        let pipes = Pipes::new(plan.limits.pipes);
        let shared = Arc::new(Shared {
            places: Arc::default(),
            counters: Counters::new(pipes.short.clone()),
            pipes,
            plan: RwLock::new(Arc::new(plan)),
        });
        let relay = Self {
            shared,
            listening: Mutex::new(Listeners::Open(Vec::new())),
        };
        relay.listen(&relay.shared.plan().listen)?;
        Ok(relay)
    }

    /// Takes a new plan: for connections that come. Those that are there stay, on what they were given.
    ///
    /// # Errors
    /// When a new address cannot be had, or it drains; the old plan stays whole.
    pub fn replan(&self, plan: Plan) -> Result<(), Error> {
        self.listen(&plan.listen)?;
        self.shared.pipes.limit(plan.limits.pipes);
        let mut current = self
            .shared
            .plan
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(plan);
        Ok(())
    }

    /// Listens on exactly these: first on what is new, and then no more on what is not wanted.
    fn listen(&self, wanted: &[SocketAddr]) -> Result<(), Error> {
        let mut listening = self.listening();
        let Listeners::Open(open) = &mut *listening else {
            return Err(Error::Draining);
        };
        let mut new = Vec::new();
        for &address in wanted {
            if !open.iter().any(|l| l.wanted == address) {
                let failed = |source| Error::Listen { address, source };
                let socket = bind(address).map_err(failed)?;
                let bound = socket.local_addr().map_err(failed)?;
                new.push((address, bound, socket));
            }
        }
        open.retain(|l| wanted.contains(&l.wanted));
        for (wanted, address, socket) in new {
            let (stop, stopped) = watch::channel(());
            let taker = self.shared.places.taker();
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move {
                accept(socket, address, stopped, shared).await;
                drop(taker);
            });
            open.push(Listening {
                wanted,
                address,
                _stop: stop,
            });
        }
        Ok(())
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

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
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
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until it is stopped, and then what has come by then.
async fn accept(
    socket: TcpListener,
    local: SocketAddr,
    mut stopped: watch::Receiver<()>,
    shared: Arc<Shared>,
) {
    tracing::info!(address = %local, "listening");
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            // Only its end is ever heard.
            _ = stopped.changed() => break,
        };
        match accepted {
            Ok((client, from)) => begin(client, from, local, &shared),
            Err(error) => {
                shared.counters.accept_failures.inc();
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    while let Ok(Ok((client, from))) = timeout(Duration::ZERO, socket.accept()).await {
        begin(client, from, local, &shared);
    }
    tracing::info!(address = %local, "no longer listening");
}

fn begin(client: TcpStream, from: SocketAddr, local: SocketAddr, shared: &Arc<Shared>) {
    shared.counters.accepted.inc();
    let plan = shared.plan();
    let Limits {
        connections,
        per_source,
        ..
    } = plan.limits;
    match shared.places.take(from.ip(), connections, per_source) {
        Ok(place) => {
            tokio::spawn(serve(client, from, local, place, plan, Arc::clone(shared)));
        }
        Err(full) => refuse(from, &full.into(), shared),
    }
}

fn refuse(from: SocketAddr, refused: &Refused, shared: &Shared) {
    shared.counters.refuse(refused);
    tracing::debug!(%from, reason = refused.reason(), why = %refused, "refused");
}

async fn serve(
    client: TcpStream,
    from: SocketAddr,
    local: SocketAddr,
    mut place: limits::Place,
    plan: Arc<Plan>,
    shared: Arc<Shared>,
) {
    prepare(&client);
    // With a wildcard address it says which one the client knows.
    let to = client.local_addr().unwrap_or(local);
    let counters = &shared.counters;
    // Boxed, and gone when it is opened: what is needed to open is much more than what is kept while it is idle.
    let opened = Box::pin(open::open(&client, (from, to), &mut place, &plan, counters)).await;
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
    drop(place);
}

/// Sets what either side's socket is to do: nothing is held back for more, and a side that is gone is noticed.
/// A socket that refuses is one that is gone already.
fn prepare(stream: &TcpStream) {
    let (idle, interval, count) = KEEPALIVE;
    let set = [
        stream.set_nodelay(true),
        setsockopt(stream, sockopt::KeepAlive, &true).map_err(io::Error::from),
        setsockopt(stream, sockopt::TcpKeepIdle, &idle).map_err(io::Error::from),
        setsockopt(stream, sockopt::TcpKeepInterval, &interval).map_err(io::Error::from),
        setsockopt(stream, sockopt::TcpKeepCount, &count).map_err(io::Error::from),
    ];
    for error in set.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "a socket's options");
    }
}
