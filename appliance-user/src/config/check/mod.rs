//! Checks a whole file and collects every problem.
//!
//! One submodule a section: `peers`, `networks`, `gateways` (with circuits and TLS), `nat` (with
//! the tenants' public addresses). Each gets the results of the earlier ones, and adds its problems
//! to the same `Checker`.

mod gateways;
mod nat;
mod networks;
mod peers;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use appliance_common::{
    limits::{MAX_ATTACHMENTS, MAX_NETWORKS, MAX_PEERS, MAX_TENANTS, MIN_INNER_MTU},
    wire::{SECURE_PORT, VXLAN_PORT},
};
use service::{
    config::{Checker, Problem},
    desired::Source,
    xdp::Setting,
};
use tunnel::CipherChoice;
use tunnel_worker::{WaitMode, pipeline::LANES};

use super::{Config, Local, Memory, Objects, Role, Tunnel, Uplink, file};

/// Default folder of the identity at the director.
const AGENT_FOLDER: &str = "/var/lib/causeway/agent";
/// Largest MTU that XDP takes on any NIC we know, bytes: a page less headroom and tail.
const MAX_MTU: u16 = 3498;
/// Highest number of a CPU.
const MAX_CPU: usize = 1023;

/// The file as a configuration.
///
/// # Errors
/// Every problem of the file.
pub(super) fn check(file: file::File) -> Result<Config, Vec<Problem>> {
    let source = if Objects::of(&file) == Objects::default() {
        Source::None
    } else {
        Source::File
    };
    check_as(file, source)
}

/// The same with objects from elsewhere. Only a file that has the objects must have all that its
/// settings of the machine name.
///
/// # Errors
/// Every problem of the file.
pub(super) fn check_as(file: file::File, source: Source) -> Result<Config, Vec<Problem>> {
    let mut c = Checker::new();
    let (local, objects) = (Local::of(file.clone()), Objects::of(&file));
    let is_whole = source == Source::File;
    if is_whole {
        for peer in &file.peer {
            let circuit = peer
                .circuit
                .as_ref()
                .and_then(|circuit| circuit.key.as_ref());
            for (key, text) in [
                ("preshared_key", peer.preshared_key.as_ref()),
                ("circuit.key", circuit),
            ] {
                if text.is_some() {
                    c.problem(
                        format!("peer {:?}: {key}", peer.name),
                        "belongs to updates: write the key into a file of mode 0600, and name \
                         the file",
                    );
                }
            }
        }
    }
    let a = file.appliance;
    c.name("appliance.name", &a.name);
    let roles = [("tenant", Role::Tenant), ("provider", Role::Provider)];
    let role = c.choice("appliance.role", Some(&a.role), &roles);
    let state_dir = c.absolute("appliance.state_dir", a.state_dir, "/var/lib/causeway");
    let pin_dir = c.absolute("appliance.pin_dir", a.pin_dir, "/sys/fs/bpf/causeway");
    let control_socket = c.control_socket(
        "appliance.control_socket",
        a.control_socket,
        "/run/causeway/appliance.sock",
    );
    let metrics = metrics(&mut c, a.metrics.as_deref());
    let agent = file
        .agent
        .map(|section| section.check(&mut c, AGENT_FOLDER));

    let uplink = uplink(&mut c, file.uplink);
    let mut interfaces = BTreeMap::new();
    c.unique("interface", file.interface.iter().map(|i| i.name.as_str()));
    for interface in &file.interface {
        let at = format!("interface {:?}", interface.name);
        c.interface(&at, &interface.name);
        if interface.name == uplink.interface {
            c.problem(&at, "is the uplink; write its settings into [uplink]");
        }
        if is_whole && !file.network.iter().any(|n| n.interface == interface.name) {
            c.problem(
                &at,
                "no network names it; remove it or name it in a [[network]]",
            );
        }
        let xdp = xdp(&mut c, &format!("{at}: xdp"), interface.xdp.as_deref());
        interfaces.insert(interface.name.clone(), xdp);
    }

    c.unique("tenant", file.tenant.iter().map(|t| t.name.as_str()));
    for tenant in &file.tenant {
        c.name("tenant.name", &tenant.name);
    }
    let tunnel = file.tunnel.map(|t| tunnel(&mut c, t, &uplink));
    let peers = peers::check(&mut c, &file.peer, &uplink, tunnel.as_ref(), role);
    let networks = networks::check(&mut c, &file.network, &uplink, (&file.peer, &peers), role);
    peers::members(&mut c, &peers, &networks);
    let gateways = gateways::check(
        &mut c,
        (file.gateways, is_whole),
        &file.gateway,
        &uplink,
        role,
    );
    gateways::across_sections(&mut c, &gateways, &peers, role);
    let tls = gateways::tls_listen(&mut c, file.tls.as_ref(), role);
    let nat = nat::check(&mut c, &file.nat, &uplink, tunnel.as_ref(), &peers);
    let tenants = nat::tenants(&mut c, &file.tenant, role, (&uplink, &peers, &networks));
    for network in &file.network {
        if !file.tenant.iter().any(|t| t.name == network.tenant) {
            c.problem(
                format!("network {:?}: tenant", network.name),
                format!("there is no [[tenant]] named {:?}", network.tenant),
            );
        }
    }
    for (what, count, most) in [
        ("tenant", file.tenant.len(), MAX_TENANTS),
        ("peer", file.peer.len(), MAX_PEERS),
        (
            "network",
            file.network.len(),
            MAX_NETWORKS.min(MAX_ATTACHMENTS),
        ),
    ] {
        if count > most as usize {
            c.problem(
                what,
                format!("{count} of them; an appliance has {most} at most"),
            );
        }
    }
    c.finish(Config {
        name: a.name,
        role,
        state_dir,
        pin_dir,
        control_socket,
        bpf_object: a.bpf_object,
        metrics,
        agent,
        uplink,
        tunnel,
        interfaces,
        gateways,
        tls,
        nat,
        tenants,
        peers,
        networks,
        local,
        objects: Arc::new(objects),
        source,
    })
}

/// The address of the metrics, if they are served.
fn metrics(c: &mut Checker, value: Option<&str>) -> Option<SocketAddr> {
    let at = "appliance.metrics";
    let text = value?;
    let Ok(address) = text.parse::<SocketAddr>() else {
        c.problem(
            at,
            format!("{text:?} is not address:port; write one, as \"127.0.0.1:9100\""),
        );
        return None;
    };
    if !address.ip().is_loopback() {
        c.problem(
            at,
            format!(
                "{address} is open to other machines, and metrics name tenants: write a loopback \
                 address"
            ),
        );
    }
    Some(address)
}

fn xdp(c: &mut Checker, at: &str, value: Option<&str>) -> Setting {
    let settings = Setting::ALL.map(|setting| (setting.name(), setting));
    c.choice(at, value, &settings)
}

/// An IP address.
fn address(c: &mut Checker, at: &str, text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok();
    if address.is_none() {
        c.problem(at, format!("{text:?} is not an IPv4 or IPv6 address"));
    }
    address
}

fn mtu(c: &mut Checker, at: &str, value: Option<i64>) -> Option<u16> {
    let value = value?;
    match u16::try_from(value) {
        Ok(mtu) if (MIN_INNER_MTU..=MAX_MTU).contains(&mtu) => Some(mtu),
        _ => {
            c.problem(
                at,
                format!(
                    "{value}: an MTU here is {MIN_INNER_MTU} (the least of IPv6) to {MAX_MTU} \
                     (the most that XDP accepts)"
                ),
            );
            None
        }
    }
}

/// Whether a host may have the address and send from it.
pub(super) fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            first != 0 && first != 127 && first < 224
        }
        IpAddr::V6(v6) => {
            !v6.is_unspecified()
                && !v6.is_loopback()
                && !v6.is_multicast()
                && v6.to_ipv4_mapped().is_none()
        }
    }
}

pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn uplink(c: &mut Checker, uplink: file::Uplink) -> Uplink {
    c.interface("uplink.interface", &uplink.interface);
    let xdp = xdp(c, "uplink.xdp", uplink.xdp.as_deref());
    let local: Vec<IpAddr> = uplink
        .local
        .iter()
        .filter_map(|text| address(c, "uplink.local", text))
        .collect();
    for address in &local {
        if !is_host(*address) {
            c.problem(
                "uplink.local",
                format!("{address} cannot be the address of a host"),
            );
        }
    }
    for v4 in [true, false] {
        if local.iter().filter(|a| a.is_ipv4() == v4).count() > 1 {
            c.problem("uplink.local", "at most one address of a family");
        }
    }
    let port = port(c, "uplink.port", uplink.port, VXLAN_PORT);
    let mtu = mtu(c, "uplink.mtu", uplink.mtu);
    Uplink {
        interface: uplink.interface,
        xdp,
        local,
        port,
        mtu,
    }
}

fn port(c: &mut Checker, at: &str, value: Option<i64>, default: u16) -> u16 {
    match value {
        None => default,
        Some(value) => match u16::try_from(value) {
            Ok(port) if port != 0 => port,
            _ => {
                c.problem(at, format!("{value}: a UDP port is 1 to 65535"));
                default
            }
        },
    }
}

fn tunnel(c: &mut Checker, tunnel: file::Tunnel, uplink: &Uplink) -> Tunnel {
    absolute(c, "tunnel.private_key_file", &tunnel.private_key_file);
    let port = port(c, "tunnel.port", tunnel.port, SECURE_PORT);
    if port == uplink.port {
        c.problem(
            "tunnel.port",
            format!(
                "{port} is uplink.port, which plain tunnels use; write another port for encrypted \
                 tunnels"
            ),
        );
    }
    let cipher = tunnel.cipher.as_deref().unwrap_or("auto");
    let cipher = cipher.parse::<CipherChoice>().unwrap_or_else(|_| {
        c.problem(
            "tunnel.cipher",
            format!("{cipher:?}: write \"auto\", \"aes-256-gcm\" or \"chacha20-poly1305\""),
        );
        CipherChoice::Auto
    });
    let workers = match u32::try_from(tunnel.workers.unwrap_or(1)) {
        Ok(workers) if (1..=LANES).contains(&workers) => workers,
        _ => {
            c.problem(
                "tunnel.workers",
                format!(
                    "write 1 to {LANES}, and at most as many as the machine has CPUs to spare: \
                     each worker uses one queue of every interface"
                ),
            );
            1
        }
    };
    let cpus: Vec<usize> = tunnel
        .cpus
        .iter()
        .filter_map(|cpu| match usize::try_from(*cpu) {
            Ok(cpu) if cpu <= MAX_CPU => Some(cpu),
            _ => {
                c.problem(
                    "tunnel.cpus",
                    format!("{cpu}: a CPU's number is 0 to {MAX_CPU}"),
                );
                None
            }
        })
        .collect();
    let modes = [("wake", WaitMode::Wake), ("busy", WaitMode::Busy)];
    let waiting = c.choice("tunnel.waiting", tunnel.waiting.as_deref(), &modes);
    let modes = [Memory::Copy, Memory::ZeroCopy].map(|memory| (memory.name(), memory));
    let memory = c.choice("tunnel.memory", tunnel.memory.as_deref(), &modes);
    Tunnel {
        private_key_file: tunnel.private_key_file,
        port,
        cipher,
        workers,
        cpus,
        waiting,
        memory,
    }
}

/// A path that begins with `/`.
fn absolute(c: &mut Checker, at: &str, path: &Path) {
    if !path.is_absolute() {
        c.problem(at, format!("{path:?}: write an absolute path"));
    }
}
