//! UDP packets at a fixed rate, and how many of them arrive: `sendmmsg` and `recvmmsg` on two threads.
//!
//! They are sent ready made as frames, by a packet socket: a UDP socket spends more of the two cores, which
//! contenders would then lack. They are received by a UDP socket.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    libc,
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt},
};

use causeway_tests::packet;

use super::sites::{LEFT, RIGHT, Sites};

/// What was sent and what arrived, packets a second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// That the sending host's sockets took.
    pub sent: f64,
    /// That the receiving host's socket gave.
    pub received: f64,
}

const PORT: u16 = 9009;
/// Packets a system call.
const BATCH: usize = 64;
/// Socket buffers, bytes.
const BUFFER: usize = 8 << 20;
/// Before counting begins.
const WARM_UP: Duration = Duration::from_millis(300);
/// While counting.
const COUNTED: Duration = Duration::from_millis(1500);

/// Sends packets with `bytes` of payload at `rate` a second from the left host to the right one.
pub fn flood(sites: &Sites, bytes: usize, rate: f64) -> anyhow::Result<Rates> {
    let right: Ipv4Addr = sites.right().parse()?;
    let left: Ipv4Addr = sites.left().parse()?;
    let receiver = within(RIGHT, || UdpSocket::bind(SocketAddrV4::new(right, PORT)))?;
    setsockopt(&receiver, sockopt::RcvBufForce, &BUFFER).context("SO_RCVBUFFORCE")?;
    receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
    let sender = within(LEFT, || packet_socket("h0"))?;
    setsockopt(&sender, sockopt::SndBufForce, &BUFFER).context("SO_SNDBUFFORCE")?;
    let datagram = packet::udp(left.into(), right.into(), PORT, PORT, &vec![0x5a; bytes]);
    let (from, to) = sites.macs();
    let frame = packet::frame(to, from, &[], &datagram);

    let (sent, received, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| count(&receiver, &received, &stop));
        scope.spawn(|| send(&sender, &frame, rate, &sent, &stop));
        let read = || {
            (
                sent.load(Ordering::Relaxed),
                received.load(Ordering::Relaxed),
            )
        };
        thread::sleep(WARM_UP);
        let (before, begun) = (read(), Instant::now());
        thread::sleep(COUNTED);
        let (after, took) = (read(), begun.elapsed().as_secs_f64());
        stop.store(true, Ordering::Relaxed);
        Ok(Rates {
            sent: (after.0 - before.0) as f64 / took,
            received: (after.1 - before.1) as f64 / took,
        })
    })
}

/// Makes a socket in a namespace; it stays there whatever thread uses it.
fn within<T: Send>(
    namespace: &str,
    make: impl FnOnce() -> io::Result<T> + Send,
) -> anyhow::Result<T> {
    let path = format!("/run/netns/{namespace}");
    let there = File::open(&path).with_context(|| format!("open {path}"))?;
    thread::scope(|scope| {
        let made = scope.spawn(|| {
            setns(&there, CloneFlags::CLONE_NEWNET)?;
            make()
        });
        match made.join() {
            Ok(made) => made.with_context(|| format!("make a socket in {namespace}")),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A socket that sends frames out of a link, and receives none (packet(7): protocol 0).
fn packet_socket(link: &str) -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::Packet, SockType::Raw);
    let made = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: a sockaddr_ll of zeros is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = if_nametoindex(link)? as i32;
    // SAFETY: the address is a sockaddr_ll of the length given, and is only read.
    let status = unsafe {
        libc::bind(
            made.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if status == 0 {
        Ok(made)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Buffers for a batch, all of one size, and the headers that point to them.
struct Batch {
    headers: Vec<libc::mmsghdr>,
    // Pointed to by the headers, so never changed once they are made.
    _vectors: Vec<libc::iovec>,
    _bytes: Vec<u8>,
}

impl Batch {
    /// All alike.
    fn of(packet: &[u8]) -> Self {
        let size = packet.len();
        let mut bytes = packet.repeat(BATCH);
        let mut vectors: Vec<_> = bytes
            .chunks_exact_mut(size)
            .map(|chunk| libc::iovec {
                iov_base: chunk.as_mut_ptr().cast(),
                iov_len: size,
            })
            .collect();
        let headers = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: a msghdr of zeros is valid: no address, no vectors, no control data.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = vector;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        Self {
            headers,
            _vectors: vectors,
            _bytes: bytes,
        }
    }

    /// Sends the first `packets`; how many were taken.
    fn send(&mut self, socket: impl AsFd, packets: usize) -> io::Result<usize> {
        let packets = packets.min(BATCH) as u32;
        // SAFETY: there are at least `packets` headers; they point to vectors and buffers that live as
        // long as `self` and are not moved, as neither Vec is changed.
        let n = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                packets,
                0,
            )
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Waits for a packet, and takes what is there; how many.
    fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        // SAFETY: as in `send`; the kernel writes only within the buffers' lengths.
        let n = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}

/// Counts until told to stop.
fn count(socket: &UdpSocket, received: &AtomicU64, stop: &AtomicBool) {
    let mut batch = Batch::of(&[0; 2048]);
    while !stop.load(Ordering::Relaxed) {
        // A timeout is no packets.
        let n = batch.receive(socket).unwrap_or(0);
        received.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Sends at `rate` until told to stop; what could not be sent in its time is left out, not caught up.
fn send(socket: &OwnedFd, frame: &[u8], rate: f64, sent: &AtomicU64, stop: &AtomicBool) {
    let mut batch = Batch::of(frame);
    let mut pace = Pace::new(rate);
    let begun = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let due = pace.due(begun.elapsed());
        if due == 0 {
            thread::sleep(Duration::from_micros(20));
            continue;
        }
        // Full queues are what a flood is there for.
        let n = batch.send(socket, due).unwrap_or(0);
        sent.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// How many packets are due.
struct Pace {
    rate: f64,
    /// Packets that were due until now.
    given: f64,
}

impl Pace {
    /// Arrears that are sent, at most: packets.
    const ARREARS: f64 = 4.0 * BATCH as f64;

    const fn new(rate: f64) -> Self {
        Self { rate, given: 0.0 }
    }

    /// Packets to send now, `elapsed` after the beginning: at most a batch.
    fn due(&mut self, elapsed: Duration) -> usize {
        let until_now = elapsed.as_secs_f64() * self.rate;
        self.given = self.given.max(until_now - Self::ARREARS);
        let due = (until_now - self.given).floor().clamp(0.0, BATCH as f64);
        self.given += due;
        due as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_kept_and_arrears_are_bounded() {
        let mut pace = Pace::new(1000.0);
        assert_eq!(pace.due(Duration::ZERO), 0);
        assert_eq!(pace.due(Duration::from_millis(10)), 10);
        assert_eq!(pace.due(Duration::from_millis(10)), 0);
        let mut late = 0;
        loop {
            let due = pace.due(Duration::from_secs(60));
            if due == 0 {
                break;
            }
            assert!(due <= BATCH);
            late += due;
        }
        assert_eq!(late, 4 * BATCH);
    }

    #[test]
    fn what_is_sent_is_counted() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        from.connect(to.local_addr().unwrap()).unwrap();
        to.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(Batch::of(&[0x5a; 18]).send(&from, 7).unwrap(), 7);
        let mut batch = Batch::of(&[0; 2048]);
        let mut arrived = 0;
        while arrived < 7 {
            arrived += batch.receive(&to).unwrap();
        }
        assert_eq!(arrived, 7);
    }
}
