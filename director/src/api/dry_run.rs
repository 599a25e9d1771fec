//! Dry runs: changes that are computed and not made.

use axum::http::StatusCode;
use control::{Difference, Revision};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{
    answer::{Answer, json_text},
    operation::Success,
    parameter::{Parameter, Schema, Values},
    schemas::{named, object_of, reference, schema},
    served::Served,
};
use crate::{change::Applied, problem::Problem};

/// Answer to a dry run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DryRun {
    /// All objects that the change would create, change or remove.
    #[schema(value_type = Vec<Object>)]
    differences: Vec<Difference>,
    /// Consequences to know of.
    warnings: Vec<String>,
}

pub(super) const DRY_RUN: Parameter = Parameter::new(
    "dry_run",
    Values::Flag,
    "Compute the change and answer its differences, without making it.",
);

/// The answer to a change or a dry run.
pub(super) fn changed(applied: Applied, dry_run: bool) -> Result<Answer, Problem> {
    if dry_run {
        let run = DryRun {
            differences: applied.differences,
            warnings: applied.warnings,
        };
        return json_text(&run);
    }
    let status = StatusCode::from_u16(applied.status).unwrap_or(StatusCode::OK);
    let revision: Revision = applied.body["metadata"]["revision"]
        .as_u64()
        .unwrap_or_default();
    let answer = Answer::json(status, &applied.body).tagged(revision);
    Ok(answer.with_warnings(&applied.warnings))
}

/// The answers of an operation that can be a dry run, besides one of another status than 200.
pub(super) fn with_dry_run(status: StatusCode, answer: Option<Schema>) -> Vec<Success> {
    vec![
        Success::json(status, answer),
        Success::json(StatusCode::OK, Some(schema::<DryRun>())),
    ]
}

/// The schema of an answer, or of a dry run.
pub(super) fn or_dry_run(answer: &Schema) -> Schema {
    either(&answer.name, answer.clone())
}

/// The schema of an object, or of a dry run.
pub(super) fn either_of<K: Served>() -> Schema {
    either(&K::name(), object_of::<K>())
}

fn either(name: &str, answer: Schema) -> Schema {
    let dry = schema::<DryRun>();
    let value = json!({ "anyOf": [reference(&answer.name), reference(&dry.name)] });
    named(format!("{name}OrDryRun"), &[answer, dry], value)
}
