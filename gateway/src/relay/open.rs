//! Opens a connection: from the first byte of a client until the backend has its hello.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    RelayConfig,
    counters::{Backend as BackendLabel, Counters, label},
    dial::{Backends, dial},
    limits::Counted,
    pipe::receive,
    refusal::ConnectionRefusal,
};
use gateway_client::proxy_header;
use gateway_core::hello::{Hello, Progress, Reader};

/// Interval of looks whether the client is still there, while its backend is dialled.
const CLIENT_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of one read.
const READ: usize = 4096;

/// A connected backend that has the hello of the client.
pub(super) struct Opened {
    pub backend: TcpStream,
    /// Limit of the tenant's connections, if the connection has one.
    pub limit: Option<u32>,
    /// Bytes of the client that were sent to the backend.
    pub bytes: usize,
    /// Bytes of a PROXY header that the client sent before them.
    pub header: usize,
}

/// The state of a connection while it is opened.
pub(super) struct ConnectionInfo {
    /// The client: its own address, or that of its PROXY header.
    pub from: SocketAddr,
    /// The address of the listener.
    pub local: SocketAddr,
    pub name: String,
    /// Tenant, for counters; empty: none.
    pub tenant: String,
    /// Name of the backend; empty: no route was found.
    pub backend: String,
    pub address: Option<SocketAddr>,
}

/// Opens a connection. A refused client that speaks TLS gets an alert.
pub(super) async fn open(
    client: &TcpStream,
    info: &mut ConnectionInfo,
    counted: &mut Counted,
    config: &RelayConfig,
    (counters, backends): (&Counters, &Backends),
) -> Result<Opened, ConnectionRefusal> {
    let opened = opened(client, info, counted, config, (counters, backends)).await;
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
    info: &mut ConnectionInfo,
    counted: &mut Counted,
    config: &RelayConfig,
    (counters, backends): (&Counters, &Backends),
) -> Result<Opened, ConnectionRefusal> {
    let end = Instant::now() + config.times.hello;
    let mut header = 0;
    if config.is_proxy(info.from.ip()) {
        let (named, bytes) = read_proxy_header(client, end).await?;
        info.from = named.unwrap_or(info.from);
        header = bytes;
        counted.name_source(info.from.ip(), config.limits.per_source)?;
    }
    let (hello, bytes) = read(client, end).await?;
    let route = config.desired.table.find(&hello)?;
    info.name = hello.name.unwrap_or_default();
    info.tenant = label(route.tenant.as_ref()).to_owned();
    info.backend = (*route.backend).to_owned();
    let mut limit = None;
    if let Some(tenant) = &route.tenant {
        let most = config
            .desired
            .tenants
            .get(tenant)
            .copied()
            .unwrap_or(u32::MAX);
        counted.assign(tenant, most)?;
        limit = Some(most);
    }
    let unreachable = |source| ConnectionRefusal::Unreachable {
        backend: (*route.backend).to_owned(),
        source,
    };
    let Some(backend) = config.desired.backends.get(&route.backend) else {
        return Err(unreachable(io::ErrorKind::NotFound.into()));
    };
    let dialed = dial(
        (&route.backend, backend),
        backends,
        config.times.dial,
        || {
            let backend = (*route.backend).to_owned();
            counters
                .dial_failures
                .get_or_create(&BackendLabel { backend })
                .inc();
        },
    );
    let (stream, address) = dial_while_connected(client, dialed)
        .await?
        .map_err(unreachable)?;
    info.address = Some(address);
    let mut first = if backend.proxy {
        // The address that the client connected to, where the listener has the wildcard address.
        let to = client.local_addr().unwrap_or(info.local);
        proxy_header::header(info.from, to, &info.name)
    } else {
        Vec::new()
    };
    first.extend_from_slice(&bytes);
    timeout(config.times.dial, write(&stream, &first))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(unreachable)?;
    Ok(Opened {
        backend: stream,
        limit,
        bytes: bytes.len(),
        header,
    })
}

/// Reads the PROXY header of a listed sender: the client's address, if it has one, and the number
/// of its bytes.
async fn read_proxy_header(
    client: &TcpStream,
    end: Instant,
) -> Result<(Option<SocketAddr>, usize), ConnectionRefusal> {
    let mut head = [0; proxy_header::HEAD_BYTES];
    read_exactly(client, &mut head, end).await?;
    let length = proxy_header::body_length(&head).map_err(|_| ConnectionRefusal::NoProxyHeader)?;
    let mut body = vec![0; length];
    read_exactly(client, &mut body, end).await?;
    let named = proxy_header::client(&head, &body).map_err(|_| ConnectionRefusal::NoProxyHeader)?;
    Ok((named, head.len() + length))
}

/// Fills `room`, and reads no byte more.
async fn read_exactly(
    client: &TcpStream,
    room: &mut [u8],
    end: Instant,
) -> Result<(), ConnectionRefusal> {
    let mut read = 0;
    while read < room.len() {
        match timeout_at(end, client.readable()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(ConnectionRefusal::NoProxyHeader),
        }
        match client.try_read(&mut room[read..]) {
            Ok(0) => return Err(ConnectionRefusal::NoProxyHeader),
            Ok(some) => read += some,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(ConnectionRefusal::NoProxyHeader),
        }
    }
    Ok(())
}

/// Reads the hello, and the bytes that came with it.
async fn read(client: &TcpStream, end: Instant) -> Result<(Hello, Vec<u8>), ConnectionRefusal> {
    let mut reader = Reader::new();
    loop {
        match timeout_at(end, client.readable()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(cut(&reader)),
            Err(_) => return Err(ConnectionRefusal::SlowHello),
        }
        if let Some(hello) = read_some(client, &mut reader)? {
            return Ok((hello, reader.into_bytes()));
        }
    }
}

/// Reads the bytes that are available.
fn read_some(client: &TcpStream, reader: &mut Reader) -> Result<Option<Hello>, ConnectionRefusal> {
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

fn cut(reader: &Reader) -> ConnectionRefusal {
    if reader.is_empty() {
        ConnectionRefusal::NoHello
    } else {
        ConnectionRefusal::CutHello
    }
}

/// Connects to the backend; fails if the client closes its connection meanwhile.
async fn dial_while_connected(
    client: &TcpStream,
    dialed: impl Future<Output = io::Result<(TcpStream, SocketAddr)>>,
) -> Result<io::Result<(TcpStream, SocketAddr)>, ConnectionRefusal> {
    tokio::select! {
        biased;
        dialed = dialed => Ok(dialed),
        () = client_closed(client) => Err(ConnectionRefusal::Gone),
    }
}

/// Waits until the client has closed or reset its connection.
async fn client_closed(client: &TcpStream) {
    loop {
        // Most backends answer before: a client is not asked for nothing.
        sleep(CLIENT_CHECK_INTERVAL).await;
        let ready = timeout(
            Duration::ZERO,
            client.ready(Interest::READABLE | Interest::ERROR),
        );
        if let Ok(Ok(ready)) = ready.await
            && (ready.is_read_closed() || ready.is_error())
        {
            return;
        }
    }
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
