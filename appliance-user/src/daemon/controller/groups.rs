//! The multicast groups that each port listens to. Pure: a function of what is in force.

use std::collections::{BTreeMap, BTreeSet};

use appliance_common::{
    addr::{Address, as_v4, solicited_node},
    maps::HostKey,
};

use crate::{
    config::{Config, Role},
    daemon::engines::ServedAddresses,
    engine::group_reports::Groups,
    frame::Port,
};

/// All nodes, where neighbours announce themselves (RFC 4291 section 2.7.1).
const ALL_NODES: Address = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// All routers, where router solicitations go.
const ALL_ROUTERS: Address = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

/// The multicast groups that each port listens to. `is_partial` says of a tenant whether it is in
/// partial failover, `endpoints` are the failed-over addresses of such tenants, `served_addresses`
/// the addresses that the appliance answers for, and `port` finds a network's port. On the ports
/// `checked`, owners of addresses are asked for, and may answer to all nodes.
pub(super) fn wanted(
    config: &Config,
    is_partial: impl Fn(&str) -> bool,
    endpoints: &BTreeSet<HostKey>,
    served_addresses: &ServedAddresses,
    port: impl Fn(u32) -> Option<Port>,
    checked: impl IntoIterator<Item = Port>,
) -> BTreeMap<Port, Groups> {
    let mut ports: BTreeMap<Port, Groups> = BTreeMap::new();
    let has_ipv6 = |n: &crate::config::Network| n.prefixes.iter().any(|p| p.address().is_ipv6());
    for network in config.networks.iter().filter(|n| has_ipv6(n)) {
        let Some(port) = port(network.vni).filter(|_| is_partial(&network.tenant)) else {
            continue;
        };
        let groups = ports.entry(port).or_default();
        groups.addresses.insert(ALL_NODES);
        match config.role {
            // The programs answer for the failed-over addresses.
            Role::Tenant => {
                let of_network = endpoints.iter().filter(|key| key.vni == network.vni);
                let v6 = of_network.filter(|key| as_v4(&key.address).is_none());
                groups
                    .addresses
                    .extend(v6.map(|key| solicited_node(&key.address)));
            }
            // They answer for every other address of the network.
            Role::Provider => {
                groups.all = true;
                let gateways = network.gateways().filter(|a| as_v4(a).is_none());
                groups
                    .addresses
                    .extend(gateways.map(|address| solicited_node(&address)));
            }
        }
    }
    for ((port, address), router) in served_addresses {
        if as_v4(address).is_some() {
            continue;
        }
        let addresses = &mut ports.entry(*port).or_default().addresses;
        addresses.extend([solicited_node(address), ALL_NODES]);
        if *router {
            addresses.insert(ALL_ROUTERS);
        }
    }
    for port in checked {
        ports.entry(port).or_default().addresses.insert(ALL_NODES);
    }
    ports
}

/// The groups of a port that snooping switches must be told of. All nodes is never reported
/// (RFC 3810 section 6).
pub(super) fn reported(groups: &Groups) -> Groups {
    let addresses = groups.addresses.iter().filter(|a| **a != ALL_NODES);
    Groups {
        addresses: addresses.copied().collect(),
        all: groups.all,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use appliance_common::addr::from_ip;

    use super::*;
    use crate::frame::testing::UNTAGGED;

    const VNI: u32 = 1001;
    const PORT: Port = Port {
        mac: [2, 0, 0, 0, 0, 1],
        ..UNTAGGED
    };

    fn config(role: &str) -> Config {
        let text = format!(
            r#"
[appliance]
name = "a"
role = "{role}"
[uplink]
interface = "eth0"
[[tenant]]
name = "acme"
[[peer]]
name = "other"
kind = "vxlan"
address = "203.0.113.5"
[[network]]
name = "net1"
tenant = "acme"
peer = "other"
vni = {VNI}
interface = "eth1"
prefixes = ["10.1.0.0/24", "2001:db8:1::/64"]
gateway = ["10.1.0.1", "2001:db8:1::1"]
"#
        );
        Config::parse(&text, Path::new("test")).unwrap_or_else(|e| panic!("{e}"))
    }

    fn host(address: &str) -> HostKey {
        HostKey {
            vni: VNI,
            address: from_ip(address.parse().expect("an address")),
        }
    }

    fn group(address: &str) -> Address {
        from_ip(address.parse().expect("a group"))
    }

    fn of(
        role: &str,
        partial: bool,
        endpoints: &[&str],
        served_addresses: &ServedAddresses,
    ) -> Option<Groups> {
        let endpoints = endpoints.iter().map(|e| host(e)).collect();
        let config = config(role);
        let port = |_| Some(PORT);
        let mut ports = wanted(&config, |_| partial, &endpoints, served_addresses, port, []);
        ports.remove(&PORT)
    }

    #[test]
    fn the_tenants_side_listens_for_its_endpoints() {
        let endpoints = ["10.1.0.10", "2001:db8:1::10", "2001:db8:1::a0:11"];
        let groups = of("tenant", true, &endpoints, &ServedAddresses::new()).expect("listens");
        let wanted = ["ff02::1", "ff02::1:ff00:10", "ff02::1:ffa0:11"].map(group);
        assert_eq!(groups.addresses, BTreeSet::from(wanted));
        assert!(!groups.all);
        let listeners = reported(&groups);
        assert_eq!(listeners.addresses.len(), 2, "all nodes is not reported");
        assert_eq!(
            of("tenant", false, &endpoints, &ServedAddresses::new()),
            None
        );
    }

    #[test]
    fn the_providers_side_listens_to_everything_and_reports_its_gateway() {
        let groups = of(
            "provider",
            true,
            &["2001:db8:1::10"],
            &ServedAddresses::new(),
        )
        .expect("listens");
        assert!(groups.all);
        let wanted = ["ff02::1", "ff02::1:ff00:1"].map(group);
        assert_eq!(groups.addresses, BTreeSet::from(wanted));
    }

    #[test]
    fn owners_that_answer_to_all_nodes_are_heard_while_they_are_asked_for() {
        let (config, none) = (config("provider"), BTreeSet::new());
        let port = |_| Some(PORT);
        let ports = wanted(
            &config,
            |_| false,
            &none,
            &ServedAddresses::new(),
            port,
            [PORT],
        );
        assert_eq!(ports[&PORT].addresses, BTreeSet::from([ALL_NODES]));
    }

    #[test]
    fn addresses_of_our_own_are_listened_for_and_routers_hear_solicitations() {
        let v4 = (PORT, host("10.1.0.1").address);
        let served_addresses = |router| {
            let v6 = (PORT, host("2001:db8:1::1").address);
            ServedAddresses::from([(v4, router), (v6, router)])
        };
        let router = of("provider", false, &[], &served_addresses(true)).expect("listens");
        assert!(router.addresses.contains(&ALL_ROUTERS) && !router.all);
        let host = of("provider", false, &[], &served_addresses(false)).expect("listens");
        assert!(!host.addresses.contains(&ALL_ROUTERS));
        assert!(host.addresses.contains(&group("ff02::1:ff00:1")));
        let only_v4 = ServedAddresses::from([(v4, true)]);
        assert_eq!(of("provider", false, &[], &only_v4), None);
    }
}
