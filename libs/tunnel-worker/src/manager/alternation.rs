//! Notices that a peer's datagrams come from two addresses in turn: two machines have its key, such
//! as an appliance and its clone. Pure.

use std::{net::SocketAddr, time::Duration};

use tunnel::Instant;

/// Returns to the address before that are no accident, such as a link that failed and is back.
const MIN_RETURNS: u32 = 4;
/// Longest time between two returns.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The last two addresses of a peer.
#[derive(Debug, Default)]
pub(super) struct AddressAlternation {
    before: Option<SocketAddr>,
    current: Option<SocketAddr>,
    /// Returns in a row, from `current` to `before`.
    returns: u32,
    returned_at: Option<Instant>,
}

impl AddressAlternation {
    /// Notes where data goes now. True if this is the move by which the peer begins to alternate.
    pub fn note(&mut self, now: Instant, address: SocketAddr) -> bool {
        if self.current == Some(address) {
            return false;
        }
        let alternated = self.addresses(now).is_some();
        if self.before != Some(address) {
            self.returns = 0;
        } else if self.is_recent(now) {
            self.returns = self.returns.saturating_add(1);
        } else {
            self.returns = 1;
        }
        self.returned_at = Some(now);
        self.before = self.current.replace(address);
        !alternated && self.addresses(now).is_some()
    }

    /// The two addresses, ascending, while the peer alternates between them.
    pub fn addresses(&self, now: Instant) -> Option<[SocketAddr; 2]> {
        if self.returns < MIN_RETURNS || !self.is_recent(now) {
            return None;
        }
        let (before, current) = self.before.zip(self.current)?;
        Some([before.min(current), before.max(current)])
    }

    fn is_recent(&self, now: Instant) -> bool {
        let at = self.returned_at;
        at.is_some_and(|at| now.since(at) < MAX_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 6180).into()
    }

    fn at(second: u64) -> Instant {
        Instant::from_nanos((1000 + second) * 1_000_000_000)
    }

    #[test]
    fn two_machines_with_one_key_are_noticed_once_and_forgotten_after_a_minute() {
        let mut peer = AddressAlternation::default();
        let noticed = (0..20).filter(|n| peer.note(at(*n), address((n % 2) as u8)));
        assert_eq!(noticed.count(), 1);
        assert_eq!(peer.addresses(at(20)), Some([address(0), address(1)]));
        assert_eq!(peer.addresses(at(19 + 60)), None);
        assert!(!peer.note(at(100), address(0)), "one return is none");
    }

    #[test]
    fn a_peer_that_roams_is_not_two_machines() {
        let mut peer = AddressAlternation::default();
        // New addresses, one that is noted again, and a link that fails and comes back twice.
        let path = [1, 2, 3, 3, 4, 1, 2, 1, 2, 1];
        for (second, last) in path.into_iter().enumerate() {
            assert!(!peer.note(at(second as u64), address(last)), "{second}");
        }
        // Seldom.
        for n in 0..20 {
            assert!(!peer.note(at(100 + n * 60), address((n % 2) as u8)));
        }
    }
}
