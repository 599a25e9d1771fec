//! Schemas of the document (OpenAPI 3.1): those of types, and those that kinds of objects have.

use control::{Condition, NAME_PATTERN};
use serde_json::{Value, json};
use utoipa::{PartialSchema, ToSchema};

use super::{parameter::Schema, served::Served};

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

/// A reference to a schema of the document, by its name.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// A schema of this name, with those that it refers to.
pub(super) fn named(name: String, of: &[Schema], value: Value) -> Schema {
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
