//! Agents of machines, of the state in memory and of open streams.

use control::{Agent, AgentConnection};

use super::Live;
use crate::machines::Presence;

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
