//! What the operator asks, and the refusals.

use std::{collections::BTreeSet, net::IpAddr};

use appliance_common::{
    addr::{Address, from_ip},
    limits::MAX_ENDPOINTS,
};
use serde_json::{Value, json};

use super::{Daemon, failover::How, give_slots, tunnels::Keys};
use crate::{
    config::{Config, Network},
    control::{Refusal, Reply, Request},
    reconcile::{self, endpoint_fits},
    state::{Doing, State},
};

pub(super) type Answer = Result<Value, Refusal>;

impl Daemon {
    pub(super) fn answer(&mut self, request: Request) -> Reply {
        let answer = match request {
            Request::Status => self.status().and_then(|s| to_value(&s)),
            Request::Counters => self.counters().and_then(|c| to_value(&c)),
            Request::Mode {
                tenant,
                mode,
                plan,
                force,
                promote,
            } => {
                let how = How {
                    plan,
                    force,
                    promote,
                };
                self.mode(tenant.as_deref(), mode.as_deref(), &how)
            }
            Request::Maintenance { on } => self.maintenance(on),
            Request::RuleAdd { tenant, rules } => self.rule_add(tenant.as_deref(), rules),
            Request::RuleRemove { tenant, names } => self.rule_remove(tenant.as_deref(), names),
            Request::RuleList { tenant } => self.rule_list(tenant.as_deref()),
            Request::RuleCheck { tenant, rules } => self.rule_check(tenant.as_deref(), rules),
            Request::EndpointAdd { network, addresses } => self.endpoint_add(&network, &addresses),
            Request::EndpointRemove { network, addresses } => {
                self.endpoint_remove(&network, &addresses)
            }
            Request::EndpointList { network } => self.endpoint_list(network.as_deref()),
            Request::TraceStart(wanted) => self.trace_start(&wanted),
            Request::TraceNext => self.trace_next(),
            Request::TraceStop => self.trace_stop(),
            Request::Flows { .. } => Err(Refusal::new("internal", "it is answered elsewhere")),
            Request::Reload => self.reload().map(|()| json!("reloaded")),
        };
        match answer {
            Ok(value) => Reply::Ok(value),
            Err(refusal) => {
                tracing::info!(
                    code = refusal.code,
                    reason = refusal.message,
                    "request refused"
                );
                Reply::Error(refusal)
            }
        }
    }

    fn named(&self, name: &str) -> Result<&Network, Refusal> {
        self.config.network(name).ok_or_else(|| {
            let names: Vec<&str> = self
                .config
                .networks
                .iter()
                .map(|n| n.name.as_str())
                .collect();
            Refusal::new(
                "not-found",
                format!(
                    "there is no network {name:?}; there are: {}",
                    names.join(", ")
                ),
            )
        })
    }

    fn endpoint_add(&mut self, name: &str, addresses: &[IpAddr]) -> Answer {
        let network = self.named(name)?;
        self.must_forward(network)?;
        let new = with_endpoints(&self.state, network, &self.own_addresses(), addresses)?;
        self.put(new)?;
        tracing::info!(network = name, count = addresses.len(), "failed over");
        Ok(json!({ "network": name, "added": addresses }))
    }

    fn endpoint_remove(&mut self, name: &str, addresses: &[IpAddr]) -> Answer {
        // Those of a network that is not configured any more can be taken back as well.
        if !self.state.endpoints.contains_key(name) {
            self.named(name)?;
        }
        let mut new = self.state.clone();
        let set = new.endpoints.entry(name.to_owned()).or_default();
        for address in addresses {
            if !set.remove(address) {
                return Err(Refusal::new(
                    "not-found",
                    format!(
                        "{address} is not failed over in network {name:?}; nothing was changed"
                    ),
                ));
            }
        }
        if set.is_empty() {
            new.endpoints.remove(name);
        }
        self.put(new)?;
        tracing::info!(
            network = name,
            count = addresses.len(),
            "back in production"
        );
        Ok(json!({ "network": name, "removed": addresses }))
    }

    fn endpoint_list(&self, network: Option<&str>) -> Answer {
        let kept = &self.state.endpoints;
        if let Some(name) = network.filter(|name| !kept.contains_key(*name)) {
            self.named(name)?;
        }
        let configured = self.config.networks.iter().map(|n| &n.name);
        // Those of networks that are not configured any more as well.
        let names: BTreeSet<&String> = configured.chain(kept.keys()).collect();
        let endpoints: serde_json::Map<String, Value> = names
            .into_iter()
            .filter(|name| network.is_none_or(|n| n == *name))
            .map(|name| {
                let addresses: Vec<&IpAddr> = kept.get(name).into_iter().flatten().collect();
                (name.clone(), json!(addresses))
            })
            .collect();
        Ok(Value::Object(endpoints))
    }

    pub(super) fn put(&mut self, new: State) -> Result<(), Refusal> {
        self.change(new)
            .map_err(|error| Refusal::new("internal", format!("{error:#}")))
    }

    fn own_addresses(&self) -> Vec<Address> {
        self.snapshot
            .links
            .values()
            .flat_map(|l| l.addresses.iter().map(|(a, _)| from_ip(*a)))
            .chain(self.config.uplink.local.iter().map(|a| from_ip(*a)))
            .collect()
    }

    /// Failed-over addresses that have no place in `config`.
    pub(super) fn misplaced_endpoints(&self, config: &Config) -> Vec<String> {
        let own = self.own_addresses();
        let mut problems = Vec::new();
        for (name, addresses) in &self.state.endpoints {
            let Some(network) = config.network(name) else {
                let count = addresses.len();
                let addresses = addresses.iter().take(3).map(ToString::to_string);
                let more = if count > 3 { " ..." } else { "" };
                problems.push(format!(
                    "network {name:?} has {count} failed-over address{} and is not configured: put it back into the \
                     configuration, or take them back (`causeway-appliance endpoint remove --network {name} {}{more}`)",
                    if count == 1 { "" } else { "es" },
                    addresses.collect::<Vec<_>>().join(" "),
                ));
                continue;
            };
            problems.extend(
                addresses
                    .iter()
                    .filter_map(|a| endpoint_fits(network, &own, *a).err()),
            );
        }
        problems
    }

    /// Reads the file again and puts it in force, whole or not at all.
    pub(super) fn reload(&mut self) -> Result<(), Refusal> {
        let invalid = |message: String| Refusal::new("invalid", message);
        let config = Config::load(&self.config_path).map_err(|e| invalid(e.to_string()))?;
        let keys = Keys::load(&config).map_err(|e| invalid(e.to_string()))?;
        if let Some(problem) = keys.own_peer(&config) {
            return Err(invalid(problem));
        }
        config.check_ports().map_err(|e| invalid(e.to_string()))?;
        let now = &self.config;
        if config.tunnel != now.tunnel || !keys.same_identity(&self.keys) {
            return Err(invalid(
                "[tunnel] and our private key take effect at a restart (`systemctl restart causeway-appliance`; encrypted traffic pauses for a second); the running configuration stays in force".to_owned(),
            ));
        }
        for (what, differs) in [
            ("name", config.name != now.name),
            ("role", config.role != now.role),
            ("state_dir", config.state_dir != now.state_dir),
            ("pin_dir", config.pin_dir != now.pin_dir),
            (
                "control_socket",
                config.control_socket != now.control_socket,
            ),
            ("bpf_object", config.bpf_object != now.bpf_object),
        ] {
            if differs {
                return Err(invalid(format!(
                    "appliance.{what} takes effect at a restart (`systemctl restart causeway-appliance`; traffic goes on); the running configuration stays in force"
                )));
            }
        }
        let problems = self.misplaced_endpoints(&config);
        if !problems.is_empty() {
            return Err(invalid(format!(
                "failed-over addresses would lose their network; take them back first: {}",
                problems.join("; ")
            )));
        }
        let problems = reconcile::made_wrong(now, &config, &self.state, &self.snapshot);
        if !problems.is_empty() {
            return Err(invalid(format!(
                "something of failovers would be without effect, and the running configuration stays in force; mend the \
                 file, or undo the failover first (`mode idle`): {}",
                problems.join("; ")
            )));
        }
        if config.nat.connections != now.nat.connections {
            tracing::warn!(
                connections = config.nat.connections,
                "nat.connections takes effect when the data path is made anew: stop, `detach`, start"
            );
        }
        let mut state = self.state.clone();
        // What is left of a failover stays until it is undone, or its tenant is back.
        state
            .modes
            .retain(|tenant, mode| mode.doing != Doing::Idle || config.tenant(tenant).is_some());
        give_slots(&config, &mut state);
        self.store
            .save(&state)
            .map_err(|e| Refusal::new("internal", e.to_string()))?;
        self.config = config;
        self.keys = keys;
        self.state = state;
        self.set_peers();
        self.watcher.update(
            self.watched.iter().copied().collect(),
            super::interfaces(&self.config),
        );
        self.apply_snapshot()
            .map_err(|e| Refusal::new("internal", format!("{e:#}")))
    }
}

/// The state with these addresses of a network failed over; `own` are the appliance's.
///
/// # Errors
/// Maintenance, as each address begins a failover of its own; an address that cannot be failed over.
fn with_endpoints(
    state: &State,
    network: &Network,
    own: &[Address],
    addresses: &[IpAddr],
) -> Result<State, Refusal> {
    let name = &network.name;
    if state.maintenance {
        return Err(Refusal::new(
            "conflict",
            format!(
                "network {name:?}: the appliance is in maintenance, which refuses new failovers, of a single address as \
                 well, and lets running ones be undone: end maintenance (`maintenance off`), then ask again; nothing was \
                 changed"
            ),
        ));
    }
    let mut new = state.clone();
    let set = new.endpoints.entry(name.clone()).or_default();
    for address in addresses {
        endpoint_fits(network, own, *address).map_err(|m| Refusal::new("invalid", m))?;
        if !set.insert(*address) {
            return Err(Refusal::new(
                "conflict",
                format!(
                    "{address} is failed over already in network {name:?}; nothing was changed"
                ),
            ));
        }
    }
    let total: usize = new.endpoints.values().map(|s| s.len()).sum();
    // The map keeps a few entries in reserve on each CPU, so it is never filled to the brim.
    let most = MAX_ENDPOINTS as usize - 1024;
    if total > most {
        return Err(Refusal::new(
            "conflict",
            format!("that would be {total} failed-over addresses; an appliance takes {most}"),
        ));
    }
    Ok(new)
}

fn to_value(value: &impl serde::Serialize) -> Answer {
    serde_json::to_value(value).map_err(|e| Refusal::new("internal", e.to_string()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

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

    #[test]
    fn no_address_fails_over_in_maintenance_or_twice() {
        let config = Config::parse(CONFIG, Path::new("t")).expect("good");
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
                "10.1.0.10 is failed over already in network \"net1\"; nothing was changed"
                    .to_owned()
            )
        );
        let ours = add(&state, "10.1.0.5".parse().expect("an address"));
        assert!(ours.is_err_and(|m| m.contains("this appliance's own address")));
        state.maintenance = true;
        assert_eq!(
            add(&state, address),
            Err(
                "network \"net1\": the appliance is in maintenance, which refuses new failovers, of a single address as \
                 well, and lets running ones be undone: end maintenance (`maintenance off`), then ask again; nothing was \
                 changed"
                    .to_owned()
            )
        );
    }
}
