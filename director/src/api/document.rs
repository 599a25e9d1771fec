//! The document of the API (OpenAPI 3.1), made of the table of operations.

use std::collections::BTreeMap;

use control::{Condition, NAME_PATTERN};
use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

use super::{
    objects::Served,
    request::MAX_HEADER_LEN,
    table::{Operation, Parameter, ResponseHeader, Schema, Values, operations},
};
use crate::problem::{ProblemBody, STATUSES};

/// Hexadecimal digits of a page token, two for each byte.
const PAGE_PATTERN: &str = "^([0-9a-fA-F]{2})*$";
/// Printable ASCII, as headers have it.
const HEADER_PATTERN: &str = "^[ -~]+$";
/// The same, or the extended form of RFC 8187, in which a character of UTF-8 has up to 12 letters.
const TEXT_PATTERN: &str = "^([ -~]{1,256}|[Uu][Tt][Ff]-8'[A-Za-z0-9-]*'[!-~]+)$";
const TEXT_LEN: usize = 12 * MAX_HEADER_LEN + 64;

/// The OpenAPI document of all operations, with the schemas that they use.
#[must_use]
pub fn document() -> Value {
    let operations = operations();
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut components: BTreeMap<String, Value> = BTreeMap::new();
    components.extend(schema::<ProblemBody>().all);
    for operation in &operations {
        let bodies = operation.body.iter();
        let answers = operation.success.iter().filter_map(|s| s.schema.as_ref());
        for schema in bodies.chain(answers) {
            components.extend(schema.all.iter().cloned());
        }
        let method = operation.method.as_str().to_lowercase();
        let path = paths.entry(operation.path.clone()).or_default();
        path.insert(method, described(operation));
    }
    let health = paths.entry("/health".to_owned()).or_default();
    health.insert("get".to_owned(), health_operation());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Causeway director",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Hosts, pools, hardware plans and tenants of a provider.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

/// `GET /health` beside the API, which answers text.
fn health_operation() -> Value {
    let answer = |text: &str| {
        json!({
            "description": text,
            "content": { "text/plain": { "schema": { "type": "string" } } },
        })
    };
    json!({
        "operationId": "health",
        "summary": "Tell whether requests can be answered, for load balancers.",
        "parameters": [],
        "responses": {
            "200": answer("The state can be read."),
            "405": refusal(405),
            "503": answer("The store cannot be read, or its disk is full."),
        },
        "security": [],
    })
}

fn described(operation: &Operation) -> Value {
    let mut parameters: Vec<_> = operation
        .path
        .split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| {
            json!({ "name": name, "in": "path", "required": true,
                "schema": { "type": "string", "minLength": 1 } })
        })
        .collect();
    let given = |place: &'static str, parameter: &Parameter| {
        json!({
            "name": parameter.name,
            "in": place,
            "required": parameter.is_required,
            "description": parameter.description,
            "schema": values(parameter.values),
        })
    };
    parameters.extend(operation.query.iter().map(|p| given("query", p)));
    parameters.extend(operation.headers.iter().map(|p| given("header", p)));
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": responses(operation),
        "security": if operation.is_public { json!([]) } else { json!([{ "token": [] }]) },
    });
    if !operation.description.is_empty() {
        described["description"] = operation.description.into();
    }
    if let Some(body) = &operation.body {
        described["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": reference(&body.name) } },
        });
    }
    described
}

/// The schema of a parameter.
fn values(values: Values) -> Value {
    match values {
        Values::Flag => json!({ "type": "boolean" }),
        Values::Number { least, most } => {
            json!({ "type": "integer", "minimum": least, "maximum": most })
        }
        Values::Kind => {
            let kinds: Vec<_> = control::KINDS.iter().map(|info| info.kind).collect();
            json!({ "type": "string", "enum": kinds })
        }
        Values::Name => json!({ "type": "string", "pattern": NAME_PATTERN }),
        Values::Page => json!({ "type": "string", "pattern": PAGE_PATTERN }),
        Values::Any => json!({ "type": "string", "enum": ["*"] }),
        Values::Header => {
            json!({ "type": "string", "minLength": 1, "maxLength": MAX_HEADER_LEN,
                "pattern": HEADER_PATTERN })
        }
        Values::Text => {
            json!({ "type": "string", "minLength": 1, "maxLength": TEXT_LEN,
                "pattern": TEXT_PATTERN })
        }
    }
}

/// The answer of a refusal with this status.
fn refusal(status: u16) -> Value {
    let mut response = json!({
        "description": "The request is refused.",
        "content": {
            "application/problem+json": { "schema": reference("ProblemBody") },
        },
    });
    if let Some(header) = of_refusal(status) {
        response["headers"] = described_headers(&[header]);
    }
    response
}

fn responses(operation: &Operation) -> Value {
    let mut responses = Map::new();
    for status in STATUSES {
        responses.insert(status.to_string(), refusal(status));
    }
    for success in &operation.success {
        let mut response = json!({ "description": "The request was carried out." });
        if let Some(schema) = &success.schema {
            let content = json!({ "schema": reference(&schema.name) });
            response["content"][success.content_type] = content;
        }
        if !success.headers.is_empty() {
            response["headers"] = described_headers(success.headers);
        }
        responses.insert(success.status.as_str().to_owned(), response);
    }
    responses.into()
}

/// The header that each refusal with a status has.
const fn of_refusal(status: u16) -> Option<ResponseHeader> {
    Some(match status {
        401 => ResponseHeader::always("WWW-Authenticate", "The scheme of tokens."),
        405 => ResponseHeader::always("Allow", "The methods of this path."),
        429 | 503 => ResponseHeader::always(
            "Retry-After",
            "Time after which the request may be sent again, seconds.",
        ),
        _ => return None,
    })
}

fn described_headers(headers: &[ResponseHeader]) -> Value {
    let described = headers.iter().map(|header| {
        let schema = match header.name {
            "Retry-After" => json!({ "type": "integer", "minimum": 0 }),
            _ => json!({ "type": "string" }),
        };
        let value = json!({ "description": header.description, "required": header.is_always,
            "schema": schema });
        (header.name.to_owned(), value)
    });
    described.collect::<Map<_, _>>().into()
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// The schema of a type.
pub(super) fn schema<T: ToSchema>() -> Schema {
    let mut all = Vec::new();
    T::schemas(&mut all);
    all.push((T::name().into_owned(), <T as PartialSchema>::schema()));
    let all = all.into_iter().map(|(name, schema)| {
        // Schemas are data: they always have a JSON form.
        (name, serde_json::to_value(schema).unwrap_or_default())
    });
    Schema {
        name: T::name().into_owned(),
        all: all.collect(),
    }
}

fn named(name: String, of: &[Schema], value: Value) -> Schema {
    let mut all: Vec<_> = of.iter().flat_map(|schema| schema.all.clone()).collect();
    all.push((name.clone(), value));
    Schema { name, all }
}

// Each of the schemas of a kind is made by a function that is compiled once, not for each kind.

/// The schema of a kind's objects.
pub(super) fn object_of<K: Served>() -> Schema {
    object(schema::<K>(), schema::<K::Status>())
}

fn object(spec: Schema, status: Schema) -> Schema {
    let condition = schema::<Condition>();
    let metadata = json!({
        "type": "object",
        "required": ["name", "uid", "generation", "created", "revision"],
        "properties": {
            "name": { "type": "string" },
            "tenant": { "type": "string" },
            "uid": { "type": "string", "format": "uuid" },
            "generation": { "type": "integer", "minimum": 1 },
            "created": { "type": "string", "format": "date-time" },
            "revision": { "type": "integer", "minimum": 0 },
            "owner": { "type": "string" },
        },
    });
    let metadata = named("Metadata".to_owned(), &[], metadata);
    let value = json!({
        "type": "object",
        "required": ["metadata", "spec", "status"],
        "properties": {
            "metadata": reference("Metadata"),
            "spec": reference(&spec.name),
            "status": reference(&status.name),
            "conditions": {
                "type": "array",
                "items": reference(&condition.name),
                "description": "What is true of the object now; in answers to `get` and `list`.",
            },
        },
    });
    let name = format!("{}Object", spec.name);
    named(name, &[metadata, spec, status, condition], value)
}

/// The schema of a page of a kind's objects.
pub(super) fn list_of<K: Served>() -> Schema {
    list(&K::name(), object_of::<K>())
}

fn list(kind: &str, object: Schema) -> Schema {
    let value = json!({
        "type": "object",
        "required": ["items", "next", "revision"],
        "properties": {
            "items": { "type": "array", "items": reference(&object.name) },
            "next": { "type": ["string", "null"] },
            "revision": { "type": "integer" },
        },
    });
    named(format!("{kind}List"), &[object], value)
}

/// The schema of a request that creates an object.
pub(super) fn new_of<K: Served>() -> Schema {
    new(schema::<K>())
}

fn new(spec: Schema) -> Schema {
    let value = json!({
        "type": "object",
        "required": ["name", "spec"],
        "additionalProperties": false,
        "properties": {
            "name": { "type": "string", "pattern": NAME_PATTERN },
            "owner": { "type": ["string", "null"], "pattern": NAME_PATTERN },
            "spec": reference(&spec.name),
        },
    });
    named(format!("New{}", spec.name), &[spec], value)
}

/// The schema of a request that replaces a spec.
pub(super) fn changed_of<K: Served>() -> Schema {
    changed(schema::<K>())
}

fn changed(spec: Schema) -> Schema {
    let value = json!({
        "type": "object",
        "required": ["spec"],
        "additionalProperties": false,
        "properties": {
            "owner": { "type": ["string", "null"], "pattern": NAME_PATTERN },
            "spec": reference(&spec.name),
        },
    });
    named(format!("Changed{}", spec.name), &[spec], value)
}

/// The schema of an answer, or of a dry run.
pub(super) fn or_dry_run(answer: &Schema) -> Schema {
    either(&answer.name, answer.clone())
}

/// The schema of an object, or of a dry run.
pub(super) fn either_of<K: Served>() -> Schema {
    either(&K::name(), object_of::<K>())
}

fn either(name: &str, answer: Schema) -> Schema {
    let dry = schema::<super::objects::DryRun>();
    let value = json!({ "anyOf": [reference(&answer.name), reference(&dry.name)] });
    named(format!("{name}OrDryRun"), &[answer, dry], value)
}
