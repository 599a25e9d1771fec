//! The API: one table of operations, which is both the router and the document.
//!
//! ```text
//!   request ─▶ find the operation ─▶ token ─▶ actor ─▶ query, body ─▶ handler ─▶ Answer | Problem
//!              │ none: 404, 405                        │ 400, 413, 415, 422
//!              └ the same table ─▶ document (OpenAPI 3.1)
//! ```
//!
//! Extractors of axum are not used: their refusals would not be in the document.
//!
//! Modules depend on those to their right:
//!
//! ```text
//!   router ─▶ operations: table ─┬─▶ handlers ─▶ users, dry_run ─┬─▶ operation ─▶ request, answer
//!                                └─▶ document ───────────────────┴─▶ schemas ─▶ served, parameter
//! ```

mod answer;
mod authorize;
mod compatibility;
mod document;
mod dry_run;
mod operation;
mod operations;
mod parameter;
mod request;
mod router;
mod schemas;
mod seen;
mod served;
mod users;

pub use answer::Answer;
pub use compatibility::breaking_changes;
pub use operation::Operation;
pub use operations::{document, operations};
pub use router::{MAX_BODY, router};
