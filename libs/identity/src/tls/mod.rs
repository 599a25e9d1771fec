//! TLS 1.3 between director and machines, by their certificates.
//!
//! ```text
//!   first contact   machine: none yet       director: a CA of this hash   ─▶ may enrol only
//!   afterwards      machine: its own        director: a CA of the list    ─▶ all
//!   expired         machine: its own, old   director: a CA of the list    ─▶ may renew only
//! ```

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, WantsClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    time_provider::TimeProvider,
    version::TLS13,
};

use crate::{Certificate, Fingerprint, Machine, MachineKey};

#[cfg(test)]
mod tests;

/// Protocol of the agents' streams (RFC 9113 section 3.2).
const ALPN: &[u8] = b"h2";

/// TLS of the director's listener for agents. Clients show a certificate of `roots`, or none. One
/// that expired at most `grace` ago, or is valid in at most `grace`, is accepted as well: read it
/// by [`Certificate::read`], and let its machine renew it only.
///
/// `chain` is the director's certificate, and then its CA's, which first contacts need.
///
/// # Errors
/// When a certificate or key cannot be used.
pub fn server(
    chain: Vec<CertificateDer<'static>>,
    key: &MachineKey,
    roots: &[CertificateDer<'_>],
    grace: Duration,
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(store(roots)?), Arc::clone(&provider));
    let inner = verifier.allow_unauthenticated().build();
    let inner = inner.map_err(|error| Error::Other(OtherError(Arc::new(error))))?;
    let mut config = ServerConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(ExpiredToo { inner, grace }))
        .with_single_cert(chain, private(key))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would keep the certificate of its first handshake.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// TLS of a first contact: the director must show a chain to the CA of this hash, and a name of a
/// director. The machine shows no certificate.
///
/// # Errors
/// When the library refuses its own algorithms.
pub fn first_contact(
    authority: Fingerprint,
    time: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Director {
        trust: Trust::Hash(authority),
        provider,
    };
    let config = client(verifier, time)?;
    Ok(finish(config.with_no_client_auth()))
}

/// TLS of a machine that has a certificate. `roots` are the CAs of the director's last document, at
/// least one.
///
/// # Errors
/// When a certificate or key cannot be used.
pub fn machine(
    certificate: CertificateDer<'static>,
    key: &MachineKey,
    roots: &[CertificateDer<'_>],
    time: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Director {
        trust: Trust::Roots(Arc::new(store(roots)?)),
        provider,
    };
    let config = client(verifier, time)?;
    let config = config.with_client_auth_cert(vec![certificate], private(key))?;
    Ok(finish(config))
}

fn client(
    verifier: Director,
    time: Arc<dyn TimeProvider>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Error> {
    let provider = Arc::clone(&verifier.provider);
    Ok(ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

fn finish(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

fn store(roots: &[CertificateDer<'_>]) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone().into_owned())?;
    }
    Ok(store)
}

fn private(key: &MachineKey) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_der().to_vec()))
}

/// Accepts certificates of clients that expired a short time ago, or are valid in a short time.
#[derive(Debug)]
struct ExpiredToo {
    inner: Arc<dyn ClientCertVerifier>,
    grace: Duration,
}

impl ClientCertVerifier for ExpiredToo {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let certificate = Certificate::read(end_entity)
            .map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        let seconds = |at: Timestamp| u64::try_from(at.as_second()).unwrap_or_default();
        let begin = seconds(certificate.validity.not_before);
        let end = seconds(certificate.validity.not_after);
        let late = now.as_secs().saturating_sub(end);
        let early = begin.saturating_sub(now.as_secs());
        let grace = 1..=self.grace.as_secs();
        let at = if grace.contains(&late) {
            UnixTime::since_unix_epoch(Duration::from_secs(end))
        } else if grace.contains(&early) {
            // The clock was ahead when it was issued.
            UnixTime::since_unix_epoch(Duration::from_secs(begin))
        } else {
            now
        };
        self.inner.verify_client_cert(end_entity, intermediates, at)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Which authorities a machine trusts.
#[derive(Debug)]
enum Trust {
    /// The one of this hash, which the server must send.
    Hash(Fingerprint),
    /// These.
    Roots(Arc<RootCertStore>),
}

/// Accepts a director with the expected server name.
#[derive(Debug)]
struct Director {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Director {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = match &self.trust {
            Trust::Roots(roots) => Arc::clone(roots),
            Trust::Hash(hash) => {
                let mut sent = intermediates.iter();
                let root = sent.find(|sent| Fingerprint::of(sent) == *hash);
                let root = root.ok_or(CertificateError::UnknownIssuer)?;
                Arc::new(store(std::slice::from_ref(root))?)
            }
        };
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider)).build();
        let verifier = verifier.map_err(|error| Error::Other(OtherError(Arc::new(error))))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        let certificate = Certificate::read(end_entity)
            .map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        match certificate.name.machine() {
            Machine::Director => Ok(ServerCertVerified::assertion()),
            Machine::Gateway { .. } | Machine::Appliance { .. } => {
                Err(CertificateError::NotValidForName.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
