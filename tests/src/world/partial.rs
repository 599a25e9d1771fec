//! Appliances in partial failover, at the provider and at a tenant, and the same with encrypted
//! tunnels.

use appliance_common::addr::{Prefix, from_ip};
use appliance_common::maps::{
    HostKey, Mode, Neighbour, Network, PolicyKey, RouteKey, network_flags,
};

use super::build::NetworkSpec;
use super::{
    A_MAC, ACCESS, ACCESS_MAC, B_MAC, G_MAC, LAN_MTU, MTU, NET1, NET2, NET2T, NET3, NET4, PROVIDER,
    PROVIDER6, ROUTER_MAC, SECURE_PORT, SESSIONS, TENANT, TENANT2, TENANT6, TRUNK, TRUNK_MAC,
    UPLINK, UPLINK_MAC, World, address, host, many_host, many_next, xsk_of,
};

impl World {
    /// The provider's appliance of the picture above, both tenants in partial failover.
    #[must_use]
    pub fn provider() -> Self {
        let mut w = Self::bare(PROVIDER, PROVIDER6);
        let peers = [
            w.peer(PROVIDER, TENANT),
            w.peer(PROVIDER, TENANT2),
            w.peer(PROVIDER6, TENANT6),
        ];
        let equal: &[(&str, u8)] = &[("10.1.0.0", 24), ("2001:db8:1::", 64)];
        let spec = |vni, tenant, peer, mtu, prefixes, gateways| NetworkSpec {
            vni,
            tenant,
            peer,
            provider: true,
            mtu,
            prefixes,
            gateways,
        };
        let gateways = ["10.1.0.1", "2001:db8:1::1"];
        let net1 = w.network(&spec(NET1, 0, peers[0], MTU, equal, gateways), TENANT);
        let net2 = w.network(&spec(NET2, 1, peers[1], MTU, equal, gateways), TENANT2);
        let net3 = w.network(
            &spec(
                NET3,
                0,
                peers[2],
                1430,
                &[("10.3.0.0", 24), ("2001:db8:3::", 64)],
                ["10.3.0.1", "fe80::1"],
            ),
            TENANT6,
        );
        let net4 = w.network(
            &spec(
                NET4,
                0,
                peers[0],
                MTU,
                &[("10.4.0.0", 24), ("2001:db8:4::", 64)],
                ["10.4.0.1", "2001:db8:4::1"],
            ),
            TENANT,
        );
        w.attach(TRUNK, 101, 0, net1, TRUNK_MAC, false);
        w.attach(TRUNK, 201, 0, net2, TRUNK_MAC, false);
        w.attach(TRUNK, 200, 102, net3, TRUNK_MAC, false);
        w.attach(ACCESS, 0, 0, net4, ACCESS_MAC, false);
        w.set_modes(2);
        for (vni, net, port, ours, mac, outer, inner) in [
            (NET1, 1, TRUNK, TRUNK_MAC, A_MAC, 101, 0),
            (NET2, 1, TRUNK, TRUNK_MAC, G_MAC, 201, 0),
            (NET3, 3, TRUNK, TRUNK_MAC, A_MAC, 200, 102),
            (NET4, 4, ACCESS, ACCESS_MAC, A_MAC, 0, 0),
        ] {
            for text in [format!("10.{net}.0.10"), format!("2001:db8:{net}::10")] {
                w.endpoints.push(host(vni, &text));
                w.neighbour(vni, &text, port, mac, ours, outer, inner);
            }
            // Failed over too, but not resolved yet.
            w.endpoints.push(host(vni, &format!("10.{net}.0.12")));
            w.endpoints.push(host(vni, &format!("2001:db8:{net}::12")));
        }
        w
    }

    /// The tenant's appliance of the picture above, in partial failover.
    #[must_use]
    pub fn tenant() -> Self {
        let mut w = Self::bare(TENANT, "");
        let peer = w.peer(TENANT, PROVIDER);
        let spec = |vni, prefixes, gateways| NetworkSpec {
            vni,
            tenant: 0,
            peer,
            provider: false,
            mtu: MTU,
            prefixes,
            gateways,
        };
        let net1 = w.network(
            &spec(
                NET1,
                &[("10.1.0.0", 24), ("2001:db8:1::", 64)],
                ["10.1.0.1", "2001:db8:1::1"],
            ),
            PROVIDER,
        );
        let net2 = w.network(
            &spec(
                NET2T,
                &[("10.2.0.0", 24), ("2001:db8:2::", 64)],
                ["10.2.0.1", "2001:db8:2::1"],
            ),
            PROVIDER,
        );
        w.attach(UPLINK, 0, 0, net1, UPLINK_MAC, true);
        w.attach(ACCESS, 0, 0, net2, ACCESS_MAC, false);
        w.set_modes(1);
        for (vni, net, port, ours) in [
            (NET1, 1, UPLINK, UPLINK_MAC),
            (NET2T, 2, ACCESS, ACCESS_MAC),
        ] {
            for part in ["10", "12"] {
                w.endpoints.push(host(vni, &format!("10.{net}.0.{part}")));
                w.endpoints
                    .push(host(vni, &format!("2001:db8:{net}::{part}")));
            }
            for (part, mac) in [("11", B_MAC), ("1", ROUTER_MAC)] {
                w.neighbour(vni, &format!("10.{net}.0.{part}"), port, mac, ours, 0, 0);
                w.neighbour(
                    vni,
                    &format!("2001:db8:{net}::{part}"),
                    port,
                    mac,
                    ours,
                    0,
                    0,
                );
            }
        }
        w
    }

    /// The provider's appliance with networks 1 to `networks`, at most 4094, each a VLAN of the
    /// trunk, of one tenant, in partial failover. A packet from [`many_host`] to that of the next
    /// network is encapsulated; in full failover it is routed there.
    #[must_use]
    pub fn many(networks: u32) -> Self {
        const FIRST_VNI: u32 = 10_000;
        let mut w = Self::bare(PROVIDER, PROVIDER6);
        let peer = w.peer(PROVIDER, TENANT);
        w.set_modes(1);
        for n in 1..=networks {
            let (slot, vni) = (n - 1, FIRST_VNI + n);
            let address = from_ip(many_host(n));
            let prefix = Prefix::new(&address, 96 + 24).expect("a length");
            let mut network = Network {
                vni,
                tenant: 0,
                peer,
                flags: network_flags::ACTIVE | network_flags::PROVIDER,
                mtu: MTU,
                lan_mtu: LAN_MTU,
                prefix_count: 1,
                ..Network::default()
            };
            network.prefixes[0] = prefix;
            w.networks.push(network);
            w.attach(TRUNK, n as u16, 0, slot, TRUNK_MAC, false);
            let key = HostKey { vni, address };
            w.endpoints.push(key);
            let neighbour = Neighbour::new(TRUNK, A_MAC, TRUNK_MAC, n as u16, 0, 0x8100);
            w.neighbours.push((key, neighbour));
            let route = RouteKey {
                tenant: 0,
                address: prefix.address(),
            };
            w.routes.push((prefix.length(), route, slot));
            w.policies.push(PolicyKey {
                from: vni,
                to: FIRST_VNI + many_next(n, networks),
            });
        }
        w
    }

    /// The same world with every tenant idle.
    #[must_use]
    pub fn idle(mut self) -> Self {
        for tenant in &mut self.tenants {
            tenant.mode = Mode::Idle as u32;
        }
        self
    }

    /// The same world with encrypted tunnels and the plain one of net2: as the daemon writes it, an
    /// encrypted network has no entry in `TUNNELS`. The peers' addresses are known but for
    /// [`TENANT2`].
    #[must_use]
    pub fn encrypted(mut self) -> Self {
        self.config.secure_port = SECURE_PORT;
        self.config.uplink_xsk = xsk_of(UPLINK);
        for (key, attachment) in &mut self.attachments {
            attachment.xsk = xsk_of(key.ifindex);
        }
        for network in &mut self.networks {
            if ![NET2, NET2T].contains(&network.vni) {
                network.flags |= network_flags::SECURE;
            }
        }
        let networks = &self.networks;
        self.tunnels
            .retain(|(_, t)| networks[t.network as usize].flags & network_flags::SECURE == 0);
        self.sessions = SESSIONS.to_vec();
        let peers = if self.networks.iter().any(|n| n.vni == NET2T) {
            &[PROVIDER, PROVIDER6][..]
        } else {
            &[TENANT, TENANT6]
        };
        self.peer_addresses = peers.iter().map(|text| address(text)).collect();
        self
    }
}
