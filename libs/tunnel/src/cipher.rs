//! The ciphers of data messages: ChaCha20-Poly1305 (RFC 8439) and AES-256-GCM (NIST SP 800-38D).
//!
//! ```text
//!              aws-lc-rs (feature `aws-lc`, default): assembly, out of place
//!  AeadKey ──┤
//!              RustCrypto: portable, and the oracle in tests
//! ```
//!
//! The nonce is four zero bytes and the packet counter, little-endian; there is no associated data
//! (white paper, section 5.4.6). This holds for both ciphers.

use std::fmt;
use std::str::FromStr;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use chacha20poly1305::ChaCha20Poly1305;
use thiserror::Error;

use crate::wire::TAG_BYTES;

/// A cipher for data messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// WireGuard's cipher.
    ChaCha20Poly1305,
    /// Several times faster on CPUs with AES instructions. Between appliances only.
    Aes256Gcm,
}

/// The text is not the name of a cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("parse cipher: expected `chacha20-poly1305` or `aes-256-gcm`")]
pub struct UnknownCipher;

impl Cipher {
    /// Both ciphers, for a caller that measures their speed.
    pub const ALL: [Self; 2] = [Self::ChaCha20Poly1305, Self::Aes256Gcm];

    /// The cipher's number in byte 1 of a data message, which is reserved and zero in WireGuard.
    #[must_use]
    pub const fn wire_id(self) -> u8 {
        match self {
            Self::ChaCha20Poly1305 => 0,
            Self::Aes256Gcm => 1,
        }
    }

    /// The cipher with this number in a data message.
    #[must_use]
    pub const fn from_wire_id(id: u8) -> Option<Self> {
        match id {
            0 => Some(Self::ChaCha20Poly1305),
            1 => Some(Self::Aes256Gcm),
            _ => None,
        }
    }

    /// The name, in configuration files and in the derivation of keys.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes256Gcm => "aes-256-gcm",
        }
    }

    /// Messages by one key after which a handshake starts.
    ///
    /// ChaCha20-Poly1305: WireGuard's 2^60. AES-256-GCM: 2^26, which with messages of at most 2^10
    /// blocks keeps an attacker's advantage below 2^-57, the bound of RFC 8446 section 5.5.
    #[must_use]
    pub const fn rekey_after_messages(self) -> u64 {
        match self {
            Self::ChaCha20Poly1305 => 1 << 60,
            Self::Aes256Gcm => 1 << 26,
        }
    }

    /// Messages by one key after which nothing is sealed or opened with it.
    #[must_use]
    pub const fn reject_after_messages(self) -> u64 {
        match self {
            // 2^64 - 2^13 - 1, white paper section 6.1.
            Self::ChaCha20Poly1305 => u64::MAX - (1 << 13),
            Self::Aes256Gcm => 1 << 27,
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Cipher {
    type Err = UnknownCipher;

    fn from_str(text: &str) -> Result<Self, UnknownCipher> {
        Self::ALL
            .into_iter()
            .find(|cipher| cipher.name() == text)
            .ok_or(UnknownCipher)
    }
}

/// How the cipher for sending is chosen. Each end chooses its own, and opens both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CipherChoice {
    /// The cipher that the caller measured to be faster on this CPU.
    #[default]
    Auto,
    /// This cipher.
    Fixed(Cipher),
}

/// Time to seal one packet with each cipher, as the caller measured it, in any unit. Time
/// [`crate::bench_cipher`] for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CipherTimings {
    /// With ChaCha20-Poly1305.
    pub chacha20_poly1305: u64,
    /// With AES-256-GCM.
    pub aes_256_gcm: u64,
}

impl CipherChoice {
    /// The cipher to send with; ChaCha20-Poly1305 if both are equally fast.
    #[must_use]
    pub const fn resolve(self, measured: CipherTimings) -> Cipher {
        match self {
            Self::Fixed(cipher) => cipher,
            Self::Auto if measured.aes_256_gcm < measured.chacha20_poly1305 => Cipher::Aes256Gcm,
            Self::Auto => Cipher::ChaCha20Poly1305,
        }
    }
}

impl FromStr for CipherChoice {
    type Err = UnknownCipher;

    fn from_str(text: &str) -> Result<Self, UnknownCipher> {
        if text == "auto" {
            Ok(Self::Auto)
        } else {
            text.parse().map(Self::Fixed)
        }
    }
}

/// Sealing or opening has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AeadError {
    /// The output buffer is too small.
    #[error("seal: the output has {have} bytes and needs {need}; give a larger buffer")]
    Short {
        /// Bytes needed.
        need: usize,
        /// Bytes given.
        have: usize,
    },
    /// The tag is wrong: altered, or sealed with another key or counter.
    #[error("open: the packet is not authentic; drop it")]
    Forged,
}

/// A key of one cipher. The library that holds it wipes its memory when it is dropped.
pub struct AeadKey {
    cipher: Cipher,
    backend: Backend,
}

#[cfg_attr(
    feature = "aws-lc",
    expect(
        clippy::large_enum_variant,
        reason = "a key is made once per session and read for every packet: no indirection"
    )
)]
enum Backend {
    #[cfg(feature = "aws-lc")]
    AwsLc(aws_lc_rs::aead::LessSafeKey),
    ChaCha(ChaCha20Poly1305),
    Aes(Aes256Gcm),
}

impl fmt::Debug for AeadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AeadKey({}, hidden)", self.cipher)
    }
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

impl AeadKey {
    /// Sets up a key in the fastest implementation of this build.
    #[must_use]
    pub fn new(cipher: Cipher, key: &[u8; 32]) -> Self {
        #[cfg(feature = "aws-lc")]
        {
            use aws_lc_rs::aead::{AES_256_GCM, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
            let algorithm = match cipher {
                Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
                Cipher::Aes256Gcm => &AES_256_GCM,
            };
            if let Ok(key) = UnboundKey::new(algorithm, key) {
                return Self {
                    cipher,
                    backend: Backend::AwsLc(LessSafeKey::new(key)),
                };
            }
        }
        Self::portable(cipher, key)
    }

    /// Sets up a key in the portable implementation.
    #[must_use]
    pub fn portable(cipher: Cipher, key: &[u8; 32]) -> Self {
        let backend = match cipher {
            Cipher::ChaCha20Poly1305 => Backend::ChaCha(ChaCha20Poly1305::new(key.into())),
            Cipher::Aes256Gcm => Backend::Aes(Aes256Gcm::new(key.into())),
        };
        Self { cipher, backend }
    }

    /// The cipher of this key.
    #[must_use]
    pub const fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Seals the concatenation of `parts` into `out`, followed by the tag. Returns the bytes
    /// written.
    ///
    /// A counter must not be used twice with the same key. [`crate::Sender`] takes care of that.
    ///
    /// # Errors
    /// [`AeadError::Short`] if `out` is shorter than the parts and [`TAG_BYTES`].
    #[inline]
    pub fn seal_into(
        &self,
        counter: u64,
        parts: &[&[u8]],
        out: &mut [u8],
    ) -> Result<usize, AeadError> {
        self.seal_with(nonce(counter), &[], parts, out)
    }

    /// As [`AeadKey::seal_into`], with any nonce and associated data, for published test vectors.
    #[inline]
    fn seal_with(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        parts: &[&[u8]],
        out: &mut [u8],
    ) -> Result<usize, AeadError> {
        let plain: usize = parts.iter().map(|part| part.len()).sum();
        let need = plain + TAG_BYTES;
        let have = out.len();
        let Some(out) = out.get_mut(..need) else {
            return Err(AeadError::Short { need, have });
        };
        let (body, tag) = out.split_at_mut(plain);
        #[cfg(feature = "aws-lc")]
        if let (Backend::AwsLc(key), [whole]) = (&self.backend, parts) {
            // A single part needs no copy.
            let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce);
            return key
                .seal_out_of_place_scatter(
                    nonce,
                    aws_lc_rs::aead::Aad::from(aad),
                    whole,
                    body,
                    &[],
                    tag,
                )
                .map(|()| need)
                .map_err(|_| AeadError::Forged);
        }
        let mut at = 0;
        for part in parts {
            body[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        match &self.backend {
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc(key) => {
                let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce);
                let sealed =
                    key.seal_in_place_separate_tag(nonce, aws_lc_rs::aead::Aad::from(aad), body);
                tag.copy_from_slice(sealed.map_err(|_| AeadError::Forged)?.as_ref());
            }
            Backend::ChaCha(key) => {
                let sealed = key.encrypt_inout_detached(&nonce.into(), aad, body.into());
                tag.copy_from_slice(&sealed.map_err(|_| AeadError::Forged)?);
            }
            Backend::Aes(key) => {
                let sealed = key.encrypt_inout_detached(&nonce.into(), aad, body.into());
                tag.copy_from_slice(&sealed.map_err(|_| AeadError::Forged)?);
            }
        }
        Ok(need)
    }

    /// Opens ciphertext and tag in place. Returns the plaintext.
    ///
    /// # Errors
    /// [`AeadError::Forged`] if the tag is wrong. The buffer's bytes are then undefined.
    #[inline]
    pub fn open_in_place<'a>(
        &self,
        counter: u64,
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], AeadError> {
        self.open_with(nonce(counter), &[], sealed)
    }

    #[inline]
    fn open_with<'a>(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], AeadError> {
        let Some(plain) = sealed.len().checked_sub(TAG_BYTES) else {
            return Err(AeadError::Forged);
        };
        match &self.backend {
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc(key) => {
                let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, aws_lc_rs::aead::Aad::from(aad), sealed)
                    .map_err(|_| AeadError::Forged)
            }
            Backend::ChaCha(key) => {
                let (body, tag) = sealed.split_at_mut(plain);
                let tag = (&*tag).try_into().map_err(|_| AeadError::Forged)?;
                key.decrypt_inout_detached(&nonce.into(), aad, (&mut *body).into(), tag)
                    .map_err(|_| AeadError::Forged)?;
                Ok(body)
            }
            Backend::Aes(key) => {
                let (body, tag) = sealed.split_at_mut(plain);
                let tag = (&*tag).try_into().map_err(|_| AeadError::Forged)?;
                key.decrypt_inout_detached(&nonce.into(), aad, (&mut *body).into(), tag)
                    .map_err(|_| AeadError::Forged)?;
                Ok(body)
            }
        }
    }
}

/// Seals `count` packets of 1420 bytes. Callers time this for [`CipherTimings`]. Returns a byte of
/// the result, so that the compiler does not remove the work.
#[must_use]
pub fn bench_cipher(cipher: Cipher, count: u32) -> u8 {
    let key = AeadKey::new(cipher, &[0x5a; 32]);
    let packet = [0x5a_u8; 1420];
    let mut out = [0; 1420 + TAG_BYTES];
    for counter in 0..count {
        if key
            .seal_into(u64::from(counter), &[&packet], &mut out)
            .is_err()
        {
            return 0;
        }
    }
    std::hint::black_box(out[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::hex;
    use proptest::prelude::*;

    struct Vector {
        name: &'static str,
        cipher: Cipher,
        key: &'static str,
        nonce: &'static str,
        aad: &'static str,
        plain: &'static str,
        sealed: &'static str,
    }

    /// RFC 8439 section 2.8.2; GCM test cases 13 to 16 of "The Galois/Counter Mode of Operation",
    /// which NIST SP 800-38D refers to.
    const VECTORS: [Vector; 5] = [
        Vector {
            name: "RFC 8439 2.8.2",
            cipher: Cipher::ChaCha20Poly1305,
            key: "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
            nonce: "070000004041424344454647",
            aad: "50515253c0c1c2c3c4c5c6c7",
            plain: "4c616469657320616e642047656e746c656d656e206f662074686520636c617373206f66202739393a204966204920636f756c64
                    206f6666657220796f75206f6e6c79206f6e652074697020666f7220746865206675747572652c2073756e73637265656e20776f
                    756c642062652069742e",
            sealed: "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a
                     9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9d
                     e576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691",
        },
        Vector {
            name: "GCM 13",
            cipher: Cipher::Aes256Gcm,
            key: "0000000000000000000000000000000000000000000000000000000000000000",
            nonce: "000000000000000000000000",
            aad: "",
            plain: "",
            sealed: "530f8afbc74536b9a963b4f1c4cb738b",
        },
        Vector {
            name: "GCM 14",
            cipher: Cipher::Aes256Gcm,
            key: "0000000000000000000000000000000000000000000000000000000000000000",
            nonce: "000000000000000000000000",
            aad: "",
            plain: "00000000000000000000000000000000",
            sealed: "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
        },
        Vector {
            name: "GCM 15",
            cipher: Cipher::Aes256Gcm,
            key: "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
            nonce: "cafebabefacedbaddecaf888",
            aad: "",
            plain: "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
                    1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
            sealed: "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
                     8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad
                     b094dac5d93471bdec1a502270e3cc6c",
        },
        Vector {
            name: "GCM 16",
            cipher: Cipher::Aes256Gcm,
            key: "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
            nonce: "cafebabefacedbaddecaf888",
            aad: "feedfacedeadbeeffeedfacedeadbeefabaddad2",
            plain: "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
                    1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
            sealed: "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
                     8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662
                     76fc6ece0f4e1768cddf8853bb2d551b",
        },
    ];

    #[test]
    fn published_vectors_hold_in_every_implementation() {
        for vector in &VECTORS {
            let key: [u8; 32] = hex(vector.key).try_into().unwrap();
            let nonce: [u8; 12] = hex(vector.nonce).try_into().unwrap();
            let (aad, plain, sealed) = (hex(vector.aad), hex(vector.plain), hex(vector.sealed));
            for key in [
                AeadKey::new(vector.cipher, &key),
                AeadKey::portable(vector.cipher, &key),
            ] {
                for cut in [0, plain.len() / 3, plain.len()] {
                    let (one, two) = plain.split_at(cut);
                    let mut out = vec![0xee; sealed.len()];
                    assert_eq!(
                        key.seal_with(nonce, &aad, &[one, two], &mut out),
                        Ok(sealed.len())
                    );
                    assert_eq!(out, sealed, "{} cut at {cut}", vector.name);
                    assert_eq!(
                        key.open_with(nonce, &aad, &mut out).unwrap(),
                        plain,
                        "{}",
                        vector.name
                    );
                }
                let mut whole = vec![0; sealed.len()];
                key.seal_with(nonce, &aad, &[&plain], &mut whole).unwrap();
                assert_eq!(whole, sealed, "{} in one part", vector.name);
            }
        }
    }

    #[test]
    fn the_choice_is_by_measure_and_wireguards_at_a_tie() {
        let fast = |chacha20_poly1305, aes_256_gcm| CipherTimings {
            chacha20_poly1305,
            aes_256_gcm,
        };
        assert_eq!(
            CipherChoice::Auto.resolve(fast(800, 170)),
            Cipher::Aes256Gcm
        );
        assert_eq!(
            CipherChoice::Auto.resolve(fast(800, 2000)),
            Cipher::ChaCha20Poly1305
        );
        assert_eq!(
            CipherChoice::Auto.resolve(fast(5, 5)),
            Cipher::ChaCha20Poly1305
        );
        assert_eq!(
            "aes-256-gcm"
                .parse::<CipherChoice>()
                .unwrap()
                .resolve(fast(1, 9)),
            Cipher::Aes256Gcm
        );
        assert_eq!("auto".parse(), Ok(CipherChoice::Auto));
        assert!("des".parse::<CipherChoice>().is_err());
    }

    #[test]
    fn a_short_output_is_refused() {
        let key = AeadKey::new(Cipher::Aes256Gcm, &[1; 32]);
        assert_eq!(
            key.seal_into(0, &[&[0; 10]], &mut [0; 25]),
            Err(AeadError::Short { need: 26, have: 25 })
        );
        assert_eq!(key.open_in_place(0, &mut [0; 15]), Err(AeadError::Forged));
    }

    proptest! {
        #[test]
        fn the_fast_implementation_equals_the_oracle(
            key: [u8; 32],
            counter: u64,
            plain in proptest::collection::vec(any::<u8>(), 0..2000),
            cut in 0_usize..2000,
            aes: bool,
            flip in any::<proptest::sample::Index>(),
        ) {
            let cipher = if aes { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
            let (fast, oracle) = (AeadKey::new(cipher, &key), AeadKey::portable(cipher, &key));
            let (one, two) = plain.split_at(cut.min(plain.len()));
            let mut a = vec![0; plain.len() + TAG_BYTES];
            let mut b = a.clone();
            let mut c = a.clone();
            fast.seal_into(counter, &[one, two], &mut a).unwrap();
            fast.seal_into(counter, &[&plain], &mut b).unwrap();
            oracle.seal_into(counter, &[one, two], &mut c).unwrap();
            prop_assert_eq!(&a, &c);
            prop_assert_eq!(&b, &c);
            prop_assert_eq!(&*oracle.open_in_place(counter, &mut a).unwrap(), &plain[..]);
            prop_assert_eq!(&*fast.open_in_place(counter, &mut b).unwrap(), &plain[..]);
            let at = flip.index(c.len());
            c[at] ^= 1;
            prop_assert!(fast.open_in_place(counter, &mut c.clone()).is_err());
            prop_assert!(oracle.open_in_place(counter, &mut c).is_err());
        }
    }
}
