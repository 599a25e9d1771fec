//! The table of operations.

use std::{future::Future, pin::Pin};

use axum::http::{Method, StatusCode};
use serde_json::Value;

use super::{
    answer::{Answer, Problem},
    machines, objects, password, people, records,
    request::Call,
    status, tokens, usage, watch,
};

/// The future of a handler.
pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Answer, Problem>> + Send>>;

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

/// The answer of an operation that succeeds.
#[derive(Clone, Debug)]
pub struct Success {
    /// Status of HTTP.
    pub status: StatusCode,
    /// Content; `None` for no content.
    pub schema: Option<Schema>,
    pub content_type: &'static str,
    /// Headers that clients may use.
    pub headers: &'static [ResponseHeader],
}

/// A header of an answer.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHeader {
    pub name: &'static str,
    /// Whether each such answer has it.
    pub is_always: bool,
    pub description: &'static str,
}

/// An operation of the API.
#[derive(Clone)]
pub struct Operation {
    /// Unique, stable: `vlan-pool.create`.
    pub id: String,
    pub method: Method,
    /// Path, with placeholders in braces.
    pub path: String,
    /// One line of description.
    pub summary: String,
    /// Further description, for callers; may be empty.
    pub description: &'static str,
    /// Parameters of the query.
    pub query: Vec<Parameter>,
    /// Headers that the operation reads.
    pub headers: Vec<Parameter>,
    /// Content of the request; `None` for no content.
    pub body: Option<Schema>,
    /// The answer.
    pub success: Vec<Success>,
    /// Whether it needs no token.
    pub is_public: bool,
    pub(super) handler: fn(Call) -> Answering,
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

impl Success {
    /// An answer in JSON.
    pub(super) const fn json(status: StatusCode, schema: Option<Schema>) -> Self {
        Self {
            status,
            schema,
            content_type: "application/json",
            headers: &[],
        }
    }

    /// The same, with these headers.
    pub(super) fn with(self, headers: &'static [ResponseHeader]) -> Self {
        Self { headers, ..self }
    }
}

impl ResponseHeader {
    /// A header that each such answer has.
    pub(super) const fn always(name: &'static str, description: &'static str) -> Self {
        Self {
            name,
            is_always: true,
            description,
        }
    }

    /// A header that some of these answers have.
    pub(super) const fn sometimes(name: &'static str, description: &'static str) -> Self {
        Self {
            is_always: false,
            ..Self::always(name, description)
        }
    }
}

impl Operation {
    /// An operation that needs a token, with no parameters, content or answer yet.
    pub(super) fn new(
        id: impl Into<String>,
        method: Method,
        path: impl Into<String>,
        summary: impl Into<String>,
        handler: fn(Call) -> Answering,
    ) -> Self {
        Self {
            id: id.into(),
            method,
            path: path.into(),
            summary: summary.into(),
            description: "",
            query: Vec::new(),
            headers: Vec::new(),
            body: None,
            success: Vec::new(),
            is_public: false,
            handler,
        }
    }
}

/// All operations.
#[must_use]
pub fn operations() -> Vec<Operation> {
    let mut all = Vec::new();
    people::register(&mut all);
    password::register(&mut all);
    tokens::register(&mut all);
    objects::register(&mut all);
    machines::register(&mut all);
    usage::register(&mut all);
    status::register(&mut all);
    records::register(&mut all);
    watch::register(&mut all);
    all
}
