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

/// No wait of a test is longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The hello of a client that asks for `name`, with these protocols.
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

/// A connection that gives up in time.
pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("connect");
    patient(&stream);
    stream
}

pub fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    stream
        .set_write_timeout(Some(PATIENCE))
        .expect("a deadline");
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

/// What a backend was given: reads the hello of a connection off it.
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

/// A backend that runs `talk` with each connection, its hello read.
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

/// A backend that sends back what it gets.
pub fn echo() -> SocketAddr {
    backend(|mut stream| {
        let mut read = stream.try_clone().expect("a clone");
        // A client that resets ends it.
        let _ = io::copy(&mut read, &mut stream);
        let _ = stream.shutdown(Shutdown::Write);
    })
}

/// Says `word` and hears it back.
pub fn echoed(stream: &mut TcpStream, word: &[u8]) {
    stream.write_all(word).expect("say");
    let mut heard = vec![0; word.len()];
    stream.read_exact(&mut heard).expect("hear");
    assert_eq!(heard, word);
}

/// Everything up to the end of the stream.
pub fn rest(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Waits until it holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes of noise that are sent at once; lengths below are multiples of it.
pub const BLOCK: usize = 1 << 16;

/// Sends `length` bytes of noise.
pub fn send_noise(stream: &mut TcpStream, seed: u64, length: usize) {
    let mut noise = Seeded::new(seed);
    let mut block = vec![0; BLOCK];
    for _ in 0..length / BLOCK {
        noise.fill(&mut block);
        stream.write_all(&block).expect("send");
    }
}

/// Hears exactly `length` bytes of it.
pub fn hear_noise(stream: &mut TcpStream, seed: u64, length: usize) {
    let mut noise = Seeded::new(seed);
    let (mut block, mut wanted) = (vec![0; BLOCK], vec![0; BLOCK]);
    for n in 0..length / BLOCK {
        noise.fill(&mut wanted);
        stream.read_exact(&mut block).expect("hear");
        assert!(block == wanted, "block {n} differs");
    }
}

/// A certificate of one server, and what its clients trust.
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

/// A TLS server that sends back what it gets until its client says that it is done, and says so
/// too.
pub fn tls_echo(config: Arc<ServerConfig>) -> (SocketAddr, JoinHandle<()>) {
    let (listener, address) = listener();
    let serving = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("accept");
        patient(&stream);
        let connection = ServerConnection::new(config).expect("a server");
        let mut stream = StreamOwned::new(connection, stream);
        let mut bytes = vec![0; BLOCK];
        loop {
            // An end without the client's word for it would be an error here.
            let read = stream.read(&mut bytes).expect("hear");
            if read == 0 {
                break;
            }
            stream.write_all(&bytes[..read]).expect("send back");
        }
        stream.conn.send_close_notify();
        stream.flush().expect("say that it is done");
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
