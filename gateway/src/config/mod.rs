//! The configuration file: read, checked as a whole, and turned into plans for the relay and the
//! circuits.

mod check;
mod file;

use service::{config, xdp};
use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use service::config::{Error, Problem};

use crate::{
    circuit::{
        rate::Bucket,
        table::{self, CircuitPlan, TenantPlan},
    },
    relay::{Backend, Endpoint, Limits, Plan, Prefix, Times, route::Table},
};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the gateway.
    pub name: String,
    /// Listen addresses; the kernel chooses a port for port 0.
    pub listen: Vec<SocketAddr>,
    /// Whether `listen` is the default.
    pub default_listen: bool,
    /// Path of the control socket.
    pub control_socket: PathBuf,
    /// Address of the metrics, a loopback address; `None`: no metrics.
    pub metrics: Option<SocketAddr>,
    /// Time that connections have to end after a stop or drain.
    pub drain: Duration,
    /// Timeouts of the relay.
    pub times: Times,
    /// Senders whose connections begin with a PROXY header.
    pub proxy_from: Vec<Prefix>,
    /// File of access records.
    pub access_log: Option<PathBuf>,
    /// Whether bytes are moved by splice(2), or copied.
    pub spliced: bool,
    /// Connections at most; `None`: as many as open files allow.
    pub connections: Option<usize>,
    /// Connections of one source at most.
    pub per_source: u32,
    /// Tenants, with connections at most.
    pub tenants: Vec<(Arc<str>, u32)>,
    pub backends: Vec<Target>,
    /// Routes from hellos to backends.
    pub table: Table,
    pub circuits: Circuits,
}

/// The configuration of circuits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuits {
    /// Time that an end stays bound after its last bind.
    pub lifetime: Duration,
    /// Threads; `None`: one for each processor, up to 8.
    pub threads: Option<usize>,
    /// Circuits that the maps of XDP have room for; `None`: twice those of the file at the start.
    pub capacity: Option<usize>,
    /// Mode of XDP; `None`: circuits use user space.
    pub xdp: Option<xdp::Setting>,
    /// Interfaces with XDP; `None`: the interfaces of the listen addresses.
    pub interfaces: Option<Vec<String>>,
    /// File of the XDP program; `None`: the installed one.
    pub bpf_object: Option<PathBuf>,
    /// For each tenant, limits of datagrams and bytes a second; `None`: no limit.
    pub rates: Vec<(Option<u64>, Option<u64>)>,
    /// The circuits, with tenants by index.
    pub list: Vec<CircuitPlan>,
}

impl Circuits {
    /// The value of `circuits.xdp`.
    #[must_use]
    pub fn xdp_name(&self) -> &'static str {
        self.xdp.map_or("off", xdp::Setting::name)
    }
}

/// Threads for circuits at most, where the configuration gives no number.
const DEFAULT_THREADS: usize = 8;

/// Burst of a tenant: the amount of this time at its rate.
const BURST: Duration = Duration::from_millis(100);

/// A configured backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: Arc<str>,
    /// Addresses and names in order of preference.
    pub addresses: Vec<Endpoint>,
    /// Whether the gateway sends a PROXY protocol header.
    pub proxy: bool,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When the file cannot be read, or has a problem.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = config::read(path)?;
        let config = Self::parse(&text, path)?;
        let is_open = std::fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o007 != 0);
        if is_open && !config.circuits.list.is_empty() {
            return Err(Error::Invalid {
                path: path.to_owned(),
                problems: vec![Problem {
                    at: "circuit".to_owned(),
                    what: "the file has keys and is readable by all users: chmod o= FILE"
                        .to_owned(),
                }],
            });
        }
        Ok(config)
    }

    /// Checks the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// When the file has a problem.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        config::parse(text, path, check::check)
    }

    /// Leaves IPv6 out of the default listen addresses on a machine without it; returns whether it
    /// did.
    pub fn drop_missing_family(&mut self, has_ipv6: impl FnOnce() -> bool) -> bool {
        let drops = self.default_listen && !has_ipv6();
        if drops {
            self.listen.retain(SocketAddr::is_ipv4);
        }
        drops
    }

    /// Threads that carry datagrams: as configured, or one for each processor.
    #[must_use]
    pub fn circuit_threads(&self) -> usize {
        let processors =
            || std::thread::available_parallelism().map_or(1, |n| n.get().min(DEFAULT_THREADS));
        self.circuits.threads.unwrap_or_else(processors)
    }

    /// The plan of the circuits.
    #[must_use]
    pub fn circuit_plan(&self) -> table::Plan {
        let bucket = |rate: Option<u64>| rate.map(|rate| Arc::new(Bucket::new(rate, BURST)));
        let tenants = self.tenants.iter().zip(&self.circuits.rates);
        let tenants = tenants.map(|((name, _), (datagrams, bytes))| TenantPlan {
            name: Arc::clone(name),
            datagrams: bucket(*datagrams),
            bytes: bucket(*bytes),
        });
        table::Plan {
            lifetime: self.circuits.lifetime,
            tenants: tenants.collect(),
            circuits: self.circuits.list.clone(),
        }
    }

    /// The plan of the relay, with these numbers of connections and pipes.
    #[must_use]
    pub fn plan(&self, connections: usize, pipes: usize) -> Plan {
        let backends = self.backends.iter().map(|target| {
            let backend = Backend {
                endpoints: target.addresses.clone(),
                proxy: target.proxy,
            };
            (Arc::clone(&target.name), backend)
        });
        Plan {
            listen: self.listen.clone(),
            limits: Limits {
                connections,
                per_source: self.per_source,
                pipes,
            },
            times: self.times,
            proxy_from: self.proxy_from.clone(),
            access_log: self.access_log.clone(),
            tenants: self.tenants.iter().cloned().collect(),
            backends: backends.collect(),
            table: self.table.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
