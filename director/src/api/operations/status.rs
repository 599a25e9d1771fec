//! The operation `GET /v1/status`: counts of objects, conditions that are not true.

use axum::http::{Method, StatusCode};
use control::{Observed, Summary, Tenant, summary};

use crate::{
    api::{
        answer::{Answer, body},
        authorize::{authorize, no_tenant},
        operation::{Operation, Success},
        parameter::{Parameter, Values},
        request::Call,
        schemas::schema,
    },
    problem::Problem,
    roles::{ObjectGroup, Verb},
};

pub(super) fn register(all: &mut Vec<Operation>) {
    all.push(Operation {
        query: vec![Parameter::new(
            "tenant",
            Values::Name,
            "Only this tenant and its objects. A tenant's users see their own unless given.",
        )],
        success: vec![Success::json(StatusCode::OK, Some(schema::<Summary>()))],
        ..Operation::new(
            "status",
            Method::GET,
            "/v1/status",
            "Get numbers of objects, conditions that are not well, and leases that end soon.",
            |call| Box::pin(status(call)),
        )
    });
}

async fn status(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let asked = call.query.get("tenant");
    authorize(actor, ObjectGroup::Tenants, Verb::Read, asked)?;
    let tenant = asked.or(actor.tenant.as_deref());
    let live = call.director.live().await?;
    if let Some(tenant) = tenant
        && live.state.get::<Tenant>(None, tenant).is_none()
    {
        return Err(no_tenant(tenant));
    }
    let agents = call.director.agents_of(&live);
    let observed = Observed::new(&live.state, call.director.environment.now());
    let found = summary(observed.with_agents(&agents), tenant);
    Ok(Answer::json(StatusCode::OK, &body(&found)?))
}
