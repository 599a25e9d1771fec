//! How a connection's thread is stopped, woken, and waits. A leaf: it depends on no other module.

use std::{
    io,
    net::TcpStream,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::SeqCst},
    },
    time::Instant,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

/// Why a thread is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum StopReason {
    /// The owner closes the connection.
    Close = 1,
    /// A newer connection of the circuit is there.
    Replaced,
    /// The circuit was removed.
    Removed,
    /// Too many connections have not authenticated yet.
    Crowded,
    /// Its source has most of the connections that have not authenticated yet.
    GreedySource,
    /// The owner gives up an attempt; it goes on if its hello was sent.
    GiveUp,
}

/// Shared by a connection's thread and the threads that stop it.
#[derive(Debug)]
pub(super) struct ThreadControl {
    stop: AtomicU8,
    pub event: Arc<EventFd>,
    /// Whether the thread sleeps and needs a wake for datagrams.
    pub is_sleeping: Arc<AtomicBool>,
}

impl ThreadControl {
    pub fn new() -> io::Result<Arc<Self>> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Self {
            stop: AtomicU8::new(0),
            event: Arc::new(event),
            is_sleeping: Arc::default(),
        }))
    }

    /// Tells the thread to stop. The first reason stays.
    pub fn stop(&self, reason: StopReason) {
        let _ = self.stop.compare_exchange(0, reason as u8, SeqCst, SeqCst);
        let _ = self.event.write(1);
    }

    /// Why the thread is to stop, if it is.
    pub fn stop_reason(&self) -> Option<StopReason> {
        match self.stop.load(SeqCst) {
            0 => None,
            2 => Some(StopReason::Replaced),
            3 => Some(StopReason::Removed),
            4 => Some(StopReason::Crowded),
            5 => Some(StopReason::GreedySource),
            6 => Some(StopReason::GiveUp),
            _ => Some(StopReason::Close),
        }
    }

    /// Waits until the socket is ready for one of these, or a stop or datagrams come; at most until
    /// `deadline`.
    pub fn wait(&self, socket: &TcpStream, events: PollFlags, deadline: Option<Instant>) {
        let mut fds = [
            PollFd::new(self.event.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), events),
        ];
        self.poll(&mut fds, deadline);
    }

    /// Waits until one of the sockets is writable or a stop comes; at most until `deadline`.
    pub fn wait_for_one<'s>(
        &self,
        sockets: impl Iterator<Item = &'s TcpStream>,
        deadline: Instant,
    ) {
        let mut fds = vec![PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
        fds.extend(sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLOUT)));
        self.poll(&mut fds, Some(deadline));
    }

    /// The first of the descriptors is that of `event`.
    fn poll(&self, fds: &mut [PollFd<'_>], deadline: Option<Instant>) {
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a sleep of no time would be a spin.
            PollTimeout::from(u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX))
        });
        // After EINTR and the like the caller looks again anyway.
        let _ = poll(fds, timeout);
        if fds.first().and_then(PollFd::any).unwrap_or(false) {
            let _ = self.event.read();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_to_stop_stays() {
        for reason in [
            StopReason::Close,
            StopReason::Replaced,
            StopReason::Removed,
            StopReason::Crowded,
            StopReason::GreedySource,
            StopReason::GiveUp,
        ] {
            let control = ThreadControl::new().expect("an eventfd");
            assert_eq!(control.stop_reason(), None);
            control.stop(reason);
            control.stop(StopReason::Close);
            control.stop(StopReason::Replaced);
            assert_eq!(control.stop_reason(), Some(reason));
        }
    }
}
