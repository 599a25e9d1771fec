//! Gateways, and the circuits by which peers are reached through them.

use std::{net::SocketAddr, path::PathBuf};

use gateway_client::{
    pool::{Access, List},
    wire::CircuitId,
};
use tunnel_worker::tls::{BadFingerprint, Fingerprint};

use super::{
    IpPrefix, Peer, PeerKind, Role, Uplink,
    check::{Checker, absolute, is_host},
    file,
};

/// A gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its name.
    pub name: String,
    /// Where it is, at most one of a family.
    pub addresses: Vec<SocketAddr>,
    /// The pool it is in.
    pub pool: Option<String>,
    /// How full it is, thousandths.
    pub load: u16,
}

/// The gateways that there are, and what this appliance may use of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateways {
    /// All of them.
    pub all: Vec<Gateway>,
    /// Of a tenant's appliance.
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
    /// Its id.
    pub id: CircuitId,
    /// The file that holds our side's key.
    pub key_file: PathBuf,
    /// What to do where UDP does not get through; `None`: nothing.
    pub tls: Option<Tls>,
}

/// Where tunnels over TLS arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrivals {
    /// The addresses.
    pub listen: Vec<SocketAddr>,
    /// Who may connect; empty: anybody.
    pub from: Vec<IpPrefix>,
    /// Whether every connection begins with a gateway's word on who connected there.
    pub proxy: bool,
}

/// A tunnel over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The server name by which a gateway knows where to bring it.
    pub name: String,
    /// Of the other end's certificate.
    pub fingerprint: Fingerprint,
}

pub(super) fn gateways(
    c: &mut Checker,
    access: Option<file::Gateways>,
    gateways: &[file::Gateway],
    uplink: &Uplink,
    role: Role,
) -> Gateways {
    c.unique("gateway", gateways.iter().map(|g| g.name.as_str()));
    let mut all: Vec<Gateway> = Vec::new();
    for gateway in gateways {
        c.name("gateway: name", &gateway.name);
        let at = |key: &str| format!("gateway {:?}: {key}", gateway.name);
        if let Some(pool) = &gateway.pool {
            c.name(&at("pool"), pool);
        }
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for text in &gateway.addresses {
            let Ok(address) = text.parse::<SocketAddr>() else {
                c.problem(
                    at("addresses"),
                    format!("{text:?} is not address:port, as \"192.0.2.1:6180\" or \"[2001:db8::1]:6180\""),
                );
                continue;
            };
            if address.port() == 0 {
                c.problem(at("addresses"), format!("{text:?}: a port is 1 to 65535"));
            }
            let ip = address.ip();
            if !is_host(ip) {
                c.problem(at("addresses"), format!("{ip} cannot be a gateway's"));
            }
            if uplink.local.contains(&ip) {
                c.problem(at("addresses"), format!("{ip} is this appliance's own"));
            }
            if addresses.iter().any(|a| a.is_ipv4() == address.is_ipv4()) {
                c.problem(
                    at("addresses"),
                    format!("{address}: one address of each family is the most; another one is another gateway"),
                );
            }
            if let Some(other) = all.iter().find(|g| g.addresses.contains(&address)) {
                c.problem(
                    at("addresses"),
                    format!("{address} is also gateway {:?}'s", other.name),
                );
            }
            addresses.push(address);
        }
        if gateway.addresses.is_empty() {
            c.problem(at("addresses"), "is missing: where the gateway is");
        }
        let reached = |a: &SocketAddr| uplink.local.iter().any(|l| l.is_ipv4() == a.is_ipv4());
        if !uplink.local.is_empty() && !addresses.is_empty() && !addresses.iter().any(reached) {
            c.problem(
                at("addresses"),
                "none is of a family that uplink.local has an address of",
            );
        }
        let load = gateway.load.unwrap_or(0);
        let checked = u16::try_from(load).ok().filter(|load| *load <= 1000);
        if checked.is_none() {
            c.problem(at("load"), format!("{load}: 0 to 1000 thousandths"));
        }
        all.push(Gateway {
            name: gateway.name.clone(),
            addresses,
            pool: gateway.pool.clone(),
            load: checked.unwrap_or(0),
        });
    }
    let mut checked = Access::default();
    if let Some(access) = access {
        if role == Role::Provider {
            c.problem(
                "gateways",
                "a provider's appliance is at every gateway; remove the section: the tenant's end chooses",
            );
        }
        for (place, pool) in access.pools.iter().enumerate() {
            if !all.iter().any(|g| g.pool.as_ref() == Some(pool)) {
                c.problem(
                    "gateways: pools",
                    format!("no [[gateway]] is in pool {pool:?}"),
                );
            }
            if access.pools[..place].contains(pool) {
                c.problem("gateways: pools", format!("{pool:?} is there twice"));
            }
        }
        checked = Access {
            pools: access.pools,
            unpooled: access.unpooled,
        };
    }
    Gateways {
        all,
        access: checked,
    }
}

/// The circuit of a peer whose own addresses are `addresses`.
pub(super) fn circuit(
    c: &mut Checker,
    peer: &file::Peer,
    addresses: &[SocketAddr],
    role: Role,
    others: &[Peer],
) -> Option<Circuit> {
    let at = |key: &str| format!("peer {:?}: {key}", peer.name);
    let Some(circuit) = &peer.circuit else {
        if peer.tls.is_some() {
            c.problem(
                at("tls"),
                "a tunnel over TLS goes through gateways: give the peer a circuit as well, or remove this",
            );
        }
        return None;
    };
    if !addresses.is_empty() {
        c.problem(
            at("circuit"),
            "a peer has addresses or a circuit, not both: remove one of the two",
        );
    }
    absolute(c, &at("circuit: key_file"), &circuit.key_file);
    let id = Some(&circuit.id)
        .filter(|id| id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|id| u64::from_str_radix(id, 16).ok())
        .and_then(CircuitId::new);
    let Some(id) = id else {
        c.problem(
            at("circuit: id"),
            format!(
                "{:?}: write 16 hexadecimal digits, of which the 5th to the 8th are not all 0, as the gateways have it",
                circuit.id
            ),
        );
        return None;
    };
    let has = |other: &&Peer| {
        let circuit = other.identity().and_then(|i| i.circuit.as_ref());
        circuit.is_some_and(|circuit| circuit.id == id)
    };
    if let Some(other) = others.iter().find(has) {
        c.problem(
            at("circuit: id"),
            format!("is also peer {:?}'s; each has its own", other.name),
        );
    }
    Some(Circuit {
        id,
        key_file: circuit.key_file.clone(),
        tls: peer
            .tls
            .as_ref()
            .and_then(|tls| peer_tls(c, &at, tls, role)),
    })
}

fn peer_tls(
    c: &mut Checker,
    at: &dyn Fn(&str) -> String,
    tls: &file::PeerTls,
    role: Role,
) -> Option<Tls> {
    if role == Role::Provider {
        c.problem(
            at("tls"),
            "the tenant's end opens tunnels over TLS; here write [tls] listen",
        );
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if tls.name.len() > 253 || !tls.name.split('.').all(label) {
        c.problem(at("tls: name"), format!("{:?} is not a DNS name", tls.name));
    }
    let fingerprint = match tls.fingerprint.parse() {
        Ok(fingerprint) => fingerprint,
        Err(error) => {
            let error: BadFingerprint = error;
            c.problem(at("tls: fingerprint"), error.to_string());
            return None;
        }
    };
    Some(Tls {
        name: tls.name.to_ascii_lowercase(),
        fingerprint,
    })
}

/// What only all of it together shows.
pub(super) fn together(c: &mut Checker, gateways: &Gateways, peers: &[Peer], role: Role) {
    let circuits = || {
        peers.iter().filter_map(|peer| match &peer.kind {
            PeerKind::Appliance(identity) => Some((peer, identity.circuit.as_ref()?)),
            _ => None,
        })
    };
    for (peer, _) in circuits() {
        if gateways.all.is_empty() {
            c.problem(
                format!("peer {:?}: circuit", peer.name),
                "there is no [[gateway]] to reach it by",
            );
        } else if role == Role::Tenant && gateways.list().candidates().is_empty() {
            c.problem(
                "gateways",
                "none of the [[gateway]] is open to this appliance: name a pool of theirs in pools, or write unpooled = true",
            );
            return;
        }
    }
}

/// Where tunnels over TLS arrive.
pub(super) fn arrivals(c: &mut Checker, tls: Option<&file::Tls>, role: Role) -> Option<Arrivals> {
    let tls = tls?;
    if role == Role::Tenant {
        c.problem(
            "tls",
            "tunnels over TLS arrive at the provider's end; here write tls for a peer",
        );
    }
    if tls.listen.is_empty() {
        c.problem(
            "tls: listen",
            "is empty: write address:port, or remove [tls]",
        );
    }
    let mut listen = Vec::new();
    for text in &tls.listen {
        match text.parse::<SocketAddr>() {
            Ok(address) if listen.contains(&address) => {
                c.problem("tls: listen", format!("{address} is there twice"));
            }
            Ok(address) if address.port() != 0 => listen.push(address),
            _ => c.problem(
                "tls: listen",
                format!("{text:?} is not address:port, as \"0.0.0.0:6443\""),
            ),
        }
    }
    let mut from: Vec<IpPrefix> = Vec::new();
    for text in &tls.from {
        let Some(net) = source(c, text) else { continue };
        match from.iter().find(|other| other.overlaps(&net)) {
            Some(other) => c.problem(
                "tls: from",
                format!("{net} and {other} overlap; keep the larger one"),
            ),
            None => from.push(net),
        }
    }
    // To [::] either family comes.
    let comes = |net: &IpPrefix| {
        let v4 = net.address().is_ipv4();
        let takes = |to: &SocketAddr| to.is_ipv4() == v4 || (v4 && to.ip().is_unspecified());
        listen.iter().any(takes)
    };
    if !from.is_empty() && !listen.is_empty() && !from.iter().any(comes) {
        c.problem(
            "tls: from",
            "nobody of these comes to any address of listen: they are of the other family",
        );
    }
    Some(Arrivals {
        listen,
        from,
        proxy: tls.proxy,
    })
}

/// An address, or a prefix of such, that a gateway connects from.
fn source(c: &mut Checker, text: &str) -> Option<IpPrefix> {
    match text.parse::<IpPrefix>() {
        Ok(net) if is_host(net.address()) || net.address().is_loopback() => Some(net),
        Ok(net) => {
            c.problem(
                "tls: from",
                format!("{net} cannot be a gateway's: leave from out to let anybody connect"),
            );
            None
        }
        Err(error) => {
            c.problem("tls: from", error.to_string());
            None
        }
    }
}
