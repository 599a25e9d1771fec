//! The TCP relay: connects a client to the backend that its TLS hello names, then copies bytes.
//!
//! ```text
//!            limits      hello, in time     route        dial, PROXY header
//!   accept ─────────▶ ○ ───────────────▶ ○ ───────▶ ○ ────────────────────▶ carry ─▶ ended, counted
//!     │               └───── refused, counted, answered by a TLS alert if the client speaks TLS
//!     └ drain: accepts no more; relayed connections go on
//! ```
//!
//! | module | does |
//! |---|---|
//! | `listener`, `accept` | bind the sockets; accept, limit and distribute connections |
//! | `connection` | the life of one connection: `open` (hello, route, dial), then `carry` |
//! | `refused` | why a connection is not relayed |
//! | `pipe`, `received` | pipes for splice(2); the number of bytes that a socket has received |
//! | `config` | the configuration, which [`Relay`] replaces |
//!
//! The relay never terminates TLS; the gateway has no key for that. An idle connection has two
//! sockets, a task and no buffer, and stays on one thread (`threads`).

mod accept;
pub mod access;
pub mod carry;
mod config;
mod connection;
pub mod counters;
pub mod dial;
pub mod limits;
mod listener;
mod open;
mod pipe;
mod received;
mod refusal;
mod threads;

use std::{
    io,
    net::SocketAddr,
    num::NonZero,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

pub use gateway_core::{prefix::Prefix, route};
use tokio::{net::TcpListener, sync::watch, time::sleep};

use self::{
    accept::{ACCEPT_PAUSE, accept},
    access::AccessLog,
    counters::Counters,
    dial::Backends,
    limits::Connections,
    listener::{bind, overlap},
    pipe::Pipes,
    threads::Threads,
};
pub use self::{
    config::{Backend, Desired, Limits, RelayConfig, Times},
    dial::ServiceAddress,
    refusal::ConnectionRefusal,
};

/// Time that the accept tasks of a drain have to close their sockets.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Threads at most, on any number of processors.
const MAX_THREADS: usize = 64;

/// Why the relay does not start, or keeps its old configuration.
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
    #[error("gateway.listen cannot be changed while the gateway drains; `undrain` or restart it")]
    Draining,
}

/// State that all connections share.
struct Shared {
    config: RwLock<Arc<RelayConfig>>,
    access: RwLock<Option<Arc<AccessLog>>>,
    backends: Backends,
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

    fn config(&self) -> Arc<RelayConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An address with its accept tasks.
struct Listening {
    /// As in the configuration.
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

/// A new configuration, with its new addresses bound. Dropped, it changes nothing.
pub struct Prepared {
    config: RelayConfig,
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
    /// The addresses of the configuration, each with the address in use before.
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
    pub fn start(config: RelayConfig) -> Result<Self, Error> {
        let relay = Self::start_drained(config)?;
        let config = relay.shared.config();
        *relay.listening() = Listeners::Open(Vec::new());
        let bound = relay.bind(&config.listen)?;
        relay.listen(&config.listen, bound);
        Ok(relay)
    }

    /// As [`start`](Self::start), but the relay drains from the first: it accepts nothing until
    /// [`resume`](Self::resume).
    ///
    /// # Errors
    /// When threads or the file of access records are not possible.
    pub fn start_drained(config: RelayConfig) -> Result<Self, Error> {
        let pipes = Pipes::new(config.limits.pipes);
        let seed = getrandom::u64().unwrap_or_default();
        let backends = Backends::start(config.names_file.clone(), seed).map_err(Error::Threads)?;
        backends.set(&config.desired.backends);
        let shared = Arc::new(Shared {
            connections: Arc::default(),
            counters: Counters::new(pipes.short.clone()),
            pipes,
            access: RwLock::default(),
            backends,
            threads: Threads::start(processors()).map_err(Error::Threads)?,
            config: RwLock::new(Arc::new(config)),
        });
        let config = shared.config();
        let addresses = config.listen.iter().map(|address| (*address, *address));
        let relay = Self {
            shared,
            listening: Mutex::new(Listeners::Draining(addresses.collect())),
        };
        relay.set_access(relay.open_access(&config)?);
        Ok(relay)
    }

    /// Puts other tenants, backends and routes in force for new connections. It cannot fail, and
    /// changes nothing of a drain.
    pub fn set_desired(&self, desired: Desired) {
        let old = self.shared.config();
        if !Arc::ptr_eq(&old.desired.backends, &desired.backends) {
            self.shared.backends.set(&desired.backends);
        }
        let mut current = self
            .shared
            .config
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let config = RelayConfig {
            desired,
            ..(**current).clone()
        };
        *current = Arc::new(config);
    }

    /// Puts a new configuration in force for new connections. Existing ones go on as they began.
    ///
    /// # Errors
    /// When a new address cannot be bound, or the relay drains; the old configuration stays in
    /// force.
    pub fn reconfigure(&self, config: RelayConfig) -> Result<(), Error> {
        self.take(self.prepare(config)?);
        Ok(())
    }

    /// Does the part of [`reconfigure`](Self::reconfigure) that can fail: binds the new addresses
    /// of a configuration.
    ///
    /// # Errors
    /// As [`reconfigure`](Self::reconfigure).
    pub fn prepare(&self, config: RelayConfig) -> Result<Prepared, Error> {
        let bound = self.bind(&config.listen)?;
        let access = self.open_access(&config)?;
        Ok(Prepared {
            config,
            bound,
            access,
        })
    }

    /// Opens the file of access records, also if it is open: it may have been moved away.
    fn open_access(&self, config: &RelayConfig) -> Result<Option<Arc<AccessLog>>, Error> {
        let Some(path) = &config.access_log else {
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

    /// Puts a prepared configuration in force. A relay that drains accepts nothing still.
    pub fn take(&self, prepared: Prepared) {
        let Prepared {
            config,
            bound,
            access,
        } = prepared;
        self.set_access(access);
        self.shared.backends.set(&config.desired.backends);
        self.listen(&config.listen, bound);
        self.shared.pipes.limit(config.limits.pipes);
        let mut current = self
            .shared
            .config
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(config);
    }

    /// Binds those of the addresses that are not listened on yet.
    fn bind(&self, wanted: &[SocketAddr]) -> Result<Vec<Bound>, Error> {
        let listening = self.listening();
        let open = match &*listening {
            Listeners::Open(open) => open,
            // Nothing is to be bound before it accepts again.
            Listeners::Draining(addresses) => {
                let mut known = addresses.iter().map(|(wanted, _)| *wanted);
                let is_same = addresses.len() == wanted.len() && known.all(|a| wanted.contains(&a));
                return is_same.then(Vec::new).ok_or(Error::Draining);
            }
        };
        let new = wanted
            .iter()
            .filter(|&address| !open.iter().any(|l| l.wanted == *address));
        new.map(|&wanted| {
            let failed = |source| Error::Listen {
                address: wanted,
                source,
            };
            // A wildcard address may give way to one address, or the reverse: then both listen
            // until the old one is closed.
            let shared = open.iter().any(|old| overlap(old.address, wanted));
            let bound = bind(wanted, shared, &self.shared.threads);
            let (address, sockets) = bound.map_err(failed)?;
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
        let addresses = open.iter().map(|l| l.address).collect();
        self.shared.backends.set_listen(addresses);
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
                    bind(before, false, &self.shared.threads).map_err(|source| Error::Listen {
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
                Err(_) if begun.elapsed() < CLOSE_TIMEOUT => sleep(ACCEPT_PAUSE / 10).await,
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
    processors.min(MAX_THREADS)
}
