//! One TLS connection on a socket that does not block: bytes in and out, and waiting.

use std::{
    io::{self, ErrorKind, Read as _},
    net::TcpStream,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use gateway_client::{
    stream::{Decoder, EXPORTER_LABEL, Frame, Malformed},
    wire::{MESSAGE_BYTES, Tag},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{setsockopt, sockopt},
    },
};

use super::carrier::Closed;

/// Bytes read from the socket at a time.
const READ: usize = 64 << 10;
/// Bytes that the kernel holds back unsent at most: more would only make datagrams old.
const UNSENT: libc::c_int = 128 << 10;
/// How long what was sent may stay unacknowledged, milliseconds.
const USER_TIMEOUT: u32 = 20_000;
/// Silence after which the other side's kernel is asked, between questions, and questions: seconds, seconds, a number.
const KEEPALIVE: (u32, u32, u32) = (10, 5, 3);

/// Why a thread is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Order {
    Close = 1,
    Replaced,
    Removed,
    Crowded,
    /// Of an attempt: unless its hello was said.
    GiveUp,
}

/// How a connection's thread is told to end, and woken.
#[derive(Debug)]
pub(super) struct Control {
    order: AtomicU8,
    pub event: Arc<EventFd>,
    /// Whether the thread sleeps and is to be woken for datagrams.
    pub sleeps: Arc<AtomicBool>,
}

impl Control {
    pub fn new() -> io::Result<Arc<Self>> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Self {
            order: AtomicU8::new(0),
            event: Arc::new(event),
            sleeps: Arc::default(),
        }))
    }

    /// Tells it to end. The first order stays.
    pub fn order(&self, order: Order) {
        let _ = self.order.compare_exchange(0, order as u8, SeqCst, SeqCst);
        let _ = self.event.write(1);
    }

    pub fn ordered(&self) -> Option<Order> {
        match self.order.load(SeqCst) {
            0 => None,
            2 => Some(Order::Replaced),
            3 => Some(Order::Removed),
            4 => Some(Order::Crowded),
            5 => Some(Order::GiveUp),
            _ => Some(Order::Close),
        }
    }

    /// UnresolvedPacket until the socket is ready for one of these, an order or datagrams; no longer than until `deadline`.
    pub fn wait(&self, socket: &TcpStream, events: PollFlags, deadline: Option<Instant>) {
        let mut fds = [
            PollFd::new(self.event.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), events),
        ];
        self.poll(&mut fds, deadline);
    }

    /// UnresolvedPacket until one of the sockets may be written to or an order comes; no longer than until `deadline`.
    pub fn wait_for_one<'s>(
        &self,
        sockets: impl Iterator<Item = &'s TcpStream>,
        deadline: Instant,
    ) {
        let mut fds = vec![PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
        fds.extend(sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLOUT)));
        self.poll(&mut fds, Some(deadline));
    }

    /// The first of the descriptors is that of orders.
    fn poll(&self, fds: &mut [PollFd<'_>], deadline: Option<Instant>) {
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a sleep of no time would be a spin.
            PollTimeout::from(u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX))
        });
        // EINTR and its like: the caller looks again anyway.
        let _ = poll(fds, timeout);
        if fds.first().and_then(PollFd::any).unwrap_or(false) {
            let _ = self.event.read();
        }
    }
}

/// Why there is no connection with both ends known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unmade {
    #[error("too slow")]
    Slow,
    #[error("ordered to end")]
    Ordered,
    #[error(transparent)]
    Ended(#[from] Closed),
}

/// What [`Link::fill`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// There may be more at once.
    More,
    /// There is nothing until the socket is readable.
    Dry,
}

/// A TLS connection.
pub(super) struct Link {
    pub socket: TcpStream,
    pub tls: rustls::Connection,
    pub decoder: Decoder,
    /// The hello was said: to give up now would leave the other end with a connection that is none.
    pub greeted: bool,
    /// Bytes came from the socket since this was last looked at.
    pub came: bool,
    /// Bytes that the socket took.
    pub written: u64,
    /// What was read from the socket: `read.0..read.1` is still to be given to TLS.
    room: Box<[u8]>,
    read: (usize, usize),
}

impl Link {
    /// Around a socket that does not block. Until the hello no frame but one of its length is taken.
    pub fn new(socket: TcpStream, mut tls: rustls::Connection) -> Self {
        // What is given to TLS to be sent is bounded by who gives it.
        tls.set_buffer_limit(None);
        Self {
            socket,
            tls,
            decoder: Decoder::new(MESSAGE_BYTES as u16),
            greeted: false,
            came: false,
            written: 0,
            room: vec![0; READ].into_boxed_slice(),
            read: (0, 0),
        }
    }

    /// Moves what came one step towards the decoder.
    pub fn fill(&mut self) -> Result<Filled, Closed> {
        let space = self.decoder.space();
        match self.tls.reader().read(space) {
            // The other side said goodbye.
            Ok(0) if !space.is_empty() => return Err(Closed::ByPeer),
            Ok(bytes) => {
                self.decoder.filled(bytes);
                return Ok(Filled::More);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(Closed::Lost(error)),
        }
        if self.read.0 == self.read.1 {
            match self.socket.read(&mut self.room) {
                Ok(0) => return Err(Closed::Cut),
                Ok(bytes) => {
                    self.came = true;
                    self.read = (0, bytes);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Filled::Dry),
                Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Filled::More),
                Err(error) => return Err(Closed::Lost(error)),
            }
        }
        let mut wire = &self.room[self.read.0..self.read.1];
        let taken = self.tls.read_tls(&mut wire).map_err(Closed::Lost)?;
        self.read.0 += taken;
        match self.tls.process_new_packets() {
            Ok(_) => Ok(Filled::More),
            Err(error) => {
                // The alert that says so.
                let _ = self.flush();
                Err(Closed::Tls(error))
            }
        }
    }

    /// Sends what TLS has; whether the socket has no room for all of it.
    pub fn flush(&mut self) -> Result<bool, Closed> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(bytes) => self.written += bytes as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Closed::Lost(error)),
            }
        }
        Ok(false)
    }

    /// Of the bytes that the socket took, how many TCP's next end has acknowledged: a gateway's, if one is on the way.
    pub fn acknowledged(&self) -> u64 {
        let mut queued: libc::c_int = 0;
        // SAFETY: the request writes an int, and one is passed that lives long enough.
        let asked =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
        let queued = if asked == 0 { queued } else { 0 };
        self.written
            .saturating_sub(u64::try_from(queued).unwrap_or(0))
    }

    /// Goes on until `done` says something, in time.
    pub fn until<T>(
        &mut self,
        control: &Control,
        deadline: Instant,
        mut done: impl FnMut(&mut Self) -> Result<Option<T>, Closed>,
    ) -> Result<T, Unmade> {
        loop {
            let blocked = self.flush()?;
            if let Some(done) = done(self)? {
                return Ok(done);
            }
            match control.ordered() {
                None => {}
                Some(Order::GiveUp) if self.greeted => {}
                Some(_) => return Err(Unmade::Ordered),
            }
            if Instant::now() >= deadline {
                return Err(Unmade::Slow);
            }
            if self.fill()? == Filled::Dry && (blocked || !self.tls.wants_write()) {
                let write = if blocked {
                    PollFlags::POLLOUT
                } else {
                    PollFlags::empty()
                };
                control.wait(&self.socket, PollFlags::POLLIN | write, Some(deadline));
            }
        }
    }

    /// Until TLS is spoken.
    pub fn handshake(&mut self, control: &Control, deadline: Instant) -> Result<(), Unmade> {
        self.until(control, deadline, |link| {
            Ok((!link.tls.is_handshaking()).then_some(()))
        })
    }

    /// Until the first frame, which is a message.
    pub fn first(
        &mut self,
        control: &Control,
        deadline: Instant,
    ) -> Result<[u8; MESSAGE_BYTES], Unmade> {
        let frame = self.until(control, deadline, |link| {
            match link.decoder.next_frame()? {
                None => Ok(None),
                Some(Frame::Datagram(frame)) => frame.try_into().map(Some).map_err(|_| {
                    Closed::Malformed(Malformed::TooLong {
                        length: frame.len() as u16,
                        longest: MESSAGE_BYTES as u16,
                    })
                }),
                Some(Frame::Word(word)) => Err(Malformed::NoWord(word as u8).into()),
            }
        })?;
        self.decoder.allow(u16::MAX);
        Ok(frame)
    }

    /// What only the two ends of this connection know.
    pub fn tag(&self) -> Result<Tag, Closed> {
        self.tls
            .export_keying_material([0; 16], EXPORTER_LABEL, None)
            .map(Tag)
            .map_err(Closed::Tls)
    }

    /// Says goodbye, as far as the socket has room.
    pub fn goodbye(&mut self) {
        self.tls.send_close_notify();
        let _ = self.flush();
    }
}

/// Sets a socket up: at once, not too far ahead, and not for ever.
pub(super) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)?;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &KEEPALIVE.0)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &KEEPALIVE.1)?;
    setsockopt(socket, sockopt::TcpKeepCount, &KEEPALIVE.2)?;
    setsockopt(socket, sockopt::TcpUserTimeout, &USER_TIMEOUT)?;
    let unsent = UNSENT;
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

/// From now on.
pub(super) fn within(time: Duration) -> Instant {
    Instant::now() + time
}
