//! A request, read strictly: whatever an operation does not know is refused.

use std::{collections::BTreeMap, sync::Arc};

use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use control::{Conflict, Kind, Object};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{
    answer::etag,
    parameter::{Parameter, Schema, Values},
};
use crate::{
    Director,
    audit::{Outcome, Subject, hex},
    people::Actor,
    problem::Problem,
};

/// Longest reason and longest `Idempotency-Key`, characters.
pub(super) const MAX_HEADER_LEN: usize = 256;
/// Entries on a page unless asked otherwise.
const PAGE_SIZE: u64 = 100;
/// Entries on a page at most.
pub(super) const LARGEST_PAGE: u64 = 1000;

/// A request of an operation.
pub struct Call {
    pub(super) director: Arc<Director>,
    pub(super) operation: String,
    /// `None` for operations without token.
    pub(super) actor: Option<Actor>,
    pub(super) token_hash: String,
    /// Address of the client, where it is known.
    pub(super) peer: Option<std::net::IpAddr>,
    /// Values in the path.
    pub(super) parameters: Vec<String>,
    pub(super) query: Query,
    pub(super) headers: HeaderMap,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Vec<u8>,
    /// The body, read once.
    pub(super) json: serde_json::Result<Value>,
}

impl Call {
    pub(super) fn actor(&self) -> Result<&Actor, Problem> {
        self.actor.as_ref().ok_or_else(Problem::no_token)
    }

    /// The body.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        read(&self.json)
    }

    /// A header that the client may send, as text on one line.
    fn header(&self, name: &HeaderName) -> Result<Option<String>, Problem> {
        let Some(value) = self.headers.get(name) else {
            return Ok(None);
        };
        let text = value.to_str().ok().filter(|text| {
            (1..=MAX_HEADER_LEN).contains(&text.len()) && !text.chars().any(char::is_control)
        });
        let text = text.ok_or_else(|| {
            Problem::bad_request(format!(
                "{name}: write 1 to {MAX_HEADER_LEN} characters of ASCII"
            ))
        })?;
        Ok(Some(text.to_owned()))
    }

    /// The reason of a change, in ASCII or in the form of RFC 8187 section 3.2: `UTF-8''` before
    /// percent-encoded text.
    fn reason(&self) -> Result<Option<String>, Problem> {
        let name = HeaderName::from_static("x-reason");
        let value = self
            .headers
            .get(&name)
            .and_then(|value| value.to_str().ok());
        let extended = value.and_then(extended);
        let Some(encoded) = extended else {
            return self.header(&name);
        };
        let text = decoded(encoded).filter(|text| {
            (1..=MAX_HEADER_LEN).contains(&text.chars().count())
                && !text.chars().any(char::is_control)
        });
        let text = text.ok_or_else(|| {
            Problem::bad_request(format!(
                "{name}: write 1 to {MAX_HEADER_LEN} characters on one line, percent-encoded as \
                 UTF-8 behind UTF-8''"
            ))
        })?;
        Ok(Some(text))
    }

    /// Checks `If-Match` against the object's revision: a list of entity tags, or `*` for every one
    /// (RFC 9110 section 13.1.1).
    pub(super) fn check_revision<K: Kind>(&self, found: &Object<K>) -> Result<(), Problem> {
        let Some(expected) = self.header(&header::IF_MATCH)? else {
            return Ok(());
        };
        let tag = etag(found.metadata.revision);
        if expected == "*" || expected.split(',').any(|expected| expected.trim() == tag) {
            return Ok(());
        }
        let conflict = Conflict {
            kind: K::KIND.to_owned(),
            tenant: found.metadata.tenant.clone(),
            name: found.name().to_owned(),
            field: "metadata.revision".to_owned(),
            value: found.metadata.revision.to_string(),
        };
        Err(Problem::moved(&expected, &tag).with(vec![conflict]))
    }

    /// Whether the object must not exist: `If-None-Match: *` (RFC 9110 section 13.1.2).
    pub(super) fn must_be_new(&self) -> Result<bool, Problem> {
        match self.header(&header::IF_NONE_MATCH)?.as_deref() {
            None => Ok(false),
            Some("*") => Ok(true),
            Some(_) => Err(Problem::bad_request(
                "if-none-match: write *, which says that the object must not exist",
            )),
        }
    }

    /// The key under which the answer is kept, and the hash of the request.
    pub(super) fn idempotency(&self) -> Result<Option<(String, String)>, Problem> {
        let name = HeaderName::from_static("idempotency-key");
        let Some(key) = self.header(&name)? else {
            return Ok(None);
        };
        let actor = self.actor()?;
        let key = format!("{}/{}", actor.user, hex(&Sha256::digest(key.as_bytes())));
        let mut hash = Sha256::new();
        for part in [
            self.method.as_str().as_bytes(),
            self.path.as_bytes(),
            self.query.text.as_bytes(),
            &self.body,
        ] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Ok(Some((key, hex(&hash.finalize()))))
    }

    /// The subject of the audit entry.
    pub(super) fn subject(
        &self,
        kind: &str,
        tenant: Option<&str>,
        name: &str,
    ) -> Result<Subject, Problem> {
        Ok(Subject {
            operation: self.operation.clone(),
            kind: kind.to_owned(),
            tenant: tenant.map(ToOwned::to_owned),
            name: name.to_owned(),
            reason: self.reason()?,
            address: self.peer,
            // Of a change that is carried out, `change` knows the status.
            outcome: Outcome::done(StatusCode::OK.as_u16()),
        })
    }

    /// The id of the last event that the client has seen.
    pub(super) fn last_event(&self) -> Result<Option<String>, Problem> {
        self.header(&HeaderName::from_static("last-event-id"))
    }
}

/// The first value in the path.
pub(super) fn first(call: &Call) -> &str {
    call.parameters.first().map_or("", String::as_str)
}

/// Refuses a body with a list where its schema has an object. serde would read the list as the
/// object's fields in their order, and an empty one as an object of defaults.
pub(super) fn refuse_lists_as_objects(schema: &Schema, body: &Value) -> Result<(), Problem> {
    let place = schema.all.iter().find(|(name, _)| *name == schema.name);
    let found = place.and_then(|(_, top)| list_as_object(&schema.all, top, body));
    found.map_or(Ok(()), |path| {
        let field = if path.is_empty() {
            "the body"
        } else {
            &path[1..]
        };
        let text = format!("{field} is a list: write an object of fields");
        Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid",
            text,
        ))
    })
}

/// The first field with a list where there must be an object, with a dot before each name.
fn list_as_object(all: &[(String, Value)], schema: &Value, value: &Value) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next()?;
        let (_, schema) = all.iter().find(|(known, _)| known == name)?;
        return list_as_object(all, schema, value);
    }
    for part in ["allOf", "oneOf", "anyOf"] {
        let parts = schema[part].as_array().into_iter().flatten();
        // No list is null: of a value that may be missing, the other choice decides.
        let parts = parts.filter(|part| part["type"] != "null");
        // Of choices, a list that is one of them is no error.
        let mut found: Vec<_> = parts.map(|part| list_as_object(all, part, value)).collect();
        if !found.is_empty() && found.iter().all(Option::is_some) {
            return found.swap_remove(0);
        }
    }
    match value {
        Value::Array(_) if schema["type"] == "object" => Some(String::new()),
        Value::Array(items) => {
            let mut items = items.iter();
            items.find_map(|item| list_as_object(all, &schema["items"], item))
        }
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let inner = list_as_object(all, &schema["properties"][name], value)?;
            Some(format!(".{name}{inner}"))
        }),
        _ => None,
    }
}

/// The pairs of a query: the text of each, and its name and value; `None` where these are not
/// encoded as UTF-8.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, Option<(String, String)>)> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (pair, decoded(name).zip(decoded(value)))
    })
}

/// The parameters of a query.
pub struct Query {
    values: BTreeMap<String, String>,
    text: String,
}

impl Query {
    /// Reads a query with only these parameters, each once.
    pub(super) fn parse(text: &str, known: &[Parameter]) -> Result<Self, Problem> {
        let mut values = BTreeMap::new();
        for (pair, both) in pairs(text) {
            let (name, value) = both.ok_or_else(|| {
                Problem::bad_request(format!("{pair:?} of the query is not encoded as UTF-8"))
            })?;
            let Some(parameter) = known.iter().find(|parameter| parameter.name == name) else {
                let known: Vec<_> = known.iter().map(|parameter| parameter.name).collect();
                return Err(Problem::bad_request(format!(
                    "{name:?} is no parameter of this operation; its parameters are: {}",
                    if known.is_empty() {
                        "none".to_owned()
                    } else {
                        known.join(", ")
                    }
                )));
            };
            if let Err(rule) = check(parameter.values, &value) {
                return Err(Problem::bad_request(format!("{name}: {value:?}: {rule}")));
            }
            if values.insert(name.clone(), value).is_some() {
                return Err(Problem::bad_request(format!(
                    "{name:?} was sent twice: send it once"
                )));
            }
        }
        let is_missing = |p: &&Parameter| p.is_required && !values.contains_key(p.name);
        if let Some(missing) = known.iter().find(is_missing) {
            let name = missing.name;
            return Err(Problem::bad_request(format!("{name} is missing: send it")));
        }
        Ok(Self {
            values,
            text: text.to_owned(),
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Whether a flag is `true`; false if it is omitted.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(Problem::bad_request(format!(
                "{name}: {other:?}: write true or false"
            ))),
        }
    }

    /// How many entries a page is to have.
    pub(super) fn limit(&self) -> Result<u64, Problem> {
        self.number("limit", PAGE_SIZE, 1..=LARGEST_PAGE)
    }

    /// A number within bounds.
    pub(super) fn number(
        &self,
        name: &str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, Problem> {
        let Some(text) = self.get(name) else {
            return Ok(default);
        };
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            Problem::bad_request(format!(
                "{name}: {text:?}: write a number from {} to {}",
                range.start(),
                range.end()
            ))
        })
    }
}

/// Whether a parameter may have this value; what to write otherwise.
fn check(values: Values, value: &str) -> Result<(), String> {
    let (fits, rule) = match values {
        Values::Flag => (matches!(value, "true" | "false"), "write true or false"),
        Values::Number { least, most } => {
            let is_decimal = value.bytes().all(|byte| byte.is_ascii_digit());
            let number = value.parse().ok().filter(|_| is_decimal);
            let fits = number.is_some_and(|number| (least..=most).contains(&number));
            return match fits {
                true => Ok(()),
                false => Err(format!("write a number from {least} to {most}")),
            };
        }
        Values::Kind => (
            control::kind(value).is_some(),
            "is no kind: write one such as vlan-pool",
        ),
        Values::Name => (control::is_name(value), control::NAME_RULE),
        Values::Page => (
            value.len().is_multiple_of(2) && value.bytes().all(|b| b.is_ascii_hexdigit()),
            "write the `next` of the page before, or omit it",
        ),
        Values::Header | Values::Text | Values::Any => (true, ""),
    };
    match fits {
        true => Ok(()),
        false => Err(rule.to_owned()),
    }
}

/// The encoded part of a text in the extended form: the character set, which is UTF-8 here, a
/// language, which may be empty, and the text.
fn extended(value: &str) -> Option<&str> {
    let (charset, rest) = value.split_once('\'')?;
    let (language, text) = rest.split_once('\'')?;
    let is_tag = language
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (charset.eq_ignore_ascii_case("UTF-8") && is_tag).then_some(text)
}

/// The value of a body.
fn read<T: DeserializeOwned>(json: &serde_json::Result<Value>) -> Result<T, Problem> {
    let value = json
        .as_ref()
        .map_err(|error| Problem::bad_request(format!("the body is not JSON: {error}")))?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let (path, inner) = (error.path().to_string(), error.inner());
        let text = match path.as_str() {
            "." => format!("the body cannot be read: {inner}"),
            path => format!("the body cannot be read: {path}: {inner}"),
        };
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", text)
    })
}

/// Percent-decoded text (RFC 3986 section 2.1); `None` if it is not UTF-8 then.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || (rest.next()? as char).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        bytes.push(u8::try_from(16 * high + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_that_is_written_twice_is_refused() {
        let body = br#"{ "name": "a", "role": "tenant-operator", "role": "provider-admin" }"#;
        let refused = read::<Value>(&control::json::parse(body)).expect_err("a repeated key");
        let text = format!("{refused:?}");
        assert!(text.contains("is written twice: write it once"), "{text}");
        assert!(
            read::<Value>(&control::json::parse(
                br#"{ "name": "a", "spec": { "name": "a" } }"#
            ))
            .is_ok()
        );
    }

    #[test]
    fn a_list_is_no_object_also_where_the_object_may_be_missing() {
        let all = [("Health".to_owned(), json!({ "type": "object" }))];
        let reference = json!({ "$ref": "#/components/schemas/Health" });
        let nullable = json!({ "oneOf": [{ "type": "null" }, reference] });
        let schema = json!({ "properties": { "health": nullable } });
        let found = |value: Value| list_as_object(&all, &schema, &json!({ "health": value }));
        assert_eq!(found(json!(["tcp", 5432])).as_deref(), Some(".health"));
        assert_eq!(found(json!({ "probe": "tcp" })), None);
        assert_eq!(found(Value::Null), None);
    }

    #[test]
    fn extended_texts_have_a_character_set_and_a_language() {
        for (value, expected) in [
            ("UTF-8''W%C3%BCnsche", Some("W%C3%BCnsche")),
            ("utf-8'de'W%C3%BCnsche", Some("W%C3%BCnsche")),
            ("ISO-8859-1''W%FCnsche", None),
            ("it's John's", None),
            ("UTF-8 is used", None),
        ] {
            assert_eq!(extended(value), expected, "{value}");
        }
    }

    #[test]
    fn percent_encoding_is_decoded_strictly() {
        assert_eq!(decoded("a%2Fb%20%c3%bc").as_deref(), Some("a/b ü"));
        for wrong in ["%", "%2", "%zz", "%ff", "%c3"] {
            assert_eq!(decoded(wrong), None, "{wrong}");
        }
    }
}
