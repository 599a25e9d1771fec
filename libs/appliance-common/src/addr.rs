//! One 16-byte form for IPv4 and IPv6 addresses.

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2). Network byte
/// order. With one form, one map serves both families. The network in a map key separates tenants
/// with equal addresses.
pub type Address = [u8; 16];

/// The unspecified address: none. Never the key of an endpoint or a neighbour.
pub const UNSPECIFIED: Address = [0; 16];

/// An IPv4 address in the 16-byte form.
#[inline(always)]
#[must_use]
pub const fn v4_mapped(v4: [u8; 4]) -> Address {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
    ]
}

/// The IPv4 address inside the 16-byte form, if it is one.
#[inline(always)]
#[must_use]
pub fn as_v4(address: &Address) -> Option<[u8; 4]> {
    match address {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([*a, *b, *c, *d]),
        _ => None,
    }
}

/// The solicited-node multicast address of `target` (RFC 4291 section 2.7.1).
#[must_use]
pub const fn solicited_node(target: &Address) -> Address {
    [
        0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, target[13], target[14], target[15],
    ]
}

/// The Ethernet multicast address that carries an IPv6 multicast address (RFC 2464 section 7).
#[must_use]
pub const fn multicast_mac_v6(group: &Address) -> [u8; 6] {
    [0x33, 0x33, group[12], group[13], group[14], group[15]]
}

/// An IP prefix: `address & mask == network`. Both in network byte order as loaded from memory, so
/// that the comparison is two 64-bit operations.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// The prefix with its host bits zero.
    pub network: [u64; 2],
    /// Ones where the address must equal the prefix. All zero in an unused entry.
    pub mask: [u64; 2],
}

impl Prefix {
    /// The prefix of `length` bits (0 to 128, of the 16-byte form: an IPv4 prefix of `n` bits has
    /// `96 + n`) around `address`. Host bits of `address` are cleared. `None` over 128.
    #[must_use]
    pub fn new(address: &Address, length: u8) -> Option<Self> {
        if length > 128 {
            return None;
        }
        let ones = if length == 0 {
            0
        } else {
            u128::MAX << (128 - u32::from(length))
        };
        let mask = words(&ones.to_be_bytes());
        let address = words(address);
        Some(Self {
            network: [address[0] & mask[0], address[1] & mask[1]],
            mask,
        })
    }

    /// The prefix's address, with the host bits zero.
    #[must_use]
    pub const fn address(&self) -> Address {
        let [a, b, c, d, e, f, g, h] = self.network[0].to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.network[1].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// The prefix's length in bits, of the 16-byte form.
    #[must_use]
    pub const fn length(&self) -> u32 {
        self.mask[0].count_ones() + self.mask[1].count_ones()
    }

    /// Whether the prefix contains `address`.
    #[inline(always)]
    #[must_use]
    pub fn contains(&self, address: &Address) -> bool {
        let a = words(address);
        (a[0] & self.mask[0]) == self.network[0] && (a[1] & self.mask[1]) == self.network[1]
    }

    /// Whether `address` is the IPv4 network or directed broadcast address of this prefix, which no
    /// host has (RFC 1122 section 3.2.1.3). Never for prefixes of 31 or 32 bits (RFC 3021) or IPv6.
    #[inline(always)]
    #[must_use]
    pub fn is_v4_network_or_broadcast(&self, address: &Address) -> bool {
        if as_v4(address).is_none() {
            return false;
        }
        let host = !u64::from_be(self.mask[1]);
        if host < 2 {
            return false;
        }
        let bits = u64::from_be(words(address)[1]) & host;
        bits == 0 || bits == host
    }
}

/// The address as two words in memory order.
#[inline(always)]
fn words(address: &Address) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    ]
}

/// The 16-byte form of a standard-library address.
#[cfg(feature = "user")]
#[must_use]
pub fn from_ip(ip: std::net::IpAddr) -> Address {
    match ip {
        std::net::IpAddr::V4(v4) => v4_mapped(v4.octets()),
        std::net::IpAddr::V6(v6) => v6.octets(),
    }
}

/// The standard-library form of a 16-byte address.
#[cfg(feature = "user")]
#[must_use]
pub fn to_ip(address: &Address) -> std::net::IpAddr {
    match as_v4(address) {
        Some(v4) => std::net::Ipv4Addr::from(v4).into(),
        None => std::net::Ipv6Addr::from(*address).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_round_trip() {
        assert_eq!(as_v4(&v4_mapped([10, 1, 0, 7])), Some([10, 1, 0, 7]));
        assert_eq!(as_v4(&[0; 16]), None);
    }

    #[test]
    fn a_prefix_gives_its_address_and_length_back() {
        for length in [0, 1, 63, 64, 65, 96, 120, 127, 128] {
            let prefix = Prefix::new(&[0xff; 16], length).expect("length");
            assert_eq!(prefix.length(), u32::from(length));
            assert_eq!(Prefix::new(&prefix.address(), length), Some(prefix));
        }
        let p = Prefix::new(&v4_mapped([10, 1, 0, 77]), 96 + 24).expect("length");
        assert_eq!(p.address(), v4_mapped([10, 1, 0, 0]));
    }

    #[test]
    fn prefix_contains_what_it_covers_and_no_more() {
        let p = Prefix::new(&v4_mapped([10, 1, 0, 77]), 96 + 24).expect("length");
        assert!(p.contains(&v4_mapped([10, 1, 0, 1])));
        assert!(p.contains(&v4_mapped([10, 1, 0, 255])));
        assert!(!p.contains(&v4_mapped([10, 1, 1, 1])));
        assert!(Prefix::new(&[0; 16], 129).is_none());
        let all = Prefix::new(&[9; 16], 0).expect("length");
        assert!(all.contains(&[0xaa; 16]));
        let odd = Prefix::new(
            &[0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            45,
        )
        .expect("length");
        assert!(odd.contains(&[0x20, 1, 0xd, 0xb8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]));
        assert!(!odd.contains(&[0x20, 1, 0xd, 0xb8, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn network_and_broadcast_addresses_are_edges() {
        let p = Prefix::new(&v4_mapped([10, 1, 0, 0]), 96 + 24).expect("length");
        assert!(p.is_v4_network_or_broadcast(&v4_mapped([10, 1, 0, 0])));
        assert!(p.is_v4_network_or_broadcast(&v4_mapped([10, 1, 0, 255])));
        assert!(!p.is_v4_network_or_broadcast(&v4_mapped([10, 1, 0, 1])));
        let p31 = Prefix::new(&v4_mapped([10, 1, 0, 0]), 96 + 31).expect("length");
        assert!(!p31.is_v4_network_or_broadcast(&v4_mapped([10, 1, 0, 0])));
        assert!(!p31.is_v4_network_or_broadcast(&v4_mapped([10, 1, 0, 1])));
    }

    #[test]
    fn solicited_node_matches_the_rfc_example() {
        // RFC 4291 section 2.7.1: 4037::01:800:200E:8C6C -> FF02::1:FF0E:8C6C
        let t = [
            0x40, 0x37, 0, 0, 0, 0, 0, 0, 0, 1, 8, 0, 0x20, 0x0e, 0x8c, 0x6c,
        ];
        let s = solicited_node(&t);
        assert_eq!(
            s,
            [
                0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0x0e, 0x8c, 0x6c
            ]
        );
        assert_eq!(multicast_mac_v6(&s), [0x33, 0x33, 0xff, 0x0e, 0x8c, 0x6c]);
    }
}
