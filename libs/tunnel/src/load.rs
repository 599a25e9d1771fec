//! When this end is under load, and who still gets a handshake then. Bounded memory, whoever sends.

use std::time::Duration;

use crate::mac::hash;
use crate::path::PeerPath;
use crate::time::Instant;

/// Bounds on handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadLimits {
    /// Handshake messages with a right mac1 in one second, beyond which a cookie is asked for.
    pub cookie_threshold: u32,
    /// Handshakes a second one source gets under load.
    pub per_source: u32,
    /// Handshakes one source may bring at once under load.
    pub burst: u32,
}

impl Default for LoadLimits {
    fn default() -> Self {
        Self {
            cookie_threshold: 200,
            per_source: 20,
            burst: 5,
        }
    }
}

/// How long load is taken to last once it was seen.
const LINGER: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);
/// Sources told apart; beyond that, sources share an entry. A power of two.
const SOURCES: usize = 4096;

/// A bucket of whole handshakes, in nanoseconds' worth of them.
#[derive(Clone, Copy)]
struct Bucket {
    /// Earliest time the bucket is full again.
    full_at: Instant,
}

pub(crate) struct Load {
    limits: LoadLimits,
    window: Instant,
    count: u32,
    until: Option<Instant>,
    sources: Box<[Bucket]>,
}

impl Load {
    pub(crate) fn new(limits: LoadLimits) -> Self {
        Self {
            limits,
            window: Instant::ORIGIN,
            count: 0,
            until: None,
            sources: vec![
                Bucket {
                    full_at: Instant::ORIGIN
                };
                SOURCES
            ]
            .into(),
        }
    }

    /// Counts a handshake message with a right mac1. True if this end is under load.
    pub(crate) fn note_handshake(&mut self, now: Instant) -> bool {
        if now.since(self.window) >= SECOND {
            self.window = now;
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count > self.limits.cookie_threshold {
            self.until = Some(now + LINGER);
        }
        self.until.is_some_and(|until| now < until)
    }

    /// Whether `source`, which proved that it receives at its address, gets a handshake under load.
    pub(crate) fn allow(&mut self, now: Instant, source: &PeerPath) -> bool {
        let place = hash(&[&source.source()]);
        let place = usize::from(u16::from_le_bytes([place[0], place[1]])) % SOURCES;
        let bucket = &mut self.sources[place];
        let cost = SECOND / self.limits.per_source.max(1);
        let from = bucket.full_at.max(now);
        if from.since(now) > cost * self.limits.burst.saturating_sub(1) {
            return false;
        }
        bucket.full_at = from + cost;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> PeerPath {
        std::net::SocketAddr::from(([192, 0, 2, last], 51820)).into()
    }

    #[test]
    fn load_begins_over_the_bound_and_lingers() {
        let mut load = Load::new(LoadLimits {
            cookie_threshold: 10,
            ..LoadLimits::default()
        });
        let start = Instant::ORIGIN + Duration::from_secs(5);
        for n in 0..10 {
            assert!(!load.note_handshake(start), "message {n}");
        }
        assert!(load.note_handshake(start));
        assert!(load.note_handshake(start + LINGER / 2));
        assert!(!load.note_handshake(start + LINGER * 2));
    }

    #[test]
    fn a_source_gets_its_share_and_no_more() {
        let mut load = Load::new(LoadLimits::default());
        let (one, two) = (source(1), source(2));
        let mut now = Instant::ORIGIN + Duration::from_secs(1);
        let mut allowed = 0;
        for _ in 0..1000 {
            allowed += u32::from(load.allow(now, &one));
            now = now + Duration::from_millis(1);
        }
        assert!((20..=26).contains(&allowed), "{allowed}");
        assert!(load.allow(now, &two));
    }
}
