//! The path to a peer.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;

/// How datagrams reach a peer. This crate compares paths, and derives cookies and rate limits from
/// them; the caller does the sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerPath {
    /// UDP to the peer's own address.
    Direct(SocketAddr),
    /// UDP to a gateway, which forwards to the peer by the circuit's id.
    Circuit {
        /// The gateway's address.
        gateway: SocketAddr,
        id: NonZeroU64,
    },
    /// A TLS connection that the caller holds open, by the id of its circuit.
    Stream(NonZeroU64),
}

impl PeerPath {
    /// The address that UDP datagrams go to; `None` for a stream.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Direct(address)
            | Self::Circuit {
                gateway: address, ..
            } => Some(*address),
            Self::Stream(_) => None,
        }
    }

    /// The circuit's id; `None` for a direct path.
    #[must_use]
    pub const fn circuit(&self) -> Option<NonZeroU64> {
        match self {
            Self::Direct(_) => None,
            Self::Circuit { id, .. } | Self::Stream(id) => Some(*id),
        }
    }

    /// Bytes that the path takes from every datagram: the circuit's id in front.
    #[must_use]
    pub const fn overhead(&self) -> usize {
        match self {
            Self::Circuit { .. } => 8,
            Self::Direct(_) | Self::Stream(_) => 0,
        }
    }

    /// Whether both paths lead to the same host: they differ in the port at most. A NAT or the
    /// choice of one of several links changes the port alone, and that says nothing about the
    /// length of datagrams on the path.
    #[must_use]
    pub fn is_same_host(&self, other: &Self) -> bool {
        let host = |path: &Self| path.address().map(|address| address.ip());
        let same_kind = std::mem::discriminant(self) == std::mem::discriminant(other);
        same_kind && host(self) == host(other) && self.circuit() == other.circuit()
    }

    /// Key of a source's rate limit: an IPv4 address or an IPv6 /64, within which addresses cost
    /// nothing, and the circuit, so that tenants of one gateway do not share a limit.
    pub(crate) fn rate_limit_key(&self) -> [u8; 25] {
        let mut source = [0; 25];
        match self.address().map(|address| address.ip()) {
            Some(IpAddr::V4(ip)) => {
                source[0] = 4;
                source[1..5].copy_from_slice(&ip.octets());
            }
            Some(IpAddr::V6(ip)) => {
                source[0] = 6;
                source[1..9].copy_from_slice(&ip.octets()[..8]);
            }
            None => {}
        }
        source[17..].copy_from_slice(&self.id().to_be_bytes());
        source
    }

    /// The input of a cookie: address, port and circuit, at which its holder must receive.
    pub(crate) fn cookie_input(&self) -> [u8; 27] {
        let mut bytes = [0; 27];
        let address = self
            .address()
            .unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
        match address.ip() {
            IpAddr::V4(ip) => {
                bytes[0] = 4;
                bytes[1..5].copy_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                bytes[0] = 6;
                bytes[1..17].copy_from_slice(&ip.octets());
            }
        }
        bytes[17..19].copy_from_slice(&address.port().to_be_bytes());
        bytes[19..].copy_from_slice(&self.id().to_be_bytes());
        bytes
    }

    fn id(&self) -> u64 {
        self.circuit().map_or(0, NonZeroU64::get)
    }
}

impl From<SocketAddr> for PeerPath {
    fn from(address: SocketAddr) -> Self {
        Self::Direct(address)
    }
}

impl PartialEq<SocketAddr> for PeerPath {
    fn eq(&self, other: &SocketAddr) -> bool {
        *self == Self::Direct(*other)
    }
}

impl fmt::Display for PeerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(address) => write!(f, "{address}"),
            Self::Circuit { gateway, id } => write!(f, "{gateway}, circuit {id:016x}"),
            Self::Stream(id) => write!(f, "TLS, circuit {id:016x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> Vec<PeerPath> {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let id = |id| NonZeroU64::new(id).expect("an id");
        let gateway = at("192.0.2.1:6180");
        vec![
            at("192.0.2.1:6180").into(),
            at("192.0.2.1:6181").into(),
            at("192.0.2.2:6180").into(),
            at("[2001:db8::1]:6180").into(),
            at("[2001:db8::2]:6180").into(),
            PeerPath::Circuit { gateway, id: id(1) },
            PeerPath::Circuit { gateway, id: id(2) },
            PeerPath::Stream(id(1)),
            PeerPath::Stream(id(2)),
        ]
    }

    #[test]
    fn every_path_has_its_own_cookie() {
        for (n, one) in paths().iter().enumerate() {
            for (m, other) in paths().iter().enumerate() {
                assert_eq!(
                    one.cookie_input() == other.cookie_input(),
                    n == m,
                    "{one}, {other}"
                );
            }
        }
    }

    #[test]
    fn paths_that_differ_in_the_port_lead_to_the_same_host() {
        let paths = paths();
        for (n, one) in paths.iter().enumerate() {
            for (m, other) in paths.iter().enumerate() {
                let only_port = matches!((n, m), (0, 1) | (1, 0));
                assert_eq!(
                    one.is_same_host(other),
                    n == m || only_port,
                    "{one}, {other}"
                );
            }
        }
    }

    #[test]
    fn a_rate_limit_is_of_a_host_a_64_or_a_circuit() {
        let paths = paths();
        let shared = |n: usize, m: usize| paths[n].rate_limit_key() == paths[m].rate_limit_key();
        assert!(shared(0, 1), "ports of a host are free");
        assert!(!shared(0, 2));
        assert!(shared(3, 4), "addresses of a /64 are free");
        assert!(!shared(5, 6) && !shared(0, 5), "tenants of a gateway");
        assert!(!shared(7, 8));
    }
}
