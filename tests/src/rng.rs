//! Seeded random numbers, so that a failure replays.

pub use tunnel::testing::Seeded;

/// The seed to use: `CAUSEWAY_SEED`, or one made from the clock, for a run that prints it.
#[must_use]
pub fn seed_from_env() -> u64 {
    if let Some(seed) = std::env::var("CAUSEWAY_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
    {
        return seed;
    }
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |d| d.as_nanos() as u64)
}
