//! The addresses that the appliance answers for and announces: in partial failover the failed-over
//! addresses, or at the provider the networks' routers; in full failover the gateways of the plans'
//! networks, and the public addresses. Pure: a function of the configuration and state in force and
//! of the kernel's snapshot.

use std::{collections::BTreeMap, net::IpAddr};

use appliance_common::{
    addr::{as_v4, from_ip},
    maps::{self, Mode},
    nat::public_flags,
};

use super::InForce;
use crate::{
    config::{Config, Network, Role},
    daemon::engines::{Engines, ServedAddresses},
    datapath::reconcile::{MapContents, mode_of},
    engine::neighbour::Senders,
    engine::router_advert::AdvertisedRouter,
    frame,
    frame::Port,
    kernel::underlay::{DEFAULT_ROUTE_PROBES, Snapshot},
    state::State,
};

/// The addresses that the appliance answers for, where, and whether as a router.
pub(super) fn served_addresses(
    (config, state): (&Config, &State),
    snapshot: &Snapshot,
    engines: &Engines,
    tables: &MapContents,
) -> ServedAddresses {
    let mut addresses = ServedAddresses::new();
    let partial = |n: &&Network| mode_of(state, &n.tenant) == Mode::Partial;
    for network in config.networks.iter().filter(partial) {
        let Some(port) = port_up(network, snapshot, engines) else {
            continue;
        };
        match config.role {
            Role::Tenant => {
                let endpoints = state.endpoints.get(&network.name);
                let endpoints = endpoints.into_iter().flatten();
                addresses.extend(endpoints.map(|address| ((port, from_ip(*address)), false)));
            }
            Role::Provider => addresses.extend(network.gateways().map(|a| ((port, a), true))),
        }
    }
    for (network, plan) in networks_in_full(config, state) {
        let Some(port) = port_up(network, snapshot, engines) else {
            continue;
        };
        for gateway in plan.gateways() {
            addresses.insert((port, from_ip(gateway)), true);
        }
    }
    if let Some(port) = uplink_port(config, snapshot) {
        let public = tables.public.iter();
        for (address, _) in public.filter(|(_, p)| p.flags & public_flags::OWN == 0) {
            addresses.insert((port, *address), false);
        }
    }
    addresses
}

/// The uplink's port; `None` while the link is down.
fn uplink_port(config: &Config, snapshot: &Snapshot) -> Option<Port> {
    let link = snapshot.links.get(&config.uplink.interface)?;
    link.up.then_some(Port {
        ifindex: link.ifindex,
        outer: 0,
        inner: 0,
        outer_ethertype: 0,
        mac: link.mac,
    })
}

/// The routers that are advertised, by VNI.
pub(super) fn routers(
    in_force: &InForce,
    snapshot: &Snapshot,
    engines: &Engines,
) -> BTreeMap<u32, AdvertisedRouter> {
    networks_in_full(&in_force.config, &in_force.state)
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

/// The addresses with which the appliance asks on its networks, by VNI: its own there, or ones that
/// the programs answer for in the tenant's mode and no machine can have: hosts may remember the
/// sender of a question, and a machine must not see its own address in it (RFC 5227 section 2.1.1).
pub(super) fn senders(
    (config, state): (&Config, &State),
    snapshot: &Snapshot,
    tables: &MapContents,
) -> BTreeMap<u32, Senders> {
    let by_vni: BTreeMap<u32, &maps::Network> =
        tables.networks.values().map(|n| (n.vni, n)).collect();
    let senders = |network: &Network| {
        let link = snapshot.links.get(&network.interface)?;
        let mode = mode_of(state, &network.tenant);
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
        v4.extend(match (config.role, mode) {
            (Role::Tenant, Mode::Partial) => failed_over(state, network),
            (Role::Provider, Mode::Partial | Mode::Full) => {
                let table = by_vni.get(&network.vni)?;
                // Without a gateway there is none: any address of the prefix may be a replica's
                // that boots before it becomes an endpoint.
                let gateway = as_v4(&table.gateway_v4).filter(|v4| *v4 != [0; 4]);
                gateway.into_iter().collect()
            }
            _ => Vec::new(),
        });
        let v4 = [v4.first().copied(), v4.get(1).copied()];
        Some((network.vni, Senders { v4, v6 }))
    };
    config.networks.iter().filter_map(senders).collect()
}

/// Two IPv4 addresses of a network that are failed over.
fn failed_over(state: &State, network: &Network) -> Vec<[u8; 4]> {
    let endpoints = state.endpoints.get(&network.name);
    let addresses = endpoints.into_iter().flatten().copied();
    addresses.filter_map(octets).take(2).collect()
}

fn octets(address: IpAddr) -> Option<[u8; 4]> {
    as_v4(&from_ip(address))
}

/// The networks of plans in force, as configured and as the plan has them.
fn networks_in_full<'a>(
    config: &'a Config,
    state: &'a State,
) -> impl Iterator<Item = (&'a Network, &'a failover::PlanNetwork)> {
    config.networks.iter().filter_map(|network| {
        let mode = state.modes.get(&network.tenant)?;
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
pub(in crate::daemon) fn watched_outside(
    config: &Config,
    full: bool,
) -> impl Iterator<Item = IpAddr> + use<> {
    let public = config.tenants.iter().flat_map(|t| &t.public);
    let families: Vec<bool> = public.map(|net| net.address().is_ipv4()).collect();
    DEFAULT_ROUTE_PROBES
        .into_iter()
        .filter(move |a| full || families.contains(&a.is_ipv4()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        daemon::controller::assign_slots,
        datapath::reconcile::{EncryptedTunnels, desired},
        kernel::underlay::LinkState,
        state::FailoverState,
    };

    /// A network without tags and one with a tag, each with a gateway.
    fn config(role: &str, gateways: bool) -> Config {
        let gateway = |n: u8| match gateways {
            true => format!("gateway = [\"10.{n}.0.1\"]\n"),
            false => String::new(),
        };
        let text = format!(
            "[appliance]\nname = \"x\"\nrole = {role:?}\n[uplink]\ninterface = \"eth0\"\n\
             [[tenant]]\nname = \"acme\"\n[[peer]]\nname = \"a\"\nkind = \"vxlan\"\n\
             address = \"198.51.100.5\"\n\
             [[network]]\nname = \"net1\"\ntenant = \"acme\"\npeer = \"a\"\nvni = 1\n\
             interface = \"eth1\"\nprefixes = [\"10.1.0.0/24\"]\n{}\
             [[network]]\nname = \"net2\"\ntenant = \"acme\"\npeer = \"a\"\nvni = 2\n\
             interface = \"eth1\"\nvlan = \"102\"\nprefixes = [\"10.2.0.0/24\"]\n{}",
            gateway(1),
            gateway(2),
        );
        Config::parse(&text, Path::new("t")).expect("good")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn snapshot(addresses: &[&str]) -> Snapshot {
        let link = LinkState {
            name: "eth1".to_owned(),
            ifindex: 3,
            mac: [2, 0, 0, 0, 0, 9],
            mtu: 1500,
            up: true,
            addresses: addresses.iter().map(|a| (ip(a), 24)).collect(),
        };
        let mut snapshot = Snapshot::default();
        snapshot.links.insert(link.name.clone(), link);
        snapshot
    }

    /// The IPv4 senders of both networks.
    fn v4(
        config: &Config,
        partial: bool,
        endpoints: &[&str],
        snapshot: &Snapshot,
    ) -> [[Option<[u8; 4]>; 2]; 2] {
        let mut state = State::default();
        assign_slots(config, &mut state);
        if partial {
            let mode = state.modes.entry("acme".to_owned()).or_default();
            mode.failover = FailoverState::Partial;
        }
        for endpoint in endpoints {
            let network = if endpoint.starts_with("10.1.") {
                "net1"
            } else {
                "net2"
            };
            let addresses = state.endpoints.entry(network.to_owned()).or_default();
            addresses.insert(ip(endpoint));
        }
        let tables = desired(config, &state, snapshot, &EncryptedTunnels::default());
        let senders = senders((config, &state), snapshot, &tables);
        [senders[&1].v4, senders[&2].v4]
    }

    const NONE: [Option<[u8; 4]>; 2] = [None, None];

    #[test]
    fn tenant_side_asks_with_its_own_address_or_with_a_failed_over_one() {
        let config = config("tenant", true);
        let snapshot = snapshot(&["10.1.0.5", "192.0.2.1", "fe80::5"]);
        assert_eq!(
            v4(&config, false, &[], &snapshot),
            [[Some([10, 1, 0, 5]), None], NONE],
            "the kernel's address is in the network without a tag"
        );
        let endpoints = ["10.1.0.10", "10.2.0.10", "10.2.0.11", "10.2.0.12"];
        assert_eq!(
            v4(&config, true, &endpoints, &snapshot),
            [
                [Some([10, 1, 0, 5]), Some([10, 1, 0, 10])],
                [Some([10, 2, 0, 10]), Some([10, 2, 0, 11])]
            ]
        );
        // Nothing is answered for while the tenant is idle.
        assert_eq!(v4(&config, false, &endpoints, &snapshot)[1], NONE);
    }

    #[test]
    fn provider_side_asks_with_the_gateway_s_address_while_it_answers_for_it() {
        let with = config("provider", true);
        let snapshot = snapshot(&[]);
        assert_eq!(
            v4(&with, true, &["10.1.0.10"], &snapshot),
            [[Some([10, 1, 0, 1]), None], [Some([10, 2, 0, 1]), None]]
        );
        assert_eq!(v4(&with, false, &["10.1.0.10"], &snapshot), [NONE, NONE]);
    }

    #[test]
    fn provider_side_without_a_gateway_asks_with_no_address_that_a_replica_may_have() {
        let without = config("provider", false);
        assert_eq!(
            v4(&without, true, &["10.1.0.10"], &snapshot(&[])),
            [NONE, NONE]
        );
        let own = snapshot(&["10.1.0.5"]);
        assert_eq!(
            v4(&without, true, &["10.1.0.10"], &own),
            [[Some([10, 1, 0, 5]), None], NONE]
        );
    }

    #[test]
    fn solicitations_come_from_the_kernel_s_address_or_that_of_our_mac() {
        let config = config("tenant", true);
        let mut state = State::default();
        assign_slots(&config, &mut state);
        let snapshot = snapshot(&["fe80::5"]);
        let tables = MapContents::default();
        let idle = senders((&config, &state), &snapshot, &tables);
        assert_eq!(idle[&1].v6, Some(from_ip(ip("fe80::5"))));
        assert_eq!(idle[&2].v6, None);
        let mode = state.modes.entry("acme".to_owned()).or_default();
        mode.failover = FailoverState::Partial;
        let partial = senders((&config, &state), &snapshot, &tables);
        assert_eq!(partial[&1].v6, Some(from_ip(ip("fe80::5"))));
        let of_mac = frame::link_local(&[2, 0, 0, 0, 0, 9]);
        assert_eq!(partial[&2].v6, Some(of_mac));
    }
}
