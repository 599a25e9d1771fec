//! TLS of the API: the certificate and its key from files, read again on reload.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{Router, serve::Listener};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once; further clients wait.
const HANDSHAKES: usize = 256;
/// Time before connections are accepted again when the kernel refuses, for example for want of
/// file descriptors.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        path: PathBuf,
        /// The error of the kernel, or of the format.
        source: rustls::pki_types::pem::Error,
    },
    /// There is no certificate.
    #[error("{} has no certificate in PEM format", path.display())]
    Empty { path: PathBuf },
    /// Others may read the key.
    #[error(
        "{} has a private key, and every user may read it: run `chmod o-rwx {}`",
        path.display(),
        path.display()
    )]
    Open { path: PathBuf },
    /// Certificate and key do not fit, or one of them is of an unknown kind.
    #[error("certificate {} and its key cannot be used: {source}", path.display())]
    Unusable {
        path: PathBuf,
        /// The error of TLS.
        source: rustls::Error,
    },
}

/// The files of a certificate and its key, in PEM format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and those of the authorities between it and the root.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// TLS with a certificate that can be replaced. Connections keep the one of their handshake.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(files: Files) -> Result<Self, Error> {
        let config = RwLock::new(Arc::new(read(&files)?));
        Ok(Self { files, config })
    }

    /// Reads the files again. The certificate of before stays in use after an error.
    ///
    /// # Errors
    /// [`Error`].
    pub fn reload(&self) -> Result<(), Error> {
        let config = Arc::new(read(&self.files)?);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn read(files: &Files) -> Result<ServerConfig, Error> {
    let Files { certificate, key } = files;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { path, source }
    };
    let chain = CertificateDer::pem_file_iter(certificate).map_err(failed(certificate))?;
    let chain: Vec<_> = chain
        .collect::<Result<_, _>>()
        .map_err(failed(certificate))?;
    if chain.is_empty() {
        return Err(Error::Empty {
            path: certificate.clone(),
        });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(failed(key))?;
    if fs::metadata(key).is_ok_and(|data| data.permissions().mode() & 0o007 != 0) {
        return Err(Error::Open { path: key.clone() });
    }
    let unusable = |source| Error::Unusable {
        path: certificate.clone(),
        source,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, private);
    let mut config = config.map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves the router on a listener, with or without TLS. Ends only when it is aborted.
pub async fn serve(listener: TcpListener, tls: Option<Arc<Tls>>, router: Router) {
    // axum::serve never returns.
    let _ = match tls {
        None => axum::serve(listener, router).await,
        Some(tls) => axum::serve(TlsListener::new(listener, tls), router).await,
    };
}

/// Connections after their handshake. Handshakes run beside each other, so that a client that is
/// slow or silent keeps no other one waiting.
struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: std::io::Result<SocketAddr>,
    accepting: tokio::task::JoinHandle<()>,
}

impl TlsListener {
    fn new(listener: TcpListener, tls: Arc<Tls>) -> Self {
        let address = listener.local_addr();
        let (sender, ready) = mpsc::channel(1);
        let permits = Arc::new(Semaphore::new(HANDSHAKES));
        let accepting = tokio::spawn(async move {
            // The semaphore is never closed.
            while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
                let (stream, from) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection of the API");
                        sleep(RETRY_PAUSE).await;
                        continue;
                    }
                };
                let acceptor = TlsAcceptor::from(tls.config());
                let sender = sender.clone();
                tokio::spawn(async move {
                    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        // It fails when the listener is gone.
                        Ok(Ok(stream)) => drop(sender.send((stream, from)).await),
                        Ok(Err(error)) => {
                            tracing::debug!(%from, %error, "TLS handshake of the API failed")
                        }
                        Err(_) => tracing::debug!(%from, "handshake took too long"),
                    }
                    drop(permit);
                });
            }
        });
        Self {
            ready,
            address,
            accepting,
        }
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting task was aborted.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        match &self.address {
            Ok(address) => Ok(*address),
            Err(error) => Err(error.kind().into()),
        }
    }
}
