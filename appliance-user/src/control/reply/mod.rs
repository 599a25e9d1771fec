//! Replies, and the types of all but the status. Field names are stable.

use std::{collections::BTreeMap, net::IpAddr};

use failover::Rule;
use serde::{Deserialize, Serialize};
use service::socket::Page;

use super::{CounterStatus, NeighbourStatus, NetworkStatus, PeerStatus, Status, TenantStatus};
use crate::{
    config::{DesiredPage, desired::Applied},
    datapath::nat::ConnectionRow,
    trace::Step,
};

/// Neighbours in a page, at most.
pub const NEIGHBOURS_PAGE: usize = 10_000;
/// Tenants, networks or peers of the status in a page, at most.
pub const STATUS_PAGE: usize = 1000;
/// Failed-over addresses in a page of networks, after which it ends.
pub const STATUS_ENDPOINTS: usize = 10_000;
/// Objects of the desired state in a page, at most.
pub const OBJECTS_PAGE: usize = 1000;
/// Rules in a page, at most.
pub const RULES_PAGE: usize = 1000;

/// Failed-over addresses by network.
pub type Endpoints = BTreeMap<String, Vec<IpAddr>>;

/// The content of a reply. On the wire it is the content alone: the request says which one it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Request::Status`](super::Request::Status).
    Status(Box<Status>),
    /// To [`Request::Tenants`](super::Request::Tenants).
    Tenants(Page<TenantStatus>),
    /// To [`Request::Networks`](super::Request::Networks).
    Networks(Page<NetworkStatus>),
    /// To [`Request::Peers`](super::Request::Peers).
    Peers(Page<PeerStatus>),
    /// To [`Request::Neighbours`](super::Request::Neighbours).
    Neighbours(Page<NeighbourStatus>),
    /// To [`Request::Counters`](super::Request::Counters).
    Counters(Vec<CounterStatus>),
    /// To [`Request::Mode`](super::Request::Mode).
    Modes(Vec<ModeStatus>),
    /// To [`Request::Maintenance`](super::Request::Maintenance).
    Maintenance(MaintenanceStatus),
    /// To [`Request::RuleAdd`](super::Request::RuleAdd).
    RulesAdded(RulesAdded),
    /// To [`Request::RuleRemove`](super::Request::RuleRemove).
    RulesRemoved(RulesRemoved),
    /// To [`Request::RuleList`](super::Request::RuleList).
    Rules(Page<RuleStatus>),
    /// To [`Request::RuleCheck`](super::Request::RuleCheck).
    RulesChecked(RulesChecked),
    /// To [`Request::EndpointAdd`](super::Request::EndpointAdd).
    EndpointsAdded(EndpointsAdded),
    /// To [`Request::EndpointRemove`](super::Request::EndpointRemove).
    EndpointsRemoved(EndpointsRemoved),
    /// To [`Request::EndpointList`](super::Request::EndpointList).
    Endpoints(Endpoints),
    /// To [`Request::Apply`](super::Request::Apply).
    Applied(Applied),
    /// To [`Request::Desired`](super::Request::Desired).
    Desired(Box<DesiredPage>),
    /// To [`Request::TraceNext`](super::Request::TraceNext).
    Steps(Vec<Step>),
    /// To [`Request::Flows`](super::Request::Flows).
    Connections(Connections),
    /// To requests whose reply has no content.
    Done(Done),
}

/// The mode of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeStatus {
    pub name: String,
    /// `idle`, `partial` or `full`.
    pub mode: String,
    /// Raised at each switch.
    pub epoch: u32,
    /// The plan of a full failover.
    pub plan: Option<String>,
    /// Changes of a plan that was in force before the request; `None`: there was none.
    pub changes: Option<Vec<String>>,
}

/// Whether the appliance is in maintenance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceStatus {
    /// Whether new failovers are refused.
    pub maintenance: bool,
}

/// Added public IP rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesAdded {
    /// Their names.
    pub added: Vec<String>,
}

/// Removed public IP rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesRemoved {
    /// Their names.
    pub removed: Vec<String>,
}

/// A public IP rule in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// The tenant's name.
    pub tenant: String,
    pub rule: Rule,
}

/// The check of rules that could be added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesChecked {
    /// The tenant's name.
    pub tenant: String,
    /// Number of checked rules.
    pub rules: usize,
    /// Why they would be refused; empty if they would be added.
    pub refused: Vec<String>,
}

/// Addresses that were failed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointsAdded {
    /// The network's name.
    pub network: String,
    /// The addresses.
    pub added: Vec<IpAddr>,
}

/// Addresses that were returned to production.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointsRemoved {
    /// The network's name.
    pub network: String,
    /// The addresses.
    pub removed: Vec<IpAddr>,
}

/// Connections of full failover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Number of connections that match, the ones that are not listed included.
    pub total: usize,
    /// Those with most bytes, in descending order.
    pub connections: Vec<ConnectionRow>,
}

/// The result of a request whose reply has no content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Done {
    /// The packet trace is running.
    Following,
    /// The packet trace has ended.
    Stopped,
    /// The configuration was read again and is in force.
    Reloaded,
}

#[cfg(test)]
mod tests;
