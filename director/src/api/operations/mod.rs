//! The table of operations, with the handlers of each. Router and document are made of it.

mod machines;
mod objects;
mod password;
mod people;
mod records;
mod status;
mod tokens;
mod totp;
mod usage;
mod watch;

use std::sync::LazyLock;

use axum::http::{Method, StatusCode};
use serde_json::Value;

use super::{
    answer::Answer,
    operation::{Operation, Success},
};

/// The document, which is the same for all requests. To make it takes longer than a request may.
pub(super) static DOCUMENT: LazyLock<String> = LazyLock::new(|| document().to_string());

/// All operations.
#[must_use]
pub fn operations() -> Vec<Operation> {
    let mut all = Vec::new();
    people::register(&mut all);
    totp::register(&mut all);
    password::register(&mut all);
    tokens::register(&mut all);
    objects::register(&mut all);
    machines::register(&mut all);
    usage::register(&mut all);
    status::register(&mut all);
    records::register(&mut all);
    all.push(openapi());
    watch::register(&mut all);
    all
}

/// The OpenAPI document of all operations, with the schemas that they use.
#[must_use]
pub fn document() -> Value {
    super::document::of(&operations())
}

fn openapi() -> Operation {
    Operation {
        success: vec![Success::json(StatusCode::OK, None)],
        is_public: true,
        ..Operation::new(
            "openapi",
            Method::GET,
            "/v1/openapi.json",
            "Get this document.",
            |_| Box::pin(async { Ok(Answer::text(StatusCode::OK, DOCUMENT.clone())) }),
        )
    }
}
