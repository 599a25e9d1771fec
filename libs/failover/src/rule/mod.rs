//! A public IP rule: which part of a public address leads to which machine.

mod error;
mod file;
mod line;
#[cfg(test)]
mod tests;

pub use error::RuleError;
pub(crate) use file::File;

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{IpPrefix, MANAGEMENT_PORT, PortRange};
use line::address_and_port;

/// Longest name of a rule or a plan, characters.
pub(crate) const NAME: usize = 64;
/// Longest description of a rule or a plan, characters.
pub const DESCRIPTION: usize = 256;

/// Protocols of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    /// TCP and UDP.
    Both,
}

impl Protocol {
    /// The name, as it is typed and printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Both => "both",
        }
    }

    /// The protocols that both have.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Both, some) | (some, Self::Both) => Some(some),
            (Self::Tcp, Self::Tcp) => Some(Self::Tcp),
            (Self::Udp, Self::Udp) => Some(Self::Udp),
            (Self::Tcp, Self::Udp) | (Self::Udp, Self::Tcp) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which part of the public address leads to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleTarget {
    /// A range of ports, to a range of the same size.
    Ports {
        /// Public ports.
        public: PortRange,
        /// First port of the machine.
        internal: u16,
        protocol: Protocol,
    },
    /// The whole address but TCP and UDP port 22, to the same ports (1:1 NAT).
    OneToOne,
}

/// A public IP rule that is valid for some tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "File", into = "File")]
pub struct Rule {
    name: String,
    public_ip: IpAddr,
    internal_ip: IpAddr,
    target: RuleTarget,
    allow: Vec<IpPrefix>,
    description: String,
}

impl Rule {
    /// Makes a rule. Whether a tenant may have it, [`crate::RuleSet`] checks.
    ///
    /// # Errors
    /// [`RuleError`]: the first problem.
    pub fn new(
        name: &str,
        public_ip: IpAddr,
        internal_ip: IpAddr,
        target: RuleTarget,
        allow: Vec<IpPrefix>,
        description: &str,
    ) -> Result<Self, RuleError> {
        let rule = Self {
            name: name.to_owned(),
            public_ip,
            internal_ip,
            target,
            allow,
            description: description.to_owned(),
        };
        rule.check().map(|()| rule)
    }

    /// Parses a rule of a command line: `203.0.113.20:443/tcp -> 10.1.0.10:8443`, or
    /// `203.0.113.20 -> 10.1.0.10` for 1:1. The default protocol is TCP.
    ///
    /// # Errors
    /// [`RuleError`]: the first problem.
    pub fn from_line(name: &str, line: &str) -> Result<Self, RuleError> {
        let wrong = || RuleError::Line {
            line: line.to_owned(),
        };
        let (public, internal) = line.split_once("->").ok_or_else(wrong)?;
        let (public, internal) = (public.trim(), internal.trim());
        let (public, protocol) = match public.split_once('/') {
            Some((public, "tcp")) => (public, Some(Protocol::Tcp)),
            Some((public, "udp")) => (public, Some(Protocol::Udp)),
            Some((public, "both")) => (public, Some(Protocol::Both)),
            Some(_) => return Err(wrong()),
            None => (public, None),
        };
        let (public_ip, ports) = address_and_port(public).ok_or_else(wrong)?;
        let (internal_ip, internal) = address_and_port(internal).ok_or_else(wrong)?;
        let internal = match internal {
            Some(port) => Some(port.parse::<u16>().map_err(|_| wrong())?),
            None => None,
        };
        let target = match ports {
            Some(ports) => {
                let public: PortRange = ports.parse().map_err(|_| wrong())?;
                RuleTarget::Ports {
                    public,
                    internal: internal.unwrap_or(public.first()),
                    protocol: protocol.unwrap_or(Protocol::Tcp),
                }
            }
            None if internal.is_none() && protocol.is_none() => RuleTarget::OneToOne,
            None => return Err(wrong()),
        };
        Self::new(name, public_ip, internal_ip, target, Vec::new(), "")
    }

    /// The same rule for these sources only; for every source if there are none.
    ///
    /// # Errors
    /// [`RuleError::AllowFamily`].
    pub fn with_allow(mut self, allow: Vec<IpPrefix>) -> Result<Self, RuleError> {
        self.allow = allow;
        self.check().map(|()| self)
    }

    /// The same rule with a description.
    ///
    /// # Errors
    /// [`RuleError::Description`].
    pub fn with_description(mut self, description: &str) -> Result<Self, RuleError> {
        description.clone_into(&mut self.description);
        self.check().map(|()| self)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public address.
    #[must_use]
    pub const fn public_ip(&self) -> IpAddr {
        self.public_ip
    }

    /// The machine's address.
    #[must_use]
    pub const fn internal_ip(&self) -> IpAddr {
        self.internal_ip
    }

    /// Which part of the public address leads to the machine.
    #[must_use]
    pub const fn target(&self) -> RuleTarget {
        self.target
    }

    /// Sources that the rule admits; empty for every source.
    #[must_use]
    pub fn allow(&self) -> &[IpPrefix] {
        &self.allow
    }

    /// Description, for people.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The ports that this and another rule both claim, for messages: `203.0.113.20 tcp 443`.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> Option<String> {
        if self.public_ip != other.public_ip {
            return None;
        }
        let ip = self.public_ip;
        let of = |public: PortRange, protocol: Protocol| match protocol {
            Protocol::Both => format!("{ip} tcp and udp {public}"),
            Protocol::Tcp | Protocol::Udp => format!("{ip} {protocol} {public}"),
        };
        match (self.target, other.target) {
            (RuleTarget::OneToOne, RuleTarget::OneToOne) => Some(ip.to_string()),
            (
                RuleTarget::OneToOne,
                RuleTarget::Ports {
                    public, protocol, ..
                },
            )
            | (
                RuleTarget::Ports {
                    public, protocol, ..
                },
                RuleTarget::OneToOne,
            ) => Some(of(public, protocol)),
            (
                RuleTarget::Ports {
                    public: a,
                    protocol: p,
                    ..
                },
                RuleTarget::Ports {
                    public: b,
                    protocol: q,
                    ..
                },
            ) => Some(of(a.intersection(b)?, p.intersection(q)?)),
        }
    }

    fn check(&self) -> Result<(), RuleError> {
        let name = || self.name.clone();
        if !is_name(&self.name) {
            return Err(RuleError::Name { name: name() });
        }
        for (field, address) in [
            ("public_ip", self.public_ip),
            ("internal_ip", self.internal_ip),
        ] {
            if !is_host(address) {
                return Err(RuleError::NoHost {
                    name: name(),
                    field,
                    address,
                });
            }
        }
        let (public, internal) = (self.public_ip, self.internal_ip);
        if public.is_ipv4() != internal.is_ipv4() {
            return Err(RuleError::Families {
                name: name(),
                public,
                internal,
            });
        }
        self.check_target()?;
        let other = |net: &&IpPrefix| net.address().is_ipv4() != public.is_ipv4();
        if let Some(net) = self.allow.iter().find(other) {
            return Err(RuleError::AllowFamily {
                name: name(),
                net: *net,
                public,
            });
        }
        if !is_description(&self.description) {
            return Err(RuleError::Description { name: name() });
        }
        Ok(())
    }

    fn check_target(&self) -> Result<(), RuleError> {
        let name = || self.name.clone();
        let RuleTarget::Ports {
            public, internal, ..
        } = self.target
        else {
            // The lookup in the XDP programs leaves port 22 out.
            return Ok(());
        };
        if public.contains(MANAGEMENT_PORT) {
            let rest: Vec<String> = public
                .without(MANAGEMENT_PORT)
                .into_iter()
                .flatten()
                .map(|range| range.to_string())
                .collect();
            return Err(if rest.is_empty() {
                RuleError::Management { name: name() }
            } else {
                RuleError::ManagementInside {
                    name: name(),
                    range: public,
                    rest: match rest.len() {
                        1 => rest.concat(),
                        _ => format!("two rules, {}", rest.join(" and ")),
                    },
                }
            });
        }
        if internal == 0 {
            return Err(RuleError::InternalZero { name: name() });
        }
        let last = u32::from(internal) + public.count() - 1;
        if last > u32::from(u16::MAX) {
            return Err(RuleError::InternalPorts {
                name: name(),
                internal,
                count: public.count(),
                last,
            });
        }
        Ok(())
    }
}

/// Whether this is a valid name of a rule or a plan.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
    !name.is_empty() && name.len() <= NAME && name.chars().all(plain)
}

/// Whether this is a valid description: at most 256 characters, on one line.
#[must_use]
pub fn is_description(text: &str) -> bool {
    text.chars().count() <= DESCRIPTION && !text.chars().any(char::is_control)
}

/// Whether a host can have this address and be reached by it from other links.
pub(crate) fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            first != 0 && first != 127 && first < 224 && !v4.is_link_local()
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some())
        }
    }
}
