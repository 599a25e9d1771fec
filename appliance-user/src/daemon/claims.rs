//! What the appliance is on the wire: in partial failover the failed-over addresses, or at the
//! provider the networks' routers; in full failover the gateways of the plans' networks, and the
//! public addresses. Pure: a function of what is in force and what the kernel says.

use std::{collections::BTreeMap, net::IpAddr};

use appliance_common::{
    addr::{as_v4, from_ip, mapped},
    maps::{self, Mode},
    nat::public_flags,
};

use super::{
    controller::InForce,
    engines::{Claims, Engines},
};
use crate::{
    config::{Config, Network, Role},
    datapath::reconcile::{MapContents, mode_of},
    engine::neighbour::Senders,
    engine::router_advert::AdvertisedRouter,
    frame,
    frame::Port,
    kernel::underlay::{DEFAULT_ROUTE_PROBES, Snapshot},
};

/// The addresses that are the appliance's own, where, and whether as a router.
pub(super) fn claims(
    in_force: &InForce,
    snapshot: &Snapshot,
    engines: &Engines,
    tables: &MapContents,
) -> Claims {
    let mut claims = Claims::new();
    let config = &in_force.config;
    let partial = |n: &&Network| mode_of(&in_force.state, &n.tenant) == Mode::Partial;
    for network in config.networks.iter().filter(partial) {
        let Some(port) = port_up(network, snapshot, engines) else {
            continue;
        };
        match config.role {
            Role::Tenant => {
                let endpoints = in_force.state.endpoints.get(&network.name);
                let addresses = endpoints.into_iter().flatten();
                claims.extend(addresses.map(|address| ((port, from_ip(*address)), false)));
            }
            Role::Provider => claims.extend(network.gateways().map(|a| ((port, a), true))),
        }
    }
    for (network, plan) in networks_in_full(in_force) {
        let Some(port) = port_up(network, snapshot, engines) else {
            continue;
        };
        for gateway in plan.gateways() {
            claims.insert((port, from_ip(gateway)), true);
        }
    }
    let uplink = snapshot.links.get(&config.uplink.interface);
    if let Some(link) = uplink.filter(|link| link.up) {
        let port = Port {
            ifindex: link.ifindex,
            outer: 0,
            inner: 0,
            outer_ethertype: 0,
            mac: link.mac,
        };
        let public = tables.public.iter();
        for (address, _) in public.filter(|(_, p)| p.flags & public_flags::OWN == 0) {
            claims.insert((port, *address), false);
        }
    }
    claims
}

/// The routers that are advertised, by VNI.
pub(super) fn routers(
    in_force: &InForce,
    snapshot: &Snapshot,
    engines: &Engines,
) -> BTreeMap<u32, AdvertisedRouter> {
    networks_in_full(in_force)
        .filter(|(_, plan)| plan.router_advertisements())
        .filter_map(|(network, plan)| {
            let gateway = plan.gateway_v6()?;
            let port = port_up(network, snapshot, engines)?;
            let source = if gateway.is_unicast_link_local() {
                gateway.octets()
            } else {
                frame::link_local(&port.mac)
            };
            let v6 = network.prefixes.iter().filter(|p| p.address().is_ipv6());
            let router = AdvertisedRouter {
                port,
                source,
                prefixes: v6.map(|p| (from_ip(p.address()), p.length())).collect(),
            };
            Some((network.vni, router))
        })
        .collect()
}

/// Addresses of the prefix that are looked at for one that is answered for, where a network has no
/// gateway.
const MAX_CANDIDATES: u32 = 1024;

/// The addresses with which the appliance asks on its networks, by VNI: its own there, or ones that
/// the programs answer for in the tenant's mode. Hosts may thus remember the sender of a question,
/// and are right.
pub(super) fn senders(
    in_force: &InForce,
    snapshot: &Snapshot,
    tables: &MapContents,
) -> BTreeMap<u32, Senders> {
    let by_vni: BTreeMap<u32, &maps::Network> =
        tables.networks.values().map(|n| (n.vni, n)).collect();
    let senders = |network: &Network| {
        let link = snapshot.links.get(&network.interface)?;
        let mode = mode_of(&in_force.state, &network.tenant);
        // The kernel's addresses are in the untagged network.
        let untagged = link.addresses.iter().map(|(address, _)| *address);
        let mut own = untagged.filter(|_| network.vlan.outer == 0);
        let link_local = own
            .clone()
            .find(|a| matches!(a, IpAddr::V6(v6) if v6.is_unicast_link_local()))
            .map(from_ip);
        let v6 = link_local.or_else(|| (mode != Mode::Idle).then(|| frame::link_local(&link.mac)));
        let mut v4: Vec<[u8; 4]> = Vec::new();
        let inside = |a: &IpAddr| a.is_ipv4() && network.prefixes.iter().any(|p| p.contains(*a));
        v4.extend(own.find(inside).and_then(octets));
        v4.extend(match (in_force.config.role, mode) {
            (Role::Tenant, Mode::Partial) => failed_over(in_force, network),
            (Role::Provider, Mode::Partial | Mode::Full) => {
                let table = by_vni.get(&network.vni)?;
                match as_v4(&table.gateway_v4).filter(|v4| *v4 != [0; 4]) {
                    Some(gateway) => vec![gateway],
                    None if mode == Mode::Partial => proxied(network, tables),
                    None => Vec::new(),
                }
            }
            _ => Vec::new(),
        });
        let v4 = [v4.first().copied(), v4.get(1).copied()];
        Some((network.vni, Senders { v4, v6 }))
    };
    in_force
        .config
        .networks
        .iter()
        .filter_map(senders)
        .collect()
}

/// Two IPv4 addresses of a network that are failed over.
fn failed_over(in_force: &InForce, network: &Network) -> Vec<[u8; 4]> {
    let endpoints = in_force.state.endpoints.get(&network.name);
    let addresses = endpoints.into_iter().flatten().copied();
    addresses.filter_map(octets).take(2).collect()
}

/// An IPv4 address of a network's prefixes for which the provider's side answers in partial
/// failover: of a host at the production site, or of none.
fn proxied(network: &Network, tables: &MapContents) -> Vec<[u8; 4]> {
    let free = |address: &u32| {
        let ip = IpAddr::V4((*address).into());
        let key = maps::HostKey {
            vni: network.vni,
            address: mapped(address.to_be_bytes()),
        };
        let mut prefixes = network.prefixes.iter();
        let within = prefixes.any(|p| p.contains(ip) && !p.is_network_or_broadcast(ip));
        within && !tables.endpoints.contains_key(&key)
    };
    let last = |prefix: &failover::IpPrefix| match prefix.address() {
        IpAddr::V4(v4) => Some(u32::from(v4) | u32::MAX.checked_shr(prefix.length().into())?),
        IpAddr::V6(_) => None,
    };
    let candidates = network.prefixes.iter().filter_map(last);
    let address = candidates
        .flat_map(|last| (last.saturating_sub(MAX_CANDIDATES)..last).rev())
        .find(free);
    address.map(u32::to_be_bytes).into_iter().collect()
}

fn octets(address: IpAddr) -> Option<[u8; 4]> {
    as_v4(&from_ip(address))
}

/// The networks of plans in force, as configured and as the plan has them.
fn networks_in_full(
    in_force: &InForce,
) -> impl Iterator<Item = (&Network, &failover::PlanNetwork)> {
    in_force.config.networks.iter().filter_map(|network| {
        let mode = in_force.state.modes.get(&network.tenant)?;
        Some((network, mode.failover.plan()?.network(&network.name)?))
    })
}

fn port_up(network: &Network, snapshot: &Snapshot, engines: &Engines) -> Option<Port> {
    let link = snapshot.links.get(&network.interface)?;
    engines.port(network.vni).filter(|_| link.up)
}

/// Addresses whose route to the outside is watched. In full failover those of both families, so
/// that their routers stay resolved; before it those of families in which tenants have public
/// addresses, so that it is known which of these are a router's.
pub(super) fn watched_outside(config: &Config, full: bool) -> impl Iterator<Item = IpAddr> + use<> {
    let public = config.tenants.iter().flat_map(|t| &t.public);
    let families: Vec<bool> = public.map(|net| net.address().is_ipv4()).collect();
    DEFAULT_ROUTE_PROBES
        .into_iter()
        .filter(move |a| full || families.contains(&a.is_ipv4()))
}
