//! Connections through a relay that reads the server name from the client's TLS hello.
//!
//! The client sends a hello made by `rustls`, then plain bytes: a relay sees no difference, and no
//! cipher is measured. The backend reads the hello, then a byte that selects its service:
//!
//! ```text
//!   client ── hello, 'e' ─▶ relay ─▶ backend      sends a byte, then echoes every byte
//!          ── hello, 'd' ─▶       ─▶              counts bytes until the end
//! ```

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::rig::{
    cpu::busy_seconds,
    extent::{Amount, Extent, counted},
    netns::{enter, within},
    process::Running,
};

use super::{
    contender::{BACKEND_PORT, Contender, NAME},
    sites::{BACKEND, BACKEND_IP, CLIENT},
};

/// Threads of the backend: more than there are connections at any time.
const BACKENDS: usize = 40;
/// Clients that open one connection after the other.
const CLIENTS: usize = 16;
/// Time for which they connect.
const CONNECTING: Amount<Duration> = Amount {
    full: Duration::from_secs(2),
    smoke: Duration::from_millis(100),
};
/// Connections that a single client opens.
const ALONE: Amount<usize> = Amount {
    full: 1000,
    smoke: 20,
};
/// Bytes echoed on one connection.
const ECHOES: Amount<usize> = Amount {
    full: 3000,
    smoke: 50,
};
/// Time of streams before counting, and during it.
const STREAMING: Amount<[Duration; 2]> = Amount {
    full: [Duration::from_millis(300), Duration::from_millis(2500)],
    smoke: [Duration::from_millis(20), Duration::from_millis(100)],
};
/// Time-out of a read or write.
const IO_TIMEOUT: Duration = Duration::from_secs(10);

const ECHO: u8 = b'e';
const DISCARD: u8 = b'd';

/// The backend. It ends when dropped.
pub struct Backend {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    address: SocketAddrV4,
    threads: Vec<thread::JoinHandle<()>>,
}

/// The hello that clients send.
pub fn hello() -> anyhow::Result<Vec<u8>> {
    let config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), NAME.try_into()?)?;
    let mut wire = Vec::new();
    client.write_tls(&mut wire)?;
    Ok(wire)
}

impl Backend {
    /// Listens in the backend's namespace.
    pub fn start(hello: usize) -> anyhow::Result<Self> {
        let address = SocketAddrV4::new(BACKEND_IP.parse()?, BACKEND_PORT);
        let listener = Arc::new(within(BACKEND, || Ok(TcpListener::bind(address)?))?);
        let (stop, received) = (Arc::default(), Arc::default());
        let threads = (0..BACKENDS).map(|_| {
            let (stop, received) = (Arc::clone(&stop), Arc::clone(&received));
            let listener = Arc::clone(&listener);
            thread::spawn(move || {
                while !AtomicBool::load(&stop, Ordering::Relaxed) {
                    if let Ok((stream, _)) = listener.accept() {
                        // The client reports errors.
                        let _ = serve(stream, hello, &received);
                    }
                }
            })
        });
        Ok(Self {
            threads: threads.collect(),
            stop,
            received,
            address,
        })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // An empty connection wakes each thread.
        for _ in 0..self.threads.len() {
            let address = self.address;
            let _ = within(BACKEND, || Ok(TcpStream::connect(address)?));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Serves one connection.
fn serve(mut stream: TcpStream, hello: usize, received: &AtomicU64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    let mut head = vec![0; hello + 1];
    stream.read_exact(&mut head)?;
    match head[hello] {
        ECHO => {
            let mut byte = [ECHO];
            loop {
                stream.write_all(&byte)?;
                if stream.read(&mut byte)? == 0 {
                    return Ok(());
                }
            }
        }
        _ => {
            let mut room = vec![0; 256 << 10];
            loop {
                let bytes = stream.read(&mut room)?;
                if bytes == 0 {
                    return Ok(());
                }
                received.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        }
    }
}

/// Opens a connection and sends the hello and the service byte.
fn connect(to: SocketAddrV4, hello: &[u8], service: u8) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    stream.write_all(&[hello, &[service]].concat())?;
    Ok(stream)
}

/// Opens a connection and waits for the backend's byte. Returns the time it took, too.
fn answered(to: SocketAddrV4, hello: &[u8]) -> io::Result<(TcpStream, Duration)> {
    let begun = Instant::now();
    let mut stream = connect(to, hello, ECHO)?;
    stream.read_exact(&mut [0])?;
    Ok((stream, begun.elapsed()))
}

/// Figures of connections.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// Connections per second, by many clients at once.
    pub rate: f64,
    /// 99th percentile of the time to the first byte, microseconds, with many at once.
    pub crowded: f64,
    /// The same with a single client.
    pub alone: f64,
}

/// Opens connections and closes each after the backend's first byte.
pub fn connections(
    contender: Contender,
    hello: &[u8],
    extent: Extent,
) -> anyhow::Result<Connections> {
    let to = contender.tcp()?;
    let alone = within(CLIENT, || {
        let times = (0..ALONE.of(extent)).map(|_| Ok(answered(to, hello)?.1));
        times.collect::<io::Result<Vec<_>>>().context("connect")
    })?;
    lab::interrupt::check()?;
    let begun = Instant::now();
    let crowded = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    enter(CLIENT)?;
                    let mut times = Vec::new();
                    while begun.elapsed() < CONNECTING.of(extent) {
                        let (_, took) = answered(to, hello).context("connect, many at once")?;
                        times.push(took);
                    }
                    anyhow::Ok(times)
                })
            })
            .collect();
        let mut all = Vec::new();
        for client in clients {
            let times = client
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all.extend(times?);
        }
        anyhow::Ok(all)
    })?;
    let took = begun.elapsed().as_secs_f64();
    Ok(Connections {
        rate: crowded.len() as f64 / took,
        crowded: percentile(crowded, 0.99)?,
        alone: percentile(alone, 0.99)?,
    })
}

/// Round-trip time of a byte on an open connection, microseconds: median and 99th percentile.
pub fn round_trip(contender: Contender, hello: &[u8], extent: Extent) -> anyhow::Result<[f64; 2]> {
    let to = contender.tcp()?;
    let times = within(CLIENT, || {
        let (mut stream, _) = answered(to, hello)?;
        let mut times = Vec::new();
        for echo in 0..ECHOES.of(extent) {
            let (begun, sent) = (Instant::now(), echo as u8);
            let mut received = [0];
            stream.write_all(&[sent])?;
            stream.read_exact(&mut received)?;
            times.push(begun.elapsed());
            ensure!(received == [sent], "the backend echoed another byte");
        }
        Ok(times)
    })?;
    Ok([percentile(times.clone(), 0.5)?, percentile(times, 0.99)?])
}

/// Figures of streams.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    /// Gbit/s at the backend.
    pub gigabits: f64,
    /// CPU seconds of the machine per gigabyte (10⁹ bytes), less what other processes use.
    pub cpu: f64,
    /// CPU seconds of the contender's processes per gigabyte.
    pub own_cpu: f64,
}

/// Sends on `count` connections as fast as possible.
pub fn streams(
    contender: Contender,
    hello: &[u8],
    count: usize,
    backend: &Backend,
    running: &Running,
    others: f64,
    extent: Extent,
) -> anyhow::Result<Streams> {
    let [warm_up, count_time] = STREAMING.of(extent);
    let to = contender.tcp()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let senders: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| {
                    enter(CLIENT)?;
                    let mut stream = connect(to, hello, DISCARD).context("connect")?;
                    let bytes = vec![0x5a; 128 << 10];
                    while !stop.load(Ordering::Relaxed) {
                        stream.write_all(&bytes).context("send")?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let measure = || {
            let read = || {
                let received = backend.received.load(Ordering::Relaxed);
                anyhow::Ok((received, busy_seconds()?, running.cpu_seconds()))
            };
            thread::sleep(warm_up);
            let before = read()?;
            let (after, took) = counted(count_time, read, |after| after.0 > before.0)?;
            anyhow::Ok((after, before, took))
        };
        let found = measure();
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        let (after, before, took) = found?;
        let bytes = (after.0 - before.0) as f64;
        ensure!(bytes > 0.0, "nothing arrived");
        Ok(Streams {
            gigabits: bytes * 8e-9 / took,
            cpu: (after.1 - before.1 - others * took).max(0.0) / (bytes / 1e9),
            own_cpu: (after.2 - before.2) / (bytes / 1e9),
        })
    })
}

/// A percentile of times, microseconds; `share` is from 0 to 1.
fn percentile(mut times: Vec<Duration>, share: f64) -> anyhow::Result<f64> {
    times.sort();
    let at = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
    let time = times.get(at).context("no time was measured")?;
    Ok(time.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_hundred_times_the_99th_percentile_is_the_longest() {
        let times: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(times.clone(), 0.99).unwrap(), 100e3);
        assert_eq!(percentile(times, 0.5).unwrap(), 51e3);
        assert!(percentile(Vec::new(), 0.5).is_err());
    }
}
