//! Records that end together with an object or a user.

use control::{Kind as _, Precondition, Tenant, Transaction};

use super::{Live, STORED_ANSWER_PREFIX};
use crate::{
    machines::{ENROLMENTS, IDENTITIES},
    people::{TOKENS, USERS},
};

/// Deletes users, their tokens and their stored answers together with their tenant, or with the
/// object that a machine is: a later one of the same name is another one. The transaction deletes
/// tenants and objects, also such that follow from the change of another one.
pub(crate) fn remove_users_of_deleted(live: &Live, transaction: &mut Transaction) {
    let is_deleted = |kind: &str, tenant: Option<&str>, name: &str| {
        let key = match tenant {
            Some(tenant) => format!("{kind}/{tenant}/{name}"),
            None => format!("{kind}/{name}"),
        };
        transaction.delete.contains(&key)
    };
    let users = live.users.values().map(|(user, _)| user);
    let ended = users.filter(|user| {
        let tenant = user.tenant.as_deref();
        let is_of_tenant = tenant.is_some_and(|tenant| is_deleted(Tenant::KIND, None, tenant));
        let machine = user.role.machine().zip(user.object.as_deref());
        is_of_tenant || machine.is_some_and(|(kind, object)| is_deleted(kind, tenant, object))
    });
    let ended: Vec<_> = ended.map(|user| user.name.clone()).collect();
    for name in ended {
        delete_user(&name, live, transaction);
    }
}

/// Deletes a user with all that it has.
pub(crate) fn delete_user(name: &str, live: &Live, transaction: &mut Transaction) {
    let key = format!("{USERS}{name}");
    if let Some((_, revision)) = live.users.get(name) {
        let precondition = Precondition::At(*revision);
        transaction.preconditions.insert(key.clone(), precondition);
    }
    transaction.delete.insert(key);
    delete_tokens(name, live, transaction);
    for key in live.stored_answers_of(name) {
        transaction
            .delete
            .insert(format!("{STORED_ANSWER_PREFIX}{key}"));
    }
}

fn delete_tokens(user: &str, live: &Live, transaction: &mut Transaction) {
    for (hash, (token, _)) in &live.tokens {
        if token.user == user {
            transaction.delete.insert(format!("{TOKENS}{hash}"));
        }
    }
}

/// Deletes the tokens and the identity of machines that a transaction deletes: a later machine of
/// the same name is another one.
pub(crate) fn forget_machine(live: &Live, transaction: &mut Transaction) {
    let identities = live.identities.keys();
    let gone: Vec<_> = identities
        .filter(|key| transaction.delete.contains(*key))
        .map(|key| format!("{IDENTITIES}{key}"))
        .collect();
    let enrolments = live.enrolments.iter();
    let ended: Vec<_> = enrolments
        .filter(|(_, (enrolment, _))| transaction.delete.contains(&enrolment.machine))
        .map(|(hash, _)| format!("{ENROLMENTS}{hash}"))
        .collect();
    transaction.delete.extend(gone);
    transaction.delete.extend(ended);
}
