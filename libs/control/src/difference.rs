//! The differences that a transaction makes to objects, for people and for the audit.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{State, Transaction};

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
    /// Fields of spec and status that differ. Empty for an object that is removed.
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

/// The differences that a transaction makes to the objects of a state, sorted by kind, tenant and
/// name. Claims and guards are not among them: they follow from objects.
#[must_use]
pub fn differences(state: &State, transaction: &Transaction) -> Vec<Difference> {
    let mut found = Vec::new();
    for (key, value) in &transaction.put {
        let after = serde_json::from_str::<Value>(value).unwrap_or_default();
        let before = state.value(key);
        let mut fields = Vec::new();
        for part in ["spec", "status"] {
            let before = before.as_ref().map_or(&Value::Null, |object| &object[part]);
            compare(part, before, &after[part], &mut fields);
        }
        let change = match before {
            Some(_) => ChangeOfObject::Changed,
            None => ChangeOfObject::Created,
        };
        found.extend(named(key, &after, change, fields));
    }
    for key in &transaction.delete {
        if let Some(before) = state.value(key) {
            found.extend(named(key, &before, ChangeOfObject::Removed, Vec::new()));
        }
    }
    found.sort_by(|a, b| (&a.kind, &a.tenant, &a.name).cmp(&(&b.kind, &b.tenant, &b.name)));
    found
}

/// The fields of two specs that differ. `before` is `null` for a new object.
#[must_use]
pub fn spec_differences(before: &Value, after: &Value) -> Vec<FieldDifference> {
    let mut fields = Vec::new();
    compare("spec", before, after, &mut fields);
    fields
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
fn compare(at: &str, before: &Value, after: &Value, fields: &mut Vec<FieldDifference>) {
    if before == after {
        return;
    }
    if let (Value::Object(old), Value::Object(new)) = (before, after) {
        let mut names: Vec<_> = old.keys().chain(new.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            compare(&format!("{at}.{name}"), &before[name], &after[name], fields);
        }
        return;
    }
    if let (Value::Null, Value::Object(new)) = (before, after) {
        for (name, value) in new {
            compare(&format!("{at}.{name}"), &Value::Null, value, fields);
        }
        return;
    }
    fields.push(FieldDifference {
        field: at.to_owned(),
        before: before.clone(),
        after: after.clone(),
    });
}
