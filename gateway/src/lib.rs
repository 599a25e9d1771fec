//! The cloud gateway: the only address that tenants know.
//!
//! For: relaying what comes to its one port, a TCP connection to the backend that the client's own TLS hello names, a UDP datagram
//! to the other end of its circuit. Never: a tenant's key, a byte of plaintext, a word to somebody who has not said whom he wants.
//!
//! ```text
//!   client ──TCP──▶ relay: hello ─▶ name, ALPN ─▶ route ─▶ backend, its own TLS end
//!
//!   an end ──UDP──▶ circuit: id ─▶ table, bound by authenticated messages ─▶ the other end
//! ```
//!
//! What is on the wire of a circuit, and what an end does, is the crate `gateway-client`.
//! `hello`, `relay::route` and `circuit` but for its `socket` and `sys` touch no socket and no clock.

pub mod circuit;
pub mod config;
pub mod control;
pub mod daemon;
pub mod hello;
pub mod relay;
