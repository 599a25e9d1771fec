//! Values of the store about machines: enrolment tokens, identities, and the authority.

use control::{Conflict, Kind as _, Precondition, Transaction};
use identity::{Certificate, Fingerprint, Issued, LIFETIME, Machine, Request};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Prefix of the keys of enrolment tokens, before the hash of the secret.
pub(crate) const ENROLMENTS: &str = "enrolment/";
/// Prefix of the keys of identities, before the key of the machine's object.
pub(crate) const IDENTITIES: &str = "identity/";
/// Prefix of the keys of authorities, before the hash of the certificate.
pub(crate) const AUTHORITIES: &str = "authority/";

/// An enrolment token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// Identity, for people and in the audit.
    pub id: String,
    /// Key of the machine's object, with its kind, its tenant if it has one, and its name.
    pub machine: String,
    /// The user who created it.
    pub by: String,
    /// Time of creation.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// End.
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
    /// Time of its use; omitted before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub used: Option<Timestamp>,
    /// SHA-256 of the public key that was enrolled by it, hexadecimal; omitted before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// A certificate that a machine may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IssuedKey {
    /// SHA-256 of the public key, hexadecimal.
    pub key: String,
    /// Serial number of the certificate, hexadecimal.
    pub serial: String,
    /// Last second of the certificate.
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
}

/// The identity of a machine that has enrolled. Without it, every certificate of the machine is
/// refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineIdentity {
    /// Id of the enrolment token.
    pub enrolment: String,
    /// Time of the enrolment.
    #[schema(value_type = String, format = DateTime)]
    pub enrolled: Timestamp,
    /// The certificate in use.
    pub current: IssuedKey,
    /// A renewed certificate that the machine has not used yet. Its first use ends `current`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<IssuedKey>,
}

/// An authority, with its key encrypted by the sealing key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredAuthority {
    /// The provider: the trust domain of all names.
    pub provider: String,
    /// Its certificate, X.509 in DER, hexadecimal.
    pub certificate: String,
    /// Its key, PKCS #8 in DER, encrypted.
    pub sealed_key: String,
    /// Time of creation.
    pub created: Timestamp,
}

impl IssuedKey {
    pub(crate) fn new(request: &Request, issued: &Issued) -> Self {
        Self {
            key: request.key().to_string(),
            serial: issued.serial.to_string(),
            expires: issued.validity.not_after,
        }
    }

    /// Whether a certificate is for this key.
    fn is(&self, certificate: &Certificate) -> bool {
        self.key == certificate.key.to_string()
    }
}

impl MachineIdentity {
    /// Whether this certificate of the machine may be used: the one in use, the renewed one, or one
    /// that was issued later than both. That one the store forgot, which was set back by a restored
    /// backup: the authority made it, after the enrolment that the store knows.
    pub(crate) fn accepts(&self, certificate: &Certificate) -> bool {
        self.current.is(certificate) || self.is_new(certificate)
    }

    /// Whether this certificate takes the place of the one in use: the renewed one at its first
    /// use, or one that the store forgot.
    pub(crate) fn is_new(&self, certificate: &Certificate) -> bool {
        let is_next = self.next.as_ref().is_some_and(|next| next.is(certificate));
        is_next || self.has_forgotten(certificate)
    }

    /// Whether this certificate is of the same enrolment, which its serial number names, and was
    /// issued after all that the store knows.
    pub(crate) fn has_forgotten(&self, certificate: &Certificate) -> bool {
        !self.current.is(certificate)
            && certificate.serial.to_string().ends_with(&self.enrolment)
            && certificate.validity.not_after > self.expires()
    }

    /// Whether a token may be used again for this key: its answer was lost, and nothing has come
    /// since.
    pub(crate) fn may_repeat(&self, enrolment: &str, key: &str) -> bool {
        self.enrolment == enrolment && self.current.key == key && self.next.is_none()
    }

    /// Time of the last certificate.
    pub(crate) fn issued(&self) -> Timestamp {
        let issued = self.expires().checked_sub(LIFETIME);
        issued.unwrap_or(Timestamp::MIN)
    }

    /// The identity after a use of this certificate, which it accepts.
    pub(crate) fn used(mut self, certificate: &Certificate) -> Self {
        if self.is_new(certificate) {
            self.current = IssuedKey {
                key: certificate.key.to_string(),
                serial: certificate.serial.to_string(),
                expires: certificate.validity.not_after,
            };
            self.next = None;
        }
        self
    }

    /// Last second of the certificates.
    pub(crate) fn expires(&self) -> Timestamp {
        let next = self.next.as_ref().map(|next| next.expires);
        next.map_or(self.current.expires, |next| next.max(self.current.expires))
    }
}

/// The key of a machine's object in the store: what identities are called by.
pub(crate) fn machine_key(machine: &Machine) -> Option<String> {
    match machine {
        Machine::Director => None,
        Machine::Gateway { name } => Some(format!("{}/{name}", control::Gateway::KIND)),
        Machine::Appliance { tenant, name } => {
            Some(format!("{}/{tenant}/{name}", control::Appliance::KIND))
        }
    }
}

/// Adds the precondition that a key is as it was read.
pub(crate) fn must_be(transaction: &mut Transaction, key: &str, revision: Option<u64>) {
    let precondition = revision.map_or(Precondition::Absent, Precondition::At);
    transaction
        .preconditions
        .insert(key.to_owned(), precondition);
}

/// The machine as a conflict of a refusal names it.
pub(crate) fn conflict(key: &str, field: &str, value: &str) -> Conflict {
    let mut parts = key.split('/');
    let kind = parts.next().unwrap_or_default().to_owned();
    let rest: Vec<_> = parts.collect();
    let (tenant, name) = match rest[..] {
        [tenant, name] => (Some(tenant.to_owned()), name.to_owned()),
        _ => (None, rest.concat()),
    };
    Conflict {
        kind,
        tenant,
        name,
        field: field.to_owned(),
        value: value.to_owned(),
    }
}

/// The hash of a certificate's bytes, as it names an authority.
pub(crate) fn authority_id(certificate: &[u8]) -> String {
    Fingerprint::of(certificate).to_string()
}
