//! Addresses with a prefix length, MAC addresses, VLAN tags: as text in topologies and records.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// An address and the length of its network's prefix, `10.1.0.10/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address itself, host bits included.
    pub addr: IpAddr,
    /// 0..=32 or 0..=128.
    pub len: u8,
}

impl Cidr {
    /// The same prefix with its host bits cleared: the network.
    #[must_use]
    pub fn network(self) -> Self {
        let addr = match self.addr {
            IpAddr::V4(a) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(self.len))
                    .unwrap_or_default();
                IpAddr::V4((u32::from(a) & mask).into())
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.len))
                    .unwrap_or_default();
                IpAddr::V6((u128::from(a) & mask).into())
            }
        };
        Self { addr, ..self }
    }

    /// Whether `addr` lies in this prefix.
    #[must_use]
    pub fn contains(self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.addr.is_ipv4()
            && Self {
                addr,
                len: self.len,
            }
            .network()
                == self.network()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl FromStr for Cidr {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = |reason| Error::Parse {
            what: "address with prefix length",
            value: s.to_owned(),
            reason,
        };
        let (addr, len) = s
            .split_once('/')
            .ok_or_else(|| bad("write it as ADDRESS/LENGTH"))?;
        let addr: IpAddr = addr.parse().map_err(|_| bad("that is no IP address"))?;
        let len = len
            .parse::<u8>()
            .map_err(|_| bad("the length is no number"))?;
        if len > if addr.is_ipv4() { 32 } else { 128 } {
            return Err(bad("the length is more than the address has bits"));
        }
        Ok(Self { addr, len })
    }
}

impl TryFrom<String> for Cidr {
    type Error = Error;

    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<Cidr> for String {
    fn from(c: Cidr) -> Self {
        c.to_string()
    }
}

/// The tag of an access port: one VLAN, or outer and inner (QinQ).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Vlan {
    /// The outermost VLAN id, 1..=4094.
    pub outer: u16,
    /// QinQ: the inner VLAN id, 1..=4094.
    pub inner: Option<u16>,
}

impl Vlan {
    /// One tag. Checked by `Topology::validate`.
    #[must_use]
    pub const fn single(id: u16) -> Self {
        Self {
            outer: id,
            inner: None,
        }
    }

    /// Two tags. Checked by `Topology::validate`.
    #[must_use]
    pub const fn qinq(outer: u16, inner: u16) -> Self {
        Self {
            outer,
            inner: Some(inner),
        }
    }

    /// Whether every VLAN id is valid.
    #[must_use]
    pub fn is_valid(self) -> bool {
        let ok = |id| (1..=4094).contains(&id);
        ok(self.outer) && self.inner.is_none_or(ok)
    }
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.inner {
            None => write!(f, "{}", self.outer),
            Some(inner) => write!(f, "{}.{inner}", self.outer),
        }
    }
}

impl FromStr for Vlan {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = |reason| Error::Parse {
            what: "VLAN",
            value: s.to_owned(),
            reason,
        };
        let id = |s: &str| {
            s.parse::<u16>()
                .map_err(|_| bad("write it as ID, or OUTER.INNER for QinQ"))
        };
        let vlan = match s.split_once('.') {
            None => Self::single(id(s)?),
            Some((outer, inner)) => Self::qinq(id(outer)?, id(inner)?),
        };
        if vlan.is_valid() {
            Ok(vlan)
        } else {
            Err(bad("a VLAN id is 1 to 4094"))
        }
    }
}

impl TryFrom<String> for Vlan {
    type Error = Error;

    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<Vlan> for String {
    fn from(v: Vlan) -> Self {
        v.to_string()
    }
}

/// A MAC address that is the same in every run: locally administered, from the names of the host
/// and its link (FNV-1a).
#[must_use]
pub fn fixed_mac(host: &str, link: &str) -> [u8; 6] {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in host.bytes().chain([0]).chain(link.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let h = hash.to_be_bytes();
    [0x02, h[0] ^ h[5], h[1] ^ h[6], h[2] ^ h[7], h[3], h[4]]
}

/// `02:00:00:00:00:01`.
#[must_use]
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_read_and_know_their_members() {
        let c: Cidr = "10.1.0.10/24".parse().unwrap();
        assert_eq!(c.network().to_string(), "10.1.0.0/24");
        assert!(c.contains("10.1.0.255".parse().unwrap()));
        assert!(!c.contains("10.1.1.0".parse().unwrap()));
        assert!(!c.contains("::".parse().unwrap()));
        let all: Cidr = "::/0".parse().unwrap();
        assert!(all.contains("2001:db8::1".parse().unwrap()));
        assert!("10.1.0.0/33".parse::<Cidr>().is_err());
        assert!("10.1.0.0".parse::<Cidr>().is_err());
    }

    #[test]
    fn vlans_read_single_and_double() {
        assert_eq!("101".parse::<Vlan>().unwrap(), Vlan::single(101));
        assert_eq!("200.101".parse::<Vlan>().unwrap(), Vlan::qinq(200, 101));
        for bad in ["0", "4095", "1.0", "x", "1.2.3", ""] {
            assert!(bad.parse::<Vlan>().is_err(), "{bad}");
        }
    }

    #[test]
    fn macs_are_the_same_in_every_run_and_unicast() {
        assert_eq!(fixed_mac("prod-a", "eth0"), fixed_mac("prod-a", "eth0"));
        assert_ne!(fixed_mac("prod-a", "eth0"), fixed_mac("prod-a", "eth1"));
        assert_ne!(fixed_mac("a", "bc"), fixed_mac("ab", "c"));
        assert_eq!(fixed_mac("prod-a", "eth0")[0], 2);
    }
}
