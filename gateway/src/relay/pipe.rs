//! What bytes lie in between two sockets: a pipe that the kernel moves them through (splice(2)), a buffer, or, where there are few
//! of them and the other socket takes them, no more than the thread's own buffer.
//!
//! Lent for as long as there are bytes and taken back empty, so a connection that is idle holds none of them.

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

/// Asked of the kernel for each pipe, bytes; it may give less (pipe(7), `/proc/sys/fs/pipe-user-pages-soft`).
const PIPE: i32 = 256 << 10;
/// Bytes of a buffer.
const BUFFER: usize = 64 << 10;
/// Most bytes of one call.
const MOST: usize = 1 << 20;
/// Empty ones that are kept for the next.
const KEPT: usize = 64;

/// Bytes of a thread's own buffer: as many are few.
const FEW: usize = 16 << 10;

thread_local! {
    static OWN: RefCell<Box<[u8]>> = RefCell::new(vec![0; FEW].into_boxed_slice());
}

/// What was read.
#[derive(Debug)]
pub struct Read<'a> {
    /// So many bytes; 0 at the end of the stream.
    pub bytes: usize,
    /// There is no more for now.
    pub all: bool,
    /// Of them those that the other socket did not take; or why it takes none any more.
    pub rest: io::Result<Option<Lent<'a>>>,
}

/// Reads what there is from a socket, if it is little, and writes it to the other.
///
/// # Errors
/// `WouldBlock` when nothing is there; else what the socket that is read from has.
pub fn read<'a>(from: &TcpStream, to: &TcpStream, pipes: &'a Pipes) -> io::Result<Read<'a>> {
    OWN.with_borrow_mut(|own| {
        let bytes = receive(from, own)?;
        let held = |from| Some(pipes.hold(&own[from..bytes]));
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
            all: bytes < FEW,
            rest,
        })
    })
}

/// Reads what there is from a socket; 0 at the end of the stream. What leaves room is all that there is: epoll tells when more
/// comes, so it need not be tried. (Not so in front of urgent data, RFC 9293 section 3.8.5, which TLS has not: who sends such waits until
/// he sends more.)
///
/// # Errors
/// `WouldBlock` when nothing is there; else what the socket has.
pub fn receive(from: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    let mut bytes = 0;
    let tried = from.try_io(Interest::READABLE, || {
        bytes = nix::sys::socket::recv(from.as_raw_fd(), room, MsgFlags::empty())?;
        if 0 < bytes && bytes < room.len() {
            // What tokio takes for "not readable any more".
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    });
    match tried {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock || bytes == 0 => Err(error),
        Ok(()) | Err(_) => Ok(bytes),
    }
}

/// Lends pipes.
#[derive(Debug)]
pub struct Pipes {
    /// How many there may be: each is two open files.
    most: AtomicUsize,
    /// How many there are, lent or not.
    made: AtomicUsize,
    free: Mutex<Vec<Between>>,
    /// How often there was no pipe to be had and a buffer was taken.
    pub short: Counter,
}

#[derive(Debug)]
enum Between {
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

/// One of them, lent.
#[derive(Debug)]
pub struct Lent<'a> {
    pipes: &'a Pipes,
    /// There until it is dropped.
    between: Option<Between>,
}

impl Pipes {
    /// At most so many pipes, and then buffers; of 0 there are only buffers.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most: AtomicUsize::new(most),
            made: AtomicUsize::new(0),
            free: Mutex::default(),
            short: Counter::default(),
        }
    }

    /// From now on at most so many. Those that are lent are used to their end.
    pub fn limit(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
        for between in self.free().drain(..) {
            if matches!(between, Between::Pipe { .. }) {
                self.made.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// An empty one.
    pub fn lend(&self) -> Lent<'_> {
        let unused = self.free().pop();
        let between = unused.unwrap_or_else(|| self.make());
        Lent {
            pipes: self,
            between: Some(between),
        }
    }

    /// A buffer with these bytes.
    fn hold(&self, bytes: &[u8]) -> Lent<'_> {
        Lent {
            pipes: self,
            between: Some(Between::Buffer {
                held: 0..bytes.len(),
                bytes: bytes.into(),
            }),
        }
    }

    /// How many lie unused.
    #[must_use]
    pub fn unused(&self) -> usize {
        self.free().len()
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Between>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self) -> Between {
        let most = self.most.load(Ordering::Relaxed);
        let one_more = |made| (made < most).then_some(made + 1);
        let may = self
            .made
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        if may.is_ok() {
            match nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) {
                Ok((read, write)) => {
                    // Refused beyond what a user may have in all: a small one does as well, slower.
                    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE));
                    return Between::Pipe {
                        read,
                        write,
                        held: 0,
                    };
                }
                Err(error) => {
                    self.made.fetch_sub(1, Ordering::Relaxed);
                    tracing::debug!(%error, "no pipe; copying");
                }
            }
        }
        if most > 0 {
            self.short.inc();
        }
        Between::Buffer {
            bytes: vec![0; BUFFER].into_boxed_slice(),
            held: 0..0,
        }
    }
}

impl Lent<'_> {
    /// Bytes in it.
    #[must_use]
    pub fn held(&self) -> usize {
        match &self.between {
            Some(Between::Pipe { held, .. }) => *held,
            Some(Between::Buffer { held, .. }) => held.len(),
            None => 0,
        }
    }

    /// Takes what there is from a socket, when it is empty; the number of bytes, 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else what the socket has.
    pub fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        match &mut self.between {
            Some(Between::Pipe { write, held, .. }) => {
                let moved = from.try_io(Interest::READABLE, || moved(from, write))?;
                *held += moved;
                Ok(moved)
            }
            Some(Between::Buffer { bytes, held }) => {
                let read = from.try_read(bytes)?;
                *held = 0..read;
                Ok(read)
            }
            None => Ok(0),
        }
    }

    /// Gives what it has to a socket; the number of bytes.
    ///
    /// # Errors
    /// `WouldBlock` when the socket takes nothing; else what the socket has.
    pub fn empty(&mut self, to: &TcpStream) -> io::Result<usize> {
        match &mut self.between {
            Some(Between::Pipe { read, held, .. }) => {
                let moved = to.try_io(Interest::WRITABLE, || moved(&*read, to))?;
                *held = held.saturating_sub(moved);
                Ok(moved)
            }
            Some(Between::Buffer { bytes, held }) => {
                let written = to.try_write(&bytes[held.clone()])?;
                held.start += written;
                Ok(written)
            }
            None => Ok(0),
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let pipes = self.pipes;
        let held = self.held();
        let Some(between) = self.between.take() else {
            return;
        };
        let is_pipe = match &between {
            Between::Pipe { .. } => true,
            // One that was made to hold what it held.
            Between::Buffer { bytes, .. } if bytes.len() != BUFFER => return,
            Between::Buffer { .. } => false,
        };
        let most = pipes.most.load(Ordering::Relaxed);
        let fits = pipes.made.load(Ordering::Relaxed) <= most;
        let mut free = pipes.free();
        // With bytes in it, it is of no use to anybody; nor is a buffer where there are pipes.
        if held == 0 && fits && is_pipe == (most > 0) && free.len() < KEPT {
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
        MOST,
        SpliceFFlags::SPLICE_F_NONBLOCK,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_pipe(lent: &Lent<'_>) -> bool {
        matches!(lent.between, Some(Between::Pipe { .. }))
    }

    #[test]
    fn there_are_no_more_pipes_than_allowed_and_buffers_beyond() {
        let pipes = Pipes::new(2);
        let three = [pipes.lend(), pipes.lend(), pipes.lend()];
        assert_eq!(three.each_ref().map(is_pipe), [true, true, false]);
        assert_eq!(pipes.short.get(), 1);
        drop(three);
        assert_eq!(pipes.unused(), 2);
        let two = [pipes.lend(), pipes.lend()];
        assert_eq!(
            (two.each_ref().map(is_pipe), pipes.unused()),
            ([true; 2], 0)
        );
        pipes.limit(1);
        drop(two);
        assert_eq!(pipes.made.load(Ordering::Relaxed), 1);
        pipes.limit(0);
        assert_eq!(pipes.unused(), 0);
        assert!(!is_pipe(&pipes.lend()));
        assert_eq!((pipes.made.load(Ordering::Relaxed), pipes.unused()), (0, 1));
        assert_eq!(pipes.short.get(), 1, "nobody asked for a pipe");
        pipes.limit(1);
        assert!(is_pipe(&pipes.lend()));
    }
}
