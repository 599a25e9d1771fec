//! Prefixes, bit by bit.

use std::net::IpAddr;

use appliance_common::addr::{Prefix, from_ip};

/// Bits of the 16-byte form, the most significant first.
fn bits(bytes: [u8; 16]) -> impl Iterator<Item = bool> {
    bytes
        .into_iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1))
}

/// The 16 bytes of two words in memory order.
fn bytes(words: [u64; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&words[1].to_ne_bytes());
    bytes
}

/// Whether the first `length` bits of two addresses are equal.
pub(super) fn share(a: [u8; 16], b: [u8; 16], length: u32) -> bool {
    bits(a)
        .zip(bits(b))
        .take(length as usize)
        .all(|(a, b)| a == b)
}

/// Bits of the prefix.
fn length(prefix: &Prefix) -> u32 {
    bits(bytes(prefix.mask)).take_while(|one| *one).count() as u32
}

/// Whether the prefix contains the address.
pub(super) fn contains(prefix: &Prefix, address: IpAddr) -> bool {
    share(bytes(prefix.network), from_ip(address), length(prefix))
}

/// Whether the address is the IPv4 network or broadcast address of the prefix (RFC 1122 section
/// 3.2.1.3; none in 31 and 32 bits, RFC 3021).
pub(super) fn is_edge(prefix: &Prefix, address: IpAddr) -> bool {
    let host: Vec<_> = bits(from_ip(address))
        .skip(length(prefix) as usize)
        .collect();
    let equal = host.windows(2).all(|pair| pair[0] == pair[1]);
    address.is_ipv4() && contains(prefix, address) && host.len() >= 2 && equal
}

#[test]
fn prefixes_contain_what_begins_as_they_do() {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let prefix = |text: &str, length| Prefix::new(&from_ip(ip(text)), length).expect("a prefix");
    let net = prefix("10.1.0.0", 96 + 23);
    for (address, inside, edge) in [
        ("10.1.0.0", true, true),
        ("10.1.0.255", true, false),
        ("10.1.1.255", true, true),
        ("10.1.2.0", false, false),
        ("2001:db8::", false, false),
    ] {
        assert_eq!(contains(&net, ip(address)), inside, "{address}");
        assert_eq!(is_edge(&net, ip(address)), edge, "{address}");
    }
    assert!(!is_edge(&prefix("10.1.0.0", 96 + 31), ip("10.1.0.0")));
    assert!(contains(&prefix("2001:db8::", 32), ip("2001:db8:ffff::1")));
    assert!(!is_edge(&prefix("2001:db8::", 64), ip("2001:db8::")));
}
