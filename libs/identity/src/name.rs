//! Names of machines, as URIs in certificates.

use std::{fmt, str::FromStr};

/// Longest name of a provider, bytes: a trust domain (SPIFFE ID, section 2.1).
const MAX_PROVIDER: usize = 255;
/// Longest name of an object, bytes.
const MAX_OBJECT: usize = 32;
const SCHEME: &str = "spiffe://";

/// Kind of a machine at its provider, with the names of its objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Machine {
    /// The control plane.
    Director,
    /// A cloud gateway.
    Gateway {
        /// Name of its object.
        name: String,
    },
    /// An appliance of a tenant.
    Appliance {
        /// Name of the tenant.
        tenant: String,
        /// Name of its object.
        name: String,
    },
}

/// Name of a machine: `spiffe://PROVIDER/director`, `spiffe://PROVIDER/gateway/gw1` or
/// `spiffe://PROVIDER/tenant/acme/appliance/edge-1`. The form is that of a SPIFFE ID: the provider
/// is a trust domain of a to z, 0 to 9, `.`, `-` and `_`; the rest are names of objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    provider: String,
    machine: Machine,
}

/// A text is no name of a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a machine: write for example \
     spiffe://provider.example/tenant/acme/appliance/edge-1"
)]
pub struct InvalidName(pub String);

impl Name {
    /// The name of a machine.
    ///
    /// # Errors
    /// [`InvalidName`] if a part has other characters, is empty or too long.
    pub fn new(provider: &str, machine: Machine) -> Result<Self, InvalidName> {
        let name = Self {
            provider: provider.to_owned(),
            machine,
        };
        let objects = match &name.machine {
            Machine::Director => true,
            Machine::Gateway { name } => is_object(name),
            Machine::Appliance { tenant, name } => is_object(tenant) && is_object(name),
        };
        if objects && is_provider(provider) {
            Ok(name)
        } else {
            Err(InvalidName(name.to_string()))
        }
    }

    /// The provider: the trust domain.
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// Kind and objects of the machine.
    #[must_use]
    pub const fn machine(&self) -> &Machine {
        &self.machine
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/", self.provider)?;
        match &self.machine {
            Machine::Director => f.write_str("director"),
            Machine::Gateway { name } => write!(f, "gateway/{name}"),
            Machine::Appliance { tenant, name } => write!(f, "tenant/{tenant}/appliance/{name}"),
        }
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName(text.to_owned());
        let rest = text.strip_prefix(SCHEME).ok_or_else(invalid)?;
        let parts: Vec<_> = rest.split('/').collect();
        let (provider, machine) = match parts[..] {
            [provider, "director"] => (provider, Machine::Director),
            [provider, "gateway", name] => (provider, Machine::Gateway { name: name.into() }),
            [provider, "tenant", tenant, "appliance", name] => {
                let (tenant, name) = (tenant.into(), name.into());
                (provider, Machine::Appliance { tenant, name })
            }
            _ => return Err(invalid()),
        };
        Self::new(provider, machine).map_err(|_| invalid())
    }
}

/// Whether this is a trust domain (SPIFFE ID, section 2.1).
fn is_provider(text: &str) -> bool {
    (1..=MAX_PROVIDER).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b))
}

/// Whether this is the name of an object, by the rule of the crate `control`.
fn is_object(text: &str) -> bool {
    (1..=MAX_OBJECT).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_kind_of_machine_has_a_uri() {
        for text in [
            "spiffe://provider.example/director",
            "spiffe://provider.example/gateway/gw1",
            "spiffe://provider.example/tenant/acme/appliance/edge-1",
        ] {
            assert_eq!(text.parse::<Name>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_uris_are_no_names() {
        for text in [
            "",
            "spiffe://",
            "spiffe:///director",
            "spiffe://p",
            "spiffe://p/",
            "spiffe://p/director/",
            "spiffe://p/directors",
            "spiffe://P/director",
            "spiffe://p:1/director",
            "spiffe://p@q/director",
            "https://p/director",
            "spiffe://p/gateway/",
            "spiffe://p/gateway/a/b",
            "spiffe://p/gateway/..",
            "spiffe://p/gateway/%61",
            "spiffe://p/tenant/acme/appliance/",
            "spiffe://p/tenant//appliance/a",
            "spiffe://p/tenant/acme/gateway/a",
            "spiffe://p/tenant/acme/appliance/a?b",
            "spiffe://p/tenant/acme/appliance/a\0",
        ] {
            let error = text.parse::<Name>().unwrap_err();
            assert!(error.to_string().contains("spiffe://provider.example/"));
        }
        let object = |name: &str| Machine::Gateway { name: name.into() };
        assert!(Name::new("p", object("a/b")).is_err());
        assert!(Name::new("p", object(&"a".repeat(33))).is_err());
        assert!(Name::new("p/q", object("a")).is_err());
    }

    proptest! {
        #[test]
        fn a_name_is_read_as_it_was_written(
            provider in "[a-z0-9._-]{1,20}",
            tenant in "[a-z0-9][a-z0-9-]{0,31}",
            object in "[a-z0-9][a-z0-9-]{0,31}",
        ) {
            let machine = Machine::Appliance { tenant, name: object };
            let name = Name::new(&provider, machine).unwrap();
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }

        #[test]
        fn what_is_read_is_written_the_same(text in "spiffe://[a-z./-]{1,30}") {
            if let Ok(name) = text.parse::<Name>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
