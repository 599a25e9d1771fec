//! The document: whole in itself, and true of what the server answers.

use std::{collections::BTreeSet, sync::LazyLock};

use director::api::document;
use serde_json::{Value, json};

use super::{Answered, Server};

/// All values of `$ref` in a document.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str().filter(|_| name == "$ref") {
                    Some(reference) => drop(found.insert(reference.to_owned())),
                    None => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_reference_leads_to_a_schema_and_every_schema_is_used() {
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    let schemas = document["components"]["schemas"]
        .as_object()
        .expect("schemas");
    let known: BTreeSet<_> = schemas
        .keys()
        .map(|name| format!("#/components/schemas/{name}"))
        .collect();
    assert!(known.len() > 60, "{}", known.len());
    let missing: Vec<_> = found.difference(&known).collect();
    assert!(missing.is_empty(), "no such schemas: {missing:?}");
    let unused: Vec<_> = known.difference(&found).collect();
    assert!(
        unused.is_empty(),
        "schemas that nothing refers to: {unused:?}"
    );
}

#[test]
fn operations_have_names_of_their_own_and_describe_their_parameters() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let (mut ids, mut count) = (BTreeSet::new(), 0);
    for (path, item) in document["paths"].as_object().expect("paths") {
        assert!(path.starts_with("/v1/") || path == "/health", "{path}");
        for operation in item.as_object().expect("operations").values() {
            count += 1;
            ids.insert(operation["operationId"].as_str().expect("an id"));
            let parameters = operation["parameters"].as_array().expect("a list");
            let in_path = parameters.iter().filter(|p| p["in"] == "path").count();
            assert_eq!(in_path, path.matches('{').count(), "{path}");
        }
    }
    assert_eq!((ids.len(), count), (count, 107), "{ids:?}");
}

/// Fails if the document does not have the status of an answer of the server, or if the answer
/// lacks a header that the document promises.
pub fn assert_documented(method: &str, path: &str, answer: &Answered) {
    let status = answer.status;
    let path = path.split('?').next().expect("a path");
    // It is the same for all requests.
    static DOCUMENT: LazyLock<Value> = LazyLock::new(document);
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    let is_of = |pattern: &str| {
        let (pattern, path) = (pattern.split('/'), path.split('/'));
        pattern.clone().count() == path.clone().count()
            && pattern.zip(path).all(|(p, s)| p.starts_with('{') || p == s)
    };
    let Some((_, item)) = paths.iter().find(|(pattern, _)| is_of(pattern)) else {
        assert_eq!(status, 404, "{method} {path}");
        return;
    };
    let operation = &item[method.to_lowercase()];
    if operation.is_null() {
        assert_eq!(status, 405, "{method} {path}");
        return;
    }
    let documented = &operation["responses"][status.to_string()];
    assert!(
        documented.is_object(),
        "{method} {path}: {status} is not documented"
    );
    for (name, header) in documented["headers"].as_object().into_iter().flatten() {
        let is_there = answer.header(&name.to_lowercase()).is_some();
        assert!(
            is_there || header["required"] != true,
            "{method} {path}: {status}: the header {name} is missing: {answer:?}"
        );
    }
}

/// The headers that the document has for an answer.
fn headers(document: &Value, path: &str, method: &str, status: &str) -> Vec<String> {
    let headers = &document["paths"][path][method]["responses"][status]["headers"];
    let names = headers.as_object().into_iter().flatten();
    names.map(|(name, _)| name.clone()).collect()
}

#[test]
fn the_document_has_the_headers_of_answers_and_the_health() {
    let document = document();
    let of = |path: &str, method: &str, status: &str| headers(&document, path, method, status);
    let one = "/v1/tenants/{tenant}/networks/{name}";
    assert_eq!(
        of("/v1/hosts", "post", "201"),
        ["Causeway-Warning", "ETag", "Location"]
    );
    assert_eq!(of(one, "get", "200"), ["ETag"]);
    assert_eq!(of(one, "put", "200"), ["Causeway-Warning", "ETag"]);
    assert_eq!(of(one, "put", "429"), ["Retry-After"]);
    assert_eq!(of(one, "get", "503"), ["Retry-After"]);
    assert_eq!(of(one, "get", "401"), ["WWW-Authenticate"]);
    assert_eq!(of(one, "get", "405"), ["Allow"]);
    let health = &document["paths"]["/health"]["get"];
    assert_eq!(health["security"], json!([]));
    assert!(health["responses"]["503"]["content"]["text/plain"].is_object());
    assert_eq!(of("/health", "get", "405"), ["Allow"]);
}

#[tokio::test]
async fn answers_have_the_headers_that_the_document_promises() {
    let server = Server::with_tenants().await;
    let body = json!({ "name": "h2", "spec": { "platform": "kvm" } });
    let made = server
        .post(&server.admin, "/v1/hosts", body)
        .await
        .expect(201);
    assert_eq!(made.header("location"), Some("/v1/hosts/h2"));
    let read = server.get(&server.admin, "/v1/hosts/h2").await.expect(200);
    assert_eq!(made.header("etag"), read.header("etag"));
    let body = json!({ "name": "lan", "spec": { "production": "LAN", "replica": "web-1" } });
    let path = "/v1/tenants/acme/mappings";
    let dry = format!("{path}?dry_run=true");
    let dry = server
        .post(&server.admin, &dry, body.clone())
        .await
        .expect(200);
    assert_eq!((dry.header("location"), dry.header("etag")), (None, None));
    let reason = [("x-reason", "a test")];
    let made = server
        .call(&server.admin, "POST", path, &reason, Some(&body))
        .await
        .expect(201);
    assert_eq!(
        made.header("location"),
        Some("/v1/tenants/acme/mappings/lan")
    );
}

#[tokio::test]
async fn reasons_of_other_scripts_are_in_the_audit() {
    let server = Server::with_tenants().await;
    let put = async |reason: &str, description: &str| {
        let body = json!({ "spec": { "description": description } });
        let headers = [("x-reason", reason)];
        let path = "/v1/tenants/acme";
        server
            .call(&server.admin, "PUT", path, &headers, Some(&body))
            .await
    };
    put("UTF-8''W%C3%BCnsche%20des%20Kunden", "a")
        .await
        .expect(200);
    put("utf-8'de'plain", "b").await.expect(200);
    put("it's John's", "c").await.expect(200);
    let audit = server.get(&server.admin, "/v1/audit").await.json();
    let entries = audit["items"].as_array().expect("entries");
    let reasons: Vec<_> = entries
        .iter()
        .filter_map(|entry| entry["reason"].as_str())
        .collect();
    assert!(
        reasons.ends_with(&["Wünsche des Kunden", "plain", "it's John's"]),
        "{reasons:?}"
    );
    let long = format!("UTF-8''{}", "%C3%BC".repeat(257));
    for wrong in ["UTF-8''", "UTF-8''%C3", "UTF-8''a%0Ab", &long] {
        let refused = put(wrong, "d").await.expect(400);
        assert!(refused.text.contains("percent-encoded"), "{refused:?}");
    }
    let all = format!("UTF-8''{}", "%C3%BC".repeat(256));
    put(&all, "e").await.expect(200);
}
