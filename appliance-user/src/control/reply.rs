//! Replies other than the status. Field names are stable.

use std::{collections::BTreeMap, net::IpAddr};

use failover::Rule;
use serde::{Deserialize, Serialize};
use service::socket::Page;

use super::{CounterStatus, NeighbourStatus, Status};
use crate::{datapath::connections::ConnectionRow, trace::Step};

/// Neighbours in a page, at most.
pub const NEIGHBOURS_PAGE: usize = 10_000;
/// Rules in a page, at most.
pub const RULES_PAGE: usize = 1000;

/// Failed-over addresses by network.
pub type Endpoints = BTreeMap<String, Vec<IpAddr>>;

/// The content of a reply. On the wire it is the content alone: the request says which one it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Request::Status`](super::Request::Status), without neighbours.
    Status(Box<Status>),
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
    /// The tenant's name.
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
mod tests {
    use appliance_common::limits::MAX_ENDPOINTS;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};
    use service::socket::MAX_LINE;

    use super::*;
    use crate::control::{Refusal, Reply};

    /// Asserts the JSON of a reply, and that a client reads the same reply from it.
    fn assert_wire<T>(answer: Answer, reply: &T, expected: Value)
    where
        T: DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let wire = serde_json::to_value(Reply::Ok(answer)).expect("serializable");
        assert_eq!(wire, json!({ "ok": expected }));
        let read: service::socket::Reply<T> = serde_json::from_value(wire).expect("readable");
        let service::socket::Reply::Ok(read) = read else {
            panic!("an error");
        };
        assert_eq!(read, *reply);
    }

    macro_rules! assert_replies {
        ($($variant:ident($reply:expr) => $json:expr;)*) => {
            $(
                let reply = $reply;
                assert_wire(Answer::$variant(reply.clone()), &reply, $json);
            )*
        };
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// The JSON of version 0.1 before the replies had types.
    #[test]
    fn replies_have_their_documented_fields() {
        let rule = Rule::from_line("web", "203.0.113.20:443/tcp -> 10.1.0.10:8443").expect("good");
        assert_replies! {
            Modes(vec![ModeStatus {
                name: "acme".to_owned(),
                mode: "full".to_owned(),
                epoch: 3,
                plan: Some("berlin".to_owned()),
                changes: None,
            }]) => json!([{
                "name": "acme", "mode": "full", "epoch": 3, "plan": "berlin", "changes": null
            }]);
            Modes(vec![ModeStatus {
                name: "acme".to_owned(),
                mode: "idle".to_owned(),
                epoch: 0,
                plan: None,
                changes: Some(vec!["a".to_owned()]),
            }]) => json!([{
                "name": "acme", "mode": "idle", "epoch": 0, "plan": null, "changes": ["a"]
            }]);
            Maintenance(MaintenanceStatus { maintenance: true }) => json!({ "maintenance": true });
            RulesAdded(RulesAdded { added: vec!["web".to_owned()] }) => json!({ "added": ["web"] });
            RulesRemoved(RulesRemoved {
                removed: vec!["web".to_owned()],
            }) => json!({ "removed": ["web"] });
            Rules(Page {
                items: vec![RuleStatus { tenant: "acme".to_owned(), rule: rule.clone() }],
                next: Some("acme web".to_owned()),
            }) => json!({ "items": [{ "tenant": "acme", "rule": rule }], "next": "acme web" });
            RulesChecked(RulesChecked {
                tenant: "acme".to_owned(),
                rules: 2,
                refused: vec!["no".to_owned()],
            }) => json!({ "tenant": "acme", "rules": 2, "refused": ["no"] });
            EndpointsAdded(EndpointsAdded {
                network: "net1".to_owned(),
                added: vec![ip("10.1.0.10")],
            }) => json!({ "network": "net1", "added": ["10.1.0.10"] });
            EndpointsRemoved(EndpointsRemoved {
                network: "net1".to_owned(),
                removed: vec![ip("2001:db8::1")],
            }) => json!({ "network": "net1", "removed": ["2001:db8::1"] });
            Endpoints(Endpoints::from([
                ("net1".to_owned(), vec![ip("10.1.0.10")]),
                ("net2".to_owned(), Vec::new()),
            ])) => json!({ "net1": ["10.1.0.10"], "net2": [] });
            Connections(Connections {
                total: 0,
                connections: Vec::new(),
            }) => json!({ "total": 0, "connections": [] });
            Done(Done::Following) => json!("following");
            Done(Done::Stopped) => json!("stopped");
            Done(Done::Reloaded) => json!("reloaded");
        }
        let refusal = Reply::Error(Refusal::new("conflict", "no"));
        assert_eq!(
            serde_json::to_string(&refusal).expect("serializable"),
            r#"{"error":{"code":"conflict","message":"no"}}"#
        );
    }

    /// The longest lists fit one reply: all endpoints of an appliance, a page of rules with the
    /// longest descriptions, a page of neighbours.
    #[test]
    fn the_longest_lists_fit_one_reply() {
        let address = ip("2fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        let name = "n".repeat(64);
        let addresses = vec![address; MAX_ENDPOINTS as usize];
        let endpoints = Answer::Endpoints(Endpoints::from([(name.clone(), addresses)]));
        let rule = Rule::from_line(
            &name,
            &format!("[{address}]:65535/both -> [{address}]:65535"),
        )
        .and_then(|rule| rule.with_description(&"\u{1f600}".repeat(256)))
        .expect("good");
        let row = RuleStatus {
            tenant: name.clone(),
            rule,
        };
        let rules = Answer::Rules(Page {
            items: vec![row; RULES_PAGE],
            next: Some(name.repeat(2)),
        });
        let neighbour = NeighbourStatus {
            network: name.clone(),
            address,
            mac: Some("00:11:22:33:44:55".to_owned()),
            state: "unreachable".to_owned(),
            age_seconds: u64::MAX,
        };
        let neighbours = Answer::Neighbours(Page {
            items: vec![neighbour; NEIGHBOURS_PAGE],
            next: Some(name),
        });
        for list in [endpoints, rules, neighbours] {
            let bytes = serde_json::to_string(&list).expect("serializable").len();
            assert!((bytes as u64) < MAX_LINE / 2, "{bytes} bytes");
        }
    }
}
