//! The three changes of an object: create, replace its spec, remove.

use crate::{
    Conflict, Difference, Kind, Metadata, Object, Origin, Precondition, Refusal, Scope, State,
    Transaction,
    draft::Draft,
    kinds::within_quota,
    name::{NAME_RULE, is_name},
    refusal::Problems,
};

/// Options of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Do what would be refused for the sake of others: take the last gateway from tenants, or
    /// remove a tenant together with all that it has. A warning then says what it costs.
    pub force: bool,
    /// The owner that the object has after the change, such as the name of a file that declares it;
    /// `None` leaves it as it is.
    pub owner: Option<String>,
    /// Take the object from another owner.
    pub take_over: bool,
}

/// A change that may be committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted<K: Kind> {
    /// The difference to commit. Empty if nothing changes.
    pub transaction: Transaction,
    /// The object after the change, with the previous revision; the removed object for
    /// [`remove`].
    pub object: Object<K>,
    /// The differences that the transaction makes to objects, sorted by kind, tenant and name.
    pub differences: Vec<Difference>,
    /// Consequences that the person who asked should know.
    pub warnings: Vec<String>,
}

/// Creates an object. `tenant` is `None` exactly for objects of the provider.
///
/// # Errors
/// [`Refusal`]: the object is wrong, exists, or contradicts others.
pub fn create<K: Kind>(
    state: &State,
    tenant: Option<&str>,
    name: &str,
    spec: K,
    origin: Origin,
    options: Options,
) -> Result<Accepted<K>, Refusal> {
    let owner = options.owner.clone();
    let mut draft = begin::<K>(state, tenant, origin, options)?;
    check(tenant, name, owner.as_deref(), &spec)?;
    if let Some(there) = state.get::<K>(tenant, name) {
        let mut conflict = Conflict::new::<K>(name, "name", name);
        conflict.tenant.clone_from(&there.metadata.tenant);
        return Err(Refusal::conflict(
            format!(
                "a {} {name:?} exists already: use another name, or change that one",
                K::KIND
            ),
            vec![conflict],
        ));
    }
    if let Some(tenant) = tenant {
        draft.active_tenant(tenant)?;
        within_quota::<K>(&draft, tenant)?;
    }
    let mut object = Object {
        metadata: Metadata {
            name: name.to_owned(),
            tenant: tenant.map(ToOwned::to_owned),
            uid: origin.uid,
            generation: 1,
            created: origin.now,
            revision: 0,
            owner,
        },
        spec,
        status: K::Status::default(),
    };
    K::put(None, &mut object, &mut draft)?;
    Ok(finish(draft, object))
}

/// Replaces the spec of an object.
///
/// # Errors
/// [`Refusal`]: the object does not exist, the spec is wrong, or contradicts others.
pub fn replace<K: Kind>(
    state: &State,
    tenant: Option<&str>,
    name: &str,
    spec: K,
    origin: Origin,
    options: Options,
) -> Result<Accepted<K>, Refusal> {
    let (wanted, take_over) = (options.owner.clone(), options.take_over);
    let mut draft = begin::<K>(state, tenant, origin, options)?;
    let old = existing::<K>(state, tenant, name)?;
    check(tenant, name, wanted.as_deref(), &spec)?;
    let owner = owner_after(old, wanted, take_over, &mut draft)?;
    if old.spec == spec && old.metadata.owner == owner {
        let mut transaction = Transaction::default();
        let precondition = Precondition::At(old.metadata.revision);
        transaction.preconditions.insert(old.key(), precondition);
        return Ok(Accepted {
            transaction,
            object: old.clone(),
            differences: Vec::new(),
            warnings: Vec::new(),
        });
    }
    let mut object = old.clone();
    object.metadata.owner = owner;
    if old.spec != spec {
        object.spec = spec;
        object.metadata.generation += 1;
        K::put(Some(old), &mut object, &mut draft)?;
    }
    Ok(finish(draft, object))
}

/// The owner after a change of the spec. A change that names no owner leaves it, with a warning.
fn owner_after<K: Kind>(
    old: &Object<K>,
    wanted: Option<String>,
    take_over: bool,
    draft: &mut Draft<'_>,
) -> Result<Option<String>, Refusal> {
    let (kind, name) = (K::KIND, old.name());
    match (&old.metadata.owner, wanted) {
        (Some(owner), None) => {
            draft.warn(format!(
                "{kind} {name:?} is declared by {owner:?}: change it there, too, or the next apply \
                 undoes this change"
            ));
            Ok(Some(owner.clone()))
        }
        (Some(owner), Some(wanted)) if *owner != wanted && !take_over => {
            let mut conflict = Conflict::new::<K>(name, "metadata.owner", owner);
            conflict.tenant.clone_from(&old.metadata.tenant);
            Err(Refusal::conflict(
                format!(
                    "{kind} {name:?} is declared by {owner:?}, not by {wanted:?}: change it there, \
                     or take it over"
                ),
                vec![conflict],
            ))
        }
        (_, wanted) => Ok(wanted),
    }
}

/// Removes an object, and gives back what it had claimed.
///
/// # Errors
/// [`Refusal`]: the object does not exist, or others use it.
pub fn remove<K: Kind>(
    state: &State,
    tenant: Option<&str>,
    name: &str,
    origin: Origin,
    options: Options,
) -> Result<Accepted<K>, Refusal> {
    let mut draft = begin::<K>(state, tenant, origin, options)?;
    let old = existing::<K>(state, tenant, name)?;
    K::delete(old, &mut draft)?;
    draft.erase(old);
    let (transaction, differences, warnings) = draft.finish();
    Ok(Accepted {
        transaction,
        object: old.clone(),
        differences,
        warnings,
    })
}

fn begin<'s, K: Kind>(
    state: &'s State,
    tenant: Option<&str>,
    origin: Origin,
    options: Options,
) -> Result<Draft<'s>, Refusal> {
    let mut draft = Draft::new(state, origin, options);
    match (K::SCOPE, tenant) {
        (Scope::Provider, None) => draft.guard_provider(),
        (Scope::Tenant, Some(tenant)) => {
            draft.tenant(tenant)?;
            draft.guard_tenant(tenant);
        }
        (Scope::Provider, Some(tenant)) => {
            return Err(scope::<K>(
                tenant,
                "belongs to the provider: name no tenant",
            ));
        }
        (Scope::Tenant, None) => {
            return Err(scope::<K>("", "belongs to a tenant: name the tenant"));
        }
    }
    Ok(draft)
}

/// The object that is replaced or removed.
fn existing<'s, K: Kind>(
    state: &'s State,
    tenant: Option<&str>,
    name: &str,
) -> Result<&'s Object<K>, Refusal> {
    let object = state.get::<K>(tenant, name);
    object.ok_or_else(|| Refusal::not_found::<K>(tenant, name))
}

fn scope<K: Kind>(tenant: &str, rule: &str) -> Refusal {
    let mut problems = Problems::new::<K>(None, "");
    problems.add("tenant", tenant, format!("a {} {rule}", K::KIND));
    match problems.into_result() {
        Err(refusal) => refusal,
        // A problem was added.
        Ok(()) => Refusal::not_found::<K>(None, ""),
    }
}

/// Checks the name, the owner and the spec of an object by itself.
pub(crate) fn check<K: Kind>(
    tenant: Option<&str>,
    name: &str,
    owner: Option<&str>,
    spec: &K,
) -> Result<(), Refusal> {
    let mut problems = Problems::new::<K>(tenant, name);
    problems.require(is_name(name), "name", name, NAME_RULE);
    if let Some(owner) = owner {
        problems.require(is_name(owner), "owner", owner, NAME_RULE);
    }
    spec.check(&mut problems);
    problems.into_result()
}

fn finish<K: Kind>(mut draft: Draft<'_>, object: Object<K>) -> Accepted<K> {
    draft.write(&object);
    let (transaction, differences, warnings) = draft.finish();
    Accepted {
        transaction,
        object,
        differences,
        warnings,
    }
}
