//! The steps of each program with a frame, in order. A stage decides; helpers look up, answer and
//! rewrite.
//!
//! ```text
//!   access ──────── tail call ─▶ full ── tail call ─▶ nat_out
//!   uplink ──────── tail call ─▶ nat_in
//!   combined ─▶ uplink's tunnel, else access
//! ```

pub mod access;
pub mod combined;
pub mod full;
pub mod nat_in;
pub mod nat_out;
pub mod uplink;
