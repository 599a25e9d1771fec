//! UDP sockets in batches: recvmmsg(2) and sendmmsg(2), with GRO and GSO where the kernel has them
//! (udp(7)). The unsafe code of the circuits is here. After [`Batch::new`] and [`Outbox::new`]
//! nothing is allocated.
//!
//! ```text
//!   Poll ─▶ Batch::receive ─▶ Received: offset, length, source ─▶ the table decides
//!                └── bytes ──────────────────────────────────▶ Outbox::push, flush
//! ```

mod poll;
mod receive;
mod send;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

pub use self::{
    poll::Poll,
    receive::Batch,
    send::{Outbox, Sent},
};
use super::table::Path;

/// Messages of one system call.
pub const BATCH: usize = 32;
/// Buffer of a socket in each direction, bytes. Without CAP_NET_ADMIN the kernel limits it to
/// `net.core.rmem_max` and `wmem_max`.
const SOCKET_BUFFER: i32 = 8 << 20;

/// Buffer for the control messages of one message: packet information of either family, and a
/// segment size.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 128]);

/// A UDP socket of one family.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// The address with the port in use.
    pub address: SocketAddr,
    /// Whether the kernel splits messages into datagrams (GSO); false after its first refusal.
    gso: bool,
    /// Whether the kernel joins datagrams of one source into messages (GRO).
    gro: bool,
}

impl Socket {
    /// Binds a socket. Other sockets of this user may bind to the address, and form a group, or to
    /// one that overlaps it.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => libc::AF_INET,
            SocketAddr::V6(_) => libc::AF_INET6,
        };
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointer is passed.
        let fd = check(unsafe { libc::socket(family, kind, 0) })?;
        // SAFETY: the descriptor was just opened and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        set(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        // The ends discover the path MTU themselves: never fragment, and ignore ICMP messages about
        // it.
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
            // Without CAP_NET_ADMIN the usual limit applies.
            if set(&fd, libc::SOL_SOCKET, forced, SOCKET_BUFFER).is_err() {
                set(&fd, libc::SOL_SOCKET, asked, SOCKET_BUFFER)?;
            }
        }
        // Since Linux 5.0. Older kernels join no datagrams.
        let gro = set(&fd, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        // Since Linux 4.18.
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
        tracing::debug!(%address, gro, gso, "circuit socket bound");
        Ok(Self {
            fd,
            address,
            gso,
            gro,
        })
    }

    /// Switches GRO off, because a source has circuits of several threads: the kernel gives a
    /// joined message to the thread of its first datagram. It is an option of the socket, so for
    /// all its sources. Returns whether GRO was on.
    pub fn separate(&mut self) -> bool {
        let did = std::mem::take(&mut self.gro);
        did && set(&self.fd, libc::SOL_UDP, libc::UDP_GRO, 0).is_ok()
    }

    /// Datagrams that the kernel dropped because the receive buffer was full, modulo 2³².
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

    /// Makes the kernel deliver each datagram to the socket of its circuit: of the `members`
    /// sockets of the group, in the order in which they were bound, the one at the low half of the
    /// circuit ID modulo `members`.
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
        // The packet begins with the payload of the datagram (net/core/sock_reuseport.c,
        // run_bpf_filter). A load beyond its end ends the program with 0, the first member.
        let mut program = [
            instruction(word, 0, 0, 0),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 2, 0),
            // A message: the low half of its circuit ID.
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
        // SAFETY: `filter` and the program that it points to live until the call returns, which
        // copies both.
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

fn empty_header() -> libc::mmsghdr {
    // SAFETY: zeros are a valid header: no address, no vectors, no control messages.
    unsafe { std::mem::zeroed() }
}

fn empty_name() -> libc::sockaddr_storage {
    // SAFETY: zeros are a valid address without a family.
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
            // SAFETY: a sockaddr_storage has size and alignment for every address.
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
            // SAFETY: the family gives the type, and every type fits.
            let v4 = unsafe { (&raw const *name).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some((ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { (&raw const *name).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            // The flow label is not part of the identity of a sender.
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
