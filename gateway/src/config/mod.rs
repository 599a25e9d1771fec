//! The configuration file: read, checked whole, and only then believed.

mod check;
mod file;

use service::config;
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
    relay::{Backend, Limits, Plan, Times, route::Table},
};

/// A configuration that holds together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The gateway's name.
    pub name: String,
    /// Where it listens for tenants; of port 0 the kernel chooses one.
    pub listen: Vec<SocketAddr>,
    /// The control socket.
    pub control_socket: PathBuf,
    /// Where metrics are served, a loopback address; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How long connections may go on after it was asked to stop.
    pub drain: Duration,
    /// Deadlines of the relay.
    pub times: Times,
    /// Whether the kernel moves the bytes; else they are copied.
    pub spliced: bool,
    /// Connections in all; `None`: as many as open files allow.
    pub connections: Option<usize>,
    /// Connections of one source.
    pub per_source: u32,
    /// Tenants and the connections that each may have.
    pub tenants: Vec<(Arc<str>, u32)>,
    /// Backends.
    pub backends: Vec<Target>,
    /// Which hello is for which backend.
    pub table: Table,
    /// The UDP circuits.
    pub circuits: Circuits,
}

/// Circuits as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuits {
    /// How long an end stays bound without another bind.
    pub lifetime: Duration,
    /// Threads that carry datagrams; `None`: one for each processor, up to 8.
    pub threads: Option<usize>,
    /// The way through the driver.
    pub xdp: Xdp,
    /// Where that is; `None`: on the interfaces of the addresses that are listened on.
    pub interfaces: Option<Vec<String>>,
    /// The program's file; `None`: where it is installed.
    pub bpf_object: Option<PathBuf>,
    /// Datagrams and bytes a second that a tenant may send, for each of the tenants; `None`: no limit.
    pub rates: Vec<(Option<u64>, Option<u64>)>,
    /// All of them; tenants by their places.
    pub list: Vec<CircuitPlan>,
}

/// Whether circuits go through XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xdp {
    /// In the driver, where it takes the program; elsewhere through user space.
    Auto,
    /// In the driver, or the gateway does not start.
    Native,
    /// In the kernel's generic hook, or the gateway does not start.
    Generic,
    /// Through user space.
    Off,
}

impl Xdp {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        }
    }
}

/// Threads for circuits at most, where the configuration gives no number.
const DEFAULT_THREADS: usize = 8;

/// A tenant may send in one burst what it may send in this time.
const BURST: Duration = Duration::from_millis(100);

/// A backend as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: Arc<str>,
    /// Where it listens, in order of preference.
    pub addresses: Vec<SocketAddr>,
    /// Whether it is told who connected.
    pub proxy: bool,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, or anything in it is wrong.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = config::read(path)?;
        let config = Self::parse(&text, path)?;
        let is_open = std::fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o007 != 0);
        if is_open && !config.circuits.list.is_empty() {
            return Err(Error::Invalid {
                path: path.to_owned(),
                problems: vec![Problem {
                    at: "circuit".to_owned(),
                    what: "the file has keys, and every user may read it: chmod o= it".to_owned(),
                }],
            });
        }
        Ok(config)
    }

    /// Checks the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// When anything in it is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        config::parse(text, path, check::check)
    }

    /// Threads that carry datagrams: as configured, or one for each processor.
    #[must_use]
    pub fn circuit_threads(&self) -> usize {
        let processors =
            || std::thread::available_parallelism().map_or(1, |n| n.get().min(DEFAULT_THREADS));
        self.circuits.threads.unwrap_or_else(processors)
    }

    /// What circuits are to do.
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

    /// What the relay is to do, with so many connections in all, and so many pipes.
    #[must_use]
    pub fn plan(&self, connections: usize, pipes: usize) -> Plan {
        let backends = self.backends.iter().map(|target| {
            let backend = Backend::new(target.addresses.clone(), target.proxy);
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
            tenants: self.tenants.iter().cloned().collect(),
            backends: backends.collect(),
            table: self.table.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
