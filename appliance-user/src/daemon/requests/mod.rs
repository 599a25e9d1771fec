//! The operator's requests, checked against the configuration and state in force; refusals and
//! replies.
//!
//! A request that changes something builds a proposal from a shared borrow of the daemon, so that
//! it cannot touch anything while it is being checked, and hands it to the controller's `change`.

mod apply;
mod endpoints;
mod flows;
pub(super) mod modes;
pub(super) mod packet_trace;
mod reload;
mod rules;

use service::socket::Responder;

use self::modes::SwitchOptions;
use super::Daemon;
use crate::{
    config::Network,
    control::{Answer, Request, RequestRefusal},
};

type Outcome = Result<Answer, RequestRefusal>;

impl Daemon {
    /// Answers a request.
    pub(super) async fn handle_request(&mut self, request: Request, responder: Responder<Answer>) {
        if let Request::Flows { .. } = request {
            self.flows(request, responder);
            return;
        }
        if let Some((request, responder)) = self.check_takeover(request, responder) {
            self.carry_out(request, responder).await;
        }
    }

    /// Carries a request out that is checked, and answers it.
    pub(super) async fn carry_out(&mut self, request: Request, responder: Responder<Answer>) {
        let answer = self.answer(request).await;
        if let Err(refusal) = &answer {
            tracing::info!(
                code = refusal.code,
                reason = refusal.message,
                "request refused"
            );
        }
        responder.send(answer);
    }

    async fn answer(&mut self, request: Request) -> Outcome {
        match request {
            Request::Status => self.status().map(|status| Answer::Status(Box::new(status))),
            Request::Neighbours { after } => self
                .neighbours_page(after.as_deref())
                .map(Answer::Neighbours),
            Request::Counters => self.counters().map(Answer::Counters),
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
                self.rule_list(tenant.as_deref(), after.as_deref())
            }
            Request::RuleCheck { tenant, rules } => self.rule_check(tenant.as_deref(), rules),
            Request::EndpointAdd { network, addresses } => {
                self.endpoint_add(&network, &addresses).await
            }
            Request::EndpointRemove { network, addresses } => {
                self.endpoint_remove(&network, &addresses).await
            }
            Request::EndpointList { network } => self.endpoint_list(network.as_deref()),
            Request::Apply { update } => self.apply(&update).await,
            Request::Desired { keys } => {
                let mut desired = self.desired();
                if !keys {
                    desired.objects.hide_keys();
                }
                Ok(Answer::Desired(Box::new(desired)))
            }
            Request::TraceStart(filter) => self.trace_start(&filter),
            Request::TraceNext => self.trace_next(),
            Request::TraceStop => self.trace_stop(),
            Request::Flows { .. } | Request::Reload => Err(RequestRefusal::new(
                "internal",
                "the runtime answers this request",
            )),
        }
    }

    /// The configured network of that name.
    fn network(&self, name: &str) -> Result<&Network, RequestRefusal> {
        let networks = &self.in_force.config.networks;
        networks.iter().find(|n| n.name == name).ok_or_else(|| {
            let names: Vec<&str> = networks.iter().map(|n| n.name.as_str()).collect();
            let names = names.join(", ");
            RequestRefusal::new(
                "not-found",
                format!("there is no network {name:?}; there are: {names}"),
            )
        })
    }

    fn tenants(&self) -> Vec<String> {
        let tenants = self.in_force.config.tenants.iter();
        tenants.map(|t| t.name.clone()).collect()
    }

    /// The tenant that a request names, or the only one.
    pub(super) fn one_tenant(&self, name: Option<&str>) -> Result<String, RequestRefusal> {
        let config = &self.in_force.config;
        let all = || self.tenants().join(", ");
        match (name, config.tenants.as_slice()) {
            (Some(name), _) if config.tenant(name).is_some() => Ok(name.to_owned()),
            (Some(name), _) if self.left_over().iter().any(|l| l == name) => {
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
    fn left_over(&self) -> Vec<String> {
        self.in_force.state.left_over(&self.in_force.config)
    }
}
