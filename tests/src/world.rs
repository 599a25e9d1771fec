//! Appliances as fixtures: what their maps hold.
//!
//! ```text
//!   provider                                       tenant
//!   ┌──────────┐ TRUNK 11  101 → net1 (acme)       ┌──────────┐ UPLINK 10  untagged → net1, shared
//!   │          ├──────────  201 → net2 (globex)    │          ├───────────  with the tunnels
//!   │          │        200.102 → net3 (IPv6       │          │
//!   │          │                  underlay)        │          │ ACCESS 12  untagged → net2
//!   │          │ ACCESS 12 untagged → net4         │          ├───────────
//!   │          ├──────────                         └──────────┘
//!   │          │ UPLINK 10 tunnels only
//!   └──────────┘
//! ```
//!
//! At the provider, net1 and net2 have the same prefixes, endpoints and gateway.
//!
//! [`World::encrypted`] is either of them with all networks encrypted but net2, and sockets' places for
//! every interface.

use std::net::IpAddr;

use appliance_common::{
    addr::{Address, Prefix, UNSPECIFIED, from_ip},
    maps::{
        Attachment, AttachmentKey, Config, HostKey, Mode, NO_XSK, Neighbour, Network, Peer,
        PolicyKey, RouteKey, SCHEMA_VERSION, Tenant, Tunnel, TunnelKey, attachment_flags,
        network_flags,
    },
    nat::{
        MachineKey, Nat, NatAddress, PublicAddress, RULE_KEY_BITS, Rule, RuleKey, SOURCE_KEY_BITS,
        SourceKey, TenantQuota, Words, public_flags, rule_flags,
    },
};

use crate::packet::{Mac, ip};

/// The tunnels' interface.
pub const UPLINK: u32 = 10;
/// The provider's trunk.
pub const TRUNK: u32 = 11;
/// An access port without tags.
pub const ACCESS: u32 = 12;
/// An interface that nothing is attached to.
pub const STRAY: u32 = 13;

/// Our MAC on [`UPLINK`].
pub const UPLINK_MAC: Mac = [0x02, 0, 0, 0, 0x10, 0x0a];
/// Our MAC on [`TRUNK`].
pub const TRUNK_MAC: Mac = [0x02, 0, 0, 0, 0x11, 0x0a];
/// Our MAC on [`ACCESS`].
pub const ACCESS_MAC: Mac = [0x02, 0, 0, 0, 0x12, 0x0a];
/// The next hop towards the peers.
pub const NEXT_HOP_MAC: Mac = [0x02, 0, 0, 0, 0x10, 0x01];
/// The machine (or replica) with host part 10, on any network.
pub const A_MAC: Mac = [0x02, 0, 0, 0xaa, 0, 0x0a];
/// The machine (or replica) with host part 11.
pub const B_MAC: Mac = [0x02, 0, 0, 0xaa, 0, 0x0b];
/// The replica with host part 10 of net2.
pub const G_MAC: Mac = [0x02, 0, 0, 0xbb, 0, 0x0a];
/// The router of the production network.
pub const ROUTER_MAC: Mac = [0x02, 0, 0, 0xaa, 0, 0x01];

/// VNI of net1, on both sides.
pub const NET1: u32 = 1001;
/// VNI of net2 at the provider: another tenant, the same addresses.
pub const NET2: u32 = 2001;
/// VNI of net3: QinQ, IPv6 underlay.
pub const NET3: u32 = 1003;
/// VNI of net4: an untagged port.
pub const NET4: u32 = 1004;
/// VNI of the tenant appliance's second network.
pub const NET2T: u32 = 1002;

/// UDP port of the tunnels.
pub const PORT: u16 = 4789;
/// UDP port of the encrypted tunnels.
pub const SECURE_PORT: u16 = 6180;
/// The session indices that workers know, in [`World::encrypted`].
pub const SESSIONS: [u32; 3] = [1, 0x0102_0304, 0xffff_fff0];
/// Largest packet of the networks over IPv4.
pub const MTU: u16 = 1450;

/// The provider's tunnel addresses.
pub const PROVIDER: &str = "203.0.113.5";
/// The provider's IPv6 tunnel address.
pub const PROVIDER6: &str = "2001:db8:f::5";
/// The first tenant's tunnel address.
pub const TENANT: &str = "10.1.0.5";
/// The second tenant's tunnel address.
pub const TENANT2: &str = "198.51.100.77";
/// The IPv6 tunnel address of the peer of net3.
pub const TENANT6: &str = "2001:db8:e::5";

/// What the first tenant is seen as.
pub const NAT4: &str = "192.0.2.10";
/// Likewise.
pub const NAT6: &str = "2001:db8:aa::10";
/// A public address of the first tenant, with rules.
pub const PUBLIC4: &str = "192.0.2.11";
/// Likewise.
pub const PUBLIC6: &str = "2001:db8:aa::11";
/// A public address of the first tenant, of one machine.
pub const ONE_TO_ONE4: &str = "192.0.2.12";
/// Likewise.
pub const ONE_TO_ONE6: &str = "2001:db8:aa::12";
/// A public address of the second tenant.
pub const PUBLIC2: &str = "192.0.2.20";
/// A host outside that the rule for port 8080 lists.
pub const LISTED: &str = "198.51.100.7";
/// Likewise.
pub const LISTED6: &str = "2001:db8:cc::7";
/// A host outside that no rule lists.
pub const REMOTE: &str = "203.0.114.9";
/// Likewise.
pub const REMOTE6: &str = "2001:db8:dd::9";

/// The replica in network `n` of [`World::many`]: each has a /24 of its own.
#[must_use]
pub fn many_host(n: u32) -> IpAddr {
    std::net::Ipv4Addr::from(0x0b00_000a + (n << 8)).into()
}

/// The network after `n` of [`World::many`].
#[must_use]
pub const fn many_next(n: u32, networks: u32) -> u32 {
    n % networks + 1
}

/// The four words of an address.
#[must_use]
pub fn words(text: &str) -> Words {
    let address = address(text);
    std::array::from_fn(|i| u32::from_ne_bytes(std::array::from_fn(|j| address[4 * i + j])))
}

/// What the maps hold.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// `CONFIG`.
    pub config: Config,
    /// `ATTACHMENTS`.
    pub attachments: Vec<(AttachmentKey, Attachment)>,
    /// `NETWORKS`, by slot.
    pub networks: Vec<Network>,
    /// `TENANTS`, by slot.
    pub tenants: Vec<Tenant>,
    /// `PEERS`, by slot.
    pub peers: Vec<Peer>,
    /// `TUNNELS`.
    pub tunnels: Vec<(TunnelKey, Tunnel)>,
    /// `ENDPOINTS`.
    pub endpoints: Vec<HostKey>,
    /// `NEIGHBOURS`.
    pub neighbours: Vec<(HostKey, Neighbour)>,
    /// `SESSIONS`.
    pub sessions: Vec<u32>,
    /// `PEER_ADDRESSES`.
    pub peer_addresses: Vec<Address>,
    /// `ROUTES`: bits of the prefix, key, slot of the network.
    pub routes: Vec<(u32, RouteKey, u32)>,
    /// `POLICIES`.
    pub policies: Vec<PolicyKey>,
    /// `NAT`.
    pub nat: Nat,
    /// `NAT_ADDRESSES`, by slot.
    pub nat_addresses: Vec<NatAddress>,
    /// `PUBLIC`.
    pub public: Vec<(Address, PublicAddress)>,
    /// `RULES`, by slot.
    pub rules: Vec<Rule>,
    /// `RULE_PORTS`: bits of the prefix, key, slot of the rule.
    pub rule_ports: Vec<(u32, RuleKey, u32)>,
    /// `RULE_SOURCES`: bits of the prefix, key.
    pub rule_sources: Vec<(u32, SourceKey)>,
    /// `SHARES`, by tenant's slot.
    pub shares: Vec<TenantQuota>,
    /// `ONE_TO_ONE`, to slot of the rule.
    pub one_to_one: Vec<(MachineKey, u32)>,
}

/// Where the sockets of an interface are in `XSKS`.
#[must_use]
pub const fn xsk_of(ifindex: u32) -> u16 {
    match ifindex {
        UPLINK => 1,
        TRUNK => 65,
        ACCESS => 129,
        _ => NO_XSK,
    }
}

/// A network to add to a world.
struct NetworkSpec<'a> {
    vni: u32,
    tenant: u32,
    peer: u32,
    provider: bool,
    mtu: u16,
    prefixes: &'a [(&'a str, u8)],
    gateways: [&'a str; 2],
}

/// The address in map form.
#[must_use]
pub fn address(text: &str) -> Address {
    from_ip(ip(text))
}

/// A key of `ENDPOINTS` and `NEIGHBOURS`.
#[must_use]
pub fn host(vni: u32, text: &str) -> HostKey {
    HostKey {
        vni,
        address: address(text),
    }
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

    fn peer(&mut self, local: &str, remote: &str) -> u32 {
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

    fn network(&mut self, spec: &NetworkSpec<'_>, remote: &str) -> u32 {
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

    fn attach(&mut self, ifindex: u32, outer: u16, inner: u16, network: u32, mac: Mac, host: bool) {
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

    fn set_modes(&mut self, count: usize) {
        self.tenants = vec![
            Tenant {
                mode: Mode::Partial as u32,
                epoch: 1
            };
            count
        ];
    }

    /// The same world with every tenant idle.
    #[must_use]
    pub fn idle(mut self) -> Self {
        for tenant in &mut self.tenants {
            tenant.mode = Mode::Idle as u32;
        }
        self
    }

    /// The same world with encrypted tunnels beside the plain one of net2: as the daemon writes it, an
    /// encrypted network has no entry in `TUNNELS`. The peers' addresses are known but for [`TENANT2`].
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

    /// The provider's appliance, both tenants in full failover. Of the first tenant's networks, net1 and net4
    /// may send to each other, net3 to net1; net4's port takes 1400 bytes, the others 1500.
    #[must_use]
    pub fn full() -> Self {
        let mut w = Self::provider();
        for tenant in &mut w.tenants {
            tenant.mode = Mode::Full as u32;
        }
        for (slot, network) in (0..).zip(&mut w.networks) {
            network.lan_mtu = if network.vni == NET4 { 1400 } else { 1500 };
            for prefix in &network.prefixes[..usize::from(network.prefix_count)] {
                let key = RouteKey {
                    tenant: network.tenant,
                    address: prefix.address(),
                };
                w.routes.push((prefix.length(), key, slot));
            }
        }
        w.policies = [(NET1, NET4), (NET4, NET1), (NET3, NET1)]
            .map(|(from, to)| PolicyKey { from, to })
            .to_vec();
        w
    }

    /// As [`World::full`], with the internet for net1 and net2, and public addresses: [`PUBLIC`] of the first
    /// tenant with rules, [`ONE_TO_ONE`] for the replica 11 of net1, [`PUBLIC2`] of the second. The first is
    /// seen as [`NAT`], the second as the uplink's own address.
    #[must_use]
    pub fn nat() -> Self {
        let mut w = Self::full();
        w.nat = Nat {
            uplink: UPLINK,
            seed: 0x5eed,
            mac: UPLINK_MAC,
            ..Nat::default()
        };
        for network in &mut w.networks {
            if [NET1, NET2].contains(&network.vni) {
                network.flags |= network_flags::INTERNET;
            }
        }
        for text in [
            NAT4,
            NAT6,
            PUBLIC4,
            PUBLIC6,
            ONE_TO_ONE4,
            ONE_TO_ONE6,
            PUBLIC2,
        ] {
            w.public(text, 0);
        }
        w.public(PROVIDER, public_flags::OWN);
        w.public(PROVIDER6, public_flags::OWN);
        for (text, first, last) in [
            (NAT4, 1024, 65_535),
            (NAT6, 1024, 65_535),
            (PROVIDER, 10_000, 32_767),
            (PROVIDER6, 10_000, 32_767),
        ] {
            w.nat_addresses.push(NatAddress {
                address: words(text),
                first,
                last,
            });
        }
        for (public, internal) in [(PUBLIC4, "10.1.0.10"), (PUBLIC6, "2001:db8:1::10")] {
            w.rule(0, NET1, public, internal, (443, 443, 8443), &[6]);
            // 2222 leads to the machine's 22.
            w.rule(0, NET1, public, internal, (2222, 2222, 22), &[6]);
            w.rule(0, NET1, public, internal, (5000, 5009, 6000), &[6, 17]);
            let listed = w.rule(0, NET1, public, internal, (8080, 8080, 80), &[6]);
            let from = if ip(public).is_ipv4() {
                (LISTED, 96 + 24)
            } else {
                (LISTED6, 64)
            };
            w.list(listed, from.0, from.1);
            // Net4 has no internet, and a rule all the same.
            let machine = if ip(public).is_ipv4() {
                "10.4.0.10"
            } else {
                "2001:db8:4::10"
            };
            w.rule(0, NET4, public, machine, (53, 53, 53), &[17]);
        }
        for (public, internal) in [(ONE_TO_ONE4, "10.1.0.11"), (ONE_TO_ONE6, "2001:db8:1::11")] {
            w.one_to_one(0, NET1, public, internal);
            w.neighbour(NET1, internal, TRUNK, B_MAC, TRUNK_MAC, 101, 0);
        }
        w.rule(1, NET2, PUBLIC2, "10.1.0.10", (443, 443, 443), &[6]);
        w
    }

    /// The provider's appliance with networks 1 to `networks`, at most 4094, each a VLAN of the trunk, of one
    /// tenant, in partial failover. What is from [`many_host`] to that of the next network goes into the tunnel;
    /// in full failover it is routed there.
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
                lan_mtu: 1500,
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

    /// An address that is translated on the uplink.
    pub fn public(&mut self, text: &str, flags: u32) {
        let public = PublicAddress {
            flags: public_flags::ACTIVE | flags,
        };
        self.public.push((address(text), public));
    }

    /// A rule of a tenant: public ports from a first to a last, and the machine's first. Returns its slot.
    pub fn rule(
        &mut self,
        tenant: u16,
        vni: u32,
        public: &str,
        internal: &str,
        (first, last, to): (u16, u16, u16),
        protocols: &[u8],
    ) -> u32 {
        let slot = self.push_rule(tenant, vni, public, internal);
        self.rules[slot as usize].public_first = first;
        self.rules[slot as usize].internal_first = to;
        for protocol in protocols {
            for port in first..=last {
                self.rule_port(slot, public, *protocol, port, 16);
            }
        }
        slot
    }

    /// A 1:1 rule of a tenant. Returns its slot.
    pub fn one_to_one(&mut self, tenant: u16, vni: u32, public: &str, internal: &str) -> u32 {
        let slot = self.push_rule(tenant, vni, public, internal);
        self.rules[slot as usize].flags |= rule_flags::ONE_TO_ONE;
        for protocol in [6, 17, if ip(public).is_ipv4() { 1 } else { 58 }] {
            self.rule_port(slot, public, protocol, 0, 0);
        }
        let machine = MachineKey {
            zone: u32::from(tenant) + 1,
            address: words(internal),
        };
        self.one_to_one.push((machine, slot));
        slot
    }

    /// Lists a source for a rule, by bits of its 16-byte form.
    pub fn list(&mut self, slot: u32, from: &str, bits: u32) {
        self.rules[slot as usize].flags |= rule_flags::LISTED;
        let key = SourceKey {
            slot,
            address: words(from),
        };
        self.rule_sources.push((SOURCE_KEY_BITS + bits, key));
    }

    fn push_rule(&mut self, tenant: u16, vni: u32, public: &str, internal: &str) -> u32 {
        let network = self.slot(vni).expect("a network of this world") as u32;
        self.rules.push(Rule {
            epoch: 1,
            flags: rule_flags::ACTIVE,
            network,
            zone: tenant + 1,
            public: words(public),
            internal: words(internal),
            ..Rule::default()
        });
        (self.rules.len() - 1) as u32
    }

    fn rule_port(&mut self, slot: u32, public: &str, protocol: u8, port: u16, bits: u32) {
        let key = RuleKey {
            address: words(public),
            protocol,
            reserved: 0,
            port: port.to_be_bytes(),
        };
        self.rule_ports.push((RULE_KEY_BITS + bits, key, slot));
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

    /// The slot of network `vni`.
    #[must_use]
    pub fn slot(&self, vni: u32) -> Option<usize> {
        self.networks.iter().position(|n| n.vni == vni)
    }

    /// The attachment of a port and tags.
    #[must_use]
    pub fn attachment(&self, ifindex: u32, outer: u16, inner: u16) -> Option<&Attachment> {
        let key = AttachmentKey {
            ifindex,
            outer,
            inner,
        };
        self.attachments
            .iter()
            .find_map(|(k, v)| (*k == key).then_some(v))
    }

    /// Whether `address` is failed over in `vni`.
    #[must_use]
    pub fn is_endpoint(&self, vni: u32, address: IpAddr) -> bool {
        let key = HostKey {
            vni,
            address: from_ip(address),
        };
        self.endpoints.contains(&key)
    }

    /// The neighbour entry of `address` in `vni`.
    #[must_use]
    pub fn neighbour_of(&self, vni: u32, address: &Address) -> Option<&Neighbour> {
        self.neighbours
            .iter()
            .find_map(|(k, v)| (k.vni == vni && k.address == *address).then_some(v))
    }
}

/// The 802.1Q tag of VLAN `vid`.
#[must_use]
pub const fn tag(vid: u16) -> (u16, u16) {
    (0x8100, vid)
}

/// The 802.1ad tag of VLAN `vid`.
#[must_use]
pub const fn service_tag(vid: u16) -> (u16, u16) {
    (0x88a8, vid)
}

/// A frame from replica `A` on the provider's VLAN 101 to our MAC.
#[must_use]
pub fn replica(l3: &[u8]) -> Vec<u8> {
    crate::packet::frame(TRUNK_MAC, A_MAC, &[tag(101)], l3)
}

/// A frame from production machine `B` on the tenant's net1 to our MAC.
#[must_use]
pub fn production(l3: &[u8]) -> Vec<u8> {
    crate::packet::frame(UPLINK_MAC, B_MAC, &[], l3)
}

/// A tunnel datagram as a peer sends it to our uplink: `l3` in network `vni`.
#[must_use]
pub fn tunnelled(from: &str, to: &str, vni: u32, l3: &[u8]) -> Vec<u8> {
    let mac = appliance_common::wire::inner_mac(vni);
    let inner = crate::packet::frame(mac, mac, &[], l3);
    let vxlan = crate::packet::vxlan(8, vni, &inner);
    let outer = crate::packet::udp_no_checksum(ip(from), ip(to), 50_000, PORT, &vxlan);
    crate::packet::frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &outer)
}

/// What an encapsulated packet must be, byte for byte, but for the source port, which is taken from
/// `got`.
#[must_use]
pub fn expect_tunnelled(got: &[u8], from: &str, to: &str, vni: u32, l3: &[u8]) -> Vec<u8> {
    let mac = appliance_common::wire::inner_mac(vni);
    let inner = crate::packet::frame(mac, mac, &[], l3);
    let vxlan = crate::packet::vxlan(8, vni, &inner);
    let udp = if ip(from).is_ipv4() { 34 } else { 54 };
    let port = crate::packet::be16(got, udp).unwrap_or(0);
    let outer = crate::packet::udp_no_checksum(ip(from), ip(to), port, PORT, &vxlan);
    crate::packet::frame(NEXT_HOP_MAC, UPLINK_MAC, &[], &outer)
}

/// What a packet handed to a worker to be sealed must be, byte for byte, but for the hash of its flow,
/// which is taken from `got`.
#[must_use]
pub fn expect_to_seal(got: &[u8], slot: u32, vni: u32, l3: &[u8]) -> Vec<u8> {
    let mut out = slot.to_ne_bytes().to_vec();
    out.extend_from_slice(got.get(4..8).unwrap_or(&[0; 4]));
    out.push(1);
    out.extend_from_slice(&vni.to_be_bytes()[1..]);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(l3);
    out
}

/// A datagram as a peer sends it to the port of our encrypted tunnels.
#[must_use]
pub fn datagram(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let l3 = crate::packet::udp(ip(from), ip(to), SECURE_PORT, SECURE_PORT, payload);
    crate::packet::frame(UPLINK_MAC, NEXT_HOP_MAC, &[], &l3)
}

/// A message of `kind` (WireGuard white paper, sections 5.4.2 to 5.4.7): of a handshake with its one
/// length; else with 64 bytes of content, and the index 1 of a session.
#[must_use]
pub fn message(kind: u8) -> Vec<u8> {
    let mut out = match kind {
        1 => vec![0x5a; 148],
        2 => vec![0x5a; 92],
        3 => vec![0x5a; 64],
        _ => data(1, 64),
    };
    out[..4].copy_from_slice(&[kind, 0, 0, 0]);
    out
}

/// A data message (type 4) of session `index` with `len` bytes of content, cipher 0, counter 7.
#[must_use]
pub fn data(index: u32, len: usize) -> Vec<u8> {
    let mut out = vec![4, 0, 0, 0];
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&7u64.to_le_bytes());
    out.resize(16 + len + 16, 0xc3);
    out
}
