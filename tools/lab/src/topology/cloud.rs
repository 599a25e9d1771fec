//! Addresses of gateways, and the checks of gateways and circuits.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::{Kind, Topology};
use crate::cloud::GATEWAY_PORT;

impl Topology {
    /// Addresses of a host that others may use: of all its links.
    pub fn addresses_of(&self, host: &str) -> impl Iterator<Item = IpAddr> {
        let links = self.find_host(host).into_iter().flat_map(|h| &h.links);
        links.flat_map(|l| &l.addresses).map(|c| c.addr)
    }

    /// A gateway's addresses with the gateways' port.
    #[must_use]
    pub fn gateway_addresses(&self, host: &str) -> Vec<SocketAddr> {
        let all = self.addresses_of(host);
        all.map(|a| SocketAddr::new(a, GATEWAY_PORT)).collect()
    }

    pub(super) fn check_cloud(&self) -> Result<(), String> {
        let cloud = &self.cloud;
        for gateway in &cloud.gateways {
            let name = &gateway.host;
            if self.find_host(name).map(|h| h.kind) != Some(Kind::Gateway) {
                return Err(format!(
                    "gateway {name:?}: there is no host of kind gateway"
                ));
            }
            let families: Vec<_> = self.addresses_of(name).map(|a| a.is_ipv4()).collect();
            if families.is_empty() || families.iter().filter(|v4| **v4).count() > 1 {
                return Err(format!("gateway {name:?}: one address of a family, or two"));
            }
        }
        let mut tenants = BTreeSet::new();
        for circuit in &cloud.circuits {
            let tenant = &circuit.tenant;
            if !self.options.encrypted {
                return Err("circuits carry encrypted tunnels only".to_owned());
            }
            if cloud.gateways.is_empty() {
                return Err(format!("circuit of {tenant:?}: there is no gateway"));
            }
            if !tenants.insert(tenant) {
                return Err(format!("there are two circuits of {tenant:?}"));
            }
            for end in &circuit.ends {
                let appliance = self.appliances.iter().find(|a| &a.host == end);
                if !appliance.is_some_and(|a| a.tenants.iter().any(|t| &t.name == tenant)) {
                    return Err(format!(
                        "circuit of {tenant:?}: there is no appliance {end:?} with that tenant"
                    ));
                }
            }
            let pools: BTreeSet<_> = cloud.gateways.iter().flat_map(|g| &g.pool).collect();
            if let Some(pool) = circuit.access.pools.iter().find(|p| !pools.contains(p)) {
                return Err(format!(
                    "circuit of {tenant:?}: no gateway is in pool {pool:?}"
                ));
            }
        }
        if let Some(director) = &cloud.director
            && self.find_host(&director.host).is_none()
        {
            return Err(format!("there is no host {:?}", director.host));
        }
        for rules in &self.rules {
            if self.find_host(&rules.host).is_none() {
                return Err(format!("rules: there is no host {:?}", rules.host));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sites, topology::Options};

    fn reason(change: impl FnOnce(&mut Topology)) -> String {
        let mut t = sites::gateways(Options::default());
        change(&mut t);
        t.validate().unwrap_err().to_string()
    }

    #[test]
    fn circuits_need_gateways_appliances_and_pools_that_are_there() {
        let no_host = reason(|t| t.cloud.gateways[0].host = "cloud".to_owned());
        assert!(no_host.contains("no host of kind gateway"), "{no_host}");
        let stranger = reason(|t| t.cloud.circuits[0].ends[1] = "globex-appliance".to_owned());
        assert!(stranger.contains("no appliance \"globex-appliance\" with that tenant"));
        let pool = reason(|t| t.cloud.circuits[0].access.pools = vec!["tin".to_owned()]);
        assert!(pool.contains("no gateway is in pool \"tin\""), "{pool}");
        let twice = reason(|t| {
            let twin = t.cloud.circuits[0].clone();
            t.cloud.circuits.push(twin);
        });
        assert!(twice.contains("two circuits of \"acme\""), "{twice}");
        let plain = reason(|t| t.options.encrypted = false);
        assert!(plain.contains("encrypted"), "{plain}");
    }
}
