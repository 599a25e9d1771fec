//! Connections to the director: TCP by the shared dialler, TLS, HTTP/2.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use gateway_client::{
    dial::{DialSettings, Dialler, NameSettings, RaceSettings, ServiceAddress},
    pool::{Failure, Report},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use service::{
    names::Resolver,
    restore::{Restores, UntilRestore},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Time for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a silent connection is asked for a sign of life, and time for the answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Time for the answer to an enrolment or a renewal.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address answers.
    #[error("no service address of the director answers: {0}")]
    Dial(io::Error),
    /// TLS fails.
    #[error("TLS with {address} fails: {source}")]
    Tls {
        /// Address and port of the director, or of the gateway between.
        address: SocketAddr,
        /// The error of TLS.
        source: io::Error,
    },
    /// HTTP/2 fails.
    #[error("HTTP/2 with {address} fails: {source}")]
    Http {
        /// Address and port of the director, or of the gateway between.
        address: SocketAddr,
        /// The error.
        source: tonic::transport::Error,
    },
    /// The server name is none.
    #[error("{0:?} is no DNS name: request a new enrolment token")]
    ServerName(String),
}

/// Connects to the director, and remembers which addresses work.
#[derive(Debug)]
pub(crate) struct Connector {
    resolver: Resolver,
    dialler: Mutex<Dialler>,
    begun: Instant,
    addresses: Vec<ServiceAddress>,
    restores: Restores,
}

/// Name of the director for the resolver.
const DIRECTOR: &str = "director";

impl Connector {
    /// Without addresses yet. Connections end at the next of these restores.
    ///
    /// # Errors
    /// When the resolver's thread cannot be started.
    pub fn start(seed: u64, restores: Restores) -> io::Result<Self> {
        let settings = NameSettings {
            loopback: true,
            ..NameSettings::default()
        };
        let dialler = Dialler::in_order(DialSettings::server(), &[], seed, Duration::ZERO);
        Ok(Self {
            resolver: Resolver::start(settings, seed, None)?,
            dialler: Mutex::new(dialler),
            begun: Instant::now(),
            addresses: Vec::new(),
            restores,
        })
    }

    /// Sets the service addresses.
    pub fn set(&mut self, addresses: &[ServiceAddress]) {
        if self.addresses != addresses {
            self.addresses = addresses.to_vec();
            let names = addresses.iter().filter_map(|a| a.name().cloned());
            self.resolver.set(names.collect());
        }
    }

    /// Opens a connection, whose address is returned, too.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn connect(
        &self,
        server_name: &str,
        config: ClientConfig,
    ) -> Result<(Channel, SocketAddr), Error> {
        let name = ServerName::try_from(server_name.to_owned());
        let name = name.map_err(|_| Error::ServerName(server_name.to_owned()))?;
        let wait = RaceSettings::default().attempt_timeout;
        self.resolver.look_up_again(&self.addresses, wait).await;
        let target = self.resolver.target(DIRECTOR, &self.addresses);
        let race = {
            let now = self.begun.elapsed();
            let mut dialler = self.dialler();
            dialler.update_in_order(&target.addresses, now);
            dialler.race(None, RaceSettings::default(), now)
        };
        let report = |address, report| self.report(address, report);
        let dialled = service::dial::dial(race, &mut Vec::new(), &report).await;
        let (stream, address) = dialled.map_err(Error::Dial)?;
        // Before TLS makes its keys.
        let stream = UntilRestore::new(stream, &self.restores);
        let connector = TlsConnector::from(Arc::new(config));
        let stream = timeout(HANDSHAKE_TIMEOUT, connector.connect(name, stream)).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(|source| {
            // A gateway that does not reach the director closes the connection.
            self.report(address, Report::Failed(Failure::Unreachable));
            Error::Tls { address, source }
        })?;
        match http(stream).await {
            Ok(channel) => Ok((channel, address)),
            Err(source) => Err(Error::Http { address, source }),
        }
    }

    /// A connection to this address did not work.
    pub fn failed(&self, address: SocketAddr) {
        self.report(address, Report::Failed(Failure::Unreachable));
    }

    fn report(&self, address: SocketAddr, report: Report) {
        let now = self.begun.elapsed();
        self.dialler().report(address, report, now);
    }

    fn dialler(&self) -> std::sync::MutexGuard<'_, Dialler> {
        self.dialler.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// HTTP/2 over one TLS stream. Once it has ended, calls of the channel fail.
async fn http(
    stream: TlsStream<UntilRestore<TcpStream>>,
) -> Result<Channel, tonic::transport::Error> {
    let stream = Arc::new(Mutex::new(Some(stream)));
    let take = service_fn(move |_| {
        let stream = Arc::clone(&stream);
        async move {
            let taken = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            let closed = "the director has closed the connection";
            let taken = taken.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, closed));
            taken.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://director")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(take)
        .await
}
