//! Clock, random source and restores of the machine, passed as parameters.

use std::{
    fmt,
    sync::LazyLock,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use service::restore::Restores;
use uuid::Uuid;

/// Source of time and of random bytes.
pub trait Environment: fmt::Debug + Send + Sync {
    /// The time.
    fn now(&self) -> Timestamp;

    /// Time since the start of the process, of a clock that is never set: for limits and intervals.
    fn monotonic(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }

    /// Fills with random bytes that cannot be guessed.
    ///
    /// # Errors
    /// When the kernel has none.
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()>;

    /// Restores of the machine from a snapshot of its memory.
    fn restores(&self) -> Restores {
        Restores::watched()
    }
}

/// The kernel's clock and random bytes.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

impl Environment for Kernel {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        getrandom::fill(bytes).map_err(std::io::Error::other)
    }
}

/// A new identity: version 7, which sorts by time (RFC 9562 section 5.7).
pub(crate) fn uid(environment: &dyn Environment) -> std::io::Result<Uuid> {
    let mut random = [0; 10];
    environment.fill(&mut random)?;
    let at = u64::try_from(environment.now().as_millisecond()).unwrap_or_default();
    Ok(uuid::Builder::from_unix_timestamp_millis(at, &random).into_uuid())
}
