//! The configuration of the relay.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use gateway_core::prefix::Prefix;

use super::{dial::ServiceAddress, route::Table};

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
    pub service_addresses: Vec<ServiceAddress>,
    /// Whether the gateway sends a PROXY protocol header (version 2) first.
    pub proxy: bool,
}

impl Backend {
    /// A backend with these addresses.
    #[must_use]
    pub fn new(addresses: Vec<SocketAddr>, proxy: bool) -> Self {
        Self {
            service_addresses: addresses.into_iter().map(ServiceAddress::Address).collect(),
            proxy,
        }
    }
}

/// The configuration of the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// Addresses to listen on; the kernel chooses a port for port 0.
    pub listen: Vec<SocketAddr>,
    pub limits: Limits,
    pub times: Times,
    /// Senders whose connections begin with a PROXY protocol header of version 2.
    pub proxy_from: Vec<Prefix>,
    /// File of access records.
    pub access_log: Option<PathBuf>,
    /// File that keeps the addresses of backends' names over a restart; read at the start only.
    pub names_file: Option<PathBuf>,
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

impl RelayConfig {
    /// Whether a sender's connections begin with a PROXY header.
    pub(super) fn is_proxy(&self, sender: IpAddr) -> bool {
        self.proxy_from.iter().any(|prefix| prefix.contains(sender))
    }
}
