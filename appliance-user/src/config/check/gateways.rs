//! The sections `[gateways]`, `[[gateway]]` and `[tls]`, and the circuits of peers.

use std::{net::SocketAddr, path::PathBuf};

use gateway_client::{
    dial::{BadServiceAddress, MAX_ADDRESSES, ServiceAddress},
    pool::Access,
    wire::CircuitId,
};
use service::config::Checker;
use tunnel_worker::tls::{BadFingerprint, Fingerprint};

use super::{absolute, is_host};
use crate::config::{
    Circuit, Gateway, Gateways, IpPrefix, KeySource, KeyText, Peer, PeerKind, Role, Tls, TlsListen,
    Uplink, file,
};

/// The gateways, and those that this appliance may use.
pub(super) fn check(
    c: &mut Checker,
    (access, is_whole): (Option<file::Gateways>, bool),
    gateways: &[file::Gateway],
    uplink: &Uplink,
    role: Role,
) -> Gateways {
    c.unique("gateway", gateways.iter().map(|g| g.name.as_str()));
    let mut all: Vec<Gateway> = Vec::new();
    for gateway in gateways {
        c.name("gateway.name", &gateway.name);
        let at = |key: &str| format!("gateway {:?}: {key}", gateway.name);
        if let Some(pool) = &gateway.pool {
            c.name(&at("pool"), pool);
        }
        let addresses = addresses(c, gateway, &all, uplink);
        let load = gateway.load.unwrap_or(0);
        let checked = u16::try_from(load).ok().filter(|load| *load <= 1000);
        if checked.is_none() {
            c.problem(at("load"), format!("{load}: write 0 to 1000 thousandths"));
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
                "a provider's appliance uses every gateway, and the tenant's end chooses: remove \
                 the section",
            );
        }
        for (place, pool) in access.pools.iter().enumerate() {
            if is_whole && !all.iter().any(|g| g.pool.as_ref() == Some(pool)) {
                c.problem(
                    "gateways.pools",
                    format!("no [[gateway]] is in pool {pool:?}"),
                );
            }
            if access.pools[..place].contains(pool) {
                c.problem("gateways.pools", format!("{pool:?} is listed twice"));
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

/// The addresses and names of a gateway; `others` are those before it.
fn addresses(
    c: &mut Checker,
    gateway: &file::Gateway,
    others: &[Gateway],
    uplink: &Uplink,
) -> Vec<ServiceAddress> {
    let at = format!("gateway {:?}: addresses", gateway.name);
    let mut addresses: Vec<ServiceAddress> = Vec::new();
    for text in &gateway.addresses {
        let address: ServiceAddress = match text.parse() {
            Ok(address) => address,
            Err(error) => {
                let error: BadServiceAddress = error;
                c.problem(&at, error.to_string());
                continue;
            }
        };
        if let ServiceAddress::Address(socket) = &address {
            let ip = socket.ip();
            if !is_host(ip) {
                c.problem(&at, format!("{ip} cannot be the address of a gateway"));
            }
            if uplink.local.contains(&ip) {
                c.problem(&at, format!("{ip} is this appliance's own"));
            }
        }
        if addresses.contains(&address) {
            c.problem(&at, format!("{address} is listed twice"));
        }
        if let Some(other) = others.iter().find(|g| g.addresses.contains(&address)) {
            c.problem(&at, format!("{address} is also gateway {:?}'s", other.name));
        }
        addresses.push(address);
    }
    let count = gateway.addresses.len();
    if count == 0 {
        c.problem(
            &at,
            "is missing: write the address or DNS name of the gateway, with its port",
        );
    }
    if count > MAX_ADDRESSES {
        c.problem(
            &at,
            format!("{count} addresses: write {MAX_ADDRESSES} at most"),
        );
    }
    // The families of a name are known when it is looked up.
    let reached = |address: &ServiceAddress| match address {
        ServiceAddress::Address(a) => uplink.local.iter().any(|l| l.is_ipv4() == a.is_ipv4()),
        ServiceAddress::Name(..) => true,
    };
    if !uplink.local.is_empty() && !addresses.is_empty() && !addresses.iter().any(reached) {
        c.problem(
            &at,
            "uplink.local has no address of the same family as any of these",
        );
    }
    addresses
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
                "a tunnel over TLS goes through gateways: give the peer a circuit as well, or \
                 remove tls",
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
    let key = key_source(
        c,
        &|key| at(&format!("circuit.{key}")),
        ("key_file", circuit.key_file.as_ref()),
        ("key", circuit.key.as_ref()),
    );
    if circuit.key_file.is_none() && circuit.key.is_none() {
        c.problem(
            at("circuit.key_file"),
            "is missing: write the file that holds our side's key",
        );
    }
    let id = Some(&circuit.id)
        .filter(|id| id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|id| u64::from_str_radix(id, 16).ok())
        .and_then(CircuitId::new);
    let Some(id) = id else {
        c.problem(
            at("circuit.id"),
            format!(
                "{:?}: write the id that the gateways have: 16 hexadecimal digits, of which the \
                 5th to the 8th are not all 0",
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
            at("circuit.id"),
            format!(
                "is also the id of peer {:?}; give each peer its own",
                other.name
            ),
        );
    }
    Some(Circuit {
        id,
        key: key?,
        tls: peer
            .tls
            .as_ref()
            .and_then(|tls| peer_tls(c, &at, tls, role)),
    })
}

/// The key of a file or of the update itself, if it has one of both.
pub(super) fn key_source(
    c: &mut Checker,
    at: &dyn Fn(&str) -> String,
    (file_key, file): (&str, Option<&PathBuf>),
    (given_key, given): (&str, Option<&KeyText>),
) -> Option<KeySource> {
    if let Some(path) = file {
        absolute(c, &at(file_key), path);
    }
    if let Some(problem) = given.and_then(KeyText::problem) {
        c.problem(at(given_key), problem);
    }
    match (file, given) {
        (Some(_), Some(_)) => {
            c.problem(at(given_key), format!("write it or {file_key}, not both"));
            None
        }
        (Some(path), None) => Some(KeySource::File(path.clone())),
        (None, Some(text)) => Some(KeySource::Given(text.clone())),
        (None, None) => None,
    }
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
            "the tenant's end opens tunnels over TLS; on the provider's side write [tls] listen",
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
        c.problem(at("tls.name"), format!("{:?} is not a DNS name", tls.name));
    }
    let fingerprints: Result<Vec<Fingerprint>, BadFingerprint> = tls
        .fingerprint
        .as_slice()
        .iter()
        .map(|f| f.parse())
        .collect();
    let fingerprints = match fingerprints {
        Ok(fingerprints) => fingerprints,
        Err(error) => {
            c.problem(at("tls.fingerprint"), error.to_string());
            return None;
        }
    };
    if fingerprints.is_empty() {
        c.problem(
            at("tls.fingerprint"),
            "the list is empty: write the fingerprint that `status` prints at the provider",
        );
        return None;
    }
    Some(Tls {
        name: tls.name.to_ascii_lowercase(),
        fingerprints,
    })
}

/// Checks that need gateways, peers and role together.
pub(super) fn across_sections(c: &mut Checker, gateways: &Gateways, peers: &[Peer], role: Role) {
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
                "there is no [[gateway]] through which to reach it",
            );
        } else if role == Role::Tenant && gateways.list().candidates().is_empty() {
            c.problem(
                "gateways",
                "this appliance may use no [[gateway]]: list one of their pools in pools, or write \
                 unpooled = true",
            );
            return;
        }
    }
}

/// The listener for tunnels over TLS.
pub(super) fn tls_listen(
    c: &mut Checker,
    tls: Option<&file::Tls>,
    role: Role,
) -> Option<TlsListen> {
    let tls = tls?;
    if role == Role::Tenant {
        c.problem(
            "tls",
            "only the provider's end listens for tunnels over TLS; on the tenant's side write tls \
             for a peer",
        );
    }
    if tls.listen.is_empty() {
        c.problem(
            "tls.listen",
            "is empty: write address:port, or remove [tls]",
        );
    }
    let mut listen = Vec::new();
    for text in &tls.listen {
        match text.parse::<SocketAddr>() {
            Ok(address) if listen.contains(&address) => {
                c.problem("tls.listen", format!("{address} is listed twice"));
            }
            Ok(address) if address.port() != 0 => listen.push(address),
            _ => c.problem(
                "tls.listen",
                format!("{text:?} is not address:port, as \"0.0.0.0:6443\""),
            ),
        }
    }
    let mut from: Vec<IpPrefix> = Vec::new();
    for text in &tls.from {
        let Some(net) = source(c, text) else { continue };
        match from.iter().find(|other| other.overlaps(&net)) {
            Some(other) => c.problem(
                "tls.from",
                format!("{net} and {other} overlap; keep the larger one"),
            ),
            None => from.push(net),
        }
    }
    // [::] accepts both families.
    let may_connect = |net: &IpPrefix| {
        let v4 = net.address().is_ipv4();
        let accepts = |to: &SocketAddr| to.is_ipv4() == v4 || (v4 && to.ip().is_unspecified());
        listen.iter().any(accepts)
    };
    if !from.is_empty() && !listen.is_empty() && !from.iter().any(may_connect) {
        c.problem(
            "tls.from",
            "tls.from and tls.listen share no address family",
        );
    }
    Some(TlsListen {
        listen,
        from,
        proxy: tls.proxy,
    })
}

/// An address or a prefix that gateways connect from.
fn source(c: &mut Checker, text: &str) -> Option<IpPrefix> {
    match text.parse::<IpPrefix>() {
        Ok(net) if is_host(net.address()) || net.address().is_loopback() => Some(net),
        Ok(net) => {
            c.problem(
                "tls.from",
                format!(
                    "{net} cannot be the source of a gateway: omit tls.from to accept all sources"
                ),
            );
            None
        }
        Err(error) => {
            c.problem("tls.from", error.to_string());
            None
        }
    }
}
