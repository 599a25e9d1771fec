//! poll(2) over the sockets of a thread and its waker.

use std::os::fd::{AsRawFd as _, OwnedFd};

use super::Socket;

/// Waits for datagrams on sockets, or for a wake-up.
#[derive(Debug)]
pub struct Poll {
    entries: Vec<libc::pollfd>,
}

impl Poll {
    /// For `waker` and these sockets.
    #[must_use]
    pub fn new<'a>(waker: &OwnedFd, sockets: impl Iterator<Item = &'a Socket>) -> Self {
        let fds = std::iter::once(waker).chain(sockets.map(|socket| &socket.fd));
        let entry = |fd: &OwnedFd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        Self {
            entries: fds.map(entry).collect(),
        }
    }

    /// Waits for at most `milliseconds`. A signal ends the wait, too.
    pub fn wait(&mut self, milliseconds: i32) {
        let count = self.entries.len() as libc::nfds_t;
        // SAFETY: there are `count` entries.
        if unsafe { libc::poll(self.entries.as_mut_ptr(), count, milliseconds) } < 0 {
            self.entries.iter_mut().for_each(|entry| entry.revents = 0);
        }
    }

    /// Whether the waker is ready.
    #[must_use]
    pub fn is_woken(&self) -> bool {
        self.entries[0].revents != 0
    }

    /// Whether the socket with this index is ready.
    #[must_use]
    pub fn is_ready(&self, socket: usize) -> bool {
        self.entries[socket + 1].revents != 0
    }
}
