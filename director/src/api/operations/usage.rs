//! Usage of pools and plans by tenants.

use axum::http::{Method, StatusCode};
use control::{
    AddressPool, AddressPoolUsage, HardwarePlan, HardwarePlanTenants, Kind, State, Tenant,
    TenantUsage, VlanPool, VlanPoolUsage, address_pool_usage, hardware_plan_tenants, tenant_usage,
    vlan_pool_usage,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    api::{
        answer::{Answer, body},
        authorize::{absent, authorize},
        operation::{Answering, Operation, Success},
        request::{Call, first},
        schemas::schema,
    },
    problem::Problem,
    roles::{ObjectGroup, Verb},
};

fn operation<K: Kind, T: ToSchema>(
    verb: &str,
    summary: &str,
    handler: fn(Call) -> Answering,
) -> Operation {
    Operation {
        success: vec![Success::json(StatusCode::OK, Some(schema::<T>()))],
        ..Operation::new(
            format!("{}.{verb}", K::KIND),
            Method::GET,
            format!("/v1/{}/{{name}}/{verb}", K::PLURAL),
            summary,
            handler,
        )
    }
}

pub(super) fn register(all: &mut Vec<Operation>) {
    all.push(operation::<VlanPool, VlanPoolUsage>(
        "usage",
        "Get the VLANs of a pool that tenants have, and those that are left.",
        |call| Box::pin(answer::<VlanPool, _>(call, vlan_pool_usage)) as Answering,
    ));
    all.push(operation::<AddressPool, AddressPoolUsage>(
        "usage",
        "Get the addresses of a pool that tenants have, and those that are left.",
        |call| Box::pin(answer::<AddressPool, _>(call, address_pool_usage)) as Answering,
    ));
    all.push(operation::<HardwarePlan, HardwarePlanTenants>(
        "tenants",
        "List the tenants that are subscribed to a hardware plan.",
        |call| Box::pin(answer::<HardwarePlan, _>(call, hardware_plan_tenants)) as Answering,
    ));
    all.push(operation::<Tenant, TenantUsage>(
        "usage",
        "Get what a tenant has of objects and addresses, and its limits.",
        |call| Box::pin(of_tenant(call)) as Answering,
    ));
}

/// A tenant sees its own.
async fn of_tenant(call: Call) -> Result<Answer, Problem> {
    let name = first(&call);
    authorize(call.actor()?, ObjectGroup::Tenants, Verb::Read, Some(name))?;
    let found = tenant_usage(&call.director.live().await?.state, name);
    let found = found.ok_or_else(|| absent::<Tenant>(None, name))?;
    Ok(Answer::json(StatusCode::OK, &body(&found)?))
}

async fn answer<K: Kind, T: Serialize>(
    call: Call,
    of: fn(&State, &str) -> Option<T>,
) -> Result<Answer, Problem> {
    authorize(call.actor()?, ObjectGroup::Infrastructure, Verb::Read, None)?;
    let name = first(&call);
    let found = of(&call.director.live().await?.state, name);
    let found = found.ok_or_else(|| absent::<K>(None, name))?;
    Ok(Answer::json(StatusCode::OK, &body(&found)?))
}
