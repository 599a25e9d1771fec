//! Tenants, users and machines that end, and others of the same names.

use serde_json::{Value, json};

use super::Server;

async fn delete(server: &Server, path: &str, status: u16) {
    let done = server.call(&server.admin, "DELETE", path, &[], None).await;
    done.expect(status);
}

async fn machine(server: &Server, body: Value) -> String {
    let name = body["name"].as_str().expect("a name").to_owned();
    server
        .post(&server.admin, "/v1/users", body)
        .await
        .expect(201);
    let path = format!("/v1/users/{name}/tokens");
    let made = server
        .post(&server.admin, &path, json!({ "hours": 8784 }))
        .await;
    let made = made.expect(201).json();
    made["secret"].as_str().expect("a secret").to_owned()
}

#[tokio::test]
async fn a_machine_ends_with_the_subscription_that_its_appliance_is_of() {
    let server = Server::with_tenants().await;
    let user = json!({ "name": "m", "role": "appliance", "tenant": "acme", "object": "h1" });
    let token = machine(&server, user).await;
    server
        .get(&token, "/v1/tenants/acme/networks")
        .await
        .expect(200);
    delete(&server, "/v1/tenants/acme/subscriptions/web", 204).await;
    server.get(&token, "/v1/self").await.expect(401);
    let users = server.get(&server.admin, "/v1/users").await.expect(200);
    assert!(!users.text.contains("\"m\""), "{}", users.text);
    // The next appliance of that name is another one.
    let spec = json!({ "hardware_plan": "small" });
    server
        .create("/v1/tenants/acme/subscriptions", "web", spec)
        .await;
    server.get(&token, "/v1/self").await.expect(401);
}

#[tokio::test]
async fn administrators_see_and_remove_tokens_of_their_users() {
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    let bob = server.user("bob", "tenant-operator", Some("acme")).await;
    server
        .user("carol", "tenant-operator", Some("globex"))
        .await;
    let tokens = server
        .get(&alice, "/v1/users/bob/tokens")
        .await
        .expect(200)
        .json();
    let id = tokens["items"][0]["id"].as_str().expect("an id");
    assert_eq!(tokens["items"][0]["description"], "session");
    server
        .get(&alice, "/v1/users/carol/tokens")
        .await
        .expect(404);
    server.get(&bob, "/v1/users/alice/tokens").await.expect(403);
    let remove = async |user: &str, id: &str| {
        let path = format!("/v1/users/{user}/tokens/{id}");
        server.call(&alice, "DELETE", &path, &[], None).await
    };
    remove("alice", id).await.expect(404);
    remove("bob", "0").await.expect(404);
    remove("carol", id).await.expect(404);
    remove("bob", id).await.expect(204);
    server.get(&bob, "/v1/self").await.expect(401);
    // Of which user, is in the audit.
    let audit = server
        .get(&alice, "/v1/audit?limit=1000")
        .await
        .expect(200)
        .json();
    let last = audit["items"]
        .as_array()
        .expect("a list")
        .last()
        .expect("an entry")
        .clone();
    assert_eq!(last["operation"], "user.token.remove");
    assert!(last["changes"][0].to_string().contains("bob"), "{last}");
}

#[tokio::test]
async fn a_new_tenant_of_an_old_name_learns_nothing_of_that_one() {
    let server = Server::with_tenants().await;
    server.user("alice", "tenant-admin", Some("acme")).await;
    let secret = json!({ "spec": { "prefixes": ["10.99.0.0/24"] } });
    let path = "/v1/tenants/acme/networks/web-1";
    let done = server
        .call(&server.admin, "PUT", path, &[], Some(&secret))
        .await;
    done.expect(200);
    let path = "/v1/tenants/acme?force=true";
    let reason = [("x-reason", "their contract ended")];
    let done = server
        .call(&server.admin, "DELETE", path, &reason, None)
        .await;
    done.expect(204);
    server.create("/v1/tenants", "acme", json!({})).await;
    let bob = server.user("bob", "tenant-admin", Some("acme")).await;
    let audit = server.get(&bob, "/v1/audit?limit=1000").await.expect(200);
    for part in ["alice", "10.99.0.0", "subscription.create"] {
        assert!(!audit.text.contains(part), "{part}: {}", audit.text);
    }
    assert!(audit.text.contains("tenant.create"), "{}", audit.text);
    for from in ["0", "1"] {
        let path = format!("/v1/watch?kind=network&tenant=acme&from={from}");
        server.get(&bob, &path).await.expect(410);
    }
}

#[tokio::test]
async fn a_new_user_of_an_old_name_gets_no_answers_of_that_one() {
    let server = Server::with_tenants().await;
    let body = json!({ "name": "p", "spec": { "from": "web-1", "to": "web-2" } });
    let path = "/v1/tenants/acme/policies";
    let key = [("idempotency-key", "1")];
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    server
        .call(&alice, "POST", path, &key, Some(&body))
        .await
        .expect(201);
    delete(&server, "/v1/users/alice", 204).await;
    delete(&server, "/v1/tenants/acme/policies/p", 204).await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    server
        .call(&alice, "POST", path, &key, Some(&body))
        .await
        .expect(201);
    server
        .get(&alice, "/v1/tenants/acme/policies/p")
        .await
        .expect(200);
}

#[tokio::test]
async fn a_tenant_admin_makes_no_user_of_the_provider() {
    let server = Server::with_tenants().await;
    let alice = server.user("alice", "tenant-admin", Some("acme")).await;
    for role in [
        "provider-admin",
        "provider-operator",
        "provider-auditor",
        "gateway",
    ] {
        for tenant in [None, Some("acme")] {
            let mut body = json!({ "name": "eve", "role": role, "password": "correct horse b" });
            if let Some(tenant) = tenant {
                body["tenant"] = tenant.into();
            }
            let answer = server.post(&alice, "/v1/users", body).await;
            assert!(
                [403, 422].contains(&answer.status),
                "{role} {tenant:?}: {answer:?}"
            );
        }
    }
    let users = server.get(&server.admin, "/v1/users").await.expect(200);
    assert!(!users.text.contains("eve"), "{}", users.text);
}

#[tokio::test]
async fn a_user_with_a_hundred_tokens_can_log_in() {
    let server = Server::start().await;
    let alice = server.user("alice", "provider-operator", None).await;
    let body = json!({ "hours": 1 });
    for _ in 0..100 {
        server
            .post(&alice, "/v1/tokens", body.clone())
            .await
            .expect(201);
    }
    let refused = server.post(&alice, "/v1/tokens", body).await.expect(507);
    let refused = refused.json();
    assert_eq!(refused["type"], "urn:causeway:problem:exhausted");
    assert_eq!(
        refused["conflicts"][0],
        json!({ "kind": "user", "name": "alice", "field": "tokens", "value": "100" })
    );
    let credentials = json!({ "user": "alice", "password": "correct horse battery" });
    server
        .post("", "/v1/sessions", credentials)
        .await
        .expect(201);
}

#[tokio::test]
async fn a_further_session_ends_the_oldest() {
    let server = Server::start().await;
    let first = server.user("alice", "provider-operator", None).await;
    let program = server
        .post(
            &first,
            "/v1/tokens",
            json!({ "hours": 1, "description": "session" }),
        )
        .await;
    let program = program.expect(201).json()["secret"].clone();
    let program = program.as_str().expect("a secret");
    let credentials = json!({ "user": "alice", "password": "correct horse battery" });
    let mut sessions = vec![first];
    for _ in 0..32 {
        let made = server.post("", "/v1/sessions", credentials.clone()).await;
        let made = made.expect(201).json();
        sessions.push(made["secret"].as_str().expect("a secret").to_owned());
    }
    let (first, others) = sessions.split_first().expect("some");
    server.get(first, "/v1/self").await.expect(401);
    for token in others {
        server.get(token, "/v1/self").await.expect(200);
    }
    // It does not end what is no session, whatever its description.
    server.get(program, "/v1/self").await.expect(200);
    let listed = server.get(program, "/v1/tokens").await.expect(200).json();
    let listed = listed["items"].as_array().expect("a list").clone();
    assert_eq!(
        listed
            .iter()
            .filter(|token| token["session"] == true)
            .count(),
        32
    );
    assert_eq!(listed.len(), 33);
}

#[tokio::test]
async fn users_of_a_tenant_and_of_the_provider_are_limited() {
    let server = Server::with_tenants().await;
    let gateway = json!({ "addresses": ["203.0.113.1"] });
    server.create("/v1/gateways", "gw1", gateway).await;
    let appliance = json!({ "role": "appliance", "tenant": "acme", "object": "h1" });
    let of_tenant = |name: String| {
        let mut body = appliance.clone();
        body["name"] = name.into();
        body
    };
    let of_provider = |name: String| json!({ "name": name, "role": "gateway", "object": "gw1" });
    let create = async |body: Value| server.post(&server.admin, "/v1/users", body).await;
    for number in 0..1000 {
        create(of_tenant(format!("t{number}"))).await.expect(201);
    }
    let refused = create(of_tenant("more".to_owned()))
        .await
        .expect(507)
        .json();
    assert_eq!(
        refused["conflicts"][0],
        json!({ "kind": "tenant", "name": "acme", "field": "users", "value": "1000" })
    );
    // The administrator is one.
    for number in 1..1000 {
        create(of_provider(format!("p{number}"))).await.expect(201);
    }
    let refused = create(of_provider("more".to_owned()))
        .await
        .expect(507)
        .json();
    let detail = refused["detail"].as_str().expect("a detail");
    assert!(detail.contains("the provider has 1000 users"), "{detail}");
    delete(&server, "/v1/users/t7", 204).await;
    create(of_tenant("more".to_owned())).await.expect(201);
}

#[tokio::test]
async fn the_audit_tells_roles_owners_and_what_was_removed() {
    let server = Server::with_tenants().await;
    server.user("eve", "provider-auditor", None).await;
    let put = json!({ "owner": "site", "spec": {} });
    server
        .call(&server.admin, "PUT", "/v1/tenants/acme", &[], Some(&put))
        .await
        .expect(200);
    server
        .create(
            "/v1/tenants",
            "initech",
            json!({ "description": "soon gone" }),
        )
        .await;
    delete(&server, "/v1/tenants/initech", 204).await;
    let audit = server
        .get(&server.admin, "/v1/audit?limit=1000")
        .await
        .expect(200)
        .json();
    let entries = audit["items"].as_array().expect("a list");
    let of = |operation: &str| {
        let found = entries
            .iter()
            .rfind(|entry| entry["operation"] == operation);
        found.expect("an entry")["changes"].to_string()
    };
    assert!(
        of("user.create").contains("provider-auditor"),
        "{}",
        of("user.create")
    );
    assert!(
        of("session.create").contains("\"eve\""),
        "{}",
        of("session.create")
    );
    assert!(
        of("tenant.replace").contains("metadata.owner"),
        "{}",
        of("tenant.replace")
    );
    assert!(
        of("tenant.remove").contains("soon gone"),
        "{}",
        of("tenant.remove")
    );
}
