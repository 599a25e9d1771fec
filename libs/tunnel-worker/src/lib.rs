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

pub mod clock;
pub mod host;
pub mod keys;
mod manager;
pub mod pipeline;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
mod worker;

pub use manager::{
    CircuitSpec, Error, HostActivity, ListenSpec, PeerProtocol, PeerSpec, PeerStatus, PortSpec,
    TlsSpec, TunnelManager, WorkerStatus, certificate_file, max_udp_payload,
};
pub use worker::{Settings, UnresolvedPacket, WaitMode};
