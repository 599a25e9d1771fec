//! The table of operations.

use std::{future::Future, pin::Pin};

use axum::http::{Method, StatusCode};
use serde_json::Value;

use super::{
    answer::{Answer, Problem},
    objects, people, records,
    request::Call,
    watch,
};

/// The future of a handler.
pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Answer, Problem>> + Send>>;

/// A parameter of a query.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    pub name: &'static str,
    /// Type in JSON Schema: `boolean`, `integer` or `string`.
    pub kind: &'static str,
    pub description: &'static str,
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
    pub(super) const fn new(
        name: &'static str,
        kind: &'static str,
        description: &'static str,
    ) -> Self {
        Self {
            name,
            kind,
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
    objects::register(&mut all);
    records::register(&mut all);
    watch::register(&mut all);
    all
}
