//! Headers of requests: those that are there twice, or that an operation does not take; conditions;
//! dry runs of users and tokens; and conflicts of their refusals.

use serde_json::{Value, json};

use super::Server;

#[tokio::test]
async fn a_header_that_is_there_twice_is_refused() {
    let server = Server::with_tenants().await;
    let path = "/v1/tenants/acme";
    let spec = json!({ "spec": { "description": "x" } });
    let tag = server.get(&server.admin, path).await.expect(200);
    let tag = tag.header("etag").expect("a tag").to_owned();
    for (name, first, second) in [
        ("if-match", tag.as_str(), "\"1\""),
        ("if-match", "\"1\"", tag.as_str()),
        ("idempotency-key", "a", "b"),
        ("x-reason", "a", "b"),
        ("content-type", "application/json", "text/plain"),
    ] {
        let headers = [(name, first), (name, second)];
        let refused = server
            .call(&server.admin, "PUT", path, &headers, Some(&spec))
            .await;
        let refused = refused.expect(400).json();
        let detail = refused["detail"].as_str().expect("a detail");
        assert!(
            detail.contains("sent twice: send it once"),
            "{name}: {detail}"
        );
    }
    let other = [("authorization", "Bearer cwy_x")];
    server
        .call(&server.admin, "GET", path, &other, None)
        .await
        .expect(401);
    let after = server.get(&server.admin, path).await.expect(200);
    assert_eq!(after.header("etag"), Some(tag.as_str()));
}

#[tokio::test]
async fn conditions_of_http_hold_or_are_refused() {
    let server = Server::with_tenants().await;
    let tenant = json!({ "name": "acme", "spec": {} });
    let new = json!({ "name": "initech", "spec": {} });
    let post = async |headers: &[(&str, &str)], body: &Value| {
        server
            .call(&server.admin, "POST", "/v1/tenants", headers, Some(body))
            .await
    };
    let any = [("if-none-match", "*")];
    let exists = post(&any, &tenant).await.expect(412).json();
    assert_eq!(exists["type"], "urn:causeway:problem:exists");
    let conflict = json!({ "kind": "tenant", "name": "acme", "field": "name", "value": "acme" });
    assert_eq!(exists["conflicts"], json!([conflict]));
    post(&[], &tenant).await.expect(409);
    post(&any, &new).await.expect(201);
    post(&[("if-none-match", "\"1\"")], &new).await.expect(400);
    // Conditions that an operation does not know are not passed over.
    post(&[("if-match", "\"1\"")], &new).await.expect(400);
    let spec = json!({ "spec": { "description": "x" } });
    let put = async |headers: &[(&str, &str)]| {
        let path = "/v1/tenants/acme";
        server
            .call(&server.admin, "PUT", path, headers, Some(&spec))
            .await
    };
    put(&any).await.expect(400);
    let user = json!({ "name": "n", "role": "provider-auditor", "password": "correct horse b" });
    let key = [("idempotency-key", "a")];
    let refused = server
        .call(&server.admin, "POST", "/v1/users", &key, Some(&user))
        .await;
    let detail = refused.expect(400).json()["detail"].clone();
    let detail = detail.as_str().expect("a detail");
    assert!(detail.contains("does not take it"), "{detail}");
    // One of several tags suffices.
    let found = server
        .get(&server.admin, "/v1/tenants/acme")
        .await
        .expect(200);
    let tag = found.header("etag").expect("a tag");
    let moved = put(&[("if-match", "\"1\", \"2\"")])
        .await
        .expect(412)
        .json();
    let revision = tag.trim_matches('"');
    let conflict = json!({ "kind": "tenant", "name": "acme", "field": "metadata.revision",
        "value": revision });
    assert_eq!(moved["conflicts"], json!([conflict]));
    put(&[("if-match", &format!("\"1\", {tag}"))])
        .await
        .expect(200);
}

#[tokio::test]
async fn operations_on_users_and_tokens_have_dry_runs() {
    let server = Server::with_tenants().await;
    let gateway = json!({ "addresses": ["203.0.113.1"] });
    server.create("/v1/gateways", "gw1", gateway).await;
    let machine = json!({ "name": "m", "role": "gateway", "object": "gw1" });
    server
        .post(&server.admin, "/v1/users", machine)
        .await
        .expect(201);
    let alice = server.user("alice", "provider-operator", None).await;
    let own = server.get(&alice, "/v1/tokens").await.expect(200).json();
    let id = own["items"][0]["id"].as_str().expect("an id").to_owned();
    let password = "correct horse battery";
    let user = json!({ "name": "n", "role": "provider-auditor", "password": password });
    let hours = json!({ "hours": 1 });
    let new = json!({ "password": "another horse battery" });
    let changed = json!({ "current": password, "password": "another horse battery" });
    let everything = async || {
        let users = server.get(&server.admin, "/v1/users").await.expect(200);
        let mine = server
            .get(&server.admin, "/v1/users/alice/tokens")
            .await
            .expect(200);
        let machines = server
            .get(&server.admin, "/v1/users/m/tokens")
            .await
            .expect(200);
        let audit = server
            .get(&server.admin, "/v1/audit?limit=1000")
            .await
            .expect(200);
        // Each of these requests is a use of a token.
        let mut mine = mine.json();
        for token in mine["items"].as_array_mut().expect("a list") {
            token.as_object_mut().expect("a token").remove("last_used");
        }
        [users.text, mine.to_string(), machines.text, audit.text]
    };
    let before = everything().await;
    let token = format!("/v1/tokens/{id}");
    let of_user = format!("/v1/users/alice/tokens/{id}");
    for (actor, method, path, body, kind) in [
        (&server.admin, "POST", "/v1/users", Some(&user), "user"),
        (&server.admin, "DELETE", "/v1/users/alice", None, "user"),
        (
            &server.admin,
            "DELETE",
            "/v1/users/alice/totp",
            None,
            "user",
        ),
        (
            &server.admin,
            "PUT",
            "/v1/users/alice/password",
            Some(&new),
            "user",
        ),
        (
            &server.admin,
            "POST",
            "/v1/users/m/tokens",
            Some(&hours),
            "token",
        ),
        (&server.admin, "DELETE", of_user.as_str(), None, "token"),
        (&alice, "POST", "/v1/tokens", Some(&hours), "token"),
        (&alice, "DELETE", token.as_str(), None, "token"),
        (&alice, "POST", "/v1/self/totp", None, "user"),
        (&alice, "PUT", "/v1/self/password", Some(&changed), "user"),
    ] {
        let path = format!("{path}?dry_run=true");
        let run = server
            .call(actor, method, &path, &[], body)
            .await
            .expect(200);
        assert!(
            !run.text.contains("cwy_") && !run.text.contains("argon2"),
            "{run:?}"
        );
        let run = run.json();
        let differences = run["differences"].as_array().expect("a list");
        assert!(
            differences
                .iter()
                .any(|difference| difference["kind"] == kind),
            "{method} {path}: {run}"
        );
    }
    assert_eq!(everything().await, before);
    // Where it has no sense, the document says so.
    let document = director::api::document();
    for (path, method) in [("/v1/sessions", "post"), ("/v1/self/totp", "put")] {
        let text = &document["paths"][path][method]["description"];
        assert!(
            text.as_str()
                .is_some_and(|text| text.contains("no dry run")),
            "{path}"
        );
    }
}

#[tokio::test]
async fn refusals_of_users_and_tokens_name_their_conflicts() {
    let server = Server::with_tenants().await;
    let admin = &server.admin;
    server.user("alice", "tenant-admin", Some("acme")).await;
    let machine = json!({ "name": "m", "role": "appliance", "tenant": "acme", "object": "h1" });
    server.post(admin, "/v1/users", machine).await.expect(201);
    let password = "correct horse battery";
    let again = json!({ "name": "alice", "role": "provider-auditor", "password": password });
    let lost = json!({ "name": "g", "role": "gateway", "object": "gw9" });
    let (hours, new) = (json!({ "hours": 1 }), json!({ "password": password }));
    for (method, path, body, status, kind, name, field) in [
        (
            "POST",
            "/v1/users",
            Some(&again),
            409,
            "user",
            "alice",
            "name",
        ),
        (
            "POST",
            "/v1/users",
            Some(&lost),
            409,
            "gateway",
            "gw9",
            "name",
        ),
        (
            "DELETE",
            "/v1/users/admin",
            None,
            409,
            "user",
            "admin",
            "role",
        ),
        (
            "DELETE",
            "/v1/users/missing",
            None,
            404,
            "user",
            "missing",
            "name",
        ),
        (
            "POST",
            "/v1/users/alice/tokens",
            Some(&hours),
            409,
            "user",
            "alice",
            "role",
        ),
        (
            "DELETE",
            "/v1/users/alice/tokens/0",
            None,
            404,
            "token",
            "0",
            "id",
        ),
        (
            "PUT",
            "/v1/users/m/password",
            Some(&new),
            409,
            "user",
            "m",
            "object",
        ),
        (
            "PUT",
            "/v1/users/admin/password",
            Some(&new),
            409,
            "user",
            "admin",
            "name",
        ),
        (
            "POST",
            "/v1/self/totp",
            None,
            409,
            "user",
            "admin",
            "password",
        ),
    ] {
        let refused = server
            .call(admin, method, path, &[], body)
            .await
            .expect(status)
            .json();
        let conflict = &refused["conflicts"][0];
        let found = [&conflict["kind"], &conflict["name"], &conflict["field"]];
        assert_eq!(
            found,
            [&json!(kind), &json!(name), &json!(field)],
            "{method} {path}"
        );
    }
}
