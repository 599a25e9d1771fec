//! The document of the API (OpenAPI 3.1), made of operations.

use std::collections::BTreeMap;

use control::NAME_PATTERN;
use serde_json::{Map, Value, json};

use super::{
    operation::{Operation, ResponseHeader},
    parameter::{Parameter, Values},
    request::MAX_HEADER_LEN,
    schemas::{reference, schema},
};
use crate::problem::{ProblemBody, STATUSES};

/// Hexadecimal digits of a page token, two for each byte.
const PAGE_PATTERN: &str = "^([0-9a-fA-F]{2})*$";
/// Printable ASCII, as headers have it.
const HEADER_PATTERN: &str = "^[ -~]+$";
/// The same, or the extended form of RFC 8187, in which a character of UTF-8 has up to 12 letters.
const TEXT_PATTERN: &str = "^([ -~]{1,256}|[Uu][Tt][Ff]-8'[A-Za-z0-9-]*'[!-~]+)$";
const TEXT_LEN: usize = 12 * MAX_HEADER_LEN + 64;

/// The OpenAPI document of operations, with the schemas that they use.
pub(super) fn of(operations: &[Operation]) -> Value {
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut components: BTreeMap<String, Value> = BTreeMap::new();
    components.extend(schema::<ProblemBody>().all);
    for operation in operations {
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
