//! Sessions, users and tokens.

use axum::http::{Method, StatusCode};
use control::{Appliance, Conflict, Gateway, Kind as _, Object, Precondition, Tenant, Transaction};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    password,
    tokens::{Issue, ShownToken, issue},
    totp,
};
use crate::{
    api::{
        answer::{Answer, body},
        authorize::{authorize, no_tenant},
        dry_run::{DRY_RUN, changed, with_dry_run},
        operation::{Operation, Success},
        request::{Call, first},
        schemas::schema,
        users::{check_password, found_user, subject_of, wrong_credentials},
    },
    change::{Planned, Wanted},
    live::{Live, MAX_USERS, delete_user},
    people::{Actor, MAX_PASSWORD_BYTES, PASSWORD, SESSION_LIFETIME, USERS, User},
    problem::Problem,
    roles::{ObjectGroup, Role, Verb},
    source,
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
    #[schema(pattern = "^[a-z0-9-]{1,32}$")]
    name: String,
    role: Role,
    /// Tenant, for roles of a tenant.
    #[serde(default)]
    #[schema(pattern = "^[a-z0-9][a-z0-9-]{0,31}$")]
    tenant: Option<String>,
    /// The gateway or the appliance that a machine is, for the roles gateway and appliance.
    #[serde(default)]
    #[schema(pattern = "^[a-z0-9][a-z0-9-]{0,31}$")]
    object: Option<String>,
    /// Password of at least 12 characters. Machines have none.
    #[serde(default)]
    #[schema(min_length = 12, max_length = 1024)]
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

/// The user of the token.
#[derive(Debug, Serialize, ToSchema)]
struct CurrentUser {
    /// Name.
    user: String,
    role: Role,
    /// Tenant, for roles of a tenant.
    tenant: Option<String>,
    /// Id of the token.
    token: String,
    /// Whether the user has a password.
    password: bool,
}

pub(super) fn register(all: &mut Vec<Operation>) {
    let success = |status, schema| vec![Success::json(status, schema)];
    all.push(Operation {
        body: Some(schema::<Credentials>()),
        success: success(StatusCode::CREATED, Some(schema::<ShownToken>())),
        is_public: true,
        description: "There is no dry run: a log-in is for its token, and right or wrong \
                      credentials count as those of a log-in.",
        ..Operation::new(
            "session.create",
            Method::POST,
            "/v1/sessions",
            "Make a token for 12 hours of a name and a password.",
            |call| Box::pin(log_in(call)),
        )
    });
    all.push(Operation {
        success: success(StatusCode::OK, Some(schema::<CurrentUser>())),
        ..Operation::new(
            "self.get",
            Method::GET,
            "/v1/self",
            "Get the token's user.",
            |call| Box::pin(current_user(call)),
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
        query: vec![DRY_RUN],
        success: with_dry_run(StatusCode::CREATED, Some(schema::<ShownUser>())),
        ..Operation::new(
            "user.create",
            Method::POST,
            "/v1/users",
            "Create a user.",
            |call| Box::pin(create_user(call)),
        )
    });
    all.push(Operation {
        query: vec![DRY_RUN],
        success: with_dry_run(StatusCode::NO_CONTENT, None),
        ..Operation::new(
            "user.remove",
            Method::DELETE,
            "/v1/users/{name}",
            "Remove a user and its tokens.",
            |call| Box::pin(remove_user(call)),
        )
    });
}

/// A name that does not exist costs as much time as a wrong password, and gets the same answer.
async fn log_in(call: Call) -> Result<Answer, Problem> {
    let credentials: Credentials = call.read()?;
    // Neither a name that no user can have nor such a password is hashed or logged.
    if service::config::name(&credentials.user).is_err()
        || credentials.password.len() > MAX_PASSWORD_BYTES
    {
        return Err(wrong_credentials());
    }
    let now = call.director.environment.monotonic();
    let network = call.peer.map(source::network);
    let tries = format!("password {} {network:?}", credentials.user);
    let attempts = &call.director.attempts;
    let attempt = attempts.begin(&tries, now).await?;
    let user = {
        let live = call.director.live().await?;
        live.users
            .get(&credentials.user)
            .map(|(user, _)| user.clone())
    };
    let stored = user.as_ref().and_then(|user| user.password.clone());
    let is_right = match stored.clone() {
        Some(hash) => password::verified(&call, credentials.password, hash).await?,
        None => {
            password::hashed(&call, "as slow as a check".to_owned()).await?;
            false
        }
    };
    let Some(user) = user.filter(|_| is_right) else {
        attempt.wrong();
        tracing::warn!(user = credentials.user, client = ?call.peer, "log-in refused");
        return Err(wrong_credentials());
    };
    attempt.right();
    let has_totp = user.totp.as_ref().is_some_and(|totp| totp.is_confirmed);
    let (code, attempt) = match (has_totp, credentials.code) {
        (false, _) => (None, None),
        (true, None) => return Err(totp::missing()),
        (true, Some(code)) => (Some(code), Some(attempts.begin(&user.name, now).await?)),
    };
    let actor = Actor {
        user: user.name.clone(),
        role: user.role,
        tenant: user.tenant,
        object: user.object,
        token: PASSWORD.to_owned(),
    };
    let new = Issue {
        user: &user.name,
        tenant: actor.tenant.as_deref(),
        description: "session",
        lifetime: SESSION_LIFETIME,
        password: stored.as_deref(),
        code: code.as_deref(),
    };
    let answer = issue(&call, &actor, new).await;
    if let Some(attempt) = attempt {
        attempt.end(&answer);
    }
    answer
}

async fn current_user(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let live = call.director.live().await?;
    let user = live.users.get(&actor.user);
    let current_user = CurrentUser {
        user: actor.user.clone(),
        role: actor.role,
        tenant: actor.tenant.clone(),
        token: actor.token.clone(),
        password: user.is_some_and(|(user, _)| user.password.is_some()),
    };
    Ok(Answer::json(StatusCode::OK, &body(&current_user)?))
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
    let dry_run = call.query.flag("dry_run")?;
    let hash = match new.password.clone() {
        Some(password) => Some(password::hashed(&call, password).await?),
        None => None,
    };
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
        dry_run,
        status: StatusCode::CREATED.as_u16(),
        idempotency: None,
    };
    let done = call.director.change(wanted, |live, _| {
        if live.users.contains_key(&user.name) {
            let text = format!("a user {:?} exists already: use another name", user.name);
            // The refusal does not tell the tenant of that user.
            let named = User {
                tenant: None,
                ..user.clone()
            };
            return Err(Problem::user(text, &named, "name", &named.name));
        }
        within_quota(live, &user)?;
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
                let conflict = Conflict {
                    kind: kind.to_owned(),
                    tenant: user.tenant.clone(),
                    name: object.clone(),
                    field: "name".to_owned(),
                    value: object.clone(),
                };
                let problem = Problem::new(StatusCode::CONFLICT, "conflict", text);
                return Err(problem.with(vec![conflict]));
            }
        }
        let key = format!("{USERS}{}", user.name);
        transaction.create(key, body(&user)?.to_string());
        Ok(Planned {
            transaction,
            body: body(&shown(&user))?,
            warnings: Vec::new(),
            differences: Vec::new(),
        })
    });
    let done = done.await?;
    if dry_run {
        return changed(done, true);
    }
    Ok(Answer::json(StatusCode::CREATED, &done.body))
}

/// Refuses one more user of a tenant, or of the provider, that has as many as it may have.
fn within_quota(live: &Live, new: &User) -> Result<(), Problem> {
    let users = live.users.values();
    let count = users.filter(|(user, _)| user.tenant == new.tenant).count();
    if count < MAX_USERS {
        return Ok(());
    }
    let (whose, kind, name) = match new.tenant.as_deref() {
        Some(tenant) => (format!("tenant {tenant:?}"), Tenant::KIND, tenant),
        None => ("the provider".to_owned(), "user", new.name.as_str()),
    };
    let conflict = Conflict {
        kind: kind.to_owned(),
        tenant: None,
        name: name.to_owned(),
        field: "users".to_owned(),
        value: count.to_string(),
    };
    let text = format!(
        "{whose} has {count} users and may have {MAX_USERS}: remove one that is not needed first"
    );
    Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, "exhausted", text).with(vec![conflict]))
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
    if let Some(tenant) = new
        .tenant
        .as_deref()
        .filter(|tenant| !control::is_name(tenant))
    {
        return invalid(format!("tenant: {tenant:?}: {}", control::NAME_RULE));
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
        (None, None, password) => check_password(password.as_deref().unwrap_or_default()),
    }
}

async fn remove_user(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let name = first(&call);
    authorize(actor, ObjectGroup::People, Verb::Write, None)?;
    let dry_run = call.query.flag("dry_run")?;
    let wanted = Wanted {
        actor,
        subject: subject_of(&call, name).await?,
        dry_run,
        status: StatusCode::NO_CONTENT.as_u16(),
        idempotency: None,
    };
    let done = call.director.change(wanted, |live, origin| {
        let (user, _) = found_user(live, actor, name)?;
        let mut others = live.users.values().map(|(user, _)| user);
        let is_last = !others.any(|other| {
            other.role == Role::ProviderAdmin
                && other.name != *name
                && live.can_enter(other, origin.now)
        });
        if user.role == Role::ProviderAdmin && is_last {
            let text = format!(
                "user {name:?} is the last provider-admin that has a password or a valid token: \
                 create another one first"
            );
            return Err(Problem::user(text, user, "role", "provider-admin"));
        }
        let mut transaction = Transaction::default();
        delete_user(name, live, &mut transaction);
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
