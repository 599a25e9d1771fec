//! recvmmsg(2).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
};

use super::{BATCH, Control, Socket, check, empty_header, empty_name, from_sockaddr};

/// Buffer of one message, bytes: the longest that GRO joins.
const BUFFER_LEN: usize = 1 << 16;

/// A batch of received messages and its buffers.
pub struct Batch {
    headers: Box<[libc::mmsghdr]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    vectors: Box<[libc::iovec]>,
    bytes: Box<[u8]>,
    count: usize,
}

/// A received message: one datagram, or several of one source that the kernel joined (GRO).
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Offset in [`Batch::bytes`].
    pub offset: usize,
    /// Length, bytes.
    pub length: usize,
    /// Length of each datagram, bytes; the last one may be shorter.
    pub segment: usize,
    /// Source address.
    pub from: SocketAddr,
    /// Destination address.
    pub local: Option<IpAddr>,
}

impl Batch {
    /// An empty batch.
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
            bytes: vec![0; BATCH * BUFFER_LEN].into(),
            count: 0,
        }
    }

    /// Receives up to [`BATCH`] messages without waiting; returns their number.
    ///
    /// # Errors
    /// The error of the kernel; `WouldBlock` when there is no message.
    pub fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        self.count = 0;
        for (n, room) in self.bytes.chunks_exact_mut(BUFFER_LEN).enumerate() {
            self.vectors[n].iov_base = room.as_mut_ptr().cast();
            self.vectors[n].iov_len = BUFFER_LEN;
            let header = &mut self.headers[n].msg_hdr;
            header.msg_iov = &raw mut self.vectors[n];
            header.msg_iovlen = 1;
            header.msg_name = (&raw mut self.names[n]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_control = (&raw mut self.controls[n]).cast();
            header.msg_controllen = size_of::<Control>();
            header.msg_flags = 0;
        }
        // SAFETY: each header points to a name, a control buffer and one vector, with their
        // lengths; `self` owns them all, and they are not borrowed.
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

    /// Message `n` of the batch; `None` when it was truncated or has another address family.
    #[must_use]
    pub fn received(&self, n: usize) -> Option<Received> {
        let header = self.headers[..self.count].get(n)?;
        let length = header.msg_len as usize;
        let cut = libc::MSG_TRUNC | libc::MSG_CTRUNC;
        if header.msg_hdr.msg_flags & cut != 0 {
            return None;
        }
        let mut received = Received {
            offset: n * BUFFER_LEN,
            length,
            segment: length,
            from: from_sockaddr(&self.names[n])?,
            local: None,
        };
        // SAFETY: the kernel wrote `msg_controllen` bytes of control messages to the buffer of the
        // header, which lives as long as `self`; the macros stay within it.
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
                    // No other control message is enabled.
                    _ => {}
                }
                control = libc::CMSG_NXTHDR(&raw const header.msg_hdr, control);
            }
        }
        Some(received)
    }

    /// The buffers of all messages.
    #[must_use]
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}
