//! UDP circuits: tunnel datagrams from one end to the other, behind an id that both know.
//!
//! ```text
//!   end A ──▶ bind ──▶ table ◀── bind ◀── end B          each with a key of its own
//!   end A ──▶ id, tunnel datagram ──▶ the same bytes ──▶ end B, where it was last bound
//! ```
//!
//! The gateway has no key of a tunnel: what is behind the id is opaque to it.

pub mod counters;
pub mod rate;
pub mod socket;
mod sys;
pub mod table;
