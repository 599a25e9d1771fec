//! Checks single objects: one validator for the configuration file and the wire.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use gateway_client::{
    dial::{BadServiceAddress, ServiceAddress},
    wire::{CircuitId, Key},
};
use gateway_core::{
    hello,
    route::{Names, Route},
};
use service::config::Checker;

use crate::{
    checked::{Backend, Circuit, Tenant},
    objects::{BackendSpec, CircuitSpec, RouteSpec, TenantSpec},
};

/// Addresses of a backend at most: each one that does not answer costs a dial timeout.
const MAX_ADDRESSES: usize = 16;
/// Connections of a tenant at most: two open files each.
const MAX_CONNECTIONS: usize = 1 << 20;
/// Datagrams or bytes a second at most: 100 Gbit/s, and more than anything here sends.
const MAX_RATE: usize = 12_500_000_000;
/// Connections of a tenant that names no number.
const DEFAULT_CONNECTIONS: i64 = 1000;
/// Characters of a route's ID at most.
const MAX_ROUTE_ID: usize = 512;
/// Characters of a text in an error message at most.
const MAX_QUOTED: usize = 64;

/// The limits of the machine: its share of the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Circuits at most: `circuits.capacity`.
    pub circuits: usize,
    /// Tenants at most: `limits.tenants`.
    pub tenants: usize,
    /// Listen addresses: a backend there would be a loop.
    pub listen: Vec<SocketAddr>,
}

impl Bounds {
    /// Without bounds, for a state that was checked before.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            circuits: usize::MAX,
            tenants: usize::MAX,
            listen: Vec::new(),
        }
    }
}

/// Whether one connection could come to both addresses.
#[must_use]
pub fn covers(a: SocketAddr, b: SocketAddr) -> bool {
    let ips = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && ips
}

/// An address and a port of a machine.
pub fn address(c: &mut Checker, at: &str, text: &str) -> Option<SocketAddr> {
    let Ok(address) = text.parse::<SocketAddr>() else {
        c.problem(
            at,
            format!(
                "{text:?} is not an address and a port: write for example \"192.0.2.1:6180\" or \
                 \"[2001:db8::1]:6180\""
            ),
        );
        return None;
    };
    let canonical = address.ip().to_canonical();
    if canonical != address.ip() {
        c.problem(at, format!("{text:?}: write it as IPv4, {canonical}"));
        return None;
    }
    if canonical.is_multicast() || canonical == IpAddr::V4(Ipv4Addr::BROADCAST) {
        c.problem(at, format!("{text:?} is not the address of a machine"));
        return None;
    }
    Some(address)
}

pub(crate) fn tenant(c: &mut Checker, id: &str, spec: &TenantSpec) -> Tenant {
    let at = format!("tenant {:?}", shown(id));
    c.name(&format!("{at}: name"), id);
    let connections = spec.connections.unwrap_or(DEFAULT_CONNECTIONS);
    let connections = c.count(&format!("{at}: connections"), connections, MAX_CONNECTIONS);
    let mut rate = |key, value: Option<i64>| {
        value.map(|value| c.count(&format!("{at}: {key}"), value, MAX_RATE) as u64)
    };
    Tenant {
        connections: connections as u32,
        datagrams: rate("datagrams", spec.datagrams),
        bytes: rate("datagram_bytes", spec.datagram_bytes),
    }
}

/// Where a backend listens: an address and a port, or a DNS name and a port.
fn service_address(c: &mut Checker, at: &str, text: &str) -> Option<ServiceAddress> {
    let address = match text.parse() {
        Ok(ServiceAddress::Address(address)) => address,
        Ok(name @ ServiceAddress::Name(..)) => return Some(name),
        Err(error) => {
            let error: BadServiceAddress = error;
            c.problem(at, error.to_string());
            return None;
        }
    };
    let address = self::address(c, at, &address.to_string())?;
    if address.ip().is_unspecified() {
        c.problem(at, format!("{address} is not an address to connect to"));
    }
    Some(ServiceAddress::Address(address))
}

/// Refuses an address of the gateway itself.
pub(crate) fn loops(c: &mut Checker, id: &str, backend: &Backend, listen: &[SocketAddr]) {
    for service_address in &backend.addresses {
        let ServiceAddress::Address(address) = service_address else {
            continue;
        };
        let own =
            |l: &SocketAddr| l == address || (address.ip().is_loopback() && covers(*l, *address));
        if listen.iter().any(own) {
            c.problem(
                format!("backend {:?}: addresses", shown(id)),
                format!("{address} is an address of this gateway; connections would loop"),
            );
        }
    }
}

pub(crate) fn backend(c: &mut Checker, id: &str, spec: &BackendSpec) -> Backend {
    let at = format!("backend {:?}", shown(id));
    c.name(&format!("{at}: name"), id);
    let at = format!("{at}: addresses");
    let count = spec.addresses.len();
    if !(1..=MAX_ADDRESSES).contains(&count) {
        c.problem(
            &at,
            format!("{count} addresses: write 1 to {MAX_ADDRESSES}"),
        );
    }
    let mut addresses = Vec::new();
    for text in &spec.addresses {
        let Some(address) = service_address(c, &at, text) else {
            continue;
        };
        if addresses.contains(&address) {
            c.problem(&at, format!("{address} is listed twice"));
        }
        addresses.push(address);
    }
    Backend {
        addresses,
        proxy: spec.proxy,
    }
}

/// A server name as a TLS hello has it, in lower case.
fn dns_name(c: &mut Checker, at: &str, text: &str) -> Option<String> {
    match hello::dns_name(text.as_bytes()) {
        Ok(name) => Some(name),
        Err(_) => {
            c.problem(
                at,
                format!(
                    "{text:?} is not a DNS name: labels of a-z, 0-9, - and _ with dots between \
                     them, no final dot, no IP address; for all subdomains write below = \
                     \"example.net\" without a star"
                ),
            );
            None
        }
    }
}

pub(crate) fn route(c: &mut Checker, id: &str, spec: &RouteSpec) -> Option<Route> {
    let at = format!("route {:?}", shown(id));
    let fits =
        (1..=MAX_ROUTE_ID).contains(&id.len()) && id.bytes().all(|b| (b' '..=b'~').contains(&b));
    if !fits {
        c.problem(
            &at,
            format!("an ID has 1 to {MAX_ROUTE_ID} printable characters of ASCII"),
        );
    }
    let names = match (&spec.name, &spec.below) {
        (Some(name), None) => dns_name(c, &format!("{at}: name"), name).map(Names::Exact),
        (None, Some(name)) => dns_name(c, &format!("{at}: below"), name).map(Names::Below),
        _ => {
            c.problem(
                &at,
                "write either name, for one server name, or below, for all its subdomains",
            );
            None
        }
    };
    let mut seen = HashSet::new();
    for protocol in &spec.protocols {
        if !(1..=255).contains(&protocol.len()) {
            c.problem(
                format!("{at}: protocols"),
                format!("{protocol:?}: a protocol has 1 to 255 bytes (RFC 7301)"),
            );
        }
        if !seen.insert(protocol) {
            c.problem(
                format!("{at}: protocols"),
                format!("{protocol:?} is listed twice"),
            );
        }
    }
    let protocols = spec.protocols.iter().map(|p| p.as_bytes().to_vec());
    Some(Route {
        names: names?,
        protocols: protocols.collect(),
        tenant: spec.tenant.as_deref().map(Arc::from),
        backend: spec.backend.as_str().into(),
    })
}

pub(crate) fn circuit_id(text: &str) -> Option<CircuitId> {
    let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let id = u64::from_str_radix(text, 16).ok();
    id.filter(|_| digits).and_then(CircuitId::new)
}

/// The tenant is that of the model, so that its name is kept once.
pub(crate) fn circuit(
    c: &mut Checker,
    id: &str,
    spec: &CircuitSpec,
    tenant: Arc<str>,
) -> Option<(CircuitId, Circuit)> {
    let at = format!("circuit {:?}", shown(id));
    let number = circuit_id(id);
    if number.is_none() {
        c.problem(
            format!("{at}: id"),
            "write 16 hexadecimal digits, of which the 5th to the 8th are not all 0",
        );
    }
    let at = format!("{at}: keys");
    if spec.keys.len() != 2 {
        c.problem(
            &at,
            format!("{} keys: write one for each side", spec.keys.len()),
        );
    }
    let mut keys = Vec::new();
    for (n, text) in (1..).zip(&spec.keys) {
        let key = Key::from_base64(text.expose());
        if key.is_none() {
            // A message never contains a key.
            c.problem(
                &at,
                format!(
                    "key {n} is not 32 bytes in base64: write what `causeway-gateway circuit-key \
                     --gateway NAME FILE` prints for the key of the end"
                ),
            );
        }
        keys.extend(key);
    }
    let keys: [Key; 2] = keys.try_into().ok()?;
    Some((number?, Circuit { tenant, keys }))
}

/// An ID in a message, so that a long one does not fill the log.
pub(crate) fn shown(id: &str) -> &str {
    let end = id
        .char_indices()
        .nth(MAX_QUOTED)
        .map_or(id.len(), |(at, _)| at);
    &id[..end]
}
