//! Addresses as four words in memory order, the form the programs compute with.

use appliance_common::{addr::Address, maps::HostKey};

/// An address of either family, IPv4 in mapped form; each word as loaded from memory.
pub type Words = [u32; 4];

/// No address.
pub const NONE: Words = [0; 4];

/// The mapped form of an IPv4 address loaded from memory.
#[inline(always)]
pub const fn v4(word: u32) -> Words {
    [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), word]
}

/// The bytes of the map keys.
#[inline(always)]
pub const fn bytes(words: Words) -> Address {
    // SAFETY: both are 16 bytes of plain integers.
    unsafe { core::mem::transmute::<Words, Address>(words) }
}

/// The words of a map's bytes.
#[inline(always)]
pub const fn words(bytes: Address) -> Words {
    // SAFETY: both are 16 bytes of plain integers.
    unsafe { core::mem::transmute::<Address, Words>(bytes) }
}

/// The key of `words` in the network `vni`.
#[inline(always)]
pub const fn key(vni: u32, words: Words) -> HostKey {
    HostKey {
        vni,
        address: bytes(words),
    }
}

/// Whether an IPv4 address may be a host's: not this-network (RFC 1122 section 3.2.1.3), loopback,
/// multicast, reserved or broadcast.
#[inline(always)]
pub const fn v4_is_host(word: u32) -> bool {
    let first = word.to_ne_bytes()[0];
    first != 0 && first != 127 && first < 224
}

/// Whether an IPv4 address is link-local, 169.254.0.0/16 (RFC 3927 section 2.7: never forwarded).
#[inline(always)]
pub const fn v4_is_link_local(word: u32) -> bool {
    let [a, b, ..] = word.to_ne_bytes();
    a == 169 && b == 254
}

/// Whether the last byte of an IPv4 address lets it be the network or broadcast address of a prefix
/// of at most 30 bits: spares most packets the look at the prefixes.
#[inline(always)]
pub const fn v4_may_be_edge(word: u32) -> bool {
    let low = word.to_ne_bytes()[3] & 3;
    low == 0 || low == 3
}

/// Whether an IPv6 address may be a host's and leave its link: not unspecified, loopback, mapped,
/// multicast or link-local (RFC 4291 section 2.4).
#[inline(always)]
pub const fn v6_is_host(words: Words) -> bool {
    let [a, b, ..] = words[0].to_ne_bytes();
    let low = words[0] == 0 && words[1] == 0;
    a != 0xff && !is_link_local_bytes(a, b) && !low
}

/// Whether an IPv6 address is link-local unicast, fe80::/10.
#[inline(always)]
pub const fn is_link_local(words: Words) -> bool {
    let [a, b, ..] = words[0].to_ne_bytes();
    is_link_local_bytes(a, b)
}

#[inline(always)]
const fn is_link_local_bytes(a: u8, b: u8) -> bool {
    a == 0xfe && b & 0xc0 == 0x80
}
