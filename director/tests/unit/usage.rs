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
    assert!(all["total"].is_null() && all["free"].is_null(), "{all}");
    server
        .get(&server.admin, "/v1/vlan-pools/none/usage")
        .await
        .expect(404);
}

#[tokio::test]
async fn a_tenant_has_a_quota_of_objects_and_sees_what_it_has() {
    let server = Server::with_tenants().await;
    fill(&server).await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let path = "/v1/tenants/acme/usage";
    let expected = json!({
        "objects": { "used": 4, "limit": 1000 },
        "public_addresses": { "used": 1, "limit": null },
        "networks": 2,
    });
    for token in [&server.admin, &alice] {
        assert_eq!(server.get(token, path).await.expect(200).json(), expected);
    }
    let foreign = "/v1/tenants/globex/usage";
    server.get(&alice, foreign).await.expect(404);
    // The provider sets it; what is there stays.
    let limits = json!({ "spec": { "limits": { "objects": 3 } } });
    let tenant = "/v1/tenants/acme";
    server
        .call(&alice, "PUT", tenant, &[], Some(&limits))
        .await
        .expect(403);
    let set = server
        .call(&server.admin, "PUT", tenant, &[], Some(&limits))
        .await
        .expect(200);
    let warning = set.header("causeway-warning").expect("a warning");
    assert!(warning.contains("keeps them"), "{warning}");
    let policy = json!({ "name": "back", "spec": { "from": "web-2", "to": "web-1",
        "both": false } });
    let create = async || {
        server
            .post(&alice, "/v1/tenants/acme/policies", policy.clone())
            .await
    };
    let refused = create().await.expect(507).json();
    let detail = refused["detail"].as_str().expect("a text");
    assert!(detail.contains("has 4 mappings, policies"), "{detail}");
    assert_eq!(refused["conflicts"][0]["field"], "limits.objects");
    // Objects that are there can still be changed and removed.
    let plan = server
        .get(&alice, "/v1/tenants/acme/plans/all")
        .await
        .json();
    let mut spec = plan["spec"].clone();
    spec["description"] = "still mine".into();
    server
        .call(
            &alice,
            "PUT",
            "/v1/tenants/acme/plans/all",
            &[],
            Some(&json!({ "spec": spec })),
        )
        .await
        .expect(200);
    for path in ["plans/all", "policies/web"] {
        let path = format!("/v1/tenants/acme/{path}");
        server
            .call(&alice, "DELETE", &path, &[], None)
            .await
            .expect(204);
    }
    create().await.expect(201);
}
