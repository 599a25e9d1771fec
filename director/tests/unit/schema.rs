//! The document, rule by rule, against the server: each bound of each field and parameter is there,
//! a value just beyond it is refused, and one just within it is not called invalid.

use director::api::document;
use serde_json::{Value, json};

use super::{
    Server,
    matrix::{OBJECTS, fill},
};

/// Texts that the server compares with a secret or a stored one: they have no form to state.
const FREE: [&str; 3] = ["Credentials", "Code", "OwnPassword.current"];

fn resolved<'d>(document: &'d Value, mut schema: &'d Value) -> (&'d Value, Option<&'d str>) {
    let mut name = None;
    loop {
        // An optional field is `null` or a reference.
        let choices = schema["oneOf"].as_array().or(schema["anyOf"].as_array());
        let inner = choices.and_then(|choices| choices.iter().find(|c| c["$ref"].is_string()));
        let choice = inner.filter(|_| choices.is_some_and(|choices| choices.len() == 2));
        let Some(reference) = choice.unwrap_or(schema)["$ref"].as_str() else {
            return (schema, name);
        };
        name = reference.rsplit('/').next();
        schema = &document["components"]["schemas"][name.expect("a name")];
    }
}

fn has_type(schema: &Value, name: &str) -> bool {
    match &schema["type"] {
        Value::String(one) => one == name,
        Value::Array(some) => some.iter().any(|one| one == name),
        _ => false,
    }
}

/// A field of a request: its path, its schema, and the value that is there.
struct Field {
    path: String,
    schema: Value,
    /// Name of the schema among the components.
    name: String,
    /// Places on the way: a name, or the number of an item.
    places: Vec<Value>,
    is_required: bool,
}

fn fields(document: &Value, schema: &Value, value: &Value, at: &Field, all: &mut Vec<Field>) {
    let (schema, name) = resolved(document, schema);
    all.push(Field {
        path: at.path.clone(),
        schema: schema.clone(),
        name: name.unwrap_or_default().to_owned(),
        places: at.places.clone(),
        is_required: at.is_required,
    });
    let mut inner = |name: String, place: Value, schema: &Value, value: &Value, is_required| {
        let places = at.places.iter().cloned().chain([place]).collect();
        let path = format!("{}.{name}", at.path);
        let at = Field {
            path,
            schema: Value::Null,
            name: String::new(),
            places,
            is_required,
        };
        fields(document, schema, value, &at, all);
    };
    if let Some(properties) = schema["properties"].as_object() {
        for (name, of) in properties {
            let required = schema["required"].as_array();
            let is_required = required.is_some_and(|all| all.iter().any(|one| one == name));
            inner(name.clone(), json!(name), of, &value[name], is_required);
        }
    }
    // Of choices of objects, the one that is there.
    for part in schema["oneOf"].as_array().into_iter().flatten() {
        let (part, _) = resolved(document, part);
        let tag = part["properties"].as_object().into_iter().flatten();
        let is_there = |(name, of): (&String, &Value)| match of["enum"].as_array() {
            Some(known) => known.contains(&value[name]),
            None => of["const"].is_null() || of["const"] == value[name],
        };
        if value.is_object() && tag.clone().count() > 1 && tag.into_iter().all(is_there) {
            for (name, of) in part["properties"].as_object().into_iter().flatten() {
                let required = part["required"].as_array();
                let is_required = required.is_some_and(|all| all.iter().any(|one| one == name));
                inner(name.clone(), json!(name), of, &value[name], is_required);
            }
        }
    }
    if has_type(schema, "array") {
        let item = value.get(0).cloned().unwrap_or_default();
        inner("0".to_owned(), json!(0), &schema["items"], &item, false);
    }
}

/// The body with another value at the places; `None` takes the field away.
fn with(body: &Value, places: &[Value], form: Option<Value>) -> Value {
    let Some((first, rest)) = places.split_first() else {
        return form.unwrap_or_default();
    };
    let mut body = body.clone();
    match (first, rest.is_empty(), form) {
        (Value::String(name), true, None) => {
            body.as_object_mut().expect("an object").remove(name);
        }
        (Value::String(name), _, form) => body[name.as_str()] = with(&body[name], rest, form),
        (_, _, form) => {
            let inner = with(body.get(0).unwrap_or(&Value::Null), rest, form);
            body = json!([inner]);
        }
    }
    body
}

/// Values that break one rule each.
fn violations(field: &Field, there: &Value) -> Vec<(String, Value)> {
    let schema = &field.schema;
    let mut all = Vec::new();
    let mut add = |rule: &str, value: Value| all.push((format!("{}: {rule}", field.path), value));
    if schema["pattern"].is_string() {
        add("pattern", json!("A \u{7}\nz/"));
    }
    if let Some(least) = schema["minLength"].as_u64().filter(|least| *least > 0) {
        add("minLength", json!("a".repeat(least as usize - 1)));
    }
    if let Some(most) = schema["maxLength"].as_u64() {
        add("maxLength", json!("a".repeat(most as usize + 1)));
    }
    if let Some(least) = schema["minimum"].as_i64() {
        add("minimum", json!(least - 1));
    }
    if let Some(most) = schema["maximum"].as_i64() {
        add("maximum", json!(most + 1));
    }
    if schema["minItems"].as_u64().is_some_and(|least| least > 0) {
        add("minItems", json!([]));
    }
    if let Some(most) = schema["maxItems"].as_u64() {
        let item = there.get(0).cloned().unwrap_or(json!("a"));
        add("maxItems", json!(vec![item; most as usize + 1]));
    }
    if schema["enum"].is_array() || schema["const"].is_string() {
        add("enum", json!("another-one"));
    }
    if schema["format"] == "date-time" {
        add("format", json!("yesterday"));
    }
    if schema["additionalProperties"] == false && there.is_object() {
        let mut more = there.clone();
        more["surplus"] = json!(1);
        add("additionalProperties", more);
    }
    all
}

/// Values at the edge of a rule, which only other objects may contradict.
fn edges(field: &Field) -> Vec<Value> {
    let schema = &field.schema;
    let mut all = Vec::new();
    // A prefix of IPv4 is shorter, ports do not pass the end of a range, and the two numbers of
    // networks have bounds together.
    let depends = [
        "prefix_length",
        "internal_port",
        "public_port",
        "networks_with_internet",
        "networks_without_internet",
    ];
    if !depends.iter().any(|name| field.path.ends_with(name)) {
        all.extend(
            ["minimum", "maximum"]
                .iter()
                .filter_map(|rule| schema[rule].as_i64()),
        );
    }
    let mut all: Vec<_> = all.into_iter().map(Value::from).collect();
    if let Some(most) = schema["maxLength"].as_u64()
        && ["Line", "ForeignName", "ObjectName"].contains(&field.name.as_str())
    {
        all.push(json!("a".repeat(most as usize)));
    }
    all
}

/// Requests with a body: method, path, and a body that is right.
async fn requests(server: &Server, document: &Value) -> Vec<(String, String, Value, Value)> {
    let mut all = Vec::new();
    let schema_of = |pattern: &str, method: &str| {
        let body = &document["paths"][pattern][method]["requestBody"]["content"];
        body["application/json"]["schema"].clone()
    };
    for (collection, name) in OBJECTS {
        let mut path = format!("/v1/{collection}");
        let mut pattern = path.clone();
        if document["paths"].get(&pattern).is_none() {
            pattern = format!("/v1/tenants/{{tenant}}/{collection}");
            path = pattern.replace("{tenant}", "acme");
        }
        let one = format!("{path}/{name}");
        let mut spec = server.get(&server.admin, &one).await.expect(200).json()["spec"].clone();
        if collection == "subscriptions" {
            // A new one takes more than it keeps.
            let network = json!({ "number": 1, "internet": true, "vlan": 150 });
            spec["allocation"] = json!({ "networks": [network], "next": 5 });
        }
        let new = json!({ "name": "brand-new", "owner": "site", "spec": spec });
        let schema = schema_of(&pattern, "post");
        all.push((
            "POST".to_owned(),
            format!("{path}?dry_run=true"),
            schema,
            new,
        ));
        let schema = schema_of(&format!("{pattern}/{{name}}"), "put");
        let changed = json!({ "owner": "site", "spec": spec });
        all.push((
            "PUT".to_owned(),
            format!("{one}?dry_run=true"),
            schema,
            changed,
        ));
    }
    let user = json!({ "name": "new", "role": "tenant-operator", "tenant": "acme",
        "password": "correct horse battery" });
    for (method, pattern, path, body) in [
        ("post", "/v1/users", "/v1/users", user),
        (
            "post",
            "/v1/tokens",
            "/v1/tokens",
            json!({ "hours": 1, "description": "x" }),
        ),
        (
            "post",
            "/v1/users/{name}/tokens",
            "/v1/users/m/tokens",
            json!({ "hours": 1, "description": "x" }),
        ),
        (
            "put",
            "/v1/users/{name}/password",
            "/v1/users/alice/password",
            json!({ "password": "correct horse battery" }),
        ),
        (
            "put",
            "/v1/self/password",
            "/v1/self/password",
            json!({ "password": "correct horse battery" }),
        ),
    ] {
        let schema = schema_of(pattern, method);
        all.push((method.to_uppercase(), path.to_owned(), schema, body));
    }
    all
}

#[tokio::test]
async fn each_rule_of_each_field_is_enforced_and_each_field_has_rules() {
    let server = Server::with_tenants().await;
    fill(&server).await;
    server.user("alice", "tenant-operator", Some("acme")).await;
    let machine = json!({ "name": "m", "role": "appliance", "tenant": "acme", "object": "h1" });
    server
        .post(&server.admin, "/v1/users", machine)
        .await
        .expect(201);
    let uplink = json!({ "spec": { "uplink": { "method": "static", "address": "198.51.100.5",
        "prefix_length": 24, "router": "198.51.100.1" } } });
    let path = "/v1/tenants/acme/appliances/h1";
    server
        .call(&server.admin, "PUT", path, &[], Some(&uplink))
        .await
        .expect(200);
    let document = document();
    let (mut problems, mut broken, mut kept) = (Vec::new(), 0, 0);
    for (method, path, schema, body) in requests(&server, &document).await {
        let (_, name) = resolved(&document, &schema);
        let root = Field {
            path: name.expect("a name").to_owned(),
            schema: Value::Null,
            name: String::new(),
            places: Vec::new(),
            is_required: true,
        };
        let mut all = Vec::new();
        fields(&document, &schema, &body, &root, &mut all);
        for field in &all {
            let is_free = FREE.iter().any(|free| field.path.starts_with(free));
            if let Some(missing) = unbounded(&field.schema).filter(|_| !is_free) {
                problems.push(format!("{}: the document has no {missing}", field.path));
            }
            let there = field.places.iter().fold(&body, |at, place| match place {
                Value::String(name) => &at[name],
                _ => &at[0],
            });
            let mut wrong: Vec<_> = violations(field, there)
                .into_iter()
                .map(|(rule, form)| (rule, Some(form)))
                .collect();
            if field.is_required && !field.places.is_empty() && !there.is_null() {
                wrong.push((format!("{}: required", field.path), None));
            }
            for (rule, form) in wrong {
                let body = with(&body, &field.places, form);
                let answer = server
                    .call(&server.admin, &method, &path, &[], Some(&body))
                    .await;
                broken += 1;
                if ![400, 422].contains(&answer.status) {
                    problems.push(format!(
                        "{method} {path}: {rule} is not enforced: {answer:?}"
                    ));
                }
            }
            for edge in edges(field) {
                let body = with(&body, &field.places, Some(edge.clone()));
                let answer = server
                    .call(&server.admin, &method, &path, &[], Some(&body))
                    .await;
                kept += 1;
                if [400, 422].contains(&answer.status) {
                    problems.push(format!(
                        "{method} {path}: {} {edge}: {answer:?}",
                        field.path
                    ));
                }
            }
        }
    }
    println!("{broken} values beyond a rule, {kept} at its edge");
    assert!(
        problems.is_empty(),
        "{}:\n{}",
        problems.len(),
        problems.join("\n")
    );
    assert!(broken > 300 && kept > 70, "{broken} {kept}");
}

/// The bound that a schema lacks.
fn unbounded(schema: &Value) -> Option<&'static str> {
    let text = ["pattern", "enum", "const", "maxLength", "format"];
    if has_type(schema, "string") && text.iter().all(|rule| schema[rule].is_null()) {
        return Some("rule for the text");
    }
    if has_type(schema, "integer") && (schema["minimum"].is_null() || schema["maximum"].is_null()) {
        return Some("bounds of the number");
    }
    (has_type(schema, "array") && schema["maxItems"].is_null()).then_some("bound of the list")
}

#[tokio::test]
async fn each_rule_of_each_parameter_is_enforced() {
    let server = Server::with_tenants().await;
    fill(&server).await;
    let document = document();
    let mut count = 0;
    for (pattern, item) in document["paths"].as_object().expect("paths") {
        let collection = pattern.split("/{name}").next().expect("a collection");
        let collection = collection.rsplit('/').next().expect("a collection");
        let name = OBJECTS.iter().find(|(plural, _)| *plural == collection);
        let path = pattern.replace("{tenant}", "acme");
        let path = path.replace("{name}", name.map_or("nothing", |(_, name)| *name));
        for (method, operation) in item.as_object().expect("operations") {
            let method = method.to_uppercase();
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let (name, schema) = (
                    parameter["name"].as_str().expect("a name"),
                    &parameter["schema"],
                );
                let mut wrong: Vec<String> = Vec::new();
                match schema["type"].as_str().expect("a type") {
                    "boolean" => wrong.extend(["1", "", "TRUE"].map(ToOwned::to_owned)),
                    "integer" => {
                        let least = schema["minimum"].as_u64().expect("a bound");
                        let most = schema["maximum"].as_u64().expect("a bound");
                        wrong.extend(["x", "", "-1", "1.5", "+5"].map(ToOwned::to_owned));
                        wrong.push(format!("{}", u128::from(most) + 1));
                        wrong.extend(least.checked_sub(1).map(|below| below.to_string()));
                    }
                    _ if !schema["enum"].is_null() => wrong.push("nothing".to_owned()),
                    _ => wrong.push("%07z".to_owned()),
                }
                for value in wrong {
                    let answer = match parameter["in"].as_str().expect("a place") {
                        "path" => continue,
                        "query" => {
                            let kind = match pattern == "/v1/watch" && name != "kind" {
                                true => "kind=host&",
                                false => "",
                            };
                            let path = format!("{path}?{kind}{name}={value}");
                            server.call(&server.admin, &method, &path, &[], None).await
                        }
                        _ => continue,
                    };
                    count += 1;
                    assert_eq!(
                        answer.status, 400,
                        "{method} {path} {name}={value}: {answer:?}"
                    );
                }
                if parameter["required"] == true && parameter["in"] == "query" {
                    let answer = server.call(&server.admin, &method, &path, &[], None).await;
                    assert_eq!(
                        answer.status, 400,
                        "{method} {path} without {name}: {answer:?}"
                    );
                }
            }
        }
    }
    assert!(count > 200, "{count} requests");
    let long = "x".repeat(257);
    let spec = json!({ "spec": {} });
    for header in ["if-match", "idempotency-key", "x-reason"] {
        for value in ["", long.as_str(), "ü"] {
            let headers = [(header, value)];
            let path = "/v1/tenants/acme?dry_run=true";
            let answer = server
                .call(&server.admin, "PUT", path, &headers, Some(&spec))
                .await;
            assert_eq!(answer.status, 400, "{header}: {value:?}: {answer:?}");
        }
    }
}
