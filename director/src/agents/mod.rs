//! Machines as agents: gateways and appliances that enrol by a token, and from then on are known by
//! a certificate of the director's own authority.
//!
//! For: the authority, enrolment tokens, certificates and their renewal, and the agents' streams.
//! Never: the form of tokens and certificates, which is the crate `identity`'s.
//!
//! ```text
//!   API: create a token ─▶ records: hash ─┐
//!                                         ▼
//!   listener: TLS ─▶ service (gRPC) ─▶ enrol: secret, request ─▶ identity record ─▶ certificate
//!                        │                    │ audit                   │
//!                        │                    └ renewal ◀───────────────┤ deleted: revoked
//!                        ▼                                              ▼
//!                   presence: open streams ◀──────────── closes those of another identity
//! ```

mod authority;
mod enrol;
mod listener;
mod presence;
mod records;
mod service;

pub use authority::Error as AuthorityError;
pub use listener::{Error, Settings, start};
pub use records::{Enrolment, IssuedKey, MachineIdentity};

pub(crate) use enrol::difference;
pub(crate) use listener::Agents;
pub(crate) use presence::Presence;
pub(crate) use records::{
    AUTHORITIES, ENROLMENTS, IDENTITIES, StoredAuthority, conflict, forget_machine, must_be,
};

use control::{Agent, AgentConnection};

use crate::live::Live;

/// Agents as conditions of objects tell of them.
pub(crate) struct KnownAgents<'a> {
    pub live: &'a Live,
    pub presence: &'a Presence,
}

impl control::Agents for KnownAgents<'_> {
    fn agent(&self, key: &str) -> Option<Agent> {
        let (identity, _) = self.live.identities.get(key)?;
        let connection = self.presence.of(key).map(|open| AgentConnection {
            since: open.since,
            version: open.version,
            report: open.report.map(|report| (report.ready, report.reasons)),
        });
        Some(Agent {
            enrolled: identity.enrolled,
            expires: identity.expires(),
            connection,
        })
    }
}
