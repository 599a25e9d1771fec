//! The built-in topologies.

use std::net::IpAddr;

use crate::{
    addr::{Cidr, Vlan},
    cloud::{Access, Circuit, Cloud, Director, Gateway},
    topology::{
        Appliance, Attach, Failover, Hop, Host, Kind, Link, Machine, Network, Options, Role, Route,
        Rules, Tenant, Topology,
    },
    trouble::{masquerade, no_udp},
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

const GATEWAYS: &str = "
 acme site, 10.1.0.0/24                       │  cloud                                 │  provider site
                                              │                                        │
 acme-prod-a .10, acme-prod-b .11 ─┐          │         ┌─ gw1 192.0.2.10  pool gold    │
 acme-appliance .5 ────────────────┴ acme-router ────┐  │      2001:db8:a:1::10         │                     ┌─ VLAN 101 ─ acme-replica-a .10
                                     translates      │  ├─ gw2 192.0.2.14  pool gold    │                     │
                                                   cloud ── provider-appliance 203.0.113.5 ── trunk ───────────┤
 globex site, the same 10.1.0.0/24                   │  ├─ gw3 192.0.2.18               │                     │
 globex-prod-a .10, globex-prod-b .11 ─┐      │      │  ├─ outside 198.51.100.10        │                     └─ VLAN 201 ─ globex-replica-a .10
 globex-appliance .6 ──────────────────┴ globex-router  └─ director 198.51.100.130      │
                                         translates, lets no UDP through
";

const FULL: &str = "
 provider site                                                            │  internet
                                                                          │  198.51.100.0/24, 2001:db8:99::/64
 replica-a .10, replica-b .11 ── VLAN 101 web ─┐                          │
 replica-c .10 ───────────────── VLAN 102 db ──┤ trunk                    │   ┌─ client .10
 replica-d .10 ───────────────── VLAN 103 ops ─┼─ provider-appliance      │   ├─ stranger .66
 globex-replica-a .10 ────────── VLAN 201 ─────┘     │ .5                 │   ├─ server .80
                                                     │                    │   │
 uplink-net 203.0.113.0/24, 2001:db8:e::/64 ─────────┴─────────────────── edge .1
                                                                           │ │
 production sites, cut off by a failover                                   │ │
 prod-a .10, prod-b .11, tenant-appliance .5 ── web ─┐                     │ │
 prod-c .10 ─────────────────────────────────── db ──┼─ router .1 ─────────┘ │
 prod-d .10 ─────────────────────────────────── ops ─┘           acme-wan    │
 globex-prod-a .10 ──────────────────────────────────── globex-appliance ────┘ globex-wan

 web 10.1.0.0/24, 2001:db8:1::/64, globex's network the same; db 10.2.0.0/24, 2001:db8:2::/64; ops 10.3.0.0/24
 public: acme 203.0.113.16/28, 2001:db8:f::/64; globex 203.0.113.32/28
";

/// Acme's failover plan in [`full`]: web has the internet, web and db reach each other, ops may send to web and hears
/// nothing back. Gateways are the configuration's.
const ACME_PLAN: &str = r#"name = "acme-dr"
tenant = "acme"
description = "the whole site"

[[network]]
name = "web"
internet = true

[[network]]
name = "db"

[[network]]
name = "ops"

[[allow]]
from = "web"
to = "db"

[[allow]]
from = "ops"
to = "web"
both = false

[[rule]]
name = "web"
public_ip = "203.0.113.20"
public_port = 80
internal_ip = "10.1.0.10"
internal_port = 8080

[[rule]]
name = "web-v6"
public_ip = "2001:db8:f::20"
public_port = 80
internal_ip = "2001:db8:1::10"
internal_port = 8080

[[rule]]
name = "sibling"
public_ip = "203.0.113.21"
public_port = 80
internal_ip = "10.1.0.11"
internal_port = 8080

[[rule]]
name = "sibling-v6"
public_ip = "2001:db8:f::21"
public_port = 80
internal_ip = "2001:db8:1::11"
internal_port = 8080

[[rule]]
name = "ssh"
public_ip = "203.0.113.20"
public_port = 2222
internal_ip = "10.1.0.10"
internal_port = 22
allow = ["198.51.100.0/26"]

[[rule]]
name = "iperf3"
public_ip = "203.0.113.20"
public_port = 5201
internal_ip = "10.1.0.10"

[[rule]]
name = "iperf3-v6"
public_ip = "2001:db8:f::20"
public_port = 5201
internal_ip = "2001:db8:1::10"

[[rule]]
name = "db"
public_ip = "203.0.113.22"
public_port = 8080
internal_ip = "10.2.0.10"
"#;

/// Globex's: the same addresses inside, others outside.
const GLOBEX_PLAN: &str = r#"name = "globex-dr"
tenant = "globex"

[[network]]
name = "globex-web"
internet = true

[[rule]]
name = "web"
public_ip = "203.0.113.36"
public_port = 80
internal_ip = "10.1.0.10"
internal_port = 8080
"#;

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
            tenants: vec![Tenant::named("acme")],
            peers: vec![("provider".to_owned(), ip("203.0.113.5"))],
            networks: networks(false),
        },
        Appliance {
            host: "provider-appliance".to_owned(),
            role: Role::Provider,
            uplink: "eth0".to_owned(),
            tenants: vec![Tenant::named("acme")],
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
            hop: Hop::Via(near),
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
        provider.tenants.push(Tenant::named(tenant));
        provider.peers.push((tenant.to_owned(), ip(&tunnel)));
        provider
            .networks
            .push(network(tenant, "eth1", Some(Vlan::single(vlan))));
        t.appliances.push(Appliance {
            host: format!("{tenant}-appliance"),
            role: Role::Tenant,
            uplink: "eth0".to_owned(),
            tenants: vec![Tenant::named(tenant)],
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

/// Two tenants that fail over whole: a provider with an uplink on its production network, its router, and the internet
/// behind that.
///
/// ```text
///   client, stranger, server ── internet ── edge ── uplink-net ── provider-appliance ── trunk
///   VLAN 101 web ── replica-a, replica-b     102 db ── replica-c     103 ops ── replica-d     201 ── globex-replica-a
///   edge ── acme-wan ── router ── prod-a, prod-b, prod-c, prod-d, tenant-appliance
///   edge ── globex-wan ── globex-appliance ── globex-prod-a
/// ```
///
/// The listed source of acme's rule `ssh` is `client`; `stranger` is not. `edge` asks for public addresses on the
/// uplink network, and knows no way to any address of a tenant's but the tunnel's ends. Globex's network has the
/// prefixes of acme's web.
#[must_use]
pub fn full(options: Options) -> Topology {
    // Beginnings of addresses: hosts are numbered alike in both families.
    const WEB: [&str; 2] = ["10.1.0.", "2001:db8:1::"];
    const DB: [&str; 2] = ["10.2.0.", "2001:db8:2::"];
    const OPS: [&str; 1] = ["10.3.0."];
    let length = |start: &str| if start.contains(':') { 64 } else { 24 };
    let addresses = |starts: &[&str], last: u8| -> Vec<String> {
        let one = |start: &&str| format!("{start}{last}/{}", length(start));
        starts.iter().map(one).collect()
    };
    let nic = |name: &str, to: Attach, starts: &[&str], last: u8| {
        let all = addresses(starts, last);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        link(name, to, &all)
    };
    let machine = |name: &str, starts: &[&str], last: u8, to: Attach, powered| {
        let default = |start: &&str| Route {
            to: cidr(if start.contains(':') {
                "::/0"
            } else {
                "0.0.0.0/0"
            }),
            hop: Hop::Via(ip(&format!("{start}1"))),
        };
        Host {
            powered,
            routes: starts.iter().map(default).collect(),
            ..host(
                name,
                Kind::Machine,
                vec![nic("eth0", to, starts, last)],
                &[],
            )
        }
    };
    let outside = |name: &str, last: u8| {
        let starts = ["198.51.100.", "2001:db8:99::"];
        machine(name, &starts, last, access("internet", None), true)
    };
    let production = |name: &str, starts: &[&str], last, switch: &str| {
        machine(name, starts, last, access(switch, None), true)
    };
    let replica = |name: &str, starts: &[&str], last, vlan| {
        let to = access("provider-net", Some(Vlan::single(vlan)));
        machine(name, starts, last, to, false)
    };
    let mut t = Topology::new("full", options)
        .switch("internet")
        .switch("uplink-net")
        .switch("provider-net")
        .switch("acme-web")
        .switch("acme-db")
        .switch("acme-ops")
        .switch("globex-lan")
        .wan("acme-wan")
        .wan("globex-wan")
        .host(outside("client", 10))
        .host(outside("stranger", 66))
        .host(outside("server", 80))
        .host(host(
            "edge",
            Kind::Router,
            vec![
                link(
                    "internet",
                    access("internet", None),
                    &["198.51.100.1/24", "2001:db8:99::1/64"],
                ),
                link(
                    "uplink",
                    access("uplink-net", None),
                    &["203.0.113.1/24", "2001:db8:e::1/64"],
                ),
                link("acme", wan("acme-wan"), &["192.0.2.1/30"]),
                link("globex", wan("globex-wan"), &["192.0.2.5/30"]),
            ],
            &[("2001:db8:f::/64", "uplink"), ("10.1.0.5/32", "192.0.2.2")],
        ))
        .host(host(
            "provider-appliance",
            Kind::Appliance,
            vec![
                link(
                    "eth0",
                    access("uplink-net", None),
                    &["203.0.113.5/24", "2001:db8:e::5/64"],
                ),
                link(
                    "eth1",
                    Attach::Trunk {
                        switch: "provider-net".to_owned(),
                    },
                    &[],
                ),
            ],
            &[("0.0.0.0/0", "203.0.113.1"), ("::/0", "2001:db8:e::1")],
        ))
        .host(replica("replica-a", &WEB, 10, 101))
        .host(replica("replica-b", &WEB, 11, 101))
        .host(replica("replica-c", &DB, 10, 102))
        .host(replica("replica-d", &OPS, 10, 103))
        .host(replica("globex-replica-a", &WEB, 10, 201))
        .host(host(
            "router",
            Kind::Router,
            vec![
                nic("web", access("acme-web", None), &WEB, 1),
                nic("db", access("acme-db", None), &DB, 1),
                nic("ops", access("acme-ops", None), &OPS, 1),
                link("wan", wan("acme-wan"), &["192.0.2.2/30"]),
            ],
            &[("0.0.0.0/0", "192.0.2.1")],
        ))
        .host(production("prod-a", &WEB, 10, "acme-web"))
        .host(production("prod-b", &WEB, 11, "acme-web"))
        .host(production("prod-c", &DB, 10, "acme-db"))
        .host(production("prod-d", &OPS, 10, "acme-ops"))
        .host(host(
            "tenant-appliance",
            Kind::Appliance,
            vec![
                link("eth0", access("acme-web", None), &["10.1.0.5/24"]),
                link("eth1", access("acme-db", None), &[]),
                link("eth2", access("acme-ops", None), &[]),
            ],
            &[("0.0.0.0/0", "10.1.0.1")],
        ))
        .host(production("globex-prod-a", &WEB, 10, "globex-lan"))
        .host(host(
            "globex-appliance",
            Kind::Appliance,
            vec![
                link("eth0", access("globex-lan", None), &[]),
                link("eth1", wan("globex-wan"), &["192.0.2.6/30"]),
            ],
            &[("0.0.0.0/0", "192.0.2.5")],
        ));
    t.picture = FULL.to_owned();

    let network = |name: &str, tenant: &str, vni, interface: &str, starts: &[&str]| Network {
        name: name.to_owned(),
        tenant: tenant.to_owned(),
        peer: "provider".to_owned(),
        vni,
        interface: interface.to_owned(),
        vlan: None,
        prefixes: starts
            .iter()
            .map(|s| cidr(&format!("{s}0/{}", length(s))))
            .collect(),
        gateway: starts.iter().map(|s| ip(&format!("{s}1"))).collect(),
    };
    let acme = [
        network("web", "acme", 1001, "eth0", &WEB),
        network("db", "acme", 1002, "eth1", &DB),
        network("ops", "acme", 1003, "eth2", &OPS),
    ];
    let globex = [network("globex-web", "globex", 2001, "eth0", &WEB)];
    let at_provider = |n: &Network, vlan| Network {
        peer: n.tenant.clone(),
        interface: "eth1".to_owned(),
        vlan: Some(Vlan::single(vlan)),
        ..n.clone()
    };
    let with_public = |name: &str, public: &[&str], nat: &[&str]| Tenant {
        name: name.to_owned(),
        public: public.iter().map(|p| cidr(p)).collect(),
        nat: nat.iter().map(|a| ip(a)).collect(),
    };
    let production_end = |host: &str, uplink: &str, tenant: &str, networks: &[Network]| Appliance {
        host: host.to_owned(),
        role: Role::Tenant,
        uplink: uplink.to_owned(),
        tenants: vec![Tenant::named(tenant)],
        peers: vec![("provider".to_owned(), ip("203.0.113.5"))],
        networks: networks.to_vec(),
    };
    t.appliances = vec![
        production_end("tenant-appliance", "eth0", "acme", &acme),
        production_end("globex-appliance", "eth1", "globex", &globex),
        Appliance {
            host: "provider-appliance".to_owned(),
            role: Role::Provider,
            uplink: "eth0".to_owned(),
            tenants: vec![
                with_public(
                    "acme",
                    &["203.0.113.16/28", "2001:db8:f::/64"],
                    &["203.0.113.16", "2001:db8:f::16"],
                ),
                with_public("globex", &["203.0.113.32/28"], &[]),
            ],
            peers: vec![
                ("acme".to_owned(), ip("10.1.0.5")),
                ("globex".to_owned(), ip("192.0.2.6")),
            ],
            networks: acme
                .iter()
                .chain(&globex)
                .zip([101, 102, 103, 201])
                .map(|(n, vlan)| at_provider(n, vlan))
                .collect(),
        },
    ];
    let moves = |production: &str,
                 replica: &str,
                 tenant: &str,
                 network: &str,
                 starts: &[&str],
                 last: u8,
                 own: &str| Machine {
        production: production.to_owned(),
        replica: replica.to_owned(),
        tenant: tenant.to_owned(),
        network: network.to_owned(),
        addresses: starts.iter().map(|s| ip(&format!("{s}{last}"))).collect(),
        tenant_appliance: own.to_owned(),
        provider_appliance: "provider-appliance".to_owned(),
    };
    let acmes = |production: &str, replica: &str, network: &str, starts: &[&str], last| {
        moves(
            production,
            replica,
            "acme",
            network,
            starts,
            last,
            "tenant-appliance",
        )
    };
    t.machines = vec![
        acmes("prod-a", "replica-a", "web", &WEB, 10),
        acmes("prod-b", "replica-b", "web", &WEB, 11),
        acmes("prod-c", "replica-c", "db", &DB, 10),
        acmes("prod-d", "replica-d", "ops", &OPS, 10),
        moves(
            "globex-prod-a",
            "globex-replica-a",
            "globex",
            "globex-web",
            &WEB,
            10,
            "globex-appliance",
        ),
    ];
    let failover = |tenant: &str, plan: &str| Failover {
        tenant: tenant.to_owned(),
        appliance: "provider-appliance".to_owned(),
        wan: format!("{tenant}-wan"),
        plan: plan.to_owned(),
    };
    t.failovers = vec![failover("acme", ACME_PLAN), failover("globex", GLOBEX_PLAN)];
    t
}

/// The sites of [`two_tenants`], which reach their provider through gateways only.
///
/// ```text
///   acme-appliance ── acme-router (translates) ────────┐       ┌─ gw1 192.0.2.10, 2001:db8:a:1::10  pool gold
///   globex-appliance ── globex-router (and drops UDP) ─┤       ├─ gw2 192.0.2.14                    pool gold
///   outside ───────────────────────────────────────────┼ cloud ┼─ gw3 192.0.2.18                    no pool
///   provider-appliance, director ──────────────────────┘       └─
/// ```
///
/// Each line to `cloud` is a WAN link `<host>-wan` of its own (`acme-wan` and `globex-wan` of the routers), so that one can be cut or
/// made a black hole. `cloud` knows no way to a tenant's LAN. Acme may use pool gold and then what has no pool, globex pool gold only.
#[must_use]
pub fn gateways(options: Options) -> Topology {
    let mut t = two_tenants(options);
    t.name = "gateways".to_owned();
    t.picture = GATEWAYS.to_owned();
    t.hosts
        .retain(|h| h.name != "wan" && h.name != "provider-appliance");
    let behind = |name: &str, wan_name: &str, addresses: &[&str], routers: &[&str], kind| {
        let default = |router: &str| {
            if router.contains(':') {
                "::/0"
            } else {
                "0.0.0.0/0"
            }
        };
        let routes: Vec<_> = routers.iter().map(|r| (default(r), *r)).collect();
        host(
            name,
            kind,
            vec![link("eth0", wan(wan_name), addresses)],
            &routes,
        )
    };
    let mut provider = provider_appliance();
    provider.links[0].addresses.push(cidr("2001:db8:e::5/64"));
    provider.routes.push(Route {
        to: cidr("::/0"),
        hop: Hop::Via(ip("2001:db8:e::1")),
    });
    t = t
        .wan("gw1-wan")
        .wan("gw2-wan")
        .wan("gw3-wan")
        .wan("director-wan")
        .wan("outside-wan")
        .host(host(
            "cloud",
            Kind::Router,
            vec![
                link("acme", wan("acme-wan"), &["198.51.100.1/30"]),
                link("globex", wan("globex-wan"), &["198.51.100.5/30"]),
                link(
                    "outside",
                    wan("outside-wan"),
                    &["198.51.100.9/30", "2001:db8:c::1/64"],
                ),
                link(
                    "gw1",
                    wan("gw1-wan"),
                    &["192.0.2.9/30", "2001:db8:a:1::1/64"],
                ),
                link("gw2", wan("gw2-wan"), &["192.0.2.13/30"]),
                link("gw3", wan("gw3-wan"), &["192.0.2.17/30"]),
                link(
                    "provider",
                    wan("provider-wan"),
                    &["203.0.113.1/24", "2001:db8:e::1/64"],
                ),
                link(
                    "director",
                    wan("director-wan"),
                    &["198.51.100.129/30", "2001:db8:d::1/64"],
                ),
            ],
            &[],
        ))
        .host(behind(
            "gw1",
            "gw1-wan",
            &["192.0.2.10/30", "2001:db8:a:1::10/64"],
            &["192.0.2.9", "2001:db8:a:1::1"],
            Kind::Gateway,
        ))
        .host(behind(
            "gw2",
            "gw2-wan",
            &["192.0.2.14/30"],
            &["192.0.2.13"],
            Kind::Gateway,
        ))
        .host(behind(
            "gw3",
            "gw3-wan",
            &["192.0.2.18/30"],
            &["192.0.2.17"],
            Kind::Gateway,
        ))
        .host(behind(
            "director",
            "director-wan",
            &["198.51.100.130/30", "2001:db8:d::130/64"],
            &["198.51.100.129", "2001:db8:d::1"],
            Kind::Machine,
        ))
        .host(behind(
            "outside",
            "outside-wan",
            &["198.51.100.10/30", "2001:db8:c::10/64"],
            &["198.51.100.9", "2001:db8:c::1"],
            Kind::Machine,
        ))
        .host(provider);
    t.rules = ["acme-router", "globex-router"]
        .map(|router| Rules {
            host: router.to_owned(),
            nft: masquerade("wan", PORTS),
        })
        .into();
    t.rules.push(Rules {
        host: "globex-router".to_owned(),
        nft: no_udp("wan"),
    });
    let circuit = |tenant: &str, unpooled| Circuit {
        tenant: tenant.to_owned(),
        ends: [
            format!("{tenant}-appliance"),
            "provider-appliance".to_owned(),
        ],
        access: Access {
            pools: vec!["gold".to_owned()],
            unpooled,
        },
        tls: Some(format!("{tenant}.tunnel.example.net")),
    };
    t.cloud = Cloud {
        gateways: vec![
            gateway("gw1", Some("gold")),
            gateway("gw2", Some("gold")),
            gateway("gw3", None),
        ],
        circuits: vec![circuit("acme", true), circuit("globex", false)],
        director: Some(Director {
            host: "director".to_owned(),
            port: 443,
            name: "director.example.net".to_owned(),
        }),
    };
    t
}

/// Source ports that the routers of [`gateways`] translate to.
pub const PORTS: (u16, u16) = (20_000, 39_999);

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
        let way = format!("{name}-wan");
        if let Some(router) = t.hosts.iter_mut().find(|h| h.name == "wan") {
            let nic = link(name, wan(&way), &[&format!("{near}/30")]);
            router.links.push(nic);
        }
        let nic = link("eth0", wan(&way), &[far]);
        t = t
            .wan(&way)
            .host(host(name, Kind::Gateway, vec![nic], &[("0.0.0.0/0", near)]));
        t.cloud.gateways.push(gateway(name, None));
    }
    t.cloud.circuits.push(Circuit {
        tenant: "acme".to_owned(),
        ends: ["tenant-appliance", "provider-appliance"].map(str::to_owned),
        access: Access::default(),
        tls: Some("acme.tunnel.example.net".to_owned()),
    });
    t
}

fn gateway(host: &str, pool: Option<&str>) -> Gateway {
    Gateway {
        host: host.to_owned(),
        pool: pool.map(str::to_owned),
        load: 0,
    }
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

/// A powered host. Texts are `ADDRESS/LENGTH` and addresses; a route leads to an address, or to the destination
/// itself on the link of that name.
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

fn ip(text: &str) -> IpAddr {
    text.parse()
        .expect("addresses in a declared topology are valid")
}

#[cfg(test)]
mod tests {
    use failover::{IpPrefix, NetworkContext, Plan, RuleTarget, TenantContext};

    use super::*;

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
