//! The file as written. Unknown keys are refused: a misspelt key must not be ignored in silence.

use std::path::PathBuf;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub appliance: Appliance,
    pub uplink: Uplink,
    pub tunnel: Option<Tunnel>,
    pub gateways: Option<Gateways>,
    #[serde(default)]
    pub gateway: Vec<Gateway>,
    pub tls: Option<Tls>,
    #[serde(default)]
    pub nat: Nat,
    #[serde(default)]
    pub interface: Vec<Interface>,
    #[serde(default)]
    pub tenant: Vec<Tenant>,
    #[serde(default)]
    pub peer: Vec<Peer>,
    #[serde(default)]
    pub network: Vec<Network>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Appliance {
    pub name: String,
    pub role: String,
    pub state_dir: Option<PathBuf>,
    pub pin_dir: Option<PathBuf>,
    pub control_socket: Option<PathBuf>,
    pub bpf_object: Option<PathBuf>,
    pub metrics: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Uplink {
    pub interface: String,
    pub xdp: Option<String>,
    #[serde(default)]
    pub local: Vec<String>,
    pub port: Option<i64>,
    pub mtu: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tunnel {
    pub private_key_file: PathBuf,
    pub port: Option<i64>,
    pub cipher: Option<String>,
    pub workers: Option<i64>,
    #[serde(default)]
    pub cpus: Vec<i64>,
    pub waiting: Option<String>,
    pub memory: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gateways {
    #[serde(default)]
    pub pools: Vec<String>,
    #[serde(default)]
    pub unpooled: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gateway {
    pub name: String,
    #[serde(default)]
    pub addresses: Vec<String>,
    pub pool: Option<String>,
    pub load: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub listen: Vec<String>,
    #[serde(default)]
    pub from: Vec<String>,
    #[serde(default)]
    pub proxy: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Circuit {
    pub id: String,
    pub key_file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PeerTls {
    pub name: String,
    pub fingerprint: OneOrMore,
}

/// A text, or a list of texts.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    pub fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(all) => all,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Interface {
    pub name: String,
    pub xdp: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tenant {
    pub name: String,
    #[serde(default)]
    pub public: Vec<String>,
    #[serde(default)]
    pub nat: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nat {
    pub connections: Option<i64>,
    pub mappings: Option<i64>,
    pub own_ports: Option<String>,
    pub answer_ping: Option<bool>,
    pub log: Option<PathBuf>,
    pub established_seconds: Option<i64>,
    pub transitory_seconds: Option<i64>,
    pub closed_seconds: Option<i64>,
    pub opening_seconds: Option<i64>,
    pub udp_seconds: Option<i64>,
    pub udp_short_seconds: Option<i64>,
    pub icmp_seconds: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Peer {
    pub name: String,
    pub kind: Option<String>,
    pub address: Option<String>,
    #[serde(default)]
    pub addresses: Vec<String>,
    pub public_key: Option<String>,
    pub preshared_key_file: Option<PathBuf>,
    pub network: Option<String>,
    #[serde(default)]
    pub allowed: Vec<String>,
    pub keepalive: Option<i64>,
    pub circuit: Option<Circuit>,
    pub tls: Option<PeerTls>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Network {
    pub name: String,
    pub tenant: String,
    pub peer: String,
    pub vni: i64,
    pub interface: String,
    pub vlan: Option<String>,
    pub outer_ethertype: Option<i64>,
    #[serde(default)]
    pub prefixes: Vec<String>,
    #[serde(default)]
    pub gateway: Vec<String>,
    pub mtu: Option<i64>,
}
