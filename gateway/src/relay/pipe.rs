//! The memory between two sockets: a pipe for splice(2), a buffer, or the buffer of the thread for
//! few bytes that the other socket accepts at once.
//!
//! A connection borrows a pipe or buffer while bytes are in it, so that idle connections have none.

use std::{
    cell::RefCell,
    io,
    ops::Range,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::{
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    sys::socket::MsgFlags,
};
use prometheus_client::metrics::counter::Counter;
use tokio::{io::Interest, net::TcpStream};

/// Size requested for each pipe, bytes; the kernel may give less (pipe(7),
/// `/proc/sys/fs/pipe-user-pages-soft`).
const PIPE: i32 = 256 << 10;
/// Size of a buffer, bytes.
const BUFFER: usize = 64 << 10;
/// Bytes of one splice at most.
const MAX_SPLICE: usize = 1 << 20;
/// Unused pipes or buffers that are kept.
const MAX_IDLE: usize = 64;

/// Size of the buffer of a thread, bytes.
const THREAD_BUFFER_LEN: usize = 16 << 10;

thread_local! {
    static THREAD_BUFFER: RefCell<Box<[u8]>> =
        RefCell::new(vec![0; THREAD_BUFFER_LEN].into_boxed_slice());
}

/// The result of [`read`].
#[derive(Debug)]
pub struct Read<'a> {
    /// Number of bytes; 0 at the end of the stream.
    pub bytes: usize,
    /// Whether no more bytes are available now.
    pub all: bool,
    /// The bytes that the other socket did not accept; or its error.
    pub rest: io::Result<Option<PooledPipe<'a>>>,
}

/// Reads up to the size of the thread's buffer from a socket and writes to the other.
///
/// # Errors
/// `WouldBlock` when no byte is available; else the error of the socket that is read.
pub fn read<'a>(from: &TcpStream, to: &TcpStream, pipes: &'a Pipes) -> io::Result<Read<'a>> {
    THREAD_BUFFER.with_borrow_mut(|own| {
        let bytes = receive(from, own)?;
        let held = |from| Some(pipes.buffer_of(&own[from..bytes]));
        let rest = if bytes == 0 {
            Ok(None)
        } else {
            match to.try_write(&own[..bytes]) {
                Ok(written) if written == bytes => Ok(None),
                Ok(written) => Ok(held(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(held(0)),
                Err(error) => Err(error),
            }
        };
        Ok(Read {
            bytes,
            all: bytes < THREAD_BUFFER_LEN,
            rest,
        })
    })
}

/// Reads available bytes from a socket; 0 at the end of the stream. A read that does not fill the
/// buffer got all available bytes, so that the next read waits for epoll. (Urgent data, RFC 9293
/// section 3.8.5, delays what follows it until more bytes come; TLS does not use it.)
///
/// # Errors
/// `WouldBlock` when no byte is available; else the error of the socket.
pub fn receive(from: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    let mut bytes = 0;
    let tried = from.try_io(Interest::READABLE, || {
        bytes = nix::sys::socket::recv(from.as_raw_fd(), room, MsgFlags::empty())?;
        if 0 < bytes && bytes < room.len() {
            // Tokio takes this for "no longer readable".
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    });
    match tried {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock || bytes == 0 => Err(error),
        Ok(()) | Err(_) => Ok(bytes),
    }
}

/// The pool of pipes and buffers.
#[derive(Debug)]
pub struct Pipes {
    /// Pipes at most; each is two open files.
    most: AtomicUsize,
    /// Present pipes, borrowed or not.
    made: AtomicUsize,
    free: Mutex<Vec<TransferBuffer>>,
    /// Times that a buffer was used because no pipe was free.
    pub short: Counter,
}

#[derive(Debug)]
enum TransferBuffer {
    Pipe {
        read: OwnedFd,
        write: OwnedFd,
        held: usize,
    },
    Buffer {
        bytes: Box<[u8]>,
        held: Range<usize>,
    },
}

/// A borrowed pipe or buffer.
#[derive(Debug)]
pub struct PooledPipe<'a> {
    pipes: &'a Pipes,
    /// `Some` until the drop.
    between: Option<TransferBuffer>,
}

impl Pipes {
    /// A pool of `most` pipes, and of buffers beyond them; with 0, of buffers only.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most: AtomicUsize::new(most),
            made: AtomicUsize::new(0),
            free: Mutex::default(),
            short: Counter::default(),
        }
    }

    /// Changes the number of pipes. Borrowed pipes stay in use.
    pub fn limit(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
        for between in self.free().drain(..) {
            if matches!(between, TransferBuffer::Pipe { .. }) {
                self.made.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Borrows an empty pipe or buffer.
    pub fn acquire(&self) -> PooledPipe<'_> {
        let unused = self.free().pop();
        let between = unused.unwrap_or_else(|| self.open());
        PooledPipe {
            pipes: self,
            between: Some(between),
        }
    }

    /// A buffer with these bytes.
    fn buffer_of(&self, bytes: &[u8]) -> PooledPipe<'_> {
        PooledPipe {
            pipes: self,
            between: Some(TransferBuffer::Buffer {
                held: 0..bytes.len(),
                bytes: bytes.into(),
            }),
        }
    }

    /// Unused pipes and buffers.
    #[must_use]
    pub fn unused(&self) -> usize {
        self.free().len()
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<TransferBuffer>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> TransferBuffer {
        let most = self.most.load(Ordering::Relaxed);
        let one_more = |made| (made < most).then_some(made + 1);
        let may = self
            .made
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        if may.is_ok() {
            match nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) {
                Ok((read, write)) => {
                    // The kernel refuses above the limit of the user; a smaller pipe works, slower.
                    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE));
                    return TransferBuffer::Pipe {
                        read,
                        write,
                        held: 0,
                    };
                }
                Err(error) => {
                    self.made.fetch_sub(1, Ordering::Relaxed);
                    tracing::debug!(%error, "cannot create a pipe; copying bytes");
                }
            }
        }
        if most > 0 {
            self.short.inc();
        }
        TransferBuffer::Buffer {
            bytes: vec![0; BUFFER].into_boxed_slice(),
            held: 0..0,
        }
    }
}

impl PooledPipe<'_> {
    /// Number of bytes inside.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.between {
            Some(TransferBuffer::Pipe { held, .. }) => *held,
            Some(TransferBuffer::Buffer { held, .. }) => held.len(),
            None => 0,
        }
    }

    /// Reads available bytes from a socket into the empty pipe or buffer; returns their number, 0
    /// at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when no byte is available; else the error of the socket.
    pub fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        match &mut self.between {
            Some(TransferBuffer::Pipe { write, held, .. }) => {
                let moved = from.try_io(Interest::READABLE, || moved(from, write))?;
                *held += moved;
                Ok(moved)
            }
            Some(TransferBuffer::Buffer { bytes, held }) => {
                let read = from.try_read(bytes)?;
                *held = 0..read;
                Ok(read)
            }
            None => Ok(0),
        }
    }

    /// Writes bytes to a socket; returns their number.
    ///
    /// # Errors
    /// `WouldBlock` when the socket accepts no byte; else the error of the socket.
    pub fn empty(&mut self, to: &TcpStream) -> io::Result<usize> {
        match &mut self.between {
            Some(TransferBuffer::Pipe { read, held, .. }) => {
                let moved = to.try_io(Interest::WRITABLE, || moved(&*read, to))?;
                *held = held.saturating_sub(moved);
                Ok(moved)
            }
            Some(TransferBuffer::Buffer { bytes, held }) => {
                let written = to.try_write(&bytes[held.clone()])?;
                held.start += written;
                Ok(written)
            }
            None => Ok(0),
        }
    }
}

impl Drop for PooledPipe<'_> {
    fn drop(&mut self) {
        let pipes = self.pipes;
        let held = self.len();
        let Some(between) = self.between.take() else {
            return;
        };
        let is_pipe = match &between {
            TransferBuffer::Pipe { .. } => true,
            // A buffer of `hold`, made for its bytes.
            TransferBuffer::Buffer { bytes, .. } if bytes.len() != BUFFER => return,
            TransferBuffer::Buffer { .. } => false,
        };
        let most = pipes.most.load(Ordering::Relaxed);
        let fits = pipes.made.load(Ordering::Relaxed) <= most;
        let mut free = pipes.free();
        // A pipe with bytes inside cannot be reused; a buffer is not kept where pipes are allowed.
        if held == 0 && fits && is_pipe == (most > 0) && free.len() < MAX_IDLE {
            free.push(between);
        } else if is_pipe {
            pipes.made.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn moved(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd) -> io::Result<usize> {
    Ok(splice(
        from,
        None,
        to,
        None,
        MAX_SPLICE,
        SpliceFFlags::SPLICE_F_NONBLOCK,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_pipe(pipe: &PooledPipe<'_>) -> bool {
        matches!(pipe.between, Some(TransferBuffer::Pipe { .. }))
    }

    #[test]
    fn pipes_are_limited_and_buffers_follow() {
        let pipes = Pipes::new(2);
        let three = [pipes.acquire(), pipes.acquire(), pipes.acquire()];
        assert_eq!(three.each_ref().map(is_pipe), [true, true, false]);
        assert_eq!(pipes.short.get(), 1);
        drop(three);
        assert_eq!(pipes.unused(), 2);
        let two = [pipes.acquire(), pipes.acquire()];
        assert_eq!(
            (two.each_ref().map(is_pipe), pipes.unused()),
            ([true; 2], 0)
        );
        pipes.limit(1);
        drop(two);
        assert_eq!(pipes.made.load(Ordering::Relaxed), 1);
        pipes.limit(0);
        assert_eq!(pipes.unused(), 0);
        assert!(!is_pipe(&pipes.acquire()));
        assert_eq!((pipes.made.load(Ordering::Relaxed), pipes.unused()), (0, 1));
        assert_eq!(pipes.short.get(), 1, "no pipe was wanted");
        pipes.limit(1);
        assert!(is_pipe(&pipes.acquire()));
    }
}
