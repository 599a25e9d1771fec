//! Users, their passwords and their API tokens.

mod totp;

pub use totp::Authenticator;

use argon2::{Argon2, PasswordHash, PasswordHasher as _, PasswordVerifier as _};
use control::{Transaction, audit::hex};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use crate::{Environment, roles::Role};

/// Prefix of the keys of users.
pub const USERS: &str = "user/";
/// In place of a token's id: the actor has shown a password.
pub const PASSWORD: &str = "password";
/// In place of a token's id, before that of an enrolment token: a machine has shown its secret.
pub(crate) const ENROLMENT: &str = "enrolment";
/// Prefix of the keys of tokens, before the token's hash.
pub const TOKENS: &str = "token/";
/// Every token begins with this, so that scanners of leaked secrets find it.
pub const TOKEN_PREFIX: &str = "cwy_";
/// Shortest password, characters.
pub const MIN_PASSWORD_CHARS: usize = 12;
/// Longest password, bytes: argon2 is not to be given megabytes.
pub const MAX_PASSWORD_BYTES: usize = 1024;
/// Lifetime of the token of a session.
pub const SESSION_LIFETIME: SignedDuration = SignedDuration::from_hours(12);
/// Longest lifetime of a token.
pub const MAX_TOKEN_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 366);

/// Lifetime of the first token, and of one that lets an administrator in again.
const ADMIN_TOKEN_LIFETIME: SignedDuration = SignedDuration::from_hours(24);

/// A stored user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Name, unique at the provider.
    pub name: String,
    pub role: Role,
    /// Tenant, for roles of a tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The object that a machine is, for roles of machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The authenticator, if the user has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totp: Option<Authenticator>,
    /// The password's hash (argon2id, PHC string format); without it, the user has tokens only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

/// A stored token. Its secret is not stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Identity, for people.
    pub id: String,
    pub user: String,
    /// Description, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Time of creation.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// End.
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
    /// Whether a log-in made it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub session: bool,
    /// Last request with it; in the store, and so after a restart, up to an hour earlier. Omitted
    /// before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_used: Option<Timestamp>,
}

/// The user of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Name.
    pub user: String,
    pub role: Role,
    /// Tenant, for roles of a tenant.
    pub tenant: Option<String>,
    /// The object that a machine is, for roles of machines.
    pub object: Option<String>,
    /// Id of the token.
    pub token: String,
}

/// A new secret of a token: 256 random bits.
///
/// # Errors
/// When the kernel has no random bytes.
pub fn new_secret(environment: &dyn Environment) -> std::io::Result<String> {
    let mut bytes = [0; 32];
    environment.fill(&mut bytes)?;
    Ok(format!("{TOKEN_PREFIX}{}", hex(&bytes)))
}

/// The hash under which a token is stored. The secret is random, so that a fast hash suffices.
#[must_use]
pub fn token_hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

/// The hash of a password, by argon2id with the parameters of the crate (19 MiB, 2 passes, as OWASP
/// recommends). Takes tens of milliseconds: call it on a thread that may block.
///
/// # Errors
/// When there are no random bytes, or argon2 fails.
pub fn hash_password(password: &str, environment: &dyn Environment) -> std::io::Result<String> {
    let mut salt = [0; 16];
    environment.fill(&mut salt)?;
    let hash = Argon2::default().hash_password_with_salt(password.as_bytes(), &salt);
    Ok(hash
        .map_err(|error| std::io::Error::other(error.to_string()))?
        .to_string())
}

/// Whether a password has this hash. As slow as [`hash_password`], whatever the result.
#[must_use]
pub fn is_password(password: &str, hash: &str) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| {
        Argon2::default()
            .verify_password(password.as_bytes(), &hash)
            .is_ok()
    })
}

/// Refuses a password that is too short or too long.
pub(crate) fn check_password(password: &str) -> Result<(), String> {
    let length = password.chars().count();
    if length < MIN_PASSWORD_CHARS || password.len() > MAX_PASSWORD_BYTES {
        return Err(format!(
            "password: write {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_BYTES} characters"
        ));
    }
    Ok(())
}

/// Adds a token of an administrator for 24 hours: its secret.
pub(crate) fn add_token(
    transaction: &mut Transaction,
    user: &str,
    description: &str,
    now: Timestamp,
    environment: &dyn Environment,
) -> Result<String, std::io::Error> {
    let secret = new_secret(environment)?;
    let hash = token_hash(&secret);
    let token = Token {
        id: hash[..16].to_owned(),
        user: user.to_owned(),
        description: description.to_owned(),
        created: now,
        expires: now.checked_add(ADMIN_TOKEN_LIFETIME).unwrap_or(now),
        session: false,
        last_used: None,
    };
    let key = format!("{TOKENS}{hash}");
    transaction.create(key, serde_json::to_string(&token)?);
    Ok(secret)
}
