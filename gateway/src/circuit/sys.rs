//! UDP sockets in batches: recvmmsg(2) and sendmmsg(2), with GRO and GSO where the kernel has them (udp(7)). All unsafe code of the
//! circuits is here. After [`Batch::new`] and [`Outbox::new`] nothing is allocated.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::table::Path;

/// Messages that are received at once.
pub const BATCH: usize = 32;
/// Bytes of the buffer of one: GRO joins up to so many.
const ROOM: usize = 1 << 16;
/// Datagrams of one message: `UDP_MAX_SEGMENTS` of Linux before 6.9 (commit 1382e3b6a350).
const MAX_SEGMENTS: usize = 64;
/// Bytes of one message: what an IPv4 packet has room for.
const MAX_BYTES: usize = 65_507;
/// Bytes that a socket may hold in each direction; without CAP_NET_ADMIN as far as `net.core.rmem_max` and `wmem_max` allow.
const SOCKET_BUFFER: i32 = 8 << 20;

/// Room for the control messages of one message: a packet information of either family, and a segment size.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 128]);

/// A UDP socket of one family.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// Where it is bound.
    pub address: SocketAddr,
    /// Whether the kernel splits what is sent; until it says that it cannot.
    gso: bool,
    /// Whether the kernel joins what comes from one source.
    gro: bool,
}

impl Socket {
    /// Binds. With `shared`, others of the group may bind there too.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(address: SocketAddr, shared: bool) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => libc::AF_INET,
            SocketAddr::V6(_) => libc::AF_INET6,
        };
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointer is passed.
        let fd = check(unsafe { libc::socket(family, kind, 0) })?;
        // SAFETY: it was just opened and is nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if shared {
            set(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        }
        // Ends look for the largest datagram that passes by themselves: none is cut, and no ICMP message changes what is sent.
        if address.is_ipv4() {
            set(
                &fd,
                libc::SOL_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_PROBE,
            )?;
            set(&fd, libc::SOL_IP, libc::IP_PKTINFO, 1)?;
        } else {
            set(&fd, libc::SOL_IPV6, libc::IPV6_V6ONLY, 1)?;
            set(
                &fd,
                libc::SOL_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_PROBE,
            )?;
            set(&fd, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        }
        let buffers = [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
        ];
        for (forced, asked) in buffers {
            // Without CAP_NET_ADMIN, as much as everybody may have.
            if set(&fd, libc::SOL_SOCKET, forced, SOCKET_BUFFER).is_err() {
                set(&fd, libc::SOL_SOCKET, asked, SOCKET_BUFFER)?;
            }
        }
        // Linux 5.0; before it, each datagram comes by itself.
        let gro = set(&fd, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        // Linux 4.18.
        let gso = set(&fd, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        let (name, length) = to_sockaddr(&address);
        // SAFETY: `name` is an address of `length` bytes, and only read.
        check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const name).cast(), length) })?;
        let mut name = empty_name();
        let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        // SAFETY: `name` has room for `length` bytes.
        check(unsafe {
            libc::getsockname(fd.as_raw_fd(), (&raw mut name).cast(), &raw mut length)
        })?;
        let address = from_sockaddr(&name).ok_or(io::ErrorKind::InvalidData)?;
        tracing::debug!(%address, gro, gso, "a socket for circuits");
        Ok(Self {
            fd,
            address,
            gso,
            gro,
        })
    }

    /// Has the kernel join no more of what comes: sources have several circuits, and what is joined is given to the thread of the
    /// first one. Whether it did until now.
    pub fn separate(&mut self) -> bool {
        let did = std::mem::take(&mut self.gro);
        did && set(&self.fd, libc::SOL_UDP, libc::UDP_GRO, 0).is_ok()
    }

    /// Datagrams that came and that it had no room for, since it was bound; modulo 2³².
    #[must_use]
    pub fn overflowed(&self) -> u32 {
        // SK_MEMINFO_DROPS is the last one (include/uapi/linux/sock_diag.h, Linux 4.12).
        let mut values = [0u32; 9];
        let mut length = size_of_val(&values) as libc::socklen_t;
        // SAFETY: there is room for `length` bytes.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result < 0 { 0 } else { values[8] }
    }

    /// Has the kernel give each datagram to that one of the `members` sockets of the group, in the order in which they were bound,
    /// whose circuit it is: the low half of the id, modulo their number.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn steer(&self, members: u32) -> io::Result<()> {
        let instruction = |code: u32, jt, jf, k| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        };
        let word = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        // The packet begins with the datagram's payload (net/core/sock_reuseport.c, run_bpf_filter). A load beyond its end ends
        // the program with 0, the first member.
        let mut program = [
            instruction(word, 0, 0, 0),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 2, 0),
            // A message: the id that it is about.
            instruction(word, 0, 0, 16),
            instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
            instruction(word, 0, 0, 4),
            instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, members),
            instruction(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        ];
        let filter = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: `filter` and the program that it points to live until the call returns, which copies both.
        check(unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                (&raw const filter).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        })?;
        Ok(())
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn set(fd: &OwnedFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is an int, as long as the call takes, and only read.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    check(result).map(|_| ())
}

/// Waits for datagrams on sockets, or for a word.
#[derive(Debug)]
pub struct Poll {
    entries: Vec<libc::pollfd>,
}

impl Poll {
    /// For the word on `waker`, and these.
    #[must_use]
    pub fn new<'a>(waker: &OwnedFd, sockets: impl Iterator<Item = &'a Socket>) -> Self {
        let fds = std::iter::once(waker).chain(sockets.map(|socket| &socket.fd));
        let entry = |fd: &OwnedFd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        Self {
            entries: fds.map(entry).collect(),
        }
    }

    /// Waits at most so many milliseconds. A signal ends it too.
    pub fn wait(&mut self, milliseconds: i32) {
        let count = self.entries.len() as libc::nfds_t;
        // SAFETY: there are `count` entries.
        if unsafe { libc::poll(self.entries.as_mut_ptr(), count, milliseconds) } < 0 {
            self.entries.iter_mut().for_each(|entry| entry.revents = 0);
        }
    }

    /// Whether there is a word.
    #[must_use]
    pub fn is_woken(&self) -> bool {
        self.entries[0].revents != 0
    }

    /// Whether there is something on the socket of that place.
    #[must_use]
    pub fn is_ready(&self, socket: usize) -> bool {
        self.entries[socket + 1].revents != 0
    }
}

/// Messages that came, and room for them.
pub struct Batch {
    headers: Box<[libc::mmsghdr]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    vectors: Box<[libc::iovec]>,
    bytes: Box<[u8]>,
    count: usize,
}

/// A message that came: one datagram, or several of one source that the kernel joined.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Where it begins in [`Batch::bytes`].
    pub offset: usize,
    /// Its bytes.
    pub length: usize,
    /// Bytes of each of its datagrams; of the last one perhaps less.
    pub segment: usize,
    /// Its source.
    pub from: SocketAddr,
    /// The address that it was sent to.
    pub local: Option<IpAddr>,
}

impl Batch {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        let vector = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            headers: (0..BATCH).map(|_| empty_header()).collect(),
            names: vec![empty_name(); BATCH].into(),
            controls: vec![Control([0; 128]); BATCH].into(),
            vectors: vec![vector; BATCH].into(),
            bytes: vec![0; BATCH * ROOM].into(),
            count: 0,
        }
    }

    /// Takes what there is, up to a batch; how many messages.
    ///
    /// # Errors
    /// What the kernel says; `WouldBlock` when there is nothing.
    pub fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        self.count = 0;
        for (n, room) in self.bytes.chunks_exact_mut(ROOM).enumerate() {
            self.vectors[n].iov_base = room.as_mut_ptr().cast();
            self.vectors[n].iov_len = ROOM;
            let header = &mut self.headers[n].msg_hdr;
            header.msg_iov = &raw mut self.vectors[n];
            header.msg_iovlen = 1;
            header.msg_name = (&raw mut self.names[n]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_control = (&raw mut self.controls[n]).cast();
            header.msg_controllen = size_of::<Control>();
            header.msg_flags = 0;
        }
        // SAFETY: each of the headers points to a name, a control buffer and one vector of the lengths that it says, all of them
        // owned by `self` and borrowed by nobody else.
        let count = check(unsafe {
            libc::recvmmsg(
                socket.fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        })?;
        self.count = count as usize;
        Ok(self.count)
    }

    /// One of those that came; `None` when it was cut, or is of no family of ours.
    #[must_use]
    pub fn received(&self, n: usize) -> Option<Received> {
        let header = self.headers[..self.count].get(n)?;
        let length = header.msg_len as usize;
        let cut = libc::MSG_TRUNC | libc::MSG_CTRUNC;
        if header.msg_hdr.msg_flags & cut != 0 {
            return None;
        }
        let mut received = Received {
            offset: n * ROOM,
            length,
            segment: length,
            from: from_sockaddr(&self.names[n])?,
            local: None,
        };
        // SAFETY: the kernel wrote `msg_controllen` bytes of control messages to the buffer that the header points to, which lives
        // as long as `self`; the macros stay within it.
        unsafe {
            let mut control = libc::CMSG_FIRSTHDR(&raw const header.msg_hdr);
            while !control.is_null() {
                let data = libc::CMSG_DATA(control);
                match ((*control).cmsg_level, (*control).cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) => {
                        let size = data.cast::<libc::c_int>().read_unaligned();
                        received.segment = usize::try_from(size).unwrap_or(0);
                    }
                    (libc::SOL_IP, libc::IP_PKTINFO) => {
                        let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                        let local = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                        received.local = Some(local.into());
                    }
                    (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                        let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                        received.local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                    }
                    // Nothing else was asked for.
                    _ => {}
                }
                control = libc::CMSG_NXTHDR(&raw const header.msg_hdr, control);
            }
        }
        Some(received)
    }

    /// The bytes of all of them.
    #[must_use]
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

/// What waits to be sent through one socket, as places in a batch's bytes. Datagrams that follow one another to one address are
/// joined into one message, as GSO wants them: of one length, the last one perhaps shorter.
pub struct Outbox {
    messages: Vec<Outgoing>,
    /// Of all messages, in their order.
    spans: Vec<Span>,
    headers: Box<[libc::mmsghdr]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    vectors: Box<[libc::iovec]>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    offset: usize,
    length: usize,
}

#[derive(Clone, Copy, Debug)]
struct Outgoing {
    to: Path,
    first_span: usize,
    spans: usize,
    segment: usize,
    segments: usize,
    length: usize,
}

/// What became of what was to be sent: datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The kernel took them.
    pub sent: u64,
    /// It had no room for them.
    pub full: u64,
    /// It refused them: too long for the way, or no way.
    pub refused: u64,
}

impl Outbox {
    /// For at most so many datagrams.
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

    /// Whether there is room for no more.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.spans.len() == self.spans.capacity() || self.messages.len() == self.messages.capacity()
    }

    /// One datagram more, if there is room.
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

    /// Sends all of it, waiting for nobody, and is empty then.
    ///
    /// # Panics
    /// When a place is not within `bytes`.
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
                    // It is about the first one, the others were not tried.
                    let message = self.messages[first];
                    match error.kind() {
                        io::ErrorKind::Interrupted => continue,
                        io::ErrorKind::WouldBlock => result.full += message.segments as u64,
                        _ if message.segments > 1 => {
                            // A link that cannot compute checksums says so for all of them (EIO); another refusal is of this one.
                            if error.raw_os_error() == Some(libc::EIO) {
                                socket.gso = false;
                            }
                            self.one_by_one(socket, &message, bytes, &mut result);
                        }
                        _ => {
                            tracing::trace!(to = %message.to.remote, %error, "not sent");
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

    /// Points the headers to `count` messages from `first` on.
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

    /// The datagrams of one message, each by itself.
    fn one_by_one(&mut self, socket: &Socket, message: &Outgoing, bytes: &[u8], result: &mut Sent) {
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
        // SAFETY: the header was prepared for bytes that the caller still borrows; its name, control messages and vectors are
        // owned by `self`, of the lengths that it says, and only read.
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
    // SAFETY: the buffer is a `Control`, aligned for a header; `used` is a sum of CMSG_SPACEs, so a header fits there aligned, and
    // `space` bytes from there on are within it.
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

fn empty_header() -> libc::mmsghdr {
    // SAFETY: a header of zeros is one: no address, no vectors, no control messages.
    unsafe { std::mem::zeroed() }
}

fn empty_name() -> libc::sockaddr_storage {
    // SAFETY: a sockaddr_storage of zeros is one, of no family.
    unsafe { std::mem::zeroed() }
}

fn to_sockaddr(address: &SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    let mut name = empty_name();
    let length = match address {
        SocketAddr::V4(v4) => {
            let v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*v4.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage has the room and the alignment for every address.
            unsafe { (&raw mut name).cast::<libc::sockaddr_in>().write(v4) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let v6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut name).cast::<libc::sockaddr_in6>().write(v6) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (name, length as libc::socklen_t)
}

fn from_sockaddr(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is one, and there is room for every kind.
            let v4 = unsafe { (&raw const *name).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some((ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { (&raw const *name).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            // Flow labels are not part of who somebody is.
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, time::Duration};

    use super::*;

    fn pair(address: IpAddr) -> (Socket, UdpSocket, Path) {
        let socket = Socket::bind((address, 0).into(), false).expect("a socket");
        let far = UdpSocket::bind((address, 0)).expect("a socket");
        let patience = Some(Duration::from_secs(5));
        far.set_read_timeout(patience).expect("a deadline");
        let to = Path {
            socket: 0,
            local: Some(address),
            remote: far.local_addr().expect("an address"),
        };
        (socket, far, to)
    }

    const LOOPBACKS: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];

    #[test]
    fn what_is_joined_comes_apart_again() {
        let bytes: Vec<u8> = (0..=255).cycle().take(4000).collect();
        // Places and lengths; the bytes of some follow one another, of others not.
        let parts = [
            (0, 100),
            (100, 100),
            (300, 100),
            (400, 60),
            (460, 60),
            (2000, 90),
            (10, 90),
            (20, 1),
            (500, 1400),
        ];
        for address in LOOPBACKS {
            for way in ["joined", "not joined", "joined and refused"] {
                let (mut socket, far, to) = pair(address);
                socket.gso &= way != "not joined";
                let mut outbox = Outbox::new(64);
                for (offset, length) in parts {
                    outbox.push(&socket, &to, offset, length);
                }
                let joined: Vec<usize> = outbox.messages.iter().map(|m| m.segments).collect();
                if socket.gso {
                    assert_eq!(joined, [4, 1, 3, 1]);
                }
                let sent = if way == "joined and refused" {
                    let mut sent = Sent::default();
                    for message in outbox.messages.clone() {
                        outbox.one_by_one(&socket, &message, &bytes, &mut sent);
                    }
                    sent
                } else {
                    outbox.flush(&mut socket, &bytes)
                };
                let all = Sent {
                    sent: parts.len() as u64,
                    ..Sent::default()
                };
                assert_eq!(sent, all, "{way}");
                let mut room = [0; 2048];
                for (offset, length) in parts {
                    let (got, from) = far.recv_from(&mut room).expect("a datagram");
                    assert_eq!(&room[..got], &bytes[offset..offset + length], "{way}");
                    assert_eq!(from, socket.address);
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_sent_is_counted_and_holds_up_nobody() {
        let (mut socket, far, to) = pair(LOOPBACKS[0]);
        let nobody = Path {
            remote: ([127, 0, 0, 1], 0).into(),
            ..to
        };
        let elsewhere = Path {
            local: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
            ..to
        };
        let bytes = [5; 100];
        let mut outbox = Outbox::new(8);
        for path in [nobody, to, nobody, nobody, elsewhere, to] {
            outbox.push(&socket, &path, 0, 50);
        }
        let sent = outbox.flush(&mut socket, &bytes);
        assert_eq!((sent.sent, sent.refused, sent.full), (2, 4, 0));
        let mut room = [0; 100];
        for _ in 0..2 {
            assert_eq!(far.recv(&mut room).expect("a datagram"), 50);
        }
        assert!(socket.gso);
        // Beyond its room it takes no more.
        for _ in 0..20 {
            outbox.push(&socket, &to, 0, 50);
        }
        assert!(
            outbox.spans.capacity() >= 8 && outbox.messages.len() <= outbox.messages.capacity()
        );
    }

    #[test]
    fn a_batch_says_where_each_came_from_and_to() {
        for address in LOOPBACKS {
            let (socket, far, _) = pair(address);
            far.connect(socket.address).expect("an address");
            for word in [&b"one"[..], b"", b"three"] {
                far.send(word).expect("send");
            }
            let mut batch = Batch::new();
            assert_eq!(batch.receive(&socket).expect("three"), 3);
            let lengths = [3, 0, 5];
            for (n, length) in lengths.into_iter().enumerate() {
                let received = batch.received(n).expect("whole");
                assert_eq!(received.length, length);
                assert_eq!(received.from, far.local_addr().expect("an address"));
                assert_eq!(received.local, Some(address));
            }
            assert!(batch.received(3).is_none());
            let offset = batch.received(2).expect("whole").offset;
            assert_eq!(&batch.bytes()[offset..offset + 5], b"three");
            let nothing = batch.receive(&socket).expect_err("nothing");
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
            assert!(batch.received(0).is_none());
        }
    }
}
