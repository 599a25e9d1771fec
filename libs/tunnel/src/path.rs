//! Where a peer is reached.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;

/// How datagrams come to a peer, and from it. The crate compares ways and tells strangers on them apart; what carries
/// datagrams there is the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerPath {
    /// UDP, to the peer's own address.
    Direct(SocketAddr),
    /// UDP, to a gateway, which knows the peer by the circuit's id.
    Circuit {
        /// The gateway.
        gateway: SocketAddr,
        /// The circuit.
        id: NonZeroU64,
    },
    /// A stream that the caller has open, by the id of its circuit.
    Stream(NonZeroU64),
}

impl PeerPath {
    /// The address that datagrams go to, if they are datagrams.
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

    /// The circuit, if there is one.
    #[must_use]
    pub const fn circuit(&self) -> Option<NonZeroU64> {
        match self {
            Self::Direct(_) => None,
            Self::Circuit { id, .. } | Self::Stream(id) => Some(*id),
        }
    }

    /// What it costs bytes of every datagram's room: the id in front.
    #[must_use]
    pub const fn overhead(&self) -> usize {
        match self {
            Self::Circuit { .. } => 8,
            Self::Direct(_) | Self::Stream(_) => 0,
        }
    }

    /// What tells sources apart for a fair share: an IPv4 address, an IPv6 /64 (within one, addresses are free), and behind a
    /// gateway the circuit besides, so that tenants of one gateway do not use up each other's.
    pub(crate) fn source(&self) -> [u8; 25] {
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

    /// What a cookie proves that its holder receives by: address, port and circuit.
    pub(crate) fn proved(&self) -> [u8; 27] {
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

    fn ways() -> Vec<PeerPath> {
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
    fn a_cookie_is_of_one_way_alone() {
        for (n, one) in ways().iter().enumerate() {
            for (m, other) in ways().iter().enumerate() {
                assert_eq!(one.proved() == other.proved(), n == m, "{one}, {other}");
            }
        }
    }

    #[test]
    fn a_share_is_of_a_host_a_64_or_a_circuit() {
        let ways = ways();
        let shared = |n: usize, m: usize| ways[n].source() == ways[m].source();
        assert!(shared(0, 1), "ports of a host are free");
        assert!(!shared(0, 2));
        assert!(shared(3, 4), "addresses of a /64 are free");
        assert!(!shared(5, 6) && !shared(0, 5), "tenants of a gateway");
        assert!(!shared(7, 8));
    }
}
