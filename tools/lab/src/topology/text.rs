//! Cables and routes as text, in topologies and records.

use std::{fmt, str::FromStr};

use super::{Attach, Hop, Route};
use crate::error::{Error, Result};

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Access { switch, vlan: None } => write!(f, "access {switch}"),
            Self::Access {
                switch,
                vlan: Some(vlan),
            } => write!(f, "access {switch} vlan {vlan}"),
            Self::Trunk { switch } => write!(f, "trunk {switch}"),
            Self::Wan { wan } => write!(f, "wan {wan}"),
        }
    }
}

impl FromStr for Attach {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let words: Vec<_> = s.split(' ').collect();
        match words.as_slice() {
            ["access", switch] => Ok(Self::Access {
                switch: (*switch).to_owned(),
                vlan: None,
            }),
            ["access", switch, "vlan", vlan] => Ok(Self::Access {
                switch: (*switch).to_owned(),
                vlan: Some(vlan.parse()?),
            }),
            ["trunk", switch] => Ok(Self::Trunk {
                switch: (*switch).to_owned(),
            }),
            ["wan", wan] => Ok(Self::Wan {
                wan: (*wan).to_owned(),
            }),
            _ => Err(Error::Parse {
                what: "cable",
                value: s.to_owned(),
                reason: "write `access SWITCH`, `access SWITCH vlan VLAN`, `trunk SWITCH` or `wan \
                    WAN`",
            }),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hop {
            Hop::Via(router) => write!(f, "{} via {router}", self.to),
            Hop::OnLink(link) => write!(f, "{} dev {link}", self.to),
        }
    }
}

impl FromStr for Route {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = |reason| Error::Parse {
            what: "route",
            value: s.to_owned(),
            reason,
        };
        let words: Vec<_> = s.split(' ').collect();
        let (to, hop) = match words.as_slice() {
            [to, "via", router] => {
                let router = router
                    .parse()
                    .map_err(|_| bad("the router is no IP address"))?;
                (to, Hop::Via(router))
            }
            [to, "dev", link] => (to, Hop::OnLink((*link).to_owned())),
            _ => return Err(bad("write `PREFIX via ROUTER` or `PREFIX dev LINK`")),
        };
        Ok(Self {
            to: to.parse()?,
            hop,
        })
    }
}

macro_rules! as_text {
    ($($type:ty),+) => {$(
        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(s: String) -> Result<Self> {
                s.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )+};
}

as_text!(Attach, Route);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cables_and_routes_are_written_as_they_are_read() {
        for text in [
            "access lan",
            "access lan vlan 101",
            "access lan vlan 5.7",
            "trunk t",
            "wan w",
        ] {
            assert_eq!(text.parse::<Attach>().unwrap().to_string(), text);
        }
        for text in ["0.0.0.0/0 via 10.1.0.1", "2001:db8:f::/64 dev uplink"] {
            assert_eq!(text.parse::<Route>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_bad_cable_or_route_is_refused_with_the_right_form() {
        let error = "access".parse::<Attach>().unwrap_err().to_string();
        assert!(error.contains("access SWITCH vlan VLAN"), "{error}");
        let error = "10.0.0.0/8 by eth0"
            .parse::<Route>()
            .unwrap_err()
            .to_string();
        assert!(error.contains("PREFIX via ROUTER"), "{error}");
        assert!("10.0.0.0/8 via router".parse::<Route>().is_err());
    }
}
