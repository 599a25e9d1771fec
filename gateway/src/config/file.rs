//! The file as TOML. Unknown keys are refused, so that a misspelt key is not ignored silently.

use std::path::PathBuf;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub gateway: Gateway,
    #[serde(default)]
    pub relay: Relay,
    #[serde(default)]
    pub circuits: Circuits,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub tenant: Vec<Tenant>,
    #[serde(default)]
    pub backend: Vec<Backend>,
    #[serde(default)]
    pub route: Vec<Route>,
    #[serde(default)]
    pub circuit: Vec<Circuit>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gateway {
    pub name: String,
    pub listen: Option<Vec<String>>,
    pub control_socket: Option<PathBuf>,
    pub metrics: Option<String>,
    pub drain: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Relay {
    pub hello_timeout: Option<f64>,
    pub dial_timeout: Option<f64>,
    pub idle_timeout: Option<f64>,
    pub trial_time: Option<f64>,
    pub proxy_from: Option<Vec<String>>,
    pub access_log: Option<PathBuf>,
    pub way: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub connections: Option<i64>,
    pub per_source: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tenant {
    pub name: String,
    pub connections: Option<i64>,
    pub datagrams: Option<i64>,
    pub datagram_bytes: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backend {
    pub name: String,
    pub addresses: Vec<String>,
    #[serde(default)]
    pub proxy: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    pub name: Option<String>,
    pub below: Option<String>,
    #[serde(default)]
    pub protocols: Vec<String>,
    pub tenant: Option<String>,
    pub backend: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Circuits {
    pub lifetime: Option<f64>,
    pub threads: Option<i64>,
    pub capacity: Option<i64>,
    pub xdp: Option<String>,
    pub interfaces: Option<Vec<String>>,
    pub bpf_object: Option<PathBuf>,
}

// No Debug: the struct holds keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Circuit {
    pub id: String,
    pub tenant: String,
    pub keys: Vec<String>,
}
