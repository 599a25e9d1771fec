//! Enrolment tokens: all that a new machine needs to reach and to authenticate its director once.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gateway_client::dial::{ServiceAddress, dns_name};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroize as _;

use crate::Fingerprint;

/// Every token of this version begins with this, so that scanners of leaked secrets find it.
const PREFIX: &str = "cwy-enrol1.";
/// Most service addresses of a token.
const MAX_SERVICE_ADDRESSES: usize = 16;
/// Bytes of the checksum.
const CHECKSUM_LEN: usize = 4;

/// The secret of a token: 128 random bits. Its bytes are wiped when it is dropped, and never
/// printed by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 16]);

impl Secret {
    /// A secret of random bytes.
    #[must_use]
    pub const fn new(random: [u8; 16]) -> Self {
        Self(random)
    }

    /// Takes the bytes of a message.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes, for the message that enrols.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The hash by which the director stores it: SHA-256 in lower-case hexadecimal. The secret is
    /// random, so that a fast hash suffices.
    #[must_use]
    pub fn hash(&self) -> String {
        Fingerprint::of(&self.0).to_string()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A token for one enrolment of one machine. Its text is `cwy-enrol1.` and base64url without
/// padding (RFC 4648 section 5) of secret (16 bytes), SHA-256 of the CA's certificate (32), length
/// and text of the director's server name, number of service addresses, length and text of each,
/// and the first four bytes of the SHA-256 of all of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolmentToken {
    /// Proof that the machine may enrol.
    pub secret: Secret,
    /// Hash of the CA's certificate: the machine trusts no other at its first contact.
    pub authority: Fingerprint,
    /// Server name of the director in TLS, a DNS name; gateways relay by it.
    pub server_name: String,
    /// Where to connect: gateways, or the director itself. 1 to 16.
    pub service_addresses: Vec<ServiceAddress>,
}

/// A text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// It is something else.
    #[error("this is not an enrolment token: a token begins with {PREFIX}")]
    Prefix,
    /// A part is missing or changed.
    #[error("the enrolment token is incomplete or changed: copy the whole token again")]
    Damaged,
    /// It has contents that no director writes.
    #[error("the enrolment token has an invalid {0}: request a new token")]
    Contents(&'static str),
}

impl EnrolmentToken {
    /// Checks the contents.
    ///
    /// # Errors
    /// [`BadToken::Contents`].
    pub fn check(&self) -> Result<(), BadToken> {
        if dns_name(self.server_name.as_bytes()).as_deref() != Some(&*self.server_name) {
            return Err(BadToken::Contents("server name"));
        }
        if !(1..=MAX_SERVICE_ADDRESSES).contains(&self.service_addresses.len()) {
            return Err(BadToken::Contents("number of service addresses"));
        }
        let fits = |address: &ServiceAddress| u8::try_from(address.to_string().len()).is_ok();
        if !self.service_addresses.iter().all(fits) {
            return Err(BadToken::Contents("service address"));
        }
        Ok(())
    }

    /// The token as text: a secret.
    ///
    /// # Errors
    /// As [`EnrolmentToken::check`].
    pub fn encode(&self) -> Result<String, BadToken> {
        self.check()?;
        let mut bytes = self.secret.as_bytes().to_vec();
        bytes.extend(self.authority.as_bytes());
        push(&mut bytes, &self.server_name)?;
        let count = u8::try_from(self.service_addresses.len());
        bytes.push(count.map_err(|_| BadToken::Contents("number of service addresses"))?);
        for address in &self.service_addresses {
            push(&mut bytes, &address.to_string())?;
        }
        let check = Sha256::digest(&bytes);
        bytes.extend(&check[..CHECKSUM_LEN]);
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
        bytes.zeroize();
        Ok(text)
    }
}

fn push(bytes: &mut Vec<u8>, text: &str) -> Result<(), BadToken> {
    let length = u8::try_from(text.len()).map_err(|_| BadToken::Contents("service address"))?;
    bytes.push(length);
    bytes.extend(text.as_bytes());
    Ok(())
}

impl FromStr for EnrolmentToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(BadToken::Prefix)?;
        let mut bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| BadToken::Damaged)?;
        let token = read(&bytes);
        bytes.zeroize();
        token
    }
}

fn read(bytes: &[u8]) -> Result<EnrolmentToken, BadToken> {
    let length = bytes
        .len()
        .checked_sub(CHECKSUM_LEN)
        .ok_or(BadToken::Damaged)?;
    let (contents, check) = bytes.split_at(length);
    if Sha256::digest(contents)[..CHECKSUM_LEN] != *check {
        return Err(BadToken::Damaged);
    }
    let mut rest = Reader(contents);
    let secret = Secret::from_slice(rest.take(16)?).ok_or(BadToken::Damaged)?;
    let authority = Fingerprint::from_slice(rest.take(32)?).ok_or(BadToken::Damaged)?;
    let server_name = rest.text("server name")?.to_owned();
    let count = rest.take(1)?[0];
    let mut service_addresses = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let address = rest.text("service address")?.parse();
        service_addresses.push(address.map_err(|_| BadToken::Contents("service address"))?);
    }
    if !rest.0.is_empty() {
        return Err(BadToken::Damaged);
    }
    let token = EnrolmentToken {
        secret,
        authority,
        server_name,
        service_addresses,
    };
    token.check()?;
    Ok(token)
}

/// The bytes that are not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BadToken> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(BadToken::Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    fn text(&mut self, what: &'static str) -> Result<&'a str, BadToken> {
        let length = self.take(1)?[0];
        str::from_utf8(self.take(usize::from(length))?).map_err(|_| BadToken::Contents(what))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> EnrolmentToken {
        EnrolmentToken {
            secret: Secret::new([7; 16]),
            authority: Fingerprint::of(b"certificate"),
            server_name: "director.example.net".into(),
            service_addresses: [
                "192.0.2.1:6180",
                "[2001:db8::1]:6180",
                "gw2.example.net:443",
            ]
            .map(|address| address.parse().unwrap())
            .into(),
        }
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let text = token().encode().unwrap();
        assert!(text.starts_with("cwy-enrol1."));
        assert!(text.len() < 220, "{}", text.len());
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
    }

    #[test]
    fn a_part_of_a_token_is_refused() {
        let text = token().encode().unwrap();
        for end in "cwy-enrol1.".len()..text.len() {
            assert!(text[..end].parse::<EnrolmentToken>().is_err(), "{end}");
        }
        assert_eq!("cwy_0123".parse::<EnrolmentToken>(), Err(BadToken::Prefix));
    }

    #[test]
    fn a_token_with_impossible_contents_is_not_made() {
        let without = EnrolmentToken {
            service_addresses: Vec::new(),
            ..token()
        };
        let error = BadToken::Contents("number of service addresses");
        assert_eq!(without.encode(), Err(error));
        let many = EnrolmentToken {
            service_addresses: vec!["192.0.2.1:1".parse().unwrap(); 17],
            ..token()
        };
        assert_eq!(many.encode(), Err(error));
        let name = EnrolmentToken {
            server_name: "Director".into(),
            ..token()
        };
        assert_eq!(name.encode(), Err(BadToken::Contents("server name")));
    }

    #[test]
    fn neither_debug_nor_the_stored_hash_shows_the_secret() {
        let shown = format!("{:?}", token());
        assert!(shown.contains("Secret(..)"), "{shown}");
        assert!(!shown.contains("7, 7"), "{shown}");
        let hash = token().secret.hash();
        assert_eq!(hash.len(), 64);
        assert_ne!(hash, Secret::new([8; 16]).hash());
    }

    proptest! {
        #[test]
        fn a_changed_character_is_found(at in 0usize..200, to in "[A-Za-z0-9_-]") {
            let text = token().encode().unwrap();
            let at = "cwy-enrol1.".len() + at % (text.len() - "cwy-enrol1.".len());
            prop_assume!(text[at..=at] != to);
            let mut changed = text;
            changed.replace_range(at..=at, &to);
            prop_assert!(changed.parse::<EnrolmentToken>().is_err());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut all = bytes;
            let check = Sha256::digest(&all);
            all.extend(&check[..CHECKSUM_LEN]);
            let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&all));
            if let Ok(token) = text.parse::<EnrolmentToken>() {
                prop_assert_eq!(token.encode(), Ok(text));
            }
        }
    }
}
