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
