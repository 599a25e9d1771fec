//! Differences of users and tokens, for the audit.

use control::{Difference, FieldDifference, Transaction};
use serde_json::json;

use crate::{
    live::Live,
    people::{TOKENS, Token, USERS, User},
};

/// The differences that a transaction makes to users and tokens, without secrets and their hashes.
pub(super) fn of_people(live: &Live, transaction: &Transaction) -> Vec<Difference> {
    let mut found = Vec::new();
    for (key, value) in &transaction.put {
        if let Some(name) = key.strip_prefix(USERS) {
            let before = live.users.get(name).map(|(user, _)| user);
            let after = serde_json::from_str::<User>(value).ok();
            found.extend(of_user(before, after.as_ref()));
        } else if let Some(hash) = key.strip_prefix(TOKENS) {
            let before = live.tokens.get(hash).map(|(token, _)| token);
            let after = serde_json::from_str::<Token>(value).ok();
            found.extend(of_token(live, before, after.as_ref()));
        }
    }
    for key in &transaction.delete {
        if let Some(name) = key.strip_prefix(USERS) {
            found.extend(of_user(live.users.get(name).map(|(user, _)| user), None));
        } else if let Some(hash) = key.strip_prefix(TOKENS) {
            let before = live.tokens.get(hash).map(|(token, _)| token);
            found.extend(of_token(live, before, None));
        }
    }
    found
}

fn of_user(before: Option<&User>, after: Option<&User>) -> Option<Difference> {
    let shown = |user: &User| {
        json!({
            "role": user.role,
            "object": user.object,
            "password": user.password.is_some(),
            "authenticator": user.totp.as_ref().is_some_and(|totp| totp.is_confirmed),
        })
    };
    let either = after.or(before)?;
    let mut difference = Difference::between(
        "user",
        either.tenant.as_deref(),
        &either.name,
        before.map(shown).as_ref(),
        after.map(shown).as_ref(),
    );
    // Its hash is not shown.
    if let (Some(before), Some(after)) = (before, after)
        && before.password.is_some()
        && before.password != after.password
    {
        difference.fields.push(FieldDifference {
            field: "password".to_owned(),
            before: "the one before".into(),
            after: "another one".into(),
        });
    }
    Some(difference)
}

fn of_token(live: &Live, before: Option<&Token>, after: Option<&Token>) -> Option<Difference> {
    let shown = |token: &Token| {
        json!({
            "user": token.user,
            "description": token.description,
            "expires": token.expires,
        })
    };
    let either = after.or(before)?;
    let user = live.users.get(&either.user);
    Some(Difference::between(
        "token",
        user.and_then(|(user, _)| user.tenant.as_deref()),
        &either.id,
        before.map(shown).as_ref(),
        after.map(shown).as_ref(),
    ))
}
