//! What the operator asks, and the refusals.

use std::net::IpAddr;

use appliance_common::{
    addr::{Address, from_ip},
    limits::MAX_ENDPOINTS,
};
use serde_json::{Value, json};

use super::{Daemon, failover::How, give_slots, tunnels::Keys};
use crate::{
    config::{Config, Network},
    control::{Refusal, Reply, Request},
    reconcile::endpoint_fits,
    state::State,
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
        let own = self.own_addresses();
        let mut new = self.state.clone();
        let set = new.endpoints.entry(name.to_owned()).or_default();
        for address in addresses {
            endpoint_fits(network, &own, *address).map_err(|m| Refusal::new("invalid", m))?;
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
        self.put(new)?;
        tracing::info!(network = name, count = addresses.len(), "failed over");
        Ok(json!({ "network": name, "added": addresses }))
    }

    fn endpoint_remove(&mut self, name: &str, addresses: &[IpAddr]) -> Answer {
        self.named(name)?;
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
        if let Some(name) = network {
            self.named(name)?;
        }
        let endpoints: serde_json::Map<String, Value> = self
            .config
            .networks
            .iter()
            .filter(|n| network.is_none_or(|name| name == n.name))
            .map(|n| {
                let addresses: Vec<&IpAddr> = self
                    .state
                    .endpoints
                    .get(&n.name)
                    .into_iter()
                    .flatten()
                    .collect();
                (n.name.clone(), json!(addresses))
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
    pub(super) fn misfits(&self, config: &Config) -> Vec<String> {
        let own = self.own_addresses();
        let mut problems = Vec::new();
        for (name, addresses) in &self.state.endpoints {
            let Some(network) = config.network(name) else {
                problems.push(format!(
                    "network {name:?} has {} failed-over addresses and is not configured",
                    addresses.len()
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
        let problems = self.misfits(&config);
        if !problems.is_empty() {
            return Err(invalid(format!(
                "failed-over addresses would lose their network; take them back first: {}",
                problems.join("; ")
            )));
        }
        let problems = self.misfit_plans(&config);
        if !problems.is_empty() {
            return Err(invalid(format!(
                "a full failover would lose what it is made of; undo it first (`mode idle`): {}",
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
        state
            .modes
            .retain(|tenant, _| config.tenant(tenant).is_some());
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

fn to_value(value: &impl serde::Serialize) -> Answer {
    serde_json::to_value(value).map_err(|e| Refusal::new("internal", e.to_string()))
}
