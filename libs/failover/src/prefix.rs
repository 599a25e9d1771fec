//! An IP prefix in its text form.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An IP prefix; host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpPrefix {
    address: IpAddr,
    length: u8,
}

/// The text is not a prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpPrefixError {
    /// Neither an address nor an address with a length.
    #[error(
        "{text:?} is not a prefix: write an address, or an address and a length, such as \
         198.51.100.0/24"
    )]
    Form { text: String },
    /// The address has bits set behind the prefix length.
    #[error("{text:?} has host bits set: write {right}")]
    HostBits {
        text: String,
        /// The prefix without those bits.
        right: IpPrefix,
    },
}

impl IpPrefix {
    /// The prefix of `length` bits that contains `address`: host bits are cleared. `None` if
    /// `length` exceeds 32 (IPv4) or 128 (IPv6).
    #[must_use]
    pub fn new_truncated(address: IpAddr, length: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & mask).into())
            }
            IpAddr::V6(v6) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                IpAddr::V6((u128::from(v6) & mask).into())
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(Self { address, length })
    }

    /// The prefix of one address.
    #[must_use]
    pub const fn host(address: IpAddr) -> Self {
        let length = if address.is_ipv4() { 32 } else { 128 };
        Self { address, length }
    }

    /// The first address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Prefix length, bits.
    #[must_use]
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Whether the prefix contains `address`. False for the other address family.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new_truncated(address, self.length).is_some_and(|net| net == *self)
    }

    /// Whether both contain the same address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// Whether `address` is the IPv4 network or broadcast address, which no host can have (RFC 1122
    /// section 3.2.1.3). False for prefixes of 31 (RFC 3021) and 32 bits, and for IPv6.
    #[must_use]
    pub fn is_network_or_broadcast(&self, address: IpAddr) -> bool {
        let (IpAddr::V4(first), IpAddr::V4(v4)) = (self.address, address) else {
            return false;
        };
        let last = u32::from(first) | u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
        self.length < 31 && (v4 == first || u32::from(v4) == last)
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::host(self.address) {
            return self.address.fmt(f);
        }
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for IpPrefix {
    type Err = IpPrefixError;

    fn from_str(text: &str) -> Result<Self, IpPrefixError> {
        let form = || IpPrefixError::Form {
            text: text.to_owned(),
        };
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let Some(length) = length else {
            return Ok(Self::host(address));
        };
        let length = length.parse().map_err(|_| form())?;
        let right = Self::new_truncated(address, length).ok_or_else(form)?;
        if right.address != address {
            return Err(IpPrefixError::HostBits {
                text: text.to_owned(),
                right,
            });
        }
        Ok(right)
    }
}

impl Serialize for IpPrefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IpPrefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpPrefix {
        text.parse().expect("a prefix")
    }

    #[test]
    fn a_prefix_contains_its_addresses_and_no_others() {
        let n = net("198.51.100.16/28");
        let ip = |text: &str| text.parse().expect("an address");
        assert!(n.contains(ip("198.51.100.16")) && n.contains(ip("198.51.100.31")));
        assert!(!n.contains(ip("198.51.100.15")) && !n.contains(ip("198.51.100.32")));
        assert!(!n.contains(ip("::ffff:198.51.100.16")));
        assert!(
            n.is_network_or_broadcast(ip("198.51.100.16"))
                && n.is_network_or_broadcast(ip("198.51.100.31"))
        );
        assert!(!n.is_network_or_broadcast(ip("198.51.100.17")));
        assert!(!net("198.51.100.16/31").is_network_or_broadcast(ip("198.51.100.16")));
        assert!(!net("2001:db8::/64").is_network_or_broadcast(ip("2001:db8::")));
        assert!(net("0.0.0.0/0").contains(ip("255.255.255.255")));
        assert!(net("10.0.0.0/8").overlaps(&net("10.9.0.0/16")));
        assert!(net("10.9.0.0/16").overlaps(&net("10.0.0.0/8")));
        assert!(!net("10.8.0.0/16").overlaps(&net("10.9.0.0/16")));
    }

    #[test]
    fn a_refusal_says_how_a_prefix_is_written() {
        for (text, message) in [
            (
                "198.51.100.9/24",
                "\"198.51.100.9/24\" has host bits set: write 198.51.100.0/24",
            ),
            (
                "2001:db8::1/64",
                "\"2001:db8::1/64\" has host bits set: write 2001:db8::/64",
            ),
            (
                "198.51.100.0/33",
                "\"198.51.100.0/33\" is not a prefix: write an address, or an address and a \
                 length, such as 198.51.100.0/24",
            ),
            (
                "everybody",
                "\"everybody\" is not a prefix: write an address, or an address and a length, such \
                 as 198.51.100.0/24",
            ),
        ] {
            let error = text.parse::<IpPrefix>().expect_err("no prefix");
            assert_eq!(error.to_string(), message);
        }
    }

    proptest! {
        #[test]
        fn text_restores_the_prefix(bits: u128, v4: bool, length in 0u8..=128) {
            let address = if v4 {
                IpAddr::V4((bits as u32).into())
            } else {
                IpAddr::V6(bits.into())
            };
            if let Some(net) = IpPrefix::new_truncated(address, length) {
                prop_assert_eq!(net.to_string().parse::<IpPrefix>(), Ok(net));
                prop_assert!(net.contains(address));
            }
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<IpPrefix>();
        }
    }
}
