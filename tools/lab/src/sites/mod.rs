//! The built-in topologies. They are data: a TOML file each, in the form of [`Topology`].

use crate::{
    addr::{Cidr, Vlan},
    cloud::{Access, Circuit, Gateway},
    faults::{masquerade, no_udp},
    topology::{Attach, Hop, Host, Kind, Link, Options, Route, Rules, Topology},
};

const PARTIAL_BY_GATEWAYS: &str = "
 tenant site                                          │       gw1  gw2        │  provider site
                                                      │   .10 │    │ .14      │
 prod-a .10 ──────────────┐                           │       │    │          │
 prod-b .11 ──────────────┤ net1 10.1.0.0/24          │       │    │ 192.0.2.0│
                          │      2001:db8:1::/64      │       │    │          │
 tenant-appliance eth0 .5 ┴───────────┐               │       │    │          │                         ┌─ VLAN 101 ─ replica-a .10
                                   router .1 ─────────┼────── wan ────────────┼─ provider-appliance ────┤ virtual switch
 tenant-appliance eth1 ───┬───────────┤               │                       │  203.0.113.5     trunk  └─ VLAN 102 ─ replica-c .10
 prod-c .10 ──────────────┤ net2 10.2.0.0/24          │
 prod-d .11 ──────────────┘           │               │   the tunnel goes through gw1 or gw2
                                      └─ remote 10.9.0.2, 2001:db8:9::2
";

/// Source ports that the routers of [`gateways`] translate to.
pub const PORTS: (u16, u16) = (20_000, 39_999);

/// One tenant, two networks, a provider, a remote host.
///
/// ```text
///   prod-a, prod-b, router, tenant-appliance ── net1      VLAN 101 ── replica-a
///   prod-c, prod-d, router, tenant-appliance ── net2      VLAN 102 ── replica-c
///   router ── wan ── provider-appliance ── trunk          remote ── router
/// ```
#[must_use]
pub fn partial(options: Options) -> Topology {
    declared(include_str!("partial.toml"), options)
}

/// Two tenants whose networks have the same addresses, on VLANs 101 and 201 of one provider.
///
/// The networks are `acme-net1` (VNI 1001) and `globex-net1` (VNI 2001).
#[must_use]
pub fn two_tenants(options: Options) -> Topology {
    declared(include_str!("two-tenants.toml"), options)
}

/// Two tenants that fail over whole: a provider with an uplink on its production network, its
/// router, and the internet behind that.
///
/// ```text
///   client, stranger, server ── internet ── edge ── uplink-net ── provider-appliance ── trunk
///   VLAN 101 web ── replica-a, replica-b   102 db ── replica-c   103 ops ── replica-d
///   VLAN 201 ── globex-replica-a
///   edge ── acme-wan ── router ── prod-a, prod-b, prod-c, prod-d, tenant-appliance
///   edge ── globex-wan ── globex-appliance ── globex-prod-a
/// ```
#[must_use]
pub fn full(options: Options) -> Topology {
    declared(include_str!("full.toml"), options)
}

/// The sites of [`full`] with second routers: of the provider's uplink, and of acme's network web
/// at both sites, with a branch behind it.
///
/// ```text
///   internet ── edge, edge2 ── uplink-net ── provider-appliance
///   acme-web ── router (the gateway), router2 ── branch
///   VLAN 101 ── replica-router ── replica-branch
/// ```
#[must_use]
pub fn two_routers(options: Options) -> Topology {
    let mut t = full(options);
    let more = declared(include_str!("two-routers.toml"), options);
    t.name = more.name;
    t.picture = more.picture;
    t.switches.extend(more.switches);
    for host in more.hosts {
        match t.hosts.iter_mut().find(|h| h.name == host.name) {
            Some(there) => {
                there.links.extend(host.links);
                there.routes.extend(host.routes);
            }
            None => t.hosts.push(host),
        }
    }
    t
}

/// The sites of [`two_tenants`], whose tunnels reach the provider through gateways only.
///
/// ```text
///   acme-appliance ── acme-router (translates) ────────┐       ┌─ gw1 192.0.2.10  pool gold
///   globex-appliance ── globex-router (and drops UDP) ─┤       ├─ gw2 192.0.2.14  pool gold
///   outside ───────────────────────────────────────────┼ cloud ┼─ gw3 192.0.2.18  no pool
///   provider-appliance, director ──────────────────────┘       └─
/// ```
#[must_use]
pub fn gateways(options: Options) -> Topology {
    let mut t = declared(include_str!("gateways.toml"), options);
    let rule = |host: &str, nft| Rules {
        host: host.to_owned(),
        nft,
    };
    t.rules = vec![
        rule("acme-router", masquerade("wan", PORTS)),
        rule("globex-router", masquerade("wan", PORTS)),
        rule("globex-router", no_udp("wan")),
    ];
    t
}

/// [`partial`], but for encrypted tunnels: they pass through one of two gateways.
///
/// ```text
///   tenant-appliance ── router ── wan ── provider-appliance
///                                 ├─ gw1 192.0.2.10
///                                 └─ gw2 192.0.2.14
/// ```
#[must_use]
pub fn partial_by_gateways(options: Options) -> Topology {
    let mut t = partial(options);
    if !options.encrypted {
        return t;
    }
    t.picture = PARTIAL_BY_GATEWAYS.to_owned();
    for (name, near, far) in [
        ("gw1", "192.0.2.9", "192.0.2.10/30"),
        ("gw2", "192.0.2.13", "192.0.2.14/30"),
    ] {
        let wan_name = format!("{name}-wan");
        if let Some(router) = t.hosts.iter_mut().find(|h| h.name == "wan") {
            let nic = link(name, wan(&wan_name), &[&format!("{near}/30")]);
            router.links.push(nic);
        }
        let nic = link("eth0", wan(&wan_name), &[far]);
        t = t
            .wan(&wan_name)
            .host(host(name, Kind::Gateway, vec![nic], &[("0.0.0.0/0", near)]));
        t.cloud.gateways.push(Gateway {
            host: name.to_owned(),
            pool: None,
            load: 0,
        });
    }
    t.cloud.circuits.push(Circuit {
        tenant: "acme".to_owned(),
        ends: ["tenant-appliance", "provider-appliance"].map(str::to_owned),
        access: Access::default(),
        tls: Some("acme.tunnel.example.net".to_owned()),
    });
    t
}

/// Reads a topology of this folder, whose WAN links get the MTU of the options.
fn declared(text: &str, options: Options) -> Topology {
    let mut t: Topology =
        toml::from_str(text).unwrap_or_else(|e| panic!("a topology of src/sites: {e}"));
    for wan in &mut t.wans {
        wan.mtu = options.wan_mtu;
    }
    Topology { options, ..t }
}

/// A powered host. Texts are `ADDRESS/LENGTH` and addresses; a route leads to an address, or to the
/// destination itself on the link of that name.
///
/// # Panics
/// If a text is no address: this is for topologies written down in source code.
#[must_use]
pub fn host(name: &str, kind: Kind, links: Vec<Link>, routes: &[(&str, &str)]) -> Host {
    Host {
        name: name.to_owned(),
        kind,
        links,
        routes: routes
            .iter()
            .map(|(to, hop)| Route {
                to: cidr(to),
                hop: hop
                    .parse()
                    .map_or_else(|_| Hop::OnLink((*hop).to_owned()), Hop::Via),
            })
            .collect(),
        powered: true,
    }
}

/// A NIC.
///
/// # Panics
/// If a text is no address: this is for topologies written down in source code.
#[must_use]
pub fn link(name: &str, to: Attach, addresses: &[&str]) -> Link {
    Link {
        name: name.to_owned(),
        to,
        addresses: addresses.iter().map(|a| cidr(a)).collect(),
    }
}

/// An access port of `switch`.
#[must_use]
pub fn access(switch: &str, vlan: Option<Vlan>) -> Attach {
    Attach::Access {
        switch: switch.to_owned(),
        vlan,
    }
}

/// An end of the WAN link `name`.
#[must_use]
pub fn wan(name: &str) -> Attach {
    Attach::Wan {
        wan: name.to_owned(),
    }
}

fn cidr(text: &str) -> Cidr {
    text.parse()
        .expect("addresses in a declared topology are written as ADDRESS/LENGTH")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use failover::{IpPrefix, NetworkContext, Plan, RuleTarget, TenantContext};

    use super::*;
    use crate::topology::{Failover, Network};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A tenant of `full` as its provider's appliance has it.
    fn tenant_of(t: &Topology, failover: &Failover) -> TenantContext {
        let net = |c: &Cidr| c.to_string().parse::<IpPrefix>().unwrap();
        let mut appliances = t.appliances.iter();
        let appliance = appliances.find(|a| a.host == failover.appliance).unwrap();
        let mut tenants = appliance.tenants.iter();
        let tenant = tenants.find(|n| n.name == failover.tenant).unwrap();
        let (own, others): (Vec<&Network>, Vec<&Network>) = appliance
            .networks
            .iter()
            .partition(|n| n.tenant == failover.tenant);
        TenantContext {
            name: tenant.name.clone(),
            allocation: tenant.public.iter().map(net).collect(),
            nat_addresses: tenant.nat.clone(),
            reserved: Vec::new(),
            networks: own
                .into_iter()
                .map(|n| NetworkContext {
                    name: n.name.clone(),
                    prefixes: n.prefixes.iter().map(net).collect(),
                    gateways: n.gateway.clone(),
                    excluded: false,
                })
                .collect(),
            other_networks: others.iter().map(|n| n.name.clone()).collect(),
        }
    }

    #[test]
    fn the_failover_plans_are_right_for_their_tenants() {
        let t = full(Options::default());
        for failover in &t.failovers {
            let tenant = tenant_of(&t, failover);
            let plan = Plan::parse(&failover.plan, &tenant)
                .unwrap_or_else(|e| panic!("{}:\n{e}", failover.tenant));
            assert_eq!(plan.networks().len(), tenant.networks.len());
            for rule in plan.rules().iter() {
                let replicas = t.machines.iter().filter(|m| m.tenant == tenant.name);
                let mut addresses = replicas.flat_map(|m| &m.addresses);
                assert!(addresses.any(|a| *a == rule.internal_ip()), "{rule}");
                assert!(matches!(rule.target(), RuleTarget::Ports { .. }));
            }
        }
    }

    #[test]
    fn the_cloud_knows_no_way_to_a_tenant_behind_its_router() {
        let t = gateways(Options::default());
        let cloud = t.find_host("cloud").unwrap();
        assert!(cloud.routes.is_empty());
        let addresses = cloud.links.iter().flat_map(|l| &l.addresses);
        assert!(!addresses.into_iter().any(|c| c.contains(ip("10.1.0.5"))));
        for tenant in ["acme", "globex"] {
            let router = format!("{tenant}-router");
            let rules = t.rules.iter().filter(|r| r.host == router);
            assert!(rules.into_iter().any(|r| r.nft.contains("masquerade")));
        }
        let wans = |name: &str| t.wans.iter().any(|w| w.name == name);
        assert!(["gw1-wan", "gw2-wan", "gw3-wan"].into_iter().all(wans));
    }

    #[test]
    fn the_second_routers_are_added_to_the_sites_of_full() {
        let (one, two) = (full(Options::default()), two_routers(Options::default()));
        assert_eq!(two.name, "two-routers");
        assert_eq!(
            (&one.appliances, &one.machines),
            (&two.appliances, &two.machines)
        );
        let routers = |t: &Topology, at: &str| {
            let at = cidr(at);
            let links = t.links().filter(|(host, _)| host.kind == Kind::Router);
            let addresses = links.flat_map(|(_, link)| &link.addresses);
            addresses.filter(|a| at.contains(a.addr)).count()
        };
        for network in ["203.0.113.0/24", "2001:db8:e::/64"] {
            assert_eq!([routers(&one, network), routers(&two, network)], [1, 2]);
        }
        // At the production site, and the replica.
        for network in ["10.1.0.0/24", "2001:db8:1::/64"] {
            assert_eq!([routers(&one, network), routers(&two, network)], [1, 3]);
        }
        let gateway = two.find_host("router").unwrap();
        assert!(gateway.routes.iter().any(|r| r.to.contains(ip("10.8.0.2"))));
        assert!(gateway.links.len() == one.find_host("router").unwrap().links.len());
    }

    #[test]
    fn only_the_client_is_listed() {
        let t = full(Options::default());
        let plan = Plan::parse(&t.failovers[0].plan, &tenant_of(&t, &t.failovers[0])).unwrap();
        let rule = plan.rules().iter().find(|r| r.name() == "ssh").unwrap();
        let listed = |host: &str| {
            let address = t.find_host(host).unwrap().links[0].addresses[0].addr;
            rule.allow().iter().any(|net| net.contains(address))
        };
        assert!(listed("client") && !listed("stranger"));
    }

    #[test]
    fn no_router_of_the_provider_knows_a_way_to_the_tenants_machines() {
        let t = full(Options::default());
        let edge = t.find_host("edge").unwrap();
        let ends: Vec<IpAddr> = ["10.1.0.5", "192.0.2.6"].map(ip).to_vec();
        for address in t.machines.iter().flat_map(|m| &m.addresses) {
            let mut routes = edge.routes.iter();
            assert!(!routes.any(|r| r.to.contains(*address)), "{address}");
            assert!(!ends.contains(address));
        }
    }
}
