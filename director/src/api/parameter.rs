//! Parameters and schemas of operations.

use serde_json::Value;

/// A parameter of a query, or a header.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    pub name: &'static str,
    /// Its bounds or values.
    pub values: Values,
    /// Whether a request must have it.
    pub is_required: bool,
    pub description: &'static str,
}

/// Values of a parameter. The document shows them, and [`Query`](super::request::Query) refuses
/// any other before the operation sees the request.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// `true` or `false`.
    Flag,
    /// A number within these bounds.
    Number { least: u64, most: u64 },
    /// The name of a kind of objects.
    Kind,
    /// The name of an object.
    Name,
    /// A token of a page: hexadecimal digits, two for each byte.
    Page,
    /// A header of 1 to 256 characters of ASCII.
    Header,
    /// A header that is `*`.
    Any,
    /// A header of 1 to 256 characters: ASCII, or any others in the form of RFC 8187.
    Text,
}

/// A schema of the document, by name.
#[derive(Clone, Debug)]
pub struct Schema {
    /// Name, among the components.
    pub name: String,
    /// The schema, and those that it refers to.
    pub all: Vec<(String, Value)>,
}

impl Parameter {
    /// A parameter that may be omitted.
    pub(super) const fn new(name: &'static str, values: Values, description: &'static str) -> Self {
        Self {
            name,
            values,
            is_required: false,
            description,
        }
    }
}
