//! The cloud gateway: one address and port for everything that tenants send.
//!
//! For: relaying a TCP connection to the backend that the TLS hello of the client names, and a UDP
//! datagram to the other end of its circuit. Never: a key of a tunnel, plaintext, or a connection
//! to a backend before the client has sent a hello.
//!
//! ```text
//!   client ──TCP──▶ relay: hello ─▶ name, ALPN ─▶ route ─▶ backend, its own TLS end
//!
//!   an end ──UDP──▶ circuit: id ─▶ table, bound by authenticated messages ─▶ the other end
//! ```
//!
//! The decisions are in the crate `gateway-core` (`hello`, `route`, `table`, `rate`), which has
//! neither sockets nor clocks; the wire format and the ends of circuits are in `gateway-client`.
//! Here are sockets, threads, XDP, the configuration and the daemon.

pub mod circuit;
pub mod config;
pub mod control;
pub mod daemon;
pub mod relay;
