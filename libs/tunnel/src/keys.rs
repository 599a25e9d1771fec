//! Identity keys, preshared keys, and their base64 form.
//!
//! Secrets are wiped when they are dropped, and `Debug` does not show them.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use x25519_dalek::{PublicKey as Point, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::random::Random;

pub const KEY_BYTES: usize = 32;

/// The text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "not a key: write 44 characters of base64 (32 bytes), as `causeway-appliance keygen` or \
     `wg genkey` print them"
)]
pub struct InvalidKey;

/// Secret key of an end: an X25519 scalar (RFC 7748). Wiped when it is dropped.
#[derive(Clone)]
pub struct SecretKey(StaticSecret);

/// Identity of an end: the X25519 point of its [`SecretKey`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

/// A secret that both ends may have, mixed into the handshake (white paper, section 5.2). All zero
/// stands for none. Wiped when it is dropped.
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_BYTES]);

impl SecretKey {
    /// Generates a secret key.
    #[must_use]
    pub fn generate(random: &mut dyn Random) -> Self {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        random.fill(bytes.as_mut());
        Self::from_bytes(&bytes)
    }

    /// A secret key from storage. It is clamped (RFC 7748 section 5) where it is used.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Self {
        Self(StaticSecret::from(*bytes))
    }

    /// The secret bytes, for storing them. Do not log them.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        self.0.as_bytes()
    }

    /// The secret as base64, for storing it. Do not log it.
    #[must_use]
    pub fn expose_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(encode(self.expose()))
    }

    /// The public key of this secret key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(Point::from(&self.0).to_bytes())
    }

    /// Derives a key that only this end and the holder of the other secret key can derive, one for
    /// each `label`: BLAKE2s-256 (RFC 7693) of the label, keyed with the X25519 (RFC 7748) result
    /// of the two keys. `None` for a point of small order.
    #[must_use]
    pub fn shared(&self, public: &PublicKey, label: &[u8]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
        let agreed = self.agree(public.as_bytes())?;
        Some(crate::hash::derive(&agreed, &[label]))
    }

    /// X25519 (RFC 7748); `None` for a point of small order, with which the result is zero.
    pub(crate) fn agree(&self, public: &[u8; KEY_BYTES]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
        let shared = self.0.diffie_hellman(&Point::from(*public));
        shared
            .was_contributory()
            .then(|| Zeroizing::new(shared.to_bytes()))
    }
}

impl FromStr for SecretKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(|bytes| Self::from_bytes(&bytes))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(hidden)")
    }
}

impl PublicKey {
    /// A public key from its bytes. Any 32 bytes are accepted.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(|bytes| Self(*bytes))
    }
}

impl fmt::Display for PublicKey {
    /// Base64, as WireGuard's tools print keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl PresharedKey {
    /// No preshared key: all zero.
    #[must_use]
    pub const fn none() -> Self {
        Self([0; KEY_BYTES])
    }

    /// Generates a preshared key.
    #[must_use]
    pub fn generate(random: &mut dyn Random) -> Self {
        let mut key = Self::none();
        random.fill(&mut key.0);
        key
    }

    /// A preshared key from storage.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The key as base64, for storing it. Do not log it.
    #[must_use]
    pub fn expose_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(encode(&self.0))
    }

    /// The secret bytes, for storing them. Do not log them.
    #[must_use]
    pub const fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl FromStr for PresharedKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(|bytes| Self(*bytes))
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(hidden)")
    }
}

/// Result of a handshake: a key for each direction. Wiped when it is dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Secrets {
    /// Key for messages of the initiator.
    pub(crate) from_initiator: [u8; KEY_BYTES],
    /// Key for messages of the responder.
    pub(crate) from_responder: [u8; KEY_BYTES],
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(hidden)")
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 with padding (RFC 4648 section 4). Its time depends on the secret: it runs only when a
/// key is read or printed.
fn encode(bytes: &[u8; KEY_BYTES]) -> String {
    let mut text = String::with_capacity(44);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for place in 0..4 {
            if place <= chunk.len() {
                text.push(char::from(
                    ALPHABET[(bits >> (18 - 6 * place)) as usize & 63],
                ));
            } else {
                text.push('=');
            }
        }
    }
    text
}

fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, InvalidKey> {
    let text = text.trim().as_bytes();
    if text.len() != 44 || text[43] != b'=' {
        return Err(InvalidKey);
    }
    let mut out = Zeroizing::new([0; KEY_BYTES]);
    let (mut bits, mut have, mut at) = (0_u32, 0, 0);
    for &c in &text[..43] {
        let value = ALPHABET.iter().position(|&a| a == c).ok_or(InvalidKey)?;
        bits = (bits << 6) | value as u32;
        have += 6;
        if have >= 8 {
            have -= 8;
            out[at] = (bits >> have) as u8;
            at += 1;
            bits &= (1 << have) - 1;
        }
    }
    // 43 characters have 258 bits: the last two must be zero.
    if bits == 0 { Ok(out) } else { Err(InvalidKey) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 7748 section 6.1.
    #[test]
    fn x25519_agrees_with_rfc_7748() {
        let alice = SecretKey::from_bytes(&hex(
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
        ));
        let bob = SecretKey::from_bytes(&hex(
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        ));
        assert_eq!(
            alice.public().as_bytes(),
            &hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
        );
        let shared = hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert_eq!(*alice.agree(bob.public().as_bytes()).unwrap(), shared);
        assert_eq!(*bob.agree(alice.public().as_bytes()).unwrap(), shared);
    }

    #[test]
    fn points_of_small_order_are_refused() {
        let key = SecretKey::from_bytes(&[7; 32]);
        let mut one = [0; 32];
        one[0] = 1;
        assert!(key.agree(&[0; 32]).is_none());
        assert!(key.agree(&one).is_none());
    }

    #[test]
    fn secrets_do_not_show() {
        let secret = SecretKey::from_bytes(&[0xab; 32]);
        let shared = PresharedKey::from_bytes([0xab; 32]);
        let secrets = Secrets {
            from_initiator: [0xab; 32],
            from_responder: [0xab; 32],
        };
        let text = format!("{secret:?} {shared:?} {secrets:?}");
        assert!(
            !text.contains("ab, ") && !text.contains("171") && text.contains("hidden"),
            "{text}"
        );
    }

    #[test]
    fn bad_text_is_refused() {
        let good = PublicKey::from_bytes([9; 32]).to_string();
        assert!(good.parse::<PublicKey>().is_ok());
        for bad in [
            "",
            "AAAA",
            &good[1..],
            &good.replace('=', "A"),
            &format!("{}*=", &good[..42]),
            &format!("{}B=", &good[..42]),
        ] {
            assert_eq!(bad.parse::<PublicKey>(), Err(InvalidKey), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_reads_as_written(bytes: [u8; 32]) {
            let key = PublicKey::from_bytes(bytes);
            prop_assert_eq!(key.to_string().parse::<PublicKey>(), Ok(key));
            let secret = SecretKey::from_bytes(&bytes);
            prop_assert_eq!(*secret.expose_base64().parse::<SecretKey>().unwrap().expose(), bytes);
        }
    }

    fn hex(text: &str) -> [u8; 32] {
        crate::testing::hex(text).try_into().unwrap()
    }
}
