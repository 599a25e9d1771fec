//! The protocol between gateways and the ends of circuits, and the client side of it.
//!
//! For: appliances and redirectors that reach each other through gateways, and the gateways. Time,
//! randomness and bytes are parameters: there is no socket and no clock. Never: the content of a
//! circuit.
//!
//! ```text
//!   gateways, pools ─▶ pool: which gateway to use, and when to change
//!                        ▲ │
//!                        │ ▼
//!                      selector: the bindings at all gateways, and the gateway in use
//!                        │ ▲
//!                        ▼ │
//!                       end: bind ─▶ wire ─▶ gateway ─▶ wire ─▶ bound, or "move"
//!
//!   dial: addresses of names, and the first of several addresses that answers
//!   stream: the same datagrams in a TLS connection, where UDP does not pass
//!   liveness: whether the peer of such a connection answers
//!   proxy_header: the address of the client, from the gateway to a backend
//!   source: the source of a connection, as limits count it
//!   backoff: pauses between attempts
//!   random: numbers from a seed that the caller passes
//! ```

pub mod backoff;
pub mod dial;
pub mod end;
pub mod liveness;
pub mod pool;
pub mod proxy_header;
pub mod random;
pub mod selector;
pub mod source;
pub mod stream;
pub mod wire;
