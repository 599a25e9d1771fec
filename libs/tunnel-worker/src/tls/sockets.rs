//! Listening sockets, which the listener that follows may share. A leaf: it depends on no other
//! module.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

/// The sockets of a listener. Dropped, they are closed, unless another listener shares them.
#[derive(Debug)]
pub struct Sockets(Vec<Bound>);

#[derive(Debug)]
struct Bound {
    /// As it was asked for; its port may be 0.
    wanted: SocketAddr,
    /// With the port in use.
    address: SocketAddr,
    socket: TcpListener,
}

impl Sockets {
    /// Binds addresses; for port 0 the kernel chooses one. Addresses that `present` has are shared
    /// with it, and a wildcard may be bound beside one of its addresses, or the reverse.
    ///
    /// # Errors
    /// The address that cannot be bound, and the kernel's error. No socket is left then.
    pub(super) fn bind(
        addresses: &[SocketAddr],
        present: Option<&Self>,
    ) -> Result<Self, (SocketAddr, io::Error)> {
        let present = present.map_or(&[][..], |present| &present.0);
        let bound = addresses.iter().map(|&wanted| {
            let bound = match present.iter().find(|bound| bound.wanted == wanted) {
                Some(same) => same.socket.try_clone(),
                None => open(wanted, present),
            };
            let bound = bound.and_then(|socket| {
                Ok(Bound {
                    wanted,
                    address: socket.local_addr()?,
                    socket,
                })
            });
            bound.map_err(|error| (wanted, error))
        });
        Ok(Self(bound.collect::<Result<_, _>>()?))
    }

    /// The addresses, with the ports that the kernel chose.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|bound| bound.address).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &TcpListener> {
        self.0.iter().map(|bound| &bound.socket)
    }
}

/// A listening socket at an address that `present` has not.
fn open(address: SocketAddr, present: &[Bound]) -> io::Result<TcpListener> {
    let error = match listening(address, false) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        result => return result,
    };
    let overlapping: Vec<&Bound> = present
        .iter()
        .filter(|bound| overlap(bound.address, address))
        .collect();
    if overlapping.is_empty() {
        return Err(error);
    }
    // Both are ours: the kernel lets them overlap while both have the option. It is cleared at
    // once, because no other process is to share the address.
    let share = |shared: bool| {
        overlapping
            .iter()
            .try_for_each(|bound| setsockopt(&bound.socket, sockopt::ReusePort, &shared))
    };
    let opened = share(true)
        .map_err(io::Error::from)
        .and_then(|()| listening(address, true));
    share(false)?;
    let socket = opened?;
    setsockopt(&socket, sockopt::ReusePort, &false)?;
    Ok(socket)
}

/// Whether one address is a wildcard that includes the other.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    // [::] accepts both families.
    let includes = |wide: IpAddr, narrow: IpAddr| {
        wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
    };
    one.port() == other.port() && (includes(one.ip(), other.ip()) || includes(other.ip(), one.ip()))
}

fn listening(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    // Connections of an earlier process may still close.
    setsockopt(&opened, sockopt::ReuseAddr, &true)?;
    if shared {
        setsockopt(&opened, sockopt::ReusePort, &true)?;
    }
    bind(opened.as_raw_fd(), &SockaddrStorage::from(address))?;
    // As many tenants as may lose the same gateway at once.
    listen(&opened, Backlog::MAXCONN)?;
    Ok(opened.into())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    fn at(ip: [u8; 4], port: u16) -> SocketAddr {
        (Ipv4Addr::from(ip), port).into()
    }

    #[test]
    fn an_address_of_another_program_is_refused_and_named() {
        let other = TcpListener::bind(at([127, 0, 0, 1], 0)).expect("a port");
        let taken = other.local_addr().expect("an address");
        let free = at([127, 0, 0, 2], 0);
        let (address, error) = Sockets::bind(&[free, taken], None).expect_err("in use");
        assert_eq!((address, error.kind()), (taken, io::ErrorKind::AddrInUse));
        // Nor do sockets of our own elsewhere make room there.
        let present = Sockets::bind(&[free], None).expect("free");
        Sockets::bind(&[free, taken], Some(&present)).expect_err("in use");
    }

    #[test]
    fn a_wildcard_takes_the_place_of_an_address_and_the_reverse_without_a_gap() {
        let first = Sockets::bind(&[at([127, 0, 0, 1], 0)], None).expect("free");
        let port = first.addresses()[0].port();
        let narrow = at([127, 0, 0, 1], port);
        let wide = at([0, 0, 0, 0], port);
        let second = Sockets::bind(&[wide], Some(&first)).expect("both are ours");
        drop(first);
        let third = Sockets::bind(&[narrow], Some(&second)).expect("both are ours");
        let other = TcpListener::bind(at([127, 0, 0, 3], port));
        assert_eq!(
            other.expect_err("the wildcard has it").kind(),
            io::ErrorKind::AddrInUse
        );
        drop(second);
        TcpStream::connect(narrow).expect("it listens");
        assert_eq!(third.addresses(), [narrow]);
    }

    #[test]
    fn a_shared_address_keeps_its_queue() {
        let wanted = at([127, 0, 0, 1], 0);
        let first = Sockets::bind(&[wanted], None).expect("free");
        let client = TcpStream::connect(first.addresses()[0]).expect("it listens");
        let second = Sockets::bind(&[wanted], Some(&first)).expect("shared");
        assert_eq!(first.addresses(), second.addresses());
        drop(first);
        let socket = second.iter().next().expect("one");
        let (_, from) = socket.accept().expect("the connection that waited");
        assert_eq!(from, client.local_addr().expect("an address"));
    }
}
