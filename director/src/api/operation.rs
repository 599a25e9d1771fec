//! An operation: its description for the document, and its handler.

use std::{future::Future, pin::Pin};

use axum::http::{Method, StatusCode};

use super::{
    answer::Answer,
    parameter::{Parameter, Schema},
    request::Call,
};
use crate::problem::Problem;

/// The future of a handler.
pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Answer, Problem>> + Send>>;

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
