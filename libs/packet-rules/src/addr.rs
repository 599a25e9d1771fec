//! Which addresses may belong to a host, and which never leave their link.

/// An address of either family as four words in memory order, IPv4 as `::ffff:a.b.c.d`
/// (RFC 4291 section 2.5.5.2).
pub type Words = [u32; 4];

/// The words of a 16-byte address.
#[inline(always)]
#[must_use]
pub const fn words(address: &[u8; 16]) -> Words {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// The 16 bytes of an address's words.
#[must_use]
pub fn address_of(words: &Words) -> [u8; 16] {
    let mut address = [0; 16];
    for (bytes, word) in address.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    address
}

/// The IPv4-mapped form of an IPv4 address loaded from memory.
#[inline(always)]
#[must_use]
pub const fn v4_mapped(word: u32) -> Words {
    [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), word]
}

/// Whether an IPv4 address may belong to a host: not this-network (RFC 1122 section 3.2.1.3),
/// loopback, multicast, reserved or broadcast.
#[inline(always)]
#[must_use]
pub const fn v4_is_host(word: u32) -> bool {
    let first = word.to_ne_bytes()[0];
    first != 0 && first != 127 && first < 224
}

/// Whether an IPv4 address is link-local, 169.254.0.0/16, which is never forwarded (RFC 3927
/// section 2.7).
#[inline(always)]
#[must_use]
pub const fn v4_is_link_local(word: u32) -> bool {
    let [a, b, ..] = word.to_ne_bytes();
    a == 169 && b == 254
}

/// Whether the last byte of an IPv4 address permits that it is the network or broadcast address of
/// a prefix of at most 30 bits. Saves most packets the prefix comparison.
#[inline(always)]
#[must_use]
pub const fn v4_may_be_network_or_broadcast(word: u32) -> bool {
    let low = word.to_ne_bytes()[3] & 3;
    low == 0 || low == 3
}

/// Whether an IPv6 address may belong to a host and leave its link: not unspecified, loopback,
/// IPv4-mapped, multicast or link-local (RFC 4291 section 2.4).
#[inline(always)]
#[must_use]
pub const fn v6_is_host(words: Words) -> bool {
    let [a, b, ..] = words[0].to_ne_bytes();
    let low = words[0] == 0 && words[1] == 0;
    a != 0xff && !is_link_local(a, b) && !low
}

/// Whether an IPv6 address is link-local unicast, fe80::/10 (RFC 4291 section 2.5.6).
#[inline(always)]
#[must_use]
pub const fn v6_is_link_local(words: Words) -> bool {
    let [a, b, ..] = words[0].to_ne_bytes();
    is_link_local(a, b)
}

#[inline(always)]
const fn is_link_local(a: u8, b: u8) -> bool {
    a == 0xfe && b & 0xc0 == 0x80
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn v4(text: &str) -> u32 {
        u32::from_ne_bytes(text.parse::<Ipv4Addr>().expect("an address").octets())
    }

    fn v6(text: &str) -> Words {
        words(&text.parse::<Ipv6Addr>().expect("an address").octets())
    }

    #[test]
    fn ipv4_hosts_are_unicast_and_not_loopback() {
        for host in [
            "10.0.0.1",
            "192.0.2.255",
            "223.255.255.255",
            "169.254.1.1",
            "1.0.0.0",
        ] {
            assert!(v4_is_host(v4(host)), "{host}");
        }
        for other in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!v4_is_host(v4(other)), "{other}");
        }
        assert!(v4_is_link_local(v4("169.254.0.1")));
        assert!(!v4_is_link_local(v4("169.253.0.1")));
    }

    #[test]
    fn network_and_broadcast_addresses_end_in_00_or_11() {
        for last in 0..=255u8 {
            let word = u32::from_ne_bytes([10, 0, 0, last]);
            let expected = matches!(last & 3, 0 | 3);
            assert_eq!(v4_may_be_network_or_broadcast(word), expected, "{last}");
        }
    }

    #[test]
    fn ipv6_hosts_are_global_or_unique_local_unicast() {
        for host in ["2001:db8::1", "fd00::1", "fe40::1", "fec0::1"] {
            assert!(v6_is_host(v6(host)), "{host}");
        }
        for other in [
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "ff02::1",
            "fe80::1",
            "febf::1",
        ] {
            assert!(!v6_is_host(v6(other)), "{other}");
        }
        assert!(v6_is_link_local(v6("fe80::1")) && v6_is_link_local(v6("febf::1")));
        assert!(!v6_is_link_local(v6("fec0::1")) && !v6_is_link_local(v6("2001:db8::1")));
    }

    #[test]
    fn words_keep_the_bytes_in_memory_order() {
        let address: [u8; 16] = std::array::from_fn(|i| i as u8);
        let bytes: Vec<u8> = words(&address)
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect();
        assert_eq!(bytes, address);
        assert_eq!(v4_mapped(v4("10.1.0.7")), v6("::ffff:10.1.0.7"));
    }
}
