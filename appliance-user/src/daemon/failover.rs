//! Modes, maintenance and public IP rules: what the operator asks, decided by the crate `failover`.

use std::collections::BTreeSet;

use appliance_common::maps::Mode;
use failover::{
    Change, Plan, Problem, Rule, RuleSet, TenantOf,
    mode::{Circumstances, Goal, Kind, Unfit},
};
use serde_json::{Value, json};
use tunnel_worker::keys::OsRandom;

use super::{
    Daemon,
    requests::Answer,
    switch::{Asked, switch},
};
use crate::{
    config::{Network, Role},
    control::Refusal,
    fib,
    reconcile::{self, mode_of},
    state::{Doing, State},
};

/// How a switch is asked for.
pub(super) struct How {
    /// The text of the plan.
    pub plan: Option<String>,
    /// Whether a partial failover may be ended for it.
    pub force: bool,
    /// Whether a partial failover becomes it.
    pub promote: bool,
}

impl Daemon {
    pub(super) fn mode(&mut self, tenant: Option<&str>, mode: Option<&str>, how: &How) -> Answer {
        let left = self.state.left_over(&self.config);
        let tenants = match (tenant, mode) {
            (None, None) => self.tenants().into_iter().chain(left).collect(),
            // Of a tenant that is not configured any more the failover can be undone.
            (Some(name), None | Some("idle")) if left.iter().any(|l| l == name) => {
                vec![name.to_owned()]
            }
            (tenant, _) => vec![self.one_tenant(tenant)?],
        };
        let mut changes = None;
        if let (Some(mode), [tenant]) = (mode, tenants.as_slice()) {
            let (kind, lines) = self.switch(tenant, mode, how)?;
            changes = (kind == Kind::Update).then_some(lines);
        } else if how.plan.is_some() || how.force || how.promote {
            return Err(Refusal::new(
                "bad-request",
                "--plan, --force and --promote are for a switch: write `mode full --plan FILE`",
            ));
        }
        Ok(tenants
            .iter()
            .map(|tenant| {
                let mode = self.state.modes.get(tenant);
                json!({
                    "name": tenant,
                    "mode": mode_of(&self.state, tenant).name(),
                    "epoch": mode.map_or(0, |m| m.epoch),
                    "plan": mode.and_then(|m| m.doing.plan()).map(Plan::name),
                    // Of a plan that was in force already; null where none was.
                    "changes": changes,
                })
            })
            .collect())
    }

    fn tenants(&self) -> Vec<String> {
        self.config.tenants.iter().map(|t| t.name.clone()).collect()
    }

    /// The tenant that is meant.
    pub(super) fn one_tenant(&self, name: Option<&str>) -> Result<String, Refusal> {
        let all = || self.tenants().join(", ");
        match (name, self.config.tenants.as_slice()) {
            (Some(name), _) if self.config.tenant(name).is_some() => Ok(name.to_owned()),
            (Some(name), _) if self.state.left_over(&self.config).iter().any(|l| l == name) => {
                Err(Refusal::new(
                    "not-found",
                    format!(
                        "tenant {name:?} is not configured any more, and what is left of its failover can only be undone \
                         (`mode --tenant {name} idle`); or put it back into the configuration"
                    ),
                ))
            }
            (Some(name), _) => Err(Refusal::new(
                "not-found",
                format!("there is no tenant {name:?}; there are: {}", all()),
            )),
            (None, [tenant]) => Ok(tenant.name.clone()),
            (None, _) => Err(Refusal::new(
                "bad-request",
                format!("say which tenant with --tenant; there are: {}", all()),
            )),
        }
    }

    fn tenant_of(&self, tenant: &str) -> Result<TenantOf, Refusal> {
        reconcile::tenant_of(&self.config, &self.snapshot, tenant)
            .ok_or_else(|| Refusal::new("not-found", format!("there is no tenant {tenant:?}")))
    }

    /// Switches a tenant's mode. What that was, and what of a plan in force is different now.
    fn switch(
        &mut self,
        tenant: &str,
        mode: &str,
        how: &How,
    ) -> Result<(Kind, Vec<String>), Refusal> {
        let bad = |message: &str| Err(Refusal::new("bad-request", message));
        let full = mode == "full";
        if !full && (how.plan.is_some() || how.promote) {
            return bad("--plan and --promote are for `mode full`");
        }
        let (goal, plan) = match (mode, &how.plan) {
            ("idle", _) => (Goal::Idle, None),
            ("partial", _) => (Goal::Partial, None),
            ("full", None) => {
                return bad("a full failover is by a plan: give its file with --plan FILE");
            }
            ("full", Some(_)) if how.promote && how.force => {
                return bad(
                    "--force ends the partial failover and --promote keeps its addresses: give one of the two",
                );
            }
            ("full", Some(text)) => {
                let plan = Plan::parse(text, &self.tenant_of(tenant)?)
                    .map_err(|errors| Refusal::new("invalid", errors.to_string()))?;
                let name = plan.name().to_owned();
                let goal = if how.promote {
                    Goal::Promote { plan: name }
                } else {
                    Goal::Full { plan: name }
                };
                (goal, Some(plan))
            }
            (other, _) => {
                return Err(Refusal::new(
                    "bad-request",
                    format!("{other:?} is not a mode: idle, partial or full"),
                ));
            }
        };
        let circumstances = Circumstances {
            tenant: tenant.to_owned(),
            maintenance: self.state.maintenance,
            unfit: match (&goal, &plan) {
                (Goal::Idle, _) => Vec::new(),
                (_, None) => self.unfit_for_partial(tenant),
                (_, Some(plan)) => self.unfit_for_full(tenant, plan),
            },
        };
        let planned = plan.is_some();
        let asked = Asked {
            goal,
            plan,
            force: how.force,
        };
        let switch = switch(
            &self.config,
            &self.state,
            asked,
            &circumstances,
            &mut OsRandom,
        )
        .map_err(|refusal| Refusal::new("conflict", refusal.to_string()))?;
        let (kind, changes) = (switch.kind, switch.changes.clone());
        if switch.is_nothing() {
            return Ok((kind, changes));
        }
        if planned {
            fib::allow().map_err(|error| {
                let appliance = &self.config.name;
                Refusal::new("conflict", format!("appliance {appliance:?}: {error}"))
            })?;
        }
        self.put_full(switch.state)?;
        tracing::info!(
            tenant,
            mode = mode_of(&self.state, tenant).name(),
            plan = self.plan(tenant).map(Plan::name),
            step = ?kind,
            changes = changes.len(),
            "mode switched"
        );
        Ok((kind, changes))
    }

    /// The plan in force of a tenant.
    fn plan(&self, tenant: &str) -> Option<&Plan> {
        self.state.modes.get(tenant)?.doing.plan()
    }

    /// Puts a state in force if its maps have room for it.
    fn put_full(&mut self, mut new: State) -> Result<(), Refusal> {
        new.give_rule_slots();
        reconcile::desired(&self.config, &new, &self.snapshot, &self.secured)
            .fit()
            .map_err(|message| Refusal::new("conflict", message))?;
        self.put(new)
    }

    fn unfit(&self, reasons: Vec<String>) -> Vec<Unfit> {
        let unfit = |reason| Unfit {
            appliance: self.config.name.clone(),
            reason,
        };
        reasons.into_iter().map(unfit).collect()
    }

    fn unfit_for_partial(&self, tenant: &str) -> Vec<Unfit> {
        let networks = self.config.networks.iter().filter(|n| n.tenant == tenant);
        self.unfit(
            networks
                .filter_map(|n| self.cannot_carry(n, true))
                .collect(),
        )
    }

    fn unfit_for_full(&self, tenant: &str, plan: &Plan) -> Vec<Unfit> {
        let mut reasons = Vec::new();
        if self.config.role != Role::Provider {
            reasons.push(
                "is at the production site; full failover is the provider's appliance's".to_owned(),
            );
        }
        for network in plan.networks() {
            let Some(network) = self.config.network(network.name()) else {
                continue;
            };
            if network.interface == self.config.uplink.interface {
                reasons.push(format!(
                    "network {:?} is on the uplink {}: give it an interface of its own",
                    network.name, network.interface
                ));
            }
            reasons.extend(self.cannot_carry(network, false));
        }
        let configured = self.config.tenant(tenant);
        reasons.extend(
            configured
                .iter()
                .flat_map(|t| reconcile::nat_problems(&self.config, &self.snapshot, t)),
        );
        let internet = plan.networks().iter().find(|n| n.internet());
        let seen = configured.is_some_and(|tenant| {
            !reconcile::nat_addresses(&self.config, &self.snapshot, tenant).is_empty()
        });
        if let (Some(network), false) = (internet, seen) {
            reasons.push(format!(
                "network {:?} is to have the internet, and there is no address that it could be seen as: give {} one, or \
                 the tenant one of its own (nat)",
                network.name(),
                self.config.uplink.interface
            ));
        }
        self.unfit(reasons)
    }

    /// A failover onto a data path that cannot carry it is refused.
    pub(super) fn must_forward(&self, network: &Network) -> Result<(), Refusal> {
        match self.cannot_carry(network, true) {
            None => Ok(()),
            Some(reason) => Err(Refusal::new(
                "conflict",
                format!("appliance {:?} {reason}", self.config.name),
            )),
        }
    }

    /// Why the appliance cannot carry a network, if it can't; with or without its tunnel.
    fn cannot_carry(&self, network: &Network, tunnel: bool) -> Option<String> {
        let uplink = &self.config.uplink.interface;
        [&network.interface, uplink]
            .into_iter()
            .find_map(|interface| match self.attach_errors.get(interface) {
                Some(reason) => Some(reason.clone()),
                None => self
                    .nics
                    .get(interface)
                    .and_then(|n| n.problems.first())
                    .map(|p| format!("{interface}: {p}"))
                    .or_else(|| {
                        let workers = || self.no_workers(network, interface);
                        tunnel.then(workers).flatten()
                    }),
            })
            .map(|reason| format!("cannot carry network {:?}: {reason}", network.name))
    }

    /// Why an encrypted network cannot use an interface, if it can't.
    fn no_workers(&self, network: &Network, interface: &str) -> Option<String> {
        let secure = self
            .config
            .peer(&network.peer)
            .is_some_and(|p| p.identity().is_some());
        let ends = self.ends.as_ref().filter(|_| secure)?;
        let ifindex = self.snapshot.links.get(interface)?.ifindex;
        ends.port_error(ifindex).map(ToOwned::to_owned)
    }

    pub(super) fn maintenance(&mut self, on: Option<bool>) -> Answer {
        if let Some(on) = on.filter(|on| *on != self.state.maintenance) {
            let mut new = self.state.clone();
            new.maintenance = on;
            self.put(new)?;
            tracing::info!(on, "maintenance");
        }
        Ok(json!({ "maintenance": self.state.maintenance }))
    }

    pub(super) fn rule_add(&mut self, tenant: Option<&str>, rules: Vec<Rule>) -> Answer {
        let names: Vec<String> = rules.iter().map(|r| r.name().to_owned()).collect();
        let changes = rules.into_iter().map(Change::Add).collect();
        self.rules(tenant, changes)?;
        Ok(json!({ "added": names }))
    }

    pub(super) fn rule_remove(&mut self, tenant: Option<&str>, names: Vec<String>) -> Answer {
        let changes = names.iter().cloned().map(Change::Remove).collect();
        self.rules(tenant, changes)?;
        Ok(json!({ "removed": names }))
    }

    /// Changes the rules of the plan in force, all or none.
    fn rules(&mut self, tenant: Option<&str>, changes: Vec<Change>) -> Result<(), Refusal> {
        let tenant = self.one_tenant(tenant)?;
        let count = changes.len();
        let Some(plan) = self.plan(&tenant) else {
            return Err(Refusal::new(
                "conflict",
                format!(
                    "tenant {tenant:?} is {}: public IP rules are of a full failover: write them into its plan as \
                     [[rule]], and begin it (`mode full --plan FILE`)",
                    mode_of(&self.state, &tenant).name()
                ),
            ));
        };
        let plan = plan
            .change(&self.tenant_of(&tenant)?, changes)
            .map_err(|problems| Refusal::new("invalid", lines(&problems)))?;
        let mut new = self.state.clone();
        let mode = new.modes.entry(tenant.clone()).or_default();
        mode.doing = Doing::Full(Box::new(plan));
        self.put_full(new)?;
        tracing::info!(tenant, count, "public IP rules changed");
        Ok(())
    }

    pub(super) fn rule_list(&self, tenant: Option<&str>) -> Answer {
        let tenants = match tenant {
            None => self.tenants(),
            Some(_) => vec![self.one_tenant(tenant)?],
        };
        let rules = tenants.iter().flat_map(|tenant| {
            let rules = self.plan(tenant).into_iter().flat_map(|p| p.rules().iter());
            rules.map(move |rule| json!({ "tenant": tenant, "rule": rule }))
        });
        Ok(rules.collect::<Vec<Value>>().into())
    }

    /// What adding rules would be refused for.
    pub(super) fn rule_check(&self, tenant: Option<&str>, rules: Vec<Rule>) -> Answer {
        let tenant = self.one_tenant(tenant)?;
        let of = self.tenant_of(&tenant)?;
        let count = rules.len();
        let result = match self.plan(&tenant) {
            Some(plan) => {
                let changes = rules.into_iter().map(Change::Add).collect();
                plan.change(&of, changes).map(drop)
            }
            None => RuleSet::new(&of, rules).map(drop),
        };
        let refused: Vec<String> = result
            .err()
            .into_iter()
            .flatten()
            .map(|p| p.to_string())
            .collect();
        Ok(json!({ "tenant": tenant, "rules": count, "refused": refused }))
    }

    /// Sees that what leaves in full failover can be sent; somebody may have switched off what it takes.
    pub(super) fn keep_sendable(&mut self) {
        let wanted = self.any_full();
        if self.sending.see_to(wanted) {
            self.tell_problems();
        }
    }

    /// Says what has become wrong with the failovers in force, and what is right again: they do not fit the
    /// configuration or what the kernel says, or nothing can be sent.
    pub(super) fn tell_problems(&mut self) {
        let problems: BTreeSet<String> = self
            .misplaced_endpoints(&self.config)
            .into_iter()
            .chain(reconcile::misfits(
                &self.config,
                &self.state,
                &self.snapshot,
            ))
            .chain(self.sending.problem().map(ToOwned::to_owned))
            .collect();
        for problem in problems.difference(&self.problems) {
            tracing::warn!(problem, "a failover is not in force as it was asked for");
        }
        for problem in self.problems.difference(&problems) {
            tracing::info!(problem, "that is not so any more");
        }
        self.problems = problems;
    }

    /// Whether some tenant is in full failover.
    pub(super) fn any_full(&self) -> bool {
        let full =
            |tenant: &crate::config::Tenant| mode_of(&self.state, &tenant.name) == Mode::Full;
        self.config.tenants.iter().any(full)
    }
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
