//! Conditions of objects: what is true of them now, computed from the state and the time.
//!
//! Facts that only a machine knows come from its agent: [`Agents`]. Where there is none, they are
//! told as unknown, or as not there, with the reason `NoAgent`.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{Kind, Object, State, kinds::Gateways, tenant_view::TenantView};

/// Reason of conditions that an agent would have to observe.
pub const NO_AGENT: &str = "NoAgent";

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Holds {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// The director cannot observe it.
    Unknown,
}

/// A condition of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Condition {
    /// Stable name of the condition, such as `Enabled`; unique within the object.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it holds.
    pub status: Holds,
    /// Stable name of the reason, such as `LeaseEnded`.
    pub reason: &'static str,
    /// The reason, for people.
    pub message: String,
    /// The generation of the object that this is true of.
    #[schema(minimum = 1)]
    pub observed_generation: u64,
    /// Time of the last change of `status`; omitted where it is not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// Whether the administrator has nothing to do about it.
    #[serde(skip)]
    #[schema(ignore)]
    pub is_well: bool,
}

impl Condition {
    /// A condition that holds, or not; it is well if it holds.
    pub(crate) fn new<K: Kind>(
        object: &Object<K>,
        kind: &'static str,
        holds: bool,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            status: if holds { Holds::True } else { Holds::False },
            reason,
            message: message.into(),
            observed_generation: object.metadata.generation,
            since: None,
            is_well: holds,
        }
    }

    /// A condition with the reason and the message that it has if it holds, or if it does not.
    pub(crate) fn either<K: Kind>(
        object: &Object<K>,
        kind: &'static str,
        holds: bool,
        if_true: (&'static str, &str),
        if_false: (&'static str, &str),
    ) -> Self {
        let (reason, message) = if holds { if_true } else { if_false };
        Self::new(object, kind, holds, reason, message)
    }
}

/// The agent of a machine that has enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Time of the enrolment.
    pub enrolled: Timestamp,
    /// Last second of its certificate.
    pub expires: Timestamp,
    /// Its connection, while it is connected.
    pub connection: Option<AgentConnection>,
}

/// The open connection of an agent, with its last report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConnection {
    /// Begin of the connection.
    pub since: Timestamp,
    /// Version of the daemon.
    pub version: String,
    /// Whether the machine is ready, and why not; `None` before its first report.
    pub report: Option<(bool, Vec<String>)>,
}

/// The agents of machines, as far as they are known.
pub trait Agents {
    /// The agent of a machine, by the key of its object; `None` before it has enrolled.
    fn agent(&self, key: &str) -> Option<Agent>;
}

/// The state at a time, for the conditions of many objects.
pub struct Observed<'s> {
    pub(crate) state: &'s State,
    agents: Option<&'s dyn Agents>,
    pub(crate) now: Timestamp,
    pub(crate) gateways: Gateways<'s>,
    /// The last tenant, whose plans are checked one after the other.
    view: Option<(String, TenantView)>,
}

impl<'s> Observed<'s> {
    /// The state at this time.
    #[must_use]
    pub fn new(state: &'s State, now: Timestamp) -> Self {
        Self {
            state,
            agents: None,
            now,
            gateways: Gateways::of(state),
            view: None,
        }
    }

    /// The same, with the agents of machines.
    #[must_use]
    pub fn with_agents(mut self, agents: &'s dyn Agents) -> Self {
        self.agents = Some(agents);
        self
    }

    /// The agent of the machine that an object is.
    pub(crate) fn agent<K: Kind>(&self, object: &Object<K>) -> Option<Agent> {
        self.agents?.agent(&object.key())
    }

    /// The conditions of an object of the state; none for kinds that have none.
    pub fn conditions<K: Kind>(&mut self, object: &Object<K>) -> Vec<Condition> {
        K::conditions(object, self)
    }

    /// The tenant's objects, to check its plans.
    pub(crate) fn view(&mut self, tenant: &str) -> &TenantView {
        let kept = self.view.take().filter(|(of, _)| of == tenant);
        let made = kept.unwrap_or_else(|| (tenant.to_owned(), TenantView::of(self.state, tenant)));
        &self.view.insert(made).1
    }
}
