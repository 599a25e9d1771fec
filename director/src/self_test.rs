//! Proves that the API and the store answer: the watchdog of the loop sees the loop only.
//!
//! ```text
//!   each 5 s ─▶ store: a write of a number, through the queue ─┐ in time ─▶ no fault
//!            └▶ API: GET /health at its own address, with TLS  ┘ late ────▶ /health says 503
//!                                                                too late ▶ the process ends
//! ```
//!
//! A full disk is a fault that a new process does not end, and what is stored can still be read:
//! `/health` says 503, and the process goes on.

use std::{
    fmt::Display,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::select_all;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use store::Sqlite;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;

use crate::tls::{OwnSource, OwnSources};

/// A probe, and how long it may fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The fault, for `/health` and the log.
    pub fault: &'static str,
    /// The end of the fault, for the log.
    pub recovery: &'static str,
    /// Pause between two probes.
    pub interval: Duration,
    /// Time for an answer; then `/health` tells the fault.
    pub late: Duration,
    /// Time without an answer after which the daemon ends.
    pub end: Duration,
}

/// The limits of the store. A disk that stalls, as one of a virtual machine during a snapshot, is
/// no reason to end within seconds.
pub(crate) const STORE: Limits = Limits {
    fault: "the store does not answer",
    recovery: "the store answers again",
    interval: Duration::from_secs(5),
    late: Duration::from_secs(5),
    end: Duration::from_secs(60),
};

/// The fault of a store whose disk is full, for `/health` and the log.
pub(crate) const FULL: &str = "the disk of the store is full, and nothing can be changed";

/// The limits of the API. Clients that connect and are silent can keep it busy for as long as a
/// handshake may take; a restart would help them, so the daemon waits longer.
pub(crate) const API: Limits = Limits {
    fault: "the API does not answer",
    recovery: "the API answers again",
    interval: Duration::from_secs(5),
    late: Duration::from_secs(15),
    end: Duration::from_secs(300),
};

/// A part of the daemon has not answered for too long.
#[derive(Debug, thiserror::Error)]
#[error("{fault} for {seconds} s: {reason}; the director exits, and systemd restarts it")]
pub struct NoAnswer {
    /// The part.
    fault: &'static str,
    /// Time since its last answer.
    seconds: u64,
    /// The result of the last probe.
    reason: String,
}

/// Probes that run beside the daemon, until they are dropped.
#[derive(Debug, Default)]
pub(crate) struct SelfTest {
    probes: Vec<Running>,
    /// [`failed`](Self::failed) has returned.
    has_failed: bool,
}

#[derive(Debug)]
struct Running {
    fault: &'static str,
    is_late: Arc<AtomicBool>,
    task: JoinHandle<NoAnswer>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SelfTest {
    /// Starts a probe, on the runtime of the caller.
    pub fn add<P, F, E>(&mut self, limits: Limits, probe: P)
    where
        P: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + 'static,
    {
        let is_late = Arc::new(AtomicBool::new(false));
        self.probes.push(Running {
            fault: limits.fault,
            is_late: Arc::clone(&is_late),
            task: tokio::spawn(run(limits, is_late, probe)),
        });
    }

    /// The fault of a probe that is not answered in time.
    pub fn fault(&self) -> Option<&'static str> {
        let mut late = self.probes.iter();
        late.find_map(|probe| probe.is_late.load(Ordering::Relaxed).then_some(probe.fault))
    }

    /// Waits until a probe has failed for too long. Cancel-safe. To be called until it returns.
    pub async fn failed(&mut self) -> NoAnswer {
        if self.probes.is_empty() {
            std::future::pending::<()>().await;
        }
        let tasks = self.probes.iter_mut().map(|probe| &mut probe.task);
        let (ended, at, _) = select_all(tasks).await;
        self.has_failed = true;
        let fault = self.probes[at].fault;
        ended.unwrap_or_else(|error| NoAnswer {
            fault,
            seconds: 0,
            reason: error.to_string(),
        })
    }

    /// Whether [`failed`](Self::failed) has returned: what does not answer is not waited for.
    pub const fn has_failed(&self) -> bool {
        self.has_failed
    }
}

/// Probes until there is no answer for too long.
async fn run<P, F, E>(limits: Limits, is_late: Arc<AtomicBool>, probe: P) -> NoAnswer
where
    P: Fn() -> F,
    F: Future<Output = Result<(), E>>,
    E: Display,
{
    let mut answered = Instant::now();
    loop {
        let result = match timeout(limits.late, probe()).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", limits.late.as_secs())),
        };
        match result {
            Ok(()) => {
                answered = Instant::now();
                if is_late.swap(false, Ordering::Relaxed) {
                    tracing::info!("{}", limits.recovery);
                }
            }
            Err(reason) => {
                if !is_late.swap(true, Ordering::Relaxed) {
                    tracing::error!(reason, "{}", limits.fault);
                }
                if answered.elapsed() >= limits.end {
                    return NoAnswer {
                        fault: limits.fault,
                        seconds: answered.elapsed().as_secs(),
                        reason,
                    };
                }
            }
        }
        sleep(limits.interval).await;
    }
}

/// Writes to the store, through its queue. A store that answers that its disk is full is no store
/// that hangs: `full` tells of it.
pub(crate) async fn store_answers(store: &Sqlite, full: &AtomicBool) -> Result<(), store::Error> {
    let probed = store.probe().await;
    let mut is_full = matches!(&probed, Err(error) if error.is_full());
    if probed.is_ok() && full.load(Ordering::Relaxed) {
        // A change found no room, and a small write may still find some.
        let store = store.clone();
        let room = tokio::task::spawn_blocking(move || store.has_room()).await;
        is_full = !matches!(room, Ok(Ok(())));
    }
    if full.swap(is_full, Ordering::Relaxed) != is_full {
        match &probed {
            Err(error) => tracing::error!(%error, "{FULL}"),
            Ok(()) => tracing::info!("the store can be written again"),
        }
    }
    match is_full {
        true => Ok(()),
        false => probed,
    }
}

/// The API did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Its address cannot be connected to, or the connection ended.
    #[error("{0}")]
    Connection(#[from] io::Error),
    /// It answered something else than 200.
    #[error("GET /health: {0:?}")]
    Status(String),
}

/// `GET /health` at the API's own address. The connection is one of `own`, so that clients of the
/// same address do not keep it out.
pub(crate) async fn api_answers(
    address: SocketAddr,
    has_tls: bool,
    own: &OwnSources,
) -> Result<(), ApiError> {
    let (stream, _source) = connect(address, own).await?;
    if !has_tls {
        return ask(stream).await;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .map_err(io::Error::other)?
    .dangerous()
    .with_custom_certificate_verifier(Arc::new(OwnCertificate))
    .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::IpAddress(address.ip().into());
    ask(connector.connect(name, stream).await?).await
}

/// Connects to this process, at a loopback address if it listens on all.
async fn connect(address: SocketAddr, own: &OwnSources) -> io::Result<(TcpStream, OwnSource<'_>)> {
    let at = |ip| connect_to(SocketAddr::new(ip, address.port()), own);
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => at(Ipv4Addr::LOCALHOST.into()).await,
        IpAddr::V6(ip) if ip.is_unspecified() => match at(Ipv6Addr::LOCALHOST.into()).await {
            Ok(stream) => Ok(stream),
            // Without IPv6 on the loopback interface.
            Err(_) => at(Ipv4Addr::LOCALHOST.into()).await,
        },
        _ => connect_to(address, own).await,
    }
}

/// Connects to an address of this machine from the same address, with a port that is known before.
async fn connect_to(
    address: SocketAddr,
    own: &OwnSources,
) -> io::Result<(TcpStream, OwnSource<'_>)> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let mut source = address;
    source.set_port(0);
    socket.bind(source)?;
    let source = own.add(socket.local_addr()?);
    Ok((socket.connect(address).await?, source))
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), ApiError> {
    let request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut status = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut status).await?;
    match &status {
        b"HTTP/1.1 200" => Ok(()),
        other => Err(ApiError::Status(
            String::from_utf8_lossy(other).into_owned(),
        )),
    }
}

/// Accepts every certificate: the peer is this process, and gets no secret.
#[derive(Debug)]
struct OwnCertificate;

impl ServerCertVerifier for OwnCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, fs};

    use service::restore::Restores;
    use store::Options;
    use tokio::net::TcpListener;

    use super::*;
    use crate::{Director, Kernel, daemon, init, tls};

    const FAST: Limits = Limits {
        fault: "it does not answer",
        recovery: "it answers again",
        interval: Duration::from_millis(20),
        late: Duration::from_millis(200),
        end: Duration::from_millis(600),
    };

    /// Waits until the first probes have ended.
    async fn fault_after_a_probe(test: &SelfTest) -> Option<&'static str> {
        sleep(FAST.late + FAST.interval * 3).await;
        test.fault()
    }

    #[tokio::test]
    async fn a_writer_that_hangs_is_a_fault_and_then_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = Sqlite::open(&path, Options::default()).unwrap();
        let mut test = SelfTest::default();
        let probed = store.clone();
        test.add(FAST, move || {
            let store = probed.clone();
            async move { store_answers(&store, &AtomicBool::default()).await }
        });
        assert_eq!(fault_after_a_probe(&test).await, None);

        // The writer waits for the lock for longer than this test lasts.
        let other = rusqlite::Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(fault_after_a_probe(&test).await, Some(FAST.fault));
        assert!(!test.has_failed());
        let error = test.failed().await.to_string();
        assert!(test.has_failed() && error.contains(FAST.fault), "{error}");
        other.execute_batch("ROLLBACK").unwrap();
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_written_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = Sqlite::open(&path, Options::default()).unwrap();
        let full = AtomicBool::default();
        store_answers(&store, &full).await.unwrap();
        let other = rusqlite::Connection::open(&path).unwrap();
        let refuse =
            "CREATE TRIGGER t BEFORE UPDATE ON numbers BEGIN SELECT RAISE(ABORT, 'x'); END";
        other.execute_batch(refuse).unwrap();
        store_answers(&store, &full).await.unwrap_err();
        assert!(!full.load(Ordering::Relaxed));
        // The finding of a change holds until there is room.
        full.store(true, Ordering::Relaxed);
        other.execute_batch("DROP TRIGGER t").unwrap();
        store_answers(&store, &full).await.unwrap();
        assert!(!full.load(Ordering::Relaxed));
        assert!(!folder.path().join("store.probe").exists());
    }

    #[tokio::test]
    async fn a_fault_that_passes_does_not_end_the_daemon() {
        let answers = Arc::new(AtomicBool::new(false));
        let mut test = SelfTest::default();
        let probed = Arc::clone(&answers);
        test.add(FAST, move || {
            let answers = probed.load(Ordering::Relaxed);
            async move {
                if !answers {
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(())
            }
        });
        assert_eq!(fault_after_a_probe(&test).await, Some(FAST.fault));
        answers.store(true, Ordering::Relaxed);
        assert_eq!(fault_after_a_probe(&test).await, None);
        assert!(timeout(FAST.end * 2, test.failed()).await.is_err());
    }

    /// A certificate by the command of docs/director.md would need a program; rcgen makes it.
    fn certificate(folder: &std::path::Path) -> tls::Files {
        use std::os::unix::fs::PermissionsExt as _;
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let files = tls::Files {
            certificate: folder.join("c.pem"),
            key: folder.join("k.pem"),
        };
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
        files
    }

    fn local(address: SocketAddr) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
    }

    #[tokio::test]
    async fn the_api_answers_with_and_without_tls_until_it_is_stuck() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        init(&path, "admin", None, &Kernel).await.unwrap();
        let store = Sqlite::open(&path, Options::default()).unwrap();
        let director = Arc::new(Director::new(store, Arc::new(Kernel)).await.unwrap());
        let files = certificate(folder.path());
        for tls in [None, Some(Arc::new(tls::Tls::load(files).unwrap()))] {
            let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let has_tls = tls.is_some();
            let router = daemon::router(Arc::clone(&director));
            let own = Arc::new(OwnSources::default());
            let limits = tls::Limits::new(64, 8);
            let of_test = Arc::clone(&own);
            let restores = Restores::default();
            let of_api = restores.clone();
            let served = tls::serve_within(listener, tls, router, of_test, limits, of_api);
            let api = tokio::spawn(served);
            // Clients have all connections that their address may have.
            let mut open = Vec::new();
            for _ in 0..8 {
                open.push(TcpStream::connect(local(address)).await.unwrap());
            }
            let mut refused = TcpStream::connect(local(address)).await.unwrap();
            let closed = refused.read(&mut [0]).await;
            assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
            let strangers = OwnSources::default();
            assert!(api_answers(address, has_tls, &strangers).await.is_err());
            api_answers(address, has_tls, &own).await.unwrap();
            // Silent connections end at a restore only where nonces could be used again.
            restores.note();
            let wait = Duration::from_millis(if has_tls { 5000 } else { 200 });
            let ended = timeout(wait, open[0].read(&mut [0])).await;
            match has_tls {
                true => assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}"),
                false => assert!(ended.is_err(), "{ended:?}"),
            }
            drop(open);
            api_answers(address, has_tls, &own).await.unwrap();
            api.abort();
            let _ = api.await;
            assert!(api_answers(address, has_tls, &own).await.is_err());
        }
        // The kernel accepts, and the process does not.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for has_tls in [false, true] {
            let mut test = SelfTest::default();
            let own = Arc::new(OwnSources::default());
            test.add(FAST, move || {
                let own = Arc::clone(&own);
                async move { api_answers(address, has_tls, &own).await }
            });
            assert_eq!(fault_after_a_probe(&test).await, Some(FAST.fault));
            let error = test.failed().await.to_string();
            assert!(error.contains("no answer within"), "{error}");
        }
    }
}
