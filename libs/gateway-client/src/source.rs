//! The source of a connection, as limits count it.

use std::net::IpAddr;

/// A source: an IPv4 address, or an IPv6 /64, which belongs to one site (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The address, the first byte highest.
    V4(u32),
    /// The first 64 bits of the address, the first byte highest.
    V6(u64),
}

impl Source {
    /// That of a proxy that has not named its client yet: 0.0.0.0, which sends nothing.
    pub const UNNAMED: Self = Self::V4(0);

    /// The source with this address. An IPv4-mapped IPv6 address is the IPv4 address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.into()),
            IpAddr::V6(v6) => Self::V6((u128::from(v6) >> 64) as u64),
        }
    }

    /// The site of the source: an IPv4 address, or an IPv6 /48, within which a client may choose
    /// its /64 freely.
    #[must_use]
    pub const fn site(self) -> Self {
        match self {
            Self::V4(_) => self,
            Self::V6(prefix) => Self::V6(prefix >> 16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_64() {
        let of = |text: &str| Source::of(text.parse().expect("an address"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("2001:db8:0:1::1").site(), of("2001:db8:0:2::1").site());
        assert_ne!(of("2001:db8:1::1").site(), of("2001:db8:2::1").site());
        assert_eq!(of("192.0.2.1").site(), of("192.0.2.1"));
    }
}
