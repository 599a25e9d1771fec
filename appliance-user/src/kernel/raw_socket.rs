//! Sockets of one interface: Ethernet frames, and whole IP packets.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not open raw sockets.
    #[error(
        "{operation} on interface index {ifindex}: not permitted; run as root or with CAP_NET_RAW"
    )]
    NotPermitted {
        /// The system call.
        operation: &'static str,
        /// The interface.
        ifindex: u32,
    },
    /// The interface does not exist, or no longer exists.
    #[error(
        "{operation}: no interface with index {ifindex}; check that the configured interface exists"
    )]
    NoInterface {
        /// The system call.
        operation: &'static str,
        /// The interface.
        ifindex: u32,
    },
    /// Another error of a system call.
    #[error("{operation} on interface index {ifindex}: {source}")]
    System {
        /// The system call.
        operation: &'static str,
        /// The interface.
        ifindex: u32,
        /// The kernel's error.
        source: io::Error,
    },
}

/// An `AF_PACKET` socket bound to one interface.
///
/// A socket that only sends has protocol 0: the kernel delivers nothing to it, so it costs the
/// receive path nothing (packet(7)).
/// Frames pass the interface's queueing discipline (`PACKET_QDISC_BYPASS` stays off), so they queue
/// behind the kernel's own packets.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    ifindex: u32,
}

impl PacketSocket {
    /// Opens a non-blocking socket that sends on the interface `ifindex` of the current network
    /// namespace.
    ///
    /// # Errors
    ///
    /// [`Error`], naming the system call that failed.
    pub fn open(ifindex: u32) -> Result<Self, Error> {
        Self::with_protocol(ifindex, 0)
    }

    /// Opens a non-blocking socket that receives the frames of an EtherType, host byte order, that
    /// pass to the kernel on the interface.
    ///
    /// # Errors
    ///
    /// [`Error`], naming the system call that failed.
    pub fn listen(ifindex: u32, ethertype: u16) -> Result<Self, Error> {
        Self::with_protocol(ifindex, ethertype)
    }

    fn with_protocol(ifindex: u32, ethertype: u16) -> Result<Self, Error> {
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                0,
            )
        };
        if fd < 0 {
            return Err(Error::last("socket(AF_PACKET)", ifindex));
        }
        // SAFETY: `fd` was just returned by socket(2) and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all-zero is a valid `sockaddr_ll`: integers and a byte array.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = i32::try_from(ifindex).map_err(|_| Error::NoInterface {
            operation: "bind",
            ifindex,
        })?;
        // SAFETY: `address` is a live `sockaddr_ll` and its size is given.
        let bound = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(Error::last("bind", ifindex));
        }
        Ok(Self { fd, ifindex })
    }

    /// Index of the interface that it sends on.
    #[must_use]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Receives one frame into `frame`, from the Ethernet header on, and returns its length; what
    /// does not fit is cut off. Never blocks.
    ///
    /// # Errors
    ///
    /// That of recv(2): [`WouldBlock`](io::ErrorKind::WouldBlock) when there is none.
    pub fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer and the length are those of a live slice.
        let length = unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(length).map_err(|_| io::Error::last_os_error())
    }

    /// Sends one frame, from the Ethernet header on, without FCS. Never blocks.
    ///
    /// # Errors
    ///
    /// That of send(2): [`WouldBlock`](io::ErrorKind::WouldBlock) or `ENOBUFS` when the queue is
    /// full, `ENETDOWN` when the link is down, `EMSGSIZE` when the frame is over the interface's
    /// MTU (one 802.1Q tag is allowed on top), `ENXIO` when the interface is gone.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            // SAFETY: the pointer and the length are those of a live slice.
            let sent = unsafe {
                libc::send(
                    self.fd.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// Raw sockets for whole IP packets. The kernel routes them out of one interface, and finds and
/// resolves the next hop.
#[derive(Debug)]
pub struct RawIpSocket {
    v4: OwnedFd,
    v6: OwnedFd,
    ifindex: u32,
}

impl RawIpSocket {
    /// Opens non-blocking sockets that send out of the interface `name`, of index `ifindex`.
    ///
    /// # Errors
    ///
    /// [`Error`], naming the system call that failed.
    pub fn open(name: &str, ifindex: u32) -> Result<Self, Error> {
        Ok(Self {
            v4: Self::socket(libc::AF_INET, name, ifindex)?,
            v6: Self::socket(libc::AF_INET6, name, ifindex)?,
            ifindex,
        })
    }

    /// Index of the interface that it sends out of.
    #[must_use]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Sends one packet, from the IP header on. Never blocks.
    ///
    /// # Errors
    ///
    /// That of sendto(2): [`WouldBlock`](io::ErrorKind::WouldBlock) or `ENOBUFS` when the queue is
    /// full, `EMSGSIZE` when the packet exceeds the path's MTU, `ENETUNREACH` without a route.
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the bytes are not an IP packet.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        let to: nix::sys::socket::SockaddrStorage = match packet.first().map(|first| first >> 4) {
            Some(4) if packet.len() >= 20 => {
                let to = [packet[16], packet[17], packet[18], packet[19]];
                std::net::SocketAddr::from((to, 0)).into()
            }
            Some(6) if packet.len() >= 40 => {
                let mut to = [0u8; 16];
                to.copy_from_slice(&packet[24..40]);
                std::net::SocketAddr::from((to, 0)).into()
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let fd = if packet[0] >> 4 == 4 {
            &self.v4
        } else {
            &self.v6
        };
        nix::sys::socket::sendto(
            fd.as_raw_fd(),
            packet,
            &to,
            nix::sys::socket::MsgFlags::MSG_DONTWAIT,
        )?;
        Ok(())
    }

    fn socket(family: i32, name: &str, ifindex: u32) -> Result<OwnedFd, Error> {
        // SAFETY: socket(2) takes no pointers. With protocol IPPROTO_RAW the caller supplies the IP
        // header, in both families, and the socket receives nothing (raw(7), rawv6_init_sk).
        let fd = unsafe {
            libc::socket(
                family,
                libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                libc::IPPROTO_RAW,
            )
        };
        if fd < 0 {
            return Err(Error::last("socket(SOCK_RAW)", ifindex));
        }
        // SAFETY: `fd` was just returned by socket(2) and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the pointer and the length are those of a live string.
        let bound = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_BINDTODEVICE,
                name.as_ptr().cast(),
                name.len() as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(Error::last("setsockopt(SO_BINDTODEVICE)", ifindex));
        }
        Ok(fd)
    }
}

impl Error {
    /// The error of the system call that just failed.
    fn last(operation: &'static str, ifindex: u32) -> Self {
        let source = io::Error::last_os_error();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { operation, ifindex },
            Some(libc::ENODEV | libc::ENXIO) => Self::NoInterface { operation, ifindex },
            _ => Self::System {
                operation,
                ifindex,
                source,
            },
        }
    }
}
