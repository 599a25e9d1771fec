//! The objects as they are written: in JSON on the wire, and in the stored state.
//!
//! Unknown keys and repeated IDs are refused, so that no part of an update is ignored silently.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use service::{SecretText, desired::unique};

/// A tenant. A key that is left out means: no limit; for `connections`, the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantSpec {
    /// Connections at most, from 1; default: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<i64>,
    /// Datagrams a second of all its circuits, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datagrams: Option<i64>,
    /// Bytes a second of all its circuits, circuit IDs included, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datagram_bytes: Option<i64>,
}

/// A backend, as a configuration file or an update has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSpec {
    /// Addresses, or DNS names, each with a port; in order of preference.
    pub addresses: Vec<String>,
    /// Whether the gateway sends a PROXY protocol header of version 2.
    #[serde(default)]
    pub proxy: bool,
}

/// A route from TLS hellos to a backend: either `name` or `below`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// One server name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// All subdomains of a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<String>,
    /// Protocols (ALPN) of which the client must offer one; empty: any client matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<String>,
    /// ID of the tenant whose limit counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// ID of the backend.
    pub backend: String,
}

/// A circuit, as a configuration file or an update has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitSpec {
    /// ID of the tenant.
    pub tenant: String,
    /// Keys of side a and side b at this gateway: 32 bytes in base64 each.
    #[serde(deserialize_with = "SecretText::list")]
    pub keys: Vec<SecretText>,
}

/// Objects by ID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objects {
    /// By name: 1 to 32 of a-z, 0-9 and -.
    #[serde(default, deserialize_with = "unique")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<String, TenantSpec>,
    /// By name, as tenants.
    #[serde(default, deserialize_with = "unique")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub backends: BTreeMap<String, BackendSpec>,
    /// By an ID of 1 to 512 printable characters of ASCII.
    #[serde(default, deserialize_with = "unique")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<String, RouteSpec>,
    /// By circuit ID: 16 hexadecimal digits.
    #[serde(default, deserialize_with = "unique")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub circuits: BTreeMap<String, CircuitSpec>,
}

impl Objects {
    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
            && self.backends.is_empty()
            && self.routes.is_empty()
            && self.circuits.is_empty()
    }
}

/// IDs of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tenants: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub backends: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub routes: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub circuits: BTreeSet<String>,
}
