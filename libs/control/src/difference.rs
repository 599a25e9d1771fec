//! The differences that a transaction makes to objects, for people and for the audit.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Kind, Object, State, Transaction};

/// One object that a transaction creates, changes or removes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Kind of the object.
    pub kind: String,
    /// Tenant of the object, if it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Name of the object.
    pub name: String,
    /// The effect on it.
    pub change: ChangeOfObject,
    /// Fields of owner, spec and status that differ; the spec of an object that is removed.
    pub fields: Vec<FieldDifference>,
}

/// The effect of a transaction on an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeOfObject {
    /// It is new.
    Created,
    /// It gets other values.
    Changed,
    /// It ceases to exist.
    Removed,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldDifference {
    /// The field, such as `spec.networks_with_internet`.
    pub field: String,
    /// The value before; `null` if there was none.
    pub before: Value,
    /// The value after; `null` if there is none.
    pub after: Value,
}

impl Difference {
    /// The difference of something that is no object of a kind; `None` where it is not.
    #[must_use]
    pub fn between(
        kind: &str,
        tenant: Option<&str>,
        name: &str,
        before: Option<&Value>,
        after: Option<&Value>,
    ) -> Self {
        let change = match (before, after) {
            (None, _) => ChangeOfObject::Created,
            (Some(_), Some(_)) => ChangeOfObject::Changed,
            (Some(_), None) => ChangeOfObject::Removed,
        };
        let none = Value::Object(serde_json::Map::new());
        let (before, after) = (before.unwrap_or(&none), after.unwrap_or(&none));
        let names = before.as_object().into_iter().flatten();
        let names = names.chain(after.as_object().into_iter().flatten());
        let mut names: Vec<_> = names.map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        let mut fields = Vec::new();
        for name in names {
            compare(name, before[name].clone(), after[name].clone(), &mut fields);
        }
        Self {
            kind: kind.to_owned(),
            tenant: tenant.map(ToOwned::to_owned),
            name: name.to_owned(),
            change,
            fields,
        }
    }
}

const OWNER: &str = "metadata.owner";

/// The differences that a transaction makes to the objects of a state, sorted by kind, tenant and
/// name. Claims and guards are not among them: they follow from objects. It reads the JSON of the
/// transaction; [`Accepted::differences`](crate::Accepted) are the same, and cost less.
#[must_use]
pub fn differences(state: &State, transaction: &Transaction) -> Vec<Difference> {
    let mut found = Vec::new();
    for (key, value) in &transaction.put {
        let after = serde_json::from_str::<Value>(value).unwrap_or_default();
        let before = state.value(key);
        let mut fields = Vec::new();
        let owner = |object: &Value| object["metadata"]["owner"].clone();
        let before_owner = before.as_ref().map_or(Value::Null, owner);
        compare(OWNER, before_owner, owner(&after), &mut fields);
        for part in ["spec", "status"] {
            let of = |object: &Value| object[part].clone();
            let before = before.as_ref().map_or(Value::Null, of);
            compare(part, before, of(&after), &mut fields);
        }
        let change = match before {
            Some(_) => ChangeOfObject::Changed,
            None => ChangeOfObject::Created,
        };
        found.extend(named(key, &after, change, fields));
    }
    for key in &transaction.delete {
        if let Some(before) = state.value(key) {
            let mut fields = Vec::new();
            gone("spec", before["spec"].clone(), &mut fields);
            found.extend(named(key, &before, ChangeOfObject::Removed, fields));
        }
    }
    sort(&mut found);
    found
}

/// The fields of two specs that differ. `before` is `null` for a new object.
#[must_use]
pub fn spec_differences(before: &Value, after: &Value) -> Vec<FieldDifference> {
    let mut fields = Vec::new();
    compare("spec", before.clone(), after.clone(), &mut fields);
    fields
}

/// The fields of spec and status of an object that differ. `before` is `None` for a new object.
pub(crate) fn of_object<K: Kind>(before: Option<&Object<K>>, after: &Object<K>) -> Difference {
    let mut fields = Vec::new();
    let owner = |object: &Object<K>| match &object.metadata.owner {
        Some(owner) => Value::from(owner.as_str()),
        None => Value::Null,
    };
    let before_owner = before.map_or(Value::Null, owner);
    compare(OWNER, before_owner, owner(after), &mut fields);
    part("spec", before.map(|o| &o.spec), &after.spec, &mut fields);
    part(
        "status",
        before.map(|o| &o.status),
        &after.status,
        &mut fields,
    );
    let change = match before {
        Some(_) => ChangeOfObject::Changed,
        None => ChangeOfObject::Created,
    };
    with_name(after, change, fields)
}

/// The removal of an object.
pub(crate) fn of_removed<K: Kind>(object: &Object<K>) -> Difference {
    // Specs always have a JSON form.
    let spec = serde_json::to_value(&object.spec).unwrap_or_default();
    let mut fields = Vec::new();
    gone("spec", spec, &mut fields);
    with_name(object, ChangeOfObject::Removed, fields)
}

/// The fields of a value that is no more.
fn gone(at: &str, before: Value, fields: &mut Vec<FieldDifference>) {
    match before {
        Value::Object(old) => {
            for (name, value) in old {
                gone(&format!("{at}.{name}"), value, fields);
            }
        }
        value => compare(at, value, Value::Null, fields),
    }
}

fn with_name<K: Kind>(
    object: &Object<K>,
    change: ChangeOfObject,
    fields: Vec<FieldDifference>,
) -> Difference {
    Difference {
        kind: K::KIND.to_owned(),
        tenant: object.metadata.tenant.clone(),
        name: object.metadata.name.clone(),
        change,
        fields,
    }
}

/// Compares a part of an object; equal ones get no JSON form.
fn part<T: Serialize + PartialEq>(
    name: &str,
    before: Option<&T>,
    after: &T,
    fields: &mut Vec<FieldDifference>,
) {
    if before == Some(after) {
        return;
    }
    // Specs and statuses always have a JSON form.
    let json = |value: &T| serde_json::to_value(value).unwrap_or_default();
    let before = before.map_or(Value::Null, json);
    compare(name, before, json(after), fields);
}

/// In the order of kind, tenant and name.
pub(crate) fn sort(differences: &mut [Difference]) {
    differences.sort_by(|a, b| (&a.kind, &a.tenant, &a.name).cmp(&(&b.kind, &b.tenant, &b.name)));
}

fn named(
    key: &str,
    object: &Value,
    change: ChangeOfObject,
    fields: Vec<FieldDifference>,
) -> Option<Difference> {
    let (kind, _) = key.split_once('/')?;
    let metadata = &object["metadata"];
    Some(Difference {
        kind: kind.to_owned(),
        tenant: metadata["tenant"].as_str().map(ToOwned::to_owned),
        name: metadata["name"].as_str()?.to_owned(),
        change,
        fields,
    })
}

/// Compares objects field by field, and other values as a whole.
fn compare(at: &str, before: Value, after: Value, fields: &mut Vec<FieldDifference>) {
    if before == after {
        return;
    }
    match (before, after) {
        (Value::Object(mut old), Value::Object(mut new)) => {
            let mut names: Vec<_> = old.keys().chain(new.keys()).cloned().collect();
            names.sort();
            names.dedup();
            for name in names {
                let both = [&mut old, &mut new].map(|o| o.remove(&name).unwrap_or_default());
                let [before, after] = both;
                compare(&format!("{at}.{name}"), before, after, fields);
            }
        }
        (Value::Null, Value::Object(new)) => {
            for (name, value) in new {
                compare(&format!("{at}.{name}"), Value::Null, value, fields);
            }
        }
        (before, after) => fields.push(FieldDifference {
            field: at.to_owned(),
            before,
            after,
        }),
    }
}
