//! The built-in topologies.

use std::net::IpAddr;

use crate::{
    addr::{Cidr, Vlan},
    topology::{
        Appliance, Attach, Host, Kind, Link, Machine, Network, Options, Role, Route, Topology,
    },
};

const PARTIAL: &str = "
 tenant site                                          │  provider site
                                                      │
 prod-a .10 ──────────────┐                           │
 prod-b .11 ──────────────┤ net1 10.1.0.0/24          │
                          │      2001:db8:1::/64      │
 tenant-appliance eth0 .5 ┴───────────┐               │                         ┌─ VLAN 101 ─ replica-a .10
                                   router .1 ─── wan ─┼─ provider-appliance ────┤ virtual switch
 tenant-appliance eth1 ───┬───────────┤               │  203.0.113.5     trunk  └─ VLAN 102 ─ replica-c .10
 prod-c .10 ──────────────┤ net2 10.2.0.0/24          │
 prod-d .11 ──────────────┘           │               │
                                      └─ remote 10.9.0.2, 2001:db8:9::2
";

const TWO_TENANTS: &str = "
 acme site, 10.1.0.0/24                               │  provider site
 acme-prod-a .10 ────────┐                            │
 acme-prod-b .11 ────────┤                            │
 acme-appliance .5 ──────┴── acme-router .1 ───┐      │                         ┌─ VLAN 101 ─ acme-replica-a .10
                                               ├─ wan ┼─ provider-appliance ────┤ virtual switch
 globex-appliance .6 ────┬── globex-router .1 ─┘      │  203.0.113.5     trunk  └─ VLAN 201 ─ globex-replica-a .10
 globex-prod-a .10 ──────┤                            │
 globex-prod-b .11 ──────┘                            │
 globex site, the same 10.1.0.0/24                    │
";

/// One tenant, two networks, a provider, a remote host: what issue 2 asks for.
///
/// ```text
///   prod-a, prod-b, router, tenant-appliance ── net1      VLAN 101 ── replica-a
///   prod-c, prod-d, router, tenant-appliance ── net2      VLAN 102 ── replica-c
///   router ── wan ── provider-appliance ── trunk          remote ── router
/// ```
///
/// Net1 is IPv4 and IPv6, net2 is IPv4. `router` and `wan` know the tunnel's ends and nothing else
/// of each other's sites.
#[must_use]
pub fn partial(options: Options) -> Topology {
    let net1 = || access("tenant-net1", None);
    let net2 = || access("tenant-net2", None);
    let machine1 = |name: &str, last: u8, to: Attach, powered| Host {
        powered,
        ..host(
            name,
            Kind::Machine,
            vec![link(
                "eth0",
                to,
                &[
                    &format!("10.1.0.{last}/24"),
                    &format!("2001:db8:1::{last}/64"),
                ],
            )],
            &[("0.0.0.0/0", "10.1.0.1"), ("::/0", "2001:db8:1::1")],
        )
    };
    let machine2 = |name: &str, last: u8, to: Attach, powered| Host {
        powered,
        ..host(
            name,
            Kind::Machine,
            vec![link("eth0", to, &[&format!("10.2.0.{last}/24")])],
            &[("0.0.0.0/0", "10.2.0.1")],
        )
    };
    let provider_net = |id| access("provider-net", Some(Vlan::single(id)));

    let mut t = Topology::new("partial", options)
        .switch("tenant-net1")
        .switch("tenant-net2")
        .switch("remote-lan")
        .switch("provider-net")
        .wan("tenant-wan")
        .wan("provider-wan")
        .host(machine1("prod-a", 10, net1(), true))
        .host(machine1("prod-b", 11, net1(), true))
        .host(machine2("prod-c", 10, net2(), true))
        .host(machine2("prod-d", 11, net2(), true))
        .host(host(
            "router",
            Kind::Router,
            vec![
                link("net1", net1(), &["10.1.0.1/24", "2001:db8:1::1/64"]),
                link("net2", net2(), &["10.2.0.1/24"]),
                link(
                    "remote-lan",
                    access("remote-lan", None),
                    &["10.9.0.1/24", "2001:db8:9::1/64"],
                ),
                link("wan", wan("tenant-wan"), &["198.51.100.2/30"]),
            ],
            &[("0.0.0.0/0", "198.51.100.1")],
        ))
        .host(host(
            "remote",
            Kind::Machine,
            vec![link(
                "eth0",
                access("remote-lan", None),
                &["10.9.0.2/24", "2001:db8:9::2/64"],
            )],
            &[("0.0.0.0/0", "10.9.0.1"), ("::/0", "2001:db8:9::1")],
        ))
        .host(host(
            "tenant-appliance",
            Kind::Appliance,
            vec![
                link("eth0", net1(), &["10.1.0.5/24"]),
                link("eth1", net2(), &[]),
            ],
            &[("0.0.0.0/0", "10.1.0.1")],
        ))
        .host(host(
            "wan",
            Kind::Router,
            vec![
                link("tenant", wan("tenant-wan"), &["198.51.100.1/30"]),
                link("provider", wan("provider-wan"), &["203.0.113.1/24"]),
            ],
            &[("10.1.0.5/32", "198.51.100.2")],
        ))
        .host(provider_appliance())
        .host(machine1("replica-a", 10, provider_net(101), false))
        .host(machine2("replica-c", 10, provider_net(102), false));
    t.picture = PARTIAL.to_owned();

    let networks = |provider: bool| {
        let one =
            |name: &str, vni, interface: &str, vlan, prefixes: &[&str], gateway: &[&str]| Network {
                name: name.to_owned(),
                tenant: "acme".to_owned(),
                peer: if provider { "tenant" } else { "provider" }.to_owned(),
                vni,
                interface: if provider { "eth1" } else { interface }.to_owned(),
                vlan: provider.then(|| Vlan::single(vlan)),
                prefixes: prefixes.iter().map(|p| cidr(p)).collect(),
                gateway: gateway.iter().map(|g| ip(g)).collect(),
            };
        vec![
            one(
                "net1",
                1001,
                "eth0",
                101,
                &["10.1.0.0/24", "2001:db8:1::/64"],
                &["10.1.0.1", "2001:db8:1::1"],
            ),
            one("net2", 1002, "eth1", 102, &["10.2.0.0/24"], &["10.2.0.1"]),
        ]
    };
    t.appliances = vec![
        Appliance {
            host: "tenant-appliance".to_owned(),
            role: Role::Tenant,
            uplink: "eth0".to_owned(),
            tenants: vec!["acme".to_owned()],
            peers: vec![("provider".to_owned(), ip("203.0.113.5"))],
            networks: networks(false),
        },
        Appliance {
            host: "provider-appliance".to_owned(),
            role: Role::Provider,
            uplink: "eth0".to_owned(),
            tenants: vec!["acme".to_owned()],
            peers: vec![("tenant".to_owned(), ip("10.1.0.5"))],
            networks: networks(true),
        },
    ];
    let machine = |letter: char, network: &str, addresses: &[&str]| Machine {
        production: format!("prod-{letter}"),
        replica: format!("replica-{letter}"),
        tenant: "acme".to_owned(),
        network: network.to_owned(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        tenant_appliance: "tenant-appliance".to_owned(),
        provider_appliance: "provider-appliance".to_owned(),
    };
    t.machines = vec![
        machine('a', "net1", &["10.1.0.10", "2001:db8:1::10"]),
        machine('c', "net2", &["10.2.0.10"]),
    ];
    t
}

/// Two tenants whose networks have the same addresses, on VLANs 101 and 201 of one provider.
///
/// The networks are `acme-net1` (VNI 1001) and `globex-net1` (VNI 2001). The tunnels' ends are
/// 10.1.0.5 (acme) and 10.1.0.6 (globex): plain VXLAN tells peers apart by address, so these two
/// differ and `wan` has a host route to each.
#[must_use]
pub fn two_tenants(options: Options) -> Topology {
    let tenants: [(&str, u16, u32, u8, &str); 2] = [
        ("acme", 101, 1001, 5, "198.51.100.0"),
        ("globex", 201, 2001, 6, "198.51.100.4"),
    ];
    let mut t = Topology::new("two-tenants", options)
        .switch("acme-net1")
        .switch("globex-net1")
        .switch("provider-net")
        .wan("acme-wan")
        .wan("globex-wan")
        .wan("provider-wan");
    let mut wan_host = host(
        "wan",
        Kind::Router,
        vec![link("provider", wan("provider-wan"), &["203.0.113.1/24"])],
        &[],
    );
    let mut provider = Appliance {
        host: "provider-appliance".to_owned(),
        role: Role::Provider,
        uplink: "eth0".to_owned(),
        tenants: Vec::new(),
        peers: Vec::new(),
        networks: Vec::new(),
    };
    for (tenant, vlan, vni, tunnel, transit) in tenants {
        let lan = || access(&format!("{tenant}-net1"), None);
        let machine = |name: String, last: u8, to: Attach, powered| Host {
            powered,
            ..host(
                &name,
                Kind::Machine,
                vec![link(
                    "eth0",
                    to,
                    &[
                        &format!("10.1.0.{last}/24"),
                        &format!("2001:db8:1::{last}/64"),
                    ],
                )],
                &[("0.0.0.0/0", "10.1.0.1"), ("::/0", "2001:db8:1::1")],
            )
        };
        let transit = u32::from(match ip(transit) {
            IpAddr::V4(a) => a,
            IpAddr::V6(_) => unreachable!("the table above has IPv4 transit networks"),
        });
        let near = IpAddr::V4((transit + 2).into());
        let far = IpAddr::V4((transit + 1).into());
        let tunnel = format!("10.1.0.{tunnel}");
        wan_host.links.push(link(
            tenant,
            wan(&format!("{tenant}-wan")),
            &[&format!("{far}/30")],
        ));
        wan_host.routes.push(Route {
            to: cidr(&format!("{tunnel}/32")),
            via: near,
        });
        t = t
            .host(machine(format!("{tenant}-prod-a"), 10, lan(), true))
            .host(machine(format!("{tenant}-prod-b"), 11, lan(), true))
            .host(host(
                &format!("{tenant}-router"),
                Kind::Router,
                vec![
                    link("net1", lan(), &["10.1.0.1/24", "2001:db8:1::1/64"]),
                    link(
                        "wan",
                        wan(&format!("{tenant}-wan")),
                        &[&format!("{near}/30")],
                    ),
                ],
                &[("0.0.0.0/0", &far.to_string())],
            ))
            .host(host(
                &format!("{tenant}-appliance"),
                Kind::Appliance,
                vec![link("eth0", lan(), &[&format!("{tunnel}/24")])],
                &[("0.0.0.0/0", "10.1.0.1")],
            ))
            .host(machine(
                format!("{tenant}-replica-a"),
                10,
                access("provider-net", Some(Vlan::single(vlan))),
                false,
            ));
        let network = |peer: &str, interface: &str, vlan| Network {
            name: format!("{tenant}-net1"),
            tenant: tenant.to_owned(),
            peer: peer.to_owned(),
            vni,
            interface: interface.to_owned(),
            vlan,
            prefixes: vec![cidr("10.1.0.0/24"), cidr("2001:db8:1::/64")],
            gateway: vec![ip("10.1.0.1"), ip("2001:db8:1::1")],
        };
        provider.tenants.push(tenant.to_owned());
        provider.peers.push((tenant.to_owned(), ip(&tunnel)));
        provider
            .networks
            .push(network(tenant, "eth1", Some(Vlan::single(vlan))));
        t.appliances.push(Appliance {
            host: format!("{tenant}-appliance"),
            role: Role::Tenant,
            uplink: "eth0".to_owned(),
            tenants: vec![tenant.to_owned()],
            peers: vec![("provider".to_owned(), ip("203.0.113.5"))],
            networks: vec![network("provider", "eth0", None)],
        });
        t.machines.push(Machine {
            production: format!("{tenant}-prod-a"),
            replica: format!("{tenant}-replica-a"),
            tenant: tenant.to_owned(),
            network: format!("{tenant}-net1"),
            addresses: vec![ip("10.1.0.10"), ip("2001:db8:1::10")],
            tenant_appliance: format!("{tenant}-appliance"),
            provider_appliance: "provider-appliance".to_owned(),
        });
    }
    t.appliances.push(provider);
    t.picture = TWO_TENANTS.to_owned();
    t.host(wan_host).host(provider_appliance())
}

fn provider_appliance() -> Host {
    host(
        "provider-appliance",
        Kind::Appliance,
        vec![
            link("eth0", wan("provider-wan"), &["203.0.113.5/24"]),
            link(
                "eth1",
                Attach::Trunk {
                    switch: "provider-net".to_owned(),
                },
                &[],
            ),
        ],
        &[("0.0.0.0/0", "203.0.113.1")],
    )
}

/// A powered host. Texts are `ADDRESS/LENGTH` and addresses.
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
            .map(|(to, via)| Route {
                to: cidr(to),
                via: ip(via),
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

fn ip(text: &str) -> IpAddr {
    text.parse()
        .expect("addresses in a declared topology are valid")
}
