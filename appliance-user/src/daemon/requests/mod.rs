//! The operator's requests, checked against the configuration and state in force; refusals and
//! replies.
//!
//! A request that changes something is checked by a function that gets the controller as a shared
//! borrow, so that it changes nothing that is in force, and returns a proposal. Only this file and
//! `reload` hand proposals to `change`, and tell the log what was changed.

mod apply;
mod endpoints;
pub(super) mod flows;
mod modes;
mod packet_trace;
mod reload;
mod rules;
mod takeover;

use std::net::IpAddr;

use failover::{Plan, Rule, RuleChange, mode::Kind};
use service::socket::Responder;

use self::{modes::SwitchOptions, packet_trace::PacketTrace, takeover::Takeover};
use super::{
    Daemon,
    controller::{Controller, Proposal},
    status,
};
use crate::{
    config::desired::Update,
    control::{
        Answer, EndpointsAdded, EndpointsRemoved, MaintenanceStatus, Request, RequestRefusal,
        RulesAdded, RulesRemoved,
    },
    datapath::reconcile::mode_of,
};

type Outcome = Result<Answer, RequestRefusal>;

/// Requests that go on between steps of the loop.
#[derive(Default)]
pub(super) struct Requests {
    pub packet_trace: PacketTrace,
    pub takeover: Takeover,
}

impl Daemon {
    /// Answers a request.
    pub(super) async fn handle_request(&mut self, request: Request, responder: Responder<Answer>) {
        if let Request::Flows { .. } = request {
            flows::answer(&self.controller, request, responder);
            return;
        }
        let ready = self.requests.takeover.check(
            &mut self.controller,
            &mut self.engines,
            request,
            responder,
        );
        if let Some((request, responder)) = ready {
            self.carry_out(request, responder).await;
        }
    }

    /// Carries a request out that is checked, and answers it.
    pub(super) async fn carry_out(&mut self, request: Request, responder: Responder<Answer>) {
        let answer = self.answer(request).await;
        if let Err(refusal) = &answer {
            tracing::info!(
                code = refusal.code,
                reason = refusal.line(),
                "request refused"
            );
        }
        responder.send(answer);
    }

    async fn answer(&mut self, request: Request) -> Outcome {
        let Self {
            controller,
            requests,
            ..
        } = self;
        match request {
            Request::Status {} => Ok(Answer::Status(Box::new(self.summary()))),
            Request::Tenants { after } => {
                let page = status::tenants_page(controller, after.as_deref());
                Ok(Answer::Tenants(page))
            }
            Request::Networks { after } => {
                status::networks_page(controller, after.as_deref()).map(Answer::Networks)
            }
            Request::Peers { after } => {
                let page = status::peers_page(controller, after.as_deref());
                Ok(Answer::Peers(page))
            }
            Request::Neighbours { after } => self
                .neighbours_page(after.as_deref())
                .map(Answer::Neighbours),
            Request::Counters {} => self.counters().map(Answer::Counters),
            Request::Mode {
                tenant,
                mode,
                plan,
                force,
                promote,
                take_over: _,
            } => {
                let options = SwitchOptions {
                    plan,
                    force,
                    promote,
                };
                self.mode(tenant.as_deref(), mode.as_deref(), &options)
                    .await
            }
            Request::Maintenance { on } => self.maintenance(on).await,
            Request::RuleAdd { tenant, rules, .. } => self.rule_add(tenant.as_deref(), rules).await,
            Request::RuleRemove { tenant, names } => {
                self.rule_remove(tenant.as_deref(), names).await
            }
            Request::RuleList { tenant, after } => {
                rules::list(controller, tenant.as_deref(), after.as_deref())
            }
            Request::RuleCheck { tenant, rules } => {
                rules::check(controller, tenant.as_deref(), rules)
            }
            Request::EndpointAdd { network, addresses } => {
                self.endpoint_add(network, addresses).await
            }
            Request::EndpointRemove { network, addresses } => {
                self.endpoint_remove(network, addresses).await
            }
            Request::EndpointList { network } => endpoints::list(controller, network.as_deref()),
            Request::Apply { update } => self.apply(&update).await,
            Request::Desired { after, keys } => {
                apply::page(controller, after.as_deref(), keys).map(Answer::Desired)
            }
            Request::TraceStart(filter) => requests.packet_trace.start(controller, &filter),
            Request::TraceNext {} => requests.packet_trace.next(controller),
            Request::TraceStop {} => requests.packet_trace.stop(controller),
            Request::Flows { .. } | Request::Reload {} => Err(RequestRefusal::new(
                "internal",
                "the runtime answers this request",
            )),
        }
    }

    /// Shows the modes of tenants, or switches one.
    async fn mode(
        &mut self,
        tenant: Option<&str>,
        mode: Option<&str>,
        options: &SwitchOptions,
    ) -> Outcome {
        let tenants = modes::tenants_of(&self.controller, tenant, mode)?;
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
        Ok(modes::status(&self.controller, tenants, changes.as_ref()))
    }

    /// Switches a tenant's mode. Returns the kind of switch, and the changes of a plan in force.
    async fn switch(
        &mut self,
        tenant: &str,
        mode: &str,
        options: &SwitchOptions,
    ) -> Result<(Kind, Vec<String>), RequestRefusal> {
        let switch = modes::propose_switch(&self.controller, tenant, mode, options)?;
        let (kind, changes) = (switch.kind, switch.changes.clone());
        if switch.is_empty() {
            return Ok((kind, changes));
        }
        modes::enable_forwarding(&self.controller, tenant, &switch)?;
        self.change(Proposal::state(switch.state)).await?;
        tracing::info!(
            tenant,
            mode = mode_of(self.controller.state(), tenant).name(),
            plan = modes::plan(&self.controller, tenant).map(Plan::name),
            step = ?kind,
            changes = changes.len(),
            "mode switched"
        );
        Ok((kind, changes))
    }

    /// Shows or switches maintenance.
    async fn maintenance(&mut self, on: Option<bool>) -> Outcome {
        let state = self.controller.state();
        if let Some(on) = on.filter(|on| *on != state.maintenance) {
            let mut new = state.clone();
            new.maintenance = on;
            self.change(Proposal::state(new)).await?;
            tracing::info!("maintenance {}", if on { "on" } else { "off" });
        }
        Ok(Answer::Maintenance(MaintenanceStatus {
            maintenance: self.controller.state().maintenance,
        }))
    }

    async fn rule_add(&mut self, tenant: Option<&str>, rules: Vec<Rule>) -> Outcome {
        let added = rules.iter().map(|r| r.name().to_owned()).collect();
        let changes = rules.into_iter().map(RuleChange::Add).collect();
        self.change_rules(tenant, changes).await?;
        Ok(Answer::RulesAdded(RulesAdded { added }))
    }

    async fn rule_remove(&mut self, tenant: Option<&str>, names: Vec<String>) -> Outcome {
        let changes = names.iter().cloned().map(RuleChange::Remove).collect();
        self.change_rules(tenant, changes).await?;
        Ok(Answer::RulesRemoved(RulesRemoved { removed: names }))
    }

    /// Changes the rules of the plan in force, all or none.
    async fn change_rules(
        &mut self,
        tenant: Option<&str>,
        changes: Vec<RuleChange>,
    ) -> Result<(), RequestRefusal> {
        let count = changes.len();
        let (tenant, proposal) = rules::change(&self.controller, tenant, changes)?;
        self.change(proposal).await?;
        tracing::info!(tenant, count, "public IP rules changed");
        Ok(())
    }

    async fn endpoint_add(&mut self, network: String, added: Vec<IpAddr>) -> Outcome {
        let proposal = endpoints::add(&self.controller, &network, &added)?;
        self.change(proposal).await?;
        tracing::info!(network, count = added.len(), "addresses failed over");
        Ok(Answer::EndpointsAdded(EndpointsAdded { network, added }))
    }

    async fn endpoint_remove(&mut self, network: String, removed: Vec<IpAddr>) -> Outcome {
        let proposal = endpoints::remove(&self.controller, &network, &removed)?;
        self.change(proposal).await?;
        tracing::info!(
            network,
            count = removed.len(),
            "addresses returned to production"
        );
        Ok(Answer::EndpointsRemoved(EndpointsRemoved {
            network,
            removed,
        }))
    }

    /// Puts a snapshot or delta in force. It is stored when this returns.
    async fn apply(&mut self, update: &Update) -> Outcome {
        let (applied, proposal) = apply::check(&self.controller, update)?;
        if let Some(proposal) = proposal {
            self.change(proposal).await?;
            self.reports.metrics.applied();
            self.name_tenants_in_log();
            tracing::info!(
                revision = applied.revision,
                put = ?applied.put,
                removed = ?applied.removed,
                "update applied"
            );
        }
        Ok(Answer::Applied(applied))
    }
}

/// The names of the configured tenants.
fn tenants(controller: &Controller) -> Vec<String> {
    let tenants = controller.config().tenants.iter();
    tenants.map(|t| t.name.clone()).collect()
}

/// The tenant that a request names, or the only one.
fn one_tenant(controller: &Controller, name: Option<&str>) -> Result<String, RequestRefusal> {
    let config = controller.config();
    let all = || tenants(controller).join(", ");
    match (name, config.tenants.as_slice()) {
        (Some(name), _) if config.tenant(name).is_some() => Ok(name.to_owned()),
        (Some(name), _) if left_over(controller).iter().any(|l| l == name) => {
            Err(RequestRefusal::new(
                "not-found",
                format!(
                    "tenant {name:?} is no longer configured: its failover can only be undone \
                     (`mode --tenant {name} idle`), or put the tenant back into the configuration"
                ),
            ))
        }
        (Some(name), _) => Err(RequestRefusal::new(
            "not-found",
            format!("there is no tenant {name:?}; there are: {}", all()),
        )),
        (None, [tenant]) => Ok(tenant.name.clone()),
        (None, _) => Err(RequestRefusal::new(
            "bad-request",
            format!("give the tenant with --tenant; there are: {}", all()),
        )),
    }
}

/// Tenants that are in failover and not configured any more.
fn left_over(controller: &Controller) -> Vec<String> {
    controller.state().left_over(controller.config())
}
