//! Checks a topology before it is raised.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Appliance, Attach, Failover, Hop, Host, Kind, MAX_INTERFACE_NAME, Machine, Role, Topology,
};
use crate::{
    addr::{Vlan, fixed_mac, mac_text},
    error::{Error, Result},
};

impl Topology {
    /// Checks everything that raising it relies on.
    ///
    /// # Errors
    /// [`Error::Topology`] names the first thing that is wrong, in the topology's own names.
    pub fn validate(&self) -> Result<()> {
        let fail = |reason: String| {
            Err(Error::Topology {
                topology: self.name.clone(),
                reason,
            })
        };
        if let Err(reason) = check_name(&self.name, 24) {
            return fail(format!("its own name {reason}"));
        }
        let mut names = BTreeSet::new();
        for name in self
            .hosts
            .iter()
            .map(|h| &h.name)
            .chain(self.switches.iter().map(|s| &s.name))
        {
            if let Err(reason) = check_name(name, 32) {
                return fail(format!("host or switch {name:?} {reason}"));
            }
            if !names.insert(name) {
                return fail(format!("there are two hosts or switches named {name:?}"));
            }
        }
        for switch in &self.switches {
            if ![0x88a8, 0x8100].contains(&switch.outer_ethertype) {
                return fail(format!(
                    "switch {:?}: outer ethertype {:#06x}; use 0x88a8 or 0x8100",
                    switch.name, switch.outer_ethertype
                ));
            }
        }
        for mtu in self
            .wans
            .iter()
            .map(|w| w.mtu)
            .chain([self.options.lan_mtu])
        {
            if !(1280..=9000).contains(&mtu) {
                return fail(format!("MTU {mtu} is not within 1280..=9000"));
            }
        }
        let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
        for wan in &self.wans {
            if ends.insert(&wan.name, 0).is_some() {
                return fail(format!("there are two WAN links named {:?}", wan.name));
            }
        }
        let mut macs = BTreeMap::new();
        for host in &self.hosts {
            if let Err(reason) = self.check_host(host, &mut ends, &mut macs) {
                return fail(format!("host {:?}: {reason}", host.name));
            }
        }
        for (wan, ends) in ends {
            if ends != 2 {
                return fail(format!("WAN link {wan:?} has {ends} ends; it needs two"));
            }
        }
        for switch in &self.switches {
            let vlans = self.vlans(&switch.name);
            for vlan in vlans.iter().flatten().filter(|v| v.inner.is_some()) {
                if vlans.contains(&Some(Vlan::single(vlan.outer))) {
                    return fail(format!(
                        "switch {:?}: VLAN {} is both a VLAN of its own and the outer tag of \
                         {vlan}",
                        switch.name, vlan.outer
                    ));
                }
            }
        }
        for appliance in &self.appliances {
            if let Err(reason) = self.check_appliance(appliance) {
                return fail(format!("appliance {:?}: {reason}", appliance.host));
            }
        }
        for machine in &self.machines {
            if let Err(reason) = self.check_machine(machine) {
                return fail(format!("machine {:?}: {reason}", machine.production));
            }
        }
        for failover in &self.failovers {
            if let Err(reason) = self.check_failover(failover) {
                return fail(format!("failover of {:?}: {reason}", failover.tenant));
            }
        }
        if let Err(reason) = self.check_cloud() {
            return fail(reason);
        }
        Ok(())
    }

    fn check_host<'a>(
        &'a self,
        host: &'a Host,
        ends: &mut BTreeMap<&'a str, usize>,
        macs: &mut BTreeMap<[u8; 6], String>,
    ) -> Result<(), String> {
        let mut names = BTreeSet::from(["lo"]);
        for link in &host.links {
            let name = link.name.as_str();
            if name.is_empty() || name.len() > MAX_INTERFACE_NAME {
                return Err(format!(
                    "link {name:?} has {} characters; Linux takes 1 to {MAX_INTERFACE_NAME}",
                    name.len()
                ));
            }
            if !name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            {
                return Err(format!("link {name:?}: use letters, digits, '-', '_', '.'"));
            }
            if !names.insert(name) {
                return Err(format!("there are two links named {name:?}"));
            }
            match &link.to {
                Attach::Access { switch, vlan } => {
                    self.check_switch(name, switch)?;
                    if let Some(vlan) = vlan
                        && !vlan.is_valid()
                    {
                        return Err(format!(
                            "link {name:?}: VLAN {vlan} is bad; an id is 1 to 4094"
                        ));
                    }
                }
                Attach::Trunk { switch } => self.check_switch(name, switch)?,
                Attach::Wan { wan } => match ends.get_mut(wan.as_str()) {
                    Some(count) => *count += 1,
                    None => return Err(format!("link {name:?}: there is no WAN link {wan:?}")),
                },
            }
            let mac = fixed_mac(&host.name, name);
            let owner = format!("{} {name}", host.name);
            if let Some(other) = macs.insert(mac, owner) {
                return Err(format!(
                    "link {name:?} gets the MAC {} that {other} has; rename one",
                    mac_text(mac)
                ));
            }
        }
        let mut seen = BTreeSet::new();
        for cidr in host.links.iter().flat_map(|l| &l.addresses) {
            if !seen.insert(cidr.addr) {
                return Err(format!("address {} is there twice", cidr.addr));
            }
        }
        for route in &host.routes {
            match &route.hop {
                Hop::Via(via) => {
                    if route.to.addr.is_ipv4() != via.is_ipv4() {
                        return Err(format!(
                            "route to {} via {via}: not of one family",
                            route.to
                        ));
                    }
                    let on_link = host
                        .links
                        .iter()
                        .flat_map(|l| &l.addresses)
                        .any(|c| c.contains(*via));
                    if !on_link {
                        return Err(format!(
                            "route to {} via {via}: that is on none of its links",
                            route.to
                        ));
                    }
                }
                Hop::OnLink(name) => {
                    if !host.links.iter().any(|l| &l.name == name) {
                        return Err(format!(
                            "route to {} on {name:?}: there is no such link",
                            route.to
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    fn check_switch(&self, link: &str, switch: &str) -> Result<(), String> {
        if self.switches.iter().any(|s| s.name == switch) {
            return Ok(());
        }
        let known: Vec<_> = self.switches.iter().map(|s| s.name.as_str()).collect();
        Err(format!(
            "link {link:?}: there is no switch {switch:?} (there are: {})",
            known.join(", ")
        ))
    }

    fn check_appliance(&self, appliance: &Appliance) -> Result<(), String> {
        let host = self
            .find_host(&appliance.host)
            .ok_or("there is no such host")?;
        if host.kind != Kind::Appliance {
            return Err("its host is not of kind appliance".to_owned());
        }
        let has = |name: &str| host.links.iter().any(|l| l.name == name);
        if !has(&appliance.uplink) {
            return Err(format!("its host has no link {:?}", appliance.uplink));
        }
        for network in &appliance.networks {
            let name = &network.name;
            if !has(&network.interface) {
                return Err(format!(
                    "network {name:?}: its host has no link {:?}",
                    network.interface
                ));
            }
            if !appliance.tenants.iter().any(|t| t.name == network.tenant) {
                return Err(format!(
                    "network {name:?}: there is no tenant {:?}",
                    network.tenant
                ));
            }
            if !appliance.peers.iter().any(|(p, _)| p == &network.peer) {
                return Err(format!(
                    "network {name:?}: there is no peer {:?}",
                    network.peer
                ));
            }
            if network.vlan.is_some_and(|v| !v.is_valid()) {
                return Err(format!("network {name:?}: a VLAN id is 1 to 4094"));
            }
        }
        for tenant in &appliance.tenants {
            let public = |a: &IpAddr| tenant.public.iter().any(|p| p.contains(*a));
            if let Some(address) = tenant.nat.iter().find(|a| !public(a)) {
                return Err(format!(
                    "tenant {:?}: NAT address {address} is not in its public addresses",
                    tenant.name
                ));
            }
        }
        Ok(())
    }

    fn check_machine(&self, machine: &Machine) -> Result<(), String> {
        for host in [&machine.production, &machine.replica] {
            if self.find_host(host).is_none() {
                return Err(format!("there is no host {host:?}"));
            }
        }
        for host in [&machine.tenant_appliance, &machine.provider_appliance] {
            let appliance = self
                .appliances
                .iter()
                .find(|a| &a.host == host)
                .ok_or_else(|| format!("there is no appliance {host:?}"))?;
            if !appliance
                .networks
                .iter()
                .any(|n| n.name == machine.network && n.tenant == machine.tenant)
            {
                return Err(format!(
                    "appliance {host:?} has no network {:?} of tenant {:?}",
                    machine.network, machine.tenant
                ));
            }
        }
        Ok(())
    }

    fn check_failover(&self, failover: &Failover) -> Result<(), String> {
        let appliance = self
            .appliances
            .iter()
            .find(|a| a.host == failover.appliance && a.role == Role::Provider)
            .ok_or_else(|| format!("there is no provider's appliance {:?}", failover.appliance))?;
        if !appliance.tenants.iter().any(|t| t.name == failover.tenant) {
            return Err(format!("appliance {:?} has no such tenant", appliance.host));
        }
        if !self.wans.iter().any(|w| w.name == failover.wan) {
            return Err(format!("there is no WAN link {:?}", failover.wan));
        }
        Ok(())
    }
}

/// Whether `name` is `[a-z0-9-]{1,max}` and starts and ends with a letter or digit.
pub(crate) fn check_name(name: &str, max: usize) -> Result<(), String> {
    if name.is_empty() || name.len() > max {
        return Err(format!(
            "has {} characters; 1 to {max} are allowed",
            name.len()
        ));
    }
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !name.bytes().all(|b| plain(b) || b == b'-') || name.starts_with('-') || name.ends_with('-')
    {
        return Err("may only have a-z, 0-9 and '-' inside".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sites, topology::Options};

    fn reason(topology: &Topology) -> String {
        topology.validate().unwrap_err().to_string()
    }

    fn partial() -> Topology {
        sites::partial(Options::default())
    }

    #[test]
    fn the_built_in_topologies_are_valid() {
        partial().validate().unwrap();
        sites::two_tenants(Options::default()).validate().unwrap();
        sites::full(Options::default()).validate().unwrap();
        sites::two_routers(Options::default()).validate().unwrap();
        sites::gateways(Options::default()).validate().unwrap();
        sites::partial_by_gateways(Options::default())
            .validate()
            .unwrap();
    }

    #[test]
    fn duplicate_hosts_are_refused_by_name() {
        let mut t = partial();
        let twin = t.hosts[0].clone();
        t.hosts.push(twin);
        assert!(reason(&t).contains("two hosts or switches named \"prod-a\""));
    }

    #[test]
    fn a_host_may_not_be_named_as_a_switch_is() {
        let mut t = partial();
        t.switches[0].name = "prod-a".to_owned();
        assert!(reason(&t).contains("\"prod-a\""));
    }

    #[test]
    fn long_interface_names_are_refused_with_the_limit() {
        let mut t = partial();
        t.hosts[0].links[0].name = "sixteen-letters-".to_owned();
        let reason = reason(&t);
        assert!(
            reason.contains("16 characters") && reason.contains("15"),
            "{reason}"
        );
    }

    #[test]
    fn an_unknown_switch_is_reported_with_the_known_ones() {
        let mut t = partial();
        t.hosts[0].links[0].to = Attach::Access {
            switch: "nowhere".to_owned(),
            vlan: None,
        };
        let reason = reason(&t);
        assert!(reason.contains("no switch \"nowhere\"") && reason.contains("tenant-net1"));
    }

    #[test]
    fn bad_vlans_are_refused() {
        for vlan in [Vlan::single(0), Vlan::single(4095), Vlan::qinq(5, 0)] {
            let mut t = partial();
            let host = t.hosts.iter_mut().find(|h| h.name == "replica-a").unwrap();
            host.links[0].to = Attach::Access {
                switch: "provider-net".to_owned(),
                vlan: Some(vlan),
            };
            assert!(reason(&t).contains("1 to 4094"), "{vlan}");
        }
    }

    #[test]
    fn a_vlan_may_not_also_be_an_outer_tag() {
        let mut t = partial();
        let host = t.hosts.iter_mut().find(|h| h.name == "replica-c").unwrap();
        host.links[0].to = Attach::Access {
            switch: "provider-net".to_owned(),
            vlan: Some(Vlan::qinq(101, 7)),
        };
        assert!(reason(&t).contains("outer tag of 101.7"));
    }

    #[test]
    fn a_wan_link_needs_two_ends() {
        let t = partial().wan("loose");
        assert!(reason(&t).contains("\"loose\" has 0 ends"));
    }

    #[test]
    fn a_route_needs_a_next_hop_on_a_link() {
        let mut t = partial();
        t.hosts[0].routes[0].hop = Hop::Via("192.0.2.1".parse().unwrap());
        assert!(reason(&t).contains("none of its links"));
        t.hosts[0].routes[0].hop = Hop::OnLink("eth9".to_owned());
        assert!(reason(&t).contains("no such link"));
    }

    #[test]
    fn machines_need_their_hosts_and_appliances() {
        let mut t = partial();
        t.machines[0].replica = "unknown".to_owned();
        assert!(reason(&t).contains("no host \"unknown\""));
        let mut t = partial();
        t.machines[0].network = "net9".to_owned();
        assert!(reason(&t).contains("no network \"net9\""));
    }

    #[test]
    fn a_failover_needs_its_appliance_tenant_and_wan() {
        let with = |change: fn(&mut Failover)| {
            let mut t = sites::full(Options::default());
            change(&mut t.failovers[0]);
            reason(&t)
        };
        let no_provider = with(|f| f.appliance = "tenant-appliance".to_owned());
        assert!(no_provider.contains("no provider's appliance"));
        assert!(with(|f| f.tenant = "unknown".to_owned()).contains("no such tenant"));
        assert!(with(|f| f.wan = "nowhere".to_owned()).contains("no WAN link \"nowhere\""));
    }

    #[test]
    fn a_nat_address_is_a_public_one_of_its_tenant() {
        let mut t = sites::full(Options::default());
        let provider = t
            .appliances
            .iter_mut()
            .find(|a| a.role == Role::Provider)
            .unwrap();
        provider.tenants[0].nat = vec!["203.0.113.99".parse().unwrap()];
        assert!(reason(&t).contains("203.0.113.99 is not in its public addresses"));
    }

    #[test]
    fn trunks_of_qinq_switches_have_room_for_the_second_tag() {
        let mut t = partial();
        let trunk = |t: &Topology| {
            let host = t.find_host("provider-appliance").unwrap();
            t.mtu(&host.links[1])
        };
        assert_eq!(trunk(&t), 1500);
        let host = t.hosts.iter_mut().find(|h| h.name == "replica-c").unwrap();
        host.links[0].to = Attach::Access {
            switch: "provider-net".to_owned(),
            vlan: Some(Vlan::qinq(200, 7)),
        };
        assert_eq!(trunk(&t), 1504);
    }

    #[test]
    fn topologies_survive_a_round_trip_through_json() {
        for t in [
            sites::two_tenants(Options::default()),
            sites::full(Options::default()),
            sites::gateways(Options::default()),
        ] {
            let text = serde_json::to_string(&t).unwrap();
            assert_eq!(serde_json::from_str::<Topology>(&text).unwrap(), t);
        }
    }
}
