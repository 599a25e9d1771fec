//! Usage of pools and plans by tenants.

use serde_json::json;

use super::{Server, matrix::fill};

#[tokio::test]
async fn pools_and_plans_tell_what_tenants_use_of_them() {
    let server = Server::with_tenants().await;
    fill(&server).await;
    let get = async |path: &str| server.get(&server.admin, path).await.expect(200).json();
    assert_eq!(
        get("/v1/vlan-pools/pool/usage").await,
        json!({
            "with_internet": { "total": 99, "used": 4, "free": 95 },
            "without_internet": { "total": 0, "used": 0, "free": 0 },
            "tenants": [{ "tenant": "acme", "used": 2 }, { "tenant": "globex", "used": 2 }],
        })
    );
    assert_eq!(
        get("/v1/address-pools/public/usage").await,
        json!({
            "addresses": { "total": 90, "used": 2, "free": 88 },
            "tenants": [{ "tenant": "acme", "used": 1 }, { "tenant": "globex", "used": 1 }],
        })
    );
    assert_eq!(
        get("/v1/hardware-plans/small/tenants").await,
        json!({ "items": [
            { "tenant": "acme", "subscription": "web", "networks": 2 },
            { "tenant": "globex", "subscription": "web", "networks": 2 },
        ] })
    );
    let wide = json!({ "ranges": ["2001:db8::/32"] });
    server.create("/v1/address-pools", "wide", wide).await;
    let all = &get("/v1/address-pools/wide/usage").await["addresses"];
    assert_eq!(all["total"], u64::MAX);
    server
        .get(&server.admin, "/v1/vlan-pools/none/usage")
        .await
        .expect(404);
}
