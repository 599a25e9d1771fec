//! The owner's configuration of peers and ports. Plain data; pure.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use appliance_common::addr::Prefix;
use tunnel::{InitiationPolicy, PresharedKey, PublicKey, Tai64n};

use super::circuit::CircuitSpec;
use crate::pipeline::PeerRoute;

/// Bytes of an IPv4 and a UDP header.
const IPV4_UDP: usize = 28;
/// Bytes of an IPv6 and a UDP header.
const IPV6_UDP: usize = 48;

/// A peer as configured.
#[derive(Debug, Clone)]
pub struct PeerSpec {
    /// Its name, for messages.
    pub name: String,
    /// Its slot in the map `PEERS`.
    pub slot: u32,
    /// Its identity.
    pub public_key: PublicKey,
    /// A secret shared in addition to the keys; all zeros for none.
    pub preshared_key: PresharedKey,
    /// Addresses to dial.
    pub addresses: Vec<SocketAddr>,
    /// The circuit through gateways that replaces direct addresses.
    pub circuit: Option<CircuitSpec>,
    /// Which end dials.
    pub dial: InitiationPolicy,
    /// The protocol of the peer.
    pub protocol: PeerProtocol,
    /// Timestamp of the newest handshake sent to it, from storage. The peer refuses older ones.
    pub timestamp: Tai64n,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerProtocol {
    /// Another appliance: several lanes, segments, path-MTU discovery.
    Appliance,
    /// Plain WireGuard.
    WireGuard {
        /// VNI of the network that the peer is in.
        vni: u32,
        /// Addresses that the peer may have there.
        allowed: Vec<Prefix>,
        /// Interval of persistent keep-alives.
        keepalive: Option<Duration>,
    },
}

impl PartialEq for PeerSpec {
    /// Compares everything but the stored timestamp.
    fn eq(&self, other: &Self) -> bool {
        self.same_but_addresses(other)
            && self.addresses == other.addresses
            && self.circuit == other.circuit
    }
}

impl PeerSpec {
    /// Whether a peer of the other specification keeps its sessions under this one.
    pub(super) fn same_but_addresses(&self, other: &Self) -> bool {
        (
            &self.name,
            self.slot,
            self.public_key,
            self.dial,
            &self.protocol,
            self.circuit.as_ref().map(CircuitSpec::identity),
        ) == (
            &other.name,
            other.slot,
            other.public_key,
            other.dial,
            &other.protocol,
            other.circuit.as_ref().map(CircuitSpec::identity),
        ) && self.preshared_key.expose() == other.preshared_key.expose()
    }
}

/// An interface on which the workers need sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// Its index.
    pub ifindex: u32,
    /// Its receive queues.
    pub queues: u32,
    /// Its transmit queues.
    pub tx_queues: u32,
    /// Its MTU, bytes.
    pub mtu: u32,
}

/// The longest UDP payload that fits the MTU, bytes.
#[must_use]
pub const fn max_udp_payload(mtu: u16, ipv6: bool) -> usize {
    (mtu as usize).saturating_sub(udp_headers(ipv6))
}

/// Bytes of the IP and UDP headers in front of a datagram.
pub(super) const fn udp_headers(ipv6: bool) -> usize {
    if ipv6 { IPV6_UDP } else { IPV4_UDP }
}

/// Routes of WireGuard peers by the VNI of their network.
pub(super) type PeerRoutes = BTreeMap<u32, Vec<PeerRoute>>;

/// The routes of the WireGuard peers among `specs`.
pub(super) fn peer_routes(specs: &[PeerSpec]) -> PeerRoutes {
    let mut routes = PeerRoutes::new();
    for spec in specs {
        if let PeerProtocol::WireGuard { vni, allowed, .. } = &spec.protocol {
            let of_peer = allowed.iter().map(|prefix| PeerRoute {
                prefix: *prefix,
                peer: spec.slot,
            });
            routes.entry(*vni).or_default().extend(of_peer);
        }
    }
    routes
}

/// The changes to send to the workers when `old` becomes `new`: all routes of each network whose
/// routes changed; an empty list for a network that has no routes any more.
pub(super) fn route_changes(old: &PeerRoutes, new: &PeerRoutes) -> Vec<(u32, Box<[PeerRoute]>)> {
    let changed = new
        .iter()
        .filter(|(vni, routes)| old.get(vni) != Some(routes))
        .map(|(vni, routes)| (*vni, routes.clone().into()));
    let removed = old.keys().filter(|vni| !new.contains_key(vni));
    changed
        .chain(removed.map(|vni| (*vni, Box::default())))
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use appliance_common::addr::from_ip;
    use tunnel::SecretKey;

    use super::*;

    pub(in super::super) fn spec(slot: u32, protocol: PeerProtocol) -> PeerSpec {
        PeerSpec {
            name: format!("peer-{slot}"),
            slot,
            public_key: SecretKey::from_bytes(&[slot as u8 + 1; 32]).public(),
            preshared_key: PresharedKey::default(),
            addresses: vec![SocketAddr::from(([192, 0, 2, slot as u8 + 1], 6180))],
            circuit: None,
            dial: InitiationPolicy::Never,
            protocol,
            timestamp: Tai64n::default(),
        }
    }

    fn client(slot: u32, vni: u32, last: u8) -> PeerSpec {
        let address = from_ip([10, 1, 0, last].into());
        let prefix = Prefix::new(&address, 128).expect("a prefix");
        spec(
            slot,
            PeerProtocol::WireGuard {
                vni,
                allowed: vec![prefix],
                keepalive: None,
            },
        )
    }

    #[test]
    fn only_networks_whose_routes_changed_are_sent() {
        let old = peer_routes(&[client(1, 10, 1), client(2, 10, 2), client(3, 20, 3)]);
        let new = peer_routes(&[client(1, 10, 1), client(2, 10, 2), client(4, 30, 4)]);
        let changes = route_changes(&old, &new);
        let vnis: Vec<_> = changes.iter().map(|(vni, all)| (*vni, all.len())).collect();
        assert_eq!(vnis, [(30, 1), (20, 0)]);
        assert!(route_changes(&new, &new).is_empty());
        let fewer = peer_routes(&[client(1, 10, 1), client(4, 30, 4)]);
        let changes = route_changes(&new, &fewer);
        assert_eq!(changes.len(), 1);
        assert_eq!((changes[0].0, changes[0].1.len()), (10, 1));
    }

    #[test]
    fn another_address_keeps_sessions_and_another_key_does_not() {
        let peer = spec(1, PeerProtocol::Appliance);
        let mut moved = peer.clone();
        moved.addresses.clear();
        assert!(peer.same_but_addresses(&moved) && peer != moved);
        let mut other = peer.clone();
        other.public_key = SecretKey::from_bytes(&[99; 32]).public();
        assert!(!peer.same_but_addresses(&other));
    }

    #[test]
    fn a_datagram_fits_the_mtu_with_its_headers() {
        assert_eq!(max_udp_payload(1500, false), 1472);
        assert_eq!(max_udp_payload(1500, true), 1452);
        assert_eq!(max_udp_payload(20, true), 0);
    }
}
