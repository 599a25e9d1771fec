//! Drained gateways, groups and health checks of a plan's machines, and quotas.

use control::{Gateway, Tenant};
use serde_json::json;

use super::refusals::{CONFLICT, World, refused};

#[test]
fn a_drained_gateway_counts_as_none_for_new_circuits() {
    let mut world = World::new();
    let gateway = |number: u8, drain: bool| {
        let address = format!("192.0.2.{number}");
        json!({"addresses": [address], "drain": drain})
    };
    world.ok::<Gateway>("", "gw1", gateway(1, false));
    world.ok::<Tenant>("", "acme", json!({}));
    let result = world.replace::<Gateway>("", "gw1", gateway(1, true));
    refused(
        result,
        CONFLICT,
        "tenant acme gateway_pools",
        "gateway \"gw1\" cannot be drained: tenants acme",
    );
    world.ok::<Gateway>("", "gw2", gateway(2, true));
    let result = world.replace::<Gateway>("", "gw1", gateway(1, true));
    refused(result, CONFLICT, "tenant acme gateway_pools", "would have");
    world.set::<Gateway>("", "gw2", gateway(2, false));
    world.set::<Gateway>("", "gw1", gateway(1, true));
    // It gives nothing up that it has not given up before.
    let disabled = json!({"addresses": ["192.0.2.1"], "drain": true, "enabled": false});
    world.set::<Gateway>("", "gw1", disabled);
    let result = world.replace::<Gateway>("", "gw2", gateway(2, true));
    refused(result, CONFLICT, "tenant acme gateway_pools", "drained");
}
