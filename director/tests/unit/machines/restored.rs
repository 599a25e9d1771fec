//! A machine, or the director, that is restored from a snapshot of its memory: no byte under the
//! earlier nonces, and a new connection at once.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep},
};

use super::{GATEWAY, LONG, Site};

/// Bytes that one end of a connection has sent.
#[derive(Debug, Default)]
struct Sent {
    bytes: AtomicU64,
    has_ended: AtomicBool,
}

/// Bytes of the machine, and of the director.
type Connection = [Arc<Sent>; 2];

/// Connections of a machine to the director that pass a relay, which counts their bytes.
#[derive(Clone, Default)]
struct Relay(Arc<Mutex<Vec<Connection>>>);

impl Relay {
    async fn start(director: SocketAddr) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let relay = Self::default();
        let all = relay.clone();
        tokio::spawn(async move {
            while let Ok((machine, _)) = listener.accept().await {
                let director = TcpStream::connect(director).await.expect("a director");
                let connection = Connection::default();
                let [by_machine, by_director] = connection.clone();
                all.lock().push(connection);
                let (from_machine, to_machine) = machine.into_split();
                let (from_director, to_director) = director.into_split();
                tokio::spawn(carry(from_machine, to_director, by_machine));
                tokio::spawn(carry(from_director, to_machine, by_director));
            }
        });
        (relay, address)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.lock().len()
    }

    fn newest(&self) -> Connection {
        self.lock().last().expect("a connection").clone()
    }

    /// Waits until the newest connection is calm: what both ends have sent.
    async fn calm(&self) -> [u64; 2] {
        let mut sent = [0; 2];
        loop {
            sleep(Duration::from_millis(300)).await;
            let now = self.newest().map(|sent| sent.bytes.load(SeqCst));
            if now == sent {
                return sent;
            }
            sent = now;
        }
    }

    /// Waits for a connection beyond this number.
    async fn more_than(&self, count: usize) {
        let until = Instant::now() + LONG;
        while self.count() <= count {
            assert!(Instant::now() < until, "no new connection");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, sent: Arc<Sent>) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        sent.bytes.fetch_add(length as u64, SeqCst);
        if to.write_all(&bytes[..length]).await.is_err() {
            break;
        }
    }
    sent.has_ended.store(true, SeqCst);
    let _ = to.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_end_sends_nothing_more_and_the_machine_connects_anew() {
    let site = Site::start().await;
    let (relay, address) = Relay::start(site.listen).await;
    let token = site.token(GATEWAY).await;
    let mut token: identity::EnrolmentToken = token.parse().expect("a token");
    token.service_addresses = vec![gateway_client::dial::ServiceAddress::Address(address)];
    let token = token.encode().expect("a token");
    let mut machine = site.machine("gw1", &token);
    machine.connected().await;
    site.wait(GATEWAY, "Ready", "true").await;

    let ends = [machine.restores.clone(), site.clock.restores.clone()];
    for (end, restores) in ends.into_iter().enumerate() {
        let before = relay.calm().await;
        let (connection, connections) = (relay.newest(), relay.count());
        let begun = Instant::now();
        restores.note();
        relay.more_than(connections).await;
        // HTTP/2 would ask for a sign of life after 20 s.
        assert!(begun.elapsed() < Duration::from_secs(10), "end {end}");
        while !connection[end].has_ended.load(SeqCst) {
            assert!(begun.elapsed() < LONG, "end {end} does not close");
            sleep(Duration::from_millis(10)).await;
        }
        let after = connection[end].bytes.load(SeqCst);
        assert_eq!(after, before[end], "end {end} has used its keys");
        relay.calm().await;
        machine.connected().await;
        site.wait(GATEWAY, "Ready", "true").await;
    }
}
