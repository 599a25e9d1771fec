//! Conditions of objects, and the state in short.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Server, matrix::fill};

/// Status, reason and observed generation of an object's condition.
async fn condition(server: &Server, path: &str, kind: &str) -> (String, String, u64) {
    let object = server.get(&server.admin, path).await.expect(200).json();
    let conditions = object["conditions"].as_array().expect("conditions");
    let found = conditions.iter().find(|found| found["type"] == kind);
    let found = found.unwrap_or_else(|| panic!("no {kind}: {object}"));
    let text = |field: &str| found[field].as_str().expect("a text").to_owned();
    assert!(!text("message").is_empty(), "{found}");
    let generation = found["observed_generation"].as_u64().expect("a number");
    assert_eq!(Some(generation), object["metadata"]["generation"].as_u64());
    (text("status"), text("reason"), generation)
}

async fn put(server: &Server, path: &str, spec: Value) {
    let body = json!({ "spec": spec });
    let reason = [("x-reason", "a test")];
    server
        .call(&server.admin, "PUT", path, &reason, Some(&body))
        .await
        .expect(200);
}

fn is(status: &str, reason: &str, generation: u64) -> (String, String, u64) {
    (status.to_owned(), reason.to_owned(), generation)
}

fn in_days(days: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(24 * days)
}

#[tokio::test]
async fn conditions_follow_from_spec_time_and_other_objects() {
    let server = Server::with_tenants().await;
    let tenant = "/v1/tenants/acme";
    let of_tenant = async |kind: &str| condition(&server, tenant, kind).await;
    assert_eq!(
        of_tenant("GatewayAvailable").await,
        is("false", "NoGateway", 1)
    );
    fill(&server).await;
    assert_eq!(
        of_tenant("GatewayAvailable").await,
        is("true", "Available", 1)
    );
    assert_eq!(of_tenant("Enabled").await, is("true", "Enabled", 1));
    assert_eq!(of_tenant("LeaseValid").await, is("true", "NoLease", 1));
    let plan = "/v1/tenants/acme/plans/all";
    let of_plan = async || condition(&server, plan, "Valid").await;
    assert_eq!(of_plan().await, is("true", "Checked", 1));
    let subscription = "/v1/tenants/acme/subscriptions/web";
    assert_eq!(
        condition(&server, subscription, "Fulfilled").await,
        is("true", "AllNetworks", 1)
    );

    put(&server, tenant, json!({ "enabled": false })).await;
    assert_eq!(of_tenant("Enabled").await, is("false", "Disabled", 2));
    assert_eq!(of_plan().await, is("false", "TenantDisabled", 1));
    put(&server, tenant, json!({ "lease_ends": in_days(1) })).await;
    assert_eq!(of_tenant("LeaseValid").await, is("true", "Leased", 3));
    assert_eq!(of_plan().await, is("true", "Checked", 1));
    let ended = in_days(-1);
    put(&server, tenant, json!({ "lease_ends": ended })).await;
    assert_eq!(of_tenant("LeaseValid").await, is("false", "LeaseEnded", 4));
    assert_eq!(of_plan().await, is("false", "LeaseEnded", 1));
    let object = server.get(&server.admin, tenant).await.json();
    let conditions = object["conditions"].as_array().expect("a list");
    let lease = conditions.iter().find(|c| c["type"] == "LeaseValid");
    assert_eq!(lease.expect("a condition")["since"], json!(ended));

    // Conditions do not pretend what only an agent can know.
    let (gateway, drained) = ("/v1/gateways/gw1", "/v1/gateways/gw1?force=true");
    let of_gateway = async |kind: &str| condition(&server, gateway, kind).await;
    assert_eq!(of_gateway("Drained").await, is("false", "NotWanted", 1));
    let spec = json!({ "addresses": ["203.0.113.1"], "drain": true });
    put(&server, drained, spec).await;
    assert_eq!(of_gateway("Drained").await, is("unknown", "NoAgent", 2));
    assert_eq!(of_gateway("Enrolled").await, is("false", "NoAgent", 2));
    let appliance = "/v1/tenants/acme/appliances/h1";
    assert_eq!(
        condition(&server, appliance, "Enrolled").await,
        is("false", "NoAgent", 1)
    );
    assert_eq!(
        of_tenant("GatewayAvailable").await,
        is("false", "NoGateway", 4)
    );

    // A list has them, too; objects without conditions have no such field.
    let list = server.get(&server.admin, "/v1/tenants").await.json();
    assert_eq!(list["items"][0]["conditions"][0]["type"], "Enabled");
    let host = server.get(&server.admin, "/v1/hosts/h1").await.json();
    assert_eq!(host["conditions"], Value::Null);
}

#[tokio::test]
async fn the_status_tells_what_is_not_well() {
    let server = Server::with_tenants().await;
    fill(&server).await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let of = async |token: &str, query: &str| {
        let path = format!("/v1/status{query}");
        server.get(token, &path).await.expect(200).json()
    };
    let all = of(&server.admin, "").await;
    assert_eq!(all["is_well"], true, "{all}");
    assert_eq!(all["counts"]["network"], 4);
    assert_eq!(all["counts"]["gateway"], 2);
    let enrolled = json!({ "kind": "appliance", "type": "Enrolled", "status": "false",
        "reason": "NoAgent", "count": 2, "objects": ["acme/h1", "globex/h1"] });
    assert_eq!(all["conditions"][0], enrolled);
    assert_eq!(all["leases"], json!([]));

    let soon = in_days(6);
    let globex = "/v1/tenants/globex";
    put(&server, globex, json!({ "lease_ends": soon })).await;
    let all = of(&server.admin, "").await;
    assert_eq!(all["leases"], json!([{ "tenant": "globex", "ends": soon }]));
    assert_eq!(all["is_well"], false);
    put(&server, globex, json!({ "lease_ends": in_days(8) })).await;
    assert_eq!(of(&server.admin, "").await["leases"], json!([]));

    // A tenant sees its own, and nothing of others or of the provider.
    put(&server, globex, json!({ "enabled": false })).await;
    let not_well = of(&server.admin, "").await;
    assert_eq!(not_well["is_well"], false);
    let own = of(&alice, "").await;
    assert_eq!(own, of(&server.admin, "?tenant=acme").await);
    assert_eq!(own["is_well"], true, "{own}");
    assert_eq!(own["counts"]["tenant"], 1);
    assert_eq!(own["counts"]["network"], 2);
    assert_eq!(own["counts"]["gateway"], Value::Null);
    assert!(!own.to_string().contains("globex"), "{own}");
    server
        .get(&alice, "/v1/status?tenant=globex")
        .await
        .expect(404);
}
