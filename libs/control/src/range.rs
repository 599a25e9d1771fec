//! Ranges of VLANs and of addresses, in their text forms.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use failover::IpPrefix;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The text is not a range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not a range of VLANs.
    #[error(
        "{text:?} is not a range of VLANs: write a VLAN or a range, such as 101-199, within 1-4094"
    )]
    Vlans {
        /// As it was written.
        text: String,
    },
    /// Not a range of addresses.
    #[error(
        "{text:?} is not a range of addresses: write an address, a prefix or a range, such as \
         203.0.113.16-203.0.113.31"
    )]
    Addresses {
        /// As it was written.
        text: String,
    },
    /// The end is before the beginning.
    #[error("{first}-{last} ends before it begins: write {last}-{first}")]
    Backwards {
        /// Written in front of the dash.
        first: String,
        /// Written behind the dash.
        last: String,
    },
}

/// VLANs from a first to a last, inclusive, within 1 to 4094 (IEEE 802.1Q reserves 0 and 4095).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanRange {
    first: u16,
    last: u16,
}

impl VlanRange {
    /// The greatest VLAN.
    pub const MAX: u16 = 4094;

    /// The VLANs from `first` to `last`; `None` if they are not within 1 to 4094 or in order.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || last > Self::MAX || last < first {
            return None;
        }
        Some(Self { first, last })
    }

    /// Whether `vlan` is in the range.
    #[must_use]
    pub const fn contains(self, vlan: u16) -> bool {
        self.first <= vlan && vlan <= self.last
    }

    /// The VLANs, in order.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    /// The VLANs of both ranges.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }
}

impl fmt::Display for VlanRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for VlanRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let wrong = || RangeError::Vlans {
            text: text.to_owned(),
        };
        let vlan = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let vlan: Option<u16> = text.parse().ok();
            vlan.filter(|vlan| digits && (1..=Self::MAX).contains(vlan))
                .ok_or_else(wrong)
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (vlan(first)?, vlan(last)?),
            None => (vlan(text)?, vlan(text)?),
        };
        Self::new(first, last).ok_or_else(|| RangeError::Backwards {
            first: first.to_string(),
            last: last.to_string(),
        })
    }
}

/// Addresses of one family from a first to a last, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
    /// Length, bits, of a range that is written as a prefix of several addresses.
    length: Option<u8>,
}

impl AddressRange {
    /// The addresses from `first` to `last`; `None` if they are of different families or not in
    /// order.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self {
            first,
            last,
            length: None,
        })
    }

    /// The first address.
    #[must_use]
    pub const fn first(self) -> IpAddr {
        self.first
    }

    /// The last address.
    #[must_use]
    pub const fn last(self) -> IpAddr {
        self.last
    }

    /// The prefix, if the range is written as one of several addresses.
    #[must_use]
    pub fn prefix(self) -> Option<IpPrefix> {
        IpPrefix::new_truncated(self.first, self.length?)
    }

    /// Whether `address` is in the range.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }

    /// The addresses of both ranges.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        if self.first.is_ipv4() != other.first.is_ipv4() {
            return None;
        }
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// The addresses, in order.
    pub fn iter(self) -> impl Iterator<Item = IpAddr> {
        let mut next = Some(self.first);
        std::iter::from_fn(move || {
            let address = next?;
            next = (address < self.last).then(|| successor(address)).flatten();
            Some(address)
        })
    }
}

/// The next address of the family.
fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(Ipv4Addr::from(u32::from(v4).checked_add(1)?).into()),
        IpAddr::V6(v6) => Some(Ipv6Addr::from(u128::from(v6).checked_add(1)?).into()),
    }
}

impl From<IpPrefix> for AddressRange {
    fn from(prefix: IpPrefix) -> Self {
        let first = prefix.address();
        let length = u32::from(prefix.length());
        let last = match first {
            IpAddr::V4(v4) => {
                IpAddr::V4((u32::from(v4) | u32::MAX.checked_shr(length).unwrap_or(0)).into())
            }
            IpAddr::V6(v6) => {
                IpAddr::V6((u128::from(v6) | u128::MAX.checked_shr(length).unwrap_or(0)).into())
            }
        };
        Self {
            first,
            last,
            length: (first < last).then_some(prefix.length()),
        }
    }
}

/// As it was written: as a prefix, or as its first and last address.
impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(prefix) = self.prefix() {
            return prefix.fmt(f);
        }
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for AddressRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let wrong = || RangeError::Addresses {
            text: text.to_owned(),
        };
        let Some((first, last)) = text.split_once('-') else {
            let prefix: IpPrefix = text.parse().map_err(|_| wrong())?;
            return Ok(prefix.into());
        };
        let first: IpAddr = first.parse().map_err(|_| wrong())?;
        let last: IpAddr = last.parse().map_err(|_| wrong())?;
        if first.is_ipv4() != last.is_ipv4() {
            return Err(wrong());
        }
        Self::new(first, last).ok_or_else(|| RangeError::Backwards {
            first: first.to_string(),
            last: last.to_string(),
        })
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

as_text!(VlanRange);
as_text!(AddressRange);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vlans(text: &str) -> Result<VlanRange, String> {
        text.parse().map_err(|error: RangeError| error.to_string())
    }

    fn addresses(text: &str) -> Result<AddressRange, String> {
        text.parse().map_err(|error: RangeError| error.to_string())
    }

    #[test]
    fn vlans_are_within_1_and_4094() {
        assert_eq!(
            vlans("1-4094"),
            Ok(VlanRange {
                first: 1,
                last: 4094
            })
        );
        assert_eq!(vlans("7"), Ok(VlanRange { first: 7, last: 7 }));
        for wrong in [
            "", "0", "0-9", "4095", "1-4095", "-1", "1-", "+1", "1-2-3", "a", "65536",
        ] {
            let error = vlans(wrong).expect_err("no range");
            assert!(error.contains("within 1-4094"), "{wrong}: {error}");
        }
        assert_eq!(
            vlans("9-7"),
            Err("9-7 ends before it begins: write 7-9".to_owned())
        );
    }

    #[test]
    fn addresses_are_of_one_family() {
        let text = |text| addresses(text).map(|range| range.to_string());
        assert_eq!(text("192.0.2.0/30"), Ok("192.0.2.0/30".to_owned()));
        assert_eq!(text("192.0.2.7"), Ok("192.0.2.7".to_owned()));
        assert_eq!(text("2001:db8::/126"), Ok("2001:db8::/126".to_owned()));
        assert_eq!(text("0.0.0.0/0"), Ok("0.0.0.0/0".to_owned()));
        for wrong in [
            "",
            "a",
            "192.0.2.1-",
            "192.0.2.1-2001:db8::1",
            "192.0.2.1/24",
        ] {
            assert!(addresses(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            text("192.0.2.9-192.0.2.7"),
            Err("192.0.2.9-192.0.2.7 ends before it begins: write 192.0.2.7-192.0.2.9".to_owned())
        );
        let whole = addresses("192.0.2.254-192.0.3.1").expect("a range");
        let all: Vec<_> = whole.iter().map(|a| a.to_string()).collect();
        assert_eq!(
            all,
            ["192.0.2.254", "192.0.2.255", "192.0.3.0", "192.0.3.1"]
        );
        let last = addresses("255.255.255.255").expect("a range");
        assert_eq!(last.iter().count(), 1);
    }

    proptest! {
        #[test]
        fn text_restores_a_range(a in 1u16..=4094, b in 1u16..=4094, x: u32, y: u32) {
            let range = VlanRange::new(a.min(b), a.max(b)).expect("in order");
            prop_assert_eq!(vlans(&range.to_string()), Ok(range));
            let (x, y) = (Ipv4Addr::from(x.min(y)), Ipv4Addr::from(x.max(y)));
            let range = AddressRange::new(x.into(), y.into()).expect("in order");
            prop_assert_eq!(addresses(&range.to_string()), Ok(range));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = (vlans(&text), addresses(&text));
        }

        #[test]
        fn an_intersection_has_the_members_of_both(a: u8, b: u8, c: u8, d: u8, x: u8) {
            let ip = |n: u8| IpAddr::from([192, 0, 2, n]);
            let one = AddressRange::new(ip(a.min(b)), ip(a.max(b))).expect("in order");
            let two = AddressRange::new(ip(c.min(d)), ip(c.max(d))).expect("in order");
            let both = one.intersection(two).is_some_and(|range| range.contains(ip(x)));
            prop_assert_eq!(both, one.contains(ip(x)) && two.contains(ip(x)));
        }
    }
}
