//! The gateway as a process: its files, signals and sockets.
//!
//! ```text
//!   SIGHUP, reload ─▶ file ─▶ checked whole ─▶ listeners ─▶ in force; else all stays as it is
//!   SIGTERM, drain ─▶ no more connections ─▶ the last has ended, or gateway.drain has passed ─▶ stop
//!                                            again SIGTERM ─▶ stop at once
//! ```

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus_client::registry::Registry;
use service::{Notifier, socket};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    circuit::{
        self,
        counters::Collected,
        fast::{self, Fast},
        socket::{Circuits, State},
        table::Reason as DropReason,
    },
    config::{self, Config, Xdp},
    control::{
        self, CircuitStatus, CircuitsStatus, InterfaceStatus, Refusal, Reply, Request, Status,
        TenantStatus, XdpStatus,
    },
    metrics,
    relay::{
        self, Refused, Relay,
        carry::End,
        counters::{Reason, Tenant},
    },
};

/// Open files beside connections and what carries them: control, circuits, the runtime's own.
const OTHER_FILES: usize = 128;
/// Pipes that there is always room for, two open files each.
const PIPES: usize = 64;
/// Pipes at most: more bytes than in so many are not on the way at once.
const MAX_PIPES: usize = 1 << 14;

/// Threads for circuits, unless more are asked for.
const MAX_THREADS: usize = 8;
/// How often it is looked whether all ends have left.
const LEAVING: Duration = Duration::from_millis(100);

/// Why the gateway does not run, or a new configuration is not in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The addresses.
    #[error(transparent)]
    Relay(#[from] relay::Error),
    /// The addresses of circuits, or their threads.
    #[error(transparent)]
    Circuits(#[from] circuit::socket::Error),
    /// Circuits do not go through XDP as they are to.
    #[error("circuits.xdp: {0}")]
    Fast(#[from] fast::Error),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] socket::BindError),
    /// The metrics' address.
    #[error("cannot serve metrics on {address}: {source}; write another gateway.metrics")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// More connections than files can be open.
    #[error(
        "limits.connections: {wanted} need {} open files, and {files} are allowed: write {} at most, or raise the limit \
         (systemd: LimitNOFILE=)", files_of(*wanted, *others), connections_of(*files, *others)
    )]
    Files {
        /// Connections.
        wanted: usize,
        /// Open files.
        files: usize,
        /// Of them, those beside connections.
        others: usize,
    },
    /// What is taken at the start only.
    #[error("{key} cannot be changed while the gateway runs; restart it, or write {running} again")]
    Fixed {
        /// The key.
        key: &'static str,
        /// What runs.
        running: String,
    },
    /// Signals could not be asked for, or the limit of open files.
    #[error("{operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// What so many connections need at least.
const fn files_of(connections: usize, others: usize) -> usize {
    (connections + PIPES) * 2 + others
}

/// What so many files are enough for at most.
const fn connections_of(files: usize, others: usize) -> usize {
    files.saturating_sub(PIPES * 2 + others) / 2
}

/// Metrics that are served.
struct Served {
    wanted: SocketAddr,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Daemon {
    path: PathBuf,
    config: Config,
    relay: Relay,
    circuits: Circuits,
    /// The way of circuits through the driver.
    fast: Option<Arc<Fast>>,
    /// Why there is none.
    refused: Option<String>,
    registry: Arc<Registry>,
    served: Option<Served>,
    /// Open files that are allowed.
    files: usize,
    notifier: Notifier,
    /// When it stops, if it drains.
    stop: Option<Instant>,
}

/// Runs until it is told to stop and has drained.
///
/// # Errors
/// When it cannot start.
pub async fn run(path: &Path) -> Result<(), Error> {
    let config = Config::load(path)?;
    let files = open_files()?;
    let (connections, pipes) = shares(&config, files)?;
    let system = |operation| move |source| Error::System { operation, source };
    let mut hangup = signal(SignalKind::hangup()).map_err(system("wait for SIGHUP"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("wait for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("wait for SIGINT"))?;
    let listener = socket::bind(&control::SOCKET, &config.control_socket)?;
    let relay = Relay::start(config.plan(connections, pipes))?;
    let mut registry = Registry::default();
    relay.counters().register(&mut registry);
    let threads = threads(&config);
    let (fast, refused) = load(&config)?;
    let circuits =
        Circuits::start_with(config.circuit_plan(), &config.listen, threads, fast.clone())?;
    if let Some(fast) = &fast {
        attach(fast, &config)?;
    }
    registry.register_collector(Box::new(Collected(circuits.observer())));
    let mut daemon = Daemon {
        path: path.to_owned(),
        served: None,
        config,
        relay,
        circuits,
        fast,
        refused,
        registry: Arc::new(registry),
        files,
        notifier: Notifier::from_env(),
        stop: None,
    };
    daemon.served = daemon.serve(daemon.config.metrics).await?;
    let (sender, mut calls) = mpsc::channel(16);
    tokio::spawn(socket::serve(&control::SOCKET, listener, sender));
    daemon.notifier.send("READY=1");
    tracing::info!(name = daemon.config.name, connections, "running");
    loop {
        let stop = daemon.stop;
        tokio::select! {
            _ = hangup.recv() => daemon.reload_for_signal().await,
            _ = terminate.recv() => if !daemon.drain() { break },
            _ = interrupt.recv() => if !daemon.drain() { break },
            Some((request, reply)) = calls.recv() => {
                let answer = daemon.answer(request).await;
                // Whoever asked may be gone.
                let _ = reply.send(answer);
            }
            () = daemon.empty(), if stop.is_some() => break,
            () = sleep_until(stop.unwrap_or_else(Instant::now)), if stop.is_some() => break,
        }
    }
    daemon.notifier.send("STOPPING=1");
    tracing::info!(connections = daemon.relay.connections(), "stopped");
    // Nobody answers there any more.
    if let Err(error) = std::fs::remove_file(&daemon.config.control_socket) {
        tracing::warn!(%error, "the control socket could not be removed");
    }
    Ok(())
}

/// Raises the limit of open files as far as it may be; how many are allowed.
fn open_files() -> Result<usize, Error> {
    let system = |operation| {
        move |errno: nix::Error| Error::System {
            operation,
            source: errno.into(),
        }
    };
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(system("ask how many files may be open"))?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(system("raise the limit of open files"))?;
    }
    Ok(usize::try_from(hard).unwrap_or(usize::MAX))
}

/// Loads the program for circuits; or, where that may be, the reason why there is none.
fn load(config: &Config) -> Result<(Option<Arc<Fast>>, Option<String>), fast::Error> {
    let circuits = &config.circuits;
    if circuits.xdp == Xdp::Off {
        return Ok((None, None));
    }
    let object = circuits
        .bpf_object
        .clone()
        .or_else(|| std::env::var_os("CAUSEWAY_GATEWAY_BPF_OBJECT").map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("/usr/lib/causeway/gateway.bpf.o"));
    let limits = circuits.rates.iter().flat_map(|(a, b)| [a, b]).flatten();
    let size = fast::Size {
        circuits: circuits.list.len(),
        buckets: limits.count(),
    };
    match Fast::load(&object, size) {
        Ok(fast) => Ok((Some(Arc::new(fast)), None)),
        Err(error) if circuits.xdp == Xdp::Auto => {
            tracing::warn!(%error, "circuits go through user space, as xdp = \"auto\" allows");
            Ok((None, Some(error.to_string())))
        }
        Err(error) => Err(error),
    }
}

/// Puts the program where it belongs: nowhere, while there is no circuit.
fn attach(fast: &Fast, config: &Config) -> Result<(), fast::Error> {
    let circuits = &config.circuits;
    if circuits.list.is_empty() {
        return fast.attach(&[], circuits.xdp);
    }
    let wanted = fast::wanted(circuits.interfaces.as_deref(), &config.listen)?;
    if wanted.is_empty() {
        if circuits.xdp != Xdp::Auto {
            return Err(fast::Error::NoInterface);
        }
        let error = fast::Error::NoInterface;
        tracing::info!(%error, "circuits go through user space, as xdp = \"auto\" allows");
    }
    fast.attach(&wanted, circuits.xdp)
}

/// How many threads carry datagrams.
fn threads(config: &Config) -> usize {
    let processors =
        || std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
    config.circuits.threads.unwrap_or_else(processors)
}

/// How many connections and how many pipes there may be with so many open files.
fn shares(config: &Config, files: usize) -> Result<(usize, usize), Error> {
    let others = OTHER_FILES + Relay::files(config.listen.len());
    let most = connections_of(files, others);
    let connections = match config.connections {
        // A quarter of what is left for pipes, as both ways of a busy connection have one.
        None => (most - most / 4).max(1),
        Some(wanted) if wanted <= most => wanted,
        Some(wanted) => {
            return Err(Error::Files {
                wanted,
                files,
                others,
            });
        }
    };
    let left = files.saturating_sub(others + connections * 2) / 2;
    let pipes = if config.spliced {
        left.min(MAX_PIPES)
    } else {
        0
    };
    Ok((connections, pipes))
}

impl Daemon {
    async fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Status => {}
            Request::Reload => {
                if let Err(error) = self.reload().await {
                    return Reply::Error(Refusal::new("invalid", error.to_string()));
                }
            }
            Request::Drain => {
                self.drain();
            }
        }
        Reply::Ok(Box::new(self.status()))
    }

    async fn reload_for_signal(&mut self) {
        if let Err(error) = self.reload().await {
            tracing::error!(%error, "the new configuration is refused; the old one stays in force");
        }
    }

    /// Takes the file again, whole or not at all.
    async fn reload(&mut self) -> Result<(), Error> {
        if self.relay.is_draining() {
            return Err(relay::Error::Draining.into());
        }
        let config = Config::load(&self.path)?;
        if config.control_socket != self.config.control_socket {
            return Err(Error::Fixed {
                key: "gateway.control_socket",
                running: self.config.control_socket.display().to_string(),
            });
        }
        if threads(&config) != threads(&self.config) {
            return Err(Error::Fixed {
                key: "circuits.threads",
                running: threads(&self.config).to_string(),
            });
        }
        let (now, new) = (&self.config.circuits, &config.circuits);
        for (key, is_same, running) in [
            (
                "circuits.xdp",
                now.xdp == new.xdp,
                format!("{:?}", now.xdp.name()),
            ),
            (
                "circuits.interfaces",
                now.interfaces == new.interfaces,
                match &now.interfaces {
                    Some(interfaces) => format!("{interfaces:?}"),
                    None => "nothing".to_owned(),
                },
            ),
            (
                "circuits.bpf_object",
                now.bpf_object == new.bpf_object,
                match &now.bpf_object {
                    Some(path) => format!("{path:?}"),
                    None => "nothing".to_owned(),
                },
            ),
        ] {
            if !is_same {
                return Err(Error::Fixed { key, running });
            }
        }
        let (connections, pipes) = shares(&config, self.files)?;
        let kept = self.served.as_ref().map(|s| s.wanted) == config.metrics;
        let served = if kept {
            None
        } else {
            self.serve(config.metrics).await?
        };
        let circuits = self
            .circuits
            .prepare(config.circuit_plan(), &config.listen)?;
        if let Some(fast) = &self.fast {
            attach(fast, &config)?;
        }
        self.relay.replan(config.plan(connections, pipes))?;
        self.circuits.take(circuits);
        if !kept {
            self.served = served;
        }
        self.config = config;
        tracing::info!(connections, "a new configuration is in force");
        Ok(())
    }

    async fn serve(&self, address: Option<SocketAddr>) -> Result<Option<Served>, Error> {
        let Some(wanted) = address else {
            return Ok(None);
        };
        let failed = |source| Error::Metrics {
            address: wanted,
            source,
        };
        let listener = TcpListener::bind(wanted).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, "metrics");
        let task = tokio::spawn(metrics::serve(listener, Arc::clone(&self.registry)));
        Ok(Some(Served {
            wanted,
            address,
            task,
        }))
    }

    /// Takes no more connections; false when that was so already.
    fn drain(&mut self) -> bool {
        if self.stop.is_some() {
            return false;
        }
        let patience: Duration = self.config.drain;
        self.relay.drain();
        self.circuits.drain();
        self.stop = Some(Instant::now() + patience);
        self.notifier.send("STATUS=draining");
        tracing::info!(
            connections = self.relay.connections(),
            seconds = patience.as_secs_f64(),
            "draining"
        );
        true
    }

    /// Waits until there is neither a connection nor a bound end.
    async fn empty(&self) {
        self.relay.empty().await;
        while self.circuits.state().bound > 0 {
            sleep(LEAVING).await;
        }
    }

    fn circuits_status(&self, state: &State) -> CircuitsStatus {
        let dropped = |drops: &circuit::table::Drops| {
            let counts = DropReason::ALL.into_iter().zip(drops);
            counts
                .map(|(reason, count)| (reason.name().to_owned(), *count))
                .collect()
        };
        let mut all = state.drops;
        let of_circuits = state.circuits.iter().map(|circuit| circuit.counts.drops);
        for (sum, count) in of_circuits.flat_map(|drops| std::iter::zip(0.., drops)) {
            let sum: usize = sum;
            all[sum] += count;
        }
        let list = state.circuits.iter().map(|circuit| CircuitStatus {
            id: circuit.id.to_string(),
            tenant: circuit.tenant.to_string(),
            bound: circuit.bound,
            datagrams: circuit.counts.from.map(|traffic| traffic.datagrams),
            bytes: circuit.counts.from.map(|traffic| traffic.bytes),
            fast: circuit.fast.map(|traffic| traffic.datagrams),
            events: circuit
                .counts
                .events
                .named()
                .map(|(name, count)| (name.to_owned(), count))
                .into(),
            dropped: dropped(&circuit.counts.drops),
        });
        CircuitsStatus {
            listen: self.circuits.addresses(),
            threads: threads(&self.config),
            bound: state.bound,
            received: state.totals.received,
            overflowed: state.totals.overflowed,
            sent: state.totals.sent,
            dropped: dropped(&all),
            xdp: self.xdp_status(),
            list: list.collect(),
        }
    }

    fn xdp_status(&self) -> XdpStatus {
        let fast = self.fast.as_ref();
        let interfaces = fast.map(|fast| fast.interfaces()).unwrap_or_default();
        let interfaces = interfaces.into_iter().map(|interface| InterfaceStatus {
            name: interface.name,
            mode: interface
                .mode
                .as_ref()
                .map_or("none", |m| m.name())
                .to_owned(),
            refused: interface.mode.err(),
            target: interface.target,
        });
        let interfaces: Vec<InterfaceStatus> = interfaces.collect();
        let has_circuits = !self.config.circuits.list.is_empty();
        let refused = match fast {
            None => self.refused.clone(),
            Some(_) if interfaces.is_empty() && has_circuits => {
                Some(fast::Error::NoInterface.to_string())
            }
            Some(_) => None,
        };
        // Where the map cannot be read, there is nothing to say.
        let frames = fast
            .and_then(|fast| fast.outcomes().ok())
            .unwrap_or_default();
        let frames = frames
            .into_iter()
            .map(|(outcome, count)| (outcome.name().to_owned(), count));
        XdpStatus {
            asked: self.config.circuits.xdp.name().to_owned(),
            refused,
            interfaces,
            frames: frames.collect(),
        }
    }

    fn status(&self) -> Status {
        let state = self.circuits.state();
        let counters = self.relay.counters();
        let count = |family: &prometheus_client::metrics::family::Family<Reason, _>, reason| {
            let counter: prometheus_client::metrics::counter::Counter =
                family.get_or_create_owned(&Reason { reason });
            (reason.to_owned(), counter.get())
        };
        let named = self.config.tenants.iter().map(|(n, l)| (&**n, Some(*l)));
        let tenants = named.chain([("", None)]).map(|(name, limit)| {
            let label = Tenant {
                tenant: name.to_owned(),
            };
            let traffic = counters.traffic(name);
            let open = counters.open.get_or_create_owned(&label).get();
            let circuits = state.circuits.iter().filter(|c| &*c.tenant == name);
            let sum = |of: fn(&circuit::table::CircuitCounts) -> u64| {
                circuits.clone().map(|c| of(&c.counts)).sum()
            };
            TenantStatus {
                name: name.to_owned(),
                connections: u64::try_from(open).unwrap_or(0),
                limit,
                relayed: counters.relayed.get_or_create_owned(&label).get(),
                bytes_up: traffic.up.get(),
                bytes_down: traffic.down.get(),
                datagrams: sum(|counts| counts.from.iter().map(|t| t.datagrams).sum()),
                datagram_bytes: sum(|counts| counts.from.iter().map(|t| t.bytes).sum()),
                datagrams_dropped: sum(|counts| counts.drops.iter().sum()),
            }
        });
        Status {
            name: self.config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: self.relay.addresses(),
            metrics: self.served.as_ref().map(|s| s.address),
            draining: self.relay.is_draining(),
            connections: self.relay.connections(),
            limit: shares(&self.config, self.files).map_or(0, |(connections, _)| connections),
            accepted: counters.accepted.get(),
            refused: Refused::REASONS
                .into_iter()
                .map(|reason| count(&counters.refused, reason))
                .collect(),
            ended: End::ALL
                .into_iter()
                .map(|end| count(&counters.ended, end.name()))
                .collect(),
            circuits: self.circuits_status(&state),
            tenants: tenants.collect(),
        }
    }
}
