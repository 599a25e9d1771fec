//! Enrolment, renewal and first use of certificates, as changes of the store.

use std::{net::IpAddr, sync::PoisonError};

use control::{Difference, Transaction};
use identity::{Certificate, Issued, Machine, Request, Secret};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{authority, shared::Agents};
use crate::{
    Director,
    audit::{Access, Outcome, Subject},
    change::{Planned, RecordError, Wanted},
    live::Live,
    machines::{
        ENROLMENTS, Enrolment, IDENTITIES, IssuedKey, MachineIdentity, machine_key, must_be,
    },
    people::{Actor, ENROLMENT},
    problem::Problem,
    roles::Role,
};

/// Why a machine is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EnrolmentRefusal {
    /// The request cannot be used.
    #[error("{0}")]
    Request(String),
    /// No token has this secret.
    #[error(
        "the enrolment token is not known: it was revoked, another one was created for the same \
         machine, or the machine was removed; create a new token"
    )]
    UnknownToken,
    /// The token has expired.
    #[error("the enrolment token {id} has expired at {at}: create a new token")]
    Expired {
        /// Id of the token.
        id: String,
        /// Its end.
        at: Timestamp,
    },
    /// The token was used for another key.
    #[error(
        "the enrolment token {id} was used at {at}, by another key: if that was not this machine, \
         revoke its identity; create a new token"
    )]
    Used {
        /// Id of the token.
        id: String,
        /// Time of its use.
        at: Timestamp,
    },
    /// The certificate does not hold.
    #[error(
        "the certificate of {name} is not valid: the identity was revoked or enrolled anew, or \
         another machine has a copy of it and has renewed it; enrol this machine by a new token"
    )]
    Certificate {
        /// Key of the machine's object.
        name: String,
    },
    /// The certificate has expired, and may be renewed only.
    #[error("the certificate has expired at {at}: renew it")]
    Renew {
        /// Its last second.
        at: Timestamp,
    },
    /// The last certificate is very new.
    #[error("the last certificate was issued at {at}: renew it later")]
    TooSoon {
        /// When it was issued.
        at: Timestamp,
    },
    /// The store cannot be used.
    #[error("the director cannot use its store: try again")]
    Unavailable,
}

/// Least time between certificates of a machine.
const RENEWAL_INTERVAL: SignedDuration = SignedDuration::from_secs(60);

/// The certificate of a machine that is accepted, and the authorities to trust.
pub(super) struct Granted {
    pub issued: Issued,
    pub roots: Vec<Vec<u8>>,
}

/// Enrols the machine of a token with a key.
pub(super) async fn enrol(
    director: &Director,
    agents: &Agents,
    (secret, request): (&[u8], &[u8]),
    peer: IpAddr,
) -> Result<Granted, EnrolmentRefusal> {
    let secret = Secret::from_slice(secret)
        .ok_or_else(|| EnrolmentRefusal::Request("the secret does not have 16 bytes".to_owned()))?;
    let hash = secret.hash();
    let (enrolment, machine) = {
        let live = director
            .live()
            .await
            .map_err(|_| EnrolmentRefusal::Unavailable)?;
        let found = live.enrolments.get(&hash).map(|(found, _)| found.clone());
        let known = found.and_then(|found| machine_of(&found.machine).map(|of| (found, of)));
        let Some(known) = known else {
            // No entry of the audit, which strangers would fill.
            agents
                .strangers
                .warn(peer, "no enrolment token has this secret");
            return Err(EnrolmentRefusal::UnknownToken);
        };
        known
    };
    // Its signature is checked for those alone who know a secret.
    let request = read(request)?;
    let actor = actor(&machine, &format!("{ENROLMENT} {}", enrolment.id));
    let subject = subject("enrol", &machine, peer);
    let key = request.key().to_string();
    {
        let live = director
            .live()
            .await
            .map_err(|_| EnrolmentRefusal::Unavailable)?;
        let refused = refusal(&enrolment, &key, &live, director.environment.now());
        drop(live);
        if let Some(refused) = refused {
            note(director, agents, actor, subject, &refused);
            return Err(refused);
        }
    }
    let issued = agents.trusted.issue(machine, &enrolment.id, &request);
    let issued = issued.map_err(|error| internal(&error))?;
    let granted = Granted {
        issued,
        roots: agents.trusted.roots(),
    };
    if enrolment.used.is_some() {
        // The answer was lost, and the identity is of this key already.
        return Ok(granted);
    }
    let issued = &granted.issued;
    let wanted = Wanted {
        actor: &actor,
        subject: subject.clone(),
        dry_run: false,
        status: 200,
        idempotency: None,
    };
    let done = director.change(wanted, |live, origin| {
        let (found, revision) = live.enrolments.get(&hash).ok_or_else(Problem::no_token)?;
        // Refusals are told below, once the state has been read.
        if found.used.is_some() || refusal(found, &key, live, origin.now).is_some() {
            return Err(Problem::no_token());
        }
        let mut transaction = Transaction::default();
        let stored = format!("{ENROLMENTS}{hash}");
        must_be(&mut transaction, &stored, Some(*revision));
        let used = Enrolment {
            used: Some(origin.now),
            key: Some(key.clone()),
            ..found.clone()
        };
        transaction.put.insert(stored, text(&used)?);
        let before = live.identities.get(&found.machine);
        let after = MachineIdentity {
            enrolment: found.id.clone(),
            enrolled: origin.now,
            current: IssuedKey::new(&request, issued),
            next: None,
        };
        // Other tokens of the machine end: none of them takes the identity back.
        for (other, (enrolment, revision)) in &live.enrolments {
            if enrolment.machine == found.machine && *other != hash {
                let stored = format!("{ENROLMENTS}{other}");
                must_be(&mut transaction, &stored, Some(*revision));
                transaction.delete.insert(stored);
            }
        }
        let stored = format!("{IDENTITIES}{}", found.machine);
        must_be(
            &mut transaction,
            &stored,
            before.map(|(_, revision)| *revision),
        );
        transaction.put.insert(stored, text(&after)?);
        let before = before.map(|(identity, _)| identity);
        Ok(Planned {
            transaction,
            body: Value::Null,
            warnings: Vec::new(),
            differences: vec![difference(&found.machine, before, Some(&after))],
        })
    });
    let Err(problem) = done.await else {
        return Ok(granted);
    };
    let live = director
        .live()
        .await
        .map_err(|_| EnrolmentRefusal::Unavailable)?;
    let now = director.environment.now();
    let refused = match live.enrolments.get(&hash) {
        None => EnrolmentRefusal::UnknownToken,
        Some((found, _)) => match refusal(found, &key, &live, now) {
            Some(refused) => refused,
            // The store, then, or a director that stops.
            None => {
                tracing::warn!(?problem, "cannot enrol a machine");
                return Err(EnrolmentRefusal::Unavailable);
            }
        },
    };
    drop(live);
    note(director, agents, actor, subject, &refused);
    Err(refused)
}

/// Why a token may not be used with a key at this time. One that was used enrols its key again only
/// while the identity is still as that use has left it.
fn refusal(
    enrolment: &Enrolment,
    key: &str,
    live: &Live,
    now: Timestamp,
) -> Option<EnrolmentRefusal> {
    let id = enrolment.id.clone();
    let identity = live.identities.get(&enrolment.machine);
    let may_repeat = identity.is_some_and(|(identity, _)| identity.may_repeat(&id, key));
    if let Some(at) = enrolment.used.filter(|_| !may_repeat) {
        return Some(EnrolmentRefusal::Used { id, at });
    }
    let at = enrolment.expires;
    (now >= at).then_some(EnrolmentRefusal::Expired { id, at })
}

/// Issues another certificate for a machine, by the one that it has.
pub(super) async fn renew(
    director: &Director,
    agents: &Agents,
    (certificate, request): (&Certificate, &[u8]),
    peer: IpAddr,
) -> Result<Granted, EnrolmentRefusal> {
    let machine = certificate.name.machine().clone();
    let key = machine_key(&machine).unwrap_or_default();
    let now = director.environment.now();
    let at = certificate.validity.not_after;
    let is_late = now.duration_since(at).unsigned_abs() > agents.settings.grace && now > at;
    let known = {
        let live = director
            .live()
            .await
            .map_err(|_| EnrolmentRefusal::Unavailable)?;
        let found = live
            .identities
            .get(&key)
            .map(|(identity, _)| identity.clone());
        found.filter(|identity| !is_late && identity.accepts(certificate))
    };
    let Some(known) = known else {
        return Err(refuse(director, agents, certificate, peer));
    };
    let at = known.issued();
    let age = now.duration_since(at);
    if !age.is_negative() && age < RENEWAL_INTERVAL {
        return Err(EnrolmentRefusal::TooSoon { at });
    }
    let request = read(request)?;
    if request.key() == certificate.key {
        let text = "a renewal needs another key than that of the certificate in use";
        return Err(EnrolmentRefusal::Request(text.to_owned()));
    }
    let issued = agents.trusted.issue(machine, &known.enrolment, &request);
    let issued = issued.map_err(|error| internal(&error))?;
    let renewed = |identity: MachineIdentity| MachineIdentity {
        next: Some(IssuedKey::new(&request, &issued)),
        ..identity.used(certificate)
    };
    change_identity(director, agents, certificate, &key, peer, renewed).await?;
    tracing::info!(
        machine = key,
        serial = %issued.serial,
        until = %issued.validity.not_after,
        "renewed a certificate"
    );
    Ok(Granted {
        issued,
        roots: agents.trusted.roots(),
    })
}

/// Checks the certificate of a stream; the first use of a renewed one ends the one before. Returns
/// the key of the machine's object, and the id of its enrolment token.
pub(super) async fn accept(
    director: &Director,
    agents: &Agents,
    certificate: &Certificate,
    peer: IpAddr,
) -> Result<(String, String), EnrolmentRefusal> {
    let key = machine_key(certificate.name.machine()).unwrap_or_default();
    let known = {
        let live = director
            .live()
            .await
            .map_err(|_| EnrolmentRefusal::Unavailable)?;
        let found = live.identities.get(&key).map(|(identity, _)| identity);
        let found = found.filter(|identity| identity.accepts(certificate));
        found.map(|found| (found.is_new(certificate), found.enrolment.clone()))
    };
    let Some((is_new, enrolment)) = known else {
        return Err(refuse(director, agents, certificate, peer));
    };
    if !certificate.validity.contains(director.environment.now()) {
        let at = certificate.validity.not_after;
        return Err(EnrolmentRefusal::Renew { at });
    }
    if !is_new {
        return Ok((key, enrolment));
    }
    let used = |identity: MachineIdentity| identity.used(certificate);
    let enrolment = change_identity(director, agents, certificate, &key, peer, used).await?;
    Ok((key, enrolment))
}

/// Changes the identity of a machine whose certificate holds. It is no change of an object, and has
/// no entry in the audit; a refusal has one. Returns the id of the enrolment token.
async fn change_identity(
    director: &Director,
    agents: &Agents,
    certificate: &Certificate,
    key: &str,
    peer: IpAddr,
    change: impl Fn(MachineIdentity) -> MachineIdentity,
) -> Result<String, EnrolmentRefusal> {
    let enrolment = std::sync::Mutex::new(String::new());
    let recorded = director.record(|live: &Live, _| {
        let found = live.identities.get(key);
        let found = found.filter(|(identity, _)| identity.accepts(certificate));
        let (identity, revision) = found.ok_or_else(|| EnrolmentRefusal::Certificate {
            name: key.to_owned(),
        })?;
        let mut of = enrolment.lock().unwrap_or_else(PoisonError::into_inner);
        of.clone_from(&identity.enrolment);
        drop(of);
        if identity.has_forgotten(certificate) {
            tracing::warn!(
                machine = key,
                serial = %certificate.serial,
                "the store does not know a certificate that was issued later than its last one: \
                 it was restored from a backup; accepting the certificate"
            );
        }
        let after = change(identity.clone());
        if after == *identity {
            return Ok(None);
        }
        let mut transaction = Transaction::default();
        let stored = format!("{IDENTITIES}{key}");
        must_be(&mut transaction, &stored, Some(*revision));
        let text = serde_json::to_string(&after).map_err(|_| EnrolmentRefusal::Unavailable)?;
        transaction.put.insert(stored, text);
        Ok(Some(transaction))
    });
    match recorded.await {
        Ok(()) => Ok(enrolment
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)),
        Err(RecordError::Refused(EnrolmentRefusal::Certificate { .. })) => {
            Err(refuse(director, agents, certificate, peer))
        }
        Err(RecordError::Refused(refused)) => Err(refused),
        Err(RecordError::Unavailable) => Err(EnrolmentRefusal::Unavailable),
    }
}

/// Refuses a certificate that is not valid, in the audit and in the log.
fn refuse(
    director: &Director,
    agents: &Agents,
    certificate: &Certificate,
    peer: IpAddr,
) -> EnrolmentRefusal {
    let machine = certificate.name.machine();
    let refused = EnrolmentRefusal::Certificate {
        name: machine_key(machine).unwrap_or_default(),
    };
    let token = format!("certificate {}", certificate.serial);
    let (actor, subject) = (actor(machine, &token), subject("connect", machine, peer));
    note(director, agents, actor, subject, &refused);
    refused
}

fn read(request: &[u8]) -> Result<Request, EnrolmentRefusal> {
    Request::read(request).map_err(|error| EnrolmentRefusal::Request(error.to_string()))
}

fn internal(error: &authority::Error) -> EnrolmentRefusal {
    tracing::error!(%error, "cannot issue a certificate");
    EnrolmentRefusal::Unavailable
}

fn text(value: &impl serde::Serialize) -> Result<String, Problem> {
    serde_json::to_string(value).map_err(|error| Problem::internal(&error))
}

/// The machine of an object's key.
pub(super) fn machine_of(key: &str) -> Option<Machine> {
    let parts: Vec<_> = key.split('/').collect();
    let machine = match parts[..] {
        [_, name] => Machine::Gateway { name: name.into() },
        [_, tenant, name] => Machine::Appliance {
            tenant: tenant.into(),
            name: name.into(),
        },
        _ => return None,
    };
    (machine_key(&machine).as_deref() == Some(key)).then_some(machine)
}

/// The machine as the user of an entry in the audit. The key of an object is no name of a user.
fn actor(machine: &Machine, token: &str) -> Actor {
    let (role, tenant, name) = match machine {
        Machine::Appliance { tenant, name } => (Role::Appliance, Some(tenant.clone()), name),
        Machine::Gateway { name } => (Role::Gateway, None, name),
        Machine::Director => (Role::Gateway, None, &String::new()),
    };
    Actor {
        user: machine_key(machine).unwrap_or_default(),
        role,
        tenant,
        object: Some(name.clone()),
        token: token.to_owned(),
    }
}

fn subject(operation: &str, machine: &Machine, peer: IpAddr) -> Subject {
    let actor = actor(machine, "");
    let kind = actor.role.machine().unwrap_or_default();
    Subject {
        operation: format!("{kind}.{operation}"),
        kind: kind.to_owned(),
        tenant: actor.tenant,
        name: actor.object.unwrap_or_default(),
        reason: None,
        address: Some(peer),
        outcome: Outcome::done(200),
    }
}

/// Notes a refused machine for the audit and the log, both of which have limits.
fn note(
    director: &Director,
    agents: &Agents,
    actor: Actor,
    mut subject: Subject,
    refused: &EnrolmentRefusal,
) {
    let problem = match refused {
        EnrolmentRefusal::Expired { .. } => "token-expired",
        EnrolmentRefusal::Used { .. } => "token-used",
        EnrolmentRefusal::UnknownToken => "token-unknown",
        EnrolmentRefusal::Certificate { .. } => "certificate",
        EnrolmentRefusal::Renew { .. }
        | EnrolmentRefusal::TooSoon { .. }
        | EnrolmentRefusal::Request(_)
        | EnrolmentRefusal::Unavailable => return,
    };
    if let Some(address) = subject.address {
        agents
            .refusals
            .warn(address, &format!("{}: {refused}", actor.user));
    }
    subject.outcome = Outcome::refused(403, problem);
    let at = director.environment.now();
    director.accesses.refused(Access { at, actor, subject });
}

/// The difference of an identity in the audit.
pub(crate) fn difference(
    key: &str,
    before: Option<&MachineIdentity>,
    after: Option<&MachineIdentity>,
) -> Difference {
    let shown = |identity: &MachineIdentity| {
        json!({
            "enrolment": identity.enrolment,
            "key": identity.current.key,
            "serial": identity.current.serial,
        })
    };
    let machine = machine_of(key);
    let actor = machine.as_ref().map(|machine| actor(machine, ""));
    let tenant = actor.as_ref().and_then(|actor| actor.tenant.as_deref());
    let name = actor.as_ref().and_then(|actor| actor.object.as_deref());
    Difference::between(
        "identity",
        tenant,
        name.unwrap_or_default(),
        before.map(shown).as_ref(),
        after.map(shown).as_ref(),
    )
}
