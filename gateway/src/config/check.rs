//! Checks a file as a whole and collects every problem.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use gateway_client::wire::{CircuitId, Key};

use service::{
    config::{Checker, Range},
    xdp::Setting,
};

use super::{Circuits, Config, Problem, Target, file};
use gateway_core::hello;

use crate::{
    circuit::table::CircuitPlan,
    relay::{
        Endpoint, Prefix, Times,
        route::{Names, Route, Table},
    },
};

/// The default port.
const PORT: u16 = 6180;
/// Addresses of a backend at most: each one that does not answer costs a dial timeout.
const MAX_ADDRESSES: usize = 16;
/// Connections at most: two open files each.
const MAX_CONNECTIONS: usize = 1 << 20;

/// Threads for circuits at most.
const MAX_THREADS: usize = 64;
/// Circuits at most: 300 bytes each in every thread.
const MAX_CIRCUITS: usize = 100_000;
/// Interfaces with the XDP program at most: `MAX_PORTS`, with some VLANs on each.
const MAX_INTERFACES: usize = 32;
/// Datagrams or bytes a second at most: 100 Gbit/s, and more than anything here sends.
const MAX_RATE: usize = 12_500_000_000;

/// An address and a port of a machine.
fn address(c: &mut Checker, at: &str, text: &str) -> Option<SocketAddr> {
    let Ok(address) = text.parse::<SocketAddr>() else {
        c.problem(
            at,
            format!(
                "{text:?} is not an address and a port: write for example \"192.0.2.1:{PORT}\" or \
                 \"[2001:db8::1]:{PORT}\""
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

/// A number of seconds, with the least, the most and the default.
fn seconds(
    c: &mut Checker,
    at: &str,
    value: Option<f64>,
    (least, most, default): (f64, f64, f64),
) -> Duration {
    let range = Range {
        least,
        most,
        default,
    };
    c.seconds(at, value, range)
}

/// The configuration of a file, or every problem of it.
pub(super) fn check(file: file::File) -> Result<Config, Vec<Problem>> {
    let mut c = Checker::new();
    let gateway = file.gateway;
    c.name("gateway.name", &gateway.name);
    let default_listen = gateway.listen.is_none();
    let listen = listen(&mut c, gateway.listen);
    let control_socket = c.control_socket(
        "gateway.control_socket",
        gateway.control_socket,
        "/run/causeway-gateway/gateway.sock",
    );
    let metrics = metrics(&mut c, gateway.metrics.as_deref(), &listen);
    let drain = seconds(
        &mut c,
        "gateway.drain",
        gateway.drain,
        (0.0, 86_400.0, 30.0),
    );
    let relay = file.relay;
    let times = Times {
        hello: seconds(
            &mut c,
            "relay.hello_timeout",
            relay.hello_timeout,
            (0.1, 60.0, 5.0),
        ),
        dial: seconds(
            &mut c,
            "relay.dial_timeout",
            relay.dial_timeout,
            (0.1, 60.0, 3.0),
        ),
        idle: seconds(
            &mut c,
            "relay.idle_timeout",
            relay.idle_timeout,
            (1.0, 604_800.0, 600.0),
        ),
        trial: seconds(
            &mut c,
            "relay.trial_time",
            relay.trial_time,
            (0.1, 600.0, 10.0),
        ),
    };
    let proxy_from = proxy_from(&mut c, relay.proxy_from);
    let access_log = relay
        .access_log
        .map(|path| c.absolute("relay.access_log", Some(path), ""));
    let ways = [("splice", true), ("copy", false)];
    let spliced = c.choice("relay.way", relay.way.as_deref(), &ways);
    let limits = file.limits;
    let connections = limits
        .connections
        .map(|value| c.count("limits.connections", value, MAX_CONNECTIONS));
    let per_source = limits.per_source.unwrap_or(256);
    let per_source = c.count("limits.per_source", per_source, MAX_CONNECTIONS) as u32;
    let tenants = tenants(&mut c, &file.tenant);
    let backends = backends(&mut c, &file.backend, &listen);
    if file.route.is_empty() && file.circuit.is_empty() {
        c.problem(
            "route",
            "there is no route and no circuit, so the gateway would refuse everything: write \
             [[route]] with name or below, and backend; or write [[circuit]]",
        );
    }
    let table = routes(&mut c, file.route, &tenants, &backends);
    let circuits = circuits(&mut c, &file.circuits, &file.tenant, &file.circuit);
    c.finish(Config {
        name: gateway.name,
        listen,
        default_listen,
        control_socket,
        metrics,
        drain,
        times,
        proxy_from,
        access_log,
        spliced,
        connections,
        per_source,
        tenants,
        backends,
        table,
        circuits,
    })
}

fn listen(c: &mut Checker, texts: Option<Vec<String>>) -> Vec<SocketAddr> {
    let at = "gateway.listen";
    let Some(texts) = texts else {
        return vec![
            (Ipv4Addr::UNSPECIFIED, PORT).into(),
            (Ipv6Addr::UNSPECIFIED, PORT).into(),
        ];
    };
    if texts.is_empty() {
        c.problem(
            at,
            format!(
                "an empty list: write an address, or leave the key out for port {PORT} of every \
                 address"
            ),
        );
    }
    let mut out: Vec<SocketAddr> = Vec::new();
    for text in texts {
        let Some(address) = address(c, at, &text) else {
            continue;
        };
        if let Some(other) = out.iter().find(|other| covers(**other, address)) {
            c.problem(
                at,
                format!("{address} and {other} accept the same connections; remove one"),
            );
        }
        out.push(address);
    }
    out
}

/// Whether one connection could come to both.
fn covers(a: SocketAddr, b: SocketAddr) -> bool {
    let ips = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && ips
}

fn proxy_from(c: &mut Checker, texts: Option<Vec<String>>) -> Vec<Prefix> {
    let mut out = Vec::new();
    for text in texts.into_iter().flatten() {
        match text.parse() {
            Ok(prefix) => out.push(prefix),
            Err(error) => c.problem("relay.proxy_from", format!("{text:?}: {error}")),
        }
    }
    out
}

/// Where a backend listens: an address and a port, or a DNS name and a port.
fn endpoint(c: &mut Checker, at: &str, text: &str, listen: &[SocketAddr]) -> Option<Endpoint> {
    let named = text.rsplit_once(':').and_then(|(name, port)| {
        let name = hello::dns_name(name.as_bytes()).ok()?;
        let port: u16 = port.parse().ok()?;
        Some((name, port))
    });
    if text.parse::<SocketAddr>().is_err()
        && let Some((name, port)) = named
    {
        if port == 0 {
            c.problem(at, format!("{text:?}: a port is 1 to 65535"));
        }
        return Some(Endpoint::Name(name.into(), port));
    }
    let Ok(address) = text.parse::<SocketAddr>() else {
        c.problem(
            at,
            format!(
                "{text:?} is neither an address nor a name with a port: write for example \
                 \"192.0.2.1:{PORT}\", \"[2001:db8::1]:{PORT}\" or \"backend.example.net:{PORT}\""
            ),
        );
        return None;
    };
    let address = self::address(c, at, &address.to_string())?;
    if address.port() == 0 || address.ip().is_unspecified() {
        c.problem(at, format!("{address} is not an address to connect to"));
    }
    let own = |l: &SocketAddr| *l == address || (address.ip().is_loopback() && covers(*l, address));
    if listen.iter().any(own) {
        c.problem(
            at,
            format!("{address} is an address of this gateway; connections would loop"),
        );
    }
    Some(Endpoint::Address(address))
}

fn metrics(c: &mut Checker, text: Option<&str>, listen: &[SocketAddr]) -> Option<SocketAddr> {
    let at = "gateway.metrics";
    let address = address(c, at, text?)?;
    if !address.ip().is_loopback() {
        c.problem(
            at,
            format!(
                "{address} is open to other machines, and metrics name tenants: write a loopback \
                 address"
            ),
        );
    }
    if listen.iter().any(|other| covers(*other, address)) {
        c.problem(
            at,
            format!("{address} is an address of gateway.listen; write another port"),
        );
    }
    Some(address)
}

fn tenants(c: &mut Checker, tenants: &[file::Tenant]) -> Vec<(Arc<str>, u32)> {
    let mut out: Vec<(Arc<str>, u32)> = Vec::new();
    let mut names = HashSet::new();
    for tenant in tenants {
        let at = format!("tenant {:?}", tenant.name);
        c.name(&format!("{at}: name"), &tenant.name);
        if !names.insert(&*tenant.name) {
            c.problem(&at, "is defined twice");
        }
        let connections = tenant.connections.unwrap_or(1000);
        let limit = c.count(&format!("{at}: connections"), connections, MAX_CONNECTIONS);
        out.push((tenant.name.as_str().into(), limit as u32));
    }
    out
}

fn backends(c: &mut Checker, backends: &[file::Backend], listen: &[SocketAddr]) -> Vec<Target> {
    let mut out: Vec<Target> = Vec::new();
    for backend in backends {
        let at = format!("backend {:?}", backend.name);
        c.name(&format!("{at}: name"), &backend.name);
        if out.iter().any(|other| *other.name == *backend.name) {
            c.problem(&at, "is defined twice; write all its addresses in one list");
        }
        let at = format!("{at}: addresses");
        if !(1..=MAX_ADDRESSES).contains(&backend.addresses.len()) {
            c.problem(
                &at,
                format!(
                    "{} addresses: write 1 to {MAX_ADDRESSES}",
                    backend.addresses.len()
                ),
            );
        }
        let mut addresses = Vec::new();
        for text in &backend.addresses {
            let Some(address) = endpoint(c, &at, text, listen) else {
                continue;
            };
            if addresses.contains(&address) {
                c.problem(&at, format!("{address} is listed twice"));
            }
            addresses.push(address);
        }
        out.push(Target {
            name: backend.name.as_str().into(),
            addresses,
            proxy: backend.proxy,
        });
    }
    out
}

fn routes(
    c: &mut Checker,
    routes: Vec<file::Route>,
    tenants: &[(Arc<str>, u32)],
    backends: &[Target],
) -> Table {
    let mut out = Vec::new();
    let tenants: HashMap<&str, &Arc<str>> = tenants.iter().map(|(n, _)| (&**n, n)).collect();
    let backends: HashSet<&str> = backends.iter().map(|backend| &*backend.name).collect();
    for route in routes {
        let written = match (route.name, route.below) {
            (Some(name), None) => {
                dns_name(c, &format!("route {name:?}: name"), &name).map(Names::Exact)
            }
            (None, Some(name)) => {
                dns_name(c, &format!("route below {name:?}: below"), &name).map(Names::Below)
            }
            (name, _) => {
                c.problem(
                    format!("route {:?}", name.unwrap_or_default()),
                    "write either name, for one server name, or below, for all its subdomains",
                );
                None
            }
        };
        // Other problems of the route are listed as well.
        let at = match &written {
            Some(names) => format!("route {:?}", names.to_string()),
            None => "route".to_owned(),
        };
        for (n, protocol) in route.protocols.iter().enumerate() {
            if !(1..=255).contains(&protocol.len()) {
                c.problem(
                    format!("{at}: protocols"),
                    format!("{protocol:?}: a protocol has 1 to 255 bytes (RFC 7301)"),
                );
            }
            if route.protocols[..n].contains(protocol) {
                c.problem(
                    format!("{at}: protocols"),
                    format!("{protocol:?} is listed twice"),
                );
            }
        }
        let tenant = route.tenant.map(|tenant| {
            let known = tenants.get(&*tenant);
            if known.is_none() {
                c.problem(
                    format!("{at}: tenant"),
                    format!("there is no tenant {tenant:?}; write [[tenant]] with that name"),
                );
            }
            known.map_or_else(|| tenant.as_str().into(), |name| Arc::clone(name))
        });
        if !backends.contains(&*route.backend) {
            c.problem(
                format!("{at}: backend"),
                format!(
                    "there is no backend {:?}; write [[backend]] with that name",
                    route.backend
                ),
            );
        }
        if let Some(names) = written {
            out.push(Route {
                names,
                protocols: route
                    .protocols
                    .into_iter()
                    .map(String::into_bytes)
                    .collect(),
                tenant,
                backend: route.backend.as_str().into(),
            });
        }
    }
    let named: Vec<Names> = out.iter().map(|route| route.names.clone()).collect();
    Table::new(out).unwrap_or_else(|conflicts| {
        for conflict in conflicts {
            c.problem(
                format!("route {:?}", named[conflict.second].to_string()),
                format!(
                    "route {} of the file matches the same hellos; remove one, or give them \
                     different protocols",
                    conflict.first + 1
                ),
            );
        }
        Table::default()
    })
}

fn circuits(
    c: &mut Checker,
    settings: &file::Circuits,
    tenants: &[file::Tenant],
    circuits: &[file::Circuit],
) -> Circuits {
    let lifetime = seconds(
        c,
        "circuits.lifetime",
        settings.lifetime,
        (0.5, 3600.0, 30.0),
    );
    let threads = settings
        .threads
        .map(|threads| c.count("circuits.threads", threads, MAX_THREADS));
    let capacity = settings
        .capacity
        .map(|capacity| c.count("circuits.capacity", capacity, MAX_CIRCUITS));
    let [native, generic, auto] = Setting::ALL.map(|setting| (setting.name(), Some(setting)));
    let choices = [auto, native, generic, ("off", None)];
    let xdp = c.choice("circuits.xdp", settings.xdp.as_deref(), &choices);
    if let Some(interfaces) = &settings.interfaces {
        self::interfaces(c, interfaces, xdp);
    }
    let rates = tenants.iter().map(|tenant| {
        let mut rate = |key, value: Option<i64>| {
            let at = format!("tenant {:?}: {key}", tenant.name);
            value.map(|value| c.count(&at, value, MAX_RATE) as u64)
        };
        (
            rate("datagrams", tenant.datagrams),
            rate("datagram_bytes", tenant.datagram_bytes),
        )
    });
    let rates = rates.collect();
    if circuits.len() > MAX_CIRCUITS {
        c.problem(
            "circuit",
            format!("{} circuits: write {MAX_CIRCUITS} at most", circuits.len()),
        );
    }
    let mut list: Vec<CircuitPlan> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (place, tenant) in tenants.iter().enumerate() {
        places.entry(&tenant.name).or_insert(place);
    }
    let (mut ids, mut keys) = (HashSet::new(), HashSet::new());
    for circuit in circuits {
        let at = format!("circuit {:?}", circuit.id);
        let digits = circuit.id.len() == 16 && circuit.id.bytes().all(|b| b.is_ascii_hexdigit());
        let id = u64::from_str_radix(&circuit.id, 16).ok();
        let id = id.filter(|_| digits).and_then(CircuitId::new);
        if id.is_none() {
            c.problem(
                format!("{at}: id"),
                "write 16 hexadecimal digits, of which the 5th to the 8th are not all 0",
            );
        }
        if id.is_some_and(|id| !ids.insert(id)) {
            c.problem(&at, "is defined twice");
        }
        let tenant = places.get(&*circuit.tenant).copied();
        if tenant.is_none() {
            c.problem(
                format!("{at}: tenant"),
                format!(
                    "there is no tenant {:?}; write [[tenant]] with that name",
                    circuit.tenant
                ),
            );
        }
        let at = format!("{at}: keys");
        if circuit.keys.len() != 2 {
            c.problem(
                &at,
                format!("{} keys: write one for each side", circuit.keys.len()),
            );
        }
        for (n, text) in circuit.keys.iter().enumerate() {
            // A message never contains a key.
            if Key::from_base64(text).is_none() {
                c.problem(
                    &at,
                    format!(
                        "key {} is not 32 bytes in base64: write what `causeway-gateway \
                         circuit-key --gateway NAME FILE` prints for the key of the end",
                        n + 1
                    ),
                );
            } else if !keys.insert(text) {
                c.problem(
                    &at,
                    format!(
                        "key {} is used twice: each side of each circuit needs its own",
                        n + 1
                    ),
                );
            }
        }
        let read: Vec<Key> = circuit
            .keys
            .iter()
            .filter_map(|k| Key::from_base64(k))
            .collect();
        if let (Some(id), Some(tenant), Ok(keys)) = (id, tenant, read.try_into()) {
            list.push(CircuitPlan { id, tenant, keys });
        }
    }
    Circuits {
        lifetime,
        threads,
        capacity,
        xdp,
        interfaces: settings.interfaces.clone(),
        bpf_object: settings.bpf_object.clone(),
        rates,
        list,
    }
}

fn interfaces(c: &mut Checker, interfaces: &[String], xdp: Option<Setting>) {
    let at = "circuits.interfaces";
    if xdp.is_none() {
        c.problem(
            at,
            "circuits.xdp is \"off\", so no interface has the program: leave one of the keys out",
        );
    }
    if !(1..=MAX_INTERFACES).contains(&interfaces.len()) {
        c.problem(
            at,
            format!(
                "{} interfaces: write 1 to {MAX_INTERFACES}, or leave the key out",
                interfaces.len()
            ),
        );
    }
    for (n, name) in interfaces.iter().enumerate() {
        c.interface(at, name);
        if interfaces[..n].contains(name) {
            c.problem(at, format!("{name:?} is listed twice"));
        }
    }
}
