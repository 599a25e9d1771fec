//! The configuration: plain data, and the checks of the file that it comes from.
//!
//! For: a file that is accepted whole or refused with every problem. Never: map contents, which
//! follow from the configuration (`datapath::reconcile`), or its application
//! (`daemon::controller`).
//!
//! ```text
//!   text ─ file.rs ─▶ file as written ─ check/ ─▶ Config
//!                                          └─▶ every problem, with key and remedy
//! ```

mod check;
pub mod desired;
mod file;
mod gateways;
mod key_text;
mod nat;
mod pages;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use appliance_common::addr::{Address, Prefix, from_ip};
use service::{config, desired::Source, xdp};
use tunnel::{CipherChoice, PublicKey};
use tunnel_worker::WaitMode;

pub use desired::{Local, Objects};
pub use failover::IpPrefix;
pub use gateways::{Circuit, Gateway, Gateways, Tls, TlsListen};
pub use key_text::{KeySource, KeyText};
pub use nat::{LogTarget, Nat, PortsInUse};
pub use pages::DesiredPage;
pub use service::config::{Error, Problem};

/// Which side of the tunnel the appliance is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The production site.
    Tenant,
    /// The site of the replicas.
    Provider,
}

impl Role {
    /// As written in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Provider => "provider",
        }
    }
}

/// A prefix as the data path holds it.
#[must_use]
pub fn prefix_of(net: &IpPrefix) -> Prefix {
    let offset = if net.address().is_ipv4() { 96 } else { 0 };
    // The length is one of the family's, and so at most 128.
    Prefix::new(&from_ip(net.address()), net.length() + offset).unwrap_or_default()
}

/// VLAN tags of a port, as XDP sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vlan {
    /// Outer identifier, 1 to 4094; 0 when untagged.
    pub outer: u16,
    /// Inner identifier (QinQ); 0 when at most one tag.
    pub inner: u16,
    /// Ethertype of the outer tag on what we send.
    pub outer_ethertype: u16,
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.outer, self.inner) {
            (0, _) => write!(f, "untagged"),
            (outer, 0) => write!(f, "{outer}"),
            (outer, inner) => write!(f, "{outer}.{inner}"),
        }
    }
}

/// The interface of the tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Name of the interface.
    pub interface: String,
    /// How XDP is attached there.
    pub xdp: xdp::Setting,
    /// Tunnel addresses of the appliance, at most one of a family; empty: the interface's first
    /// ones.
    pub local: Vec<IpAddr>,
    /// UDP port of the plain tunnels at both ends.
    pub port: u16,
    /// Path MTU to the peers, bytes; `None`: the interface's.
    pub mtu: Option<u16>,
}

/// This end of the encrypted tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The file that holds the appliance's private key.
    pub private_key_file: PathBuf,
    /// UDP port of all encrypted tunnels.
    pub port: u16,
    /// Cipher for sending.
    pub cipher: CipherChoice,
    /// Threads that carry packets, at least 1.
    pub workers: u32,
    /// The CPU of each worker, in turn; empty: the kernel's choice.
    pub cpus: Vec<usize>,
    /// How workers wait for packets.
    pub waiting: WaitMode,
    /// How AF_XDP shares memory with the driver.
    pub memory: Memory,
}

/// How AF_XDP shares memory with the driver. There is no fall-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The kernel copies each frame; every driver supports it.
    Copy,
    /// The driver writes into the memory of the socket, or it is an error.
    ZeroCopy,
}

impl Memory {
    /// As written in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::ZeroCopy => "zero-copy",
        }
    }

    /// As the crate `xsk` has it.
    #[must_use]
    pub const fn xsk(self) -> xsk::Memory {
        match self {
            Self::Copy => xsk::Memory::Copy,
            Self::ZeroCopy => xsk::Memory::ZeroCopy,
        }
    }
}

/// The other end of tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub kind: PeerKind,
}

/// How packets reach a peer: plain, or encrypted, and with which keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// A plain VXLAN end at this address.
    Vxlan(IpAddr),
    /// Another appliance, encrypted.
    Appliance(Identity),
    /// Any WireGuard implementation, as one more machine of a network.
    WireGuard {
        /// Its keys and addresses.
        identity: Identity,
        /// The name of its network.
        network: String,
        /// The prefixes that it may use there.
        allowed: Vec<IpPrefix>,
        /// Interval of keep-alives; `None`: there are none.
        keepalive: Option<Duration>,
    },
}

/// Keys and addresses of a peer of an encrypted tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub public_key: PublicKey,
    /// An additional secret that both ends share.
    pub preshared_key: Option<KeySource>,
    /// Addresses to dial, in order; empty: the peer dials, or there is a circuit.
    pub addresses: Vec<SocketAddr>,
    /// The circuit by which it is reached through gateways instead.
    pub circuit: Option<Circuit>,
}

impl Peer {
    /// The address of a plain peer.
    #[must_use]
    pub const fn plain(&self) -> Option<IpAddr> {
        match &self.kind {
            PeerKind::Vxlan(address) => Some(*address),
            _ => None,
        }
    }

    /// The identity of an encrypted peer.
    #[must_use]
    pub const fn identity(&self) -> Option<&Identity> {
        match &self.kind {
            PeerKind::Vxlan(_) => None,
            PeerKind::Appliance(identity) | PeerKind::WireGuard { identity, .. } => Some(identity),
        }
    }

    /// As written in the file.
    #[must_use]
    pub const fn kind_name(&self) -> &'static str {
        match &self.kind {
            PeerKind::Vxlan(_) => "vxlan",
            PeerKind::Appliance(_) => "appliance",
            PeerKind::WireGuard { .. } => "wireguard",
        }
    }
}

/// A stretched network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub name: String,
    /// Its tenant's name.
    pub tenant: String,
    /// Its peer's name.
    pub peer: String,
    pub vni: u32,
    /// The interface its port is on.
    pub interface: String,
    /// The port's tags.
    pub vlan: Vlan,
    pub prefixes: Vec<IpPrefix>,
    /// Its IPv4 router.
    pub gateway_v4: Option<IpAddr>,
    /// Its IPv6 router.
    pub gateway_v6: Option<IpAddr>,
    /// Largest IP packet, bytes; `None`: what fits the path.
    pub mtu: Option<u16>,
}

impl Network {
    /// The routers, for both families.
    pub fn gateways(&self) -> impl Iterator<Item = Address> + '_ {
        [self.gateway_v4, self.gateway_v6]
            .into_iter()
            .flatten()
            .map(from_ip)
    }
}

/// A configured tenant: the public addresses that its rules and its translation may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    pub name: String,
    /// Its public addresses.
    pub public: Vec<IpPrefix>,
    /// The addresses that its networks with internet are translated to, at most one of a family. A
    /// family without one uses the uplink's own address.
    pub nat: Vec<IpAddr>,
}

/// A file with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFile {
    /// With a private key.
    Private(PathBuf),
    /// With a preshared key, or that of an end of a circuit.
    Preshared(PathBuf),
}

impl KeyFile {
    #[must_use]
    pub fn path(&self) -> &Path {
        let (Self::Private(path) | Self::Preshared(path)) = self;
        path
    }
}

/// A configuration without problems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub name: String,
    /// Its side.
    pub role: Role,
    /// Where `state.json` is kept.
    pub state_dir: PathBuf,
    /// Where maps and links are pinned, a bpffs directory.
    pub pin_dir: PathBuf,
    pub control_socket: PathBuf,
    /// The object file of the programs; `None`: the environment's or the packaged one.
    pub bpf_object: Option<PathBuf>,
    /// Address where metrics are served over HTTP; `None`: they are not served.
    pub metrics: Option<SocketAddr>,
    /// The director's agent; `None`: there is none.
    pub agent: Option<agent::Config>,
    /// The interface of the tunnels.
    pub uplink: Uplink,
    /// This end of the encrypted tunnels; present where there are encrypted peers.
    pub tunnel: Option<Tunnel>,
    /// How XDP is attached on further interfaces.
    pub interfaces: BTreeMap<String, xdp::Setting>,
    /// The gateways, and which of them this appliance may use.
    pub gateways: Gateways,
    /// The listener for tunnels over TLS, if a provider's appliance has one.
    pub tls: Option<TlsListen>,
    /// Address translation of full failover.
    pub nat: Nat,
    pub tenants: Vec<Tenant>,
    pub peers: Vec<Peer>,
    pub networks: Vec<Network>,
    /// The part of the file that belongs to the machine.
    pub local: Local,
    /// Tenants, peers, networks and gateways, as they are written.
    pub objects: Arc<Objects>,
    /// Where the objects come from.
    pub source: Source,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, or has problems.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = config::read(path)?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// When it has problems.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        config::parse(text, path, check::check)
    }

    /// The key files that the text of a file names, each with its key: also if the file has
    /// problems. None of a text that cannot be read as a file, nor relative paths, which
    /// [`parse`](Self::parse) refuses.
    #[must_use]
    pub fn key_files(text: &str) -> Vec<(String, KeyFile)> {
        let Ok(file) = toml::from_str::<file::File>(text) else {
            return Vec::new();
        };
        let mut files = Vec::new();
        if let Some(tunnel) = file.tunnel {
            let private = KeyFile::Private(tunnel.private_key_file);
            files.push(("tunnel.private_key_file".to_owned(), private));
        }
        for peer in file.peer {
            let at = |key: &str| format!("peer {:?}: {key}", peer.name);
            if let Some(path) = peer.preshared_key_file {
                files.push((at("preshared_key_file"), KeyFile::Preshared(path)));
            }
            if let Some(path) = peer.circuit.and_then(|circuit| circuit.key_file) {
                files.push((at("circuit.key_file"), KeyFile::Preshared(path)));
            }
        }
        files.retain(|(_, file)| file.path().is_absolute());
        files
    }

    /// The network of that name.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<&Network> {
        self.networks.iter().find(|n| n.name == name)
    }

    /// The tenant of that name.
    #[must_use]
    pub fn tenant(&self, name: &str) -> Option<&Tenant> {
        self.tenants.iter().find(|t| t.name == name)
    }

    /// The tenant of that name, as failover plans are checked against it. Addresses that others use
    /// are not known here; the reconciler adds them.
    #[must_use]
    pub fn tenant_of(&self, name: &str) -> Option<failover::TenantContext> {
        let mut tenant = self.tenant_alone(name)?;
        let others = self.networks.iter().filter(|n| n.tenant != name);
        tenant.other_networks = others.map(|n| n.name.clone()).collect();
        Some(tenant)
    }

    /// The same without the names of the networks of other tenants.
    pub(crate) fn tenant_alone(&self, name: &str) -> Option<failover::TenantContext> {
        let tenant = self.tenant(name)?;
        let networks = self.networks.iter().filter(|n| n.tenant == name);
        Some(failover::TenantContext {
            name: name.to_owned(),
            allocation: tenant.public.clone(),
            nat_addresses: tenant.nat.clone(),
            reserved: Vec::new(),
            networks: networks
                .map(|n| failover::NetworkContext {
                    name: n.name.clone(),
                    prefixes: n.prefixes.clone(),
                    gateways: [n.gateway_v4, n.gateway_v6].into_iter().flatten().collect(),
                    excluded: false,
                })
                .collect(),
            other_networks: Vec::new(),
        })
    }

    /// The peer of that name.
    #[must_use]
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|p| p.name == name)
    }

    /// Addresses of the plain peers.
    pub fn plain_peers(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.peers.iter().filter_map(Peer::plain)
    }

    /// Every interface that XDP is attached to, with mode and program.
    #[must_use]
    pub fn ports(&self) -> BTreeMap<String, (xdp::Setting, Kind)> {
        let on: BTreeSet<&str> = self.networks.iter().map(|n| n.interface.as_str()).collect();
        let mut ports = BTreeMap::new();
        for name in &on {
            if *name == self.uplink.interface {
                continue;
            }
            let xdp = self.interfaces.get(*name).copied();
            let xdp = xdp.unwrap_or(xdp::Setting::Only(xdp::AttachMode::Native));
            ports.insert((*name).to_owned(), (xdp, Kind::Access));
        }
        let kind = if on.contains(self.uplink.interface.as_str()) {
            Kind::Combined
        } else {
            Kind::Uplink
        };
        ports.insert(self.uplink.interface.clone(), (self.uplink.xdp, kind));
        ports
    }
}

/// The program that an interface runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A tenant-only port.
    Access,
    /// The tunnels' port.
    Uplink,
    /// Both.
    Combined,
}

impl Kind {
    /// The program's name in the object.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Uplink => "uplink",
            Self::Combined => "combined",
        }
    }
}

#[cfg(test)]
mod tests;
