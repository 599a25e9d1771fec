//! API tokens: their creation, lists and removal.

use axum::http::{Method, StatusCode};
use control::{Conflict, Precondition, Transaction};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::totp;
use crate::{
    Director,
    api::{
        answer::{Answer, body},
        authorize::{authorize, role},
        dry_run::{DRY_RUN, changed, with_dry_run},
        operation::{Operation, Success},
        request::{Call, first},
        schemas::schema,
        users::{found_user, subject_of, wrong_credentials},
    },
    audit::Subject,
    change::{Planned, Wanted},
    live::{Live, MAX_SESSIONS, MAX_TOKENS},
    people::{Actor, MAX_TOKEN_LIFETIME, TOKENS, Token, USERS, User, new_secret, token_hash},
    problem::Problem,
    roles::{ObjectGroup, Verb},
};

/// A token as it is asked for.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// Description, for people.
    #[serde(default)]
    #[schema(max_length = 256)]
    description: String,
    /// Lifetime, hours, 1 to 8784 (366 days).
    #[schema(minimum = 1, maximum = 8784)]
    hours: u32,
}

/// A new token. The secret is shown this once.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ShownToken {
    /// The secret, for `Authorization: Bearer`.
    secret: String,
    token: Token,
}

/// The actor's own tokens.
#[derive(Debug, Serialize, ToSchema)]
struct TokenList {
    /// The tokens, by time of creation.
    items: Vec<Token>,
}

pub(super) fn register(all: &mut Vec<Operation>) {
    let success = |status, schema| vec![Success::json(status, schema)];
    all.push(Operation {
        body: Some(schema::<NewToken>()),
        query: vec![DRY_RUN],
        success: with_dry_run(StatusCode::CREATED, Some(schema::<ShownToken>())),
        ..Operation::new(
            "user.token.create",
            Method::POST,
            "/v1/users/{name}/tokens",
            "Create a token of a machine.",
            |call| Box::pin(create_machine_token(call)),
        )
    });
    all.push(Operation {
        success: success(StatusCode::OK, Some(schema::<TokenList>())),
        ..Operation::new(
            "user.token.list",
            Method::GET,
            "/v1/users/{name}/tokens",
            "List the tokens of a user.",
            |call| Box::pin(tokens_of_user(call)),
        )
    });
    all.push(Operation {
        query: vec![DRY_RUN],
        success: with_dry_run(StatusCode::NO_CONTENT, None),
        ..Operation::new(
            "user.token.remove",
            Method::DELETE,
            "/v1/users/{name}/tokens/{id}",
            "Remove a token of a user.",
            |call| Box::pin(remove_token_of_user(call)),
        )
    });
    all.push(Operation {
        success: success(StatusCode::OK, Some(schema::<TokenList>())),
        ..Operation::new(
            "token.list",
            Method::GET,
            "/v1/tokens",
            "List your tokens.",
            |call| Box::pin(tokens(call)),
        )
    });
    all.push(Operation {
        body: Some(schema::<NewToken>()),
        query: vec![DRY_RUN],
        success: with_dry_run(StatusCode::CREATED, Some(schema::<ShownToken>())),
        ..Operation::new(
            "token.create",
            Method::POST,
            "/v1/tokens",
            "Create a token.",
            |call| Box::pin(create_token(call)),
        )
    });
    all.push(Operation {
        query: vec![DRY_RUN],
        success: with_dry_run(StatusCode::NO_CONTENT, None),
        ..Operation::new(
            "token.remove",
            Method::DELETE,
            "/v1/tokens/{id}",
            "Remove a token of yours.",
            |call| Box::pin(remove_token(call)),
        )
    });
}

/// A token to be issued.
pub(super) struct Issue<'a> {
    /// Name of the token's user, who need not be the actor.
    pub user: &'a str,
    /// That user's tenant.
    pub tenant: Option<&'a str>,
    pub description: &'a str,
    pub lifetime: SignedDuration,
    /// For a session: the hash that the password was checked against, which must still be the
    /// user's.
    pub password: Option<&'a str>,
    /// The code that the user's authenticator must accept in the same transaction, so that no code
    /// is accepted twice.
    pub code: Option<&'a str>,
}

/// Stores a new token and answers its secret.
pub(super) async fn issue(call: &Call, actor: &Actor, new: Issue<'_>) -> Result<Answer, Problem> {
    let environment = &*call.director.environment;
    let secret = new_secret(environment).map_err(|error| Problem::internal(&error))?;
    let hash = token_hash(&secret);
    let id = hash[..16].to_owned();
    let dry_run = call.query.flag("dry_run")?;
    let wanted = Wanted {
        actor,
        subject: call.subject("token", new.tenant, &id)?,
        dry_run,
        status: StatusCode::CREATED.as_u16(),
        idempotency: None,
    };
    let done = call.director.change(wanted, |live, origin| {
        let (user, revision) = live.users.get(new.user).ok_or_else(Problem::no_token)?;
        if new.password.is_some() && new.password != user.password.as_deref() {
            return Err(wrong_credentials());
        }
        let is_session = new.password.is_some();
        let mut tokens: Vec<_> = live.tokens_of(new.user, is_session, origin.now).collect();
        if !is_session && tokens.len() >= MAX_TOKENS {
            return Err(token_quota(new.user, new.tenant));
        }
        let expires = origin.now.checked_add(new.lifetime);
        let token = Token {
            id: id.clone(),
            user: new.user.to_owned(),
            description: new.description.to_owned(),
            created: origin.now,
            expires: expires.unwrap_or(Timestamp::MAX),
            session: is_session,
            last_used: None,
        };
        let mut transaction = forget_expired(live, origin.now);
        if is_session {
            // The oldest sessions make room for this one.
            tokens.sort_by_key(|(hash, token)| (token.created, *hash));
            let ended = (tokens.len() + 1).saturating_sub(MAX_SESSIONS);
            for (hash, _) in &tokens[..ended] {
                transaction.delete.insert(format!("{TOKENS}{hash}"));
            }
        }
        let key = format!("{USERS}{}", new.user);
        transaction
            .preconditions
            .insert(key.clone(), Precondition::At(*revision));
        if let Some(code) = new.code {
            let accepted = user
                .totp
                .as_ref()
                .and_then(|totp| totp.accept(code, origin.now));
            let after = User {
                totp: Some(accepted.ok_or_else(|| totp::wrong(new.user))?),
                ..user.clone()
            };
            transaction.put.insert(key, body(&after)?.to_string());
        }
        let key = format!("{TOKENS}{hash}");
        transaction.create(key, body(&token)?.to_string());
        Ok(Planned {
            transaction,
            body: body(&token)?,
            warnings: Vec::new(),
            differences: Vec::new(),
        })
    });
    let done = done.await?;
    if dry_run {
        return changed(done, true);
    }
    let answer = json!({ "secret": secret, "token": done.body });
    Ok(Answer::json(StatusCode::CREATED, &answer))
}

/// The user has as many tokens as a user may have.
fn token_quota(user: &str, tenant: Option<&str>) -> Problem {
    let text = format!(
        "user {user:?} has {MAX_TOKENS} tokens and may have no more: remove one that is not \
         needed, or wait until one expires"
    );
    let conflict = Conflict {
        kind: "user".to_owned(),
        tenant: tenant.map(ToOwned::to_owned),
        name: user.to_owned(),
        field: "tokens".to_owned(),
        value: MAX_TOKENS.to_string(),
    };
    Problem::new(StatusCode::INSUFFICIENT_STORAGE, "exhausted", text).with(vec![conflict])
}

/// A transaction that deletes some expired tokens.
fn forget_expired(live: &Live, now: Timestamp) -> Transaction {
    let mut transaction = Transaction::default();
    let expired = live
        .tokens
        .iter()
        .filter(|(_, (token, _))| token.expires <= now);
    for (hash, _) in expired.take(16) {
        transaction.delete.insert(format!("{TOKENS}{hash}"));
    }
    transaction
}

async fn tokens(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let live = call.director.live().await?;
    let answer = token_list(&call.director, &live, &actor.user)?;
    Ok(Answer::json(StatusCode::OK, &answer))
}

async fn create_token(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?.clone();
    if actor.role.machine().is_some() {
        return Err(Problem::forbidden(&role(&actor)));
    }
    let new: NewToken = call.read()?;
    let lifetime = lifetime(&new)?;
    let new = Issue {
        user: &actor.user,
        tenant: actor.tenant.as_deref(),
        description: &new.description,
        lifetime,
        password: None,
        code: None,
    };
    issue(&call, &actor, new).await
}

/// Machines have no password: an administrator makes their tokens.
async fn create_machine_token(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?.clone();
    let name = first(&call);
    authorize(&actor, ObjectGroup::People, Verb::Write, None)?;
    let new: NewToken = call.read()?;
    let lifetime = lifetime(&new)?;
    let tenant = {
        let live = call.director.live().await?;
        let (user, _) = found_user(&live, &actor, name)?;
        if user.role.machine().is_none() {
            let text = format!(
                "user {name:?} has a password, so only that user creates its tokens: name a machine"
            );
            return Err(Problem::user(text, user, "role", &role_of(user)));
        }
        user.tenant.clone()
    };
    let new = Issue {
        user: name,
        tenant: tenant.as_deref(),
        description: &new.description,
        lifetime,
        password: None,
        code: None,
    };
    issue(&call, &actor, new).await
}

fn lifetime(new: &NewToken) -> Result<SignedDuration, Problem> {
    let lifetime = SignedDuration::from_hours(i64::from(new.hours));
    if new.hours == 0 || lifetime > MAX_TOKEN_LIFETIME || new.description.chars().count() > 256 {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid",
            format!(
                "hours: write 1 to {}; description: at most 256 characters",
                MAX_TOKEN_LIFETIME.as_hours()
            ),
        ));
    }
    Ok(lifetime)
}

async fn tokens_of_user(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    authorize(actor, ObjectGroup::People, Verb::Read, None)?;
    let live = call.director.live().await?;
    let (user, _) = found_user(&live, actor, first(&call))?;
    let answer = token_list(&call.director, &live, &user.name)?;
    Ok(Answer::json(StatusCode::OK, &answer))
}

fn token_list(director: &Director, live: &Live, user: &str) -> Result<Value, Problem> {
    let tokens = live.tokens.iter();
    let tokens = tokens.filter(|(_, (token, _))| token.user == user);
    let tokens = tokens.map(|(hash, (token, _))| Token {
        last_used: director.last_uses.of(hash, token),
        ..token.clone()
    });
    let mut items: Vec<_> = tokens.collect();
    items.sort_by_key(|token| token.created);
    body(&TokenList { items })
}

async fn remove_token(call: Call) -> Result<Answer, Problem> {
    let user = call.actor()?.user.clone();
    let subject = call.subject("token", call.actor()?.tenant.as_deref(), first(&call))?;
    remove_token_of(&call, &user, first(&call), subject).await
}

async fn remove_token_of_user(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    authorize(actor, ObjectGroup::People, Verb::Write, None)?;
    let id = call.parameters.get(1).map_or("", String::as_str);
    let mut subject = subject_of(&call, first(&call)).await?;
    subject.kind = "token".to_owned();
    subject.name = id.to_owned();
    remove_token_of(&call, first(&call), id, subject).await
}

async fn remove_token_of(
    call: &Call,
    user: &str,
    id: &str,
    subject: Subject,
) -> Result<Answer, Problem> {
    let dry_run = call.query.flag("dry_run")?;
    let wanted = Wanted {
        actor: call.actor()?,
        subject,
        dry_run,
        status: StatusCode::NO_CONTENT.as_u16(),
        idempotency: None,
    };
    let done = call.director.change(wanted, |live, _| {
        let mut tokens = live.tokens.iter();
        let found = tokens.find(|(_, (token, _))| token.id == id && token.user == user);
        let Some((hash, (_, revision))) = found else {
            let conflict = Conflict {
                kind: "token".to_owned(),
                tenant: None,
                name: id.to_owned(),
                field: "id".to_owned(),
                value: id.to_owned(),
            };
            let text = format!("there is no such token {id:?}: check the id with `list`");
            let problem = Problem::new(StatusCode::NOT_FOUND, "not-found", text);
            return Err(problem.with(vec![conflict]));
        };
        let mut transaction = Transaction::default();
        let key = format!("{TOKENS}{hash}");
        let precondition = Precondition::At(*revision);
        transaction.preconditions.insert(key.clone(), precondition);
        transaction.delete.insert(key);
        Ok(Planned {
            transaction,
            body: Value::Null,
            warnings: Vec::new(),
            differences: Vec::new(),
        })
    });
    let done = done.await?;
    match dry_run {
        true => changed(done, true),
        false => Ok(Answer::done()),
    }
}

/// The name of a user's role.
fn role_of(user: &User) -> String {
    let role = serde_json::to_value(user.role).unwrap_or_default();
    role.as_str().unwrap_or_default().to_owned()
}
