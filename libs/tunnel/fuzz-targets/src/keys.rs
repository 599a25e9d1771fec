//! The text forms of keys and ciphers.

use tunnel::{Cipher, CipherChoice, PresharedKey, PublicKey, SecretKey};

/// Parses the input as text; and prints its first 32 bytes as a key, which must be parsed again.
pub fn keys(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let public = text.parse::<PublicKey>();
    let model = decode(text.trim());
    assert_eq!(public.ok().map(|key| *key.as_bytes()), model);
    let secret = text.parse::<SecretKey>();
    assert_eq!(secret.as_ref().ok().map(|key| *key.expose()), model);
    let shared = text.parse::<PresharedKey>();
    assert_eq!(shared.as_ref().ok().map(|key| *key.expose()), model);
    if let (Ok(public), Ok(secret)) = (public, secret) {
        // A key has exactly one text.
        assert_eq!(public.to_string(), text.trim());
        assert_eq!(*secret.expose_base64(), text.trim());
    }
    if let Ok(cipher) = text.parse::<Cipher>() {
        assert_eq!(cipher.name(), text);
        assert_eq!(Cipher::from_wire_id(cipher.wire_id()), Some(cipher));
    }
    if let Ok(CipherChoice::Fixed(cipher)) = text.parse() {
        assert_eq!(cipher.name(), text);
    }
    if let Some(&bytes) = data.first_chunk::<32>() {
        let key = PublicKey::from_bytes(bytes);
        assert_eq!(key.to_string().parse(), Ok(key));
    }
}

/// Base64 (RFC 4648 section 4), bit by bit.
fn decode(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_suffix('=')?;
    let mut bits = Vec::new();
    for c in digits.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits.extend((0..6).rev().map(|at| value >> at & 1));
    }
    if bits.len() != 258 || bits[256..] != [0, 0] {
        return None;
    }
    let mut out = [0; 32];
    for (at, bit) in bits[..256].iter().enumerate() {
        out[at / 8] |= bit << (7 - at % 8);
    }
    Some(out)
}
