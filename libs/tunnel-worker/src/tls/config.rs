//! TLS configuration: version 1.3 only, with a pinned certificate instead of authorities.

use std::sync::Arc;

use gateway_client::stream::ALPN;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, ServerConfig,
    SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::NoServerSessionStorage,
    version::TLS13,
};

use super::identity::{Fingerprint, Identity};

/// The certificate is not the pinned one.
#[derive(Debug, thiserror::Error)]
#[error("the certificate's fingerprint is {presented}, none of {pinned:?}")]
pub(super) struct FingerprintMismatch {
    pub presented: Fingerprint,
    pub pinned: Vec<Fingerprint>,
}

impl FingerprintMismatch {
    /// The fingerprints presented and pinned, if this is the error.
    pub fn of(error: &Error) -> Option<(Fingerprint, Vec<Fingerprint>)> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => other
                .downcast_ref::<Self>()
                .map(|other| (other.presented, other.pinned.clone())),
            _ => None,
        }
    }
}

/// Configuration of the end that dials. It accepts a certificate with one of these fingerprints.
pub(super) fn client(pinned: &[Fingerprint]) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Pinned {
        pinned: pinned.to_vec(),
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Every connection authenticates the other end anew.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Configuration of the end that listens.
pub(super) fn server(identity: &Identity) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(identity.chain().to_vec(), identity.key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Accepts the pinned certificates, whatever names and times are in them.
#[derive(Debug)]
struct Pinned {
    pinned: Vec<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let presented = Fingerprint::of(end_entity);
        if self.pinned.contains(&presented) {
            return Ok(ServerCertVerified::assertion());
        }
        let pinned = self.pinned.clone();
        let other = OtherError(Arc::new(FingerprintMismatch { presented, pinned }));
        Err(CertificateError::Other(other).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is supported".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
