//! The appliance's encrypted tunnels: packet workers on AF_XDP, peers and handshakes, and TLS where
//! UDP is blocked.
//!
//! For: sealing the packets that the XDP programs hand over and opening received datagrams, fast;
//! keeping every peer's tunnel up without an operator. Never: the appliance's configuration,
//! reconciliation or datapath (the owner gives specifications and writes the maps, see [`host`]); a
//! packet through tokio; a handshake on a worker.
//!
//! ```text
//!        programs ──AF_XDP──▶ worker ──AF_XDP──▶ wire          one pinned thread for each worker
//!                               ▲ │   ◀─rings─▶ TLS            one thread for each connection
//!         sessions, tables      │ │ reports, control messages, unresolved packets
//!                               │ ▼
//!        kernel ───UDP────▶ manager ───UDP──▶ wire             handshakes only, in the owner's loop
//!                             ▲  │
//!     specifications, underlay│  ▼ map writes, status
//!                            owner
//! ```
//!
//! - [`pipeline`]: the processing of a frame; pure.
//! - `worker`: the thread around a pipeline.
//! - `manager`: [`TunnelManager`]: peers, handshakes, choice of the path, sockets.
//! - [`tls`]: the tunnel's datagrams in a TLS connection.
//! - [`host`]: interface to the owner: map writes, tables, next hops.
//! - [`keys`], [`clock`]: key files and clocks.
//! - [`service::restore`]: a machine that was restored from a snapshot repeats no nonce.
//! - `testing` (feature): two pipelines joined in memory.

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
    CircuitSpec, Error, HostActivity, ListenSpec, ListenerError, ListenerSetup, NewListener,
    PeerProtocol, PeerSpec, PeerStatus, PortSpec, TlsSpec, TunnelManager, WorkerStatus,
    certificate_file, max_udp_payload,
};
pub use worker::{UnresolvedPacket, WaitMode};
