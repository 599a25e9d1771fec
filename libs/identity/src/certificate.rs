//! Contents of a machine's certificate.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use x509_parser::{extensions::GeneralName, parse_x509_certificate, time::ASN1Time};

use crate::{Name, Serial};

/// SHA-256 of a certificate in DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Takes 32 bytes.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// In lower-case hexadecimal.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The time in which a certificate is valid, both ends included (RFC 5280 section 4.1.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: Timestamp,
    /// Last second.
    pub not_after: Timestamp,
}

impl Validity {
    /// Whether a certificate is valid at this time.
    #[must_use]
    pub fn contains(&self, now: Timestamp) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// When its machine renews it: after half of its life, and up to an eighth later by `jitter`
    /// (any random number), so that machines that enrolled together do not renew together.
    #[must_use]
    pub fn renewal(&self, jitter: u32) -> Timestamp {
        let life = self.not_after.duration_since(self.not_before);
        let later = (life / 8).as_secs().saturating_mul(i64::from(jitter)) / i64::from(u32::MAX);
        let after = life / 2 + SignedDuration::from_secs(later);
        self.not_before.checked_add(after).unwrap_or(self.not_after)
    }
}

/// A certificate is none of a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    /// It is not DER of X.509.
    #[error("it is no X.509 certificate")]
    Malformed,
    /// It does not have one name of a machine.
    #[error("it has no name of a machine, which is one URI spiffe://PROVIDER/…")]
    Name,
    /// Its serial number or its times are none that a director writes.
    #[error("it has a serial number or a time that no director writes")]
    Field,
}

/// Contents of a certificate, which must be verified before by TLS, or come from a trusted place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Name of the machine.
    pub name: Name,
    /// Serial number: each certificate of an authority has another one.
    pub serial: Serial,
    /// When it is valid.
    pub validity: Validity,
    /// SHA-256 of the public key (SubjectPublicKeyInfo in DER).
    pub key: Fingerprint,
}

impl Certificate {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// [`BadCertificate`].
    pub fn read(der: &[u8]) -> Result<Self, BadCertificate> {
        let (rest, parsed) = parse_x509_certificate(der).map_err(|_| BadCertificate::Malformed)?;
        if !rest.is_empty() {
            return Err(BadCertificate::Malformed);
        }
        let names = parsed.subject_alternative_name();
        let names = names.map_err(|_| BadCertificate::Name)?;
        let names = names.map(|names| &names.value.general_names[..]);
        let mut uris = names
            .unwrap_or_default()
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            });
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(BadCertificate::Name);
        };
        let name = uri.parse().map_err(|_| BadCertificate::Name)?;
        let serial = Serial::from_der(parsed.raw_serial()).ok_or(BadCertificate::Field)?;
        Ok(Self {
            name,
            serial,
            validity: validity(&parsed)?,
            key: Fingerprint::of(parsed.public_key().raw),
        })
    }
}

/// When a certificate, of a machine or of an authority, is valid.
pub(crate) fn validity(
    parsed: &x509_parser::certificate::X509Certificate<'_>,
) -> Result<Validity, BadCertificate> {
    let time = |time: ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|_| BadCertificate::Field)
    };
    Ok(Validity {
        not_before: time(parsed.validity().not_before)?,
        not_after: time(parsed.validity().not_after)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn day() -> Validity {
        Validity {
            not_before: Timestamp::from_second(1_000_000).unwrap(),
            not_after: Timestamp::from_second(1_086_400).unwrap(),
        }
    }

    #[test]
    fn renewal_is_between_half_and_five_eighths_of_life() {
        let second = |jitter| day().renewal(jitter).as_second();
        assert_eq!(second(0), 1_043_200);
        assert_eq!(second(u32::MAX), 1_054_000);
        assert!((1_043_200..1_054_000).contains(&second(u32::MAX / 2)));
    }

    #[test]
    fn both_ends_belong_to_the_validity() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(!day().contains(at(999_999)));
        assert!(day().contains(at(1_000_000)));
        assert!(day().contains(at(1_086_400)));
        assert!(!day().contains(at(1_086_401)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Certificate::read(&bytes).is_err());
        }
    }
}
