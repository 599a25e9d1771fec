//! The control socket: one JSON request a line, one JSON reply a line, for root and whoever runs the gateway.

pub mod render;

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};
pub use service::socket::Refusal;
use service::socket::{Access, Socket};

/// The gateway's.
pub static SOCKET: Socket = Socket {
    name: "gateway",
    one: "a gateway",
    setting: "gateway.control_socket",
    max_request: 4096,
    access: Access::RootAndOwner,
};

/// What the gateway answers: how it is now.
pub type Reply = service::socket::Reply<Box<Status>>;

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Everything the gateway knows of itself.
    Status,
    /// Read the configuration file again.
    Reload,
    /// Take no more connections, and stop when those that are there have ended.
    Drain,
}

/// What a gateway says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it listens for tenants.
    pub listen: Vec<SocketAddr>,
    /// Where it serves metrics.
    pub metrics: Option<SocketAddr>,
    /// Whether it takes no more connections.
    pub draining: bool,
    /// Connections now, those that are being opened included.
    pub connections: usize,
    /// How many there may be.
    pub limit: usize,
    /// Connections that came since it runs.
    pub accepted: u64,
    /// Of them those that were not relayed, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Relayed connections that ended, by how.
    pub ended: BTreeMap<String, u64>,
    /// UDP circuits.
    pub circuits: CircuitsStatus,
    /// The configured tenants, in order; and last, without a name, what is nobody's in particular.
    pub tenants: Vec<TenantStatus>,
}

/// What it says of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantStatus {
    /// Its name.
    pub name: String,
    /// Connections that are relayed now.
    pub connections: u64,
    /// How many there may be; `None`: only the limits of all.
    pub limit: Option<u32>,
    /// Connections that were relayed since it runs.
    pub relayed: u64,
    /// Bytes from its clients.
    pub bytes_up: u64,
    /// Bytes to its clients.
    pub bytes_down: u64,
    /// Datagrams that its circuits carried.
    pub datagrams: u64,
    /// Their bytes.
    pub datagram_bytes: u64,
    /// Datagrams of its circuits that went nowhere.
    pub datagrams_dropped: u64,
}

/// What it says of circuits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitsStatus {
    /// Where it listens for them.
    pub listen: Vec<SocketAddr>,
    /// Threads that carry datagrams.
    pub threads: usize,
    /// Ends that are bound.
    pub bound: usize,
    /// Datagrams that came.
    pub received: u64,
    /// Datagrams that came when there was no room for them.
    pub overflowed: u64,
    /// Datagrams that were sent, answers too.
    pub sent: u64,
    /// Datagrams that went nowhere, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// The way through the driver.
    pub xdp: XdpStatus,
    /// Each of them, by id.
    pub list: Vec<CircuitStatus>,
}

/// What it says of the way through the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpStatus {
    /// As configured.
    pub asked: String,
    /// Why there is none; `None`: there is, or none was asked for.
    pub refused: Option<String>,
    /// Where it is, and where it is not though it was wanted.
    pub interfaces: Vec<InterfaceStatus>,
    /// What the program did with frames.
    pub frames: BTreeMap<String, u64>,
}

/// What it says of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `native`, `generic`, or `none`: through user space.
    pub mode: String,
    /// Why none.
    pub refused: Option<String>,
    /// Whether what came in by another interface goes out here by XDP: the driver has to take it.
    pub target: bool,
}

/// What it says of a circuit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitStatus {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// Where its sides are bound.
    pub bound: [Option<SocketAddr>; 2],
    /// Datagrams that each side sent and that were carried.
    pub datagrams: [u64; 2],
    /// Their bytes.
    pub bytes: [u64; 2],
    /// Of the datagrams, those that XDP carried.
    pub fast: [u64; 2],
    /// What happened to its sides.
    pub events: BTreeMap<String, u64>,
    /// Datagrams that went nowhere, by reason.
    pub dropped: BTreeMap<String, u64>,
}
