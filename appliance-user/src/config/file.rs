//! The file as written. Unknown keys are refused: a misspelt key must not be ignored in silence.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::KeyText;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub appliance: Appliance,
    pub agent: Option<agent::Section>,
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

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Uplink {
    pub interface: String,
    pub xdp: Option<String>,
    #[serde(default)]
    pub local: Vec<String>,
    pub port: Option<i64>,
    pub mtu: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gateways {
    #[serde(default)]
    pub pools: Vec<String>,
    #[serde(default)]
    pub unpooled: bool,
}

/// A gateway, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// Empty where the object has an ID.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub listen: Vec<String>,
    #[serde(default)]
    pub from: Vec<String>,
    #[serde(default)]
    pub proxy: bool,
}

/// The circuit of a peer, as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Circuit {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// In an update only: the file of the machine names files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyText>,
}

/// The tunnel over TLS of a peer, as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerTls {
    pub name: String,
    pub fingerprint: OneOrMore,
}

/// A text, or a list of texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore {
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

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Interface {
    pub name: String,
    pub xdp: Option<String>,
}

/// A tenant, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Empty where the object has an ID.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nat: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
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

/// A peer, as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Empty where the object has an ID.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key_file: Option<PathBuf>,
    /// In an update only: the file of the machine names files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<KeyText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit: Option<Circuit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<PeerTls>,
}

/// A network, as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Empty where the object has an ID.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub tenant: String,
    pub peer: String,
    pub vni: i64,
    pub interface: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer_ethertype: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateway: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
}
