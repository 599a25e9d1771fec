//! sendmmsg(2), with segmentation by the kernel (GSO).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
};

use super::{BATCH, Control, Path, Socket, check, empty_header, empty_name, to_sockaddr};

/// Datagrams of one message: `UDP_MAX_SEGMENTS` of Linux before 6.9 (commit 1382e3b6a350).
const MAX_SEGMENTS: usize = 64;
/// Longest message, bytes: the payload of the longest IPv4 packet.
const MAX_BYTES: usize = 65_507;

/// Datagrams to be sent through one socket, as ranges of a batch's bytes. Consecutive datagrams to
/// one address become one message for GSO: all of one length, the last one perhaps shorter.
pub struct Outbox {
    pub(super) messages: Vec<Outgoing>,
    /// The byte ranges of all messages, in order.
    pub(super) spans: Vec<Span>,
    headers: Box<[libc::mmsghdr]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    vectors: Box<[libc::iovec]>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    offset: usize,
    length: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing {
    to: Path,
    first_span: usize,
    spans: usize,
    segment: usize,
    pub(super) segments: usize,
    length: usize,
}

/// Numbers of datagrams, by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The kernel accepted the datagram.
    pub sent: u64,
    /// The send buffer was full.
    pub full: u64,
    /// The kernel refused the datagram: too long for the link, or no route.
    pub refused: u64,
}

impl Outbox {
    /// An outbox for at most `datagrams` at once.
    #[must_use]
    pub fn new(datagrams: usize) -> Self {
        let vector = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            messages: Vec::with_capacity(datagrams),
            spans: Vec::with_capacity(datagrams),
            headers: (0..BATCH).map(|_| empty_header()).collect(),
            names: vec![empty_name(); BATCH].into(),
            controls: vec![Control([0; 128]); BATCH].into(),
            vectors: vec![vector; BATCH * MAX_SEGMENTS].into(),
        }
    }

    /// Whether no further datagram fits.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.spans.len() == self.spans.capacity() || self.messages.len() == self.messages.capacity()
    }

    /// Adds a datagram, unless the outbox is full.
    pub fn push(&mut self, socket: &Socket, to: &Path, offset: usize, length: usize) {
        if self.is_full() {
            return;
        }
        if let Some(last) = self.messages.last_mut()
            && socket.gso
            && last.to == *to
            && last.length == last.segment * last.segments
            && length <= last.segment
            && length > 0
            && last.segments < MAX_SEGMENTS
            && last.length + length <= MAX_BYTES
        {
            last.segments += 1;
            last.length += length;
            match self.spans.last_mut() {
                Some(span) if span.offset + span.length == offset => span.length += length,
                Some(_) | None => {
                    last.spans += 1;
                    self.spans.push(Span { offset, length });
                }
            }
            return;
        }
        self.messages.push(Outgoing {
            to: *to,
            first_span: self.spans.len(),
            spans: 1,
            segment: length,
            segments: 1,
            length,
        });
        self.spans.push(Span { offset, length });
    }

    /// Sends all datagrams without waiting, and empties the outbox.
    ///
    /// # Panics
    /// When a range is not within `bytes`.
    pub fn flush(&mut self, socket: &mut Socket, bytes: &[u8]) -> Sent {
        let mut result = Sent::default();
        let mut first = 0;
        while first < self.messages.len() {
            let count = (self.messages.len() - first).min(BATCH);
            self.prepare(first, count, bytes);
            // SAFETY: as for `send_message`, of the first `count` headers.
            let sent = check(unsafe {
                libc::sendmmsg(
                    socket.fd.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    count as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            });
            match sent {
                Ok(sent) => {
                    for message in &self.messages[first..first + sent as usize] {
                        result.sent += message.segments as u64;
                    }
                    first += sent as usize;
                }
                Err(error) => {
                    // The error is about the first message; the kernel did not try the others.
                    let message = self.messages[first];
                    match error.kind() {
                        io::ErrorKind::Interrupted => continue,
                        io::ErrorKind::WouldBlock => result.full += message.segments as u64,
                        _ if message.segments > 1 => {
                            // EIO: the link cannot compute checksums, so GSO never works. Other
                            // errors are about this message only.
                            if error.raw_os_error() == Some(libc::EIO) {
                                socket.gso = false;
                            }
                            self.one_by_one(socket, &message, bytes, &mut result);
                        }
                        _ => {
                            tracing::trace!(to = %message.to.remote, %error, "datagram not sent");
                            result.refused += 1;
                        }
                    }
                    first += 1;
                }
            }
        }
        self.messages.clear();
        self.spans.clear();
        result
    }

    /// Points the headers to `count` messages, beginning at `first`.
    fn prepare(&mut self, first: usize, count: usize, bytes: &[u8]) {
        let mut vectors = 0;
        for n in 0..count {
            let message = self.messages[first + n];
            let start = vectors;
            let spans = message.first_span..message.first_span + message.spans;
            for span in &self.spans[spans] {
                let part = &bytes[span.offset..span.offset + span.length];
                self.vectors[vectors].iov_base = part.as_ptr().cast_mut().cast();
                self.vectors[vectors].iov_len = part.len();
                vectors += 1;
            }
            let segment = (message.segments > 1).then_some(message.segment);
            self.address(n, start, vectors - start, &message.to, segment);
        }
    }

    /// Points header `n` to vectors and an address.
    fn address(&mut self, n: usize, start: usize, count: usize, to: &Path, segment: Option<usize>) {
        let (name, name_length) = to_sockaddr(&to.remote);
        self.names[n] = name;
        let header = &mut self.headers[n].msg_hdr;
        header.msg_iov = &raw mut self.vectors[start];
        header.msg_iovlen = count;
        header.msg_name = (&raw mut self.names[n]).cast();
        header.msg_namelen = name_length;
        header.msg_control = (&raw mut self.controls[n]).cast();
        header.msg_controllen = 0;
        header.msg_flags = 0;
        match (to.local, to.remote) {
            (Some(IpAddr::V4(local)), _) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from(local).to_be(),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                control(header, libc::SOL_IP, libc::IP_PKTINFO, info);
            }
            (Some(IpAddr::V6(local)), SocketAddr::V6(remote)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: local.octets(),
                    },
                    ipi6_ifindex: remote.scope_id() as _,
                };
                control(header, libc::SOL_IPV6, libc::IPV6_PKTINFO, info);
            }
            (Some(IpAddr::V6(_)) | None, _) => {}
        }
        if let Some(segment) = segment {
            control(header, libc::SOL_UDP, libc::UDP_SEGMENT, segment as u16);
        }
        if header.msg_controllen == 0 {
            header.msg_control = std::ptr::null_mut();
        }
    }

    /// Sends the datagrams of one message one by one.
    pub(super) fn one_by_one(
        &mut self,
        socket: &Socket,
        message: &Outgoing,
        bytes: &[u8],
        result: &mut Sent,
    ) {
        for n in message.first_span..message.first_span + message.spans {
            let span = self.spans[n];
            for part in bytes[span.offset..span.offset + span.length].chunks(message.segment) {
                self.vectors[0].iov_base = part.as_ptr().cast_mut().cast();
                self.vectors[0].iov_len = part.len();
                self.address(0, 0, 1, &message.to, None);
                match self.send_message(socket) {
                    Ok(()) => result.sent += 1,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => result.full += 1,
                    Err(_) => result.refused += 1,
                }
            }
        }
    }

    fn send_message(&self, socket: &Socket) -> io::Result<()> {
        let header = &raw const self.headers[0].msg_hdr;
        // SAFETY: the header was prepared for bytes that the caller still borrows; `self` owns its
        // name, control messages and vectors, with their lengths; the kernel only reads them.
        let sent = unsafe { libc::sendmsg(socket.fd.as_raw_fd(), header, libc::MSG_DONTWAIT) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// Adds a control message to a header whose buffer is a [`Control`].
fn control<T>(header: &mut libc::msghdr, level: i32, kind: i32, value: T) {
    let length = size_of::<T>() as libc::c_uint;
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
    let (space, whole) = unsafe { (libc::CMSG_SPACE(length), libc::CMSG_LEN(length)) };
    let used = header.msg_controllen;
    assert!(
        used + space as usize <= size_of::<Control>(),
        "room for all"
    );
    // SAFETY: the buffer is a `Control`, aligned for a header; `used` is a sum of CMSG_SPACEs, so a
    // header is aligned there, and `space` bytes from there are within the buffer.
    unsafe {
        let at = header
            .msg_control
            .cast::<u8>()
            .add(used)
            .cast::<libc::cmsghdr>();
        (*at).cmsg_level = level;
        (*at).cmsg_type = kind;
        (*at).cmsg_len = whole as _;
        libc::CMSG_DATA(at).cast::<T>().write_unaligned(value);
    }
    header.msg_controllen = used + space as usize;
}
