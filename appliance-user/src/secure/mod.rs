//! Encrypted tunnels: the workers that carry packets, and the end that makes sessions for them.
//!
//! For: sealing what the programs hand over and opening what comes back, at the speed of the CPU; keeping
//! every peer's tunnel up without a person. Never: a packet through tokio, or a handshake on a worker.
//!
//! ```text
//!        programs ──AF_XDP──▶ worker ──AF_XDP──▶ wire         one thread per worker, pinned
//!                               ▲ │
//!         sessions, tables      │ │ reports, words, packets that wait
//!                               │ ▼
//!        kernel ───UDP────▶ ends ───UDP──▶ wire               handshakes only, in the daemon's loop
//! ```
//!
//! - `pipeline`: what happens to a frame; pure.
//! - `worker`: the thread around it.
//! - `ends`: peers, handshakes, sessions, addresses; around the crate `tunnel`, whose control half `control` keeps.
//! - `circuits`: the gateways by which a peer is reached; around the crate `gateway-client`.
//! - `schedule`: which of them are due; pure.
//! - `streams`, `fallback`: the same over TLS, where UDP does not get through; around `crate::stream`.
//! - `keys`: key files.

mod circuits;
pub mod clock;
mod control;
mod ends;
mod fallback;
pub mod keys;
pub mod pipeline;
mod schedule;
mod streams;
mod worker;

pub use circuits::CircuitSpec;
pub use ends::{EndStatus, Ends, Error, Happened, PeerSpec, PortSpec, What, ceiling};
pub use streams::{ListenSpec, TlsSpec, certificate_file};
pub use worker::{Settings, Waiting};
