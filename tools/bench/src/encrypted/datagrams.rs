//! UDP packets at a fixed rate, and how many of them arrive: `sendmmsg` and `recvmmsg` on two
//! threads.
//!
//! A packet socket sends prepared frames: a UDP socket would use more of the two cores, at the cost
//! of the contenders. A UDP socket receives them.

use std::{
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
    sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt},
};

use causeway_tests::packet;

use super::sites::{LEFT, RIGHT, Sites};
use crate::rig::{
    extent::{Amount, Extent, counted},
    netns::within,
};

/// Sent and received packets per second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Accepted by the sending host's socket.
    pub sent: f64,
    /// Delivered by the receiving host's socket.
    pub received: f64,
}

const PORT: u16 = 9009;
/// Packets per system call.
const BATCH: usize = 64;
/// Socket buffers, bytes.
const BUFFER: usize = 8 << 20;
/// Time before counting starts.
const WARM_UP: Amount<Duration> = Amount {
    full: Duration::from_millis(300),
    smoke: Duration::from_millis(50),
};
/// Time of counting.
const COUNT_TIME: Amount<Duration> = Amount {
    full: Duration::from_millis(1500),
    smoke: Duration::from_millis(100),
};

/// Sends packets with `bytes` of payload from the left host to the right one, `rate` per second.
pub fn flood(sites: &Sites, bytes: usize, rate: f64, extent: Extent) -> anyhow::Result<Rates> {
    let right: Ipv4Addr = sites.right().parse()?;
    let left: Ipv4Addr = sites.left().parse()?;
    let receiver = within(RIGHT, || {
        let address = SocketAddrV4::new(right, PORT);
        UdpSocket::bind(address).with_context(|| format!("bind {address}"))
    })?;
    setsockopt(&receiver, sockopt::RcvBufForce, &BUFFER).context("SO_RCVBUFFORCE")?;
    receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
    let sender = within(LEFT, || packet_socket("h0").context("open a packet socket"))?;
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
        thread::sleep(WARM_UP.of(extent));
        let before = read();
        let found = counted(
            COUNT_TIME.of(extent),
            || Ok(read()),
            |after| after.1 > before.1,
        );
        stop.store(true, Ordering::Relaxed);
        let (after, took) = found?;
        Ok(Rates {
            sent: (after.0 - before.0) as f64 / took,
            received: (after.1 - before.1) as f64 / took,
        })
    })
}

/// A socket that sends frames out of a link and receives none (packet(7), protocol 0).
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

/// Buffers of a batch, all of one size, and the headers that point to them.
struct Batch {
    headers: Vec<libc::mmsghdr>,
    // The headers point to both vectors, so neither may change.
    _vectors: Vec<libc::iovec>,
    _bytes: Vec<u8>,
}

impl Batch {
    /// A batch of copies of `packet`.
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

    /// Sends the first `packets`. Returns how many the kernel accepted.
    fn send(&mut self, socket: impl AsFd, packets: usize) -> io::Result<usize> {
        let packets = packets.min(BATCH) as u32;
        // SAFETY: there are at least `packets` headers; they point to vectors and buffers that live
        // as long as `self` and are not moved, as neither Vec is changed.
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

    /// Waits for a packet, and receives all that have arrived. Returns how many.
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

/// Counts packets until `stop` is set.
fn count(socket: &UdpSocket, received: &AtomicU64, stop: &AtomicBool) {
    let mut batch = Batch::of(&[0; 2048]);
    while !stop.load(Ordering::Relaxed) {
        // A time-out counts as no packet.
        let n = batch.receive(socket).unwrap_or(0);
        received.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Sends at `rate` until `stop` is set. Packets that are late by more than the arrears are not
/// sent.
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
        // A full queue is expected in a flood.
        let n = batch.send(socket, due).unwrap_or(0);
        sent.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Counts the packets that are due.
struct Pace {
    rate: f64,
    /// Packets handed out so far.
    given: f64,
}

impl Pace {
    /// Largest arrears that are still sent, packets.
    const MAX_ARREARS: f64 = 4.0 * BATCH as f64;

    const fn new(rate: f64) -> Self {
        Self { rate, given: 0.0 }
    }

    /// Packets to send now, `elapsed` after the start: at most a batch.
    fn due(&mut self, elapsed: Duration) -> usize {
        let until_now = elapsed.as_secs_f64() * self.rate;
        self.given = self.given.max(until_now - Self::MAX_ARREARS);
        let due = (until_now - self.given).floor().clamp(0.0, BATCH as f64);
        self.given += due;
        due as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_and_arrears_are_bounded() {
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
    fn sent_packets_are_counted() {
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
