//! The provider's certificate authority: it turns a request of a machine into a certificate.

use std::{fmt, time::SystemTime};

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::{
    Fingerprint, Machine, Name, Validity,
    certificate::{BadCertificate, validity},
};

/// Lifetime of a machine's certificate.
pub const LIFETIME: SignedDuration = SignedDuration::from_hours(24);
/// Certificates are valid from this long before they are issued, as clocks differ.
const BACKDATE: SignedDuration = SignedDuration::from_hours(1);
/// Lifetime of the certificate of an authority: ten years.
const AUTHORITY_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 3652);
/// Longest request, bytes: one of a P-256 key without names has about 250.
const MAX_REQUEST: usize = 4096;

/// Serial number of a certificate: 16 random bytes, positive as RFC 5280 section 4.1.2.2 wants it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial([u8; 16]);

impl Serial {
    /// A serial number of random bytes. The first two bits are set to 01: positive, and always of
    /// 16 bytes.
    #[must_use]
    pub const fn new(mut random: [u8; 16]) -> Self {
        random[0] = random[0] & 0x3f | 0x40;
        Self(random)
    }

    /// The number of a certificate, as its DER has it.
    pub(crate) fn from_der(bytes: &[u8]) -> Option<Self> {
        bytes
            .try_into()
            .ok()
            .filter(|b| Self::new(*b).0 == *b)
            .map(Self)
    }
}

/// In lower-case hexadecimal.
impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why no certificate is made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is too long, malformed, has another key than P-256, or was not signed by it.
    #[error("the certificate request is refused: {0}")]
    Request(&'static str),
    /// Certificate and key of the authority do not fit.
    #[error("the certificate of the authority does not fit its key")]
    Mismatch,
    /// The certificate of the authority cannot be read.
    #[error("the certificate of the authority: {0}")]
    Authority(#[from] BadCertificate),
    /// The name is none.
    #[error(transparent)]
    Name(#[from] crate::InvalidName),
    /// A time is out of the range of certificates.
    #[error("the clock is out of range: {0}")]
    Clock(Timestamp),
    /// The cryptographic library refuses.
    #[error("cannot make or read a certificate or key: {0}")]
    Library(#[from] rcgen::Error),
}

/// A key pair of a machine or of an authority: ECDSA on P-256, which every TLS library has.
pub struct MachineKey(KeyPair);

impl MachineKey {
    /// A new key pair.
    ///
    /// # Errors
    /// [`Error::Library`] when the library has no randomness.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// Reads a key in PKCS #8 DER.
    ///
    /// # Errors
    /// [`Error::Library`].
    pub fn from_der(der: &[u8]) -> Result<Self, Error> {
        let key = PrivatePkcs8KeyDer::from(der);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)?;
        Ok(Self(key))
    }

    /// The key in PKCS #8 DER: a secret.
    #[must_use]
    pub fn to_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// The request for a certificate (PKCS #10 DER), which proves that the machine has the key. It
    /// has no name: the director knows the name.
    ///
    /// # Errors
    /// [`Error::Library`].
    pub fn request(&self) -> Result<Vec<u8>, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }
}

impl fmt::Debug for MachineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MachineKey(..)")
    }
}

/// A request of a machine, checked: its key signed it. Names in it are ignored.
#[derive(Debug)]
pub struct Request(rcgen::PublicKey);

impl Request {
    /// Reads a request in PKCS #10 DER.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn read(der: &[u8]) -> Result<Self, Error> {
        if der.len() > MAX_REQUEST {
            return Err(Error::Request("it is longer than 4096 bytes"));
        }
        let der = CertificateSigningRequestDer::from(der);
        let request = CertificateSigningRequestParams::from_der(&der)
            .map_err(|_| Error::Request("it is malformed, or its signature is wrong"))?;
        if *request.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
            return Err(Error::Request("its key is not ECDSA on P-256"));
        }
        Ok(Self(request.public_key))
    }

    /// SHA-256 of the public key (SubjectPublicKeyInfo in DER).
    #[must_use]
    pub fn key(&self) -> Fingerprint {
        Fingerprint::of(&self.0.subject_public_key_info())
    }
}

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A machine, as a client of the director.
    Client(Name),
    /// The director, as a server with this DNS name.
    Server(Name, String),
}

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate in DER.
    pub der: CertificateDer<'static>,
    /// Its serial number.
    pub serial: Serial,
    /// When it is valid.
    pub validity: Validity,
}

/// The certificate authority of one provider.
pub struct Authority {
    provider: String,
    certificate: CertificateDer<'static>,
    validity: Validity,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority, valid for ten years. `provider` is the trust domain of all names.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(
        provider: &str,
        key: MachineKey,
        serial: Serial,
        now: Timestamp,
    ) -> Result<Self, Error> {
        // Checks the provider.
        Name::new(provider, Machine::Director)?;
        let validity = Validity {
            not_before: whole(now.checked_sub(BACKDATE), now)?,
            not_after: whole(now.checked_add(AUTHORITY_LIFETIME), now)?,
        };
        let mut params = params(serial, validity)?;
        // Two authorities of a provider have different names: verifiers find the right one.
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Causeway {provider} {serial}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key.0)?.der().clone();
        Ok(Self {
            provider: provider.to_owned(),
            certificate,
            validity,
            issuer: Issuer::new(params, key.0),
        })
    }

    /// The authority of a stored certificate and key.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(provider: &str, certificate: &[u8], key: MachineKey) -> Result<Self, Error> {
        Name::new(provider, Machine::Director)?;
        let certificate = CertificateDer::from(certificate.to_vec());
        let parsed = x509_parser::parse_x509_certificate(&certificate);
        let (_, parsed) = parsed.map_err(|_| BadCertificate::Malformed)?;
        if parsed.public_key().raw != key.0.subject_public_key_info() {
            return Err(Error::Mismatch);
        }
        let validity = validity(&parsed)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key.0)?;
        Ok(Self {
            provider: provider.to_owned(),
            certificate,
            validity,
            issuer,
        })
    }

    /// The provider: the trust domain.
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// The certificate, which machines trust.
    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Hash of the certificate, for enrolment tokens.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// When the certificate of the authority is valid.
    #[must_use]
    pub const fn validity(&self) -> Validity {
        self.validity
    }

    /// The key in PKCS #8 DER, to be sealed and stored.
    #[must_use]
    pub fn key(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.issuer.key().serialize_der())
    }

    /// Issues a certificate that is valid from an hour before `now` until [`LIFETIME`] after it,
    /// and not longer than the authority. The caller has decided that the requester is `subject`.
    ///
    /// # Errors
    /// [`Error`], as for a name of another provider.
    pub fn issue(
        &self,
        request: &Request,
        subject: &Subject,
        serial: Serial,
        now: Timestamp,
    ) -> Result<Issued, Error> {
        let name = match subject {
            Subject::Client(name) | Subject::Server(name, _) => name,
        };
        if name.provider() != self.provider {
            return Err(crate::InvalidName(name.to_string()).into());
        }
        let begin = whole(now.checked_sub(BACKDATE), now)?;
        let end = whole(now.checked_add(LIFETIME), now)?;
        let validity = Validity {
            not_before: begin.max(self.validity.not_before),
            not_after: end.min(self.validity.not_after),
        };
        let mut params = params(serial, validity)?;
        let uri = name.to_string().try_into()?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        match subject {
            Subject::Client(_) => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
            Subject::Server(_, dns_name) => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                let dns_name = dns_name.as_str().try_into()?;
                params.subject_alt_names.push(SanType::DnsName(dns_name));
            }
        }
        let certificate = params.signed_by(&request.0, &self.issuer)?;
        Ok(Issued {
            der: certificate.der().clone(),
            serial,
            validity,
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("provider", &self.provider)
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

/// The fields that all certificates have.
fn params(serial: Serial, validity: Validity) -> Result<CertificateParams, Error> {
    let time = |at: Timestamp| match SystemTime::try_from(at) {
        Ok(time) => Ok(time.into()),
        Err(_) => Err(Error::Clock(at)),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial.0));
    params.not_before = time(validity.not_before)?;
    params.not_after = time(validity.not_after)?;
    Ok(params)
}

/// A time of a certificate, which has whole seconds; an error if the time or `now` is out of range.
fn whole(time: Result<Timestamp, jiff::Error>, now: Timestamp) -> Result<Timestamp, Error> {
    let time = time.and_then(|time| Timestamp::from_second(time.as_second()));
    time.map_err(|_| Error::Clock(now))
}
