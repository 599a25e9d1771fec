//! One tenant's networks, rules, policies and plans, with the differences of a change, as the crate
//! `failover` checks them.

use std::{collections::BTreeMap, net::IpAddr};

use failover::{IpPrefix, NetworkContext, ReservedAddress, RuleSet, TenantContext};
use serde_json::{Value, json};

use crate::{
    Appliance, Conflict, Network, Object, Plan, Policy, Refusal, Rule, State, Uplink,
    addressing::machine_problem,
};

/// A tenant's objects after a change.
pub(crate) struct TenantView {
    tenant: String,
    /// Networks, and whether they have internet access.
    networks: BTreeMap<String, (Network, bool)>,
    addresses: Vec<IpAddr>,
    /// Uplinks of its appliances, by name.
    uplinks: BTreeMap<String, Uplink>,
    policies: Vec<Policy>,
    pub(crate) rules: BTreeMap<String, Rule>,
    pub(crate) plans: BTreeMap<String, Plan>,
}

impl TenantView {
    /// The tenant's objects in the state.
    pub(crate) fn of(state: &State, tenant: &str) -> Self {
        let networks = state.networks.of_tenant(tenant);
        let addresses = state.addresses.of_tenant(tenant);
        let appliances = state.appliances.of_tenant(tenant);
        let policies = state.policies.of_tenant(tenant);
        let rules = state.rules.of_tenant(tenant);
        let plans = state.plans.of_tenant(tenant);
        Self {
            tenant: tenant.to_owned(),
            networks: networks
                .map(|n| (n.name().to_owned(), (n.spec.clone(), n.status.internet)))
                .collect(),
            addresses: addresses
                .filter_map(|address| address.status.address)
                .collect(),
            uplinks: appliances
                .map(|a| (a.name().to_owned(), a.spec.uplink.clone()))
                .collect(),
            policies: policies.map(|policy| policy.spec.clone()).collect(),
            rules: rules
                .map(|r| (r.name().to_owned(), r.spec.clone()))
                .collect(),
            plans: plans
                .map(|p| (p.name().to_owned(), p.spec.clone()))
                .collect(),
        }
    }

    /// Replaces a network.
    pub(crate) fn set_network(&mut self, network: &Object<Network>) {
        let value = (network.spec.clone(), network.status.internet);
        self.networks.insert(network.name().to_owned(), value);
    }

    /// Replaces an appliance.
    pub(crate) fn set_appliance(&mut self, appliance: &Object<Appliance>) {
        let uplink = appliance.spec.uplink.clone();
        self.uplinks.insert(appliance.name().to_owned(), uplink);
    }

    /// Addresses of its appliances' uplinks and of their routers: appliance, field, address, and
    /// what it is.
    fn reserved(&self) -> impl Iterator<Item = (&str, &'static str, ReservedAddress)> {
        self.uplinks.iter().flat_map(|(name, uplink)| {
            let of = |field, what, address: Option<IpAddr>| {
                let owner = format!("{what} of appliance {name:?}");
                let reserved = address.map(|address| ReservedAddress { address, owner });
                reserved.map(|reserved| (name.as_str(), field, reserved))
            };
            let address = of("uplink.address", "the uplink's address", uplink.address());
            address
                .into_iter()
                .chain(of("uplink.router", "the uplink's router", uplink.router()))
        })
    }

    /// The tenant for the checks of rules and plans. Other tenants' networks are not named: the
    /// tenant must not learn of them.
    pub(crate) fn context(&self) -> TenantContext {
        let networks = self
            .networks
            .iter()
            .map(|(name, (network, _))| NetworkContext {
                name: name.clone(),
                prefixes: network.prefixes.clone(),
                gateways: network.gateways.clone(),
                excluded: false,
            });
        TenantContext {
            name: self.tenant.clone(),
            allocation: self.addresses.iter().copied().map(IpPrefix::host).collect(),
            reserved: self.reserved().map(|(_, _, reserved)| reserved).collect(),
            networks: networks.collect(),
            ..TenantContext::default()
        }
    }

    /// The tenant's rules, checked as a whole.
    ///
    /// # Errors
    /// A refusal that names the rules.
    pub(crate) fn rule_set(&self) -> Result<RuleSet, Refusal> {
        let mut rules = Vec::new();
        for (name, rule) in &self.rules {
            match rule.to_failover(name) {
                Ok(rule) => rules.push(rule),
                Err((field, text)) => {
                    return Err(Refusal::conflict(
                        format!("rule {name:?}: {field}: {text}"),
                        vec![Conflict::new::<Rule>(name, &field, "").of(&self.tenant)],
                    ));
                }
            }
        }
        RuleSet::new(&self.context(), rules).map_err(|problems| {
            let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
            let conflicts = problems.iter().map(|problem| {
                let internal = self.rules.get(&problem.rule).map(|rule| rule.internal_ip);
                let value = internal.map_or_else(String::new, |internal| internal.to_string());
                Conflict::new::<Rule>(&problem.rule, "internal_ip", value).of(&self.tenant)
            });
            Refusal::conflict(texts.join("; "), conflicts.collect())
        })
    }

    /// Checks a network's default gateways.
    ///
    /// # Errors
    /// A refusal that names the network, or the machine that has a gateway's address.
    pub(crate) fn check_gateways(&self, network: &Object<Network>) -> Result<(), Refusal> {
        let name = network.name();
        if network.spec.gateways.is_empty() {
            return Ok(());
        }
        for (appliance, field, reserved) in self.reserved() {
            let ReservedAddress { address, owner } = reserved;
            if network.spec.gateways.contains(&address) {
                let conflict = Conflict::new::<Appliance>(appliance, field, address);
                return Err(Refusal::conflict(
                    format!(
                        "network {name:?}: gateway {address} is {owner}: write the address of the \
                         network's router"
                    ),
                    vec![conflict.of(&self.tenant)],
                ));
            }
        }
        let plan = json!({
            "name": "gateways",
            "tenant": self.tenant,
            "network": [self.plan_network(name, false, true)],
        });
        let checked = self.failover_plan(plan);
        if let Err(text) = checked {
            let gateways: Vec<_> = network
                .spec
                .gateways
                .iter()
                .map(ToString::to_string)
                .collect();
            let conflict = Conflict::new::<Network>(name, "gateways", gateways.join(", "));
            return Err(Refusal::conflict(text, vec![conflict.of(&self.tenant)]));
        }
        for (plan, spec) in &self.plans {
            for vm in &spec.vms {
                let both = vm
                    .addresses
                    .iter()
                    .find(|a| network.spec.gateways.contains(a));
                if let Some(address) = both {
                    return Err(Refusal::conflict(
                        format!(
                            "network {name:?}: gateway {address} is the address of machine {:?} in \
                             plan {plan:?}: write the address of the network's router",
                            vm.name
                        ),
                        vec![Conflict::new::<Plan>(plan, "vms", address).of(&self.tenant)],
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks all rules and plans after a change of what they depend on.
    ///
    /// # Errors
    /// A refusal that names the rules or plans that would become wrong; its text begins with
    /// `refused`.
    pub(crate) fn check_all(&self, refused: &str) -> Result<(), Refusal> {
        self.rule_set().map_err(|refusal| Refusal {
            detail: format!("{refused}: {}", refusal.detail),
            ..refusal
        })?;
        let mut texts = Vec::new();
        let mut conflicts = Vec::new();
        for (name, plan) in &self.plans {
            if let Err(text) = self.check_plan(name, plan) {
                texts.push(format!("plan {name:?}: {text}"));
                let networks: Vec<_> = plan.networks.iter().map(|n| n.name.as_str()).collect();
                let value = networks.join(", ");
                conflicts.push(Conflict::new::<Plan>(name, "networks", value).of(&self.tenant));
            }
        }
        if conflicts.is_empty() {
            return Ok(());
        }
        Err(Refusal::conflict(
            format!("{refused}: {}", texts.join("; ")),
            conflicts,
        ))
    }

    /// Checks a plan with the tenant's networks, policies and rules.
    ///
    /// # Errors
    /// All problems, as text.
    pub(crate) fn check_plan(&self, name: &str, plan: &Plan) -> Result<(), String> {
        let gateways: Vec<_> = plan
            .networks
            .iter()
            .filter_map(|network| self.networks.get(&network.name))
            .flat_map(|(network, _)| &network.gateways)
            .collect();
        for vm in &plan.vms {
            if let Some(address) = vm
                .addresses
                .iter()
                .find(|address| gateways.contains(address))
            {
                return Err(format!(
                    "machine {:?} has the address of the gateway {address}: write the address of \
                     the machine",
                    vm.name
                ));
            }
        }
        self.check_machines(plan)?;
        let inside = |name: &str| plan.networks.iter().any(|network| network.name == name);
        let networks: Vec<_> = plan
            .networks
            .iter()
            .map(|network| {
                let internet = self.networks.get(&network.name).is_some_and(|(_, on)| *on);
                let internet = network.internet.unwrap_or(internet);
                self.plan_network(&network.name, internet, network.router_advertisements)
            })
            .collect();
        let allow: Vec<_> = self
            .policies
            .iter()
            .filter(|policy| inside(&policy.from) && inside(&policy.to))
            .map(|policy| json!({"from": policy.from, "to": policy.to, "both": policy.both}))
            .collect();
        let mut rules = Vec::new();
        for name in &plan.rules {
            let Some(rule) = self.rules.get(name) else {
                return Err(format!("rule {name:?} does not exist: create it first"));
            };
            let mut value = serde_json::to_value(rule).unwrap_or_default();
            value["name"] = name.as_str().into();
            rules.push(value);
        }
        self.failover_plan(json!({
            "name": name,
            "tenant": self.tenant,
            "description": plan.description,
            "network": networks,
            "allow": allow,
            "rule": rules,
        }))
    }

    /// Checks that each address of a machine is in a network of the plan, and is that of one
    /// machine alone.
    fn check_machines(&self, plan: &Plan) -> Result<(), String> {
        let networks = plan.networks.iter();
        let networks = networks.filter_map(|network| self.networks.get(&network.name));
        let prefixes: Vec<_> = networks
            .flat_map(|(network, _)| &network.prefixes)
            .collect();
        let mut seen: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for vm in &plan.vms {
            for address in &vm.addresses {
                if let Some(other) = seen.insert(*address, &vm.name) {
                    return Err(format!(
                        "machines {other:?} and {:?} both have {address}: write each address once",
                        vm.name
                    ));
                }
                if let Some(problem) = machine_problem(*address, &prefixes) {
                    return Err(format!("machine {:?} has {problem}", vm.name));
                }
            }
        }
        Ok(())
    }

    fn plan_network(&self, name: &str, internet: bool, router_advertisements: bool) -> Value {
        let gateways: Vec<_> = self
            .networks
            .get(name)
            .map_or(&[][..], |(network, _)| &network.gateways)
            .iter()
            .map(ToString::to_string)
            .collect();
        json!({
            "name": name,
            "gateway": gateways,
            "internet": internet,
            "router_advertisements": router_advertisements,
        })
    }

    fn failover_plan(&self, plan: Value) -> Result<(), String> {
        let lines = |text: String| {
            let lines: Vec<_> = text
                .lines()
                .map(|l| l.trim_start_matches("plan: "))
                .collect();
            lines.join("; ")
        };
        let plan: failover::Plan =
            serde_json::from_value(plan).map_err(|error| lines(error.to_string()))?;
        plan.check(&self.context())
            .map_err(|errors| lines(errors.to_string()))
    }
}
