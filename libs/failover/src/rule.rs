//! A public IP rule: what of a public address leads to which machine.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{IpPrefix, MANAGEMENT_PORT, PortRange};

/// Characters of a name at most.
pub(crate) const NAME: usize = 64;
/// Characters of a description at most.
pub(crate) const DESCRIPTION: usize = 256;

/// Which protocols a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// TCP and UDP.
    Both,
}

impl Protocol {
    /// As typed and printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Both => "both",
        }
    }

    /// What both have.
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

/// What of the public address leads there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleTarget {
    /// Ports, to as many ports of the machine.
    Ports {
        /// The public ones.
        public: PortRange,
        /// The machine's first one.
        internal: u16,
        /// Of which protocols.
        protocol: Protocol,
    },
    /// Everything but TCP and UDP port 22, to the same ports (1:1 NAT).
    OneToOne,
}

/// A public IP rule.
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

/// A rule as it is written down.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table, such as [[rule]]")]
pub(crate) struct File {
    pub(crate) name: String,
    #[serde(deserialize_with = "address")]
    public_ip: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_port: Option<PortRange>,
    #[serde(deserialize_with = "address")]
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

/// Why a rule is refused, whatever the tenant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The name is not one.
    #[error("rule {name:?}: name: write 1 to {NAME} of a to z, 0 to 9, '.', '_' and '-'")]
    Name {
        /// What was given.
        name: String,
    },
    /// The management port is not public.
    #[error(
        "rule {name:?}: public_port: 22 is refused: the appliance is managed over it; give another public port, such \
         as 2222, and internal_port = 22 where the machine's is meant"
    )]
    Management {
        /// The rule.
        name: String,
    },
    /// Nor inside a range.
    #[error(
        "rule {name:?}: public_port: {range} contains 22, over which the appliance is managed: write {rest} instead"
    )]
    ManagementInside {
        /// The rule.
        name: String,
        /// The range.
        range: PortRange,
        /// What is left of it.
        rest: String,
    },
    /// The machine has no so many ports.
    #[error(
        "rule {name:?}: internal_port: from {internal} there are not the {count} ports that public_port has: the last \
         would be {last}, and 65535 is"
    )]
    InternalPorts {
        /// The rule.
        name: String,
        /// The first.
        internal: u16,
        /// How many.
        count: u32,
        /// Where they would end.
        last: u32,
    },
    /// Port 0.
    #[error(
        "rule {name:?}: internal_port: 0 is no port: write 1 to 65535, or leave it out for the public one's"
    )]
    InternalZero {
        /// The rule.
        name: String,
    },
    /// Ports or 1:1, not neither nor both.
    #[error(
        "rule {name:?}: write public_port (and internal_port, protocol), or one_to_one = true for the whole address{but}"
    )]
    Target {
        /// The rule.
        name: String,
        /// What was given besides.
        but: &'static str,
    },
    /// NAT stays in a family.
    #[error(
        "rule {name:?}: {public} and {internal}: a rule does not lead from one address family to the other"
    )]
    Families {
        /// The rule.
        name: String,
        /// The public address.
        public: IpAddr,
        /// The machine's.
        internal: IpAddr,
    },
    /// The address cannot be a host's.
    #[error("rule {name:?}: {field}: {address} is not the address of a host")]
    NoHost {
        /// The rule.
        name: String,
        /// Which.
        field: &'static str,
        /// What was given.
        address: IpAddr,
    },
    /// A source of the other family.
    #[error("rule {name:?}: allow: {net} is of another address family than {public}")]
    AllowFamily {
        /// The rule.
        name: String,
        /// The source.
        net: IpPrefix,
        /// The public address.
        public: IpAddr,
    },
    /// The description is too long, or not text.
    #[error("rule {name:?}: description: write at most {DESCRIPTION} characters, on one line")]
    Description {
        /// The rule.
        name: String,
    },
    /// The line is not one.
    #[error(
        "{line:?} is not a rule: write PUBLIC:PORT/PROTOCOL -> INTERNAL[:PORT], such as 203.0.113.20:443/tcp -> \
         10.1.0.10:8443 ([2001:db8::1]:443/tcp for IPv6), or PUBLIC -> INTERNAL for 1:1"
    )]
    Line {
        /// What was given.
        line: String,
    },
}

impl Rule {
    /// A rule, if it can be one of any tenant.
    ///
    /// # Errors
    /// [`RuleError`]: the first thing that is wrong.
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

    /// A rule as typed on a command line: `203.0.113.20:443/tcp -> 10.1.0.10:8443`, or `203.0.113.20 ->
    /// 10.1.0.10` for 1:1. Without a protocol it is TCP.
    ///
    /// # Errors
    /// [`RuleError`]: what is wrong.
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
        let (public_ip, ports) = address_and(public).ok_or_else(wrong)?;
        let (internal_ip, internal) = address_and(internal).ok_or_else(wrong)?;
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

    /// The same rule for these sources only; none: for everybody.
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

    /// Its name.
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

    /// What leads there.
    #[must_use]
    pub const fn target(&self) -> RuleTarget {
        self.target
    }

    /// Who may come; empty: everybody.
    #[must_use]
    pub fn allow(&self) -> &[IpPrefix] {
        &self.allow
    }

    /// For people.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// What this and another rule both claim, for a person: `203.0.113.20 tcp 443`.
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
            // Whoever looks a packet up leaves port 22 out.
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

/// An address and what stands behind its colon: `a.b.c.d`, `a.b.c.d:X`, `[v6]:X`, `[v6]` or `v6`.
fn address_and(text: &str) -> Option<(IpAddr, Option<&str>)> {
    if let Ok(address) = text.parse() {
        return Some((address, None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let address: std::net::Ipv6Addr = address.parse().ok()?;
        if rest.is_empty() {
            return Some((address.into(), None));
        }
        return Some((address.into(), Some(rest.strip_prefix(':')?)));
    }
    let (address, rest) = text.split_once(':')?;
    let address: std::net::Ipv4Addr = address.parse().ok()?;
    Some((address.into(), Some(rest)))
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        de::Error::custom(format!(
            "{text:?} is not an address: write one such as 203.0.113.20 or 2001:db8::1"
        ))
    })
}

/// Whether a rule or a plan may be called this.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
    !name.is_empty() && name.len() <= NAME && name.chars().all(plain)
}

/// Whether a description is short enough, and text on one line.
pub(crate) fn is_description(text: &str) -> bool {
    text.chars().count() <= DESCRIPTION && !text.chars().any(char::is_control)
}

/// Whether an address may be a host's, off its own machine and link.
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

impl fmt::Display for Rule {
    /// The line of [`Rule::from_line`]; sources and description are not in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (public, internal) = (self.public_ip, self.internal_ip);
        let RuleTarget::Ports {
            public: ports,
            internal: port,
            protocol,
        } = self.target
        else {
            return write!(f, "{public} -> {internal}");
        };
        match public {
            IpAddr::V4(v4) => write!(f, "{v4}:{ports}/{protocol} -> ")?,
            IpAddr::V6(v6) => write!(f, "[{v6}]:{ports}/{protocol} -> ")?,
        }
        write!(f, "{}", SocketAddr::new(internal, port))
    }
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
                    but: "",
                });
            }
            (_, true) => {
                return Err(RuleError::Target {
                    name: name(),
                    but: ", not both: with one_to_one there are no ports and no protocol",
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(line: &str) -> Result<Rule, RuleError> {
        Rule::from_line("web", line)
    }

    fn refused(line: &str) -> String {
        Rule::from_line("web", line)
            .expect_err("to be refused")
            .to_string()
    }

    #[test]
    fn port_22_is_refused_alone_and_inside_a_range_whatever_the_protocol() {
        let alone = "rule \"web\": public_port: 22 is refused: the appliance is managed over it; give another public port, such as 2222, and internal_port = 22 where the machine's is meant";
        for protocol in ["tcp", "udp", "both"] {
            assert_eq!(
                refused(&format!("203.0.113.20:22/{protocol} -> 10.1.0.10")),
                alone
            );
            assert_eq!(
                refused(&format!("203.0.113.20:22-22/{protocol} -> 10.1.0.10:2222")),
                alone
            );
            assert_eq!(
                refused(&format!("[2001:db8::1]:22/{protocol} -> 2001:db8:1::10")),
                alone
            );
        }
        for (range, rest) in [
            ("20-30", "two rules, 20-21 and 23-30"),
            ("1-65535", "two rules, 1-21 and 23-65535"),
            ("22-23", "23"),
            ("22-30", "23-30"),
            ("21-22", "21"),
            ("20-22", "20-21"),
        ] {
            assert_eq!(
                refused(&format!("203.0.113.20:{range}/tcp -> 10.1.0.10:1000")),
                format!(
                    "rule \"web\": public_port: {range} contains 22, over which the appliance is managed: write {rest} instead"
                )
            );
        }
        assert!(line("203.0.113.20:2222/tcp -> 10.1.0.10:22").is_ok());
        assert!(line("203.0.113.20:23-30/tcp -> 10.1.0.10:22").is_ok());
        assert!(line("203.0.113.20:220/tcp -> 10.1.0.10").is_ok());
        assert!(line("203.0.113.20 -> 10.1.0.10").is_ok());
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        for (text, message) in [
            (
                "203.0.113.20:80-90/tcp -> 10.1.0.10:65530",
                "rule \"web\": internal_port: from 65530 there are not the 11 ports that public_port has: the last would be 65540, and 65535 is",
            ),
            (
                "203.0.113.20:80/tcp -> 10.1.0.10:0",
                "rule \"web\": internal_port: 0 is no port: write 1 to 65535, or leave it out for the public one's",
            ),
            (
                "203.0.113.20:80/tcp -> [2001:db8::1]:80",
                "rule \"web\": 203.0.113.20 and 2001:db8::1: a rule does not lead from one address family to the other",
            ),
            (
                "224.0.0.1:80/tcp -> 10.1.0.10",
                "rule \"web\": public_ip: 224.0.0.1 is not the address of a host",
            ),
            (
                "203.0.113.20:80/tcp -> 127.0.0.1",
                "rule \"web\": internal_ip: 127.0.0.1 is not the address of a host",
            ),
        ] {
            assert_eq!(refused(text), message);
        }
        for text in [
            "",
            "203.0.113.20:80/tcp",
            "203.0.113.20:80/sctp -> 10.1.0.10",
            "203.0.113.20/tcp -> 10.1.0.10",
            "203.0.113.20 -> 10.1.0.10:80",
            "203.0.113.20:0/tcp -> 10.1.0.10",
            "2001:db8::1:80/tcp -> 2001:db8:1::1",
            "[2001:db8::1]80/tcp -> 2001:db8:1::1",
        ] {
            // What parses as an address is one: `2001:db8::1:80` is.
            if text.starts_with("2001") {
                assert!(refused(text).starts_with("\"2001:db8::1:80/tcp"), "{text}");
                continue;
            }
            assert_eq!(
                refused(text),
                format!(
                    "{text:?} is not a rule: write PUBLIC:PORT/PROTOCOL -> INTERNAL[:PORT], such as 203.0.113.20:443/tcp -> 10.1.0.10:8443 ([2001:db8::1]:443/tcp for IPv6), or PUBLIC -> INTERNAL for 1:1"
                )
            );
        }
        let rule = line("203.0.113.20:80/tcp -> 10.1.0.10").expect("a rule");
        let six = "2001:db8::/32".parse().expect("a prefix");
        assert_eq!(
            rule.clone()
                .with_allow(vec![six])
                .expect_err("mixed")
                .to_string(),
            "rule \"web\": allow: 2001:db8::/32 is of another address family than 203.0.113.20"
        );
        for text in ["two\nlines", &"x".repeat(257)] {
            assert_eq!(
                rule.clone()
                    .with_description(text)
                    .expect_err("no text")
                    .to_string(),
                "rule \"web\": description: write at most 256 characters, on one line"
            );
        }
        for name in ["", "Web", "a b", "ü", &"x".repeat(65)] {
            assert_eq!(
                Rule::from_line(name, "203.0.113.20 -> 10.1.0.10")
                    .expect_err("no name")
                    .to_string(),
                format!("rule {name:?}: name: write 1 to 64 of a to z, 0 to 9, '.', '_' and '-'")
            );
        }
    }

    #[test]
    fn a_file_says_ports_or_the_whole_address() {
        let read = |text: &str| toml::from_str::<Rule>(text).map_err(|e| e.message().to_owned());
        let head = "name = \"web\"\npublic_ip = \"203.0.113.20\"\ninternal_ip = \"10.1.0.10\"\n";
        let rule = read(&format!("{head}public_port = 443\n")).expect("a rule");
        assert_eq!(rule.to_string(), "203.0.113.20:443/tcp -> 10.1.0.10:443");
        let rule = read(&format!(
            "{head}public_port = \"8000-8010\"\ninternal_port = 9000\nprotocol = \"both\"\nallow = [\"198.51.100.0/24\"]\ndescription = \"the shop\"\n"
        ))
        .expect("a rule");
        assert_eq!(
            rule.to_string(),
            "203.0.113.20:8000-8010/both -> 10.1.0.10:9000"
        );
        assert_eq!((rule.allow().len(), rule.description()), (1, "the shop"));
        let rule = read(&format!("{head}one_to_one = true\n")).expect("a rule");
        assert_eq!(rule.target(), RuleTarget::OneToOne);
        let ask = "rule \"web\": write public_port (and internal_port, protocol), or one_to_one = true for the whole address";
        assert_eq!(read(head), Err(ask.to_owned()));
        for both in [
            "public_port = 80",
            "protocol = \"tcp\"",
            "internal_port = 80",
        ] {
            assert_eq!(
                read(&format!("{head}one_to_one = true\n{both}\n")),
                Err(format!(
                    "{ask}, not both: with one_to_one there are no ports and no protocol"
                ))
            );
        }
        assert!(
            read(&format!("{head}public_port = 22\n"))
                .is_err_and(|why| why.contains("22 is refused"))
        );
        assert_eq!(
            read(&head.replace("203.0.113.20", "203.0.113.20/32")),
            Err(
                "\"203.0.113.20/32\" is not an address: write one such as 203.0.113.20 or 2001:db8::1"
                    .to_owned()
            )
        );
        assert!(
            read(&format!("{head}public_prot = 80\n"))
                .is_err_and(|why| why.contains("unknown field"))
        );
    }

    prop_compose! {
        fn rules()(
            v4: bool, public in 0x0100_0001u32..0x7eff_ffff, internal in 0x8000_0001u32..0xa8ff_ffff,
            first in 23u16..=60_000, count in 0u16..=5000, to in 1u16..=60_000, protocol in 0usize..3, whole: bool,
        ) -> Rule {
            let ip = |bits: u32| -> IpAddr {
                if v4 {
                    std::net::Ipv4Addr::from(bits).into()
                } else {
                    std::net::Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(bits)).into()
                }
            };
            let target = if whole {
                RuleTarget::OneToOne
            } else {
                RuleTarget::Ports {
                    public: PortRange::new(first, first + count).expect("a range"),
                    internal: to,
                    protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Both][protocol],
                }
            };
            Rule::new("a-rule", ip(public), ip(internal), target, Vec::new(), "").expect("a rule")
        }
    }

    proptest! {
        #[test]
        fn line_and_file_give_the_rule_back(rule in rules()) {
            prop_assert_eq!(Rule::from_line("a-rule", &rule.to_string()), Ok(rule.clone()));
            let json = serde_json::to_string(&rule).expect("a value");
            prop_assert_eq!(serde_json::from_str::<Rule>(&json).ok(), Some(rule.clone()));
            let toml = toml::to_string(&rule).expect("a table");
            prop_assert_eq!(toml::from_str::<Rule>(&toml).ok(), Some(rule));
        }

        #[test]
        fn no_line_panics_and_none_gives_port_22(name: String, text: String) {
            if let Ok(rule) = Rule::from_line(&name, &text)
                && let RuleTarget::Ports { public, .. } = rule.target()
            {
                prop_assert!(!public.contains(MANAGEMENT_PORT));
            }
        }

        #[test]
        fn overlap_is_mutual(a in rules(), b in rules()) {
            prop_assert_eq!(a.overlap(&b), b.overlap(&a));
            prop_assert!(a.overlap(&a).is_some());
        }
    }
}
