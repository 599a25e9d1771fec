//! Authenticators of users.

use axum::http::{Method, StatusCode};
use control::{Precondition, Transaction};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    api::{
        answer::{Answer, body},
        authorize::authorize,
        dry_run::{DRY_RUN, changed, with_dry_run},
        operation::{Operation, Success},
        request::{Call, first},
        schemas::schema,
        users::{found_user, subject_of},
    },
    authentication::WRONG_CODE,
    change::{Applied, Planned, Wanted},
    people::{Authenticator, USERS, User},
    problem::Problem,
    roles::{ObjectGroup, Verb},
};

/// A new authenticator. Secret and recovery codes are shown this once.
#[derive(Debug, Serialize, ToSchema)]
struct ShownAuthenticator {
    /// The secret, base32.
    secret: String,
    /// The same for authenticators, as a URI.
    uri: String,
    /// Codes that are accepted once each, for a lost authenticator.
    recovery: Vec<String>,
}

/// A code of an authenticator.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Code {
    code: String,
}

pub(super) fn register(all: &mut Vec<Operation>) {
    all.push(Operation {
        query: vec![DRY_RUN],
        success: with_dry_run(StatusCode::CREATED, Some(schema::<ShownAuthenticator>())),
        ..Operation::new(
            "self.totp.create",
            Method::POST,
            "/v1/self/totp",
            "Make an authenticator of yours, to be confirmed by a code.",
            |call| Box::pin(create(call)),
        )
    });
    all.push(Operation {
        body: Some(schema::<Code>()),
        description: "There is no dry run: a code is accepted once, and each one that is tried \
                      counts.",
        success: vec![Success::json(StatusCode::NO_CONTENT, None)],
        ..Operation::new(
            "self.totp.confirm",
            Method::PUT,
            "/v1/self/totp",
            "Confirm your authenticator: from then on, a log-in takes a code.",
            |call| Box::pin(confirm(call)),
        )
    });
    all.push(Operation {
        query: vec![DRY_RUN],
        success: with_dry_run(StatusCode::NO_CONTENT, None),
        ..Operation::new(
            "user.totp.remove",
            Method::DELETE,
            "/v1/users/{name}/totp",
            "Remove the authenticator of a user.",
            |call| Box::pin(remove(call)),
        )
    });
}

/// The password is right, and a code is missing.
pub(super) fn missing() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "code",
        "the user has an authenticator: send its present code as `code`, or a recovery code",
    )
}

/// The code is wrong. The caller counts it.
pub(super) fn wrong(user: &str) -> Problem {
    tracing::warn!(user, "code of an authenticator refused");
    Problem::new(
        StatusCode::UNAUTHORIZED,
        WRONG_CODE,
        "the code is wrong, or was used already: wait for the next one, and check the clock of the \
         authenticator",
    )
}

/// A change of a user's authenticator.
async fn change(
    call: &Call,
    name: &str,
    status: StatusCode,
    after: impl Fn(&User, Timestamp) -> Result<Option<Authenticator>, Problem> + Sync,
) -> Result<Applied, Problem> {
    let actor = call.actor()?;
    let wanted = Wanted {
        actor,
        subject: subject_of(call, name).await?,
        dry_run: call.query.flag("dry_run")?,
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
    done.await
}

async fn create(call: Call) -> Result<Answer, Problem> {
    let name = call.actor()?.user.clone();
    let new = Authenticator::generate(&*call.director.environment);
    let new = new.map_err(|error| Problem::internal(&error))?;
    let done = change(&call, &name, StatusCode::CREATED, |user, _| {
        let conflict = |text: &str, field: &str| Err(Problem::user(text, user, field, ""));
        if user.password.is_none() {
            return conflict(
                "an authenticator needs a user with a password; users of programs use tokens",
                "password",
            );
        }
        if user.totp.as_ref().is_some_and(|totp| totp.is_confirmed) {
            return conflict(
                "you have an authenticator: ask an administrator to remove it, then make another",
                "totp",
            );
        }
        Ok(Some(new.authenticator.clone()))
    })
    .await?;
    if call.query.flag("dry_run")? {
        return changed(done, true);
    }
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

async fn confirm(call: Call) -> Result<Answer, Problem> {
    let name = call.actor()?.user.clone();
    let Code { code } = call.read()?;
    let now = call.director.environment.monotonic();
    let attempt = call.director.attempts.begin(&name, now).await?;
    let confirmed = change(&call, &name, StatusCode::NO_CONTENT, |user, now| {
        let Some(totp) = &user.totp else {
            let text = "you have no authenticator: make one with POST first";
            return Err(Problem::user(text, user, "totp", ""));
        };
        match totp.accept(&code, now) {
            Some(accepted) => Ok(Some(accepted)),
            // The token is right: only the code is refused.
            None => Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                WRONG_CODE,
                "the code is wrong, or was used already: wait for the next one",
            )),
        }
    })
    .await;
    attempt.end(&confirmed);
    confirmed?;
    Ok(Answer::done())
}

async fn remove(call: Call) -> Result<Answer, Problem> {
    authorize(call.actor()?, ObjectGroup::People, Verb::Write, None)?;
    let name = first(&call).to_owned();
    let own = call.actor()?.user.clone();
    let done = change(&call, &name, StatusCode::NO_CONTENT, |user, _| {
        if user.name == own && user.totp.as_ref().is_some_and(|totp| totp.is_confirmed) {
            // A thief of the token must not take the second factor away.
            let text = "this is your own authenticator: another administrator removes it, or \
                        `causeway-director recover --config FILE` on the director's machine";
            return Err(Problem::user(text, user, "totp", ""));
        }
        Ok(None)
    })
    .await?;
    if call.query.flag("dry_run")? {
        return changed(done, true);
    }
    call.director.attempts.forgive(&name);
    Ok(Answer::done())
}
