//! Gateways, and the circuits by which peers are reached through them.

use std::net::SocketAddr;

use gateway_client::{
    dial::ServiceAddress,
    pool::{Access, List},
    wire::CircuitId,
};
use tunnel_worker::tls::Fingerprint;

use super::{IpPrefix, KeySource};

/// A configured gateway: where it is reached, and how much it is preferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub name: String,
    /// Its addresses and DNS names, each with a port, in order of preference.
    pub addresses: Vec<ServiceAddress>,
    /// The pool it is in.
    pub pool: Option<String>,
    /// Its load, thousandths.
    pub load: u16,
}

/// All gateways, and those that this appliance may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateways {
    /// All of them.
    pub all: Vec<Gateway>,
    /// The pools that a tenant's appliance may use.
    pub access: Access,
}

impl Gateways {
    /// Those that a tenant's appliance may use.
    #[must_use]
    pub fn list(&self) -> List {
        let known = |gateway: &Gateway| gateway_client::pool::Gateway {
            name: gateway.name.clone(),
            pool: gateway.pool.clone(),
            load: gateway.load,
        };
        let all: Vec<_> = self.all.iter().map(known).collect();
        // Names were checked to be unique.
        List::of(&all, &self.access).unwrap_or_default()
    }
}

/// A circuit to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuit {
    pub id: CircuitId,
    /// Our side's key.
    pub key: KeySource,
    /// The tunnel over TLS where UDP is blocked; `None`: there is none.
    pub tls: Option<Tls>,
}

/// The listener for tunnels over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsListen {
    /// The addresses.
    pub listen: Vec<SocketAddr>,
    /// Sources that may connect; empty: all.
    pub from: Vec<IpPrefix>,
    /// Every connection begins with a PROXY protocol v2 header that names the client.
    pub proxy: bool,
}

/// A tunnel over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The server name by which a gateway routes it.
    pub name: String,
    /// SHA-256 of each certificate that the other end may have.
    pub fingerprints: Vec<Fingerprint>,
}
