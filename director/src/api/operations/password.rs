//! Changes of passwords: one's own by the one before, another user's by an administrator.
//!
//! A change ends the user's sessions and tokens, as they may be those of a thief of the password
//! before. One's own change leaves the token of the request.

use std::net::IpAddr;

use axum::http::{Method, StatusCode};
use control::{Precondition, Revision, Transaction};
use serde::{Deserialize, Serialize};
use tokio::{sync::SemaphorePermit, task::spawn_blocking};
use utoipa::ToSchema;

use crate::{
    Director,
    api::{
        answer::{Answer, body},
        authorize::authorize,
        dry_run::{DRY_RUN, changed, or_dry_run},
        operation::{Operation, Success},
        request::{Call, first},
        schemas::schema,
        users::{check_password, found_user, subject_of},
    },
    change::{Planned, Wanted},
    live::Live,
    people::{Actor, MAX_PASSWORD_BYTES, TOKENS, USERS, User, hash_password, is_password},
    problem::Problem,
    roles::{ObjectGroup, Verb},
};

/// Time after which there should be a place among those whose passwords are checked, seconds.
const QUEUE_RETRY_SECONDS: u64 = 5;

/// One's own new password.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct OwnPassword {
    /// The password before; omitted by a user who has none yet.
    #[serde(default)]
    current: Option<String>,
    /// The new password: 12 characters to 1024 bytes.
    #[schema(min_length = 12, max_length = 1024)]
    password: String,
}

/// Another user's new password.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    /// The new password: 12 characters to 1024 bytes.
    #[schema(min_length = 12, max_length = 1024)]
    password: String,
}

/// The effect of a change of a password.
#[derive(Debug, Serialize, ToSchema)]
struct PasswordChanged {
    /// Number of the user's tokens, of sessions and of programs, that the change has ended.
    ended: usize,
}

pub(super) fn register(all: &mut Vec<Operation>) {
    let success = || {
        let answer = or_dry_run(&schema::<PasswordChanged>());
        vec![Success::json(StatusCode::OK, Some(answer))]
    };
    all.push(Operation {
        body: Some(schema::<OwnPassword>()),
        query: vec![DRY_RUN],
        success: success(),
        ..Operation::new(
            "self.password.replace",
            Method::PUT,
            "/v1/self/password",
            "Change your password, and end all your tokens but the one of the request.",
            |call| Box::pin(replace_own(call)),
        )
    });
    all.push(Operation {
        body: Some(schema::<NewPassword>()),
        query: vec![DRY_RUN],
        success: success(),
        ..Operation::new(
            "user.password.replace",
            Method::PUT,
            "/v1/users/{name}/password",
            "Change the password of another user, and end all tokens of that user.",
            |call| Box::pin(replace_of_other(call)),
        )
    });
}

/// One of the few checks and hashes of passwords at a time. Some requests wait for it, and further
/// ones are refused: a client leaves permits for others.
async fn permit(director: &Director, peer: Option<IpAddr>) -> Result<SemaphorePermit<'_>, Problem> {
    let Some(_queued) = director.password_queue.try_acquire(peer) else {
        return Err(Problem::too_many("too many passwords are being checked")
            .retry_after(QUEUE_RETRY_SECONDS));
    };
    // The semaphore is never closed.
    let permit = director.passwords.acquire().await;
    permit.map_err(|error| Problem::internal(&error))
}

/// Whether a password has this hash, as one of the few checks at a time.
pub(super) async fn verified(call: &Call, password: String, hash: String) -> Result<bool, Problem> {
    if password.len() > MAX_PASSWORD_BYTES {
        return Ok(false);
    }
    let _permit = permit(&call.director, call.peer).await?;
    let checked = spawn_blocking(move || is_password(&password, &hash)).await;
    checked.map_err(|error| Problem::internal(&error))
}

/// The hash of a new password, as one of the few checks at a time.
pub(super) async fn hashed(call: &Call, password: String) -> Result<String, Problem> {
    let environment = std::sync::Arc::clone(&call.director.environment);
    let _permit = permit(&call.director, call.peer).await?;
    let hashed = spawn_blocking(move || hash_password(&password, &*environment)).await;
    let hashed = hashed.map_err(|error| Problem::internal(&error))?;
    hashed.map_err(|error| Problem::internal(&error))
}

fn invalid(text: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", text)
}

/// Someone with a stolen token must not guess the password: after some wrong ones the user waits,
/// as with codes.
async fn replace_own(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let new: OwnPassword = call.read()?;
    let director = &call.director;
    let before = {
        let live = director.live().await?;
        let (user, _) = live.users.get(&actor.user).ok_or_else(Problem::no_token)?;
        refuse_machine(user)?;
        user.password.clone()
    };
    check_password(&new.password)?;
    // Apart from the codes of a log-in; no name has a space.
    let tries = format!("password {}", actor.user);
    match (&before, new.current) {
        (None, None) => {}
        (None, Some(_)) => {
            return Err(invalid("current: you have no password yet: omit it"));
        }
        (Some(_), None) => {
            return Err(invalid("current: write your password before this change"));
        }
        (Some(hash), Some(current)) => {
            if current == new.password {
                return Err(invalid(
                    "password: it equals the current one: choose another",
                ));
            }
            let now = director.environment.monotonic();
            let attempt = director.attempts.begin(&tries, now).await?;
            if !verified(&call, current, hash.clone()).await? {
                // The token is right: only the password is refused.
                attempt.wrong();
                tracing::warn!(user = actor.user, "present password refused");
                return Err(Problem::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "wrong-password",
                    "current: it is not your password: check it",
                ));
            }
            attempt.right();
        }
    }
    let hash = hashed(&call, new.password).await?;
    let subject = call.subject("user", actor.tenant.as_deref(), &actor.user)?;
    let wanted = wanted(&call, actor, subject)?;
    let dry_run = wanted.dry_run;
    let done = director.change(wanted, |live, _| {
        let (user, revision) = live.users.get(&actor.user).ok_or_else(Problem::no_token)?;
        if user.password != before {
            let text = "your password has changed meanwhile: log in, and try again";
            return Err(Problem::user(text, user, "password", "another one"));
        }
        replaced(live, user, *revision, &hash, Some(&actor.token))
    });
    let done = done.await?;
    if dry_run {
        return changed(done, true);
    }
    Ok(Answer::json(StatusCode::OK, &done.body))
}

async fn replace_of_other(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let name = first(&call);
    authorize(actor, ObjectGroup::People, Verb::Write, None)?;
    let new: NewPassword = call.read()?;
    let director = &call.director;
    {
        let live = director.live().await?;
        let (user, _) = found_user(&live, actor, name)?;
        refuse_machine(user)?;
        if name == actor.user {
            // An administrator's stolen token must not take over the account.
            let text = "this is your own password: change it with PUT /v1/self/password";
            return Err(Problem::user(text, user, "name", name));
        }
    }
    check_password(&new.password)?;
    let hash = hashed(&call, new.password).await?;
    let subject = subject_of(&call, name).await?;
    let wanted = wanted(&call, actor, subject)?;
    let dry_run = wanted.dry_run;
    let done = director.change(wanted, |live, _| {
        let (user, revision) = found_user(live, actor, name)?;
        replaced(live, user, *revision, &hash, None)
    });
    let done = done.await?;
    if dry_run {
        return changed(done, true);
    }
    Ok(Answer::json(StatusCode::OK, &done.body))
}

fn wanted<'a>(
    call: &Call,
    actor: &'a Actor,
    subject: crate::audit::Subject,
) -> Result<Wanted<'a>, Problem> {
    Ok(Wanted {
        actor,
        subject,
        dry_run: call.query.flag("dry_run")?,
        status: StatusCode::OK.as_u16(),
        idempotency: None,
    })
}

fn refuse_machine(user: &User) -> Result<(), Problem> {
    if user.role.machine().is_none() {
        return Ok(());
    }
    let text = "a machine has tokens only, and no password: make it another token";
    let object = user.object.as_deref().unwrap_or_default();
    Err(Problem::user(text, user, "object", object))
}

/// Writes the hash and deletes the user's tokens, except the one with the id `kept`.
fn replaced(
    live: &Live,
    user: &User,
    revision: Revision,
    hash: &str,
    kept: Option<&str>,
) -> Result<Planned, Problem> {
    let changed = User {
        password: Some(hash.to_owned()),
        ..user.clone()
    };
    let mut transaction = Transaction::default();
    let key = format!("{USERS}{}", user.name);
    transaction
        .preconditions
        .insert(key.clone(), Precondition::At(revision));
    transaction.put.insert(key, body(&changed)?.to_string());
    for (hash, (token, _)) in &live.tokens {
        if token.user == user.name && Some(token.id.as_str()) != kept {
            transaction.delete.insert(format!("{TOKENS}{hash}"));
        }
    }
    let ended = transaction.delete.len();
    Ok(Planned {
        transaction,
        body: body(&PasswordChanged { ended })?,
        warnings: Vec::new(),
        differences: Vec::new(),
    })
}
