//! Requests in the audit besides changes: refused ones, and reads of a tenant's objects by the
//! provider's users.

use std::net::IpAddr;

use axum::http::{Method, StatusCode, request::Parts};
use control::{Kind as _, Tenant};

use super::{answer::Answer, operation::Operation, request::pairs};
use crate::{
    Director,
    audit::{Access, Outcome, Subject},
    people::Actor,
    problem::Problem,
};

/// Longest name and reason in an entry of a refusal, characters: the request may have any.
const MAX_TEXT: usize = 64;

/// A request, as far as an entry tells of it.
pub(super) struct Seen {
    actor: Actor,
    subject: Subject,
    is_read: bool,
    /// Nothing would be changed if it were accepted.
    is_dry_run: bool,
    /// The tenant in the path, or in the query: also one that is itself the object.
    tenant: Option<String>,
}

impl Seen {
    pub fn new(operation: &Operation, actor: Actor, parameters: &[String], parts: &Parts) -> Self {
        let places = operation
            .path
            .split('/')
            .filter(|part| part.starts_with('{'));
        let values: Vec<_> = places.zip(parameters).collect();
        let of = |place: &str| {
            let found = values.iter().find(|(found, _)| *found == place);
            found.map(|(_, value)| shortened(value))
        };
        let query = parts.uri.query().unwrap_or_default();
        let sent = |wanted: &str| {
            let mut both = pairs(query).filter_map(|(_, both)| both);
            both.find_map(|(name, value)| (name == wanted).then_some(value))
        };
        let asked = sent("tenant").filter(|tenant| control::is_name(tenant));
        let tenant = of("{tenant}").or(asked);
        let name = of("{name}").or_else(|| of("{id}"));
        let kind = operation.id.rsplit_once('.').map_or("", |(kind, _)| kind);
        let is_foreign = actor.tenant.is_some() && tenant.is_some() && tenant != actor.tenant;
        let name = match (&tenant, name) {
            // A tenant's audit has its users' requests, and none of other tenants' users.
            (Some(tenant), name) if is_foreign => {
                format!("{tenant}/{}", name.unwrap_or_default())
            }
            (_, name) => name.unwrap_or_default(),
        };
        let reason = parts.headers.get("x-reason");
        let reason = reason.and_then(|reason| reason.to_str().ok());
        Self {
            subject: Subject {
                operation: operation.id.clone(),
                kind: kind.to_owned(),
                tenant: actor.tenant.clone().or_else(|| tenant.clone()),
                name,
                reason: reason.map(shortened),
                address: None,
                outcome: Outcome::done(StatusCode::OK.as_u16()),
            },
            is_read: operation.method == Method::GET,
            is_dry_run: sent("dry_run").as_deref() == Some("true"),
            tenant: match kind == Tenant::KIND {
                true => of("{name}"),
                false => tenant,
            },
            actor,
        }
    }

    /// Notes the request for the audit, if it has no entry by itself and is to have one. `name` is
    /// that of the object to be created.
    pub fn note(
        mut self,
        director: &Director,
        name: Option<String>,
        peer: Option<IpAddr>,
        result: &Result<Answer, Problem>,
    ) {
        self.subject.address = peer;
        if let Some(name) = name.filter(|_| self.subject.name.is_empty()) {
            self.subject.name = shortened(&name);
        }
        let at = director.environment.now();
        match result {
            Err(problem) => {
                self.subject.outcome = problem.outcome();
                let is_forbidden = self.subject.outcome.status == StatusCode::FORBIDDEN.as_u16();
                // An operation that the role may not do is noted also if it would only read.
                if is_forbidden || !self.is_read && !self.is_dry_run {
                    let (actor, subject) = (self.actor, self.subject);
                    director.accesses.refused(Access { at, actor, subject });
                }
            }
            // The differences of a dry run tell what there is.
            Ok(_) if (self.is_read || self.is_dry_run) && self.actor.tenant.is_none() => {
                if let Some(tenant) = self.tenant {
                    let (actor, subject) = (self.actor, self.subject);
                    let access = Access { at, actor, subject };
                    let now = director.environment.monotonic();
                    director.accesses.read(access, &tenant, now);
                }
            }
            Ok(_) => {}
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}
