//! The written form of a rule, with serde.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Protocol, Rule, RuleError, RuleTarget};
use crate::{IpPrefix, PortRange};

/// A rule as it is written in plans and in the stored state.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, such as [[rule]]")]
pub(crate) struct File {
    pub(crate) name: String,
    #[serde(deserialize_with = "deserialize_address")]
    public_ip: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_port: Option<PortRange>,
    #[serde(deserialize_with = "deserialize_address")]
    internal_ip: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    internal_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    one_to_one: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allow: Vec<IpPrefix>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
}

fn deserialize_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        de::Error::custom(format!(
            "{text:?} is not an address: write an address such as 203.0.113.20 or 2001:db8::1"
        ))
    })
}

impl TryFrom<File> for Rule {
    type Error = RuleError;

    fn try_from(file: File) -> Result<Self, RuleError> {
        let name = || file.name.clone();
        let target = match (file.public_port, file.one_to_one) {
            (Some(public), false) => RuleTarget::Ports {
                public,
                internal: file.internal_port.unwrap_or(public.first()),
                protocol: file.protocol.unwrap_or(Protocol::Tcp),
            },
            (None, true) if file.internal_port.is_none() && file.protocol.is_none() => {
                RuleTarget::OneToOne
            }
            (None, false) => {
                return Err(RuleError::Target {
                    name: name(),
                    hint: "",
                });
            }
            (_, true) => {
                return Err(RuleError::Target {
                    name: name(),
                    hint: ", not both: one_to_one excludes ports and protocol",
                });
            }
        };
        Self::new(
            &file.name,
            file.public_ip,
            file.internal_ip,
            target,
            file.allow,
            &file.description,
        )
    }
}

impl From<Rule> for File {
    fn from(rule: Rule) -> Self {
        let ports = match rule.target {
            RuleTarget::Ports {
                public,
                internal,
                protocol,
            } => Some((public, internal, protocol)),
            RuleTarget::OneToOne => None,
        };
        Self {
            name: rule.name,
            public_ip: rule.public_ip,
            public_port: ports.map(|(public, ..)| public),
            internal_ip: rule.internal_ip,
            internal_port: ports.map(|(_, internal, _)| internal),
            protocol: ports.map(|(.., protocol)| protocol),
            one_to_one: ports.is_none(),
            allow: rule.allow,
            description: rule.description,
        }
    }
}
