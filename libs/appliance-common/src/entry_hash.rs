//! Hashes of map entries: of key and value.
//!
//! The kernel reuses the element of a deleted key at once, while a program on another CPU may still
//! read it. Such a program would send a packet by the value of another key, perhaps of another
//! tenant. Therefore values that say where packets go carry a hash of their key and
//! content. A program reads the value once, computes the hash of its own key and of what it read,
//! and drops the packet if they differ.
//!
//! The hash is NH (RFC 4418 section 5.2.2) with 64 bits and fixed keys: a few independent
//! multiplications. It finds accidents, also values that are partly written. It is no protection
//! from someone who writes the maps.

use crate::maps::AttachmentKey;

/// Keys of the hash: bits of the fraction of pi, two for each pair of words.
const KEYS: [u32; 14] = [
    0x243f_6a88,
    0x85a3_08d3,
    0x1319_8a2e,
    0x0370_7344,
    0xa409_3822,
    0x299f_31d0,
    0x082e_fa98,
    0xec4e_6c89,
    0x4528_21e6,
    0x38d0_1377,
    0xbe54_66cf,
    0x34e9_0c6c,
    0xc0ac_29b7,
    0xc97c_50dd,
];

/// The part of the hash that comes from pair `N`.
#[inline(always)]
const fn pair<const N: usize>(a: u32, b: u32) -> u64 {
    let a = a.wrapping_add(KEYS[2 * N]) as u64;
    let b = b.wrapping_add(KEYS[2 * N + 1]) as u64;
    a.wrapping_mul(b)
}

/// As [`pair`], of the two halves of a word, whatever their order.
#[inline(always)]
const fn halves<const N: usize>(word: u64) -> u64 {
    pair::<N>(word as u32, (word >> 32) as u32)
}

/// The part that comes from the key of a host: VNI, and address as words in memory order.
#[inline(always)]
#[must_use]
pub const fn host(vni: u32, address: [u32; 4]) -> u64 {
    pair::<0>(address[0], address[1])
        .wrapping_add(pair::<1>(address[2], address[3]))
        .wrapping_add(pair::<2>(vni, 0))
}

/// The part that comes from the value of a host: interface, and `l2`, `l2_len` and `reserved` of
/// [`Neighbour`](crate::maps::Neighbour) as words in memory order.
#[inline(always)]
#[must_use]
pub const fn neighbour(ifindex: u32, header: [u64; 3]) -> u64 {
    pair::<3>(ifindex, 0)
        .wrapping_add(halves::<4>(header[0]))
        .wrapping_add(halves::<5>(header[1]))
        .wrapping_add(halves::<6>(header[2]))
}

/// The hash of an attachment: its key; network and flags; MAC address and `xsk` as words in memory
/// order.
#[inline(always)]
#[must_use]
pub const fn attachment(key: &AttachmentKey, network: [u32; 2], port: [u32; 2]) -> u64 {
    pair::<0>(key.ifindex, (key.outer as u32) << 16 | key.inner as u32)
        .wrapping_add(pair::<1>(network[0], network[1]))
        .wrapping_add(pair::<2>(port[0], port[1]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::addr::Address;
    use crate::maps::{Attachment, AttachmentKey, HostKey, Neighbour};

    fn any_host() -> impl Strategy<Value = (HostKey, Neighbour)> {
        let fields = (any::<u32>(), any::<Address>(), any::<u32>());
        let l2 = (any::<[u8; 6]>(), any::<[u8; 6]>(), 0u16..4096, 0u16..4096);
        (fields, l2).prop_map(|((vni, address, ifindex), (to, from, outer, inner))| {
            let neighbour = Neighbour::new(ifindex, to, from, outer, inner, 0x88a8);
            (HostKey { vni, address }, neighbour)
        })
    }

    proptest! {
        #[test]
        fn the_value_of_another_host_has_another_hash(a in any_host(), b in any_host()) {
            let hash = a.1.hashed(&a.0).entry_hash;
            prop_assert_eq!(hash == a.1.hashed(&b.0).entry_hash, a.0 == b.0);
            prop_assert_eq!(hash == b.1.hashed(&b.0).entry_hash, a == b);
            // A value that is partly written: the header of one, the interface of the other.
            let mut torn = a.1;
            torn.ifindex = b.1.ifindex;
            prop_assert_eq!(torn.hashed(&a.0).entry_hash == hash, a.1.ifindex == b.1.ifindex);
        }

        #[test]
        fn a_change_of_any_bit_changes_the_hash(
            (key, neighbour) in any_host(),
            byte in 0usize..16,
            bit in 0u32..8,
        ) {
            let hash = neighbour.hashed(&key).entry_hash;
            let mut other = key;
            other.address[byte] ^= 1 << bit;
            prop_assert_ne!(neighbour.hashed(&other).entry_hash, hash);
            let mut other = neighbour;
            other.l2[byte] ^= 1 << bit;
            prop_assert_ne!(other.hashed(&key).entry_hash, hash);
        }

        #[test]
        fn the_flags_that_programs_set_are_not_in_the_hash(
            (key, neighbour) in any_host(),
            flags in any::<u32>(),
        ) {
            let marked = Neighbour { flags, ..neighbour };
            prop_assert_eq!(marked.hashed(&key).entry_hash, neighbour.hashed(&key).entry_hash);
        }

        #[test]
        fn the_value_of_another_attachment_has_another_hash(
            ports in any::<[(u32, u16, u16); 2]>(),
            network in any::<[u32; 2]>(),
            mac in any::<[u8; 6]>(),
        ) {
            let [a, b] = ports.map(|(ifindex, outer, inner)| AttachmentKey {
                ifindex,
                outer,
                inner,
            });
            let default = Attachment::default();
            let [x, y] = network.map(|network| Attachment { network, mac, ..default });
            let hash = x.hashed(&a).entry_hash;
            prop_assert_eq!(hash == x.hashed(&b).entry_hash, a == b);
            prop_assert_eq!(hash == y.hashed(&a).entry_hash, x == y);
            prop_assert_eq!(hash == y.hashed(&b).entry_hash, (a, x) == (b, y));
        }
    }
}
