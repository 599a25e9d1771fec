//! Gateways as data: their sites, the circuits that they carry, the backends that they relay to.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::topology::{Kind, Topology};

/// The gateways' port.
pub const GATEWAY_PORT: u16 = 6180;
/// Port on which an appliance accepts tunnels over TLS from gateways.
pub const TLS_PORT: u16 = 6443;

/// The gateways of a topology and their circuits; empty without gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cloud {
    pub gateways: Vec<Gateway>,
    /// Circuits between appliances, at every gateway.
    pub circuits: Vec<Circuit>,
    /// The host of the director, played by a TLS server.
    pub director: Option<Director>,
}

/// A host that runs the gateway daemon, and its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    pub host: String,
    pub pool: Option<String>,
    /// Its load in the appliances' configuration, thousandths.
    #[serde(default)]
    pub load: u16,
}

/// The circuit of a tenant, between the two appliances that its tunnel joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circuit {
    /// The tenant; one circuit each.
    pub tenant: String,
    /// Hosts of the appliances: side a, the tenant's, and side b, the provider's.
    pub ends: [String; 2],
    /// Which gateways side a may use.
    pub access: Access,
    /// The server name of the way over TLS, if there is one.
    pub tls: Option<String>,
}

/// Which gateways a tenant may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Pools, in order.
    pub pools: Vec<String>,
    /// Whether gateways without a pool may be used, too.
    pub unpooled: bool,
}

/// A TLS server that gateways relay to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Director {
    pub host: String,
    /// Its port, on every address of the host.
    pub port: u16,
    /// Its server name. `<tenant>.<name>` leads there too, and counts for that tenant.
    pub name: String,
}

impl Cloud {
    /// The circuit between two appliances' hosts, and the side that the first one is: 0 is a.
    #[must_use]
    pub fn between(&self, host: &str, other: &str) -> Option<(&Circuit, usize)> {
        self.circuits.iter().find_map(|circuit| {
            let side = circuit.ends.iter().position(|end| end == host)?;
            (circuit.ends[1 - side] == other).then_some((circuit, side))
        })
    }

    /// The circuits of which the appliance on `host` is that side.
    pub fn of(&self, host: &str, side: usize) -> impl Iterator<Item = &Circuit> {
        self.circuits
            .iter()
            .filter(move |c| c.ends.get(side).is_some_and(|end| end == host))
    }

    /// Whether the appliance on `host`, on this side of a circuit, may use TLS.
    #[must_use]
    pub fn has_tls(&self, host: &str, side: usize) -> bool {
        self.of(host, side).any(|c| c.tls.is_some())
    }
}

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

    pub(crate) fn check_cloud(&self) -> Result<(), String> {
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

    #[test]
    fn a_circuit_has_a_side_for_each_of_its_ends() {
        let cloud = sites::gateways(Options::default()).cloud;
        let side = |a, b| {
            cloud
                .between(a, b)
                .map(|(c, side)| (c.tenant.as_str(), side))
        };
        let provider = "provider-appliance";
        assert_eq!(side("acme-appliance", provider), Some(("acme", 0)));
        assert_eq!(side(provider, "globex-appliance"), Some(("globex", 1)));
        assert_eq!(side("acme-appliance", "globex-appliance"), None);
    }
}
