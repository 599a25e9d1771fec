//! The thread that watches for restores.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};

use gateway_client::backoff::Backoff;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
        setsockopt, socket, sockopt,
    },
    time::{ClockId, clock_gettime},
};

use super::{ClockSample, RestoreDetector, RestoreSign, Restores};

/// Interval at which the clocks are read.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// Longest pause before a socket is opened in the place of one that failed. One that works for this
/// long is a good one.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Multicast group of the kernel's uevents.
const KERNEL_GROUP: u32 = 1;
/// Receive buffer of uevents, bytes, of which the kernel counts about 2 KiB for each.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Longest uevent, bytes: the kernel's own buffer has 2 KiB.
const UEVENT_BYTES: usize = 4096;
/// Uevents taken before the clocks get their turn.
const UEVENTS: usize = 1024;

/// Starts the thread. What happens after this call is detected.
pub(super) fn start(restores: &Restores) {
    let mut watcher = Watcher::new(uevents);
    let restores = restores.clone();
    let started = std::thread::Builder::new()
        .name("restore-watch".to_owned())
        .spawn(move || {
            loop {
                watcher.poll_once(&restores);
            }
        });
    if let Err(error) = started {
        tracing::error!(%error, "cannot watch for restored snapshots: do not restore this machine \
            from a snapshot of its memory");
    }
}

/// Opens a socket that receives the kernel's uevents.
type Open = fn() -> io::Result<OwnedFd>;

/// State of the thread.
struct Watcher {
    detector: RestoreDetector,
    open: Open,
    /// `None`: the kernel sends none, or `next` is set.
    socket: Option<OwnedFd>,
    /// When the socket was opened, by `CLOCK_MONOTONIC`.
    opened: Duration,
    /// When a socket is opened again after one that failed.
    next: Option<Duration>,
    pauses: Backoff,
    /// Uevents are lost, from a failure that was noted until a socket works.
    is_deaf: bool,
    uevents: Uevents,
}

impl Watcher {
    fn new(open: Open) -> Self {
        let mut detector = RestoreDetector::default();
        // There is no earlier sample.
        let _ = detector.sample(sample());
        let socket = open().inspect_err(|error| {
            tracing::warn!(
                %error,
                "the kernel sends no uevents; only jumps of clocks detect a restored snapshot"
            );
        });
        Self {
            detector,
            open,
            socket: socket.ok(),
            opened: time(ClockId::CLOCK_MONOTONIC),
            next: None,
            pauses: Backoff::new(SAMPLE_INTERVAL, LONGEST_PAUSE),
            is_deaf: false,
            uevents: Uevents::default(),
        }
    }

    /// Waits for uevents or the next look at the clocks, and notes a restore.
    fn poll_once(&mut self, restores: &Restores) {
        let timeout = PollTimeout::from(SAMPLE_INTERVAL.as_millis() as u16);
        let fds = self.socket.iter();
        let fds = fds.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        let _ = poll(&mut fds.collect::<Vec<_>>(), timeout);
        let uevent = self.receive(time(ClockId::CLOCK_MONOTONIC));
        let clocks = self.detector.sample(sample());
        if let Some(sign) = uevent.or(clocks) {
            restores.note();
            tracing::warn!(
                reason = %sign,
                "this machine may have been restored from a snapshot: earlier keys are no longer \
                 used"
            );
        }
    }

    /// Takes the uevents that wait. A socket that fails after it has worked for a minute is
    /// replaced at once; one that fails earlier, after a pause that grows to a minute. Uevents are
    /// lost meanwhile: that is one sign at the failure and one at the end, however many sockets
    /// fail between them.
    fn receive(&mut self, now: Duration) -> Option<RestoreSign> {
        if self.next.is_some_and(|next| next <= now) {
            self.reopen(now);
        }
        let socket = self.socket.as_ref()?;
        let receive = |buffer: &mut [u8]| recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT);
        match self.uevents.take(&self.detector, receive) {
            Ok(sign) => {
                let was_deaf = std::mem::take(&mut self.is_deaf);
                sign.or(was_deaf.then_some(RestoreSign::UeventsLost))
            }
            Err(error) => {
                if now.saturating_sub(self.opened) >= LONGEST_PAUSE {
                    self.pauses.reset();
                    self.reopen(now);
                } else {
                    self.close(now);
                }
                let was_deaf = std::mem::replace(&mut self.is_deaf, self.socket.is_none());
                if was_deaf {
                    return None;
                }
                tracing::warn!(
                    %error,
                    "cannot receive the kernel's uevents; opening another socket, again and again \
                     until one works. Meanwhile only jumps of clocks detect a restored snapshot"
                );
                Some(RestoreSign::UeventsLost)
            }
        }
    }

    /// Opens another socket, or sets the time of the next attempt.
    fn reopen(&mut self, now: Duration) {
        match (self.open)() {
            Ok(socket) => {
                self.socket = Some(socket);
                (self.opened, self.next) = (now, None);
            }
            Err(error) => {
                tracing::debug!(%error, "cannot open a socket for uevents");
                self.close(now);
            }
        }
    }

    fn close(&mut self, now: Duration) {
        self.socket = None;
        self.next = Some(now + self.pauses.pause(Duration::ZERO, Backoff::WHOLE));
    }
}

/// Progress through the kernel's uevents.
#[derive(Debug, Default)]
struct Uevents {
    /// The kernel drops uevents, from the error ENOBUFS until its queue is empty
    /// (`netlink_overrun` and `netlink_rcv_wake` in net/netlink/af_netlink.c).
    is_losing: bool,
}

impl Uevents {
    /// Takes what waits, until there is a sign or nothing more. `receive` is recv(2), and does not
    /// block. A loss is one sign, at its end, when no more uevents can be lost by it.
    ///
    /// # Errors
    /// An error of the kernel after which the socket is of no use.
    fn take(
        &mut self,
        detector: &RestoreDetector,
        mut receive: impl FnMut(&mut [u8]) -> nix::Result<usize>,
    ) -> nix::Result<Option<RestoreSign>> {
        let mut buffer = [0; UEVENT_BYTES];
        for _ in 0..UEVENTS {
            match receive(&mut buffer) {
                Ok(bytes) => {
                    if let Some(sign) = detector.uevent(&buffer[..bytes]) {
                        return Ok(Some(sign));
                    }
                }
                Err(Errno::ENOBUFS) => self.is_losing = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let has_lost = std::mem::take(&mut self.is_losing);
                    return Ok(has_lost.then_some(RestoreSign::UeventsLost));
                }
                Err(error) => {
                    self.is_losing = false;
                    return Err(error);
                }
            }
        }
        Ok(None)
    }
}

/// A clock, since its origin.
fn time(clock: ClockId) -> Duration {
    // The clocks exist in every kernel that runs this.
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

/// All clocks.
fn sample() -> ClockSample {
    let read = || ClockSample {
        monotonic: time(ClockId::CLOCK_MONOTONIC),
        boot: time(ClockId::CLOCK_BOOTTIME),
        real: time(ClockId::CLOCK_REALTIME),
    };
    let mut sample = read();
    // A thread that was held up between two clocks looks like a jump: read again.
    for _ in 0..3 {
        let passed = time(ClockId::CLOCK_BOOTTIME).saturating_sub(sample.boot);
        if passed < Duration::from_millis(100) {
            break;
        }
        sample = read();
    }
    sample
}

fn uevents() -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    // Without CAP_NET_ADMIN at most net.core.rmem_max; a smaller buffer is no error.
    if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER);
    }
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, fs::File, os::unix::net::UnixDatagram};

    use nix::sys::socket::getsockopt;

    use super::*;

    const OTHER: &[u8] = b"change@/devices/x\0ACTION=change\0SEQNUM=100\0";
    const RESTORED: &[u8] = b"change@/devices/y\0ACTION=change\0NEW_VMGENID=1\0SEQNUM=101\0";

    /// Takes once from a socket that gives these results, and then is empty.
    fn take(
        uevents: &mut Uevents,
        results: &mut Vec<nix::Result<&[u8]>>,
    ) -> nix::Result<Option<RestoreSign>> {
        uevents.take(&RestoreDetector::default(), |buffer| {
            if results.is_empty() {
                return Err(Errno::EAGAIN);
            }
            let bytes = results.remove(0)?;
            buffer[..bytes.len()].copy_from_slice(bytes);
            Ok(bytes.len())
        })
    }

    #[test]
    fn lost_uevents_count_as_a_restore_once_the_kernel_loses_no_more() {
        let mut uevents = Uevents::default();
        let mut results = vec![Ok(OTHER), Err(Errno::ENOBUFS), Ok(OTHER), Err(Errno::EINTR)];
        results.push(Ok(OTHER));
        let sign = take(&mut uevents, &mut results).expect("no error");
        assert_eq!(sign, Some(RestoreSign::UeventsLost));
        assert!(results.is_empty(), "until the queue is empty");
        assert_eq!(
            take(&mut uevents, &mut results),
            Ok(None),
            "one loss is one"
        );
        // Each loss may have been of another restore.
        results.push(Err(Errno::ENOBUFS));
        let sign = take(&mut uevents, &mut results).expect("no error");
        assert_eq!(sign, Some(RestoreSign::UeventsLost));
    }

    #[test]
    fn a_generation_id_is_told_at_once_and_hides_no_loss() {
        let mut uevents = Uevents::default();
        let mut results = vec![Ok(OTHER), Ok(RESTORED), Err(Errno::ENOBUFS), Ok(RESTORED)];
        results.push(Ok(OTHER));
        let mut signs = Vec::new();
        while let Some(sign) = take(&mut uevents, &mut results).expect("no error") {
            signs.push((sign, results.len()));
        }
        let expected = [
            (RestoreSign::GenerationId, 3),
            (RestoreSign::GenerationId, 1),
            (RestoreSign::UeventsLost, 0),
        ];
        assert_eq!(signs, expected);
    }

    #[test]
    fn a_storm_does_not_keep_the_clocks_waiting_and_a_loss_outlives_the_turn() {
        let mut uevents = Uevents::default();
        let mut received = 0;
        let storm = |buffer: &mut [u8]| {
            received += 1;
            if received == 1 {
                return Err(Errno::ENOBUFS);
            }
            buffer[..OTHER.len()].copy_from_slice(OTHER);
            Ok(OTHER.len())
        };
        let taken = uevents.take(&RestoreDetector::default(), storm);
        assert_eq!((taken, received), (Ok(None), UEVENTS));
        let sign = take(&mut uevents, &mut Vec::new());
        assert_eq!(sign, Ok(Some(RestoreSign::UeventsLost)));
    }

    #[test]
    fn a_socket_that_is_of_no_use_is_an_error() {
        let mut uevents = Uevents::default();
        let mut results = vec![Ok(OTHER), Err(Errno::ENOBUFS), Err(Errno::EBADF)];
        assert_eq!(take(&mut uevents, &mut results), Err(Errno::EBADF));
        // The turn has counted it; the other socket has lost nothing.
        assert_eq!(take(&mut uevents, &mut results), Ok(None));
    }

    #[test]
    fn the_kernels_uevents_can_be_received_into_a_large_buffer() {
        match uevents() {
            Ok(fd) => {
                let usual = std::fs::read_to_string("/proc/sys/net/core/rmem_default");
                let usual = usual.ok().and_then(|text| text.trim().parse().ok());
                let size = getsockopt(&fd, sockopt::RcvBuf).expect("a size");
                assert!(size > usual.unwrap_or(0), "{size}");
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
    }

    #[test]
    fn a_watcher_on_a_calm_machine_notes_no_restore() {
        let restores = Restores::default();
        let mut watcher = Watcher::new(uevents);
        watcher.poll_once(&restores);
        watcher.poll_once(&restores);
        assert_eq!(restores.count(), 0);
    }

    thread_local! {
        /// Sockets that fail at once, of those that are opened next.
        static USELESS: Cell<usize> = const { Cell::new(0) };
        static OPENED: Cell<usize> = const { Cell::new(0) };
    }

    /// A file, which is of no use as a socket, or a socket that receives nothing.
    fn open() -> io::Result<OwnedFd> {
        OPENED.set(OPENED.get() + 1);
        match USELESS.get() {
            0 => Ok(UnixDatagram::unbound()?.into()),
            left => {
                USELESS.set(left - 1);
                Ok(File::open("/dev/null")?.into())
            }
        }
    }

    /// The signs within a time, a look each quarter of a second.
    fn signs(watcher: &mut Watcher, now: &mut Duration, seconds: u32) -> usize {
        let looks = (0..seconds * 4).filter(|_| {
            *now += SAMPLE_INTERVAL;
            watcher.receive(*now).is_some()
        });
        looks.count()
    }

    #[test]
    fn sockets_that_fail_at_once_are_one_sign_and_are_opened_seldom() {
        USELESS.set(usize::MAX);
        let mut watcher = Watcher::new(open);
        let mut now = watcher.opened;
        OPENED.set(0);
        assert_eq!(signs(&mut watcher, &mut now, 600), 1);
        assert!((10..25).contains(&OPENED.get()), "{}", OPENED.get());
        // One that works ends the loss, which is a sign, too.
        USELESS.set(0);
        assert_eq!(signs(&mut watcher, &mut now, 600), 1);
        assert!(!watcher.is_deaf && watcher.socket.is_some());
    }

    #[test]
    fn a_good_socket_that_fails_is_replaced_at_once() {
        USELESS.set(0);
        let mut watcher = Watcher::new(open);
        let mut now = watcher.opened;
        assert_eq!(signs(&mut watcher, &mut now, 61), 0);
        watcher.socket = Some(File::open("/dev/null").expect("a file").into());
        assert_eq!(signs(&mut watcher, &mut now, 1), 1);
        assert!(!watcher.is_deaf && watcher.next.is_none());
        assert_eq!(signs(&mut watcher, &mut now, 60), 0, "nothing more is lost");
    }
}
