//! Users as several operations find and refuse them.

use axum::http::StatusCode;
use control::Conflict;

use super::request::Call;
use crate::{
    audit::Subject,
    live::Live,
    people::{self, Actor, User},
    problem::Problem,
};

/// A user that the actor may know of. One of another tenant is answered as one that does not exist.
pub(super) fn found_user<'l>(
    live: &'l Live,
    actor: &Actor,
    name: &str,
) -> Result<&'l (User, control::Revision), Problem> {
    let found = live.users.get(name);
    let found = found.filter(|(user, _)| actor.tenant.is_none() || user.tenant == actor.tenant);
    found.ok_or_else(|| {
        let conflict = Conflict {
            kind: "user".to_owned(),
            tenant: None,
            name: name.to_owned(),
            field: "name".to_owned(),
            value: name.to_owned(),
        };
        let text = format!("user {name:?} does not exist: check the name with `list`");
        Problem::new(StatusCode::NOT_FOUND, "not-found", text).with(vec![conflict])
    })
}

/// The subject of a change of a user, in the audit of the user's tenant.
///
/// # Errors
/// The user does not exist, as far as the actor may know.
pub(super) async fn subject_of(call: &Call, name: &str) -> Result<Subject, Problem> {
    let live = call.director.live().await?;
    let (user, _) = found_user(&live, call.actor()?, name)?;
    call.subject("user", user.tenant.as_deref(), name)
}

/// Refuses a new password that is too short, or longer than a hash may take.
pub(super) fn check_password(password: &str) -> Result<(), Problem> {
    let invalid = |text| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", text);
    people::check_password(password).map_err(invalid)
}

pub(super) fn wrong_credentials() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "credentials",
        "the name or the password is wrong: check both",
    )
}
