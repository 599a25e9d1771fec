//! The configuration file: read, checked as a whole, and divided into what belongs to this machine
//! and the desired state, which may come from elsewhere.

mod check;
mod file;

use service::{
    config,
    secret_file::{self, Access},
    xdp,
};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

pub use service::config::{Error, Problem};

use gateway_model::{Bounds, Objects};

use zeroize::Zeroizing;

use crate::relay::{Desired, Limits, Prefix, RelayConfig, Times};

/// A checked configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The part that belongs to this machine.
    pub local: Local,
    /// The desired state; `None`: the file has no part of one, and another one applies.
    pub desired: Option<Objects>,
}

/// The configuration of this machine, which only its file gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Name of the gateway.
    pub name: String,
    /// Listen addresses; the kernel chooses a port for port 0.
    pub listen: Vec<SocketAddr>,
    /// Whether `listen` is the default.
    pub default_listen: bool,
    /// Path of the control socket.
    pub control_socket: PathBuf,
    /// Folder of the stored state; `None`: that of the service manager, if it gives one.
    pub state_dir: Option<PathBuf>,
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
    /// Tenants at most.
    pub tenants: usize,
    /// The director's agent; `None`: there is none.
    pub agent: Option<agent::Config>,
    pub circuits: Circuits,
}

/// The configuration of circuits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuits {
    /// Time that an end stays bound after its last bind.
    pub lifetime: Duration,
    /// Threads; `None`: one for each processor, up to 8.
    pub threads: Option<usize>,
    /// Circuits at most: the room of tables and maps.
    pub capacity: usize,
    /// Whether answers to ends carry the load.
    pub report_load: bool,
    /// Mode of XDP; `None`: circuits use user space.
    pub xdp: Option<xdp::Setting>,
    /// Interfaces with XDP; `None`: the interfaces of the listen addresses.
    pub interfaces: Option<Vec<String>>,
    /// File of the XDP program; `None`: the installed one.
    pub bpf_object: Option<PathBuf>,
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

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When the file cannot be read, or has a problem.
    pub fn load(path: &Path) -> Result<Self, Error> {
        // It may have keys.
        let text = Zeroizing::new(config::read(path)?);
        let circuits = config::parse(&text, path, |file: file::File| Ok(file.circuit.len()));
        let has_keys = circuits.is_ok_and(|count| count > 0);
        let exposed = secret_file::check(path, Access::OwnerAndGroup).err();
        let problems = exposed.filter(|_| has_keys).map(|exposed| Problem {
            at: "circuit".to_owned(),
            what: exposed.to_string(),
        });
        let problems = problems.into_iter().collect();
        config::add(Self::parse(&text, path), path, problems)
    }

    /// Checks the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// When the file has a problem.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        config::parse(text, path, check::check)
    }
}

impl Local {
    /// The bounds of a desired state on this machine.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        Bounds {
            circuits: self.circuits.capacity,
            tenants: self.tenants,
            listen: self.listen.clone(),
        }
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

    /// The folder of the state: as configured, or as the service manager gives it.
    #[must_use]
    pub fn state_folder(&self) -> Option<PathBuf> {
        let given = || {
            // systemd.exec(5): several folders are separated by colons.
            let given = std::env::var("STATE_DIRECTORY").ok()?;
            let first = given.split(':').next().filter(|first| !first.is_empty())?;
            Some(PathBuf::from(first))
        };
        self.state_dir.clone().or_else(given)
    }

    /// Threads that carry datagrams: as configured, or one for each processor.
    #[must_use]
    pub fn circuit_threads(&self) -> usize {
        let processors =
            || std::thread::available_parallelism().map_or(1, |n| n.get().min(DEFAULT_THREADS));
        self.circuits.threads.unwrap_or_else(processors)
    }

    /// The configuration of the relay, with these numbers of connections and pipes.
    #[must_use]
    pub fn relay_config(&self, connections: usize, pipes: usize, desired: Desired) -> RelayConfig {
        RelayConfig {
            listen: self.listen.clone(),
            limits: Limits {
                connections,
                per_source: self.per_source,
                pipes,
            },
            times: self.times,
            proxy_from: self.proxy_from.clone(),
            access_log: self.access_log.clone(),
            names_file: self.state_folder().map(|dir| dir.join("names.json")),
            desired,
        }
    }
}

#[cfg(test)]
mod tests;
