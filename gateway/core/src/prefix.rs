//! A network prefix.

use std::{net::IpAddr, str::FromStr};

/// An address and the number of its leading bits that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    ip: IpAddr,
    bits: u8,
}

impl Prefix {
    /// Whether an address is in the prefix. An IPv4-mapped IPv6 address counts as IPv4.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.ip, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let differs = u32::from(a) ^ u32::from(b);
                differs.checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let differs = u128::from(a) ^ u128::from(b);
                differs.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_) | IpAddr::V6(_), _) => false,
        }
    }
}

/// The text is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an address or a prefix without host bits, as 192.0.2.0/24 or 2001:db8::/32")]
pub struct NotPrefix;

impl FromStr for Prefix {
    type Err = NotPrefix;

    fn from_str(text: &str) -> Result<Self, NotPrefix> {
        let (ip, bits) = match text.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits.parse().map_err(|_| NotPrefix)?)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| NotPrefix)?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        let host_bits = match ip {
            IpAddr::V4(v4) => u128::from(u32::from(v4).checked_shl(bits.into()).unwrap_or(0)),
            IpAddr::V6(v6) => u128::from(v6).checked_shl(bits.into()).unwrap_or(0),
        };
        if bits > most || host_bits != 0 || ip != ip.to_canonical() {
            return Err(NotPrefix);
        }
        Ok(Self { ip, bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_the_addresses_with_its_bits() {
        let has = |prefix: &str, address: &str| {
            let prefix: Prefix = prefix.parse().expect("a prefix");
            prefix.contains(address.parse().expect("an address"))
        };
        assert!(has("192.0.2.0/24", "192.0.2.255") && !has("192.0.2.0/24", "192.0.3.0"));
        assert!(has("192.0.2.0/24", "::ffff:192.0.2.1"));
        assert!(has("192.0.2.1", "192.0.2.1") && !has("192.0.2.1", "192.0.2.2"));
        assert!(has("0.0.0.0/0", "8.8.8.8") && !has("0.0.0.0/0", "::1"));
        assert!(has("2001:db8::/33", "2001:db8:7fff::1"));
        assert!(!has("2001:db8::/33", "2001:db8:8000::1"));
        assert!(has("::/0", "2001:db8::1") && has("::1", "::1"));
        for bad in [
            "",
            "192.0.2.1/24",
            "192.0.2.0/33",
            "2001:db8::1/64",
            "a/8",
            "::ffff:1.2.3.4",
        ] {
            assert_eq!(bad.parse::<Prefix>(), Err(NotPrefix), "{bad}");
        }
    }
}
