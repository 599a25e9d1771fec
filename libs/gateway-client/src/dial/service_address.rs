//! Where a service listens, as a configuration has it: an IP address or DNS name, and a port.

use std::{fmt, net::SocketAddr, str::FromStr, sync::Arc};

use thiserror::Error;

/// Longest DNS name without the final dot (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;
/// Longest label of a DNS name.
const MAX_LABEL: usize = 63;

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServiceAddress {
    Address(SocketAddr),
    /// A DNS name in lower case, and a port.
    Name(Arc<str>, u16),
}

/// A text is no service address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadServiceAddress {
    /// It is neither of both forms.
    #[error(
        "{0:?} is neither an address nor a name with a port: write for example \
         \"192.0.2.1:6180\", \"[2001:db8::1]:6180\" or \"name.example.net:6180\""
    )]
    Malformed(String),
    /// A label of its name begins or ends with a hyphen (RFC 1123 section 2.1).
    #[error("{0:?}: no part of a DNS name begins or ends with a hyphen")]
    Hyphen(String),
    /// A link-local address without its interface.
    #[error(
        "{0:?}: a link-local address holds on one interface only: write another address of the \
         machine, or its name"
    )]
    LinkLocal(String),
    /// Its port is 0.
    #[error("{0:?}: a port is 1 to 65535")]
    Port(String),
}

impl ServiceAddress {
    #[must_use]
    pub const fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Name(_, port) => *port,
        }
    }

    /// The DNS name, if it is one.
    #[must_use]
    pub const fn name(&self) -> Option<&Arc<str>> {
        match self {
            Self::Address(_) => None,
            Self::Name(name, _) => Some(name),
        }
    }
}

impl FromStr for ServiceAddress {
    type Err = BadServiceAddress;

    fn from_str(text: &str) -> Result<Self, BadServiceAddress> {
        let named = || {
            let (name, port) = text.rsplit_once(':')?;
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse().ok().filter(|_| digits)?;
            Some(Self::Name(dns_name(name.as_bytes())?.into(), port))
        };
        let address = text.parse().ok().map(Self::Address);
        let address = address
            .or_else(named)
            .ok_or_else(|| BadServiceAddress::Malformed(text.to_owned()))?;
        if address.port() == 0 {
            return Err(BadServiceAddress::Port(text.to_owned()));
        }
        match &address {
            Self::Name(name, _) if has_outer_hyphen(name) => {
                Err(BadServiceAddress::Hyphen(text.to_owned()))
            }
            Self::Address(SocketAddr::V6(v6))
                if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 =>
            {
                Err(BadServiceAddress::LinkLocal(text.to_owned()))
            }
            Self::Name(..) | Self::Address(_) => Ok(address),
        }
    }
}

impl fmt::Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// Whether a label begins or ends with a hyphen: no machine has such a name, though a hello may.
fn has_outer_hyphen(name: &str) -> bool {
    let mut labels = name.split('.');
    labels.any(|label| label.starts_with('-') || label.ends_with('-'))
}

/// A DNS name in lower case, with letters, digits, hyphens and underscores; `None` for other bytes,
/// for IP addresses, and for a final dot.
#[must_use]
pub fn dns_name(bytes: &[u8]) -> Option<String> {
    if bytes.len() > MAX_NAME {
        return None;
    }
    let mut last: &[u8] = &[];
    for label in bytes.split(|byte| *byte == b'.') {
        let fits = (1..=MAX_LABEL).contains(&label.len())
            && label
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !fits {
            return None;
        }
        last = label;
    }
    // The last label of an IPv4 address is a number; no top-level domain is.
    if last.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        bytes
            .iter()
            .map(|byte| char::from(byte.to_ascii_lowercase()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_and_names_are_read() {
        for text in ["192.0.2.1:6180", "[2001:db8::1]:1", "gw1.example.net:6180"] {
            let address: ServiceAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        let address: ServiceAddress = "GW1.Example.net:5".parse().expect("a name");
        assert_eq!(address, ServiceAddress::Name("gw1.example.net".into(), 5));
        assert_eq!(address.name().map(|name| &**name), Some("gw1.example.net"));
    }

    #[test]
    fn other_texts_are_refused_with_the_remedy() {
        let long = format!("{}:1", ["abcdefghi"; 26].join("."));
        let label = format!("{}.net:1", "a".repeat(64));
        for text in [
            "",
            ":1",
            "gw1",
            "gw1:",
            "gw1:+5",
            "gw1:65536",
            "192.0.2.300:6180",
            "2001:db8::1:6180",
            "gw1.example.net.:6180",
            "gw1..net:6180",
            "gw 1:6180",
            &long,
            &label,
        ] {
            let error = text.parse::<ServiceAddress>().expect_err(text);
            assert_eq!(error, BadServiceAddress::Malformed(text.to_owned()));
            assert!(error.to_string().contains("\"name.example.net:6180\""));
        }
        for text in ["-x-:1", "a.-b.net:1", "a-.net:1", "gw1.example.net-:1"] {
            let error = text.parse::<ServiceAddress>().expect_err(text);
            assert_eq!(error, BadServiceAddress::Hyphen(text.to_owned()));
        }
        for text in ["a--b.net:1", "xn--4ca.net:1", "[fe80::1%2]:443"] {
            text.parse::<ServiceAddress>().expect(text);
        }
        for text in ["[fe80::1]:443", "[febf::1]:443"] {
            let error = text.parse::<ServiceAddress>().expect_err(text);
            assert_eq!(error, BadServiceAddress::LinkLocal(text.to_owned()));
        }
        for text in ["192.0.2.1:0", "gw1.example.net:0"] {
            let error = text.parse::<ServiceAddress>().expect_err(text);
            assert_eq!(error, BadServiceAddress::Port(text.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn an_accepted_text_is_read_again_the_same(text in "[a-z0-9._:-]{0,30}") {
            if let Ok(address) = text.parse::<ServiceAddress>() {
                prop_assert_eq!(address.to_string().parse::<ServiceAddress>(), Ok(address));
            }
        }
    }
}
