//! Ranges of TCP and UDP ports.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Ports from a first to a last, inclusive, within 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// The text is not a range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Neither a port nor a range.
    #[error(
        "{text:?} is not a port: write a port such as 443 or a range such as 8000-8100, from 1 to \
         65535"
    )]
    Form { text: String },
    /// The last port is before the first.
    #[error("{first}-{last} ends before it begins: write {last}-{first}")]
    Backwards {
        /// The first port.
        first: u16,
        /// The last port.
        last: u16,
    },
}

impl PortRange {
    /// Every port: 1 to 65535.
    pub const ALL: Self = Self {
        first: 1,
        last: u16::MAX,
    };

    /// The ports from `first` to `last`; `None` if `first` is 0 or `last` is before `first`.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || last < first {
            return None;
        }
        Some(Self { first, last })
    }

    /// One port; `None` for port 0.
    #[must_use]
    pub const fn one(port: u16) -> Option<Self> {
        Self::new(port, port)
    }

    /// The first port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Number of ports.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }

    /// Whether `port` is in the range.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// The ports that both ranges have.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// The range without `port`: the parts below and above it.
    #[must_use]
    pub const fn without(self, port: u16) -> [Option<Self>; 2] {
        if !self.contains(port) {
            return [Some(self), None];
        }
        [
            Self::new(self.first, port - 1),
            match port.checked_add(1) {
                Some(next) => Self::new(next, self.last),
                None => None,
            },
        ]
    }

    /// The smallest number of binary prefixes that cover exactly the range, in order, at most 30:
    /// first port and prefix length (bits). For a map with longest-prefix match.
    pub fn prefixes(self) -> impl Iterator<Item = (u16, u8)> {
        let mut next = Some(u32::from(self.first));
        let last = u32::from(self.last);
        std::iter::from_fn(move || {
            let from = next?;
            // The largest block that begins here and does not reach past the end.
            let aligned = from.trailing_zeros().min(16);
            let fits = 31 - (last - from + 1).leading_zeros();
            let size = aligned.min(fits);
            let after = from + (1 << size);
            next = (after <= last).then_some(after);
            Some((from as u16, 16 - size as u8))
        })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        let form = || PortError::Form {
            text: text.to_owned(),
        };
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let port: Option<u16> = text.parse().ok();
            port.filter(|port| digits && *port != 0).ok_or_else(form)
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(text)?, number(text)?),
        };
        Self::new(first, last).ok_or(PortError::Backwards { first, last })
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            return serializer.serialize_u16(self.first);
        }
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = PortRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port such as 443, or a range such as \"8000-8100\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortRange, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, port: u64) -> Result<PortRange, E> {
                self.visit_str(&port.to_string())
            }

            fn visit_i64<E: de::Error>(self, port: i64) -> Result<PortRange, E> {
                self.visit_str(&port.to_string())
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = PortRange> {
        (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| PortRange {
            first: a.min(b),
            last: a.max(b),
        })
    }

    #[test]
    fn a_refusal_says_how_a_port_is_written() {
        let form =
            "is not a port: write a port such as 443 or a range such as 8000-8100, from 1 to 65535";
        for text in [
            "", "0", "65536", "-1", "80-", "+80", "http", "1-2-3", "80 - 90", "0-9",
        ] {
            let error = text.parse::<PortRange>().expect_err("no port");
            assert_eq!(error.to_string(), format!("{text:?} {form}"));
        }
        let error = "90-80".parse::<PortRange>().expect_err("backwards");
        assert_eq!(
            error.to_string(),
            "90-80 ends before it begins: write 80-90"
        );
    }

    #[test]
    fn numbers_and_texts_are_read() {
        #[derive(Deserialize)]
        struct File {
            ports: Vec<PortRange>,
        }
        let file: File = toml::from_str("ports = [443, \"443\", \"8000-8100\"]").expect("ports");
        assert_eq!(file.ports[0], file.ports[1]);
        assert_eq!(file.ports[2].to_string(), "8000-8100");
        for wrong in [
            "ports = [0]",
            "ports = [-5]",
            "ports = [70000]",
            "ports = [1.5]",
        ] {
            assert!(toml::from_str::<File>(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn text_restores_the_range(range in ranges()) {
            prop_assert_eq!(range.to_string().parse(), Ok(range));
            let json = serde_json::to_string(&range).expect("a value");
            prop_assert_eq!(serde_json::from_str::<PortRange>(&json).ok(), Some(range));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<PortRange>();
        }

        #[test]
        fn prefixes_cover_exactly_the_range_in_order(range in ranges()) {
            let mut next = u32::from(range.first());
            let mut count = 0;
            for (first, bits) in range.prefixes() {
                let size = 1u32 << (16 - u32::from(bits));
                prop_assert_eq!(u32::from(first), next);
                prop_assert_eq!(u32::from(first) % size, 0);
                next += size;
                count += 1;
            }
            prop_assert_eq!(next, u32::from(range.last()) + 1);
            prop_assert!(count <= 30);
        }

        #[test]
        fn without_a_port_the_rest_remains(range in ranges(), port in 0..=u16::MAX) {
            let left: u32 = range.without(port).into_iter().flatten().map(PortRange::count).sum();
            prop_assert_eq!(left, range.count() - u32::from(range.contains(port)));
            for part in range.without(port).into_iter().flatten() {
                prop_assert!(!part.contains(port));
                prop_assert_eq!(part.intersection(range), Some(part));
            }
        }

        #[test]
        fn an_intersection_has_the_ports_of_both(
            a in ranges(),
            b in ranges(),
            port in 1..=u16::MAX,
        ) {
            let both = a.contains(port) && b.contains(port);
            prop_assert_eq!(a.intersection(b).is_some_and(|i| i.contains(port)), both);
        }
    }
}
