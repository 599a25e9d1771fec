//! UDP circuits: forwards tunnel datagrams from one end to the other, by a circuit ID that both
//! know.
//!
//! ```text
//!   end A ──▶ bind ──▶ table ◀── bind ◀── end B          each with a key of its own
//!   end A ──▶ id, tunnel datagram ──▶ the same bytes ──▶ end B, where it was last bound
//! ```
//!
//! Once both sides are bound, an XDP program does the same, where the driver accepts one: `fast`.
//!
//! The gateway has no key of a tunnel: the bytes after the ID are opaque to it.

mod command;
pub mod counters;
pub mod fast;
mod observe;
mod report;
pub mod socket;
mod steering;
mod sys;
mod tenants;

pub use gateway_core::{rate, table};

use std::time::Duration;

/// The time of tables and buckets: CLOCK_MONOTONIC, which the XDP program uses, too.
#[must_use]
pub fn clock() -> Duration {
    // Every kernel has this clock.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(Duration::ZERO, Duration::from)
}
