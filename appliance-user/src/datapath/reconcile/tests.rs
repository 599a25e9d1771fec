use std::path::Path as FilePath;

use appliance_common::nat::{
    MachineKey, NatAddress, PublicAddress, Rule, RuleKey, RuleSlot, SourceKey,
};
use proptest::prelude::*;

use super::*;
use crate::{
    kernel::underlay::{LinkState, PathError},
    state::assign,
};

pub(super) const CONFIG: &str = r#"
[appliance]
name = "provider"
role = "provider"
[uplink]
interface = "eth0"
[[tenant]]
name = "acme"
[[tenant]]
name = "globex"
[[peer]]
name = "a"
kind = "vxlan"
address = "198.51.100.5"
[[peer]]
name = "g"
kind = "vxlan"
address = "198.51.100.6"
[[network]]
name = "net1"
tenant = "acme"
peer = "a"
vni = 1001
interface = "eth1"
vlan = "101"
prefixes = ["10.1.0.0/24", "2001:db8:1::/64"]
gateway = ["10.1.0.1"]
[[network]]
name = "net2"
tenant = "globex"
peer = "g"
vni = 2001
interface = "eth1"
vlan = "201"
prefixes = ["10.1.0.0/24"]
"#;

pub(super) fn config() -> Config {
    Config::parse(CONFIG, FilePath::new("t")).expect("good")
}

pub(super) fn state(config: &Config) -> State {
    let mut state = State::default();
    let tenants: Vec<&str> = config.tenants.iter().map(|t| t.name.as_str()).collect();
    let peers: Vec<&str> = config.peers.iter().map(|p| p.name.as_str()).collect();
    let networks: Vec<&str> = config.networks.iter().map(|n| n.name.as_str()).collect();
    assign(&mut state.slots.tenants, &tenants, 16);
    assign(&mut state.slots.peers, &peers, 16);
    assign(&mut state.slots.networks, &networks, 16);
    state
}

pub(super) fn snapshot() -> Snapshot {
    let link = |name: &str, ifindex, mac: u8, addresses: &[&str]| LinkState {
        name: name.to_owned(),
        ifindex,
        mac: [2, 0, 0, 0, 0, mac],
        mtu: 1500,
        up: true,
        addresses: addresses
            .iter()
            .map(|a| (a.parse().expect("address"), 24))
            .collect(),
    };
    let mut snapshot = Snapshot::default();
    snapshot
        .links
        .insert("eth0".to_owned(), link("eth0", 2, 1, &["203.0.113.5"]));
    snapshot
        .links
        .insert("eth1".to_owned(), link("eth1", 3, 2, &[]));
    snapshot.paths.insert(
        "198.51.100.5".parse().expect("address"),
        UnderlayPath::Resolved {
            ifindex: 2,
            local: "203.0.113.5".parse().expect("address"),
            source_mac: [2, 0, 0, 0, 0, 1],
            next_hop_mac: [2, 0, 0, 0, 0, 9],
            mtu: 1500,
        },
    );
    snapshot.paths.insert(
        "198.51.100.6".parse().expect("address"),
        UnderlayPath::Unresolved {
            reason: PathError::NoRoute,
        },
    );
    snapshot
}

#[test]
fn tenants_with_equal_subnets_get_separate_keys() {
    let config = config();
    let mut state = state(&config);
    for network in ["net1", "net2"] {
        state
            .endpoints
            .entry(network.to_owned())
            .or_default()
            .insert("10.1.0.10".parse().expect("address"));
    }
    let contents = desired(&config, &state, &snapshot(), &EncryptedTunnels::default());
    let vnis: Vec<u32> = contents.endpoints.keys().map(|k| k.vni).collect();
    assert_eq!(vnis, [1001, 2001]);
    assert_eq!(contents.attachments.len(), 2);
    assert_eq!(contents.tunnels.len(), 4);
    assert_eq!(contents.networks.values().map(|n| n.mtu).max(), Some(1450));
}

#[test]
fn a_peer_without_a_next_hop_has_no_outer_header() {
    let config = config();
    let state = state(&config);
    let contents = desired(&config, &state, &snapshot(), &EncryptedTunnels::default());
    assert_eq!(contents.peers.len(), 1);
    assert_eq!(contents.networks.len(), 2);
}

#[test]
fn a_mode_switch_is_one_update() {
    let config = config();
    let before = state(&config);
    let mut after = before.clone();
    let mode = after.modes.entry("acme".to_owned()).or_default();
    mode.failover = crate::state::FailoverState::Partial;
    mode.epoch = 1;
    let writes = diff(
        &desired(&config, &before, &snapshot(), &EncryptedTunnels::default()),
        &desired(&config, &after, &snapshot(), &EncryptedTunnels::default()),
    );
    assert_eq!(
        writes,
        [MapUpdate::Tenant(0, Some(Tenant { mode: 1, epoch: 1 }))]
    );
}

#[test]
fn config_is_written_last() {
    let config = config();
    let state = state(&config);
    let writes = diff(
        &MapContents::default(),
        &desired(&config, &state, &snapshot(), &EncryptedTunnels::default()),
    );
    assert!(matches!(writes.last(), Some(MapUpdate::Config(_))));
}

#[test]
fn invalid_endpoints_are_refused_with_the_reason() {
    let config = config();
    let net1 = &config.networks[0];
    let own = [from_ip("10.1.0.5".parse().expect("address"))];
    for (address, expected) in [
        ("10.1.0.10", None),
        ("2001:db8:1::10", None),
        ("10.2.0.10", Some("is not in network")),
        ("2001:db8:2::10", Some("is not in network")),
        ("10.1.0.0", Some("network or broadcast")),
        ("10.1.0.255", Some("network or broadcast")),
        ("10.1.0.1", Some("is the router")),
        ("10.1.0.5", Some("own address")),
        ("224.0.0.1", Some("is not in network")),
    ] {
        let result = check_endpoint(net1, &own, address.parse().expect("address"));
        match (result, expected) {
            (Ok(()), None) => {}
            (Err(message), Some(part)) => assert!(message.contains(part), "{message}"),
            (result, _) => panic!("{address}: {result:?}"),
        }
    }
}

prop_compose! {
    fn contents()(
        endpoints in prop::collection::btree_map((0u32..3, 0u8..6), 1u32..3, 0..12),
        attachments in prop::collection::btree_map((1u32..4, 0u16..4), 0u32..4, 0..8),
        slots in prop::collection::btree_map(0u32..4, 1u32..5, 0..4),
        port in 0u16..3,
        rules in prop::collection::btree_map(0u32..4, (1u32..3, 0u32..2), 0..4),
        ports in prop::collection::btree_map((14u32..=16, 0u16..4), 0u32..4, 0..6),
        nat in 0u32..2,
    ) -> MapContents {
        let mut t = MapContents::default();
        t.config.tunnel_port = port;
        t.nat.uplink = nat;
        for (slot, (epoch, flags)) in rules {
            t.rules.insert(slot, Rule { epoch, flags, ..Rule::default() });
        }
        for ((bits, port), slot) in ports {
            let port = (port << (16 - bits)).to_be_bytes();
            t.rule_ports.insert((bits, RuleKey { port, ..RuleKey::default() }), RuleSlot { slot });
            t.public.insert([port[1]; 16], PublicAddress { flags: slot, zone: 0 });
            t.nat_addresses.insert(slot, NatAddress { first: 1, last: 2, ..NatAddress::default() });
            let machine = MachineKey { zone: bits, ..MachineKey::default() };
            t.one_to_one.insert(machine, RuleSlot { slot });
            let source = SourceKey { slot, ..SourceKey::default() };
            t.rule_sources.insert((bits, source), RuleSlot { slot });
        }
        for ((vni, host), flags) in endpoints {
            let mut address = [0; 16];
            address[15] = host;
            t.endpoints.insert(HostKey { vni, address }, Endpoint { flags });
            t.tunnels.insert(TunnelKey { vni, peer: address }, Tunnel { network: flags, flags: 1 });
        }
        for ((ifindex, outer), network) in attachments {
            let key = AttachmentKey { ifindex, outer, inner: 0 };
            t.attachments.insert(key, Attachment { network, ..Attachment::default() });
        }
        for (slot, value) in slots {
            t.tenants.insert(slot, Tenant { mode: value, epoch: 0 });
            t.networks.insert(slot, Network { vni: value, ..Network::default() });
            t.peers.insert(slot, maps::Peer { ifindex: value, ..maps::Peer::default() });
        }
        t
    }
}

proptest! {
    #[test]
    fn updates_lead_from_any_contents_to_any_others(from in contents(), to in contents()) {
        // Unused slots keep their epochs.
        let to = assign_rule_epochs(&from, to);
        let mut now = from.clone();
        for update in diff(&from, &to) {
            now.apply(&update);
        }
        prop_assert_eq!(&now, &to);
        prop_assert!(diff(&now, &to).is_empty());
    }

    #[test]
    fn no_update_attaches_a_port_or_tunnel_to_an_empty_slot(from in contents(), to in contents()) {
        // Keep only ports and tunnels whose network slots exist.
        let repair = |mut t: MapContents| {
            let slots: Vec<u32> = t.networks.keys().copied().collect();
            t.attachments.retain(|_, a| slots.contains(&a.network));
            t.tunnels.retain(|_, a| slots.contains(&a.network));
            t
        };
        let (from, to) = (repair(from), repair(to));
        let mut now = from.clone();
        for update in diff(&from, &to) {
            now.apply(&update);
            let attachments = now.attachments.values().map(|a| a.network);
            for slot in attachments.chain(now.tunnels.values().map(|t| t.network)) {
                prop_assert!(now.networks.contains_key(&slot), "slot {} after {:?}", slot, update);
            }
        }
    }
}
