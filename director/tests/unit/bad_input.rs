//! Bad input of every kind, made of the document's schemas: each field absent, of a wrong type, out
//! of range, unknown, or contradicting. Each gets one clear error and changes nothing.

use director::api::document;
use serde_json::{Value, json};

use super::{
    Server,
    matrix::{OBJECTS, fill},
};

/// Longest detail of a problem, characters: a request does not get its own megabyte back.
const MAX_DETAIL_LEN: usize = 2200;

/// A wrong spec.
struct Wrong {
    spec: Value,
    /// The fields of which the error must name one: that in question, and those around it.
    field: String,
    /// The defect, for the message of a failed test.
    defect: String,
}

fn resolved<'d>(document: &'d Value, mut schema: &'d Value) -> &'d Value {
    while let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().expect("a name");
        schema = &document["components"]["schemas"][name];
    }
    schema
}

/// JSON types that a schema admits; empty if it does not say.
fn types(document: &Value, schema: &Value) -> Vec<String> {
    let schema = resolved(document, schema);
    let mut found = Vec::new();
    match &schema["type"] {
        Value::String(one) => found.push(one.clone()),
        Value::Array(some) => found.extend(some.iter().filter_map(|t| t.as_str().map(Into::into))),
        _ => {}
    }
    for choice in ["oneOf", "anyOf", "allOf"] {
        for part in schema[choice].as_array().into_iter().flatten() {
            found.extend(types(document, part));
        }
    }
    if schema["const"].is_string() || schema["enum"].is_array() {
        found.push("string".to_owned());
    }
    found
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// All wrong forms of the value at a place, where `put` makes the whole spec of a form.
fn wrong_forms(
    document: &Value,
    schema: &Value,
    value: &Value,
    field: &str,
    put: &dyn Fn(Value) -> Value,
    all: &mut Vec<Wrong>,
) {
    let known = types(document, schema);
    let mut add = |form: Value, field: &str, defect: &str| {
        all.push(Wrong {
            spec: put(form),
            field: field.to_owned(),
            defect: format!("{field}: {defect}"),
        });
    };
    for form in [
        Value::Null,
        json!(true),
        json!(7),
        json!(1.5),
        json!("te\nxt"),
        json!([]),
        json!({}),
    ] {
        let kind = type_of(&form);
        // A text of no format is a wrong address, range or name: of a control character.
        let is_of_type = known.iter().any(|known| known == kind) && kind != "string";
        if !is_of_type && !known.is_empty() {
            let defect = format!("{kind} in place of {}", known.join(" or "));
            add(form, field, &defect);
        }
    }
    if known.iter().any(|known| known == "integer") {
        for form in [json!(-1), json!(1_000_000_000_000_u64)] {
            let defect = format!("{form} is out of range");
            add(form, field, &defect);
        }
    }
    if known.iter().any(|known| known == "string") {
        add(
            json!("x".repeat(100_000)),
            field,
            "a text of 100 000 characters",
        );
    }
    let schema = resolved(document, schema);
    if let Some(items) = value.as_array() {
        for (at, item) in items.iter().enumerate().take(1) {
            let put = |form: Value| {
                let mut items = items.clone();
                items[at] = form;
                put(Value::Array(items))
            };
            wrong_forms(document, &schema["items"], item, field, &put, all);
        }
    }
    if let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object())
    {
        let with = |name: &str, form: Option<Value>| {
            let mut fields = fields.clone();
            match form {
                Some(form) => drop(fields.insert(name.to_owned(), form)),
                None => drop(fields.remove(name)),
            }
            put(Value::Object(fields))
        };
        all.push(Wrong {
            spec: with("surplus", Some(json!(1))),
            field: "surplus".to_owned(),
            defect: format!("{field}: an unknown field"),
        });
        for required in schema["required"].as_array().into_iter().flatten() {
            let name = required.as_str().expect("a name");
            all.push(Wrong {
                spec: with(name, None),
                field: name.to_owned(),
                defect: format!("{name} is absent"),
            });
        }
        for (name, of) in properties {
            let put = |form: Value| with(name, Some(form));
            let value = fields.get(name).unwrap_or(&Value::Null);
            // The outermost field, `spec`, is around all.
            let outer = field.split(' ').next().filter(|outer| *outer != "spec");
            let field = format!("{name} {}", outer.unwrap_or_default());
            let field = field.trim_end();
            wrong_forms(document, of, value, field, &put, all);
        }
    }
}

/// Everything that the provider may read.
async fn everything(server: &Server) -> Vec<Value> {
    let mut all = Vec::new();
    for (collection, _) in OBJECTS {
        let provider = format!("/v1/{collection}");
        let found = server.get(&server.admin, &provider).await;
        if found.status == 200 {
            all.push(found.json());
            continue;
        }
        for tenant in ["acme", "globex"] {
            let path = format!("/v1/tenants/{tenant}/{collection}");
            all.push(server.get(&server.admin, &path).await.expect(200).json());
        }
    }
    all
}

#[tokio::test]
async fn each_wrong_field_of_each_kind_gets_one_clear_error_and_changes_nothing() {
    let server = Server::with_tenants().await;
    fill(&server).await;
    let document = document();
    let before = everything(&server).await;
    let mut problems = Vec::new();
    let mut count = 0;
    for (collection, name) in OBJECTS {
        let mut path = format!("/v1/{collection}");
        let mut pattern = path.clone();
        if document["paths"].get(&pattern).is_none() {
            pattern = format!("/v1/tenants/{{tenant}}/{collection}");
            path = pattern.replace("{tenant}", "acme");
        }
        let body = &document["paths"][&pattern]["post"]["requestBody"]["content"];
        let body = resolved(&document, &body["application/json"]["schema"]);
        let one = format!("{path}/{name}");
        let spec = server.get(&server.admin, &one).await.expect(200).json()["spec"].clone();
        let mut all = Vec::new();
        let schema = &body["properties"]["spec"];
        wrong_forms(&document, schema, &spec, "spec", &|form| form, &mut all);
        assert!(all.len() > 5, "{collection}: {} wrong forms", all.len());
        for wrong in all {
            // A machine is in one plan at most, and an address is that of one machine.
            let mut spec = wrong.spec.to_string().replace("\"db\"", "\"other\"");
            if collection == "plans" {
                spec = spec.replace("10.1.0.10", "10.1.0.11");
            }
            let spec: Value = serde_json::from_str(&spec).expect("JSON");
            let new = json!({ "name": "brand-new", "spec": spec });
            let changed = json!({ "spec": wrong.spec });
            for (method, path, body) in [("POST", &path, new), ("PUT", &one, changed)] {
                let answer = server
                    .call(&server.admin, method, path, &[], Some(&body))
                    .await;
                count += 1;
                let defect = format!("{method} {path}: {}", wrong.defect);
                if ![400, 409, 422, 507].contains(&answer.status) {
                    problems.push(format!("{defect}: {}", answer.status));
                    continue;
                }
                let detail = answer.json()["detail"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                if detail.is_empty() || detail.chars().count() > MAX_DETAIL_LEN {
                    problems.push(format!("{defect}: a detail of {} bytes", detail.len()));
                } else if !wrong.field.split(' ').any(|field| detail.contains(field)) {
                    problems.push(format!("{defect}: {detail:?} does not name it"));
                }
            }
        }
    }
    println!("{count} bad requests");
    assert!(
        problems.is_empty(),
        "{} of {count}:\n{}",
        problems.len(),
        problems.join("\n")
    );
    assert!(count > 900, "{count} requests");
    assert_eq!(
        everything(&server).await,
        before,
        "a refused request has changed something"
    );
}

/// Requests that contradict other objects: each names the object and the field in the way.
#[tokio::test]
async fn each_contradiction_names_the_object_in_the_way() {
    let server = Server::with_tenants().await;
    fill(&server).await;
    let before = everything(&server).await;
    let of = |kind: &str| format!("/v1/tenants/acme/{kind}");
    let post = |path: &str, spec: Value| ("POST", path.to_owned(), Some(spec));
    for ((method, path, spec), kind, name, field) in [
        (
            post(
                "/v1/vlan-pools",
                json!({ "host": "h1", "switch": "br0",
                "without_internet": ["199-210"] }),
            ),
            "vlan-pool",
            "pool",
            "with_internet",
        ),
        (
            post("/v1/address-pools", json!({ "ranges": ["192.0.2.99"] })),
            "address-pool",
            "public",
            "ranges",
        ),
        (
            post("/v1/gateways", json!({ "addresses": ["203.0.113.1"] })),
            "gateway",
            "gw1",
            "addresses",
        ),
        (
            post("/v1/gateway-pools", json!({ "gateways": ["gw2"] })),
            "gateway-pool",
            "gold",
            "gateways",
        ),
        (
            post(&of("subscriptions"), json!({ "hardware_plan": "small" })),
            "subscription",
            "web",
            "hardware_plan",
        ),
        (
            post(
                &of("mappings"),
                json!({ "production": "Other", "replica": "web-1" }),
            ),
            "mapping",
            "lan",
            "replica",
        ),
        (
            post(&of("policies"), json!({ "from": "web-1", "to": "web-2" })),
            "policy",
            "web",
            "from",
        ),
        (
            post(
                &of("rules"),
                json!({ "public_ip": "192.0.2.10", "public_port": "440-450",
                "internal_ip": "10.1.0.11" }),
            ),
            "rule",
            "https",
            "public_port",
        ),
        (
            ("DELETE", "/v1/hosts/h1".to_owned(), None),
            "vlan-pool",
            "pool",
            "host",
        ),
        (
            ("DELETE", "/v1/hardware-plans/small".to_owned(), None),
            "subscription",
            "web",
            "hardware_plan",
        ),
        (
            ("DELETE", of("addresses/a1"), None),
            "rule",
            "https",
            "public_ip",
        ),
        (("DELETE", of("rules/https"), None), "plan", "all", "rules"),
    ] {
        let body = spec.map(|spec| json!({ "name": "brand-new", "spec": spec }));
        let answer = server
            .call(&server.admin, method, &path, &[], body.as_ref())
            .await;
        let answer = answer.expect(409).json();
        let conflict = &answer["conflicts"][0];
        let found = (&conflict["kind"], &conflict["name"], &conflict["field"]);
        assert_eq!(
            found,
            (&json!(kind), &json!(name), &json!(field)),
            "{path}: {answer}"
        );
    }
    assert_eq!(everything(&server).await, before);
}
