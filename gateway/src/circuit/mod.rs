//! UDP circuits: tunnel datagrams from one end to the other, behind an id that both know.
//!
//! ```text
//!   end A ──▶ bind ──▶ table ◀── bind ◀── end B          each with a key of its own
//!   end A ──▶ id, tunnel datagram ──▶ the same bytes ──▶ end B, where it was last bound
//! ```
//!
//! Once both sides are bound, the same is done in the driver where it takes an XDP program: `fast`.
//!
//! The gateway has no key of a tunnel: what is behind the id is opaque to it.

pub mod counters;
pub mod fast;
pub mod rate;
pub mod socket;
mod sys;
pub mod table;

use std::time::Duration;

/// The time of tables and buckets: since the machine started, as the kernel's monotonic clock and so the XDP program count it.
#[must_use]
pub fn clock() -> Duration {
    // Of a clock that every kernel has.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(Duration::ZERO, Duration::from)
}
