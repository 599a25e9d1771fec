//! From a topology to the input of iproute2 and ethtool: pure text, tested without privilege.
//!
//! ```text
//!   host eth0 ─────── p0 ─ bridge br101 ─ b101 ⇄ t101 ─ (TC programs) ─ p1 ─────── eth1 appliance
//!   └ cw-lab-host ┘ └──────────── cw-lab-switch ────────────────────────┘ └ cw-lab-appliance ┘
//! ```

use std::collections::BTreeMap;

use crate::{
    addr::{Vlan, fixed_mac, mac_text},
    netns,
    switch::TrunkVlan,
    topology::{Attach, Hop, Host, Kind, Link, Topology},
};

/// A namespace with the lines of an `ip -batch` run inside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inside {
    pub namespace: String,
    pub lines: Vec<String>,
}

/// One `ethtool -K` run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    pub namespace: String,
    pub link: String,
    /// Pairs of feature and `on` or `off`.
    pub set: Vec<&'static str>,
}

/// A trunk whose programs are to be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trunk {
    pub namespace: String,
    pub port: String,
    pub vlans: Vec<TrunkVlan>,
    pub outer_ethertype: u16,
}

/// The far end of an appliance's or a gateway's NIC, which gets an XDP program that passes
/// everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FarEnd {
    /// The host or switch it is in.
    pub place: String,
    pub link: String,
}

/// Everything, in the order in which it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Hosts, then switches.
    pub namespaces: Vec<String>,
    /// `ip -batch` outside: veth pairs between namespaces.
    pub cables: Vec<String>,
    pub features: Vec<Features>,
    pub far_ends: Vec<FarEnd>,
    pub switches: Vec<Inside>,
    pub trunks: Vec<Trunk>,
    /// Routers first: they answer by the time that machines ask.
    pub hosts: Vec<Inside>,
}

/// Bridge and veth pair of a VLAN: `br101`, `b101`, `t101`; `br0`, `b0`, `t0` without a tag.
fn vlan_names(vlan: Option<Vlan>) -> (String, String, String) {
    let id = vlan.map_or_else(|| "0".to_owned(), |v| v.to_string());
    (format!("br{id}"), format!("b{id}"), format!("t{id}"))
}

/// Plans `topology` as lab `lab`. The topology has been validated.
pub(crate) fn plan(topology: &Topology, lab: &str) -> Plan {
    let mut plan = Plan {
        namespaces: topology
            .hosts
            .iter()
            .map(|h| &h.name)
            .chain(topology.switches.iter().map(|s| &s.name))
            .map(|n| netns::name(lab, n))
            .collect(),
        ..Plan::default()
    };
    cables(topology, lab, &mut plan);
    switches(topology, lab, &mut plan);
    let routers_first = topology
        .hosts
        .iter()
        .filter(|h| h.kind == Kind::Router)
        .chain(topology.hosts.iter().filter(|h| h.kind != Kind::Router));
    for host in routers_first {
        let mut lines = vec!["link set lo up".to_owned()];
        if host.powered {
            lines.extend(power_on(topology, host));
        }
        plan.hosts.push(Inside {
            namespace: netns::name(lab, &host.name),
            lines,
        });
    }
    plan
}

/// Lines for `ip -batch` in a host that bring its NICs up, with addresses and routes.
pub(crate) fn power_on(topology: &Topology, host: &Host) -> Vec<String> {
    let nodad = if topology.options.dad { "" } else { " nodad" };
    let mut lines = Vec::new();
    for link in &host.links {
        // IPv4 addresses before the link comes up, so that coming up announces them.
        for cidr in link.addresses.iter().filter(|c| c.addr.is_ipv4()) {
            lines.push(format!("address replace {cidr} dev {}", link.name));
        }
        lines.push(format!("link set {} up", link.name));
        for cidr in link.addresses.iter().filter(|c| c.addr.is_ipv6()) {
            lines.push(format!("address replace {cidr} dev {}{nodad}", link.name));
        }
    }
    for route in &host.routes {
        lines.push(match &route.hop {
            Hop::Via(via) => format!("route replace {} via {via}", route.to),
            Hop::OnLink(link) => format!("route replace {} dev {link}", route.to),
        });
    }
    lines
}

/// Lines that take a host's NICs down. [`power_on`] restores the addresses.
pub(crate) fn power_off(host: &Host) -> Vec<String> {
    host.links
        .iter()
        .map(|l| format!("link set {} down", l.name))
        .collect()
}

/// Queue options of `ip link`, one queue per worker. Both ends need them: a veth transmits on the
/// other end's receive queues.
fn queues(topology: &Topology) -> String {
    match topology.options.workers {
        0 | 1 => String::new(),
        n => format!(" numtxqueues {n} numrxqueues {n}"),
    }
}

fn cables(topology: &Topology, lab: &str, plan: &mut Plan) {
    let queues = queues(topology);
    let mut wans: BTreeMap<&str, Vec<(&Host, &Link)>> = BTreeMap::new();
    for (host, link) in topology.links() {
        match &link.to {
            Attach::Wan { wan } => wans.entry(wan).or_default().push((host, link)),
            Attach::Access { switch, .. } | Attach::Trunk { switch } => {
                let Some((_, port)) = topology.port_of(&host.name, &link.name) else {
                    continue;
                };
                let mtu = topology.mtu(link);
                plan.cables.push(format!(
                    "link add {} address {} mtu {mtu}{queues} netns {} type veth peer name {port} \
                     address {} mtu {mtu}{queues} netns {}",
                    link.name,
                    mac_text(fixed_mac(&host.name, &link.name)),
                    netns::name(lab, &host.name),
                    mac_text(fixed_mac(switch, &port)),
                    netns::name(lab, switch),
                ));
                plan.features.push(host_features(topology, lab, host, link));
                if host.kind.sends_by_xdp() {
                    plan.far_ends.push(FarEnd {
                        place: switch.clone(),
                        link: port.clone(),
                    });
                }
                plan.features.push(Features {
                    namespace: netns::name(lab, switch),
                    link: port,
                    set: far_end_features(
                        topology,
                        host.kind.sends_by_xdp(),
                        matches!(link.to, Attach::Trunk { .. }),
                    ),
                });
            }
        }
    }
    for ends in wans.values() {
        let [(host_a, link_a), (host_b, link_b)] = ends.as_slice() else {
            continue;
        };
        let mtu = topology.mtu(link_a);
        plan.cables.push(format!(
            "link add {} address {} mtu {mtu}{queues} netns {} type veth peer name {} address {} \
             mtu {mtu}{queues} netns {}",
            link_a.name,
            mac_text(fixed_mac(&host_a.name, &link_a.name)),
            netns::name(lab, &host_a.name),
            link_b.name,
            mac_text(fixed_mac(&host_b.name, &link_b.name)),
            netns::name(lab, &host_b.name),
        ));
        for (near, link, far) in [(host_a, link_a, host_b), (host_b, link_b, host_a)] {
            let mut features = host_features(topology, lab, near, link);
            if far.kind.sends_by_xdp() {
                features.set = far_end_features(topology, true, false);
                plan.far_ends.push(FarEnd {
                    place: near.name.clone(),
                    link: link.name.clone(),
                });
            }
            plan.features.push(features);
        }
    }
}

/// Whole checksums always, or an XDP program at the far end would see partial ones.
fn host_features(topology: &Topology, lab: &str, host: &Host, link: &Link) -> Features {
    let mut set = vec!["tx", "off"];
    if !topology.options.offloads {
        set.extend(["tso", "off", "gso", "off"]);
        // An appliance prepares its NICs itself.
        if host.kind != Kind::Appliance {
            set.extend(["gro", "off"]);
        }
    }
    Features {
        namespace: netns::name(lab, &host.name),
        link: link.name.clone(),
        set,
    }
}

/// Features of the far end of a NIC's cable. For an appliance or gateway: complete checksums, and
/// GRO as on a hypervisor's switch. For a trunk: the tag is in the packet, where XDP sees it.
fn far_end_features(topology: &Topology, appliance: bool, trunk: bool) -> Vec<&'static str> {
    let mut set = Vec::new();
    if appliance {
        set.extend(["tx", "off"]);
    }
    if !topology.options.offloads {
        set.extend(["tso", "off", "gso", "off", "gro", "off"]);
    } else if appliance {
        set.extend(["gro", "on"]);
    }
    if trunk {
        set.extend(["txvlan", "off", "tx-vlan-stag-hw-insert", "off"]);
    }
    set
}

fn switches(topology: &Topology, lab: &str, plan: &mut Plan) {
    for switch in &topology.switches {
        let namespace = netns::name(lab, &switch.name);
        let vlans = topology.vlans(&switch.name);
        let mut lines = vec!["link set lo up".to_owned()];
        for vlan in &vlans {
            let (bridge, _, _) = vlan_names(*vlan);
            lines.push(format!(
                "link add {bridge} address {} type bridge stp_state 0 forward_delay 0 \
                 mcast_snooping 0",
                mac_text(fixed_mac(&switch.name, &bridge))
            ));
        }
        let mut trunks = Vec::new();
        for (host, link) in topology.links() {
            let Some((at, port)) = topology.port_of(&host.name, &link.name) else {
                continue;
            };
            if at != switch.name {
                continue;
            }
            match &link.to {
                Attach::Access { vlan, .. } => {
                    let (bridge, _, _) = vlan_names(*vlan);
                    lines.push(format!("link set {port} master {bridge}"));
                }
                Attach::Trunk { .. } => trunks.push((port.clone(), topology.mtu(link))),
                Attach::Wan { .. } => {}
            }
            lines.push(format!("link set {port} alias {}.{}", host.name, link.name));
            lines.push(format!("link set {port} up"));
        }
        for (number, (trunk, mtu)) in trunks.into_iter().enumerate() {
            let mut ports = Vec::new();
            for vlan in &vlans {
                let (bridge, near, tagging) = vlan_names(*vlan);
                // Trunks beyond the first have names of their own.
                let suffix = if number == 0 {
                    String::new()
                } else {
                    format!("-{number}")
                };
                let (near, tagging) = (format!("{near}{suffix}"), format!("{tagging}{suffix}"));
                lines.push(format!(
                    "link add {tagging} address {} mtu {mtu} type veth peer name {near} address {} \
                     mtu {mtu}",
                    mac_text(fixed_mac(&switch.name, &tagging)),
                    mac_text(fixed_mac(&switch.name, &near)),
                ));
                lines.push(format!("link set {near} master {bridge}"));
                lines.push(format!("link set {near} up"));
                lines.push(format!("link set {tagging} up"));
                ports.push(TrunkVlan {
                    port: tagging,
                    vlan: *vlan,
                });
            }
            plan.trunks.push(Trunk {
                namespace: namespace.clone(),
                port: trunk,
                vlans: ports,
                outer_ethertype: switch.outer_ethertype,
            });
        }
        for vlan in &vlans {
            lines.push(format!("link set {} up", vlan_names(*vlan).0));
        }
        plan.switches.push(Inside { namespace, lines });
    }
}

/// Sysctls of a namespace, below `/proc/sys/net/`; written before its links are there.
pub(crate) fn sysctls(router: bool, switch: bool, dad: bool) -> Vec<(&'static str, &'static str)> {
    let mut set = vec![
        // Router advertisements are ignored: addresses are the declared ones.
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/autoconf", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        // A booting machine announces its addresses.
        ("ipv4/conf/default/arp_notify", "1"),
        ("ipv6/conf/default/ndisc_notify", "1"),
        // The larger of `all` and the link's own value counts.
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv4/ping_group_range", "0 2147483647"),
    ];
    if !dad {
        set.push(("ipv6/conf/default/accept_dad", "0"));
    }
    if switch {
        // A switch has no IP stack.
        set.push(("ipv6/conf/all/disable_ipv6", "1"));
        set.push(("ipv6/conf/default/disable_ipv6", "1"));
    }
    if router {
        set.push(("ipv4/ip_forward", "1"));
        set.push(("ipv6/conf/all/forwarding", "1"));
        set.push(("ipv6/conf/default/forwarding", "1"));
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sites, topology::Options};

    #[test]
    fn every_link_gets_one_cable_and_every_switch_port_a_bridge_or_programs() {
        let t = sites::partial(Options::default());
        let p = plan(&t, "x");
        // Links to switches have a cable each; two WAN links have one each for two ends.
        assert_eq!(p.cables.len(), t.links().count() - t.wans.len());
        assert_eq!(p.trunks.len(), 1);
        let vlans: Vec<_> = p.trunks[0].vlans.iter().map(|v| v.port.as_str()).collect();
        assert_eq!(vlans, ["t101", "t102"]);
        assert_eq!(p.namespaces.len(), t.hosts.len() + t.switches.len());
    }

    #[test]
    fn far_ends_of_appliances_have_complete_checksums_and_a_program() {
        for offloads in [true, false] {
            let t = sites::partial(Options {
                offloads,
                ..Options::default()
            });
            let p = plan(&t, "x");
            let (switch, trunk) = t.port_of("provider-appliance", "eth1").unwrap();
            let (net1, uplink) = t.port_of("tenant-appliance", "eth0").unwrap();
            assert_eq!(p.far_ends.len(), 4);
            for (place, link) in [
                (switch, trunk),
                (net1, uplink),
                ("wan".to_owned(), "provider".to_owned()),
            ] {
                let namespace = netns::name("x", &place);
                let features = p
                    .features
                    .iter()
                    .find(|f| f.namespace == namespace && f.link == link)
                    .unwrap();
                let text = features.set.join(" ");
                assert!(text.contains("tx off"), "{text}");
                assert_eq!(text.contains("gro on"), offloads, "{text}");
                assert!(p.far_ends.contains(&FarEnd { place, link }));
            }
        }
    }

    #[test]
    fn wire_like_hosts_have_no_segmentation_offloads() {
        let t = sites::partial(Options {
            offloads: false,
            ..Options::default()
        });
        let p = plan(&t, "x");
        let features = p
            .features
            .iter()
            .find(|f| f.namespace == "cw-x-prod-a")
            .unwrap();
        assert_eq!(features.set.join(" "), "tx off tso off gso off gro off");
    }

    #[test]
    fn the_trunk_carries_its_tags_in_the_packet() {
        let t = sites::partial(Options::default());
        let p = plan(&t, "x");
        let (switch, port) = t.port_of("provider-appliance", "eth1").unwrap();
        let features = p
            .features
            .iter()
            .find(|f| f.namespace == netns::name("x", &switch) && f.link == port)
            .unwrap();
        assert!(features.set.join(" ").contains("txvlan off"));
    }

    #[test]
    fn replicas_stay_down_until_powered() {
        let t = sites::partial(Options::default());
        let p = plan(&t, "x");
        let lines = |n: &str| {
            let inside = p.hosts.iter().find(|i| i.namespace == n).unwrap();
            inside.lines.join("\n")
        };
        assert_eq!(lines("cw-x-replica-a"), "link set lo up");
        assert!(lines("cw-x-prod-a").contains("link set eth0 up"));
        let on = power_on(&t, t.find_host("replica-a").unwrap()).join("\n");
        assert!(on.contains("10.1.0.10/24") && on.contains("route replace ::/0 via 2001:db8:1::1"));
    }

    #[test]
    fn public_addresses_are_resolved_on_the_uplink() {
        let t = sites::full(Options::default());
        let on = power_on(&t, t.find_host("edge").unwrap()).join("\n");
        assert!(
            on.contains("address replace 203.0.113.1/24 dev uplink"),
            "{on}"
        );
        assert!(
            on.contains("route replace 2001:db8:f::/64 dev uplink"),
            "{on}"
        );
    }

    #[test]
    fn names_of_qinq_ports_fit_into_an_interface_name() {
        let (bridge, near, tagging) = vlan_names(Some(Vlan::qinq(4094, 4094)));
        for name in [bridge, format!("{near}-9"), format!("{tagging}-9")] {
            assert!(name.len() <= crate::topology::MAX_INTERFACE_NAME, "{name}");
        }
    }
}
