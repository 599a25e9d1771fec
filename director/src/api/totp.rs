//! Authenticators of users.

use std::sync::PoisonError;

use axum::http::StatusCode;
use control::{Precondition, Transaction};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{
    answer::{Answer, Problem},
    objects::authorize,
    people::{Code, ShownAuthenticator, body, first, found_user, subject_of},
    request::Call,
};
use crate::{
    Director,
    change::{Planned, Wanted},
    people::{USERS, User},
    roles::{ObjectGroup, Verb},
    totp::Authenticator,
};

/// Wrong codes in a row after which a user waits. A guesser with the password would need a million
/// tries otherwise, which are some hours.
const MAX_WRONG_CODES: u32 = 5;
/// Time that the user waits.
const LOCKOUT: SignedDuration = SignedDuration::from_mins(15);

/// The password is right, and a code is missing.
pub(super) fn missing() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "code",
        "the user has an authenticator: send its present code as `code`, or a recovery code",
    )
}

/// Refuses a user who has sent wrong codes.
pub(super) fn check_lockout(
    director: &Director,
    user: &str,
    now: Timestamp,
) -> Result<(), Problem> {
    let mut wrong = lock(director);
    // Users who waited long enough are forgotten.
    wrong.retain(|_, (_, last)| now.duration_since(*last) < LOCKOUT);
    match wrong.get(user) {
        Some((count, _)) if *count >= MAX_WRONG_CODES => Err(Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many",
            format!(
                "{MAX_WRONG_CODES} codes or passwords in a row were wrong: wait for {} minutes, \
                 or ask an administrator for help",
                LOCKOUT.as_mins()
            ),
        )),
        Some(_) | None => Ok(()),
    }
}

fn lock(
    director: &Director,
) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, (u32, Timestamp)>> {
    director
        .wrong_codes
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// Counts a wrong code or password.
pub(super) fn count_wrong(director: &Director, user: &str, now: Timestamp) {
    let mut wrong = lock(director);
    let (count, last) = wrong.entry(user.to_owned()).or_insert((0, now));
    *count += 1;
    *last = now;
}

/// Counts a wrong code.
pub(super) fn wrong(director: &Director, user: &str, now: Timestamp) -> Problem {
    count_wrong(director, user, now);
    tracing::warn!(user, "code of an authenticator refused");
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "wrong-code",
        "the code is wrong, or was used already: wait for the next one, and check the clock of the \
         authenticator",
    )
}

/// Forgets wrong codes of a user.
pub(super) fn forgive(director: &Director, user: &str) {
    lock(director).remove(user);
}

/// A change of a user's authenticator.
async fn change(
    call: &Call,
    name: &str,
    status: StatusCode,
    after: impl Fn(&User, Timestamp) -> Result<Option<Authenticator>, Problem>,
) -> Result<(), Problem> {
    let actor = call.actor()?;
    let wanted = Wanted {
        actor,
        subject: subject_of(call, name).await?,
        dry_run: false,
        status: status.as_u16(),
        idempotency: None,
    };
    let done = call.director.change(wanted, |live, origin| {
        let (user, revision) = found_user(live, actor, name)?;
        let changed = User {
            totp: after(user, origin.now)?,
            ..user.clone()
        };
        let mut transaction = Transaction::default();
        let key = format!("{USERS}{name}");
        transaction
            .preconditions
            .insert(key.clone(), Precondition::At(*revision));
        transaction.put.insert(key, body(&changed)?.to_string());
        Ok(Planned {
            transaction,
            body: Value::Null,
            warnings: Vec::new(),
            differences: Vec::new(),
        })
    });
    done.await.map(drop)
}

pub(super) async fn create(call: Call) -> Result<Answer, Problem> {
    let name = call.actor()?.user.clone();
    let new = Authenticator::generate(&*call.director.environment);
    let new = new.map_err(|error| Problem::internal(&error))?;
    change(&call, &name, StatusCode::CREATED, |user, _| {
        let conflict = |text: &str| Err(Problem::new(StatusCode::CONFLICT, "conflict", text));
        if user.password.is_none() {
            return conflict(
                "an authenticator needs a user with a password; users of programs use tokens",
            );
        }
        if user.totp.as_ref().is_some_and(|totp| totp.is_confirmed) {
            return conflict(
                "you have an authenticator: ask an administrator to remove it, then make another",
            );
        }
        Ok(Some(new.authenticator.clone()))
    })
    .await?;
    let shown = ShownAuthenticator {
        uri: format!(
            "otpauth://totp/Causeway:{name}?secret={}&issuer=Causeway",
            new.secret
        ),
        secret: new.secret,
        recovery: new.recovery,
    };
    Ok(Answer::json(StatusCode::CREATED, &body(&shown)?))
}

pub(super) async fn confirm(call: Call) -> Result<Answer, Problem> {
    let name = call.actor()?.user.clone();
    let Code { code } = call.read()?;
    check_lockout(&call.director, &name, call.director.environment.now())?;
    change(&call, &name, StatusCode::NO_CONTENT, |user, now| {
        let Some(totp) = &user.totp else {
            let text = "you have no authenticator: make one with POST first";
            return Err(Problem::new(StatusCode::CONFLICT, "conflict", text));
        };
        match totp.accept(&code, now) {
            Some(accepted) => Ok(Some(accepted)),
            None => {
                // The token is right: only the code is refused.
                let _counted = wrong(&call.director, &name, now);
                Err(Problem::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "wrong-code",
                    "the code is wrong, or was used already: wait for the next one",
                ))
            }
        }
    })
    .await?;
    Ok(Answer::done())
}

pub(super) async fn remove(call: Call) -> Result<Answer, Problem> {
    authorize(call.actor()?, ObjectGroup::People, Verb::Write, None)?;
    let name = first(&call).to_owned();
    change(&call, &name, StatusCode::NO_CONTENT, |_, _| Ok(None)).await?;
    forgive(&call.director, &name);
    Ok(Answer::done())
}
