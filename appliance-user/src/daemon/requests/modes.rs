//! Modes and maintenance: what the operator asks, decided by the crate `failover`.

use failover::{
    Plan, TenantContext,
    mode::{Circumstances, Goal, Kind, UnreadyAppliance},
};
use tunnel_worker::keys::OsRandom;

use super::Outcome;
use crate::{
    config::{Network, Role},
    control::{Answer, MaintenanceStatus, ModeStatus, RequestRefusal},
    daemon::{
        Daemon,
        controller::{
            Proposal,
            switch::{Switch, SwitchRequest, switch},
        },
    },
    datapath::reconcile::{self, mode_of},
    kernel::forwarding,
};

/// How a switch of modes is asked for.
pub(in crate::daemon) struct SwitchOptions {
    /// The text of the plan.
    pub plan: Option<String>,
    /// A partial failover may be ended for a full one.
    pub force: bool,
    /// A partial failover becomes the full one.
    pub promote: bool,
}

impl Daemon {
    /// Shows the modes of tenants, or switches one.
    pub(super) async fn mode(
        &mut self,
        tenant: Option<&str>,
        mode: Option<&str>,
        options: &SwitchOptions,
    ) -> Outcome {
        let left_over = self.left_over();
        let tenants = match (tenant, mode) {
            (None, None) => self.tenants().into_iter().chain(left_over).collect(),
            // The failover of a tenant that is no longer configured can be undone.
            (Some(name), None | Some("idle")) if left_over.iter().any(|l| l == name) => {
                vec![name.to_owned()]
            }
            (tenant, _) => vec![self.one_tenant(tenant)?],
        };
        let mut changes = None;
        if let (Some(mode), [tenant]) = (mode, tenants.as_slice()) {
            let (kind, lines) = self.switch(tenant, mode, options).await?;
            changes = (kind == Kind::Update).then_some(lines);
        } else if options.plan.is_some() || options.force || options.promote {
            return Err(RequestRefusal::new(
                "bad-request",
                "--plan, --force and --promote are for a switch: write `mode full --plan FILE`",
            ));
        }
        let state = &self.in_force.state;
        let modes = tenants.into_iter().map(|tenant| ModeStatus {
            mode: mode_of(state, &tenant).name().to_owned(),
            epoch: state.modes.get(&tenant).map_or(0, |m| m.epoch),
            plan: self.plan(&tenant).map(|plan| plan.name().to_owned()),
            changes: changes.clone(),
            name: tenant,
        });
        Ok(Answer::Modes(modes.collect()))
    }

    /// Switches a tenant's mode. Returns the kind of switch, and the changes of a plan in force.
    async fn switch(
        &mut self,
        tenant: &str,
        mode: &str,
        options: &SwitchOptions,
    ) -> Result<(Kind, Vec<String>), RequestRefusal> {
        let switch = self.propose_switch(tenant, mode, options)?;
        let (kind, changes) = (switch.kind, switch.changes.clone());
        if switch.is_empty() {
            return Ok((kind, changes));
        }
        self.change(Proposal::state(switch.state)).await?;
        tracing::info!(
            tenant,
            mode = mode_of(&self.in_force.state, tenant).name(),
            plan = self.plan(tenant).map(Plan::name),
            step = ?kind,
            changes = changes.len(),
            "mode switched"
        );
        Ok((kind, changes))
    }

    pub(in crate::daemon) fn propose_switch(
        &self,
        tenant: &str,
        mode: &str,
        options: &SwitchOptions,
    ) -> Result<Switch, RequestRefusal> {
        let (goal, plan) = self.goal(tenant, mode, options)?;
        let circumstances = Circumstances {
            tenant: tenant.to_owned(),
            maintenance: self.in_force.state.maintenance,
            unready: match (&goal, &plan) {
                (Goal::Idle, _) => Vec::new(),
                (_, None) => self.unfit_for_partial(tenant),
                (_, Some(plan)) => self.unfit_for_full(tenant, plan),
            },
        };
        let has_plan = plan.is_some();
        let asked = SwitchRequest {
            goal,
            plan,
            force: options.force,
        };
        let switch = switch(
            &self.in_force.config,
            &self.in_force.state,
            asked,
            &circumstances,
            &mut OsRandom,
        )
        .map_err(|refusal| RequestRefusal::new("conflict", refusal.to_string()))?;
        if has_plan && !switch.is_empty() {
            forwarding::enable().map_err(|error| {
                let appliance = &self.in_force.config.name;
                RequestRefusal::new("conflict", format!("appliance {appliance:?}: {error}"))
            })?;
        }
        Ok(switch)
    }

    /// The goal that a mode's name and the options mean, with the plan of a full failover.
    fn goal(
        &self,
        tenant: &str,
        mode: &str,
        options: &SwitchOptions,
    ) -> Result<(Goal, Option<Plan>), RequestRefusal> {
        let bad = |message: &str| Err(RequestRefusal::new("bad-request", message));
        if mode != "full" && (options.plan.is_some() || options.promote) {
            return bad("--plan and --promote are for `mode full`");
        }
        match (mode, &options.plan) {
            ("idle", _) => Ok((Goal::Idle, None)),
            ("partial", _) => Ok((Goal::Partial, None)),
            ("full", None) => bad("a full failover needs a plan: give its file with --plan FILE"),
            ("full", Some(_)) if options.promote && options.force => bad(
                "--force ends the partial failover and --promote keeps its addresses: give one \
                 of the two",
            ),
            ("full", Some(text)) => {
                let plan = Plan::parse(text, &self.plan_context(tenant)?)
                    .map_err(|errors| RequestRefusal::new("invalid", errors.to_string()))?;
                let name = plan.name().to_owned();
                let goal = if options.promote {
                    Goal::Promote { plan: name }
                } else {
                    Goal::Full { plan: name }
                };
                Ok((goal, Some(plan)))
            }
            (other, _) => Err(RequestRefusal::new(
                "bad-request",
                format!("{other:?} is not a mode: write idle, partial or full"),
            )),
        }
    }

    /// The plan in force of a tenant.
    pub(super) fn plan(&self, tenant: &str) -> Option<&Plan> {
        self.in_force.state.modes.get(tenant)?.failover.plan()
    }

    /// The tenant with the data that a plan of it is checked against.
    pub(super) fn plan_context(&self, tenant: &str) -> Result<TenantContext, RequestRefusal> {
        reconcile::plan_tenant(&self.in_force.config, &self.snapshot, tenant).ok_or_else(|| {
            RequestRefusal::new("not-found", format!("there is no tenant {tenant:?}"))
        })
    }

    fn unfit(&self, reasons: Vec<String>) -> Vec<UnreadyAppliance> {
        let unfit = |reason| UnreadyAppliance {
            appliance: self.in_force.config.name.clone(),
            reason,
        };
        reasons.into_iter().map(unfit).collect()
    }

    fn unfit_for_partial(&self, tenant: &str) -> Vec<UnreadyAppliance> {
        let networks = self.in_force.config.networks.iter();
        let of_tenant = networks.filter(|n| n.tenant == tenant);
        self.unfit(
            of_tenant
                .filter_map(|n| self.cannot_carry(n, true))
                .collect(),
        )
    }

    fn unfit_for_full(&self, tenant: &str, plan: &Plan) -> Vec<UnreadyAppliance> {
        let config = &self.in_force.config;
        let uplink = &config.uplink.interface;
        let mut reasons = Vec::new();
        if config.role != Role::Provider {
            reasons.push(
                "is at the production site; full failover runs on the provider's appliance"
                    .to_owned(),
            );
        }
        let planned = plan.networks().iter();
        for network in planned.filter_map(|n| config.network(n.name())) {
            if network.interface == *uplink {
                reasons.push(format!(
                    "network {:?} is on the uplink {uplink}: give it an interface of its own",
                    network.name
                ));
            }
            reasons.extend(self.cannot_carry(network, false));
        }
        let configured = config.tenant(tenant);
        if let Some(tenant) = configured {
            reasons.extend(reconcile::nat_problems(config, &self.snapshot, tenant));
        }
        let has_address = configured.is_some_and(|tenant| {
            !reconcile::nat_addresses(config, &self.snapshot, tenant).is_empty()
        });
        let internet = plan.networks().iter().find(|n| n.internet());
        if let (Some(network), false) = (internet, has_address) {
            reasons.push(format!(
                "network {:?} is to have internet, and there is no address to translate to: give \
                 {uplink} one, or the tenant one of its own (nat)",
                network.name()
            ));
        }
        self.unfit(reasons)
    }

    /// Refuses a failover onto a data path that cannot carry it.
    pub(super) fn must_forward(&self, network: &Network) -> Result<(), RequestRefusal> {
        match self.cannot_carry(network, true) {
            None => Ok(()),
            Some(reason) => Err(RequestRefusal::new(
                "conflict",
                format!("appliance {:?} {reason}", self.in_force.config.name),
            )),
        }
    }

    /// Why the appliance cannot carry a network, if it cannot; with or without its tunnel.
    fn cannot_carry(&self, network: &Network, tunnel: bool) -> Option<String> {
        let uplink = &self.in_force.config.uplink.interface;
        let problem = |interface: &String| {
            self.interfaces.problem(interface).or_else(|| {
                let workers = || self.no_workers(network, interface);
                tunnel.then(workers).flatten()
            })
        };
        let reason = [&network.interface, uplink].into_iter().find_map(problem)?;
        Some(format!("cannot carry network {:?}: {reason}", network.name))
    }

    /// Why an encrypted network cannot use an interface, if it cannot.
    fn no_workers(&self, network: &Network, interface: &str) -> Option<String> {
        let peer = self.in_force.config.peer(&network.peer)?;
        peer.identity()?;
        let ifindex = self.snapshot.links.get(interface)?.ifindex;
        self.tunnels.port_error(ifindex).map(ToOwned::to_owned)
    }

    /// Shows or switches maintenance.
    pub(super) async fn maintenance(&mut self, on: Option<bool>) -> Outcome {
        if let Some(on) = on.filter(|on| *on != self.in_force.state.maintenance) {
            let mut new = self.in_force.state.clone();
            new.maintenance = on;
            self.change(Proposal::state(new)).await?;
            tracing::info!("maintenance {}", if on { "on" } else { "off" });
        }
        Ok(Answer::Maintenance(MaintenanceStatus {
            maintenance: self.in_force.state.maintenance,
        }))
    }
}
