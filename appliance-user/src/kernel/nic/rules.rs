//! The requirements of a port on its NIC: the settings to change, and the settings that prevent
//! forwarding. Pure: a function of the kernel's report.

use std::collections::BTreeMap;

use appliance_common::wire::{ETHERTYPE_8021AD, ETHERTYPE_8021Q};

use super::link::{LinkFacts, VlanId};

/// State of an ethtool feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Whether it is on.
    pub on: bool,
    /// Whether the driver lets it be changed.
    pub changeable: bool,
}

/// The requirements of a port on its NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// Outer VLANs of the networks on the port, sorted.
    pub vlans: Vec<VlanId>,
    /// Whether a network of the port has two tags.
    pub two_tags: bool,
    /// Whether XDP runs in the generic hook, behind the kernel's receive offloads.
    pub generic: bool,
    /// The NIC's MTU, bytes.
    pub mtu: u32,
    /// Largest `mtu` that is configured for a network of the port, bytes.
    pub largest_packet: Option<u16>,
}

/// The kernel's report of a NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Name of the driver, such as `vmxnet3`; empty if unknown.
    pub driver: String,
    /// Its features by the names of `ethtool -k`.
    pub features: BTreeMap<String, Feature>,
    /// Its relations to other links.
    pub link: LinkFacts,
}

impl Facts {
    fn is_on(&self, feature: &str) -> bool {
        self.features.get(feature).is_some_and(|f| f.on)
    }
}

/// A feature that must be off.
struct ForbiddenFeature {
    /// The kernel's name.
    feature: &'static str,
    /// The name that `ethtool -K` takes.
    command: &'static str,
    /// In words.
    meaning: &'static str,
    /// Its effect on the port's packets.
    harm: &'static str,
}

const LRO: ForbiddenFeature = ForbiddenFeature {
    feature: "rx-lro",
    command: "lro",
    meaning: "large receive offload",
    harm: "it joins packets before XDP sees them",
};
const GRO_HW: ForbiddenFeature = ForbiddenFeature {
    feature: "rx-gro-hw",
    command: "rx-gro-hw",
    meaning: "GRO in hardware",
    harm: "it joins packets before XDP sees them",
};
const GRO: ForbiddenFeature = ForbiddenFeature {
    feature: "rx-gro",
    command: "gro",
    meaning: "GRO",
    harm: "it joins packets before generic XDP sees them",
};
const RX_VLAN: ForbiddenFeature = ForbiddenFeature {
    feature: "rx-vlan-hw-parse",
    command: "rxvlan",
    meaning: "VLAN stripping on receive",
    harm: "frames of every VLAN would count as untagged",
};
const RX_STAG: ForbiddenFeature = ForbiddenFeature {
    feature: "rx-vlan-stag-hw-parse",
    command: "rx-vlan-stag-hw-parse",
    meaning: "stripping of service tags on receive",
    harm: "frames of every service VLAN would count as untagged",
};
const TX_VLAN: ForbiddenFeature = ForbiddenFeature {
    feature: "tx-vlan-hw-insert",
    command: "txvlan",
    meaning: "VLAN insertion on transmit",
    harm: "XDP writes the tags",
};
const TX_STAG: ForbiddenFeature = ForbiddenFeature {
    feature: "tx-vlan-stag-hw-insert",
    command: "tx-vlan-stag-hw-insert",
    meaning: "insertion of service tags on transmit",
    harm: "XDP writes the tags",
};

/// Features that filter VLANs: by tag type, the kernel's name.
const FILTERS: [(u16, &str); 2] = [
    (ETHERTYPE_8021Q, "rx-vlan-filter"),
    (ETHERTYPE_8021AD, "rx-vlan-stag-filter"),
];

/// Kinds of links whose frames XDP sees as those of their members.
const AGGREGATES: [&str; 2] = ["bond", "team"];

/// The bytes of a second VLAN tag, for which neither drivers nor the kernel reserve room above the
/// MTU.
pub const SECOND_TAG: u16 = 4;

/// Largest MTU in bytes at which native XDP attaches, by driver: a page without headroom and tail,
/// unless the driver has its own limit (vmxnet3_xdp.c, netvsc_bpf.c, veth.c).
#[must_use]
pub fn max_mtu(driver: &str) -> u32 {
    match driver {
        "veth" => 3520,
        "hv_netvsc" => 3506,
        "vmxnet3" => 3490,
        _ => 3498,
    }
}

fn unwanted(required: &Requirements) -> Vec<ForbiddenFeature> {
    let mut list = vec![LRO, GRO_HW, RX_VLAN, RX_STAG];
    if required.generic {
        list.push(GRO);
    }
    if !required.vlans.is_empty() {
        list.extend([TX_VLAN, TX_STAG]);
    }
    list
}

/// The features to switch off. VLAN filters are among them: where one stays on, the VLANs must be
/// registered with it ([`filtered_vlans`]).
#[must_use]
pub fn features_to_switch_off(facts: &Facts, required: &Requirements) -> Vec<&'static str> {
    let filters = FILTERS.into_iter().filter_map(|(tag, feature)| {
        let needed = required.vlans.iter().any(|(of, _)| *of == tag);
        needed.then_some(feature)
    });
    let unwanted = unwanted(required).into_iter().map(|u| u.feature);
    unwanted.chain(filters).filter(|f| facts.is_on(f)).collect()
}

/// The VLANs of the port that the NIC's filter must know, with the features as read back.
#[must_use]
pub fn filtered_vlans(facts: &Facts, required: &Requirements) -> Vec<VlanId> {
    let filtered = |(tag, _): &&VlanId| {
        let mut filters = FILTERS.into_iter();
        filters.any(|(of, feature)| of == *tag && facts.is_on(feature))
    };
    required.vlans.iter().filter(filtered).copied().collect()
}

/// The settings that prevent forwarding, each with its remedy, from the features as read back.
#[must_use]
pub fn problems(interface: &str, facts: &Facts, required: &Requirements) -> Vec<String> {
    let mut problems: Vec<String> = Vec::new();
    problems.extend(relation_problem(interface, &facts.link));
    let driver = &facts.driver;
    let outside_the_packet = driver == "hv_netvsc";
    if outside_the_packet && !required.vlans.is_empty() {
        problems.push(
            "Hyper-V passes VLAN tags outside the packet, so XDP cannot distinguish the networks \
             of a trunk: give each VLAN its own vNIC and leave out vlan"
                .to_owned(),
        );
    }
    for ForbiddenFeature {
        feature,
        command,
        meaning,
        harm,
    } in unwanted(required)
    {
        // Hyper-V's switch delivers no tagged frame to an access vNIC.
        let is_tag = feature.contains("vlan");
        if !facts.is_on(feature) || (is_tag && outside_the_packet && required.vlans.is_empty()) {
            continue;
        }
        problems.push(format!(
            "{meaning} cannot be switched off (`ethtool -K {interface} {command} off`): the \
             driver {driver} does not allow it, and {harm}"
        ));
    }
    problems.extend(mtu_problem(interface, facts, required));
    problems
}

/// Why XDP on this link would see frames of other interfaces, or none.
fn relation_problem(interface: &str, link: &LinkFacts) -> Option<String> {
    let LinkFacts {
        kind,
        member_of,
        master,
        members,
    } = link;
    if AGGREGATES.contains(&kind.as_str()) {
        return Some(format!(
            "is a {kind}, whose frames XDP sees as those of its members ({}): remove the {kind} \
             and name one NIC, or let the hypervisor or the switch aggregate the links",
            members.join(", ")
        ));
    }
    if AGGREGATES.contains(&member_of.as_str()) {
        return Some(format!(
            "is a member of the {member_of} {master}, which shares its frames with others: take \
             it out with `ip link set {interface} nomaster`, or name another interface"
        ));
    }
    // The synthetic NIC of Hyper-V, or net_failover: the SR-IOV function below it has no kind.
    if kind.is_empty() && !members.is_empty() {
        return Some(format!(
            "hands its frames to the SR-IOV function {} below it, where XDP does not see them as \
             this interface's: switch SR-IOV (accelerated networking) off for this vNIC",
            members.join(", ")
        ));
    }
    None
}

fn mtu_problem(interface: &str, facts: &Facts, required: &Requirements) -> Option<String> {
    let Requirements {
        mtu,
        generic,
        two_tags,
        largest_packet,
        ..
    } = required;
    let driver = &facts.driver;
    let max = max_mtu(driver);
    if !generic && *mtu > max {
        return Some(format!(
            "MTU {mtu} exceeds the maximum of {max} for native XDP on {driver}: \
             `ip link set {interface} mtu {max}`"
        ));
    }
    let tag = if *two_tags { u32::from(SECOND_TAG) } else { 0 };
    let room = mtu.saturating_sub(tag);
    let needed = match largest_packet {
        Some(packet) => u32::from(*packet),
        // A LAN of the usual MTU behind a trunk that has no room for the second tag.
        None if (ETHERNET_MTU..ETHERNET_MTU + tag).contains(mtu) => ETHERNET_MTU,
        None => 0,
    };
    (needed > room).then(|| {
        let tags = if *two_tags {
            " behind two VLAN tags"
        } else {
            ""
        };
        format!(
            "MTU {mtu} has no room for packets of {needed} bytes{tags}: `ip link set {interface} \
             mtu {}`, or lower network.mtu to {room}",
            needed + tag
        )
    })
}

const ETHERNET_MTU: u32 = 1500;

/// A port, as the check of redirects sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectPort {
    /// Name of the interface.
    pub interface: String,
    /// Name of its driver.
    pub driver: String,
    /// Whether its program runs in the driver. The generic hook can send on every driver.
    pub native: bool,
    /// Whether its driver accepts redirected frames; `None`: the kernel does not report it.
    pub accepts: Option<bool>,
}

/// For each port that others redirect packets to and whose driver drops them: its name and the
/// problem. `redirects` are pairs of names, from and to.
#[must_use]
pub fn redirect_problems(
    ports: &[RedirectPort],
    redirects: &[(String, String)],
) -> Vec<(String, String)> {
    let native = |name: &str| ports.iter().any(|p| p.interface == name && p.native);
    let mut problems = Vec::new();
    for to in ports.iter().filter(|p| p.accepts == Some(false)) {
        let mut sources: Vec<&str> = redirects
            .iter()
            .filter(|(from, target)| *target == to.interface && native(from))
            .map(|(from, _)| from.as_str())
            .collect();
        sources.sort_unstable();
        sources.dedup();
        if sources.is_empty() {
            continue;
        }
        let from = sources.join(", ");
        problems.push((
            to.interface.clone(),
            format!(
                "driver {} accepts no frames that XDP redirects to it, so packets from {from} \
                 would be lost: set xdp = \"generic\" for {from}, or use another NIC type",
                to.driver
            ),
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: Feature = Feature {
        on: true,
        changeable: true,
    };

    /// The features that are on, by driver, as `ethtool -k` printed them: vmxnet3 and virtio_net
    /// of Linux 6.12 in QEMU, the others from their sources.
    fn facts(driver: &str) -> Facts {
        let on: &[&str] = match driver {
            "vmxnet3" => &[
                "rx-gro",
                "rx-lro",
                "rx-vlan-hw-parse",
                "tx-vlan-hw-insert",
                "rx-vlan-filter",
                "rx-checksum",
            ],
            "virtio_net" => &["rx-gro", "rx-gro-hw", "rx-vlan-filter", "rx-checksum"],
            "hv_netvsc" => &["rx-gro", "rx-vlan-hw-parse", "tx-vlan-hw-insert"],
            "e1000e" => &["rx-gro", "rx-vlan-hw-parse", "tx-vlan-hw-insert"],
            _ => &["rx-gro"],
        };
        Facts {
            driver: driver.to_owned(),
            features: on.iter().map(|name| ((*name).to_owned(), ON)).collect(),
            link: LinkFacts::default(),
        }
    }

    fn untagged() -> Requirements {
        Requirements {
            mtu: 1500,
            ..Requirements::default()
        }
    }

    fn tagged() -> Requirements {
        Requirements {
            vlans: vec![(0x8100, 101)],
            ..untagged()
        }
    }

    fn generic(of: Requirements) -> Requirements {
        Requirements {
            generic: true,
            ..of
        }
    }

    /// The facts after the features were switched off that the driver changes.
    fn after(mut facts: Facts, required: &Requirements) -> Facts {
        for feature in features_to_switch_off(&facts, required) {
            let state = facts.features.get_mut(feature).expect("is on");
            state.on = !state.changeable;
        }
        facts
    }

    #[test]
    fn what_is_switched_off_depends_on_tags_and_mode() {
        let strip = "rx-vlan-hw-parse";
        for (driver, required, off) in [
            ("vmxnet3", untagged(), vec!["rx-lro", strip]),
            (
                "vmxnet3",
                tagged(),
                vec!["rx-lro", strip, "tx-vlan-hw-insert", "rx-vlan-filter"],
            ),
            (
                "vmxnet3",
                generic(untagged()),
                vec!["rx-lro", strip, "rx-gro"],
            ),
            ("virtio_net", untagged(), vec!["rx-gro-hw"]),
            (
                "virtio_net",
                generic(tagged()),
                vec!["rx-gro-hw", "rx-gro", "rx-vlan-filter"],
            ),
            ("e1000e", untagged(), vec![strip]),
            ("veth", untagged(), vec![]),
            ("veth", generic(tagged()), vec!["rx-gro"]),
        ] {
            let facts = facts(driver);
            assert_eq!(
                features_to_switch_off(&facts, &required),
                off,
                "{driver} {required:?}"
            );
            let facts = after(facts, &required);
            assert_eq!(
                problems("eth1", &facts, &required),
                Vec::<String>::new(),
                "{driver}"
            );
        }
    }

    #[test]
    fn a_feature_that_stays_on_is_a_problem_with_its_command() {
        for (driver, feature, required, command) in [
            ("vmxnet3", "rx-lro", untagged(), Some("lro")),
            ("virtio_net", "rx-gro-hw", untagged(), Some("rx-gro-hw")),
            // Every VLAN of a trunk would leak into the untagged network.
            ("vmxnet3", "rx-vlan-hw-parse", untagged(), Some("rxvlan")),
            ("vmxnet3", "tx-vlan-hw-insert", tagged(), Some("txvlan")),
            ("vmxnet3", "tx-vlan-hw-insert", untagged(), None),
            ("veth", "rx-gro", generic(untagged()), Some("gro")),
            ("veth", "rx-gro", untagged(), None),
            ("hv_netvsc", "rx-vlan-hw-parse", untagged(), None),
        ] {
            let mut facts = facts(driver);
            if let Some(state) = facts.features.get_mut(feature) {
                state.changeable = false;
            }
            let facts = after(facts, &required);
            let found = problems("eth1", &facts, &required);
            assert_eq!(found.len(), usize::from(command.is_some()), "{found:?}");
            if let (Some(command), [problem]) = (command, &found[..]) {
                let command = format!("`ethtool -K eth1 {command} off`");
                assert!(problem.contains(&command), "{problem}");
                assert!(problem.contains(driver), "{problem}");
            }
        }
    }

    #[test]
    fn hyper_v_cannot_have_a_trunk() {
        let mut facts = facts("hv_netvsc");
        for state in facts.features.values_mut() {
            state.changeable = false;
        }
        let found = problems("eth1", &facts, &tagged());
        assert!(
            found.iter().any(|p| p.contains("its own vNIC")),
            "{found:?}"
        );
    }

    #[test]
    fn a_fixed_filter_must_know_the_vlans() {
        let required = Requirements {
            vlans: vec![(0x8100, 101), (0x8100, 102), (0x88a8, 7)],
            ..untagged()
        };
        let mut facts = facts("virtio_net");
        let off = after(facts.clone(), &required);
        assert!(filtered_vlans(&off, &required).is_empty());
        facts
            .features
            .get_mut("rx-vlan-filter")
            .expect("is on")
            .changeable = false;
        let remaining = after(facts, &required);
        assert_eq!(
            filtered_vlans(&remaining, &required),
            [(0x8100, 101), (0x8100, 102)],
            "there is no filter of service tags"
        );
        assert!(filtered_vlans(&remaining, &untagged()).is_empty());
    }

    #[test]
    fn bonds_members_and_sr_iov_functions_are_refused_by_name() {
        let link = |kind: &str, member_of: &str, master: &str, members: &[&str]| LinkFacts {
            kind: kind.to_owned(),
            member_of: member_of.to_owned(),
            master: master.to_owned(),
            members: members.iter().map(|m| (*m).to_owned()).collect(),
        };
        for (link, text) in [
            (
                link("bond", "", "", &["eth1", "eth2"]),
                Some("its members (eth1, eth2)"),
            ),
            (link("team", "", "", &[]), Some("is a team")),
            (
                link("", "bond", "bond0", &[]),
                Some("member of the bond bond0"),
            ),
            (
                link("", "", "", &["enP1"]),
                Some("SR-IOV function enP1 below it"),
            ),
            (link("veth", "bridge", "br0", &[]), None),
            (link("bridge", "", "", &["eth1"]), None),
            (link("macvlan", "", "", &[]), None),
            (link("", "", "", &[]), None),
        ] {
            let facts = Facts {
                link: link.clone(),
                ..Facts::default()
            };
            let found = problems("eth0", &facts, &untagged());
            assert_eq!(found.len(), usize::from(text.is_some()), "{link:?}");
            if let Some(text) = text {
                assert!(found[0].contains(text), "{found:?}");
            }
        }
    }

    #[test]
    fn the_mtu_has_room_for_tags_and_configured_packets() {
        let port = |mtu: u32, two_tags: bool, largest_packet: Option<u16>| Requirements {
            two_tags,
            largest_packet,
            ..Requirements { mtu, ..untagged() }
        };
        for (required, remedy) in [
            (port(1500, false, None), None),
            (port(1500, false, Some(1500)), None),
            (port(1500, false, Some(3000)), Some("mtu 3000`")),
            (port(1500, true, None), Some("mtu 1504`")),
            (port(1503, true, None), Some("mtu 1504`")),
            (port(1504, true, None), None),
            (port(1500, true, Some(1496)), None),
            (port(1500, true, Some(1497)), Some("network.mtu to 1496")),
            (port(1400, true, None), None),
            (port(3490, true, None), None),
            (port(9000, false, None), Some("mtu 3490`")),
            (generic(port(9000, false, None)), None),
        ] {
            let found = problems("eth1", &after(facts("vmxnet3"), &required), &required);
            assert_eq!(
                found.len(),
                usize::from(remedy.is_some()),
                "{required:?}: {found:?}"
            );
            if let Some(remedy) = remedy {
                assert!(found[0].contains(remedy), "{found:?}");
            }
        }
    }

    #[test]
    fn a_driver_that_accepts_no_redirects_is_named_with_those_that_send_to_it() {
        let port = |interface: &str, native, accepts| RedirectPort {
            interface: interface.to_owned(),
            driver: "e1000e".to_owned(),
            native,
            accepts,
        };
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
            pairs.iter().map(owned).collect()
        };
        let both = pairs(&[("eth0", "eth1"), ("eth1", "eth0")]);
        let native = |accepts| port("eth0", true, accepts);
        for (ports, redirects, target) in [
            // A native uplink into a LAN port that is generic, as `auto` makes it.
            (
                vec![native(Some(true)), port("eth1", false, Some(false))],
                &both,
                Some("eth1"),
            ),
            // The generic hook sends on every driver.
            (
                vec![
                    port("eth0", false, Some(false)),
                    port("eth1", false, Some(false)),
                ],
                &both,
                None,
            ),
            (vec![native(None), port("eth1", true, None)], &both, None),
            // Nothing is redirected there.
            (
                vec![native(Some(true)), port("eth1", false, Some(false))],
                &pairs(&[("eth1", "eth0")]),
                None,
            ),
        ] {
            let found = redirect_problems(&ports, redirects);
            let targets: Vec<&str> = found.iter().map(|(target, _)| target.as_str()).collect();
            assert_eq!(targets, target.into_iter().collect::<Vec<_>>(), "{ports:?}");
            for (_, problem) in found {
                assert!(
                    problem.contains("set xdp = \"generic\" for eth0"),
                    "{problem}"
                );
            }
        }
    }
}
