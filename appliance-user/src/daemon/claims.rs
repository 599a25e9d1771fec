//! What the appliance is on the wire in full failover: the gateways of the plans' networks, and the
//! public addresses. Pure: a function of what is in force and what the kernel says.

use std::{collections::BTreeMap, net::IpAddr};

use appliance_common::{addr::from_ip, nat::public_flags};

use super::{
    controller::InForce,
    engines::{Claims, Engines},
};
use crate::{
    config::{Config, Network},
    datapath::reconcile::MapContents,
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
    for (network, plan) in networks_in_full(in_force) {
        let Some(port) = port_up(network, snapshot, engines) else {
            continue;
        };
        for gateway in plan.gateways() {
            claims.insert((port, from_ip(gateway)), true);
        }
    }
    let uplink = snapshot.links.get(&in_force.config.uplink.interface);
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
