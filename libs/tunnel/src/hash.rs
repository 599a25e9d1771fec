//! BLAKE2s (RFC 7693): hashes, MACs, and keys derived from keys.

use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use zeroize::{Zeroize, Zeroizing};

/// Length of a MAC, bytes.
pub(crate) const MAC_BYTES: usize = 16;
pub(crate) type Mac128 = [u8; MAC_BYTES];

/// BLAKE2s-256 of the concatenated parts (RFC 7693).
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::new();
    for part in parts {
        Digest::update(&mut state, part);
    }
    state.finalize().into()
}

/// BLAKE2s-128 with a key of up to 32 bytes over the concatenated parts.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> Mac128 {
    let mut state = <Blake2sMac<blake2::digest::consts::U16> as KeyInit>::new_from_slice(key)
        .expect("BLAKE2s takes keys of up to 32 bytes");
    for part in parts {
        Update::update(&mut state, part);
    }
    state.finalize_fixed().into()
}

/// BLAKE2s-256 with a 32-byte key over the concatenated parts: derives data keys.
pub(crate) fn derive(key: &[u8; 32], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut state = <Blake2sMac<blake2::digest::consts::U32> as KeyInit>::new_from_slice(key)
        .expect("BLAKE2s takes keys of up to 32 bytes");
    for part in parts {
        Update::update(&mut state, part);
    }
    let mut output = state.finalize_fixed();
    let mut out = Zeroizing::new([0; 32]);
    out.copy_from_slice(&output);
    output.as_mut_slice().zeroize();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7693 appendix B.
    #[test]
    fn blake2s_agrees_with_rfc_7693() {
        assert_eq!(
            hash(&[b"a", b"bc"]).to_vec(),
            crate::testing::hex("508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982")
        );
    }
}
