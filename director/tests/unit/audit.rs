//! Entries of the audit that are of no change: refused operations, and reads of a tenant's objects
//! by the provider; results; and reasons.

use serde_json::{Value, json};

use super::Server;

async fn entries(server: &Server, token: &str) -> Vec<Value> {
    let audit = server.get(token, "/v1/audit?limit=1000").await.expect(200);
    audit.json()["items"].as_array().expect("a list").clone()
}

/// User, operation, name and result of the entries with a refusal.
async fn refusals(server: &Server, token: &str) -> Vec<(String, String, String, Value)> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let all = entries(server, token).await;
    let refused = all
        .iter()
        .filter(|e| e["result"]["status"].as_u64() >= Some(400));
    let refused = refused.map(|e| {
        assert_eq!(e["changes"], json!([]));
        let result = e["result"].clone();
        (
            text(e, "user"),
            text(e, "operation"),
            text(e, "name"),
            result,
        )
    });
    refused.collect()
}

#[tokio::test]
async fn refused_operations_have_entries_with_their_result() {
    let mut server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-operator", Some("acme")).await;
    let path = "/v1/tenants/acme/policies";
    let body = json!({ "name": "p", "spec": { "from": "web-1", "to": "web-2" } });
    for _ in 0..3 {
        server.post(&alice, path, body.clone()).await.expect(403);
    }
    server.get(&alice, "/v1/users").await.expect(403);
    let admin = server.admin.clone();
    let delete = async |path: &str| server.call(&admin, "DELETE", path, &[], None).await;
    delete("/v1/hosts/h1").await.expect(409);
    delete("/v1/hosts/h9").await.expect(404);
    // A dry run and a read are no such operations.
    delete("/v1/hosts/h1?dry_run=true").await.expect(409);
    server.get(&admin, "/v1/hosts/h9").await.expect(404);
    let wrong = json!({ "name": "H", "spec": { "platform": "kvm" } });
    server.post(&admin, "/v1/hosts", wrong).await.expect(422);
    let refused = |status: u16, problem: &str| json!({ "status": status, "problem": problem });
    let mut forbidden = refused(403, "forbidden");
    let of = |user: &str, operation: &str, name: &str, result: Value| {
        (
            user.to_owned(),
            operation.to_owned(),
            name.to_owned(),
            result,
        )
    };
    forbidden["count"] = 3.into();
    let expected = [
        of("alice", "policy.create", "p", forbidden),
        of("alice", "user.list", "", refused(403, "forbidden")),
        of("admin", "host.remove", "h1", refused(409, "conflict")),
        of("admin", "host.remove", "h9", refused(404, "not-found")),
        of("admin", "host.create", "H", refused(422, "invalid")),
    ];
    assert_eq!(refusals(&server, &admin).await, expected);
    // A change has its result, too, and takes those before it along.
    delete("/v1/hosts/h1").await.expect(409);
    server.create("/v1/tenants", "initech", json!({})).await;
    server.restart().await;
    let all = entries(&server, &admin).await;
    let [.., before, last] = &all[..] else {
        panic!("{all:?}");
    };
    assert_eq!(before["operation"], "host.remove");
    assert_eq!(last["operation"], "tenant.create");
    assert_eq!(last["result"], json!({ "status": 201 }));
    server.stop().await;
    let store = super::offline::open(&server.path);
    let trust = director::audit::Trust::default();
    let verified = director::audit::verify_store(&store, &trust).await;
    assert_eq!(verified.expect("a whole chain").0, all.len() as u64);
}

#[tokio::test]
async fn a_tenant_sees_refusals_of_its_own_users_and_of_the_provider_only() {
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let bob = server.user("bob", "tenant-admin", Some("globex")).await;
    let policy = "/v1/tenants/globex/policies/p";
    server
        .call(&alice, "DELETE", policy, &[], None)
        .await
        .expect(404);
    server
        .call(&server.admin, "DELETE", policy, &[], None)
        .await
        .expect(404);
    let seen = refusals(&server, &alice).await;
    let [(user, operation, name, _)] = &seen[..] else {
        panic!("{seen:?}");
    };
    let found = (user.as_str(), operation.as_str(), name.as_str());
    assert_eq!(found, ("alice", "policy.remove", "globex/p"));
    let seen = refusals(&server, &bob).await;
    let [(user, _, name, _)] = &seen[..] else {
        panic!("{seen:?}");
    };
    assert_eq!((user.as_str(), name.as_str()), ("admin", "p"));
}

#[tokio::test]
async fn a_tenant_sees_that_the_provider_reads_its_objects() {
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let auditor = server.user("eve", "provider-auditor", None).await;
    for _ in 0..3 {
        for path in ["networks", "plans", "networks/web-1"] {
            let path = format!("/v1/tenants/acme/{path}");
            server.get(&auditor, &path).await.expect(200);
            server.get(&alice, &path).await.expect(200);
        }
    }
    server
        .get(&auditor, "/v1/status?tenant=globex")
        .await
        .expect(200);
    server.get(&auditor, "/v1/hosts").await.expect(200);
    let reads = |all: Vec<Value>| -> Vec<_> {
        let reads = all.into_iter().filter(|e| e["result"]["status"] == 200);
        let reads = reads.filter(|e| e["user"] == "eve" && e["operation"] != "init");
        reads
            .map(|e| (e["operation"].clone(), e["tenant"].clone()))
            .collect()
    };
    // One for a token and a tenant in an hour.
    let of_acme = (json!("network.list"), json!("acme"));
    let seen = reads(entries(&server, &alice).await);
    assert_eq!(seen, std::slice::from_ref(&of_acme));
    let of_globex = (json!("status"), json!("globex"));
    let all = reads(entries(&server, &server.admin).await);
    assert_eq!(all, [of_acme, of_globex]);
}

#[tokio::test]
async fn a_read_is_in_the_audit_however_its_query_is_encoded() {
    let server = Server::with_tenants().await;
    let auditor = server.user("eve", "provider-auditor", None).await;
    server
        .get(&auditor, "/v1/status?%74enant=%67lobex")
        .await
        .expect(200);
    let all = entries(&server, &server.admin).await;
    let read = all
        .iter()
        .find(|entry| entry["user"] == "eve" && entry["operation"] == "status")
        .expect("an entry");
    assert_eq!(read["tenant"], "globex");
}

#[tokio::test]
async fn the_provider_gives_a_reason_for_changes_of_a_tenants_own_objects() {
    let server = Server::with_tenants().await;
    let operator = server.user("op", "provider-operator", None).await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let path = "/v1/tenants/acme/policies";
    let body = json!({ "name": "p", "spec": { "from": "web-1", "to": "web-2" } });
    let refused = server.post(&operator, path, body.clone()).await.expect(400);
    assert_eq!(refused.json()["type"], "urn:causeway:problem:reason");
    assert!(refused.text.contains("X-Reason"), "{refused:?}");
    // A dry run changes nothing; addresses and subscriptions are the provider's to give.
    let dry = format!("{path}?dry_run=true");
    server.post(&operator, &dry, body.clone()).await.expect(200);
    let one = format!("{path}/p");
    server
        .call(&operator, "DELETE", &one, &[], None)
        .await
        .expect(400);
    let reason = [("x-reason", "ticket 12")];
    let made = server
        .call(&operator, "POST", path, &reason, Some(&body))
        .await;
    made.expect(201);
    let seen = entries(&server, &alice).await;
    let last = seen.last().expect("an entry");
    assert_eq!(
        (&last["user"], &last["reason"]),
        (&json!("op"), &json!("ticket 12"))
    );
    server
        .call(&alice, "DELETE", &one, &[], None)
        .await
        .expect(204);
}
