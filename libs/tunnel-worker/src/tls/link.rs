//! One TLS connection on a non-blocking socket: bytes in and out, and the handshake.
//!
//! ```text
//!   socket ─▶ buffer ─▶ rustls ─▶ Decoder ─▶ frames         fill
//!   socket ◀─ rustls ◀─ writer ◀─ frames                    flush
//! ```

use std::{
    io::{self, ErrorKind, Read as _},
    net::TcpStream,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use gateway_client::{
    stream::{Decoder, EXPORTER_LABEL, Frame, Malformed},
    wire::{MESSAGE_BYTES, Tag},
};
use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{setsockopt, sockopt},
};
use service::restore::Restores;

use super::{
    close_reason::CloseReason,
    thread_control::{StopReason, ThreadControl},
};

/// Bytes read from the socket at a time, at most.
const READ: usize = 64 << 10;
/// Bytes that the kernel holds unsent at most (`TCP_NOTSENT_LOWAT`): more would only add delay.
const MAX_UNSENT: libc::c_int = 128 << 10;
/// How long data may stay unacknowledged (`TCP_USER_TIMEOUT`), milliseconds.
const USER_TIMEOUT: u32 = 20_000;
/// TCP keep-alive: idle time in seconds, interval in seconds, probes.
const KEEPALIVE: (u32, u32, u32) = (10, 5, 3);

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("too slow")]
    Slow,
    #[error("stopped")]
    Stopped,
    #[error(transparent)]
    Ended(#[from] CloseReason),
}

/// Result of [`TlsLink::fill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadProgress {
    /// There may be more at once.
    More,
    /// There is nothing until the socket is readable.
    Blocked,
}

/// A TLS connection.
pub(super) struct TlsLink {
    pub socket: TcpStream,
    pub tls: rustls::Connection,
    pub decoder: Decoder,
    /// The hello was sent: an attempt that is given up now would leave the other end with a dead
    /// connection.
    pub hello_sent: bool,
    /// Bytes were received since this was last reset.
    pub received: bool,
    /// Bytes that the socket took.
    pub written: u64,
    restores: Restores,
    /// Restores before the connection was made.
    restored: u64,
    buffer: Box<[u8]>,
    /// The part of `buffer` that is still to be given to TLS.
    unread: (usize, usize),
}

impl TlsLink {
    /// Wraps a non-blocking socket. Before the hello, frames longer than a hello are refused.
    pub fn new(socket: TcpStream, mut tls: rustls::Connection) -> Self {
        // The caller limits the bytes that it hands to TLS.
        tls.set_buffer_limit(None);
        let restores = Restores::watched();
        Self {
            socket,
            tls,
            decoder: Decoder::new(MESSAGE_BYTES as u16),
            hello_sent: false,
            received: false,
            written: 0,
            restored: restores.count(),
            restores,
            buffer: vec![0; READ].into_boxed_slice(),
            unread: (0, 0),
        }
    }

    /// Moves received bytes one step towards the decoder.
    pub fn fill(&mut self) -> Result<ReadProgress, CloseReason> {
        let space = self.decoder.space();
        match self.tls.reader().read(space) {
            // close_notify.
            Ok(0) if !space.is_empty() => return Err(CloseReason::ByPeer),
            Ok(bytes) => {
                self.decoder.filled(bytes);
                return Ok(ReadProgress::More);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(CloseReason::Lost(error)),
        }
        if self.unread.0 == self.unread.1 {
            match self.socket.read(&mut self.buffer) {
                Ok(0) => return Err(CloseReason::Cut),
                Ok(bytes) => {
                    self.received = true;
                    self.unread = (0, bytes);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(ReadProgress::Blocked);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    return Ok(ReadProgress::More);
                }
                Err(error) => return Err(CloseReason::Lost(error)),
            }
        }
        let mut wire = &self.buffer[self.unread.0..self.unread.1];
        let taken = self.tls.read_tls(&mut wire).map_err(CloseReason::Lost)?;
        self.unread.0 += taken;
        match self.tls.process_new_packets() {
            Ok(_) => Ok(ReadProgress::More),
            Err(error) => {
                // The alert that reports the error.
                let _ = self.flush();
                Err(CloseReason::Tls(error))
            }
        }
    }

    /// Sends what TLS has. Returns whether the socket is full. Nothing is sent once the machine was
    /// restored from a snapshot: TLS would use its nonces a second time.
    pub fn flush(&mut self) -> Result<bool, CloseReason> {
        while self.tls.wants_write() {
            if self.restores.count() != self.restored {
                return Err(CloseReason::Restored);
            }
            match self.tls.write_tls(&mut self.socket) {
                Ok(bytes) => self.written += bytes as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(CloseReason::Lost(error)),
            }
        }
        Ok(false)
    }

    /// Of the bytes that the socket took, how many the other end of TCP has acknowledged: a
    /// gateway, if one is on the path.
    pub fn acknowledged(&self) -> u64 {
        let mut queued: libc::c_int = 0;
        // SAFETY: the request writes an int, and one is passed that lives long enough.
        let asked =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
        let queued = if asked == 0 { queued } else { 0 };
        self.written
            .saturating_sub(u64::try_from(queued).unwrap_or(0))
    }

    /// Reads and writes until `done` returns a value, at most until `deadline`.
    fn until<T>(
        &mut self,
        control: &ThreadControl,
        deadline: Instant,
        mut done: impl FnMut(&mut Self) -> Result<Option<T>, CloseReason>,
    ) -> Result<T, HandshakeError> {
        loop {
            let blocked = self.flush()?;
            if let Some(done) = done(self)? {
                return Ok(done);
            }
            match control.stop_reason() {
                None => {}
                Some(StopReason::GiveUp) if self.hello_sent => {}
                Some(_) => return Err(HandshakeError::Stopped),
            }
            if Instant::now() >= deadline {
                return Err(HandshakeError::Slow);
            }
            if self.fill()? == ReadProgress::Blocked && (blocked || !self.tls.wants_write()) {
                let write = if blocked {
                    PollFlags::POLLOUT
                } else {
                    PollFlags::empty()
                };
                control.wait(&self.socket, PollFlags::POLLIN | write, Some(deadline));
            }
        }
    }

    /// Performs the TLS handshake.
    pub fn handshake(
        &mut self,
        control: &ThreadControl,
        deadline: Instant,
    ) -> Result<(), HandshakeError> {
        self.until(control, deadline, |link| {
            Ok((!link.tls.is_handshaking()).then_some(()))
        })
    }

    /// Waits for the first frame, which is a hello or its answer.
    pub fn first_frame(
        &mut self,
        control: &ThreadControl,
        deadline: Instant,
    ) -> Result<[u8; MESSAGE_BYTES], HandshakeError> {
        let frame = self.until(control, deadline, |link| {
            match link.decoder.next_frame()? {
                None => Ok(None),
                Some(Frame::Datagram(frame)) => frame.try_into().map(Some).map_err(|_| {
                    CloseReason::Malformed(Malformed::TooLong {
                        length: frame.len() as u16,
                        longest: MESSAGE_BYTES as u16,
                    })
                }),
                Some(Frame::Control(control)) => {
                    Err(Malformed::UnknownControl(control as u8).into())
                }
            }
        })?;
        self.decoder.allow(u16::MAX);
        Ok(frame)
    }

    /// Keying material of this connection (RFC 8446 section 7.5), which binds a hello to it.
    pub fn tag(&self) -> Result<Tag, CloseReason> {
        self.tls
            .export_keying_material([0; 16], EXPORTER_LABEL, None)
            .map(Tag)
            .map_err(CloseReason::Tls)
    }

    /// Sends `close_notify`, if the socket has room.
    pub fn send_close_notify(&mut self) {
        self.tls.send_close_notify();
        let _ = self.flush();
    }
}

/// Sets a socket's options: no delay, bounded unsent data, bounded time without acknowledgement.
pub(super) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)?;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &KEEPALIVE.0)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &KEEPALIVE.1)?;
    setsockopt(socket, sockopt::TcpKeepCount, &KEEPALIVE.2)?;
    setsockopt(socket, sockopt::TcpUserTimeout, &USER_TIMEOUT)?;
    let unsent = MAX_UNSENT;
    // SAFETY: the option is an int, and one is passed that lives long enough.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const unsent).cast(),
            size_of_val(&unsent) as libc::socklen_t,
        )
    };
    Errno::result(set)?;
    Ok(())
}

/// The moment this much later.
pub(super) fn within(time: Duration) -> Instant {
    Instant::now() + time
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn nothing_is_sent_after_a_restore() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let connect = || {
            let near = TcpStream::connect(listener.local_addr().expect("an address"));
            let near = near.and_then(|near| near.set_nonblocking(true).map(|()| near));
            let far = listener.accept().expect("a connection").0;
            far.set_nonblocking(true).expect("an option");
            let config = super::super::config::client(&[]);
            let name = "provider.example".try_into().expect("a name");
            let tls = rustls::ClientConnection::new(config.expect("a config"), name);
            let mut link = TlsLink::new(near.expect("a socket"), tls.expect("a client").into());
            link.restores = Restores::default();
            link.restored = 0;
            (link, far)
        };
        let (mut link, mut far) = connect();
        assert!(!link.flush().expect("sent"));
        let mut bytes = [0; 4096];
        assert!(far.read(&mut bytes).expect("a TLS hello") > 100);

        let (mut link, mut far) = connect();
        link.restores.note();
        assert!(matches!(link.flush(), Err(CloseReason::Restored)));
        link.send_close_notify();
        let error = far.read(&mut bytes).expect_err("nothing was sent");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}
