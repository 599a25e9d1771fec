//! Gateways as data: their sites, the circuits that they carry, the backends that they relay to.

use gateway_client::wire::Key;
use serde::{Deserialize, Serialize};

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

/// A circuit, generated when the lab was raised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawn {
    pub tenant: String,
    /// Its id: 16 hexadecimal digits.
    pub id: String,
    /// Keys of side a and of side b, base64.
    pub keys: [String; 2],
}

impl Drawn {
    /// The keys that a gateway of this name has, base64. A drawn text that is no key is kept.
    #[must_use]
    pub fn keys_at(&self, gateway: &str) -> [String; 2] {
        self.keys
            .each_ref()
            .map(|text| match Key::from_base64(text) {
                Some(key) => key.for_gateway(gateway).to_base64(),
                None => text.clone(),
            })
    }
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

#[cfg(test)]
mod tests {
    use crate::{sites, topology::Options};

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
