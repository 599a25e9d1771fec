//! Objects that passed the check, as the gateway serves them.

use std::sync::Arc;

use gateway_client::{dial::ServiceAddress, wire::Key};

/// A checked tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Connections at most.
    pub connections: u32,
    /// Datagrams a second; `None`: no limit.
    pub datagrams: Option<u64>,
    /// Bytes a second; `None`: no limit.
    pub bytes: Option<u64>,
}

/// A checked backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// In order of preference.
    pub addresses: Vec<ServiceAddress>,
    /// Whether the gateway sends a PROXY protocol header.
    pub proxy: bool,
}

/// A checked circuit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuit {
    pub tenant: Arc<str>,
    /// Keys of the sides a and b.
    pub keys: [Key; 2],
}
