//! The configuration file: read, checked whole, and only then believed.

mod check;
mod file;
mod gateways;
mod nat;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use appliance_common::addr::{Address, Prefix, from_ip};
use service::config;
use tunnel::{CipherChoice, PublicKey};
use tunnel_worker::WaitMode;

pub use failover::IpPrefix;
pub use gateways::{Arrivals, Circuit, Gateway, Gateways, Tls};
pub use nat::{Nat, PortsInUse};
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

/// How XDP is to be attached. Nothing degrades by itself: `auto` is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xdp {
    /// In the driver, or not at all.
    Native,
    /// In the kernel's generic hook.
    Generic,
    /// In the driver where it can, else generic, which is then logged and shown.
    Auto,
}

impl Xdp {
    /// As written in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Auto => "auto",
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

/// The tunnels' side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its interface.
    pub interface: String,
    /// How XDP is attached there.
    pub xdp: Xdp,
    /// Our tunnel addresses, at most one of a family; empty: the interface's first ones.
    pub local: Vec<IpAddr>,
    /// UDP port of the plain tunnels at both ends.
    pub port: u16,
    /// Path MTU to the peers, bytes; `None`: the interface's.
    pub mtu: Option<u16>,
}

/// This end of the encrypted tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The file that holds our private key.
    pub private_key_file: PathBuf,
    /// UDP port of the encrypted tunnels, all of them.
    pub port: u16,
    /// Cipher for sending.
    pub cipher: CipherChoice,
    /// Threads that carry packets, at least 1.
    pub workers: u32,
    /// The CPU of each worker, in turn; empty: the kernel's choice.
    pub cpus: Vec<usize>,
    /// How workers wait.
    pub waiting: WaitMode,
    /// How AF_XDP shares memory with the driver.
    pub memory: Memory,
}

/// How AF_XDP shares memory with the driver. Nothing degrades by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The kernel copies each frame; every driver can.
    Copy,
    /// The driver writes into our memory, or it is an error.
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

    /// As the sockets want it.
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
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: PeerKind,
}

/// What a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// A plain VXLAN end at this address.
    Vxlan(IpAddr),
    /// Another appliance, encrypted.
    Appliance(Identity),
    /// Any WireGuard, in one network, with the addresses that it may have there.
    WireGuard {
        /// Who it is.
        identity: Identity,
        /// The network's name.
        network: String,
        /// Its addresses.
        allowed: Vec<IpPrefix>,
        /// A keep-alive this often, if at all.
        keepalive: Option<Duration>,
    },
}

/// Who a peer of an encrypted tunnel is, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its public key.
    pub public_key: PublicKey,
    /// The file of a secret shared beside the keys.
    pub preshared_key_file: Option<PathBuf>,
    /// Where to dial, in order; empty: it dials us, or there is a circuit.
    pub addresses: Vec<SocketAddr>,
    /// The circuit by which it is reached through gateways, instead.
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
    /// Its name.
    pub name: String,
    /// Its tenant's name.
    pub tenant: String,
    /// Its peer's name.
    pub peer: String,
    /// Its VNI.
    pub vni: u32,
    /// The interface its port is on.
    pub interface: String,
    /// The port's tags.
    pub vlan: Vlan,
    /// Its prefixes.
    pub prefixes: Vec<IpPrefix>,
    /// Its IPv4 router.
    pub gateway_v4: Option<IpAddr>,
    /// Its IPv6 router.
    pub gateway_v6: Option<IpAddr>,
    /// Largest IP packet, bytes; `None`: what the path leaves.
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

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Its public addresses.
    pub public: Vec<IpPrefix>,
    /// What its networks with internet are seen as, at most one of a family; of a family without: as the uplink's
    /// own address.
    pub nat: Vec<IpAddr>,
}

/// A configuration that holds together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The appliance's name.
    pub name: String,
    /// Its side.
    pub role: Role,
    /// Where `state.json` is kept.
    pub state_dir: PathBuf,
    /// Where maps and links are pinned, a bpffs directory.
    pub pin_dir: PathBuf,
    /// The control socket.
    pub control_socket: PathBuf,
    /// The programs; `None`: the environment's or the packaged ones.
    pub bpf_object: Option<PathBuf>,
    /// The tunnels' side.
    pub uplink: Uplink,
    /// The encrypted tunnels' end; there is one where there are encrypted peers.
    pub tunnel: Option<Tunnel>,
    /// How XDP is attached on further interfaces.
    pub interfaces: BTreeMap<String, Xdp>,
    /// The gateways, and which of them this appliance may use.
    pub gateways: Gateways,
    /// Where tunnels over TLS arrive, if they do. A provider's appliance has such.
    pub tls: Option<Arrivals>,
    /// Address translation of full failover.
    pub nat: Nat,
    /// Tenants.
    pub tenants: Vec<Tenant>,
    /// Peers.
    pub peers: Vec<Peer>,
    /// Networks.
    pub networks: Vec<Network>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, or anything in it is wrong.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = config::read(path)?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// When anything in it is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        config::parse(text, path, check::check)
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

    /// The tenant of that name as failover plans are checked against it; what is taken by others is not known here:
    /// [`reconcile::plan_tenant`](crate::datapath::reconcile::plan_tenant) adds it.
    #[must_use]
    pub fn tenant_of(&self, name: &str) -> Option<failover::TenantContext> {
        let mut tenant = self.tenant_alone(name)?;
        let others = self.networks.iter().filter(|n| n.tenant != name);
        tenant.other_networks = others.map(|n| n.name.clone()).collect();
        Some(tenant)
    }

    /// The same without the names of others' networks.
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

    /// Every interface that XDP is attached to, and how.
    #[must_use]
    pub fn ports(&self) -> BTreeMap<String, (Xdp, Kind)> {
        let on: BTreeSet<&str> = self.networks.iter().map(|n| n.interface.as_str()).collect();
        let mut ports = BTreeMap::new();
        for name in &on {
            if *name == self.uplink.interface {
                continue;
            }
            let xdp = self.interfaces.get(*name).copied().unwrap_or(Xdp::Native);
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

/// Which program an interface runs.
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
