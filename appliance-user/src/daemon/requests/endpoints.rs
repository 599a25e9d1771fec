//! Failed-over addresses: added, removed, listed.

use std::{collections::BTreeSet, net::IpAddr};

use appliance_common::{addr::Address, limits::MAX_ENDPOINTS};

use super::{Outcome, modes};
use crate::{
    config::Network,
    control::{Answer, Endpoints, RequestRefusal},
    daemon::controller::{Controller, Proposal},
    datapath::reconcile::check_endpoint,
    state::State,
};

/// The state with these addresses of a network failed over.
///
/// # Errors
/// The refusal.
pub(super) fn add(
    controller: &Controller,
    name: &str,
    addresses: &[IpAddr],
) -> Result<Proposal, RequestRefusal> {
    let network = network(controller, name)?;
    modes::must_forward(controller, network)?;
    let (state, own) = (controller.state(), controller.own_addresses());
    with_endpoints(state, network, &own, addresses).map(Proposal::state)
}

/// The state with these addresses of a network back at the production site.
///
/// # Errors
/// The refusal.
pub(super) fn remove(
    controller: &Controller,
    name: &str,
    addresses: &[IpAddr],
) -> Result<Proposal, RequestRefusal> {
    let state = controller.state();
    // Those of a network that is no longer configured can be removed as well.
    if !state.endpoints.contains_key(name) {
        network(controller, name)?;
    }
    without_endpoints(state, name, addresses).map(Proposal::state)
}

/// The failed-over addresses of a network, or of all.
pub(super) fn list(controller: &Controller, only: Option<&str>) -> Outcome {
    let endpoints = &controller.state().endpoints;
    if let Some(name) = only.filter(|name| !endpoints.contains_key(*name)) {
        network(controller, name)?;
    }
    let configured = controller.config().networks.iter().map(|n| &n.name);
    // Networks that are no longer configured may have addresses, too.
    let names: BTreeSet<&String> = configured.chain(endpoints.keys()).collect();
    let listed: Endpoints = names
        .into_iter()
        .filter(|name| only.is_none_or(|n| n == *name))
        .map(|name| {
            let addresses = endpoints.get(name).into_iter().flatten();
            (name.clone(), addresses.copied().collect())
        })
        .collect();
    Ok(Answer::Endpoints(listed))
}

/// The configured network of that name.
fn network<'a>(controller: &'a Controller, name: &str) -> Result<&'a Network, RequestRefusal> {
    let networks = &controller.config().networks;
    networks.iter().find(|n| n.name == name).ok_or_else(|| {
        let names: Vec<&str> = networks.iter().map(|n| n.name.as_str()).collect();
        let names = names.join(", ");
        RequestRefusal::new(
            "not-found",
            format!("there is no network {name:?}; there are: {names}"),
        )
    })
}

/// The state with these addresses of a network failed over; `own` are the appliance's.
///
/// # Errors
/// Maintenance, as each address begins a failover of its own; an address that cannot be failed
/// over.
fn with_endpoints(
    state: &State,
    network: &Network,
    own: &[Address],
    addresses: &[IpAddr],
) -> Result<State, RequestRefusal> {
    let name = &network.name;
    if state.maintenance {
        return Err(RequestRefusal::new(
            "conflict",
            format!(
                "network {name:?}: maintenance mode refuses new failovers; end it \
                 (`causeway-appliance maintenance off`) and retry; nothing was changed"
            ),
        ));
    }
    let mut new = state.clone();
    let set = new.endpoints.entry(name.clone()).or_default();
    for address in addresses {
        check_endpoint(network, own, *address).map_err(|m| RequestRefusal::new("invalid", m))?;
        if !set.insert(*address) {
            return Err(RequestRefusal::new(
                "conflict",
                format!(
                    "{address} is already failed over in network {name:?}; nothing was changed"
                ),
            ));
        }
    }
    let total: usize = new.endpoints.values().map(BTreeSet::len).sum();
    // The map keeps a few entries in reserve on each CPU, so it is never filled to the brim.
    let most = MAX_ENDPOINTS as usize - 1024;
    if total > most {
        return Err(RequestRefusal::new(
            "conflict",
            format!("that would be {total} failed-over addresses; an appliance takes {most}"),
        ));
    }
    Ok(new)
}

/// The state without these addresses of a network.
///
/// # Errors
/// An address that is not failed over.
fn without_endpoints(
    state: &State,
    name: &str,
    addresses: &[IpAddr],
) -> Result<State, RequestRefusal> {
    let mut new = state.clone();
    let set = new.endpoints.entry(name.to_owned()).or_default();
    for address in addresses {
        if !set.remove(address) {
            return Err(RequestRefusal::new(
                "not-found",
                format!("{address} is not failed over in network {name:?}; nothing was changed"),
            ));
        }
    }
    if set.is_empty() {
        new.endpoints.remove(name);
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use appliance_common::addr::from_ip;

    use super::*;
    use crate::config::Config;

    const CONFIG: &str = r#"
[appliance]
name = "tenant"
role = "tenant"
[uplink]
interface = "eth0"
[[tenant]]
name = "acme"
[[peer]]
name = "a"
kind = "vxlan"
address = "198.51.100.5"
[[network]]
name = "net1"
tenant = "acme"
peer = "a"
vni = 1001
interface = "eth1"
prefixes = ["10.1.0.0/24"]
"#;

    fn config() -> Config {
        Config::parse(CONFIG, Path::new("t")).expect("good")
    }

    #[test]
    fn addresses_do_not_fail_over_in_maintenance_or_twice() {
        let config = config();
        let network = config.network("net1").expect("a network");
        let address: IpAddr = "10.1.0.10".parse().expect("an address");
        let own = [from_ip("10.1.0.5".parse().expect("an address"))];
        let mut state = State::default();
        let add = |state: &State, address: IpAddr| {
            with_endpoints(state, network, &own, &[address]).map_err(|refusal| refusal.message)
        };
        let one = add(&state, address).expect("failed over");
        assert!(one.endpoints["net1"].contains(&address));
        assert_eq!(
            add(&one, address),
            Err(
                "10.1.0.10 is already failed over in network \"net1\"; nothing was changed"
                    .to_owned()
            )
        );
        let ours = add(&state, "10.1.0.5".parse().expect("an address"));
        assert!(ours.is_err_and(|m| m.contains("this appliance's own address")));
        state.maintenance = true;
        assert_eq!(
            add(&state, address),
            Err(
                "network \"net1\": maintenance mode refuses new failovers; end it \
                 (`causeway-appliance maintenance off`) and retry; nothing was changed"
                    .to_owned()
            )
        );
    }

    #[test]
    fn addresses_are_removed_all_or_none() {
        let addresses = ["10.1.0.10", "10.1.0.11"].map(|a| a.parse().expect("an address"));
        let mut state = State::default();
        state
            .endpoints
            .insert("net1".to_owned(), BTreeSet::from([addresses[0]]));
        let refusal = without_endpoints(&state, "net1", &addresses).expect_err("one is not there");
        assert_eq!(
            refusal.message,
            "10.1.0.11 is not failed over in network \"net1\"; nothing was changed"
        );
        let none = without_endpoints(&state, "net1", &addresses[..1]).expect("removed");
        assert!(none.endpoints.is_empty());
    }
}
