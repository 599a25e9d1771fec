//! The number of bytes that a TCP socket has received, from the kernel.

use std::{
    io,
    mem::{MaybeUninit, offset_of, size_of},
    os::fd::{AsFd, AsRawFd as _},
};

use nix::libc;

/// The beginning of `struct tcp_info` (include/uapi/linux/tcp.h, since kernel 4.1).
#[repr(C)]
struct Info {
    before: [u64; 16],
    /// `tcpi_bytes_received`.
    received: u64,
}

const _: () = assert!(offset_of!(Info, received) == 128 && size_of::<Info>() == 136);

/// Bytes received in order, read or not; the end of the stream counts as one (a FIN has a sequence
/// number; `tcp_rcv_nxt_update()`, net/ipv4/tcp_input.c).
///
/// # Errors
/// When the socket is no TCP socket, or the kernel is older than 4.1.
pub fn received(socket: &impl AsFd) -> io::Result<u64> {
    let mut info = MaybeUninit::<Info>::zeroed();
    let mut length = size_of::<Info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info` and the number to `length`; both
    // live through the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    nix::errno::Errno::result(result)?;
    if (length as usize) < size_of::<Info>() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: it was zeroed, and all byte patterns are valid.
    Ok(unsafe { info.assume_init() }.received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write as _,
        net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
        thread::sleep,
        time::Duration,
    };

    /// Waits until the count is more than `before`.
    fn after(socket: &TcpStream, before: u64) -> u64 {
        for _ in 0..2000 {
            let now = received(socket).expect("a count");
            if now > before {
                return now;
            }
            sleep(Duration::from_millis(5));
        }
        panic!("no byte came");
    }

    #[test]
    fn the_end_of_a_stream_counts_as_one_byte() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let to = listener.local_addr().expect("an address");
        let mut client = TcpStream::connect(to).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        assert_eq!(received(&server).expect("a count"), 0);
        client.write_all(b"five!").expect("say");
        assert_eq!(after(&server, 0), 5);
        client.shutdown(Shutdown::Write).expect("half an end");
        assert_eq!(after(&server, 5), 6);
        drop(client);
        let udp = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        assert!(received(&udp).is_err());
    }
}
