//! The document: whole in itself, and true of what the server answers.

use std::{collections::BTreeSet, sync::LazyLock};

use director::api::document;
use serde_json::Value;

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
        assert!(path.starts_with("/v1/"), "{path}");
        for operation in item.as_object().expect("operations").values() {
            count += 1;
            ids.insert(operation["operationId"].as_str().expect("an id"));
            let parameters = operation["parameters"].as_array().expect("a list");
            let in_path = parameters.iter().filter(|p| p["in"] == "path").count();
            assert_eq!(in_path, path.matches('{').count(), "{path}");
        }
    }
    assert_eq!((ids.len(), count), (count, 100), "{ids:?}");
}

/// Fails if the document does not have this status for an answer of the server.
pub fn assert_documented(method: &str, path: &str, status: u16) {
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
}
