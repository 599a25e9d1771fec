//! Conversions between the words that the programs compute with and the bytes of map keys. The
//! rules about addresses are those of `packet_rules`.

use appliance_common::{addr::Address, maps::HostKey};
pub use packet_rules::addr::{
    Words, v4_is_host, v4_is_link_local, v4_mapped, v4_may_be_network_or_broadcast, v6_is_host,
    v6_is_link_local,
};

/// The unspecified address.
pub const NONE: Words = [0; 4];

/// The bytes of a map key.
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

/// The key of the address `words` in the network `vni`.
#[inline(always)]
pub const fn key(vni: u32, words: Words) -> HostKey {
    HostKey {
        vni,
        address: bytes(words),
    }
}
