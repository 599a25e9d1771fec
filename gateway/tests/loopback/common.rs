//! Clients and backends on loopback, on ports that the kernel chooses.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use fuzzing::Seeded;
use gateway_core::hello::{Progress, Reader};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};

/// Longest wait of a test.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// The hello of a client with a server name and ALPN protocols.
pub fn hello(name: &str, protocols: &[&str]) -> Vec<u8> {
    let mut config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let name = name.to_owned().try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut wire = Vec::new();
    client.write_tls(&mut wire).expect("a hello");
    wire
}

/// A connection with timeouts.
pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("connect");
    patient(&stream);
    stream
}

pub fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(TIMEOUT)).expect("a deadline");
    stream.set_write_timeout(Some(TIMEOUT)).expect("a deadline");
}

/// A connection that has sent its hello.
pub fn greet(to: SocketAddr, name: &str) -> TcpStream {
    let mut stream = connect(to);
    stream.write_all(&hello(name, &[])).expect("send a hello");
    stream
}

/// A listener, for a backend.
pub fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// Accepts a connection of a backend and reads its hello.
pub fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().expect("accept");
    patient(&stream);
    let mut reader = Reader::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).expect("a hello");
        if let Progress::Hello(_) = reader.feed(&byte).expect("a hello") {
            return stream;
        }
    }
}

/// A backend that calls `talk` for each connection after its hello.
pub fn backend(talk: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let (listener, address) = listener();
    std::thread::spawn(move || {
        loop {
            let stream = accept(&listener);
            let talk = talk.clone();
            std::thread::spawn(move || talk(stream));
        }
    });
    address
}

/// A backend that echoes.
pub fn echo() -> SocketAddr {
    backend(|mut stream| {
        let mut read = stream.try_clone().expect("a clone");
        // A reset of the client ends the copy.
        let _ = io::copy(&mut read, &mut stream);
        let _ = stream.shutdown(Shutdown::Write);
    })
}

/// Sends `message` and expects its echo.
pub fn exchange(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(message).expect("send");
    let mut received = vec![0; message.len()];
    stream.read_exact(&mut received).expect("receive");
    assert_eq!(received, message);
}

/// Reads up to the end of the stream.
pub fn rest(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Waits until a condition holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < TIMEOUT, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes of noise per write. Lengths must be multiples of it.
pub const BLOCK: usize = 1 << 16;

/// Sends `length` random bytes of a seed.
pub fn send_noise(stream: &mut TcpStream, seed: u64, length: usize) {
    let mut noise = Seeded::new(seed);
    let mut block = vec![0; BLOCK];
    for _ in 0..length / BLOCK {
        noise.fill(&mut block);
        stream.write_all(&block).expect("send");
    }
}

/// Reads `length` bytes and compares them with those of `send_noise`.
pub fn expect_noise(stream: &mut TcpStream, seed: u64, length: usize) {
    let mut noise = Seeded::new(seed);
    let (mut block, mut wanted) = (vec![0; BLOCK], vec![0; BLOCK]);
    for n in 0..length / BLOCK {
        noise.fill(&mut wanted);
        stream.read_exact(&mut block).expect("receive");
        assert!(block == wanted, "block {n} differs");
    }
}

/// TLS configurations of a server and of clients that trust its certificate.
pub struct Certified {
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
}

pub fn certified(name: &str, versions: &[&'static SupportedProtocolVersion]) -> Certified {
    let key = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let certificate = key.cert.der().clone();
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let server = ServerConfig::builder_with_protocol_versions(versions)
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], private.into())
        .expect("a server");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let client = ClientConfig::builder_with_protocol_versions(versions)
        .with_root_certificates(roots)
        .with_no_client_auth();
    Certified {
        server: Arc::new(server),
        client: Arc::new(client),
    }
}

/// A TLS server that echoes until the client closes TLS, and then closes it too.
pub fn tls_echo(config: Arc<ServerConfig>) -> (SocketAddr, JoinHandle<()>) {
    let (listener, address) = listener();
    let serving = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("accept");
        patient(&stream);
        let connection = ServerConnection::new(config).expect("a server");
        let mut stream = StreamOwned::new(connection, stream);
        let mut bytes = vec![0; BLOCK];
        loop {
            // An end of the stream without close_notify would be an error here.
            let read = stream.read(&mut bytes).expect("receive");
            if read == 0 {
                break;
            }
            stream.write_all(&bytes[..read]).expect("send back");
        }
        stream.conn.send_close_notify();
        stream.flush().expect("close TLS");
    });
    (address, serving)
}

/// A TLS client of `name`, connected to the relay.
pub fn tls_client(
    config: &Arc<ClientConfig>,
    to: SocketAddr,
    name: &str,
) -> StreamOwned<ClientConnection, TcpStream> {
    let name = name.to_owned().try_into().expect("a name");
    let connection = ClientConnection::new(Arc::clone(config), name).expect("a client");
    StreamOwned::new(connection, connect(to))
}
