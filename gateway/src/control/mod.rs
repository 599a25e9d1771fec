//! Requests and replies of the control socket, which is open to root and to the user of the
//! gateway.

pub mod render;

use std::{collections::BTreeMap, net::SocketAddr};

use gateway_model::{Applied, Counts, DesiredPage, Source, Update};
use serde::{Deserialize, Serialize};
pub use service::socket::RequestRefusal;
use service::socket::{Access, Page, Socket};

/// The control socket of the gateway.
pub static SOCKET: Socket = Socket {
    name: "gateway",
    one: "a gateway",
    setting: "gateway.control_socket",
    max_request: 64 << 20,
    access: Access::RootAndOwner,
};

/// Tenants, circuits or objects in a reply, at most.
pub const PAGE_SIZE: usize = 1000;

/// A reply. On the wire it is the content alone: the request says which one it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Tenants`].
    Tenants(Page<TenantStatus>),
    /// To [`Request::Circuits`].
    Circuits(Page<CircuitStatus>),
    /// To [`Request::Desired`].
    Desired(DesiredPage),
    /// To [`Request::Apply`].
    Update(UpdateReply),
    /// To every other request.
    Brief(Brief),
}

/// The state of the gateway in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brief {
    pub name: String,
    /// Whether it accepts no new connections and binds.
    pub draining: bool,
    /// Present connections.
    pub connections: usize,
    /// Bound ends of circuits.
    pub bound: usize,
    /// Revision of the desired state in force; 0: that of the file, or none.
    pub revision: u64,
    /// Thousandths of the capacity that are in use: connections or bound ends, whichever is more.
    pub load: u16,
    /// Whether `draining` is stored, so that it outlives the process; only in replies to `drain`
    /// and `undrain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<bool>,
}

/// An update that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateReply {
    #[serde(flatten)]
    pub applied: Applied,
    /// Whether it is stored, so that it is in force after a restart.
    pub stored: bool,
}

/// Requests by the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Get the state of the gateway, without tenants and circuits.
    Status {},
    /// Get a page of tenants, in the order of names.
    Tenants {
        /// The name before the first one.
        after: Option<String>,
    },
    /// Get a page of circuits, in the order of IDs.
    Circuits {
        /// The ID before the first one.
        after: Option<String>,
        /// Of this tenant only.
        tenant: Option<String>,
    },
    /// Get a page of the desired state in force.
    Desired {
        /// `next` of the page before.
        after: Option<String>,
        /// Whether circuits have their keys.
        #[serde(default)]
        keys: bool,
    },
    /// Put a snapshot or delta of the desired state in force, whole or not at all.
    Apply { update: Box<Update> },
    /// Read the configuration file again.
    Reload {},
    /// Accept no new connections and binds until [`Request::Undrain`] or a stop.
    Drain {},
    /// Accept connections and binds again.
    Undrain {},
}

/// The state of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    pub version: String,
    /// Listen addresses for TCP.
    pub listen: Vec<SocketAddr>,
    /// Address of the metrics.
    pub metrics: Option<SocketAddr>,
    /// Whether it accepts no new connections.
    pub draining: bool,
    /// Present connections, those being opened included.
    pub connections: usize,
    /// Connections at most.
    pub limit: usize,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Refused connections, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Ended relayed connections, by kind of end.
    pub ended: BTreeMap<String, u64>,
    /// As in [`Brief`].
    pub load: u16,
    /// The desired state in force.
    pub desired: DesiredStatus,
    /// The director's agent, if it is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<agent::Status>,
    /// UDP circuits.
    pub circuits: CircuitsStatus,
    /// In the order of names; the entry without a name is for connections without a tenant. Empty
    /// in a reply: see [`Request::Tenants`].
    #[serde(default)]
    pub tenants: Vec<TenantStatus>,
}

/// The desired state in force, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredStatus {
    /// Its revision; 0: that of the file, or none.
    pub revision: u64,
    pub source: Source,
    /// Numbers of objects.
    pub counts: Counts,
    /// Whether it is stored for the next start; `None`: there is no folder for that.
    pub stored: Option<bool>,
}

/// The state of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantStatus {
    pub name: String,
    /// Open relayed connections.
    pub connections: u64,
    /// Connections at most; `None`: no limit of its own.
    pub limit: Option<u32>,
    /// Connections relayed since the start.
    pub relayed: u64,
    /// Bytes from clients.
    pub bytes_up: u64,
    /// Bytes to clients.
    pub bytes_down: u64,
    /// Datagrams that the circuits forwarded.
    pub datagrams: u64,
    pub datagram_bytes: u64,
    /// Dropped datagrams of the circuits.
    pub datagrams_dropped: u64,
    /// Circuits, and their bound ends.
    pub circuits: usize,
    pub bound: usize,
}

/// The state of all circuits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitsStatus {
    /// Listen addresses for UDP.
    pub listen: Vec<SocketAddr>,
    /// Threads of circuits.
    pub threads: usize,
    /// Number of circuits.
    pub configured: usize,
    /// Number of bound ends.
    pub bound: usize,
    /// Received datagrams.
    pub received: u64,
    /// Datagrams dropped because a receive buffer was full.
    pub overflowed: u64,
    /// Sent datagrams, answers included.
    pub sent: u64,
    /// Dropped datagrams, by reason.
    pub dropped: BTreeMap<String, u64>,
    pub xdp: XdpStatus,
    /// The circuits, in the order of IDs. Empty in a reply: see [`Request::Circuits`].
    #[serde(default)]
    pub list: Vec<CircuitStatus>,
}

/// The state of XDP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpStatus {
    /// `circuits.xdp` of the configuration.
    pub configured: String,
    /// Why circuits use user space; `None`: XDP is used or switched off.
    pub refused: Option<String>,
    /// The interfaces that should have the program.
    pub interfaces: Vec<InterfaceStatus>,
    /// Tenants whose circuits use user space, because the map of rate limits is full.
    #[serde(default)]
    pub waiting_tenants: usize,
    /// Frames, by outcome.
    pub frames: BTreeMap<String, u64>,
}

/// The state of XDP on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    pub name: String,
    /// `native`, `generic`, or `none`: through user space.
    pub mode: String,
    /// Why the mode is `none`.
    pub refused: Option<String>,
    /// Whether frames of other interfaces can be redirected to this one.
    pub target: bool,
}

/// The state of a circuit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitStatus {
    pub id: String,
    pub tenant: String,
    /// Addresses of the bound sides.
    pub bound: [Option<SocketAddr>; 2],
    /// Forwarded datagrams, by sending side.
    pub datagrams: [u64; 2],
    /// Forwarded bytes, by sending side.
    pub bytes: [u64; 2],
    /// Datagrams that XDP forwarded, by sending side.
    pub fast: [u64; 2],
    /// Events of the sides.
    pub events: BTreeMap<String, u64>,
    /// Dropped datagrams, by reason.
    pub dropped: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests;
