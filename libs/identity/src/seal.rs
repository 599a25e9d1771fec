//! The authority's key as it is stored: encrypted by a key that is not in the store.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use chacha20poly1305::{KeyInit as _, Tag, XChaCha20Poly1305, aead::AeadInOut as _};
use zeroize::{Zeroize as _, Zeroizing};

/// Bytes of a nonce of XChaCha20-Poly1305.
const NONCE: usize = 24;
/// Bytes of an authentication tag of Poly1305.
const TAG: usize = 16;
/// Begin of the text of a sealed key.
const PREFIX: &str = "xchacha20poly1305:";

/// The key that encrypts others: 32 random bytes of a file or of a systemd credential, the same for
/// all directors of a provider. Its bytes are wiped when it is dropped.
#[derive(Clone)]
pub struct SealingKey([u8; 32]);

impl SealingKey {
    /// The key of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl Drop for SealingKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(..)")
    }
}

/// A key in encrypted form, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed(String);

/// A sealed key cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsealable {
    /// The text has another form.
    #[error("the stored key has an unknown form: it was written by a newer version, or is damaged")]
    Malformed,
    /// The text was encrypted by another key or for another purpose, or is damaged.
    #[error("the stored key cannot be decrypted: it was encrypted with another sealing key")]
    WrongKey,
}

impl Sealed {
    /// Encrypts a secret by XChaCha20-Poly1305. `context` is authenticated: opening needs the same.
    /// `nonce` is random; each call needs another one.
    ///
    /// # Panics
    /// Never: the cipher takes any text of less than 256 GiB.
    #[must_use]
    pub fn seal(key: &SealingKey, nonce: [u8; NONCE], context: &[u8], secret: &[u8]) -> Self {
        let mut body = secret.to_vec();
        let cipher = XChaCha20Poly1305::new(&key.0.into());
        let tag = cipher.encrypt_inout_detached(&nonce.into(), context, body.as_mut_slice().into());
        let tag = tag.expect("the secret is short");
        let bytes = [&nonce[..], &body, &tag].concat();
        Self(format!("{PREFIX}{}", STANDARD_NO_PAD.encode(bytes)))
    }

    /// Decrypts the secret.
    ///
    /// # Errors
    /// [`Unsealable`].
    pub fn open(&self, key: &SealingKey, context: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unsealable> {
        let text = self.0.strip_prefix(PREFIX).ok_or(Unsealable::Malformed)?;
        let bytes = STANDARD_NO_PAD
            .decode(text)
            .map_err(|_| Unsealable::Malformed)?;
        let (nonce, rest) = bytes
            .split_first_chunk::<NONCE>()
            .ok_or(Unsealable::Malformed)?;
        let (body, tag) = rest
            .split_last_chunk::<TAG>()
            .ok_or(Unsealable::Malformed)?;
        let mut body = Zeroizing::new(body.to_vec());
        let cipher = XChaCha20Poly1305::new(&key.0.into());
        let tag = Tag::from(*tag);
        let inout = body.as_mut_slice().into();
        let opened = cipher.decrypt_inout_detached(&(*nonce).into(), context, inout, &tag);
        opened.map(|()| body).map_err(|_| Unsealable::WrongKey)
    }

    /// The text, for the store.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Sealed {
    fn from(text: String) -> Self {
        Self(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_and_context_open_a_secret() {
        let key = SealingKey::new([1; 32]);
        let sealed = Sealed::seal(&key, [2; 24], b"ca", b"secret");
        assert_eq!(*sealed.open(&key, b"ca").unwrap(), b"secret");
        let stored = Sealed::from(sealed.as_str().to_owned());
        assert_eq!(*stored.open(&key, b"ca").unwrap(), b"secret");
        let wrong = Err(Unsealable::WrongKey);
        assert_eq!(sealed.open(&key, b"other"), wrong);
        assert_eq!(sealed.open(&SealingKey::new([3; 32]), b"ca"), wrong);
        assert!(!sealed.as_str().contains("secret"));
        assert_eq!(format!("{key:?}"), "SealingKey(..)");
    }

    #[test]
    fn each_changed_character_is_found() {
        let key = SealingKey::new([1; 32]);
        let sealed = Sealed::seal(&key, [2; 24], b"ca", b"secret");
        for at in 0..sealed.as_str().len() {
            let mut text = sealed.as_str().to_owned();
            let other = if &text[at..=at] == "A" { "B" } else { "A" };
            text.replace_range(at..=at, other);
            assert!(Sealed::from(text).open(&key, b"ca").is_err(), "{at}");
        }
        let empty = Sealed::from(PREFIX.to_owned()).open(&key, b"ca");
        assert_eq!(empty, Err(Unsealable::Malformed));
    }
}
