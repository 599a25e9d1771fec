//! Relays an opened connection: each direction ends independently.
//!
//! ```text
//!   bytes ──▶ pipe ──▶ bytes       end of stream ──▶ FIN to the other side; the other direction goes on
//!   a side is reset ─────────────▶ the other side is reset
//!   a side refuses bytes ────────▶ its own bytes are delivered; those of the other side are discarded
//!   idle timeout ────────────────▶ both sides are reset
//! ```

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    listener::enable_keepalive,
    pipe::{Pipes, PooledPipe, Read, read},
    received::received,
};

/// Time to discard bytes for a side that refuses them, after the other direction has ended.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Age of a connection at which keepalive to its backend is switched on; most connections are
/// shorter.
const KEEPALIVE_AGE: Duration = Duration::from_secs(1);

/// Interval of checks whether the other direction has ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Byte counters of a tenant.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// From clients to backends.
    pub up: Counter,
    /// From backends to clients.
    pub down: Counter,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides closed.
    Closed,
    /// A side was reset or lost.
    Reset,
    /// The idle timeout passed.
    Idle,
    /// It gave way to other connections of its tenant before its trial was over.
    Evicted,
}

impl End {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Closed, Self::Reset, Self::Idle, Self::Evicted];

    /// Stable name for counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Idle => "idle",
            Self::Evicted => "evicted",
        }
    }
}

/// One side of a connection.
struct Side<'a> {
    stream: &'a TcpStream,
    /// Bytes read.
    read: &'a AtomicU64,
    /// Whether the end of the stream was read.
    ended: AtomicBool,
}

impl<'a> Side<'a> {
    const fn new(stream: &'a TcpStream, read: &'a AtomicU64) -> Self {
        Self {
            stream,
            read,
            ended: AtomicBool::new(false),
        }
    }

    fn has_read(&self, bytes: usize, activity: &Activity) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        activity.now();
    }

    /// Whether the peer sent a FIN. The kernel reports a reset only once, perhaps to a write or
    /// within a splice, and afterwards an end of the stream; so a read of 0 bytes alone proves
    /// nothing.
    fn has_ended(&self) -> bool {
        let read = self.read.load(Ordering::Relaxed);
        let ended = received(self.stream).is_ok_and(|received| received > read);
        self.ended.store(ended, Ordering::Relaxed);
        ended
    }
}

/// A side ended without a FIN.
struct Lost;

/// The time of the last byte in either direction.
struct Activity {
    begun: Instant,
    /// Milliseconds after `begun`.
    last: AtomicU64,
}

impl Activity {
    fn now(&self) {
        let passed = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(passed, Ordering::Relaxed);
    }

    async fn silent_for(&self, idle: Duration) {
        loop {
            let last = self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed));
            let end = last + idle;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// Relays until both directions have ended, a side is lost, or no byte came for `idle`. `read`
/// counts the bytes read from the client, with those read before, and from the backend.
pub async fn carry(
    client: &TcpStream,
    read: &[AtomicU64; 2],
    backend: &TcpStream,
    idle: Duration,
    traffic: &Traffic,
    pipes: &Pipes,
) -> End {
    let activity = Activity {
        begun: Instant::now(),
        last: AtomicU64::new(0),
    };
    let (client, backend) = (Side::new(client, &read[0]), Side::new(backend, &read[1]));
    let end = tokio::select! {
        end = both(&client, &backend, traffic, &activity, pipes) => end,
        () = until_idle(&activity, &backend, idle) => End::Idle,
    };
    match end {
        End::Closed => {}
        End::Reset | End::Idle | End::Evicted => abort(client.stream, backend.stream),
    }
    end
}

/// Makes the close of both sides a reset.
pub fn abort(client: &TcpStream, backend: &TcpStream) {
    // It fails only for a side that is closed already.
    let _ = client.set_zero_linger();
    let _ = backend.set_zero_linger();
}

/// Waits until no byte came for `idle`.
async fn until_idle(activity: &Activity, backend: &Side<'_>, idle: Duration) {
    if idle > KEEPALIVE_AGE {
        sleep(KEEPALIVE_AGE).await;
        // It fails only if the connection is closed already.
        if let Err(error) = enable_keepalive(backend.stream) {
            tracing::debug!(%error, "cannot enable keepalive");
        }
    }
    activity.silent_for(idle).await;
}

async fn both(
    client: &Side<'_>,
    backend: &Side<'_>,
    traffic: &Traffic,
    activity: &Activity,
    pipes: &Pipes,
) -> End {
    let up = relay_direction(client, backend, &traffic.up, activity, pipes);
    let down = relay_direction(backend, client, &traffic.down, activity, pipes);
    tokio::pin!(up, down);
    let ended = tokio::select! {
        ended = &mut up => match ended {
            Ok(()) => down.await,
            Err(lost) => Err(lost),
        },
        ended = &mut down => match ended {
            Ok(()) => up.await,
            Err(lost) => Err(lost),
        },
    };
    match ended {
        Ok(()) => End::Closed,
        Err(Lost) => End::Reset,
    }
}

/// Relays one direction to the end of its stream. If the destination refuses bytes, the rest of the
/// stream is discarded: a socket closed with unread bytes resets its peer, which would lose bytes
/// it has not read yet.
///
/// Few bytes are copied, which costs two system calls; many are moved by splice(2).
async fn relay_direction(
    from: &Side<'_>,
    to: &Side<'_>,
    bytes: &Counter,
    activity: &Activity,
    pipes: &Pipes,
) -> Result<(), Lost> {
    let mut many = false;
    loop {
        from.stream.readable().await.map_err(|_| Lost)?;
        // A stream that never pauses must not starve the others of its thread.
        tokio::task::coop::consume_budget().await;
        let mut between;
        if many {
            between = pipes.acquire();
            match between.fill(from.stream) {
                Ok(0) => return ended(from, to),
                Ok(moved) => from.has_read(moved, activity),
                Err(error) if again(&error) => {
                    many = false;
                    continue;
                }
                Err(_) => return Err(Lost),
            }
        } else {
            let read = match read(from.stream, to.stream, pipes) {
                Ok(Read { bytes: 0, .. }) => return ended(from, to),
                Ok(read) => read,
                Err(error) if again(&error) => continue,
                Err(_) => return Err(Lost),
            };
            from.has_read(read.bytes, activity);
            many = !read.all;
            let Ok(rest) = read.rest else {
                discard(from, to).await;
                return Ok(());
            };
            let held = rest.as_ref().map_or(0, PooledPipe::len);
            bytes.inc_by((read.bytes - held) as u64);
            match rest {
                Some(rest) => between = rest,
                None => continue,
            }
        }
        while between.len() > 0 {
            match between.empty(to.stream) {
                Ok(moved) => {
                    bytes.inc_by(moved as u64);
                    activity.now();
                }
                Err(error) if again(&error) => {
                    to.stream.writable().await.map_err(|_| Lost)?;
                }
                Err(_) => {
                    drop(between);
                    discard(from, to).await;
                    return Ok(());
                }
            }
        }
    }
}

/// A read of 0 bytes: the stream has ended, or the side is lost.
fn ended(from: &Side<'_>, to: &Side<'_>) -> Result<(), Lost> {
    if !from.has_ended() {
        return Err(Lost);
    }
    // If both have ended, the close sends the FIN.
    if !to.ended.load(Ordering::Relaxed) {
        // The other direction finds an error.
        let _ = finish(to.stream);
    }
    Ok(())
}

fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Sends a FIN.
fn finish(to: &TcpStream) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    Ok(nix::sys::socket::shutdown(
        to.as_raw_fd(),
        nix::sys::socket::Shutdown::Write,
    )?)
}

/// Discards bytes to the end of the stream; for at most [`DISCARD_TIMEOUT`] after the other
/// direction has ended.
async fn discard(from: &Side<'_>, to: &Side<'_>) {
    let mut end = None;
    loop {
        if end.is_none() && to.ended.load(Ordering::Relaxed) {
            end = Some(Instant::now() + DISCARD_TIMEOUT);
        }
        if end.is_some_and(|end| end <= Instant::now()) {
            return;
        }
        match timeout(CHECK_INTERVAL, from.stream.readable()).await {
            Ok(Ok(())) if discard_some(from.stream) => {}
            Ok(_) => return,
            Err(_) => {}
        }
    }
}

/// Discards available bytes; false at the end of the stream.
fn discard_some(from: &TcpStream) -> bool {
    let mut bytes = [0; 4096];
    match from.try_read(&mut bytes) {
        Ok(read) => read > 0,
        Err(error) => again(&error),
    }
}
