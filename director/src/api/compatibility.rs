//! Which changes between two documents of the API break clients that were made for the earlier one.
//!
//! A client breaks when the API no longer accepts what it sends, or answers what it cannot read:
//!
//! ```text
//!   requests: what was accepted is accepted     (no parameter, field, value or bound taken away,
//!                                                nothing else required)
//!   answers: what was promised is there         (no status, header or field taken away, or not
//!                                                always there any more, and no other type)
//! ```
//!
//! More paths, optional parameters, fields and values break no client: clients ignore fields and
//! values of answers that they do not know.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// The changes from the document `before` to the document `after` that break clients, one line
/// each; `None` if one of the two is no document with paths.
#[must_use]
pub fn breaking_changes(before: &Value, after: &Value) -> Option<Vec<String>> {
    let (old, new) = (before["paths"].as_object()?, after["paths"].as_object()?);
    let mut found = Vec::new();
    for (path, item) in old {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let place = format!("{} {path}", method.to_uppercase());
            let Some(changed) = new.get(path).and_then(|item| item.get(method)) else {
                found.push(format!("{place}: the operation is gone"));
                continue;
            };
            let mut compared = Compared {
                before,
                after,
                found: Vec::new(),
                seen: BTreeSet::new(),
            };
            compared.operation(operation, changed);
            let lines = compared.found.into_iter();
            found.extend(lines.map(|line| format!("{place}: {line}")));
        }
    }
    Some(found)
}

/// Writer of a value: the client in requests, the director in answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Request,
    Answer,
}

struct Compared<'d> {
    before: &'d Value,
    after: &'d Value,
    found: Vec<String>,
    /// Pairs of references that are compared already: schemas may contain themselves.
    seen: BTreeSet<(String, String, Direction)>,
}

const NOTHING: &Value = &Value::Null;

impl<'d> Compared<'d> {
    fn add(&mut self, place: &str, text: impl Into<String>) {
        let text = text.into();
        self.found.push(match place.is_empty() {
            true => text,
            false => format!("{place}: {text}"),
        });
    }

    fn operation(&mut self, old: &'d Value, new: &'d Value) {
        if old["operationId"] != new["operationId"] {
            self.add("", format!("operationId is {} now", new["operationId"]));
        }
        let is_public =
            |operation: &Value| operation["security"].as_array().is_some_and(Vec::is_empty);
        if is_public(old) && !is_public(new) {
            self.add("", "it needs a token now");
        }
        self.parameters(old, new);
        self.body(&old["requestBody"], &new["requestBody"]);
        for (status, answer) in fields(&old["responses"]) {
            let changed = &new["responses"][status];
            let place = format!("answer {status}");
            if changed.is_null() {
                // Fewer refusals break nothing.
                if status.starts_with('2') {
                    self.add(&place, "it is gone");
                }
                continue;
            }
            self.answer(&place, answer, changed);
        }
    }

    fn parameters(&mut self, old: &'d Value, new: &'d Value) {
        let of = |operation: &'d Value| operation["parameters"].as_array().into_iter().flatten();
        let is_same = |a: &Value, b: &Value| a["name"] == b["name"] && a["in"] == b["in"];
        for parameter in of(old) {
            let place = shown(parameter);
            let Some(changed) = of(new).find(|other| is_same(parameter, other)) else {
                self.add(&place, "it is gone");
                continue;
            };
            self.schema(
                &place,
                &parameter["schema"],
                &changed["schema"],
                Direction::Request,
            );
        }
        for parameter in of(new).filter(|parameter| parameter["required"] == true) {
            let before = of(old).find(|other| is_same(parameter, other));
            if before.is_none_or(|before| before["required"] != true) {
                self.add(&shown(parameter), "it is required now");
            }
        }
    }

    fn body(&mut self, old: &'d Value, new: &'d Value) {
        match (old.is_null(), new.is_null()) {
            (true, true) => {}
            (true, false) if new["required"] == true => self.add("body", "it is required now"),
            (true, false) => {}
            (false, true) => self.add("body", "it is refused now"),
            (false, false) => self.content("body", old, new, Direction::Request),
        }
    }

    fn answer(&mut self, place: &str, old: &'d Value, new: &'d Value) {
        for (name, header) in fields(&old["headers"]) {
            let changed = &new["headers"][name];
            if header["required"] == true && changed["required"] != true {
                self.add(place, format!("header {name} is not always there any more"));
            } else if changed.is_null() {
                self.add(place, format!("header {name} is gone"));
            }
        }
        self.content(place, old, new, Direction::Answer);
    }

    fn content(&mut self, place: &str, old: &'d Value, new: &'d Value, direction: Direction) {
        for (kind, content) in fields(&old["content"]) {
            let changed = &new["content"][kind];
            match changed.is_null() {
                true => self.add(place, format!("content type {kind} is gone")),
                false => self.schema(place, &content["schema"], &changed["schema"], direction),
            }
        }
    }

    /// Compares two schemas. What cannot be decided, as with two patterns, is reported.
    fn schema(&mut self, place: &str, old: &'d Value, new: &'d Value, direction: Direction) {
        if let (Some(a), Some(b)) = (old["$ref"].as_str(), new["$ref"].as_str())
            && !self.seen.insert((a.to_owned(), b.to_owned(), direction))
        {
            return;
        }
        let (old, new) = (resolved(self.before, old), resolved(self.after, new));
        let (olds, news) = (choices(old), choices(new));
        if olds.len() == 1 && news.len() == 1 {
            return self.single(place, olds[0], news[0], direction);
        }
        for choice in olds {
            // The choice of which the least has changed, as a person would compare them.
            let mut least: Option<Vec<String>> = None;
            let is_other_type = |other: &&&Value| types(other) != types(choice);
            let (others, same): (Vec<_>, Vec<_>) = news.iter().partition(is_other_type);
            for other in same.into_iter().chain(others) {
                let mut compared = Compared {
                    before: self.before,
                    after: self.after,
                    found: Vec::new(),
                    seen: self.seen.clone(),
                };
                compared.schema(place, choice, other, direction);
                let found = compared.found;
                if least.as_ref().is_none_or(|least| found.len() < least.len()) {
                    least = Some(found);
                }
            }
            self.found.extend(least.unwrap_or_default());
        }
    }

    fn single(&mut self, place: &str, old: &'d Value, new: &'d Value, direction: Direction) {
        self.types(place, old, new, direction);
        if direction == Direction::Request {
            self.bounds(place, old, new);
            self.values(place, old, new);
        }
        let required = |schema: &Value, name: &str| {
            let names = schema["required"].as_array().into_iter().flatten();
            names.into_iter().any(|required| required == name)
        };
        let is_closed = |schema: &Value| schema["additionalProperties"] == false;
        if direction == Direction::Request && is_closed(new) && !is_closed(old) {
            self.add(place, "other fields are refused now");
        }
        for (name, field) in fields(&old["properties"]) {
            let place = inner(place, name);
            let changed = &new["properties"][name];
            match direction {
                Direction::Request if changed.is_null() && is_closed(new) => {
                    self.add(&place, "the field is refused now");
                }
                Direction::Answer if changed.is_null() => self.add(&place, "the field is gone"),
                Direction::Answer if required(old, name) && !required(new, name) => {
                    self.add(&place, "the field is not always there any more");
                }
                Direction::Request | Direction::Answer => {}
            }
            if !changed.is_null() {
                self.schema(&place, field, changed, direction);
            }
        }
        if direction == Direction::Request {
            for (name, _) in fields(&new["properties"]) {
                if required(new, name) && !required(old, name) {
                    self.add(&inner(place, name), "the field is required now");
                }
            }
        }
        if !old["items"].is_null() && !new["items"].is_null() {
            self.schema(
                &format!("{place}[]"),
                &old["items"],
                &new["items"],
                direction,
            );
        }
    }

    fn types(&mut self, place: &str, old: &Value, new: &Value, direction: Direction) {
        let (before, after) = (types(old), types(new));
        // A value of one side that the other one does not know.
        let (wider, narrower) = match direction {
            Direction::Request => (&after, &before),
            Direction::Answer => (&before, &after),
        };
        let fits = match (wider.is_empty(), narrower.is_empty()) {
            (true, _) => true,
            (false, true) => false,
            (false, false) => narrower.is_subset(wider),
        };
        if !fits {
            let names = after.iter().copied().collect::<Vec<_>>().join(" or ");
            self.add(place, format!("its type is {names} now"));
        }
    }

    fn bounds(&mut self, place: &str, old: &Value, new: &Value) {
        for (name, is_least) in [
            ("minimum", true),
            ("minLength", true),
            ("minItems", true),
            ("maximum", false),
            ("maxLength", false),
            ("maxItems", false),
        ] {
            let (before, after) = (old[name].as_f64(), new[name].as_f64());
            let is_narrower = match (before, after) {
                (_, None) => false,
                // No length is below 0.
                (None, Some(after)) => !(is_least && after <= 0.0 && name != "minimum"),
                (Some(before), Some(after)) => match is_least {
                    true => after > before,
                    false => after < before,
                },
            };
            if is_narrower {
                self.add(place, format!("{name} is {} now", new[name]));
            }
        }
        for name in ["pattern", "format"] {
            if !new[name].is_null() && new[name] != old[name] {
                self.add(place, format!("{name} is {} now", new[name]));
            }
        }
    }

    fn values(&mut self, place: &str, old: &Value, new: &Value) {
        let (Some(before), Some(after)) = (values(old), values(new)) else {
            if values(new).is_some() {
                self.add(place, "only some values are accepted now");
            }
            return;
        };
        for value in before.iter().filter(|value| !after.contains(value)) {
            self.add(place, format!("{value} is refused now"));
        }
    }
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn inner(place: &str, name: &str) -> String {
    match place.is_empty() {
        true => name.to_owned(),
        false => format!("{place}.{name}"),
    }
}

fn shown(parameter: &Value) -> String {
    let text = |field: &str| parameter[field].as_str().unwrap_or_default();
    format!("{} parameter {}", text("in"), text("name"))
}

fn resolved<'d>(document: &'d Value, mut schema: &'d Value) -> &'d Value {
    // A chain of references ends; a circle of them alone stands for nothing.
    for _ in 0..32 {
        let Some(name) = schema["$ref"].as_str() else {
            return schema;
        };
        let path = name.strip_prefix('#').unwrap_or_default();
        schema = document.pointer(path).unwrap_or(NOTHING);
    }
    NOTHING
}

/// The alternatives of a schema; it alone, if it has none.
fn choices(schema: &Value) -> Vec<&Value> {
    let of = |name: &str| schema[name].as_array();
    match of("oneOf").or(of("anyOf")) {
        Some(choices) => choices.iter().collect(),
        None => vec![schema],
    }
}

/// The types of a schema; none for any type. A number includes whole ones.
fn types(schema: &Value) -> BTreeSet<&str> {
    let mut types: BTreeSet<_> = match &schema["type"] {
        Value::String(one) => BTreeSet::from([one.as_str()]),
        Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
        _ => BTreeSet::new(),
    };
    if types.contains("number") {
        types.insert("integer");
    }
    types
}

/// The values of a schema that lists them.
fn values(schema: &Value) -> Option<Vec<&Value>> {
    match (&schema["const"], schema["enum"].as_array()) {
        (Value::Null, None) => None,
        (Value::Null, Some(values)) => Some(values.iter().collect()),
        (value, _) => Some(vec![value]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document() -> Value {
        json!({
            "paths": {
                "/v1/hosts": {
                    "get": {
                        "operationId": "host.list",
                        "parameters": [
                            { "name": "limit", "in": "query", "required": false,
                              "schema": { "type": "integer", "minimum": 1, "maximum": 1000 } },
                        ],
                        "responses": {
                            "200": {
                                "headers": { "ETag": { "required": true, "schema": {} } },
                                "content": { "application/json": { "schema": {
                                    "$ref": "#/components/schemas/Host" } } },
                            },
                            "404": {},
                        },
                        "security": [],
                    },
                    "post": {
                        "operationId": "host.create",
                        "requestBody": { "required": true, "content": { "application/json": {
                            "schema": { "$ref": "#/components/schemas/Host" } } } },
                        "responses": { "201": {} },
                        "security": [{ "token": [] }],
                    },
                },
            },
            "components": { "schemas": {
                "Host": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": false,
                    "properties": {
                        "name": { "type": "string", "pattern": "^[a-z]+$" },
                        "platform": { "type": "string", "enum": ["esxi", "kvm"] },
                        "switches": { "type": "array", "maxItems": 4, "items": {
                            "$ref": "#/components/schemas/Host" } },
                        "health": { "oneOf": [
                            { "type": "null" },
                            { "type": "object", "properties": {
                                "probe": { "const": "ping" }, "port": { "type": "integer" } } },
                        ] },
                    },
                },
            } },
        })
    }

    fn compare(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut after = document();
        change(&mut after);
        breaking_changes(&document(), &after).unwrap()
    }

    const HOST: &str = "/components/schemas/Host";
    const GET: &str = "/paths/~1v1~1hosts/get";

    fn at<'v>(value: &'v mut Value, path: &str, more: &str) -> &'v mut Value {
        value.pointer_mut(&format!("{path}{more}")).unwrap()
    }

    #[test]
    fn additions_break_nothing() {
        let found = compare(|after| {
            after["paths"]["/v1/more"] = json!({ "get": {} });
            at(after, HOST, "/properties")["more"] = json!({ "type": "string" });
            at(after, HOST, "/properties/platform/enum")
                .as_array_mut()
                .unwrap()
                .push("hyper-v".into());
            at(after, HOST, "/properties/switches")["maxItems"] = 8.into();
            let parameters = at(after, GET, "/parameters").as_array_mut().unwrap();
            parameters.push(json!({ "name": "page", "in": "query", "required": false,
                "schema": { "type": "string" } }));
            at(after, HOST, "/properties/health/oneOf")
                .as_array_mut()
                .unwrap()
                .push(json!({ "type": "object", "properties": { "probe": { "const": "tcp" } } }));
            at(after, GET, "/responses")
                .as_object_mut()
                .unwrap()
                .remove("404");
        });
        assert_eq!(found, Vec::<String>::new());
        assert_eq!(breaking_changes(&json!({}), &document()), None);
    }

    #[test]
    fn each_kind_of_breaking_change_is_found() {
        let gone = |pointer: &'static str, name: &'static str| {
            move |after: &mut Value| {
                let fields = after.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
                assert!(fields.remove(name).is_some(), "{name}");
            }
        };
        let set = |pointer: &'static str, name: &'static str, value: Value| {
            move |after: &mut Value| after.pointer_mut(pointer).unwrap()[name] = value
        };
        type Change = Box<dyn FnOnce(&mut Value)>;
        let cases: Vec<(Change, &[&str])> = vec![
            (
                Box::new(gone("/paths/~1v1~1hosts", "get")),
                &["GET /v1/hosts: the operation is gone"],
            ),
            (
                Box::new(set(GET, "security", json!([{ "token": [] }]))),
                &["GET /v1/hosts: it needs a token now"],
            ),
            (
                Box::new(set(GET, "operationId", json!("hosts"))),
                &["GET /v1/hosts: operationId is \"hosts\" now"],
            ),
            (
                Box::new(set(GET, "parameters", json!([]))),
                &["GET /v1/hosts: query parameter limit: it is gone"],
            ),
            (
                Box::new(set(
                    "/paths/~1v1~1hosts/get/parameters/0",
                    "required",
                    json!(true),
                )),
                &["GET /v1/hosts: query parameter limit: it is required now"],
            ),
            (
                Box::new(set(
                    "/paths/~1v1~1hosts/get/parameters/0/schema",
                    "maximum",
                    json!(100),
                )),
                &["GET /v1/hosts: query parameter limit: maximum is 100 now"],
            ),
            (
                Box::new(gone("/paths/~1v1~1hosts/get/responses/200/headers", "ETag")),
                &["GET /v1/hosts: answer 200: header ETag is not always there any more"],
            ),
            (
                Box::new(gone("/paths/~1v1~1hosts/get/responses", "200")),
                &["GET /v1/hosts: answer 200: it is gone"],
            ),
            (
                Box::new(gone("/components/schemas/Host/properties", "platform")),
                &[
                    "GET /v1/hosts: answer 200.platform: the field is gone",
                    "POST /v1/hosts: body.platform: the field is refused now",
                ],
            ),
            (
                Box::new(set(HOST, "required", json!([]))),
                &["GET /v1/hosts: answer 200.name: the field is not always there any more"],
            ),
            (
                Box::new(set(HOST, "required", json!(["name", "platform"]))),
                &["POST /v1/hosts: body.platform: the field is required now"],
            ),
            (
                Box::new(set(
                    "/components/schemas/Host/properties/platform",
                    "enum",
                    json!(["kvm"]),
                )),
                &["POST /v1/hosts: body.platform: \"esxi\" is refused now"],
            ),
            (
                Box::new(set(
                    "/components/schemas/Host/properties/name",
                    "pattern",
                    json!("^[a-f]+$"),
                )),
                &["POST /v1/hosts: body.name: pattern is \"^[a-f]+$\" now"],
            ),
            (
                Box::new(set(
                    "/components/schemas/Host/properties/switches",
                    "maxItems",
                    json!(2),
                )),
                &["POST /v1/hosts: body.switches: maxItems is 2 now"],
            ),
            (
                Box::new(set(
                    "/components/schemas/Host/properties/name",
                    "type",
                    json!(["string", "null"]),
                )),
                &["GET /v1/hosts: answer 200.name: its type is null or string now"],
            ),
            (
                Box::new(set(
                    "/components/schemas/Host/properties/health/oneOf/1/properties/port",
                    "type",
                    json!("string"),
                )),
                &[
                    "GET /v1/hosts: answer 200.health.port: its type is string now",
                    "POST /v1/hosts: body.health.port: its type is string now",
                ],
            ),
            (
                Box::new(gone("/paths/~1v1~1hosts/post", "requestBody")),
                &["POST /v1/hosts: body: it is refused now"],
            ),
        ];
        for (change, expected) in cases {
            assert_eq!(compare(change), expected);
        }
    }

    #[test]
    fn the_document_of_this_version_breaks_nothing_of_itself() {
        let document = crate::api::document();
        assert_eq!(breaking_changes(&document, &document), Some(Vec::new()));
    }
}
