//! The form of a rule on a command line.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::{Rule, RuleTarget};

/// Splits `a.b.c.d`, `a.b.c.d:X`, `[v6]:X`, `[v6]` or `v6` into the address and `X`.
pub(super) fn address_and_port(text: &str) -> Option<(IpAddr, Option<&str>)> {
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

impl fmt::Display for Rule {
    /// The line that [`Rule::from_line`] reads. It does not contain sources and description.
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
