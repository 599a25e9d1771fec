//! Appliances in full failover: routes between networks, and translation to the internet.

use appliance_common::limits::MAX_NAT_ADDRESSES;
use appliance_common::maps::{Mode, PolicyKey, RouteKey, network_flags};
use appliance_common::nat::{
    MachineKey, Nat, NatAddress, PublicAddress, RULE_KEY_BITS, Rule, RuleKey, SOURCE_KEY_BITS,
    SourceKey, nat_address_slot, public_flags, rule_flags,
};

use super::{
    B_MAC, LISTED, LISTED6, NAT4, NAT6, NET1, NET2, NET3, NET4, ONE_TO_ONE4, ONE_TO_ONE6, PROVIDER,
    PROVIDER6, PUBLIC2, PUBLIC4, PUBLIC6, TRUNK, TRUNK_MAC, UPLINK, UPLINK_MAC, World, address,
    words, words_of,
};

use crate::packet::ip;

impl World {
    /// The provider's appliance, both tenants in full failover. Of the first tenant's networks,
    /// net1 and net4 may send to each other, net3 to net1; net4's port takes 1400 bytes, the others
    /// 1500.
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

    /// Gives a tenant one more NAT address.
    ///
    /// # Panics
    ///
    /// When it has the most of the family.
    pub fn nat_address(&mut self, tenant: u32, text: &str, first: u16, last: u16) {
        let base = nat_address_slot(tenant, ip(text).is_ipv6()) as usize;
        let end = base + MAX_NAT_ADDRESSES as usize;
        let len = self.nat_addresses.len().max(end);
        self.nat_addresses.resize(len, NatAddress::default());
        let free = self.nat_addresses[base..end]
            .iter_mut()
            .find(|a| a.last == 0);
        *free.expect("room for one more") = NatAddress {
            address: words(text),
            first,
            last,
        };
    }

    /// As [`World::full`], with the internet for net1 and net2, and public addresses: [`PUBLIC`] of
    /// the first tenant with rules, [`ONE_TO_ONE`] for the replica 11 of net1, [`PUBLIC2`] of the
    /// second. The first is seen as [`NAT`], the second as the uplink's own address.
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
        for (tenant, text, first, last) in [
            (0, NAT4, 1024, 65_535),
            (0, NAT6, 1024, 65_535),
            (1, PROVIDER, 10_000, 32_767),
            (1, PROVIDER6, 10_000, 32_767),
        ] {
            w.nat_address(tenant, text, first, last);
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
        w.mark_public();
        w
    }

    /// Gives each public address its tenant, and the protocols that it receives.
    pub fn mark_public(&mut self) {
        let all = public_flags::TCP | public_flags::UDP | public_flags::ICMP;
        let of_mappings = self.nat_addresses.iter().zip(0u32..);
        let of_mappings = of_mappings.map(|(nat, slot)| (nat.address, slot / 2 + 1, all));
        let of_rules = self.rule_ports.iter().map(|(_, key, slot)| {
            let zone = self.rules[*slot as usize].zone.into();
            (key.address, zone, public_flags::of_protocol(key.protocol))
        });
        let marks: Vec<_> = of_mappings.chain(of_rules).collect();
        for (address, zone, flags) in marks {
            let public = self
                .public
                .iter_mut()
                .find(|(public, _)| words_of(public) == address);
            if let Some((_, public)) = public {
                public.zone = zone;
                public.flags |= flags;
            }
        }
    }

    /// An address that is translated on the uplink.
    pub fn public(&mut self, text: &str, flags: u32) {
        let public = PublicAddress {
            flags: public_flags::ACTIVE | flags,
            zone: 0,
        };
        self.public.push((address(text), public));
    }

    /// A rule of a tenant: public ports from a first to a last, and the machine's first. Returns
    /// its slot.
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
        for protocol in [
            6,
            17,
            if ip(public).is_ipv4() { 1 } else { 58 },
            47,
            50,
            132,
        ] {
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
}
