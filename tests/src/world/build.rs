//! Parts that the appliances of the fixtures are built from.

use appliance_common::addr::{Prefix, UNSPECIFIED};
use appliance_common::maps::{
    Attachment, AttachmentKey, Config, Mode, NO_XSK, Neighbour, Network, Peer, SCHEMA_VERSION,
    Tenant, Tunnel, TunnelKey, attachment_flags, network_flags,
};

use super::{LAN_MTU, NEXT_HOP_MAC, PORT, UPLINK, UPLINK_MAC, World, address, host};

use crate::packet::{Mac, ip};

/// A network to add to a world.
pub(super) struct NetworkSpec<'a> {
    pub vni: u32,
    pub tenant: u32,
    pub peer: u32,
    pub provider: bool,
    pub mtu: u16,
    pub prefixes: &'a [(&'a str, u8)],
    pub gateways: [&'a str; 2],
}

impl World {
    /// An appliance with a tunnel end, and nothing else.
    #[must_use]
    pub fn bare(local_v4: &str, local_v6: &str) -> Self {
        Self {
            config: Config {
                version: SCHEMA_VERSION,
                tunnel_port: PORT,
                secure_port: 0,
                uplink_xsk: 0,
                reserved: 0,
                local_v4: address(local_v4),
                local_v6: if local_v6.is_empty() {
                    UNSPECIFIED
                } else {
                    address(local_v6)
                },
            },
            ..Self::default()
        }
    }

    pub(super) fn peer(&mut self, local: &str, remote: &str) -> u32 {
        let peer = Peer::new(
            UPLINK,
            NEXT_HOP_MAC,
            UPLINK_MAC,
            &address(local),
            &address(remote),
            PORT,
        );
        self.peers.push(peer.expect("one family"));
        (self.peers.len() - 1) as u32
    }

    pub(super) fn network(&mut self, spec: &NetworkSpec<'_>, remote: &str) -> u32 {
        let slot = self.networks.len() as u32;
        let mut network = Network {
            vni: spec.vni,
            tenant: spec.tenant,
            peer: spec.peer,
            flags: network_flags::ACTIVE
                | if spec.provider {
                    network_flags::PROVIDER
                } else {
                    0
                },
            mtu: spec.mtu,
            lan_mtu: LAN_MTU,
            prefix_count: spec.prefixes.len() as u16,
            ..Network::default()
        };
        for gateway in spec.gateways {
            if gateway.is_empty() {
                continue;
            }
            if ip(gateway).is_ipv4() {
                network.gateway_v4 = address(gateway);
            } else {
                network.gateway_v6 = address(gateway);
            }
        }
        for (i, (prefix, length)) in spec.prefixes.iter().enumerate() {
            let length = if ip(prefix).is_ipv4() {
                96 + length
            } else {
                *length
            };
            network.prefixes[i] = Prefix::new(&address(prefix), length).expect("length");
        }
        self.networks.push(network);
        for peer in [address(remote), UNSPECIFIED] {
            self.tunnels.push((
                TunnelKey {
                    vni: spec.vni,
                    peer,
                },
                Tunnel {
                    network: slot,
                    flags: 1,
                },
            ));
        }
        slot
    }

    pub(super) fn attach(
        &mut self,
        ifindex: u32,
        outer: u16,
        inner: u16,
        network: u32,
        mac: Mac,
        host: bool,
    ) {
        self.attachments.push((
            AttachmentKey {
                ifindex,
                outer,
                inner,
            },
            Attachment {
                network,
                flags: attachment_flags::ACTIVE | if host { attachment_flags::HOST } else { 0 },
                mac,
                xsk: NO_XSK,
                entry_hash: 0,
            },
        ));
    }

    /// Adds a resolved host.
    #[expect(clippy::too_many_arguments, reason = "a line of a table, read as one")]
    pub fn neighbour(
        &mut self,
        vni: u32,
        text: &str,
        ifindex: u32,
        mac: Mac,
        ours: Mac,
        outer: u16,
        inner: u16,
    ) {
        let outer_type = if inner == 0 { 0x8100 } else { 0x88a8 };
        self.neighbours.push((
            host(vni, text),
            Neighbour::new(ifindex, mac, ours, outer, inner, outer_type),
        ));
    }

    pub(super) fn set_modes(&mut self, count: usize) {
        self.tenants = vec![
            Tenant {
                mode: Mode::Partial as u32,
                epoch: 1
            };
            count
        ];
    }
}
