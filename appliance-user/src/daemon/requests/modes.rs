//! Modes: what the operator asks, decided by the crate `failover`.

use failover::{
    Plan, TenantContext,
    mode::{Circumstances, Goal, UnreadyAppliance},
};
use tunnel_worker::keys::OsRandom;

use super::{left_over, one_tenant, tenants};
use crate::{
    config::{Network, Role},
    control::{Answer, ModeStatus, RequestRefusal},
    daemon::controller::{
        Controller,
        switch::{Switch, SwitchRequest, switch},
    },
    datapath::reconcile::{self, mode_of},
    kernel::ip_forwarding,
};

/// How a switch of modes is asked for.
pub(super) struct SwitchOptions {
    /// The text of the plan.
    pub plan: Option<String>,
    /// A partial failover may be ended for a full one.
    pub force: bool,
    /// A partial failover becomes the full one.
    pub promote: bool,
}

/// The tenants that a request for modes is about; `mode` is the one to switch to.
///
/// # Errors
/// The refusal: there is no such tenant, or not only one.
pub(super) fn tenants_of(
    controller: &Controller,
    tenant: Option<&str>,
    mode: Option<&str>,
) -> Result<Vec<String>, RequestRefusal> {
    let left_over = left_over(controller);
    Ok(match (tenant, mode) {
        (None, None) => tenants(controller).into_iter().chain(left_over).collect(),
        // The failover of a tenant that is no longer configured can be undone.
        (Some(name), None | Some("idle")) if left_over.iter().any(|l| l == name) => {
            vec![name.to_owned()]
        }
        (tenant, _) => vec![one_tenant(controller, tenant)?],
    })
}

/// The modes of tenants. `changes` are those of a plan in force, if one was switched to another
/// version.
pub(super) fn status(
    controller: &Controller,
    tenants: Vec<String>,
    changes: Option<&Vec<String>>,
) -> Answer {
    let state = controller.state();
    let modes = tenants.into_iter().map(|tenant| ModeStatus {
        mode: mode_of(state, &tenant).name().to_owned(),
        epoch: state.modes.get(&tenant).map_or(0, |m| m.epoch),
        plan: plan(controller, &tenant).map(|plan| plan.name().to_owned()),
        changes: changes.cloned(),
        name: tenant,
    });
    Answer::Modes(modes.collect())
}

/// The switch of a tenant's mode that a request asks for.
///
/// # Errors
/// The refusal.
pub(super) fn propose_switch(
    controller: &Controller,
    tenant: &str,
    mode: &str,
    options: &SwitchOptions,
) -> Result<Switch, RequestRefusal> {
    let (goal, plan) = goal(controller, tenant, mode, options)?;
    let circumstances = Circumstances {
        tenant: tenant.to_owned(),
        maintenance: controller.state().maintenance,
        unready: match (&goal, &plan) {
            (Goal::Idle, _) => Vec::new(),
            (_, None) => unfit_for_partial(controller, tenant),
            (_, Some(plan)) => unfit_for_full(controller, tenant, plan),
        },
    };
    let asked = SwitchRequest {
        goal,
        plan,
        force: options.force,
    };
    switch(
        controller.config(),
        controller.state(),
        asked,
        &circumstances,
        &mut OsRandom,
    )
    .map_err(|refusal| RequestRefusal::new("conflict", refusal.to_string()))
}

/// Enables IP forwarding if the switch is one to full failover. Call it after all checks: a refused
/// switch leaves the settings of the kernel as they were.
///
/// # Errors
/// A refusal with the reason, when a sysctl cannot be written.
pub(super) fn enable_forwarding(
    controller: &Controller,
    tenant: &str,
    switch: &Switch,
) -> Result<(), RequestRefusal> {
    let mode = switch.state.modes.get(tenant);
    if mode.is_none_or(|mode| mode.failover.plan().is_none()) {
        return Ok(());
    }
    ip_forwarding::enable().map_err(|error| {
        let appliance = &controller.config().name;
        RequestRefusal::new("conflict", format!("appliance {appliance:?}: {error}"))
    })
}

/// The goal that a mode's name and the options mean, with the plan of a full failover.
fn goal(
    controller: &Controller,
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
            let plan = Plan::parse(text, &plan_context(controller, tenant)?)
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
pub(super) fn plan<'a>(controller: &'a Controller, tenant: &str) -> Option<&'a Plan> {
    controller.state().modes.get(tenant)?.failover.plan()
}

/// The tenant with the data that a plan of it is checked against.
pub(super) fn plan_context(
    controller: &Controller,
    tenant: &str,
) -> Result<TenantContext, RequestRefusal> {
    reconcile::plan_tenant(controller.config(), controller.snapshot(), tenant)
        .ok_or_else(|| RequestRefusal::new("not-found", format!("there is no tenant {tenant:?}")))
}

fn unfit(controller: &Controller, reasons: Vec<String>) -> Vec<UnreadyAppliance> {
    let unfit = |reason| UnreadyAppliance {
        appliance: controller.config().name.clone(),
        reason,
    };
    reasons.into_iter().map(unfit).collect()
}

fn unfit_for_partial(controller: &Controller, tenant: &str) -> Vec<UnreadyAppliance> {
    let networks = controller.config().networks.iter();
    let of_tenant = networks.filter(|n| n.tenant == tenant);
    unfit(
        controller,
        of_tenant
            .filter_map(|n| cannot_carry(controller, n, true))
            .collect(),
    )
}

fn unfit_for_full(controller: &Controller, tenant: &str, plan: &Plan) -> Vec<UnreadyAppliance> {
    let config = controller.config();
    let uplink = &config.uplink.interface;
    let mut reasons = Vec::new();
    if config.role != Role::Provider {
        reasons.push(
            "is at the production site; full failover runs on the provider's appliance".to_owned(),
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
        reasons.extend(cannot_carry(controller, network, false));
    }
    let configured = config.tenant(tenant);
    if let Some(tenant) = configured {
        reasons.extend(reconcile::nat_problems(
            config,
            controller.snapshot(),
            tenant,
        ));
    }
    let has_address = configured.is_some_and(|tenant| {
        !reconcile::nat_addresses(config, controller.snapshot(), tenant).is_empty()
    });
    let internet = plan.networks().iter().find(|n| n.internet());
    if let (Some(network), false) = (internet, has_address) {
        reasons.push(format!(
            "network {:?} is to have internet, and there is no address to translate to: give \
             {uplink} one, or the tenant one of its own (nat)",
            network.name()
        ));
    }
    unfit(controller, reasons)
}

/// Refuses a failover onto a data path that cannot carry it.
pub(super) fn must_forward(
    controller: &Controller,
    network: &Network,
) -> Result<(), RequestRefusal> {
    match cannot_carry(controller, network, true) {
        None => Ok(()),
        Some(reason) => Err(RequestRefusal::new(
            "conflict",
            format!("appliance {:?} {reason}", controller.config().name),
        )),
    }
}

/// Why the appliance cannot carry a network, if it cannot; with or without its tunnel.
fn cannot_carry(controller: &Controller, network: &Network, tunnel: bool) -> Option<String> {
    let uplink = &controller.config().uplink.interface;
    let problem = |interface: &String| {
        controller.interfaces().problem(interface).or_else(|| {
            let workers = || no_workers(controller, network, interface);
            tunnel.then(workers).flatten()
        })
    };
    let reason = [&network.interface, uplink].into_iter().find_map(problem)?;
    Some(format!("cannot carry network {:?}: {reason}", network.name))
}

/// Why an encrypted network cannot use an interface, if it cannot.
fn no_workers(controller: &Controller, network: &Network, interface: &str) -> Option<String> {
    let peer = controller.config().peer(&network.peer)?;
    peer.identity()?;
    let ifindex = controller.snapshot().links.get(interface)?.ifindex;
    controller
        .tunnels()
        .port_error(ifindex)
        .map(ToOwned::to_owned)
}
