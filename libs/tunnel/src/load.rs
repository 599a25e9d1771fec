//! Whether this end is under load, and which sources still get a handshake then. Memory is bounded,
//! whatever is sent.

use std::time::Duration;

use zeroize::Zeroizing;

use crate::hash::mac;
use crate::path::PeerPath;
use crate::random::Random;
use crate::time::Instant;

/// Limits on handshakes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadLimits {
    /// Handshake messages with a valid mac1 in one second above which this end is under load: it
    /// asks senders for a cookie. 0: it always is.
    pub cookie_threshold: u32,
    /// Handshakes per second that a source gets under load; 0 counts as 1.
    pub per_source: u32,
    /// Handshakes that a source may start at once under load.
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

/// How long this end counts as under load after the threshold was last exceeded.
const LOAD_LASTS: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);
/// Entries for sources; more sources share entries. A power of two.
const SOURCES: usize = 4096;

/// A token bucket of one source.
#[derive(Clone, Copy)]
struct Bucket {
    /// When the bucket is full again.
    full_at: Instant,
}

pub(crate) struct HandshakeLoad {
    limits: LoadLimits,
    window: Instant,
    count: u32,
    loaded_until: Option<Instant>,
    /// Which sources share a bucket follows from this key, so that an attacker cannot choose to
    /// share the bucket of a peer. Drawn at the first use.
    key: Option<Zeroizing<[u8; 32]>>,
    sources: Box<[Bucket]>,
}

impl HandshakeLoad {
    pub(crate) fn new(limits: LoadLimits) -> Self {
        Self {
            limits,
            window: Instant::ORIGIN,
            count: 0,
            loaded_until: None,
            key: None,
            sources: vec![
                Bucket {
                    full_at: Instant::ORIGIN
                };
                SOURCES
            ]
            .into(),
        }
    }

    /// Counts a handshake message with a valid mac1. True if this end is under load.
    pub(crate) fn note_handshake(&mut self, now: Instant) -> bool {
        if now.since(self.window) >= SECOND {
            self.window = now;
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count > self.limits.cookie_threshold {
            self.loaded_until = Some(now + LOAD_LASTS);
        }
        self.loaded_until
            .is_some_and(|loaded_until| now < loaded_until)
    }

    /// Whether a source that has proven its path by a cookie gets a handshake under load.
    pub(crate) fn allow(
        &mut self,
        now: Instant,
        source: &PeerPath,
        random: &mut dyn Random,
    ) -> bool {
        let entry = self.bucket(source, random);
        let bucket = &mut self.sources[entry];
        let cost = SECOND / self.limits.per_source.max(1);
        let from = bucket.full_at.max(now);
        if from.since(now) > cost * self.limits.burst.saturating_sub(1) {
            return false;
        }
        bucket.full_at = from + cost;
        true
    }

    /// The place of a source's bucket.
    fn bucket(&mut self, source: &PeerPath, random: &mut dyn Random) -> usize {
        let key = self.key.get_or_insert_with(|| {
            let mut key = Zeroizing::new([0; 32]);
            random.fill(key.as_mut());
            key
        });
        let entry = mac(key.as_ref(), &[&source.rate_limit_key()]);
        usize::from(u16::from_le_bytes([entry[0], entry[1]])) % SOURCES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Seeded;

    fn source(last: u8) -> PeerPath {
        std::net::SocketAddr::from(([192, 0, 2, last], 51820)).into()
    }

    #[test]
    fn load_begins_above_the_threshold_and_lasts_a_second() {
        let mut load = HandshakeLoad::new(LoadLimits {
            cookie_threshold: 10,
            ..LoadLimits::default()
        });
        let start = Instant::ORIGIN + Duration::from_secs(5);
        for n in 0..10 {
            assert!(!load.note_handshake(start), "message {n}");
        }
        assert!(load.note_handshake(start));
        assert!(load.note_handshake(start + LOAD_LASTS / 2));
        assert!(!load.note_handshake(start + LOAD_LASTS * 2));
    }

    #[test]
    fn a_source_gets_its_rate_and_no_more() {
        let mut load = HandshakeLoad::new(LoadLimits::default());
        let (one, two) = (source(1), source(2));
        let mut random = Seeded::new(1);
        let mut now = Instant::ORIGIN + Duration::from_secs(1);
        let mut allowed = 0;
        for _ in 0..1000 {
            allowed += u32::from(load.allow(now, &one, &mut random));
            now = now + Duration::from_millis(1);
        }
        assert!((20..=26).contains(&allowed), "{allowed}");
        assert!(load.allow(now, &two, &mut random));
    }

    #[test]
    fn the_sources_that_share_a_bucket_differ_from_process_to_process() {
        let source = |n: u16| {
            let [high, low] = n.to_be_bytes();
            PeerPath::from(std::net::SocketAddr::from(([192, 0, high, low], 51820)))
        };
        let sharing = |seed: u64| {
            let mut random = Seeded::new(seed);
            let mut load = HandshakeLoad::new(LoadLimits::default());
            let victim = load.bucket(&source(0), &mut random);
            let mut shares = |n: &u16| load.bucket(&source(*n), &mut random) == victim;
            (1..u16::MAX).filter(|n| shares(n)).collect::<Vec<_>>()
        };
        let (one, two) = (sharing(1), sharing(2));
        assert!(one.len() > 4 && two.len() > 4, "{one:?}, {two:?}");
        let both = one.iter().filter(|n| two.contains(n)).count();
        assert!(both < one.len() / 2, "{one:?}, {two:?}");
        assert_eq!(sharing(1), one, "the key alone decides");
    }
}
