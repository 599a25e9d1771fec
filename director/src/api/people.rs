//! Sessions, users and tokens.

use axum::http::{Method, StatusCode};
use control::{Appliance, Gateway, Kind as _, Object, Precondition, Tenant, Transaction};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::{
    answer::{Answer, Problem},
    document::schema,
    objects::{authorize, no_tenant, role},
    request::Call,
    table::{Operation, Success},
    totp,
};
use crate::{
    change::{Planned, Wanted},
    live::Live,
    people::{
        Actor, LONGEST, LONGEST_PASSWORD, SESSION, SHORTEST_PASSWORD, TOKENS, Token, USERS, User,
        hash_password, is_password, new_secret, token_hash,
    },
    roles::{ObjectGroup, Role, Verb},
};

/// A name and a password.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Credentials {
    user: String,
    password: String,
    /// Code of the user's authenticator, or a recovery code; for users who have an authenticator.
    #[serde(default)]
    code: Option<String>,
}

/// A user as it is written.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewUser {
    /// Name, unique at the provider: 1 to 32 characters of a to z, 0 to 9 and '-'.
    name: String,
    role: Role,
    /// Tenant, for roles of a tenant.
    #[serde(default)]
    tenant: Option<String>,
    /// The gateway or the appliance that a machine is, for the roles gateway and appliance.
    #[serde(default)]
    object: Option<String>,
    /// Password of at least 12 characters. Machines have none.
    #[serde(default)]
    password: Option<String>,
}

/// A user as it is read.
#[derive(Debug, Serialize, ToSchema)]
struct ShownUser {
    name: String,
    role: Role,
    /// Tenant, for roles of a tenant.
    tenant: Option<String>,
    /// The object that a machine is.
    object: Option<String>,
    /// Whether a log-in takes a code.
    totp: bool,
}

/// All users that the actor may see.
#[derive(Debug, Serialize, ToSchema)]
struct UserList {
    /// The users, by name.
    items: Vec<ShownUser>,
}

/// A token as it is asked for.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// Description, for people.
    #[serde(default)]
    description: String,
    /// Lifetime, hours, 1 to 8784 (366 days).
    hours: u32,
}

/// A new token. The secret is shown this once.
#[derive(Debug, Serialize, ToSchema)]
struct ShownToken {
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

/// The user of the token.
#[derive(Debug, Serialize, ToSchema)]
struct Myself {
    /// Name.
    user: String,
    role: Role,
    /// Tenant, for roles of a tenant.
    tenant: Option<String>,
    /// Id of the token.
    token: String,
}

/// A new authenticator. Secret and recovery codes are shown this once.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ShownAuthenticator {
    /// The secret, base32.
    pub secret: String,
    /// The same for authenticators, as a URI.
    pub uri: String,
    /// Codes that are accepted once each, for a lost authenticator.
    pub recovery: Vec<String>,
}

/// A code of an authenticator.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Code {
    pub code: String,
}

pub(super) fn register(all: &mut Vec<Operation>) {
    let success = |status, schema| vec![Success::json(status, schema)];
    all.push(Operation {
        body: Some(schema::<Credentials>()),
        success: success(StatusCode::CREATED, Some(schema::<ShownToken>())),
        is_public: true,
        ..Operation::new(
            "session.create",
            Method::POST,
            "/v1/sessions",
            "Make a token for 12 hours of a name and a password.",
            |call| Box::pin(log_in(call)),
        )
    });
    all.push(Operation {
        success: success(StatusCode::OK, Some(schema::<Myself>())),
        ..Operation::new(
            "self.get",
            Method::GET,
            "/v1/self",
            "Get the token's user.",
            |call| Box::pin(myself(call)),
        )
    });
    all.push(Operation {
        success: success(StatusCode::OK, Some(schema::<UserList>())),
        ..Operation::new(
            "user.list",
            Method::GET,
            "/v1/users",
            "List users.",
            |call| Box::pin(users(call)),
        )
    });
    all.push(Operation {
        body: Some(schema::<NewUser>()),
        success: success(StatusCode::CREATED, Some(schema::<ShownUser>())),
        ..Operation::new(
            "user.create",
            Method::POST,
            "/v1/users",
            "Create a user.",
            |call| Box::pin(create_user(call)),
        )
    });
    all.push(Operation {
        success: success(StatusCode::NO_CONTENT, None),
        ..Operation::new(
            "user.remove",
            Method::DELETE,
            "/v1/users/{name}",
            "Remove a user and its tokens.",
            |call| Box::pin(remove_user(call)),
        )
    });
    all.push(Operation {
        body: Some(schema::<NewToken>()),
        success: success(StatusCode::CREATED, Some(schema::<ShownToken>())),
        ..Operation::new(
            "user.token.create",
            Method::POST,
            "/v1/users/{name}/tokens",
            "Create a token of a machine.",
            |call| Box::pin(create_machine_token(call)),
        )
    });
    all.push(Operation {
        success: success(StatusCode::CREATED, Some(schema::<ShownAuthenticator>())),
        ..Operation::new(
            "self.totp.create",
            Method::POST,
            "/v1/self/totp",
            "Make an authenticator of yours, to be confirmed by a code.",
            |call| Box::pin(totp::create(call)),
        )
    });
    all.push(Operation {
        body: Some(schema::<Code>()),
        success: success(StatusCode::NO_CONTENT, None),
        ..Operation::new(
            "self.totp.confirm",
            Method::PUT,
            "/v1/self/totp",
            "Confirm your authenticator: from then on, a log-in takes a code.",
            |call| Box::pin(totp::confirm(call)),
        )
    });
    all.push(Operation {
        success: success(StatusCode::NO_CONTENT, None),
        ..Operation::new(
            "user.totp.remove",
            Method::DELETE,
            "/v1/users/{name}/totp",
            "Remove the authenticator of a user.",
            |call| Box::pin(totp::remove(call)),
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
        success: success(StatusCode::CREATED, Some(schema::<ShownToken>())),
        ..Operation::new(
            "token.create",
            Method::POST,
            "/v1/tokens",
            "Create a token.",
            |call| Box::pin(create_token(call)),
        )
    });
    all.push(Operation {
        success: success(StatusCode::NO_CONTENT, None),
        ..Operation::new(
            "token.remove",
            Method::DELETE,
            "/v1/tokens/{id}",
            "Remove a token of yours.",
            |call| Box::pin(remove_token(call)),
        )
    });
}

pub(super) fn body(value: &impl Serialize) -> Result<Value, Problem> {
    serde_json::to_value(value).map_err(|error| Problem::internal(&error))
}

pub(super) fn first(call: &Call) -> &str {
    call.parameters.first().map_or("", String::as_str)
}

/// A name that does not exist costs as much time as a wrong password, and gets the same answer.
async fn log_in(call: Call) -> Result<Answer, Problem> {
    let credentials: Credentials = call.read()?;
    let user = {
        let live = call.director.live().await?;
        live.users
            .get(&credentials.user)
            .map(|(user, _)| user.clone())
    };
    let chance = std::sync::Arc::clone(&call.director.chance);
    let stored = user.as_ref().and_then(|user| user.password.clone());
    let password = credentials.password;
    // The semaphore is never closed.
    let permit = call.director.passwords.acquire().await;
    let checked = spawn_blocking(move || match stored {
        _ if password.len() > LONGEST_PASSWORD => Ok(false),
        Some(hash) => Ok(is_password(&password, &hash)),
        None => hash_password(&password, &*chance).map(|_| false),
    });
    let is_right = checked.await.map_err(|error| Problem::internal(&error))?;
    drop(permit);
    let is_right = is_right.map_err(|error| Problem::internal(&error))?;
    let Some(user) = user.filter(|_| is_right) else {
        tracing::warn!(user = credentials.user, "log-in refused");
        return Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "credentials",
            "the name or the password is wrong: check both",
        ));
    };
    let now = call.director.chance.now();
    let has_totp = user.totp.as_ref().is_some_and(|totp| totp.is_confirmed);
    let code = match (has_totp, credentials.code) {
        (false, _) => None,
        (true, None) => return Err(totp::missing()),
        (true, Some(code)) => {
            totp::check_patience(&call.director, &user.name, now)?;
            Some(code)
        }
    };
    let actor = Actor {
        user: user.name.clone(),
        role: user.role,
        tenant: user.tenant,
        object: user.object,
        token: "password".to_owned(),
    };
    let new = Issue {
        user: &user.name,
        description: "session",
        lifetime: SESSION,
        code: code.as_deref(),
    };
    let answer = issue(&call, &actor, new).await?;
    totp::forgive(&call.director, &user.name);
    Ok(answer)
}

/// A token to be issued.
struct Issue<'a> {
    /// Name of the token's user, who need not be the actor.
    user: &'a str,
    description: &'a str,
    lifetime: SignedDuration,
    /// The code that the user's authenticator must accept in the same transaction, so that no code
    /// is accepted twice.
    code: Option<&'a str>,
}

/// Stores a new token and answers its secret.
async fn issue(call: &Call, actor: &Actor, new: Issue<'_>) -> Result<Answer, Problem> {
    let chance = &*call.director.chance;
    let secret = new_secret(chance).map_err(|error| Problem::internal(&error))?;
    let hash = token_hash(&secret);
    let id = hash[..16].to_owned();
    let wanted = Wanted {
        actor,
        subject: call.subject("token", actor.tenant.as_deref(), &id)?,
        dry_run: false,
        status: StatusCode::CREATED.as_u16(),
        idempotency: None,
    };
    let done = call.director.change(wanted, |live, origin| {
        let (user, revision) = live.users.get(new.user).ok_or_else(Problem::no_token)?;
        let expires = origin.now.checked_add(new.lifetime);
        let token = Token {
            id: id.clone(),
            user: new.user.to_owned(),
            description: new.description.to_owned(),
            created: origin.now,
            expires: expires.unwrap_or(Timestamp::MAX),
        };
        let mut transaction = forget_expired(live, origin.now);
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
                totp: Some(
                    accepted.ok_or_else(|| totp::wrong(&call.director, new.user, origin.now))?,
                ),
                ..user.clone()
            };
            transaction.put.insert(key, body(&after)?.to_string());
        }
        let key = format!("{TOKENS}{hash}");
        transaction
            .preconditions
            .insert(key.clone(), Precondition::Absent);
        transaction.put.insert(key, body(&token)?.to_string());
        Ok(Planned {
            transaction,
            body: body(&token)?,
            warnings: Vec::new(),
        })
    });
    let token = done.await?.body;
    let answer = json!({ "secret": secret, "token": token });
    Ok(Answer::json(StatusCode::CREATED, &answer))
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

async fn myself(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let myself = Myself {
        user: actor.user.clone(),
        role: actor.role,
        tenant: actor.tenant.clone(),
        token: actor.token.clone(),
    };
    Ok(Answer::json(StatusCode::OK, &body(&myself)?))
}

async fn users(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    authorize(actor, ObjectGroup::People, Verb::Read, None)?;
    let live = call.director.live().await?;
    let users = live.users.values().map(|(user, _)| user);
    let items = users.filter(|user| actor.tenant.is_none() || user.tenant == actor.tenant);
    let items: Vec<_> = items.map(shown).collect();
    Ok(Answer::json(StatusCode::OK, &body(&UserList { items })?))
}

fn shown(user: &User) -> ShownUser {
    ShownUser {
        name: user.name.clone(),
        role: user.role,
        tenant: user.tenant.clone(),
        object: user.object.clone(),
        totp: user.totp.as_ref().is_some_and(|totp| totp.is_confirmed),
    }
}

async fn create_user(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let new: NewUser = call.read()?;
    authorize(
        actor,
        ObjectGroup::People,
        Verb::Write,
        new.tenant.as_deref(),
    )?;
    check_user(actor, &new)?;
    let chance = std::sync::Arc::clone(&call.director.chance);
    let mut hash = None;
    if let Some(password) = new.password.clone() {
        let permit = call.director.passwords.acquire().await;
        let hashed = spawn_blocking(move || hash_password(&password, &*chance)).await;
        drop(permit);
        let hashed = hashed.map_err(|error| Problem::internal(&error))?;
        hash = Some(hashed.map_err(|error| Problem::internal(&error))?);
    }
    let user = User {
        name: new.name,
        role: new.role,
        tenant: new.tenant,
        object: new.object,
        totp: None,
        password: hash,
    };
    let wanted = Wanted {
        actor,
        subject: call.subject("user", user.tenant.as_deref(), &user.name)?,
        dry_run: false,
        status: StatusCode::CREATED.as_u16(),
        idempotency: None,
    };
    let done = call.director.change(wanted, |live, _| {
        if live.users.contains_key(&user.name) {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "conflict",
                format!("a user {:?} exists already: use another name", user.name),
            ));
        }
        let mut transaction = Transaction::default();
        if let Some(tenant) = &user.tenant {
            let found = live.state.get::<Tenant>(None, tenant);
            let found = found.ok_or_else(|| no_tenant(tenant))?;
            let precondition = Precondition::At(found.metadata.revision);
            transaction.preconditions.insert(found.key(), precondition);
        }
        if let (Some(kind), Some(object)) = (user.role.machine(), &user.object) {
            let tenant = user.tenant.as_deref();
            let key = match kind {
                "gateway" => live.state.get::<Gateway>(None, object).map(Object::key),
                _ => live.state.get::<Appliance>(tenant, object).map(Object::key),
            };
            if key.is_none() {
                let text = format!("object: {kind} {object:?} does not exist: create it first");
                return Err(Problem::new(StatusCode::CONFLICT, "conflict", text));
            }
        }
        let key = format!("{USERS}{}", user.name);
        transaction
            .preconditions
            .insert(key.clone(), Precondition::Absent);
        transaction.put.insert(key, body(&user)?.to_string());
        Ok(Planned {
            transaction,
            body: body(&shown(&user))?,
            warnings: Vec::new(),
        })
    });
    Ok(Answer::json(StatusCode::CREATED, &done.await?.body))
}

fn check_user(actor: &Actor, new: &NewUser) -> Result<(), Problem> {
    let invalid = |text: String| {
        Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid",
            text,
        ))
    };
    if let Err(text) = service::config::name(&new.name) {
        return invalid(format!("name: {text}"));
    }
    if new.role.is_of_tenant() != new.tenant.is_some() {
        return invalid(match new.role.is_of_tenant() {
            true => "tenant: the role belongs to a tenant: name the tenant".to_owned(),
            false => "tenant: the role belongs to the provider: omit the tenant".to_owned(),
        });
    }
    if actor.role.is_of_tenant() && !new.role.is_of_tenant() {
        return Err(Problem::forbidden("tenant-admin"));
    }
    match (new.role.machine(), &new.object, &new.password) {
        (Some(_), Some(_), None) => Ok(()),
        (Some(_), None, _) => {
            invalid("object: the role is one of machines: name the gateway or appliance".to_owned())
        }
        (Some(_), Some(_), Some(_)) => {
            invalid("password: a machine has tokens only: omit the password".to_owned())
        }
        (None, Some(_), _) => invalid("object: the role is one of people: omit it".to_owned()),
        (None, None, password) => {
            let password = password.as_deref().unwrap_or_default();
            let length = password.chars().count();
            if length < SHORTEST_PASSWORD || password.len() > LONGEST_PASSWORD {
                return invalid(format!(
                    "password: write {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters"
                ));
            }
            Ok(())
        }
    }
}

/// Deletes users and their tokens together with their tenant, or with the object that a machine is:
/// a later one of the same name is another one.
pub(super) fn remove_users_of(
    kind: &str,
    tenant: Option<&str>,
    object: &str,
    live: &Live,
    transaction: &mut Transaction,
) {
    for (name, (user, revision)) in &live.users {
        let is_of_tenant = kind == Tenant::KIND && user.tenant.as_deref() == Some(object);
        let is_machine = user.role.machine() == Some(kind)
            && user.object.as_deref() == Some(object)
            && user.tenant.as_deref() == tenant;
        if is_of_tenant || is_machine {
            let key = format!("{USERS}{name}");
            transaction
                .preconditions
                .insert(key.clone(), Precondition::At(*revision));
            transaction.delete.insert(key);
            delete_tokens(name, live, transaction);
        }
    }
}

fn delete_tokens(user: &str, live: &Live, transaction: &mut Transaction) {
    for (hash, (token, _)) in &live.tokens {
        if token.user == user {
            transaction.delete.insert(format!("{TOKENS}{hash}"));
        }
    }
}

async fn remove_user(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let name = first(&call);
    authorize(actor, ObjectGroup::People, Verb::Write, None)?;
    let wanted = Wanted {
        actor,
        subject: call.subject("user", actor.tenant.as_deref(), name)?,
        dry_run: false,
        status: StatusCode::NO_CONTENT.as_u16(),
        idempotency: None,
    };
    let done = call.director.change(wanted, |live, _| {
        let (user, revision) = found_user(live, actor, name)?;
        let admins = live
            .users
            .values()
            .filter(|(user, _)| user.role == Role::ProviderAdmin);
        if user.role == Role::ProviderAdmin && admins.count() == 1 {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "conflict",
                format!("user {name:?} is the last provider-admin: create another one first"),
            ));
        }
        let mut transaction = Transaction::default();
        let key = format!("{USERS}{name}");
        transaction
            .preconditions
            .insert(key.clone(), Precondition::At(*revision));
        transaction.delete.insert(key);
        delete_tokens(name, live, &mut transaction);
        Ok(Planned {
            transaction,
            body: Value::Null,
            warnings: Vec::new(),
        })
    });
    done.await?;
    Ok(Answer::done())
}

async fn tokens(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let live = call.director.live().await?;
    let tokens = live.tokens.values().map(|(token, _)| token);
    let mut items: Vec<_> = tokens
        .filter(|token| token.user == actor.user)
        .cloned()
        .collect();
    items.sort_by_key(|token| token.created);
    Ok(Answer::json(StatusCode::OK, &body(&TokenList { items })?))
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
        description: &new.description,
        lifetime,
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
    {
        let live = call.director.live().await?;
        let user = found_user(&live, &actor, name)?;
        if user.0.role.machine().is_none() {
            let text = format!(
                "user {name:?} has a password, so only that user creates its tokens: name a machine"
            );
            return Err(Problem::new(StatusCode::CONFLICT, "conflict", text));
        }
    }
    let new = Issue {
        user: name,
        description: &new.description,
        lifetime,
        code: None,
    };
    issue(&call, &actor, new).await
}

/// A user that the actor may know of. One of another tenant is answered as one that does not exist.
pub(super) fn found_user<'l>(
    live: &'l Live,
    actor: &Actor,
    name: &str,
) -> Result<&'l (User, control::Revision), Problem> {
    let found = live.users.get(name);
    let found = found.filter(|(user, _)| actor.tenant.is_none() || user.tenant == actor.tenant);
    found.ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "not-found",
            format!("user {name:?} does not exist: check the name with `list`"),
        )
    })
}

fn lifetime(new: &NewToken) -> Result<SignedDuration, Problem> {
    let lifetime = SignedDuration::from_hours(i64::from(new.hours));
    if new.hours == 0 || lifetime > LONGEST || new.description.chars().count() > 256 {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid",
            format!(
                "hours: write 1 to {}; description: at most 256 characters",
                LONGEST.as_hours()
            ),
        ));
    }
    Ok(lifetime)
}

async fn remove_token(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let id = first(&call);
    let wanted = Wanted {
        actor,
        subject: call.subject("token", actor.tenant.as_deref(), id)?,
        dry_run: false,
        status: StatusCode::NO_CONTENT.as_u16(),
        idempotency: None,
    };
    let done = call.director.change(wanted, |live, _| {
        let mut tokens = live.tokens.iter();
        let found = tokens.find(|(_, (token, _))| token.id == id && token.user == actor.user);
        let Some((hash, (_, revision))) = found else {
            return Err(Problem::new(
                StatusCode::NOT_FOUND,
                "not-found",
                format!("you have no token {id:?}: check the id with `list`"),
            ));
        };
        let mut transaction = Transaction::default();
        let key = format!("{TOKENS}{hash}");
        transaction
            .preconditions
            .insert(key.clone(), Precondition::At(*revision));
        transaction.delete.insert(key);
        Ok(Planned {
            transaction,
            body: Value::Null,
            warnings: Vec::new(),
        })
    });
    done.await?;
    Ok(Answer::done())
}
