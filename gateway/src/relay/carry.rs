//! Carries an opened connection: bytes both ways, each way ending by itself.
//!
//! ```text
//!   bytes ──▶ pipe ──▶ bytes       end of stream ──▶ FIN to the other side, the other way goes on
//!   a side is reset ─────────────▶ the other side is reset
//!   a side takes no more ────────▶ what it still sends is delivered, what the other sends is thrown away
//!   neither sends for so long ───▶ both are reset
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
    ask_when_silent,
    pipe::{Lent, Pipes, Read, read},
    received::received,
};

/// How long a side may go on sending to one that takes no more, once it was sent all of that one's bytes.
const LINGER: Duration = Duration::from_secs(5);

/// How old a connection is before the kernel is to ask whether its backend is still there. Most are never.
const LASTING: Duration = Duration::from_secs(1);

/// How often it is looked whether the other way has ended.
const LOOK: Duration = Duration::from_millis(500);

/// Bytes of a tenant's connections.
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
    /// Both sides said so.
    Closed,
    /// A side was reset, or lost.
    Reset,
    /// Nothing was sent for too long.
    Idle,
}

impl End {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Reset, Self::Idle];

    /// For counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Idle => "idle",
        }
    }
}

/// One side of a connection.
struct Side<'a> {
    stream: &'a TcpStream,
    /// Bytes that were read from it.
    read: AtomicU64,
    /// The end of its stream was read.
    ended: AtomicBool,
}

impl<'a> Side<'a> {
    const fn new(stream: &'a TcpStream, read: u64) -> Self {
        Self {
            stream,
            read: AtomicU64::new(read),
            ended: AtomicBool::new(false),
        }
    }

    fn has_read(&self, bytes: usize, activity: &Activity) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        activity.now();
    }

    /// Whether the end that was read is the other end's word. The kernel tells of a reset once, and of an end ever
    /// after; whoever wrote may have been told, or nobody, in the middle of a splice.
    fn has_ended(&self) -> bool {
        let read = self.read.load(Ordering::Relaxed);
        let ended = received(self.stream).is_ok_and(|received| received > read);
        self.ended.store(ended, Ordering::Relaxed);
        ended
    }
}

/// A side sends no more and has not said that it would not.
struct Lost;

/// When something was last sent, either way.
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

/// Carries until both ways have ended, one side is lost, or nothing was sent for `idle`. Of the client `read` bytes
/// were read before.
pub async fn carry(
    client: &TcpStream,
    read: usize,
    backend: &TcpStream,
    idle: Duration,
    traffic: &Traffic,
    pipes: &Pipes,
) -> End {
    let activity = Activity {
        begun: Instant::now(),
        last: AtomicU64::new(0),
    };
    let (client, backend) = (Side::new(client, read as u64), Side::new(backend, 0));
    let end = tokio::select! {
        end = both(&client, &backend, traffic, &activity, pipes) => end,
        () = lasting(&activity, &backend, idle) => End::Idle,
    };
    match end {
        End::Closed => {}
        End::Reset | End::Idle => {
            // A side that is gone already has nothing to be told.
            let _ = client.stream.set_zero_linger();
            let _ = backend.stream.set_zero_linger();
        }
    }
    end
}

/// Waits until nothing was sent for `idle`.
async fn lasting(activity: &Activity, backend: &Side<'_>, idle: Duration) {
    if idle > LASTING {
        sleep(LASTING).await;
        // A socket that refuses is one that is gone already.
        if let Err(error) = ask_when_silent(backend.stream) {
            tracing::debug!(%error, "a socket's options");
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
    let up = way(client, backend, &traffic.up, activity, pipes);
    let down = way(backend, client, &traffic.down, activity, pipes);
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

/// One way, to the end of its stream. Where it cannot write any more, the rest of the stream is thrown away: a socket
/// that is closed with bytes unread resets its other end, which then loses what it has not read yet.
///
/// Few bytes are read and written, which costs two calls; many are moved by the kernel.
async fn way(
    from: &Side<'_>,
    to: &Side<'_>,
    bytes: &Counter,
    activity: &Activity,
    pipes: &Pipes,
) -> Result<(), Lost> {
    let mut many = false;
    loop {
        from.stream.readable().await.map_err(|_| Lost)?;
        // A stream that never pauses must not keep the others of its thread waiting.
        tokio::task::coop::consume_budget().await;
        let mut between;
        if many {
            between = pipes.lend();
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
            let held = rest.as_ref().map_or(0, Lent::held);
            bytes.inc_by((read.bytes - held) as u64);
            match rest {
                Some(rest) => between = rest,
                None => continue,
            }
        }
        while between.held() > 0 {
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

/// The stream has ended, or so it was read.
fn ended(from: &Side<'_>, to: &Side<'_>) -> Result<(), Lost> {
    if !from.has_ended() {
        return Err(Lost);
    }
    // Where both have ended, closing says it.
    if !to.ended.load(Ordering::Relaxed) {
        // An error here is the other way's to find.
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

/// Says that nothing more comes.
fn finish(to: &TcpStream) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    Ok(nix::sys::socket::shutdown(
        to.as_raw_fd(),
        nix::sys::socket::Shutdown::Write,
    )?)
}

/// Reads to the end of the stream, or of the socket; for [`LINGER`] once the other way has ended.
async fn discard(from: &Side<'_>, to: &Side<'_>) {
    let mut end = None;
    loop {
        if end.is_none() && to.ended.load(Ordering::Relaxed) {
            end = Some(Instant::now() + LINGER);
        }
        if end.is_some_and(|end| end <= Instant::now()) {
            return;
        }
        match timeout(LOOK, from.stream.readable()).await {
            Ok(Ok(())) if thrown_away(from.stream) => {}
            Ok(_) => return,
            Err(_) => {}
        }
    }
}

/// Throws away what is there; false when nothing more comes.
fn thrown_away(from: &TcpStream) -> bool {
    let mut bytes = [0; 4096];
    match from.try_read(&mut bytes) {
        Ok(read) => read > 0,
        Err(error) => again(&error),
    }
}
