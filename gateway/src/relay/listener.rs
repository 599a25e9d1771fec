//! Sockets that listen: one for each thread, all at one address (SO_REUSEPORT), with the options of
//! accepted connections.

use std::{io, net::SocketAddr, os::fd::AsFd};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

use super::threads::Threads;

/// Length of the accept queue; `net.core.somaxconn` may limit it further.
const BACKLOG: u32 = 4096;
/// TCP keepalive: idle time and interval in seconds, and number of probes without an answer.
const KEEPALIVE: (u32, u32, u32) = (60, 10, 6);

/// Whether one of two addresses takes connections to the other, so that the kernel lets both listen
/// only if they share.
pub(super) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (ip, other_ip) = (one.ip(), other.ip());
    one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (ip == other_ip || ip.is_unspecified() || other_ip.is_unspecified())
}

/// Binds a listener for each thread, all to one address; returns the address with its port. With
/// `shared` a listener of this process may overlap the address.
pub(super) fn bind(
    address: SocketAddr,
    shared: bool,
    threads: &Threads,
) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let first = open(address)?;
    // Set only after the bind, which then fails if another process has the address, even one that
    // shares it.
    first.set_reuseport(shared)?;
    first.bind(address)?;
    first.set_reuseport(true)?;
    let bound = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..threads.count() {
        let socket = open(bound)?;
        socket.set_reuseport(true)?;
        socket.bind(bound)?;
        sockets.push(socket);
    }
    let listening = sockets.into_iter().enumerate().map(|(n, socket)| {
        let _in = threads.runtime(n).enter();
        socket.listen(BACKLOG)
    });
    Ok((bound, listening.collect::<io::Result<_>>()?))
}

fn open(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            // IPv4 has sockets of its own.
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    // A restarted gateway binds at once, although connections of the old process are in TIME-WAIT.
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit the options.
    socket.set_nodelay(true)?;
    enable_keepalive(&socket)?;
    Ok(socket)
}

/// Switches TCP keepalive on.
pub(super) fn enable_keepalive(socket: &impl AsFd) -> io::Result<()> {
    let (idle, interval, count) = KEEPALIVE;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(socket, sockopt::TcpKeepCount, &count)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;
    use std::net::Ipv4Addr;

    #[test]
    fn accepted_sockets_have_nodelay_and_keepalive() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let threads = Threads::start(1).expect("a thread");
            let (address, sockets) =
                bind((Ipv4Addr::LOCALHOST, 0).into(), false, &threads).expect("bound");
            let _client = std::net::TcpStream::connect(address).expect("connect");
            let socket = sockets.into_iter().next().expect("one");
            let accepted = threads
                .runtime(0)
                .spawn(async move { socket.accept().await });
            let (stream, _) = accepted.await.expect("no panic").expect("accepted");
            let kept = (
                getsockopt(&stream, sockopt::TcpKeepIdle).expect("an option"),
                getsockopt(&stream, sockopt::TcpKeepInterval).expect("an option"),
                getsockopt(&stream, sockopt::TcpKeepCount).expect("an option"),
            );
            assert_eq!(kept, KEEPALIVE);
            assert!(getsockopt(&stream, sockopt::KeepAlive).expect("an option"));
            assert!(getsockopt(&stream, sockopt::TcpNoDelay).expect("an option"));
        });
    }

    #[test]
    fn threads_share_an_address_and_other_processes_cannot() {
        let threads = Threads::start(3).expect("threads");
        let (address, sockets) =
            bind((Ipv4Addr::LOCALHOST, 0).into(), false, &threads).expect("bound");
        let bound = sockets.iter().map(|s| s.local_addr().expect("an address"));
        assert_eq!(bound.collect::<Vec<_>>(), [address; 3]);
        let error = bind(address, false, &threads).expect_err("another gateway");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
