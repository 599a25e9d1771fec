//! Roles: every operation by every role, and tenants that are blind to each other.

use serde_json::json;

use super::Server;

#[tokio::test]
async fn foreign_objects_are_answered_as_absent_ones() {
    let server = Server::with_tenants().await;
    let acme = server.user("alice", "tenant-admin", Some("acme")).await;
    for (method, body) in [
        ("GET", None),
        ("PUT", Some(json!({ "spec": {} }))),
        ("DELETE", None),
    ] {
        for path in [
            "/v1/tenants/TENANT",
            "/v1/tenants/TENANT/networks/web-1",
            "/v1/tenants/TENANT/subscriptions/web",
        ] {
            let mut texts = Vec::new();
            for tenant in ["globex", "absent"] {
                let path = path.replace("TENANT", tenant);
                let answer = server.call(&acme, method, &path, &[], body.as_ref()).await;
                let answer = answer.expect(404);
                let mut headers = answer.headers;
                headers.retain(|(name, _)| name != "content-length");
                texts.push((answer.text.replace(tenant, "TENANT"), headers));
            }
            assert_eq!(texts[0], texts[1], "{method} {path}");
        }
    }
    for path in ["networks", "subscriptions", "plans"] {
        let foreign = server
            .get(&acme, &format!("/v1/tenants/globex/{path}"))
            .await
            .expect(404);
        let absent = server
            .get(&acme, &format!("/v1/tenants/absent/{path}"))
            .await
            .expect(404);
        assert_eq!(foreign.text.replace("globex", "absent"), absent.text);
    }
    let own = server.get(&acme, "/v1/tenants").await.expect(200).json();
    assert_eq!(own["items"].as_array().expect("a list").len(), 1, "{own}");
}

/// Statuses of reading and writing own, foreign and provider's objects, by role.
#[tokio::test]
async fn each_role_reaches_what_the_table_says() {
    let server = Server::with_tenants().await;
    let rows = [
        (
            "provider-admin",
            None,
            [200, 422, 200, 422, 200, 422, 200, 200],
        ),
        (
            "provider-operator",
            None,
            [200, 403, 200, 403, 200, 422, 403, 403],
        ),
        (
            "provider-auditor",
            None,
            [200, 403, 200, 403, 200, 403, 200, 200],
        ),
        (
            "tenant-admin",
            Some("acme"),
            [403, 403, 200, 403, 200, 422, 200, 200],
        ),
        (
            "tenant-operator",
            Some("acme"),
            [403, 403, 200, 403, 200, 403, 403, 403],
        ),
    ];
    for (role, tenant, expected) in rows {
        let token = server.user(&format!("u-{role}"), role, tenant).await;
        let wrong = json!({ "spec": { "unknown": 1 } });
        let mut found = Vec::new();
        for (method, path) in [
            ("GET", "/v1/hosts"),
            ("PUT", "/v1/hosts/h1"),
            ("GET", "/v1/tenants/acme"),
            ("PUT", "/v1/tenants/acme"),
            ("GET", "/v1/tenants/acme/networks/web-1"),
            ("PUT", "/v1/tenants/acme/networks/web-1"),
            ("GET", "/v1/users"),
            ("GET", "/v1/audit"),
        ] {
            let body = (method == "PUT").then_some(&wrong);
            found.push(server.call(&token, method, path, &[], body).await.status);
        }
        assert_eq!(found, expected, "{role}");
    }
}

#[tokio::test]
async fn without_a_valid_token_nothing_is_answered() {
    let server = Server::with_tenants().await;
    let document = server.get("", "/v1/openapi.json").await.expect(200).json();
    let mut checked = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            if operation["security"].as_array().is_some_and(Vec::is_empty) {
                continue;
            }
            let path = path.replace(['{', '}'], "");
            for token in ["", "cwy_0000", &server.admin[..40]] {
                let answer = server
                    .call(token, &method.to_uppercase(), &path, &[], None)
                    .await;
                let answer = answer.expect(401);
                assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
                checked += 1;
            }
        }
    }
    assert!(checked > 200, "{checked}");
    let wrong = json!({ "user": "admin", "password": "wrong" });
    let known = server.post("", "/v1/sessions", wrong).await.expect(401);
    let wrong = json!({ "user": "unknown", "password": "wrong" });
    let unknown = server.post("", "/v1/sessions", wrong).await.expect(401);
    assert_eq!(known, unknown);
}

#[tokio::test]
async fn users_of_a_removed_tenant_are_none_of_a_later_one_of_the_same_name() {
    let server = Server::with_tenants().await;
    let acme = server.user("alice", "tenant-admin", Some("acme")).await;
    server.get(&acme, "/v1/self").await.expect(200);
    let path = "/v1/tenants/acme?force=true";
    let reason = [("x-reason", "their contract ended")];
    server
        .call(&server.admin, "DELETE", path, &reason, None)
        .await
        .expect(204);
    server.get(&acme, "/v1/self").await.expect(401);
    server.create("/v1/tenants", "acme", json!({})).await;
    server.get(&acme, "/v1/self").await.expect(401);
    let again = server.user("alice", "tenant-operator", Some("acme")).await;
    server.get(&again, "/v1/tenants/acme").await.expect(200);
    let last = server
        .call(&server.admin, "DELETE", "/v1/users/admin", &[], None)
        .await;
    assert!(last.expect(409).text.contains("the last provider-admin"));
    server
        .call(&server.admin, "DELETE", "/v1/users/alice", &[], None)
        .await
        .expect(204);
    server.get(&again, "/v1/self").await.expect(401);
}
