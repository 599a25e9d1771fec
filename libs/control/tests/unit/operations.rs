//! Drained gateways, groups and health checks of a plan's machines, and quotas.

use control::{Gateway, Plan, Tenant};
use serde_json::{Value, json};

use super::refusals::{CONFLICT, INVALID, World, refused};

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

#[test]
fn machines_of_a_plan_have_groups_and_health_checks() {
    let mut world = World::with_networks();
    let plan = |vms: Value| json!({"networks": [{"name": "web-1"}], "vms": vms});
    let one = |more: Value| {
        let mut vm = json!({"name": "a", "addresses": ["10.1.0.9"]});
        vm.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        plan(json!([vm]))
    };
    for (spec, conflict, text) in [
        (
            plan(json!([{"name": "a", "group": "x"}, {"name": "b"}, {"name": "c", "group": "x"}])),
            "vms.group x",
            "one after the other",
        ),
        (
            one(json!({"group": "Not a name"})),
            "vms.group Not a name",
            "a to z",
        ),
        (
            plan(json!([{"name": "a", "health": {"probe": "ping"}}])),
            "vms.addresses",
            "an address of \"a\"",
        ),
        (
            one(json!({"health": {"probe": "ping", "timeout_seconds": 0}})),
            "vms.health.timeout_seconds 0",
            "1 to 3600",
        ),
        (
            one(json!({"health": {"probe": "tcp", "port": 0}})),
            "vms.health.port 0",
            "1 to 65535",
        ),
        (
            one(json!({"health": {"probe": "http", "path": "health"}})),
            "vms.health.path health",
            "a path such as /health",
        ),
    ] {
        let result = world.create::<Plan>("acme", "all", spec);
        refused(result, INVALID, &format!("plan all {conflict}"), text);
    }
    let vms = json!([
        {"name": "db", "addresses": ["10.1.0.9"], "health": {"probe": "tcp", "port": 5432}},
        {"name": "w1", "group": "web", "delay_seconds": 5},
        {"name": "w2", "group": "web"},
    ]);
    let made = world.ok::<Plan>("acme", "all", plan(vms));
    assert_eq!(
        made.warnings,
        ["the delay of the last machine has no effect: no machine starts after it"]
    );
    let value = serde_json::to_value(&made.object.spec.vms).expect("JSON");
    assert_eq!(
        value[0]["health"],
        json!({"probe": "tcp", "port": 5432, "timeout_seconds": 300})
    );
    assert_eq!(value[2]["group"], "web");
}
