//! The order in which handshake messages are handled: those of peers and gateways first, and those
//! of unknown addresses within a budget of time. Pure.
//!
//! ```text
//!   sockets ─▶ push ─┬─ from a peer or gateway ─▶ known ─────┐
//!                    └─ from elsewhere ─────────▶ unknown ───┴─▶ take ─▶ curve arithmetic
//!                                                     ▲                      │ spent
//!                                                     └──── one budget ◀─────┘
//! ```
//!
//! The programs limit messages for each CPU, but all curve operations run on the one thread that
//! keeps every tunnel up. So all unknown addresses together get a fifth of its time. They may be of
//! peers whose address has changed, so they are delayed and not refused.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use tunnel::Instant;

use super::handshake_io::MAX_MESSAGE_LEN;

/// Messages that wait of each kind, at most. Later ones are dropped; their senders repeat them.
const CAPACITY: usize = 1024;
/// Unknown addresses get this share of the thread's time: one part in this many.
const UNKNOWN_SHARE: u32 = 5;
/// Time that unknown addresses may use at once, after a pause.
const UNKNOWN_BURST: Duration = Duration::from_millis(20);

/// A message that waits.
#[derive(Clone, Copy)]
pub(super) struct WaitingMessage {
    pub from: SocketAddr,
    /// Whether it is charged to the budget of unknown addresses.
    pub is_unknown: bool,
    bytes: [u8; MAX_MESSAGE_LEN],
    len: usize,
}

impl WaitingMessage {
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Messages that wait.
#[derive(Default)]
pub(super) struct HandshakeQueue {
    known: VecDeque<WaitingMessage>,
    unknown: VecDeque<WaitingMessage>,
    /// When the budget of unknown addresses is full again.
    full_at: Instant,
    dropped: u64,
}

impl HandshakeQueue {
    /// Adds a message; `is_known`: it comes from the address of a peer or gateway. No valid message
    /// is longer than [`MAX_MESSAGE_LEN`]: one that is loses its end, and is refused later.
    pub fn push(&mut self, is_known: bool, from: SocketAddr, message: &[u8]) {
        let queue = if is_known {
            &mut self.known
        } else {
            &mut self.unknown
        };
        if queue.len() >= CAPACITY {
            self.dropped += 1;
            return;
        }
        let len = message.len().min(MAX_MESSAGE_LEN);
        let mut bytes = [0; MAX_MESSAGE_LEN];
        bytes[..len].copy_from_slice(&message[..len]);
        queue.push_back(WaitingMessage {
            from,
            is_unknown: !is_known,
            bytes,
            len,
        });
    }

    /// The next message to work on now.
    pub fn take(&mut self, now: Instant) -> Option<WaitingMessage> {
        if let Some(known) = self.known.pop_front() {
            return Some(known);
        }
        if self.has_budget(now) {
            return self.unknown.pop_front();
        }
        None
    }

    /// Charges the time that a message of an unknown address took.
    pub fn spent(&mut self, now: Instant, time: Duration) {
        self.full_at = self.full_at.max(now) + time * UNKNOWN_SHARE;
    }

    /// When the next message may be worked on; `None`: none waits.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        if !self.known.is_empty() {
            return Some(now);
        }
        (!self.unknown.is_empty()).then(|| {
            let wait = self
                .full_at
                .since(now)
                .saturating_sub(UNKNOWN_BURST * UNKNOWN_SHARE);
            now + wait
        })
    }

    /// Messages that found no room.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    fn has_budget(&self, now: Instant) -> bool {
        self.full_at.since(now) <= UNKNOWN_BURST * UNKNOWN_SHARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn from(n: u8) -> SocketAddr {
        ([192, 0, 2, n], 6180).into()
    }

    #[test]
    fn known_addresses_go_before_queued_unknown_ones() {
        let mut queue = HandshakeQueue::default();
        let now = Instant::from_nanos(1_000_000_000);
        for _ in 0..500 {
            queue.push(false, from(1), b"unknown");
        }
        queue.push(true, from(2), b"peer");
        assert_eq!(queue.take(now).map(|m| m.from), Some(from(2)));
        let next = queue.take(now).expect("an unknown address's");
        assert_eq!((next.from, next.as_bytes()), (from(1), &b"unknown"[..]));
    }

    #[test]
    fn unknown_addresses_share_a_fifth_of_the_time() {
        let mut queue = HandshakeQueue::default();
        let start = Instant::from_nanos(1_000_000_000);
        let (mut now, mut worked, mut answered) = (start, 0u32, 0u32);
        // Each message costs 0.3 ms, and there are always more. A peer sends one every 10 ms.
        while now.since(start) < Duration::from_secs(10) {
            for n in 0..8 {
                queue.push(false, from(n), b"x");
            }
            if now.since(start) >= MS * 10 * answered {
                queue.push(true, from(99), b"peer");
                assert_eq!(queue.take(now).map(|m| m.from), Some(from(99)));
                answered += 1;
            }
            match queue.take(now) {
                Some(_) => {
                    worked += 1;
                    queue.spent(now, MS * 3 / 10);
                    now = now + MS * 3 / 10;
                }
                None => {
                    let next = queue.next_deadline(now).expect("some wait");
                    assert!(next > now, "no spin while there is no budget");
                    now = next.max(now + MS / 10);
                }
            }
        }
        let used = MS * 3 / 10 * worked;
        assert!(used > MS * 1900 && used < MS * 2100, "{used:?}");
        assert!(queue.dropped() > 0, "the queue is bounded");
    }

    #[test]
    fn a_quiet_queue_has_no_deadline() {
        let mut queue = HandshakeQueue::default();
        let now = Instant::from_nanos(1_000_000_000);
        assert_eq!(queue.next_deadline(now), None);
        queue.push(false, from(1), &[7; 4000]);
        assert_eq!(queue.next_deadline(now), Some(now));
        let taken = queue.take(now).expect("a message");
        assert_eq!(taken.as_bytes(), [7; MAX_MESSAGE_LEN]);
        assert_eq!(queue.next_deadline(now), None);
    }
}
