//! TLS of the API: the certificate and its key from files, read again on reload.

mod write_timeout;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use service::{
    restore::{Restores, UntilRestore},
    secret_file::{self, Access, Exposed},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use write_timeout::WriteTimeout;

use crate::source::network;

/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the head of a request, also after the request before: an idle connection ends.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time in which a client must take a part of an answer that waits for it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest head of a request, bytes: connections without a token have no more memory.
const MAX_HEAD: usize = 64 << 10;
/// Connections at once, and those of one address (IPv6: one network of 64 bits). Watches are among
/// them; those of the director itself are not.
pub(crate) const MAX_CONNECTIONS: usize = 4096;
const MAX_CONNECTIONS_OF_ADDRESS: usize = 512;
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
    #[error(transparent)]
    Exposed(#[from] Exposed),
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

    /// Reads the files again. The previous certificate stays in use after an error.
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
    secret_file::check(key, Access::OwnerAndGroup)?;
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
///
/// Handshakes run beside each other, so that a client that is slow or silent keeps no other one
/// waiting. Connections are limited in number, and an idle one has a limited time, so that clients
/// without a token do not use up the sockets.
pub async fn serve(listener: TcpListener, tls: Option<Arc<Tls>>, router: Router) {
    let restores = Restores::watched();
    serve_within(
        listener,
        tls,
        router,
        Arc::default(),
        Limits::default(),
        restores,
    )
    .await;
}

/// The same, with limits, and with connections from `own` sources, which are always admitted.
/// Connections with TLS end when the machine was restored from a snapshot.
pub(crate) async fn serve_within(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    own: Arc<OwnSources>,
    limits: Limits,
    restores: Restores,
) {
    let limits = Arc::new(limits);
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of the API");
                sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        let admitted = Admitted::new(&limits, network(from.ip()));
        if admitted.is_none() && !own.contains(from) {
            tracing::debug!(%from, "too many connections of the API; closing this one");
            continue;
        }
        let (tls, router, restores) = (tls.clone(), router.clone(), restores.clone());
        tokio::spawn(async move {
            let _admitted = admitted;
            let Some(tls) = tls else {
                return connection(stream, from, router).await;
            };
            // Before TLS makes its keys.
            let stream = UntilRestore::new(stream, &restores);
            let acceptor = TlsAcceptor::from(tls.config());
            match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => connection(stream, from, router).await,
                Ok(Err(error)) => tracing::debug!(%from, %error, "TLS handshake of the API failed"),
                Err(_) => tracing::debug!(%from, "handshake took too long"),
            }
        });
    }
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Serves the requests of a connection.
async fn connection<S>(stream: S, from: SocketAddr, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = router.layer(axum::Extension(Peer(from)));
    let stream = Box::pin(WriteTimeout::new(stream, WRITE_TIMEOUT));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%from, %error, "connection of the API ended");
    }
}

/// Addresses and ports that the director's own connections come from. They are bound before a
/// connection is opened, so that no other one has the same source.
#[derive(Debug, Default)]
pub struct OwnSources(Mutex<BTreeSet<(IpAddr, u16)>>);

impl OwnSources {
    /// Adds the source of a connection that is to be opened, until the result is dropped.
    pub(crate) fn add(&self, source: SocketAddr) -> OwnSource<'_> {
        let source = key(source);
        self.lock().insert(source);
        OwnSource { all: self, source }
    }

    fn contains(&self, source: SocketAddr) -> bool {
        self.lock().contains(&key(source))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<(IpAddr, u16)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket of IPv6 shows a peer of IPv4 as a mapped address.
fn key(source: SocketAddr) -> (IpAddr, u16) {
    (source.ip().to_canonical(), source.port())
}

/// A source of [`OwnSources`].
#[derive(Debug)]
pub(crate) struct OwnSource<'a> {
    all: &'a OwnSources,
    source: (IpAddr, u16),
}

impl Drop for OwnSource<'_> {
    fn drop(&mut self) {
        self.all.lock().remove(&self.source);
    }
}

/// Open connections, by address, and how many there may be.
#[derive(Debug)]
pub(crate) struct Limits {
    open: Mutex<BTreeMap<IpAddr, usize>>,
    all: usize,
    of_address: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(MAX_CONNECTIONS, MAX_CONNECTIONS_OF_ADDRESS)
    }
}

impl Limits {
    /// Limits of all connections, and of those of one address.
    pub const fn new(all: usize, of_address: usize) -> Self {
        Self {
            open: Mutex::new(BTreeMap::new()),
            all,
            of_address,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that counts until it is dropped.
pub(crate) struct Admitted {
    limits: Arc<Limits>,
    address: IpAddr,
}

impl Admitted {
    /// `None` if there are as many connections as there may be, of all or of this address.
    pub(crate) fn new(limits: &Arc<Limits>, address: IpAddr) -> Option<Self> {
        let mut open = limits.lock();
        let all: usize = open.values().sum();
        let of_address = open.entry(address).or_default();
        if all >= limits.all || *of_address >= limits.of_address {
            if *of_address == 0 {
                open.remove(&address);
            }
            return None;
        }
        *of_address += 1;
        drop(open);
        Some(Self {
            limits: Arc::clone(limits),
            address,
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.limits.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_limited_in_all_and_for_an_address() {
        let limits = Arc::new(Limits::default());
        let address = |last: u16| {
            let [high, low] = last.to_be_bytes();
            IpAddr::from([10, 0, high, low])
        };
        let mut open: Vec<_> = (0..MAX_CONNECTIONS_OF_ADDRESS)
            .map(|_| Admitted::new(&limits, address(0)).expect("room"))
            .collect();
        assert!(Admitted::new(&limits, address(0)).is_none());
        for other in 1..=(MAX_CONNECTIONS - MAX_CONNECTIONS_OF_ADDRESS) as u16 {
            open.push(Admitted::new(&limits, address(other)).expect("room"));
        }
        assert!(Admitted::new(&limits, address(60_000)).is_none());
        open.clear();
        assert!(limits.lock().is_empty());
        assert!(Admitted::new(&limits, address(0)).is_some());
    }
}
