//! Opens a connection: from the first byte of a client until the backend has its hello.

use std::{io, net::SocketAddr, sync::atomic::Ordering, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Backend, Plan,
    counters::{Backend as BackendLabel, Counters, label},
    limits::{Counted, Full},
    pipe::receive,
    route::NoRoute,
};
use gateway_client::proxy_header;
use gateway_core::hello::{self, Hello, Progress, Reader};

/// Bytes of one read.
const READ: usize = 4096;

/// Why a connection is not relayed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A limit is reached.
    #[error(transparent)]
    Full(#[from] Full),
    /// The client closed before its first byte.
    #[error("the client closed the connection before its first byte")]
    NoHello,
    /// The client closed within its hello.
    #[error("the client closed the connection within its hello")]
    CutHello,
    /// The hello was not complete in time.
    #[error("the hello was not complete within relay.hello_timeout")]
    SlowHello,
    /// The bytes are no hello.
    #[error(transparent)]
    Hello(#[from] hello::Refusal),
    /// No route matches.
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
    /// No address of the backend answered, or the backend did not take the hello.
    #[error("backend {backend:?} is unreachable: {source}")]
    Unreachable {
        backend: String,
        /// The error of the last address.
        source: io::Error,
    },
}

impl Refused {
    /// All reasons.
    pub const REASONS: [&'static str; 19] = [
        "limit-gateway",
        "limit-source",
        "limit-tenant",
        "hello-none",
        "hello-cut",
        "hello-slow",
        "not-tls",
        "record-version",
        "record-length",
        "not-a-hello",
        "hello-too-long",
        "bytes-after-hello",
        "hello-malformed",
        "extension-twice",
        "server-name-malformed",
        "no-server-name",
        "no-route",
        "no-protocol",
        "backend-unreachable",
    ];

    /// Stable name for counters and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Full(Full::Gateway) => "limit-gateway",
            Self::Full(Full::Source) => "limit-source",
            Self::Full(Full::Tenant) => "limit-tenant",
            Self::NoHello => "hello-none",
            Self::CutHello => "hello-cut",
            Self::SlowHello => "hello-slow",
            Self::Hello(refusal) => refusal.reason(),
            Self::NoRoute(NoRoute::NoName) => "no-server-name",
            Self::NoRoute(NoRoute::Name) => "no-route",
            Self::NoRoute(NoRoute::Protocol) => "no-protocol",
            Self::Unreachable { .. } => "backend-unreachable",
        }
    }

    /// The fatal alert for the client (RFC 8446 section 6); `None` if the client may not speak TLS.
    const fn alert(&self) -> Option<u8> {
        match self {
            // internal_error
            Self::Full(Full::Tenant) | Self::Unreachable { .. } => Some(80),
            // unrecognized_name
            Self::NoRoute(NoRoute::NoName | NoRoute::Name) => Some(112),
            // no_application_protocol
            Self::NoRoute(NoRoute::Protocol) => Some(120),
            Self::Hello(refusal) => match refusal {
                hello::Refusal::NotTls { .. }
                | hello::Refusal::Version { .. }
                | hello::Refusal::RecordLength { .. }
                | hello::Refusal::NotHello { .. } => None,
                // decode_error
                hello::Refusal::TooLong
                | hello::Refusal::Trailing { .. }
                | hello::Refusal::Malformed { .. } => Some(50),
                // illegal_parameter
                hello::Refusal::Twice { .. } | hello::Refusal::Name => Some(47),
            },
            Self::Full(Full::Gateway | Full::Source)
            | Self::NoHello
            | Self::CutHello
            | Self::SlowHello => None,
        }
    }
}

/// A connected backend that has the hello of the client.
pub(super) struct Opened {
    pub backend: TcpStream,
    /// Tenant of the connection, for counters.
    pub tenant: String,
    /// Bytes of the client that were sent to the backend.
    pub bytes: usize,
}

/// Opens a connection. A refused client that speaks TLS gets an alert.
pub(super) async fn open(
    client: &TcpStream,
    (from, local): (SocketAddr, SocketAddr),
    counted: &mut Counted,
    plan: &Plan,
    counters: &Counters,
) -> Result<Opened, Refused> {
    let opened = opened(client, (from, local), counted, plan, counters).await;
    if let Err(refused) = &opened
        && let Some(number) = refused.alert()
    {
        // An empty send buffer has room for it. A client that has closed needs no alert.
        let _ = client.try_write(&[21, 3, 3, 0, 2, 2, number]);
    }
    opened
}

async fn opened(
    client: &TcpStream,
    (from, local): (SocketAddr, SocketAddr),
    counted: &mut Counted,
    plan: &Plan,
    counters: &Counters,
) -> Result<Opened, Refused> {
    let (hello, bytes) = read(client, plan.times.hello).await?;
    let route = plan.table.find(&hello)?;
    if let Some(tenant) = &route.tenant {
        let limit = plan.tenants.get(tenant).copied().unwrap_or(u32::MAX);
        counted.assign(tenant, limit)?;
    }
    let unreachable = |source| Refused::Unreachable {
        backend: (*route.backend).to_owned(),
        source,
    };
    let Some(backend) = plan.backends.get(&route.backend) else {
        return Err(unreachable(io::ErrorKind::NotFound.into()));
    };
    let stream = dial(backend, plan.times.dial, || {
        let backend = (*route.backend).to_owned();
        counters
            .dial_failures
            .get_or_create(&BackendLabel { backend })
            .inc();
    })
    .await
    .map_err(unreachable)?;
    let mut first = if backend.proxy {
        // The address that the client connected to, where the listener has the wildcard address.
        let to = client.local_addr().unwrap_or(local);
        proxy_header::header(from, to, hello.name.as_deref().unwrap_or_default())
    } else {
        Vec::new()
    };
    first.extend_from_slice(&bytes);
    timeout(plan.times.dial, write(&stream, &first))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(unreachable)?;
    Ok(Opened {
        backend: stream,
        tenant: label(route.tenant.as_ref()).to_owned(),
        bytes: bytes.len(),
    })
}

/// Reads the hello, and the bytes that came with it.
async fn read(client: &TcpStream, patience: Duration) -> Result<(Hello, Vec<u8>), Refused> {
    let end = Instant::now() + patience;
    let mut reader = Reader::new();
    loop {
        match timeout_at(end, client.readable()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(cut(&reader)),
            Err(_) => return Err(Refused::SlowHello),
        }
        if let Some(hello) = read_some(client, &mut reader)? {
            return Ok((hello, reader.into_bytes()));
        }
    }
}

/// Reads the bytes that are available.
fn read_some(client: &TcpStream, reader: &mut Reader) -> Result<Option<Hello>, Refused> {
    let mut bytes = [0; READ];
    // The reader decides before its room is used up.
    let room = reader.room().clamp(1, READ);
    match receive(client, &mut bytes[..room]) {
        Ok(0) => Err(cut(reader)),
        Ok(read) => match reader.feed(&bytes[..read])? {
            Progress::More => Ok(None),
            Progress::Hello(hello) => Ok(Some(hello)),
        },
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(_) => Err(cut(reader)),
    }
}

fn cut(reader: &Reader) -> Refused {
    if reader.is_empty() {
        Refused::NoHello
    } else {
        Refused::CutHello
    }
}

/// Connects to the first address that answers, beginning with the one that answered last.
async fn dial(backend: &Backend, patience: Duration, failed: impl Fn()) -> io::Result<TcpStream> {
    let count = backend.addresses.len();
    let first = backend.last.load(Ordering::Relaxed);
    let mut error = io::ErrorKind::AddrNotAvailable.into();
    for n in 0..count {
        let at = (first + n) % count;
        let address = backend.addresses[at];
        let dialed = timeout(patience, TcpStream::connect(address))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match dialed {
            Ok(stream) => {
                backend.last.store(at, Ordering::Relaxed);
                // It fails only if the connection is closed already.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                return Ok(stream);
            }
            Err(source) => {
                tracing::debug!(%address, error = %source, "cannot connect to an address of the \
                    backend");
                failed();
                error = source;
            }
        }
    }
    Err(error)
}

async fn write(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
